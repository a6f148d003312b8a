"""The interface of data sets: their landmarks, the normaliser of their errors, and access to their images.

A `Source` is one split on the host: it has the names, sizes and landmarks of all files, and decodes any image into the
square frame (`ops/coordinates.frame_map`). Training sees a source only through `pipeline.StreamReader` or
`resident.ResidentReader`, which take only images and row numbers from it.
"""

import hashlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from uld_jax.data.listing import BadFile, Skipped, bad_files
from uld_jax.data.schemes import BY_NUMBER, NO_SCHEME, SCHEMES, image_order, scheme_of
from uld_jax.errors import UserError

NAMED = tuple(dict.fromkeys(name for scheme in SCHEMES.values() for name in scheme.pairs))  # pairs of points
NORMALISERS = ("auto", *NAMED, "box", "image")
SIDES = ("auto", "object", "image")
STRETCH = "crop_stretch"  # column of official data sets whose crops are stretched: magnification of y by that of x
_TWO_POINTS = re.compile(r"\s*(\d+)\s*[,-]\s*(\d+)\s*")


class DatasetSpec(NamedTuple):
    """Facts about a data set that do not depend on its images.

    Attributes:
      name: short and stable name; part of the protocol id.
      landmarks: L, number of annotated points in an image; None without annotation.
      normaliser: length that the error is divided by: a named pair of the scheme, such as `eyes` (distance of the two
        points in `eyes`), `box` (sqrt(width * height) of the box around an image's annotated points), `image` (side of
        the frame), or the distance of two points chosen by the user, such as `30-45`.
      eyes: indices of the two points, for a normaliser that is a named pair or two points; else None.
      mirror: permutation [L] of the points in a mirrored image; None if unknown.
      landmark_names: one name for each point; () if unknown.
      splits: names of the existing splits; () if any name gives all images.
      sides: meaning of `left` in the landmarks: `object`, the person's own left as annotated, or `image`, the left of
        the image (see `schemes.image_sides`). Errors of the two may not be compared.
      scheme: name of a scheme (`schemes.SCHEMES`), or `none`.
      partial: True for a part of an official data set, whose errors are not those of the whole.
    """

    name: str
    landmarks: int | None = None
    normaliser: str = "box"
    eyes: tuple[int, int] | None = None
    mirror: tuple[int, ...] | None = None
    landmark_names: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train", "test")
    sides: str = "object"
    scheme: str = NO_SCHEME
    partial: bool = False

    @property
    def protocol(self) -> str | None:
        """Id under which errors may be compared, such as `folder_68_eyes`; None without annotation."""
        if self.landmarks is None:
            return None
        more = ("_image_sides" if self.sides == "image" else "") + ("_part" if self.partial else "")
        return f"{self.name}_{self.landmarks}_{self.normaliser}{more}"


def spec_of(
    name: str,
    landmarks: int | None,
    *,
    scheme: str = NO_SCHEME,
    normaliser: str = "auto",
    splits: tuple[str, ...] = ("train", "test"),
    landmark_names: tuple[str, ...] = (),
) -> DatasetSpec:
    """Make the spec of a data set from its number of landmarks and their scheme.

    `normaliser='auto'` selects the scheme's first named pair, or the box without a scheme. A name selects that pair,
    and two point numbers, `'30,45'`, their distance. Raises UserError for any other word, for points that do not exist,
    for a scheme with another number of points, and for a named pair that the scheme lacks.

    >>> spec_of('folder', 68).protocol, spec_of('folder', 68, scheme='ibug68').protocol
    ('folder_68_box', 'folder_68_eyes')
    >>> spec_of('folder', 20, normaliser='3,4').protocol, spec_of('folder', 7, scheme='bbc_pose7').protocol
    ('folder_20_3-4', 'folder_7_shoulders')
    """
    if scheme == BY_NUMBER:
        scheme = next((word for word, known in SCHEMES.items() if known.landmarks == landmarks), NO_SCHEME)
    known = scheme_of(scheme)
    if known is not None and landmarks not in (None, known.landmarks):
        raise UserError(
            f"data.scheme={scheme} has {known.landmarks} points, and {name} has {landmarks} landmarks; use the scheme "
            f"that they were annotated by, or {NO_SCHEME}"
        )
    pairs = known.pairs if known else {}
    eyes = None
    two = _TWO_POINTS.fullmatch(normaliser)
    if two:
        asked = int(two[1]), int(two[2])
        if asked[0] == asked[1] or (landmarks is not None and max(asked) >= landmarks):
            raise UserError(f"data.normaliser is {normaliser}; give two different points below {landmarks}")
        names = {pair: name for name, pair in pairs.items()}
        normaliser, eyes = names.get(asked, "-".join(str(n) for n in asked)), asked
    elif normaliser not in NORMALISERS:
        raise UserError(
            f"data.normaliser is {normaliser!r}; use one of {', '.join(NORMALISERS)} or two point numbers such as 36,45"
        )
    elif normaliser == "auto":
        normaliser = known.normaliser if known else "box"
    eyes = pairs.get(normaliser, eyes)
    if normaliser in NAMED and landmarks is not None and normaliser not in pairs:
        of = [name for name, scheme in SCHEMES.items() if normaliser in scheme.pairs]
        raise UserError(
            f"data.normaliser={normaliser} needs to know which points of {name} the {normaliser} are; set data.scheme "
            f"({' or '.join(of)}), or give the two points, such as data.normaliser=36,45"
        )
    return DatasetSpec(
        name=name,
        landmarks=landmarks,
        normaliser=normaliser,
        eyes=eyes,
        mirror=known and known.mirror,
        landmark_names=landmark_names,
        splits=splits,
        scheme=scheme,
    )


class Pairs(NamedTuple):
    """Pairs of images of one category, as a data set lists them.

    Attributes:
      rows: [P,2] int32, rows of image a and image b.
      flip: [P] bool, True for a pair that training shows with both images mirrored.
      xy: [P,2,K,2] float64 `(x, y)` of the same K keypoints on a and b, in pixels of the upright FILES; NaN in empty
        slots. None without points.
      places: file and line of each pair, for messages.
    """

    rows: np.ndarray
    flip: np.ndarray
    xy: np.ndarray | None
    places: list[str]


class Source:
    """One split on the host, with random access. Subclasses set the attributes and define `image`.

    Attributes:
      spec: DatasetSpec.
      names: [N] file names relative to the data folder; the row number is the identity of an example.
      frame_size: F, side of the square frame in pixels.
      landmarks: [N,L,2] float32 `(x, y)` in pixels of the FRAME, NaN where not annotated; None without annotation.
      visible: [N,L] bool, False where hidden or not annotated; None without annotation.
      frame_maps: [N,4] float64 maps from the upright file to the frame (`ops/coordinates.file_to_frame`).
      file_sizes: [N,2] int32 (height, width) of the upright file.
      columns: other columns of the annotation, {name: list of N strings}.
      pairs: pairs of images that the data set lists; None for a data set without.
      data_dir: data folder, to which the names of other files in `columns` are relative; None without files.
      skipped: files of the folder that are not used as images: of another kind, or left out by `on_bad_file`.
      where: name of the folder, for messages; empty without files.
      checked: True if every image has been decoded already.
      fingerprint: 16 hexadecimal digits that change with the images, their order or the frame, and with nothing else.
    """

    spec: DatasetSpec
    names: list[str]
    frame_size: int
    landmarks: np.ndarray | None = None
    visible: np.ndarray | None = None
    frame_maps: np.ndarray
    file_sizes: np.ndarray
    columns: dict[str, list[str]]
    pairs: Pairs | None = None
    data_dir: str | None = None
    fingerprint: str
    skipped: tuple[Skipped, ...] = ()
    where: str = ""
    checked: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def place(self, row: int) -> str:
        """Return the place where a row was read, for messages."""
        return self.names[row]

    def image(self, row: int) -> np.ndarray:
        """Return the image of one row in the frame, [F,F,3] uint8. May be called from many threads."""
        raise NotImplementedError

    def broken(self) -> list[BadFile]:
        """Decode every image, as small as possible; return the errors of bad ones, with their `names`."""
        return []

    def mask(self, row: int) -> np.ndarray | None:
        """Return the object's mask in the upright file of one row, [H,W] bool; None if only `columns` may have one."""
        del row

    def encoded(self, row: int) -> bytes:
        """Return the image of one row as an encoded file; without a file, the frame as PNG."""
        out = io.BytesIO()
        Image.fromarray(self.image(row)).save(out, format="PNG", compress_level=1)
        return out.getvalue()

    def images(self, rows: Iterable[int] | None = None, out: np.ndarray | None = None) -> np.ndarray:
        """Return the images of the given rows (default all) in the frame, [n,F,F,3] uint8, decoded by several threads.

        They are written to `out`, if it is given. Raises UserError that names all images that cannot be decoded.
        """
        rows = range(len(self)) if rows is None else list(rows)
        if out is None:
            out = np.empty((len(rows), self.frame_size, self.frame_size, 3), np.uint8)
        bad: dict[int, BadFile] = {}

        def load(place):
            try:
                out[place] = self.image(int(rows[place]))
            except BadFile as error:
                bad[place] = BadFile(self.names[rows[place]], error.why)

        with ThreadPoolExecutor(decode_threads()) as pool:
            try:
                for _ in pool.map(load, range(len(rows)), chunksize=1):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)  # otherwise all other images are decoded before the error is raised
                raise
        if bad:
            raise bad_files([bad[place] for place in sorted(bad)], len(rows), self.where)
        return out


class BadFileWarning(UserWarning):
    """A warning that unreadable files were left out."""


def broken(names: Sequence[str], check: Callable[[int], BadFile | None]) -> dict[int, BadFile]:
    """Find the rows for which `check` returns an error, in several threads: {row: error with the row's name}."""
    with ThreadPoolExecutor(decode_threads()) as pool:
        found = enumerate(pool.map(check, range(len(names))))
    return {row: error.of(names[row]) for row, error in found if error is not None}


def sort_out(names: Sequence[str], heads: Sequence[Any], check, on_bad_file: str, where: str) -> dict[int, BadFile]:
    """Find the rows that must be left out: {row: error}.

    Args:
      names: file names of all rows.
      heads: header of each file, or the BadFile raised on reading it.
      check: function that decodes one row, see `broken`.
      on_bad_file: `error` raises for bad heads and decodes nothing; `skip` decodes all others and warns.
      where: name of the folder, for messages.

    Raises:
      UserError: another word; files that cannot be read, all of them named; or no file that can be read.
    """
    if on_bad_file not in ("error", "skip"):
        raise UserError(f"data.on_bad_file is {on_bad_file!r}; use error or skip")
    bad = {row: head.of(names[row]) for row, head in enumerate(heads) if isinstance(head, BadFile)}
    if on_bad_file == "error":
        if bad:
            raise bad_files(list(bad.values()), len(names), where)
        return {}
    bad |= broken(names, lambda row: None if row in bad else check(row))
    if bad:
        bad = {row: bad[row] for row in sorted(bad)}
        error = re.split("; mend or remove|; put it there", str(bad_files(list(bad.values()), len(names), where)))[0]
        if len(bad) == len(names):
            raise UserError(f"{error}; there is nothing left")
        warnings.warn(f"{error}; they are left out", BadFileWarning, stacklevel=4)
    return bad


def set_sides(source: Source, sides: str = "auto") -> None:
    """Give `left` and `right` of a source's landmarks the meaning of `sides`, in place, also in the protocol id.

    Args:
      source: data set whose `landmarks`, `visible` and `spec` change; without landmarks nothing changes.
      sides: `object` keeps the annotation; `image` uses the sides of the image (`schemes.image_sides`); `auto` is
        `image` for the scheme `human36m_32`, as in the official evaluation of Mallis et al. 2020, else the sides that
        the source has.

    Raises:
      UserError: another word, `image` for landmarks whose partners are unknown, or `object` for a prepared data set
        that was written by image sides and no longer holds the annotation.
    """
    if sides not in SIDES:
        raise UserError(f"data.sides is {sides!r}; use one of {', '.join(SIDES)}")
    if source.landmarks is None:
        return
    known = scheme_of(source.spec.scheme)
    groups = known.image_sides if known else ()
    if sides == "auto":
        sides = "image" if groups else source.spec.sides
    if sides == source.spec.sides:
        return
    if sides == "object":
        raise UserError(
            f"the data set {source.spec.name} was written with data.sides=image; write it again with data.sides=object"
        )
    if not groups:
        of = ", ".join(name for name, scheme in SCHEMES.items() if scheme.image_sides)
        raise UserError(
            f"data.sides=image needs the joints of data.scheme={of}, and the scheme of {source.spec.name} is "
            f"{source.spec.scheme}; use data.sides=object"
        )
    order = image_order(source.landmarks, groups)
    source.landmarks = np.take_along_axis(source.landmarks, order[..., None], -2)
    source.visible = np.take_along_axis(source.visible, order, -1)
    source.spec = source.spec._replace(sides=sides)


def skipped(sources: Iterable[Source]) -> tuple[Skipped, ...]:
    """List the files that the splits of a data set skip, each once."""
    return tuple(dict.fromkeys(one for source in sources for one in source.skipped))


def annotated(source: Source) -> np.ndarray:
    """Tell which points have coordinates, visible or not: [N,L] bool.

    Raises UserError when the source has no landmarks.
    """
    if source.landmarks is None:
        raise UserError(f"the data set {source.spec.name} has no landmarks; give a csv with columns x0,y0,x1,y1,...")
    return np.isfinite(source.landmarks).all(-1)


def labelled(source: Source) -> np.ndarray:
    """List the rows that have an annotated point, visible or not, increasing; none without landmarks."""
    if source.landmarks is None:
        return np.arange(0)
    return np.flatnonzero(annotated(source).any(1))


def decode_threads() -> int:
    """Return the number of threads that keep the cores busy while some threads wait for files."""
    return min(32, (os.cpu_count() or 1) + 4)


def fingerprint_of(*parts) -> str:
    """Return 16 hexadecimal digits that identify `parts`, whose `repr` must be the same on every machine.

    >>> fingerprint_of('a', 1) == fingerprint_of('a', 1) != fingerprint_of('a', 2)
    True
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode() + b"\0")
    return digest.hexdigest()[:16]
