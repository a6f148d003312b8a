import doctest

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests import tiny
from uld_jax.errors import UserError
from uld_jax.models import layers

torch = pytest.importorskip("torch")


class OneConv(nn.Module):
    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x):
        return layers.conv(x, 6, self.kernel, stride=self.stride, bias=True, name="conv")


@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1), (1, 1), (3, 2), (4, 2)])
def test_conv_pads_like_torch(kernel, stride):
    x = np.random.default_rng(0).normal(size=(2, 12, 10, 3)).astype(np.float32)
    module = OneConv(kernel, stride)
    params = module.init(jax.random.key(0), x)
    twin = torch.nn.Conv2d(3, 6, kernel, stride, (kernel - 1) // 2)
    weights = params["params"]["conv"]
    twin.weight.data = torch.tensor(np.array(weights["kernel"]).transpose(3, 2, 0, 1).copy())
    twin.bias.data = torch.tensor(np.array(weights["bias"]))
    expected = twin(torch.tensor(x.transpose(0, 3, 1, 2).copy())).detach().numpy().transpose(0, 2, 3, 1)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(module.apply(params, x), expected, atol=1e-5)


def test_initialisation_is_torch_default():
    x = jnp.zeros((1, 8, 8, 48))
    weights = OneConv(5, 1).init(jax.random.key(1), x)["params"]["conv"]
    bound = (25 * 48) ** -0.5
    twin = torch.nn.Conv2d(48, 6, 5)
    assert twin.weight.abs().max() <= bound + 1e-7
    assert twin.bias.abs().max() <= bound + 1e-7
    kernel, bias = np.asarray(weights["kernel"]), np.asarray(weights["bias"])
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    assert 0 < np.abs(bias).max() <= bound
    np.testing.assert_allclose(kernel.std(), twin.weight.std().item(), rtol=0.05)


class OneNorm(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x, train):
        return layers.normalize(x, self.kind, train, name="norm")


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (6, 2), (5, 1)])
def test_group_norm_equals_torch(channels, groups):
    x = 5 + np.random.default_rng(1).normal(size=(2, 4, 6, channels)).astype(np.float32)
    module = OneNorm("group")
    found = module.apply(module.init(jax.random.key(0), x, True), x, True)
    expected = torch.nn.functional.group_norm(torch.tensor(x.transpose(0, 3, 1, 2).copy()), groups)
    np.testing.assert_allclose(found, expected.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_batch_norm_equals_torch():
    x = 2 + 3 * np.random.default_rng(2).normal(size=(4, 5, 6, 3)).astype(np.float32)
    module, twin = OneNorm("batch"), torch.nn.BatchNorm2d(3)
    variables = module.init(jax.random.key(0), x, True)
    found, updated = module.apply(variables, x, True, mutable="batch_stats")
    expected = twin(torch.tensor(x.transpose(0, 3, 1, 2).copy())).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    stats, count = updated["batch_stats"]["norm"], 4 * 5 * 6
    np.testing.assert_allclose(stats["mean"], twin.running_mean.numpy(), rtol=1e-5)
    unbiased = 0.9 + (np.asarray(stats["var"]) - 0.9) * count / (count - 1)
    np.testing.assert_allclose(unbiased, twin.running_var.numpy(), rtol=1e-5)
    twin.eval()
    expected = twin(torch.tensor(x.transpose(0, 3, 1, 2).copy())).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(module.apply(variables | updated, x, False), expected, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (12, 7)])
def test_split_batch_norm(shape):
    """Three groups, against NumPy on each group alone; one group is the usual normalisation."""
    x = 3 + 2 * np.random.default_rng(4).normal(size=shape).astype(np.float32)
    scale, bias = np.random.default_rng(5).normal(1, 0.3, (2, shape[-1])).astype(np.float32)
    old = {"mean": np.full(shape[-1], 0.5, np.float32), "var": np.full(shape[-1], 2, np.float32)}
    variables = {"params": {"norm": {"scale": scale, "bias": bias}}, "batch_stats": {"norm": old}}

    class Split(nn.Module):
        groups: int

        @nn.compact
        def __call__(self, x, train):
            return layers.normalize(x, "batch", train, groups=self.groups, name="norm")

    for groups in (3, 1):
        found, updated = Split(groups).apply(variables, x, True, mutable="batch_stats")
        parts = np.split(x.astype(np.float64), groups)
        axes = tuple(range(len(shape) - 1))
        expected = [(part - part.mean(axes)) / np.sqrt(part.var(axes) + 1e-5) * scale + bias for part in parts]
        np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-4, atol=1e-5)
        for name, now in (("mean", np.mean), ("var", np.var)):
            after = 0.9 * old[name] + 0.1 * np.mean([now(part, axis=axes) for part in parts], axis=0)
            np.testing.assert_allclose(updated["batch_stats"]["norm"][name], after, rtol=1e-5)
    evaluated = Split(3).apply(variables, x, False)
    np.testing.assert_allclose(evaluated, (x - 0.5) / np.sqrt(2 + 1e-5) * scale + bias, rtol=1e-4, atol=1e-5)
    fresh = Split(3).init(jax.random.key(0), x, True)
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, variables)
    np.testing.assert_array_equal(fresh["batch_stats"]["norm"]["mean"], 0)  # `init` is no step
    with pytest.raises(UserError, match="images do not divide into 5 groups"):
        Split(5).apply(variables, x, True, mutable="batch_stats")


DEVICES = """
import flax.linen as nn, jax, numpy as np
jax.config.update("jax_enable_x64", True)
from tests import collectives
from uld_jax import sharding
from uld_jax.models import layers

class Net(nn.Module):
    groups: int
    @nn.compact
    def __call__(self, x):
        x = layers.conv(x, 5, 3, name="conv", param_dtype="float64")
        return layers.normalize(x, "batch", True, groups=self.groups, name="norm", param_dtype="float64")

x = np.random.default_rng(0).normal(size=(16, 6, 7, 3))
for groups in (1, 2, 4, 8, 16):
    net, results = Net(groups), []
    variables = jax.tree.map(np.asarray, net.init(jax.random.key(1), x))

    @jax.jit
    def step(params, stats, x):
        def loss(params):
            y, updated = net.apply({"params": params, "batch_stats": stats}, x, mutable="batch_stats")
            return (y ** 3).sum(), (y, updated)
        return jax.value_and_grad(loss, has_aux=True)(params)

    for devices in (jax.devices()[:1], jax.devices()):
        mesh = sharding.make_mesh(devices)
        state = [sharding.put_replicated(mesh, variables[name]) for name in ("params", "batch_stats")]
        batch = sharding.put_batch(mesh, x)
        sent = collectives.list_collectives(step.lower(*state, batch).compile())
        results.append(jax.device_get(step(*state, batch)))
    # Statistics and gradients are sent, maps of images never.
    assert {one.kind for one in sent} == {"all-reduce"}
    assert max(np.prod(one.shape) for one in sent) <= 3 * 3 * 3 * 5, sent  # the kernel's gradient
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
"""


@pytest.mark.slow
def test_split_batch_norm_does_not_depend_on_the_number_of_devices():
    tiny.run("-c", DEVICES, devices=8)


def test_average_pool_and_upsample_equal_torch():
    x = np.random.default_rng(3).normal(size=(2, 6, 8, 3)).astype(np.float32)
    chw = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    to_numpy = lambda t: t.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(layers.average_pool(x), to_numpy(torch.nn.functional.avg_pool2d(chw, 2)), atol=1e-6)
    twin = torch.nn.functional.interpolate(chw, scale_factor=2, mode="nearest")
    np.testing.assert_array_equal(layers.upsample(x), to_numpy(twin))


class Small(nn.Module):
    extra: bool = False

    @nn.compact
    def __call__(self, x, train):
        x = layers.conv(x, 64, 5, bias=True, name="a")
        x = layers.normalize(x, "batch", train, name="b")
        x = layers.conv(x, 32, 3, name="c", param_dtype=jnp.bfloat16)
        return self.param("gain", nn.initializers.ones, ()) * x if self.extra else x


def test_initialize_follows_the_law_of_init():
    x = jnp.zeros((1, 8, 8, 16))
    expected = Small().init(jax.random.key(0), x, train=False)
    for form in (x, jax.ShapeDtypeStruct(x.shape, x.dtype)):
        found = layers.initialize(Small(), jax.random.key(1), form, train=False)
        assert jax.tree.map(lambda v: (v.shape, v.dtype), found) == jax.tree.map(lambda v: (v.shape, v.dtype), expected)
        for (path, ours), theirs in zip(
            jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
        ):
            ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
            if theirs.std():
                bound = (16 * 25) ** -0.5 if "'a'" in str(path) else (64 * 9) ** -0.5
                for values in (ours, theirs):
                    assert np.abs(values).max() <= bound * 1.004
                    assert abs(values.mean()) < 4 * bound / values.size**0.5
                    np.testing.assert_allclose(values.std(), bound / 3**0.5, rtol=1 / values.size**0.5 + 0.01)
            else:
                np.testing.assert_array_equal(ours, theirs)
    again = layers.initialize(Small(), jax.random.key(2), x, train=False)
    assert not np.array_equal(again["params"]["a"]["bias"], found["params"]["a"]["bias"])


def test_initialize_by_another_law():
    x = jnp.zeros((1, 8, 8, 16))
    found = layers.initialize(Small(), jax.random.key(0), x, train=False, law=layers.truncated_normal(0.1))
    kernel = np.asarray(found["params"]["a"]["kernel"], np.float64)
    assert 0.19 < np.abs(kernel).max() <= 0.2 + 1e-7
    expected = 0.1 * scipy.stats.truncnorm(-2, 2).std()
    np.testing.assert_allclose(kernel.std(), expected, rtol=4 / kernel.size**0.5)
    np.testing.assert_array_equal(found["params"]["a"]["bias"], np.zeros(64))
    assert found["params"]["c"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["params"]["b"]["scale"], np.ones(64))


def test_initialize_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="params/gain"):
        layers.initialize(Small(extra=True), jax.random.key(0), jnp.zeros((1, 8, 8, 16)), train=False)


def test_examples():
    result = doctest.testmod(layers)
    assert result.attempted >= 2
    assert result.failed == 0


def test_split_parts_what_is_learned_from_all_else():
    variables = layers.initialize(Small(), jax.random.key(0), jnp.zeros((1, 8, 8, 16)), train=False)
    params, state = layers.split(variables)
    assert {"params": params} | state == variables
    assert set(state) == {"batch_stats"}
    assert layers.split({"params": params}) == (params, {})


@pytest.mark.parametrize(
    ("dtype", "parameters"), [("float32", "float32"), ("bfloat16", "float32"), ("float64", "float64")]
)
def test_parameters_are_never_below_float32(dtype, parameters):
    found = layers.precision(dtype)
    assert jnp.dtype(found["dtype"]) == dtype
    assert jnp.dtype(found["param_dtype"]) == jnp.dtype(layers.wide(dtype)) == parameters
