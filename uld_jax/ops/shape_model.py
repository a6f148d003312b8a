"""A linear model of shape (how points move together), and the choice of the few points that best predict all others.

Everything here needs the mean and the covariance of the points alone, so a table of any number of images, on any number
of devices, is reduced to one small matrix first.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

_HIGHEST = jax.lax.Precision.HIGHEST


class FactorModel(NamedTuple):
    """x = mean + loadings z + noise, z ~ N(0, I), noise ~ N(0, diag(variances)).

    Attributes:
      loadings: [P,R], effect of R factors on P coordinates.
      variances: [P], noise variances of the coordinates.
    """

    loadings: jax.Array
    variances: jax.Array


def covariance(x, weights):
    """Weighted mean [P] and covariance [P,P] of rows x [N,P]; rows of weight 0 may hold anything."""
    weights = weights.astype(x.dtype)
    x = jnp.where(weights[:, None] > 0, x, 0)
    total = jnp.maximum(jnp.sum(weights), 1e-12)
    mean = jnp.einsum("n,np->p", weights, x, precision=_HIGHEST) / total
    x = x - mean
    return mean, jnp.einsum("n,np,nq->pq", weights, x, x, precision=_HIGHEST) / total


def factor_analysis(cov, factors: int, iterations: int = 300) -> FactorModel:
    """Maximum-likelihood factor analysis of a covariance [P,P] by expectation-maximisation (Rubin and Thayer 1982).

    Unlike principal component analysis it gives every coordinate a noise of its own, so that an unsteady point does not
    distort the factors that the steady ones share.

      B = (I + W' Psi^-1 W)^-1 W' Psi^-1,   W <- S B' (I - B W + B S B')^-1,   Psi <- diag(S - W B S)
    """
    diagonal = jnp.diagonal(cov)
    floor = 1e-4 * jnp.mean(diagonal) + jnp.finfo(cov.dtype).tiny
    values, vectors = _largest(cov, factors)
    loadings = vectors * jnp.sqrt(jnp.maximum(values, 0))
    variances = jnp.maximum(diagonal - jnp.sum(loadings**2, 1), 0.1 * diagonal + floor)

    def update(_, model):
        reader = posterior(model)
        product = jnp.matmul(cov, reader.T, precision=_HIGHEST)  # [P,R]
        inner = jnp.eye(factors, dtype=cov.dtype) - jnp.matmul(reader, model.loadings, precision=_HIGHEST)
        inner = inner + jnp.matmul(reader, product, precision=_HIGHEST)
        new = jnp.linalg.solve(inner.T, product.T).T
        return FactorModel(new, jnp.maximum(diagonal - jnp.sum(new * product, 1), floor))

    return jax.lax.fori_loop(0, iterations, update, FactorModel(loadings, variances))


def _largest(cov, count: int):
    """The `count` largest eigenvalues of a covariance [P,P], rising, and their eigenvectors [P,count].

    A full decomposition takes some P^3 sequential steps, a minute on two cores for P = 2400. For large matrices the
    eigenvectors therefore come from subspace iteration, with twice the directions for faster convergence.
    """
    if len(cov) <= 512:
        values, vectors = jnp.linalg.eigh(cov)
        return values[-count:], vectors[:, -count:]
    product = functools.partial(jnp.matmul, precision=_HIGHEST)
    start = jax.random.normal(jax.random.key(0), (len(cov), 2 * count), cov.dtype)
    turn = lambda _, basis: jnp.linalg.qr(product(cov, basis))[0]
    basis = jax.lax.fori_loop(0, 50, turn, jnp.linalg.qr(start)[0])
    values, vectors = jnp.linalg.eigh(product(basis.T, product(cov, basis)))
    return values[-count:], product(basis, vectors[:, -count:])


def posterior(model: FactorModel):
    """The matrix [R,P] that maps x - mean to the expected factors."""
    scaled = model.loadings / model.variances[:, None]
    inner = jnp.eye(model.loadings.shape[1], dtype=scaled.dtype)
    inner = inner + jnp.matmul(model.loadings.T, scaled, precision=_HIGHEST)
    return jnp.linalg.solve(inner, scaled.T)


def choose_points(cov, target, k: int, strength: float = 0.01, prefer=None):
    """Choose greedily the k of M points from which a ridge regression best predicts a target.

    With C the covariance of the chosen coordinates, X theirs with the target, and A = C + lambda I, a regression
    explains tr(X' A^-1 X) + lambda tr(X' A^-2 X) of the target's variance. A further point p borders A by the columns
    b and the corner c. With its Schur complement s = c + lambda I - b' A^-1 b and r = x - b' A^-1 X, the solution grows
    by T = s^-1 r, so that a candidate costs products with A^-1 alone. As lambda may differ between candidates (see
    `strength`), A^-1 comes from the eigenvectors of C, which are those of A for every lambda.

    Args:
      cov: [M,2,M,2] covariance of the points' coordinates.
      target: [M,2,Q] covariance of the points with the target's Q coordinates. A rotation of these coordinates does not
        change the choice, so a target of low rank is best given by as many coordinates as its rank.
      k: number of points to choose, at most M.
      strength: strength of the ridge, in units of the largest variance of the chosen coordinates.
      prefer: [M] numbers that decide between points that are equally good to five digits; the first one by default.

    Returns:
      [k] int32, in the order of choice.
    """
    chosen = jnp.zeros(k, jnp.int32)
    first = 0
    while first < k:  # in stretches, because the first points need fewer slots and so less time than the last
        last = min(k, max(2 * first, 16))
        add = functools.partial(_add_point, cov, target, strength, prefer, last)
        chosen, first = jax.lax.fori_loop(first, last, add, chosen), last
    return chosen


def _add_point(cov, target, strength, prefer, slots, i, chosen):
    """Add point number i, which is below `slots`, to `chosen` [k]."""
    points = jnp.arange(len(cov), dtype=jnp.int32)
    gains = _gains(cov, target, strength, chosen[:slots], i)
    taken = jnp.any(jnp.where(jnp.arange(slots) < i, chosen[:slots], -1)[:, None] == points, 0)
    gains = jnp.where(taken, -jnp.inf, gains)
    # Once all variance is explained, gains are nearly equal: rounding, which differs between machines, must not decide.
    best = gains >= jnp.max(gains) - 1e-5 * jnp.abs(jnp.max(gains))
    best = best if prefer is None else jnp.where(best, prefer, -jnp.inf)
    return chosen.at[i].set(jnp.argmax(best).astype(jnp.int32))


def _gains(cov, target, strength, chosen, count):
    """The target's variance [M] that the first `count` of `chosen` [S] explain together with each of the M points."""
    product = functools.partial(jnp.einsum, precision=_HIGHEST)
    points, slots = len(cov), 2 * len(chosen)
    there = jnp.repeat(jnp.arange(len(chosen)) < count, 2)
    both = there[:, None] & there
    own = jnp.moveaxis(jnp.diagonal(cov, axis1=0, axis2=2), -1, 0)  # [M,2,2]
    size = jnp.max(jnp.diagonal(own, axis1=1, axis2=2), -1)
    largest = jnp.maximum(jnp.max(jnp.where(there[::2], size[chosen], 0), initial=0), size)
    ridge = strength * jnp.where(largest > 0, largest, 1)  # [M]

    inner = jnp.where(both, cov[chosen][:, :, chosen].reshape(slots, slots), 0)
    inner = inner + jnp.diag(jnp.where(there, 0, jnp.max(size)))  # empty slots have no covariance with others
    values, vectors = jnp.linalg.eigh(inner)
    turned = jnp.where(there[:, None], vectors, 0).T
    cross = product("es,smc->mce", turned, cov[chosen].reshape(slots, points, 2))
    aim = product("es,sq->eq", turned, target[chosen].reshape(slots, -1))
    inverse = 1 / (values + ridge[:, None])  # [M,S]

    solved = cross * inverse[:, None]  # b' A^-1
    schur = own + ridge[:, None, None] * jnp.eye(2, dtype=own.dtype) - product("mce,mde->mcd", cross, solved)
    rest = target - product("mce,eq->mcq", solved, aim)
    grown = product("mcd,mdq->mcq", jnp.linalg.inv(schur), rest)
    weight = jnp.sum(aim**2, -1)
    first = product("me,e->m", inverse + ridge[:, None] * inverse**2, weight) + jnp.sum(rest * grown, (1, 2))
    moved = product("mce,eq->mcq", solved * inverse[:, None], aim)
    squares = product("mce,mde->mcd", solved, solved) + jnp.eye(2, dtype=own.dtype)
    return first + ridge * jnp.sum(grown * (product("mcd,mdq->mcq", squares, grown) - 2 * moved), (1, 2))
