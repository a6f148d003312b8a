"""Matrix completion by singular value thresholding (Cai, Candes & Shen, SIAM J. Optimization 2010).

Mallis et al. (NeurIPS 2020) discover landmarks that are not found on every image. Before a regressor is fitted, the
matrix of training coordinates, images by 2K, is completed: the missing entries are chosen so that the matrix has a
small nuclear norm, as shapes of one object category lie near a subspace. The published code calls `svt_solve` of the
Python package `matrix-completion` 0.0.2 with its defaults; the defaults here are the same.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.errors import UserError

_HIGHEST = jax.lax.Precision.HIGHEST


class Completion(NamedTuple):
    """A completed matrix.

    Attributes:
      x: [n,m], the known entries as given, and the others filled in.
      iterations: int32, number of iterations done.
      residual: relative error at the known entries, |known * (X - A)| / |known * A|, of the X that filled the others.
    """

    x: jax.Array
    iterations: jax.Array
    residual: jax.Array


def complete(x, known, *, tau=None, delta=None, epsilon=1e-2, iterations: int = 1000) -> Completion:
    """Fill in the unknown entries of a matrix A that is nearly of low rank.

    P keeps the known entries, and shrink subtracts tau from every singular value, but goes no lower than 0:

      Y = 0;   repeat   X = shrink(Y, tau),   Y = Y + delta * P(A - X)   until |P(X - A)| < epsilon * |P(A)|

    The limit is the matrix of least tau * |X|_nuclear + |X|^2 / 2 that agrees with A where it is known (Theorem 4.2
    of Cai et al.). The scale of A matters, as tau is absolute: Mallis et al. give coordinates as shares of the side, in
    0..1, which are far below the default tau.

    X = Y V max(0, 1 - tau / s) V', with V and s^2 from the eigen-decomposition of the smaller of Y'Y and YY'. Squaring
    costs half of the digits of small singular values, but those below tau vanish anyway. With the default tau the
    others are barely above it, so that float32 is enough; a tau far below the largest singular value needs
    `jax.enable_x64`.

    Convergence is certain for delta < 2 (Theorem 4.2). The default exceeds that if less than 60 % is known; if the
    residual then grows again, the X of least residual is taken.

    Args:
      x: [n,m] float; unknown entries may hold anything, NaN too.
      known: [n,m] bool.
      tau: number subtracted from singular values; None: 5 * (n + m) / 2.
      delta: step size; None: 1.2 * n * m / (number of known entries).
      epsilon: relative residual to stop at.
      iterations: largest number of iterations.

    Returns:
      Completion, float64 if `jax.enable_x64` is on and float32 otherwise. The equations do not determine a row or a
      column without a known entry (X is 0 there): such a row gets the means of the columns, such a column is 0.

    Raises:
      UserError: x or known has another shape.

    >>> a = jnp.outer(jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([1.0, 2.0, 1.0]))
    >>> found = complete(a, jnp.ones((4, 3), bool).at[0, 1].set(False), tau=100.0, epsilon=1e-3)
    >>> found.x[0].round(1).tolist()  # the 2 was missing
    [1.0, 2.0, 1.0]
    """
    x, known = jnp.asarray(x), jnp.asarray(known)
    if x.ndim != 2 or known.shape != x.shape:
        raise UserError(f"complete got x {x.shape} and known {known.shape}; give two matrices of the same shape")
    return _complete(x, known, tau, delta, epsilon, iterations=iterations)


@functools.partial(jax.jit, static_argnames="iterations")
def _complete(x, known, tau, delta, epsilon, *, iterations):
    known = known.astype(bool)
    given = jnp.where(known, x, 0).astype(jnp.result_type(float))
    counts = jnp.sum(known, 0)
    if not x.size:
        return Completion(given, jnp.int32(0), jnp.zeros((), given.dtype))
    tau = 5 * sum(x.shape) / 2 if tau is None else tau
    delta = 1.2 * x.size / jnp.maximum(jnp.sum(counts), 1) if delta is None else delta
    tall = x.shape[0] >= x.shape[1]
    filled, count, residual = _threshold(
        *((given, known) if tall else (given.T, known.T)), tau, delta, epsilon, iterations
    )
    filled = filled if tall else filled.T
    means = jnp.sum(given, 0) / jnp.maximum(counts, 1)
    filled = jnp.where(known.any(1, keepdims=True), filled, means)
    return Completion(jnp.where(known, given, jnp.where(counts > 0, filled, 0)), count, residual)


def _threshold(given, known, tau, delta, epsilon, most):
    """Iterate on a matrix with no more columns than rows; return X of least residual, iterations and that residual."""
    size = jnp.linalg.norm(given)

    def shrunk(y):
        squares, v = jnp.linalg.eigh(jnp.matmul(y.T, y, precision=_HIGHEST))
        s = jnp.sqrt(jnp.maximum(squares, 0))
        keep = jnp.where(s > tau, 1 - tau / jnp.where(s > tau, s, 1), 0)
        return jnp.matmul(y, jnp.matmul(v * keep, v.T, precision=_HIGHEST), precision=_HIGHEST)

    def step(state):
        count, y, best, least, _ = state
        x = shrunk(y)
        error = jnp.where(known, given - x, 0)
        residual = jnp.where(size > 0, jnp.linalg.norm(error) / jnp.where(size > 0, size, 1), 0)
        better = residual <= least
        return count + 1, y + delta * error, jnp.where(better, x, best), jnp.where(better, residual, least), residual

    infinite = jnp.array(jnp.inf, given.dtype)
    start = (jnp.int32(0), jnp.zeros_like(given), jnp.zeros_like(given), infinite, infinite)
    count, _, best, least, _ = jax.lax.while_loop(lambda s: (s[0] < most) & (s[4] >= epsilon), step, start)
    return best, count, least
