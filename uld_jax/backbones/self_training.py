"""The first network of self-training as a backbone: descriptors learned from one's own images.

Mallis et al., NeurIPS 2020, section 3.2. The backbone needs no published weights:

    uld train --config=configs/self_training.py ... --workdir=RUN
    uld convert --kind=self_training --src=RUN --dst=weights/st
    uld train --config=zeroshot:preset=small,backbone=self_training.SelfTraining \
        --config.weights.self_training=weights/st
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from uld_jax import weights
from uld_jax.backbones import Spec, Tap
from uld_jax.errors import UserError
from uld_jax.models.fan import CorrespondenceFAN
from uld_jax.ops import keypoints, resampling

TAPS = ("descriptors", "hourglass", "features")
TYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class SelfTraining:
    """Maps of a finished `self_training.Correspondence`, over the whole image.

    In training the network saw a central part of the frame. Here it sees the whole frame at the same scale: 80 pixels
    for a stage with 64 pixels and a zoom of 0.8. If the hourglass needs larger sides, the image's border is repeated
    around it, and the cells there are cut off again.

    Attributes:
      folder: folder converted from a run (`uld convert --kind=self_training`).
      taps: names of maps: `descriptors`, of length 1; `hourglass`, the last map that both heads share; `features`, the
        last hidden layer of the descriptors' head.
      image_size: side in pixels of the whole image as the network sees it; 0 for the scale of its training.
      compute: type of the arithmetic, `float32` or `bfloat16`.
    """

    folder: str = ""
    taps: tuple[str, ...] = ("descriptors", "hourglass")
    image_size: int = 0
    compute: str = "float32"

    def __post_init__(self):
        object.__setattr__(self, "taps", tuple(self.taps))  # configs hold lists; a frozen value is hashed
        if not self.taps or len(set(self.taps)) < len(self.taps) or set(self.taps) - set(TAPS):
            raise UserError(f"taps of SelfTraining are {self.taps}; use {', '.join(TAPS)}, each once at most")
        if self.image_size < 0:
            raise UserError(f"image_size of SelfTraining is {self.image_size}; use 0, or pixels such as 128")
        if self.compute not in TYPES:
            raise UserError(f"compute of SelfTraining is {self.compute!r}; use {' or '.join(TYPES)}")

    @property
    def spec(self) -> Spec:
        """The maps, with strides in pixels of the resized image. Raises UserError when there are no weights."""
        source = self._source
        channels = dict.fromkeys(TAPS, source["width"]) | dict(descriptors=source["descriptor_size"])
        taps = tuple(Tap(name, channels[name], source["downsample"]) for name in self.taps)
        # The fingerprint depends on the weights, not on the path of their folder.
        setting = dataclasses.replace(self, folder=source["sha256"])
        return Spec("self_training", taps, 1, f"self_training-1 {setting}")

    def load(self) -> Any:
        """Load the converted weights. Raises UserError when there are none."""
        return weights.load(self.folder, "self_training")["params"]

    def features(self, frozen, images, rng=None) -> dict[str, jax.Array]:
        """Images [B,S,S,3] uint8 to {"descriptors": [B,s,s,D] float32, ...}; UserError where they are not square."""
        del rng
        if images.shape[1] != images.shape[2]:
            raise UserError(f"SelfTraining got images of {images.shape[1]} x {images.shape[2]} pixels; use square ones")
        source = self._source
        network = CorrespondenceFAN(
            source["descriptor_size"],
            source["width"],
            source["depth"],
            source["downsample"],
            dtype=jnp.dtype(self.compute),
        )
        shown, seen = _sides(source, self.image_size)
        looked = resampling.scaled(images, (seen, seen), seen / shown) / 255
        out = network.apply({"params": frozen}, looked)
        maps = dict(out.taps, descriptors=keypoints.l2_normalize(out.descriptors), features=out.features)
        around, cells = (seen - shown) // 2 // network.downsample, shown // network.downsample
        inner = slice(around, around + cells)
        return {name: maps[name][:, inner, inner].astype(jnp.float32) for name in self.taps}

    @property
    def _source(self) -> dict[str, Any]:
        return weights.read_source(self.folder, "self_training")


def _sides(source, image_size: int) -> tuple[int, int]:
    """Sides in pixels of the resized image, and of the network's input, which has that image in its middle.

    >>> _sides(dict(image_size=64, zoom=0.8, downsample=2, depth=4), 0), _sides(dict(downsample=4, depth=4), 256)
    ((80, 96), (256, 256))
    """
    stride, multiple = source["downsample"], source["downsample"] * 2 ** source["depth"]
    wanted = image_size or source["image_size"] / source["zoom"]
    shown = max(1, int(wanted / (2 * stride) + 0.5)) * 2 * stride  # so that whole cells surround the image
    return shown, -(-shown // multiple) * multiple
