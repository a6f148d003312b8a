"""LEAD's networks as a backbone: dense features learned from one's own images (Karmali et al., WACV 2022).

uld train --config=configs/lead.py ... --workdir=RUN
uld convert --kind=lead --src=RUN --dst=weights/lead          # or --src=RUN:byol, the first stage
uld train --config=duld:preset=small,backbone=lead.Lead --config.weights.lead=weights/lead ...
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from uld_jax import weights
from uld_jax.backbones import Spec, Tap
from uld_jax.errors import UserError
from uld_jax.models import lead_net, resnet
from uld_jax.models.lead_net import LEVELS
from uld_jax.ops import resampling

COMPACT = "compact"
STRIDE = 4
TYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Lead:
    """Maps of a finished stage of LEAD, over the whole image.

    Attributes:
      folder: folder converted from a run (`uld convert --kind=lead`).
      taps: names of maps: `compact` after the second stage, `layer1` to `layer4` of the encoder; () for `compact` if
        there is one, and else the four maps, LEAD's hypercolumn.
      image_size: side in pixels of the whole image as the network sees it, a multiple of 32; 0 for about the scale of
        its training.
      compute: type of the arithmetic, `float32` or `bfloat16`.
    """

    folder: str = ""
    taps: tuple[str, ...] = ()
    image_size: int = 0
    compute: str = "float32"

    def __post_init__(self):
        object.__setattr__(self, "taps", tuple(self.taps))  # configs hold lists; a frozen value is hashed
        known = (COMPACT, *LEVELS)
        if len(set(self.taps)) < len(self.taps) or set(self.taps) - set(known):
            raise UserError(f"taps of Lead are {self.taps}; use {', '.join(known)}, each once at most, or () for all")
        if self.image_size < 0 or self.image_size % 32:
            raise UserError(f"image_size of Lead is {self.image_size}; use a multiple of 32, or 0")
        if self.compute not in TYPES:
            raise UserError(f"compute of Lead is {self.compute!r}; use {' or '.join(TYPES)}")

    @property
    def spec(self) -> Spec:
        """The maps, with strides in pixels of the resized image. Raises UserError when there are no weights."""
        source = self._source
        widest = source["width"] * (4 if source["depth"] >= 50 else 1)
        channels = {name: widest * 2**i for i, name in enumerate(LEVELS)} | {COMPACT: source.get("fpn", {}).get("size")}
        strides = {name: STRIDE * 2**i for i, name in enumerate(LEVELS)} | {COMPACT: STRIDE}
        taps = tuple(Tap(name, channels[name], strides[name]) for name in self._names(source))
        # The fingerprint depends on the weights, not on the path of their folder.
        setting = dataclasses.replace(self, folder=source["sha256"])
        return Spec("lead", taps, 1, f"lead-1 {setting}")

    def load(self) -> Any:
        """Load the converted weights. Raises UserError when there are none."""
        found = weights.load(self.folder, "lead")
        return {name: found[name] for name in ("params", "model_state")}

    def features(self, frozen, images, rng=None) -> dict[str, jax.Array]:
        """Images [B,S,S,3] uint8 to {name: [B,s,s,C] float32}; UserError where they are not square."""
        del rng
        if images.shape[1] != images.shape[2]:
            raise UserError(f"Lead got images of {images.shape[1]} x {images.shape[2]} pixels; use square ones")
        source = self._source
        names, side = self._names(source), _side(source, self.image_size)
        seen = resampling.scaled(images, (side, side)) / 255
        dtype = jnp.dtype(self.compute)
        variables = lambda part: {"params": frozen["params"][part], **frozen["model_state"][part]}
        encoder = resnet.ResNet(source["depth"], source["width"], dtype=dtype)
        colours = resnet.IMAGENET if source["colours"] == "imagenet" else resnet.CELEBA
        maps = encoder.apply(variables("encoder"), resnet.normalize(seen, colours), train=False)
        if COMPACT in names:
            fpn = lead_net.FeaturePyramid(**source["fpn"], dtype=dtype)
            maps[COMPACT] = fpn.apply(variables("fpn"), maps, train=False)
        return {name: maps[name].astype(jnp.float32) for name in names}

    def _names(self, source) -> tuple[str, ...]:
        compact = "fpn" in source
        if COMPACT in self.taps and not compact:
            raise UserError(
                f"taps of Lead name `compact`, and config.weights.lead={self.folder} is of the first stage; convert "
                "the second one, or use layer1 to layer4"
            )
        return self.taps or ((COMPACT,) if compact else LEVELS)

    @property
    def _source(self) -> dict[str, Any]:
        return weights.read_source(self.folder, "lead")


def _side(source, image_size: int) -> int:
    """Side in pixels of the image as the network sees it.

    >>> _side(dict(image_size=96, zoom=96 / 136), 0), _side(dict(image_size=64, zoom=0.8), 64)
    (128, 64)
    """
    return image_size or max(32, int(source["image_size"] / source["zoom"] / 32 + 0.5) * 32)
