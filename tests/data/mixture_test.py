"""Mixtures of annotated landmarks and random points."""

import csv
import doctest
import types

import numpy as np
import pytest

from uld_jax.data import mixture, objects, open_source
from uld_jax.data.specs import DatasetSpec, Source
from uld_jax.errors import UserError

CHOSEN = [0, 2, 5, 8, 11, 15]


@pytest.fixture(scope="module")
def heads():
    return open_source("synthetic", "train", frame_size=40, rows=48)


def test_examples():
    result = doctest.testmod(mixture)
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize(("true", "share"), [(2, 0.2), (4, 0.7), (6, 0.4), (3, 1.0)])
def test_true_points_are_landmarks_and_the_others_are_anywhere_in_the_view(heads, true, share):
    found = mixture.mixture(heads, CHOSEN, true, share, zoom=0.8, seed=3)
    there = np.isfinite(found.xy).all(-1)
    assert not (found.true & ~there).any()
    margin = 40 * 0.1
    used = set()
    for row in range(len(heads)):
        inside = ((heads.landmarks[row] >= margin - 0.5) & (heads.landmarks[row] <= 39.5 - margin)).all(-1)
        could = [i for i in CHOSEN if heads.visible[row, i] and inside[i]]
        points = found.xy[row, found.true[row]]
        which = np.abs(points[:, None] - heads.landmarks[row]).max(-1) < 1e-6
        assert which.any(1).all()
        mine = which.argmax(1)
        assert len(set(mine)) == len(mine) == min(true, len(could))
        assert set(mine) <= set(could)
        used |= set(mine)
        others = there[row].sum() - len(mine)
        assert abs(others - len(mine) * (1 - share) / share) < 1
    assert used == set(CHOSEN)
    # Fractions of a point are drawn, so that the share holds over all images.
    assert found.true.sum() / there.sum() == pytest.approx(share, abs=0.03)
    noise = found.xy[there & ~found.true]
    assert ((noise >= margin - 0.5) & (noise <= 39.5 - margin)).all()
    if share < 1:
        assert np.abs(noise.mean(0) - 19.5).max() < 4 * 32 / np.sqrt(12 * len(noise))
        assert noise.std(0) == pytest.approx(32 / np.sqrt(12), rel=0.25)
        places = np.nonzero(found.true)[1]
        assert places.max() >= true  # true points do not come first


def test_the_same_true_points_serve_every_share_and_seeds_differ(heads):
    def true_points(share, seed=0):
        found = mixture.mixture(heads, CHOSEN, 3, share, seed=seed)
        return [sorted(map(tuple, xy[on])) for xy, on in zip(found.xy, found.true)]

    assert true_points(0.3) == true_points(0.9)
    assert true_points(0.3) != true_points(0.3, seed=1)


class Files(Source):
    """Photos of 60 x 30 pixels in a frame of 40: one corner to the landmarks of the synthetic heads."""

    def __init__(self):
        self.spec = DatasetSpec("files", 2, "box")
        self.names, self.frame_size = ["a/0.png", "a/1.png"], 40
        self.file_sizes = np.array([[30, 60]] * 2)
        self.frame_maps = np.array([[2 / 3, 2 / 3, -1 / 6, 59 / 6]] * 2)
        self.landmarks = np.array([[[10, 12], [20, 21]], [[12, 11], [np.nan, np.nan]]], np.float32)
        self.visible = np.isfinite(self.landmarks).all(-1)


def test_the_csv_is_in_pixels_of_the_files_and_is_read_back_into_the_frame(tmp_path):
    source = Files()
    found = mixture.mixture(source, [0, 1], 2, 0.02, seed=1)
    assert found.true.sum(1).tolist() == [2, 1]
    there = np.isfinite(found.xy).all(-1)
    assert found.xy[there].min(0) == pytest.approx([-0.5, -0.5], abs=2.5)  # all of the photo, and nothing beside it
    assert found.xy[there].max(0) == pytest.approx([59.5, 29.5], abs=2.5)
    mixture.write_points(tmp_path / "deep" / "points.csv", source.names, found.xy)
    rows = list(csv.reader((tmp_path / "deep" / "points.csv").open()))
    assert rows[0][:5] == ["file", "x0", "y0", "x1", "y1"]
    assert [row[0] for row in rows[1:]] == source.names
    read = objects.keypoints(source, tmp_path / "deep" / "points.csv", found.xy.shape[1])
    np.testing.assert_array_equal(read.mask, there)
    for row in range(2):
        there = source.landmarks[row, source.visible[row]]
        near = np.abs(read.xy[row, found.true[row]][:, None] - there).max(-1).min(1)
        np.testing.assert_allclose(near, 0, atol=1e-3)


def test_mixtures_that_cannot_be_are_refused(heads):
    for arguments, said in (
        ((CHOSEN, 7, 0.5), "7 true points cannot be drawn from 6 landmarks"),
        ((CHOSEN, 0, 0.5), "use 1 to 6"),
        ((CHOSEN, 2, 0.0), "use a share above 0, up to 1"),
        ((CHOSEN, 2, 1.5), "use a share above 0, up to 1"),
    ):
        with pytest.raises(UserError, match=said):
            mixture.mixture(heads, *arguments)
    plain = types.SimpleNamespace(landmarks=None, spec=types.SimpleNamespace(name="photos"))
    with pytest.raises(UserError, match="the data set photos has no landmarks"):
        mixture.mixture(plain, CHOSEN, 2, 0.5)
