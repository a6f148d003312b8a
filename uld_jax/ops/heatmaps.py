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


def gaussian(xy, size, sigma: float):
    """Isotropic bumps exp(-r^2 / (2 sigma^2)), peak 1: points [...,K,2] to maps [...,h,w,K].

    `size` = (h, w). A map of Jakab et al. or Sanchez et al., written exp(-r^2 / s^2) there, has sigma = s / sqrt(2).
    """
    height, width = size
    along_x = jnp.arange(width, dtype=xy.dtype)[:, None] - xy[..., None, :, 0]  # [...,w,K]
    along_y = jnp.arange(height, dtype=xy.dtype)[:, None] - xy[..., None, :, 1]  # [...,h,K]
    factor = -0.5 / sigma**2
    # The bump is a product of one in x and one in y: h + w exponentials instead of h * w.
    return jnp.exp(factor * along_y**2)[..., :, None, :] * jnp.exp(factor * along_x**2)[..., None, :, :]


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
