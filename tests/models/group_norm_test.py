"""Group normalisation against its definition, PyTorch's and the gradient of Linen's."""

import doctest

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.models import group_norm
from uld_jax.models.group_norm import GroupNorm

torch = pytest.importorskip("torch")


def test_examples():
    result = doctest.testmod(group_norm)
    assert result.attempted >= 4
    assert result.failed == 0


def case(shape, mean=0.0, seed=0):
    """Input whose channels have means and deviations of their own, and parameters."""
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    spread, centre = rng.uniform(0.5, 2, channels), mean + rng.normal(size=channels)
    x = rng.normal(size=shape) * spread + centre
    params = {"scale": rng.normal(size=channels), "bias": rng.normal(size=channels)}
    return x, params


def by_hand(x, params, groups, epsilon=1e-5):
    """float64."""
    parts = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean, var = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
    return ((parts - mean) / np.sqrt(var + epsilon)).reshape(x.shape) * params["scale"] + params["bias"]


def single(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


@pytest.mark.parametrize(("shape", "groups"), [((2, 6, 10, 24), 8), ((3, 7, 12), 12), ((1, 5, 4, 3, 6), 1)])
def test_it_equals_the_definition_and_torch(shape, groups):
    x, params = case(shape)
    norm = GroupNorm(groups)
    found = norm.apply({"params": single(params)}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, by_hand(x, params, groups), atol=1e-5)
    scale, bias = (torch.tensor(params[name]) for name in ("scale", "bias"))
    twin = torch.nn.functional.group_norm(torch.tensor(np.moveaxis(x, -1, 1).copy()), groups, scale, bias)
    np.testing.assert_allclose(found, np.moveaxis(twin.numpy(), 1, -1), atol=1e-5)


def test_the_gradient_is_that_of_linens_norm():
    x, params = case((2, 6, 8, 12))
    weight = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    given = single((params, x))

    def slope(module):
        return jax.grad(lambda p, x: jnp.sum(weight * module.apply({"params": p}, x)), (0, 1))(*given)

    ours, theirs = slope(GroupNorm(4)), slope(nn.GroupNorm(4, epsilon=1e-5, use_fast_variance=False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)


def test_a_mean_of_a_thousand_deviations_costs_no_digits():
    x, params = case((2, 16, 16, 8), mean=1000.0)
    x = x.astype(np.float32)
    expected = by_hand(x.astype(np.float64), params, 4)
    variables = {"params": single(params)}
    error = np.abs(GroupNorm(4).apply(variables, x) - expected).max()
    fast = np.abs(nn.GroupNorm(4, epsilon=1e-5).apply(variables, x) - expected).max()  # mean of squares less a square
    assert error < 1e-3 < 10 * error + 1e-3 < fast


def test_half_precision_has_float32_sums():
    x, params = case((2, 64, 64, 8), mean=3.0)
    rounded = jnp.asarray(x, jnp.bfloat16)
    found = GroupNorm(2, dtype=jnp.bfloat16).apply({"params": single(params)}, rounded)
    assert found.dtype == jnp.bfloat16
    expected = by_hand(np.asarray(rounded, np.float64), params, 2)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=0.03, rtol=2**-8)
    # No copy of the map in float32 with the groups as an axis of its own.
    text = str(jax.make_jaxpr(lambda x: GroupNorm(2).apply({"params": single(params)}, x))(rounded))
    assert "[2,64,64,2,4]" not in text


def test_float64_stays():
    x, params = case((1, 4, 4, 6))
    with jax.enable_x64(True):
        found = GroupNorm(3, dtype=jnp.float64).apply({"params": params}, jnp.asarray(x))
        np.testing.assert_allclose(found, by_hand(x, params, 3), atol=1e-12)
