"""From grey values of any depth to eight bits.

A file says how many bits a value has, not how many are used: 12-bit data lie in 16-bit files, thermal counts between
21,000 and 24,000, floats in 0..1 or in 0..4095. Of every grey picture, whatever its depth, black is 0 (or the lowest
value, if that is negative) and white the end of the range that its values need: the next power of two, less one (of
floats up to 32, the next power of two). So a picture gives the same landmarks as its copy of another depth. Where the
values span less than a quarter of that, black and white are the lowest and the highest value. One value in 10,000 at
either end is not counted, so that hot pixels decide nothing.

An eight-bit picture whose values reach 128 and span 64 stays as it is, as do those that span fewer than 32 levels (they
show nothing, or are masks) and all that have colour.

Each picture is treated by itself, not by the range of its folder: then its landmarks depend on nothing but itself, and
training and `predict` see the same picture. What is lost is the absolute brightness within a series, which landmarks do
not rest on.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

_IGNORED = 1e-4  # of the values, at each end
_LEVELS = 32  # least number of levels that show something
_SAMPLE = 1 << 20  # pixels that are looked at
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


class Tones(NamedTuple):
    """The values that become 0 and 255."""

    black: float
    white: float

    @property
    def is_plain(self) -> bool:
        """Whether eight-bit values stay what they are."""
        return self == (0, 255)


def tones(values: np.ndarray) -> Tones:
    """What is black and what is white in an array of values, see the module. Values that are not finite do not count.

    >>> tones(np.arange(4096, dtype=np.uint16)), tones(np.arange(200, dtype=np.uint8)), tones(np.linspace(0, 1, 99))
    (Tones(black=0.0, white=4095.0), Tones(black=0.0, white=255.0), Tones(black=0.0, white=1.0))
    """
    low, high = _ends(values)
    whole = values.dtype.kind in "ui"
    if values.dtype == np.uint8 and high - low < _LEVELS:
        return Tones(0.0, 255.0)
    black = min(low, 0.0)
    levels = high - low if whole else math.inf
    if high <= 0:
        white = 255.0 if whole else 1.0
    elif whole:
        # Below 32 levels only the container is known; it is taken for one of eight bits.
        white = float((1 << math.ceil(math.log2(high + 1))) - 1) if high >= _LEVELS else 255.0
    elif high <= _LEVELS:
        white = 2.0 ** math.ceil(math.log2(high))
    else:
        white = float((1 << math.ceil(math.log2(high + 1))) - 1)
    if low < high and levels >= _LEVELS and (high - low) < (white - black) / 4:
        return Tones(low, high)
    return Tones(black, white)


def _ends(values) -> tuple[float, float]:
    """Lowest and highest value, but for one in 10,000 at each end; (0, 0) if none is finite."""
    flat = values.ravel()
    if flat.dtype.kind == "f":
        flat = flat[np.isfinite(flat)]
    if not flat.size:
        return 0.0, 0.0
    off = int(flat.size * _IGNORED)
    if flat.dtype == np.uint8:
        total = np.cumsum(np.bincount(flat, minlength=256))
        return float(np.searchsorted(total, off, "right")), float(np.searchsorted(total, flat.size - off))
    part = np.partition(flat, (off, flat.size - 1 - off))
    return float(part[off]), float(part[flat.size - 1 - off])


def of_image(image: Image.Image) -> Tones | None:
    """Black and white of a loaded grey image, also of one that is kept as RGB; None for one that has colour.

    Large images are sampled, every n-th pixel.
    """
    if image.mode not in (*DEEP, "L", "LA", "P", "RGB", "RGBA"):
        return None
    nearest = Image.Resampling.NEAREST
    if image.mode in ("RGB", "RGBA") and not _is_grey(image.resize((32, 32), nearest)):
        return None  # which most photos are, found at once
    step = math.ceil(math.sqrt(image.width * image.height / _SAMPLE))
    if step > 1:
        image = image.resize((max(image.width // step, 1), max(image.height // step, 1)), nearest)
    if image.mode in ("P", "RGB", "RGBA"):
        image = image.convert("RGB")
        if not _is_grey(image):
            return None
    return tones(np.asarray(image.getchannel(0) if image.mode in ("LA", "RGB") else image))


def _is_grey(image) -> bool:
    red, green, blue = np.moveaxis(np.asarray(image)[..., :3], -1, 0)
    return bool((red == green).all() and (red == blue).all())


def to_bytes(values: np.ndarray, found: Tones, inverted: bool = False) -> np.ndarray:
    """Values -> uint8 of the same shape; what is not finite becomes black.

    >>> to_bytes(np.array([0, 2048, 4095]), Tones(0, 4095)).tolist()
    [0, 128, 255]
    """
    scaled = (values.astype(np.float32) - np.float32(found.black)) * np.float32(255 / (found.white - found.black))
    scaled = np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255)
    return ((255 - scaled if inverted else scaled) + np.float32(0.5)).astype(np.uint8)


def applied(image: Image.Image, found: Tones | None, inverted: bool = False) -> Image.Image:
    """An image of L, LA, RGB or RGBA with its tones as found; one of more bits becomes L.

    `inverted`: 0 is white, as some TIFF files have it and Pillow does not mend for deep ones.
    """
    if image.mode in DEEP:
        return Image.fromarray(to_bytes(np.asarray(image), found, inverted))
    if found is None or found.is_plain:
        return image
    table, colours = to_bytes(np.arange(256), found).tolist(), len(image.getbands()) - (image.mode in ("LA", "RGBA"))
    return image.point(table * colours + list(range(256)) * (len(image.getbands()) - colours))
