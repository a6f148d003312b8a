"""DeepLabCut's and Lightning Pose's tables: csv and HDF5.

A csv has the header rows scorer, bodyparts and coords, and takes one column for the path of an image, or three
(`csv_tables` tells them by their blank cells); Lightning Pose's `CollectedData.csv` has the first form. A missing point
has empty cells, and a row may be empty as a whole (DeepLabCut @ 2df0f46, lightning-pose @ f54c477). Coordinates are
taken as they are: the first pixel's centre is 0.

A table of several animals has a row `individuals` below the scorer, or a level of the columns. An individual with a
point in an image is an object there. The individual `single` has the points that are not an animal's, such as the
corners of a cage, and other names of points than the rest.

HDF5 has a pandas table under `df_with_missing`, in the layout `table` (old projects) or `fixed`. The layout `table`
keeps the names of the columns in a pickle; `_texts` takes them from its opcodes and builds lists, tuples and text only,
so that nothing is unpickled.
"""

import math
import pickletools
import posixpath
import re

import numpy as np

from uld_jax import files
from uld_jax.data import csv_tables
from uld_jax.data.labels import common
from uld_jax.data.labels.common import Labelled, Labels, Object, Predictions, objects_of
from uld_jax.errors import UserError

NAME = "DeepLabCut"
ENDING = ".csv"
_KEY = "df_with_missing"
_START = re.compile(rb"(\xef\xbb\xbf)?(sep=.\r?\n)?[\"']?scorer[\"']?[,;\t]", re.IGNORECASE)


def fits(data: bytes) -> bool:
    """Tell whether the first bytes of a text file have this format."""
    return _START.match(data) is not None


def fits_hdf5(file) -> bool:
    """Tell whether an open HDF5 file has this format."""
    return _KEY in file


def read(path) -> Labels:
    """Read a csv. Raises UserError naming the file, and the line and column if there is one."""
    table = csv_tables.read_table(path, individuals=True)
    images = []
    for line, row in table.rows:
        points = {}
        for i, point in enumerate(table.individuals or [("", name) for name in table.landmark_names]):
            place = f"{path}, line {line}, point {' '.join(point).strip()}"
            points[point] = tuple(csv_tables.number(row[1 + 2 * i + j], place.__str__) for j in range(2))
        images += _labelled(row[0], points, f"{path}, line {line}")
    return Labels(images, table.landmark_names)


def _labelled(file: str, points, place: str) -> list[Labelled]:
    """Make the objects of an image from {(individual, point): (x, y)}, without missing points."""
    file = file.strip()
    if not re.search(r"\D", file):
        raise UserError(
            f"{place} names the frame {file!r} of a video, and not an image; give the table of labelled images "
            "(CollectedData), with the images"
        )
    animals = {}
    for (animal, name), xy in points.items():
        if math.isnan(xy[0]) != math.isnan(xy[1]):
            of = f" of {animal}" if animal else ""
            raise UserError(f"{place}: one of x and y of the point {name}{of} is empty; fill both or none")
        if not math.isnan(xy[0]):
            animals.setdefault(animal, {})[name] = xy
    short = re.sub(r"^labeled-data[/\\]+", "", file)  # the folder of a project that holds those of its videos
    image = Labelled(tuple(dict.fromkeys([file, short])), place, {})
    return objects_of(image, [Object(animal, some) for animal, some in animals.items()])


def read_hdf5(path, file) -> Labels:
    """Read an open HDF5 file. Raises UserError naming the file and the row."""
    try:
        group = file[_KEY]
        columns, index, values = _table(group) if "table" in group else _fixed(group)
    except common.DAMAGED as error:
        raise UserError(
            f"{path} is not a table of pandas that can be read safely ({' '.join(str(error).split())[:80]}); write it "
            "as csv, which DeepLabCut does as well"
        ) from None
    if any(len(column) not in (3, 4) for column in columns):
        raise UserError(
            f"{path} has not the columns scorer, bodyparts and coords, with or without individuals; write it again"
        )
    at = {(column[1] if len(column) == 4 else "", *column[-2:]): j for j, column in enumerate(columns)}
    known = tuple(dict.fromkeys(where[:2] for where in at))
    for animal, name in known:
        if (animal, name, "x") not in at or (animal, name, "y") not in at:
            of = f" of {animal}" if animal else ""
            raise UserError(f"{path} has no x and y of the point {name}{of}; write the table again")
    images = []
    for i, name in enumerate(index):
        row = {point: tuple(float(values[i, at[*point, axis]]) for axis in "xy") for point in known}
        images += _labelled(name, row, f"{path}, row {i}")
    return Labels(images, tuple(dict.fromkeys(name for _, name in known)))


def _table(group) -> tuple[list[tuple], list[str], np.ndarray]:
    """Read columns, index and values [N,C] of pandas' layout `table`."""
    table = group["table"]
    rows = table[()]
    fields = [field for field in rows.dtype.names if field.startswith("values_block_")]
    columns = [tuple(c) for field in fields for c in _texts(bytes(table.attrs[f"{field}_kind"]))]
    values = np.concatenate([rows[field].reshape(len(rows), -1) for field in fields], 1).astype(np.float64)
    if values.shape[1] != len(columns):
        raise ValueError("its columns and values do not go together")
    return columns, [_text(cell) for cell in rows["index"]], values


def _fixed(group) -> tuple[list[tuple], list[str], np.ndarray]:
    """Read columns, index and values [N,C] of pandas' layout `fixed`."""
    index = ["/".join(part.strip("/\\") if i else part for i, part in enumerate(row)) for row in _axis(group, "axis1")]
    columns, values = [], []
    for block in range(int(group.attrs["nblocks"])):
        columns += _axis(group, f"block{block}_items")
        values.append(group[f"block{block}_values"][()].astype(np.float64))
    return columns, index, np.concatenate(values, 1)


def _axis(group, name: str) -> list[tuple[str, ...]]:
    """Read the entries of an index of one or of several levels."""
    if name in group:
        return [(_text(cell),) for cell in _plain(group[name])]
    levels = []
    while f"{name}_level{len(levels)}" in group:
        words = [_text(cell) for cell in _plain(group[f"{name}_level{len(levels)}"])]
        codes = group[f"{name}_label{len(levels)}"][()]
        levels.append([words[code] if code >= 0 else "" for code in codes])
    return list(zip(*levels, strict=True))


def _plain(dataset) -> np.ndarray:
    """Return the values of a dataset. Raises ValueError if these are pickles."""
    if dataset.dtype.kind == "O":
        raise ValueError(f"{dataset.name} holds pickled values")
    return dataset[()]


def _text(cell) -> str:
    return cell.decode("utf-8") if isinstance(cell, bytes) else str(cell)


def _texts(pickled: bytes):
    """Read lists and tuples of text from the opcodes of a pickle. Raises ValueError if it holds anything else."""
    stack, memo, mark = [], {}, object()

    def above() -> list:
        at = len(stack) - 1 - stack[::-1].index(mark)
        taken = stack[at + 1 :]
        del stack[at:]
        return taken

    for opcode, argument, _ in pickletools.genops(pickled):
        kind = opcode.name
        if kind == "MARK":
            stack.append(mark)
        elif kind in ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE"):
            stack.append(argument)
        elif kind in ("LIST", "TUPLE"):
            stack.append(list(above()) if kind == "LIST" else tuple(above()))
        elif kind in ("EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append([] if kind == "EMPTY_LIST" else ())
        elif kind in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(kind[-1]) :] = [tuple(stack[-int(kind[-1]) :])]
        elif kind == "APPEND":
            one = stack.pop()
            stack[-1].append(one)
        elif kind == "APPENDS":
            some = above()
            stack[-1].extend(some)
        elif kind in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if kind == "MEMOIZE" else argument] = stack[-1]
        elif kind in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif kind not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"its columns hold {kind.lower()}, and not text alone")
    return stack[-1]


def write(path, found: Predictions) -> None:
    """Write a table of labels with three columns for the path, as `CollectedData_*.csv` of a project has them."""
    names = list(found.names)
    header = [
        ["scorer", "", "", *["uld_jax"] * (2 * len(names))],
        ["bodyparts", "", "", *(name for name in names for _ in "xy")],
        ["coords", "", "", *("x", "y") * len(names)],
    ]
    rows = []
    for file, xy, score in zip(found.files, found.xy, found.score, strict=True):
        folder, name = posixpath.split(file)
        cells = [f"{v:.3f}" if s > 0 else "" for point, s in zip(xy, score, strict=True) for v in point]
        rows.append(["labeled-data", folder or found.folder or "photos", name, *cells])
    files.write(path, files.csv_text([*header, *rows]))
