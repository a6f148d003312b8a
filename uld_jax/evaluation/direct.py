"""Errors of points that are compared with annotated ones as they are, without regression.

This is the usual error of supervised detectors: point j of an image against the annotated point j,

  error_ij = |point_ij - truth_ij| / normaliser_i          NME = 100 * mean of error_ij        (percent)

A mean over images is a mean of per-image means. A missing point stands at the mean annotation of the training images
for it, in the frame, as a missing landmark stands at its mean in `landmark_regression`. Points without annotation are
not scored. There is no backward error, and the id of the number ends in `+direct`.
"""

from typing import Any

import numpy as np

from uld_jax.errors import UserError
from uld_jax.evaluation.curves import CED_LIMIT, ced_auc
from uld_jax.evaluation.landmark_regression import LandmarkSet, Normaliser, lengths_or_error, normaliser_name
from uld_jax.evaluation.missing import known_mean
from uld_jax.evaluation.scores import Errors, PerImage, PerLandmark


def direct_errors(
    test: LandmarkSet,
    annotated: Any,
    *,
    data: str,
    normaliser: Normaliser,
    image_side: float | None = None,
    ced_limit: float = CED_LIMIT,
) -> Errors:
    """Compare the points of `test` with its annotated points of the same number; see the module.

    Args:
      test: points and annotated points of the test images.
      annotated: [M,L,2] annotated points of the training images, for the mean shape; NaN where not annotated.
      data: id of the data, see `data.specs.DatasetSpec.protocol`.
      normaliser, image_side: see `landmark_regression.normaliser_lengths`.
      ced_limit: upper end, in percent, of the CED whose area is `ced_auc`.

    Returns:
      The errors; all parts that need a fit are NaN, None or 0.

    Raises:
      UserError: another number of points than is annotated, or a normaliser that no image has.
    """
    xy, truth = np.asarray(test.found, np.float64), np.asarray(test.truth, np.float64)
    if xy.shape != truth.shape:
        raise UserError(
            f"--direct compares as many points as are annotated, and there are {xy.shape[1]} points for "
            f"{truth.shape[1]} annotated ones; give points of the annotation's kind, or leave --direct out"
        )
    lengths = lengths_or_error(test, normaliser, image_side)[:, None]
    there = (np.asarray(test.score) > 0) & np.isfinite(xy).all(-1)
    mean_shape = known_mean(np.asarray(annotated, np.float64), 0)
    placed = np.where(there[..., None], xy, mean_shape)
    error, baseline = (100 * np.linalg.norm(p - truth, axis=-1) / lengths for p in (placed, mean_shape))
    seen = None if test.visible is None else np.asarray(test.visible, bool)
    of_image, of_mean = known_mean(error, 1), known_mean(baseline, 1)

    def visible_nme(errors):
        return None if seen is None else float(known_mean(known_mean(np.where(seen, errors, np.nan), 1)))

    none, complete = np.full(xy.shape[1], np.nan), bool(there.all())
    return Errors(
        protocol=f"{data}+direct" + ("" if complete else "+missing_mean_shape"),
        settings={"direct": True, "missing": "mean_shape"},
        normaliser=normaliser_name(normaliser),
        n_pool=len(annotated),
        n_train=0,
        n_test=len(xy),
        landmarks=xy.shape[1],
        annotated=truth.shape[1],
        left_out=[],
        not_annotated=np.flatnonzero(~np.isfinite(mean_shape).all(-1)).tolist(),
        not_scored=int((~np.isfinite(lengths)).sum()),
        found_train=float("nan"),
        found_test=float(there.mean()),
        found_share=float(there.mean()),
        found_train_each=none,
        found_test_each=there.mean(0),
        forward_nme=float(known_mean(of_image)),
        backward_nme=float("nan"),
        mean_shape_nme=float(known_mean(of_mean)),
        forward_nme_visible=visible_nme(error),
        mean_shape_nme_visible=visible_nme(baseline),
        ced_auc=ced_auc(of_image[np.isfinite(of_image)], ced_limit),
        ced_limit=float(ced_limit),
        per_landmark=PerLandmark(forward=known_mean(error, 0), mean_shape=known_mean(baseline, 0), backward=none),
        per_image=PerImage(forward_nme=of_image, backward_nme=np.full(len(xy), np.nan), mean_shape_nme=of_mean),
        predicted=placed,
    )
