"""Decoding of image files of any kind into the square frame that networks see.

The geometry is exactly `ops.coordinates.frame_map`: that map gives the position of a point of the upright file to a
fraction of a pixel, for every shortcut of a decoder.

The content of a file selects Pillow's decoder of that one format (`listing.kind_of`). Large photos take bounded memory:
JPEG files are reduced while they are decoded, others in bands afterwards, all threads together stay within `MEMORY`,
and a picture that would take more than `MOST_MEMORY` is refused. Pillow's own limits, which warn of attacks, are not
used.
"""

import contextlib
import io
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from uld_jax.data import listing, tones
from uld_jax.data.listing import AbsentFile, BadFile, is_local
from uld_jax.errors import UserError
from uld_jax.ops import coordinates

MOST_MEMORY = 900_000_000  # bytes that one picture may take while it is decoded
MEMORY = 1_000_000_000  # bytes that all pictures being decoded may take together

_ORIENTATION = 0x0112  # the EXIF tag
TURNED = (5, 6, 7, 8)  # orientations that exchange width and height
# (rows, columns) that an orientation reverses, after the exchange of axes.
_FLIPS = {2: (0, 1), 3: (1, 1), 4: (1, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
_WHOLE = 1 << 24  # pixels up to which an image is converted at once
_BAND = 1 << 21  # pixels of a larger image that are converted at a time
_NAMED = 20  # most files for which a warning about several pages is given
# Bytes per pixel, measured with Pillow 13: for the decoder, for Pillow's pixels otherwise, and for conversion to RGB.
_DECODER_BYTES = {"WEBP": 16, "AVIF": 12, "HEIF": 12}
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
_TO_RGB_BYTES = {"RGB": 0, "L": 4, "P": 4, "1": 5, "CMYK": 4}
_INVERTED = 0x0106, 0  # TIFF: PhotometricInterpretation, WhiteIsZero
_COMPRESSION, _ROWS_PER_STRIP, _TILE_WIDTH, _DNG = 0x0103, 0x0116, 0x0142, 0xC612  # TIFF


class FirstPageWarning(UserWarning):
    """A warning that a file has several pages or frames, of which the first is read."""


def decode_image(file, frame_size: int, fit: str = "pad") -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Read one image and fit it into the square frame.

    The photo is turned upright by its EXIF tag first. Grey, palette, CMYK and deep images become eight-bit RGB, grey
    images with their own black and white (see `tones`). Transparent images are laid on white. Only the first of several
    pages or frames is read. Shrinking is antialiased. The part that `fit='pad'` leaves empty repeats the image's
    border.

    Args:
      file: path (`str` or path object, also `gs://`), or the encoded bytes.
      frame_size: F, side of the frame in pixels.
      fit: `pad`, `crop` or `stretch` (see `ops.coordinates.frame_map`).

    Returns:
      frame [F,F,3] uint8; map [4] float64 from the upright file to the frame; (height, width) of the upright file.

    Raises:
      BadFile: the file is not a readable picture, or is too large to decode; the message names the path if there is
        one.

    >>> out = io.BytesIO(); Image.new('L', (200, 100)).save(out, 'PNG')
    >>> frame, fmap, size = decode_image(out.getvalue(), 50)
    >>> frame.shape, fmap.tolist(), size
    ((50, 50, 3), [0.25, 0.25, -0.375, 12.125], (100, 200))
    """
    with _opened(file) as opened:
        turn = orientation(opened.image)
        height, width = opened.image.height, opened.image.width
        # The frame is square and every fit is centred, so turning the frame equals turning the file, and costs less.
        raw_map = coordinates.frame_map((height, width), (frame_size, frame_size), fit)
        image, shrunk, scale = _read(opened, raw_map[:2])
        frame = _resample(image, shrunk, raw_map, scale, frame_size)
    size = (width, height) if turn in TURNED else (height, width)
    fmap = coordinates.frame_map(size, (frame_size, frame_size), fit)
    return turn_upright(frame, turn), fmap, size


def fit_array(pixels: np.ndarray, frame_size: int, fit: str = "pad") -> tuple[np.ndarray, np.ndarray]:
    """Fit pixels [H,W,3] uint8 of an upright image to a frame [F,F,3] uint8 and map [4], as `decode_image` does."""
    fmap = coordinates.frame_map(pixels.shape[:2], (frame_size, frame_size), fit)
    wh = np.array(pixels.shape[1::-1], np.float64)
    return _resample(Image.fromarray(np.ascontiguousarray(pixels)), wh, fmap, fmap[:2], frame_size), fmap


def array_pixels(image) -> np.ndarray:
    """Convert an image in memory to [H,W,3] uint8, by the same rules as an image from a file (`decode_image`).

    Args:
      image: RGB [H,W,3], grey [H,W] or [H,W,1], or RGBA [H,W,4], which is laid on white; uint8, or uint16, whose white
        is the end of the range that its colours need (`tones.tones`), and whose opaque alpha is 65535.

    Raises:
      UserError: an image of another shape or type; the message continues a sentence that begins with the image's name.
    """
    image = np.asarray(image)
    grey = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    fits = grey.ndim == 2 or (grey.ndim == 3 and grey.shape[2] in (3, 4))
    if image.dtype not in (np.uint8, np.uint16) or not fits or not image.size:
        shape = "x".join(map(str, image.shape))
        raise UserError(
            f"is {image.dtype} of {shape or 'no size'}; give uint8 (or uint16) RGB [H,W,3], grey [H,W] or RGBA [H,W,4]"
        )
    if grey.dtype == np.uint16 and grey.ndim == 3:
        colours = tones.to_bytes(grey[..., :3], tones.tones(grey[..., :3]))
        grey = np.concatenate([colours, tones.to_bytes(grey[..., 3:], tones.Tones(0, 65535))], -1)
    loaded = Image.fromarray(np.ascontiguousarray(grey))
    return np.asarray(to_rgb(loaded, tones.of_image(loaded)))


def decode_picture(file, longest: int = 1024, as_is: bool = False) -> np.ndarray:
    """Read one image for display: upright, RGB, in its own proportions, [h,w,3] uint8.

    Images whose longer side exceeds `longest` pixels are shrunk to that length. `ops.coordinates.rescale_points` maps
    points of the file to the result. `as_is` keeps the values of grey images, which masks need. Raises BadFile as
    `decode_image` does.
    """
    with _opened(file) as opened:
        turn = orientation(opened.image)
        wh = np.array(opened.image.size)
        small = np.maximum(np.round(wh * min(1.0, longest / wh.max())), 1).astype(int)
        rgb, shrunk, _ = _read(opened, small / wh, as_is)
        if small.tolist() != list(rgb.size) or shrunk.tolist() != list(rgb.size):
            box = (0, 0, *np.minimum(shrunk, rgb.size).tolist())
            rgb = rgb.resize(tuple(small.tolist()), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
        return turn_upright(np.asarray(rgb), turn)


class Header(NamedTuple):
    """Facts about a picture that are known without decoding it.

    Attributes:
      size: (height, width) of the upright picture.
      file_bytes: length of the file, in bytes.
      start: first 4096 bytes of the file.
      turn: EXIF orientation, 1 to 8.
    """

    size: tuple[int, int]
    file_bytes: int
    start: bytes
    turn: int = 1


def header(file) -> Header:
    """Read the header of one image and check that it can be decoded in bounded memory. Raises BadFile if not."""
    with _opened(file) as opened:
        image, handle = opened.image, opened.handle
        turn = orientation(image)
        size = (image.height, image.width) if turn not in TURNED else (image.width, image.height)
        where = handle.tell()
        total = handle.seek(0, os.SEEK_END)
        handle.seek(0)
        start = handle.read(4096)
        handle.seek(where)
        _shrink_while_decoding(image, np.zeros(2))
        _memory_needed(opened)
    return Header(size, total, start, turn)


def image_size(file) -> tuple[int, int]:
    """Read (height, width) of the upright image from its header. Raises BadFile as `decode_image` does."""
    return header(file).size


def check(file) -> BadFile | None:
    """Decode one image, as small as its decoder can, to test whether it is complete; return the error if not."""
    try:
        with _opened(file) as opened:
            _read(opened, np.zeros(2))
    except BadFile as error:
        return error
    return None


# All errors that Pillow raises for damaged files; damaged headers cause errors deep in its parsers.
_BROKEN = (
    Image.DecompressionBombError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    MemoryError,
    ArithmeticError,
    struct.error,
)


class _Room:
    """A memory budget shared by threads, in order of arrival, so that a large request is not overtaken for ever."""

    def __init__(self, most: int):
        self._most = self._left = most
        self._changed, self._queue = threading.Condition(), threading.Lock()

    @contextlib.contextmanager
    def taken(self, amount: int):
        amount = min(amount, self._most)
        with self._queue, self._changed:
            self._changed.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()


_ROOM = _Room(MEMORY)


class _Opened(NamedTuple):
    """An open image that is not loaded yet."""

    image: Image.Image
    handle: io.BufferedIOBase
    name: str  # for messages
    size: tuple[int, int]  # (width, height) of the whole file, before any reduction
    deep: bool  # more than eight bits a channel

    @property
    def kind(self) -> str:
        return self.image.format


@contextlib.contextmanager
def _opened(file) -> Iterator[_Opened]:
    """Open an image lazily from a path or from bytes; any error of reading inside the context becomes a BadFile."""
    raw = isinstance(file, bytes | bytearray | memoryview)
    name = "the image" if raw else os.fspath(file)
    handle = image = None
    try:
        if raw:
            handle = io.BytesIO(file)
        elif is_local(file):
            handle = listing.open_local(file)
        else:
            handle = io.BytesIO(epath.Path(file).read_bytes())
        start = handle.read(64)
        if why := listing.why_other(name, start):
            raise BadFile(name, why)
        handle.seek(0)
        image = _factory(name, start)(handle, "" if raw or not is_local(file) else name)
        if not image.width or not image.height:
            raise ValueError("its width or height is zero")
        if image.format == "TIFF" and _DNG in image.tag_v2:
            raise BadFile(name, "it is a camera raw file; develop it to JPEG or TIFF")
        yield _Opened(image, handle, name, image.size, any(";16" in str(tile) for tile in image.tile))
    except UserError:
        raise
    except FileNotFoundError as e:
        raise AbsentFile(name, "it is a link to nothing" if os.path.islink(name) else _reason(e)) from None
    except _BROKEN as e:
        raise BadFile(name, _reason(e)) from None
    finally:
        if image is not None:
            image.close()
        if handle is not None:
            handle.close()


def _factory(name, start):
    """Return Pillow's class for the format of a picture, which opens the file without checking its size."""
    kind = listing.kind_of(start)
    if kind == "HEIF" and kind not in Image.OPEN:
        try:
            import pillow_heif
        except ImportError:
            raise BadFile(name, "it is HEIC, which the package pillow-heif reads; pip install pillow-heif") from None
        pillow_heif.register_heif_opener()
    if kind == "WEBP":  # its decoder allocates memory for all pixels when opened
        width, height = _webp_size(start)
        _refuse_large(name, kind, (width, height), width * height * _DECODER_BYTES[kind])
    if kind not in Image.OPEN:
        Image.init()
    if kind not in Image.OPEN:
        raise BadFile(name, f"this version of Pillow reads no {kind}; pip install --upgrade pillow")
    return Image.OPEN[kind][0]


def _webp_size(start: bytes) -> tuple[int, int]:
    """Read (width, height) from the first bytes of a WebP file; (1, 1) if damaged, which the decoder reports."""
    chunk = start[12:16]
    if chunk == b"VP8 " and len(start) >= 30:
        width, height = struct.unpack("<HH", start[26:30])
        return width & 0x3FFF, height & 0x3FFF
    if chunk == b"VP8X" and len(start) >= 30:
        return 1 + int.from_bytes(start[24:27], "little"), 1 + int.from_bytes(start[27:30], "little")
    if chunk == b"VP8L" and len(start) >= 25:
        bits = int.from_bytes(start[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return 1, 1


def _reason(error) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error) or type(error).__name__).replace("\n", " ").rstrip(".")


_said: set[str] = set()


def _say_first_page(opened) -> None:
    """Warn, once for each file, of pages or frames that are not read. Further photos in MPO or HEIC are no pages."""
    image, name = opened.image, opened.name
    if image.format not in ("TIFF", "GIF", "WEBP", "PNG", "AVIF") or not getattr(image, "is_animated", False):
        return
    if name in _said or len(_said) > _NAMED:
        return
    _said.add(name)
    what = f"{name} has several {'pages' if image.format == 'TIFF' else 'frames'}; the first is read"
    if len(_said) > _NAMED:
        what = "there are more files with several pages or frames; of each the first is read"
    warnings.warn(what, FirstPageWarning, stacklevel=3)


def _read(opened: _Opened, scale, as_is: bool = False) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Decode an image as eight-bit RGB, at least twice as fine as the frame map's `scale` [2] requires.

    Returns the image, (width, height) of the whole image in its pixels (not rounded), and the remaining scale.
    """
    image = opened.image
    _say_first_page(opened)
    shrunk, left = _shrink_while_decoding(image, scale)
    with _ROOM.taken(_memory_needed(opened)):
        if image.format == "TIFF" and image.width * image.height > _WHOLE:
            # Otherwise Pillow makes the buffer, and warns of an attack from 89 million pixels on.
            image.im = Image.core.new(image.mode, getattr(image, "_tile_size", image.size))
        image.load()
        _refuse_dark(opened)
        found = tones.of_image(image) if not as_is or image.mode in tones.DEEP else None
        inverted = image.format == "TIFF" and image.tag_v2.get(_INVERTED[0]) == _INVERTED[1]
        factor = np.clip(np.floor(0.5 / np.maximum(left, 1e-9)), 1, image.size).astype(int)
        if image.width * image.height <= _WHOLE or factor.max() == 1:
            return to_rgb(image, found, inverted), shrunk, left
        small = _in_bands(image, factor, lambda band: to_rgb(band, found, inverted))
        image.close()
        return small, shrunk / factor, left * factor


def _in_bands(image, factor, convert) -> Image.Image:
    """Reduce an image by whole numbers (x, y) to the mean of each cell, and convert it some rows at a time."""
    fx, fy = (int(f) for f in factor)
    out = Image.new("RGB", (-(-image.width // fx), -(-image.height // fy)))
    rows = max(_BAND // image.width // fy, 1) * fy
    for top in range(0, image.height, rows):
        band = convert(image.crop((0, top, image.width, min(top + rows, image.height))))
        out.paste(band.reduce((fx, fy)), (0, top // fy))
    return out


def _memory_needed(opened: _Opened) -> int:
    """Estimate the most bytes that decoding takes, at the size to which the decoder reduces.

    Raises BadFile if the estimate exceeds `MOST_MEMORY`.
    """
    image = opened.image
    pixels = image.width * image.height
    need = pixels * (_DECODER_BYTES.get(image.format) or _BYTES.get(image.mode, 4))
    need += min(pixels, _WHOLE if pixels <= _WHOLE else _BAND) * _TO_RGB_BYTES.get(image.mode, 16)
    if image.format == "TIFF":
        tags = image.tag_v2
        if tags.get(_COMPRESSION, 1) != 1 and _TILE_WIDTH not in tags:  # strips are decoded whole
            need += image.width * min(tags.get(_ROWS_PER_STRIP, image.height), image.height) * 4
        need += pixels * _BYTES.get(image.mode, 4) if tags.get(_ORIENTATION, 1) != 1 else 0  # turned by a copy
    if image.info.get("progressive"):  # all coefficients are held at once, at full size
        areas = [h * v for _, h, v, _ in image.layer]
        need += int(2 * opened.size[0] * opened.size[1] * sum(areas) / max(areas))
    _refuse_large(opened.name, image.format, opened.size, need)
    return need


def _refuse_large(name, kind, size, need) -> None:
    if need > MOST_MEMORY:
        raise BadFile(
            name,
            f"its {size[0]} x {size[1]} pixels take {need / 1e6:.0f} MB to decode from {kind}, reduced as far as its "
            f"decoder can, and the limit is {MOST_MEMORY / 1e6:.0f} MB; make it smaller, or save it as baseline JPEG",
        )


def _refuse_dark(opened: _Opened) -> None:
    """Raise BadFile for 12-bit colour in 16 bits, because Pillow keeps the upper eight bits, which are nearly black."""
    if opened.deep and opened.image.mode in ("RGB", "RGBA", "LA", "CMYK"):
        sample = opened.image.resize((256, 256), Image.Resampling.NEAREST).convert("RGB")
        highest = max(high for _, high in sample.getextrema())
        if highest < 64:
            raise BadFile(
                opened.name,
                f"it has 16 bits a channel and uses only {highest * 256 + 255} of 65535 values; save it with 8 bits",
            )


def orientation(image: Image.Image) -> int:
    """Read the EXIF orientation 1 to 8 of an opened image; 1 if the tag is absent or damaged.

    The result is always 1 for TIFF, which Pillow turns itself.
    """
    if image.format == "TIFF":
        return 1
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except _BROKEN:  # a damaged tag block; the pixels may still be intact
        return 1
    return turn if turn in range(1, 9) else 1


def turn_upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Turn pixels [H,W,...] from their stored to their upright orientation, by EXIF orientation 1 to 8."""
    if turn in TURNED:
        pixels = pixels.swapaxes(0, 1)
    flips = _FLIPS.get(turn, (0, 0))
    pixels = pixels[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]
    return np.ascontiguousarray(pixels)


def turn_points(points: np.ndarray, turn: int, size: tuple[int, int]) -> np.ndarray:
    """Turn points [...,2] `(x, y)` of the stored file to the upright file of `size` (height, width)."""
    rows, columns = _FLIPS.get(turn, (0, 0))
    x, y = np.moveaxis(points[..., ::-1] if turn in TURNED else points, -1, 0)
    return np.stack([size[1] - 1 - x if columns else x, size[0] - 1 - y if rows else y], -1)


def to_rgb(image: Image.Image, found: tones.Tones | None = None, inverted: bool = False) -> Image.Image:
    """Convert a PIL image to eight-bit RGB: transparent images on white, grey images by `found` (`tones.of_image`)."""
    deep = image.mode in tones.DEEP
    if not deep and image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA") else "RGBA")
    elif not deep and image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    image = tones.applied(image, found, inverted)
    if image.mode in ("LA", "RGBA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _shrink_while_decoding(image, scale):
    """Set up `image`, not yet loaded, so that the JPEG decoder drops resolution that the frame cannot show.

    Returns (width, height) of the whole image in pixels of the shrunk image (not rounded), and the remaining scale.
    """
    wh = np.asarray(image.size, np.float64)
    # Twice as fine as needed, so that the antialiasing filter still has pixels to average.
    wanted = np.ceil(wh * np.minimum(scale * 2, 1)).astype(int)
    done = image.draft(None, tuple(int(v) for v in np.maximum(wanted, 1))) if image.format in ("JPEG", "MPO") else None
    # The decoder rounds the size up; the grid of its pixels starts at the upper left and is finer by a whole number.
    shrunk = np.asarray(done[1][2:], np.float64) if done else wh
    return shrunk, scale * wh / shrunk


def _resample(image, wh, fmap, scale, size) -> np.ndarray:
    """Resample RGB to [size,size,3]; `wh`, `scale` are those of `_shrink_while_decoding`, `fmap` that of the file."""
    # Relative to the image's left edge, not its first pixel centre, the frame map is a scale and a margin.
    margin = fmap[2:] - 0.5 * fmap[:2] + 0.5
    # Frame pixels that lie entirely within the image; at least one, even for a very thin image.
    low = np.maximum(np.ceil(margin - 1e-6), 0)
    high = np.minimum(np.floor(size - margin + 1e-6), size)
    thin = high <= low
    middle = np.clip(np.floor(size / 2), 0, size - 1)
    low, high = np.where(thin, middle, low).astype(int), np.where(thin, middle + 1, high).astype(int)
    first = np.clip((low - margin) / scale, 0, wh)
    last = np.clip((high - margin) / scale, 0, wh)
    # `box` takes fractions of pixels, and the filters widen with the scale, so this is exact and antialiased.
    box = tuple(np.minimum(np.concatenate([first, last]), np.tile(image.size, 2)).tolist())
    inner = image.resize(tuple((high - low).tolist()), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    pixels = np.asarray(inner)
    if (low > 0).any() or (high < size).any():
        pixels = np.pad(pixels, ((low[1], size - high[1]), (low[0], size - high[0]), (0, 0)), mode="edge")
    return pixels
