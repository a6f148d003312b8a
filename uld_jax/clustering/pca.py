"""The first principal components of many rows, without their covariance, so that D may be ten thousand."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uld_jax import sharding
from uld_jax.errors import UserError

_MORE = 8  # additional directions, with which the wanted ones converge sooner


class Components(NamedTuple):
    """Directions in which rows differ most.

    Attributes:
      mean: [D], mean of the rows.
      directions: [C,D] of length 1 and at right angles, by falling variance. Their signs mean nothing.
      variances: [C], variances along the directions, divided by the number of rows less 1.
    """

    mean: jax.Array
    directions: jax.Array
    variances: jax.Array


def principal(x, count: int, mask=None, *, iterations: int = 30) -> Components:
    """The `count` first principal components of rows x, by subspace iteration.

    A few random directions are multiplied by the covariance and made orthogonal again, `iterations` times; the error
    falls by (lambda_later / lambda_first) each time, squared for the variances.

    Args:
      x: [N,D] float, on one device or split over a mesh on axis 0; masked rows may hold anything.
      count: C, number of components, up to D.
      mask: [N] bool; None for all rows.
      iterations: products with the covariance; each reads x twice.

    Raises:
      UserError: a shape or number that has no meaning.

    >>> principal(jnp.array([[4.0, 6.0], [-2.0, -2.0], [1.0, 2.0]]), 1).variances.round().tolist()
    [25.0]
    """
    x, mask = sharding.arrays(x, mask)
    if x.ndim != 2 or not len(x) or (mask is not None and mask.shape != x.shape[:1]):
        raise UserError(
            f"principal got rows {x.shape} and mask {None if mask is None else mask.shape}; give [N,D] and [N]"
        )
    if not 1 <= count <= x.shape[1] or iterations < 1:
        raise UserError(
            f"principal got count={count} and iterations={iterations} for {x.shape[1]} columns; use 1 to "
            f"{x.shape[1]} components and at least one iteration"
        )
    mask = jnp.ones(len(x), bool) if mask is None else mask
    return _principal(x, mask, count=count, iterations=iterations)


@functools.partial(jax.jit, static_argnames=("count", "iterations"))
def _principal(x, mask, *, count, iterations):
    rows = jnp.maximum(jnp.sum(mask), 2).astype(x.dtype)
    x = jnp.where(mask[:, None], x, 0)
    mean = jnp.sum(x, 0) / jnp.maximum(jnp.sum(mask), 1).astype(x.dtype)
    x = jnp.where(mask[:, None], x - mean, 0)

    def times_covariance(directions):
        along = jnp.matmul(x, directions, precision="highest")
        return jnp.einsum("nd,nc->dc", x, along, precision="highest") / (rows - 1)

    def turn(_, directions):
        return jnp.linalg.qr(times_covariance(directions))[0]

    some = min(count + _MORE, x.shape[1])
    start = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (x.shape[1], some), x.dtype))[0]
    basis = jax.lax.fori_loop(0, iterations, turn, start)
    # Decompose exactly within the subspace.
    small = jnp.matmul(basis.T, times_covariance(basis), precision="highest")
    variances, turned = jnp.linalg.eigh((small + small.T) / 2)
    directions = jnp.matmul(basis, turned, precision="highest")
    return Components(mean, directions.T[::-1][:count], jnp.maximum(variances[::-1][:count], 0))
