"""Forward and backward error of discovered landmarks.

A detector finds K landmarks without names. To compare them with the L annotated ones, a ridge regression from one set
to the other is fitted on annotated training images and scored on test images, under the choices of a
`protocol.Protocol`:

  forward    X = discovered, Y = annotated:   error of the annotation predicted from discovered points
  backward   X = annotated, Y = discovered:   low if discovered points are at fixed places of the object

  error_ij = |prediction_ij - target_ij| / normaliser_i          NME = 100 * mean of error_ij        (percent)

Both directions divide by the normaliser of the test image's *annotation* (Mallis et al., NeurIPS 2020 section 4 and
TPAMI 2024; Sanchez & Tzimiropoulos, NeurIPS 2019, for the backward error). The backward error averages over the K
discovered landmarks. A detector whose points never move has a backward error of 0 and the forward error of the mean
shape, a noisy one is bad at both: read the two together, and beside `mean_shape_nme`, the error of predicting the
training images' mean annotation for every image.

Missing points are treated as follows; the pool is all training images that were predicted, and a fit may draw a few:

* forward, on training images: with `missing="mean"` a landmark that was not found takes its mean over the images of the
  pool on which it was found; with `missing="svt"` the matrix of all coordinates of the pool is completed by singular
  value thresholding (Mallis et al. 2020, "evaluation"; `ops/completion.py`). As in the published code, coordinates are
  then shares of the frame's side and not centred, and found points keep their places. Points that are missing now and
  then are filled in well. Landmarks that are never found on the same image are not: no image relates one to the other,
  and the completion puts them near the frame's corner, far from their mean;
* forward, on test images: a landmark that was not found takes its mean over the pool, whatever the policy;
* backward: landmark j is fitted on the drawn images (`Protocol.backward_draw`) and scored on the test images on which
  it was found. If it is found on no test image, it scores 100 %; if on no drawn image, it has no value;
* a landmark found on no image of the pool is left out of both and reported in `left_out`.

Both directions follow the published code of Mallis et al. (NeurIPS 2020 and TPAMI 2024), which completes before it
draws, because the completion needs no annotation. If some point is missing there is a second result over the landmarks
that are found often (`often_found`): the published code (2020, not the paper) keeps landmarks that are missing on less
than 20 % of all images, pool and test together, before any completion or fit. Annotated points without coordinates
(NaN) take no part in the fit or the score; as inputs of the backward fit they take their mean over the drawn images.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from uld_jax.errors import UserError
from uld_jax.evaluation.curves import CED_LIMIT, ced_auc
from uld_jax.evaluation.missing import known_mean, or_none
from uld_jax.evaluation.protocol import Protocol
from uld_jax.evaluation.scores import Errors, OftenFound, PerImage, PerLandmark, Scores, averaged
from uld_jax.ops.completion import complete
from uld_jax.ops.ridge import choose_strength, fit_ridge, leave_one_out_residuals

Normaliser = str | tuple[int, int]


class LandmarkSet(NamedTuple):
    """Discovered and annotated landmarks of N images, all in pixels of the frame.

    Attributes:
      found: [N,K,2] discovered landmarks.
      score: [N,K] confidences; 0 (or a NaN in `found`) means missing.
      truth: [N,L,2] annotated landmarks; NaN where a point is not annotated.
      visible: [N,L] bool, or None if the annotation does not tell.
      columns: other columns of the annotation, name -> N strings, for `group_by`.
    """

    found: np.ndarray
    score: np.ndarray
    truth: np.ndarray
    visible: np.ndarray | None = None
    columns: Mapping[str, Sequence[Any]] = {}

    def take(self, rows) -> "LandmarkSet":
        """Take the images `rows` (indices)."""
        rows = np.asarray(rows, np.int64)
        return LandmarkSet(
            np.asarray(self.found)[rows],
            np.asarray(self.score)[rows],
            np.asarray(self.truth)[rows],
            None if self.visible is None else np.asarray(self.visible)[rows],
            {name: [values[i] for i in rows] for name, values in self.columns.items()},
        )

    def only(self, landmarks) -> "LandmarkSet":
        """Take the discovered `landmarks` (indices or [K] bool)."""
        return self._replace(found=np.asarray(self.found)[:, landmarks], score=np.asarray(self.score)[:, landmarks])


class Inputs(NamedTuple):
    """Discovered landmarks of a pool of training images without gaps, the input of the forward fit.

    Attributes:
      xy: [N,K,2] float64, in pixels of the frame.
      fill: [K,2] float64, the mean of each landmark over the images on which it was found; 0 for one never found.
      used: [K] bool, True for landmarks found on some image.
    """

    xy: np.ndarray
    fill: np.ndarray
    used: np.ndarray


class ForwardMap(NamedTuple):
    """The affine map from discovered to annotated landmarks, with the places used for landmarks not found.

    Attributes:
      weights: [2L,2K] float64; columns of landmarks that no training image has are 0.
      bias: [2L] float64, NaN for points that no training image has annotated.
      fill: [K,2] float64, the mean of each discovered landmark over the pool.
      used: [K] bool, True for landmarks found on some image of the pool.
      strength: [L] float64, the ridge strength of each annotated point.
    """

    weights: np.ndarray
    bias: np.ndarray
    fill: np.ndarray
    used: np.ndarray
    strength: np.ndarray


# The normaliser


def normaliser_lengths(truth, normaliser: Normaliser, image_side: float | None = None) -> np.ndarray:
    """The length in pixels by which each image's errors are divided, [N]; NaN if it is unknown or 0.

    Args:
      truth: [N,L,2] annotated points.
      normaliser: two point numbers for their distance; 'box' for sqrt(width * height) of the box around all annotated
        points; 'image' for `image_side`.
      image_side: side of the frame in pixels.
    """
    truth = np.asarray(truth, np.float64)
    if normaliser == "image":
        if not image_side:
            raise ValueError("the normaliser 'image' needs image_side")
        return np.full(len(truth), float(image_side))
    if normaliser == "box":
        known = np.isfinite(truth).all(-1, keepdims=True)
        high = np.where(known, truth, -np.inf).max(1)
        low = np.where(known, truth, np.inf).min(1)
        lengths = np.sqrt(np.prod(np.where(known.any(1), high - low, 0.0), -1))
    else:
        lengths = np.linalg.norm(truth[:, normaliser[0]] - truth[:, normaliser[1]], axis=-1)
    return np.where(lengths > 0, lengths, np.nan)


def normaliser_name(normaliser: Normaliser) -> str:
    """The name of a normaliser in reports."""
    return normaliser if isinstance(normaliser, str) else f"points {normaliser[0]} and {normaliser[1]}"


# The two regressions


def _found(landmarks: LandmarkSet) -> tuple[np.ndarray, np.ndarray]:
    """Discovered points [N,K,2] float64, NaN where missing, and a mask [N,K] of those that are not missing."""
    xy = np.asarray(landmarks.found, np.float64)
    there = (np.asarray(landmarks.score) > 0) & np.isfinite(xy).all(-1)
    return np.where(there[..., None], xy, np.nan), there


def _flat(points) -> np.ndarray:
    return points.reshape(len(points), -1)


def _patterns(there):
    """Groups of points that are `there` [N,J] on the same rows, if any: (rows [N] bool, numbers of the points)."""
    patterns, member = np.unique(there, axis=1, return_inverse=True)
    for p in range(patterns.shape[1]):
        if patterns[:, p].any():
            yield patterns[:, p], np.flatnonzero(member.ravel() == p)


def _fit_columns(x, y, there, strength, intercept=True):
    """Fit a ridge from complete x [N,I] to points y [N,J,2], each point on the rows where it is `there` [N,J].

    Points with the same rows share one fit. Returns weights [2J,I], bias [2J] and strength [J], NaN for points without
    a row.
    """
    weights = np.full((y.shape[1], 2, x.shape[1]), np.nan)
    bias = np.full((y.shape[1], 2), np.nan)
    strengths = np.full(y.shape[1], np.nan)
    for rows, points in _patterns(there):
        target = _flat(y[rows][:, points])
        strengths[points] = choose_strength(x[rows], target) if strength is None else strength
        ridge = fit_ridge(x[rows], target, strengths[points[0]], intercept=intercept)
        weights[points] = ridge.weights.reshape(len(points), 2, -1)
        bias[points] = (ridge.y_mean - ridge.weights @ ridge.x_mean).reshape(len(points), 2)
    return weights.reshape(-1, x.shape[1]), bias.ravel(), strengths


def complete_inputs(pool: LandmarkSet, missing: str = "mean", image_side: float | None = None) -> Inputs:
    """Fill in the landmarks that were not found on the images of a pool, without using annotation.

    Args:
      pool: landmarks of all training images that were predicted.
      missing: `mean` or `svt`, see the module.
      image_side: side of the frame in pixels, for `svt`.
    """
    xy, there = _found(pool)
    used = there.any(0)
    fill = np.where(used[:, None], known_mean(xy, 0), 0.0)
    x = np.where(there[..., None], xy, fill)
    if missing == "svt" and not there[:, used].all():
        x = np.where(used[:, None], _completed(xy, there, image_side), fill)
    return Inputs(x, fill, used)


def fit_map(inputs: Inputs, truth, rows, strength: float | None, intercept: bool = True) -> ForwardMap:
    """Fit the map from discovered landmarks to truth [N,L,2] on some rows of a completed pool."""
    x, truth = inputs.xy[rows], np.asarray(truth, np.float64)[rows]
    annotated = np.isfinite(truth).all(-1)
    weights, bias, strengths = _fit_columns(_flat(x), truth, annotated, strength, intercept)
    return ForwardMap(weights, bias, inputs.fill, inputs.used, strengths)


def fit_forward(
    train: LandmarkSet,
    strength: float | None = Protocol().ridge_forward,
    *,
    missing: str = "mean",
    image_side: float | None = None,
    intercept: bool = True,
) -> ForwardMap:
    """Fit the map from discovered to annotated landmarks on all images of `train`, at least one.

    With a single image and an intercept the map predicts that image's annotation for any input.

    Args:
      train: landmarks of annotated images.
      strength: ridge penalty, relative as in `ops/ridge.py`; None chooses it by the leave-one-out error, as a few
        labelled images need. Evaluations use the protocol's fixed penalty.
      missing: treatment of points that were not found: `mean` or `svt`, see the module.
      image_side: side of the frame in pixels, for `svt`.
      intercept: True for an affine map; False for a linear one in pixels of the frame.
    """
    return fit_map(complete_inputs(train, missing, image_side), train.truth, slice(None), strength, intercept)


def _completed(xy, there, side):
    """Fill in points of [N,K,2] that are not `there` [N,K] by matrix completion; empty columns do not matter."""
    if not side:
        raise ValueError("missing='svt' needs image_side")
    known = np.repeat(there, 2, axis=1)
    # The defaults of `complete` for the matrix without empty columns, which stay so that draws share a program.
    rows, columns = len(xy), known.any(0).sum()
    tau, delta = 5 * (rows + columns) / 2, 1.2 * rows * columns / max(known.sum(), 1)
    share = complete(_flat(xy) / side, known, tau=tau, delta=delta).x
    filled = side * np.asarray(share, np.float64).reshape(xy.shape)
    return np.where(there[..., None], xy, filled)  # found points stay exactly as they are


def leave_one_out(train: LandmarkSet, forward: ForwardMap) -> np.ndarray:
    """Residuals [N,L,2] of the annotated points of `train`, each from a map fitted without its image.

    Missing points are at their means. The ridge strengths are those of `forward`, a fit to all of `train`. Residuals
    are NaN if a point is not annotated, or annotated on only one image.
    """
    xy, there = _found(train)
    x, truth = _flat(np.where(there[..., None], xy, forward.fill)), np.asarray(train.truth, np.float64)
    residuals = np.full(truth.shape, np.nan)
    for rows, points in _patterns(np.isfinite(truth).all(-1)):
        if rows.sum() > 1:
            target = _flat(truth[rows][:, points])
            left = leave_one_out_residuals(x[rows], target, [forward.strength[points[0]]])[0]
            residuals[np.ix_(rows, points)] = left.reshape(-1, len(points), 2)
    return residuals


def apply_forward(forward: ForwardMap, found, score) -> np.ndarray:
    """Predict annotated landmarks [N,L,2] from discovered ones [N,K,2] with score [N,K], for any N."""
    xy, there = _found(LandmarkSet(found, score, None))
    there &= forward.used
    x = np.where(there[..., None], xy, forward.fill)
    return (_flat(x) @ forward.weights.T + forward.bias).reshape(len(x), -1, 2)


def _pixels(predicted, truth) -> np.ndarray:
    """Distances [N,J] of points [N,J,2] in pixels."""
    return np.linalg.norm(predicted - np.asarray(truth, np.float64), axis=-1)


def _backward_errors(train: LandmarkSet, test: LandmarkSet, strength: float, intercept: bool) -> np.ndarray:
    """Distances in pixels, [N,K], of the discovered landmarks of `test` from their prediction by its annotation.

    A distance is NaN where a landmark was not found, and for landmarks that were found on no image of `train`.
    """
    y, there = _found(train)
    target, _ = _found(test)
    x, z = np.asarray(train.truth, np.float64), np.asarray(test.truth, np.float64)
    mean = known_mean(x, 0)
    mean = np.where(np.isfinite(mean), mean, 0.0)
    x, z = np.where(np.isfinite(x), x, mean), np.where(np.isfinite(z), z, mean)
    weights, bias, _ = _fit_columns(_flat(x), y, there, strength, intercept)
    return _pixels((_flat(z) @ weights.T + bias).reshape(target.shape), target)


# Evaluation


def check_sets(train: LandmarkSet, test: LandmarkSet) -> None:
    """Raise UserError or ValueError for training and test landmarks that cannot be measured together."""
    for name, part in (("training", train), ("test", test)):
        n, k = np.shape(part.found)[:2]
        shapes = (np.shape(part.found), np.shape(part.score), np.shape(part.truth))
        if shapes[0] != (n, k, 2) or shapes[1] != (n, k) or len(shapes[2]) != 3 or shapes[2][::2] != (n, 2):
            raise ValueError(f"the {name} landmarks have shapes {shapes}, not [N,K,2], [N,K] and [N,L,2]")
        if not n:
            raise UserError(f"there is no annotated {name} image; give landmarks in the csv of that split")
    if np.shape(train.found)[1] != np.shape(test.found)[1] or np.shape(train.truth)[1] != np.shape(test.truth)[1]:
        raise UserError(
            "the training and the test split differ in their number of landmarks; use the same columns in both"
        )


def lengths_or_error(test: LandmarkSet, normaliser: Normaliser, image_side: float | None) -> np.ndarray:
    """The `normaliser_lengths` [N] of the test images. Raises UserError if no image has one."""
    lengths = normaliser_lengths(test.truth, normaliser, image_side)
    if not np.isfinite(lengths).any():
        raise UserError(
            f"the normaliser {normaliser} is missing or 0 on every test image; choose another one, "
            "--config.data.normaliser=NAME"
        )
    return lengths


def evaluate(
    train: LandmarkSet,
    test: LandmarkSet,
    *,
    data: str,
    normaliser: Normaliser,
    image_side: float | None = None,
    protocol: Protocol = Protocol(),
    fits: Sequence[Any] | None = None,
    ced_limit: float = CED_LIMIT,
) -> Errors:
    """Fit on `train` and score on `test`; the module's docstring defines the numbers.

    Args:
      train: landmarks of the pool, all annotated training images that were predicted.
      test: landmarks of the test images.
      data: id of the data, see `data.specs.DatasetSpec.protocol`.
      normaliser: two point numbers, 'box' or 'image', see `normaliser_lengths`.
      image_side: side of the frame in pixels, for the normaliser 'image' and for `svt`.
      protocol: protocol that gives ridge strengths, intercept, `missing` and `min_found`, and part of the id.
      fits: indices of the images of the pool for each fit; None for one fit on all. Several fits are `averaged`.
      ced_limit: upper end, in percent, of the CED whose area is `ced_auc`.

    Raises:
      UserError: no image in a split, splits that differ in their number of points, a normaliser that no image has, or
        a protocol with meaningless values.
      ValueError: arrays of the wrong shape.
    """
    check_sets(train, test)
    protocol.checked()
    lengths = lengths_or_error(test, normaliser, image_side)[:, None]
    there_train, there_test = (_found(part)[1] for part in (train, test))
    all_found = bool(there_train.all() and there_test.all())
    fits = [np.arange(len(train.found))] if fits is None else fits

    def errors(train, test):
        inputs = complete_inputs(train, protocol.missing, image_side)
        return averaged([_scored(train, test, inputs, rows, lengths, protocol, ced_limit) for rows in fits])

    scores = errors(train, test)
    return Errors(
        **{field.name: getattr(scores, field.name) for field in dataclasses.fields(scores)},
        protocol=protocol.id(data, all_found),
        settings=protocol.asdict(),
        normaliser=normaliser_name(normaliser),
        n_pool=len(train.found),
        n_test=len(test.found),
        landmarks=there_test.shape[1],
        annotated=np.shape(test.truth)[1],
        left_out=np.flatnonzero(~there_train.any(0)).tolist(),
        found_train=float(there_train.mean()),
        found_test=float(there_test.mean()),
        found_share=float(np.concatenate([there_train, there_test]).mean()),
        found_train_each=there_train.mean(0),
        found_test_each=there_test.mean(0),
        not_scored=int((~np.isfinite(lengths)).sum()),
        often_found=None if all_found else _often_found(train, test, errors, protocol, data),
    )


def _often_found(train: LandmarkSet, test: LandmarkSet, errors, protocol: Protocol, data: str) -> OftenFound:
    """The result over the landmarks that are found often; `errors(train, test)` measures sets of landmarks."""
    there_train, there_test = (_found(part)[1] for part in (train, test))
    there = np.concatenate([there_train, there_test])
    often = there_train.any(0) & (there.sum(0) > protocol.min_found * len(there))
    # Not a mean of parts of the first result: regression and matrix completion see only these landmarks.
    few = errors(train.only(often), test.only(often)) if often.any() else None
    return OftenFound(
        protocol=protocol.often(data),
        min_found=float(protocol.min_found),
        landmarks=int(often.sum()),
        forward_nme=few and or_none(few.forward_nme),
        backward_nme=few and or_none(few.backward_nme),
    )


def _scored(train, test, inputs: Inputs, rows, lengths, protocol: Protocol, ced_limit: float) -> Scores:
    """Score `test` by maps fitted on some rows of `train`, whose landmarks are completed in `inputs`."""
    drawn, truth = train.take(rows), np.asarray(test.truth, np.float64)
    forward_map = fit_map(inputs, train.truth, rows, protocol.ridge_forward, protocol.intercept)
    predicted = apply_forward(forward_map, test.found, test.score)
    forward = 100 * _pixels(predicted, truth) / lengths
    mean_shape = known_mean(np.asarray(drawn.truth, np.float64), 0)
    baseline = 100 * _pixels(mean_shape, truth) / lengths
    first = protocol.backward_draw == "first"
    behind = train.take(np.arange(min(protocol.fit_images, len(inputs.xy)) or len(inputs.xy))) if first else drawn
    backward = 100 * _backward_errors(behind, test, protocol.ridge_backward, protocol.intercept) / lengths
    fitted, met = (_found(part)[1].any(0) for part in (behind, test))
    per_landmark = np.where(fitted & ~met, 100.0, known_mean(backward, 0))
    per_image = PerImage(
        forward_nme=known_mean(forward, 1), backward_nme=known_mean(backward, 1), mean_shape_nme=known_mean(baseline, 1)
    )
    seen = None if test.visible is None else np.asarray(test.visible, bool)

    def visible_nme(errors):
        return None if seen is None else float(known_mean(known_mean(np.where(seen, errors, np.nan), 1)))

    scored = per_image.forward_nme[np.isfinite(per_image.forward_nme)]
    return Scores(
        n_train=len(drawn.found),
        forward_nme=float(known_mean(per_image.forward_nme)),
        backward_nme=float(known_mean(per_landmark)),
        mean_shape_nme=float(known_mean(per_image.mean_shape_nme)),
        forward_nme_visible=visible_nme(forward),
        mean_shape_nme_visible=visible_nme(baseline),
        ced_auc=ced_auc(scored, ced_limit),
        ced_limit=float(ced_limit),
        not_annotated=np.flatnonzero(~np.isfinite(mean_shape).all(-1)).tolist(),
        per_landmark=PerLandmark(
            forward=known_mean(forward, 0), mean_shape=known_mean(baseline, 0), backward=per_landmark
        ),
        per_image=per_image,
        predicted=predicted,
    )


def mean_error(residuals) -> float | None:
    """Mean over images of the mean length of their residuals [N,L,2], without NaN; None if all are NaN."""
    return or_none(known_mean(known_mean(np.linalg.norm(residuals, axis=-1), 1)))
