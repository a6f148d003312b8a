"""The zoom-out study: landmarks of objects that are smaller in the image than those of training (LEAD, figures 9, 10).

A square of the side max(width, height) of the object's box, about the same centre, is enlarged by a random factor: of
U(1, 1.5) for training images and of U(1, 2) for test images. The square becomes the frame, of which the network sees
the central part. A regressor that is trained on the first is measured on the second by ranges of the factor, of which
those up to 1.5 were seen in training.

Boxes are the csv columns of `data.objects.BOX`, or those of the data set's masks. Without either the object is what the
frame shows of the photo. Beyond the photo its border is repeated; photos that were cropped to the object before have
no surroundings, so there the study measures such borders, too. The report has the share of views that reach beyond
their photos.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from uld_jax.data import decode, objects
from uld_jax.data.specs import Source, decode_threads
from uld_jax.evaluation.dense.features import Views, central, margin
from uld_jax.evaluation.dense.protocols import DenseProtocol
from uld_jax.evaluation.missing import known_mean, or_none
from uld_jax.ops import coordinates

SEEN, MOST = 1.5, 2.0  # largest factors of training and of test images
WIDTH = 0.1  # of a range of factors
_LONGEST = 2048  # pixels to which larger photos are reduced before they are cut


def factors(rows: int, test: bool, seed: int = 0) -> np.ndarray:
    """The factors of a split's images, [N] float64; those of an image depend on the seed and its row alone."""
    return np.random.default_rng((seed, int(test))).uniform(1, MOST if test else SEEN, rows)


def has_boxes(source: Source) -> bool:
    """Tell whether the objects of a source have boxes."""
    return set(objects.BOX) <= set(source.columns) or source.mask(0) is not None


def object_maps(source: Source, rows, boxed: bool) -> np.ndarray:
    """Maps [n,4] float64 from the files of some rows to the frame that shows the square around the object.

    `boxed` is True for the square around the object's box, False for what the source's own frame shows. Raises
    UserError for boxes that cannot be used.
    """
    if not boxed:
        return np.asarray(source.frame_maps, np.float64)[rows]
    corners = objects.boxes(source)[rows].reshape(-1, 2, 2).astype(np.float64)
    corners = coordinates.frame_to_file(corners, source.frame_maps[rows])
    scale = source.frame_size / (corners[:, 1] - corners[:, 0]).max(-1)
    shift = (source.frame_size - 1) / 2 - scale[:, None] * corners.mean(1)
    return np.concatenate([scale[:, None], scale[:, None], shift], -1)


def zoomed(maps: np.ndarray, factor: np.ndarray, frame: int) -> np.ndarray:
    """Maps [n,4] of squares that are enlarged by factors [n] about the centre of a frame of `frame` pixels.

    >>> zoomed(np.array([[2.0, 2.0, 0.0, 0.0]]), np.array([2.0]), 5).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """
    centre, factor = (frame - 1) / 2, np.asarray(factor)[:, None]
    return np.concatenate([maps[:, :2] / factor, (maps[:, 2:] - centre) / factor + centre], -1)


def window(pixels: np.ndarray, fmap: np.ndarray, size: int) -> np.ndarray:
    """Show a photo [H,W,3] uint8 by a map of its points to a square: [size,size,3] uint8.

    Shrinking is antialiased; beyond the photo its border repeats.
    """
    low = (-0.5 - fmap[2:]) / fmap[:2] + 0.5  # of the square, (x, y) from the photo's left and upper edges
    high = (size - 0.5 - fmap[2:]) / fmap[:2] + 0.5
    before = np.maximum(np.ceil(-low), 0).astype(int)
    after = np.maximum(np.ceil(high - pixels.shape[1::-1]), 0).astype(int)
    pixels = np.pad(pixels, ((before[1], after[1]), (before[0], after[0]), (0, 0)), mode="edge")
    last = np.array(pixels.shape[1::-1], np.float64)
    box = np.concatenate([np.clip(low + before, 0, last), np.clip(high + before, 0, last)])
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=tuple(box.tolist()), reducing_gap=3.0))


class Zoomed(NamedTuple):
    """Views of objects at other sizes.

    Attributes:
      views: images and points.
      inside: [N,L] bool, True for annotated points inside their view; others neither train nor count.
      beyond: [N] bool, True for views that reach beyond their photos.
    """

    views: Views
    inside: np.ndarray
    beyond: np.ndarray


def zoomed_views(source: Source, rows, factor, protocol: DenseProtocol, *, boxed: bool) -> Zoomed:
    """Read the views of some rows of a source, enlarged by factors [n], from the whole photos; see `object_maps`."""
    rows, side, first = np.asarray(rows), protocol.side, margin(protocol)
    maps = zoomed(object_maps(source, rows, boxed), factor, protocol.frame)
    images = np.empty((len(rows), side, side, 3), np.uint8)

    def load(place):
        row, fmap = rows[place], maps[place]
        pixels = decode.decode_picture(source.encoded(int(row)), longest=_LONGEST)
        # From pixels of the photo, which may have been reduced, to those of the file, and then to the frame.
        height, width = source.file_sizes[row]
        ratio = np.array([width, height]) / pixels.shape[1::-1]
        shown = np.concatenate([fmap[:2] * ratio, fmap[2:] + fmap[:2] * (0.5 * ratio - 0.5)])
        images[place] = central(window(pixels, shown, protocol.frame)[None], protocol)[0]

    with ThreadPoolExecutor(decode_threads()) as pool:
        try:
            for _ in pool.map(load, range(len(rows))):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    files = coordinates.frame_to_file(np.asarray(source.landmarks[rows], np.float64), source.frame_maps[rows])
    xy = coordinates.file_to_frame(files, maps) - first
    inside = ((xy >= -0.5) & (xy <= side - 0.5)).all(-1)  # False for NaN
    corners = coordinates.frame_to_file(np.array([[first - 0.5] * 2, [first + side - 0.5] * 2])[None], maps)
    last = source.file_sizes[rows][:, ::-1] - 0.5
    beyond = ((corners[:, 0] < -0.5) | (corners[:, 1] > last)).any(-1)
    return Zoomed(Views(images, xy.astype(np.float32)), inside, beyond)


class Range(NamedTuple):
    """Error of the test images whose factors lie in a range.

    Attributes:
      low, high: the range, [low, high).
      seen: True if training had such factors.
      images: number of images.
      error: mean error in percent of the normaliser; None for no image.
    """

    low: float
    high: float
    seen: bool
    images: int
    error: float | None


def by_factor(errors: np.ndarray, factor: np.ndarray) -> list[Range]:
    """Mean errors [N,L] of images by ranges of their factors [N].

    >>> [r.error for r in by_factor(np.array([[1.0], [3.0], [7.0]]), np.array([1.01, 1.09, 1.95]))][::9]
    [2.0, 7.0]
    """
    count = round((MOST - 1) / WIDTH)
    number = np.clip(np.floor((np.asarray(factor) - 1) / WIDTH + 1e-9), 0, count - 1).astype(int)
    ranges = []
    for i in range(count):
        low, high = round(1 + i * WIDTH, 6), round(1 + (i + 1) * WIDTH, 6)
        here = number == i
        ranges.append(Range(low, high, high <= SEEN, int(here.sum()), or_none(known_mean(errors[here]))))
    return ranges


def seen_and_unseen(errors: np.ndarray, factor: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean errors [N,L] of the images whose factors were seen in training, and of the others."""
    seen = np.asarray(factor) <= SEEN
    return or_none(known_mean(errors[seen])), or_none(known_mean(errors[~seen]))
