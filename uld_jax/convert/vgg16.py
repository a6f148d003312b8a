"""VGG16's 13 convolutions, from two publications, to {'conv1_1': {'kernel' HWIO, 'bias'}, ..., 'conv5_3': ...}.

ImageNet (`vgg16`): torchvision's state dict, as a PyTorch or safetensors file,

    features.N.weight [O,I,3,3]  features.N.bias [O]      N = 0 2 | 5 7 | 10 12 14 | 17 19 21 | 24 26 28

The classifier is ignored: `classifier.N.*` (torchvision), `pre_logits.fcN.*` and `head.fc.*` (timm).

Colourisation (`vgg16_colorization`; Larsson, Maire and Shakhnarovich 2017, as used by Jakab et al. 2018): the HDF5 file
`vgg16.caffemodel.h5`, for grey images. Its group `data` holds a group a layer, whose arrays have Caffe's numbers:

    data/convB_N/0 [O,I,3,3]       kernel; conv1_1 has one input channel
    data/convB_N/1 [O]             bias
    data/batch_convB_N/0 [O]       sum of means       m0
    data/batch_convB_N/1 [O]       sum of variances   m1
    data/batch_convB_N/2 [1]       weight of the sums m2

The batch normalisation, which has neither scale nor offset, goes into the convolution before it:

    s = sqrt(1e-5 + m1 / m2),  kernel / s,  (bias - m0 / m2) / s

If no layer of a file has a `batch_` group, the normalisation counts as folded in already. The fully connected `fc6` and
`fc7` with their `batch_` groups are ignored. PyTorch and safetensors files are read too, with the names joined by dots
(`conv1_1.0`), with or without `data.` before them.
"""

import re

import numpy as np

from uld_jax.convert import rules
from uld_jax.models import vgg

IGNORED_IMAGENET = (
    r"classifier[.][036][.](weight|bias)",  # torchvision
    r"pre_logits[.]fc[12][.](weight|bias)",  # timm
    r"head[.]fc[.](weight|bias)",  # timm
)
IGNORED_COLORIZATION = (r"fc[67][.][01]", r"batch_fc[67][.][012]")
_EPSILON = 1e-5  # epsilon of the batch normalisation


def layers(inputs: int, width: int = 64) -> dict[str, tuple[int, int]]:
    """Names of the convolutions, in order, with their input and output channels.

    >>> list(layers(3).items())[:3]
    [('conv1_1', (3, 64)), ('conv1_2', (64, 64)), ('conv2_1', (64, 128))]
    """
    out = {}
    for name in vgg.LAYERS:
        outputs = width * vgg.WIDTHS[int(name[0]) - 1]
        out[f"conv{name}"] = (inputs, outputs)
        inputs = outputs
    return out


def convert_imagenet(entries: rules.Entries, *, where: str, width: int = 64):
    """Convert the 13 convolutions of torchvision's `vgg16`; `width` is the channels of the first block.

    Raises UserError for entries that do not fit; `where` names the file in the message.
    """
    made, number = [], 0
    for name, (inputs, outputs) in layers(3, width).items():
        if name.endswith("_1") and number:
            number += 1  # the pooling between the blocks
        made.append(_kernel(name, f"features.{number}.weight", inputs, outputs))
        made.append(rules.Rule(f"{name}/bias", {f"features.{number}.bias": (outputs,)}))
        number += 2  # the convolution and its ReLU
    return rules.apply(made, entries, where=where, ignored=IGNORED_IMAGENET)


def convert_colorization(entries: rules.Entries, *, where: str, width: int = 64):
    """Convert the 13 convolutions of the colourisation network, with batch normalisation folded in.

    Raises UserError for entries that do not fit; `where` names the file in the message, and `width` is the channels of
    the first block.
    """
    if all(key.startswith("data.") for key in entries):
        entries = {key.removeprefix("data."): value for key, value in entries.items()}
    normalized = any(re.match(r"batch_conv", key) for key in entries)
    made = []
    for name, (inputs, outputs) in layers(1, width).items():
        bias = rules.Rule(f"{name}/bias", {f"{name}.1": (outputs,)})
        kernel = _kernel(name, f"{name}.0", inputs, outputs)
        if normalized:
            means = {f"batch_{name}.0": (outputs,)}
            spread = {f"batch_{name}.1": (outputs,), f"batch_{name}.2": (1,)}
            bias = bias._replace(sources=bias.sources | means | spread, transform=_folded_bias)
            kernel = kernel._replace(sources=kernel.sources | spread, transform=_folded_kernel)
        made += [kernel, bias]
    return rules.apply(made, entries, where=where, ignored=IGNORED_COLORIZATION)


def _kernel(name, key, inputs, outputs):
    return rules.Rule(f"{name}/kernel", {key: (outputs, inputs, 3, 3)}, rules.hwio)


def _folded_kernel(kernel, variances, weight):
    return rules.hwio(kernel) / np.sqrt(_EPSILON + variances / weight)


def _folded_bias(bias, means, variances, weight):
    return (bias - means / weight) / np.sqrt(_EPSILON + variances / weight)
