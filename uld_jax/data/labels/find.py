"""Search of a folder for label files of other tools, and their conversion to an `Annotation`.

The content of a file tells its format. The image of a label is looked for relative to the label file, relative to the
folder, by the end of its path, and without the folders that all images of the file share. The split of an image is what
the label file says of it; else that of the first name with the word `train` or `test` among the label file's own, its
folders' and the image's folders'; else `train`.

`read_folder` is for images of one object; `read_objects` gives the objects of all images.
"""

import collections
import io
import os
import posixpath
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import NamedTuple

import numpy as np
from etils import epath

from uld_jax.data import csv_tables, decode, listing
from uld_jax.data.annotation import SPLITS, Annotation, CsvNote
from uld_jax.data.labels import coco, common, cvat, deeplabcut, imglab, labelme, labelstudio, menpo, pts, sleap
from uld_jax.data.labels.common import Labelled, Labels
from uld_jax.data.names import Lookup
from uld_jax.data.specs import decode_threads
from uld_jax.errors import UserError

_JSON, _XML, _HDF5 = (menpo, labelme, coco, labelstudio), (cvat, imglab), (deeplabcut, sleap)
_OF_ONE_IMAGE = (labelme, menpo, pts)
_START = 4096  # bytes in which a format shows
_ENDINGS = (".json", ".ljson", ".xml")  # of files that may be labels whatever is left of them
# Words in files that would be labels if they could be parsed. The user is told of these and of files that are cut off
# before such a word, and not of any other file.
_OF_JSON = (b'"shapes"', b'"keypoints"', b'"keypointlabels"', b'"landmarks"')
_OF_JSON += (b'"images"', b'"annotations"', b'"categories"')  # of COCO, whose keypoints come late in a file
_OF_XML = (b"<annotations", b"<dataset")
_OF_HDF5 = (b"df_with_missing", b"pred_points")


class _File(NamedTuple):
    """A label file: its path relative to the folder, its format and its content."""

    name: str
    format: ModuleType
    labels: Labels


class Objects(NamedTuple):
    """The objects of a folder's images, and images without objects.

    Attributes:
      annotation: the points, a row an object, so that `annotation.names` may have an image several times.
      objects: [R] names of the objects, see `Labelled`.
      boxes: [R,4] float64 edges `(x0, y0, x1, y1)` in pixels of the upright file, centres at integers; NaN without box.
    """

    annotation: Annotation
    objects: list[str]
    boxes: np.ndarray


def read_folder(root, listed: Sequence[str] | None = None) -> Annotation | None:
    """Read all label files below a folder together; None if there are none with points.

    `listed` are the files of the folder, `listing.walk(root)`, if they are known already.

    Raises UserError for any error in one of the files, for labels of images that cannot be told, and for images that
    are labelled twice or have several objects.
    """
    found = read_objects(root, listed)
    if found is None:
        return None
    names = found.annotation.names
    counts = collections.Counter(names)
    several = [name for name in counts if counts[name] > 1]
    if several:
        mine = [row for row, name in enumerate(names) if name == several[0]]
        some = ", ".join(found.objects[row] for row in mine[:3]) + (", ..." if len(mine) > 3 else "")
        more = f" ({len(several):,} images have several)" if len(several) > 1 else ""
        raise UserError(
            f"{found.annotation.places[mine[0]]} has {len(mine)} objects ({some}){more}, and "
            f"{csv_tables.several_objects(root)}"
        )
    return found.annotation


def read_objects(root, listed: Sequence[str] | None = None) -> Objects | None:
    """Read all label files below a folder together, like `read_folder`, where an image may have several objects."""
    root = epath.Path(root)
    listed = listing.walk(root) if listed is None else listed
    found, tables, twins = [], set(), set()
    for name in listing.not_pictured(listed):  # sorted, so that a.csv comes before a.h5
        if name.lower().endswith(".h5") and posixpath.splitext(name)[0] in tables:
            twins.add(name)  # DeepLabCut writes its table as csv and as HDF5
            continue
        read = read_file(root / name)
        if read is not None:
            found.append(_File(name, *read))
            if read[0] is deeplabcut:
                tables.add(posixpath.splitext(name)[0])
    with_points = [f for f in found if f.labels.names or any(image.points for image in f.labels.images)]
    kinds = {f.format for f in with_points}
    # A file of one image may have no points; a list of images without any holds labels of another kind, such as boxes.
    used = [f for f in found if f in with_points or (f.format in kinds and f.format in _OF_ONE_IMAGE)]
    used = [f for f in used if f.labels.images]
    if not used:
        return None
    found = _objects(root, listed, used)
    return found._replace(annotation=found.annotation._replace(sources=frozenset({f.name for f in used} | twins)))


def read_file(path) -> tuple[ModuleType, Labels] | None:
    """Read one file by the format of its content; None if it is no label file. Raises UserError for errors in it."""
    path = epath.Path(path)
    try:
        with listing.open_local(path) if listing.is_local(path) else path.open("rb") as file:
            start = file.read(_START)
            if listing.kind_of(start) is not None:
                return None
            if start.startswith(b"\x89HDF\r\n\x1a\n"):
                return _read_hdf5(path)
            text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
            if deeplabcut.fits(start):
                return deeplabcut, deeplabcut.read(path)
            if not (text[:1] in b"{[<" or pts.fits(path, start)):
                return None
            data = start + file.read()
    except OSError:
        return None  # `listing` tells of files that cannot be read
    if text[:1] in (b"{", b"["):
        return _parsed(path, data, common.as_json, _JSON, _OF_JSON, "JSON")
    if text[:1] == b"<":
        return _parsed(path, data, common.as_xml, _XML, _OF_XML, "XML")
    return (pts, pts.read(path, data)) if pts.fits(path, data) else None


def _parsed(path, data: bytes, parse, formats, words, kind: str) -> tuple[ModuleType, Labels] | None:
    try:
        content = parse(data)
    except common.CutOff as error:
        if os.fspath(path).lower().endswith(_ENDINGS) or any(word in data for word in words):
            raise UserError(
                f"{path} is not whole, its end is missing ({_line(error)}); copy it again, or move it out of the "
                "folder if it holds no labels"
            ) from None
        return None
    except ValueError as error:
        if any(word in data for word in words):
            raise UserError(f"{path} is not valid {kind} ({_line(error)}); save it again") from None
        return None
    for one in formats:
        if one.fits(content):
            return one, one.read(path, content)
    return None


def _read_hdf5(path) -> tuple[ModuleType, Labels] | None:
    try:
        h5py = common.hdf5_module(path)
        opened = h5py.File(os.fspath(path) if listing.is_local(path) else io.BytesIO(path.read_bytes()), "r")
    except (UserError, OSError) as error:
        data = path.read_bytes()
        if not any(word in data for word in _OF_HDF5):  # names in HDF5 are plain text
            return None
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as HDF5 ({_line(error)}); save it again") from None
    with opened as file:
        try:
            if deeplabcut.fits_hdf5(file):
                return deeplabcut, deeplabcut.read_hdf5(path, file)
            return (sleap, sleap.read(path, file)) if sleap.fits(file) else None
        except RuntimeError as error:
            raise UserError(f"{path} cannot be read as HDF5 ({_line(error)}); save it again") from None


def _line(error) -> str:
    return " ".join(str(error).split())[:120]


# Images


class _Images:
    """The pictures of a folder, by the paths that labels spell."""

    def __init__(self, root: epath.Path, listed: Sequence[str]):
        self._root, self._files = root, Lookup(root)
        self._ends, self._stems = collections.defaultdict(list), collections.defaultdict(list)
        for name in listing.list_images(root, listed):
            self._ends[posixpath.basename(name)].append(name)
            self._stems[posixpath.splitext(name)[0]].append(name)

    def of(self, image: Labelled, file: str, shared: str) -> str:
        """Return the path of an image, as on the disk if it is there. Raises UserError if it cannot be told.

        Args:
          image: the labels of the image.
          file: the label file, relative to the folder.
          shared: the folders that the paths of all images of the file begin with.
        """
        for spelt in image.files:
            if (found := self._find(_plain(spelt), spelt, posixpath.dirname(file), shared, image)) is not None:
                return found
        beside = self._stems.get(posixpath.splitext(file)[0], [])
        if not image.files or (len(beside) == 1 and image.place == str(self._root / file)):
            if len(beside) != 1:
                what = f"are {' and '.join(beside[:2])}" if beside else "is no picture"
                raise UserError(
                    f"{image.place}: there {what} of this name; put one picture of the name of the label file beside it"
                )
            return beside[0]
        spelt = _plain(image.files[0])
        inside = spelt.removeprefix(shared).strip("/")
        if inside.startswith("../") or inside[1:2] == ":":
            raise UserError(f"{image.place}: {spelt} is not inside {self._root}; put the image there")
        return inside

    def _find(self, path: str, spelt: str, beside: str, shared: str, image: Labelled) -> str | None:
        if not path.startswith("/"):
            joined = posixpath.normpath(posixpath.join(beside, path))
            if not joined.startswith("..") and (found := self._files.find(joined)) is not None:
                return found
        located = csv_tables.locate(spelt, self._root, self._files)
        if located is not None and self._files.find(located) is not None:
            return located
        for end in dict.fromkeys((path, path.removeprefix(shared).strip("/"))):
            ends = [n for n in self._ends.get(posixpath.basename(end), ()) if f"/{n}".endswith(f"/{end.lstrip('/')}")]
            if len(ends) > 1:
                raise UserError(
                    f"{image.place}: {spelt} may be {ends[0]} or {ends[1]}; give the folder that the paths in the "
                    "label file are relative to, or rename one of them"
                )
            if ends:
                return ends[0]
        return None


def _plain(spelt: str) -> str:
    return posixpath.normpath(spelt.strip().replace("\\", "/"))


def _shared(images: Sequence[Labelled]) -> str:
    """Return the folders, with a slash at the end, that all paths of a label file begin with; empty if none."""
    folders = {posixpath.dirname(_plain(image.files[0])) for image in images if image.files}
    if not folders or len({folder.startswith("/") for folder in folders}) > 1:
        return ""
    common_path = posixpath.commonpath(folders)
    return f"{common_path.rstrip('/')}/" if common_path else ""


def _split(file: str, many: bool, name: str) -> str:
    """Return the split that the names of a label file, of its folders and of an image's folders tell.

    >>> _split("annotations/test2017.json", True, "a.jpg"), _split("test.pts", False, "test.jpg")
    ('test', 'train')
    """
    own = [posixpath.splitext(file)[0]] if many else []
    paths = (*own, posixpath.dirname(file), posixpath.dirname(name))
    for part in (part for path in paths for part in path.split("/")[::-1]):
        words = {*re.findall("[a-z]+", part.lower())} & {*SPLITS}
        if len(words) == 1:
            return words.pop()
    return "train"


# Conversion


def _objects(root: epath.Path, listed: Sequence[str], used: Sequence[_File]) -> Objects:
    """Convert label files of one or several formats; `listed` are all files of the folder."""
    names, images, splits = [], [], []
    known, place_of = _Images(root, listed), {}
    for file in used:
        # The name of a label file of one image is that of the image, and tells no split.
        many, shared = file.format not in _OF_ONE_IMAGE, _shared(file.labels.images)
        for image in file.labels.images:
            name = known.of(image, file.name, shared)
            place, other, objects = place_of.setdefault(name, (image.place, file, set()))
            if (other is not file and objects) or image.object in objects or (objects and not image.object):
                kinds = "" if other.format is file.format else f" ({other.format.NAME} and {file.format.NAME})"
                raise UserError(
                    f"{place} and {image.place} both label {name}{kinds}; keep one of them, and move the other out of "
                    f"{root}"
                )
            objects.add(image.object)
            names.append(name)
            images.append(image)
            splits.append(image.split or _split(file.name, many, name))
    points = _names(root, used)
    column = {point: i for i, point in enumerate(points)}
    landmarks = np.full((len(images), len(points), 2), np.nan)
    visible = np.zeros((len(images), len(points)), bool)
    corners = np.full((len(images), 2, 2), np.nan)
    for row, image in enumerate(images):
        for point, xy in image.points.items():
            landmarks[row, column[point]] = xy
            visible[row, column[point]] = point not in image.hidden
        if image.box is not None:
            corners[row] = np.reshape(image.box, (2, 2))
    with ThreadPoolExecutor(decode_threads()) as pool:
        both = np.concatenate([landmarks, corners], 1)
        sized = pool.map(lambda row: _upright(root / names[row], images[row], both[row]), range(len(images)))
        both = np.stack(list(sized))
    landmarks, corners = both[:, :-2], np.sort(both[:, -2:], 1)  # a turn exchanges corners
    _tell(root, used, len(points))
    numbered = points == tuple(map(str, range(len(points))))
    kind = " and ".join(dict.fromkeys(file.format.NAME for file in used))
    places = [image.place for image in images]
    note = Annotation(names, splits, places, landmarks, visible, {}, () if numbered else points, kind)
    return Objects(note, [image.object for image in images], corners.reshape(-1, 4))


def _names(root, used: Sequence[_File]) -> tuple[str, ...]:
    """Return the points of all files, in the declared order or sorted. Raises UserError if files declare others."""
    declared = {file.labels.names: file.name for file in used if file.labels.names}
    if len(declared) > 1:
        (one, first), (other, second) = list(declared.items())[:2]
        counts = f" ({len(one)} and {len(other)})" if len(one) != len(other) else ", or in another order"
        raise UserError(f"{root / first} and {root / second} have other points{counts}; give both the same")
    seen = {}
    for file in used:
        for image in file.labels.images:
            for point in image.points:
                seen.setdefault(point, image.place)
    if declared:
        names = next(iter(declared))
        if odd := [point for point in seen if point not in names]:
            raise UserError(
                f"{seen[odd[0]]} has the point {odd[0]}, which {root / declared[names]} does not have; name the "
                "points of both alike"
            )
        return names
    as_text = all(file.format is imglab for file in used)
    return tuple(sorted(seen) if as_text else sorted(seen, key=common.natural))


def _upright(path, image: Labelled, xy: np.ndarray) -> np.ndarray:
    """Convert an image's points [L,2] to the upright file. Raises UserError if its recorded size is another one.

    An image that is absent or cannot be read is told of later, when all are opened.
    """
    if image.size is None and not image.stored:
        return xy
    try:
        header = decode.header(path)
    except listing.BadFile:
        return xy
    stored = header.size[::-1] if header.turn in decode.TURNED else header.size
    size = stored if image.stored else header.size
    if image.size not in (None, size):
        (height, width), (h, w) = size, image.size
        if image.size == stored:
            raise UserError(
                f"{image.place}: the photo is turned by its EXIF tag, and the recorded {w} x {h} pixels are those "
                "before that, so its points may belong to either; turn the pixels of the file itself and label it "
                "again, or export another format (Label Studio: JSON)"
            )
        raise UserError(
            f"{image.place}: the labels are for {w} x {h} pixels, and the file has {width} x {height}; put the image "
            "there that was labelled"
        )
    return decode.turn_points(xy, header.turn, header.size) if image.stored else xy


def _tell(root, used: Sequence[_File], points: int) -> None:
    """Warn of what files were taken for, and of what their readers noted."""
    for one in dict.fromkeys(file.format for file in used):
        mine = [file for file in used if file.format is one]
        count = sum(len({image.place for image in file.labels.images}) for file in mine)
        of = f"{count} image{'s' * (count != 1)}"
        if (objects := sum(len(file.labels.images) for file in mine)) > count:
            of = f"{objects} objects in {of}"
        where = root / mine[0].name if len(mine) == 1 else f"{root}: {len(mine)} files"
        warnings.warn(f"{where}: {one.NAME}, {points} points, labels of {of}", CsvNote, stacklevel=2)
    notes = collections.defaultdict(list)
    for file in used:
        if file.labels.note:
            notes[file.labels.note].append(file.name)
    for note, names in notes.items():
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        warnings.warn(f"{os.fspath(root / names[0])}{more}: {note}", CsvNote, stacklevel=2)
