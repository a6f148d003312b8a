import doctest

import jax
import numpy as np
import pytest
from sklearn.decomposition import PCA

from uld_jax.clustering import pca
from uld_jax.errors import UserError


def rows(count, size, seed=0, decay=0.7, dtype=np.float32):
    """Rows whose spread falls by `decay` from one direction to the next, far from the origin."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(size, size)))[0]
    return ((rng.normal(size=(count, size)) * decay ** np.arange(size)) @ turn + rng.normal(0, 5, size)).astype(dtype)


def test_examples():
    assert doctest.testmod(pca) == (0, 1)


@pytest.mark.parametrize(("count", "size", "decay"), [(1, 50, 0.9), (4, 50, 0.8), (12, 12, 0.8)])
def test_components_are_those_of_sklearn(count, size, decay):
    x = rows(300, size, decay=decay, dtype=np.float64)
    expected = PCA(count, svd_solver="full").fit(x)
    with jax.enable_x64(True):
        found = pca.principal(x, count, iterations=60)
    np.testing.assert_allclose(found.mean, expected.mean_, atol=1e-10)
    np.testing.assert_allclose(found.variances, expected.explained_variance_, rtol=1e-7)
    cosines = np.abs(np.sum(np.asarray(found.directions) * expected.components_, -1))
    np.testing.assert_allclose(cosines, 1, atol=1e-7)
    directions = np.asarray(found.directions)
    np.testing.assert_allclose(directions @ directions.T, np.eye(count), atol=1e-10)


def test_float32_and_masked_rows():
    x, mask = rows(400, 30), np.random.default_rng(1).random(400) < 0.5
    spoiled = np.where(mask[:, None], x, np.nan)
    found = pca.principal(spoiled, 2, mask)
    expected = PCA(2, svd_solver="full").fit(x[mask].astype(np.float64))
    np.testing.assert_allclose(found.mean, expected.mean_, atol=1e-4)
    np.testing.assert_allclose(found.variances, expected.explained_variance_, rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(found.directions * expected.components_, -1)), 1, atol=1e-5)
    empty = pca.principal(spoiled, 2, np.zeros(400, bool))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(empty))


def test_bad_input_is_named():
    for arguments, word in (
        ((np.ones(3), 1), r"rows \(3,\)"),
        ((np.ones((3, 2)), 1, np.ones(2, bool)), r"mask \(2,\)"),
        ((np.ones((3, 2)), 3), "count=3"),
    ):
        with pytest.raises(UserError, match=word):
            pca.principal(*arguments)
