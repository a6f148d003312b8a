import doctest
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from uld_jax.clustering import gcn_clusters as module
from uld_jax.clustering import gcn_v
from uld_jax.clustering.gcn_clusters import components, gcn_clusters, mean_directions, uphill
from uld_jax.clustering.knn import KnnGraph
from uld_jax.errors import UserError


def test_examples():
    result = doctest.testmod(module)
    assert result.attempted >= 6
    assert result.failed == 0


def groups(seed, rows=300, size=16, centres=6, spread=0.25):
    """Rows around a few directions, of different lengths."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, centres, rows)
    x = rng.normal(size=(centres, size))[truth] + spread * rng.normal(size=(rows, size))
    return (x * rng.uniform(0.5, 3, (rows, 1))).astype(np.float32), truth


def partition(labels):
    """Sets of rows, whatever the labels are called; -1 belongs nowhere."""
    labels = np.asarray(labels)
    return {frozenset(np.flatnonzero(labels == value).tolist()) for value in np.unique(labels[labels >= 0])}


def union_find(indices, similarities, confidence, tau, mask):
    """Step 3 and 4 of the method, row by row in Python."""
    root = list(range(len(indices)))

    def find(i):
        while root[i] != i:
            i = root[i]
        return i

    for i in np.flatnonzero(mask):
        for j, similarity in zip(indices[i], similarities[i]):
            if j >= 0 and confidence[j] > confidence[i]:
                if similarity > tau:
                    root[find(i)] = find(j)
                break
    return np.array([find(i) if mask[i] else -1 for i in range(len(root))])


def brute_force(x, k, tau, mask):
    """The clusters of density, in float64 NumPy."""
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    cosine = np.where(mask[:, None] & mask & ~np.eye(len(x), dtype=bool), unit @ unit.T, -np.inf)
    indices = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    similarities = np.take_along_axis(cosine, indices, 1)
    indices = np.where(np.isfinite(similarities), indices, -1)
    confidence = np.where(
        mask, np.where(indices >= 0, similarities, 0).sum(1) / np.maximum((indices >= 0).sum(1), 1), 0
    )
    labels = union_find(indices, similarities, confidence, tau, mask)
    means = {label: x[labels == label].astype(np.float64).mean(0) for label in np.unique(labels[labels >= 0])}
    return labels, {label: mean / np.linalg.norm(mean) for label, mean in means.items()}, confidence


@pytest.mark.parametrize("seed", range(4))
def test_density_clusters_equal_brute_force(seed):
    x, _ = groups(seed)
    mask = np.random.default_rng(seed).random(len(x)) < 0.8
    spoilt = np.where(mask[:, None], x, np.nan)
    found = gcn_clusters(jnp.asarray(spoilt), confidence="density", k=12, tau=0.8, mask=jnp.asarray(mask), slots=64)
    labels, means, confidence = brute_force(x, 12, 0.8, mask)
    assert partition(found.labels) == partition(labels)
    assert 1 < len(means) == int(found.count) <= 64
    np.testing.assert_allclose(found.confidence, confidence, atol=1e-5)
    for label, mean in means.items():
        ours = int(found.labels[np.flatnonzero(labels == label)[0]])
        np.testing.assert_allclose(found.centroids[ours], mean, atol=1e-5)
    sizes = np.bincount(np.asarray(found.labels)[mask], minlength=64)
    assert (np.diff(sizes) <= 0).all()  # the largest cluster comes first
    np.testing.assert_array_equal(found.centroids[sizes == 0], 0)


def test_links_and_peaks_equal_union_find_for_any_confidence():
    rng = np.random.default_rng(0)
    run = jax.jit(lambda g, c, tau, mask: components(uphill(g, c, tau), mask))
    for trial in range(50):
        rows, k = 120, 7
        indices = np.stack([rng.permutation(rows)[:k] for _ in range(rows)])
        indices[indices == np.arange(rows)[:, None]] = -1
        similarities = -np.sort(-rng.random((rows, k)), axis=1).astype(np.float32)
        mask = rng.random(rows) < 0.9
        indices[~mask] = -1
        indices[~mask[indices] | (indices < 0)] = -1
        confidence = rng.integers(0, 30, rows).astype(np.float32)  # with ties, over which nothing links
        graph = KnnGraph(jnp.asarray(indices, jnp.int32), jnp.asarray(similarities))
        tau = rng.choice([0.0, 0.5, 0.9])
        labels, count = run(graph, jnp.asarray(confidence), tau, jnp.asarray(mask))
        expected = partition(union_find(indices, similarities, confidence, np.float32(tau), mask))
        assert partition(labels) == expected, trial
        assert int(count) == len(expected)


def test_a_long_chain_leads_to_its_peak():
    parent = jnp.maximum(jnp.arange(1000, dtype=jnp.int32) - 1, 0)
    labels, count = components(parent)
    assert int(count) == 1
    assert (np.asarray(labels) == 0).all()


def test_the_network_finds_what_is_apart():
    x, truth = groups(5, rows=400, size=256, centres=8, spread=0.5)
    found = gcn_clusters(jnp.asarray(x), k=20)
    assert 8 <= int(found.count) <= 60
    for members in partition(found.labels):
        assert len(np.unique(truth[list(members)])) == 1  # nothing links across
    assert np.asarray(found.confidence).std() > 0
    # Without the links in the hidden layer it is another clustering of the same confidences.
    other = gcn_clusters(jnp.asarray(x), k=20, link_space="descriptor")
    np.testing.assert_array_equal(other.confidence, found.confidence)


def test_other_descriptors_do_without_the_network(caplog):
    x, _ = groups(8, size=16)
    found = gcn_clusters(x, k=12, slots=64)  # a NumPy array does as well
    assert "these have 16: confidence is density" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, found, gcn_clusters(x, k=12, slots=64, confidence="density"))


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_the_size_of_descriptors_does_not_matter(scale):
    x, _ = groups(9, rows=60, size=256, centres=3, spread=0.5)
    usual, other = (gcn_clusters(jnp.asarray(x * np.float32(s)), k=8, slots=16) for s in (1.0, scale))
    assert partition(usual.labels) == partition(other.labels)
    np.testing.assert_allclose(other.centroids, usual.centroids, atol=1e-5)


def test_means_of_many_rows_take_some_slots_at_a_time(monkeypatch):
    x, _ = groups(9, rows=100, size=4)
    labels = np.random.default_rng(10).integers(-1, 7, 100)
    whole = mean_directions(jnp.asarray(x), jnp.asarray(labels), 7)
    monkeypatch.setattr(module, "_ONE_HOT", 250)  # of 700: three blocks of three slots, two too many
    parts = mean_directions(jnp.asarray(x), jnp.asarray(labels), 7)
    sums = np.stack([x[labels == label].astype(np.float64).sum(0) for label in range(7)])
    for found in (whole, parts):
        np.testing.assert_allclose(found, sums / np.linalg.norm(sums, axis=1, keepdims=True), atol=1e-5)


def test_too_few_slots_are_seen():
    x, _ = groups(6)
    wide = gcn_clusters(jnp.asarray(x), confidence="density", k=5, tau=0.95, slots=300)
    narrow = gcn_clusters(jnp.asarray(x), confidence="density", k=5, tau=0.95, slots=4)
    assert int(narrow.count) == int(wide.count) > 4
    np.testing.assert_array_equal(narrow.labels, np.where(np.asarray(wide.labels) < 4, wide.labels, -1))
    np.testing.assert_allclose(narrow.centroids, wide.centroids[:4], atol=1e-6)


def test_few_rows_no_rows_and_equal_rows():
    few = gcn_clusters(jnp.eye(3), confidence="density", k=80, slots=5)
    assert sorted(np.asarray(few.labels)) == [0, 1, 2]  # nobody is near enough
    none = gcn_clusters(jnp.full((6, 4), jnp.nan), confidence="density", k=3, slots=5)
    assert (np.asarray(none.labels) == -1).all()
    assert int(none.count) == 0
    np.testing.assert_array_equal(none.centroids, 0)
    np.testing.assert_array_equal(none.confidence, 0)
    same = gcn_clusters(jnp.ones((6, 4)), confidence="density", k=3, slots=8)
    assert np.isfinite(same.centroids).all()
    assert (np.asarray(same.labels) >= 0).all()
    for way in ("density", "gcn"):
        empty = gcn_clusters(jnp.zeros((0, 256)), confidence=way, k=3, slots=2)
        assert (empty.labels.shape, int(empty.count), empty.centroids.shape) == ((0,), 0, (2, 256))
    one = gcn_clusters(jnp.ones((1, 4)), confidence="density", k=3, slots=2)
    assert np.asarray(one.labels).tolist() == [0]


def test_bad_input_is_named():
    with pytest.raises(UserError, match="256 numbers, and these have 4; use confidence=density"):
        gcn_clusters(jnp.zeros((5, 4)), gcn_v.load_default())
    with pytest.raises(UserError, match=r"mask \(3,\)"):
        gcn_clusters(jnp.zeros((5, 4)), mask=jnp.ones(3, bool))
    with pytest.raises(UserError, match="slots=0"):
        gcn_clusters(jnp.zeros((5, 4)), slots=0)
    with pytest.raises(UserError, match="confidence='x'"):
        gcn_clusters(jnp.zeros((5, 4)), confidence="x")
    with pytest.raises(UserError, match="link_space='x'"):
        gcn_clusters(jnp.zeros((5, 4)), link_space="x")


def sharded():
    """Runs in a process of its own with eight devices; prints what it found."""
    from tests import collectives
    from uld_jax import sharding

    mesh = sharding.make_mesh()
    assert mesh.size == 8
    x, _ = groups(7, rows=512, size=256, centres=8, spread=0.5)
    mask = np.random.default_rng(0).random(512) < 0.9
    report = {}
    for way in ("density", "gcn"):
        whole = gcn_clusters(jnp.asarray(x), confidence=way, k=16, mask=jnp.asarray(mask), slots=32)
        split = jax.device_put((x, mask), sharding.split(mesh))
        run = jax.jit(lambda x, mask, way=way: gcn_clusters(x, confidence=way, k=16, mask=mask, slots=32, mesh=mesh))
        compiled = run.lower(*split).compile()
        parts = compiled(*split)
        report[way] = dict(
            partition=partition(whole.labels) == partition(parts.labels),
            count=[int(whole.count), int(parts.count)],
            confidence=float(np.abs(np.asarray(whole.confidence) - np.asarray(parts.confidence)).max()),
            centroids=float(np.abs(np.asarray(whole.centroids) - np.asarray(parts.centroids)).max()),
            collectives=collectives.list_collectives(compiled),
        )
    print(json.dumps(report))


def test_eight_devices_equal_one_and_gather_no_rows():
    report = json.loads(tiny.run(__file__, devices=8).stdout.splitlines()[-1])
    for found in report.values():
        assert found["partition"]
        assert found["count"][0] == found["count"][1] > 1
        assert found["confidence"] < 1e-4
        assert found["centroids"] < 1e-4
    gathered = [tuple(shape) for kind, _, shape in report["density"]["collectives"] if kind == "all-gather"]
    # One number a row may be known everywhere: confidences and links. Rows and the graph stay where they are.
    assert all(np.prod(shape, dtype=int) <= 512 for shape in gathered), gathered


if __name__ == "__main__":
    sharded()
