import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from uld_jax.ops import heatmaps


def test_examples():
    result = doctest.testmod(heatmaps)
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_soft_argmax_equals_numpy(temperature):
    logits = np.random.default_rng(0).normal(size=(2, 3, 7, 9, 4)).astype(np.float32)
    found = jax.jit(heatmaps.soft_argmax, static_argnums=1)(logits, temperature)
    p = softmax(logits.astype(np.float64) / temperature, axis=(-3, -2))
    y, x = np.mgrid[:7, :9]
    expected = np.einsum("...hwk,hwc->...kc", p, np.stack([x, y], -1))
    assert found.shape == (2, 3, 4, 2)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_soft_argmax_of_low_precision_logits_is_float32():
    logits = jnp.zeros((64, 64, 1), jnp.bfloat16).at[50, 33].set(100)
    found = heatmaps.soft_argmax(logits)
    assert found.dtype == jnp.float32
    assert found.tolist() == [[33.0, 50.0]]


def test_separable_soft_argmax_equals_numpy():
    logits = 3 * np.random.default_rng(0).normal(size=(2, 3, 7, 9, 4)).astype(np.float32)
    found = jax.jit(heatmaps.separable_soft_argmax)(logits)
    assert found.shape == (2, 3, 4, 2)
    # As published: means of the logits, softmax, expectation over linspace(-1, 1), (y, x).
    wide = logits.astype(np.float64)
    y = np.einsum("...hk,h->...k", softmax(wide.mean(-2), axis=-2), np.linspace(-1, 1, 7))
    x = np.einsum("...wk,w->...k", softmax(wide.mean(-3), axis=-2), np.linspace(-1, 1, 9))
    np.testing.assert_allclose(found, np.stack([(x + 1) / 2 * 8, (y + 1) / 2 * 6], -1), atol=1e-5)
    assert np.abs(found - heatmaps.soft_argmax(logits)).max() > 0.1  # one softmax over all cells is something else
    low = heatmaps.separable_soft_argmax(jnp.zeros((64, 64, 1), jnp.bfloat16).at[50].set(99).at[:, 33].add(99))
    assert low.dtype == jnp.float32
    assert low.tolist() == [[33.0, 50.0]]


def test_gaussian_of_one_width_a_point():
    rng = np.random.default_rng(3)
    xy = rng.uniform(0, 9, (2, 8, 2)).astype(np.float32)
    y, x = np.mgrid[:10, :12]
    r2 = (x[..., None] - xy[:, None, None, :, 0]) ** 2 + (y[..., None] - xy[:, None, None, :, 1]) ** 2
    # Denominators of exp(-r^2 / s) that Awan et al.'s code takes for d = 1, 0.99, 0.95, 0.9, 0.8, 0.5, 0, -1.
    s = np.array([0.2, 0.228, 0.343, 0.494, 0.818, 2.012, 5, 18.05], np.float32)
    maps = jax.jit(heatmaps.gaussian, static_argnums=1)
    np.testing.assert_allclose(maps(xy, (10, 12), np.sqrt(s / 2)), np.exp(-r2 / s), atol=1e-6)
    sigma = rng.uniform(0.3, 3, (2, 8)).astype(np.float32)
    found = maps(xy, (10, 12), sigma)
    np.testing.assert_allclose(found, np.exp(-r2 / (2 * sigma[:, None, None] ** 2)), atol=1e-6)
    for i, k in [(0, 0), (1, 5)]:
        one = heatmaps.gaussian(xy[i], (10, 12), float(sigma[i, k]))
        np.testing.assert_allclose(found[i, :, :, k], one[:, :, k], atol=1e-6)
    # Half a pixel diagonally off, the narrowest one is exp(-2.5).
    corner = heatmaps.gaussian(jnp.array([[2.5, 3.5]]), (8, 8), jnp.sqrt(s[:1] / 2))
    np.testing.assert_allclose(corner.max(), np.exp(-2.5), rtol=1e-5)
    # d/d sigma exp(-r^2 / (2 sigma^2)) = map * r^2 / sigma^3
    gradient = jax.grad(lambda w: heatmaps.gaussian(xy, (10, 12), w).sum())(sigma)
    expected = (np.asarray(found) * r2).sum((1, 2)) / sigma**3
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_gaussian_equals_numpy_and_is_found_again():
    xy = np.random.default_rng(1).uniform(3, 9, (2, 5, 2)).astype(np.float32)
    maps = jax.jit(heatmaps.gaussian, static_argnums=(1, 2))(xy, (12, 14), 1.3)
    y, x = np.mgrid[:12, :14]
    r2 = (x[..., None] - xy[:, None, None, :, 0]) ** 2 + (y[..., None] - xy[:, None, None, :, 1]) ** 2
    np.testing.assert_allclose(maps, np.exp(-r2 / (2 * 1.3**2)), atol=1e-6)
    found, score = jax.jit(heatmaps.peak)(jnp.log(maps))
    np.testing.assert_allclose(found, xy, atol=1e-4)
    assert (np.asarray(score) <= 0).all()
    rough, height = heatmaps.peak(maps, refine=False)
    np.testing.assert_array_equal(rough, np.round(xy))
    np.testing.assert_allclose(height, np.asarray(maps).max((1, 2)))
    closer, _ = heatmaps.peak(maps)
    assert np.abs(closer - xy).max() < 0.6 * np.abs(rough - xy).max()


def test_peak_equals_brute_force_also_on_borders_and_plateaus():
    rng = np.random.default_rng(2)
    maps = rng.integers(0, 6, (50, 4, 5, 3)).astype(np.float32)  # few values: many ties
    xy, score = jax.jit(heatmaps.peak)(maps)
    for b in range(50):
        for k in range(3):
            m = maps[b, :, :, k]
            y, x = np.unravel_index(m.argmax(), m.shape)
            expected = np.array([x, y], np.float64)
            for axis, (p, line) in enumerate([(x, m[y]), (y, m[:, x])]):
                if 0 < p < len(line) - 1:
                    before, top, after = line[p - 1 : p + 2]
                    if before + after < 2 * top:
                        expected[axis] += np.clip(0.5 * (before - after) / (before - 2 * top + after), -0.5, 0.5)
            np.testing.assert_allclose(xy[b, k], expected, atol=1e-6)
            assert score[b, k] == m.max()


def test_a_map_of_keypoints_has_the_highest_bump_at_every_cell():
    rng = np.random.default_rng()
    xy, mask = rng.uniform(0, 7, (2, 4, 2)), rng.random((2, 4)) < 0.6
    found = heatmaps.keypoint_map(jnp.asarray(xy), jnp.asarray(mask), (6, 8), 1.5)
    y, x = np.mgrid[:6, :8]
    for b in range(2):
        want = np.zeros((6, 8))
        for at in xy[b][mask[b]]:
            want = np.maximum(want, np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * 1.5**2)))
        np.testing.assert_allclose(found[b], want, atol=1e-5)
