"""Landmarks against those that a stage's flow carries over from another image (C3, section 3.2 and figure 3)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from uld_jax.evaluation.missing import known_mean
from uld_jax.evaluation.stability import STABILITY_SIDE


class Carried(NamedTuple):
    """Result of `carried`.

    Attributes:
      px: mean over landmarks of their mean distance from carried ones, in pixels at 128 px; NaN if none was counted.
      same_place_px: the same number for landmarks that stay at their place in the other image, instead of the flow.
      counted: [K] int, pairs of images on which the landmark was counted.
      protocol: id of the number.
    """

    px: float
    same_place_px: float
    counted: np.ndarray
    protocol: str


def carried(carry_fn: Callable, read: Callable, xy, score, *, batch_size: int = 8) -> Carried | None:
    """Measure the distance of the landmarks of an image from those of another image, carried there by the flow.

      e_k = |Psi_k(a) - T_ab(Psi_k(b))|

    The other image b is half of the set away from a, because neighbours often show one object; so every image is a and
    b once. A landmark counts on a pair if it was found in both images. The distance is averaged over pairs for each
    landmark and then over landmarks, as in `stability`. It tells how well the flow and the landmarks agree, and not
    whether either is right.

    Args:
      carry_fn: function (images a, images b [B,F,F,3] uint8, points of b [B,K,2]) -> their places in a [B,K,2], all in
        pixels of the frame; or None for a stage that carries no points.
      read: function from numbers of images [B] int, below N, to square frames [B,F,F,3] uint8.
      xy: [N,K,2] landmarks in pixels of the frame.
      score: [N,K] confidences; 0 = missing.
      batch_size: pairs a call; the last batch is filled up with copies of its last pair, which are not counted.

    Returns:
      The numbers; None for a stage that carries no points, or for fewer than two images.
    """
    count, ours, staying = len(xy), [], []
    if count < 2:
        return None
    for start in range(0, count, batch_size):
        real = min(batch_size, count - start)
        a = np.minimum(np.arange(start, start + batch_size), count - 1)
        b = (a + count // 2) % count
        images = read(a)
        brought = carry_fn(images, read(b), xy[b])
        if brought is None:
            return None
        counts = (score[a] > 0) & (score[b] > 0)
        for found, places in ((ours, brought), (staying, xy[b])):
            distance = np.linalg.norm(places - xy[a], axis=-1) * (STABILITY_SIDE / images.shape[1])
            found.append(np.where(counts, distance, np.nan)[:real])
    each = [np.concatenate(found).astype(np.float64) for found in (ours, staying)]
    px, same_place = (float(known_mean(known_mean(errors, 0))) for errors in each)
    return Carried(px, same_place, np.isfinite(each[0]).sum(0), f"carried_px_{STABILITY_SIDE}")
