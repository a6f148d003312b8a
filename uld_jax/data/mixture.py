"""Mixtures of annotated landmarks and random points (Mallis et al., NeurIPS 2020), to measure robustness to noise.

The supplement that defines the mixtures is not public. Here an image has at most `true` visible points of the chosen
landmarks, drawn at random, and enough random points from anywhere in the view that the share of true points is `share`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from uld_jax import files
from uld_jax.data.specs import Source, annotated
from uld_jax.errors import UserError
from uld_jax.ops import coordinates


class Mixture(NamedTuple):
    """Keypoints of images, in an order that does not tell which are true.

    Attributes:
      xy: [N,P,2] float64 `(x, y)` in pixels of the upright file; NaN in empty slots.
      true: [N,P] bool, True for annotated landmarks.
    """

    xy: np.ndarray
    true: np.ndarray


def mixture(source: Source, landmarks, true: int, share: float, *, zoom: float = 1.0, seed: int = 0) -> Mixture:
    """Draw annotated landmarks and random points for every image ("robustness to noise", section 4.1).

    An image with n <= `true` true points gets n (1 - share) / share random ones; a fraction of a point becomes a whole
    point with that probability. The true points of an image are the same for every share.

    Args:
      source: annotated images.
      landmarks: [C] numbers of the landmarks that true points are drawn from; hidden landmarks are not drawn.
      true: number of true points of an image, at most.
      share: share of true points among all points of an image, above 0 up to 1.
      zoom: central fraction of the frame that holds all points; random points are uniform over the part of the image
        in it.
      seed: seed of both draws.

    Raises:
      UserError: no annotation, or a number or share that cannot be.

    >>> from uld_jax.data import open_source
    >>> faces = open_source("synthetic", "train", frame_size=40, rows=16)
    >>> found = mixture(faces, range(15), true=5, share=0.5)
    >>> found.xy.shape, bool((found.true.sum(1) == 5).all())
    ((16, 10, 2), True)
    """
    known = annotated(source) & (True if source.visible is None else source.visible)
    landmarks = np.asarray(list(landmarks), int)
    if not 1 <= true <= len(landmarks):
        raise UserError(
            f"{true} true points cannot be drawn from {len(landmarks)} landmarks; use 1 to {len(landmarks)}"
        )
    if not 0 < share <= 1:
        raise UserError(f"the share of true points is {share:g}; use a share above 0, up to 1")
    low, high = _shown(source, zoom)
    known = known & ((source.landmarks >= low[:, None]) & (source.landmarks <= high[:, None])).all(-1)
    rows, count = len(source), slots(true, share)
    xy, is_true = np.full((rows, count, 2), np.nan), np.zeros((rows, count), bool)
    for row in range(rows):
        first, second = (np.random.default_rng([seed, row, draw]) for draw in range(2))
        some = landmarks[known[row, landmarks]]
        some = first.permutation(some)[:true]
        others = min(int(len(some) * (1 - share) / share + second.random()), count - len(some))
        points = np.concatenate([source.landmarks[row, some], second.uniform(low[row], high[row], (others, 2))])
        order = second.permutation(len(points))
        xy[row, : len(points)], is_true[row, : len(points)] = points[order], order < len(some)
    return Mixture(coordinates.frame_to_file(xy, source.frame_maps), is_true)


def _shown(source: Source, zoom: float) -> tuple[np.ndarray, np.ndarray]:
    """First and last `(x, y)` [N,2] of each image within the central fraction `zoom` of the frame, in frame pixels."""
    side, margin = source.frame_size, source.frame_size * (1 - min(zoom, 1)) / 2
    sizes = source.file_sizes[:, None, ::-1]
    corners = np.concatenate([np.zeros_like(sizes), sizes], 1) - 0.5
    low, high = np.moveaxis(coordinates.file_to_frame(corners, source.frame_maps), 1, 0)
    return np.maximum(low, margin - 0.5), np.minimum(high, side - margin - 0.5)


def slots(true: int, share: float) -> int:
    """Count the slots P that hold the mixture of any image."""
    return true + math.ceil(true * (1 - share) / share - 1e-9)


def write_points(path, names: Sequence[str], xy) -> None:
    """Write points [N,P,2] of files, NaN for none, as the csv `file,x0,y0,...` that `config.keypoints.points` names."""
    header = ["file", *(f"{axis}{i}" for i in range(xy.shape[1]) for axis in "xy")]
    cell = lambda value: f"{value:.3f}" if np.isfinite(value) else ""
    rows = ([name, *map(cell, points.ravel())] for name, points in zip(names, xy, strict=True))
    files.write(path, files.csv_text([header, *rows]))
