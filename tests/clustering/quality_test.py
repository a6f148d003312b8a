"""Cluster quality against scikit-learn."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from uld_jax.clustering import quality


def data(seed, rows=300, sides=9, clusters=7, offset=0.0, spread=0.4):
    """Rows around centres that some labels have wrong; of `clusters` labels the third and the last are never used."""
    rng = np.random.default_rng(seed)
    used = np.setdiff1d(np.arange(clusters), [2, clusters - 1])
    labels = rng.choice(used, rows)
    labels[:1] = used[-1]
    centres = rng.normal(size=(clusters, sides))
    x = centres[labels] + spread * rng.normal(size=(rows, sides)) + offset
    wrong = rng.random(rows) < 0.1
    labels = np.where(wrong, rng.choice(used, rows), labels)
    return x.astype(np.float32), labels.astype(np.int32), rng.random(rows) < 0.8


MEASURES = [
    (quality.silhouette, metrics.silhouette_score),
    (quality.calinski_harabasz, metrics.calinski_harabasz_score),
]


@pytest.mark.parametrize(("ours", "theirs"), MEASURES)
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_masks_and_empty_clusters_equal_scikit_learn(ours, theirs, offset):
    for seed in range(4):
        x, labels, mask = data(seed, offset=offset)
        expected = theirs(x[mask].astype(np.float64), labels[mask])
        # Masked rows may hold anything, and so may their labels.
        dirty = np.where(mask[:, None], x, np.nan)
        np.testing.assert_allclose(ours(dirty, labels, mask, clusters=7), expected, rtol=1e-4)
        np.testing.assert_allclose(ours(dirty, np.where(mask, labels, -1), clusters=7), expected, rtol=1e-4)


@pytest.mark.parametrize("block", [1, 64, 300, 1000])
def test_the_block_does_not_matter(block):
    x, labels, mask = data(5)
    expected = metrics.silhouette_score(x[mask].astype(np.float64), labels[mask])
    np.testing.assert_allclose(quality.silhouette(x, labels, mask, clusters=7, block=block), expected, rtol=1e-4)


def test_rows_alone_in_their_cluster_and_equal_rows():
    x, labels, _ = data(6, rows=40)
    labels = np.where(np.arange(40) < 3, 50 + np.arange(40), labels)  # three rows alone
    x[10] = x[11] = x[12]
    for ours, theirs in MEASURES:
        np.testing.assert_allclose(ours(x, labels, clusters=53), theirs(x.astype(np.float64), labels), rtol=1e-4)
    same = np.repeat(np.float32([[0, 0], [3, 4]]), 5, 0)
    for ours, theirs in MEASURES:
        expected = theirs(same, np.repeat([0, 1], 5))
        np.testing.assert_allclose(ours(same, np.repeat([0, 1], 5), clusters=2), expected, rtol=1e-6)
        assert ours(np.ones((6, 2), np.float32), np.arange(6) % 2, clusters=2) == theirs(
            np.ones((6, 2)), np.arange(6) % 2
        )


def test_what_is_not_defined_is_0():
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    for ours, _ in MEASURES:
        assert ours(x, np.full(8, 3), clusters=5) == 0
        assert ours(x, np.arange(8), np.zeros(8, bool), clusters=8) == 0
    assert quality.silhouette(x, np.arange(8), clusters=8) == 0  # every row alone


def test_float64_stays_float64():
    with jax.enable_x64(True):
        x, labels, mask = data(7)
        for ours, theirs in MEASURES:
            found = ours(jnp.asarray(x, jnp.float64), labels, mask, clusters=7)
            assert found.dtype == jnp.float64
            np.testing.assert_allclose(found, theirs(x[mask].astype(np.float64), labels[mask]), rtol=1e-10)


def test_many_rows_need_a_block_of_distances_and_no_more():
    x, labels = jnp.zeros((16_000, 64)), jnp.zeros(16_000, jnp.int32)
    memory = quality.silhouette.lower(x, labels, clusters=100).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 512 * 16_000 * 4 + 4 * 16_000 * 300  # a few blocks, and the one-hot labels


def test_examples():
    result = doctest.testmod(quality)
    assert result.attempted >= 2
    assert result.failed == 0
