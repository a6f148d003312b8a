"""Results of `landmark_regression`: errors of one fit, or the means of several, under a protocol."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from uld_jax.evaluation.missing import known_mean, or_none


@dataclasses.dataclass(frozen=True)
class Spread:
    """Spread of the results of several fits, as sample standard deviations; None if it is unknown.

    Attributes:
      repeats: number of fits, 2 or more.
      forward_nme, backward_nme: standard deviations of the errors in percent of the normaliser.
    """

    repeats: int
    forward_nme: float | None
    backward_nme: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class PerLandmark:
    """Mean errors of each landmark in percent of the normaliser; NaN where there is none.

    Attributes:
      forward: [L], forward error of each annotated point.
      mean_shape: [L], error of the training images' mean annotation for each annotated point.
      backward: [K], backward error of each discovered landmark.
    """

    forward: np.ndarray
    mean_shape: np.ndarray
    backward: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class PerImage:
    """Mean errors of each test image in percent of the normaliser, [N]; NaN where there is none."""

    forward_nme: np.ndarray
    backward_nme: np.ndarray
    mean_shape_nme: np.ndarray


@dataclasses.dataclass(frozen=True)
class OftenFound:
    """Errors of only those landmarks that are found often.

    Attributes:
      protocol: id of these numbers, `protocol.Protocol.often`.
      min_found: share of all images, of pool and test together, above which a landmark is found often; 0..1.
      landmarks: number of landmarks that are found often.
      forward_nme, backward_nme: errors in percent of the normaliser; None without any landmark.
    """

    protocol: str
    min_found: float
    landmarks: int
    forward_nme: float | None
    backward_nme: float | None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Scores:
    """Errors of the test images by one fit, or the mean of several. Errors are in percent of the normaliser.

    A mean over images is a mean of per-image means. NaN stands for an error that no image has.

    Attributes:
      n_train: number of training images of a fit.
      forward_nme: mean forward error over all annotated points.
      backward_nme: mean backward error over the discovered landmarks.
      mean_shape_nme: mean error of predicting the training images' mean annotation.
      forward_nme_visible, mean_shape_nme_visible: the two errors over visible points; None if the annotation does not
        tell which points are visible.
      ced_auc: area under the share of test images whose forward error is below a threshold, for thresholds from 0 to
        `ced_limit`, divided by that range; 0..1, and 1 is best.
      ced_limit: upper end of the thresholds in percent of the normaliser.
      not_annotated: numbers of the annotated points that no drawn image has; they are not scored.
      per_landmark, per_image: tables of errors.
      predicted: [N,L,2] annotated landmarks as the (first) forward map places them, in pixels of the frame.
      spread: spread of the results of several fits; None for a single one.
    """

    n_train: int
    forward_nme: float
    backward_nme: float
    mean_shape_nme: float
    forward_nme_visible: float | None
    mean_shape_nme_visible: float | None
    ced_auc: float
    ced_limit: float
    not_annotated: list[int]
    per_landmark: PerLandmark
    per_image: PerImage
    predicted: np.ndarray
    spread: Spread | None = None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Errors(Scores):
    """Result of `landmark_regression.evaluate`: scores under a protocol, with the protocol, the data and the counts.

    Attributes:
      protocol: id of the numbers, `protocol.Protocol.id`; it contains `+missing_...` if points are missing.
      settings: the choices of the protocol by name.
      normaliser: name of the length that divides errors, `landmark_regression.normaliser_name`.
      n_pool: number of training images in the pool.
      n_test: number of test images.
      landmarks: K, number of discovered landmarks.
      annotated: L, number of annotated landmarks.
      left_out: numbers of the discovered landmarks that no image of the pool has.
      found_train, found_test, found_share: shares of the landmarks that were found on the pool, on the test images, and
        on both together; 0..1.
      found_train_each, found_test_each: [K] the share of images on which each landmark was found; 0..1.
      not_scored: number of test images whose normaliser is missing.
      often_found: errors of the landmarks that are found often; None if every point was found.
    """

    protocol: str
    settings: dict[str, Any]
    normaliser: str
    n_pool: int
    n_test: int
    landmarks: int
    annotated: int
    left_out: list[int]
    found_train: float
    found_test: float
    found_share: float
    found_train_each: np.ndarray
    found_test_each: np.ndarray
    not_scored: int
    often_found: OftenFound | None = None


def averaged(results: Sequence[Any]) -> Any:
    """Average several `Scores` of the same test images by fits on different training images.

    Errors and shares, also in the tables by landmark and by image, are means over the results that have a value;
    counts, names and `predicted` are those of the first result. `spread` has the standard deviations.

    Raises:
      ValueError: no results.
    """
    if not results:
        raise ValueError("averaged needs at least one result")
    if len(results) == 1:
        return results[0]

    def mean(values, name=""):
        known = [v for v in values if v is not None]
        first = known[0] if known else None
        if dataclasses.is_dataclass(first):
            fields = (field.name for field in dataclasses.fields(first))
            return type(first)(**{key: mean([getattr(v, key) for v in known], key) for key in fields})
        if isinstance(first, np.ndarray) and name != "predicted":
            return known_mean(np.stack(known), 0)
        return float(known_mean(np.array(known))) if isinstance(first, float) else first

    deviations = {
        name: or_none(np.std([getattr(result, name) for result in results], ddof=1))
        for name in ("forward_nme", "backward_nme")
    }
    return dataclasses.replace(mean(results), spread=Spread(len(results), **deviations))
