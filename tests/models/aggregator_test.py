"""The aggregation network against a twin in PyTorch, which brings wide maps up to the grid first."""

import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.errors import UserError
from uld_jax.models import aggregator

PROJECTION, GRID = 24, (8, 6)
# Channels, height and width of the taps: one has the result's channels already, one is finer than the grid.
TAPS = {"up0.0": (10, 4, 3), "up0.1": (PROJECTION, 8, 6), "up1.0": (7, 16, 12)}


def torch_twin(widths, projection, timesteps, groups=32):
    """Named as in the published checkpoints; {(step, tap): [B,C,h,w]} in, [B,projection,*grid] out."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Conv(nn.Conv2d):
        def __init__(self, before, after, side):
            super().__init__(before, after, side, padding=side // 2, bias=False)
            self.norm = nn.GroupNorm(math.gcd(groups, after), after)

        def forward(self, x):
            return self.norm(super().forward(x))

    class Block(nn.Module):
        def __init__(self, before):
            super().__init__()
            narrow = projection // 4
            if before != projection:
                self.shortcut = Conv(before, projection, 1)
            self.conv1, self.conv2 = Conv(before, narrow, 1), Conv(narrow, narrow, 3)
            self.conv3 = Conv(narrow, projection, 1)

        def forward(self, x):
            y = self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x)))))
            return torch.relu(y + (self.shortcut(x) if hasattr(self, "shortcut") else x))

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.bottleneck_layers = nn.ModuleList(nn.Sequential(Block(width)) for width in widths)
            self.mixing_weights = nn.Parameter(torch.ones(timesteps * len(widths)))

        def forward(self, maps, grid):
            weights = torch.softmax(self.mixing_weights, 0)
            keys = [(step, tap) for step in range(timesteps) for tap in range(len(widths))]
            total = 0
            for weight, (step, tap) in zip(weights, keys, strict=True):
                up = nn.functional.interpolate(maps[step, tap], size=grid, mode="bilinear", align_corners=False)
                total = total + weight * self.bottleneck_layers[tap](up)
            return total

    return Twin().eval()


def randomized(twin, seed=0):
    """Random mixing weights and affine parameters of normalisations; kernels stay as PyTorch drew them."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, value in twin.named_parameters():
            if value.ndim == 1:
                value.copy_(torch.tensor(rng.normal(float("bias" not in name), 0.4, value.shape)))
    return twin


def to_flax(state, timesteps):
    params = {}
    for key, value in state.items():
        value = value.numpy()
        if key == "mixing_weights":
            params["mixing"] = value.reshape(timesteps, -1)
            continue
        _, tap, _, conv, *norm, leaf = key.split(".")
        name = conv if not norm else f"norm{conv.removeprefix('conv')}" if conv != "shortcut" else "norm_shortcut"
        leaf = {"bias": "bias", "weight": "scale" if norm else "kernel"}[leaf]
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        params.setdefault(f"bottleneck_{tap}", {}).setdefault(name, {})[leaf] = value
    return params


def random_maps(names, rng, batch=2):
    """Of taps called as in `TAPS`, with or without a timestep before."""
    shape = lambda name: next((h, w, c) for tap, (c, h, w) in TAPS.items() if name.endswith(tap))
    return {name: rng.normal(0, 2, (batch, *shape(name))) for name in names}


def test_examples():
    result = doctest.testmod(aggregator)
    assert result.attempted >= 6
    assert result.failed == 0


def test_equals_a_torch_twin_that_brings_maps_up_first():
    torch = pytest.importorskip("torch")
    steps = (-1, 60, 160)
    torch.manual_seed(0)
    twin = randomized(torch_twin([c for c, _, _ in TAPS.values()], PROJECTION, len(steps)).double())
    maps = random_maps([f"t{step}.{tap}" for step in steps for tap in TAPS], np.random.default_rng(1))
    tensors = {
        (i, j): torch.tensor(maps[f"t{step}.{tap}"].transpose(0, 3, 1, 2).copy())
        for i, step in enumerate(steps)
        for j, tap in enumerate(TAPS)
    }
    with torch.no_grad():
        expected = twin(tensors, GRID).numpy().transpose(0, 2, 3, 1)
    with jax.enable_x64(True):
        network = aggregator.Aggregator(PROJECTION, param_dtype=jnp.float64)
        params = to_flax(twin.state_dict(), len(steps))
        drawn = jax.eval_shape(lambda m: network.init(jax.random.key(0), m, GRID)["params"], maps)
        assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, drawn)
        # The names decide, in whatever order the maps come.
        shuffled = dict(reversed(maps.items()))
        found = np.asarray(jax.jit(lambda p, m: network.apply({"params": p}, m, GRID))(params, shuffled))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("sides", [(4, 3), (16, 12), (5, 9)])
def test_convolving_before_and_after_resizing_agree(sides):
    """Which of the two is done goes by the number of cells; both are the same function."""
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(2, *sides, 10)))
        network = aggregator.Aggregator(PROJECTION, param_dtype=jnp.float64)
        params = network.init(jax.random.key(3), {"a": x}, GRID)["params"]
        up = jax.image.resize(x, (2, *GRID, 10), "bilinear", antialias=False)
        found = network.apply({"params": params}, {"a": x}, GRID)
        expected = network.apply({"params": params}, {"a": up}, GRID)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


def test_published_size():
    widths = [1280] * 6 + [640] * 3 + [320] * 3
    names = [f"up{block}.{i}" for block in range(4) for i in range(3)]
    maps = {n: jax.ShapeDtypeStruct((1, 8, 8, c), jnp.float32) for n, c in zip(names, widths, strict=True)}
    network = aggregator.Aggregator()
    params = jax.eval_shape(lambda m: network.init(jax.random.key(0), m, (64, 64))["params"], maps)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 6_529_536 + 12
    assert params["mixing"].shape == (1, 12)
    made = jax.eval_shape(lambda m: aggregator.initialize(network, jax.random.key(0), m, (64, 64)), maps)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(lambda x: (x.shape, x.dtype), params)


def test_starts_from_kaiming_kernels_and_equal_weights():
    names = ["a", "b"]
    maps = {name: jax.ShapeDtypeStruct((1, 4, 4, 64), jnp.float32) for name in names}
    network = aggregator.Aggregator(128)
    one = aggregator.initialize(network, jax.random.key(0), maps, (4, 4))
    zeros = {name: jnp.zeros(shape.shape) for name, shape in maps.items()}
    for params in (
        one,
        network.init(jax.random.key(0), zeros, (4, 4))["params"],
    ):
        for conv, fan in dict(conv1=32, conv2=9 * 32, conv3=128, shortcut=128).items():
            kernels = np.stack([params[f"bottleneck_{i}"][conv]["kernel"] for i in (0, 1)])
            np.testing.assert_allclose(np.std(kernels), math.sqrt(2 / fan), rtol=0.05)
            assert np.abs(np.corrcoef(kernels.reshape(2, -1))[0, 1]) < 0.1
        np.testing.assert_array_equal(params["mixing"], 1)
        assert {float(x.min()) for x in jax.tree.leaves(params["bottleneck_0"]["norm3"])} == {0, 1}


def test_bfloat16_sums_in_float32():
    rng = np.random.default_rng(0)
    maps = {name: jnp.asarray(x, jnp.float32) for name, x in random_maps(TAPS, rng).items()}
    exact, half = aggregator.Aggregator(PROJECTION), aggregator.Aggregator(PROJECTION, dtype=jnp.bfloat16)
    params = aggregator.initialize(exact, jax.random.key(0), maps, GRID)
    found, expected = (jax.jit(n.apply, static_argnums=2)({"params": params}, maps, GRID) for n in (half, exact))
    assert found.dtype == expected.dtype == jnp.float32
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_order_is_natural_and_by_timestep():
    names = [f"t{step}.up{block}.{i}" for step in (-1, 0, 60, 160) for block in range(4) for i in range(3)]
    assert [name for step in aggregator.order(sorted(names)) for name in step] == names
    assert aggregator.order(["scale10", "scale2", "t5"]) == [["scale2", "scale10", "t5"]]


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (["t0.a", "t0.b", "t60.a"], {}, "t0.a, t0.b, t60.a; give the same taps at each timestep"),
        ([], {}, "called nothing"),
        (["t0.a", "t60.a"], dict(timesteps=1), "of 2 timesteps, not 1"),
        (["a"], dict(projection=30), "projection is 30; use a multiple of 4"),
    ],
)
def test_bad_input_is_named(names, options, words):
    maps = {name: jax.ShapeDtypeStruct((1, 4, 4, 8), jnp.float32) for name in names}
    with pytest.raises(UserError, match=words):
        jax.eval_shape(lambda m: aggregator.Aggregator(**options).init(jax.random.key(0), m, (4, 4)), maps)
