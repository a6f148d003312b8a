"""The crops of Mallis et al.'s data: the part of a photo that a network sees, as maps of points and pixels.

A map is `[4] = (scale_x, scale_y, shift_x, shift_y)` as in `ops.coordinates`: `crop = file * scale + shift`. The
published code maps points without half-pixel offsets; these functions keep its formulas, and `cut` moves the pixels by
the same map as the points. The functions use NumPy on the host and prepare data.
"""

import numpy as np
from PIL import Image

from uld_jax.errors import UserError


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Find the box `(x0, y0, x1, y1)` of the true pixels of a mask [H,W]: first and last column and row.

    Raises UserError if there are none.

    >>> mask_box(np.pad(np.ones((2, 5), bool), 3))
    (3, 3, 7, 4)
    """
    rows, columns = np.flatnonzero(np.any(mask, 1)), np.flatnonzero(np.any(mask, 0))
    if not len(rows):
        raise UserError("a mask has no true pixel, so there is nothing to crop; leave the image out")
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def square_crop(box, size: int = 450, margin: float = 1.5) -> np.ndarray:
    """Map of the square crop around a body, [4] float64 (Human3.6M in the published code of Mallis et al. 2020).

    A square of `margin` x the height of the box, centred on the box, becomes `size` x `size` pixels; the centre maps
    to `size / 2`. The width has no influence, so outstretched arms may leave the crop.

    Args:
      box: `(x0, y0, x1, y1)` in pixels of the file.
      size: side of the crop in pixels.
      margin: side of the square in heights of the box.

    Raises:
      UserError: a box without height.

    >>> square_crop((0, 0, 60, 100)).tolist()
    [3.0, 3.0, 135.0, 75.0]
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    if y1 <= y0:
        raise UserError(f"the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) has no height; give (x0, y0, x1, y1) with y0 < y1")
    scale = size / (margin * (y1 - y0))
    return np.array([scale, scale, size / 2 - scale * (x0 + x1) / 2, size / 2 - scale * (y0 + y1) / 2])


def fan_view(size: int = 450, out: int = 256, zoom: float = 1.4) -> np.ndarray:
    """Map from a stored body crop to the network's input, [4] float64: `u = ((x - 225) * 1.4 + 225) * 256 / 450`.

    The crop is enlarged about its centre, so the network sees 1.5 / 1.4 = 1.07 heights of the box (published code of
    Mallis et al. 2020).

    >>> x = np.array([225.0, 450]); scale, _, shift, _ = fan_view(); (x * scale + shift).round(2).tolist()
    [128.0, 307.2]
    """
    scale, shift = zoom * out / size, (1 - zoom) * out / 2
    return np.array([scale, scale, shift, shift])


def fan_crop(box, file_size: tuple[int, int], weight: float = 0.5) -> tuple[int, int, int, int]:
    """Find the part `(x0, y0, x1, y1)` of a face photo that is resized to the network's input (published code).

    With `delta = weight * ((1.2 * x1 - x0) + (2 * y1 - y0))` the box grows on all sides by 8 pixels if `delta < 20`,
    else by `int(8 * delta / 100)`, within the image. As in the published code, `delta` depends on the position of the
    box and not only on its size, so a box far to the right is cropped more widely.

    Args:
      box: `(x0, y0, x1, y1)` of the face in pixels of the file.
      file_size: (height, width).
      weight: factor of `delta`: 0.5 in the published code of NeurIPS 2020, 0.25 in that of PAMI 2022.

    Raises:
      UserError: nothing of the box lies in the image.

    >>> fan_crop((40, 50, 140, 170), (218, 178)), fan_crop((40, 50, 140, 170), (218, 178), weight=0.25)
    ((24, 34, 156, 186), (32, 42, 148, 178))
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    height, width = file_size
    delta = weight * ((1.2 * x1 - x0) + (2 * y1 - y0))
    grow = 8 if delta < 20 else int(8 * delta / 100)
    crop = (
        int(max(x0 - grow, 0)),
        int(max(y0 - grow, 0)),
        int(min(x1 + grow, width - 1)),
        int(min(y1 + grow, height - 1)),
    )
    if crop[2] <= crop[0] or crop[3] <= crop[1]:
        raise UserError(f"the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) lies outside its image of {width} x {height} pixels")
    return crop


def crop_map(crop, out: int = 256) -> np.ndarray:
    """Map of a crop that is stretched to a square, [4] float64: `u = (x - x0) * out / (x1 - x0)` (published code).

    >>> crop_map((20, 30, 148, 94)).tolist()
    [2.0, 4.0, -40.0, -120.0]
    """
    x0, y0, x1, y1 = crop
    scale = np.array([out / (x1 - x0), out / (y1 - y0)])
    return np.concatenate([scale, -scale * (x0, y0)])


def then(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compose two maps: `first`, then `second`.

    >>> then(np.array([2.0, 2, 1, 1]), np.array([3.0, 3, 5, 5])).tolist()
    [6.0, 6.0, 8.0, 8.0]
    """
    return np.concatenate([first[:2] * second[:2], first[2:] * second[:2] + second[2:]])


def cut(pixels: np.ndarray, fmap: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cut a crop out of an image, [H,W,3] uint8 -> [height,width,3] uint8: antialiased, black outside the image.

    Args:
      pixels: the upright image.
      fmap: [4] map from pixels of the image to those of the crop.
      size: (height, width) of the crop in pixels.

    >>> cut(np.full((4, 4, 3), 9, np.uint8), np.array([1.0, 1, 2, 0]), (4, 8))[0, :, 0].tolist()
    [0, 0, 9, 9, 9, 9, 0, 0]
    """
    wh = np.array([size[1], size[0]], np.float64)
    # Edges of the crop in the image, where PIL counts from the edge of the first pixel.
    low, high = (-0.5 - fmap[2:]) / fmap[:2] + 0.5, (wh - 0.5 - fmap[2:]) / fmap[:2] + 0.5
    image_wh = np.array(pixels.shape[1::-1], np.float64)
    before, after = (np.ceil(np.maximum(beyond, 0)).astype(int) for beyond in (-low, high - image_wh))
    if before.any() or after.any():
        pixels = np.pad(pixels, ((before[1], after[1]), (before[0], after[0]), (0, 0)))
    box = np.clip(np.concatenate([low + before, high + before]), 0, pixels.shape[1::-1] * 2)  # against rounding
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=tuple(box.tolist())))


def landmark_crop(points, file_size: tuple[int, int], tight: int) -> tuple[int, int, int, int]:
    """Find the part `(x0, y0, x1, y1)` of a photo around its annotated points (published code of SAIC and CGB).

    The box around the points grows on all sides by `int(tight * d / 100)` pixels, where d is the mean of its sides, or
    by 8 if d is below 20; its bounds are rounded and kept inside the image. The part is not square, and the published
    code stretches it to 128 x 128.

    Args:
      points: [L,2] `(x, y)` in pixels of the file; NaN where not annotated.
      file_size: (height, width).
      tight: percent: 70 for faces of CelebA and AFLW (SAIC 16 in tests), 30 for cats, 16 for LS3D, 64 for shoes.

    Raises:
      UserError: no point is annotated, or none lies in the image.

    >>> landmark_crop(np.array([[50.0, 60], [90, 120]]), (218, 178), 70)
    (15, 25, 125, 155)
    """
    known = np.asarray(points, np.float64)
    known = known[np.isfinite(known).all(-1)]
    if not len(known):
        raise UserError("no point is annotated, so there is nothing to crop; leave the image out")
    (x0, y0), (x1, y1) = known.min(0), known.max(0)
    mean = (x1 - x0 + y1 - y0) / 2
    grow = 8 if mean < 20 else int(tight * mean / 100)
    height, width = file_size
    crop = (
        max(round(x0 - grow), 0),
        max(round(y0 - grow), 0),
        min(round(x1 + grow), width),
        min(round(y1 + grow), height),
    )
    if crop[2] <= crop[0] or crop[3] <= crop[1]:
        raise UserError(f"the points lie outside their image of {width} x {height} pixels; leave the image out")
    return crop


def window(box, size: tuple[int, int]) -> np.ndarray:
    """Map of a part of a photo that is resized to `size` (height, width), [4] float64.

    `box` is `(x0, y0, x1, y1)`: edges of the part, counted from the edge of the photo's first pixel, so that
    `(0, 0, width, height)` is the whole photo.

    >>> window((0, 30, 178, 208), (89, 89)).tolist()
    [0.5, 0.5, -0.25, -15.25]
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    scale = np.array([size[1] / (x1 - x0), size[0] / (y1 - y0)])
    return np.concatenate([scale, (0.5 - np.array([x0, y0])) * scale - 0.5])
