"""Reading of csv files from various tools: separators, header rows, spellings of numbers and of file names.

The project's own layout has the first line `file,x0,y0,x1,y1,...`. These variants are read too: `;` or a tab in place
of the comma, a first line `sep=;`, decimal commas, trailing empty columns, an unnamed first column (of pandas), and
DeepLabCut's tables of one animal, whose three header rows are scorer, bodyparts and coords and whose file names take
one column or three. Where it is asked for, its tables of several animals are read too, which have a row individuals.
"""

import csv
import io
import posixpath
import re
from typing import NamedTuple

import numpy as np
from etils import epath

from uld_jax.data.names import Index, Lookup
from uld_jax.errors import UserError, shell_command

_MISSING = ("", "nan", "na", "n/a", "none", "null")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")


class Table(NamedTuple):
    """A csv converted to the project's own layout.

    Attributes:
      header: names of the columns.
      rows: (line number, cells) of each row.
      separator: character between cells.
      kind: `DeepLabCut`, or empty for the project's own layout.
      landmark_names: names of DeepLabCut's body parts, else ().
      individuals: (individual, body part) of each pair of columns x and y, in a table of several animals; else ().
    """

    header: list[str]
    rows: list[tuple[int, list[str]]]
    separator: str = ","
    kind: str = ""
    landmark_names: tuple[str, ...] = ()
    individuals: tuple[tuple[str, str], ...] = ()


def read_table(path, individuals: bool = False) -> Table:
    """Read the header of a csv, and every other line that is not empty, with unchanged cells.

    Args:
      path: the csv.
      individuals: True to read DeepLabCut's tables of several animals, too.

    Raises:
      UserError: any error, naming the file, and the line if there is one; or a table of several animals.
    """
    text, first = _text(path), 1
    separator = None
    if match := re.match(r"sep=(.)\r?\n", text, re.IGNORECASE):
        separator, text, first = match[1], text[match.end() :], 2
    separator = separator or _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        lines = [(reader.line_num + first - 1, row) for row in reader]
    except csv.Error as e:
        line = reader.line_num + first - 1
        raise UserError(f"{path}, line {line}: not valid csv ({e}); save it again as csv") from None
    header = [h.strip() for h in lines[0][1]] if lines else []
    rows = [(line, row) for line, row in lines[1:] if any(cell.strip() for cell in row)]
    if header and header[0].lower() == "scorer":
        return _deeplabcut(path, separator, header, rows, individuals)
    return _own(path, separator, header, rows)


def _text(path) -> str:
    path = epath.Path(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8; save it as csv in UTF-8") from None
    except OSError as e:
        raise UserError(f"{path} cannot be read ({(e.strerror or str(e)).lower()}); give a csv file") from None


def _separator(text: str) -> str:
    """Choose the most frequent of `,`, `;` and tab in the first line.

    `csv.Sniffer` is not used, because it looks at all lines and may choose the comma of decimal numbers or a letter of
    the file names.

    >>> _separator("file;x0;y0\\na.jpg;1,5;2,5\\n"), _separator("file\\na.jpg\\n")
    (';', ',')
    """
    line = text.partition("\n")[0]
    return max(",;\t", key=line.count)


def _own(path, separator: str, header: list[str], rows) -> Table:
    """Read the project's own layout, without columns that have neither name nor content."""
    while header and not header[-1]:
        header = header[:-1]
    rows = [(line, _cut(row, len(header))) for line, row in rows]
    if header and not header[0] and all(len(row) == len(header) for _, row in rows):  # row numbers, which pandas writes
        header, rows = header[1:], [(line, row[1:]) for line, row in rows]
    if "" in header:
        raise UserError(f"{path}: column {header.index('') + 1} of its first line has no name; give it one")
    return Table(header, rows, separator)


def _cut(row: list[str], length: int) -> list[str]:
    """Remove empty cells at the end of a row that belong to no column."""
    return row[:length] if not any(cell.strip() for cell in row[length:]) else row


def _deeplabcut(path, separator: str, header: list[str], rows, individuals: bool) -> Table:
    """Read DeepLabCut's three header rows, or four, and the rows below them."""
    kinds = [row[0].strip().lower() for _, row in rows[:3]]
    several = kinds[:1] == ["individuals"]
    if several and not individuals:
        raise UserError(
            f"{path} is a table of several animals (DeepLabCut's rows scorer, individuals, bodyparts, coords), and "
            f"{several_objects('DIR')}, with the table under its own name, CollectedData"
        )
    if kinds[several : several + 2] != ["bodyparts", "coords"]:
        raise UserError(
            f"{path} starts as DeepLabCut's tables do, with `scorer`, but the next lines do not start with `bodyparts` "
            "and `coords`; export it again"
        )
    parts, coords = ([cell.strip() for cell in row] for _, row in rows[several : several + 2])
    animals = [cell.strip() for cell in rows[0][1]] if several else [""] * len(parts)
    start = 1  # columns of the file name: `scorer` alone, or with blank cells behind it
    while start < len(header) and not header[start]:
        start += 1
    column = {}
    for j in range(start, min(len(parts), len(coords), len(animals))):
        where = animals[j], parts[j], coords[j].lower()
        if where in column and parts[j]:
            raise UserError(f"{path} has the point {' '.join(where[:2]).strip()} twice; keep one of them")
        column[where] = j
    points = list(dict.fromkeys((animal, part) for animal, part, _ in column if part))
    missing = [(*point, axis) for point in points for axis in "xy" if (*point, axis) not in column]
    if missing:
        of = f" of {missing[0][0]}" if several else ""
        raise UserError(f"{path} has no column {missing[0][2]} of the point {missing[0][1]}{of}; export it again")
    order = [column[*point, axis] for point in points for axis in "xy"]
    out = []
    for line, row in rows[2 + several :]:
        row = row + [""] * (len(parts) - len(row))
        file = "/".join(cell.strip().strip("/\\") if i else cell.strip() for i, cell in enumerate(row[:start]) if cell)
        out.append((line, [file, *(row[j] for j in order)]))
    header = ["file", *(f"{axis}{i}" for i in range(len(points)) for axis in "xy")]
    names = tuple(dict.fromkeys(part for _, part in points))
    return Table(header, out, separator, "DeepLabCut", names, tuple(points) if several else ())


def several_objects(src) -> str:
    """Say what a folder whose images have several objects cannot do, and the remedy.

    >>> several_objects("photos").partition("; ")[2]
    'cut out each by `uld prepare --dataset=NAME --src=photos --crop_objects=1.5 --data_dir=OUT`'
    """
    command = shell_command("prepare", dataset="NAME", src=src, crop_objects=1.5, data_dir="OUT")
    return f"an image of a folder has one object; cut out each by `{command}`"


def number(cell: str, place) -> float:
    """Convert a cell to a finite number, or NaN if it is empty or a word for a missing value.

    Raises UserError that begins with `place()`.

    >>> number(' 1.5', str), number('1,5', str), number(' ', str), number('NaN', str), number('None', str)
    (1.5, 1.5, nan, nan, nan)
    """
    try:
        value = float(cell)
    except ValueError:
        text = cell.strip()
        if text.lower() in _MISSING:
            return np.nan
        value = float(text.replace(",", ".")) if _DECIMAL_COMMA.fullmatch(text) else np.inf
    if np.isinf(value):
        raise UserError(f"{place()}: {cell.strip()!r} is not a number")
    return value


def locate(cell: str, root, files: Index | Lookup) -> str | None:
    """Find the file that a cell names, relative to the folder `root`; None if it cannot be inside the folder.

    Backslashes, paths that start with the folder's own name, absolute paths into the folder (also on another machine),
    and endings of the other case are understood. An absent file is returned as it is spelt.

    >>> files = Index(["a/b.jpg"])
    >>> locate(".\\\\a\\\\b.jpg", "/x/photos", files), locate("/home/me/photos/a/b.JPG", "/x/photos", files)
    ('a/b.jpg', 'a/b.jpg')
    """
    text = cell.strip()
    if not text or "://" in text:
        return None
    spelt = [posixpath.normpath(text)]
    if "\\" in text:
        spelt.append(posixpath.normpath(text.replace("\\", "/")))
    inside = [one for one in spelt if not one.startswith(("/", "../")) and one != "." and one[1:2] != ":"]
    own = posixpath.basename(str(root).rstrip("/"))
    for one in spelt:
        parts = one.split("/") if own else []
        inside += ["/".join(parts[i + 1 :]) for i in reversed(range(len(parts) - 1)) if parts[i] == own]
    for any_case in (False, True):
        for one in inside:
            if (found := files.find(one, any_case=any_case)) is not None:
                return found
    return inside[0] if inside else None


def repeated(points: np.ndarray) -> list[tuple[tuple[float, float], np.ndarray]]:
    """Find values that stand for a missing point: `((x, y), where [N,L] bool)` of each; [] if there is none.

    Tools write (0, 0), (-1, -1) or a place outside the image for a missing point. A value is taken for a missing point
    if it repeats exactly and

      * both coordinates are negative; or
      * it is isolated from all other labels, and is (0, 0), (1, 1), or shared by several points.

    A value is isolated if two conditions hold. For each point that has the value, the nearest other label is farther
    away than half of the median distance of all its labels (a tenth for (0, 0) and (1, 1)). For any point, the nearest
    label is farther away than 3 pixels and a fiftieth of the extent of all labels. Hence whole numbers that repeat by
    chance stay, because other labels lie near them, and so do labelled corners of a picture.

    Args:
      points: [N,L,2] `(x, y)`, NaN where empty.
    """
    there = np.isfinite(points).all(-1)
    if not there.any():
        return []
    values, counts = np.unique(points[there], axis=0, return_counts=True)
    least = max(float(np.ptp(values, axis=0).max()) / 50, 3.0)
    outside = (values < 0).all(1)
    corner = (values == 0).all(1) | (values == 1).all(1)
    # Most repeated whole numbers have other labels beside them; filter them out together, not one by one.
    lonely = np.ones(len(values), bool)
    lonely[~outside] = _lonely(values[~outside], least)
    out = []
    for i in np.flatnonzero((counts >= np.where(corner | outside, 2, 3)) & (lonely | outside)):
        value, negative = values[i], outside[i]
        where = there & (points == value).all(-1)
        shared = where.any(0).sum() > 1 and where.any(1).sum() > 2
        share = 0.1 if corner[i] else 0.5
        if negative or ((corner[i] or shared) and _apart(points, there, where, value, share)):
            out.append(((float(value[0]), float(value[1])), where))
    return out


def _lonely(values: np.ndarray, side: float) -> np.ndarray:
    """Tell which values [V,2] are alone in their cell of a grid of side `side` and its eight neighbours: [V] bool."""
    if not len(values):
        return np.zeros(0, bool)
    cells = np.floor(values / side).astype(np.int64)
    cells -= cells.min(0) - 1
    width = cells[:, 1].max() + 2
    filled, counts = np.unique(cells @ [width, 1], return_counts=True)
    around = np.zeros(len(values), np.int64)
    for step in (dx * width + dy for dx in (-1, 0, 1) for dy in (-1, 0, 1)):
        at = np.searchsorted(filled, cells @ [width, 1] + step)
        there = filled[np.minimum(at, len(filled) - 1)] == cells @ [width, 1] + step
        around += np.where(there, counts[np.minimum(at, len(filled) - 1)], 0)
    return around == 1


def _apart(points, there, where, value, share: float) -> bool:
    """Tell whether a value is isolated from the other labels of its points; False if these have no other labels."""
    known = False
    for point in np.flatnonzero(where.any(0)):
        others = points[there[:, point] & ~where[:, point], point]
        if not len(others):
            continue
        away = np.linalg.norm(others - value, axis=-1)
        if away.min() <= share * np.median(away):
            return False
        known = True
    return known
