import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import twins
from uld_jax.errors import UserError
from uld_jax.models import vgg


def test_examples():
    result = doctest.testmod(vgg)
    assert result.attempted >= 2
    assert result.failed == 0


def with_biases(params, rng):
    return {name: dict(layer, bias=rng.normal(0, 0.1, layer["bias"].shape)) for name, layer in params.items()}


# Positions of the ReLUs in torchvision's `features`.
POSITIONS = dict(
    relu1_2=3, relu2_2=8, relu3_3=15, relu4_3=22, relu5_3=29,
    relu1_1=1, relu2_1=6, relu3_1=11, relu3_2=13, relu4_1=18, relu4_2=20, relu5_1=25, relu5_2=27,
)  # fmt: skip


def torch_features(params):
    torch = pytest.importorskip("torch")
    features = torch.nn.Sequential()
    widths = [params[name]["kernel"].shape[-1] for name in ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1")]
    plan = [(widths[0], 2), (widths[1], 2), (widths[2], 3), (widths[3], 3), (widths[4], 3)]
    before = params["conv1_1"]["kernel"].shape[2]
    layers = iter(params.values())
    for width, depth in plan:
        for _ in range(depth):
            conv, layer = torch.nn.Conv2d(before, width, 3, padding=1), next(layers)
            conv.weight.data = torch.tensor(layer["kernel"].transpose(3, 2, 0, 1).copy())
            conv.bias.data = torch.tensor(layer["bias"])
            features.extend([conv, torch.nn.ReLU()])
            before = width
        features.append(torch.nn.MaxPool2d(2))
    return features


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize(("channels", "taps"), [(3, vgg.CGB_TAPS), (1, vgg.IMM_TAPS)])
def test_features_and_their_gradient_equal_torch(channels, taps, dtype, tolerance):
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    params = with_biases(vgg.random_vgg16(1, width=4, channels=channels), rng)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    # 36 = 4 * 9: the deeper pools meet an odd side.
    images = rng.uniform(size=(2, 36, 32, channels)).astype(dtype)
    x = twins.to_torch(images).requires_grad_()
    expected, y = {}, x
    for position, layer in enumerate(torch_features(params)):
        y = layer(y)
        expected |= {tap: y for tap in taps if POSITIONS[tap] == position}
    sum((value**2).mean() for value in expected.values()).backward()

    def loss(images):
        features = vgg.vgg16(params, images, taps)
        return sum((value**2).mean() for value in features.values()), features

    with jax.enable_x64(dtype == np.float64), jax.default_matmul_precision("highest"):
        gradient, features = jax.jit(jax.grad(loss, has_aux=True))(images)
        assert set(features) == set(taps)
        for tap in taps:
            twins.close(np.asarray(features[tap]), twins.to_numpy(expected[tap]), tolerance)
        twins.close(np.asarray(gradient), twins.to_numpy(x.grad), tolerance)


def test_every_tap_and_nothing_deeper():
    params = vgg.random_vgg16(0, width=2)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    for number, name in enumerate(vgg.LAYERS, 1):
        needed = dict(list(params.items())[:number])  # the deeper layers' weights may be missing

        def features(x, needed=needed, name=name):
            return vgg.vgg16(needed, x, [f"relu{name}"])

        side = 32 // 2 ** (int(name[0]) - 1)
        shape = jax.eval_shape(features, images)[f"relu{name}"].shape
        assert shape == (1, side, side, params[f"conv{name}"]["kernel"].shape[-1])
        assert str(jax.make_jaxpr(features)(images)).count("conv_general_dilated[") == number
    assert number == 13
    assert set(POSITIONS) == {f"relu{name}" for name in vgg.LAYERS}


def test_random_weights_are_vgg16s_shape_and_keep_activations_in_size():
    full = vgg.random_vgg16(0)
    assert sum(x.size for x in jax.tree.leaves(full)) == 14_714_688  # torchvision's vgg16().features
    again, other = vgg.random_vgg16(0, width=16), vgg.random_vgg16(1, width=16)
    params = vgg.random_vgg16(0, width=16)
    np.testing.assert_array_equal(params["conv5_3"]["kernel"], again["conv5_3"]["kernel"])
    assert np.abs(params["conv5_3"]["kernel"] - other["conv5_3"]["kernel"]).max() > 0.1
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    taps = [*vgg.CGB_TAPS, "relu5_3"]
    features = jax.jit(lambda x: vgg.vgg16(params, x, taps))(images)
    for tap in taps:
        assert 0.3 < np.mean(np.asarray(features[tap]) ** 2) ** 0.5 < 10


def test_bfloat16():
    params = vgg.random_vgg16(0, width=8)
    images = np.random.default_rng(0).uniform(size=(1, 32, 32, 3)).astype(np.float32)
    exact = jax.jit(lambda x: vgg.vgg16(params, x, vgg.CGB_TAPS))(images)
    rough = jax.jit(lambda x: vgg.vgg16(params, x, vgg.CGB_TAPS, dtype=jnp.bfloat16))(images)
    for tap, value in exact.items():
        assert (value.dtype, rough[tap].dtype) == (jnp.float32, jnp.bfloat16)
        assert 0 < np.abs(rough[tap].astype(jnp.float32) - value).max() < 0.05 * np.abs(value).max()


def test_gray_input():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3))
    expected = (images.sum(-1) / 3 / 255 - 114.451 / 255)[..., None]
    np.testing.assert_allclose(vgg.gray_input(jnp.asarray(images, jnp.float32)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "taps", "words"),
    [
        ((1, 32, 32, 3), ["relu1_3"], "no layer relu1_3; use relu1_1 to relu5_3"),
        ((1, 32, 32, 3), ["conv1_2"], "no layer conv1_2"),
        ((1, 32, 32, 1), ["relu1_2"], "images of 1 channels; these weights take 3"),
        ((1, 12, 32, 3), ["relu5_3"], "12 x 32 pixels; block 5 needs 16"),
    ],
)
def test_bad_input_is_named(shape, taps, words):
    with pytest.raises(UserError, match=words):
        vgg.vgg16(vgg.random_vgg16(0, width=2), jnp.zeros(shape), taps)
