"""Corners, a keypoint detector without weights: points where the image changes in every direction.

Shi and Tomasi, "Good features to track", CVPR 1994: the smaller eigenvalue of the structure tensor is large where two
edges meet, and so at the corners of eyes and mouth, not along an edge. Descriptors are histograms of gradients
(`gradient.py`) at several scales, so that a keypoint is described by its surroundings.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from uld_jax.backbones import Detected, Spec, Tap
from uld_jax.backbones.gradient import GradientHistograms
from uld_jax.errors import UserError
from uld_jax.ops import color, keypoints


@dataclasses.dataclass(frozen=True)
class Corners:
    """Structure-tensor corners with gradient histograms.

    1) gradient of the luma, after a Gaussian of `smooth` pixels
    2) structure tensor: products of the gradient, averaged by a Gaussian of `window` pixels
    3) its smaller eigenvalue, square root, over the image's `quantile`, at most 1; 0 within `border` of the edge

    Attributes:
      smooth, window: standard deviations in pixels.
      quantile: quantile of the pixels' strength that scores 1, so that contrast does not matter.
      border: width in pixels of the image's border without keypoints, where windows would be cut.
      scales: scales of the descriptors, see `GradientHistograms`; all in one descriptor of length 1.
      stride: stride of the descriptors' grid in pixels; image sides must be multiples.
    """

    smooth: float = 1.0
    window: float = 1.5
    quantile: float = 0.99
    border: int = 4
    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    stride: int = 2

    def __post_init__(self):
        if self.smooth <= 0 or self.window <= 0 or not 0 < self.quantile <= 1 or self.border < 0:
            raise UserError("Corners needs smooth and window above 0, a quantile above 0 up to 1, and border from 0 on")

    @property
    def _histograms(self) -> GradientHistograms:
        return GradientHistograms(scales=self.scales, stride=self.stride)

    @property
    def spec(self) -> Spec:
        width = sum(tap.channels for tap in self._histograms.spec.taps)
        return Spec("corners", (Tap("descriptors", width, self.stride),), self.stride, f"corners-1 {self}")

    def load(self) -> Any:
        """Load nothing, as there are no weights."""
        return {}

    def detect(self, frozen, images) -> Detected:
        """Detect in images [B,H,W,3] in 0..1: scores [B,H,W] and descriptors [B,H/stride,W/stride,D]."""
        del frozen
        return Detected(jax.vmap(self._strength)(images), self._described(255 * images))

    def features(self, frozen, images, rng=None) -> dict[str, jax.Array]:
        """Images [B,H,W,3] uint8 to {"descriptors": [B,H/stride,W/stride,D]}, of length 1."""
        del frozen, rng
        return {"descriptors": self._described(images)}

    def _described(self, images):
        maps = self._histograms.features({}, images).values()
        return keypoints.l2_normalize(jnp.concatenate(list(maps), -1))

    def _strength(self, image):
        """Compute steps 1) to 3) for an image [H,W,3]."""
        blur = lambda x, sigma: color.gaussian_blur(x, sigma, max(1, round(3 * sigma)))
        padded = jnp.pad(blur(color.to_grey(image), self.smooth), ((1, 1), (1, 1), (0, 0)), mode="edge")
        dx, dy = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2, (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
        xx, xy, yy = jnp.moveaxis(blur(jnp.concatenate([dx * dx, dx * dy, dy * dy], -1), self.window), -1, 0)
        least = (xx + yy) / 2 - jnp.sqrt(((xx - yy) / 2) ** 2 + xy**2)
        strength = jnp.sqrt(jnp.maximum(least, 0))
        height, width = strength.shape
        rows, columns = jnp.arange(height), jnp.arange(width)
        away = lambda at, size: (at >= self.border) & (at < size - self.border)
        inside = away(rows, height)[:, None] & away(columns, width)
        strength = jnp.where(inside, strength, 0)
        # A strength below one grey level in a few hundred is noise of the camera.
        return jnp.clip(strength / jnp.maximum(jnp.quantile(strength, self.quantile), 0.004), 0, 1)
