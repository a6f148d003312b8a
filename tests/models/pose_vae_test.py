"""The pose network's shapes, sizes and the two terms of its bound, beside PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from uld_jax.clustering.kmeans import kmeans
from uld_jax.data.synthetic import Synthetic
from uld_jax.errors import UserError
from uld_jax.evaluation.pose_clusters import pose_clusters
from uld_jax.models import layers, pose_vae
from uld_jax.ops import heatmaps


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
    np.testing.assert_allclose(pose_vae.kl_divergence(mean, log_variance), want.numpy(), rtol=1e-5, atol=1e-6)
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


@pytest.mark.slow
def test_codes_of_turned_heads_do_not_collapse_and_follow_yaw():
    """On maps of the landmarks of synthetic heads, clusters of codes tell ranges of yaw apart, better with training."""
    count, steps = 600, 900
    source = Synthetic("train", rows=count, frame_size=32)
    yaw = np.array([float(value) for value in source.columns["yaw"]])
    points = jnp.asarray(source.landmarks, jnp.float32)
    seen, target = (jnp.max(heatmaps.gaussian(points, (32, 32), sigma), -1) for sigma in (1.0, 1.5))
    encoder, decoder = pose_vae.Encoder(16, 16), pose_vae.Decoder(32, 16)
    params = {
        "encoder": layers.split(layers.initialize(encoder, jax.random.key(0), seen[:1]))[0],
        "decoder": layers.split(layers.initialize(decoder, jax.random.key(1), jnp.zeros((1, 16))))[0],
    }
    optimizer = optax.adam(2e-3)

    def loss(params, index, key, beta):
        mean, log_variance = encoder.apply({"params": params["encoder"]}, seen[index])
        code = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        fit = pose_vae.reconstruction(decoder.apply({"params": params["decoder"]}, code), target[index])
        return jnp.mean(fit + beta * jnp.sum(pose_vae.kl_divergence(mean, log_variance), -1)) / 1000

    @jax.jit
    def step(params, state, index, key, beta):
        updates, state = optimizer.update(jax.grad(loss)(params, index, key, beta), state)
        return optax.apply_updates(params, updates), state

    def accuracy(params):
        codes, _ = encoder.apply({"params": params["encoder"]}, seen)
        unit = codes / jnp.linalg.norm(codes, axis=1, keepdims=True)
        found = kmeans(unit, 5, rng=jax.random.key(0), restarts=3).labels
        return pose_clusters(np.asarray(found), yaw).yaw, pose_vae.active_units(codes, jnp.ones(count, bool))

    before, _ = accuracy(params)
    state, rng = optimizer.init(params), np.random.default_rng(0)
    for number in range(steps):
        index = jnp.asarray(rng.integers(0, count, 16))
        params, state = step(params, state, index, jax.random.key(number), min(1.0, number / 150))
    after, active = accuracy(params)
    assert active >= 8
    assert after.accuracy > before.accuracy + 0.08
    assert after.accuracy > after.chance + 0.15
