"""Keypoints of the background against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.clustering import background


def test_keypoints_stay_that_are_nearer_to_a_cluster_inside():
    rng = np.random.default_rng(0)
    x, mask, inside = rng.normal(size=(5, 9, 4)), rng.random((5, 9)) < 0.8, rng.random((5, 9)) < 0.6
    sides = [background.Sides(rng.normal(size=(n, 4)), np.arange(n) != 1) for n in (3, 4)]  # of which one is empty
    near = [((x[..., None, :] - s.centroids[s.used]) ** 2).sum(-1).min(-1) for s in sides]
    poisoned = jnp.asarray(np.where(mask[..., None], x, np.nan), jnp.float32)
    given = jax.tree.map(jnp.asarray, tuple(sides))
    found = background.foreground(given, poisoned, jnp.asarray(mask), jnp.asarray(inside))
    np.testing.assert_array_equal(found, mask & inside & (near[0] < near[1]))
    assert 0 < np.asarray(found).sum() < (mask & inside).sum()


def test_each_side_has_clusters_of_its_own_keypoints():
    rng = np.random.default_rng(1)
    inside, mask = rng.random((2, 3, 20)) < 0.5, rng.random((2, 3, 20)) < 0.9
    x = rng.normal(size=(2, 3, 20, 4)) + np.where(inside, 10, -10)[..., None]
    arrays = map(jnp.asarray, (np.where(mask[..., None], x, np.nan), mask, inside))
    on, beside = background.form(*arrays, jax.random.split(jax.random.key(0)), counts=(3, 5))
    assert (on.centroids.shape, beside.centroids.shape) == ((3, 4), (5, 4))
    assert on.used.all()
    assert beside.used.all()
    assert np.asarray(on.centroids).min() > 0 > np.asarray(beside.centroids).max()
    keep = background.foreground((on, beside), *(jnp.asarray(v[0]) for v in (x, mask, inside)))
    np.testing.assert_array_equal(keep, mask[0] & inside[0])
