"""Forward error against the number of labelled images."""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np

from uld_jax.evaluation.landmark_regression import (
    LandmarkSet,
    Normaliser,
    apply_forward,
    check_sets,
    complete_inputs,
    fit_map,
    lengths_or_error,
)
from uld_jax.evaluation.missing import known_mean, or_none
from uld_jax.evaluation.protocol import Protocol, check_label_counts


@dataclasses.dataclass(frozen=True)
class LabelCount:
    """Errors with a number of labelled images, in percent of the normaliser; None if nothing can be measured.

    Attributes:
      n: number of labelled images.
      repeats: number of draws of that many images; 1 if all are used.
      forward_nme: mean forward error over the draws.
      forward_nme_std: standard deviation of the forward error over the draws, 0 for one.
      mean_shape_nme: mean error of the drawn images' mean shape.
    """

    n: int
    repeats: int
    forward_nme: float | None
    forward_nme_std: float | None
    mean_shape_nme: float | None


def label_counts(
    train: LandmarkSet,
    test: LandmarkSet,
    *,
    normaliser: Normaliser,
    image_side: float | None = None,
    counts: Sequence[int | str] = (1, 5, 10, 50, "all"),
    repeats: int = 10,
    seed: int = 0,
    protocol: Protocol = Protocol(),
) -> list[LabelCount]:
    """Forward error against the number of annotated training images.

    For each count n, `repeats` random draws of n training images are fitted with the protocol's own ridge and scored
    on all of `test`; the draws depend only on (seed, n, repeat). Missing points are filled in from all of `train`, as
    this needs no annotation. 'all' is one fit. With n = 1 and an intercept the prediction is that image's annotation,
    so the two columns agree.

    Returns:
      One entry a count, in increasing order. Counts above the number of training images are left out with a warning.

    Raises:
      UserError: counts that are neither positive numbers nor 'all', or an error of `landmark_regression.evaluate`.
    """
    check_sets(train, test)
    lengths = lengths_or_error(test, normaliser, image_side)[:, None]
    truth, annotated = np.asarray(test.truth, np.float64), np.asarray(train.truth, np.float64)
    inputs, total = complete_inputs(train, protocol.missing, image_side), len(train.found)
    check_label_counts(counts, "label_counts")
    wanted = [total if str(count) == "all" else int(count) for count in counts]
    if max(wanted, default=0) > total:
        warnings.warn(f"label_counts above the {total} annotated training images are left out", stacklevel=2)
    rows = []
    for n in sorted({n for n in wanted if n <= total}):
        errors = []
        for repeat in range(repeats if n < total else 1):
            draw = np.random.default_rng((seed, n, repeat)).permutation(total)[:n] if n < total else np.arange(total)
            fitted = fit_map(inputs, annotated, draw, protocol.ridge_forward, protocol.intercept)
            predicted = apply_forward(fitted, test.found, test.score)
            mean_shape = known_mean(annotated[draw], 0)
            errors.append([_nme(predicted, truth, lengths), _nme(mean_shape, truth, lengths)])
        forward, baseline = np.array(errors).T
        rows.append(
            LabelCount(
                n=n,
                repeats=len(errors),
                forward_nme=or_none(known_mean(forward)),
                forward_nme_std=or_none(np.std(forward)),
                mean_shape_nme=or_none(known_mean(baseline)),
            )
        )
    return rows


def _nme(predicted, truth, lengths) -> float:
    return float(known_mean(known_mean(100 * np.linalg.norm(predicted - truth, axis=-1) / lengths, 1)))
