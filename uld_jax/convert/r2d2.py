"""Published R2D2 checkpoints (Revaud et al.) to the parameters of `uld_jax.models.r2d2.R2D2`.

The file is {net: the constructor's call as text, state_dict: 46 entries}, all behind `module.`; that of `faster2d2` has
PyTorch's older format and further entries about its training. A bare state dict is accepted too. `net` is not read, as
the entries' names and shapes determine the network:

    ops.N.{weight (O,I,k,k), bias (O)}                      nine convolutions, the positions N as in `models/r2d2.plan`
    ops.N+1.{running_mean (O), running_var (O)}             batch normalisation after all but the last, not affine
    ops.N+1.num_batches_tracked                             ignored
    clf.{weight (2,128,1,1), bias (2)}  sal.{weight (1,128,1,1), bias (1)}

With r = 1 / sqrt(running_var + 1e-5), a kernel becomes r weight and its bias r (bias - running_mean).

`r2d2_WASF_N16`, `r2d2_WAF_N16` and `faster2d2_WASF_N16` have 32 channels in the first convolution, `r2d2_WASF_N8_big`
has 48.
"""

import numpy as np

from uld_jax.convert import rules
from uld_jax.models.r2d2 import DESCRIPTOR_SIZE, plan

IGNORED = (r"ops[.]\d+[.]num_batches_tracked",)
EPSILON = 1e-5


def convert(entries: rules.Entries, *, where: str, size: int = DESCRIPTOR_SIZE):
    """Convert the entries to the parameters of an R2D2 for descriptors of `size`.

    Raises:
      UserError: entries that do not fit.
    """
    if entries and all(key.startswith("module.") for key in entries):
        entries = {key.removeprefix("module."): value for key, value in entries.items()}
    # The fast network pools at the position of the plain network's fourth convolution.
    fast = "ops.9.weight" not in entries and "ops.10.weight" in entries
    first = entries.get("ops.0.weight")
    width = 32 if first is None or not first.shape else max(first.shape[0], 1)
    layers, made, before = plan(width, fast, size), [], 3
    for layer in layers:
        shape = (layer.features, before, layer.kernel, layer.kernel)
        made += _rules(layer.name, shape, normalized=layer is not layers[-1])
        before = layer.features
    for head, outputs in (("clf", 2), ("sal", 1)):
        made += _rules(head, (outputs, size, 1, 1), normalized=False)
    return rules.apply(made, entries, where=where, ignored=IGNORED)


def _rules(name, shape, normalized) -> list[rules.Rule]:
    key = name.replace("_", ".")
    weight, bias, outputs = {f"{key}.weight": shape}, {f"{key}.bias": shape[:1]}, shape[:1]
    if not normalized:
        return [rules.Rule(f"{name}/kernel", weight, rules.hwio), rules.Rule(f"{name}/bias", bias)]
    norm = f"ops.{int(key.removeprefix('ops.')) + 1}"
    mean, var = {f"{norm}.running_mean": outputs}, {f"{norm}.running_var": outputs}
    return [
        rules.Rule(f"{name}/kernel", weight | var, _scaled),
        rules.Rule(f"{name}/bias", bias | mean | var, _shifted),
    ]


def _scaled(weight: np.ndarray, var: np.ndarray) -> np.ndarray:
    return rules.hwio(weight) / np.sqrt(var + EPSILON)


def _shifted(bias: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    return (bias - mean) / np.sqrt(var + EPSILON)
