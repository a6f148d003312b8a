import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from uld_jax.ops import keypoints, resampling, views

READINGS = {"products": resampling.by_products, "this device": resampling.bilinear}
SIZES = [(21, 34), (16, 8), (3, 5), (1, 9), (7, 1), (1, 1)]  # more than a block, whole blocks, less, a line, a pixel


def test_examples():
    result = doctest.testmod(resampling)
    assert result.attempted >= 2
    assert result.failed == 0


def points(rng, size):
    """Points in an image and beyond it, some of them on its corners, on the last line and between two blocks."""
    xy = rng.uniform(-3, np.array(size[::-1]) + 2, (60, 2)).astype(np.float32)
    last = np.array(size[::-1], np.float32) - 1
    xy[:6] = [[0, 0], last, [last[0], 0], [0, last[1]], [7.75, 8.25], [last[0] - 0.5, 1e9]]
    return xy


def by_scipy(image, xy):
    at = [np.clip(xy[:, axis].astype(np.float64), 0, image.shape[1 - axis] - 1) for axis in (1, 0)]
    return np.stack([map_coordinates(image[..., c].astype(np.float64), at, order=1) for c in range(image.shape[2])], -1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reading", READINGS)
def test_images_are_read_as_by_scipy(reading, size):
    rng = np.random.default_rng(0)
    xy = np.stack([points(rng, size), points(rng, size)])
    read = jax.jit(jax.vmap(READINGS[reading]))
    for images in (rng.integers(0, 256, (2, *size, 3), np.uint8), rng.normal(size=(2, *size, 4)).astype(np.float32)):
        found = read(images, xy)
        assert found.dtype == jnp.float32
        for b in range(2):
            np.testing.assert_allclose(found[b] / 255, by_scipy(images[b], xy[b]) / 255, atol=1e-6)


def test_both_readings_have_the_same_gradients():
    rng = np.random.default_rng(1)
    image, weight = rng.normal(size=(19, 26, 2)).astype(np.float32), rng.normal(size=(60, 2)).astype(np.float32)
    xy = points(rng, (19, 26)) + np.float32(0.001)  # there is no slope at a pixel
    slopes = [
        jax.jit(jax.grad(lambda image, xy: jnp.sum(read(image, xy) * weight), (0, 1)))(image, xy)  # noqa: B023
        for read in (resampling.by_products, keypoints.bilinear)
    ]
    for one, other in zip(*slopes, strict=True):
        assert jnp.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_only_a_tpu_reads_by_products():
    shapes = jax.ShapeDtypeStruct((2, 24, 24, 3), np.uint8), jax.ShapeDtypeStruct((2, 50, 2), np.float32)
    program = jax.jit(jax.vmap(resampling.bilinear)).trace(*shapes)
    for device, product in (("tpu", True), ("cpu", False), ("cuda", False)):
        text = program.lower(lowering_platforms=(device,)).as_text()
        assert ("dot_general" in text) == product
        assert ("stablehlo.gather" in text) != product


@pytest.mark.parametrize(("source", "view", "zoom"), [(40, 32, 0.5), (20, 31, 0.8), (9, 9, 1.0), (12, 15, 1.4)])
def test_scaled_images_are_still_views(source, view, zoom):
    images = np.random.default_rng(2).integers(0, 256, (3, source, source, 3), np.uint8)
    found = jax.jit(lambda x: resampling.scaled(x, (view, view), zoom))(images)
    want = views.look(views.still(3, zoom), jnp.asarray(images), (view, view))
    np.testing.assert_allclose(found / 255, want, atol=1e-6)
    middle = ((np.arange(view) + 0.5) / view - 0.5) * zoom * source + source / 2 - 0.5  # of rows and columns, by hand
    xy = np.stack(np.meshgrid(middle, middle), -1).reshape(-1, 2)
    np.testing.assert_allclose(found[1], by_scipy(images[1], xy).reshape(view, view, 3), atol=0.01)


def test_scaled_keeps_wide_numbers():
    with jax.enable_x64(True):
        images = np.random.default_rng(3).integers(0, 256, (1, 6, 9, 1), np.uint8)
        found = resampling.scaled(jnp.asarray(images), (3, 4), dtype=jnp.float64)
        assert found.dtype == jnp.float64
        x, y = (np.arange(4) + 0.5) * 9 / 4 - 0.5, (np.arange(3) + 0.5) * 2 - 0.5
        xy = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
        np.testing.assert_allclose(found[0].reshape(-1, 1), by_scipy(images[0], xy), atol=1e-9)
