"""The zoom-out study: squares, pixels and points that go together, and ranges of factors."""

import doctest
import io

import numpy as np
import pytest
from PIL import Image

from uld_jax.data.specs import DatasetSpec, Source
from uld_jax.evaluation.dense import zoom
from uld_jax.evaluation.dense.protocols import LEAD_2022
from uld_jax.ops import coordinates


def test_examples():
    result = doctest.testmod(zoom)
    assert result.attempted >= 2
    assert result.failed == 0


class Discs(Source):
    """Photos of 90 x 60 pixels with a disc at the annotated point, in a box that is smaller than the photo."""

    def __init__(self, boxes=True, rows=3):
        self.spec, self.frame_size, self.names = DatasetSpec("discs", 1, "image"), 48, [*map(str, range(rows))]
        self.file_sizes = np.tile([60, 90], (rows, 1))
        self.frame_maps = np.tile(coordinates.frame_map((60, 90), (48, 48), "pad"), (rows, 1))
        self.points = np.array([[40.0, 30.0], [45.0, 36.0], [36.0, 24.0]])[:rows]
        self.landmarks = coordinates.file_to_frame(self.points[:, None], self.frame_maps).astype(np.float32)
        corners = zip(*((x - 12, y - 8, x + 10, y + 9) for x, y in self.points))
        names = ("box_x0", "box_y0", "box_x1", "box_y1")
        self.columns = dict(zip(names, ([str(v) for v in c] for c in corners))) if boxes else {}

    def encoded(self, row):
        y, x = np.mgrid[:60, :90]
        disc = np.hypot(x - self.points[row, 0], y - self.points[row, 1]) <= 4
        out = io.BytesIO()
        Image.fromarray(np.repeat((255 * disc)[..., None], 3, -1).astype(np.uint8)).save(out, "PNG")
        return out.getvalue()


def centre(image):
    weight = image[..., 0].astype(float)
    y, x = np.mgrid[: len(image), : len(image)]
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


@pytest.mark.parametrize("boxes", [True, False])
def test_points_and_pixels_move_together(boxes):
    source, protocol = Discs(boxes), LEAD_2022._replace(frame=48, side=40)
    factor = np.array([1.0, 1.4, 2.0])
    found = zoom.zoomed_views(source, np.arange(3), factor, protocol, boxed=boxes)
    assert found.inside.all()
    for image, xy in zip(found.views.images, found.views.xy):
        assert np.abs(centre(image) - xy[0]).max() < 0.35
    size = (found.views.images[..., 0] / 255).sum((1, 2))
    side = 22 if boxes else 90  # of the square, in pixels of the photo
    np.testing.assert_allclose(size, np.pi * 16 * (48 / side / factor) ** 2, rtol=0.12)
    # With a box, the centre of the square is that of the box and of the frame, whatever the factor.
    assert zoom.has_boxes(source) == boxes
    if boxes:
        away = (found.views.xy[:, 0] - 19.5) * factor[:, None]
        np.testing.assert_allclose(away, np.tile(np.array([1.0, -0.5]) * 48 / 22, (3, 1)), atol=1e-4)
    # The view of 40 of 48 pixels reaches beyond a photo that is wider than high, or that a factor shrinks.
    assert found.beyond.tolist() == ([False] * 3 if boxes else [True, True, True])


def test_points_that_leave_the_view_are_told():
    source, protocol = Discs(), LEAD_2022._replace(frame=48, side=4)
    found = zoom.zoomed_views(source, np.arange(3), np.ones(3), protocol, boxed=True)
    assert not found.inside.any()
    assert np.isfinite(found.views.xy).all()  # lengths of the normaliser need them


def test_windows_repeat_the_border_and_keep_straight_lines():
    ramp = np.repeat(np.arange(0, 200, 4, dtype=np.uint8)[None, :, None], 50, 0).repeat(3, -1)
    shown = zoom.window(ramp, np.array([0.5, 0.5, 5.25, 0.0]), 40)
    at = (np.arange(40) - 5.25) / 0.5  # in pixels of the photo
    inner = (at > 3) & (at < 46)
    np.testing.assert_allclose(shown[20, inner, 0], 4 * at[inner], atol=1.01)
    assert (shown[20, :4, 0] == 0).all()
    assert (shown[20, -8:, 0] == 196).all()
    far = zoom.window(ramp, np.array([1.0, 1.0, -45.0, 0.0]), 40)
    np.testing.assert_allclose(far[10, :5, 0], [180, 184, 188, 192, 196])
    assert (far[10, 5:, 0] == 196).all()


def test_factors_are_the_same_for_all_runs():
    train, test = zoom.factors(1000, False), zoom.factors(1000, True)
    np.testing.assert_array_equal(train, zoom.factors(1000, False))
    np.testing.assert_array_equal(test[:10], zoom.factors(10, True))
    assert 1 <= train.min() < 1.01 < 1.49 < train.max() <= 1.5
    assert 1 <= test.min() < 1.01 < 1.99 < test.max() <= 2
    assert np.corrcoef(train, test)[0, 1] < 0.2


def test_errors_by_range():
    factor = np.array([1.0, 1.1, 1.49, 1.5, 1.51, 2.0])
    errors = np.array([[1.0], [2.0], [4.0], [8.0], [16.0], [np.nan]])
    ranges = zoom.by_factor(errors, factor)
    assert [(r.low, r.high) for r in ranges][::3] == [(1.0, 1.1), (1.3, 1.4), (1.6, 1.7), (1.9, 2.0)]
    assert [r.images for r in ranges] == [1, 1, 0, 0, 1, 2, 0, 0, 0, 1]
    assert [r.error for r in ranges] == [1.0, 2.0, None, None, 4.0, 12.0, None, None, None, None]
    assert [r.seen for r in ranges] == [True] * 5 + [False] * 5
    assert zoom.seen_and_unseen(errors, factor) == (3.75, 16.0)
