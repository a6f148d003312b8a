"""Thin-plate warps as in the published code of DVE (Thewlis et al. 2019), ContrastLandmarks and IMM (Jakab et al.).

A warp maps a pixel of the VIEW to the place of the SOURCE where its colour is read, in coordinates that put the centres
of the corner pixels at -1 and 1 (PyTorch's align_corners=True):

  source = F(view) @ weights,   F = [d_1^2 log(d_1^2 + 1e-5) ... d_C^2 log(d_C^2 + 1e-5) | 1 | x y]

d_c is the distance to control point c of a regular n x n grid over [-1,1]^2. The weights are drawn as they are; no
system of equations is solved, so control points have no targets. `ops/warp.py` has the library's own warps, which have
other coordinates, a limit on the bend and closed inverses; evaluations after these papers need the ones here.

Functions take ONE image; `jax.vmap` makes a batch. Points and grids are `(x, y)` in pixels, pixel centres at integers.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.ops import resampling

CONTROL = 10  # n
_EPS = 1e-5
_NEWTON_STEPS = 6


class Spread(NamedTuple):
    """Standard deviations of a random warp's numbers.

    Attributes:
      bend: of the weights of control points.
      subset: of the weights of a random half, see `random_tps`.
      shift: in x and in y; 2 is the whole image.
      scale: of the relative size.
      rotation: in degrees.
    """

    bend: float
    subset: float
    shift: float
    scale: float
    rotation: float

    def times(self, bend: float = 1.0, affine: float = 1.0) -> "Spread":
        """Multiply the thin-plate part and the affine part."""
        b, s, *rest = self
        return Spread(bend * b, bend * s, *(affine * r for r in rest))


# DVE: both warps of a test image; the second warp of a training pair, whose first one is TRAINING.times(bend=0.5), in
# ContrastLandmarks with affine=0; and of an annotated image in few-shot regression.
TEST = Spread(0.0005, 0.005, 0.05, 0.05, 2.5)
TRAINING = Spread(0.001, 0.01, 0.1, 0.1, 5.0)
FEW_SHOT = Spread(0.0005, 0.0, 0.02, 0.02, 2.0)


def random_tps(key, spread: Spread, *, subset: Literal["replace", "add"] = "replace", control: int = CONTROL):
    """Draw the weights [n * n + 3, 2] of one warp: those of control points, then those of 1, x and y.

    Each coordinate of each control point is in a random half with probability 1/2. There DVE replaces its weight by
    one of deviation `spread.subset`, and IMM adds such a weight to it.

    >>> jnp.abs(random_tps(jax.random.key(0), Spread(0, 0, 0, 0, 0))[-3:]).tolist()  # the identity
    [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    half_key, all_key, some_key, affine_key = jax.random.split(key, 4)
    shape = control * control, 2
    half = jax.random.bernoulli(half_key, 0.5, shape)
    every, some = spread.bend * jax.random.normal(all_key, shape), spread.subset * jax.random.normal(some_key, shape)
    bend = jnp.where(half, some + (every if subset == "add" else 0), every)
    shift_x, shift_y, size, turn = jax.random.normal(affine_key, (4,))
    angle, size = jnp.deg2rad(spread.rotation) * turn, 1 + spread.scale * size
    cos, sin = size * jnp.cos(angle), size * jnp.sin(angle)
    rows = [spread.shift * jnp.stack([shift_x, shift_y]), jnp.stack([cos, -sin]), jnp.stack([sin, cos])]
    return jnp.concatenate([bend, jnp.stack(rows)])


def grid(weights, size):
    """The places [H,W,2] in the source that the pixels of a view show; both are of `size` (height, width).

    With features at every `stride`-th pixel, `grid[::stride, ::stride] / stride` is the truth that
    `dense_matching.equivariance` takes for the view's features and those of its source.
    """
    height, width = size
    basis = jnp.asarray(_grid_basis(height, width, _control(weights)), weights.dtype)
    unit = jnp.matmul(basis, weights, precision="highest")  # a tenth of a pixel would be lost in TF32
    return _to_pixels(unit, size).reshape(height, width, 2)


def view_to_source(weights, xy, size):
    """Map points [P,2] of the view to the source, as `grid` maps whole pixels."""
    return _to_pixels(_map(weights, _from_pixels(xy, size)), size)


def warp_image(image, places, outside: Literal["zeros", "border"] = "zeros"):
    """Read the source [H,W,C] at `places` [h,w,2] of `grid`: the view [h,w,C], float32 or wider, bilinear.

    Outside the source DVE reads zeros, mixed with the border's pixels within one pixel of them; `border` repeats the
    border instead.
    """
    xy = places.reshape(-1, 2)
    if outside == "zeros":
        image, xy = jnp.pad(image, ((1, 1), (1, 1), (0, 0))), xy + 1
    return resampling.bilinear(image, xy).reshape(*places.shape[:2], image.shape[-1])


def nearest_pixels(places, xy):
    """Where points of the source are in the view, as the published code of DVE finds them: to whole pixels.

    Args:
      places: [H,W,2] of `grid`.
      xy: [P,2] points of the source.

    Returns:
      The pixels [P,2] of the view that show the nearest places, of equal ones the first in reading order. A point that
      the view does not show gets such a pixel, too.
    """
    index = jnp.argmin(jnp.sum((xy[:, None] - places.reshape(-1, 2)) ** 2, -1), -1)
    return jnp.stack([index % places.shape[1], index // places.shape[1]], -1).astype(places.dtype)


def source_to_view(weights, xy, size):
    """Where points of the source are in the view, exactly: the inverse of `view_to_source` by Newton's method.

    Args:
      weights: [n * n + 3, 2].
      xy: [P,2] points of the source.
      size: (height, width).

    Returns:
      Points [P,2] of the view, and [P] bool, whether the view shows them. A point that it does not show gets the
      nearest pixel, as from `nearest_pixels`, where the iteration starts. Where a strong bend folds the view, and
      several of its points show the same place, one of them is found.
    """
    pixels = nearest_pixels(grid(weights, size), xy)
    start, target = _from_pixels(pixels, size), _from_pixels(xy, size)

    def newton(_, view):
        (a, b), (c, d) = jnp.moveaxis(_slope(weights, view), 0, -1)  # d source_i / d view_j
        away = target - _map(weights, view)
        determinant = a * d - b * c
        determinant = jnp.where(jnp.abs(determinant) < 1e-6, 1e-6, determinant)
        step = jnp.stack([d * away[:, 0] - b * away[:, 1], a * away[:, 1] - c * away[:, 0]], -1) / determinant[:, None]
        return view + jnp.clip(step, -0.5, 0.5)  # a longer step says that the slope was misleading

    view = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, start)
    found, last = _to_pixels(view, size), _last(size, xy)
    missed = jnp.max(jnp.abs(_to_pixels(_map(weights, view), size) - xy), -1)
    shown = (missed < 0.01) & jnp.all((found >= -0.5) & (found <= last + 0.5), -1)  # NaN is not shown
    return jnp.where(shown[:, None], found, pixels), shown


def _control(weights):
    return round((weights.shape[-2] - 3) ** 0.5)


def _last(size, like):
    return jnp.asarray([size[1] - 1, size[0] - 1], like.dtype)


def _to_pixels(unit, size):
    return (unit + 1) / 2 * _last(size, unit)


def _from_pixels(xy, size):
    return 2 * xy / _last(size, xy) - 1


def _controls(n):
    line = np.linspace(-1, 1, n)
    return np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)


@functools.cache
def _grid_basis(height, width, control):
    """F of all pixels, [H * W, n * n + 3] float64, in reading order."""
    view = np.stack(np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height)), -1).reshape(-1, 2)
    square = ((view[:, None] - _controls(control)) ** 2).sum(-1)
    basis = np.concatenate([square * np.log(square + _EPS), np.ones((len(view), 1)), view], 1)
    basis.setflags(write=False)
    return basis


def _map(weights, view):
    """Map points [P,2] in corner coordinates; a sum over pairs, as a few points need no matrix product."""
    square = jnp.sum((view[:, None] - jnp.asarray(_controls(_control(weights)), view.dtype)) ** 2, -1)
    kernel = square * jnp.log(square + _EPS)
    bend = jnp.matmul(kernel, weights[:-3], precision="highest")
    return bend + weights[-3] + view[:, :1] * weights[-2] + view[:, 1:] * weights[-1]


def _slope(weights, view):
    """d source_i / d view_j, [P,2,2]: grad d^2 log(d^2 + e) = 2 (view - c) (log(d^2 + e) + d^2 / (d^2 + e))."""
    away = view[:, None] - jnp.asarray(_controls(_control(weights)), view.dtype)
    square = jnp.sum(away**2, -1, keepdims=True)
    gradient = 2 * away * (jnp.log(square + _EPS) + square / (square + _EPS))
    return jnp.einsum("pcj,ci->pij", gradient, weights[:-3], precision="highest") + weights[-2:].T
