import itertools

import jax
import jax.numpy as jnp
import numpy as np
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
