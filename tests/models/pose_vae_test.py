"""The pose network's shapes, sizes and the two terms of its bound, beside PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from uld_jax.errors import UserError
from uld_jax.models import layers, pose_vae


def count(tree):
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def shapes(net, *shape):
    return jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros(shape)))


def test_sizes_of_the_full_network():
    assert count(shapes(pose_vae.Encoder(), 1, 64, 64)) == 1_870_624
    assert count(shapes(pose_vae.Decoder(64), 1, 64)) == 1_054_497


def twin_encoder(params, maps):
    """By PyTorch's functions, in double precision."""
    x = torch.tensor(maps, dtype=torch.float64)[:, None]
    tensor = lambda a: torch.tensor(np.asarray(a), dtype=torch.float64)
    for i in range(sum(name.startswith("Conv") for name in params)):
        conv, norm = params[f"Conv_{i}"], params[f"GroupNorm_{i}"]
        x = torch.nn.functional.conv2d(x, tensor(conv["kernel"]).permute(3, 2, 0, 1), tensor(conv["bias"]), 2, 1)
        groups = np.gcd(8, x.shape[1])
        x = torch.nn.functional.silu(
            torch.nn.functional.group_norm(x, int(groups), tensor(norm["scale"]), tensor(norm["bias"]), 1e-5)
        )
    x = x.permute(0, 2, 3, 1).flatten(1) @ tensor(params["Dense_0"]["kernel"]) + tensor(params["Dense_0"]["bias"])
    return [part.numpy() for part in x.chunk(2, -1)]


def test_encoder_equals_a_twin():
    net = pose_vae.Encoder(latent=6, width=8)
    params, _ = layers.split(layers.initialize(net, jax.random.key(1), jax.ShapeDtypeStruct((1, 16, 16), jnp.float32)))
    maps = np.random.default_rng().random((3, 16, 16))
    for got, want in zip(net.apply({"params": params}, jnp.asarray(maps)), twin_encoder(params, maps), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("side", [4, 16, 64])
def test_decoder_gives_maps_of_its_side(side):
    assert jax.eval_shape(
        lambda: pose_vae.Decoder(side, 4).init_with_output(jax.random.key(0), jnp.zeros((2, 5)))[0]
    ).shape == (2, side, side)


def test_terms_of_the_bound_equal_torch():
    rng = np.random.default_rng()
    mean, log_variance = rng.normal(size=(2, 7))
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(
        normal(torch.tensor(mean), torch.tensor(np.exp(0.5 * log_variance))), normal(0.0, 1.0)
    )
    np.testing.assert_allclose(pose_vae.kl_divergence(mean, log_variance), want.numpy(), rtol=1e-5)
    logits, target = rng.normal(size=(2, 3, 4, 4))
    # The log-density of the target under a normal about the sigmoid, but for its constant.
    likelihood = normal(torch.sigmoid(torch.tensor(logits)), 0.1).log_prob(torch.tensor(target)).sum((1, 2))
    constant = 16 * np.log(0.1 * np.sqrt(2 * np.pi))
    got = pose_vae.reconstruction(jnp.asarray(logits), jnp.asarray(target))
    np.testing.assert_allclose(got, -likelihood.numpy() - constant, rtol=1e-4)


def test_active_units_are_those_that_vary():
    rng = np.random.default_rng()
    codes = rng.normal(size=(500, 4)) * np.array([1.0, 0.05, 0.5, 0.0])
    codes[400:] = 100 * rng.normal(size=(100, 4))  # masked
    assert pose_vae.active_units(jnp.asarray(codes), jnp.arange(500) < 400) == 2


def test_a_side_that_is_no_power_of_two_is_refused():
    with pytest.raises(UserError, match="side 24"):
        shapes(pose_vae.Encoder(), 1, 24, 24)
