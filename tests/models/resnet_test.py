"""ResNet against a NumPy network always, and against transformers and a PyTorch twin where these are installed."""

import doctest
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import twins
from uld_jax.errors import UserError
from uld_jax.models import layers, resnet
from uld_jax.models.resnet import ResNet

NARROW = 4  # channels of the stem in tests that compute


def test_examples():
    result = doctest.testmod(resnet)
    assert result.attempted >= 7
    assert result.failed == 0


def shapes_of(network, height=64, width=64):
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    return jax.eval_shape(lambda key, x: network.init(key, x, train=False), jax.random.key(0), image)


@pytest.mark.parametrize(
    ("depth", "parameters", "entries"), [(101, 42_500_160, 626), (50, 23_508_032, 320), (18, 11_176_512, 122)]
)
def test_published_size(depth, parameters, entries):
    variables = shapes_of(ResNet(depth))
    leaves = {name: jax.tree.leaves(tree) for name, tree in variables.items()}
    assert sum(math.prod(leaf.shape) for leaf in leaves["params"]) == parameters
    # The file also has fc's weight and bias, and one `num_batches_tracked` for each normalisation.
    assert len(leaves["params"]) + len(leaves["batch_stats"]) * 3 // 2 + 2 == entries


def variables_of(depth, seed=0, dtype=np.float64):
    """Random kernels that keep the size of the activations, and random affine parameters and statistics."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(dtype)
        if name == "var":
            return rng.uniform(0.5, 2, leaf.shape).astype(dtype)
        return rng.normal(float(name == "scale"), 0.2, leaf.shape).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(ResNet(depth, NARROW)))


class Reference:
    """The network in NumPy, one tap of a kernel at a time; `groups` parts of the batch, 0 in evaluation."""

    def __init__(self, variables, depth, output_stride, groups):
        self.params, self.stats = variables["params"], variables["batch_stats"]
        self.depth, self.output_stride, self.groups = depth, output_stride, groups
        self.updated = {}

    @staticmethod
    def taps(x, side, stride, dilation, fill):
        """Yield (row, column, what each output cell sees there)."""
        margin = dilation * (side // 2)
        padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)), constant_values=fill)
        height, width = ((n - 1) // stride + 1 for n in x.shape[1:3])
        for i, j in np.ndindex(side, side):
            rows = dilation * i + stride * np.arange(height)
            columns = dilation * j + stride * np.arange(width)
            yield i, j, padded[:, rows[:, None], columns]

    def conv(self, x, path, stride=1, dilation=1):
        kernel = functools.reduce(lambda tree, name: tree[name], path, self.params)["kernel"]
        return sum(y @ kernel[i, j] for i, j, y in self.taps(x, len(kernel), stride, dilation, 0.0))

    def norm(self, x, path):
        params, stats = (functools.reduce(lambda tree, name: tree[name], path, t) for t in (self.params, self.stats))
        if not self.groups:
            return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]
        parts = np.split(x, self.groups)
        means, variances = ([f(part, axis=(0, 1, 2)) for part in parts] for f in (np.mean, np.var))
        for name, now in (("mean", means), ("var", variances)):
            self.updated[(*path, name)] = 0.9 * stats[name] + 0.1 * np.mean(now, axis=0)
        done = [(p - m) / np.sqrt(v + 1e-5) for p, m, v in zip(parts, means, variances, strict=True)]
        return np.concatenate(done) * params["scale"] + params["bias"]

    def block(self, x, name, stride, before, after):
        relu = lambda y: np.maximum(y, 0)
        if self.depth == 50:
            y = relu(self.norm(self.conv(x, (name, "conv1")), (name, "bn1")))
            y = relu(self.norm(self.conv(y, (name, "conv2"), stride, before), (name, "bn2")))
            y = self.norm(self.conv(y, (name, "conv3")), (name, "bn3"))
        else:
            y = relu(self.norm(self.conv(x, (name, "conv1"), stride, before), (name, "bn1")))
            y = self.norm(self.conv(y, (name, "conv2"), 1, after), (name, "bn2"))
        if "downsample_0" in self.params[name]:
            x = self.norm(self.conv(x, (name, "downsample_0"), stride), (name, "downsample_1"))
        return relu(x + y)

    def __call__(self, x):
        x = np.maximum(self.norm(self.conv(x, ("conv1",), 2), ("bn1",)), 0)
        x = np.max([y for _, _, y in self.taps(x, 3, 2, 1, -np.inf)], axis=0)
        # (stride, dilation of the strided convolution, dilation after it) of layers 2, 3 and 4, written out.
        plan = {
            32: [(2, 1, 1), (2, 1, 1), (2, 1, 1)],
            16: [(2, 1, 1), (2, 1, 1), (1, 1, 2)],
            8: [(2, 1, 1), (1, 1, 2), (1, 2, 4)],
        }[self.output_stride]
        maps, blocks = {"stem": x}, {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[self.depth]
        for number, (stride, before, after) in enumerate([(1, 1, 1), *plan], 1):
            for i in range(blocks[number - 1]):
                first = (stride, before, after) if i == 0 else (1, after, after)
                x = self.block(x, f"layer{number}_{i}", *first)
            maps[f"layer{number}"] = x
        return maps


@functools.cache
def compiled(depth, output_stride, groups):
    network = ResNet(depth, NARROW, output_stride, max(groups, 1), param_dtype=jnp.float64)
    if groups:
        return jax.jit(lambda v, x: network.apply(v, x, train=True, mutable="batch_stats"))
    return jax.jit(lambda v, x: (network.apply(v, x, train=False), {}))


def images(batch, height, width, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, height, width, 3))


def computed(depth, output_stride, groups, x):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, compiled(depth, output_stride, groups)(variables_of(depth), x))


def relative(found, expected):
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(("depth", "output_stride", "groups"), [(18, 16, 2), (50, 32, 1), (50, 8, 0)])
def test_equals_numpy(depth, output_stride, groups):
    x = images(4, 46, 33)  # odd sizes of some maps, even sizes of others
    reference = Reference(variables_of(depth), depth, output_stride, groups)
    expected = reference(x)
    found, updated = computed(depth, output_stride, groups, x)
    assert list(found) == sorted(expected)
    for name in expected:
        assert relative(found[name], expected[name]) < 1e-9, name
    leaves = jax.tree_util.tree_leaves_with_path(updated)
    assert len(leaves) == len(reference.updated)
    for path, leaf in leaves:
        expected = reference.updated[tuple(part.key for part in path[1:])]
        np.testing.assert_allclose(leaf, expected, rtol=1e-9, atol=1e-9)


def test_strides_are_left_out_from_the_output_stride_on():
    assert resnet.places(32) == ((1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1))
    assert resnet.places(16) == ((1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2))
    assert resnet.places(8) == ((1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4))


@pytest.mark.parametrize("depth", [18, 50])
def test_dilated_maps_contain_the_strided_ones(depth):
    """Shown by the reference, which the test above holds to equal the network."""
    x = images(2, 46, 33)
    strided, dilated = (Reference(variables_of(depth), depth, stride, 0)(x) for stride in (32, 8))
    step = {"layer3": 2, "layer4": 4}
    for name, whole in dilated.items():
        assert relative(whole[:, :: step.get(name, 1), :: step.get(name, 1)], strided[name]) < 1e-12
        assert whole.shape[1:3] == ((12, 9) if name in ("stem", "layer1") else (6, 5))


def test_layers_after_the_last_are_left_out():
    """NC-Net's features: all of ResNet-101 but layer 4, with a cell for 16 pixels."""
    whole, part = shapes_of(ResNet(101)), shapes_of(ResNet(101, last=3))
    for name, tree in part.items():
        assert set(whole[name]) - set(tree) == {f"layer4_{i}" for i in range(3)}
        assert {key: whole[name][key] for key in tree} == tree
    image = jax.ShapeDtypeStruct((1, 400, 400, 3), jnp.float32)
    maps = jax.eval_shape(lambda v, x: ResNet(101, last=3).apply(v, x, train=False), part, image)
    assert list(maps) == ["layer1", "layer2", "layer3", "stem"]
    assert maps["layer3"].shape == (1, 25, 25, 1024)
    # What is left computes the same.
    x, variables = images(1, 46, 33), variables_of(18)
    kept = {name: {key: tree[key] for key in tree if "layer4" not in key} for name, tree in variables.items()}
    with jax.enable_x64(True):
        network = ResNet(18, NARROW, last=3, param_dtype=jnp.float64)
        found = jax.jit(lambda v, x: network.apply(v, x, train=False))(kept, x)
    expected = Reference(variables, 18, 32, 0)(x)
    assert relative(np.asarray(found["layer3"]), expected["layer3"]) < 1e-9


def test_groups_of_the_batch_do_not_see_one_another():
    x = images(4, 46, 33)
    other = x.copy()
    other[2:] = images(2, 46, 33, seed=2)
    found, _ = computed(18, 16, 2, x)
    changed, _ = computed(18, 16, 2, other)
    np.testing.assert_array_equal(found["layer4"][:2], changed["layer4"][:2])
    assert relative(changed["layer4"][2:], found["layer4"][2:]) > 0.1


def test_types():
    x = images(2, 40, 40).astype(np.float32)
    variables = jax.tree.map(np.float32, variables_of(18))
    exact = Reference(variables_of(18), 18, 32, 0)(x.astype(np.float64))
    network = ResNet(18, NARROW, groups=2, **layers.precision("bfloat16"))
    found = jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, x)
    assert {str(leaf.dtype) for leaf in found.values()} == {"bfloat16"}
    for name, value in exact.items():
        assert 0 < relative(np.asarray(found[name], np.float64), value) < 0.05
    _, updated = jax.eval_shape(lambda v, x: network.apply(v, x, train=True, mutable="batch_stats"), variables, x)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(updated)} == {"float32"}
    wide = np.asarray(found["layer2"], np.float64)
    np.testing.assert_allclose(resnet.pool(found["layer2"]), wide.mean((1, 2)), rtol=1e-5)


def test_initialisation_is_that_of_he():
    block, x = resnet.Block(16, True, resnet.Place(2, 1, 1)), jnp.zeros((1, 8, 8, 32))
    by_law = layers.initialize(block, jax.random.key(3), x, law=resnet.INITIAL, train=False)
    by_linen = jax.jit(lambda key: block.init(key, x, train=False))(jax.random.key(4))
    assert jax.tree.map(np.shape, by_law) == jax.tree.map(np.shape, by_linen)
    variances = dict(conv1=2 / 16, conv2=2 / (9 * 16), conv3=2 / 64, downsample_0=2 / 64)  # 2 / fan_out
    for name, variance in variances.items():
        for variables in (by_law, by_linen):
            kernel = np.asarray(variables["params"][name]["kernel"])
            np.testing.assert_allclose(kernel.std(), variance**0.5, rtol=4 / (2 * kernel.size) ** 0.5)
            assert np.abs(kernel).max() > 2.2 * variance**0.5  # no uniform law
    np.testing.assert_array_equal(by_law["params"]["bn3"]["scale"], 1)


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        (dict(depth=34), (1, 32, 32, 3), "depth is 34; use one of 10, 18, 50, 101"),
        (dict(output_stride=4), (1, 32, 32, 3), "output_stride is 4; use one of 8, 16, 32"),
        (dict(last=0), (1, 32, 32, 3), "last is 0; use the number of a layer, 1 to 4"),
        (dict(), (1, 32, 32, 1), r"images of shape \(1, 32, 32, 1\); it takes colour ones"),
        (dict(depth=18, groups=2), (3, 32, 32, 3), "3 images do not divide into 2 groups"),
    ],
)
def test_bad_input_is_named(options, shape, words):
    network = ResNet(**options)
    with pytest.raises(UserError, match=words):
        jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=True), jax.ShapeDtypeStruct(shape, "float32"))


def torch_twin(depth, width=64, classes=None):
    """The same network in PyTorch, with the attribute names of torchvision; without `classes` it has no `fc`."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    bottleneck = depth >= 50
    blocks = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]

    class TorchBlock(nn.Module):
        def __init__(self, before, inner, stride):
            super().__init__()
            after = 4 * inner if bottleneck else inner
            if bottleneck:
                plan = [(before, inner, 1, 1), (inner, inner, 3, stride), (inner, after, 1, 1)]
            else:
                plan = [(before, after, 3, stride), (after, after, 3, 1)]
            self.count = len(plan)
            for i, (inputs, outputs, side, step) in enumerate(plan, 1):
                self.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, side, step, side // 2, bias=False))
                self.add_module(f"bn{i}", nn.BatchNorm2d(outputs))
            self.downsample = nn.Sequential()
            if stride > 1 or before != after:
                self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

        def forward(self, x):
            y = x
            for i in range(1, self.count + 1):
                y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y))
                y = torch.relu(y) if i < self.count else y
            return torch.relu(y + self.downsample(x))

    class TorchResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            before = width
            for number, count in enumerate(blocks, 1):
                inner, parts = width * 2 ** (number - 1), []
                for i in range(count):
                    parts.append(TorchBlock(before, inner, 2 if number > 1 and i == 0 else 1))
                    before = 4 * inner if bottleneck else inner
                self.add_module(f"layer{number}", nn.Sequential(*parts))
            if classes:
                self.fc = nn.Linear(before, classes)

        def maps(self, x):
            x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
            found = {"stem": x}
            for name in ("layer1", "layer2", "layer3", "layer4"):
                x = found[name] = self.get_submodule(name)(x)
            return found

        def forward(self, x):
            return self.maps(x)["layer4"]

    return TorchResNet()


class Last(ResNet):
    """The last map alone, as `twins.check` takes it."""

    def __call__(self, image, train):
        return super().__call__(image, train)["layer4"]


@pytest.mark.slow
def test_equals_torch_in_training_too():
    pytest.importorskip("torch")
    network = Last(50, NARROW, param_dtype=jnp.float64)
    twins.check(network, lambda: torch_twin(50, NARROW), [images(2, 46, 65)], 1e-9, momentum=0.9)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "side"), [*((d, s) for d in (18, 50) for s in (96, 128, 400)), (101, 96)])
def test_the_published_size_equals_torch_and_transformers(depth, side):
    """All maps of the twin, and the last one of transformers, whose weights are moved by the converter."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from uld_jax.convert import resnet as converter

    torch.manual_seed(depth)
    twin = torch_twin(depth).eval()
    twins.randomize(twin, np.random.default_rng(depth))
    x = images(1, side, side).astype(np.float32)
    network = ResNet(depth, precision="highest")
    apply = jax.jit(lambda v, x: network.apply(v, x, train=False))
    found = apply(twins.to_flax(twin.state_dict()), x)
    with torch.no_grad():
        for name, theirs in twin.maps(twins.to_torch(x)).items():
            worst = relative(np.asarray(found[name]), twins.to_numpy(theirs))
            assert worst < 1e-4
    sizes = {
        18: dict(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"),
        50: {},
        101: dict(depths=[3, 4, 23, 3]),
    }[depth]
    model = transformers.ResNetModel(transformers.ResNetConfig(**sizes)).eval()
    twins.randomize(model, np.random.default_rng(side))
    entries = {key: value.numpy() for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected = twins.to_numpy(model(twins.to_torch(x)).last_hidden_state)
    worst = relative(np.asarray(apply(converter.convert(entries, where="model", depth=depth), x)["layer4"]), expected)
    assert worst < 1e-4


def test_normalize_is_torchvisions():
    images = np.random.default_rng(0).uniform(size=(2, 3, 4, 3)).astype(np.float32)
    for channel, (mean, deviation) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        plane = (images[..., channel] - mean) / deviation
        np.testing.assert_allclose(resnet.normalize(jnp.asarray(images))[..., channel], plane, atol=1e-6)
