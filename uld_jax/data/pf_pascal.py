"""PF-Pascal: pairs of photos of 20 categories, in the folders and lists of NC-Net (Rocco et al., NeurIPS 2018).

  DIR/PF-dataset-PASCAL/JPEGImages/2008_000001.jpg, ...     the photos
  DIR/image_pairs/train_pairs.csv, val_pairs.csv, test_pairs.csv     the pairs; also in DIR itself

The lists have these columns:

  source_image,target_image,class   paths relative to DIR, and the category's number, 1 to 20
  ...,flip                          optional, 0 or 1: whether training shows both images mirrored
  ...,XA,YA,XB,YB                   optional, the same keypoints on both images: numbers separated by `;`, pixels of the
                                    file counted from 1; -1 in all four fills a list up

The source image is a, the target image b: evaluation carries the points of b to a. A row of the data set is an image
with a category, and an image that is paired in two categories is two rows. Photos are usually stretched to the square
frame, as NC-Net does, which shows all of them. Counts of the published lists: 2,940 pairs for training (735 pairs in
both orders, each plain and mirrored), 308 for validation, and 299 for the test. 95 of the test are in training as well
(`leaked`).

The folder is read as it is, or `uld prepare` writes a prepared data set of it, with the same lists beside the records
(`builders/pf_pascal.py`).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from uld_jax import files
from uld_jax.data import csv_tables, folder, listing
from uld_jax.data.names import Lookup
from uld_jax.data.schemes import NO_SCHEME
from uld_jax.data.specs import Pairs, Source, sort_out, spec_of
from uld_jax.errors import UserError

NAME = "pf_pascal"
SPLITS = ("train", "val", "test")
FIT = "stretch"  # the usual way into the frame
# The categories of PASCAL VOC by their number, from 1.
CATEGORIES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_OTHER_NAMES = {"train": ("trn_pairs.csv",)}  # of later copies of the lists
_POINTS = ("XA", "YA", "XB", "YB")
_FOLDER = "image_pairs"


class Listed(NamedTuple):
    """The pairs of one list, by name.

    Attributes:
      a, b: [P] names of the images, relative to the data folder.
      category: [P] names of the categories.
      flip: [P] bool.
      xy: [P,2,K,2] float64 `(x, y)` of keypoints on a and b in pixels of the files, NaN in empty slots; None without.
      places: [P] file and line, for messages.
    """

    a: list[str]
    b: list[str]
    category: list[str]
    flip: np.ndarray
    xy: np.ndarray | None
    places: list[str]


class PfPascal(folder.Photos):
    """One split of PF-Pascal, `train`, `val` or `test`. Raises UserError for any error in its files.

    The column `category` has the names of the categories. For `frame_size`, `fit`, `scheme`, `normaliser` and
    `on_bad_file` see `data.open_source`; a pair with an image that is left out is left out too. With `partial`, photos
    that are absent are left out.
    """

    def __init__(
        self,
        data_dir,
        split: str,
        *,
        frame_size: int,
        fit: str = FIT,
        scheme: str = NO_SCHEME,
        normaliser: str = "auto",
        on_bad_file: str = "error",
        partial: bool = False,
    ):
        super().__init__(data_dir, frame_size, fit)
        listed = read_pairs(self._root, split)
        places = {}  # of every row, the list and line that name it first
        for a, b, category, place in zip(listed.a, listed.b, listed.category, listed.places, strict=True):
            places.setdefault((a, category), place)
            places.setdefault((b, category), place)
        keys = sorted(places)
        used = self._probe(keys, [places[key] for key in keys], on_bad_file, partial)
        self.names = [name for name, _ in used]
        self.columns = {"category": [category for _, category in used]}
        self._places = [places[key] for key in used]
        splits = tuple(one for one in SPLITS if find_list(self._root, one) is not None)
        self.spec = spec_of(NAME, None, scheme=scheme, normaliser=normaliser, splits=splits)
        self._set_sizes(list(used.values()))
        self.pairs = pairs_of_rows(listed, used)
        if self.pairs.xy is not None:
            for side in range(2):
                sizes = self.file_sizes[self.pairs.rows[:, side]]
                folder.check_points(self.pairs.xy[:, side], sizes, self.pairs.places.__getitem__)

    def _probe(self, keys, places, on_bad_file, partial) -> dict[tuple[str, str], folder.Head]:
        """Read the headers of all rows; return those of usable files by (name, category), and report the others."""
        self.names = [name for name, _ in keys]
        heads = folder.read_heads(map(self._path, range(len(keys))))
        absent = [row for row, head in enumerate(heads) if isinstance(head, listing.AbsentFile)]
        if absent and on_bad_file == "error" and not partial:
            raise UserError(
                f"{places[absent[0]]}: {self.names[absent[0]]} is not in {self._root} "
                f"({folder.counted({self.names[row] for row in absent}, 'such file')}); give the folder that holds "
                "PF-dataset-PASCAL with all its photos"
            )
        reasons = {self.names[row]: str(heads[row]) for row in absent if partial}
        if reasons:
            there = [row for row in range(len(keys)) if row not in set(absent)]
            if not there:
                raise UserError(f"{places[0]}: {self.where} holds none of its photos; give the folder that holds them")
            keys, heads, self.names = ([of[row] for row in there] for of in (keys, heads, self.names))
        bad = sort_out(self.names, heads, self._check, on_bad_file, self.where)
        self.checked = on_bad_file == "skip"
        reasons |= {b.file: str(b.of(self._path(row))) for row, b in bad.items()}
        self.skipped = tuple(listing.Skipped(name, reasons[name]) for name in sorted(reasons))
        return {key: heads[row] for row, key in enumerate(keys) if row not in bad}

    def place(self, row):
        """Return the list and line that name the image first."""
        return self._places[row]


def pairs_of_rows(listed: Listed, rows: Iterable[tuple[str, str]]) -> Pairs:
    """Replace names by rows; pairs of images without a row are left out.

    Args:
      listed: the pairs by name.
      rows: name and category of every row.

    Raises:
      UserError: no pair is left.
    """
    known = {key: row for row, key in enumerate(rows)}
    ends = [
        (known.get((a, category), -1), known.get((b, category), -1))
        for a, b, category in zip(listed.a, listed.b, listed.category, strict=True)
    ]
    ends = np.array(ends, np.int32)
    kept = np.flatnonzero((ends >= 0).all(1))
    if not len(kept):
        raise UserError("no pair of PF-Pascal has two photos that can be read; restore the photos")
    xy = None if listed.xy is None else listed.xy[kept]
    return Pairs(ends[kept], listed.flip[kept], xy, [listed.places[pair] for pair in kept])


def write_pairs(root, split: str, source: Source) -> None:
    """Write the pairs of a source as the list of a split below the folder `root`, which `read_pairs` reads."""
    pairs, rows = source.pairs, []
    for pair, (a, b) in enumerate(pairs.rows):
        number = CATEGORIES.index(source.columns["category"][a]) + 1
        row = [source.names[a], source.names[b], number, int(pairs.flip[pair])]
        if pairs.xy is not None:
            known = pairs.xy[pair][:, np.isfinite(pairs.xy[pair]).all((0, 2))]
            row += [";".join(repr(float(v) + 1) for v in known[side, :, axis]) for side in (0, 1) for axis in (0, 1)]
        rows.append(row)
    header = ["source_image", "target_image", "class", "flip", *(() if pairs.xy is None else _POINTS)]
    files.write(root / _FOLDER / f"{split}_pairs.csv", files.csv_text([header, *rows]))


def leaked(data_dir, split: str = "test") -> np.ndarray:
    """Tell which pairs of a split are in the training list as well: the same images in the same order and category.

    Returns [P] bool. Raises UserError for any error in one of the two lists.
    """
    root = folder.existing_folder(data_dir)
    train, other = (
        list(zip(found.a, found.b, found.category, strict=True))
        for found in (read_pairs(root, "train"), read_pairs(root, split))
    )
    known = set(train)
    return np.array([pair in known for pair in other])


def find_list(root, split: str) -> epath.Path | None:
    """Find the list of pairs of a split below the folder `root`; None if there is none."""
    for place in (root / _FOLDER, root):
        for name in (f"{split}_pairs.csv", *_OTHER_NAMES.get(split, ())):
            if (place / name).exists():
                return place / name
    return None


def read_pairs(root, split: str) -> Listed:
    """Read and check the list of one split below the folder `root`.

    Raises UserError that names the list, and the line and column if there is one.
    """
    path = find_list(root, split)
    if path is None:
        there = [one for one in SPLITS if find_list(root, one) is not None]
        if not there:
            raise UserError(
                f"{root} holds no image_pairs/train_pairs.csv; give the folder with PF-dataset-PASCAL and NC-Net's "
                "lists of its pairs"
            )
        raise UserError(f"{root} has no split {split} (it has {' and '.join(there)}); use one of them")
    table = csv_tables.read_table(path)
    need = ["source_image", "target_image", "class"]
    if any(name in table.header for name in _POINTS):
        need += _POINTS
    if absent := [name for name in need if name not in table.header]:
        raise UserError(f"{path} has no column {absent[0]} in its first line; NC-Net's lists have {','.join(need)}")
    if not table.rows:
        raise UserError(f"{path} lists no pairs; add one line a pair below the header")
    places = [f"{path}, line {line}" for line, _ in table.rows]
    for place, (_, row) in zip(places, table.rows, strict=True):
        if len(row) != len(table.header):
            raise UserError(f"{place} has {len(row)} columns where the first line has {len(table.header)}; mend it")
    cells = {name: [row[j] for _, row in table.rows] for j, name in enumerate(table.header)}
    a, b = (_names(root, cells[name], name, places) for name in need[:2])
    category = [CATEGORIES[_whole(cell, "class", p, 1, 20) - 1] for cell, p in zip(cells["class"], places, strict=True)]
    flip = cells.get("flip", ["0"] * len(places))
    flip = np.array([_whole(cell, "flip", p, 0, 1) for cell, p in zip(flip, places, strict=True)], bool)
    xy = _points([cells[name] for name in _POINTS], places) if len(need) > 3 else None
    return Listed(a, b, category, flip, xy, places)


def _names(root, cells: Sequence[str], column: str, places: Sequence[str]) -> list[str]:
    """Read a column of file names."""
    there, known = Lookup(root), {}
    for cell, place in zip(cells, places, strict=True):
        if cell not in known:
            known[cell] = csv_tables.locate(cell, root, there)
        if known[cell] is None:
            raise UserError(f"{place}, column {column}: {cell!r} is not inside {root}; give a path relative to it")
    return [known[cell] for cell in cells]


def _whole(cell: str, column: str, place: str, low: int, high: int) -> int:
    text = cell.strip()
    if not text.isdecimal() or not low <= int(text) <= high:
        raise UserError(f"{place}, column {column}: {text!r} is no whole number from {low} to {high}")
    return int(text)


def _points(columns: Sequence[Sequence[str]], places: Sequence[str]) -> np.ndarray:
    """Read the columns XA, YA, XB and YB, [P,2,K,2] in pixels from 0, NaN in empty slots."""
    found = []
    for place, *cells in zip(places, *columns, strict=True):
        numbers = []
        for column, cell in zip(_POINTS, cells, strict=True):
            where = lambda place=place, column=column: f"{place}, column {column}"
            numbers.append(np.array([csv_tables.number(part, where) for part in cell.split(";")]))
        counts = [len(line) for line in numbers]
        if len(set(counts)) > 1:
            said = ", ".join(f"{name} {count}" for name, count in zip(_POINTS, counts, strict=True))
            raise UserError(f"{place}: the columns have different numbers of points ({said}); give all the same points")
        numbers = np.stack(numbers)
        filler = (numbers == -1).all(0)
        half = np.isnan(numbers).any(0) | ((numbers == -1).reshape(2, 2, -1).all(1).any(0) & ~filler)
        if half.any():
            raise UserError(
                f"{place}: point {int(np.flatnonzero(half)[0])} is missing on one image; leave it out of both"
            )
        if filler.all():
            raise UserError(f"{place}: there is no point; give at least one, or leave the pair out")
        found.append(numbers[:, ~filler].reshape(2, 2, -1).swapaxes(1, 2) - 1)
    xy = np.full((len(found), 2, max(points.shape[1] for points in found), 2), np.nan)
    for out, points in zip(xy, found, strict=True):
        out[:, : points.shape[1]] = points
    return xy
