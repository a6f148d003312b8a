"""GCN-V's confidences against the network in PyTorch on a matrix of SciPy."""

import doctest
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.clustering import affinity_test as reference
from uld_jax.clustering import gcn_v
from uld_jax.convert import gcn_v as converter
from uld_jax.errors import UserError

D, HIDDEN = 6, 10


def torch_twin(size=D, hidden=HIDDEN, seed=0):
    """The state of the published network, random biases and slopes included, and what it computes."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    head = torch.nn.Sequential(
        torch.nn.Linear(hidden, hidden), torch.nn.PReLU(hidden), torch.nn.Linear(hidden, 1)
    ).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))
    weight, bias = torch.randn(2 * size, hidden).double(), 0.3 * torch.randn(hidden).double()

    def run(x, mean):
        h = torch.relu(torch.cat([torch.tensor(x), torch.tensor(mean)], 1) @ weight + bias)
        with torch.no_grad():
            return head(h)[:, 0].numpy(), h.numpy()

    state = {f"classifier.{key}": value for key, value in head.state_dict().items()}
    state |= {"conv1.weight": weight, "conv1.bias": bias}
    return {key: value.float() for key, value in state.items()}, run


def inputs(seed):
    graph, _, mask = reference.made(seed)
    x = np.random.default_rng(seed).normal(size=(reference.N, D)) * 3
    return graph, x.astype(np.float32), mask


def test_equals_pytorch():
    state, run = torch_twin()
    params = converter.convert({key: value.numpy() for key, value in state.items()}, where="", size=D, hidden=HIDDEN)
    graph, x, mask = inputs(1)
    unit = x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True)
    mean, _ = reference.reference(graph, unit, mask)
    expected, hidden = run(unit, mean)
    dirty = np.where(mask[:, None], x, np.nan)
    found = gcn_v.confidence(params, jnp.asarray(dirty), graph, mask)
    for ours, theirs in zip(found, (expected, hidden), strict=True):
        assert ours.dtype == jnp.float32
        theirs = np.where(mask.reshape(-1, *[1] * (theirs.ndim - 1)), theirs, 0)
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    jitted = jax.jit(gcn_v.confidence)(params, dirty, graph, mask)
    np.testing.assert_allclose(jitted[0], found[0], atol=1e-5)
    assert gcn_v.size(params) == D


def test_another_size_is_named():
    graph, x, _ = inputs(2)
    with pytest.raises(UserError, match="descriptors of size 6, its weights are for 256"):
        gcn_v.confidence(gcn_v.load_default(), x, graph)


def test_the_shipped_weights():
    params = gcn_v.load_default()
    fresh = jax.eval_shape(lambda: gcn_v.initialize(jax.random.key(0)))
    shape_of = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert shape_of(params) == shape_of(fresh)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 526_337
    params["conv1"]["bias"][:] = 7  # a copy: nobody spoils them for the next
    assert (gcn_v.load_default()["conv1"]["bias"] != 7).all()


def test_half_precision_is_enough(tmp_path):
    params = gcn_v.load_default()
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(params)) < 100
    gcn_v.write_half(tmp_path / "again.npz", params)
    again = np.load(tmp_path / "again.npz")
    for name in again.files:
        module, leaf = name.split("/")
        assert again[name].dtype == (np.float32 if name == "classifier_2/bias" else np.float16)
        np.testing.assert_array_equal(again[name].astype(np.float32), params[module][leaf])


def test_examples():
    result = doctest.testmod(gcn_v)
    assert result.attempted >= 1
    assert result.failed == 0


class Graph(NamedTuple):
    indices: jax.Array
    similarities: jax.Array
