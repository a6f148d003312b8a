"""Assignments against SciPy and brute force."""

import doctest
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from tests import tiny
from uld_jax.clustering import assignment
from uld_jax.errors import UserError


def test_examples():
    result = doctest.testmod(assignment)
    assert result.attempted >= 7
    assert result.failed == 0


@pytest.mark.parametrize("shape", [(1, 1), (6, 6), (9, 4), (4, 9), (1, 7), (7, 1), (25, 25)])
def test_pairs_are_those_of_scipy_in_its_order(shape):
    rng = np.random.default_rng()
    solve = jax.jit(assignment.linear_sum_assignment)
    for _ in range(60 if max(shape) < 20 else 5):
        cost = rng.normal(size=shape).astype(np.float32)  # without ties there is one best matching
        rows, columns = solve(cost)
        want = optimize.linear_sum_assignment(cost)
        np.testing.assert_array_equal(rows, want[0])
        np.testing.assert_array_equal(columns, want[1])


KINDS = [
    lambda rng, shape: rng.random(shape),
    lambda rng, shape: rng.integers(0, 4, shape),  # many ties
    lambda rng, shape: 1000 + rng.integers(-3, 3, shape),
    lambda rng, shape: 1e-3 * rng.normal(size=shape) + 2,  # nearly collinear descriptors
    lambda rng, shape: np.where(rng.random(shape) < 0.1, 1e4, 1) * rng.random(shape),
    lambda rng, shape: np.full(shape, 3.0),
]


def problems(seed, images, slots, clusters):
    """Costs [B,P,M] float32 with NaN where they must not matter, masks [B,P] and [B,M] of any number of entries."""
    rng = np.random.default_rng(seed)
    cost = np.stack([KINDS[i % len(KINDS)](rng, (slots, clusters)) for i in range(images)]).astype(np.float32)
    some = lambda size: rng.random((images, size)) < rng.random((images, 1)) * 1.2
    mask, used = some(slots), some(clusters)
    assert (~mask.any(1)).any()
    assert (mask.all(1) & used.all(1)).any()
    return np.where(mask[:, :, None] & used[:, None], cost, rng.choice([np.nan, np.inf, -1e30], cost.shape)), mask, used


def check(cost, mask, used, labels, spans=0):
    """One image: labels are a matching of as many as SciPy finds, at its cost, up to 1e-5 and `spans` of the range."""
    rows, columns = np.flatnonzero(mask), np.flatnonzero(used)
    part = cost[np.ix_(rows, columns)].astype(np.float64)
    ok = np.isfinite(part)
    # Relative to the smallest: a matching of given size is as good with all costs shifted.
    low = part[ok].min() if ok.any() else 0
    span = part[ok].max() - low if ok.any() else 0
    part = np.where(ok, part - low, 1e3 * (1 + span))
    i, j = optimize.linear_sum_assignment(part)
    chosen = ok[i, j]
    found = np.flatnonzero(labels >= 0)
    assert labels.dtype == np.int32
    assert len(found) == chosen.sum()
    assert mask[found].all()
    assert used[labels[found]].all()
    assert len(set(labels[found])) == len(found)
    ours = (cost[found, labels[found]].astype(np.float64) - low).sum()
    np.testing.assert_allclose(ours, part[i, j][chosen].sum(), rtol=1e-5, atol=spans * span)


@pytest.mark.parametrize(("images", "slots", "clusters"), [(1000, 10, 14), (300, 14, 9)])
def test_the_cost_is_that_of_scipy(images, slots, clusters):
    cost, mask, used = problems(0, images, slots, clusters)
    labels = np.asarray(assignment.one_per_cluster(cost, mask, used))
    for one in zip(cost, mask, used, labels, strict=True):
        check(*one)
    # Forbidden pairs: as many as possible without them.
    rng = np.random.default_rng(1)
    barred = rng.random(cost.shape) < rng.random((images, 1, 1))
    cost = np.where(barred, rng.choice([np.nan, np.inf], cost.shape), cost).astype(np.float32)
    labels = np.asarray(assignment.one_per_cluster(cost, mask, used))
    for one in zip(cost, mask, used, labels, strict=True):
        check(*one, spans=1e-6 * min(slots, clusters))


def test_masks_may_be_left_out_or_shared():
    cost, _, _ = problems(2, 1000, 10, 14)
    cost = np.nan_to_num(cost, posinf=3, neginf=2)
    every = assignment.one_per_cluster(cost)
    assert (np.asarray(every) >= 0).all()
    used = np.arange(14) % 2 == 0
    shared = assignment.one_per_cluster(cost, None, used)
    each = assignment.one_per_cluster(cost, np.ones((1000, 10), bool), np.broadcast_to(used, (1000, 14)))
    np.testing.assert_array_equal(shared, each)
    assert (np.sum(np.asarray(shared) >= 0, 1) == 7).all()
    assert (np.asarray(shared)[np.asarray(shared) >= 0] % 2 == 0).all()


def test_bad_shapes_are_named():
    with pytest.raises(UserError, match="give mask"):
        assignment.one_per_cluster(jnp.zeros((2, 3, 4)), jnp.ones((2, 4), bool))
    with pytest.raises(UserError, match="size 3"):
        assignment.nearest_exemplar(jnp.zeros((2, 3, 3)), jnp.zeros((5, 4)))


def rows(seed, images=6, slots=7, clusters=5, size=4):
    rng = np.random.default_rng(seed)
    x, centroids = rng.normal(size=(images, slots, size)), rng.normal(size=(clusters, size))
    return x.astype(np.float32) + 20, centroids.astype(np.float32) + 20, rng.random((images, slots)) < 0.7


def test_squared_distances():
    x, centroids, mask = rows(3)
    expected = ((x[:, :, None].astype(np.float64) - centroids) ** 2).sum(-1)
    dirty = np.where(mask[..., None], x, np.nan)
    found = assignment.squared_distances(dirty, centroids, mask)
    np.testing.assert_allclose(found, np.where(mask[..., None], expected, 0), rtol=1e-5, atol=1e-5)
    lost = centroids.copy()
    lost[2] = np.nan  # an empty cluster
    found = np.delete(assignment.squared_distances(dirty, lost, mask), 2, -1)
    expected = np.delete(np.where(mask[..., None], expected, 0), 2, -1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_nearest_exemplar_equals_brute_force():
    x, exemplars, mask = rows(4)
    used = np.array([True, True, False, True, True])
    x[0, 0], x[0, 1], mask[0, :2] = np.nan, 0, True  # real slots without a direction
    exemplars[4] = 0
    unit = lambda a: a / np.maximum(np.linalg.norm(a.astype(np.float64), axis=-1, keepdims=True), 1e-30)
    cosine = unit(x) @ unit(exemplars[[0, 1, 3]]).T
    some = mask.copy()
    some[0, :2] = False
    labels = np.where(some, np.array([0, 1, 3])[np.argmax(cosine, -1)], -1)
    found = assignment.nearest_exemplar(np.where(mask[..., None], x, np.nan), exemplars, mask, used)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.similarity, np.where(some, cosine.max(-1), 0), atol=1e-6)
    assert found.labels.dtype == jnp.int32
    none = assignment.nearest_exemplar(x, exemplars, mask, np.zeros(5, bool))
    assert (np.asarray(none.labels) == -1).all()
    assert (np.asarray(none.similarity) == 0).all()
    # Each image its own exemplars.
    own = np.stack([exemplars + i for i in range(6)])
    found = assignment.nearest_exemplar(x, own, mask, used)
    for i in range(6):
        alone = assignment.nearest_exemplar(x, own[i], mask, used)
        np.testing.assert_array_equal(found.labels[i], alone.labels[i])


def test_best_slots_equal_brute_force():
    rng = np.random.default_rng(5)
    labels = rng.integers(-1, 5, (40, 7)).astype(np.int32)
    scores = rng.integers(-3, 3, (40, 7)).astype(np.float32)  # ties
    scores[rng.random(scores.shape) < 0.1] = np.nan
    best = assignment.best_slots(labels, scores, 4)
    keep = np.zeros(labels.shape, bool)
    for i in range(40):
        for m in range(4):
            members = [p for p in range(7) if labels[i, p] == m and not np.isnan(scores[i, p])]
            slot = max(members, key=lambda p: (scores[i, p], -p)) if members else -1
            assert best.slots[i, m] == slot
            if members:
                keep[i, slot] = True
    np.testing.assert_array_equal(best.keep, keep)


@pytest.mark.parametrize("deviations", [1.0, -0.5])
def test_distance_cut_is_mean_plus_deviations(deviations):
    rng = np.random.default_rng(6)
    distances = (50 + rng.random((30, 6))).astype(np.float32)
    labels = rng.integers(-1, 5, (30, 6)).astype(np.int32)
    labels[labels == 3] = 2  # cluster 3 is empty
    distances[0, 0] = distances[labels < 0] = np.nan
    limits = np.zeros(5)
    for m in (0, 1, 2, 4):
        own = distances[(labels == m) & np.isfinite(distances)].astype(np.float64)
        limits[m] = own.mean() + deviations * own.std()
    np.testing.assert_allclose(
        assignment.distance_limits(distances, labels, 5, deviations=deviations), limits, rtol=1e-6
    )
    expected = (labels >= 0) & (distances < limits[labels])
    keep = assignment.distance_cut(distances, labels, 5, deviations=deviations)
    np.testing.assert_array_equal(keep, expected)
    assert 0.1 < np.mean(expected) < 0.9
    # Measured on the nearest, applied to others; strict.
    other = np.full((1, 3), 4, np.int32)
    given = assignment.distance_cut(np.float32([[1, 2, 3]]), other, 5, limits=jnp.array([9.0, 9, 9, 9, 2]))
    np.testing.assert_array_equal(given, [[True, False, False]])


def test_float64_stays_float64():
    with jax.enable_x64(True):
        x, centroids, mask = (jnp.asarray(a) for a in rows(7))
        x, centroids = x.astype(jnp.float64), centroids.astype(jnp.float64)
        distances = assignment.squared_distances(x, centroids, mask)
        found = assignment.nearest_exemplar(x, centroids, mask)
        assert distances.dtype == found.similarity.dtype == jnp.float64
        assert found.labels.dtype == jnp.int32
        assert assignment.distance_limits(found.similarity, found.labels, 5).dtype == jnp.float64
        # A difference that float32 does not see.
        cost = 1 + 1e-12 * jnp.array([[[0.0, 1, 2], [0, 0, 4], [1, 4, 0]]])
        labels = assignment.one_per_cluster(cost)
        assert labels.tolist() == [[0, 1, 2]]
        assert labels.dtype == jnp.int32


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("how", ["hungarian", "nearest"])
def test_assignment_is_that_of_scipy_with_the_far_ones_cut_off(how):
    rng = np.random.default_rng(0)
    x, centroids = unit(rng.normal(size=(40, 9, 5))), unit(rng.normal(size=(6, 5)))
    mask, limits = rng.random((40, 9)) < 0.7, rng.uniform(0.3, 2.0, 6)
    limits[4] = 0  # an empty cluster takes nothing
    poisoned = jnp.asarray(np.where(mask[..., None], x, np.nan), jnp.float32)
    found = assignment.assign(poisoned, jnp.asarray(mask), jnp.asarray(centroids, jnp.float32), limits, how)
    for b in range(40):
        cost = ((x[b][:, None] - centroids) ** 2).sum(-1)
        want, rows, used = -np.ones(6, int), np.flatnonzero(mask[b]), np.flatnonzero(limits > 0)
        if how == "hungarian":
            some = cost[np.ix_(rows, used)]
            pairs = [(rows[i], used[j]) for i, j in zip(*optimize.linear_sum_assignment(some), strict=True)]
        else:
            pairs = sorted(((p, used[cost[p, used].argmin()]) for p in rows), key=lambda pc: -cost[pc])
        for p, c in pairs:  # of several, the closest is written last
            if cost[p, c] < limits[c]:
                want[c] = p
        np.testing.assert_array_equal(found.slots[b], want)
        there = want >= 0
        np.testing.assert_allclose(found.distance[b][there], cost[want[there], np.flatnonzero(there)], atol=1e-5)


def test_limits_are_measured_on_the_nearest_centroid_of_all_keypoints():
    rng = np.random.default_rng(1)
    x, centroids = unit(rng.normal(size=(12, 8, 5))), unit(rng.normal(size=(6, 5)))
    mask = rng.random((12, 8)) < 0.8
    poisoned = jnp.asarray(np.where(mask[..., None], x, np.nan))
    near = assignment.nearest_centroid(poisoned, jnp.asarray(mask), jnp.asarray(centroids))
    limits = lambda cut: assignment.nearest_limits(*near, 6, cut)
    cost = ((x[..., None, :] - centroids) ** 2).sum(-1)[mask]
    found = limits(1.5)
    for c in range(6):
        own = cost.min(-1)[cost.argmin(-1) == c]
        assert found[c] == (pytest.approx(own.mean() + 1.5 * own.std(), abs=1e-4) if len(own) else 0)
    assert (np.asarray(limits(0.0)) > 1e30).any()  # no cut


def sharded():
    """Runs in a process of its own with eight devices; prints what it found."""
    from tests import collectives
    from uld_jax import sharding

    mesh = sharding.make_mesh()
    assert mesh.size == 8
    cost, mask, used = problems(8, 80, 10, 14)
    distances, labels = np.random.default_rng(0).random((80, 10), np.float32), np.arange(800).reshape(80, 10) % 4
    run = jax.jit(lambda *a: assignment.one_per_cluster(*a, mesh=mesh))
    limits = jax.jit(lambda d, label: assignment.distance_limits(d, label, 4))
    split = lambda *a: jax.device_put(a, sharding.split(mesh))
    matching = run.lower(*split(cost, mask, used)).compile()
    cutting = limits.lower(*split(distances, labels)).compile()
    parts, whole = matching(*split(cost, mask, used)), assignment.one_per_cluster(cost, mask, used)
    with pytest.raises(UserError, match="do not divide"):
        assignment.one_per_cluster(cost[:9], mask[:9], mesh=mesh)
    report = dict(
        differ=int((np.asarray(parts) != np.asarray(whole)).sum()),
        limits_differ=float(np.abs(cutting(*split(distances, labels)) - limits(distances, labels)).max()),
        split=parts.sharding.is_equivalent_to(sharding.split(mesh), 2),
        matching=collectives.list_collectives(matching),
        cutting=collectives.list_collectives(cutting),
    )
    print(json.dumps(report))


def test_eight_devices_equal_one_and_matching_sends_nothing():
    report = json.loads(tiny.run(__file__, devices=8).stdout.splitlines()[-1])
    assert report["differ"] == 0
    assert report["limits_differ"] < 1e-6
    assert report["split"]
    assert report["matching"] == []
    assert report["cutting"]
    assert all(kind == "all-reduce" and shape in ([4], []) for kind, _, shape in report["cutting"])


if __name__ == "__main__":
    sharded()
