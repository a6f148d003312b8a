import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from uld_jax.ops import keypoints


def test_examples():
    result = doctest.testmod(keypoints)
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize("size", [(6, 9), (1, 5), (5, 1), (1, 1)])
def test_sample_equals_scipy(size):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, *size, 4)).astype(np.float32)
    xy = rng.uniform(-2, 11, (2, 40, 2)).astype(np.float32)
    xy[0, :3] = [[0, 0], [size[1] - 1, size[0] - 1], [size[1] - 1, 0]]
    found = jax.jit(keypoints.sample)(features, xy)
    for b in range(2):
        for d in range(4):
            at = np.clip(xy[b, :, 1], 0, size[0] - 1), np.clip(xy[b, :, 0], 0, size[1] - 1)
            np.testing.assert_allclose(found[b, :, d], map_coordinates(features[b, :, :, d], at, order=1), atol=1e-5)


def test_sample_reads_bytes_and_half_precision_as_float32():
    for dtype in (jnp.uint8, jnp.bfloat16):
        features = jnp.asarray([[[[1], [2]]]], dtype)
        found = keypoints.sample(features, jnp.asarray([[[0.25, 0.0]]]))
        assert found.dtype == jnp.float32
        assert found.tolist() == [[[1.25]]]


def test_sample_has_the_gradient_of_its_points():
    features = np.random.default_rng(1).normal(size=(5, 6, 3)).astype(np.float32)
    xy = jnp.asarray([[2.3, 1.6]])
    value = lambda p: keypoints.bilinear(jnp.asarray(features), p).sum()
    step = 1e-2
    for axis in range(2):
        shift = step * jnp.eye(2)[axis]
        slope = (value(xy + shift) - value(xy - shift)) / (2 * step)
        np.testing.assert_allclose(jax.grad(value)(xy)[0, axis], slope, rtol=1e-3)


def test_masked_mean_equals_numpy():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4, 6, 3)).astype(np.float32)
    mask = rng.random((4, 6)) < 0.5
    mask[2] = False
    x[~mask] = np.nan
    found = keypoints.masked_mean(jnp.asarray(x), mask[..., None], axis=1)
    for i in range(4):
        expected = x[i, mask[i]].mean(0) if mask[i].any() else np.zeros(3)
        np.testing.assert_allclose(found[i], expected, atol=1e-6)
    weights = rng.random((4, 6)).astype(np.float32)
    clean = np.nan_to_num(x)
    np.testing.assert_allclose(
        keypoints.masked_mean(jnp.asarray(clean), weights[..., None]),
        np.average(clean, weights=np.broadcast_to(weights[..., None], clean.shape)),
        rtol=1e-5,
    )
    slope = jax.grad(lambda v: keypoints.masked_mean(v, mask[..., None]))(jnp.asarray(x))
    np.testing.assert_allclose(slope[~mask], 0)
    np.testing.assert_allclose(slope[mask], 1 / (3 * mask.sum()), rtol=1e-5)


def test_l2_normalize():
    x = np.random.default_rng(3).normal(size=(5, 7)).astype(np.float32)
    x[3] = 0
    found = keypoints.l2_normalize(jnp.asarray(x))
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(found, x / np.where(norm > 0, norm, 1), atol=1e-6)
    slope = jax.grad(lambda v: keypoints.l2_normalize(v)[:, 0].sum())(jnp.asarray(x))
    assert np.isfinite(slope).all()
