"""Places of clusters in images and on maps, against loops in NumPy; `tests/methods/duld_test.py` has whole rounds."""

import jax.numpy as jnp
import numpy as np

from uld_jax.clustering import two_stage

K, P, D = 3, 6, 8


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_exemplars_equal_loops():
    rng = np.random.default_rng()
    z, mask = unit(rng.normal(size=(5, P, D))), rng.random((5, P)) < 0.7
    centroids, used = unit(rng.normal(size=(2, K, D))), np.array([[True] * K, [True, False, True]])
    pose = rng.integers(0, 2, 5)
    slots, _ = two_stage.exemplars(*map(jnp.asarray, (z, mask, pose, centroids, used)))
    want = np.full((5, K), -1)
    for b in range(5):
        distance = np.sum((z[b][:, None] - centroids[pose[b]]) ** 2, -1)
        distance[:, ~used[pose[b]]] = np.inf
        label = np.argmin(distance, 1)
        for k in range(K):
            of = [p for p in range(P) if mask[b, p] and label[p] == k]
            if of:
                want[b, k] = min(of, key=lambda p: distance[p, k])
    np.testing.assert_array_equal(slots, want)


def test_matches_equal_loops():
    rng = np.random.default_rng()
    logits, z = rng.normal(size=(2, 16, 12)), unit(rng.normal(size=(2, 16, 12, D)))
    centroids, inside = unit(rng.normal(size=(2, K, D))), rng.random((2, 16, 12)) < 0.5
    given = [jnp.asarray(x) for x in (z, inside, centroids)]
    best, least = two_stage.matches(*given)
    mean, same = two_stage.mean_matches(*given, jnp.asarray(logits), 7.0)
    np.testing.assert_array_equal(least, same)
    y, x = np.mgrid[:16, :12]
    for b in range(2):
        for k in range(K):
            square = np.where(inside[b], np.sum((z[b] - centroids[b, k]) ** 2, -1), np.inf)
            weight = np.exp(-7 * square) / (1 + np.exp(-logits[b]))
            want = np.array([np.sum(weight * x), np.sum(weight * y)]) / np.sum(weight)
            np.testing.assert_allclose(mean[b, k], want, atol=1e-3)
            np.testing.assert_allclose(least[b, k], square.min(), atol=1e-4)
            row, column = np.unravel_index(np.argmin(square), square.shape)
            np.testing.assert_array_equal(best[b, k], (column, row))
