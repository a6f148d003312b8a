"""What a data set is: its landmarks, how its error is normalised, and the interface through which it is read.

A `Source` is one split on the host: it knows every file, its size, its landmarks, and decodes any image into the square
frame (`ops/coordinates.frame_map`). Training sees a source only through `pipeline.StreamReader` or
`resident.ResidentReader`, and these take nothing but images and row numbers from it.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from uld_jax.errors import UserError

NORMALISERS = ("auto", "eyes", "box", "image")
_TWO_POINTS = re.compile(r"\s*(\d+)\s*[,-]\s*(\d+)\s*")

# The two points between which the eyes' distance is measured, by the number of landmarks.
EYES = {68: (36, 45), 5: (0, 1)}


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


# Left and right partners by the number of landmarks. 68 is the iBUG order, 5 the order eyes, nose, mouth corners.
# Contours of eyes run from the outer corner inwards on the left, from the inner corner outwards on the right.
MIRRORS = {
    68: mirror_permutation(
        68,
        *_runs((0, 16, 8), (17, 26, 5), (31, 35, 2), (36, 45, 4), (48, 54, 3), (55, 59, 2), (60, 64, 2)),
        (40, 47),
        (41, 46),
        (65, 67),
    ),
    5: mirror_permutation(5, (0, 1), (3, 4)),
}


class DatasetSpec(NamedTuple):
    """The facts about a data set that do not depend on its images.

    Attributes:
      name: short and stable; part of the protocol id.
      landmarks: L, the annotated points an image; None without annotation.
      normaliser: what the error is divided by: `eyes` (distance of the two points in `eyes`), `box`
        (sqrt(width * height) of the box around an image's annotated points), `image` (side of the frame), or two points
        chosen by the user, such as `30-45`.
      eyes: indices of the two points, for the normaliser `eyes` or two points; else None.
      mirror: permutation [L] of the points in a mirrored image; None if unknown.
      landmark_names: one name a point; () if unknown.
      splits: the splits that exist; () if any name gives all images.
    """

    name: str
    landmarks: int | None = None
    normaliser: str = "box"
    eyes: tuple[int, int] | None = None
    mirror: tuple[int, ...] | None = None
    landmark_names: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train", "test")

    @property
    def protocol(self) -> str | None:
        """The id under which errors may be compared, such as `folder_68_eyes`; None without annotation."""
        return None if self.landmarks is None else f"{self.name}_{self.landmarks}_{self.normaliser}"


def spec_of(
    name: str,
    landmarks: int | None,
    *,
    normaliser: str = "auto",
    splits: tuple[str, ...] = ("train", "test"),
    landmark_names: tuple[str, ...] = (),
) -> DatasetSpec:
    """The spec of a data set of which no more is known than its number of landmarks.

    `normaliser='auto'` takes the eyes where the number of points tells which they are (68: points 36 and 45; 5: points
    0 and 1), else the box. Two point numbers, `'30,45'`, take their distance. Raises UserError for any other word, for
    points that do not exist, and for `eyes` where the eyes are unknown.

    >>> spec_of('folder', 68).protocol, spec_of('folder', 20).protocol, spec_of('folder', 20, normaliser='3,4').protocol
    ('folder_68_eyes', 'folder_20_box', 'folder_20_3-4')
    """
    eyes = EYES.get(landmarks)
    two = _TWO_POINTS.fullmatch(normaliser)
    if two:
        eyes = int(two[1]), int(two[2])
        if eyes[0] == eyes[1] or (landmarks is not None and max(eyes) >= landmarks):
            raise UserError(f"data.normaliser is {normaliser}; give two different points below {landmarks}")
        normaliser = "eyes" if eyes == EYES.get(landmarks) else "-".join(str(n) for n in eyes)
    elif normaliser not in NORMALISERS:
        raise UserError(
            f"data.normaliser is {normaliser!r}; use one of {', '.join(NORMALISERS)} or two point numbers such as 36,45"
        )
    elif normaliser == "auto":
        normaliser = "eyes" if eyes else "box"
    if normaliser == "eyes" and landmarks is not None and eyes is None:
        raise UserError(
            f"data.normaliser=eyes needs to know the eyes, and {name} has {landmarks} landmarks (known for "
            f"{' and '.join(str(n) for n in sorted(EYES))}); use data.normaliser=box, image or two point numbers"
        )
    return DatasetSpec(
        name=name,
        landmarks=landmarks,
        normaliser=normaliser,
        eyes=None if normaliser in ("box", "image") else eyes,
        mirror=MIRRORS.get(landmarks),
        landmark_names=landmark_names,
        splits=splits,
    )


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
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)

    def image(self, row: int) -> np.ndarray:
        """Image of one row in the frame, [F,F,3] uint8. May be called from many threads."""
        raise NotImplementedError

    def encoded(self, row: int) -> bytes:
        """The image of one row as an encoded file; where there is none, the frame as PNG."""
        out = io.BytesIO()
        Image.fromarray(self.image(row)).save(out, format="PNG", compress_level=1)
        return out.getvalue()

    def images(self, rows: Iterable[int] | None = None) -> np.ndarray:
        """Images of the rows given (all by default) in the frame, [n,F,F,3] uint8, decoded by several threads."""
        rows = range(len(self)) if rows is None else list(rows)
        out = np.empty((len(rows), self.frame_size, self.frame_size, 3), np.uint8)

        def load(place):
            out[place] = self.image(int(rows[place]))

        with ThreadPoolExecutor(decode_threads()) as pool:
            try:
                for _ in pool.map(load, range(len(rows)), chunksize=1):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)  # else every other image is still decoded before the error shows
                raise
        return out


def annotated(source: Source) -> np.ndarray:
    """[N,L] bool, True where a point has coordinates, whether it is visible or not.

    Raises UserError when the source has no landmarks.
    """
    if source.landmarks is None:
        raise UserError(f"the data set {source.spec.name} has no landmarks; give a csv with columns x0,y0,x1,y1,...")
    return np.isfinite(source.landmarks).all(-1)


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
