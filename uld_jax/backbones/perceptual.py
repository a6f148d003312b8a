"""Weights of the VGG16 that measures a generated image: converted or random ones."""

import functools
import logging

from uld_jax import weights
from uld_jax.models import vgg


def load(kind: str, folder: str | None, width: int, channels: int = 3):
    """Load the weights of a VGG16 (`models/vgg.py`).

    Args:
      kind: `vgg16` or `vgg16_colorization`, as in `uld convert`.
      folder: folder of converted weights; without one, He-normal random weights of a fixed seed are drawn, and the log
        says so.
      width: channels in the first block of the random network; 64 is VGG16, less is a narrow copy.
      channels: channels of the random network's input.
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
