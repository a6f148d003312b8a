"""Two checks of landmarks without annotation: stability under rotation and scale, and degenerate landmarks."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.clustering.assignment import linear_sum_assignment
from uld_jax.evaluation.missing import known_mean
from uld_jax.ops import warp

STABILITY_SIDE = 128  # errors are in pixels of an image of this side
CONSTANT = 0.005  # share of the frame's side
COINCIDENT = 0.01  # share of the frame's side


class LandmarkWarning(UserWarning):
    """A warning of landmarks without information of their own: constant, coincident or never found."""


class Stability(NamedTuple):
    """Result of `stability`.

    Attributes:
      px: mean of `per_landmark` over the landmarks that were counted, in pixels at 128 px; NaN if none was.
      per_landmark: [K] float64, mean distance over the images on which the landmark was counted; NaN for none.
      counted: [K] int, images on which the landmark was counted.
      protocol: what the number is, such as `turned_15_px_128`, or `turned_15_scaled_0.0375_px_128`.
    """

    px: float
    per_landmark: np.ndarray
    counted: np.ndarray
    distances: np.ndarray
    protocol: str


@jax.jit
def _turned_views(key, index, images, *, rotation, scale, clip):
    """Views [B,F,F,3] uint8 of images under one random similarity each, and the warps."""

    def view(i, image):
        a = warp.random_warp(jax.random.fold_in(key, i), rotation=rotation, scale=scale, clip=clip)
        pixels = warp.warp_image(a, image.astype(jnp.float32), image.shape[:2])
        return a, jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)

    return jax.vmap(view)(index, images)


def stability(
    predict_fn: Callable,
    read: Callable,
    count: int,
    *,
    seed: int = 0,
    batch_size: int = 32,
    rotation: float = 15.0,
    max_rotation: float = 40.0,
    scale: float = 0.0,
) -> Stability:
    """Measure the distance of the landmarks of a turned image from the turned landmarks of the image.

      e_k = |Psi_k(A x) - A Psi_k(x)|,      A a random similarity about the image's centre, one an image

    (Consistency of Sanchez & Tzimiropoulos, NeurIPS 2019, in pixels at 128 px; also Awan et al., "stability analysis",
    and Tourani et al., CVPR 2024, section 8.) As in these papers the distance is averaged over images for each landmark
    and then over landmarks, so that a landmark that is rarely found has the weight of any other. If the turned frame
    reaches beyond the image, the border is repeated. A landmark counts on an image if it was found in both views and A
    moves it to a place inside the frame. A detector whose points never move has a large error.

    Args:
      predict_fn: function [B,F,F,3] uint8 -> (xy [B,K,2] in pixels of the frame, score [B,K], 0 = missing). It always
        sees `batch_size` images: the last batch is filled up with copies of its last image, which are not counted.
      read: function from the numbers of images [B] to these, [B,F,F,3] uint8 square frames.
      count: number of images.
      seed: seed of the similarities; image i has the same one for any batch size.
      batch_size: images a call.
      rotation: standard deviation in degrees of a normal distribution cut off at `max_rotation`.
      max_rotation: largest angle in degrees.
      scale: standard deviation of the logarithm of the size; 0 in the published measure.

    Raises:
      ValueError: images that are not square uint8 frames, or none.
    """
    if not count:
        raise ValueError("stability takes one image or more")
    clip = max_rotation / rotation if rotation > 0 else 3.0
    key = jax.random.key(seed)
    errors = []
    for start in range(0, count, batch_size):
        real = min(batch_size, count - start)
        index = np.minimum(np.arange(start, start + batch_size), count - 1)
        batch = np.asarray(read(index))
        if batch.ndim != 4 or batch.shape[1] != batch.shape[2] or batch.dtype != np.uint8:
            raise ValueError(f"stability takes [B,F,F,3] uint8 images, not {batch.dtype} {batch.shape}")
        side = batch.shape[1]
        size = (side, side)
        a, views = _turned_views(key, index, batch, rotation=rotation, scale=scale, clip=clip)
        xy, score = (np.asarray(v) for v in predict_fn(batch))
        turned_xy, turned_score = (np.asarray(v) for v in predict_fn(np.asarray(views)))
        expected = np.asarray(warp.points_to_view(a, jnp.asarray(xy, jnp.float32), size, size))
        inside = ((expected >= -0.5) & (expected <= side - 0.5)).all(-1)
        counts = (score > 0) & (turned_score > 0) & inside
        distance = np.linalg.norm(turned_xy - expected, axis=-1) * (STABILITY_SIDE / side)
        errors.append(np.where(counts, distance, np.nan)[:real])
    errors = np.concatenate(errors).astype(np.float64)
    per_landmark, counted = known_mean(errors, 0), np.isfinite(errors).sum(0)
    protocol = f"turned_{rotation:g}" + (f"_scaled_{scale:g}" if scale else "") + f"_px_{STABILITY_SIDE}"
    return Stability(float(known_mean(per_landmark)), per_landmark, counted, errors, protocol)


def mirrored_distances(predict_fn: Callable, read: Callable, xy, score, *, batch_size: int = 32) -> np.ndarray:
    """Measure how far the landmarks of mirrored images lie from the mirrored landmarks, in pixels of an image of 128.

    A landmark of the left side should be found as its partner of the right side. Partners are those with the least mean
    distance over the images, one for each landmark (a linear assignment), because nothing else tells sides.

    Args:
      predict_fn, read, batch_size: as in `stability`.
      xy: [N,K,2] landmarks of the images, in pixels of the frame.
      score: [N,K] their confidences, 0 = missing.

    Returns:
      [N,K] float64; NaN where the landmark or its partner was not found.
    """
    xy, score, count = np.asarray(xy, np.float64), np.asarray(score), len(xy)
    parts = []
    for start in range(0, count, batch_size):
        index = np.minimum(np.arange(start, start + batch_size), count - 1)
        batch = np.asarray(read(index))
        side = batch.shape[2]
        other, other_score = (np.asarray(v, np.float64) for v in predict_fn(np.ascontiguousarray(batch[:, :, ::-1])))
        other = np.stack([side - 1 - other[..., 0], other[..., 1]], -1)
        both = (score[index] > 0)[:, :, None] & (other_score > 0)[:, None, :]
        distance = np.linalg.norm(xy[index][:, :, None] - other[:, None], axis=-1) * (STABILITY_SIDE / side)
        parts.append(np.where(both, distance, np.nan)[: count - start])
    distance = np.concatenate(parts)
    mean = known_mean(distance, 0)
    cost = np.where(np.isfinite(mean), mean, 10.0 * STABILITY_SIDE)
    rows, partners = (np.asarray(found) for found in linear_sum_assignment(jnp.asarray(cost, jnp.float32)))
    return distance[:, rows, partners]


class Health(NamedTuple):
    """Result of `landmark_health`.

    Attributes:
      missing: landmarks found on no image.
      constant: landmarks that do not move.
      coincident: pairs (j, k), j < k, that lie on one another.
    """

    missing: list[int]
    constant: list[int]
    coincident: list[tuple[int, int]]


def landmark_health(found, score, frame_size: float) -> Health:
    """Find landmarks without information of their own, and warn of them with `LandmarkWarning`.

    A missing landmark is found on no image. A constant landmark is found on at least two images, and its root mean
    square distance from its mean position is below 0.5 % of the frame's side (0.8 px of 160). Two moving landmarks are
    coincident if they are found together on at least two images with a median distance below 1 % of the side. There is
    one warning a kind, naming the landmarks.

    Args:
      found: [N,K,2] landmarks in pixels of the frame.
      score: [N,K] confidences, 0 = missing.
      frame_size: side of the frame in pixels.

    >>> import warnings; warnings.simplefilter("ignore", LandmarkWarning)
    >>> landmark_health(np.ones((5, 1, 2)), np.ones((5, 1)), 64)
    Health(missing=[], constant=[0], coincident=[])
    """
    found = np.asarray(found, np.float64)
    there = (np.asarray(score) > 0) & np.isfinite(found).all(-1)
    xy = np.where(there[..., None], found, 0.0)
    count = there.sum(0)
    mean = xy.sum(0) / np.maximum(count, 1)[:, None]
    spread = np.sqrt(np.where(there, ((xy - mean) ** 2).sum(-1), 0.0).sum(0) / np.maximum(count, 1))
    missing = np.flatnonzero(count == 0).tolist()
    constant = np.flatnonzero((count >= 2) & (spread < CONSTANT * frame_size)).tolist()
    pairs = []
    moving = [k for k in range(found.shape[1]) if count[k] >= 2 and k not in constant]
    for i, j in enumerate(moving):
        for k in moving[i + 1 :]:
            both = there[:, j] & there[:, k]
            if both.sum() >= 2:
                distance = np.linalg.norm(xy[both, j] - xy[both, k], axis=-1)
                if np.median(distance) < COINCIDENT * frame_size:
                    pairs.append((j, k))

    def warn(what, remedy):
        warnings.warn(f"{what}; {remedy}", LandmarkWarning, stacklevel=3)

    if missing:
        warn(f"landmarks found on no image: {_list(missing)}", "fewer may do (k, or clusters where k is found)")
    if constant:
        warn(
            f"landmarks at the same place on every image: {_list(constant)}",
            "they have no part of the object to follow",
        )
    if pairs:
        warn(f"landmarks that lie on one another: {_list(pairs)}", "fewer may do (k, or clusters where k is found)")
    return Health(missing, constant, pairs)


def _list(items, most: int = 12) -> str:
    shown = ", ".join(f"{i[0]} and {i[1]}" if isinstance(i, tuple) else str(i) for i in items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")
