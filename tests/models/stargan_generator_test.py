import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import twins
from uld_jax.errors import UserError
from uld_jax.models import layers, stargan_generator
from uld_jax.models.stargan_generator import StarGanGenerator


def test_examples():
    result = doctest.testmod(stargan_generator)
    assert result.attempted >= 4
    assert result.failed == 0


def shapes(network, size, landmarks):
    image = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    maps = jax.ShapeDtypeStruct((2, size // 4, size // 4, landmarks), jnp.float32)
    return jax.eval_shape(lambda i, m: network.init(jax.random.key(0), i, m, train=False), image, maps)


def test_published_size():
    variables = shapes(StarGanGenerator(), 128, 10)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == 2_424_424
    # 108 entries in the state dict, one `num_batches_tracked` for each of the 18 normalisation layers.
    assert len(jax.tree.leaves(variables)) + len(jax.tree.leaves(variables["batch_stats"])) // 2 == 108
    kernel = lambda name: variables["params"][name]["kernel"].shape
    assert (kernel("main_7"), kernel("main_10"), kernel("main_13")) == ((4, 4, 69, 138), (4, 4, 34, 69), (7, 7, 34, 3))


def test_transposed_convolution_and_its_gradients_equal_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, 3, 5, 6)).astype(np.float32), rng.normal(size=(2, 6, 10, 4)).astype(np.float32)
    kernel = rng.normal(size=(4, 4, 4, 6)).astype(np.float32)
    inputs = twins.to_torch(x).requires_grad_(), torch.tensor(kernel.transpose(3, 2, 0, 1).copy(), requires_grad=True)
    expected = torch.nn.functional.conv_transpose2d(*inputs, stride=2, padding=1)
    expected.backward(twins.to_torch(weights))
    with jax.default_matmul_precision("highest"):
        found, pull = jax.jit(lambda *a: jax.vjp(stargan_generator.transposed_conv, *a))(x, kernel)
        by_x, by_kernel = jax.jit(lambda pull, weights: pull(weights))(pull, weights)
    twins.close(np.asarray(found), twins.to_numpy(expected), 1e-5)
    twins.close(np.asarray(by_x), twins.to_numpy(inputs[0].grad), 1e-5)
    twins.close(np.asarray(by_kernel), inputs[1].grad.numpy().transpose(2, 3, 1, 0), 1e-5)


def make_twin(width, blocks, landmarks):
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.main = nn.Sequential(
                nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
                nn.BatchNorm2d(channels),
            )

        def forward(self, x):
            return x + self.main(x)

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()

            def unit(layer, channels):
                return [layer, nn.BatchNorm2d(channels), nn.ReLU()]

            self.downsampling = nn.Sequential(
                *unit(nn.Conv2d(3, width, 7, 1, 3, bias=False), width),
                *unit(nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), 2 * width),
                *unit(nn.Conv2d(2 * width, 4 * width, 4, 2, 1, bias=False), 4 * width),
            )
            wide = 4 * width + landmarks
            half, quarter = wide // 2, wide // 2 // 2
            self.main = nn.Sequential(
                nn.BatchNorm2d(wide),
                *[Block(wide) for _ in range(blocks)],
                *unit(nn.ConvTranspose2d(wide, half, 4, 2, 1, bias=False), half),
                *unit(nn.ConvTranspose2d(half, quarter, 4, 2, 1, bias=False), quarter),
                nn.Conv2d(quarter, 3, 7, 1, 3, bias=False),
                nn.Tanh(),
            )

        def forward(self, image, maps):
            return 0.5 * (self.main(torch.cat([self.downsampling(image), maps], 1)) + 1)

    return Twin()


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_equals_a_torch_twin(dtype, tolerance):
    rng = np.random.default_rng(0)
    # 5 landmarks: 21 channels, whose half and quarter are rounded down.
    network = StarGanGenerator(width=4, blocks=2, param_dtype=dtype)
    inputs = [rng.uniform(size=(2, 24, 32, 3)).astype(dtype), rng.uniform(size=(2, 6, 8, 5)).astype(dtype)]
    image = twins.check(network, lambda: make_twin(4, 2, 5), inputs, tolerance, momentum=0.9)
    assert 0 < image.min() < image.max() < 1


def test_initialize_follows_pytorch_also_in_transposed_convolutions():
    network, twin = StarGanGenerator(width=8, blocks=1), make_twin(8, 1, 10)
    image, maps = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 4, 4, 10))
    found = layers.initialize(network, jax.random.key(0), image, maps, train=False)
    theirs = twins.to_flax(twin.state_dict())
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, theirs)
    for name in ("main_2", "main_5"):
        ours, reference = found["params"][name]["kernel"], theirs["params"][name]["kernel"]
        bound = (16 * reference.shape[2]) ** -0.5
        for values in (ours, reference):
            assert 0.99 * bound < np.abs(values).max() <= bound * (1 + 1e-6)
        np.testing.assert_allclose(np.std(ours), np.std(reference), rtol=0.05)


def test_bfloat16_image_is_float32():
    network = StarGanGenerator(width=4, blocks=1, dtype=jnp.bfloat16)
    rng = np.random.default_rng(1)
    image, maps = (jnp.asarray(rng.uniform(size=s), jnp.float32) for s in ((2, 16, 16, 3), (2, 4, 4, 2)))
    variables = layers.initialize(network, jax.random.key(0), image, maps, train=False)
    apply = lambda net: jax.jit(lambda v: net.apply(v, image, maps, train=True, mutable="batch_stats"))(variables)
    found, updated = apply(network)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updated, found))} == {jnp.dtype("float32")}
    expected, _ = apply(StarGanGenerator(width=4, blocks=1))
    assert 0 < np.abs(found - expected).max() < 0.1


def test_bad_input_is_named():
    network = StarGanGenerator(width=4, blocks=1)
    with pytest.raises(UserError, match="30 x 30 pixels"):
        shapes(network, 30, 2)
    image, maps = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 16, 16, 2))
    with pytest.raises(UserError, match="needs 8 x 8"):
        jax.eval_shape(lambda: network.init(jax.random.key(0), image, maps, train=False))
