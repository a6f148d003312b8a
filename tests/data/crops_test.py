"""The official crops: literal formulas, and pixels that move as points do."""

import doctest

import numpy as np
import pytest

from uld_jax.data import crops
from uld_jax.errors import UserError
from uld_jax.ops import coordinates


def test_mask_box():
    mask = np.zeros((20, 30), int)
    mask[4:9, 7:25] = 1
    mask[12, 3] = 1
    assert crops.mask_box(mask) == (3, 4, 24, 12)
    assert crops.mask_box(mask == 1) == (3, 4, 24, 12)
    with pytest.raises(UserError, match=r"no true pixel"):
        crops.mask_box(np.zeros((4, 4)))


def test_square_crop_is_one_and_a_half_heights_about_the_centre():
    rng = np.random.default_rng(0)
    for x0, y0, width, height in rng.uniform(5, 400, (20, 4)):
        fmap = crops.square_crop((x0, y0, x0 + width, y0 + height))
        centre = np.array([x0 + width / 2, y0 + height / 2])
        corners = coordinates.file_to_frame(centre + np.array([[-0.75, -0.75], [0.75, 0.75], [0, 0]]) * height, fmap)
        np.testing.assert_allclose(corners, [[0, 0], [450, 450], [225, 225]], atol=1e-9)
    with pytest.raises(UserError, match=r"has no height"):
        crops.square_crop((0, 5, 9, 5))


def test_fan_view_and_its_field_of_view():
    x = np.random.default_rng(0).uniform(0, 450, (50, 2))
    expected = ((x - 225) * 1.4 + 225) * 256 / 450
    np.testing.assert_allclose(coordinates.file_to_frame(x, crops.fan_view()), expected, atol=1e-9)
    box = (100, 50, 180, 350)
    both = crops.then(crops.square_crop(box), crops.fan_view())
    step = coordinates.file_to_frame(coordinates.file_to_frame(x, crops.square_crop(box)), crops.fan_view())
    np.testing.assert_allclose(coordinates.file_to_frame(x, both), step, atol=1e-9)
    np.testing.assert_allclose(256 / both[0] / 300, 1.5 / 1.4)


@pytest.mark.parametrize("weight", [0.5, 0.25])
def test_fan_crop_is_the_literal_formula(weight):
    rng = np.random.default_rng(0)
    grown = set()
    for _ in range(300):
        x0, y0 = (int(v) for v in rng.integers(0, 100, 2))
        x1, y1 = x0 + int(rng.integers(2, 70)), y0 + int(rng.integers(2, 100))
        found = crops.fan_crop((x0, y0, x1, y1), (218, 178), weight)
        delta = weight * ((1.2 * x1 - x0) + (2 * y1 - y0))
        m = 8 if delta < 20 else int(8 * delta / 100)
        grown.add(m)
        assert found == (max(x0 - m, 0), max(y0 - m, 0), min(x1 + m, 177), min(y1 + m, 217))
        u = coordinates.file_to_frame(np.array([[60.0, 70]]), crops.crop_map(found))[0]
        assert u[0] == pytest.approx((60 - found[0]) * 256 / (found[2] - found[0]))
        assert u[1] == pytest.approx((70 - found[1]) * 256 / (found[3] - found[1]))
    assert len(grown) > 5
    assert 8 in grown
    with pytest.raises(UserError, match=r"outside its image of 178 x 218"):
        crops.fan_crop((500, 10, 600, 20), (218, 178))


def sampled(pixels, x, y):
    """Bilinear sampling at points inside, in float64."""
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    a, b = (x - left)[..., None], (y - top)[..., None]
    p = np.pad(pixels.astype(np.float64), ((0, 1), (0, 1), (0, 0)), mode="edge")
    up = p[top, left] * (1 - a) + p[top, left + 1] * a
    return up * (1 - b) + p[top + 1, left] * b * (1 - a) + p[top + 1, left + 1] * b * a


@pytest.mark.parametrize("fmap", [(1.7, 1.9, -11.3, 4.2), (1.0, 1.0, 5.0, -7.0)])
def test_cut_moves_pixels_as_the_map_moves_points(fmap):
    pixels = np.random.default_rng(0).integers(0, 255, (37, 52, 3), np.uint8)
    fmap = np.array(fmap)
    found = crops.cut(pixels, fmap, (40, 40))
    assert (found.shape, found.dtype) == ((40, 40, 3), np.uint8)
    xy = (coordinates.pixel_grid(40, 40) - fmap[2:]) / fmap[:2]
    inside = ((xy >= 0) & (xy <= (51, 36))).all(-1)
    outside = ((xy < -1) | (xy > (52, 37))).any(-1)
    assert inside.sum() > 200
    assert (found[outside] == 0).all()
    expected = sampled(pixels, xy[inside][:, 0], xy[inside][:, 1])
    np.testing.assert_allclose(found[inside], expected, atol=1.0)


def test_doctests():
    assert doctest.testmod(crops).failed == 0
