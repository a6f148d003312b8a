"""The share of images on which a discovered landmark is near an annotated one (figure 4 of Tourani et al., CVPR 2024).

Without a regression, a discovered landmark has to lie on the annotated one itself, within `radius` of the image's
normaliser (in the paper 0.2 of the distance between the eyes). Discovered landmarks are assigned to annotated ones on
the training images, and hits are counted on the test images, in two ways:

  exclusive   one to one, the matching of most hits (Hungarian method); K discovered landmarks serve min(K,L) annotated
              ones, the others have no value
  best        for every annotated landmark the discovered one with most hits, so that one may serve several

A landmark that was not found on an image is a miss there. Of two with equally many hits the nearer one is taken.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from uld_jax.clustering import assignment
from uld_jax.errors import UserError
from uld_jax.evaluation.landmark_regression import LandmarkSet, Normaliser, normaliser_lengths
from uld_jax.evaluation.missing import known_mean, or_none
from uld_jax.evaluation.protocol import Protocol

_CHUNK = 1 << 22  # distances computed at a time


class Hits(NamedTuple):
    """Shares and distances of discovered landmarks near annotated ones on some images.

    Attributes:
      share: [K,L] share of the images on which they are within the radius; 0 where no image has the annotated one.
      distance: [K,L] mean distance in shares of the normaliser, each at most 1 and 1 where not found.
      counted: [L] images that have the annotated landmark.
    """

    share: np.ndarray
    distance: np.ndarray
    counted: np.ndarray


def hits(landmarks: LandmarkSet, lengths, radius: float) -> Hits:
    """Count hits over all images; annotated points that are NaN, hidden, or on an image without a length do not count.

    Args:
      landmarks: landmarks of N images.
      lengths: [N] the normaliser of each image in pixels, NaN where there is none.
      radius: largest distance of a hit in shares of the normaliser, inclusive.
    """
    found, truth = np.asarray(landmarks.found, np.float64), np.asarray(landmarks.truth, np.float64)
    there = (np.asarray(landmarks.score) > 0) & np.isfinite(found).all(-1)
    seen = np.isfinite(truth).all(-1) & np.isfinite(lengths)[:, None]
    if landmarks.visible is not None:
        seen &= np.asarray(landmarks.visible, bool)
    near, total = np.zeros((found.shape[1], truth.shape[1])), np.zeros((found.shape[1], truth.shape[1]))
    step = max(1, _CHUNK // max(near.size, 1))
    for rows in (slice(i, i + step) for i in range(0, len(found), step)):
        away = np.linalg.norm(found[rows, :, None] - truth[rows, None], axis=-1) / lengths[rows, None, None]
        away = np.where(there[rows, :, None] & seen[rows, None], away, np.inf)
        near += (away <= radius).sum(0)
        total += np.where(seen[rows, None], np.minimum(away, 1), 0).sum(0)
    counted = seen.sum(0)
    some = np.maximum(counted, 1)
    return Hits(near / some, np.where(counted > 0, total / some, 1.0), counted)


def match(seen: Hits) -> tuple[np.ndarray, np.ndarray]:
    """Match a discovered landmark to every annotated one: exclusive [L] (-1: none is left), and best [L]."""
    # Shares differ by 1 / images at least; the distance, scaled below that, decides between equal ones.
    cost = 1 - seen.share + 0.5 * seen.distance / max(seen.counted.max(initial=0), 1) / max(*seen.share.shape, 1)
    given = seen.counted > 0
    labels = np.asarray(assignment.one_per_cluster(jnp.asarray(cost[None], jnp.float32), None, jnp.asarray(given)))[0]
    exclusive = np.full(cost.shape[1], -1)
    exclusive[labels[labels >= 0]] = np.flatnonzero(labels >= 0)
    return exclusive, np.where(given, cost.argmin(0), -1)


@dataclasses.dataclass(frozen=True)
class Area:
    """Annotated landmarks of one area, such as the mouth.

    Attributes:
      points: number of annotated landmarks.
      matched: number of annotated landmarks that the exclusive matching serves.
      exclusive, best: means over the landmarks that have a value, in 0..1; None if none has.
    """

    points: int
    matched: int
    exclusive: float | None
    best: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class PerPoint:
    """Values of each annotated landmark.

    Attributes:
      exclusive, best: [L] float64, in 0..1; NaN for a landmark without a value.
      exclusive_of, best_of: [L] int, the discovered landmark that stands for it; -1 for none.
    """

    exclusive: np.ndarray
    best: np.ndarray
    exclusive_of: np.ndarray
    best_of: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class LandmarkAccuracy:
    """Result of `landmark_accuracy`.

    Attributes:
      radius: largest distance of a hit in shares of the normaliser.
      n_train: number of images on which landmarks were matched.
      n_test: number of images on which hits were counted.
      matched: number of annotated landmarks that the exclusive matching serves.
      exclusive, best: means over the annotated landmarks that have a value, in 0..1; None if none has.
      areas: areas by name; without named areas one entry for every point, up to 40 of them, and {} beyond.
      per_point: values of each annotated landmark.
    """

    radius: float
    n_train: int
    n_test: int
    matched: int
    exclusive: float | None
    best: float | None
    areas: dict[str, Area]
    per_point: PerPoint


def landmark_accuracy(
    train: LandmarkSet,
    test: LandmarkSet,
    *,
    normaliser: Normaliser,
    image_side: float | None = None,
    radius: float = Protocol().accuracy_radius,
    names=(),
    areas: Mapping[str, tuple[int, int]] = types.MappingProxyType({}),
) -> LandmarkAccuracy:
    """Match landmarks on `train` and count hits on `test`; the module's docstring defines the numbers.

    Args:
      train, test: landmarks of annotated images. No image may be in both.
      normaliser, image_side: see `landmark_regression.normaliser_lengths`.
      radius: largest distance of a hit in shares of the normaliser, inclusive.
      names: names of the L annotated landmarks; () if unknown.
      areas: {name: (first, last)} of annotated landmarks, see `data.schemes.Scheme`; {} if unknown.

    Raises:
      UserError: a radius that is not positive.
    """
    if not radius > 0:
        raise UserError(f"eval.accuracy_radius is {radius}; use a positive share of the normaliser, such as 0.2")
    seen = [hits(part, normaliser_lengths(part.truth, normaliser, image_side), radius) for part in (train, test)]
    points, counted = seen[1].share.shape[1], seen[1].counted > 0
    values, chosen = {}, dict(zip(("exclusive", "best"), match(seen[0]), strict=True))
    for name, of in chosen.items():
        values[name] = np.where((of >= 0) & counted, seen[1].share[np.maximum(of, 0), np.arange(points)], np.nan)
    spans = dict(areas)
    if not spans and points <= 40:
        spans = {name: (i, i) for i, name in enumerate(names or map(str, range(points)))}

    def means(part) -> dict[str, float | int | None]:
        return {
            "matched": int(np.isfinite(values["exclusive"][part]).sum()),
            **{name: or_none(known_mean(value[part])) for name, value in values.items()},
        }

    spans = {name: (slice(first, last + 1), last + 1 - first) for name, (first, last) in spans.items()}
    return LandmarkAccuracy(
        radius=float(radius),
        n_train=len(train.found),
        n_test=len(test.found),
        **means(slice(None)),
        areas={name: Area(points=count, **means(part)) for name, (part, count) in spans.items()},
        per_point=PerPoint(**values, **{f"{name}_of": of for name, of in chosen.items()}),
    )
