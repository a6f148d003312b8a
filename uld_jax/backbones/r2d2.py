"""R2D2 as a generic keypoint detector and a backbone, the second initial detector of Mallis et al. (figure 2b)."""

import dataclasses

import jax
import jax.numpy as jnp

from uld_jax import weights
from uld_jax.backbones import Detected, Spec, Tap
from uld_jax.errors import UserError
from uld_jax.models import r2d2, resnet


@dataclasses.dataclass(frozen=True)
class R2D2:
    """R2D2 with a score, repeatability times reliability if both are high enough, and a descriptor for every pixel.

    The published detection also requires a pixel's repeatability to be the highest of 3 x 3; here the caller suppresses
    neighbours.

    Attributes:
      folder: folder of converted weights (`uld convert --kind=r2d2`); the variant is read from it.
      repeatability: least repeatability of a pixel with a score above 0; 0.7 in the published code.
      reliability: least reliability of a pixel with a score above 0; 0.7 in the published code.
    """

    folder: str = ""
    repeatability: float = 0.7
    reliability: float = 0.7

    @property
    def spec(self) -> Spec:
        # The fingerprint depends on the weights, not on the path of their folder.
        source = weights.read_source(self.folder, "r2d2") if self.folder else {}
        setting = dataclasses.replace(self, folder=source.get("sha256", ""))
        return Spec("r2d2", (Tap("descriptors", r2d2.DESCRIPTOR_SIZE, 1),), 1, f"r2d2-1 {setting}")

    def load(self):
        """Load the converted weights. Raises UserError when there are none."""
        return weights.load(self.folder, "r2d2")

    def detect(self, frozen, images) -> Detected:
        """Detect in images [B,H,W,3], float in 0..1; h = H and w = W.

        In the `faster2d2` variant the last row or column of an odd side scores 0 and has no descriptors.
        """
        network = r2d2.of(frozen)
        found = network.apply({"params": frozen}, resnet.normalize(images.astype(jnp.float32)))
        sure = (found.repeatability >= self.repeatability) & (found.reliability >= self.reliability)
        score = jnp.where(sure, found.repeatability * found.reliability, 0)
        rest = [(0, side - seen) for side, seen in zip(images.shape[1:3], score.shape[1:], strict=True)]
        return Detected(jnp.pad(score, ((0, 0), *rest)), found.descriptors)

    def features(self, frozen, images, rng=None) -> dict[str, jax.Array]:
        """Images [B,H,W,3] uint8 to {"descriptors": [B,H,W,128] float32}. UserError for odd sides in `faster2d2`."""
        del rng
        found = self.detect(frozen, images.astype(jnp.float32) / 255).descriptors
        if found.shape[:3] != images.shape[:3]:
            raise UserError(
                f"faster2d2 got images of {images.shape[1]} x {images.shape[2]} pixels; "
                "as a backbone it needs even sides"
            )
        return {"descriptors": found}
