"""Data sets as their authors publish them: folders of official files, read as sources that `prepared.prepare` writes.

A builder is a file beside this one with `DATASETS`, the data sets that it reads. Its function `records(files, name)`
reads lists and annotation and returns the images of every split; this file does what all builders share: it finds and
checks the files, compares counts, cuts crops, and reads the images.

Where crops are stretched, the column `crop_stretch` has their magnification along y divided by that along x, so that
the shape of an object can be told from its points.

A data set whose authors and users disagree on its images or on their crop is several data sets, each with a name of its
own (`celeba_mallis`, `celeba_dve`), so that the id of a number says which one it was measured on.
"""

import functools
import io
import os
import posixpath
import types
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from uld_jax.data import crops, decode, folder, objects
from uld_jax.data.listing import AbsentFile, BadFile, Skipped
from uld_jax.data.schemes import NO_SCHEME
from uld_jax.data.specs import STRETCH, Source, broken, decode_threads, fingerprint_of, sort_out, spec_of
from uld_jax.errors import UserError
from uld_jax.ops import coordinates

_QUALITY = 95  # of the JPEG files of crops
_SAME = 1e-3  # difference of stretch from 1 that counts as none
_NAMED = 5  # most files that one message names


class Crop(NamedTuple):
    """The part of a photo that a data set shows, black outside the photo.

    Attributes:
      fmap: map [4] from pixels of the upright file to those of the crop (`ops.coordinates`).
      size: (height, width) of the crop in pixels.
    """

    fmap: np.ndarray
    size: tuple[int, int]

    @classmethod
    def of(cls, box, size: tuple[int, int]) -> "Crop":
        """Make the crop that shows a part of a photo in `size` (height, width) pixels; `box` as for `crops.window`."""
        return cls(crops.window(box, size), size)


# Percent by which the box around the five points of a face is enlarged, by the rule in a data set's name: in the tests
# of CGB, and by default in those of Sanchez et al. (the option -t of their published code). Both train with 70.
TIGHT = {"cgb": 70, "saic": 16}


def around_points(points, tight: int) -> "Callable[[tuple[int, int]], Crop]":
    """Make the crop of SAIC and CGB around annotated points, stretched to 128 x 128 (`crops.landmark_crop`)."""
    return lambda file_size: Crop.of(crops.landmark_crop(points, file_size, tight), (128, 128))


class Record(NamedTuple):
    """One image of an official data set; all coordinates are pixels of the upright file, centres at integers.

    Attributes:
      file: name of the image, unique in its split: its path below the folder, unless `read` is given.
      place: list and line that name the image, for messages.
      landmarks: [L,2] float64 `(x, y)`, NaN where not annotated; None without annotation.
      visible: [L] bool, False where hidden or not annotated; None if all annotated points count as visible.
      box: `(x0, y0, x1, y1)` around the object; None if unknown.
      columns: other facts, {name: text}; the same names in all records of a data set.
      crop: part of the photo that is shown, or a function that returns it for a (height, width) of the file and may
        check it; None for the unchanged file.
      read: function that returns the encoded image, for images in other files than their own.
      path: path of the image below the folder, if it differs from `file`.
    """

    file: str
    place: str
    landmarks: np.ndarray | None = None
    visible: np.ndarray | None = None
    box: tuple[float, float, float, float] | None = None
    columns: Mapping[str, str] = types.MappingProxyType({})
    crop: "Crop | Callable[[tuple[int, int]], Crop | None] | None" = None
    read: Callable[[], bytes] | None = None
    path: str | None = None


class Dataset(NamedTuple):
    """An official data set under one name.

    Attributes:
      name: name of the data set; part of the protocol id.
      about: its images and splits, as a noun phrase.
      records: function of `Files` and the name that reads the images of every split, {split: records}; None with
        `sources`.
      counts: official number of images in every split; None where no source gives it.
      landmarks: L, number of annotated points; None without annotation.
      scheme: scheme of the points.
      normaliser: length that errors are divided by, see `specs.spec_of`.
      size: (height, width) of all images; others are left out and listed in `skipped`. None for any size.
      sources: function of `Files`, `frame_size` and `on_bad_file` that opens every split, {split: source}, for a data
        set with a reader of its own.
      landmark_names: names of the L points; () if they have none.
    """

    name: str
    about: str
    records: "Callable[[Files, str], Mapping[str, Sequence[Record]]] | None"
    counts: Mapping[str, int | None]
    landmarks: int | None = None
    scheme: str = NO_SCHEME
    normaliser: str = "auto"
    size: tuple[int, int] | None = None
    sources: "Callable[..., dict[str, Source]] | None" = None
    landmark_names: tuple[str, ...] = ()


class Files:
    """The folder with a data set's official files, and whether a part of them is enough.

    Attributes:
      root: the folder.
      partial: True if files may be absent and lists shorter than the official ones.
      notes: sentences about what differs from the official files, none unless `partial`, and about what others say of
        them that is not so here.
    """

    def __init__(self, src, partial: bool = False):
        self.root, self.partial, self.notes = folder.existing_folder(src, "--src", "official files"), partial, []

    def find(self, *names: str, what: str) -> epath.Path:
        """Return the first of several possible paths below the folder that exists.

        `what` says which file is meant and where it comes from. Raises UserError if none exists.
        """
        for name in names:
            if (self.root / name).exists():
                return self.root / name
        places = f"one of {', '.join(names)}" if len(names) > 1 else names[0]
        raise UserError(f"{self.root} holds no {what}; put it there as {places}")

    def name(self, path) -> str:
        """Return a path below the folder as a name, with `/` between its parts."""
        return posixpath.join(*epath.Path(path).relative_to(self.root).parts)

    def stems(self, path, ending: str) -> list[str]:
        """List the files of a folder with an ending, without that ending, in order; [] if there is no such folder."""
        return sorted(name.removesuffix(ending) for name in _files_of(path) if name.endswith(ending))

    def with_file(self, images: Sequence[str], place: Callable[[str], object]) -> list[str]:
        """Return the images that have their file of annotation, whose path `place(image)` returns.

        Raises UserError if files are absent, and names the first; with `partial` this becomes a note.
        """
        places = {name: epath.Path(place(name)) for name in images}
        there = {folder: set(_files_of(folder)) for folder in {path.parent for path in places.values()}}
        kept = [name for name, path in places.items() if path.name in there[path.parent]]
        if len(kept) < len(places):
            absent = [str(path) for name, path in places.items() if path.name not in there[path.parent]]
            more = f" and those of {len(absent) - 1:,} more images" if len(absent) > 1 else ""
            remedy = "get the official files, or add --allow_partial to go on without these images"
            self.differ(f"{absent[0]} is absent{more}", remedy, "; these images are left out")
        return kept

    def differ(self, said: str, remedy: str, more: str = "") -> None:
        """Raise UserError with the remedy about files that are not the official ones; with `partial` note it.

        `more` is the end of the note.
        """
        if not self.partial:
            raise UserError(f"{said}; {remedy}")
        self.notes.append(said + more)

    def lines(self, path) -> list[tuple[int, str]]:
        """Read the lines of a text file that are not blank, stripped, with their numbers from 1.

        Raises UserError if the file is no text.
        """
        try:
            text = epath.Path(path).read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(f"{path} is not a text file in UTF-8; get the official file again") from None
        return [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]

    def expect(self, path, found: int, official: int, what: str = "images", kind: str = "file") -> None:
        """Check the length of a list, of which `kind` says what it is.

        Raises UserError that names the list if it differs from the official one; with `partial` this becomes a note.
        """
        if found != official:
            said = f"{path} has {found:,} {what} where the official {kind} has {official:,}"
            self.differ(said, f"get the official {kind}, or add --allow_partial to go on with a part")

    def numbers(self, cells: Sequence[str], place: str) -> np.ndarray:
        """Read cells as finite numbers, [n] float64. Raises UserError that names the place."""
        try:
            out = np.array([float(cell) for cell in cells])
        except ValueError:
            out = np.array([np.nan])
        if not np.isfinite(out).all():
            bad = next((cell for cell in cells if not _is_number(cell)), "")
            raise UserError(f"{place}: {bad!r} is no number; get the official file again")
        return out


def _files_of(path) -> list[str]:
    folder = epath.Path(path)
    return [file.name for file in folder.iterdir()] if folder.exists() else []


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False


def read_splits(dataset: Dataset, files: Files) -> dict[str, list[Record]]:
    """Read the images of every split, and compare their numbers with the official ones.

    Raises UserError for any error in the files, for two images of one name in a split, and for other counts.
    """
    splits = {split: list(records) for split, records in dataset.records(files, dataset.name).items()}
    for split, records in splits.items():
        seen = {}
        for record in records:
            if record.file in seen:
                raise UserError(f"{record.place}: {record.file} is listed twice, also in {seen[record.file]}; mend it")
            seen[record.file] = record.place
        if dataset.counts[split] not in (None, len(records)):
            said = (
                f"the split {split} of {dataset.name} has {len(records):,} images below {files.root} where the "
                f"official one has {dataset.counts[split]:,}"
            )
            files.differ(said, "get the rest of the files, or add --allow_partial to go on with a part")
    if empty := [split for split, records in splits.items() if not records]:
        if not files.partial or len(empty) == len(splits):
            raise UserError(f"the split {empty[0]} of {dataset.name} has no image below {files.root}; get its files")
        splits = {split: records for split, records in splits.items() if records}
    return splits


class Official(Source):
    """One split of an official data set. Raises UserError for any error in its images.

    `records` are those of `read_splits`, `splits` the names of all splits. Images that are absent are an error that
    names them, or with `files.partial` are left out and listed in `skipped`. For `frame_size` and `on_bad_file` see
    `data.open_source`.

    Attributes:
      left_out: number of listed images that are absent, or that cannot be read.
    """

    def __init__(
        self,
        dataset: Dataset,
        files: Files,
        records: Sequence[Record],
        *,
        splits: Sequence[str],
        frame_size: int = 128,
        on_bad_file: str = "error",
    ):
        self.data_dir, self.where, self.frame_size = None, os.fspath(files.root), frame_size
        self._records = list(records)
        heads = self._probe(dataset, files, on_bad_file)
        self.names = [r.file for r in self._records]
        if dataset.landmarks is not None:
            points = np.stack([np.asarray(r.landmarks, np.float64) for r in self._records])
            folder.check_points(points, [head.size for head in heads], self.place)
        sizes = [r.crop.size if r.crop else head.size for r, head in zip(self._records, heads, strict=True)]
        self.file_sizes = np.array(sizes, np.int32)
        self.frame_maps = np.stack([coordinates.frame_map(size, (frame_size, frame_size)) for size in sizes])
        self.spec = spec_of(
            dataset.name,
            dataset.landmarks,
            scheme=dataset.scheme,
            normaliser=dataset.normaliser,
            splits=tuple(splits),
            landmark_names=dataset.landmark_names,
        )
        if dataset.landmarks is not None:
            stored = np.stack([_moved(r.crop, p) for r, p in zip(self._records, points, strict=True)])
            self.landmarks = coordinates.file_to_frame(stored, self.frame_maps).astype(np.float32)
            self.visible = np.isfinite(points).all(-1)
            for visible, record in zip(self.visible, self._records, strict=True):
                visible &= True if record.visible is None else record.visible
        names = self._records[0].columns
        self.columns = {name: [str(r.columns[name]) for r in self._records] for name in names}
        stretch = np.array([r.crop.fmap[1] / r.crop.fmap[0] if r.crop else 1.0 for r in self._records])
        if (abs(stretch - 1) > _SAME).any():
            self.columns[STRETCH] = [f"{s:.5f}" for s in stretch]
        if any(r.box is not None for r in self._records):
            boxes = [_moved(r.crop, np.reshape(r.box or [np.nan] * 4, (2, 2))).ravel() for r in self._records]
            for j, name in enumerate(objects.BOX):
                self.columns[name] = ["" if r.box is None else f"{b[j]:.3f}" for r, b in zip(self._records, boxes)]
        kept = [(r.file, *head) for r, head in zip(self._records, heads, strict=True)]
        self.fingerprint = fingerprint_of(dataset.name, frame_size, kept)

    def place(self, row):
        """Return the list and line that name the image."""
        return self._records[row].place

    def image(self, row):
        """Decode the image of one row; see `Source`."""
        return decode.decode_image(self.encoded(row), self.frame_size)[0]

    def encoded(self, row):
        """Return the unchanged image file of one row, or its crop as JPEG."""
        record = self._records[row]
        if record.crop is None:
            return _bytes(self.where, record)
        pixels = decode.decode_picture(_bytes(self.where, record), longest=1 << 30)
        out = io.BytesIO()
        cut = crops.cut(pixels, record.crop.fmap, record.crop.size)
        Image.fromarray(cut).save(out, format="JPEG", quality=_QUALITY, subsampling=0)
        return out.getvalue()

    def broken(self):
        """Find the images that cannot be decoded, and show the progress; see `Source`."""
        rows = {_path(r): row for row, r in enumerate(self._records)}  # several may show parts of one file
        names, rows = list(rows), list(rows.values())
        bar = tqdm(total=len(rows), desc=f"checking {self.spec.name}", unit=" images", disable=None)

        def check(i):
            found = self._check(rows[i])
            bar.update()
            return found

        with bar:
            return list(broken(names, check).values())

    def _check(self, row):
        try:
            return decode.check(_bytes(self.where, self._records[row]))
        except BadFile as error:
            return error

    def _probe(self, dataset: Dataset, files: Files, on_bad_file: str) -> list[folder.Head]:
        """Read all headers; keep the records of usable images, and report or leave out the others."""
        own = {row: None for row, r in enumerate(self._records) if r.read is None}
        paths = [os.path.join(self.where, _path(self._records[row])) for row in own]
        heads = dict(zip(own, folder.read_heads(paths), strict=True))
        others = [row for row in range(len(self._records)) if row not in own]
        with ThreadPoolExecutor(decode_threads()) as pool:
            heads |= zip(others, pool.map(lambda row: _head(self.where, self._records[row]), others), strict=True)
        heads = [heads[row] for row in range(len(self._records))]
        shown = _paths(self._records)
        absent = [row for row, head in enumerate(heads) if isinstance(head, AbsentFile)]
        if absent and not files.partial:
            named = ", ".join(shown[row] for row in absent[:_NAMED])
            more = f" and {len(absent) - _NAMED:,} more" if len(absent) > _NAMED else ""
            raise UserError(
                f"{self._records[absent[0]].place}: {self.where} holds no {named}{more}; get the images, or add "
                "--allow_partial to go on without them"
            )
        self.skipped = tuple(Skipped(shown[row], str(heads[row])) for row in absent)
        self.left_out = len(absent)
        there = [row for row in range(len(heads)) if row not in set(absent)]
        if not there:
            raise UserError(
                f"{self._records[0].place}: {self.where} holds none of the {len(heads):,} images, first "
                f"{shown[0]}; give the folder that holds them"
            )
        self._records, heads = [self._records[row] for row in there], [heads[row] for row in there]
        bad = sort_out(_paths(self._records), heads, self._check, on_bad_file, self.where)
        self.checked = on_bad_file == "skip"
        self.skipped += tuple(Skipped(b.file, str(b.of(os.path.join(self.where, b.file)))) for b in bad.values())
        self.left_out += len(bad)
        usable = [row for row in range(len(heads)) if row not in bad]
        kept = [row for row in usable if dataset.size in (None, heads[row].size)]
        if not kept:
            raise UserError(
                f"none of the {len(usable):,} images below {self.where} has the {_pixels(dataset.size)} pixels of "
                f"{dataset.name}, first {_path(self._records[usable[0]])}; get the official images"
            )
        self.skipped += tuple(
            Skipped(
                _path(self._records[row]),
                f"{os.path.join(self.where, _path(self._records[row]))} has {_pixels(heads[row].size)} pixels where "
                f"the images of {dataset.name} have {_pixels(dataset.size)}",
            )
            for row in usable
            if dataset.size not in (None, heads[row].size)
        )
        self._records = [_cropped(self._records[row], heads[row].size) for row in kept]
        return [heads[row] for row in kept]


def _path(record: Record) -> str:
    return record.path or record.file


def _paths(records: Sequence[Record]) -> list[str]:
    """The paths of images below the folder, for messages."""
    return [_path(record) for record in records]


def _bytes(root: str, record: Record) -> bytes:
    if record.read is not None:
        return record.read()
    try:
        return epath.Path(os.path.join(root, _path(record))).read_bytes()
    except OSError as error:
        raise BadFile(record.file, (error.strerror or str(error)).lower()) from None


def _head(root: str, record: Record) -> "folder.Head | BadFile":
    try:
        data = _bytes(root, record)
        found = decode.header(data)
    except BadFile as error:
        return BadFile(record.file, error.why)
    return folder.Head(found.size, len(data), zlib.crc32(found.start))


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _cropped(record: Record, size: tuple[int, int]) -> Record:
    """Return the record with the crop for the size of its file."""
    if not callable(record.crop):
        return record
    try:
        return record._replace(crop=record.crop(size))
    except UserError as error:
        raise UserError(f"{record.place}: {error}") from None


def _moved(crop: Crop | None, points: np.ndarray) -> np.ndarray:
    """Move points [n,2] of the file to the crop."""
    return points if crop is None else coordinates.file_to_frame(points, crop.fmap)


def open_all(
    dataset: Dataset, src, *, partial: bool = False, frame_size: int = 128, on_bad_file: str = "error"
) -> tuple[dict[str, Source], list[str]]:
    """Open every split of an official data set, for `prepared.prepare`.

    Args:
      dataset: the data set.
      src: folder with its official files.
      partial: True goes on with a part of the files.
      frame_size, on_bad_file: see `data.open_source`.

    Returns:
      {split: source}, whose specs say whether they are a part (`DatasetSpec.partial`); and sentences about the files,
      see `Files.notes`.

    Raises:
      UserError: any error in the files, or images that cannot be read, all of them named; nothing has been written.
    """
    files = Files(src, partial)
    if dataset.sources is not None:
        return dataset.sources(files, frame_size=frame_size, on_bad_file=on_bad_file), files.notes
    splits = read_splits(dataset, files)
    opening = functools.partial(Official, dataset, files, splits=tuple(splits), frame_size=frame_size)
    sources = {split: opening(records, on_bad_file=on_bad_file) for split, records in splits.items()}
    if (partial and files.notes) or any(source.left_out for source in sources.values()):
        for source in sources.values():
            source.spec = source.spec._replace(partial=True)
    return sources, files.notes
