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

ONE_OBJECT = "an image here has one object; crop the image around each object, and label the crops"


class Labelled(NamedTuple):
    """One image of a label file.

    Attributes:
      files: spellings of the image's path, the most likely first; () for the picture with the label file's own name.
      place: label file and image, for messages.
      points: {name: (x, y)} of the labelled points, in pixels with centres at integers.
      hidden: names of the labelled points that are marked as not seen.
      size: recorded (height, width) of the image; None if the file has none.
      split: `train` or `test` if the file says so, else empty.
      stored: True if the points belong to the image as stored, and False if to the image turned by its EXIF tag.
    """

    files: tuple[str, ...]
    place: str
    points: dict[str, tuple[float, float]]
    hidden: frozenset[str] = frozenset()
    size: tuple[int, int] | None = None
    split: str = ""
    stored: bool = False


class Labels(NamedTuple):
    """Content of one label file.

    Attributes:
      images: the images.
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


def put(points: dict, name: str, xy: tuple[float, float], place: str) -> None:
    """Add a point of an image. Raises UserError if the image has it already."""
    if name in points:
        raise UserError(f"{place} has the point {name} twice, and {ONE_OBJECT}")
    points[name] = xy


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


def as_json(data: bytes):
    """Parse JSON. Raises ValueError if it is none."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def as_xml(data: bytes) -> ElementTree.Element:
    """Parse XML without document type. Raises ValueError if it is none or has a document type."""
    tree, parser = ElementTree.TreeBuilder(), xml.parsers.expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = tree.start, tree.end
    parser.CharacterDataHandler = tree.data
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(data, True)
    except (xml.parsers.expat.ExpatError, LookupError) as error:  # LookupError: an unknown encoding
        raise ValueError(str(error)) from None
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
