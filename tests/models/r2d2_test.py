"""R2D2 against the same network in PyTorch, whose batch normalisation is a layer of its own."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import twins
from uld_jax.convert import r2d2 as converter
from uld_jax.errors import UserError
from uld_jax.models import r2d2
from uld_jax.models.r2d2 import R2D2

torch = pytest.importorskip("torch")

# Channels in multiples of the first layer's, dilations and paddings as the fact sheet of the published code lists them.
WIDTHS = (1, 1, 2, 2, 4, 4, 4, 4)
PLAIN = dict(dilations=(1, 1, 1, 2, 2, 4, 4, 8, 16), paddings=(1, 1, 1, 2, 2, 4, 2, 4, 8))
FAST = dict(dilations=(1, 1, 1, 1, 1, 2, 2, 4, 8), paddings=(1, 1, 1, 1, 1, 2, 1, 2, 4))


class Twin(torch.nn.Module):
    """Normalised images [B,3,H,W] to descriptors [B,D,H,W], repeatability and reliability [B,1,H,W]."""

    def __init__(self, width=32, fast=False, size=128):
        super().__init__()
        self.ops = torch.nn.ModuleList()
        layout, before = FAST if fast else PLAIN, 3
        for i, after in enumerate((*(factor * width for factor in WIDTHS), size)):
            dilation, padding = layout["dilations"][i], layout["paddings"][i]
            self.ops.append(torch.nn.Conv2d(before, after, 3 if i < 6 else 2, padding=padding, dilation=dilation))
            if i < 8:
                self.ops.append(torch.nn.BatchNorm2d(after, affine=False))
            if i < 6:
                self.ops.append(torch.nn.ReLU())
            if fast and i == 2:
                self.ops.append(torch.nn.MaxPool2d(2))
            before = after
        if fast:
            self.ops.append(torch.nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        self.clf = torch.nn.Conv2d(size, 2, 1)
        self.sal = torch.nn.Conv2d(size, 1, 1)

    def forward(self, x):
        for op in self.ops:
            x = op(x)
        softplus = torch.nn.functional.softplus(self.sal(x.square()))
        reliability = torch.softmax(self.clf(x.square()), 1)[:, 1:]
        return torch.nn.functional.normalize(x), softplus / (1 + softplus), reliability


def make_twin(seed=0, **sizes):
    """Random weights and statistics."""
    torch.manual_seed(seed)
    twin = Twin(**sizes).eval()
    twins.randomize(twin, np.random.default_rng(seed))
    with torch.no_grad():
        for weight in twin.ops.parameters():
            if weight.ndim == 4:
                weight.mul_(6**0.5)  # He's: what is seen keeps its size through the layers, and is not lost in biases
    return twin


def entries(twin):
    return {key: value.numpy() for key, value in twin.state_dict().items()}


def expected(twin, x):
    """What the twin makes of normalised images [B,H,W,3], in the layout of `R2D2Output`."""
    with torch.no_grad():
        descriptors, *maps = (twins.to_numpy(y) for y in twin(twins.to_torch(x)))
    return r2d2.R2D2Output(descriptors, *(y[..., 0] for y in maps))


def test_examples():
    result = doctest.testmod(r2d2)
    assert result.attempted >= 8
    assert result.failed == 0


# An image smaller than the largest dilation's reach, of odd sides; parameters as the fact sheet counts them.
@pytest.mark.parametrize(
    ("sizes", "count"), [(dict(width=32), 484_387), (dict(width=48), 1_038_899), (dict(width=32, fast=True), 484_387)]
)
def test_equals_torch(sizes, count):
    twin = make_twin(**sizes)
    x = np.random.default_rng(1).normal(size=(2, 21, 35, 3)).astype(np.float32)
    params = converter.convert(entries(twin), where="r2d2.pt")
    network = r2d2.of(params)
    assert network == R2D2(**sizes)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    found = jax.jit(network.apply)({"params": params}, x)
    for ours, theirs in zip(found, expected(twin, x), strict=True):
        twins.close(np.asarray(ours), theirs, 1e-5)
    assert found.reliability.shape == ((2, 20, 34) if "fast" in sizes else (2, 21, 35))
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=-1), 1, atol=1e-6)
    for confidence in found[1:]:
        assert np.std(confidence) > 0.02  # the maps are no constants


def test_bfloat16():
    sizes = dict(width=4, size=12)
    twin, x = make_twin(**sizes), np.random.default_rng(1).normal(size=(1, 12, 12, 3)).astype(np.float32)
    params = converter.convert(entries(twin), where="r2d2.pt", size=12)
    found = jax.jit(r2d2.of(params, dtype=jnp.bfloat16).apply)({"params": params}, x)
    for ours, theirs in zip(found, expected(twin, x), strict=True):
        assert ours.dtype == jnp.float32
        assert 0 < np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()


def test_bad_input_is_named():
    with pytest.raises(UserError, match="takes colour ones"):
        R2D2(width=4).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
