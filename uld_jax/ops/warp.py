"""One random warp for an image and for the points on it.

A warp maps the VIEW (what the network sees) to the SOURCE (what the image file holds), because that is the
direction in which pixels are read:

  source = linear @ view + shift + sum_c bend_c * phi(|view - control_c|),   phi(r) = r^2 log r^2

in unit coordinates (`ops/coordinates.py`: image borders at -1 and 1, so a warp does not depend on resolution). The
sum is the thin-plate part of Jakab et al. 2018, control points on a regular n x n grid over [-1,1]^2. Points follow
the image through the inverse map. Angles are right for square images; other images are stretched to the unit square.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.ops import coordinates, resampling

_NEWTON_STEPS = 6


class Warp(NamedTuple):
    """A map from view to source, in unit coordinates. Leading axes, the same on every field, are a batch.

    Attributes:
      linear: [...,2,2], the linear part.
      shift: [...,2], the shift in unit coordinates.
      bend: [...,C,2], a weight for each control point; C = n * n, or 0 for no thin-plate part.
    """

    linear: jax.Array
    shift: jax.Array
    bend: jax.Array


def identity(zoom: float = 1.0, dtype=jnp.float32) -> Warp:
    """The warp that shows the central fraction `zoom` of the source without a rotation."""
    return Warp(zoom * jnp.eye(2, dtype=dtype), jnp.zeros(2, dtype), jnp.zeros((0, 2), dtype))


def random_warp(
    key,
    *,
    rotation: float = 0.0,
    scale: float = 0.0,
    shift: float = 0.0,
    bend: float = 0.0,
    control: int = 5,
    zoom: float = 1.0,
    clip: float = 3.0,
    limit: float | None = 0.5,
    dtype=jnp.float32,
) -> Warp:
    """Draw ONE warp; `jax.vmap` over keys makes a batch.

    Args:
      key: a PRNG key.
      rotation: standard deviation of the angle in degrees.
      scale: standard deviation of the logarithm of the size.
      shift: standard deviation of the shift as a fraction of the source's side, in x and in y.
      bend: standard deviation of the thin-plate weights; 0 leaves the thin-plate part out (C = 0).
      control: n, for n * n control points.
      zoom: fraction of the source that the view shows, before the random scale.
      clip: number of standard deviations at which normal draws are cut off.
      limit: largest slope of the thin-plate part as a fraction of the linear part's; a steeper one is shrunk. Below 1
        the warp is one-to-one on the view and its surroundings, so that every point has one place. None leaves the
        part as drawn, as the published augmentation does.
      dtype: type of the result.
    """
    turn_key, scale_key, shift_key, bend_key = jax.random.split(key, 4)

    def draw(key, shape=()):
        return jax.random.truncated_normal(key, -clip, clip, shape, dtype)

    angle = jnp.deg2rad(rotation) * draw(turn_key)
    size = zoom * jnp.exp(scale * draw(scale_key))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    linear = (size * jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])).astype(dtype)
    offset = (2 * shift * draw(shift_key, (2,))).astype(dtype)  # the source's side is 2 in unit coordinates
    if bend == 0:
        return Warp(linear, offset, jnp.zeros((0, 2), dtype))
    weights = (bend * draw(bend_key, (control * control, 2))).astype(dtype)
    if limit is not None:
        # A matrix's Frobenius norm is at least its spectral norm, and every singular value of `linear` is `size`.
        around = jnp.asarray(1.25 * _controls(11), dtype)
        slope = jnp.sqrt(jnp.max(jnp.sum(_bend_slope(weights, around) ** 2, (-2, -1))))
        weights = weights * jnp.minimum(1, limit * size / jnp.maximum(slope, 1e-12))
    return Warp(linear, offset, weights.astype(dtype))


def uniform_warp(key, *, rotation: float, scale: float, shift: float, zoom: float = 1.0, dtype=jnp.float32) -> Warp:
    """Draw ONE warp by the law of Mallis et al. (published code): all uniform, x and y stretched independently.

    Args:
      key: a PRNG key.
      rotation: largest angle in degrees, either way.
      scale: largest relative change: x and y are each enlarged by U(1 - scale, 1 + scale) before the rotation.
      shift: largest shift in x and in y, as a fraction of the part shown.
      zoom: fraction of the source that the view shows, before the random part.
      dtype: type of the result.
    """
    turn_key, scale_key, shift_key = jax.random.split(key, 3)
    draw = lambda key, shape, most: jax.random.uniform(key, shape, dtype, -most, most)
    angle = jnp.deg2rad(draw(turn_key, (), rotation))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
    linear = zoom * turn / (1 + draw(scale_key, (2,), scale))[:, None]  # from the view back to the source
    return Warp(linear.astype(dtype), zoom * 2 * draw(shift_key, (2,), shift), jnp.zeros((0, 2), dtype))


def mirrored(warp: Warp, flip) -> Warp:
    """Mirror the view of ONE warp without bend left to right if `flip` is True."""
    sign = jnp.where(flip, -1, 1).astype(warp.linear.dtype)
    return warp._replace(linear=warp.linear * jnp.stack([sign, jnp.ones_like(sign)]))


def turned(warp: Warp, degrees) -> Warp:
    """Rotate the view of ONE warp by another `degrees` about the view's centre."""
    cos, sin = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    turn = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])]).astype(warp.linear.dtype)
    return warp._replace(linear=jnp.sum(warp.linear[:, :, None] * turn[None], 1))


def view_to_source(warp: Warp, unit_xy):
    """Map points [...,P,2] of the view to the source; both are in unit coordinates."""
    source = _matvec(warp.linear[..., None, :, :], unit_xy) + warp.shift[..., None, :]
    if warp.bend.shape[-2]:
        source = source + _bend(warp.bend, unit_xy)
    return source


def source_to_view(warp: Warp, unit_xy):
    """Map points [...,P,2] of the source to the view; both are in unit coordinates.

    The inverse has a closed form without a thin-plate part, and takes six Newton steps with one. Far outside the
    source, where a bend may fold the plane, the result is only some point outside the view.
    """
    inverse = _inverse(warp.linear)[..., None, :, :]
    view = _matvec(inverse, unit_xy - warp.shift[..., None, :])
    if not warp.bend.shape[-2]:
        return view

    def newton(_, view):
        slope = warp.linear[..., None, :, :] + _bend_slope(warp.bend, view)
        step = _matvec(_inverse(slope), unit_xy - view_to_source(warp, view))
        return view + jnp.clip(step, -0.5, 0.5)  # a longer step says that the slope was misleading

    return jax.lax.fori_loop(0, _NEWTON_STEPS, newton, view)


def warp_image(warp: Warp, image, size):
    """Render the view of one image: [H,W,C] to [h,w,C] float32 (or wider), `size` = (h, w); `jax.vmap` makes a batch.

    The interpolation is bilinear; outside the source its border repeats. A uint8 image keeps its values in 0..255.
    """
    height, width = size
    dtype = jnp.result_type(warp.linear.dtype, jnp.float32)
    view = coordinates.to_unit(jnp.asarray(coordinates.pixel_grid(height, width), dtype).reshape(-1, 2), size)
    source = coordinates.from_unit(view_to_source(warp, view), image.shape[:2])
    return resampling.bilinear(image, source).reshape(height, width, image.shape[-1])


def points_to_view(warp: Warp, xy, source_size, view_size):
    """Map points [...,P,2] in source pixels to view pixels; sizes are (height, width)."""
    return coordinates.from_unit(source_to_view(warp, coordinates.to_unit(xy, source_size)), view_size)


def points_to_source(warp: Warp, xy, source_size, view_size):
    """Map points [...,P,2] in view pixels to source pixels; sizes are (height, width)."""
    return coordinates.from_unit(view_to_source(warp, coordinates.to_unit(xy, view_size)), source_size)


def _controls(n: int) -> np.ndarray:
    """A regular n x n grid over [-1,1]^2, [n*n,2]."""
    line = np.linspace(-1, 1, n) if n > 1 else np.zeros(1)
    return np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)


def _offsets(bend, xy):
    """xy - control [...,P,C,2], their squares [...,P,C] and the logarithms of these, 0 at a control point."""
    n = round(bend.shape[-2] ** 0.5)
    away = xy[..., :, None, :] - jnp.asarray(_controls(n), bend.dtype)
    square = jnp.sum(away * away, -1)
    # phi and its slope tend to 0 with r; `where` twice keeps the gradient finite there as well.
    near = square < 1e-12
    log = jnp.where(near, 0, jnp.log(jnp.where(near, 1, square)))
    return away, square, log


# The sums below run over pairs and a few dozen control points: written out, they are exact on hardware whose matrix
# products round to bfloat16 or TF32 (a tenth of a pixel), and XLA fuses them.


def _bend(bend, xy):
    _, square, log = _offsets(bend, xy)
    return jnp.sum((square * log)[..., None] * bend[..., None, :, :], -2)


def _bend_slope(bend, xy):
    """d bend_i / d view_j, [...,P,2,2]: the gradient of phi is 2 (view - control) (log r^2 + 1)."""
    away, _, log = _offsets(bend, xy)
    gradient = 2 * away * (log + 1)[..., None]
    return jnp.sum(bend[..., None, :, :, None] * gradient[..., None, :], -3)


def _matvec(matrix, vector):
    return jnp.sum(matrix * vector[..., None, :], -1)


def _inverse(matrix):
    a, b, c, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1]
    determinant = a * d - b * c
    determinant = jnp.where(jnp.abs(determinant) < 1e-6, 1e-6, determinant)
    return jnp.stack([jnp.stack([d, -b], -1), jnp.stack([-c, a], -1)], -2) / determinant[..., None, None]
