import colorsys
import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from uld_jax.ops import color

IMAGE = np.random.default_rng(0).uniform(0.25, 0.75, (24, 20, 3)).astype(np.float32)


def draw(count=64, **options):
    keys = jax.random.split(jax.random.key(1), count)
    return np.asarray(jax.jit(jax.vmap(lambda k: color.random_color(k, jnp.asarray(IMAGE), **options)))(keys))


def test_nothing_asked_is_nothing_done():
    np.testing.assert_array_equal(color.random_color(jax.random.key(0), jnp.asarray(IMAGE)), IMAGE)


def test_brightness_adds_one_number_an_image():
    added = draw(brightness=0.2) - IMAGE
    assert added.std((1, 2, 3)).max() < 1e-6
    assert -0.2 <= added.min() < -0.15
    assert 0.15 < added.max() <= 0.2


@pytest.mark.parametrize("name", ["contrast", "saturation"])
def test_contrast_and_saturation_scale_the_distance_from_grey(name):
    grey = IMAGE @ np.array([0.299, 0.587, 0.114])
    centre = grey.mean() if name == "contrast" else grey[..., None]
    factors = ((draw(**{name: 0.3}) - centre) / (IMAGE - centre))[:, np.abs(IMAGE - centre) > 0.05]
    assert factors.std(1).max() < 1e-4
    assert 0.7 <= factors.min() + 1e-4 < 0.78
    assert 1.22 < factors.max() < 1.3001


def test_gain_multiplies_each_channel():
    factors = draw(200, gain=0.05) / IMAGE
    assert factors.std((1, 2)).max() < 1e-4
    logs = np.log(factors.mean((1, 2)))
    np.testing.assert_allclose(logs.std(0), 0.05, rtol=0.2)
    assert abs(np.corrcoef(logs.T)[0, 1]) < 0.25


def test_hue_turns_the_colour_and_keeps_grey():
    third = color._hue_matrix(2 * np.pi / 3)  # a third of a turn carries red to green to blue
    np.testing.assert_allclose(third @ np.array([1.0, 0, 0]), [0, 1, 0], atol=1e-6)
    found = draw(hue=0.1)
    np.testing.assert_allclose(found.mean(-1), np.broadcast_to(IMAGE.mean(-1), found.shape[:3]), atol=1e-5)
    hue = lambda rgb: colorsys.rgb_to_hsv(*rgb)[0]
    vivid = np.unravel_index(np.ptp(IMAGE, axis=-1).argmax(), IMAGE.shape[:2])
    turns = [(hue(f[vivid]) - hue(IMAGE[vivid]) + 0.5) % 1 - 0.5 for f in found]
    assert -0.13 < min(turns) < -0.06
    assert 0.06 < max(turns) < 0.13


def test_grey_has_its_probability():
    found = draw(400, grey=0.25)
    is_grey = np.ptp(found, axis=-1).max((1, 2)) < 1e-6
    np.testing.assert_allclose(found[~is_grey], np.broadcast_to(IMAGE, found[~is_grey].shape), atol=1e-6)
    assert 0.17 < is_grey.mean() < 0.33


@pytest.mark.parametrize("sigma", [0.0, 0.7, 1.5])
def test_blur_equals_scipy(sigma):
    found = color.gaussian_blur(jnp.asarray(IMAGE), sigma, 3)
    expected = IMAGE
    if sigma:
        for axis in (0, 1):
            expected = gaussian_filter1d(expected, sigma, axis=axis, mode="nearest", radius=3)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_noise_is_white_and_differs_in_strength():
    added = draw(noise=0.05) - IMAGE
    spread = added.std((1, 2, 3))
    assert 0.045 < spread.max() < 0.055
    assert spread.min() < 0.01
    neighbour = [np.corrcoef(a[:, :-1].ravel(), a[:, 1:].ravel())[0, 1] for a in added[spread > 0.01]]
    assert abs(np.mean(neighbour)) < 0.02


def test_everything_at_once_stays_in_range_and_follows_the_key():
    options = dict(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.2, gain=0.2, grey=0.1, blur=1.0, noise=0.1)
    first, again = draw(8, **options), draw(8, **options)
    np.testing.assert_array_equal(first, again)
    assert first.min() >= 0
    assert first.max() <= 1
    assert first.dtype == np.float32
    assert np.unique(first.mean((1, 2, 3))).size == 8


def test_uint8_is_the_nearest_and_cut_off():
    assert doctest.testmod(color).attempted >= 1
    assert doctest.testmod(color).failed == 0
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(color.to_uint8(jnp.asarray(every / np.float32(255))), every)
    given = np.random.default_rng(0).uniform(-0.2, 1.2, (3, 4, 4, 3)).astype(np.float32)
    found = color.to_uint8(jnp.asarray(given))
    assert found.dtype == jnp.uint8
    np.testing.assert_array_equal(found, np.clip(np.round(given * np.float32(255)), 0, 255))
