import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import FactorAnalysis

from uld_jax.ops import shape_model


def data(rng, n=4000, p=12, r=3):
    loadings = rng.normal(size=(p, r))
    noise = rng.uniform(0.2, 1.5, p)
    return rng.normal(size=(n, r)) @ loadings.T + rng.normal(size=(n, p)) * noise + rng.normal(size=p)


def test_covariance_equals_numpy_and_ignores_masked_rows():
    rng = np.random.default_rng(0)
    x = data(rng, 50)
    keep = rng.random(50) < 0.7
    spoiled = np.where(keep[:, None], x, np.nan)
    mean, cov = shape_model.covariance(jnp.asarray(spoiled, jnp.float32), jnp.asarray(keep))
    np.testing.assert_allclose(mean, x[keep].mean(0), atol=1e-5)
    np.testing.assert_allclose(cov, np.cov(x[keep].T, bias=True), atol=1e-4)


def test_factor_analysis_equals_scikit_learn():
    x = data(np.random.default_rng(1), 600)
    x = x - x.mean(0)
    theirs = FactorAnalysis(3, tol=1e-8, max_iter=1000, svd_method="lapack").fit(x)
    ours = jax.jit(lambda c: shape_model.factor_analysis(c, 3, 2000))(jnp.asarray(x.T @ x / len(x), jnp.float32))
    np.testing.assert_allclose(ours.variances, theirs.noise_variance_, rtol=0.01)
    np.testing.assert_allclose(ours.loadings @ ours.loadings.T, theirs.components_.T @ theirs.components_, atol=0.02)
    denoised = x @ (ours.loadings @ shape_model.posterior(ours)).T
    np.testing.assert_allclose(denoised, theirs.transform(x) @ theirs.components_, atol=0.02)


def test_factor_analysis_of_many_coordinates_equals_scikit_learn():
    rng = np.random.default_rng(5)  # more than 512 columns, whose eigenvectors are found in another way
    x = data(rng, 300, 520)
    x = x - x.mean(0)
    theirs = FactorAnalysis(3, tol=1e-8, max_iter=1000, svd_method="lapack").fit(x)
    ours = jax.jit(lambda c: shape_model.factor_analysis(c, 3))(jnp.asarray(x.T @ x / len(x), jnp.float32))
    np.testing.assert_allclose(ours.variances, theirs.noise_variance_, rtol=0.01)
    np.testing.assert_allclose(ours.loadings @ ours.loadings.T, theirs.components_.T @ theirs.components_, atol=0.02)


def test_the_first_points_chosen_are_those_that_a_search_finds():
    rng = np.random.default_rng(2)
    m, k = 7, 3
    x = data(rng, 500, 2 * m)
    x -= x.mean(0)
    cov = x.T @ x / len(x)
    chosen = shape_model.choose_points(
        jnp.asarray(cov.reshape(m, 2, m, 2), jnp.float32), jnp.asarray(cov.reshape(m, 2, 2 * m), jnp.float32), k
    )

    def error(points):
        columns = [c for p in points for c in (2 * p, 2 * p + 1)]
        inner = cov[np.ix_(columns, columns)]
        w = np.linalg.solve(inner + 0.01 * inner.diagonal().max() * np.eye(len(columns)), cov[columns])
        return ((x - x[:, columns] @ w) ** 2).mean()

    greedy = []
    for _ in range(k):
        greedy.append(min((p for p in range(m) if p not in greedy), key=lambda p: error([*greedy, p])))
    assert chosen.tolist() == greedy
    best = min(error(c) for c in itertools.combinations(range(m), k))
    assert error(greedy) < 1.3 * best


def gains_of(cov, target, chosen, strength=0.01):
    """What each point would explain together with those chosen, in float64, every regression solved anew."""
    m = len(cov)
    inner, cross = cov.reshape(2 * m, 2 * m).astype(np.float64), target.reshape(2 * m, -1).astype(np.float64)
    gains = np.full(m, -np.inf)
    for p in set(range(m)) - set(chosen):
        at = [c for q in (*chosen, p) for c in (2 * q, 2 * q + 1)]
        own, with_target = inner[np.ix_(at, at)], cross[at]
        w = np.linalg.solve(own + strength * own.diagonal().max() * np.eye(len(at)), with_target)
        gains[p] = np.sum(w * (2 * with_target - own @ w))
    return gains


def searched(cov, target, k, prefer):
    """The greedy choice by its definition."""
    chosen = []
    for _ in range(k):
        gains = gains_of(cov, target, chosen)
        best = gains >= gains.max() - 1e-5 * abs(gains.max())
        chosen.append(int(np.argmax(np.where(best, prefer, -np.inf))))
    return chosen


def of_points(rng, m, rank):
    """Covariance [M,2,M,2] of points of very different size, of low rank, or of full rank where `rank` is 0."""
    size = np.exp(0.7 * rng.normal(size=2 * m))
    loadings = rng.normal(size=(2 * m, rank or 2 * m)) * size[:, None]
    cov = loadings @ loadings.T / loadings.shape[1] + (0 if rank else np.diag(size**2))
    return cov.reshape(m, 2, m, 2)


chosen_of = jax.jit(shape_model.choose_points, static_argnums=2)


@pytest.mark.parametrize(("m", "k", "rank"), [(30, 10, 5), (60, 10, 0), (70, 30, 0)])
def test_the_choice_is_that_of_its_definition(m, k, rank):
    for seed in range(2):
        rng = np.random.default_rng((m, k, rank, seed))
        cov, prefer = of_points(rng, m, rank), rng.normal(size=m)
        target = np.einsum("mcnd,ndq->mcq", cov, rng.normal(size=(m, 2, 7)))
        cov, target, prefer = (np.asarray(x, np.float32) for x in (cov, target, prefer))
        found = chosen_of(*map(jnp.asarray, (cov, target)), k, prefer=jnp.asarray(prefer)).tolist()
        assert found == searched(cov, target, k, prefer)


@pytest.mark.parametrize("rank", [0, 5])
def test_every_point_is_as_good_as_its_definition_wants(rank):
    # 35 is beyond the first stretches of 16 and 32 points. Of low rank, all is explained long before, and the choice
    # is among points that are equally good: to 1e-5 by definition, to 0.5e-5 or 2e-5 with the rounding of float32.
    rng = np.random.default_rng(3)
    m, k = 40, 35
    cov = np.asarray(of_points(rng, m, rank), np.float32)
    target, prefer = cov.reshape(m, 2, 2 * m), np.asarray(rng.normal(size=m), np.float32)
    found = chosen_of(jnp.asarray(cov), jnp.asarray(target), k, prefer=jnp.asarray(prefer)).tolist()
    assert len(set(found)) == k
    for i, point in enumerate(found):
        gains = gains_of(cov, target, found[:i])
        assert gains[point] >= gains.max() * (1 - 2e-5)
        assert prefer[point] >= prefer[gains >= gains.max() * (1 - 0.5e-5)].max()


def test_a_turned_target_of_low_rank_gives_the_same_choice():
    rng = np.random.default_rng(4)
    m, k = 30, 12
    cov = of_points(rng, m, 4)
    few = np.einsum("mcnd,ndq->mcq", cov, rng.normal(size=(m, 2, 5)))
    turn, _ = np.linalg.qr(rng.normal(size=(40, 5)))
    cov, few, many = (jnp.asarray(x, jnp.float32) for x in (cov, few, few @ turn.T))
    assert chosen_of(cov, few, k).tolist() == chosen_of(cov, many, k).tolist()


def test_points_that_never_move_are_chosen_once_each():
    zeros = jnp.zeros((5, 2, 5, 2))
    assert chosen_of(zeros, zeros.reshape(5, 2, 10), 3, prefer=jnp.arange(5.0)).tolist() == [4, 3, 2]
