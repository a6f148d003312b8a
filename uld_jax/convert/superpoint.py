"""The published SuperPoint checkpoint (Magic Leap) to the parameters of `uld_jax.models.superpoint.SuperPoint`.

The file is a PyTorch or safetensors state dict of 24 entries, or has them under `state_dict` or behind `module.`:

    NAME.weight (O,I,k,k)  NAME.bias (O)      a convolution

  conv1a (1 to 64 channels)  conv1b conv2a conv2b (64)  conv3a (to 128)  conv3b conv4a conv4b (128)      k = 3
  convPa convDa (128 to 256)    k = 3
  convPb (256 to 65)  convDb (256 to 256)    k = 1
"""

from uld_jax.convert import rules
from uld_jax.models.superpoint import DESCRIPTOR_SIZE


def convert(entries: rules.Entries, *, where: str, width: int = 64, size: int = DESCRIPTOR_SIZE):
    """Convert the entries to the parameters of a SuperPoint of `width` for descriptors of `size`.

    Raises:
      UserError: entries that do not fit.
    """
    if entries and all(key.startswith("module.") for key in entries):
        entries = {key.removeprefix("module."): value for key, value in entries.items()}
    made = []
    for name, (before, after, side) in _layers(width, size).items():
        made += [
            rules.Rule(f"{name}/kernel", {f"{name}.weight": (after, before, side, side)}, rules.hwio),
            rules.Rule(f"{name}/bias", {f"{name}.bias": (after,)}),
        ]
    return rules.apply(made, entries, where=where)


def _layers(width, size) -> dict[str, tuple[int, int, int]]:
    """Input channels, output channels and kernel side of every convolution."""
    double, wide = 2 * width, 4 * width
    return {
        "conv1a": (1, width, 3),
        "conv1b": (width, width, 3),
        "conv2a": (width, width, 3),
        "conv2b": (width, width, 3),
        "conv3a": (width, double, 3),
        "conv3b": (double, double, 3),
        "conv4a": (double, double, 3),
        "conv4b": (double, double, 3),
        "convPa": (double, wide, 3),
        "convPb": (wide, 65, 1),
        "convDa": (double, wide, 3),
        "convDb": (wide, size, 1),
    }
