"""A Linen network against the same network in PyTorch: weights carried over, outputs and statistics compared."""

import contextlib
import re

import jax
import numpy as np


def to_torch(x):
    """[B,H,W,C] array to [B,C,H,W] tensor."""
    import torch

    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())


def to_numpy(x):
    """[B,C,H,W] tensor to [B,H,W,C] array."""
    return x.detach().numpy().transpose(0, 2, 3, 1)


def randomize(twin, rng):
    """Random running statistics, affine parameters and biases; kernels stay as PyTorch drew them."""
    import torch

    for name, value in twin.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.tensor(rng.uniform(0.5, 2, value.shape)))
        elif value.ndim == 1:
            value.copy_(torch.tensor(rng.normal(float(name.endswith("weight")), 0.2, value.shape)))


def to_flax(state):
    """A PyTorch state dict to Linen variables of the same names, `a.0.b` being `a_0/b`."""
    variables = {}
    for key, value in state.items():
        *path, leaf = re.sub(r"\.(\d+)\b", r"_\1", key).split(".")
        if leaf == "num_batches_tracked":
            continue
        value = value.numpy().copy()
        leaf = {"running_mean": "mean", "running_var": "var", "bias": "bias"}.get(
            leaf, "kernel" if value.ndim == 4 else "scale"
        )
        node = variables.setdefault("batch_stats" if leaf in ("mean", "var") else "params", {})
        for name in path:
            node = node.setdefault(name, {})
        node[leaf] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    return variables


def close(found, expected, tolerance):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def check(network, make_twin, inputs, tolerance, momentum):
    """`network` computes what `make_twin()` does, in inference and in a training step, in the dtype of `inputs`.

    After the step the batch statistics are equal too, but for the n / (n - 1) in PyTorch's running variance.
    `momentum` is Linen's: how much of the old statistics is kept. Returns the training step's output.
    """
    import torch

    double = inputs[0].dtype == np.float64
    torch.manual_seed(0)
    twin = make_twin()
    randomize(twin, np.random.default_rng(0))
    if double:
        twin = twin.double()
    counts = {}
    for name, layer in twin.named_modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.register_forward_hook(
                lambda layer, args, output, name=name: counts.update({name: args[0].numel() // args[0].shape[1]})
            )
    before = to_flax(twin.state_dict())
    tensors = [to_torch(x) for x in inputs]
    with jax.enable_x64(True) if double else contextlib.nullcontext(), jax.default_matmul_precision("highest"):
        expected_tree = jax.eval_shape(lambda: network.init(jax.random.key(0), *inputs, train=False))
        assert jax.tree.map(np.shape, before) == jax.tree.map(np.shape, expected_tree)
        assert {leaf.dtype for leaf in jax.tree.leaves(expected_tree["params"])} == {inputs[0].dtype}
        apply = jax.jit(network.apply, static_argnames=("train", "mutable"))
        found = np.asarray(apply(before, *inputs, train=False))
        with torch.no_grad():
            close(found, to_numpy(twin.eval()(*tensors)), tolerance)
        found, updated = apply(before, *inputs, train=True, mutable="batch_stats")
        with torch.no_grad():
            close(np.asarray(found), to_numpy(twin.train()(*tensors)), tolerance)
    state = twin.state_dict()
    assert len(counts) == len(jax.tree.leaves(updated)) / 2 > 0
    for name, count in counts.items():
        ours, old = updated["batch_stats"], before["batch_stats"]
        for part in re.sub(r"\.(\d+)\b", r"_\1", name).split("."):
            ours, old = ours[part], old[part]
        close(np.asarray(ours["mean"]), state[f"{name}.running_mean"].numpy(), tolerance)
        kept = momentum * old["var"]
        unbiased = kept + (np.asarray(ours["var"]) - kept) * count / (count - 1)
        close(unbiased, state[f"{name}.running_var"].numpy(), tolerance)
    return np.asarray(found)
