"""From an image file of any kind to the square frame that networks see.

The geometry is exactly `ops.coordinates.frame_map`: a point of the upright file lies where that map says, to a fraction
of a pixel, whichever decoder shortcut was taken.
"""

import contextlib
import io
import os
import struct
from collections.abc import Iterator

import numpy as np
from etils import epath
from PIL import Image

from uld_jax.errors import UserError
from uld_jax.ops import coordinates

EXTENSIONS = (".jpg", ".jpeg", ".png")

_ORIENTATION = 0x0112  # the EXIF tag
_TURNED = (5, 6, 7, 8)  # orientations that exchange width and height


def list_images(folder) -> list[str]:
    """JPEG and PNG files under `folder`, at any depth, as sorted paths relative to it with `/` between the parts.

    Hidden files and folders (names that start with a dot) are left out. Raises UserError if there is no such folder.
    """
    folder = epath.Path(folder).expanduser()
    if not folder.exists():
        raise UserError(f"{folder} does not exist; give a folder of JPEG or PNG images")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a folder of JPEG or PNG images")
    found = _walk_local(os.fspath(folder)) if is_local(folder) else _walk_remote(folder)
    return sorted((n for n in found if n.lower().endswith(EXTENSIONS)), key=lambda name: name.split("/"))


def is_local(path) -> bool:
    """Whether a path lies in the machine's own file system, not in a bucket."""
    return "://" not in os.fspath(path)


def _walk_local(root: str) -> Iterator[str]:
    seen = set()  # real folders, so that a link back up does not walk for ever
    for at, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(at)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in files:
            if not file.startswith("."):
                yield os.path.relpath(os.path.join(at, file), root).replace(os.sep, "/")


def _walk_remote(folder: epath.Path) -> Iterator[str]:
    root = os.fspath(folder).rstrip("/") + "/"
    for at, folders, files in folder.walk():
        folders[:] = [f for f in folders if not f.startswith(".")]
        for file in files:
            if not file.startswith("."):
                yield os.fspath(at / file).removeprefix(root)


def decode_image(file, frame_size: int, fit: str = "pad") -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Reads one image and fits it into the square frame.

    The photo is turned upright by its EXIF tag first. Grey, palette, CMYK and 16-bit images become RGB; transparent
    ones are laid on white. Shrinking is antialiased. The part that `fit='pad'` leaves empty repeats the image's border.

    Args:
      file: path (`str` or path object, also `gs://`), or the encoded bytes.
      frame_size: F, side of the frame in pixels.
      fit: `pad`, `crop` or `stretch` (see `ops.coordinates.frame_map`).

    Returns:
      frame [F,F,3] uint8; map [4] float64 from the upright file to the frame; (height, width) of the upright file.

    Raises:
      UserError: not a readable JPEG or PNG; the sentence names the path if there is one.

    >>> out = io.BytesIO(); Image.new('L', (200, 100)).save(out, 'PNG')
    >>> frame, fmap, size = decode_image(out.getvalue(), 50)
    >>> frame.shape, fmap.tolist(), size
    ((50, 50, 3), [0.25, 0.25, -0.375, 12.125], (100, 200))
    """
    with _opened(file) as image:
        turn = orientation(image)
        height, width = image.height, image.width
        # The frame is square and every fit is centred, so turning the frame equals turning the file, and costs less.
        raw_map = coordinates.frame_map((height, width), (frame_size, frame_size), fit)
        shrunk, scale = _shrink_while_decoding(image, raw_map[:2])
        frame = _resample(to_rgb(image), shrunk, raw_map, scale, frame_size)
    size = (width, height) if turn in _TURNED else (height, width)
    fmap = coordinates.frame_map(size, (frame_size, frame_size), fit)
    return turn_upright(frame, turn), fmap, size


def fit_array(pixels: np.ndarray, frame_size: int, fit: str = "pad") -> tuple[np.ndarray, np.ndarray]:
    """Pixels [H,W,3] uint8 of an upright image -> frame [F,F,3] uint8 and map [4]: `decode_image` without a file."""
    fmap = coordinates.frame_map(pixels.shape[:2], (frame_size, frame_size), fit)
    wh = np.array(pixels.shape[1::-1], np.float64)
    return _resample(Image.fromarray(np.ascontiguousarray(pixels)), wh, fmap, fmap[:2], frame_size), fmap


def decode_picture(file, longest: int = 1024) -> np.ndarray:
    """Reads one image to be looked at: upright, RGB, in its own proportions, [h,w,3] uint8.

    Images whose longer side exceeds `longest` pixels are shrunk to that. Points of the file lie where
    `ops.coordinates.rescale_points` puts them. Raises UserError as `decode_image` does.
    """
    with _opened(file) as image:
        turn = orientation(image)
        wh = np.array(image.size)
        small = np.maximum(np.round(wh * min(1.0, longest / wh.max())), 1).astype(int)
        shrunk, _ = _shrink_while_decoding(image, small / wh)
        rgb = to_rgb(image)
        if small.tolist() != wh.tolist():
            box = (0, 0, *shrunk.tolist())
            rgb = rgb.resize(tuple(small.tolist()), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
        return turn_upright(np.asarray(rgb), turn)


def image_size(file) -> tuple[int, int]:
    """(height, width) of the upright image, from the header alone. Raises UserError as `decode_image` does."""
    with _opened(file) as image:
        size = image.height, image.width
        return size[::-1] if orientation(image) in _TURNED else size


# Whatever PIL throws at a damaged file; damaged headers reach far into its parsers.
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


@contextlib.contextmanager
def _opened(file) -> Iterator[Image.Image]:
    """A lazily opened image of a path or of bytes; whatever goes wrong inside becomes one UserError."""
    raw = isinstance(file, bytes | bytearray | memoryview)
    name = "the image" if raw else os.fspath(file)
    handle = None
    try:
        if raw:
            handle = io.BytesIO(file)
        elif is_local(file):
            handle = open(file, "rb")  # noqa: SIM115 (closed below, on every way out)
        else:
            handle = io.BytesIO(epath.Path(file).read_bytes())
        with Image.open(handle, formats=("JPEG", "PNG")) as image:
            if not image.width or not image.height:
                raise ValueError("its width or height is zero")
            yield image
    except UserError:
        raise
    except _BROKEN as e:
        empty = handle is not None and not handle.closed and not handle.seek(0, os.SEEK_END)
        raise _unreadable(name, "the file is empty" if empty else e) from None
    finally:
        if handle is not None:
            handle.close()


def _unreadable(name, reason) -> UserError:
    if isinstance(reason, Image.UnidentifiedImageError):
        reason = "its content is of another kind"
    elif isinstance(reason, OSError) and reason.strerror:
        reason = reason.strerror.lower()
    return UserError(f"{name} cannot be read as JPEG or PNG ({str(reason).rstrip('.')}); mend or remove it")


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8 of an opened image; 1 where the tag is absent or damaged."""
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except _BROKEN:  # a damaged tag block; the pixels may be perfect all the same
        return 1
    return turn if turn in range(1, 9) else 1


def turn_upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Pixels [H,W,...] as stored -> upright, by EXIF orientation 1 to 8."""
    if turn in _TURNED:
        pixels = pixels.swapaxes(0, 1)
    # (rows, columns) reversed, after the exchange of axes
    flips = {2: (0, 1), 3: (1, 1), 4: (1, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}.get(turn, (0, 0))
    pixels = pixels[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]
    return np.ascontiguousarray(pixels)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as 8-bit RGB; transparent ones on white, 16-bit ones by their upper eight bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        # A PNG of more than eight bits has sixteen, whether PIL opens it as I;16 or as I.
        return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _shrink_while_decoding(image, scale):
    """Lets the JPEG decoder drop resolution that the frame cannot show; sets up `image`, which is not yet loaded.

    Returns (width, height) of the whole image in pixels of the shrunk one (not rounded), and the scale that is left.
    """
    wh = np.asarray(image.size, np.float64)
    # Twice as fine as needed, so that the antialiasing filter still has something to average.
    wanted = np.ceil(wh * np.minimum(scale * 2, 1)).astype(int)
    done = image.draft(None, tuple(int(v) for v in np.maximum(wanted, 1))) if image.format in ("JPEG", "MPO") else None
    # The decoder rounds the size up; the grid of its pixels starts at the upper left and is finer by a whole number.
    shrunk = np.asarray(done[1][2:], np.float64) if done else wh
    return shrunk, scale * wh / shrunk


def _resample(image, wh, fmap, scale, size) -> np.ndarray:
    """RGB image -> [size,size,3]; `wh`, `scale` from `_shrink_while_decoding`, `fmap` is the map of the full file."""
    # Counted from the image's left edge, not from its first pixel centre, the frame map is scale and margin.
    margin = fmap[2:] - 0.5 * fmap[:2] + 0.5
    # Frame pixels that lie within the image as a whole; at least one, however thin the image.
    low = np.maximum(np.ceil(margin - 1e-6), 0)
    high = np.minimum(np.floor(size - margin + 1e-6), size)
    thin = high <= low
    middle = np.clip(np.floor(size / 2), 0, size - 1)
    low, high = np.where(thin, middle, low).astype(int), np.where(thin, middle + 1, high).astype(int)
    first = np.clip((low - margin) / scale, 0, wh)
    last = np.clip((high - margin) / scale, 0, wh)
    # `box` takes fractions of pixels, and its filters widen with the scale: exact, and antialiased when shrinking.
    box = tuple(np.minimum(np.concatenate([first, last]), np.tile(image.size, 2)).tolist())
    inner = image.resize(tuple((high - low).tolist()), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    pixels = np.asarray(inner)
    if (low > 0).any() or (high < size).any():
        pixels = np.pad(pixels, ((low[1], size - high[1]), (low[0], size - high[0]), (0, 0)), mode="edge")
    return pixels
