"""Hits of discovered landmarks on annotated ones, against SciPy's matching and loops."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from tests.evaluation.shapes import landmarks
from uld_jax.data.schemes import SCHEMES
from uld_jax.errors import UserError
from uld_jax.evaluation import landmark_accuracy as la
from uld_jax.evaluation import landmark_regression as lr

IBUG = dict(normaliser=(36, 45), areas=SCHEMES["ibug68"].areas)


def shares(part, radius):
    """[K,L] by loops: share of the images that have a point on which a found one is within the radius."""
    lengths = np.linalg.norm(part.truth[:, 0] - part.truth[:, 1], axis=-1)
    near, total = np.zeros((part.found.shape[1], part.truth.shape[1])), np.zeros(part.truth.shape[1])
    for i in range(len(part.found)):
        for j in range(part.truth.shape[1]):
            if np.isnan(part.truth[i, j]).any() or not part.visible[i, j]:
                continue
            total[j] += 1
            for k in range(part.found.shape[1]):
                away = np.hypot(*(part.found[i, k] - part.truth[i, j]))
                near[k, j] += part.score[i, k] > 0 and away <= radius * lengths[i]
    return near / np.maximum(total, 1)


def some(n, k, seed):
    part = landmarks(n, k=k, missing=0.2, seed=seed)
    part.truth[::5, 3] = np.nan
    return part


@pytest.mark.parametrize("k", [6, 12])
def test_matching_and_hits_equal_those_of_others(k):
    train, test = some(60, k, seed=1), some(40, k, seed=2)
    found = la.landmark_accuracy(train, test, normaliser=(0, 1), radius=0.4)
    fitted, scored = shares(train, 0.4), shares(test, 0.4)
    rows, columns = linear_sum_assignment(-fitted)
    point = found.per_point
    chosen = point.exclusive_of
    assert (chosen >= 0).sum() == found.matched == min(k, 9)
    assert len(set(chosen[chosen >= 0])) == min(k, 9)
    # Several matchings may have as many hits; ours has no fewer.
    ours = sum(fitted[chosen[j], j] for j in range(9) if chosen[j] >= 0)
    assert ours == pytest.approx(fitted[rows, columns].sum(), abs=1e-5)
    for j in range(9):
        if chosen[j] >= 0:
            assert point.exclusive[j] == pytest.approx(scored[chosen[j], j])
        else:
            assert np.isnan(point.exclusive[j])
        assert fitted[point.best_of[j], j] == fitted[:, j].max()
        assert point.best[j] == pytest.approx(scored[point.best_of[j], j])
    assert found.exclusive == pytest.approx(np.nanmean(point.exclusive))
    assert found.best == pytest.approx(point.best.mean())
    assert list(found.areas) == list(map(str, range(9)))
    assert found.areas["3"].best == point.best[3]
    assert (found.n_train, found.n_test, found.radius) == (60, 40, 0.4)


def face(n, seed, missing=()):
    """Faces of 68 points, on which 5 landmarks are found, at points 8, 19, 30, 36 and 60; some never on test images."""
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(7).uniform(0, 100, (68, 2))
    base[[36, 45]] = [[30, 40], [70, 40]]
    truth = base + rng.normal(0, 20, (n, 1, 2))
    at = [8, 19, 30, 36, 60]
    score = np.ones((n, 5))
    score[:, list(missing)] = 0
    found = np.where(score[..., None] > 0, truth[:, at] + rng.normal(0, 0.5, (n, 5, 2)), 0)
    return lr.LandmarkSet(found, score, truth)


def test_areas_of_the_face_and_missing_landmarks():
    found = la.landmark_accuracy(face(20, 0), face(10, 1), **IBUG)
    assert found.matched == 5
    assert found.exclusive == 1
    np.testing.assert_array_equal(found.per_point.exclusive_of[[8, 19, 30, 36, 60]], range(5))
    areas = found.areas
    assert {name: area.points for name, area in areas.items()} == dict(jaw=17, brows=10, nose=9, eyes=12, mouth=20)
    assert all(area.matched == 1 and area.exclusive == 1 for area in areas.values())
    assert areas["jaw"].best == pytest.approx(found.per_point.best[:17].mean())
    missing = la.landmark_accuracy(
        face(20, 0), face(10, 1, missing=[2]), normaliser=(36, 45), areas=SCHEMES["ibug68"].areas
    )
    assert missing.areas["nose"].exclusive == 0
    assert missing.areas["nose"].matched == 1
    assert missing.exclusive == pytest.approx(0.8)
    never = la.landmark_accuracy(
        face(20, 0, missing=range(5)), face(10, 1), normaliser=(36, 45), areas=SCHEMES["ibug68"].areas
    )
    assert never.matched == 5  # to no point with good reason


def test_of_landmarks_with_equally_many_hits_the_nearer_one_is_taken():
    part = face(20, 0)
    moved = part.found + np.array([3.0, 0.0])
    both = np.concatenate([moved, part.found], 1)  # all ten are within 8 px of a point
    part = lr.LandmarkSet(both, np.ones((20, 10)), part.truth[:, [8, 19, 30, 36, 60]])
    exclusive, best = la.match(la.hits(part, np.full(20, 40.0), 0.2))
    np.testing.assert_array_equal(best, range(5, 10))
    np.testing.assert_array_equal(exclusive, range(5, 10))


def test_names_and_points_that_no_image_has():
    train, test = some(20, 4, seed=1), some(20, 4, seed=2)
    train.truth[:, 5] = np.nan
    test.truth[:, 6] = np.nan
    names = list("abcdefghi")
    found = la.landmark_accuracy(train, test, normaliser=(0, 1), names=names)
    assert list(found.areas) == names
    assert found.areas["f"].best is None
    assert found.areas["g"].best is None
    assert found.per_point.exclusive_of[5] == -1
    many = lr.LandmarkSet(train.found, train.score, np.tile(train.truth, (1, 5, 1)))
    assert la.landmark_accuracy(many, many, normaliser=(0, 1)).areas == {}


def test_a_radius_that_means_nothing():
    part = some(5, 4, seed=1)
    with pytest.raises(UserError, match=r"eval\.accuracy_radius is 0"):
        la.landmark_accuracy(part, part, normaliser=(0, 1), radius=0)


def test_images_are_counted_in_pieces(monkeypatch):
    part = some(30, 4, seed=1)
    whole = la.hits(part, lr.normaliser_lengths(part.truth, (0, 1)), 0.3)
    monkeypatch.setattr(la, "_CHUNK", 4 * 9 * 7)
    pieces = la.hits(part, lr.normaliser_lengths(part.truth, (0, 1)), 0.3)
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(a, b)
