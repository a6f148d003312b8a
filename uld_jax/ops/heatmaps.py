"""Heatmaps to points and back. Points are `(x, y)` in heatmap pixels, pixel centres at integers."""

import jax
import jax.numpy as jnp


def soft_argmax(logits, temperature: float = 1.0):
    """Expected position under one softmax over all cells of a map.

      xy = sum_p p * softmax(logits / temperature)_p

    Args:
      logits: [...,h,w,K].
      temperature: the softmax's divisor (0.1 in Sanchez and Tzimiropoulos 2019).

    Returns:
      [...,K,2] `(x, y)`, float32 or wider.

    >>> soft_argmax(jnp.zeros((3, 5, 1))).tolist()
    [[2.0, 1.0]]
    """
    height, width = logits.shape[-3:-1]
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / temperature
    weights = jax.nn.softmax(logits, axis=(-3, -2))
    x = jnp.sum(jnp.sum(weights, -3) * jnp.arange(width, dtype=weights.dtype)[:, None], -2)
    y = jnp.sum(jnp.sum(weights, -2) * jnp.arange(height, dtype=weights.dtype)[:, None], -2)
    return jnp.stack([x, y], -1)


def separable_soft_argmax(logits):
    """Expected x under a softmax over columns, expected y under one over rows (Jakab et al. 2018).

      x = sum_i i * softmax(mean over rows of logits)_i, and likewise y

    The mean is that of the logits, so this is not `soft_argmax`, whose one softmax runs over all cells.

    Args:
      logits: [...,h,w,K].

    Returns:
      [...,K,2] `(x, y)`, float32 or wider. The original reads the same point off linspace(-1, 1, w), as (y, x).

    >>> separable_soft_argmax(jnp.zeros((3, 5, 1))).tolist()
    [[2.0, 1.0]]
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def expected(rows):  # [...,n,K]
        weights = jax.nn.softmax(rows, axis=-2)
        return jnp.sum(weights * jnp.arange(rows.shape[-2], dtype=rows.dtype)[:, None], -2)

    return jnp.stack([expected(logits.mean(-3)), expected(logits.mean(-2))], -1)


def gaussian(xy, size, sigma):
    """Isotropic bumps exp(-r^2 / (2 sigma^2)), peak 1: points [...,K,2] to maps [...,h,w,K].

    `size` = (h, w); `sigma` is one number or one for every point, [...,K], and may be differentiated through. A map
    written exp(-r^2 / s^2), as by Jakab et al., has sigma = s / sqrt(2); one written exp(-r^2 / s), as by Sanchez et
    al. and Awan et al., has sigma = sqrt(s / 2).
    """
    height, width = size
    along_x = jnp.arange(width, dtype=xy.dtype)[:, None] - xy[..., None, :, 0]  # [...,w,K]
    along_y = jnp.arange(height, dtype=xy.dtype)[:, None] - xy[..., None, :, 1]  # [...,h,K]
    factor = -0.5 / sigma**2
    if jnp.ndim(factor):
        factor = factor[..., None, :]  # [...,1,K]
    # The bump is a product of one in x and one in y: h + w exponentials instead of h * w.
    return jnp.exp(factor * along_y**2)[..., :, None, :] * jnp.exp(factor * along_x**2)[..., None, :, :]


def keypoint_map(xy, mask, size, sigma):
    """One map [...,h,w] of bumps at points [...,K,2] where `mask` [...,K]: at every cell the highest of them.

      map_p = max_{k: mask_k} exp(-|p - xy_k|^2 / (2 sigma^2))

    >>> keypoint_map(jnp.array([[1.0, 0.0], [2.0, 0.0]]), jnp.array([True, False]), (1, 3), 0.1).round(2).tolist()
    [[0.0, 1.0, 0.0]]
    """
    places = jnp.where(mask[..., None], xy, -100)  # so far outside that nothing is drawn
    return jnp.max(gaussian(places, size, sigma), -1)


def renumbered(maps, numbers):
    """Maps [B,h,w,K] in the channels that `numbers` [B,K] int32 say; those of one channel are added.

    >>> maps = jnp.array([[[[1.0, 2.0, 3.0]]]])
    >>> renumbered(maps, jnp.array([[1, 0, 0]])).tolist()
    [[[[5.0, 1.0, 0.0]]]]
    """
    # Multiplied, not scattered: the order of summation is the same every time.
    there = jax.nn.one_hot(numbers, maps.shape[-1], dtype=maps.dtype)
    return jnp.einsum("bhwk,bkc->bhwc", maps, there, precision="highest")


def mean_with_mirrored(maps, turned, partners, shift: bool = False):
    """The mean of an image's maps and of what its mirror image's say of it.

    Args:
      maps: [B,h,w,K].
      turned: of the mirror images, as the network gives them.
      partners: [K] int32, the channel in which the mirror image shows what channel k shows.
      shift: whether the mirror image's maps, mirrored back, are one cell to the right of where they belong; their first
        column stays where it is, too (extended code of Mallis et al.).

    >>> maps = jnp.zeros((1, 1, 4, 1))
    >>> turned = jnp.array([2.0, 0.0, 0.0, 8.0]).reshape(1, 1, 4, 1)
    >>> [mean_with_mirrored(maps, turned, jnp.array([0]), shift)[0, 0, :, 0].tolist() for shift in (False, True)]
    [[4.0, 0.0, 0.0, 1.0], [4.0, 4.0, 0.0, 0.0]]
    """
    back = turned[:, :, ::-1][..., partners]
    if shift:
        back = jnp.concatenate([back[:, :, :1], back[:, :, :-1]], 2)
    return (maps + back) / 2


def peak(maps, refine: bool = True):
    """The highest cell of every map, and how high it is.

    With `refine` the position is that of the top of the parabola through the cell and its two neighbours, apart in x
    and in y (at most half a cell away; a cell on the border stays where it is). Maps whose logarithm is a parabola,
    such as Gaussians, are found exactly when their logarithm is passed.

    Args:
      maps: [...,h,w,K]; of equal cells the first in reading order counts.
      refine: whether to look between cells.

    Returns:
      xy [...,K,2] and score [...,K], the highest value itself.

    >>> xy, score = peak(gaussian(jnp.array([[2.0, 1.0]]), (4, 5), 1.0))
    >>> xy.tolist(), score.tolist()
    ([[2.0, 1.0]], [1.0])
    """
    height, width, count = maps.shape[-3:]
    maps = maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
    flat = maps.reshape(*maps.shape[:-3], height * width, count)
    cell = jnp.argmax(flat, -2)  # [...,K]
    score = jnp.max(flat, -2)
    x, y = cell % width, cell // width

    def read(index):
        return jnp.take_along_axis(flat, jnp.clip(index, 0, height * width - 1)[..., None, :], -2)[..., 0, :]

    def between(position, size, before, after):
        curvature = before - 2 * score + after
        offset = 0.5 * (before - after) / jnp.where(curvature < 0, curvature, -1)
        inside = (position > 0) & (position < size - 1) & (curvature < 0)
        return jnp.where(inside, jnp.clip(offset, -0.5, 0.5), 0)

    xy = jnp.stack([x, y], -1).astype(maps.dtype)
    if not refine:
        return xy, score
    shift_x = between(x, width, read(cell - 1), read(cell + 1))
    shift_y = between(y, height, read(cell - width), read(cell + width))
    return xy + jnp.stack([shift_x, shift_y], -1), score
