import doctest
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.models import twins
from uld_jax.errors import UserError
from uld_jax.models import imm_net, layers
from uld_jax.models.imm_net import ImmEncoder, ImmPose, ImmRenderer


def test_examples():
    result = doctest.testmod(imm_net)
    assert result.attempted >= 5
    assert result.failed == 0


def size(network, *shapes):
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    variables = jax.eval_shape(lambda *x: network.init(jax.random.key(0), *x, train=False), *inputs)
    output = jax.eval_shape(lambda v, *x: network.apply(v, *x, train=False), variables, *inputs)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])), output.shape


def test_published_size():
    image, features, maps = (2, 128, 128, 3), (2, 16, 16, 256), (2, 16, 16, 10)
    encoder, pose, renderer = (
        size(ImmEncoder(), image),
        size(ImmPose(10), image),
        size(ImmRenderer(), features, maps),
    )
    assert encoder == (1_178_016, features)
    assert pose == (1_178_016 + 2_570, maps)
    assert renderer == (1_779_465, image)
    assert encoder[0] + pose[0] + renderer[0] == 4_138_067


def brute_force_upsample(x):
    batch, height, width, channels = x.shape
    out = np.zeros((batch, 2 * height, 2 * width, channels))
    for i in range(2 * height):
        for j in range(2 * width):
            y, x0 = i * 0.5, j * 0.5  # source = destination * scale
            top, left = int(np.floor(y)), int(np.floor(x0))
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            v, u = y - top, x0 - left
            above = (1 - u) * x[:, top, left] + u * x[:, top, right]
            below = (1 - u) * x[:, bottom, left] + u * x[:, bottom, right]
            out[:, i, j] = (1 - v) * above + v * below
    return out


def test_legacy_upsample_equals_brute_force():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    found = jax.jit(imm_net.legacy_upsample)(x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, brute_force_upsample(x.astype(np.float64)), atol=1e-6)
    np.testing.assert_array_equal(found[:, -1], found[:, -2])


def twin_classes():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    class Net(torch.nn.Module):
        def __init__(self, sizes):
            super().__init__()
            for i, (before, after, kernel) in enumerate(sizes, 1):
                setattr(self, f"conv_{i}", torch.nn.Conv2d(before, after, kernel))
                setattr(self, f"bn_{i}", torch.nn.BatchNorm2d(after, eps=1e-3, momentum=0.01))

        def unit(self, i, x, stride=1):
            layer = getattr(self, f"conv_{i}")
            margin = layer.kernel_size[0] // 2
            # TensorFlow's "SAME" on an even image: at stride 2 nothing above and on the left.
            x = functional.pad(x, [margin, margin] * 2 if stride == 1 else [0, 1, 0, 1])
            x = functional.conv2d(x, layer.weight, layer.bias, stride)
            return functional.relu(getattr(self, f"bn_{i}")(x))

    class Encoder(Net):
        def __init__(self, width):
            w = [3, width, width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width]
            super().__init__([(w[i], w[i + 1], 3 if i else 7) for i in range(8)])

        def forward(self, x):
            for i in range(1, 9):
                x = self.unit(i, x, stride=2 if i in (3, 5, 7) else 1)
            return x

    class Pose(torch.nn.Module):
        def __init__(self, width, landmarks):
            super().__init__()
            self.encoder = Encoder(width)
            self.logits = torch.nn.Conv2d(8 * width, landmarks, 1)

        def forward(self, x):
            return self.logits(self.encoder(x))

    class Renderer(Net):
        def __init__(self, width, landmarks, channels):
            w = [8 * width + landmarks, *(width * m for m in (8, 8, 4, 4, 2, 2, 1))]
            super().__init__([(w[i], w[i + 1], 3) for i in range(7)])
            self.conv_8 = torch.nn.Conv2d(width, channels, 3, padding=1)

        def forward(self, features, maps):
            x = torch.cat([features, maps], 1)
            for i in range(1, 8):
                x = self.unit(i, x)
                if i in (2, 4, 6):
                    # n rows and the last one again, spread over 2 n + 1 rows end to end: steps of one half.
                    x = functional.pad(x, [0, 1, 0, 1], mode="replicate")
                    height, width = x.shape[2:]
                    x = functional.interpolate(
                        x, size=(2 * height - 1, 2 * width - 1), mode="bilinear", align_corners=True
                    )[:, :, :-1, :-1]
            return self.conv_8(x)[:, :3]

    return Encoder, Pose, Renderer


PRECISIONS = [(np.float32, 1e-5), (np.float64, 1e-12)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_pose_and_encoder_equal_torch_twins(dtype, tolerance):
    rng = np.random.default_rng(1)
    image = rng.uniform(0, 255, (2, 24, 32, 3)).astype(dtype)
    network = ImmPose(landmarks=5, width=4, param_dtype=dtype)
    _, twin, _ = twin_classes()
    twins.check(network, lambda: twin(4, 5), [image], tolerance, momentum=0.99)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_renderer_equals_a_torch_twin(dtype, tolerance):
    rng = np.random.default_rng(2)
    inputs = [rng.uniform(size=(2, 3, 4, 32)).astype(dtype), rng.uniform(size=(2, 3, 4, 5)).astype(dtype)]
    network = ImmRenderer(width=4, channels=7, param_dtype=dtype)
    _, _, twin = twin_classes()
    twins.check(network, lambda: twin(4, 5, 7), inputs, tolerance, momentum=0.99)


def test_the_encoder_alone_is_the_encoder_of_the_pose():
    image = np.random.default_rng(3).uniform(0, 255, (1, 16, 16, 3)).astype(np.float32)
    pose, encoder = ImmPose(landmarks=3, width=4), ImmEncoder(width=4)
    variables = layers.initialize(pose, jax.random.key(0), image, train=False, law=layers.TORCH)
    inner = {collection: tree["encoder"] for collection, tree in variables.items()}
    features = jax.jit(lambda v: encoder.apply(v, image, train=False))(inner)
    head = variables["params"]["logits"]
    expected = np.asarray(features, np.float64) @ np.asarray(head["kernel"], np.float64)[0, 0] + head["bias"]
    found = jax.jit(lambda v: pose.apply(v, image, train=False))(variables)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


class OneLayer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return imm_net._conv(x, 64, 3, "conv")


def test_initial_law_is_tensorflows_truncated_normal():
    network, image = ImmEncoder(width=8), jnp.zeros((1, 16, 16, 3))
    ours = layers.initialize(network, jax.random.key(0), image, train=False, law=imm_net.INITIAL)
    spread = 0.01 * scipy.stats.truncnorm(-2, 2).std()

    def follows(layer):
        kernel = np.asarray(layer["kernel"], np.float64)
        assert 0.018 < np.abs(kernel).max() <= 0.02 + 1e-8
        assert abs(kernel.mean()) < 4 * spread / kernel.size**0.5
        np.testing.assert_allclose(kernel.std(), spread, rtol=3 / kernel.size**0.5)
        assert not np.any(layer["bias"])

    for number in range(1, 9):
        follows(ours["params"][f"conv_{number}"])
        norm = ours["params"][f"bn_{number}"]
        assert np.all(norm["scale"] == 1)
        assert not np.any(norm["bias"])
    # The law of `init`, seen on one layer.
    follows(OneLayer().init(jax.random.key(1), image)["params"]["conv"])


def test_bfloat16_ends_in_float32():
    rng = np.random.default_rng(4)
    image = jnp.asarray(rng.uniform(0, 255, (2, 16, 16, 3)), jnp.float32)
    pose = ImmPose(landmarks=2, width=4, dtype=jnp.bfloat16)
    variables = layers.initialize(pose, jax.random.key(0), image, train=False, law=imm_net.INITIAL)
    found, updated = jax.jit(lambda v: pose.apply(v, image, train=True, mutable="batch_stats"))(variables)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updated, found))} == {jnp.dtype("float32")}
    renderer = ImmRenderer(width=4, dtype=jnp.bfloat16)
    features, maps = jnp.zeros((1, 2, 2, 32), jnp.bfloat16), jnp.zeros((1, 2, 2, 2))
    image = jax.eval_shape(lambda: renderer.init_with_output(jax.random.key(0), features, maps, train=True)[0])
    assert (image.shape, image.dtype) == ((1, 16, 16, 3), jnp.float32)


def test_bad_input_is_named():
    with pytest.raises(UserError, match="20 x 24 pixels"):
        size(ImmPose(2, width=4), (1, 20, 24, 3))
    with pytest.raises(UserError, match="8 x 8 cells"):
        size(ImmRenderer(width=4), (1, 4, 4, 32), (1, 8, 8, 2))
