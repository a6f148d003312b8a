"""Published checkpoints of Mallis et al. to the parameters of `uld_jax.models.fan`, both stages and both code bases.

The file is {state_dict: 220 entries, more}, as the published code of the first paper (NeurIPS 2020) or of the extended
one (TPAMI 2024) writes it; the latter has all entries behind `module.`. A bare state dict is accepted too.

    conv1.{weight,bias} bn1.*                                       7x7 stem
    BLOCK.bn1.* BLOCK.conv1.weight ... BLOCK.bn3.* BLOCK.conv3.weight
    BLOCK.downsample.0.* BLOCK.downsample.2.weight                  in blocks that widen: conv2, conv4
        BLOCK: conv2 conv3 conv4, m0.{b1,b2,b3,b4}_{4,3,2,1}, m0.b2_plus_1, top_m_0, top_m_1
    conv_last{0,1}.{weight,bias} bn_end{0,1}.*                      the heads: 0 of the detector, 1 of the descriptors
    l0.{weight,bias} l1.{weight,bias}                               l0 has 1 channel
        *: weight, bias of a group normalisation

`m0.b4_*` are 36 entries of blocks that the published network makes and never uses; they are ignored.

    stage 1   l1 has 256 channels, the descriptors'; `centroid` (M,256) beside `state_dict`, or None before the first
              clustering
    stage 2   l1 has one channel a cluster (M) or landmark (K); the detector's head is unused and left out;
              `active_channels`, the clusters that are still landmarks, or `flipppingCorrespondance` (K), spelt so: the
              landmark that each becomes in the mirrored image

A file is of stage 2 if it has either of these two entries, or another number of channels than 256 in l1. The state of
the optimiser and of the schedule is not read.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from uld_jax.convert import files, rules
from uld_jax.errors import UserError
from uld_jax.models.fan import FAN, CorrespondenceFAN

BESIDE = files.Beside(
    arrays=("centroid", "active_channels", "flipppingCorrespondance"),
    ignored=("optimizer", "schedualer", "iteration"),
)
_UNUSED = r"m0[.]b4_\d+[.].*"
_DETECTOR = r"(?:top_m_0|conv_last0|bn_end0|l0)[.].*"
# Names in stage 2, whose network has the descriptors' head in place of a FAN's only head.
_SECOND = dict(top_m_0="top_m_1", conv_last0="conv_last1", bn_end0="bn_end1", l_0="l1")
_LEAVES = dict(kernel="weight", scale="weight", bias="bias")


def convert(entries: rules.Entries, *, where: str, width: int = 256, depth: int = 4) -> dict[str, Any]:
    """Convert the entries to a dict from which a method can start, float32.

    Args:
      entries: entries of the checkpoint, with those of `BESIDE` under their names.
      where: name of the checkpoint in error messages.
      width, depth: size of the network; `width` is also the descriptors' size.

    Returns:
      {params: parameters of a `CorrespondenceFAN` (stage 1) or, with l1's number of channels, of a `FAN` (stage 2),
      both with group normalisation; and, if the file has them,
      centroids: [M,width], stage 1's centroids of descriptors of length 1;
      active: [M], 1 for heatmaps that stand for a landmark and 0 for others;
      flips: [K], whole numbers}.

    Raises:
      UserError: entries that do not fit.
    """
    beside = {name: entries[name] for name in BESIDE.arrays if name in entries}
    entries = {key: value for key, value in entries.items() if key not in beside}
    if entries and all(key.startswith("module.") for key in entries):
        entries = {key.removeprefix("module."): value for key, value in entries.items()}
    # The number of channels of the last layer, if its entries show it.
    sizes = [entries[key].shape for key in ("l1.weight", "l1.bias") if key in entries]
    channels = next((shape[0] for shape in sizes if shape), width)
    second = channels != width or "active_channels" in beside or "flipppingCorrespondance" in beside
    if second and "centroid" in beside:
        raise UserError(
            f"{where}: the entry 'centroid' is of stage 1, but the file is of stage 2 (l1 has {channels} channels); "
            "check --kind and --src"
        )
    network = FAN(channels, width, depth, norm="group") if second else CorrespondenceFAN(width, width, depth)
    made = [_rule(path, shape, _SECOND if second else {}) for path, shape in _shapes(network).items()]
    ignored = (_UNUSED, _DETECTOR) if second else (_UNUSED,)
    result = rules.apply(made, entries, where=where, ignored=ignored)
    if "centroid" in beside:
        result["centroids"] = _centroids(beside["centroid"], width, where)
    if "active_channels" in beside:
        active = _numbers("active_channels", beside, channels, where)
        result["active"] = np.isin(np.arange(channels), active).astype(np.float32)
    if "flipppingCorrespondance" in beside:
        flips = _numbers("flipppingCorrespondance", beside, channels, where)
        if len(flips) != channels:
            raise UserError(
                f"{where}: the entry 'flipppingCorrespondance' has {len(flips)} landmarks, but 'l1.weight' {channels}; "
                "the file is damaged, get it again"
            )
        result["flips"] = flips.astype(np.float32)
    return result


def facts(converted: dict[str, Any]) -> dict[str, int]:
    """The fact about a conversion for `source.json`: its stage.

    >>> facts({"params": {"conv1": {}, "l1": {}}}), facts({"params": {"conv1": {}, "l_0": {}}})
    ({'stage': 1}, {'stage': 2})
    """
    return {"stage": 1 if "l1" in converted["params"] else 2}


def _shapes(network) -> dict[tuple[str, ...], tuple[int, ...]]:
    side = network.downsample * 2**network.depth
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(lambda key, x: network.init(key, x, train=False), jax.random.key(0), image)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables).items()}


def _rule(path, shape, renamed) -> rules.Rule:
    _, first, *modules, leaf = path
    module = ".".join((renamed.get(first, first), *modules)).replace("downsample_", "downsample.")
    key, target = f"{module}.{_LEAVES[leaf]}", "/".join(path)
    if leaf != "kernel":
        return rules.Rule(target, {key: shape})
    height, width, inputs, outputs = shape
    return rules.Rule(target, {key: (outputs, inputs, height, width)}, rules.hwio)


def _centroids(found, size, where):
    if found.ndim != 2 or found.shape[1] != size or not len(found):
        raise UserError(
            f"{where}: the entry 'centroid' has shape {found.shape}, not (M, {size}); check --kind and --src"
        )
    if found.dtype.kind != "f" or not np.isfinite(found).all():
        raise UserError(f"{where}: 'centroid' holds numbers that are not finite; the file is damaged, get it again")
    return found.astype(np.float32)


def _numbers(name, beside, count, where):
    """A list of channels."""
    found = beside[name]
    if found.ndim != 1 or found.dtype.kind != "i":
        raise UserError(
            f"{where}: the entry {name!r} is {found.dtype} of shape {found.shape}, not a list of channel numbers; "
            "check --kind and --src"
        )
    if ((found < 0) | (found >= count)).any():
        raise UserError(
            f"{where}: the entry {name!r} names a channel that 'l1.weight' with its {count} does not have; "
            "the file is damaged, get it again"
        )
    return found
