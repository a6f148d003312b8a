import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.ops import views, warp


def test_a_still_view_shows_the_middle_of_each_frame():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    seen = views.look(views.still(2, 0.5), jnp.asarray(images), (8, 8))
    np.testing.assert_allclose(seen, images[:, 4:12, 4:12] / 255, atol=1e-6)


def test_a_turned_view_is_the_view_turned():
    start = warp.random_warp(jax.random.key(1), scale=0.1, shift=0.1, bend=0.0)
    points = np.random.default_rng(0).uniform(-1, 1, (5, 2)).astype(np.float32)
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = warp.view_to_source(warp.turned(start, 30.0), points)
    np.testing.assert_allclose(found, warp.view_to_source(start, points @ turn.T), atol=1e-6)


def test_standardised_views_have_mean_zero_and_one_contrast():
    rng = np.random.default_rng(0)
    seen = rng.uniform(0, 1, (3, 8, 8, 3)) * np.array([1.0, 0.5, 0.0])[:, None, None, None]
    found = np.asarray(views.standardise(jnp.asarray(seen)))
    np.testing.assert_allclose(found.mean((1, 2, 3)), 0, atol=1e-5)
    spread = seen.std((1, 2, 3))
    np.testing.assert_allclose(found.std((1, 2, 3)), spread / (spread + 0.05), rtol=1e-5)
