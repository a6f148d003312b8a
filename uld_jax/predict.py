"""Prediction of landmarks for photos on disk, written as a table and as pictures: `uld predict`."""

import collections
import csv
import glob
import hashlib
import io
import os
import posixpath
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from PIL import Image

from uld_jax import files, viz
from uld_jax.data import decode, labels, listing
from uld_jax.data.listing import Skipped, is_local
from uld_jax.data.names import same_on_disk
from uld_jax.data.specs import decode_threads
from uld_jax.detector import Detector
from uld_jax.errors import UserError
from uld_jax.landmark_names import check_count
from uld_jax.ops import coordinates

_SHEET_CELL = 160  # px, side of a cell of the contact sheet
_SHEET_MOST = 64
FORMATS = ("csv", *labels.FORMATS)
_LONGEST = 1024, 4096  # px, longer side of overlays: for usual photos, and the most for very wide or tall photos


class Predicted(NamedTuple):
    """Result of `predict_folder`.

    Attributes:
      images: number of images with a row in the table.
      skipped: files that cannot be read or are not pictures (see `data.listing`).
      empty: names of images that show nothing (see `detector.shows_nothing`); all their landmarks are missing.
      beyond: number of landmarks that were predicted outside their photos, see `coordinates.on_file`.
    """

    images: int
    skipped: list[Skipped]
    empty: list[str]
    beyond: int


class _Photo(NamedTuple):
    """A photo that was read from a file."""

    name: str
    frame: np.ndarray
    map: np.ndarray
    size: tuple[int, int]  # height, width
    picture: np.ndarray  # for overlays; large photos are shrunk


def predict_folder(
    detector: Detector,
    images,
    out,
    *,
    points: str = "discovered",
    outside: str = "missing",
    format: str = "csv",
    names: Sequence[str] = (),
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Predicted:
    """Predict the landmarks of every picture below a folder, at any depth, or of single files.

    Writes, in `out`:
      landmarks.csv: file,x0,y0,score0,... in pixels of the upright file, never outside it; a missing landmark has empty
        coordinates and score 0. Landmarks with names have the columns file,NAME_x,NAME_y,NAME_score,...
        The file is landmarks.partial.csv while it grows; a killed program leaves that behind.
        Another `format` takes its place when all rows are known: see `table_of`.
      overlays/<path>.png: each photo with its landmarks; overlays/index.csv lists which overlay belongs to which file.
        Overlays of an earlier call that this call does not write are removed unless they have been changed.
      contact_sheet.png: a sample of the photos with their landmarks.
      skipped.csv: all other files, if there are any, with the reason.

    Args:
      detector: detector of a finished run.
      images: a folder, a file, a pattern such as `photos/*.jpg`, or a sequence of these.
      out: folder to write, local or gs://.
      points, outside: see `Detector.predict`.
      format: layout of the table, `csv` or a tool's (`FORMATS`).
      names: names of the discovered landmarks; () for none. Annotated landmarks have those that they were fitted with.
      report: function that is called after each batch with the number of files done and of all files.

    Raises:
      UserError: there are no such files, or none that can be read; the format is unknown or needs a package; there is
        not one name for each landmark, or annotated landmarks are to have other names.
    """
    known = _names(detector, points, tuple(names))
    out = epath.Path(out)
    table = table_of(out, format)
    if format == "slp":
        labels.FORMATS[format].check_writable(table)
    root, images, others = _inputs(images, out)
    writer, skipped, empty, beyond, done = None, [], [], 0, 0
    kept, sheet = _spread(images, _SHEET_MOST), []
    with ThreadPoolExecutor(decode_threads()) as pool:
        for batch in _batches(images, detector.config.eval.batch_size):
            read = list(pool.map(lambda name: _read(detector, root, name), batch))
            skipped += [photo for photo in read if isinstance(photo, Skipped)]
            photos = [photo for photo in read if isinstance(photo, _Photo)]
            if photos:
                _, frames, maps, sizes, _ = zip(*photos, strict=True)
                found = detector.predict_files(np.stack(frames), np.stack(maps), sizes, points, outside)
                empty += [photos[i].name for i in found.empty]
                beyond += int(found.beyond.sum())
                done += len(photos)
                if jax.process_index() == 0:
                    writer = writer or _Writer(out, found.xy.shape[1], known, images, format, root.name)
                    shown = writer.add(photos, found.xy, found.score)
                    sheet += [_small(*one) for photo, one in zip(photos, shown, strict=True) if photo.name in kept]
            report(done + len(skipped), len(images))
    if not done:
        which = f"none of the {len(images)} images in {root} can be read; first: " if len(images) > 1 else ""
        raise UserError(which + skipped[0].reason)
    skipped = sorted([*skipped, *others], key=lambda one: one.file.split("/"))
    if writer is not None:
        viz.save(viz.contact_sheet(*zip(*sheet, strict=True), names=known), out / "contact_sheet.png")
        listing.write_skipped(out / "skipped.csv", skipped)
        writer.finish()
    return Predicted(done, skipped, empty, beyond)


def table_of(out, format: str = "csv") -> epath.Path:
    """Return the path of the table that `predict_folder` writes. Raises UserError for an unknown format.

    >>> table_of("out", "coco").name, table_of("out", "dlc").name, table_of("out", "slp").name
    ('landmarks.json', 'landmarks.csv', 'landmarks.slp')
    """
    if format not in FORMATS:
        raise UserError(f"format is {format!r}; use one of {', '.join(FORMATS)}")
    ending = ".csv" if format == "csv" else labels.FORMATS[format].ENDING
    return epath.Path(out) / f"landmarks{ending}"


def _names(detector: Detector, points: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the landmarks to write. Raises UserError unless they are one for each."""
    if points == "annotated":
        if names:
            raise UserError("--names are those of discovered landmarks; give those of annotated ones to `uld fit`")
        return detector.annotated_names
    if names:  # the number of landmarks takes tracing
        check_count(names, detector.k)
    return names


# Selection of files


def _inputs(images, out) -> tuple[epath.Path, list[str], list[Skipped]]:
    """Return a folder and, relative to it, the files to read and the other files."""
    images = [images] if isinstance(images, str | os.PathLike) else list(images)
    found = [path for given in images for path in _expanded(os.fspath(given))]
    folders = [str(path if path.is_dir() else path.parent) for path in found]
    for path, folder in zip(found, folders, strict=True):
        _check_apart(path, folder, out)
    if len(set(folders)) > 1 and not all(map(is_local, folders)):
        raise UserError("--images names several folders, some of them in a bucket; give one folder")
    root = epath.Path(os.path.commonpath(folders) if len(set(folders)) > 1 else folders[0])
    names, others = [], []
    for path in found:
        below = os.fspath(path)[len(os.fspath(root)) :].strip("/")
        inside = listing.list_files(path) if path.is_dir() else listing.Listing([""], [])
        names += [posixpath.join(below, n) if n else below for n in inside.images]
        others += [Skipped(posixpath.join(below, n), reason) for n, reason in inside.others]
    if not names:
        raise UserError(f"{root} holds no images ({listing.PICTURES}); give another folder with --images")
    return root, list(dict.fromkeys(names)), list(dict.fromkeys(others))


def _expanded(given: str) -> list[epath.Path]:
    """Return the folders and files that one argument names. Raises UserError if it names none."""
    path = epath.Path(given).expanduser()
    if not is_local(path):
        if not path.exists():
            raise UserError(f"{path} does not exist; give a folder of images, or one image")
        return [path]
    path = epath.Path(os.path.abspath(path))
    if path.exists():
        return [path]
    if os.path.lexists(path):
        raise UserError(f"{path} is a link to nothing; mend or remove it")
    if found := sorted(glob.glob(os.path.abspath(os.path.expanduser(given)), recursive=True)):
        return [epath.Path(name) for name in found]
    what = "no file is called like that" if glob.has_magic(given) else "it does not exist"
    raise UserError(f"--images={given}: {what}; give a folder of images, an image, or a pattern of images")


def _check_apart(path, folder: str, out) -> None:
    """Raise UserError if a later call would read the output as photos, or this call would overwrite its photos."""
    inside = lambda inner, outer: f"{os.path.abspath(inner)}/".startswith(f"{os.path.abspath(outer)}/")
    if path.is_dir() and inside(out, path):
        raise UserError(f"--out={out} lies in --images={path}, so its pictures would be read next time; choose another")
    if inside(folder, out / "overlays"):
        raise UserError(f"--images={path} lies in the overlays of --out={out}, which would replace it; choose another")


def _spread(names: list[str], most: int) -> set[str]:
    """Select at most `most` of the names, evenly spread over all."""
    return {names[i] for i in np.linspace(0, len(names) - 1, min(most, len(names))).astype(int)}


def _batches(names: list[str], size: int) -> list[list[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)]


def _read(detector: Detector, root, name: str) -> "_Photo | Skipped":
    try:
        path = root / name
        frame, fmap, size = decode.decode_image(path, detector.frame_size, detector.config.data.fit)
        longest = np.clip(_LONGEST[0] * np.sqrt(max(size) / min(size) / 4), *_LONGEST)
        return _Photo(name, frame, fmap, size, decode.decode_picture(path, int(longest)))
    except UserError as error:
        return Skipped(name, str(error))


def _small(picture, xy, score) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Shrink a picture and its landmarks for the contact sheet, because many are held in memory."""
    small = Image.fromarray(picture)
    small.thumbnail((2 * _SHEET_CELL, 2 * _SHEET_CELL))
    return small, coordinates.rescale_points(xy, picture.shape[:2], small.size[::-1]), score


# Output


class _Writer:
    """Writer of the table and the overlays, row by row. Only process 0 has one."""

    def __init__(
        self, out: epath.Path, count: int, landmarks: Sequence[str], names: Sequence[str], format: str, folder: str
    ):
        self._out, self._format, self._folder = out, format, folder
        self._landmarks = list(landmarks) or [f"landmark{k}" for k in range(count)]
        self._rows = []  # file, size, landmarks and scores, for formats that are written as a whole
        named = lambda c, k: f"{landmarks[k]}_{c}" if landmarks else f"{c}{k}"
        header = ["file", *(named(c, k) for k in range(count) for c in ("x", "y", "score"))]
        self._table = files.GrowingCsv(out / "landmarks.csv", header)
        self._overlays, self._named = Overlays(out / "overlays"), overlay_names(names)

    def add(self, photos: Sequence[_Photo], xy, score) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Write rows and overlays; return each picture, its landmarks in pixels of the picture, and their scores."""
        self._table.add(_row(*one) for one in zip((p.name for p in photos), xy, score, strict=True))
        if self._format != "csv":
            self._rows += [(p.name, p.size, *one) for p, *one in zip(photos, xy, score, strict=True)]
        shown = []
        for photo, points, value in zip(photos, xy, score, strict=True):
            points = coordinates.rescale_points(points, photo.size, photo.picture.shape[:2])
            shown.append((photo.picture, points, value))
            self._overlays.add(photo.name, self._named[photo.name], viz.png(viz.draw_overlay(*shown[-1])))
        return shown

    def finish(self) -> None:
        self._overlays.finish()
        if self._format == "csv":
            self._table.finish()
            return
        found = labels.Predictions(*zip(*self._rows, strict=True), self._landmarks, self._folder)
        labels.FORMATS[self._format].write(table_of(self._out, self._format), found)
        self._table.discard()


def _row(name: str, xy, score) -> list[str]:
    row = [name]
    for (x, y), s in zip(xy, score, strict=True):
        row += [f"{x:.3f}", f"{y:.3f}", f"{s:.4f}"] if s > 0 else ["", "", "0"]
    return row


class Overlays:
    """The folder of overlays and its index of the overlays that this package wrote.

    `index.csv` has a line for each overlay: file, overlay, and the sha256 of its content. During a call the index is
    `index.partial.csv`. A name that the file system refuses, for example because of its length, becomes a shorter one.

    Args:
      folder: the folder, local or gs://.
    """

    HEADER = ("file", "overlay", "sha256")

    def __init__(self, folder):
        self._folder = epath.Path(folder)
        self._torn = _index(self._folder / "index.partial.csv")  # rows of a killed call
        self._earlier = _index(self._folder / "index.csv") + self._torn
        self._index = files.GrowingCsv(self._folder / "index.csv", self.HEADER)
        self._index.add(self._torn)
        self._rows: list[tuple[str, str, str]] = []

    def add(self, file: str, name: str, data: bytes) -> None:
        """Write an overlay, after its line in the index, so that every overlay on disk is in the index."""
        digest = hashlib.sha256(data).hexdigest()
        for wanted in (name, _plain_name(name)):
            row = (file, wanted, digest)
            self._index.add([row])
            try:
                files.write(self._folder / wanted, data)
            except OSError as error:
                if wanted == name and files.is_about_the_name(error):
                    continue
                raise
            self._rows.append(row)
            return

    def finish(self) -> None:
        """Remove overlays of earlier calls that this call did not write, and give the index its final name."""
        for _, overlay, _ in self._torn:
            files.part_of(self._folder / overlay).unlink(missing_ok=True)
        mine = {overlay for _, overlay, _ in self._rows}
        for _, overlay, digest in self._earlier:
            if overlay not in mine:
                self._remove(self._folder / overlay, digest)
        self._index.finish([self.HEADER, *self._rows])

    def _remove(self, path: epath.Path, digest: str) -> None:
        """Remove a file unless it has been changed since, and the folders that become empty."""
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            path.unlink()
        above = path.parent
        while above != self._folder and above.exists() and next(iter(above.iterdir()), None) is None:
            above.rmdir()
            above = above.parent


def _index(path) -> list[tuple[str, str, str]]:
    """Read the rows of an index, without a torn last row and without rows that point outside the folder."""
    if not path.exists():
        return []
    text = path.read_bytes().decode("utf-8", "replace")
    rows = [tuple(row) for row in csv.reader(io.StringIO(text, newline="")) if len(row) == 3 and len(row[2]) == 64]
    return [row for row in rows if not row[1].startswith("/") and ".." not in row[1].split("/")]


def overlay_names(names: Sequence[str]) -> dict[str, str]:
    """Choose names of overlays: `a/b.jpg` -> `a/b.png`, if no other file's overlay could have the same name.

    Files that differ only in their ending keep it, `a/b.jpg.png`; files whose names are equal on some disks (other
    case, other Unicode form) get a number made from their name. Bytes that are not UTF-8 become `\\xNN`.

    >>> overlay_names(["a.jpg", "b.jpg", "b.png", "folder.1/c"])
    {'a.jpg': 'a.png', 'b.jpg': 'b.jpg.png', 'b.png': 'b.png.png', 'folder.1/c': 'folder.1/c.png'}
    """
    shown = {name: files.printable(name) for name in names}
    choices = {n: (f"{posixpath.splitext(s)[0]}.png", f"{s}.png") for n, s in shown.items()}
    taken = collections.Counter(same_on_disk(c) for some in choices.values() for c in dict.fromkeys(some))
    named = {}
    for name, some in choices.items():
        free = [choice for choice in some if taken[same_on_disk(choice)] == 1]
        named[name] = free[0] if free else f"{some[0].removesuffix('.png')}~{_number(name)}.png"
    return named


def _plain_name(name: str) -> str:
    """Make a name that every file system accepts."""
    start = re.sub(r"[^A-Za-z0-9_-]+", "_", posixpath.basename(name).removesuffix(".png"))[:40].strip("_")
    return f"{start}~{_number(name)}.png"


def _number(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
