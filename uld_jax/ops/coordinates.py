"""The definition of pixel coordinates, and maps between coordinate systems.

* A point is `(x, y)`: x to the right, y down.
* Pixel centres are at integers. An image of width W covers x in [-0.5, W - 0.5].
* Unit coordinates put the image's *borders* at -1 and 1, so they do not depend on resolution.
* A frame map `[..., 4] = (scale_x, scale_y, shift_x, shift_y)` takes a point of the original file to the
  canonical frame that networks see: `frame = file * scale + shift`.

Every function works on NumPy and on JAX arrays, and keeps the kind it is given.
"""

import numpy as np

from uld_jax.errors import UserError

FITS = ("pad", "crop", "stretch")
OUTSIDE = ("missing", "clip")


def pixel_grid(height: int, width: int) -> np.ndarray:
    """Centres of all pixels, [height, width, 2] float32 `(x, y)`.

    >>> pixel_grid(2, 3)[1, 2].tolist()
    [2.0, 1.0]
    """
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y], -1).astype(np.float32)


def _per_axis(over, under, like):
    """over / under of two sizes (height, width), as `(x, y)` in the precision of the points `like`."""
    ratio = [over[1] / under[1], over[0] / under[0]]
    return np.asarray(ratio, np.result_type(like.dtype, np.float32))


def rescale_points(xy, from_size, to_size):
    """Move points [..., 2] of an image of `from_size` (height, width) to the same image resized to `to_size`.

    >>> rescale_points(np.zeros(2), (4, 4), (8, 8)).tolist()
    [0.5, 0.5]
    """
    return (xy + 0.5) * _per_axis(to_size, from_size, xy) - 0.5


def rescale_corners(xy, from_size, to_size):
    """Move points [..., 2] as `rescale_points` does, but so that the centres of both images' corner pixels coincide.

    This is resizing with "align_corners", by which NC-Net goes from pixels to cells of a feature map and back. A side
    of one pixel has only the coordinate 0.

    >>> rescale_corners(np.array([399.0, 100.0]), (400, 400), (25, 25)).round(3).tolist()
    [24.0, 6.015]
    """
    over, under = (tuple(side - 1 for side in size) for size in (to_size, from_size))
    return xy * _per_axis(over, tuple(max(side, 1) for side in under), xy)


def to_unit(xy, size):
    """Convert pixels [..., 2] of an image of `size` (height, width) to unit coordinates, image borders at -1 and 1.

    >>> to_unit(np.array([-0.5, 3.5]), (4, 4)).tolist()
    [-1.0, 1.0]
    """
    return (xy + 0.5) * _per_axis((2, 2), size, xy) - 1.0


def from_unit(unit, size):
    """Inverse of `to_unit`."""
    return (unit + 1.0) * _per_axis(size, (2, 2), unit) - 0.5


def frame_map(file_size, frame_size, fit: str = "pad") -> np.ndarray:
    """Map from an image file of `file_size` (height, width) to the canonical frame, [4] float64.

    `fit`: `pad` shows the whole image, centred, and fills the rest with its border; `crop` fills the frame with
    the image's centre; `stretch` scales both sides apart. Raises UserError for any other word.

    >>> frame_map((100, 200), (50, 50), "pad").tolist()
    [0.25, 0.25, -0.375, 12.125]
    """
    if fit not in FITS:
        raise UserError(f"data.fit is {fit!r}; use one of {', '.join(FITS)}")
    file_wh = np.asarray([file_size[1], file_size[0]], np.float64)
    frame_wh = np.asarray([frame_size[1], frame_size[0]], np.float64)
    scale = frame_wh / file_wh
    if fit == "pad":
        scale = np.full(2, scale.min())
    elif fit == "crop":
        scale = np.full(2, scale.max())
    margin = (frame_wh - file_wh * scale) / 2  # of the frame, on the left and above; negative where the image is cut
    return np.concatenate([scale, 0.5 * scale - 0.5 + margin])


def file_to_frame(xy, fmap):
    """Move points [..., P, 2] of original files to the frame; `fmap` [..., 4] is the frame map."""
    return xy * fmap[..., None, :2] + fmap[..., None, 2:]


def frame_to_file(xy, fmap):
    """Inverse of `file_to_frame`."""
    return (xy - fmap[..., None, 2:]) / fmap[..., None, :2]


def on_file(xy, score, file_sizes, frame_maps, outside: str = "missing"):
    """Bring landmarks inside their files.

    The frame may show more than the file (`pad` fills it up with the file's border), and regression may place a point
    anywhere. A point beyond the file's edge by up to one pixel of the frame, the resolution that networks see, is moved
    to the edge. A point farther out is not on the photo.

    Args:
      xy: [N,K,2] landmarks in pixels of the files.
      score: [N,K] confidences; 0 means missing.
      file_sizes: [N,2] (height, width).
      frame_maps: [N,4] maps from the files to the frame.
      outside: treatment of points that are not on the photo: `missing` (their score becomes 0) or `clip` (they are
        moved to the edge too).

    Returns:
      xy, within 0..width - 1 and 0..height - 1; score; and [N,K] bool, True for landmarks beyond their photos.

    Raises:
      UserError: `outside` is another word.
    """
    if outside not in OUTSIDE:
        raise UserError(f"outside is {outside!r}; use {' or '.join(OUTSIDE)}")
    last = np.asarray(file_sizes, np.float64)[:, None, ::-1] - 1
    over = np.maximum(-0.5 - xy, xy - (last + 0.5)) * np.asarray(frame_maps)[:, None, :2]
    beyond = (over > 1).any(-1) & (score > 0)
    score = np.where(beyond, 0, score).astype(score.dtype) if outside == "missing" else score
    return np.clip(xy, 0, last), score, beyond
