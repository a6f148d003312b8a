import doctest

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from uld_jax.errors import UserError
from uld_jax.ops import coordinates as c


def test_examples():
    result = doctest.testmod(c)
    assert result.attempted >= 4
    assert result.failed == 0


def test_pixel_grid_is_x_then_y():
    grid = c.pixel_grid(3, 5)
    assert grid.shape == (3, 5, 2)
    assert grid.dtype == np.float32
    for y in range(3):
        for x in range(5):
            assert grid[y, x].tolist() == [x, y]


def test_unit_coordinates_have_the_borders_at_one():
    size = (30, 70)
    corners = np.array([[-0.5, -0.5], [69.5, 29.5], [34.5, 14.5]])
    np.testing.assert_allclose(c.to_unit(corners, size), [[-1, -1], [1, 1], [0, 0]], atol=1e-12)
    xy = np.random.default_rng(0).uniform(-20, 90, (6, 4, 2))
    np.testing.assert_allclose(c.from_unit(c.to_unit(xy, size), size), xy, atol=1e-10)


@pytest.mark.parametrize("to_size", [(40, 48), (10, 12), (37, 91)])
def test_rescale_points_follows_a_real_resize(to_size):
    # Images whose value is the pixel's own x or y: after a box-filtered resize the value at a pixel is the mean
    # source position of the pixel, hence `rescale_points` of that position is the pixel itself.
    from_size = (20, 24)
    y, x = np.mgrid[:20, :24].astype(np.float32)
    small = to_size[0] < from_size[0]
    method = Image.Resampling.BOX if small else Image.Resampling.BILINEAR
    at_x, at_y = (np.asarray(Image.fromarray(v).resize(to_size[::-1], method)) for v in (x, y))
    inner = (slice(3, -3),) * 2  # away from the border, which PIL repeats
    source = np.stack([at_x, at_y], -1)[inner]
    found = c.rescale_points(source, from_size, to_size)
    np.testing.assert_allclose(found, c.pixel_grid(*to_size)[inner], atol=2e-3)


def test_rescaled_corners_coincide():
    corners = np.array([[0.0, 0.0], [399.0, 299.0], [199.5, 149.5]])
    found = c.rescale_corners(corners, (300, 400), (19, 25))
    np.testing.assert_allclose(found, [[0, 0], [24, 18], [12, 9]], atol=1e-12)
    np.testing.assert_allclose(c.rescale_corners(found, (19, 25), (300, 400)), corners, atol=1e-12)
    assert c.rescale_corners(np.ones((1, 2), np.float32), (1, 4), (8, 7)).tolist() == [[2.0, 7.0]]
    assert isinstance(c.rescale_corners(jnp.ones(2), (2, 2), (3, 3)), jnp.ndarray)


@pytest.mark.parametrize("fit", c.FITS)
def test_frame_map_places_the_image(fit):
    file_size, frame_size = (120, 200), (64, 64)
    fmap = c.frame_map(file_size, frame_size, fit)
    corners = np.array([[-0.5, -0.5], [199.5, 119.5]])
    (left, top), (right, bottom) = c.file_to_frame(corners, fmap)
    centre = c.file_to_frame(np.array([[99.5, 59.5]]), fmap)[0]
    np.testing.assert_allclose(centre, [31.5, 31.5], atol=1e-9)
    width, height = right - left, bottom - top
    expected = {"pad": (64, 38.4), "crop": (64 / 120 * 200, 64), "stretch": (64, 64)}[fit]
    np.testing.assert_allclose((width, height), expected, atol=1e-9)


def test_frame_map_goes_there_and_back_for_a_batch():
    rng = np.random.default_rng(1)
    fmaps = np.stack([c.frame_map(s, (80, 80), f) for s, f in zip([(50, 60), (300, 20), (7, 7)], c.FITS, strict=True)])
    xy = rng.uniform(0, 300, (3, 5, 2))
    there = c.file_to_frame(xy, fmaps)
    for i in range(3):
        np.testing.assert_allclose(there[i], c.file_to_frame(xy[i], fmaps[i]), atol=1e-9)
    np.testing.assert_allclose(c.frame_to_file(there, fmaps), xy, atol=1e-9)


def test_frame_map_refuses_another_word():
    with pytest.raises(UserError, match="use one of pad, crop, stretch"):
        c.frame_map((2, 2), (4, 4), "zoom")


def test_arrays_keep_their_kind():
    xy = np.ones((2, 2))
    fmap = c.frame_map((4, 4), (8, 8))
    for function in (
        lambda v: c.to_unit(v, (4, 4)),
        lambda v: c.from_unit(v, (4, 4)),
        lambda v: c.rescale_points(v, (4, 4), (8, 8)),
        lambda v: c.file_to_frame(v, fmap.astype(v.dtype)),
        lambda v: c.frame_to_file(v, fmap.astype(v.dtype)),
    ):
        assert isinstance(function(xy), np.ndarray)
        assert function(xy).dtype == np.float64
        on_device = function(jnp.ones((2, 2), jnp.float32))
        assert not isinstance(on_device, np.ndarray)
        assert on_device.dtype == jnp.float32
