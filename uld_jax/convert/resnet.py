"""Published ResNet checkpoints to the variables of `uld_jax.models.resnet.ResNet`, depth 18, 50 or 101.

`src` is a folder of transformers (`config.json` beside `model.safetensors` or `pytorch_model.bin`), or a PyTorch or
safetensors file whose entries have one of two sets of names, behind any common prefix:

  torchvision    conv1.weight bn1.* layerL.B.conv{1,2,3}.weight layerL.B.bn{1,2,3}.*
                 layerL.0.downsample.0.weight layerL.0.downsample.1.*
  transformers   embedder.embedder.{convolution,normalization}.*
                 encoder.stages.{L-1}.layers.B.layer.{0,1,2}.{convolution,normalization}.*
                 encoder.stages.{L-1}.layers.0.shortcut.{convolution,normalization}.*
      *: weight, bias, running_mean, running_var, num_batches_tracked; blocks of ResNet-18 have two convolutions

torchvision's ResNet-50 has 320 entries, ResNet-101 has 626. The classifier (`fc.*`, `classifier.1.*`) and
`num_batches_tracked` are left out. Kernels change from OIHW to HWIO; in a normalisation, weight -> scale,
running_mean -> mean, running_var -> var.

Prefixes of published files, with what the file is taken for:

  none, or module.         torchvision; in a folder of transformers, resnet.
  module.encoder_q.        the query encoder of MoCo v1 and v2, nested under `state_dict`; its key encoder and queue are
                           left out
  encoder.module.          the query encoder of ContrastLandmark, {opt, model, model_ema, contrast, optimizer, epoch},
                           of which `model` is read; CMC, from which its code comes, saves the same layout

Published weights expect images of ImageNet's mean and standard deviation, except ContrastLandmark's of faces, where
`opt.dataset` is CelebA (of its birds, InatAve, and of CMC's networks, it is ImageNet's); `opt` is an
`argparse.Namespace`, of which this one text is read. A file alone does not show where a bottleneck has its stride:
transformers' option `downsample_in_bottleneck`, false in the published ones, is checked in `config.json`.
"""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from uld_jax.convert import files, rules
from uld_jax.errors import UserError
from uld_jax.models import resnet

DATASET = "opt.dataset"  # text in the options of ContrastLandmark's and CMC's trainers
NESTED = ("state_dict", "model")
_FIXED = {
    "model_type": ("resnet",),
    "num_channels": (3,),
    "hidden_act": ("relu",),
    "downsample_in_first_stage": (False,),
    "downsample_in_bottleneck": (False,),
}
_DEPTHS = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
_LEAVES = dict(kernel="weight", scale="weight", bias="bias", mean="running_mean", var="running_var")
_IGNORED = (r".*[.]num_batches_tracked", r"(?:module[.])?(?:encoder_k[.].*|queue|queue_ptr)", re.escape(DATASET))
# The first convolution, behind words that are no layer's: blocks have a `conv1` too.
_STEM = re.compile(r"((?:(?!layer\d)\w+[.])*)conv1[.]weight")
_BLOCK = re.compile(r"layer(\d)[.](\d+)[.]conv(\d)[.]weight")
_STEM_OF_TRANSFORMERS = re.compile(r"((?:\w+[.])*?)embedder[.]embedder[.]convolution[.]weight")
_BLOCK_OF_TRANSFORMERS = re.compile(r"encoder[.]stages[.](\d)[.]layers[.](\d+)[.]layer[.](\d)[.]convolution[.]weight")


class Layout(NamedTuple):
    """What a file was taken for.

    Attributes:
      prefix: text before the names of all entries that are read.
      transformers: True for the names of transformers, False for those of torchvision.
      publisher: the publisher's name for the network, such as "MoCo's query encoder".
      normalization: mean and standard deviation of the images that the weights expect.
    """

    prefix: str
    transformers: bool
    publisher: str
    normalization: tuple[tuple[float, ...], tuple[float, ...]]


TORCHVISION = Layout("", False, "torchvision's network", resnet.IMAGENET)


def open_folder(path: str, depth: int) -> files.Opened:
    """Open a folder of transformers. Raises UserError for a file that is missing, and for another network's folder."""
    kind = f"resnet{depth}"
    return files.open_transformers(path, kind, _FIXED, f"ResNet-{depth} as microsoft published it")[0]


def convert(entries: rules.Entries, *, where: str, depth: int, width: int = 64):
    """Convert to variables {params, batch_stats} of a ResNet of `depth` and `width`.

    Raises:
      UserError: entries that do not fit, a network of another depth, or several networks in one file.
    """
    layout = recognize(entries, where)
    found = _depth(entries, layout)
    if found not in (None, depth):
        remedy = f"use --kind=resnet{found}" if found in resnet.BLOCKS else f"give a ResNet-{depth}"
        raise UserError(f"{where} is a ResNet-{found}, and --kind=resnet{depth} takes a ResNet-{depth}; {remedy}")
    made = rules_of(depth, width, layout=layout)
    classifier = re.escape(layout.prefix) + r"fc[.].*"
    if layout.transformers:
        classifier = re.escape(layout.prefix.removesuffix("resnet.")) + r"classifier[.]1[.].*"
    return rules.apply(made, entries, where=where, ignored=(*_IGNORED, classifier))


def rules_of(depth: int, width: int = 64, last: int = 4, layout: Layout = TORCHVISION) -> list[rules.Rule]:
    """Return the rules for the variables {params, batch_stats} of a ResNet up to layer `last`."""
    return [_rule(path, shape, layout) for path, shape in _shapes(depth, width, last).items()]


def recognize(entries: rules.Entries, where: str = "") -> Layout:
    """Tell what a file is from the names of its entries, and from `opt.dataset`; torchvision's if they do not tell.

    Raises UserError for a file of several networks, other than MoCo's two encoders.
    """
    stems = {}
    for key in entries:
        for pattern, transformers in ((_STEM, False), (_STEM_OF_TRANSFORMERS, True)):
            match = pattern.fullmatch(key)
            if match and not re.fullmatch(_IGNORED[1], key):
                stems[match[1]] = transformers
    if len(stems) > 1:
        names = " and ".join(repr(f"{prefix}*") for prefix in stems)
        raise UserError(f"{where} holds several networks, {names}; save one of them alone")
    prefix, transformers = next(iter(stems.items()), ("", False))
    if transformers:
        return Layout(prefix, True, "transformers' network", resnet.IMAGENET)
    if prefix.endswith("encoder_q."):
        return Layout(prefix, False, "MoCo's query encoder", resnet.IMAGENET)
    dataset = str(entries[DATASET]) if DATASET in entries else ""
    if not dataset and prefix == "encoder.module.":
        return Layout(prefix, False, "ContrastLandmark's query encoder, taken to be of CelebA", resnet.CELEBA)
    if dataset.lower().startswith("imagenet"):
        return Layout(prefix, False, f"CMC's query encoder of {dataset}", resnet.IMAGENET)
    if dataset:
        faces = dataset.lower().startswith("celeba")
        normalization = resnet.CELEBA if faces else resnet.IMAGENET
        return Layout(prefix, False, f"ContrastLandmark's query encoder of {dataset}", normalization)
    publisher = TORCHVISION.publisher + (f" behind {prefix!r}" if prefix else "")
    return TORCHVISION._replace(prefix=prefix, publisher=publisher)


def facts(entries: rules.Entries) -> dict[str, Any]:
    """The facts about a file that `convert` took, for `source.json`: what it is and how its images are normalised.

    >>> import numpy as np
    >>> facts({"module.encoder_q.conv1.weight": np.zeros((64, 3, 7, 7))})["taken_for"]
    "MoCo's query encoder"
    """
    layout = recognize(entries)
    mean, std = layout.normalization
    depth = _depth(entries, layout)
    taken_for = layout.publisher + (f", a ResNet-{depth}" if depth else "")
    return {"taken_for": taken_for, "normalization": {"mean": list(mean), "std": list(std)}}


def _depth(entries, layout) -> int | None:
    """The depth that the blocks show; None for other blocks than the published ones."""
    pattern, first = (_BLOCK_OF_TRANSFORMERS, 0) if layout.transformers else (_BLOCK, 1)
    blocks, bottleneck = {}, False
    for key in entries:
        if key.startswith(layout.prefix) and (match := pattern.fullmatch(key[len(layout.prefix) :])):
            layer, block, conv = map(int, match.groups())
            blocks.setdefault(layer - first, set()).add(block)
            bottleneck |= conv - first == 2
    counts = tuple(len(blocks.get(layer, ())) for layer in range(4))
    return _DEPTHS.get((bottleneck, counts))


@functools.cache
def _shapes(depth, width, last) -> dict[tuple[str, ...], tuple[int, ...]]:
    network = resnet.ResNet(depth, width, last=last)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda key, x: network.init(key, x, train=False), jax.random.key(0), image)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables).items()}


def _rule(path, shape, layout) -> rules.Rule:
    _, *modules, leaf = path
    name = _name_in_transformers(*modules) if layout.transformers else re.sub(r"_(\d)", r".\1", ".".join(modules))
    key, target = f"{layout.prefix}{name}.{_LEAVES[leaf]}", "/".join(path)
    if leaf != "kernel":
        return rules.Rule(target, {key: shape})
    height, width, inputs, outputs = shape
    return rules.Rule(target, {key: (outputs, inputs, height, width)}, rules.hwio)


def _name_in_transformers(*modules) -> str:
    """Name of a module, given as `conv1` or as a block `layer1_0` and its part `conv1` or `downsample_1`."""
    *block, part = modules
    part, number = re.fullmatch(r"([a-z]+)_?(\d)", part).groups()
    if part == "downsample":
        part = ("conv", "bn")[int(number)]
        within = "shortcut"
    else:
        within = f"layer.{int(number) - 1}"
    sort = {"conv": "convolution", "bn": "normalization"}[part]
    if not block:
        return f"embedder.embedder.{sort}"
    layer, place = re.fullmatch(r"layer(\d)_(\d+)", block[0]).groups()
    return f"encoder.stages.{int(layer) - 1}.layers.{place}.{within}.{sort}"
