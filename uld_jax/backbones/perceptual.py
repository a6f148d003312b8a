"""VGG16 as the measure of a generated image: converted weights, or random ones."""

import functools
import logging

from uld_jax import weights
from uld_jax.models import vgg


def load(kind: str, folder: str | None, width: int, channels: int = 3):
    """Weights of a VGG16 (`models/vgg.py`).

    Args:
      kind: `vgg16` or `vgg16_colorization`, as in `uld convert`.
      folder: converted weights; without any, He-normal random ones of a fixed seed are drawn, and the log says so.
      width: of the random network; 64 is VGG16, less is a narrow copy.
      channels: of its input.
    """
    if folder:
        return weights.load(folder, kind)
    return _drawn(kind, width, channels)


@functools.cache
def _drawn(kind, width, channels):
    logging.warning(
        "no --config.weights.%s: the perceptual loss looks through a VGG16 with random weights, width %d", kind, width
    )
    return vgg.random_vgg16(0, width, channels)
