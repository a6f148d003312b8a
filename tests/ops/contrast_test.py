"""Pair losses and SiLK's objective against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.ops import contrast

N, D = 24, 8


@pytest.fixture
def pair():
    """Descriptors, logits and partial matches of two views that agree with each other."""
    rng = np.random.default_rng()
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, N, D)))
    partner = rng.permutation(N)
    there = rng.random(N) < 0.7
    match_a = np.where(there, partner, -1)
    match_b = np.full(N, -1)
    match_b[partner[there]] = np.flatnonzero(there)
    b[partner[:10]] = a[:10] + 0.05 * rng.normal(size=(10, D))  # some are found
    logits = rng.normal(size=(2, N))
    return a, b, logits[0], logits[1], match_a, match_b


def by_loops(a, b, logits_a, logits_b, match_a, match_b, temperature):
    s = a @ b.T / temperature
    losses = []
    for table, match in ((s, match_a), (s.T, match_b)):
        each = [np.log(np.sum(np.exp(table[i]))) - table[i, match[i]] for i in range(N) if match[i] >= 0]
        losses.append(np.mean(each))
    cross, hits = [], []
    for table, match, logits in ((s, match_a, logits_a), (s.T, match_b, logits_b)):
        for i in range(N):
            if match[i] < 0:
                continue
            best = int(np.argmax(table[i]))
            hit = int(np.argmax(table[:, best]) == i and best == match[i])
            p = 1 / (1 + np.exp(-logits[i]))
            cross.append(-np.log(p if hit else 1 - p))
            hits.append(hit)
    return sum(losses), np.mean(cross), np.mean(hits)


@pytest.mark.parametrize("block", [0, 8])
def test_reciprocal_equals_loops(pair, block):
    want = by_loops(*pair, 0.1)
    got = contrast.reciprocal(*map(jnp.asarray, pair), temperature=0.1, block=block)
    np.testing.assert_allclose(got, want, rtol=2e-5)
    assert 0 < got.correct < 1


def test_blocks_have_the_same_gradient(pair):
    def loss(a, b, logits, block):
        found = contrast.reciprocal(a, b, logits, logits, *map(jnp.asarray, pair[4:]), temperature=0.1, block=block)
        return found.descriptor + found.keypoint

    given = [jnp.asarray(x, jnp.float32) for x in pair[:3]]
    whole, parts = (jax.grad(loss, argnums=(0, 1, 2))(*given, block) for block in (0, 6))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), whole, parts)


def test_the_keypoint_loss_does_not_reach_descriptors(pair):
    def keypoint(a):
        return contrast.reciprocal(a, *map(jnp.asarray, pair[1:]), temperature=0.1).keypoint

    assert not np.any(jax.grad(keypoint)(jnp.asarray(pair[0])))


def test_untrained_descriptors_cost_the_logarithm_of_their_number():
    z = np.random.default_rng().normal(size=(2, 400, 256))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    index = jnp.arange(400)
    found = contrast.reciprocal(*jnp.asarray(z), *jnp.zeros((2, 400)), index, index, temperature=1.0)
    assert found.descriptor == pytest.approx(2 * np.log(400), rel=0.01)
    assert found.keypoint == pytest.approx(np.log(2), rel=1e-5)


def test_nothing_matches_and_nothing_is_lost():
    none = jnp.full(3, -1)
    found = contrast.reciprocal(jnp.eye(3), jnp.eye(3), jnp.ones(3), jnp.ones(3), none, none, temperature=0.1)
    np.testing.assert_array_equal(found, (0, 0, 0))


@pytest.mark.parametrize("squared", [True, False])
def test_pairs(squared):
    rng = np.random.default_rng()
    a, b = rng.normal(size=(5, 4)), rng.normal(size=(6, 4))
    square = contrast.square_distances(jnp.asarray(a), jnp.asarray(b))
    distance = np.linalg.norm(a[:, None] - b, axis=-1)
    np.testing.assert_allclose(square, distance**2, rtol=1e-4, atol=1e-5)
    near, far = contrast.attraction(square, squared), contrast.repulsion(square, 2.5, squared)
    short = np.maximum(2.5 - distance, 0)
    np.testing.assert_allclose(near, distance**2 if squared else distance, rtol=1e-4)
    np.testing.assert_allclose(far, short**2 if squared else short, atol=1e-4)


def test_equal_descriptors_have_a_finite_gradient():
    z = jnp.ones((2, 3))
    for squared in (True, False):
        grad = jax.grad(lambda z, s=squared: jnp.sum(contrast.repulsion(contrast.square_distances(z, z), 0.8, s)))(z)
        assert np.isfinite(grad).all()


def test_repulsion_within_views_equals_loops():
    rng = np.random.default_rng()
    z, random = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 3, 4))
    cells, places, mask = rng.uniform(0, 8, (2, 5, 2)), rng.uniform(0, 8, (2, 3, 2)), rng.random((2, 5)) < 0.7
    total, count = 0, 0
    for b in range(2):
        for i in np.flatnonzero(mask[b]):
            others = [(z[b, j], cells[b, j]) for j in np.flatnonzero(mask[b]) if j > i]
            for other, place in [*others, *zip(random[b], places[b], strict=True)]:
                if np.linalg.norm(cells[b, i] - place) > 3:
                    total, count = total + max(2.5 - np.linalg.norm(z[b, i] - other), 0) ** 2, count + 1
    given = [jnp.asarray(x) for x in (z, cells, mask, random, places)]
    found = contrast.repelled_within(*given, least=3.0, margin=2.5, squared=True)
    assert found[0] == pytest.approx(total, rel=1e-3, abs=1e-4)
    assert found[1] == count
