import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.errors import UserError
from uld_jax.models import fan, layers


def test_examples():
    result = doctest.testmod(fan)
    assert result.attempted >= 13
    assert result.failed == 0


def initial(network, size, batch=1):
    image = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda k, x: network.init(k, x, train=False), jax.random.key(0), image)


def test_published_size():
    variables = initial(fan.FAN(landmarks=10), 128)
    count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    assert count(variables["params"]) == 6_234_762
    # 334 entries in the published state dict, one `num_batches_tracked` for each of the 55 normalisation layers.
    assert len(jax.tree.leaves(variables)) + len(jax.tree.leaves(variables["batch_stats"])) // 2 == 334
    grouped = initial(fan.FAN(landmarks=10, norm="group"), 256)
    assert set(grouped) == {"params"}
    assert count(grouped["params"]) == 6_234_762
    output = jax.eval_shape(
        lambda v, x: fan.FAN(landmarks=10).apply(v, x, train=False),
        variables,
        jax.ShapeDtypeStruct((2, 128, 128, 3), jnp.float32),
    )
    assert output.logits.shape == (2, 32, 32, 10)
    assert output.features.shape == (2, 32, 32, 256)
    assert {name: tap.shape[1] for name, tap in output.taps.items()} == dict(low1=16, low2=16, low3=16, hourglass=32)


@pytest.mark.parametrize(
    ("options", "size", "word"),
    [
        (dict(norm="layer"), 64, "norm"),
        (dict(downsample=3), 64, "downsample"),
        (dict(width=20), 64, "width"),
        (dict(), 96, "multiples of 64"),
    ],
)
def test_bad_input_is_named(options, size, word):
    with pytest.raises(UserError, match=word):
        initial(fan.FAN(landmarks=2, **options), size)


def torch_twin(landmarks, width, depth, downsample, norm):
    """The same network in PyTorch, with the attribute names of the published checkpoints."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def make_norm(channels):
        if norm == "batch":
            return torch.nn.BatchNorm2d(channels)
        return torch.nn.GroupNorm(math.gcd(32, channels), channels)

    class Block(torch.nn.Module):
        def __init__(self, before, after):
            super().__init__()
            widths = [before, after // 2, after // 4, after // 4]
            for i in (1, 2, 3):
                setattr(self, f"bn{i}", make_norm(widths[i - 1]))
                setattr(self, f"conv{i}", torch.nn.Conv2d(widths[i - 1], widths[i], 3, padding=1, bias=False))
            self.downsample = torch.nn.Sequential()
            if before != after:
                self.downsample = torch.nn.Sequential(
                    make_norm(before), torch.nn.ReLU(), torch.nn.Conv2d(before, after, 1, bias=False)
                )

        def forward(self, x):
            parts, y = [], x
            for i in (1, 2, 3):
                y = getattr(self, f"conv{i}")(functional.relu(getattr(self, f"bn{i}")(y)))
                parts.append(y)
            return torch.cat(parts, 1) + self.downsample(x)

    class Hourglass(torch.nn.Module):
        def __init__(self):
            super().__init__()
            names = [f"b{i}_{n}" for n in range(1, depth + 1) for i in (1, 2, 3)]
            for name in [*names, "b2_plus_1"]:
                setattr(self, name, Block(width, width))

        def forward(self, x):
            # Iterative, unlike the original: down to the bottom first, then up.
            skips = []
            for n in range(depth, 0, -1):
                skips.append(getattr(self, f"b1_{n}")(x))
                x = getattr(self, f"b2_{n}")(functional.avg_pool2d(x, 2))
            x = self.b2_plus_1(x)
            for n in range(1, depth + 1):
                x = functional.interpolate(getattr(self, f"b3_{n}")(x), scale_factor=2, mode="nearest") + skips.pop()
            return x

    class Twin(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, width // 4, 7, stride=2, padding=3)
            self.bn1 = make_norm(width // 4)
            self.conv2 = Block(width // 4, width // 2)
            self.conv3 = Block(width // 2, width // 2)
            self.conv4 = Block(width // 2, width)
            self.m0 = Hourglass()
            self.top_m_0 = Block(width, width)
            self.conv_last0 = torch.nn.Conv2d(width, width, 1)
            self.bn_end0 = make_norm(width)
            self.l_0 = torch.nn.Conv2d(width, landmarks, 1)

        def trunk(self, x):
            x = self.conv2(functional.relu(self.bn1(self.conv1(x))))
            if downsample == 4:
                x = functional.avg_pool2d(x, 2)
            return self.m0(self.conv4(self.conv3(x)))

        def forward(self, x):
            x = self.top_m_0(self.trunk(x))
            return self.l_0(functional.relu(self.bn_end0(self.conv_last0(x))))

    return Twin()


def correspondence_twin(channels, width, depth, downsample, unused=True):
    """The network with two heads in PyTorch, named as in the published checkpoints: (detector, descriptors).

    `channels` of `l1`: the descriptors' size, or in stage 2 the heatmaps. `unused`: with the blocks that the published
    network makes and never runs.
    """
    torch = pytest.importorskip("torch")
    one = torch_twin(1, width, depth, downsample, "group")
    block, norm = type(one.top_m_0), type(one.bn_end0)

    class Twin(type(one)):
        def __init__(self):
            super().__init__()
            self.l0 = self.l_0
            del self.l_0
            self.top_m_1 = block(width, width)
            self.conv_last1 = torch.nn.Conv2d(width, width, 1)
            self.bn_end1 = norm(math.gcd(32, width), width)
            self.l1 = torch.nn.Conv2d(width, channels, 1)
            for n in range(1, depth + 1) if unused else ():
                setattr(self.m0, f"b4_{n}", block(width, width))

        def head(self, x, number):
            x = getattr(self, f"conv_last{number}")(getattr(self, f"top_m_{number}")(x))
            return getattr(self, f"l{number}")(torch.relu(getattr(self, f"bn_end{number}")(x)))

        def forward(self, x):
            x = self.trunk(x)
            return self.head(x, 0)[:, 0], self.head(x, 1)

    return Twin().eval()


def randomized(twin, seed=0):
    """Random affine parameters of normalisations, and biases; kernels stay as PyTorch drew them."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    state = twin.state_dict()
    for key, value in state.items():
        if value.ndim == 1:
            state[key] = torch.tensor(rng.normal(float(key.endswith("weight")), 0.2, value.shape), dtype=torch.float32)
    twin.load_state_dict(state)
    return twin


def to_flax(state):
    """A PyTorch state dict by name: what a converter has to do."""
    variables = {}
    for key, value in state.items():
        value = value.numpy()
        *path, leaf = key.replace("downsample.", "downsample_").split(".")
        if leaf == "num_batches_tracked":
            continue
        collection = "batch_stats" if leaf.startswith("running") else "params"
        is_norm = value.ndim == 1 and not path[-1].startswith(("conv", "l_"))
        leaf = {
            "running_mean": "mean",
            "running_var": "var",
            "bias": "bias",
            "weight": "scale" if is_norm else "kernel",
        }[leaf]
        node = variables.setdefault(collection, {})
        for name in path:
            node = node.setdefault(name, {})
        node[leaf] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    return variables


@pytest.mark.parametrize(
    ("norm", "downsample", "depth", "size"), [("batch", 4, 4, (64, 128)), ("group", 2, 3, (32, 48))]
)
def test_equals_a_torch_twin(norm, downsample, depth, size):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    options = dict(landmarks=5, width=32, depth=depth, downsample=downsample, norm=norm)
    twin = torch_twin(**options).eval()
    state = twin.state_dict()
    for key, value in state.items():
        if key.endswith("running_var"):
            state[key] = torch.tensor(rng.uniform(0.5, 2, value.shape), dtype=torch.float32)
        elif value.ndim == 1:  # affine parameters, running means, biases
            state[key] = torch.tensor(rng.normal(float(key.endswith("weight")), 0.2, value.shape), dtype=torch.float32)
    twin.load_state_dict(state)
    variables = to_flax(state)
    network = fan.FAN(**options)
    expected_tree = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, expected_tree)
    image = rng.uniform(size=(2, *size, 3)).astype(np.float32)
    chw = torch.tensor(image.transpose(0, 3, 1, 2).copy())
    with jax.default_matmul_precision("highest"):
        apply = jax.jit(network.apply, static_argnames=("train", "mutable"))
        found = np.asarray(apply(variables, image, train=False).logits)
        with torch.no_grad():
            expected = twin(chw).numpy().transpose(0, 2, 3, 1)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
        if norm == "group":
            return
        found, updated = apply(variables, image, train=True, mutable="batch_stats")
        with torch.no_grad():
            expected = twin.train()(chw).numpy().transpose(0, 2, 3, 1)
        assert np.abs(np.asarray(found.logits) - expected).max() <= 1e-4 * np.abs(expected).max()
        after = to_flax(twin.state_dict())["batch_stats"]
        means = [(a["mean"], b["mean"]) for a, b in _norms(updated["batch_stats"], after)]
        assert len(means) == 55
        for ours, theirs in means:
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def _norms(ours, theirs):
    if "mean" in ours:
        yield ours, theirs
    else:
        for name in ours:
            yield from _norms(ours[name], theirs[name])


SMALL = dict(width=16, depth=1, downsample=2)


def test_both_heads_equal_a_torch_twin():
    torch = pytest.importorskip("torch")
    twin = randomized(correspondence_twin(6, **SMALL, unused=False))
    variables = to_flax(twin.state_dict())
    network = fan.CorrespondenceFAN(6, **SMALL)
    expected_tree = initial(network, 16)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, expected_tree)
    image = np.random.default_rng(1).uniform(size=(2, 16, 32, 3)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(network.apply)(variables, image)
    with torch.no_grad():
        logits, descriptors = twin(torch.tensor(image.transpose(0, 3, 1, 2).copy()))
    for ours, theirs in ((found.logits, logits), (found.descriptors, descriptors.permute(0, 2, 3, 1))):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs.numpy()).max() <= 1e-5 * np.abs(theirs.numpy()).max()
    last = variables["params"]["l1"]
    linear = found.features @ last["kernel"][0, 0] + last["bias"]
    np.testing.assert_allclose(linear, found.descriptors, atol=1e-4)
    assert set(found.taps) == {"low1", "low2", "low3", "hourglass"}


def test_published_size_with_two_heads():
    count = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    network = fan.CorrespondenceFAN()
    variables = initial(network, 256)
    assert set(variables) == {"params"}  # group normalisation has no statistics
    # The published network's 220 tensors, 8,396,545 numbers, but for the 36 of the blocks that it never runs.
    assert len(jax.tree.leaves(variables)) == 220 - 36
    assert count(variables) == 8_396_545 - 1_625_600
    shapes = jax.eval_shape(network.apply, variables, jax.ShapeDtypeStruct((2, 256, 128, 3), jnp.float32))
    assert (shapes.logits.shape, shapes.descriptors.shape) == ((2, 64, 32), (2, 64, 32, 256))
    half = fan.CorrespondenceFAN(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(half.apply, variables, jax.ShapeDtypeStruct((2, 128, 128, 3), jnp.float32))
    assert shapes.features.dtype == jnp.bfloat16
    assert {shapes.logits.dtype, shapes.descriptors.dtype} == {jnp.dtype("float32")}
    with pytest.raises(UserError, match="multiples of 64"):
        initial(network, 96)


def test_the_descriptors_branch_becomes_a_network_of_heatmaps():
    network, second = fan.CorrespondenceFAN(6, **SMALL), fan.FAN(40, **SMALL, norm="group")
    image = jnp.asarray(np.random.default_rng(2).uniform(size=(2, 16, 32, 3)), jnp.float32)
    first = jax.jit(lambda key: layers.initialize(network, key, image))(jax.random.key(0))["params"]
    branch = fan.descriptor_branch(first, 40, jax.random.key(1))
    assert jax.tree.map(jnp.shape, branch) == jax.tree.map(jnp.shape, initial(second, 16)["params"])
    found = jax.jit(lambda p: second.apply({"params": p}, image, train=False))(branch)
    expected = jax.jit(lambda p: network.apply({"params": p}, image))(first)
    np.testing.assert_allclose(found.features, expected.features, atol=1e-5)
    # U(+-1 / sqrt(fan_in)), which is 1/4 here, of its own key.
    for values in jax.tree.leaves(branch["l_0"]):
        assert 0.2 < np.abs(values).max() <= 0.25
        np.testing.assert_allclose(np.std(values), 0.25 / math.sqrt(3), rtol=0.25)
    other = fan.descriptor_branch(first, 40, jax.random.key(2))
    assert not np.array_equal(other["l_0"]["bias"], branch["l_0"]["bias"])
    assert not set(branch) & {"l0", "l1", "top_m_1", "conv_last1", "bn_end1"}
    assert set(first) >= {"l0", "l1", "top_m_1"}  # it is left as it was


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
    network = fan.FAN(landmarks=2, width=16, depth=1, downsample=2, dtype=jnp.bfloat16)
    image = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 16, 16, 3)), jnp.float32)
    variables = layers.initialize(network, jax.random.key(0), image, train=False)
    output, updated = jax.jit(lambda v: network.apply(v, image, train=True, mutable="batch_stats"))(variables)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updated, output.logits))} == {jnp.dtype("float32")}
    assert output.features.dtype == jnp.bfloat16
    exact = fan.FAN(landmarks=2, width=16, depth=1, downsample=2)
    expected = jax.jit(lambda v: exact.apply(v, image, train=True, mutable="batch_stats")[0].logits)(variables)
    assert 0 < np.abs(output.logits - expected).max() < 0.1 * np.abs(expected).max()


def test_float64():
    with jax.enable_x64(True):
        network = fan.FAN(landmarks=2, width=8, depth=1, downsample=2, param_dtype=jnp.float64)
        image = jnp.ones((1, 8, 8, 3), jnp.float64)
        variables = jax.eval_shape(lambda: network.init(jax.random.key(0), image, train=False))
        output = jax.eval_shape(lambda v: network.apply(v, image, train=False), variables)
        assert output.logits.dtype == jnp.float64
        assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float64")}
