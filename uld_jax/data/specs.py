"""What a data set is: its landmarks, how its error is normalised, and the interface through which it is read.

A `Source` is one split on the host: it knows every file, its size, its landmarks, and decodes any image into the square
frame (`ops/coordinates.frame_map`). Training sees a source only through `pipeline.StreamReader` or
`resident.ResidentReader`, and these take nothing but images and row numbers from it.
"""

import hashlib
import io
import os
import re
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from uld_jax.data.listing import BadFile, Skipped, bad_files
from uld_jax.errors import UserError

NORMALISERS = ("auto", "eyes", "shoulders", "box", "image")
SIDES = ("auto", "object", "image")
_TWO_POINTS = re.compile(r"\s*(\d+)\s*[,-]\s*(\d+)\s*")


def mirror_permutation(landmarks: int, *pairs: tuple[int, int]) -> tuple[int, ...]:
    """The permutation [L] that swaps the points of each pair, for images turned left to right.

    >>> mirror_permutation(5, (0, 1), (3, 4))
    (1, 0, 2, 4, 3)
    """
    out = list(range(landmarks))
    for a, b in pairs:
        out[a], out[b] = b, a
    return tuple(out)


def _runs(*spans: tuple[int, int, int]):
    """Pairs (a, b), (a + 1, b - 1), ... of each span (a, b, count)."""
    return [(a + i, b - i) for a, b, count in spans for i in range(count)]


class Scheme(NamedTuple):
    """Which points an annotation has, and in which order.

    Attributes:
      landmarks: L.
      normaliser: what the distance of the two points in `eyes` is: `eyes` or `shoulders`.
      eyes: the two points whose distance errors are divided by.
      mirror: permutation [L] of the points in a mirrored image.
      areas: {name: (first, last point)} of a face.
      fixed: the points that are at one place of the head, from which its yaw can be told.
      image_sides: groups of pairs that change places where their first pair stands the wrong way (`image_sides`).
    """

    landmarks: int
    normaliser: str
    eyes: tuple[int, int]
    mirror: tuple[int, ...]
    areas: Mapping[str, tuple[int, int]] = types.MappingProxyType({})
    fixed: tuple[int, ...] = ()
    image_sides: tuple[tuple[tuple[int, int], ...], ...] = ()


# Joints of Human3.6M that the official evaluation of Mallis et al. 2020 exchanges between left and right: arms and hips
# by the hips, legs by the knees. (The shoulder anchors, 16 and 24, both lie at the neck and are no pair there.)
_HUMAN36M_SIDES = (
    ((1, 6), (25, 17), (18, 26), (27, 19), (20, 28), (29, 21), (30, 22), (31, 23)),
    ((2, 7), (3, 8), (4, 9), (5, 10)),
)

# The schemes that `data.scheme` names. A number of points tells nothing about what they are, so none is ever guessed.
SCHEMES = {
    # The iBUG order. Contours of eyes run from the outer corner inwards on the left, from the inner corner outwards on
    # the right. Points of the jaw are put on its outline in the picture, and so glide over the head as it turns.
    "ibug68": Scheme(
        landmarks=68,
        normaliser="eyes",
        eyes=(36, 45),
        mirror=mirror_permutation(
            68,
            *_runs((0, 16, 8), (17, 26, 5), (31, 35, 2), (36, 45, 4), (48, 54, 3), (55, 59, 2), (60, 64, 2)),
            (40, 47),
            (41, 46),
            (65, 67),
        ),
        areas={"jaw": (0, 16), "brows": (17, 26), "nose": (27, 35), "eyes": (36, 47), "mouth": (48, 67)},
        fixed=tuple(range(17, 68)),
    ),
    # Left eye, right eye, nose, left and right corner of the mouth, as in MAFL.
    "eyes_nose_mouth5": Scheme(5, "eyes", (0, 1), mirror_permutation(5, (0, 1), (3, 4))),
    # Right and left shoulder: official code of Mallis et al. 2020.
    "human36m_32": Scheme(
        landmarks=32,
        normaliser="shoulders",
        eyes=(25, 17),
        mirror=mirror_permutation(32, *_HUMAN36M_SIDES[0], *_HUMAN36M_SIDES[1]),
        image_sides=_HUMAN36M_SIDES,
    ),
    # In the order of its annotation: head; right, left wrist; right, left elbow; right, left shoulder. No source gives
    # its normaliser, so the shoulders are taken as for Human3.6M.
    "bbc_pose7": Scheme(7, "shoulders", (5, 6), mirror_permutation(7, (1, 2), (3, 4), (5, 6))),
}
NO_SCHEME = "none"
BY_NUMBER = "by_number"  # of runs from before there were schemes: the one with as many points


def scheme_of(name: str) -> Scheme | None:
    """The scheme of that name; None for `none`. Raises UserError for any other word."""
    if name != NO_SCHEME and name not in SCHEMES:
        raise UserError(f"data.scheme is {name!r}; use {NO_SCHEME} or one of {', '.join(SCHEMES)}")
    return SCHEMES.get(name)


class DatasetSpec(NamedTuple):
    """The facts about a data set that do not depend on its images.

    Attributes:
      name: short and stable; part of the protocol id.
      landmarks: L, the annotated points an image; None without annotation.
      normaliser: what the error is divided by: `eyes` or `shoulders` (distance of the two points in `eyes`), `box`
        (sqrt(width * height) of the box around an image's annotated points), `image` (side of the frame), or two points
        chosen by the user, such as `30-45`.
      eyes: indices of the two points, for the normaliser `eyes`, `shoulders` or two points; else None.
      mirror: permutation [L] of the points in a mirrored image; None if unknown.
      landmark_names: one name a point; () if unknown.
      splits: the splits that exist; () if any name gives all images.
      sides: what `left` means in the landmarks: `object`, the person's own left as annotated, or `image`, the left of
        the image (see `image_sides`). Errors of the two may not be compared.
      scheme: a name in `SCHEMES`, or `none`.
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

    @property
    def protocol(self) -> str | None:
        """The id under which errors may be compared, such as `folder_68_eyes`; None without annotation."""
        if self.landmarks is None:
            return None
        return f"{self.name}_{self.landmarks}_{self.normaliser}" + ("_image_sides" if self.sides == "image" else "")


def spec_of(
    name: str,
    landmarks: int | None,
    *,
    scheme: str = NO_SCHEME,
    normaliser: str = "auto",
    splits: tuple[str, ...] = ("train", "test"),
    landmark_names: tuple[str, ...] = (),
) -> DatasetSpec:
    """The spec of a data set of which no more is known than its number of landmarks and their scheme.

    `normaliser='auto'` takes the eyes or the shoulders of the scheme, without a scheme the box. Two point numbers,
    `'30,45'`, take their distance. Raises UserError for any other word, for points that do not exist, for a scheme of
    other points, and for `eyes` or `shoulders` where they are unknown.

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
    word, eyes = (known.normaliser, known.eyes) if known else (None, None)
    two = _TWO_POINTS.fullmatch(normaliser)
    if two:
        asked = int(two[1]), int(two[2])
        if asked[0] == asked[1] or (landmarks is not None and max(asked) >= landmarks):
            raise UserError(f"data.normaliser is {normaliser}; give two different points below {landmarks}")
        normaliser, eyes = word if asked == eyes else "-".join(str(n) for n in asked), asked
    elif normaliser not in NORMALISERS:
        raise UserError(
            f"data.normaliser is {normaliser!r}; use one of {', '.join(NORMALISERS)} or two point numbers such as 36,45"
        )
    elif normaliser == "auto":
        normaliser = word or "box"
    if normaliser in ("eyes", "shoulders") and landmarks is not None and normaliser != word:
        of = [name for name, scheme in SCHEMES.items() if scheme.normaliser == normaliser]
        raise UserError(
            f"data.normaliser={normaliser} needs to know which points of {name} the {normaliser} are; set data.scheme "
            f"({' or '.join(of)}), or give the two points, such as data.normaliser=36,45"
        )
    return DatasetSpec(
        name=name,
        landmarks=landmarks,
        normaliser=normaliser,
        eyes=None if normaliser in ("box", "image") else eyes,
        mirror=known and known.mirror,
        landmark_names=landmark_names,
        splits=splits,
        scheme=scheme,
    )


def image_order(points: np.ndarray, groups=_HUMAN36M_SIDES) -> np.ndarray:
    """For each image which joint stands where the image's left and right put it, [...,L] int64; see `image_sides`.

    >>> image_order(np.zeros((32, 2)))[:8].tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    landmarks = points.shape[-2]
    order = np.broadcast_to(np.arange(landmarks), points.shape[:-1])
    for pairs in groups:
        a, b = pairs[0]
        turned = points[..., a, 0] > points[..., b, 0]  # False where one of the two is not annotated
        order = np.where(turned[..., None], np.array(mirror_permutation(landmarks, *pairs))[order], order)
    return order


def image_sides(points: np.ndarray) -> np.ndarray:
    """Joints of Human3.6M by their side in the image, [...,32,2] -> [...,32,2].

    A method without labels cannot tell a person's front from the back, so the official evaluation of Mallis et al. 2020
    calls left what is left in the image: arms and hips change sides where x(1) > x(6), legs where x(2) > x(7).

    >>> points = np.zeros((32, 2)); points[1] = 5, 1; points[6] = 2, 1
    >>> image_sides(points)[[1, 6]].tolist()
    [[2.0, 1.0], [5.0, 1.0]]
    """
    return np.take_along_axis(points, image_order(points)[..., None], -2)


class Source:
    """One split on the host, with random access. Subclasses set the attributes and define `image`.

    Attributes:
      spec: DatasetSpec.
      names: [N] file names relative to the data folder; the row number is the identity of an example.
      frame_size: F, the side of the square frame in pixels.
      landmarks: [N,L,2] float32 `(x, y)` in pixels of the FRAME, NaN where not annotated; None without annotation.
      visible: [N,L] bool, False where hidden or not annotated; None without annotation.
      frame_maps: [N,4] float64, from the upright file to the frame (`ops/coordinates.file_to_frame`).
      file_sizes: [N,2] int32 (height, width) of the upright file.
      columns: other columns of the annotation, {name: list of N strings}.
      data_dir: the data folder, to which the names of other files in `columns` are relative; None without files.
      skipped: files of the folder that are no images of it: of another kind, or left out as `on_bad_file` says.
      where: the folder, for messages; empty without files.
      checked: whether every image has been decoded already.
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
    data_dir: str | None = None
    fingerprint: str
    skipped: tuple[Skipped, ...] = ()
    where: str = ""
    checked: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def place(self, row: int) -> str:
        """Where a row was read, for messages."""
        return self.names[row]

    def image(self, row: int) -> np.ndarray:
        """Image of one row in the frame, [F,F,3] uint8. May be called from many threads."""
        raise NotImplementedError

    def broken(self) -> list[BadFile]:
        """Decodes every image, as small as may be: those that cannot be, under their `names`."""
        return []

    def mask(self, row: int) -> np.ndarray | None:
        """Where the upright file of one row shows the object, [H,W] bool; None where `columns` alone may know it."""
        del row

    def encoded(self, row: int) -> bytes:
        """The image of one row as an encoded file; where there is none, the frame as PNG."""
        out = io.BytesIO()
        Image.fromarray(self.image(row)).save(out, format="PNG", compress_level=1)
        return out.getvalue()

    def images(self, rows: Iterable[int] | None = None) -> np.ndarray:
        """Images of the rows given (all by default) in the frame, [n,F,F,3] uint8, decoded by several threads.

        Raises UserError that names all of them that cannot be decoded.
        """
        rows = range(len(self)) if rows is None else list(rows)
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
                pool.shutdown(cancel_futures=True)  # else every other image is still decoded before the error shows
                raise
        if bad:
            raise bad_files([bad[place] for place in sorted(bad)], len(rows), self.where)
        return out


class BadFileWarning(UserWarning):
    """Files were left out, as they cannot be read."""


def broken(names: Sequence[str], check: Callable[[int], BadFile | None]) -> dict[int, BadFile]:
    """The rows for which `check` finds an error, in several threads, under their names."""
    with ThreadPoolExecutor(decode_threads()) as pool:
        found = enumerate(pool.map(check, range(len(names))))
    return {row: BadFile(names[row], error.why) for row, error in found if error is not None}


def sort_out(names: Sequence[str], heads: Sequence[Any], check, on_bad_file: str, where: str) -> dict[int, BadFile]:
    """The rows that cannot be used, and why, if they are to be left out.

    Args:
      names: of all rows.
      heads: what was read of each, or the BadFile that came of it.
      check: decodes one row, see `broken`.
      on_bad_file: `error` raises for bad heads and decodes nothing; `skip` decodes all others and warns.
      where: the folder, for messages.

    Raises:
      UserError: another word; files that cannot be read, all of them named; or none that can.
    """
    if on_bad_file not in ("error", "skip"):
        raise UserError(f"data.on_bad_file is {on_bad_file!r}; use error or skip")
    bad = {row: BadFile(names[row], head.why) for row, head in enumerate(heads) if isinstance(head, BadFile)}
    if on_bad_file == "error":
        if bad:
            raise bad_files(list(bad.values()), len(names), where)
        return {}
    bad |= broken(names, lambda row: None if row in bad else check(row))
    if bad:
        bad = {row: bad[row] for row in sorted(bad)}
        error = str(bad_files(list(bad.values()), len(names), where)).partition("; mend or remove")[0]
        if len(bad) == len(names):
            raise UserError(f"{error}; there is nothing left")
        warnings.warn(f"{error}; they are left out", BadFileWarning, stacklevel=4)
    return bad


def set_sides(source: Source, sides: str = "auto") -> None:
    """Makes `left` and `right` of a source's landmarks mean what `sides` says, in place; the protocol id follows.

    Args:
      source: its `landmarks`, `visible` and `spec` change; without landmarks nothing does.
      sides: `object` keeps the annotation; `image` goes by the image (`image_sides`); `auto` is `image` for the scheme
        `human36m_32`, as in the official evaluation of Mallis et al. 2020, else what the source has.

    Raises:
      UserError: another word, `image` for landmarks whose partners are unknown, or `object` for a prepared data set
        that was written by image sides, which does not hold the annotation any more.
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


def annotated(source: Source) -> np.ndarray:
    """[N,L] bool, True where a point has coordinates, whether it is visible or not.

    Raises UserError when the source has no landmarks.
    """
    if source.landmarks is None:
        raise UserError(f"the data set {source.spec.name} has no landmarks; give a csv with columns x0,y0,x1,y1,...")
    return np.isfinite(source.landmarks).all(-1)


def labelled(source: Source) -> np.ndarray:
    """Increasing numbers of the rows that have an annotated point, visible or not; none without landmarks."""
    if source.landmarks is None:
        return np.arange(0)
    return np.flatnonzero(annotated(source).any(1))


def decode_threads() -> int:
    """Threads that keep the cores busy while some of them wait for files."""
    return min(32, (os.cpu_count() or 1) + 4)


def fingerprint_of(*parts) -> str:
    """16 hexadecimal digits of anything that prints the same everywhere.

    >>> fingerprint_of('a', 1) == fingerprint_of('a', 1) != fingerprint_of('a', 2)
    True
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode() + b"\0")
    return digest.hexdigest()[:16]
