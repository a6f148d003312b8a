import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.ops import batches


def test_examples():
    result = doctest.testmod(batches)
    assert result.attempted >= 2
    assert result.failed == 0


def noisy(key, image):
    return {"image": image + jax.random.normal(key, image.shape), "mean": image.mean()}


@pytest.mark.parametrize("devices", [1, 8])
def test_each_image_is_treated_by_itself(monkeypatch, devices):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    keys, images = jax.random.split(jax.random.key(0), 5), np.random.default_rng(0).normal(size=(5, 4, 3))
    found = jax.jit(lambda *given: batches.each(noisy, *given))(keys, images.astype(np.float32))
    for i in range(5):
        want = noisy(keys[i], jnp.asarray(images[i], jnp.float32))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[i], b, atol=1e-6), found, want)  # noqa: B023


def test_only_a_cpu_alone_goes_from_image_to_image(monkeypatch):
    keys, images = jax.random.split(jax.random.key(0), 5), jax.ShapeDtypeStruct((5, 4, 3), np.float32)
    for devices, device, loops in ((1, "cpu", True), (1, "tpu", False), (1, "cuda", False), (8, "cpu", False)):
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        program = jax.jit(lambda k, x: batches.each(lambda k, x: x * jax.random.key_data(k).sum(), k, x))
        text = program.trace(keys, images).lower(lowering_platforms=(device,)).as_text()
        assert ("stablehlo.while" in text) == loops
