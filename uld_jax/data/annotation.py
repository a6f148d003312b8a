"""The csv files of a folder of photos: their images, for training or for test, and the annotation of these.

  file,x0,y0,x1,y1,...             pixels of the upright file, centres at integers; `file` is relative to the folder
  ...,visible0,visible1,...        optional, 0 or 1; a point with empty x and y is not annotated and not visible
  file,nose_x,nose_y,ear_x,...     the same with names of the points, in a csv without such numbers
  ...,nose_visible,...             optional, as above
  ...,split                        optional, `train` or `test`; without this column `train.csv` lists training images
                                   and `test.csv` test images
  ...,box_x0,box_y0,box_x1,box_y1  optional box of the object
  ...,mask                         optional image file of the object's pixels
  ...,category                     optional word for the kind of object; for box, mask and category see `objects`
  ...,any other columns            kept as text, for `--group_by`

An error is one sentence that names the file, line and column.
"""

import collections
import posixpath
import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from uld_jax.data import csv_tables
from uld_jax.data.names import Index, Lookup
from uld_jax.errors import UserError

SPLITS = ("train", "test")
_POINT = re.compile(r"(x|y|visible)(0|[1-9]\d*)")
_NAMED = re.compile(r"(.+)_(x|y|visible)")
_SHOWN = 3  # most points that a note names


class CsvNote(UserWarning):
    """A note on how a csv was interpreted, when this is not obvious."""


class Annotation(NamedTuple):
    """Rows of one csv, or of all csv files of a folder.

    Attributes:
      names: [R] file names.
      splits: [R] splits, `train` or `test`.
      places: [R] csv and line of each row, for messages.
      landmarks: [R,L,2] float64 `(x, y)` in pixels of the file, NaN where empty; None without such columns.
      visible: [R,L] bool, True where a point is annotated and not hidden; None without landmarks.
      columns: other columns, {name: R strings}.
      landmark_names: names of the L points; () if unknown.
      kind: name of the tool that made the labels; empty for the project's own csv files.
      sources: label files of that tool, relative to the folder, which are not meant as pictures.
    """

    names: list[str]
    splits: list[str]
    places: list[str]
    landmarks: np.ndarray | None
    visible: np.ndarray | None
    columns: dict[str, list[str]]
    landmark_names: tuple[str, ...] = ()
    kind: str = ""
    sources: frozenset[str] = frozenset()

    def take(self, names: Sequence[str]) -> "Annotation":
        """Return the rows of the given images; an image without a row gets an empty one, with its name as place."""
        row_of = {name: row for row, name in enumerate(self.names)}
        rows = np.array([row_of.get(name, -1) for name in names], np.int64)
        landmarks = visible = None
        if self.landmarks is not None:
            landmarks = np.where((rows >= 0)[:, None, None], self.landmarks[rows], np.nan)
            visible = (rows >= 0)[:, None] & self.visible[rows]
        places = [self.places[row] if row >= 0 else name for row, name in zip(rows, names, strict=True)]
        columns = {c: [values[row] if row >= 0 else "" for row in rows] for c, values in self.columns.items()}
        splits = [self.splits[row] if row >= 0 else "train" for row in rows]
        return self._replace(
            names=list(names), splits=splits, places=places, landmarks=landmarks, visible=visible, columns=columns
        )


def read_folder(root) -> Annotation | None:
    """Read `train.csv` and `test.csv` of a folder together, with names as on the disk; None if there is neither.

    Raises UserError for any error in one of the files, or if they do not go together.
    """
    root = epath.Path(root)
    found = [path for split in SPLITS if (path := root / f"{split}.csv").exists()]
    files = Lookup(root)
    return _joined([(path, read_annotation(path, path.stem, root, files)) for path in found]) if found else None


def _joined(parts: Sequence[tuple[epath.Path, Annotation]]) -> Annotation:
    """Join the rows of several csv files; a column or point that a file lacks is empty in its rows."""
    counts = {path: note.landmarks.shape[1] for path, note in parts if note.landmarks is not None}
    if len(set(counts.values())) > 1:
        (one, first), (other, second) = list(counts.items())[:2]
        raise UserError(f"{one} has {first} landmarks but {other} has {second}; give both the same points")
    points_named = {path: note.landmark_names for path, note in parts if note.landmark_names}
    if len(set(points_named.values())) > 1:
        one, other = list(points_named)[:2]
        raise UserError(f"{one} and {other} have other points, or in another order; give both the same")
    place_of = {}
    for _, note in parts:
        for name, place in zip(note.names, note.places, strict=True):
            if name in place_of:
                raise UserError(
                    f"{place}: {name} is listed in {place_of[name]} too; an image is for training or for test, keep it "
                    "in one of them"
                )
            place_of[name] = place
    notes = [note for _, note in parts]
    points = visible = None
    if counts:
        count = next(iter(counts.values()))
        bare = lambda note: note.landmarks is None
        points = [np.full((len(n.names), count, 2), np.nan) if bare(n) else n.landmarks for n in notes]
        visible = [np.zeros((len(n.names), count), bool) if bare(n) else n.visible for n in notes]
        points, visible = np.concatenate(points), np.concatenate(visible)
    columns = {c: [v for n in notes for v in n.columns.get(c, [""] * len(n.names))] for n in notes for c in n.columns}
    return Annotation(
        [name for n in notes for name in n.names],
        [split for n in notes for split in n.splits],
        [place for n in notes for place in n.places],
        points,
        visible,
        columns,
        next(iter(points_named.values()), ()),
    )


def read_annotation(path, split: str, root, files: Lookup) -> Annotation:
    """Read and check one csv. Raises UserError naming the file, and the line and column if there is one.

    Args:
      path: the csv.
      split: split of rows without a word in a column `split`.
      root: folder of the images.
      files: index of the files below `root`.
    """
    table = csv_tables.read_table(path)
    points = _landmark_columns(path, table.header)
    lines, cells = _columns(path, table)
    names = read_names(path, lines, cells["file"], root, files)
    xy = visible = None
    if points.x:
        xy = _without_repeated(path, _coordinates(path, lines, points, cells))
        visible = np.isfinite(xy).all(-1)
    if points.visible:
        seen = _numbers(path, lines, points.visible, cells)
        wrong = visible & (seen != 0) & (seen != 1)
        if wrong.any():
            row, point = np.argwhere(wrong)[0]
            raise UserError(
                f"{path}, line {lines[row]}, column {points.visible[point]}: not 0 or 1; use 1 where the point is seen"
            )
        visible &= seen == 1
    known = {"file", *points.x, *points.y, *points.visible}
    others = {h: list(c) for h, c in cells.items() if h not in known}
    places = [f"{path}, line {line}" for line in lines]
    if table.kind or table.separator != "," or points.names:
        what = f"{table.kind}, {len(points.x)} points" if table.kind else f"{len(points.x)} points"
        if points.names:
            what += f" with names ({', '.join(points.names[:_SHOWN])}{', ...' * (len(points.names) > _SHOWN)})"
        named = {"\t": "tab"}.get(table.separator, table.separator)
        warnings.warn(f"{path}: {what}, separator {named}", CsvNote, stacklevel=2)
    point_names = table.landmark_names or points.names
    return Annotation(names, _splits(places, others, split), places, xy, visible, others, point_names)


class Points(NamedTuple):
    """Points that a program has placed on images, as a table holds them.

    Attributes:
      names: [R] file names.
      xy: [R,K,2] float64 `(x, y)` in pixels of the upright file, NaN where a point is missing.
      score: [R,K] float64 confidences, 0 or more; 0 where a point is missing. It is 1 for a point without a score.
      lines: [R] numbers of the table's lines.
    """

    names: list[str]
    xy: np.ndarray
    score: np.ndarray
    lines: list[int]


def read_points(path, root, files: Index | Lookup) -> Points:
    """Read a table of points in a layout of `uld predict`.

    The first line is `file,x0,y0,score0,x1,...` or `file,nose_x,nose_y,nose_score,...`; scores are optional. A point is
    missing if its x and y are empty, or if its score is 0 or empty. Unlike for annotation, a place that repeats is not
    taken as missing, because a program may well put a point at one place of many images. Other columns are not read.

    Args:
      path: the csv, see `csv_tables` for the variants.
      root: folder of the images, to which the column `file` is relative.
      files: index of the names that are meant.

    Raises:
      UserError: the csv cannot be read, has no points, or has a score below 0; names the line and column if there is
        one.
    """
    table = csv_tables.read_table(path)
    points = _landmark_columns(path, table.header)
    count = len(points.x)
    if not count:
        raise UserError(f"{path} has no points; its first line must be file,x0,y0,x1,y1,...")
    lines, cells = _columns(path, table)
    names = read_names(path, lines, cells["file"], root, files)
    xy, score = _coordinates(path, lines, points, cells), np.ones((len(lines), count))
    scores = [f"{name}_score" for name in points.names] or [f"score{i}" for i in range(count)]
    for i in (i for i in range(count) if scores[i] in cells):
        score[:, i] = np.nan_to_num(_numbers(path, lines, [scores[i]], cells)[:, 0])
    if (score < 0).any():
        row, point = np.argwhere(score < 0)[0]
        raise UserError(
            f"{path}, line {lines[row]}, column {scores[point]}: {score[row, point]:g} is below 0; use 0 for a missing "
            "point, and more for any other"
        )
    score = np.where(np.isnan(xy).any(-1), 0, score)
    return Points(names, np.where(score[..., None] > 0, xy, np.nan), score, lines)


def _columns(path, table: csv_tables.Table) -> tuple[list[int], dict[str, tuple[str, ...]]]:
    """Return the numbers of a table's lines, and its cells by column. Raises UserError for no lines or uneven ones."""
    for line, row in table.rows:
        if len(row) != len(table.header):
            raise UserError(
                f"{path}, line {line} has {len(row)} columns where the first line has {len(table.header)}; make them "
                "equal"
            )
    if not table.rows:
        raise UserError(f"{path} lists no images; add one line an image below the header")
    columns = zip(*(row for _, row in table.rows), strict=True)
    return [line for line, _ in table.rows], dict(zip(table.header, columns, strict=True))


def _coordinates(path, lines, points: "_Columns", cells) -> np.ndarray:
    """Convert the columns of L points to [N,L,2], NaN where empty. Raises UserError for half a point."""
    xy = np.stack([_numbers(path, lines, names, cells) for names in (points.x, points.y)], -1)
    half = np.isnan(xy).any(-1) & ~np.isnan(xy).all(-1)
    if half.any():
        row, point = np.argwhere(half)[0]
        both = f"{points.x[point]} and {points.y[point]}"
        raise UserError(f"{path}, line {lines[row]}: one of {both} is empty; fill both or none")
    return xy


def _without_repeated(path, xy: np.ndarray) -> np.ndarray:
    """Replace values that stand for missing points (`csv_tables.repeated`) by NaN in points [N,L,2], with a warning."""
    for (x, y), where in csv_tables.repeated(xy):
        warnings.warn(
            f"{path}: {where.sum()} points in {where.any(1).sum()} rows all are ({x:g}, {y:g}), and are taken as "
            "missing; write empty cells to be sure",
            CsvNote,
            stacklevel=2,
        )
        xy = np.where(where[..., None], np.nan, xy)
    return xy


def _splits(places, columns, default: str) -> list[str]:
    """Return the split of each row: its cell in the column `split`, else the default.

    Raises UserError for any other word.
    """
    cells = [cell.strip().lower() or default for cell in columns.get("split", [default] * len(places))]
    for place, cell in zip(places, cells, strict=True):
        if cell not in SPLITS:
            raise UserError(
                f"{place}, column split: {cell!r} is neither train nor test; write one of them, or give the column "
                "another name"
            )
    return cells


class _Columns(NamedTuple):
    """Columns of the L points of a csv: of x, y, and `visible` if there are such; and the points' names, or ()."""

    x: tuple[str, ...] = ()
    y: tuple[str, ...] = ()
    visible: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def _landmark_columns(path, header) -> _Columns:
    """Find the columns of the points in the first line of a csv."""
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
    if not found["x"] | found["y"] | found["visible"]:
        return _named_columns(path, header)
    count = 1 + max(found["x"] | found["y"], default=-1)
    every = set(range(count))
    for axis in ("x", "y", *(["visible"] if found["visible"] else [])):
        odd = sorted(every ^ found[axis])
        if odd and odd[0] in every:
            raise UserError(f"{path} has {count} landmarks but no column {axis}{odd[0]}; add it or remove its partners")
        if odd:
            raise UserError(f"{path} has a column {axis}{odd[0]} but no x{odd[0]} and y{odd[0]}; add them or remove it")
    axes = ("x", "y", *(["visible"] if found["visible"] else []))
    return _Columns(*(tuple(f"{axis}{i}" for i in range(count)) for axis in axes))


def _named_columns(path, header) -> _Columns:
    """Find the columns `NAME_x`, `NAME_y` and `NAME_visible`; a csv without any such pair has no points."""
    found = {axis: [] for axis in ("x", "y", "visible")}
    for match in filter(None, map(_NAMED.fullmatch, header)):
        found[match[2]].append(match[1])
    names = [name for name in found["x"] if name in found["y"]]
    if not names:
        return _Columns()
    for axis, other in (("x", "y"), ("y", "x")):
        if odd := [name for name in found[axis] if name not in names]:
            raise UserError(
                f"{path} has a column {odd[0]}_{axis} but no {odd[0]}_{other}; add it, or if this is no point rename it"
            )
    seen = [name for name in found["visible"] if name in names]
    missing = [name for name in names if name not in seen]
    if seen and missing:
        raise UserError(f"{path} has a column {seen[0]}_visible but no {missing[0]}_visible; add it")
    axes = ("x", "y", *(["visible"] if seen else []))
    columns = [tuple(f"{name}_{axis}" for name in names) for axis in axes]
    return _Columns(*columns, *[()] * (3 - len(axes)), tuple(names))


def read_names(path, lines, cells, root, files: Index | Lookup) -> list[str]:
    """Read the column `file`: paths inside the folder `root` as on the disk, each once; see `csv_tables.locate`.

    Raises UserError naming the csv and the line.
    """
    names, first = [], {}
    for line, cell in zip(lines, cells, strict=True):
        if not cell.strip() or posixpath.normpath(cell.strip()) == ".":
            raise UserError(f"{path}, line {line}: the column `file` is empty; name an image")
        name = csv_tables.locate(cell, root, files)
        if name is None:
            raise UserError(f"{path}, line {line}: {cell} is not inside the folder; give a path relative to it")
        if name in first:
            before, spelt = first[name]
            other = "listed in" if spelt == cell else "the file of"
            more = " already" if spelt == cell else ", typed otherwise"
            raise UserError(f"{path}, line {line}: {cell.strip()} is {other} line {before}{more}; keep one of them")
        first[name] = line, cell
        names.append(name)
    return names


def _numbers(path, lines, names, cells) -> np.ndarray:
    """Convert columns to [N, len(names)] float64, NaN where empty."""
    out = np.empty((len(lines), len(names)))
    for j, name in enumerate(names):
        try:
            out[:, j] = np.array(cells[name]).astype(np.float64)
        except ValueError:
            out[:, j] = np.inf
        if np.isfinite(out[:, j]).all():
            continue  # parsing cell by cell takes a hundred times as long
        for i, cell in enumerate(cells[name]):
            out[i, j] = csv_tables.number(cell, lambda i=i, name=name: f"{path}, line {lines[i]}, column {name}")
    return out
