"""What the readers of all formats share: their result, and safe parsing of JSON, XML and HDF5.

Nothing that a user hands over is ever unpickled, and XML with a document type is refused, because only that could
define entities that expand.
"""

import json
import math
import re
import xml.parsers.expat
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from uld_jax.errors import UserError

Box = tuple[float, float, float, float]


class Labelled(NamedTuple):
    """One object of an image of a label file, or an image without any object.

    Attributes:
      files: spellings of the image's path, the most likely first; () for the picture with the label file's own name.
      place: label file and image, for messages.
      points: {name: (x, y)} of the labelled points, in pixels with centres at integers.
      hidden: names of the labelled points that are marked as not seen.
      size: recorded (height, width) of the image; None if the file has none.
      split: `train` or `test` if the file says so, else empty.
      stored: True if the points belong to the image as stored, and False if to the image turned by its EXIF tag.
      object: name of the object, another one for every object of an image; empty where the format tells none apart.
      box: edges `(x0, y0, x1, y1)` of the object's box, in pixels with centres at integers; None if there is no box.
    """

    files: tuple[str, ...]
    place: str
    points: dict[str, tuple[float, float]]
    hidden: frozenset[str] = frozenset()
    size: tuple[int, int] | None = None
    split: str = ""
    stored: bool = False
    object: str = ""
    box: Box | None = None


class Object(NamedTuple):
    """What a reader found of one object of an image: see `Labelled`, which `objects_of` makes of it."""

    name: str
    points: dict[str, tuple[float, float]]
    hidden: frozenset[str] = frozenset()
    box: Box | None = None


class Labels(NamedTuple):
    """Content of one label file.

    Attributes:
      images: the objects of all images, and the images without objects.
      names: the points in the order that the file declares; () if it declares none, and points are sorted by name.
      note: what a user should know of how the file was read; empty if nothing.
    """

    images: list[Labelled]
    names: tuple[str, ...] = ()
    note: str = ""


class Predictions(NamedTuple):
    """Landmarks to write in the layout of a tool.

    Attributes:
      files: [N] paths of the images, relative to their folder.
      sizes: [N] (height, width) of the upright images.
      xy: [N,K,2] `(x, y)` in pixels of the upright images.
      score: [N,K] confidence; 0 means missing.
      names: [K] names of the landmarks.
      folder: name of the folder of the images.
    """

    files: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    xy: Sequence
    score: Sequence
    names: Sequence[str]
    folder: str = ""


def number(value, place: str) -> float:
    """Convert a number, or the text of one, to a finite float. Raises UserError that begins with `place`.

    >>> number("1.5", "here"), number(2, "here")
    (1.5, 2.0)
    """
    try:
        out = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        out = math.nan
    if not math.isfinite(out):
        raise UserError(f"{place}: {str(value)[:40]!r} is not a number; correct it, or remove the point")
    return out


def put(points: dict, name: str, xy: tuple[float, float], place: str, apart: str) -> None:
    """Add a point of an object. Raises UserError if the object has it already; `apart` says how to tell objects apart.

    >>> points = {}
    >>> put(points, "nose", (1, 2), "a.xml, image a.jpg", "group the points")
    >>> points
    {'nose': (1, 2)}
    """
    if name in points:
        raise UserError(f"{place} has the point {name} twice in one object; remove one, or for two objects {apart}")
    points[name] = xy


def points_by_group(found: Sequence[tuple[str, str, tuple]], place: str, apart: str, stray: str) -> dict[str, dict]:
    """Sort points `(group, name, (x, y))` of an image by their groups, {group: {name: (x, y)}}.

    Points without a group, an empty text, belong to the only group there is. Raises UserError for a group with a point
    twice (see `put`), and for a point of none among several groups: `stray` is the end of that sentence, with {count}
    groups and {name}.

    >>> points_by_group([("1", "nose", (1, 2)), ("", "ear", (3, 4))], "a.json", "group them", "has {count} groups")
    {'1': {'nose': (1, 2), 'ear': (3, 4)}}
    """
    groups = list(dict.fromkeys(group for group, _, _ in found if group)) or [""]
    out = {group: {} for group in groups}
    for group, name, xy in found:
        if not group and len(groups) > 1:
            raise UserError(f"{place} {stray.format(count=len(groups), name=name)}")
        put(out[group or groups[0]], name, xy, place, apart)
    return out


def objects_of(image: Labelled, objects: Sequence[Object]) -> list[Labelled]:
    """Return the objects of an image with names of their own; without objects, the image itself.

    Of several objects, those without a name have numbers, and those of equal names have numbers behind them.

    >>> objects = [Object(name, {}) for name in ("cat", "cat", "", "dog")]
    >>> [one.object for one in objects_of(Labelled(("a.jpg",), "here", {}), objects)]
    ['cat_0', 'cat_1', '2', 'dog']
    """
    wanted = [one.name.strip() for one in objects]
    names = []
    for i, name in enumerate(wanted):
        if wanted.count(name) == 1 and (name or len(wanted) == 1):
            names.append(name)
            continue
        number = wanted[:i].count(name) if name else i
        name = f"{name}_{number}" if name else str(number)
        while name in (*wanted, *names):
            name += "_"
        names.append(name)
    made = zip(objects, names, strict=True)
    return [image._replace(object=n, points=o.points, hidden=o.hidden, box=o.box) for o, n in made] or [image]


def box_of(*edges) -> Box | None:
    """Convert `(x0, y0, x1, y1)` from the edge of the first pixel to pixels with centres at integers.

    None if the edges are no numbers or enclose nothing, as some tools write for objects without a box.

    >>> box_of("0", "0", "2", 3.5), box_of(0, 0, 0, 0), box_of(None, 1, 2, 3)
    ((-0.5, -0.5, 1.5, 3.0), None, None)
    """
    try:
        x0, y0, x1, y1 = (number(edge, "") - 0.5 for edge in edges)
    except UserError:
        return None
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def size_of(height, width, place: str) -> tuple[int, int] | None:
    """Convert a recorded height and width; None if one of them is absent."""
    if height is None or width is None:
        return None
    return round(number(height, place)), round(number(width, place))


def word(value, what: str, place: str) -> str:
    """Return a text that is not blank. Raises UserError, with the name of the field, if it is anything else."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: {what} is {str(value)[:40]!r}, and not a name; export the labels again")
    return value.strip()


def items(value, kind: type, what: str, place: str) -> list:
    """Return a list of which every item is of a kind. Raises UserError, with the name of the field, if it is not."""
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise UserError(f"{place}: {what} is not a list as it should be; export the labels again")
    return value


def natural(name: str) -> list:
    """Return a key that sorts names with their numbers by value.

    >>> sorted(["p10", "p9", "ear"], key=natural)
    ['ear', 'p9', 'p10']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


class CutOff(ValueError):
    """A text that is wrong at its end alone, as a part of a file is."""


# What is left of a text from where the parser stops, if it ends within a string or within a word such as `true` or 1.5.
_LAST = {
    "Unterminated string starting at": "(?s:.*)",
    "Invalid \\uXXXX escape": r"u?[\da-fA-F]{0,4}",
    "Expecting value": "-?|t(r|ru)?|f(a|al|als)?|n(u|ul)?",
    "Expecting ',' delimiter": r"\.?|[eE][+-]?",
    "Extra data": "(?!)",
}


def as_json(data: bytes):
    """Parse JSON. Raises ValueError if it is none, `CutOff` if its end is missing."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        ends = re.fullmatch(_LAST.get(error.msg, ""), error.doc[error.pos :].strip())
        raise CutOff(str(error)) if ends else error from None
    except UnicodeDecodeError as error:
        raise CutOff(str(error)) if error.reason == "unexpected end of data" else error from None


_NO_END = {
    xml.parsers.expat.errors.codes[getattr(xml.parsers.expat.errors, f"XML_ERROR_{name}")]
    for name in ("NO_ELEMENTS", "UNCLOSED_TOKEN", "PARTIAL_CHAR", "UNCLOSED_CDATA_SECTION")
}


def as_xml(data: bytes) -> ElementTree.Element:
    """Parse XML without document type.

    Raises ValueError if it is none or has a document type, `CutOff` if its end is missing.
    """
    tree, parser = ElementTree.TreeBuilder(), xml.parsers.expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = tree.start, tree.end
    parser.CharacterDataHandler = tree.data
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(data, True)
    except (xml.parsers.expat.ExpatError, LookupError) as error:  # LookupError: an unknown encoding
        raise (CutOff if getattr(error, "code", None) in _NO_END else ValueError)(str(error)) from None
    return tree.close()


def _refuse(*_):
    raise ValueError("it has a document type (DOCTYPE), which labels do not need; remove that line")


# Errors of h5py, and of code that trusts the tables, for damaged files.
DAMAGED = (KeyError, ValueError, TypeError, IndexError, AttributeError, OSError, RuntimeError, MemoryError)


def hdf5_module(path):
    """Import h5py. Raises UserError that names the file and the remedy if it is not installed."""
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path} is an HDF5 file, which needs h5py; run `pip install 'uld_jax[labels]'`") from None
    return h5py
