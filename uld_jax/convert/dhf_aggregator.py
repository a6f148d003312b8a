"""The published aggregation network of diffusion hyperfeatures to the parameters of `uld_jax.models.aggregator`.

The file is a PyTorch or safetensors state dict, or has it under `aggregation_network`, beside step, settings and
optimiser, as the published trainer writes it:

    mixing_weights (T*L)                                     timesteps first, as in the network's order
    bottleneck_layers.l.0.CONV.weight (O,I,k,k)              l = 0 to L-1, the taps; CONV: conv1 conv2 conv3 shortcut
    bottleneck_layers.l.0.CONV.norm.{weight,bias} (O)        a group normalisation of 32 groups

conv1 takes C channels to P/4, conv2 (3 x 3) keeps them, conv3 takes them to P; shortcut takes C to P, and is left out
if C = P. P is 384, and C of Stable Diffusion's 12 taps is 1280 (six), 640 (three) and 320 (three). P, L, T and every
C are read from the shapes, so that networks trained on other taps convert too.

The network was trained with SUPERVISION: on the annotated keypoints of SPair-71k. A method that starts from it is no
longer unsupervised.
"""

import re

import numpy as np

from uld_jax.convert import rules

_CONVS = {"conv1": "norm1", "conv2": "norm2", "conv3": "norm3", "shortcut": "norm_shortcut"}


def convert(entries: rules.Entries, *, where: str):
    """Convert the entries to the parameters of an `Aggregator`.

    Raises:
      UserError: entries that do not fit.
    """
    taps = 1 + max((int(m[1]) for key in entries if (m := re.match(r"bottleneck_layers[.](\d+)[.]", key))), default=11)
    projection = _channels(entries, "bottleneck_layers.0.0.conv3.weight", 0, 384)
    narrow = projection // 4
    mixing = entries.get("mixing_weights", np.ones(taps)).shape
    # If the length is no whole number of timesteps, the error names a length that is.
    count = taps * max(1, mixing[0] // taps) if mixing else taps
    made = [rules.Rule("mixing", {"mixing_weights": (count,)}, lambda x: x.reshape(-1, taps))]
    for tap in range(taps):
        before = f"bottleneck_layers.{tap}.0"
        width = _channels(entries, f"{before}.conv1.weight", 1, 1)
        shapes = {
            "conv1": (narrow, width, 1, 1),
            "conv2": (narrow, narrow, 3, 3),
            "conv3": (projection, narrow, 1, 1),
            "shortcut": (projection, width, 1, 1),
        }
        for conv, shape in shapes.items():
            if conv == "shortcut" and width == projection:
                continue
            target, source = f"bottleneck_{tap}", f"{before}.{conv}"
            made += [
                rules.Rule(f"{target}/{conv}/kernel", {f"{source}.weight": shape}, rules.hwio),
                rules.Rule(f"{target}/{_CONVS[conv]}/scale", {f"{source}.norm.weight": shape[:1]}),
                rules.Rule(f"{target}/{_CONVS[conv]}/bias", {f"{source}.norm.bias": shape[:1]}),
            ]
    return rules.apply(made, entries, where=where)


def facts(converted):
    """The facts about the network for `source.json`, which can be read without the weights.

    >>> facts({"mixing": np.ones((1, 1)), "bottleneck_0": {"conv1": {"kernel": np.ones((1, 1, 320, 96))}}})
    {'widths': [320], 'timesteps': 1, 'projection': 384, 'supervised': True}
    """
    timesteps, taps = converted["mixing"].shape
    kernels = [converted[f"bottleneck_{tap}"]["conv1"]["kernel"] for tap in range(taps)]
    return {
        "widths": [kernel.shape[2] for kernel in kernels],
        "timesteps": timesteps,
        "projection": 4 * kernels[0].shape[3],
        "supervised": True,
    }


def _channels(entries, key, axis, default):
    """Size of a kernel's axis; the default if there is no such kernel, for which the rules then raise an error."""
    found = entries[key].shape if key in entries else ()
    return found[axis] if len(found) == 4 else default
