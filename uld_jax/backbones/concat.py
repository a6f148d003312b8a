"""Several backbones used as one, such as DINOv2 beside Stable Diffusion.

    uld train --config=zeroshot:preset=small,backbone=dinov2.Dinov2+stable_diffusion.StableDiffusion \
        --config.weights.dinov2=weights/dino --config.weights.stable_diffusion=weights/sd15 \
        --config.zeroshot.backbone_kwargs.dinov2.image_size=224 ...
"""

import dataclasses
import math
from typing import Any

import jax

from uld_jax.backbones import Backbone, Spec, prepared


@dataclasses.dataclass(frozen=True)
class ConcatBackbone:
    """The maps of all parts, named `<part>/<map>`.

    The user of the maps combines them: ZeroShot gives each part the same weight, however many maps it has; an
    aggregator learns the weight of each map.

    Attributes:
      parts: (name, backbone) of each part.
    """

    parts: tuple[tuple[str, Backbone], ...]

    @property
    def spec(self) -> Spec:
        """The maps of all parts, with strides in pixels of a part's resized image. Raises the errors of the parts."""
        specs = [(name, part.spec) for name, part in self.parts]
        taps = tuple(tap._replace(name=f"{name}/{tap.name}") for name, spec in specs for tap in spec.taps)
        multiple = math.lcm(*[spec.size_multiple for _, spec in specs])
        return Spec("+".join(name for name, _ in specs), taps, multiple, "+".join(s.fingerprint for _, s in specs))

    def load(self) -> dict[str, Any]:
        """Load the weights of each part by name."""
        return {name: part.load() for name, part in self.parts}

    def prepare(self, frozen) -> dict[str, Any]:
        """Prepare the weights of each part that computes something of them alone."""
        return {name: prepared(part, frozen[name]) for name, part in self.parts}

    def features(self, frozen, images, rng=None) -> dict[str, jax.Array]:
        """Images [B,H,W,3] uint8 to {"<part>/<map>": [B,h,w,C] float32}; sides differ between parts."""
        keys = [None if rng is None else jax.random.fold_in(rng, i) for i in range(len(self.parts))]
        return {
            f"{name}/{tap}": values
            for (name, part), key in zip(self.parts, keys, strict=True)
            for tap, values in part.features(frozen[name], images, key).items()
        }
