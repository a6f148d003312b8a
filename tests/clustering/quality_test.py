"""Cluster quality against scikit-learn."""

import doctest
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from sklearn import metrics
from sklearn.metrics import cluster as cluster_metrics

from tests import tiny
from uld_jax.clustering import quality
from uld_jax.errors import UserError


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
        out = np.where(mask, labels, -1)
        np.testing.assert_allclose(ours(dirty, out, np.ones_like(mask), clusters=7), expected, rtol=1e-4)


@pytest.mark.parametrize("block", [1, 64, 1000])
def test_the_block_does_not_matter(block):
    x, labels, mask = data(5)
    expected = metrics.silhouette_score(x[mask].astype(np.float64), labels[mask])
    np.testing.assert_allclose(quality.silhouette(x, labels, mask, clusters=7, block=block), expected, rtol=1e-4)


def padded(x, labels):
    """As 300 rows of size 9 with a mask, the shape that the tests share: compiling is what takes time."""
    wide, more, mask = np.full((300, 9), np.nan, np.float32), np.zeros(300, np.int32), np.arange(300) < len(x)
    wide[: len(x)], more[: len(x)] = 0, labels
    wide[: len(x), : x.shape[1]] = x
    return wide, more, mask


def test_rows_alone_in_their_cluster_and_equal_rows():
    x, labels, _ = data(6, rows=40)
    labels[:2] = 2, 6  # two rows alone
    x[10] = x[11] = x[12]
    for ours, theirs in MEASURES:
        expected = theirs(x.astype(np.float64), labels)
        np.testing.assert_allclose(ours(*padded(x, labels), clusters=7), expected, rtol=1e-4)
    same = np.repeat(np.float32([[0, 0], [3, 4]]), 5, 0)
    for ours, theirs in MEASURES:
        expected = theirs(same, np.repeat([0, 1], 5))
        np.testing.assert_allclose(ours(*padded(same, np.repeat([0, 1], 5)), clusters=7), expected, rtol=1e-6)
        ones, labels = np.ones((6, 2), np.float32), np.arange(6) % 2
        assert ours(*padded(ones, labels), clusters=7) == theirs(ones, labels)


def test_what_is_not_defined_is_0():
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    for ours, _ in MEASURES:
        assert ours(*padded(x, np.full(7, 3)), clusters=7) == 0
        assert ours(*padded(x[:0], np.arange(0)), clusters=7) == 0
    assert quality.silhouette(*padded(x, np.arange(7)), clusters=7) == 0  # every row alone


def test_float64_stays_float64():
    with jax.enable_x64(True):
        x, labels, mask = data(7)
        for ours, theirs in MEASURES:
            found = ours(jnp.asarray(x, jnp.float64), labels, mask, clusters=7)
            assert found.dtype == jnp.float64
            np.testing.assert_allclose(found, theirs(x[mask].astype(np.float64), labels[mask]), rtol=1e-10)


def test_many_rows_need_a_block_of_distances_and_no_more():
    x, labels = jnp.zeros((16_000, 64)), jnp.zeros(16_000, jnp.int32)
    lowered = jax.jit(lambda x, labels: quality.silhouette(x, labels, clusters=100)).lower(x, labels)
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 512 * 16_000 * 4 + 4 * 16_000 * 300  # a few blocks, and the one-hot labels


def test_tight_clusters_keep_their_digits():
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 6, 200)
    for spread in (0, 1e-4, 1e-2):
        x = (rng.normal(size=(6, 9))[labels] + spread * rng.normal(size=(200, 9))).astype(np.float32)
        expected = metrics.silhouette_score(x.astype(np.float64), labels)
        np.testing.assert_allclose(quality.silhouette(*padded(x, labels), clusters=7), expected, rtol=1e-5)


def test_many_blocks_of_keys(monkeypatch):
    monkeypatch.setattr(quality, "_KEYS", 70)
    x, labels, mask = data(9)
    expected = metrics.silhouette_score(x[mask].astype(np.float64), labels[mask])
    np.testing.assert_allclose(quality.silhouette(x, labels, mask, clusters=8, block=64), expected, rtol=1e-4)


def test_a_sample_is_the_measure_of_some_rows():
    x, labels, mask = data(10)
    dirty = np.where(mask[:, None], x, np.nan)
    run = lambda seed, sample, mask: float(
        quality.silhouette(dirty, labels, mask, clusters=7, sample=sample, rng=jax.random.key(seed))
    )
    whole = float(quality.silhouette(dirty, labels, mask, clusters=7))
    assert np.isclose(run(0, 300, mask), whole, rtol=1e-5)  # more than there are
    assert np.isclose(run(0, 5000, mask), whole, rtol=1e-5)
    found = [run(seed, 100, mask) for seed in range(30)]
    theirs = [metrics.silhouette_score(x[mask], labels[mask], sample_size=100, random_state=i) for i in range(60)]
    assert len(set(found)) == 30
    assert run(3, 100, mask) == found[3]
    assert abs(np.mean(found) - np.mean(theirs)) < 4 * np.std(theirs) / np.sqrt(30)
    assert 0.5 < np.std(found) / np.std(theirs) < 2
    picked, label = quality.pick(jax.random.key(0), x, jnp.where(mask, labels, -1), 100, None, "data")
    rows = [np.flatnonzero((x == row).all(1))[0] for row in np.asarray(picked)]
    assert len(set(rows)) == 100  # without replacement
    assert mask[rows].all()
    np.testing.assert_array_equal(label, labels[rows])
    with pytest.raises(UserError, match="rng"):
        quality.silhouette(x, labels, sample=5)


def classes(seed, rows=300):
    """Labels and classes that partly agree; some labels, classes and rows are missing."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, rows)
    labels = np.where(rng.random(rows) < 0.6, truth + 1, rng.integers(0, 8, rows))
    labels, truth = np.where(rng.random(rows) < 0.1, -1, labels), np.where(rng.random(rows) < 0.1, -1, truth)
    return labels.astype(np.int32), truth.astype(np.int32), rng.random(rows) < 0.8


def test_agreement_with_classes_equals_scikit_learn():
    for seed in range(5):
        labels, truth, mask = classes(seed)
        both = mask & (labels >= 0) & (truth >= 0)
        ours = (labels, truth, mask)
        slots = dict(clusters=9, classes=6)
        table = cluster_metrics.contingency_matrix(labels[both], truth[both])
        full = np.asarray(quality.contingency(*ours, **slots))
        np.testing.assert_array_equal(full[full.any(1)][:, full.any(0)], table)
        expected = metrics.normalized_mutual_info_score(truth[both], labels[both])
        np.testing.assert_allclose(quality.nmi(*ours, **slots), expected, rtol=1e-5)
        np.testing.assert_allclose(quality.purity(*ours, **slots), table.max(1).sum() / both.sum(), rtol=1e-6)
        (_, wrong), (missed, right) = cluster_metrics.pair_confusion_matrix(truth[both], labels[both])
        precision, recall = right / (right + wrong), right / (right + missed)
        expected = 2 * precision * recall / (precision + recall), precision, recall
        np.testing.assert_allclose(quality.pairwise_f_measure(*ours, **slots), expected, rtol=1e-5)


def test_agreement_at_the_extremes():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 300)
    slots = dict(clusters=9, classes=6)
    for labels in (3 - truth, np.zeros(300, int), rng.integers(0, 9, 300)):
        expected = metrics.normalized_mutual_info_score(truth, labels)
        np.testing.assert_allclose(quality.nmi(labels, truth, **slots), expected, atol=1e-6)
    assert quality.nmi(np.full(300, 2), np.full(300, 3), **slots) == 1
    assert quality.nmi(truth, truth, np.zeros(300, bool), **slots) == 0
    assert quality.purity(truth, truth, np.zeros(300, bool), **slots) == 0
    assert list(quality.pairwise_f_measure(truth, truth, np.zeros(300, bool), **slots)) == [0, 0, 0]
    assert list(quality.pairwise_f_measure(truth, truth, **slots)) == [1, 1, 1]
    # More pairs than an int32 holds.
    table = jnp.array([[3_000_000, 1_000_000], [0, 2_000_000]])
    right = 9e12 + 1e12 + 4e12
    np.testing.assert_allclose(quality._pairwise(table)[1:], (right / (16e12 + 4e12), right / (9e12 + 9e12)), rtol=1e-5)


def test_the_number_of_labels_is_read_where_it_is_known():
    x, labels, mask = data(11)
    labels[0], mask[0] = 6, True
    for ours, _ in MEASURES:
        assert ours(x, labels, mask) == ours(x, labels, mask, clusters=int(labels[mask].max()) + 1)
        with pytest.raises(UserError, match="clusters="):
            jax.jit(ours)(x, labels)
    wild = np.where(mask, labels, 10**6)  # a masked row's label may be anything
    assert quality._slots(wild, mask, None, "clusters") == labels[mask].max() + 1
    assert quality._slots(np.full(3, -1), None, None, "clusters") == 1
    labels, truth, mask = classes(3)
    np.testing.assert_allclose(
        quality.nmi(labels, truth, mask), quality.nmi(labels, truth, mask, clusters=9, classes=6), rtol=1e-6
    )
    with pytest.raises(UserError, match="classes="):
        jax.jit(lambda labels, truth: quality.nmi(labels, truth, clusters=9))(labels, truth)


def test_detections_are_matched_one_to_one():
    rng = np.random.default_rng(12)
    xy, truth = 10 * rng.random((30, 9, 2)), 10 * rng.random((30, 6, 2))
    mask, visible = rng.random((30, 9)) < 0.7, rng.random((30, 6)) < 0.7
    mask[0], visible[1] = False, False
    matched = 0
    for points, there, marks, seen in zip(xy, mask, truth, visible, strict=True):
        distance = np.linalg.norm(points[there][:, None] - marks[seen], axis=-1)
        i, j = optimize.linear_sum_assignment(distance > 2)
        matched += (distance[i, j] <= 2).sum()
    precision, recall = matched / mask.sum(), matched / visible.sum()
    dirty = np.where(mask[..., None], xy, np.nan), mask, np.where(visible[..., None], truth, np.nan), visible
    found = quality.detection_f_measure(*dirty, radius=2)
    np.testing.assert_allclose(found, (2 * precision * recall / (precision + recall), precision, recall), rtol=1e-6)
    assert 0.2 < matched / visible.sum() < 0.9
    nothing = quality.detection_f_measure(xy, np.zeros_like(mask), truth, visible, radius=2)
    assert list(nothing) == [0, 0, 0]


def test_examples():
    result = doctest.testmod(quality)
    assert result.attempted >= 8
    assert result.failed == 0


def sharded():
    """Runs in a process of its own with eight devices; prints what it found."""
    from tests import collectives
    from uld_jax import sharding

    mesh = sharding.make_mesh()
    x, labels, mask = data(13, rows=320)
    truth = np.where(labels > 3, 0, labels)
    split = jax.device_put((x, labels, mask, truth), sharding.split(mesh))
    key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
    measures = dict(
        silhouette=lambda x, labels, mask, truth, key, mesh=None: quality.silhouette(
            x, labels, mask, clusters=7, block=16, mesh=mesh
        ),
        sampled=lambda x, labels, mask, truth, key, mesh=None: quality.silhouette(
            x, labels, mask, clusters=7, sample=60, rng=key, mesh=mesh
        ),
        calinski_harabasz=lambda x, labels, mask, truth, key, mesh=None: quality.calinski_harabasz(
            x, labels, mask, clusters=7
        ),
        nmi=lambda x, labels, mask, truth, key, mesh=None: quality.nmi(labels, truth, mask, clusters=7, classes=4),
    )
    report = dict(devices=mesh.size, one={}, eight={}, sent={})
    for name, measure in measures.items():
        compiled = jax.jit(lambda *a, measure=measure: measure(*a, mesh=mesh)).lower(*split, key).compile()
        report["one"][name] = float(measure(x, labels, mask, truth, jax.random.key(0)))
        report["eight"][name] = float(compiled(*split, key))
        report["sent"][name] = collectives.list_collectives(compiled)
    # Outside jit the rows themselves say how they are split.
    quality._silhouette = lambda *_, mesh, **__: mesh
    found = [quality.silhouette(rows, labels, clusters=7) for rows in (split[0], x, jnp.asarray(x))]
    report["mesh_found"] = [one == mesh for one in found]
    print(json.dumps(report))


@pytest.mark.slow
def test_eight_devices_equal_one_and_gather_no_rows():
    report = json.loads(tiny.run(__file__, devices=8).stdout.splitlines()[-1])
    assert report["devices"] == 8
    assert report["mesh_found"] == [True, False, False]
    for name, one in report["one"].items():
        np.testing.assert_allclose(report["eight"][name], one, rtol=1e-5)
    sent = {name: {(kind, tuple(shape)) for kind, _, shape in all_} for name, all_ in report["sent"].items()}
    sums = {("all-reduce", shape) for shape in [(), (7,), (9,), (7, 9)]}
    assert sent["calinski_harabasz"] <= sums
    assert sent["nmi"] <= {("all-reduce", shape) for shape in [(28,), (29,)]}
    ring = {("collective-permute", (40, 9)), ("collective-permute", (40,))}  # one device's rows and labels
    assert ring <= sent["silhouette"] <= ring | sums
    ring = {("collective-permute", (8, 9)), ("collective-permute", (8,))}  # 60 rows, padded, on eight devices
    picked = {("all-reduce", (60, 9)), ("all-reduce", (60,))}
    assert ring | picked <= sent["sampled"] <= ring | picked | sums | {("all-gather", (320,))}  # the mask


def test_rows_that_are_not_finite_count_nowhere():
    rng = np.random.default_rng(3)
    x, labels = rng.normal(size=(40, 3)).astype(np.float32), rng.integers(0, 4, 40)
    spoilt = x.copy()
    spoilt[5], spoilt[9, 1] = np.nan, np.inf
    keep = np.isfinite(spoilt).all(1)
    for measure in (quality.silhouette, quality.calinski_harabasz):
        np.testing.assert_allclose(measure(spoilt, labels), measure(x, labels, keep), rtol=1e-5)
        assert float(measure(x[:0], labels[:0])) == 0


if __name__ == "__main__":
    sharded()
