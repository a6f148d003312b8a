"""SuperPoint against the same network in PyTorch, with random weights."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import twins
from uld_jax.errors import UserError
from uld_jax.models import layers, superpoint
from uld_jax.models.superpoint import SuperPoint

torch = pytest.importorskip("torch")

SMALL = dict(width=4, size=12)


class Twin(torch.nn.Module):
    """Images [B,1,H,W] to logits and descriptors [B,C,h,w], in PyTorch's own operations."""

    def __init__(self, width=64, size=256):
        super().__init__()
        plan = [("1a", 1), ("1b", 1), ("2a", 1), ("2b", 1), ("3a", 2), ("3b", 2), ("4a", 2), ("4b", 2)]
        before = 1
        for name, factor in plan:
            self.add_module(f"conv{name}", torch.nn.Conv2d(before, factor * width, 3, padding=1))
            before = factor * width
        self.plan = [name for name, _ in plan]
        for head, outputs in (("P", 65), ("D", size)):
            self.add_module(f"conv{head}a", torch.nn.Conv2d(before, 4 * width, 3, padding=1))
            self.add_module(f"conv{head}b", torch.nn.Conv2d(4 * width, outputs, 1))

    def forward(self, x):
        for name in self.plan:
            x = torch.relu(self.get_submodule(f"conv{name}")(x))
            if name in ("1b", "2b", "3b"):
                x = torch.nn.functional.max_pool2d(x, 2)
        logits, descriptors = (
            self.get_submodule(f"conv{head}b")(torch.relu(self.get_submodule(f"conv{head}a")(x))) for head in "PD"
        )
        return logits, descriptors / descriptors.norm(dim=1, keepdim=True)


def make_twin(seed=0, **sizes):
    """Random weights; no bias is 0."""
    torch.manual_seed(seed)
    twin = Twin(**sizes).eval()
    with torch.no_grad():
        for weight in twin.parameters():
            if weight.ndim == 4:
                weight.mul_(6**0.5)  # He's: what is seen keeps its size through the layers, and is not lost in biases
    return twin


def images(shape, seed=0):
    return np.random.default_rng(seed).uniform(size=(*shape, 1)).astype(np.float32)


def expected(twin, x):
    with torch.no_grad():
        return [twins.to_numpy(y) for y in twin(twins.to_torch(x))]


def test_examples():
    result = doctest.testmod(superpoint)
    assert result.attempted >= 6
    assert result.failed == 0


def test_the_published_size_equals_torch():
    twin, x = make_twin(), images((1, 218, 178))
    variables = twins.to_flax(twin.state_dict())
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 1_300_865
    assert len(jax.tree.leaves(variables)) == 24
    shapes = jax.eval_shape(SuperPoint().init, jax.random.key(0), x)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes)
    found = jax.jit(SuperPoint().apply)(variables, x)
    assert found.logits.shape == (1, 27, 22, 65)
    for ours, theirs in zip(found, expected(twin, x), strict=True):
        twins.close(np.asarray(ours), theirs, 1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=-1), 1, atol=1e-6)


def test_float64_and_bfloat16():
    twin, x = make_twin(**SMALL), images((2, 31, 41))
    variables = twins.to_flax(twin.state_dict())
    exact = expected(twin.double(), x.astype(np.float64))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables)
        network = SuperPoint(**SMALL, **layers.precision("float64"))
        found = jax.jit(network.apply)(wide, x.astype(np.float64))
        for ours, theirs in zip(found, exact, strict=True):
            twins.close(np.asarray(ours), theirs, 1e-12)
    rough = jax.jit(SuperPoint(**SMALL, **layers.precision("bfloat16")).apply)(variables, x)
    for ours, theirs in zip(rough, exact, strict=True):
        assert ours.dtype == jnp.float32
        assert 0 < np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()


def test_scores_lie_where_the_cells_pixels_are():
    logits = np.random.default_rng(0).normal(size=(2, 3, 2, 65)).astype(np.float32)
    found = np.asarray(superpoint.scores(jnp.asarray(logits)))
    share = np.exp(logits.astype(np.float64))
    share /= share.sum(-1, keepdims=True)
    assert found.shape == (2, 24, 16)
    for b, y, x in np.ndindex(*found.shape):
        np.testing.assert_allclose(found[b, y, x], share[b, y // 8, x // 8, 8 * (y % 8) + x % 8], rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "words"), [((1, 16, 16, 3), r"takes grey ones, \[B,H,W,1\]"), ((1, 7, 16, 1), "must be 8 or more")]
)
def test_bad_input_is_named(shape, words):
    with pytest.raises(UserError, match=words):
        SuperPoint(**SMALL).init(jax.random.key(0), jnp.zeros(shape))
