"""SuperPoint as a generic keypoint detector and a backbone, from which Mallis et al. start their self-training."""

import dataclasses

import jax
import jax.numpy as jnp

from uld_jax import weights
from uld_jax.backbones import Detected, Spec, Tap
from uld_jax.errors import UserError
from uld_jax.models import superpoint
from uld_jax.ops import color

GRAYS = ("rgb", "bgr_swapped")


@dataclasses.dataclass(frozen=True)
class SuperPoint:
    """SuperPoint: scores by a softmax over a cell's 64 pixels and its dustbin; descriptors on a grid of 8 pixels.

    Attributes:
      folder: folder of converted weights (`uld convert --kind=superpoint`).
      gray: `rgb` for the luma 0.299 R + 0.587 G + 0.114 B that the network was trained on; `bgr_swapped` for
        0.114 R + 0.587 G + 0.299 B, which the published code of Mallis et al. computes from its RGB images.
    """

    folder: str = ""
    gray: str = "rgb"

    def __post_init__(self):
        if self.gray not in GRAYS:
            raise UserError(f"gray of SuperPoint is {self.gray!r}; use {' or '.join(GRAYS)}")

    @property
    def spec(self) -> Spec:
        tap = Tap("descriptors", superpoint.DESCRIPTOR_SIZE, superpoint.CELL)
        # The fingerprint depends on the weights, not on the path of their folder.
        source = weights.read_source(self.folder, "superpoint") if self.folder else {}
        setting = dataclasses.replace(self, folder=source.get("sha256", ""))
        return Spec("superpoint", (tap,), superpoint.CELL, f"superpoint-1 {setting}")

    def load(self):
        """Load the converted weights. Raises UserError when there are none."""
        return weights.load(self.folder, "superpoint")

    def detect(self, frozen, images) -> Detected:
        """Detect in images [B,H,W,3], float in 0..1.

        If a side is no multiple of 8, pixels beyond the last whole cell score 0 and have no descriptors, as in the
        published code, whose map of a 218 x 178 image is 216 x 176. Raises UserError for sides below 8.
        """
        found = superpoint.SuperPoint().apply({"params": frozen}, self._gray(images.astype(jnp.float32)))
        score = superpoint.scores(found.logits)
        rest = [(0, side - seen) for side, seen in zip(images.shape[1:3], score.shape[1:], strict=True)]
        return Detected(jnp.pad(score, ((0, 0), *rest)), found.descriptors)

    def features(self, frozen, images, rng=None) -> dict[str, jax.Array]:
        """Images [B,H,W,3] uint8 to {"descriptors": [B,H/8,W/8,256] float32}. UserError for other sides."""
        del rng
        if images.shape[1] % superpoint.CELL or images.shape[2] % superpoint.CELL:
            raise UserError(
                f"SuperPoint got images of {images.shape[1]} x {images.shape[2]} pixels; "
                f"as a backbone it needs sides that are multiples of {superpoint.CELL}"
            )
        return {"descriptors": self.detect(frozen, images.astype(jnp.float32) / 255).descriptors}

    def _gray(self, images):
        return color.to_grey(images if self.gray == "rgb" else images[..., ::-1])
