"""Keypoints of a generic detector, which knows no object, at several scales: what self-training starts from.

Mallis et al., NeurIPS 2020, section 4: SuperPoint at three scales of the image, and greedy suppression over all.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.backbones import build
from uld_jax.errors import UserError
from uld_jax.methods.shared import View
from uld_jax.ops import keypoints, nms, views


class Detector(NamedTuple):
    """A generic keypoint detector and how it is used.

    Attributes:
      backbone: class below `uld_jax.backbones`.
      threshold: of its score, exclusive.
      nms: half the side of a keypoint's box, in pixels of the view; boxes must not overlap.
      scales: of the view.
      descriptors: of the `first` scale (published code), or of each keypoint's `own`.
    """

    backbone: str
    threshold: float
    nms: int
    scales: tuple[float, ...]
    descriptors: str

    def build(self, weights: Any = ()):
        """Return the backbone."""
        return build.backbone(self.backbone, "keypoints.detector", weights=weights)


# SuperPoint as the published code has it. R2D2's own detection is a pyramid of smaller and smaller images.
DETECTORS = {
    "superpoint": Detector("superpoint.SuperPoint", 0.1, 6, (1.0, 1.3, 1.6), "first"),
    "r2d2": Detector("r2d2.R2D2", 0.0, 2, (1.0, 0.84, 0.71), "own"),
    "corners": Detector("corners.Corners", 0.4, 3, (1.0,), "first"),
}


@dataclasses.dataclass(frozen=True)
class Generic:
    """Which generic detector is used, and how.

    Attributes:
      detector: `superpoint`, `r2d2` (both need converted weights, `config.weights.superpoint`, `.r2d2`), `corners`,
        which needs none; or `auto`, the first of these that can be used, which the log names.
      scales: at 1.3 the view shows 1 / 1.3 of its part of the frame, enlarged; at 0.7 all of it in 0.7 times as many
        pixels. () for the detector's own (SuperPoint: 1, 1.3, 1.6 in section 4; 1 alone in the extended code).
      threshold: of the detector's score; below 0 for its own (SuperPoint: 0.1; 0.15 in the extended code).
    """

    detector: Literal["auto", "superpoint", "r2d2", "corners"] = "auto"
    scales: tuple[float, ...] = ()
    threshold: float = -1.0

    def __post_init__(self):
        if any(scale <= 0 for scale in self.scales):
            raise UserError(f"scales is {self.scales}; use numbers above 0, such as (1.0, 1.3, 1.6)")

    def name(self, weights: Any) -> str:
        """Return the detector's name; `auto` is the first whose folder of weights is given, else corners."""
        given = dict(weights)
        if self.detector != "auto":
            return self.detector
        return next((name for name in ("superpoint", "r2d2") if given.get(name)), "corners")

    def chosen(self, weights: Any) -> Detector:
        """Return the detector, its own values where none are set."""
        own = DETECTORS[self.name(weights)]
        return own._replace(
            threshold=own.threshold if self.threshold < 0 else self.threshold,
            scales=self.scales or own.scales,
        )


class Found(NamedTuple):
    """Keypoints of images, at all scales.

    Attributes:
      xy: [B,P,2] in pixels of the frame.
      score: [B,P].
      mask: [B,P] bool, False in empty slots.
      described: [B,P,D] descriptors of length 1; anything in empty slots.
    """

    xy: jax.Array
    score: jax.Array
    mask: jax.Array
    described: jax.Array


def detect(
    detector: Detector, backbone, frozen, images, *, frame_size: int, view: View, most: int, given=None
) -> Found:
    """Detect the keypoints of frames [B,F,F,3] uint8, at most `most` at each scale, and suppress the less sure of them.

    Args:
      detector: which, and how it is used.
      backbone: what it builds.
      frozen: the backbone's weights.
      images: the frames.
      frame_size: F, side of the frame in pixels.
      view: of the frame, at scale 1.
      most: keypoints of a scale; the surest are kept.
      given: keypoints (xy [B,P,2], mask [B,P]) that are used in place of detected ones, and described.
    """
    found, first = [], None
    for scale in detector.scales:
        scaled = _scaled(view, frame_size, scale)
        maps = backbone.detect(frozen, scaled.look(images))
        first = first or (scaled, maps)
        points = nms.points(nms.greedy(maps.score, detector.threshold, detector.nms), maps.score, most)
        described = _describe(backbone, maps, points.xy)
        found.append((scaled.to_frame(points.xy), points.score, points.mask, described))
    xy, score, mask, described = (jnp.concatenate(parts, 1) for parts in zip(*found, strict=True))
    scaled, maps = first
    if given is not None:
        xy, mask = given
        score = jnp.broadcast_to(1 - 1e-3 * jnp.arange(xy.shape[1]), mask.shape)
    cells = scaled.to_cells(xy, scaled.still(len(images)))
    if given is None and len(detector.scales) > 1:
        mask = nms.greedy_points(cells, score, mask, detector.nms)
    if given is not None or detector.descriptors == "first":
        described = _describe(backbone, maps, cells)
    return Found(xy, score, mask, described)


def _scaled(view: View, frame_size: int, scale: float) -> views.Geometry:
    """The view at a scale: enlarged beyond its borders, or made smaller, by whole multiples of 8 pixels."""
    if scale >= 1:
        return views.Geometry(frame_size, view.image_size, 1, view.zoom / scale)
    return views.Geometry(frame_size, max(8, 8 * round(view.image_size * scale / 8)), 1, view.zoom)


def _describe(backbone, maps, xy):
    """Descriptors [B,P,D] of length 1 at points in pixels of a view."""
    stride = backbone.spec.taps[0].stride
    return keypoints.l2_normalize(keypoints.sample(maps.descriptors, (xy + 0.5) / stride - 0.5))
