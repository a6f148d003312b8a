"""NC-Net's published checkpoints (Rocco et al. 2018) to its features and its neighbourhood consensus.

The file is {state_dict, args, epoch, best_test_loss, optimizer, train_loss, test_loss}, of which `state_dict` is read.
A bare state dict is accepted too. Its entries:

    FeatureExtraction.model.N.*      ResNet-101 to layer 3 as a sequence: N is 0 for conv1, 1 for bn1, and 4, 5, 6 for
                                     layer1 to layer3; behind N are torchvision's names, see `resnet.py`. Older files
                                     have `vgg` in place of `model`
    NeighConsensus.conv.N.weight     (k,O,I,k,k,k), N = 0, 2, 4: the first axis has the taps along a's rows, the last
                                     three have those along a's columns, b's rows and b's columns
    NeighConsensus.conv.N.bias       (O)

`args` is an `argparse.Namespace` and the losses are NumPy's; they are not read, because k and all channels show in the
shapes. For PF-Pascal three layers have k = 5 and 16, 16, 1 channels; for InLoc two have k = 3 and 16, 1.

The result is a nested dict,

  features    {params, batch_stats} of `models.resnet.ResNet(depth=101, last=3)`, used with train=False: layer3 is read
  consensus   {params} of `models.neigh_consensus.NeighConsensus` in its full form, which `of` there gives

The published network is symmetric, has `ops.correlation.mutual_matching` before and after the consensus, and takes
images of ImageNet's mean and standard deviation, resized to 400 x 400 for PF-Pascal.
"""

import re
from typing import Any

import numpy as np

from uld_jax.convert import resnet, rules
from uld_jax.errors import UserError
from uld_jax.models import neigh_consensus
from uld_jax.models.resnet import IMAGENET

DEPTH, LAST = 101, 3
_FEATURES, _OLD = "FeatureExtraction.model", "FeatureExtraction.vgg"
_PLACES = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6}
_IGNORED = (r"FeatureExtraction[.].*[.]num_batches_tracked",)
_CONSENSUS = re.compile(r"NeighConsensus[.]conv[.](\d+)[.]weight")


def convert(entries: rules.Entries, *, where: str, depth: int = DEPTH, width: int = 64) -> dict[str, Any]:
    """Convert the entries to the dict in the module's docstring, float32; `depth` and `width` are the ResNet's.

    Raises:
      UserError: entries that do not fit, or a consensus with even kernels, several sizes of them, or several outputs.
    """
    kernel, channels = _sizes(entries, where)
    old = any(key.startswith(f"{_OLD}.") for key in entries)
    made = [_of_features(rule, _OLD if old else _FEATURES) for rule in resnet.rules_of(depth, width, LAST)]
    for number, (before, after) in enumerate(zip((1, *channels), channels)):
        source, target = f"NeighConsensus.conv.{2 * number}", f"consensus/params/conv_{2 * number}"
        shape = (kernel, after, before, kernel, kernel, kernel)
        made.append(rules.Rule(f"{target}/kernel", {f"{source}.weight": shape}, kernel_4d))
        made.append(rules.Rule(f"{target}/bias", {f"{source}.bias": (after,)}))
    return rules.apply(made, entries, where=where, ignored=_IGNORED)


def kernel_4d(weight: np.ndarray) -> np.ndarray:
    """Transpose a kernel as NC-Net stores it, [k,O,I,k,k,k], to [k,k,k,k,I,O].

    >>> kernel_4d(np.zeros((5, 16, 1, 5, 5, 5))).shape
    (5, 5, 5, 5, 1, 16)
    """
    return weight.transpose(0, 3, 4, 5, 2, 1)


def facts(converted: dict[str, Any]) -> dict[str, Any]:
    """The facts about the network for `source.json`: its sizes, and how its images are normalised.

    >>> layer = lambda inputs, outputs: {"kernel": np.zeros((3, 3, 3, 3, inputs, outputs)), "bias": np.zeros(outputs)}
    >>> found = facts({"consensus": {"params": {"conv_0": layer(1, 16), "conv_2": layer(16, 1)}}})
    >>> found["kernel"], found["channels"]
    (3, [16, 1])
    """
    network = neigh_consensus.of(converted["consensus"]["params"])
    said, (mean, std) = ", ".join(map(str, network.channels)), map(list, IMAGENET)
    return {
        "taken_for": f"NC-Net with {len(network.channels)} layers of {said} channels and kernels of {network.kernel}^4",
        "kernel": network.kernel,
        "channels": list(network.channels),
        "normalization": {"mean": mean, "std": std},
    }


def _sizes(entries, where):
    """Side of the kernels and channels of the layers; those for PF-Pascal if there is no layer."""
    shapes = {int(match[1]): (key, entries[key].shape) for key in entries if (match := _CONSENSUS.fullmatch(key))}
    if not shapes:
        return 5, (16, 16, 1)
    for key, shape in shapes.values():
        if len(shape) != 6:
            raise UserError(f"{where}: the entry {key!r} has shape {shape}, not (k,O,I,k,k,k); check --kind and --src")
    found = [shapes[number][1] for number in sorted(shapes)]
    kernel = found[0][0]
    if any(set(shape[:1] + shape[3:]) != {kernel} for shape in found) or kernel % 2 == 0:
        sides = ", ".join("x".join(map(str, shape[:1] + shape[3:])) for shape in found)
        raise UserError(f"{where}: the consensus has kernels of {sides}; give a file whose kernels have one odd side")
    if found[-1][1] != 1:
        raise UserError(f"{where}: the consensus ends with {found[-1][1]} channels, not 1; check --kind and --src")
    return kernel, tuple(shape[1] for shape in found)


def _of_features(rule, sequence):
    """The rule of torchvision's ResNet for the sequence of its children."""

    def renamed(key):
        child, rest = key.split(".", 1)
        return f"{sequence}.{_PLACES[child]}.{rest}"

    sources = {renamed(key): shape for key, shape in rule.sources.items()}
    return rule._replace(target=f"features/{rule.target}", sources=sources)
