"""DINOv2 as a backbone: patch tokens of a vision transformer, coarse but cheap beside Stable Diffusion's features."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from uld_jax import weights
from uld_jax.backbones import Spec, Tap
from uld_jax.errors import UserError
from uld_jax.models import dinov2
from uld_jax.models.resnet import normalize

TYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Dinov2:
    """Patch tokens after chosen blocks, after the network's last normalisation; class and register tokens are dropped.

    Images are resized to sides that are multiples of 14 by the antialiased cubic filter, as in transformers, and
    normalised by ImageNet's mean and deviation. A cell of the maps is 14 pixels of the resized image, so `image_size`
    sets the resolution of the maps: 448 gives 32 x 32 cells.

    Attributes:
      folder: folder of converted weights (`uld convert --kind=dinov2`); size and variant are read from it.
      taps: blocks, counted from 0, or from the last if negative; each gives a map, named `block11` and so on.
      image_size: longer side of the resized image in pixels; 0: multiples of 14 nearest to the image's own sides.
      offset: offset in the interpolation of position embeddings (`models/dinov2.cubic_weights`): 0 as in transformers;
        0.1 as in the published code for the networks without registers.
      compute: type of the arithmetic, `float32` or `bfloat16`, which is several times faster on recent accelerators.
    """

    folder: str = ""
    taps: tuple[int, ...] = (-1,)
    image_size: int = 448
    offset: float = 0.0
    compute: str = "float32"

    def __post_init__(self):
        if not self.taps:
            raise UserError("taps of Dinov2 is empty; name one block or more, such as -1 for the last")
        if self.image_size and self.image_size < dinov2.PATCH:
            raise UserError(f"image_size of Dinov2 is {self.image_size}; use 0, or {dinov2.PATCH} or more, such as 448")
        if self.compute not in TYPES:
            raise UserError(f"compute of Dinov2 is {self.compute!r}; use {' or '.join(TYPES)}")

    @property
    def spec(self) -> Spec:
        """The maps, with strides in pixels of the resized image. Raises UserError when there are no weights."""
        source = weights.read_source(self.folder, "dinov2")
        taps = tuple(Tap(f"block{number}", source["width"], dinov2.PATCH) for number in self._blocks(source["blocks"]))
        # The fingerprint depends on the weights, not on the path of their folder.
        setting = dataclasses.replace(self, folder=source["sha256"])
        return Spec("dinov2", taps, 1, f"dinov2-1 {setting}")

    def load(self) -> Any:
        """Load the converted weights. Raises UserError when there are none."""
        return weights.load(self.folder, "dinov2")

    def features(self, frozen, images, rng=None) -> dict[str, jax.Array]:
        """Images [B,H,W,3] uint8 to {"block11": [B,h,w,C] float32}, h and w being the resized sides over 14."""
        del rng
        blocks = self._blocks(dinov2.depth(frozen))
        network = dinov2.of(frozen, taps=blocks, offset=self.offset, dtype=jnp.dtype(self.compute))
        x = images.astype(jnp.float32) / 255
        size = self._size(*images.shape[1:3])
        if size != images.shape[1:3]:
            x = jax.image.resize(x, (len(x), *size, 3), "cubic", antialias=True)
        maps = network.apply({"params": frozen}, normalize(x))
        return {f"block{number}": m.astype(jnp.float32) for number, m in zip(blocks, maps, strict=True)}

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Sides (height, width) of the resized image in pixels."""
        scale = self.image_size / max(height, width) if self.image_size else 1
        return tuple(max(1, int(side * scale / dinov2.PATCH + 0.5)) * dinov2.PATCH for side in (height, width))

    def _blocks(self, depth: int) -> tuple[int, ...]:
        blocks = tuple(number % depth for number in self.taps if -depth <= number < depth)
        if len(set(blocks)) < len(self.taps):
            raise UserError(
                f"taps of Dinov2 are {self.taps}; name blocks from 0 to {depth - 1}, or -1 for the last, each once"
            )
        return blocks
