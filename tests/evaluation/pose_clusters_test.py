"""Clusters of poses against scikit-learn and SciPy; yaw from points against heads whose yaw is known."""

import doctest

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from uld_jax.data.schemes import SCHEMES
from uld_jax.data.synthetic import Synthetic
from uld_jax.data.synthetic.head import MIRROR
from uld_jax.evaluation import pose_clusters as pc


def test_examples():
    assert doctest.testmod(pc).failed == 0


def test_numbers_equal_those_of_others():
    rng = np.random.default_rng(0)
    yaw = rng.uniform(-90, 90, 300)
    clusters = np.digitize(yaw + rng.normal(0, 25, 300), [-50, -20, 0, 20, 50])
    clusters = np.array([3, 5, 0, 1, 4, 2])[clusters]
    found = pc.pose_clusters(clusters, yaw)
    ranges = np.digitize(yaw, [-60, -30, 30, 60])
    table = contingency_matrix(clusters, ranges)
    major = table.argmax(1)
    inside = major[clusters] == ranges
    assert found.sizes == np.bincount(clusters).tolist()
    assert (found.yaw.counted, found.unclustered) == (300, 0)
    assert found.yaw.accuracy == pytest.approx(inside.mean())
    for r, one in enumerate(found.yaw.ranges):
        assert one.n == (ranges == r).sum()
        assert one.clusters == np.flatnonzero(major == r).tolist()
        assert one.accuracy == pytest.approx(inside[ranges == r].mean())
    assert found.yaw.balanced == pytest.approx(np.mean([inside[ranges == r].mean() for r in range(5)]))
    assert found.yaw.hungarian == pytest.approx(table[linear_sum_assignment(-table)].sum() / 300)
    assert found.yaw.nmi == pytest.approx(normalized_mutual_info_score(clusters, ranges), abs=1e-6)
    assert found.yaw.chance == pytest.approx(np.bincount(ranges).max() / 300)
    assert found.yaw.yaw_mean[2] == pytest.approx(yaw[clusters == 2].mean())
    assert found.yaw.yaw_std[2] == pytest.approx(yaw[clusters == 2].std())
    assert found.yaw.yaw_range[2] == ["-90 to -60", "-60 to -30", "-30 to 30", "30 to 60", "60 to 90"][major[2]]
    assert 0.3 < found.yaw.hungarian <= found.yaw.accuracy < 1


def test_borders_and_images_that_do_not_count():
    yaw = [-90.0, -60.0, 30.0, 60.0, 90.0, 91.0, np.nan, 0.0, 1.0]
    found = pc.pose_clusters([0, 1, 2, 3, 3, 0, 0, -1, -2], yaw)
    assert [one.n for one in found.yaw.ranges] == [1, 1, 2, 1, 2]
    assert found.sizes == [3, 1, 1, 2]
    assert (found.yaw.counted, found.unclustered) == (7, 2)
    assert found.yaw.accuracy == pytest.approx(5 / 7)  # images in no cluster are misses
    assert found.yaw.ranges[2].accuracy == 0
    alone = pc.pose_clusters([2, 2, 0], None)
    assert alone == pc.PoseClusters(sizes=[1, 0, 2], unclustered=0, yaw=None)
    empty = pc.pose_clusters([2, 0], [5.0, 100.0])
    assert empty.yaw.yaw_range == [None, None, "-30 to 30"]
    assert empty.yaw.ranges[0].accuracy is None
    nothing = pc.pose_clusters([-1, -1], [5.0, -5.0])
    assert (nothing.yaw.accuracy, nothing.yaw.hungarian, nothing.yaw.nmi) == (0, 0, 0)


def rotations(yaw, pitch, roll):
    """[N,3,3], x to the right, y down, z AWAY from the camera; written for this test."""
    (sy, sp, sr), (cy, cp, cr) = (f(np.radians(np.stack([yaw, pitch, roll]))) for f in (np.sin, np.cos))
    one, zero = np.ones_like(sy), np.zeros_like(sy)
    matrix = lambda *rows: np.stack(rows, -1).reshape(-1, 3, 3)
    about_y = matrix(cy, zero, -sy, zero, one, zero, sy, zero, cy)
    about_x = matrix(one, zero, zero, zero, cp, sp, zero, -sp, cp)
    about_z = matrix(cr, -sr, zero, sr, cr, zero, zero, zero, one)
    return about_z @ about_x @ about_y


def heads(n=80, pairs=6, noise=0.0, seed=0):
    """Points of a rigid, symmetric, bulging shape in poses of mean pitch 0; the mirror permutation; yaw and pitch."""
    rng = np.random.default_rng(seed)
    right = rng.uniform((5, -30, 0), (30, 30, 10), (pairs, 3))
    right[:, 2] += 0.6 * right[:, 0]  # sides lie farther back
    middle = np.array([[0.0, 5, -20], [0, 25, -5], [0, -20, -3]])
    shape = np.concatenate([right, right * (-1, 1, 1), middle])
    mirror = np.concatenate([np.arange(pairs, 2 * pairs), np.arange(pairs), 2 * pairs + np.arange(3)])
    yaw, pitch, roll = rng.uniform(-80, 80, n), rng.normal(0, 8, n), rng.normal(0, 10, n)
    rows = rotations(yaw, pitch - pitch.mean(), roll)[:, :2] * rng.uniform(0.5, 2, (n, 1, 1))
    points = np.einsum("nci,li->nlc", rows, shape) + rng.uniform(0, 100, (n, 1, 2))
    return points + rng.normal(0, noise, points.shape), mirror, yaw, pitch - pitch.mean()


def test_yaw_of_a_rigid_shape_is_exact():
    points, mirror, yaw, pitch = heads()
    found = pc.yaw_of_points(points, mirror)
    np.testing.assert_allclose(found.yaw, yaw, atol=0.5)  # the mean pitch is 0 up to the turn's cosines
    np.testing.assert_allclose(found.pitch, pitch, atol=0.5)
    np.testing.assert_allclose(found.shape[mirror] * (-1, 1, 1), found.shape, atol=1e-9)
    turned = pc.yaw_of_points(points[:, mirror] * (-1, 1), mirror)  # the mirrored images
    np.testing.assert_allclose(turned.yaw, -found.yaw, atol=1e-3)
    order = np.random.default_rng(1).permutation(15)
    place = np.argsort(order)
    some = pc.yaw_of_points(points[:, order], place[mirror[order]])
    np.testing.assert_allclose(some.yaw, found.yaw, atol=1e-3)


def test_yaw_of_noisy_points_some_of_them_missing():
    points, mirror, yaw, _ = heads(120, noise=1.0, seed=3)
    points[::3, 2] = np.nan
    points[0] = np.nan
    points[1, 3:] = np.nan
    found = pc.yaw_of_points(points, mirror)
    assert np.isnan(found.yaw[:2]).all()
    assert np.isfinite(found.yaw[2:]).all()
    assert np.abs(found.yaw - yaw)[2:].mean() < 4
    wild = points.copy()
    pair = [4, mirror[4]]
    wild[:, pair] += np.random.default_rng(0).normal(0, 30, (120, 2, 2))
    without = np.setdiff1d(np.arange(15), pair)
    held = pc.yaw_of_points(wild, mirror, use=without)
    assert np.nanmean(np.abs(held.yaw - yaw)) < 4
    assert held.shape.shape == (13, 3)
    assert np.nanmean(np.abs(pc.yaw_of_points(wild, mirror).yaw - yaw)) < 12  # points that fit badly count less


@pytest.fixture(scope="module")
def synthetic():
    """Points of 256 synthetic heads, up to 90 degrees of yaw; which can be seen; yaw and pitch."""
    source = Synthetic("test", rows=256, frame_size=16)
    angles = np.array([source.columns[name] for name in ("yaw", "pitch")], float)
    return np.asarray(source.landmarks), np.asarray(source.visible), angles


def test_yaw_of_synthetic_heads_with_their_own_shapes_and_faces(synthetic):
    points, _, (yaw, pitch) = synthetic
    yaw, pitch = yaw[:96], pitch[:96]
    found = pc.yaw_of_points(points[:96], MIRROR)
    assert np.corrcoef(found.yaw, yaw)[0, 1] > 0.999
    assert np.abs(found.yaw - yaw).mean() < 1.5
    assert np.corrcoef(found.pitch, pitch)[0, 1] > 0.98


FIVE = ([4, 5], [6, 7], [8], [11], [12])  # eyes, nose and corners of the mouth of synthetic heads
EYES_NOSE_MOUTH = SCHEMES["eyes_nose_mouth5"]


@pytest.mark.parametrize(("most", "tolerance", "slope"), [(90, 2.0, 0.03), (45, 2.0, 0.08), (25, 1.5, 0.15)])
def test_five_points_tell_the_yaw_of_heads_that_turn(synthetic, most, tolerance, slope):
    points, _, (yaw, _) = synthetic
    some = np.abs(yaw) < most
    five = np.stack([points[some][:, part].mean(1) for part in FIVE], 1)
    found = pc.yaw_of_points(five, EYES_NOSE_MOUTH.mirror, EYES_NOSE_MOUTH.fixed).yaw
    assert np.median(np.abs(found - yaw[some])) < tolerance  # degrees; noses differ by more than that
    assert np.polyfit(yaw[some], found, 1)[0] == pytest.approx(1, abs=slope)


def test_points_that_can_be_seen_tell_the_yaw_of_profiles(synthetic):
    points, visible, (yaw, _) = synthetic
    use = np.arange(16)  # without jaw and ears
    seen = np.where(visible[..., None], points, np.nan)
    assert visible[:, use].all(1).mean() < 0.4
    found = pc.yaw_of_points(seen, MIRROR, use).yaw
    assert np.isfinite(found).all()
    far = np.abs(yaw) > 60
    assert np.median(np.abs(found - yaw)) < 2.5
    assert np.median(np.abs(found - yaw)[far]) < 3
    assert np.polyfit(yaw, found, 1)[0] == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_rigid_shapes_are_exact_with_five_points_and_with_gaps(seed):
    points, mirror, yaw, _ = heads(120, pairs=2, seed=seed)
    places = [0, 2, 4, 1, 3]  # two pairs and a point of the middle, in the order of eyes, nose and mouth
    found = pc.yaw_of_points(points[:, places], EYES_NOSE_MOUTH.mirror)
    assert np.median(np.abs(found.yaw - yaw)) < 0.5
    points, mirror, yaw, _ = heads(120, pairs=9, seed=seed)
    # On a head that is turned to the right by more than 30 degrees, its right half cannot be seen.
    side = np.where(np.arange(21) < 9, 1, np.where(np.arange(21) < 18, -1, 0))
    points[side * yaw[:, None] > 30] = np.nan
    assert np.isfinite(points).all((1, 2)).mean() < 0.5
    found = pc.yaw_of_points(points, mirror)
    assert np.median(np.abs(found.yaw - yaw)) < 0.5
    assert np.percentile(np.abs(found.yaw - yaw), 95) < 3


def test_no_image_needs_all_points():
    points, mirror, yaw, _ = heads(200, pairs=9, seed=7)
    points[np.arange(200), np.arange(200) % 18] = np.nan
    points[:190, 20] = np.nan
    found = pc.yaw_of_points(points, mirror)
    assert np.median(np.abs(found.yaw - yaw)) < 0.5
    assert np.isfinite(found.shape).all()
    points[:, 20] = np.nan
    found = pc.yaw_of_points(points, mirror)
    assert np.median(np.abs(found.yaw - yaw)) < 0.5
    assert np.isnan(found.shape[20]).all()


def test_points_that_tell_nothing():
    points, mirror, _, _ = heads(80)
    for few in (points[:5], np.full_like(points, np.nan), np.zeros_like(points), np.repeat(points[:1], 80, 0)):
        found = pc.yaw_of_points(few, mirror)
        assert np.isnan(found.yaw).all()
        assert found.yaw.shape == (len(few),)
        assert found.shape is None
