"""Outlier removal against scikit-learn's neighbours."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from tests import tiny
from uld_jax.clustering import outliers
from uld_jax.errors import UserError


def rows(seed, n=700):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8)) + 4 * rng.normal(size=(5, 8))[rng.integers(0, 5, n)]
    x[: n // 5] *= 3
    return x.astype(np.float32), rng.random(n) < 0.8


@pytest.mark.parametrize(("neighbours", "share"), [(20, 0.4), (7, 0.25)])
def test_the_rows_of_largest_median_distance_go(neighbours, share):
    x, mask = rows(neighbours)
    real = x[mask].astype(np.float64)
    distances, _ = NearestNeighbors(n_neighbors=neighbours).fit(real).kneighbors(real)
    score = np.median(distances**2, 1)
    want = score < np.sort(score)[int((1 - share) * (len(real) - 1))]
    poisoned = jnp.asarray(np.where(mask[:, None], x, np.nan))
    found = np.asarray(outliers.inliers(poisoned, jnp.asarray(mask), share=share, neighbours=neighbours))
    assert not found[~mask].any()
    np.testing.assert_array_equal(found[mask], want)


def test_a_sample_tells_nearly_the_same_and_few_rows_are_their_own_neighbours():
    x, mask = rows(3, 3000)
    whole = np.asarray(outliers.inliers(x, mask, neighbours=40))
    part = np.asarray(outliers.inliers(x, mask, neighbours=20, sample=1500))
    assert (whole == part).mean() > 0.95
    few = np.asarray(outliers.inliers(x[:5], neighbours=100))
    assert few.sum() == 2  # those below the score at int(0.6 * 4)
    assert not np.asarray(outliers.inliers(x[:5], np.zeros(5, bool))).any()


DEVICES = """
import jax, numpy as np, jax.numpy as jnp
from uld_jax import sharding
from uld_jax.clustering.outliers import inliers
mesh = sharding.make_mesh()
assert mesh.size == 8
rng = np.random.default_rng(0)
x, mask = rng.normal(size=(1600, 8)).astype(np.float32), rng.random(1600) < 0.9
one = np.asarray(inliers(x, mask, neighbours=10))
eight = np.asarray(inliers(*sharding.put_batch(mesh, (x, mask)), neighbours=10))
np.testing.assert_array_equal(one, eight)
"""


def test_eight_devices_agree_with_one():
    tiny.run("-c", DEVICES, devices=8)


def test_what_means_nothing_is_refused():
    with pytest.raises(UserError, match="share"):
        outliers.inliers(jnp.ones((4, 2)), share=1.0)
    with pytest.raises(UserError, match="give"):
        outliers.inliers(jnp.ones((4, 2)), jnp.ones(3, bool))


def test_examples():
    assert doctest.testmod(outliers).failed == 0


def test_it_works_inside_jit():
    x, mask = rows(4)
    np.testing.assert_array_equal(jax.jit(outliers.inliers)(x, mask), outliers.inliers(x, mask))
