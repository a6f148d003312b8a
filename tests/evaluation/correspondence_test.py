"""NMI and F-measure of found keypoints against SciPy's matching and scikit-learn's measure."""

import dataclasses
import doctest

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import normalized_mutual_info_score

from uld_jax.errors import UserError
from uld_jax.evaluation import correspondence as module
from uld_jax.evaluation.correspondence import correspondence


def scene(images=150, clusters=7, points=5, seed=0):
    """Annotated points; clusters 0 to 5 mostly sit at one of them, 6 anywhere, and some are missing."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 60, (images, points, 2))
    home = np.array([0, 1, 2, 2, 3, 4])
    found = rng.uniform(0, 60, (images, clusters, 2))
    found[:, :6] = truth[:, home] + rng.normal(0, 3, (images, 6, 2))
    score = (rng.random((images, clusters)) > 0.3) * rng.uniform(0.1, 1, (images, clusters))
    return found, score, truth, rng.uniform(20, 60, images)


def reference(found, score, truth, lengths, radius):
    cluster, landmark, there, seen = [], [], 0, 0
    for xy, value, points, length in zip(found, score, truth, lengths, strict=True):
        if not length > 0:
            continue
        slots = np.flatnonzero((value > 0) & np.isfinite(xy).all(-1))
        names = np.flatnonzero(np.isfinite(points).all(-1))
        distance = np.linalg.norm(xy[slots][:, None] - points[names], axis=-1) / length
        near = distance <= radius
        rows, columns = linear_sum_assignment(np.where(near, distance, 1e3))  # as many as possible, then the nearest
        kept = near[rows, columns]
        cluster += slots[rows[kept]].tolist()
        landmark += names[columns[kept]].tolist()
        there, seen = there + len(slots), seen + len(names)
    precision, recall = len(cluster) / there, len(cluster) / seen
    table = np.zeros((found.shape[1], truth.shape[1]), int)
    np.add.at(table, (cluster, landmark), 1)
    return {
        "nmi": normalized_mutual_info_score(landmark, cluster),
        "f_measure": 2 * precision * recall / (precision + recall),
        "precision": precision,
        "recall": recall,
        "purity": table.max(1).sum() / table.sum(),
        "matched": len(cluster) / (lengths > 0).sum(),
        "keypoints_per_image": there / (lengths > 0).sum(),
        "match_radius": radius,
    }


def test_examples():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("radius", [0.05, 0.1, 0.4])
def test_equals_scipy_and_scikit_learn(radius):
    found, score, truth, lengths = scene()
    truth[::7, 2] = np.nan
    lengths[:4] = np.nan
    found[5, 1] = np.nan
    values = correspondence(found, score, truth, lengths, radius=radius)
    wanted = reference(found, score, truth, lengths, radius)
    assert list(dataclasses.asdict(values)) == list(wanted)
    for name, value in wanted.items():
        assert getattr(values, name) == pytest.approx(value, abs=2e-6), name


def test_what_is_missing_or_hidden_does_not_matter():
    found, score, truth, lengths = scene(seed=1)
    visible = np.random.default_rng(2).random(truth.shape[:2]) < 0.8
    plain = correspondence(found, score, truth, lengths, visible=visible)
    junk = np.where((score > 0)[..., None], found, np.nan), np.where(visible[..., None], truth, np.nan)
    assert correspondence(junk[0], score, junk[1], lengths) == plain
    near = np.where((score > 0)[..., None], found, truth[:, :1])
    assert correspondence(near, score, truth, lengths, visible=visible) == plain
    assert plain.recall != correspondence(found, score, truth, lengths).recall


def test_perfect_random_and_empty():
    truth, lengths = scene()[2:]
    one = np.ones(truth.shape[:2])
    perfect = correspondence(truth[:, [3, 1, 0, 4, 2]], one, truth, lengths)
    assert (perfect.f_measure, perfect.precision, perfect.recall, perfect.purity) == (1, 1, 1, 1)
    assert perfect.nmi == pytest.approx(1, abs=1e-6)
    turns = np.random.default_rng(0).permuted(np.tile(np.arange(5), (150, 1)), axis=1)  # points without names
    mixed = correspondence(np.take_along_axis(truth, turns[..., None], 1), one, truth, lengths)
    assert mixed.f_measure == 1
    assert mixed.nmi < 0.05
    empty = correspondence(truth, 0 * one, truth, lengths)
    assert set(dataclasses.astuple(empty)) == {0, 0.1}


def test_bad_input_is_refused():
    found, score, truth, lengths = scene(4)
    with pytest.raises(UserError, match="match_radius"):
        correspondence(found, score, truth, lengths, radius=0)
    with pytest.raises(ValueError, match="shapes"):
        correspondence(found, score[:, :2], truth, lengths)
