"""How points move together: a linear model of shape, and the few points that tell most about all of them.

Everything here needs the mean and the covariance of the points alone, so a table of any number of images, on any number
of devices, is reduced to one small matrix first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_HIGHEST = jax.lax.Precision.HIGHEST


class FactorModel(NamedTuple):
    """x = mean + loadings z + noise, z ~ N(0, I), noise ~ N(0, diag(variances)).

    Attributes:
      loadings: [P,R].
      variances: [P].
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

    Unlike principal components it gives every coordinate a noise of its own: a point that wanders does not bend the
    factors that the steady ones share.

      B = (I + W' Psi^-1 W)^-1 W' Psi^-1,   W <- S B' (I - B W + B S B')^-1,   Psi <- diag(S - W B S)
    """
    diagonal = jnp.diagonal(cov)
    floor = 1e-4 * jnp.mean(diagonal) + jnp.finfo(cov.dtype).tiny
    values, vectors = jnp.linalg.eigh(cov)
    loadings = vectors[:, -factors:] * jnp.sqrt(jnp.maximum(values[-factors:], 0))
    variances = jnp.maximum(diagonal - jnp.sum(loadings**2, 1), 0.1 * diagonal + floor)

    def update(_, model):
        reader = posterior(model)
        product = jnp.matmul(cov, reader.T, precision=_HIGHEST)  # [P,R]
        inner = jnp.eye(factors, dtype=cov.dtype) - jnp.matmul(reader, model.loadings, precision=_HIGHEST)
        inner = inner + jnp.matmul(reader, product, precision=_HIGHEST)
        new = jnp.linalg.solve(inner.T, product.T).T
        return FactorModel(new, jnp.maximum(diagonal - jnp.sum(new * product, 1), floor))

    return jax.lax.fori_loop(0, iterations, update, FactorModel(loadings, variances))


def posterior(model: FactorModel):
    """[R,P]: takes x - mean to the expected factors."""
    scaled = model.loadings / model.variances[:, None]
    inner = jnp.eye(model.loadings.shape[1], dtype=scaled.dtype)
    inner = inner + jnp.matmul(model.loadings.T, scaled, precision=_HIGHEST)
    return jnp.linalg.solve(inner, scaled.T)


def choose_points(cov, target, k: int, strength: float = 0.01, prefer=None):
    """The k of M points from which a ridge regression best predicts a target: greedy, one point after the other.

    Args:
      cov: [M,2,M,2] covariance of the points' coordinates.
      target: [M,2,Q] covariance of the points with the target's Q coordinates.
      k: how many to choose, at most M.
      strength: of the ridge, in units of the largest variance of the chosen coordinates.
      prefer: [M], decides between points that are equally good to five digits; the first of them by default.

    Returns:
      [k] int32, in the order of choice.
    """
    points = cov.shape[0]

    def gain(chosen, count):
        """Target variance that the first `count` of `chosen` [k] explain."""
        there = jnp.repeat(jnp.arange(k) < count, 2)
        inner = cov[chosen][:, :, chosen].reshape(2 * k, 2 * k)
        inner = jnp.where(there[:, None] & there, inner, 0)
        cross = jnp.where(there[:, None], target[chosen].reshape(2 * k, -1), 0)
        penalty = strength * jnp.max(jnp.diagonal(inner))
        weights = jnp.linalg.solve(inner + jnp.diag(jnp.where(there, penalty, 1)), cross)
        explained = jnp.matmul(inner, weights, precision=_HIGHEST)
        return jnp.sum(weights * (2 * cross - explained))

    def add(i, chosen):
        gains = jax.vmap(lambda point: gain(chosen.at[i].set(point), i + 1))(jnp.arange(points, dtype=jnp.int32))
        taken = jnp.any(jnp.where(jnp.arange(k) < i, chosen, -1)[:, None] == jnp.arange(points), 0)
        gains = jnp.where(taken, -jnp.inf, gains)
        # Once all is explained the rest are nearly equal: rounding, which differs between machines, must not decide.
        best = gains >= jnp.max(gains) - 1e-5 * jnp.abs(jnp.max(gains))
        best = best if prefer is None else jnp.where(best, prefer, -jnp.inf)
        return chosen.at[i].set(jnp.argmax(best).astype(jnp.int32))

    return jax.lax.fori_loop(0, k, add, jnp.zeros(k, jnp.int32))
