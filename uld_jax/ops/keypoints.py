"""Functions that read maps at points, and small masked helpers for point sets."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


def bilinear(image, xy):
    """Read one map between its cells: image [H,W,C] and points [P,2] in its pixels to values [P,C].

    Outside the map the border's value repeats. The result is float32, or wider if an argument is. Four plain
    gathers are the fastest form known on CPU (a windowed or stacked gather was measured slower or no faster).

    >>> bilinear(jnp.arange(4.0).reshape(2, 2, 1), jnp.array([[0.5, 0.5]]))[0, 0].item()
    1.5
    """
    height, width, channels = image.shape
    dtype = jnp.result_type(image.dtype, xy.dtype, jnp.float32)
    cell = cell_of(xy.astype(dtype), height, width)
    right_weight, lower_weight = cell.right_weight[:, None], cell.lower_weight[:, None]
    right, below = min(1, width - 1), min(1, height - 1) * width
    flat = image.reshape(height * width, channels)
    corner = cell.top * width + cell.left

    def read(offset):
        return jnp.take(flat, corner + offset, axis=0, mode="clip").astype(dtype)

    upper = read(0) * (1 - right_weight) + read(right) * right_weight
    lower = read(below) * (1 - right_weight) + read(below + right) * right_weight
    return upper * (1 - lower_weight) + lower * lower_weight


class Cell(NamedTuple):
    """The four pixels around each of P points.

    Attributes:
      left, top: [P] int32, column and row of the upper left pixel.
      right_weight, lower_weight: [P] in 0..1, shares of the right and of the lower pixels.
    """

    left: jax.Array
    top: jax.Array
    right_weight: jax.Array
    lower_weight: jax.Array


def cell_of(xy, height: int, width: int) -> Cell:
    """Find the pixels around points [P,2] of a map [H,W]; points outside are moved to its border.

    A point on the last row or column belongs to the cell before it, if there is one.
    """
    x, y = jnp.clip(xy[:, 0], 0, width - 1), jnp.clip(xy[:, 1], 0, height - 1)
    left = jnp.clip(jnp.floor(x), 0, max(width - 2, 0)).astype(jnp.int32)
    top = jnp.clip(jnp.floor(y), 0, max(height - 2, 0)).astype(jnp.int32)
    return Cell(left, top, x - left, y - top)


def sample(features, xy):
    """Read descriptors at points: features [B,h,w,D], xy [B,P,2] `(x, y)` in feature-map pixels to [B,P,D].

    The interpolation is bilinear; outside the map the border's value repeats.
    """
    return jax.vmap(bilinear)(features, xy)


def take_slots(values, slots):
    """Take the values [...,P] or [...,P,D] of keypoints at slots [...,C]; a slot of -1 gives the first one's value.

    >>> take_slots(jnp.array([[5, 6, 7]]), jnp.array([[2, -1]])).tolist()
    [[7, 5]]
    """
    index = jnp.maximum(slots, 0)
    index = index.reshape(*index.shape, *[1] * (values.ndim - slots.ndim))
    return jnp.take_along_axis(values, index, slots.ndim - 1)


def masked_mean(x, mask, axis=None):
    """Mean of the entries of x whose `mask` is True, 0 where none is; a float mask weighs the entries.

    The mask must broadcast to x. Masked entries may be NaN.

    >>> masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])).item()
    2.0
    """
    weight = jnp.broadcast_to(mask, x.shape).astype(x.dtype)
    total = jnp.sum(jnp.where(weight != 0, x * weight, 0), axis)  # `where`: a masked NaN must not come through
    count = jnp.sum(weight, axis)
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)


def l2_normalize(x, axis: int = -1, eps: float = 1e-12):
    """x / max(||x||, eps) along `axis`, with a gradient of 0 rather than NaN at x = 0.

    >>> l2_normalize(jnp.array([3.0, 4.0])).round(3).tolist() == jnp.array([0.6, 0.8]).tolist()
    True
    """
    square = jnp.sum(x * x, axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, eps**2))


def unit(x):
    """Scale finite vectors [...,D] to length 1; zeros stay zeros. Use `l2_normalize` where a gradient is needed.

    Vectors are first scaled to a largest entry of 1, so that no square overflows or underflows.

    >>> unit(jnp.array([[3e30, 4e30], [0.0, 0.0]])).round(3).tolist() == jnp.array([[0.6, 0.8], [0, 0]]).tolist()
    True
    """
    largest = jnp.max(jnp.abs(x), -1, keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(length > 0, length, 1)
