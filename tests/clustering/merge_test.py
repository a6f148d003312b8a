"""Co-location counts and greedy merging against plain loops."""

import doctest
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from uld_jax.clustering import merge as module
from uld_jax.clustering.merge import Colocation, colocation, greedy_merge, relabel
from uld_jax.errors import UserError


def test_examples():
    result = doctest.testmod(module)
    assert result.attempted >= 3
    assert result.failed == 0


def detections(seed, images=40, clusters=12, side=64):
    """Clusters on about half as many points, on the integer grid, some not found."""
    rng = np.random.default_rng(seed)
    points = rng.integers(0, side, (images, clusters // 2, 2))
    which = rng.integers(0, clusters // 2, clusters)
    noise = rng.choice([-1, 0, 1, 2], (images, clusters, 2), p=[0.15, 0.6, 0.15, 0.1])
    return (points[:, which] + noise).astype(np.float32), rng.random((images, clusters)) < rng.random(clusters) * 1.5


def plain_counts(xy, found, radius):
    counts = np.zeros((xy.shape[1],) * 2, int)
    for points, there in zip(xy, found, strict=True):
        for a in np.flatnonzero(there):
            for b in np.flatnonzero(there):
                counts[a, b] += np.linalg.norm(points[a] - points[b]) < radius
    return counts


def test_counts_equal_plain_loops_and_add_up():
    xy, found = detections(0)
    dirty = np.where(found[..., None], xy, np.nan)
    result = colocation(dirty, found, 1.425)
    np.testing.assert_array_equal(result.counts, plain_counts(xy, found, 1.425))
    np.testing.assert_array_equal(result.totals, found.sum(0))
    np.testing.assert_array_equal(np.diagonal(result.counts), result.totals)
    assert result.counts.dtype == jnp.int32
    halves = [colocation(dirty[i : i + 20], found[i : i + 20], 1.425) for i in (0, 20)]
    for ours, theirs in zip(jax.tree.map(jnp.add, *halves), result, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_radius_is_the_eight_neighbours():
    steps = np.array([(x, y) for x in range(-2, 3) for y in range(-2, 3)])
    xy = np.stack([np.full_like(steps, 30), 30 + steps], 1)
    found = np.ones((25, 2), bool)
    assert colocation(xy, found, 1.425).counts[0, 1] == 9  # 5.7 of 256 pixels
    assert colocation(xy, found, 1.0).counts[0, 1] == 1  # exclusive


def plain_merge(counts, totals, share, population, used):
    """The greedy list of kept clusters, as it is told."""
    order = sorted(np.flatnonzero(used), key=lambda m: (-population[m], m))
    target, kept = np.full(len(totals), -1), []
    for m in order:
        for k in kept:
            if counts[m, k] * 1000 > round(1000 * share) * min(totals[m], totals[k]):
                target[m] = k
                break
        else:
            target[m] = m
            kept.append(m)
    return target, kept, order


@pytest.mark.parametrize("share", [0.7, 0.5, 0.125])
def test_merging_equals_the_plain_list(share):
    absorbed = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        totals = rng.integers(0, 11, 12) * 10 ** rng.integers(0, 5)  # small: many on the border; large: no overflow
        fewer = np.minimum(totals[:, None], totals)
        counts = np.where(rng.random((12, 12)) < 0.3, (fewer * share).astype(int) + rng.integers(0, 2, (12, 12)), 0)
        counts = np.maximum(counts, counts.T)
        population, used = rng.integers(0, 6, 12), rng.random(12) < 0.8
        arrays = (np.int32(a) for a in (counts, totals))
        ours = greedy_merge(*arrays, share, population=np.int32(population), used=used)
        target, kept, order = plain_merge(counts, totals, share, population, used)
        np.testing.assert_array_equal(ours.target, target)
        np.testing.assert_array_equal(np.flatnonzero(ours.kept), sorted(kept))
        assert ours.count == len(kept)
        np.testing.assert_array_equal(np.argsort(ours.rank, stable=True)[: len(order)], order)
        absorbed += len(order) - len(kept)
    assert absorbed > 50


def test_the_border_is_exact():
    for total in range(10, 2_000_000_000, 98_765_430):
        counts = lambda both, total=total: jnp.array([[total, both], [both, total]], jnp.int32)
        totals = jnp.array([total, total], jnp.int32)
        assert greedy_merge(counts(total // 10 * 7), totals).count == 2
        assert greedy_merge(counts(total // 10 * 7 + 1), totals).count == 1


def test_detections_through_to_merged_labels():
    xy, found = detections(3)
    counts, totals = colocation(xy, found, 1.425)
    result = greedy_merge(counts, totals)
    target, _, _ = plain_merge(np.asarray(counts), np.asarray(totals), 0.7, np.asarray(totals), np.ones(12, bool))
    np.testing.assert_array_equal(result.target, target)
    assert 1 < result.count < 12


def test_relabelling_keeps_the_most_populous_of_an_image():
    rng = np.random.default_rng(7)
    labels = rng.integers(-1, 8, (50, 6)).astype(np.int32)
    target = np.int32([0, 0, 2, 2, -1, 5, 5, 5])
    rank = np.int32([0, 3, 1, 6, 8, 2, 4, 5])
    result = module.Merge(target, target == np.arange(8), jnp.int32(3), rank)
    expected = np.full(labels.shape, -1)
    for i, row in enumerate(labels):
        for kept in (0, 2, 5):
            members = [p for p in range(6) if row[p] >= 0 and target[row[p]] == kept]
            if members:
                expected[i, min(members, key=lambda p: (rank[row[p]], p))] = kept
    np.testing.assert_array_equal(relabel(labels, result), expected)


def test_bad_share_is_named():
    with pytest.raises(UserError, match="share"):
        greedy_merge(jnp.zeros((2, 2), jnp.int32), jnp.zeros(2, jnp.int32), 70)


def sharded():
    """Runs in a process of its own with eight devices; prints what it found."""
    from tests import collectives
    from uld_jax import sharding

    mesh = sharding.make_mesh()
    xy, found = detections(1)
    whole = colocation(xy, found, 1.425)
    parts = jax.device_put((xy, found), sharding.split(mesh))
    compiled = jax.jit(lambda xy, found: Colocation(*colocation(xy, found, 1.425))).lower(*parts).compile()
    labels = np.random.default_rng(0).integers(-1, 12, (40, 6)).astype(np.int32)
    merge = greedy_merge(*whole)
    arguments = jax.device_put(labels, sharding.split(mesh)), jax.device_put(merge, sharding.replicated(mesh))
    moved = jax.jit(relabel).lower(*arguments).compile()
    differ = sum(int(np.abs(a - b).sum()) for a, b in zip(compiled(*parts), whole, strict=True))
    differ += int(np.abs(moved(*arguments) - relabel(labels, merge)).sum())
    sent = [collectives.list_collectives(f) for f in (compiled, moved)]
    print(json.dumps(dict(devices=mesh.size, differ=differ, counting=sent[0], relabelling=sent[1])))


def test_eight_devices_equal_one_and_send_counts_only():
    report = json.loads(tiny.run(__file__, devices=8).stdout.splitlines()[-1])
    assert report["devices"] == 8
    assert report["differ"] == 0
    assert report["counting"] == [["all-reduce", "s32", [12]], ["all-reduce", "s32", [12, 12]]]
    assert report["relabelling"] == []


if __name__ == "__main__":
    sharded()
