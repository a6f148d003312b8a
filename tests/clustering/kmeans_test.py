import doctest
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from uld_jax.clustering import kmeans as module
from uld_jax.clustering.kmeans import assign, kmeans
from uld_jax.errors import UserError


def test_examples():
    result = doctest.testmod(module)
    assert result.attempted >= 3
    assert result.failed == 0


def blobs(seed, rows=600, size=5, centres=8, spread=0.6):
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(centres, size)) * 2 + 30  # far from zero: rounding would show
    return (middle[rng.integers(0, centres, rows)] + spread * rng.normal(size=(rows, size))).astype(np.float32)


@pytest.mark.parametrize(("weighted", "block", "chunk"), [(False, 256, None), (True, 3, 70)])
def test_equals_scikit_learn_from_the_same_start(weighted, block, chunk):
    cluster = pytest.importorskip("sklearn.cluster")
    rng = np.random.default_rng(1)
    x = blobs(1)
    weights = rng.uniform(0, 3, len(x)).astype(np.float32) if weighted else None
    init = x[rng.choice(len(x), 7, replace=False)]
    theirs = cluster.KMeans(7, init=init, n_init=1, algorithm="lloyd", tol=0, max_iter=100)
    theirs.fit(x.astype(np.float64), sample_weight=weights)
    ours = kmeans(jnp.asarray(x), 7, init=jnp.asarray(init), weights=weights, tol=0, block=block, chunk=chunk)
    assert ours.iterations == theirs.n_iter_ < 100  # both stop when no label changes
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, atol=1e-4)
    np.testing.assert_allclose(ours.inertia, theirs.inertia_, rtol=1e-4)
    np.testing.assert_array_equal(ours.counts, np.bincount(theirs.labels_, minlength=7))


def test_tolerance_is_that_of_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    x = blobs(2, spread=1.5)
    for tol in (1e-2, 1e-3):
        theirs = cluster.KMeans(7, init=x[:7], n_init=1, algorithm="lloyd", tol=tol).fit(x.astype(np.float64))
        ours = kmeans(jnp.asarray(x), 7, init=jnp.asarray(x[:7]), tol=tol)
        assert ours.iterations == theirs.n_iter_
        np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, atol=1e-4)


def test_iterations_is_a_limit():
    x = jnp.asarray(blobs(3, spread=1.5))
    once = kmeans(x, 4, init=x[:4], iterations=1)
    labels, _ = assign(x, x[:4])
    expected = [np.asarray(x)[np.asarray(labels) == j].mean(0) for j in range(4)]
    np.testing.assert_allclose(once.centroids, expected, atol=1e-4)
    assert once.iterations == 1
    none = kmeans(x, 4, init=x[:4], iterations=0)
    np.testing.assert_allclose(none.centroids, x[:4], atol=1e-5)
    np.testing.assert_array_equal(none.labels, labels)


def test_masked_rows_count_nowhere():
    x, extra = blobs(4, rows=300), blobs(5, rows=100)
    both = np.concatenate([x, extra])
    order = np.random.default_rng(0).permutation(len(both))
    mask = (np.arange(len(both)) < len(x))[order]
    both = both[order]
    init = jnp.asarray(x[:6])
    alone = kmeans(jnp.asarray(both[mask]), 6, init=init)
    masked = kmeans(jnp.asarray(both), 6, init=init, mask=jnp.asarray(mask))
    np.testing.assert_array_equal(np.asarray(masked.labels)[mask], alone.labels)
    assert (np.asarray(masked.labels)[~mask] == -1).all()
    np.testing.assert_allclose(masked.centroids, alone.centroids, atol=1e-5)
    np.testing.assert_array_equal(masked.counts, alone.counts)
    np.testing.assert_allclose(masked.inertia, alone.inertia, rtol=1e-5)
    # What masked rows hold does not matter, in the seeding neither.
    run = lambda rows: kmeans(jnp.asarray(rows), 6, rng=jax.random.key(1), mask=jnp.asarray(mask))
    other = both.copy()
    other[~mask] = np.nan
    for ours, theirs in zip(run(both), run(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weight_is_multiplicity():
    x = blobs(6, rows=200)
    times = np.random.default_rng(0).integers(0, 4, 200)
    init = jnp.asarray(x[times > 0][:5])
    repeated = kmeans(jnp.asarray(np.repeat(x, times, 0)), 5, init=init, tol=0)
    weighted = kmeans(jnp.asarray(x), 5, init=init, weights=jnp.asarray(times), tol=0)
    np.testing.assert_allclose(weighted.centroids, repeated.centroids, atol=1e-4)
    np.testing.assert_allclose(weighted.inertia, repeated.inertia, rtol=1e-4)
    np.testing.assert_array_equal(np.repeat(weighted.labels, times), repeated.labels)


def test_rows_are_drawn_by_their_chances():
    x = jnp.eye(6)
    chances = jnp.array([0.0, 1, 2, 3, 0, 4])
    rows = module._prepare(x, None, None, 8)
    drawn = rows.mean + jax.jit(lambda k: module._draw(k, rows, chances[None], 20000))(jax.random.key(0))
    np.testing.assert_allclose(drawn.mean(0), chances / 10, atol=0.015)
    np.testing.assert_allclose(np.sort(drawn, 1), np.tile(np.sort(x[0]), (len(drawn), 1)), atol=1e-6)  # whole rows


def test_seeding_finds_separate_groups():
    rng = np.random.default_rng(0)
    middle = 20 * np.stack(np.meshgrid(range(3), range(3)), -1).reshape(9, 2)
    truth = rng.integers(0, 9, 400)
    x = jnp.asarray(middle[truth] + rng.normal(size=(400, 2)), jnp.float32)
    run = jax.jit(jax.vmap(lambda k: kmeans(x, 9, rng=k)))
    results = run(jax.random.split(jax.random.key(0), 20))
    found = [all(len(np.unique(truth[np.asarray(labels) == j])) == 1 for j in range(9)) for labels in results.labels]
    assert np.mean(found) >= 0.9  # random rows as seeds: about 1 in 1000
    assert len(np.unique(np.asarray(results.centroids)[:, 0, 0])) > 5  # the key matters


def test_restarts_keep_the_best():
    x = jnp.asarray(blobs(11, rows=300, centres=12))
    keys = jax.random.split(jax.random.key(5), 6)
    single = [kmeans(x, 12, rng=key) for key in keys]
    inertias = [float(result.inertia) for result in single]
    assert max(inertias) > 1.01 * min(inertias)  # or the test shows nothing
    best = kmeans(x, 12, rng=jax.random.key(5), restarts=6)
    expected = single[int(np.argmin(inertias))]
    np.testing.assert_allclose(best.centroids, expected.centroids, atol=1e-5)
    labels, distances = assign(x, best.centroids)
    np.testing.assert_array_equal(best.labels, labels)
    np.testing.assert_allclose(best.inertia, distances.sum(), rtol=1e-4)


def test_empty_clusters_are_filled():
    cluster = pytest.importorskip("sklearn.cluster")
    x = blobs(7, rows=200, centres=4, spread=0.1)
    init = np.concatenate([x[:2], x[:2] + 1e4])  # two that no row is near
    ours = kmeans(jnp.asarray(x), 4, init=jnp.asarray(init), tol=0)
    assert (np.asarray(ours.counts) > 0).all()
    best = cluster.KMeans(4, n_init=10, random_state=0).fit(x)
    np.testing.assert_allclose(ours.inertia, best.inertia_, rtol=1e-3)


def test_fewer_distinct_rows_than_clusters():
    x = jnp.asarray(np.repeat([[1.0, 2], [3, 4]], 5, 0), jnp.float32)
    result = kmeans(x, 4, rng=jax.random.key(0))
    assert np.isfinite(result.centroids).all()
    assert result.inertia < 1e-6
    assert sorted(np.asarray(result.counts)) == [0, 0, 5, 5]
    assert result.iterations < 100
    few = kmeans(x[4:6], 4, rng=jax.random.key(0), tol=0)  # N below k
    np.testing.assert_allclose(x[4:6], np.asarray(few.centroids)[np.asarray(few.labels)], atol=1e-6)
    assert sorted(np.asarray(few.counts)) == [0, 0, 1, 1]
    assert few.iterations < 100


def test_no_row_counts():
    x = jnp.asarray(blobs(12, rows=10, size=2))
    for options in ({"rng": jax.random.key(0)}, {"init": x[:2], "spherical": True}):
        nothing = kmeans(x, 2, **options, mask=jnp.zeros(10, bool), tol=0)
        assert np.isfinite(nothing.centroids).all()
        assert (np.asarray(nothing.labels) == -1).all()
        assert (np.asarray(nothing.counts) == 0).all()
        assert nothing.inertia == 0
        assert nothing.iterations <= 1


def test_copies_of_a_few_rows_end():
    # Means of copies differ from the copies by their rounding, which must not look like rows without a cluster.
    rows = np.random.default_rng(3).normal(size=(3, 16)).astype(np.float32)
    x = jnp.asarray(rows[np.arange(90) % 3])
    for spherical in (False, True):
        result = kmeans(x, 6, init=x[:6], tol=0, spherical=spherical)
        assert result.iterations < 10
        assert result.inertia < 1e-3
        assert sorted(np.asarray(result.counts)) == [0, 0, 0, 30, 30, 30]


def test_rows_that_are_not_finite_are_masked():
    x = blobs(13, rows=200)
    bad = np.array([3, 50, 120, 199])
    broken, weights = x.copy(), np.ones(200, np.float32)
    broken[bad[0], 1], broken[bad[1]], broken[bad[2], 0] = np.nan, np.inf, 1e30  # the last: its square is not finite
    weights[bad[3]] = np.nan
    mask = ~np.isin(np.arange(200), bad)
    run = lambda x, mask, weights: kmeans(
        jnp.asarray(x), 5, rng=jax.random.key(0), mask=jnp.asarray(mask), weights=jnp.asarray(weights), chunk=64
    )
    ours, clean = run(broken, np.ones(200, bool), weights), run(x, mask, np.ones(200, np.float32))
    for got, expected in zip(ours, clean, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert (np.asarray(ours.labels)[bad] == -1).all()
    labels, distances = assign(jnp.asarray(broken), x[5:10])
    assert (np.asarray(labels)[bad] == [-1, -1, -1, labels[199]]).all()
    assert labels[199] >= 0
    assert (np.asarray(distances)[bad[:3]] == 0).all()


def test_first_centroids_that_are_not_finite_are_empty_clusters():
    x = blobs(7, rows=200, centres=4, spread=0.1)
    init = x[:4].copy()
    init[1] = np.nan
    ours = kmeans(jnp.asarray(x), 4, init=jnp.asarray(init), tol=0)
    init[1] = 1e6
    far = kmeans(jnp.asarray(x), 4, init=jnp.asarray(init), tol=0)
    np.testing.assert_array_equal(ours.labels, far.labels)
    np.testing.assert_array_equal(ours.centroids, far.centroids)


def reference_spherical(x, init, weights, iterations=100):
    """Dhillon and Modha's algorithm, in float64; stops when no label changes."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    centroids, labels, steps = init / np.linalg.norm(init, axis=1, keepdims=True), None, 0
    while steps < iterations:
        steps += 1
        old, labels = labels, (x @ centroids.T).argmax(1)
        sums = np.stack([(weights[labels == j, None] * x[labels == j]).sum(0) for j in range(len(init))])
        centroids = sums / np.linalg.norm(sums, axis=1, keepdims=True)
        if old is not None and (labels == old).all():
            break
    cosine = (x @ centroids.T).max(1)
    return centroids, (x @ centroids.T).argmax(1), (weights * 2 * (1 - cosine)).sum(), steps


@pytest.mark.parametrize("offset", [0, 12])  # 12: cosines of about 0.99
def test_spherical_equals_a_reference(offset):
    rng = np.random.default_rng(4)
    x = (rng.normal(size=(300, 6)) + offset).astype(np.float32)
    x *= np.exp(rng.normal(size=(300, 1))).astype(np.float32)  # lengths must not matter
    weights = rng.uniform(0.5, 2, 300).astype(np.float32)
    run = lambda x, weights: kmeans(x, 5, init=jnp.asarray(x[:5]), weights=weights, tol=0, spherical=True, chunk=128)
    ours = run(jnp.asarray(x), jnp.asarray(weights))
    centroids, labels, inertia, steps = reference_spherical(x.astype(np.float64), x[:5].astype(np.float64), weights)
    np.testing.assert_array_equal(ours.labels, labels)
    np.testing.assert_allclose(ours.centroids, centroids, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours.centroids, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(ours.inertia, inertia, rtol=1e-4)
    np.testing.assert_array_equal(ours.counts, np.bincount(labels, minlength=5))
    assert ours.iterations == steps < 100
    # A row of length 0 has no direction: it is masked.
    x[17], weights[18] = 0, 0
    zero = run(jnp.asarray(x), jnp.asarray(weights))
    assert zero.labels[17] == -1
    assert np.asarray(zero.counts).sum() == 299
    assert np.isfinite(zero.centroids).all()


def test_spherical_members_that_cancel_leave_their_centroid():
    x = jnp.asarray([[1.0, 0], [-1, 0], [0, 1], [0, 1]])
    result = kmeans(x, 1, init=jnp.asarray([[0.0, -3]]), mask=jnp.asarray([True, True, False, False]), spherical=True)
    np.testing.assert_allclose(result.centroids, [[0, -1]], atol=1e-6)
    np.testing.assert_allclose(result.inertia, 4, rtol=1e-6)


def test_sums_by_product_equal_sums_by_scatter():
    rng = np.random.default_rng(5)
    x, weights = rng.normal(size=(1, 60, 4)).astype(np.float32), rng.random((1, 60)).astype(np.float32)
    labels = rng.integers(0, 7, (1, 60)).astype(np.int32)
    halves = [a.reshape(2, 30, *a.shape[2:]) for a in (x, weights, labels)]  # two groups: a product everywhere
    scattered = module._sums(jnp.asarray(x), weights, labels, 7, 3)
    for ours, theirs in zip(module._sums(*map(jnp.asarray, halves), 7, 3), scattered, strict=True):
        np.testing.assert_allclose(ours.sum(0), theirs[0], atol=1e-5)


@pytest.mark.parametrize("start", ["init", pytest.param("seeding", marks=pytest.mark.slow)])
def test_five_million_rows_fit_in_16_gb(start):
    rows, size, k = 5_000_000, 256, 100
    struct = jax.ShapeDtypeStruct
    x, mask, weights = struct((rows, size), jnp.float32), struct((rows,), bool), struct((rows,), jnp.float32)
    if start == "seeding":
        more = jax.eval_shape(lambda: jax.random.key(0))
        run = lambda x, mask, weights, rng: kmeans(x, k, rng=rng, mask=mask, weights=weights)
    else:
        more = struct((k, size), jnp.float32)
        run = lambda x, mask, weights, init: kmeans(x, k, init=init, mask=mask, weights=weights, spherical=True)
    memory = jax.jit(run).lower(x, mask, weights, more).compile().memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert needed > rows * size * 4
    assert needed < 7e9  # 16 are asked for; a copy of the rows would be 5 more


def test_nearly_collinear_rows_keep_their_digits():
    rng = np.random.default_rng(0)
    direction = rng.normal(size=64)
    direction *= 100 / np.linalg.norm(direction)
    offsets = 0.02 * rng.normal(size=(4, 64))
    truth = rng.integers(0, 4, 400)
    x = (direction + offsets[truth] + 0.001 * rng.normal(size=(400, 64))).astype(np.float32)
    result = kmeans(jnp.asarray(x), 4, init=jnp.asarray(x[[np.argmax(truth == j) for j in range(4)]]))
    np.testing.assert_array_equal(result.labels, truth)


@pytest.mark.parametrize("block", [2, 256])
def test_assign_equals_brute_force(block):
    rng = np.random.default_rng(8)
    x, centroids = rng.normal(size=(50, 3)).astype(np.float32), rng.normal(size=(7, 3)).astype(np.float32)
    mask = rng.random(50) < 0.7
    labels, distances = assign(jnp.asarray(x), jnp.asarray(centroids), mask, block=block)
    all_distances = ((x[:, None] - centroids) ** 2).sum(-1)
    np.testing.assert_array_equal(labels, np.where(mask, all_distances.argmin(1), -1))
    np.testing.assert_allclose(distances, np.where(mask, all_distances.min(1), 0), atol=1e-5)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        x = jnp.asarray(blobs(9, rows=50), jnp.float64)
        result = kmeans(x, 3, rng=jax.random.key(0))
        assert result.centroids.dtype == jnp.float64
        assert result.labels.dtype == jnp.int32


def test_bad_input_is_named():
    x = jnp.zeros((4, 2))
    with pytest.raises(UserError, match="rng"):
        kmeans(x, 2)
    with pytest.raises(UserError, match="init"):
        kmeans(x, 2, init=jnp.zeros((3, 2)))
    with pytest.raises(UserError, match="k = 0"):
        kmeans(x, 0, rng=jax.random.key(0))
    with pytest.raises(UserError, match="x of shape"):
        kmeans(x[:0], 2, rng=jax.random.key(0))
    with pytest.raises(UserError, match="mask of shape"):
        kmeans(x, 2, rng=jax.random.key(0), mask=jnp.ones(3, bool))
    with pytest.raises(UserError, match="weights of shape"):
        kmeans(x, 2, rng=jax.random.key(0), weights=jnp.ones((4, 1)))


def sharded():
    """Runs in a process of its own with eight devices; prints what it found."""
    from tests import collectives
    from uld_jax import sharding

    mesh = sharding.make_mesh()
    assert mesh.size == 8
    x, mask = blobs(10, rows=1024, size=16, spread=1.5), np.random.default_rng(0).random(1024) < 0.8
    weights = np.random.default_rng(1).uniform(0.5, 2, 1024).astype(np.float32)
    key = jax.random.key(0)
    cluster = jax.jit(
        lambda x, mask, weights, key: kmeans(x, 5, rng=key, mask=mask, weights=weights, tol=0, restarts=2, chunk=50)
    )
    whole = cluster(x, mask, weights, key)
    split = jax.device_put((x, mask, weights), sharding.split(mesh))
    compiled = cluster.lower(*split, jax.device_put(key, sharding.replicated(mesh))).compile()
    parts = compiled(*split, jax.device_put(key, sharding.replicated(mesh)))
    report = dict(
        labels_differ=int((np.asarray(whole.labels) != np.asarray(parts.labels)).sum()),
        centroids_differ=float(np.abs(np.asarray(whole.centroids) - np.asarray(parts.centroids)).max()),
        iterations=[int(whole.iterations), int(parts.iterations)],
        labels_split=parts.labels.sharding.is_equivalent_to(sharding.split(mesh), 1),
        collectives=collectives.list_collectives(compiled),
    )
    print(json.dumps(report))


def test_eight_devices_equal_one_and_move_no_rows():
    done = tiny.run(__file__, devices=8)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["labels_differ"] == 0
    assert report["centroids_differ"] < 1e-4
    assert report["iterations"][0] == report["iterations"][1] > 2
    assert report["labels_split"]
    sent = [(kind, tuple(shape)) for kind, _, shape in report["collectives"]]
    assert {kind for kind, _ in sent} == {"all-reduce"}
    k, size, trials = 5, 16, 3
    allowed = {
        (),  # sums and extremes over all rows
        (1,), (1, size),  # the first seed and its position
        (trials,), (trials, size),  # the seeds tried next
        (k,), (k, size),  # the update
        (size,),  # mean, variance, a row for an empty cluster
    }  # fmt: skip
    assert {shape for _, shape in sent} <= allowed
    assert sent.count(("all-reduce", (k, size))) == 1  # Lloyd's one
    assert report["collectives"].count(["all-reduce", "f32", [k]]) == 1


if __name__ == "__main__":
    sharded()


def test_an_empty_cluster_may_stay_where_it_is():
    x = jnp.asarray(np.random.default_rng().normal(size=(60, 2)), jnp.float32)
    init = jnp.array([[0.0, 0.0], [50.0, 50.0]])
    found = kmeans(x, 2, init=init, refill=False)
    np.testing.assert_array_equal(found.counts, [60, 0])
    np.testing.assert_allclose(found.centroids, [x.mean(0), [50.0, 50.0]], atol=1e-5)
    assert np.all(kmeans(x, 2, init=init).counts > 0)
