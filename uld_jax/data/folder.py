"""A folder of photos as a data set, with or without annotation.

Images at any depth are the training images, with or without annotation: `train.csv` and `test.csv` (see `annotation`)
only give the positions of points. Images that the csv files name as test images are excluded from training and form the
split `test`. Without a csv, label files of other tools (see `labels`) are read in its place. Without csv and labels,
every split name gives all images. Training images are sorted by path, unless the labels list all of them; then they are
in that order. Hence labels may be added to a run's folder, as long as one image stays without a row.

Everything is checked when the folder is opened; an error is one sentence that names the file, line and column.
"""

import os
import posixpath
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from etils import epath

from uld_jax.data import annotation, decode, labels, listing
from uld_jax.data.schemes import NO_SCHEME
from uld_jax.data.specs import Source, broken, decode_threads, fingerprint_of, set_sides, sort_out, spec_of
from uld_jax.errors import UserError
from uld_jax.ops import coordinates


class Photos(Source):
    """The files of a split whose images are photos below a folder. Subclasses set `names`, and what else they know.

    For `frame_size` and `fit` see `data.open_source`.
    """

    def __init__(self, data_dir, frame_size: int, fit: str):
        self._root = existing_folder(data_dir)
        self.data_dir = self.where = os.fspath(self._root)
        self._fit, self.frame_size = fit, frame_size

    def _set_sizes(self, heads: "Sequence[Head]") -> None:
        """Set what follows from the headers of all images: sizes, maps and fingerprint."""
        frame = self.frame_size, self.frame_size
        self.file_sizes = np.array([h.size for h in heads], np.int32)
        self.frame_maps = np.stack([coordinates.frame_map(h.size, frame, self._fit) for h in heads])
        files = [(n, *h) for n, h in zip(self.names, heads, strict=True)]
        self.fingerprint = fingerprint_of(self.frame_size, self._fit, files)

    def image(self, row):
        """Decode the image of one row; see `Source`."""
        return decode.decode_image(self._path(row), self.frame_size, self._fit)[0]

    def encoded(self, row):
        """Return the unchanged bytes of the file."""
        return epath.Path(self._path(row)).read_bytes()

    def broken(self):
        """Find the images that cannot be decoded; see `Source`."""
        return list(broken(self.names, self._check).values())

    def _check(self, row):
        return decode.check(self._path(row))

    def _path(self, row):
        return os.path.join(self.data_dir, self.names[row])


class Folder(Photos):
    """One split of a folder. Raises UserError for any error in its files.

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
        on_bad_file: str = "error",
    ):
        super().__init__(data_dir, frame_size, fit)
        self.names, note = self._select(split)
        self._places, self._kind = (note.places, note.kind) if note else (None, "")
        used = self._probe(on_bad_file)
        if len(used) < len(self):
            self.names, note = list(used), note and note.take(list(used))
            self._places = note.places if note else None
        self.columns, heads = note.columns if note else {}, list(used.values())
        count = None if note is None or note.landmarks is None else note.landmarks.shape[1]
        asked = dict(scheme=scheme, normaliser=normaliser, splits=self._splits)
        self.spec = spec_of("folder", count, landmark_names=note.landmark_names if note else (), **asked)
        self._set_sizes(heads)
        if count is not None:
            check_points(note.landmarks, self.file_sizes, self.place)
            self.landmarks = coordinates.file_to_frame(note.landmarks, self.frame_maps).astype(np.float32)
            self.visible = note.visible
        set_sides(self, sides)

    def _select(self, split: str) -> tuple[list[str], annotation.Annotation | None]:
        """Return the images of a split and their annotation; also find which splits there are."""
        note, self._splits, everything = annotation.read_folder(self._root), (), None
        if note is None:
            everything = listing.walk(self._root)
            note = labels.read_folder(self._root, everything)
        if note is None:
            names, self.skipped = listing.list_files(self._root, everything)
            if not names:
                raise UserError(f"{self._root} holds no images ({listing.PICTURES}); give another folder")
            return names, None
        of = {s: [n for n, t in zip(note.names, note.splits, strict=True) if t == s] for s in annotation.SPLITS}
        self._splits = annotation.SPLITS if of["test"] else ("train",)
        if split not in self._splits:
            more = "; add test.csv, or a column `split` with `test` in some rows" if split == "test" else ""
            if more and note.kind:
                more = "; put `test` into the name of a label file or of a folder of images"
            raise UserError(f"{self._root} has no split {split} (it has {' and '.join(self._splits)}){more}")
        names = of["test"]
        if split == "train":
            listed, self.skipped = listing.list_files(self._root, everything)
            self.skipped = [one for one in self.skipped if one.file not in note.sources]
            listed = _without_masks(listed, note)
            names = of["train"]  # in this order, if the csv lists all images
            if rest := {*listed} - {*note.names}:
                names = sorted(rest.union(names), key=lambda name: name.split("/"))
            if not names:
                raise UserError(
                    f"all {len(of['test'])} images of {self._root} are listed as test images, and none is left to "
                    f"train on or to fit on; {'label' if note.kind else 'list'} some of them "
                    f"{'as training images' if note.kind else 'in train.csv'}, or add more"
                )
        return names, note.take(names)

    def place(self, row):
        """Return the file and line, or image, of the labels that name the image; without labels, the image."""
        return self._places[row] if self._places else self.names[row]

    def _probe(self, on_bad_file) -> dict[str, "Head"]:
        """Read headers by several threads; return those of usable files by name, and report or skip all others."""
        heads = read_heads(map(self._path, range(len(self))))
        absent = [i for i, h in enumerate(heads) if isinstance(h, listing.AbsentFile)]
        named = [i for i in absent if self.place(i) != self.names[i]]
        if named and on_bad_file == "error":
            first = named[0]
            remedy = "paths in the column `file` are relative to the folder of the csv"
            if self._kind:
                remedy = "put the images into the folder, or remove them from the labels"
            raise UserError(
                f"{self.place(first)}: {self.names[first]} is not in {self._root} ({counted(named, 'such file')}); "
                f"{remedy}"
            )
        bad = sort_out(self.names, heads, self._check, on_bad_file, self.where)
        self.checked = on_bad_file == "skip"
        reasons = [listing.Skipped(b.file, str(b.of(self._path(row)))) for row, b in bad.items()]
        self.skipped = tuple(sorted([*self.skipped, *reasons]))
        return {name: heads[row] for row, name in enumerate(self.names) if row not in bad}


def _without_masks(names, note: annotation.Annotation) -> list[str]:
    """Remove the masks that the csv names, and other images in the masks' folders, from the images of a folder."""
    masks = {posixpath.normpath(cell.strip()) for cell in note.columns.get("mask", ()) if cell.strip()}
    folders = {posixpath.dirname(mask) for mask in masks} - {posixpath.dirname(name) for name in note.names}
    return [name for name in names if name not in masks and posixpath.dirname(name) not in folders]


class Head(NamedTuple):
    """Facts about an image that are known without decoding it.

    Attributes:
      size: (height, width) of the upright file.
      file_bytes: size of the file.
      checksum: crc32 of the first bytes.
    """

    size: tuple[int, int]
    file_bytes: int
    checksum: int


def read_heads(paths: Iterable[str]) -> "list[Head | listing.BadFile]":
    """Read the headers of image files by several threads; an unreadable file gives its error."""
    with ThreadPoolExecutor(decode_threads()) as pool:
        return list(pool.map(_head, paths))


def _head(path) -> "Head | listing.BadFile":
    try:
        found = decode.header(path)
    except listing.BadFile as error:
        return error
    return Head(found.size, found.file_bytes, zlib.crc32(found.start))


def existing_folder(data_dir, field: str = "data_dir", content: str = "images") -> epath.Path:
    """Return the folder as a path. Raises UserError if it is not given, absent, a file, or empty.

    Errors name the `field` or flag that gave the folder, and the `content` that is wanted.
    """
    if not data_dir or not os.fspath(data_dir):
        if field != "data_dir":
            raise UserError(f"{field} is empty; give the folder of the {content}")
        raise UserError(
            "data_dir is not set; give the folder of the images with --config.data_dir=DIR (`uld evaluate`: "
            "--data_dir=DIR)"
        )
    folder = epath.Path(data_dir).expanduser()
    said = f"{field}={folder}" if field.startswith("--") else f"{field} {folder}"
    if not folder.exists():
        raise UserError(f"{said} does not exist; give a folder of {content}")
    if not folder.is_dir():
        raise UserError(f"{said} is a file; give the folder that holds the {content}")
    if next(iter(folder.iterdir()), None) is None:
        raise UserError(f"{said} is empty; put {content} into it, or give another folder")
    return folder


def check_points(landmarks, file_sizes, place, padded: bool = False):
    """Check that points [N,L,2] of files of sizes [N,2] (height, width) lie within one image side of the image.

    With `padded` that is the longer side, because points may lie on the padding of a square frame. Raises UserError for
    the first point that does not; `place(row)` names the place where the row was read.
    """
    wh = np.asarray(file_sizes, np.float64)[:, None, ::-1]
    beyond = wh.max(-1, keepdims=True) if padded else wh
    with np.errstate(invalid="ignore"):
        far = ((landmarks < -beyond) | (landmarks > wh + beyond)).any(-1)
    if far.any():
        row, point = np.argwhere(far)[0]
        x, y = landmarks[row, point]
        height, width = file_sizes[row]
        raise UserError(
            f"{place(row)}: point {point} at ({x:g}, {y:g}) lies far outside its image of {width} x {height} pixels; "
            f"coordinates must be pixels of the file ({counted(np.flatnonzero(far.any(-1)), 'image')} affected)"
        )


def counted(items, word: str) -> str:
    """Format the number of items with a word for one of them, `1 image` or `2 images`."""
    return f"{len(items)} {word}" + ("" if len(items) == 1 else "s")
