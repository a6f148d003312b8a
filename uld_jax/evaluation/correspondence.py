"""NMI and F-measure: agreement of found keypoints, with their cluster numbers, and annotated landmarks.

Mallis et al. (NeurIPS 2020, section 4.1) follow self-training by two numbers: the normalised mutual information between
clusters and landmarks, for the descriptors, and the F-measure, for the detector. Their definitions were in a supplement
that is not public. The definitions here are ours, so report the radius with the numbers:

  match       in every image as many found keypoints as possible are joined to annotated points, one to one and no
              further apart than `radius` of the image's normaliser; among such matchings one of least total distance
              (Hungarian method: a greedy choice by distance can join fewer)
  precision   share of found keypoints that are matched             recall   share of annotated points that are matched
  f_measure   harmonic mean of precision and recall; it ignores the cluster numbers
  nmi         mutual information of cluster and landmark over matched keypoints, over the mean of the two entropies
  purity      share of matched keypoints whose landmark is the most frequent one of their cluster

Purity does not fall when one landmark is split into several clusters, and NMI falls little; both use only matched
keypoints, and a few of these give a high value by chance. Read them beside `recall` and `matched`.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from uld_jax.clustering import assignment, quality
from uld_jax.errors import UserError

_IMAGES = 128  # images matched at a time, so that one program serves any number of images


@dataclasses.dataclass(frozen=True)
class Correspondence:
    """Result of `correspondence`; shares are in 0..1, and 0 if there is nothing to count.

    Attributes:
      nmi: normalised mutual information of cluster and landmark over matched keypoints.
      f_measure: harmonic mean of precision and recall.
      precision: share of found keypoints that are matched.
      recall: share of annotated points that are matched.
      purity: share of matched keypoints whose landmark is the most frequent one of their cluster.
      matched: mean number of matched keypoints an image.
      keypoints_per_image: mean number of found keypoints an image.
      match_radius: the radius of a match, in shares of the normaliser.
    """

    nmi: float
    f_measure: float
    precision: float
    recall: float
    purity: float
    matched: float
    keypoints_per_image: float
    match_radius: float


def correspondence(found, score, truth, lengths, *, radius: float = 0.1, visible=None) -> Correspondence:
    """Measure the agreement of found keypoints and annotated landmarks; the module's docstring defines the numbers.

    Args:
      found: [N,K,2] keypoints, one slot a cluster, in pixels.
      score: [N,K] confidences; 0 (or a NaN in `found`) means missing.
      truth: [N,L,2] annotated points, in pixels; NaN where a point is not annotated.
      lengths: [N] the normaliser of each image in pixels, from `landmark_regression.normaliser_lengths`; images of
        length NaN are not counted.
      radius: largest distance of a match in shares of the normaliser, inclusive.
      visible: [N,L] bool, False for annotated points that are hidden and so cannot be found; None: all are visible.

    Raises:
      UserError: a radius that is not positive.
      ValueError: arrays whose shapes do not fit.

    >>> found = np.array([[[0.0, 0.0], [9.0, 1.0]], [[1.0, 0.0], [5.0, 5.0]]])
    >>> truth = np.array([[[0.0, 0.0], [9.0, 0.0]], [[0.0, 0.0], [9.0, 0.0]]])
    >>> values = correspondence(found, np.ones((2, 2)), truth, lengths=[10.0, 10.0], radius=0.2)
    >>> round(values.nmi, 2), values.f_measure, values.matched
    (1.0, 0.75, 1.5)
    """
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    score, lengths = np.asarray(score), np.asarray(lengths, np.float64)
    shapes = (found.shape, score.shape, truth.shape, lengths.shape)
    n, k, points = *score.shape[:2], *truth.shape[1:2]
    if shapes != ((n, k, 2), (n, k), (n, points, 2), (n,)):
        raise ValueError(f"correspondence got shapes {shapes}, not [N,K,2], [N,K], [N,L,2] and [N]")
    if not radius > 0:
        raise UserError(f"eval.match_radius is {radius}; use a positive share of the normaliser, such as 0.1")
    counted = (np.isfinite(lengths) & (lengths > 0))[:, None]
    there = (score > 0) & np.isfinite(found).all(-1) & counted
    seen = np.isfinite(truth).all(-1) & counted & (True if visible is None else np.asarray(visible, bool))
    labels = _match(found, there, truth, seen, np.where(counted[:, 0], lengths, 1.0) * radius)

    right, landmarks = labels >= 0, max(truth.shape[1], 1)
    clusters = np.broadcast_to(np.arange(found.shape[1], dtype=np.int32), labels.shape)
    which = {"mask": right.ravel(), "clusters": max(found.shape[1], 1), "classes": landmarks}
    share = lambda part, whole: float(part) / max(float(whole), 1.0)
    images = counted.sum()
    return Correspondence(
        nmi=float(quality.nmi(clusters.ravel(), labels.ravel(), **which)),
        f_measure=share(2 * right.sum(), there.sum() + seen.sum()),
        precision=share(right.sum(), there.sum()),
        recall=share(right.sum(), seen.sum()),
        purity=float(quality.purity(clusters.ravel(), labels.ravel(), **which)),
        matched=share(right.sum(), images),
        keypoints_per_image=share(there.sum(), images),
        match_radius=float(radius),
    )


def _match(found, there, truth, seen, radius) -> np.ndarray:
    """Match every found keypoint to an annotated point, [N,K], -1 for none; `radius` [N] is in pixels."""
    parts = []
    for start in range(0, len(found), _IMAGES):
        rows = slice(start, start + _IMAGES)
        pad = lambda x: np.concatenate([x, np.zeros((_IMAGES - len(x), *x.shape[1:]), x.dtype)])
        xy = np.where(there[rows, :, None], found[rows], 0.0)
        points = np.where(seen[rows, :, None], truth[rows], 0.0)
        distance = np.linalg.norm(xy[:, :, None] - points[:, None], axis=-1) / radius[rows, None, None]
        cost = np.where(distance <= 1, distance, np.inf).astype(np.float32)
        labels = assignment.one_per_cluster(jnp.asarray(pad(cost)), pad(there[rows]), pad(seen[rows]))
        parts.append(np.asarray(labels)[: len(xy)])
    return np.concatenate(parts) if parts else np.zeros(there.shape, np.int32)
