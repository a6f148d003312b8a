"""Published FAN checkpoints (SAIC, CGB) to the variables of `uld_jax.models.fan.FAN`.

The file is a PyTorch or safetensors state dict of 334 entries, prefix-free, or all of them behind `module.` (trained on
several GPUs), or nested under `state_dict`:

    conv1.{weight,bias} bn1.*                                       7x7 stem
    BLOCK.bn1.* BLOCK.conv1.weight ... BLOCK.bn3.* BLOCK.conv3.weight
    BLOCK.downsample.0.* BLOCK.downsample.2.weight                  in blocks that widen: conv2, conv4
        BLOCK: conv2 conv3 conv4, m0.{b1,b2,b3}_{4,3,2,1}, m0.b2_plus_1, top_m_0
    conv_last0.{weight,bias} bn_end0.* l_0.{weight,bias}            l_0 has one channel a landmark; l0 in face-alignment
        *: weight, bias, running_mean, running_var, num_batches_tracked

The names stay, except for `downsample.0` -> `downsample_0`. Kernels change from OIHW to HWIO; in a normalisation,
weight -> scale, running_mean -> mean, running_var -> var.

SAIC's incremental checkpoints (Sanchez and Tzimiropoulos 2019, eq. 1) have, for each 3x3 convolution of a block,
`BLOCK.convN.W` [O,O] instead of its weight; the core network's weight is in a file of its own:

    kernel[o] = sum_p W[o,p] core[p]
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from uld_jax.convert import rules
from uld_jax.errors import UserError
from uld_jax.models.fan import FAN

IGNORED = (
    r".*[.]num_batches_tracked",  # PyTorch counts steps for a momentum that FAN does not use
    r"core:.*",  # the core's other entries: its head has other landmarks, its statistics are replaced
)
_LEAVES = dict(kernel="weight", scale="weight", bias="bias", mean="running_mean", var="running_var")


def convert(entries: rules.Entries, *, where: str, core: rules.Entries | None = None, width: int = 256, depth: int = 4):
    """Convert to variables {params, batch_stats} of a FAN of `width` and `depth`, with the landmarks of `l_0`.

    Args:
      entries: entries of the checkpoint.
      where: name of the checkpoint in error messages.
      core: entries of the core network, for an incremental checkpoint.

    Raises:
      UserError: entries that do not fit, an incremental checkpoint without a core, or another one with a core.
    """
    entries = _with_usual_head(_without_module(entries))
    if (hourglasses := _hourglasses(entries)) > 1:
        raise UserError(
            f"{where} is a FAN of {hourglasses} hourglasses, one after the other (m0 to m{hourglasses - 1}), such as "
            "face-alignment's 2DFAN-4; only networks of one are used here: give one of the detectors that "
            "docs/weights.md lists for --kind=fan"
        )
    incremental = [key for key in entries if key.endswith(".W")]
    if incremental and core is None:
        raise UserError(
            f"{where} is an incremental checkpoint ({incremental[0]!r} adapts a core network's weight); "
            "give the core's file too: --core=FILE"
        )
    if core is not None and not incremental:
        raise UserError(f"{where} is no incremental checkpoint, it has no entry 'BLOCK.convN.W'; leave --core out")
    if core is not None:
        entries = entries | {f"core:{key}": value for key, value in _without_module(core).items()}
    heads = [entries[key].shape for key in ("l_0.weight", "l_0.bias") if key in entries]
    landmarks = next((shape[0] for shape in heads if shape), 1)
    shapes = _shapes(landmarks, width, depth)
    made = [_rule(path, shape, bool(incremental)) for path, shape in shapes.items()]
    return rules.apply(made, entries, where=where, ignored=IGNORED)


def _with_usual_head(entries):
    """Rename face-alignment's `l0` to its usual name."""
    if any(key.startswith("l_0.") for key in entries):
        return entries
    return {re.sub(r"^l0[.]", "l_0.", key): value for key, value in entries.items()}


def _hourglasses(entries) -> int:
    return len({found[1] for key in entries if (found := re.match(r"m(\d+)[.]", key))})


def _without_module(entries):
    prefixed = all(key.startswith("module.") for key in entries)
    return {key.removeprefix("module.") if prefixed else key: value for key, value in entries.items()}


@functools.cache
def _shapes(landmarks, width, depth) -> dict[tuple[str, ...], tuple[int, ...]]:
    network = FAN(landmarks, width, depth)
    side = network.downsample * 2**depth
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(lambda key, x: network.init(key, x, train=False), jax.random.key(0), image)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables).items()}


def _rule(path, shape, incremental) -> rules.Rule:
    _, *modules, leaf = path
    module = ".".join(modules).replace("downsample_", "downsample.")
    key, target = f"{module}.{_LEAVES[leaf]}", "/".join(path)
    if leaf != "kernel":
        return rules.Rule(target, {key: shape})
    height, width, inputs, outputs = shape
    oihw = (outputs, inputs, height, width)
    if incremental and height == 3:
        return rules.Rule(target, {f"{module}.W": (outputs, outputs), f"core:{key}": oihw}, _adapted)
    return rules.Rule(target, {key: oihw}, rules.hwio)


def _adapted(mixing: np.ndarray, core: np.ndarray) -> np.ndarray:
    return rules.hwio(np.tensordot(mixing, core, axes=1))
