"""The autoencoder's encoder against diffusers, with random weights; what its padding would cost."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.stable_diffusion import reference
from uld_jax.convert import stable_diffusion as converter
from uld_jax.errors import UserError
from uld_jax.models.stable_diffusion import vae


def converted(network):
    """Its parameters, by way of the converter."""
    entries = {name: value.numpy() for name, value in network.state_dict().items()}
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in network.config.items()}
    return converter._vae(entries, settings, "vae")


def run(params, images):
    return jax.jit(vae.of(params).apply)({"params": params}, images)


def worst(found, expected):
    return max(reference.error(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.fixture(scope="module")
def case():
    twin = reference.make_vae()
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 24, 3)).astype(np.float32)
    return converted(twin), images, reference.run_vae(twin, images)


def test_examples():
    result = doctest.testmod(vae)
    assert result.attempted >= 4
    assert result.failed == 0


def test_moments_equal_diffusers(case):
    params, images, expected = case
    found = run(params, images)
    assert found.mean.shape == (2, 8, 6, 4)
    assert worst(found, expected) <= reference.TOLERANCE


def test_the_variance_is_clipped_as_in_diffusers(case):
    params, images, _ = case
    bias = params["quant_conv"]["bias"].copy()
    bias[4:] = [-1000, 1000, 0, 0]
    found = run(params | {"quant_conv": params["quant_conv"] | {"bias": bias}}, images)
    assert (found.logvar[..., 0] == -30).all()
    assert (found.logvar[..., 1] == 20).all()


def test_the_tolerance_is_small_enough_to_see_every_trap(case, monkeypatch):
    params, images, expected = case
    errors, conv = {}, vae.layers.conv

    def symmetric(*args, **options):
        return conv(*args, **{name: value for name, value in options.items() if name != "padding"})

    for name, (where, what, wrong) in {
        "padding": (vae.layers, "conv", symmetric),
        "epsilon": (vae, "_EPSILON", 1e-5),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(where, what, wrong)
            errors[name] = worst(run(params, images), expected)
    assert errors["padding"] > 0.05
    assert errors["epsilon"] > 1.5 * reference.TOLERANCE, errors


def test_the_published_size():
    shapes = jax.eval_shape(vae.Encoder().init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    leaves = jax.tree.leaves(shapes)
    assert (len(leaves), sum(leaf.size for leaf in leaves)) == (108, 34_163_664)
    assert vae.of(shapes["params"]) == vae.Encoder()


def test_bad_input_is_named():
    with pytest.raises(UserError, match="multiples of 8"):
        vae.Encoder().init(jax.random.key(0), jnp.zeros((1, 16, 20, 3)))


@pytest.mark.slow
def test_the_published_network_equals_diffusers():
    twin = reference.make_vae(**reference.FULL_VAE)
    images = np.random.default_rng(0).uniform(-1, 1, (1, 256, 256, 3)).astype(np.float32)
    error = worst(run(converted(twin), images), reference.run_vae(twin, images))
    print(f"{error:.1e}")
    assert error <= reference.TOLERANCE
