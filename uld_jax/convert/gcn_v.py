"""The published GCN-V checkpoint (learn-to-cluster, MS-Celeb-1M) to the parameters of `uld_jax.models.gcn_v.GcnV`.

The file is a PyTorch or safetensors state dict of 7 entries, or has them under `state_dict` or behind `module.`:

    conv1.weight (2D,H)            used as x @ weight, so not transposed: rows 0..D-1 act on x, the others on Âx
    conv1.bias (H)
    classifier.0.{weight (H,H), bias (H)}     linear layers: a kernel is the transposed weight
    classifier.1.weight (H)                   slopes of PReLU
    classifier.2.{weight (1,H), bias (1)}

with D = 256, H = 512. `classifier.0` becomes `classifier_0`.
"""

import numpy as np

from uld_jax.convert import rules
from uld_jax.models.gcn_v import DESCRIPTOR_SIZE, HIDDEN


def convert(entries: rules.Entries, *, where: str, size: int = DESCRIPTOR_SIZE, hidden: int = HIDDEN):
    """Convert the entries to the parameters of a GcnV for descriptors of `size`.

    Raises:
      UserError: entries that do not fit.
    """
    if entries and all(key.startswith("module.") for key in entries):
        entries = {key.removeprefix("module."): value for key, value in entries.items()}
    made = [
        rules.Rule("conv1/kernel", {"conv1.weight": (2 * size, hidden)}),
        rules.Rule("conv1/bias", {"conv1.bias": (hidden,)}),
        rules.Rule("classifier_0/kernel", {"classifier.0.weight": (hidden, hidden)}, np.transpose),
        rules.Rule("classifier_0/bias", {"classifier.0.bias": (hidden,)}),
        rules.Rule("classifier_1/slope", {"classifier.1.weight": (hidden,)}),
        rules.Rule("classifier_2/kernel", {"classifier.2.weight": (1, hidden)}, np.transpose),
        rules.Rule("classifier_2/bias", {"classifier.2.bias": (1,)}),
    ]
    return rules.apply(made, entries, where=where)
