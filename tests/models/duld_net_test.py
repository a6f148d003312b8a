"""The network of D-ULD: its parts, their first parameters, and codes of length 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.models.duld_net import RARE, DuldNet, Psi, unit

NET = DuldNet(grid=8, projection=12, width=8, depth=2, descriptor_size=6, latent=4, pose_width=4)


@pytest.fixture(scope="module")
def made():
    maps = {"a": jax.random.normal(jax.random.key(0), (2, 8, 8, 5)), "b": jnp.ones((2, 4, 4, 3))}
    init = jax.jit(lambda rng, maps: NET.initialize(rng, tuple(NET.parts), maps))
    return init(jax.random.key(1), maps), maps


def test_the_maps_and_the_code_have_the_sizes_asked_for(made):
    params, maps = made
    assert set(params) == {"aggregator", "detector", "descriptor", "encoder", "decoder"}
    psi = NET.psi(params, maps)
    assert psi.logits.shape == (2, 8, 8)
    assert psi.descriptors.shape == (2, 8, 8, 6)
    mean, log_variance = NET.code(params, psi.confidence(jnp.ones((2, 8, 8), bool)))
    assert mean.shape == log_variance.shape == (2, 4)
    assert NET.decode(params, mean).shape == (2, 8, 8)


def test_keypoints_are_rare_at_first(made):
    params, maps = made
    np.testing.assert_array_equal(params["detector"]["Conv_2"]["bias"], RARE)
    psi = NET.psi(params, maps)
    assert jnp.mean(jax.nn.sigmoid(psi.logits)) < 0.1


def test_confidence_is_zero_outside():
    logits, inside = jnp.array([[[0.0, 3.0]]]), jnp.array([[[True, False]]])
    np.testing.assert_array_equal(Psi(logits, None).confidence(inside), [[[0.5, 0.0]]])


def test_a_network_without_poses_has_none():
    assert set(DuldNet(8, 12, 8, 1, 6).parts) == {"aggregator", "detector", "descriptor"}


def test_networks_in_half_precision_give_float32(made):
    params, maps = made
    net = DuldNet(grid=8, projection=12, width=8, depth=2, descriptor_size=6, latent=4, pose_width=4, dtype="bfloat16")
    psi = net.psi(params, maps)
    mean, _ = net.code(params, jax.nn.sigmoid(psi.logits))
    assert psi.logits.dtype == psi.descriptors.dtype == mean.dtype == net.decode(params, mean).dtype == jnp.float32


def test_codes_of_length_1():
    codes = np.random.default_rng().normal(size=(5, 4))
    np.testing.assert_allclose(
        unit(jnp.asarray(codes)), codes / np.linalg.norm(codes, axis=1, keepdims=True), atol=1e-5
    )
    assert np.isfinite(jax.grad(lambda x: jnp.sum(unit(x)))(jnp.zeros(4))).all()
