"""A folder of photos as a data set, with or without annotation.

Either images alone, at any depth: every split name gives all of them, sorted by path, without landmarks. Or one csv a
split, `train.csv` and `test.csv`:

  file,x0,y0,x1,y1,...             pixels of the upright file, centres at integers; `file` is relative to the folder
  ...,visible0,visible1,...        optional, 0 or 1; a point with empty x and y is not annotated and not visible
  ...,box_x0,box_y0,box_x1,box_y1  optional box of the object, `mask` an image file of its pixels: see `regions`
  ...,any other columns            kept as text, for `--group_by`

Everything is checked when the folder is opened: a mistake is one sentence that names the file, line and column.
"""

import collections
import csv
import io
import os
import posixpath
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from etils import epath

from uld_jax.data import decode, listing
from uld_jax.data.names import Lookup
from uld_jax.data.specs import NO_SCHEME, Source, decode_threads, fingerprint_of, set_sides, spec_of
from uld_jax.errors import UserError
from uld_jax.ops import coordinates

_POINT = re.compile(r"(x|y|visible)(0|[1-9]\d*)")


class Annotation(NamedTuple):
    """One csv, row by row.

    Attributes:
      names: [N] files.
      lines: [N] line numbers in the csv, for messages.
      landmarks: [N,L,2] float64 `(x, y)` in pixels of the file, NaN where empty; None without such columns.
      visible: [N,L] bool; None without landmarks.
      columns: the other columns, {name: N strings}.
    """

    names: list[str]
    lines: list[int]
    landmarks: np.ndarray | None
    visible: np.ndarray | None
    columns: dict[str, list[str]]


class Folder(Source):
    """One split of a folder. Raises UserError for whatever is wrong with it.

    For `frame_size`, `fit`, `scheme` and `normaliser` see `data.open_source`, for `sides` see `specs.set_sides`.
    """

    def __init__(
        self,
        data_dir,
        split: str,
        *,
        frame_size: int,
        fit: str = "pad",
        scheme: str = NO_SCHEME,
        normaliser: str = "auto",
        sides: str = "auto",
    ):
        self._root = existing_folder(data_dir)
        self.data_dir = os.fspath(self._root)
        self._fit, self.frame_size = fit, frame_size
        splits = tuple(s for s in ("train", "test") if (self._root / f"{s}.csv").exists())
        table = self._root / f"{split}.csv"
        if splits and not table.exists():
            raise UserError(
                f"{self._root} has no {split}.csv (it has {' and '.join(f'{s}.csv' for s in splits)}); "
                f"add {split}.csv with the columns file,x0,y0,... or choose another split"
            )
        if splits:
            note = read_annotation(table)
            _check_same_landmarks(self._root, table, note)
        else:
            names = listing.list_images(self._root)
            if not names:
                raise UserError(f"{self._root} holds no images ({listing.PICTURES}); give another data_dir")
            note = Annotation(names, [], None, None, {})
        self.names, self.columns = note.names, note.columns
        if splits:
            self.names = _as_on_disk(self._root, table, note)
        self._table, self._lines = table, note.lines
        count = None if note.landmarks is None else note.landmarks.shape[1]
        self.spec = spec_of("folder", count, scheme=scheme, normaliser=normaliser, splits=splits)
        heads = self._probe(table if splits else None)
        self.file_sizes = np.array([h.size for h in heads], np.int32)
        self.frame_maps = np.stack([coordinates.frame_map(h.size, (frame_size, frame_size), fit) for h in heads])
        self.fingerprint = fingerprint_of(frame_size, fit, [(n, *h) for n, h in zip(self.names, heads, strict=True)])
        if note.landmarks is not None:
            check_points(note.landmarks, self.file_sizes, self.place)
            self.landmarks = coordinates.file_to_frame(note.landmarks, self.frame_maps).astype(np.float32)
            self.visible = note.visible
        set_sides(self, sides)

    def place(self, row):
        """File and line of the csv; the image where there is none."""
        return f"{self._table}, line {self._lines[row]}" if self._lines else self.names[row]

    def image(self, row):
        """See `Source`."""
        return decode.decode_image(self._path(row), self.frame_size, self._fit)[0]

    def encoded(self, row):
        """The file as it is."""
        return epath.Path(self._path(row)).read_bytes()

    def _path(self, row):
        return os.path.join(os.fspath(self._root), self.names[row])

    def _probe(self, table) -> list["_Head"]:
        """Headers of all files, read by several threads; names the first file that is absent or unreadable."""
        with ThreadPoolExecutor(decode_threads()) as pool:
            heads = list(pool.map(_head, map(self._path, range(len(self)))))
        absent = [i for i, h in enumerate(heads) if h is None]
        if absent and table is None:
            raise UserError(f"{self._path(absent[0])} is a link to nothing; mend or remove it")
        if absent:
            raise UserError(
                f"{table} names {_count(absent, 'file')} not in {self._root}, first {self.names[absent[0]]}; "
                f"paths in the column `file` are relative to the folder of the csv"
            )
        bad = [h for h in heads if isinstance(h, UserError)]
        if bad:
            more = "" if len(bad) == 1 else f"; {len(bad)} files of {len(self)} cannot be read"
            raise UserError(f"{bad[0]}{more}")
        return heads


class _Head(NamedTuple):
    """What is known of an image without decoding it."""

    size: tuple[int, int]
    file_bytes: int
    checksum: int  # of the first bytes


def _head(path) -> "_Head | UserError | None":
    """Size of an image file; None if absent, the error if unreadable."""
    try:
        found = decode.header(path)
        return _Head(found.size, found.file_bytes, zlib.crc32(found.start))
    except listing.AbsentFile:
        return None
    except UserError as e:
        return e


def existing_folder(data_dir) -> epath.Path:
    """The folder as a path. Raises UserError if it is not given, absent, a file, or empty."""
    if not data_dir or not os.fspath(data_dir):
        raise UserError(
            "data_dir is not set; give the folder of the images with --config.data_dir=DIR (or --data_dir=DIR)"
        )
    folder = epath.Path(data_dir).expanduser()
    if not folder.exists():
        raise UserError(f"data_dir {folder} does not exist; give a folder of images")
    if not folder.is_dir():
        raise UserError(f"data_dir {folder} is a file; give the folder that holds the images")
    if next(iter(folder.iterdir()), None) is None:
        raise UserError(f"data_dir {folder} is empty; put images into it, or give another folder")
    return folder


def read_annotation(path) -> Annotation:
    """Reads and checks one csv. Raises UserError naming the file, and the line and column where there is one."""
    header, read = read_cells(path)
    landmarks, has_visible = _landmark_columns(path, header)
    for line, row in read:
        if len(row) != len(header):
            raise UserError(
                f"{path}, line {line} has {len(row)} columns where the first line has {len(header)}; make them equal"
            )
    if not read:
        raise UserError(f"{path} lists no images; add one line an image below the header")
    lines = [line for line, _ in read]
    cells = dict(zip(header, zip(*(row for _, row in read), strict=True), strict=True))
    names = read_names(path, lines, cells["file"])
    xy = visible = None
    if landmarks:
        xy = np.stack([_numbers(path, lines, [f"{axis}{i}" for i in range(landmarks)], cells) for axis in "xy"], -1)
        half = np.isnan(xy).any(-1) & ~np.isnan(xy).all(-1)
        if half.any():
            row, point = np.argwhere(half)[0]
            raise UserError(f"{path}, line {lines[row]}: one of x{point} and y{point} is empty; fill both or none")
        visible = np.isfinite(xy).all(-1)
    if has_visible:
        seen = _numbers(path, lines, [f"visible{i}" for i in range(landmarks)], cells)
        wrong = visible & (seen != 0) & (seen != 1)
        if wrong.any():
            row, point = np.argwhere(wrong)[0]
            raise UserError(
                f"{path}, line {lines[row]}, column visible{point}: not 0 or 1; use 1 where the point is seen"
            )
        visible &= seen == 1
    others = {h: list(c) for h, c in cells.items() if h != "file" and not _POINT.fullmatch(h)}
    return Annotation(names, lines, xy, visible, others)


def read_cells(path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """First line of a csv, and (line number, cells) of every other line that is not empty.

    Raises UserError naming the file, and the line where there is one.
    """
    path = epath.Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8; save it as csv in UTF-8") from None
    except OSError as e:
        raise UserError(f"{path} cannot be read ({(e.strerror or str(e)).lower()}); give a csv file") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [h.strip() for h in next(reader, [])]
        return header, [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as e:
        raise UserError(f"{path}, line {reader.line_num}: not valid csv ({e}); save it again as csv") from None


def _landmark_columns(path, header) -> tuple[int, bool]:
    """(L, whether there are `visible` columns) from the first line of a csv."""
    twice = [h for h, n in collections.Counter(header).items() if n > 1]
    if twice:
        raise UserError(f"{path} has the column {twice[0]!r} twice; rename one of them")
    if "file" not in header:
        raise UserError(f"{path} has no column `file` in its first line; the first line must be file,x0,y0,x1,y1,...")
    found = collections.defaultdict(set)
    for h in header:
        match = _POINT.fullmatch(h)
        if match:
            found[match[1]].add(int(match[2]))
    count = 1 + max(found["x"] | found["y"], default=-1)
    every = set(range(count))
    for axis in ("x", "y", *(["visible"] if found["visible"] else [])):
        odd = sorted(every ^ found[axis])
        if odd and odd[0] in every:
            raise UserError(f"{path} has {count} landmarks but no column {axis}{odd[0]}; add it or remove its partners")
        if odd:
            raise UserError(f"{path} has a column {axis}{odd[0]} but no x{odd[0]} and y{odd[0]}; add them or remove it")
    return count, bool(found["visible"])


def read_names(path, lines, cells) -> list[str]:
    """The column `file`: paths inside the folder, each once. Raises UserError naming csv and line."""
    names, first = [], {}
    for line, cell in zip(lines, cells, strict=True):
        name = posixpath.normpath(cell.strip()) if cell.strip() else ""
        if not name or name == ".":
            raise UserError(f"{path}, line {line}: the column `file` is empty; name an image")
        if name.startswith(("/", "../")) or "://" in name:
            raise UserError(f"{path}, line {line}: {cell} is not inside the folder; give a path relative to it")
        if name in first:
            raise UserError(f"{path}, line {line}: {name} is listed in line {first[name]} already; keep one of them")
        first[name] = line
        names.append(name)
    return names


def _as_on_disk(root, table, note: Annotation) -> list[str]:
    """The files that a csv names, as the disk has them. Raises UserError for one that is named in two ways."""
    files, line_of, found = Lookup(root), {}, []
    for line, typed in zip(note.lines, note.names, strict=True):
        name = files.find(typed) or typed  # an absent one is told with all others
        if name in line_of:
            raise UserError(
                f"{table}, line {line}: {typed} is the file of line {line_of[name]}, typed otherwise; keep one of them"
            )
        line_of[name] = line
        found.append(name)
    return found


def _numbers(path, lines, names, cells) -> np.ndarray:
    """Columns as [N, len(names)] float64, NaN where empty."""
    out = np.empty((len(lines), len(names)))
    for j, name in enumerate(names):
        for i, cell in enumerate(cells[name]):
            out[i, j] = number(cell, lambda i=i, name=name: f"{path}, line {lines[i]}, column {name}")
    return out


def number(cell: str, place) -> float:
    """A cell as a finite number, NaN if it is empty. Raises UserError that begins with `place()`.

    >>> number(' 1.5', str), number(' ', str)
    (1.5, nan)
    """
    if not cell.strip():
        return np.nan
    try:
        value = float(cell)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise UserError(f"{place()}: {cell.strip()!r} is not a number")
    return value


def _check_same_landmarks(root, table, note):
    """Errors of a split mean nothing if the other split has other points."""
    mine = 0 if note.landmarks is None else note.landmarks.shape[1]
    for other in ("train", "test"):
        path = root / f"{other}.csv"
        if path == table or not path.exists():
            continue
        with path.open("rb") as f:
            first_line = f.readline().decode("utf-8-sig", "replace")
        theirs, _ = _landmark_columns(path, [h.strip() for h in next(csv.reader([first_line]), [])])
        if mine and theirs and mine != theirs:
            raise UserError(f"{table} has {mine} landmarks but {path} has {theirs}; give both the same points")


def check_points(landmarks, file_sizes, place):
    """Points [N,L,2] of files of sizes [N,2] (height, width) must lie within one image side of the image.

    Raises UserError for the first that does not; `place(row)` says where it was read.
    """
    wh = np.asarray(file_sizes, np.float64)[:, None, ::-1]
    with np.errstate(invalid="ignore"):
        far = ((landmarks < -wh) | (landmarks > 2 * wh)).any(-1)
    if far.any():
        row, point = np.argwhere(far)[0]
        x, y = landmarks[row, point]
        height, width = file_sizes[row]
        raise UserError(
            f"{place(row)}: point {point} at ({x:g}, {y:g}) lies far outside its image of {width} x {height} pixels; "
            f"coordinates must be pixels of the file ({_count(np.flatnonzero(far.any(-1)), 'image')} affected)"
        )


def _count(items, word) -> str:
    return f"{len(items)} {word}" + ("" if len(items) == 1 else "s")
