import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.convert import vgg16
from uld_jax.errors import UserError
from uld_jax.models import vgg

torch = pytest.importorskip("torch")

WIDTH = 4
TAPS = ("relu1_1", "relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_2", "relu5_3")
PLAN = [[1, 1], [2, 2], [4, 4, 4], [8, 8, 8], [8, 8, 8]]  # channels of each block's layers in units of the width


def test_examples():
    result = doctest.testmod(vgg16)
    assert result.attempted >= 1
    assert result.failed == 0


def twin(inputs, normalized=False):
    """A narrow VGG16 in PyTorch, as a list of modules with torchvision's numbers, and the taps' numbers."""
    torch.manual_seed(0)
    modules, names = [], {}
    for b, block in enumerate(PLAN, 1):
        for i, unit in enumerate(block, 1):
            convolution = torch.nn.Conv2d(inputs, unit * WIDTH, 3, padding=1)
            torch.nn.init.kaiming_normal_(convolution.weight)
            torch.nn.init.normal_(convolution.bias, 0, 0.2)
            modules.append(convolution)
            if normalized:
                norm = torch.nn.BatchNorm2d(unit * WIDTH, affine=False)
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.2, 3)
                modules.append(norm)
            modules.append(torch.nn.ReLU())
            names[f"{b}_{i}"] = len(modules) - 1
            inputs = unit * WIDTH
        modules.append(torch.nn.MaxPool2d(2))
    return torch.nn.Sequential(*modules).eval(), names


def activations(network, names, images):
    x, found = torch.tensor(images.transpose(0, 3, 1, 2).copy()), {}
    numbers = {number: f"relu{name}" for name, number in names.items()}
    with torch.no_grad():
        for i, module in enumerate(network):
            x = module(x)
            if i in numbers:
                found[numbers[i]] = x.numpy().transpose(0, 2, 3, 1)
    return found


def check(params, network, names, inputs):
    images = np.random.default_rng(5).uniform(-1, 1, (2, 32, 48, inputs)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(lambda p, x: vgg.vgg16(p, x, TAPS))(params, jnp.asarray(images))
    expected = activations(network, names, images)
    for tap in TAPS:
        assert np.abs(expected[tap]).max() > 0
        np.testing.assert_allclose(found[tap], expected[tap], atol=2e-5 * np.abs(expected[tap]).max())


def refusal(convert, entries):
    with pytest.raises(UserError) as error:
        convert(entries, where="vgg", width=WIDTH)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- ImageNet ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def imagenet():
    network, names = twin(3)
    entries = {f"features.{key}": value.numpy() for key, value in network.state_dict().items()}
    return entries, network, names


def test_the_numbers_are_those_of_torchvision():
    wanted = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    entries = {f"features.{i}.{leaf}": np.ones(1) for i in wanted for leaf in ("weight", "bias")}
    said = refusal(vgg16.convert_imagenet, entries)
    assert "missing" not in said
    assert "used by nothing" not in said
    shapes = vgg16.layers(3)
    assert shapes["conv1_1"] == (3, 64)
    assert shapes["conv3_1"] == (128, 256)
    assert shapes["conv5_3"] == (512, 512)
    assert sum(9 * i * o + o for i, o in shapes.values()) == 14_714_688


def test_the_converted_network_computes_what_the_original_does(imagenet):
    entries, network, names = imagenet
    params = vgg16.convert_imagenet(entries, where="vgg", width=WIDTH)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, vgg.random_vgg16(0, WIDTH))
    check(params, network, names, 3)


def test_classifiers_are_ignored_and_nothing_else(imagenet):
    entries, *_ = imagenet
    expected = vgg16.convert_imagenet(entries, where="vgg", width=WIDTH)
    torchvision = [f"classifier.{i}.{leaf}" for i in (0, 3, 6) for leaf in ("weight", "bias")]
    timm = [
        f"{layer}.{leaf}" for layer in ("pre_logits.fc1", "pre_logits.fc2", "head.fc") for leaf in ("weight", "bias")
    ]
    for names in (torchvision, timm):
        found = vgg16.convert_imagenet(entries | dict.fromkeys(names, np.ones(2)), where="vgg", width=WIDTH)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    for name in ("classifier.1.weight", "features.0.running_mean", "features.30.weight", "classifier.0.weight.more"):
        assert f"'{name}' is used by nothing" in refusal(vgg16.convert_imagenet, entries | {name: np.ones(2)})


def test_entries_of_imagenet_that_do_not_fit_are_named(imagenet):
    entries, *_ = imagenet
    less = {key: value for key, value in entries.items() if not key.startswith("features.28")}
    assert "'features.28.weight' (and 1 more) is missing" in refusal(vgg16.convert_imagenet, less)
    gray = entries | {"features.0.weight": np.ones((WIDTH, 1, 3, 3))}
    assert "'features.0.weight' has shape (4, 1, 3, 3), not (4, 3, 3, 3)" in refusal(vgg16.convert_imagenet, gray)
    normalized, _ = twin(3, normalized=True)  # torchvision's vgg16_bn
    other = {f"features.{key}": value.numpy() for key, value in normalized.state_dict().items()}
    assert "missing" in refusal(vgg16.convert_imagenet, other)


# -- colourisation ----------------------------------------------------------------------------------------------------


@pytest.fixture
def colorization():
    """Entries as in the HDF5 file, read; the sums of each normalisation have a weight of their own."""
    network, names = twin(1, normalized=True)
    rng = np.random.default_rng(7)
    entries = {}
    for name, number in names.items():
        convolution, norm = network[number - 2], network[number - 1]
        weight = np.float32(rng.uniform(0.5, 1000))
        entries |= {
            f"data.conv{name}.0": convolution.weight.detach().numpy(),
            f"data.conv{name}.1": convolution.bias.detach().numpy(),
            f"data.batch_conv{name}.0": norm.running_mean.numpy() * weight,
            f"data.batch_conv{name}.1": norm.running_var.numpy() * weight,
            f"data.batch_conv{name}.2": np.array([weight]),
        }
    for layer in ("fc6", "fc7"):
        entries |= {f"data.{layer}.{i}": np.ones(2) for i in (0, 1)}
        entries |= {f"data.batch_{layer}.{i}": np.ones(2) for i in (0, 1, 2)}
    return entries, network, names


def test_the_batch_normalisation_is_folded_in(colorization):
    entries, network, names = colorization
    params = vgg16.convert_colorization(entries, where="vgg", width=WIDTH)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, vgg.random_vgg16(0, WIDTH, channels=1))
    check(params, network, names, 1)
    bare = {key.removeprefix("data."): value for key, value in entries.items()}
    again = vgg16.convert_colorization(bare, where="vgg", width=WIDTH)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_folded_file_is_taken_as_it_is():
    network, names = twin(1)
    entries = {}
    for name, number in names.items():
        entries[f"conv{name}.0"] = network[number - 1].weight.detach().numpy()
        entries[f"conv{name}.1"] = network[number - 1].bias.detach().numpy()
    check(vgg16.convert_colorization(entries, where="vgg", width=WIDTH), network, names, 1)


def test_entries_of_colorization_that_do_not_fit_are_named(colorization):
    entries, *_ = colorization

    def less(pattern):
        return {key: value for key, value in entries.items() if pattern not in key}

    convert = vgg16.convert_colorization
    assert "'conv3_2.1' is missing" in refusal(convert, less("data.conv3_2.1"))
    # A layer without its statistics is no folded layer as long as others have theirs.
    assert "'batch_conv3_2.1' (and 2 more) is missing" in refusal(convert, less("batch_conv3_2"))
    assert "'fc8.0' is used by nothing" in refusal(convert, entries | {"data.fc8.0": np.ones(2)})
    rgb = entries | {"data.conv1_1.0": np.ones((WIDTH, 3, 3, 3))}
    assert "'conv1_1.0' has shape (4, 3, 3, 3), not (4, 1, 3, 3)" in refusal(convert, rgb)
    unused = entries | {"data.batch_conv2_1.2": np.zeros(1)}  # Caffe's weight before the first step
    assert "not finite" in refusal(convert, unused)
    imagenet = {f"features.{key}": value.numpy() for key, value in twin(3)[0].state_dict().items()}
    assert "(and 25 more) is missing" in refusal(convert, imagenet)
