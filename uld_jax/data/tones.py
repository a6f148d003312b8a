"""Conversion of grey values of any depth to eight bits.

A file gives the number of bits of a value, not the number of bits in use: 16-bit files hold 12-bit data, thermal counts
lie between 21,000 and 24,000, floats in 0..1 or in 0..4095. In a grey picture of any depth, black is 0 (or the lowest
value, if that is negative) and white is the end of the range that its values need: the next power of two, less one (for
floats up to 32, the next power of two). Hence a picture gives the same landmarks as its copy of another depth. If the
values span less than a quarter of this range, black and white are the lowest and the highest value. One value in 10,000
at either end is ignored, so that hot pixels have no influence.

An eight-bit picture whose values reach 128 and span 64 stays as it is, and so do eight-bit pictures that span fewer
than 32 levels (they show nothing, or are masks) and all pictures with colour.

Each picture is converted independently of the range of its folder, so that its landmarks depend on the picture alone,
and training and `predict` see the same picture. The absolute brightness within a series is lost, but landmarks do not
depend on it.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

_IGNORED = 1e-4  # share of the values that is ignored at each end
_LEVELS = 32  # least number of levels of a picture that shows something
_SAMPLE = 1 << 20  # approximate number of pixels that are sampled
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


class Tones(NamedTuple):
    """The values that become 0 and 255."""

    black: float
    white: float

    @property
    def is_plain(self) -> bool:
        """True if eight-bit values stay unchanged."""
        return self == (0, 255)


def tones(values: np.ndarray) -> Tones:
    """Find black and white in an array of values, see the module. Values that are not finite are ignored.

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
        # Below 32 levels the range in use is unknown, and eight bits are assumed.
        white = float((1 << math.ceil(math.log2(high + 1))) - 1) if high >= _LEVELS else 255.0
    elif high <= _LEVELS:
        white = 2.0 ** math.ceil(math.log2(high))
    else:
        white = float((1 << math.ceil(math.log2(high + 1))) - 1)
    if low < high and levels >= _LEVELS and (high - low) < (white - black) / 4:
        return Tones(low, high)
    return Tones(black, white)


def _ends(values) -> tuple[float, float]:
    """Find the lowest and highest value, ignoring one in 10,000 at each end; (0, 0) if none is finite."""
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
    """Find black and white of a loaded grey image, also if it is stored as RGB; None for an image with colour.

    Large images are sampled at every n-th pixel.
    """
    if image.mode not in (*DEEP, "L", "LA", "P", "RGB", "RGBA"):
        return None
    nearest = Image.Resampling.NEAREST
    if image.mode in ("RGB", "RGBA") and not _is_grey(image.resize((32, 32), nearest)):
        return None  # a quick exit for most photos, which have colour
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
    """Convert values to uint8 of the same shape; values that are not finite become black, or white for +inf.

    >>> to_bytes(np.array([0, 2048, 4095]), Tones(0, 4095)).tolist()
    [0, 128, 255]
    """
    scaled = (values.astype(np.float32) - np.float32(found.black)) * np.float32(255 / (found.white - found.black))
    scaled = np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255)
    return ((255 - scaled if inverted else scaled) + np.float32(0.5)).astype(np.uint8)


def applied(image: Image.Image, found: Tones | None, inverted: bool = False) -> Image.Image:
    """Apply tones to an image of mode L, LA, RGB or RGBA; an image of more bits becomes L.

    `inverted` means that 0 is white, as in some TIFF files; Pillow does not correct this for deep images.
    """
    if image.mode in DEEP:
        return Image.fromarray(to_bytes(np.asarray(image), found, inverted))
    if found is None or found.is_plain:
        return image
    table, colours = to_bytes(np.arange(256), found).tolist(), len(image.getbands()) - (image.mode in ("LA", "RGBA"))
    return image.point(table * colours + list(range(256)) * (len(image.getbands()) - colours))
