"""LEAD's heads against NumPy and SciPy always, and against PyTorch where it is installed."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from tests.models import twins
from uld_jax.models import layers, lead_net, resnet
from uld_jax.models.lead_net import LEVELS, FeaturePyramid, Projector


def test_examples():
    result = doctest.testmod(lead_net)
    assert result.attempted >= 8
    assert result.failed == 0


def parameters(module, x):
    variables = jax.eval_shape(lambda key, x: module.init(key, x, train=True), jax.random.key(0), x)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_published_sizes():
    pooled = jax.ShapeDtypeStruct((2, 2048), jnp.float32)
    assert parameters(Projector(), pooled) == 2048 * 4096 + 4096 + 2 * 4096 + 4096 * 256
    assert parameters(Projector(), jax.ShapeDtypeStruct((2, 256), jnp.float32)) == 257 * 4096 + 2 * 4096 + 4096 * 256
    dense = jax.ShapeDtypeStruct((2, 24, 24, 64), jnp.float32)
    assert parameters(Projector(hidden=256), dense) == 64 * 256 + 3 * 256 + 256 * 256


def random_variables(module, x, seed=0):
    """Random numbers everywhere, as float64."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda key, x: module.init(key, x, train=True), jax.random.key(0), x)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, 1 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape)
        return rng.uniform(0.5, 2, leaf.shape) if name == "var" else rng.normal(name == "scale", 0.2, leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def normalized(x, params, stats, groups):
    """In evaluation with `groups` 0."""
    if not groups:
        return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]
    axes = tuple(range(x.ndim - 1))
    parts = [(part - part.mean(axes)) / np.sqrt(part.var(axes) + 1e-5) for part in np.split(x, groups)]
    return np.concatenate(parts) * params["scale"] + params["bias"]


@pytest.mark.parametrize(("shape", "groups"), [((8, 5), 1), ((8, 5), 2), ((4, 3, 2, 5), 1), ((4, 3, 2, 5), 0)])
def test_projector_equals_numpy(shape, groups):
    x = np.random.default_rng(1).normal(size=shape)
    module = Projector(hidden=12, size=7, groups=max(groups, 1), param_dtype=jnp.float64)
    variables = random_variables(module, x)
    params, stats = variables["params"], variables["batch_stats"]
    y = x @ params["fc1"]["kernel"] + params["fc1"]["bias"]
    expected = np.maximum(normalized(y, params["bn1"], stats["bn1"], groups), 0) @ params["fc2"]["kernel"]
    with jax.enable_x64(True):
        found = module.apply(variables, x, train=groups > 0, mutable=["batch_stats"] if groups else False)
    np.testing.assert_allclose(found[0] if groups else found, expected, rtol=1e-9, atol=1e-9)


def maps_of(height, width, channels=4, batch=2):
    rng = np.random.default_rng(2)
    return {name: rng.normal(size=(batch, height >> i, width >> i, channels << i)) for i, name in enumerate(LEVELS)}


def conv(x, params):
    """By SciPy, one pair of channels at a time."""
    kernel = params["kernel"]
    out = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for b, i, o in np.ndindex(len(x), *kernel.shape[2:]):
        out[b, ..., o] += scipy.ndimage.correlate(x[b, ..., i], kernel[..., i, o], mode="constant")
    return out + params.get("bias", 0)


def double(x):
    """By SciPy: linear between centres of cells, constant beyond the outermost."""
    places = [(np.arange(2 * n) + 0.5) / 2 - 0.5 for n in x.shape[1:3]]
    grid = np.meshgrid(*places, indexing="ij")
    out = np.zeros((len(x), *(2 * n for n in x.shape[1:3]), x.shape[3]))
    for b, c in np.ndindex(len(x), x.shape[3]):
        out[b, ..., c] = scipy.ndimage.map_coordinates(x[b, ..., c], grid, order=1, mode="nearest")
    return out


def pyramid_by_scipy(variables, maps, groups):
    params, stats = variables["params"], variables["batch_stats"]
    level, outputs = None, []
    for number in (4, 3, 2, 1):
        below = 0 if level is None else np.kron(level, np.ones((1, 2, 2, 1)))
        level = conv(maps[f"layer{number}"], params[f"lateral{number}"]) + below
        outputs.append(conv(level, params[f"output{number}"]))

    def block(x, name):
        return np.maximum(
            normalized(conv(x, params[f"conv{name}"]), params[f"bn{name}"], stats[f"bn{name}"], groups), 0
        )

    p5, p4, p3, p2 = outputs
    p5 = double(block(double(block(double(block(p5, "4_0")), "4_1")), "4_2"))
    p4 = double(block(double(block(p4, "3_0")), "3_1"))
    p3 = double(block(p3, "2_0"))
    return conv(p5 + p4 + p3 + block(p2, "1_0"), params["descriptors"])


@pytest.mark.parametrize("train", [False, True])
def test_feature_pyramid_equals_scipy(train):
    maps = maps_of(16, 24)
    module = FeaturePyramid(size=5, width=6, inner=3, param_dtype=jnp.float64)
    variables = random_variables(module, maps)
    expected = pyramid_by_scipy(variables, maps, int(train))
    with jax.enable_x64(True):
        found, _ = jax.jit(lambda v, x: module.apply(v, x, train=train, mutable="batch_stats"))(variables, maps)
    assert found.shape == (2, 16, 24, 5)
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


def test_bilinear_doubling_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(3).normal(size=(2, 3, 5, 4)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(twins.to_torch(x), scale_factor=2, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(lead_net._resized(x, (6, 10), "bilinear"), twins.to_numpy(theirs), atol=1e-6)


def test_projector_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    parts = torch.nn.Linear(5, 12), torch.nn.BatchNorm1d(12), torch.nn.ReLU(), torch.nn.Linear(12, 7, bias=False)
    first, norm, _, second = parts
    x = np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)
    params = {
        "fc1": {"kernel": first.weight.detach().numpy().T, "bias": first.bias.detach().numpy()},
        "bn1": {"scale": np.ones(12, np.float32), "bias": np.zeros(12, np.float32)},
        "fc2": {"kernel": second.weight.detach().numpy().T},
    }
    stats = {"bn1": {"mean": np.zeros(12, np.float32), "var": np.ones(12, np.float32)}}
    module = Projector(hidden=12, size=7)
    found, updated = module.apply({"params": params, "batch_stats": stats}, x, train=True, mutable="batch_stats")
    theirs = torch.nn.Sequential(*parts)(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(found, theirs, atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["bn1"]["mean"], norm.running_mean.numpy(), atol=1e-6)


@pytest.mark.parametrize("what", ["projector", "pyramid"])
def test_results_are_never_below_float32(what):
    maps = {name: value.astype(np.float32) for name, value in maps_of(8, 8).items()}
    options = layers.precision("bfloat16")
    module, x = (
        (Projector(hidden=8, size=4, **options), maps["layer1"])
        if what == "projector"
        else (FeaturePyramid(size=5, width=6, inner=3, **options), maps)
    )
    shapes = jax.eval_shape(lambda key, x: module.init_with_output(key, x, train=True), jax.random.key(0), x)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(shapes)} == {"float32"}


def check_bound(values, fan_in):
    """Uniform in +-1 / sqrt(fan_in)."""
    largest = np.abs(np.asarray(values)).max() * fan_in**0.5
    assert largest <= 1 + 1e-6
    assert largest > 0.9 or values.size < 100


def test_initialisation_is_pytorchs_in_one_draw():
    maps = {name: np.zeros(value.shape, np.float32) for name, value in maps_of(8, 8).items()}
    drawn = layers.initialize(FeaturePyramid(size=5, width=16, inner=8), jax.random.key(1), maps, train=True)
    for name, fan_in in {"lateral2": 8, "output1": 9 * 16, "conv4_1": 9 * 8, "descriptors": 8}.items():
        jax.tree.map(lambda values, fan_in=fan_in: check_bound(values, fan_in), drawn["params"][name])
    projector, x = Projector(hidden=128, size=32), np.zeros((2, 16), np.float32)
    drawn = layers.initialize(projector, jax.random.key(1), x, train=True)
    by_linen = projector.init(jax.random.key(2), x, train=True)
    assert jax.tree.map(np.shape, drawn) == jax.tree.map(np.shape, by_linen)
    for params in (drawn["params"], by_linen["params"]):
        jax.tree.map(lambda values: check_bound(values, 16), params["fc1"])
        jax.tree.map(lambda values: check_bound(values, 128), params["fc2"])


def test_maps_that_do_not_halve_are_brought_to_one_size():
    maps = {name: jax.ShapeDtypeStruct(x.shape, jnp.float32) for name, x in maps_of(10, 10).items()}
    maps |= {
        name: jax.ShapeDtypeStruct((2, side, side, 8), jnp.float32) for name, side in (("layer3", 3), ("layer4", 2))
    }
    found = lambda key, x: FeaturePyramid(size=5, width=6, inner=3).init_with_output(key, x, train=False)[0]
    assert jax.eval_shape(found, jax.random.key(0), maps).shape == (2, 10, 10, 5)


def test_it_stands_on_a_resnet():
    image = jax.ShapeDtypeStruct((2, 96, 96, 3), jnp.float32)

    def both(key, image):
        maps, _ = resnet.ResNet(18, 8).init_with_output(key, image, train=True)
        return FeaturePyramid().init_with_output(key, maps, train=True)[0], Projector().init_with_output(
            key, resnet.pool(maps["layer4"]), train=True
        )[0]

    descriptors, projection = jax.eval_shape(both, jax.random.key(0), image)
    assert descriptors.shape == (2, 24, 24, 64)
    assert projection.shape == (2, 256)
