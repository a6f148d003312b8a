"""Forward and backward error of discovered landmarks, and the curves and tables around them.

A detector finds K landmarks without names. How much do they say about the L annotated ones? A ridge regression from
one set to the other is fitted on annotated training images and scored on test images:

  forward    X = discovered, Y = annotated:   can the annotation be predicted from what was discovered?
  backward   X = annotated, Y = discovered:   do the discovered points sit at fixed places of the object?

  error_ij = |prediction_ij - target_ij| / normaliser_i          NME = 100 * mean of error_ij        (percent)

Both directions divide by the normaliser of the test image's *annotation* (Mallis et al., NeurIPS 2020 section 4 and
TPAMI 2024; Sanchez & Tzimiropoulos, NeurIPS 2019, for the backward error). The backward error averages over the K
discovered landmarks. A frozen detector has a backward error of 0 and the forward error of the mean shape, a noisy
one is bad at both: read the two together, and beside `mean_shape_nme`, the error of predicting the training images'
mean annotation without looking.

Missing points:

* forward, on training images: with `missing="mean"` a landmark that was not found takes its mean over the training
  images on which it was found; with `missing="svt"` the matrix of all training coordinates is completed by singular
  value thresholding (Mallis et al. 2020, "evaluation"; `ops/completion.py`). As in their code coordinates are then
  shares of the frame's side and are not centred, and what was found keeps its place. Points that are missing now and
  then are filled in well. Landmarks that are never found on the same image are not: nothing ties one to the other, and
  the completion puts them near the frame's corner, far from their mean;
* forward, on test images: a landmark that was not found takes its training mean, whatever the policy;
* backward: landmark j is fitted on the training images and scored on the test images on which it was found. Found on
  none of the test images, it scores 100 %;
* a landmark found on no training image is left out of both and reported in `left_out`.

The protocol id ends in `+missing_mean` or `+missing_svt` when some point was missing, and there is a second result over
the landmarks that are found often (`often_found`): the code of Mallis et al. (not their paper) drops landmarks that are
missing on 20 % of all images, training and test together, before anything is fitted. Annotated points without
coordinates (NaN) take no part: neither in the fit, nor in the score; as inputs of the backward fit they take their
training mean.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from uld_jax.errors import UserError
from uld_jax.evaluators.curves import CED_LIMIT, ced_auc
from uld_jax.evaluators.missing import known_mean, or_none
from uld_jax.ops.completion import complete
from uld_jax.ops.ridge import choose_strength, fit_ridge, leave_one_out_residuals

STRENGTH = 0.01  # of the largest entry of X'X
MIN_FOUND = 0.8  # share of images, for the landmarks that are found often
MISSING = ("mean", "svt")

Normaliser = str | tuple[int, int]


class LandmarkSet(NamedTuple):
    """What was found on N images and what is annotated there, all in pixels of the frame.

    Attributes:
      found: [N,K,2] discovered landmarks.
      score: [N,K]; 0 (or a NaN in `found`) means missing.
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
        """The images `rows` (indices)."""
        rows = np.asarray(rows, np.int64)
        return LandmarkSet(
            np.asarray(self.found)[rows],
            np.asarray(self.score)[rows],
            np.asarray(self.truth)[rows],
            None if self.visible is None else np.asarray(self.visible)[rows],
            {name: [values[i] for i in rows] for name, values in self.columns.items()},
        )

    def only(self, landmarks) -> "LandmarkSet":
        """The discovered `landmarks` (indices or [K] bool)."""
        return self._replace(found=np.asarray(self.found)[:, landmarks], score=np.asarray(self.score)[:, landmarks])


class ForwardMap(NamedTuple):
    """The affine map from discovered to annotated landmarks, with what stands in for landmarks not found.

    Attributes:
      weights: [2L,2K] float64; columns of landmarks that no training image has are 0.
      bias: [2L] float64, NaN for points that no training image has annotated.
      fill: [K,2] float64, the training mean of each discovered landmark.
      used: [K] bool, found on some training image.
      strength: [L] float64, the ridge strength of each annotated point.
    """

    weights: np.ndarray
    bias: np.ndarray
    fill: np.ndarray
    used: np.ndarray
    strength: np.ndarray


# The normaliser


def normaliser_lengths(truth, normaliser: Normaliser, image_side: float | None = None) -> np.ndarray:
    """The length in pixels by which each image's errors are divided, [N]; NaN where it cannot be told or is 0.

    Args:
      truth: [N,L,2] annotated points.
      normaliser: two point numbers: their distance; 'box': sqrt(width * height) of the box around all annotated points;
        'image': `image_side`.
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
    """As reports call it."""
    return normaliser if isinstance(normaliser, str) else f"points {normaliser[0]} and {normaliser[1]}"


# The two regressions


def _found(landmarks: LandmarkSet) -> tuple[np.ndarray, np.ndarray]:
    """Discovered points [N,K,2] float64, NaN where missing, and where they are not, [N,K]."""
    xy = np.asarray(landmarks.found, np.float64)
    there = (np.asarray(landmarks.score) > 0) & np.isfinite(xy).all(-1)
    return np.where(there[..., None], xy, np.nan), there


def _flat(points) -> np.ndarray:
    return points.reshape(len(points), -1)


def _patterns(there):
    """Points that are `there` [N,J] on the same rows: (rows [N] bool, numbers of the points), if there are rows."""
    patterns, member = np.unique(there, axis=1, return_inverse=True)
    for p in range(patterns.shape[1]):
        if patterns[:, p].any():
            yield patterns[:, p], np.flatnonzero(member.ravel() == p)


def _fit_columns(x, y, there, strength):
    """Ridge from complete x [N,I] to points y [N,J,2], each point on the rows where it is `there` [N,J].

    Points with the same rows share one fit. Returns weights [2J,I], bias [2J] and strength [J], NaN for points without
    a row.
    """
    weights = np.full((y.shape[1], 2, x.shape[1]), np.nan)
    bias = np.full((y.shape[1], 2), np.nan)
    strengths = np.full(y.shape[1], np.nan)
    for rows, points in _patterns(there):
        target = _flat(y[rows][:, points])
        strengths[points] = choose_strength(x[rows], target) if strength is None else strength
        ridge = fit_ridge(x[rows], target, strengths[points[0]])
        weights[points] = ridge.weights.reshape(len(points), 2, -1)
        bias[points] = (ridge.y_mean - ridge.weights @ ridge.x_mean).reshape(len(points), 2)
    return weights.reshape(-1, x.shape[1]), bias.ravel(), strengths


def fit_forward(
    train: LandmarkSet,
    strength: float | None = STRENGTH,
    *,
    missing: str = "mean",
    image_side: float | None = None,
) -> ForwardMap:
    """Fits the map from discovered to annotated landmarks on all images of `train`, from one image on.

    With a single image the map is that image's annotation, whatever is found.

    Args:
      train: landmarks of annotated images.
      strength: ridge penalty, relative as in `ops/ridge.py`; None chooses it by the leave-one-out error, which is what
        a few labelled images need. Evaluations use the protocol's fixed one.
      missing: what stands in for points that were not found: `mean` or `svt`, see the module.
      image_side: side of the frame in pixels, for `svt`.

    Raises:
      UserError: another word for `missing`.
    """
    check_missing(missing)
    xy, there = _found(train)
    truth = np.asarray(train.truth, np.float64)
    fill, used = known_mean(xy, 0), there.any(0)
    fill = np.where(used[:, None], fill, 0.0)
    x = np.where(there[..., None], xy, fill)
    if missing == "svt" and not there[:, used].all():
        x = np.where(used[:, None], _completed(xy, there, image_side), fill)
    annotated = np.isfinite(truth).all(-1)
    weights, bias, strengths = _fit_columns(_flat(x), truth, annotated, strength)
    return ForwardMap(weights, bias, fill, used, strengths)


def check_missing(missing: str) -> None:
    """Raises UserError for a policy that there is not."""
    if missing not in MISSING:
        raise UserError(f"eval.missing is {missing!r}; use one of {', '.join(MISSING)}")


def _completed(xy, there, side):
    """[N,K,2] with what is not `there` [N,K] as matrix completion has it; landmarks that are nowhere do not matter."""
    if not side:
        raise ValueError("missing='svt' needs image_side")
    known = np.repeat(there, 2, axis=1)
    # The defaults of `complete` without the columns that are empty: those stay, and draws of images share a program.
    rows, columns = len(xy), known.any(0).sum()
    tau, delta = 5 * (rows + columns) / 2, 1.2 * rows * columns / max(known.sum(), 1)
    share = complete(_flat(xy) / side, known, tau=tau, delta=delta).x
    filled = side * np.asarray(share, np.float64).reshape(xy.shape)
    return np.where(there[..., None], xy, filled)  # as found, to the last digit


def leave_one_out(train: LandmarkSet, forward: ForwardMap) -> np.ndarray:
    """How far each annotated point of `train` is from where a map fitted without its image puts it, [N,L,2].

    For maps with missing points at their means. The ridge strengths are those of `forward`, a fit to all of `train`.
    NaN where a point is not annotated, or on one image alone.
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
    """Annotated landmarks [N,L,2] predicted from discovered ones [N,K,2] with score [N,K]; any N."""
    xy, there = _found(LandmarkSet(found, score, None))
    there &= forward.used
    x = np.where(there[..., None], xy, forward.fill)
    return (_flat(x) @ forward.weights.T + forward.bias).reshape(len(x), -1, 2)


def _forward_errors(train: LandmarkSet, test: LandmarkSet, lengths, *, strength, missing, image_side):
    """The forward map, the annotated landmarks that it predicts [N,L,2], and their errors [N,L] in percent."""
    forward_map = fit_forward(train, strength, missing=missing, image_side=image_side)
    predicted = apply_forward(forward_map, test.found, test.score)
    pixels = np.linalg.norm(predicted - np.asarray(test.truth, np.float64), axis=-1)
    return forward_map, predicted, 100 * pixels / lengths


def _backward_errors(train: LandmarkSet, test: LandmarkSet, strength: float) -> np.ndarray:
    """Pixels from the discovered landmarks of `test` to where its annotation says they should be, [N,K]."""
    y, there = _found(train)
    target, _ = _found(test)
    x, z = np.asarray(train.truth, np.float64), np.asarray(test.truth, np.float64)
    mean = known_mean(x, 0)
    mean = np.where(np.isfinite(mean), mean, 0.0)
    x, z = np.where(np.isfinite(x), x, mean), np.where(np.isfinite(z), z, mean)
    weights, bias, _ = _fit_columns(_flat(x), y, there, strength)
    prediction = (_flat(z) @ weights.T + bias).reshape(target.shape)
    return np.linalg.norm(prediction - target, axis=-1)


# Evaluation


def _check(train: LandmarkSet, test: LandmarkSet) -> None:
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


def _lengths_or_error(test: LandmarkSet, normaliser: Normaliser, image_side: float | None) -> np.ndarray:
    lengths = normaliser_lengths(test.truth, normaliser, image_side)
    if not np.isfinite(lengths).any():
        raise UserError(
            f"the normaliser {normaliser} is missing or 0 on every test image; choose another data.normaliser"
        )
    return lengths


def evaluate(
    train: LandmarkSet,
    test: LandmarkSet,
    *,
    protocol: str,
    normaliser: Normaliser,
    image_side: float | None = None,
    strength: float = STRENGTH,
    ced_limit: float = CED_LIMIT,
    missing: str = "mean",
    min_found: float = MIN_FOUND,
) -> dict[str, Any]:
    """Fits on `train`, scores on `test`; the module says what the numbers mean.

    Args:
      train: landmarks of the annotated training images; all of them are used.
      test: landmarks of the test images.
      protocol: id of the protocol, see `data.specs.DatasetSpec`; `+missing_mean` or `+missing_svt` is added where
        points are missing.
      normaliser: two point numbers, 'box' or 'image', see `normaliser_lengths`.
      image_side: side of the frame in pixels, for the normaliser 'image' and for `svt`.
      strength: ridge penalty of both directions, relative as in `ops/ridge.py`.
      ced_limit: upper end, in percent, of the CED whose area is `ced_auc`.
      missing: what stands in for training points that were not found: `mean` or `svt`, see the module.
      min_found: share of images on which a landmark has to be found to count in `often_found`.

    Returns:
      A dict. All errors are in percent of the normaliser; a mean over images is a mean of per-image means.
        protocol, normaliser, strength, n_train, n_test, landmarks (K), annotated (L)
        forward_nme, backward_nme, mean_shape_nme      over all annotated points
        forward_nme_visible, mean_shape_nme_visible    over the visible ones; None if the annotation does not tell
        ced_auc, ced_limit   area under the share of test images whose forward error is below a threshold, for
                             thresholds from 0 to `ced_limit` percent, divided by that range: 0 to 1, 1 is best
        left_out             discovered landmarks that no training image has
        not_annotated        annotated points that no training image has; they are not scored
        found_train, found_test, found_share           share of the points that were found, in all images the last
        often_found          if some point is missing: min_found; landmarks, how many were found on at least that share
                             of all training and test images; forward_nme and backward_nme from these alone, None
                             without any
        not_scored           test images whose normaliser is missing
        per_landmark         forward [L], mean_shape [L], backward [K], found_train [K], found_test [K]
        per_image            forward_nme [N], backward_nme [N], mean_shape_nme [N]
        predicted            [N,L,2] annotated landmarks as the forward map places them, in pixels of the frame

    Raises:
      UserError: no image in a split, splits that differ in their number of points, or a normaliser that fits nowhere.
      ValueError: arrays of the wrong shape.
    """
    _check(train, test)
    check_missing(missing)
    lengths = _lengths_or_error(test, normaliser, image_side)[:, None]
    truth = np.asarray(test.truth, np.float64)
    _, there_train = _found(train)
    _, there_test = _found(test)
    options = {"strength": strength, "missing": missing, "image_side": image_side}
    forward_map, predicted, forward = _forward_errors(train, test, lengths, **options)
    used = forward_map.used

    mean_shape = known_mean(np.asarray(train.truth, np.float64), 0)
    baseline = 100 * np.linalg.norm(mean_shape - truth, axis=-1) / lengths
    backward = 100 * _backward_errors(train, test, strength) / lengths  # [N,K], NaN where not found
    backward[:, ~used] = np.nan
    backward_landmark = np.where(used & ~there_test.any(0), 100.0, known_mean(backward, 0))

    per_image = {
        "forward_nme": known_mean(forward, 1),
        "backward_nme": known_mean(backward, 1),
        "mean_shape_nme": known_mean(baseline, 1),
    }
    seen = None if test.visible is None else np.asarray(test.visible, bool)

    def visible_nme(errors):
        return None if seen is None else float(known_mean(known_mean(np.where(seen, errors, np.nan), 1)))

    there = np.concatenate([there_train, there_test])
    often = {}
    if not there.all():
        passed = used & (there.mean(0) >= min_found)
        # Not a mean of the errors above: the regression sees these landmarks alone, and their matrix is completed.
        parts = [part.only(passed) for part in (train, test)]
        errors = _forward_errors(*parts, lengths, **options)[2] if passed.any() else np.full(forward.shape, np.nan)
        often["often_found"] = {
            "min_found": float(min_found),
            "landmarks": int(passed.sum()),
            "forward_nme": or_none(known_mean(known_mean(errors, 1))),
            "backward_nme": or_none(known_mean(backward_landmark[passed])),
        }
    scored = per_image["forward_nme"][np.isfinite(per_image["forward_nme"])]
    return {
        "protocol": protocol if there.all() else f"{protocol}+missing_{missing}",
        "normaliser": normaliser_name(normaliser),
        "strength": float(strength),
        "n_train": len(train.found),
        "n_test": len(test.found),
        "landmarks": len(used),
        "annotated": truth.shape[1],
        "forward_nme": float(known_mean(per_image["forward_nme"])),
        "backward_nme": float(known_mean(backward_landmark)),
        "mean_shape_nme": float(known_mean(per_image["mean_shape_nme"])),
        "forward_nme_visible": visible_nme(forward),
        "mean_shape_nme_visible": visible_nme(baseline),
        "ced_auc": ced_auc(scored, ced_limit),
        "ced_limit": float(ced_limit),
        "left_out": np.flatnonzero(~used).tolist(),
        "not_annotated": np.flatnonzero(~np.isfinite(mean_shape).all(-1)).tolist(),
        "found_train": float(there_train.mean()),
        "found_test": float(there_test.mean()),
        "found_share": float(there.mean()),
        **often,
        "not_scored": int((~np.isfinite(lengths)).sum()),
        "per_landmark": {
            "forward": known_mean(forward, 0),
            "mean_shape": known_mean(baseline, 0),
            "backward": backward_landmark,
            "found_train": there_train.mean(0),
            "found_test": there_test.mean(0),
        },
        "per_image": per_image,
        "predicted": predicted,
    }


def averaged(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several results of `evaluate`, fitted on different training images and scored on the same test images, as one.

    Errors and shares, the tables by landmark and by image among them, are means over the results that have a value;
    counts, names and `predicted` are those of the first. `spread` tells how far they are apart: repeats, and the sample
    standard deviations of forward_nme and backward_nme.

    Raises:
      ValueError: no results.
    """
    if not results:
        raise ValueError("averaged needs at least one result")
    if len(results) == 1:
        return dict(results[0])

    def mean(values, name=""):
        known = [v for v in values if v is not None]
        first = known[0] if known else None
        if isinstance(first, Mapping):
            return {key: mean([v.get(key) for v in known], key) for key in first}
        if isinstance(first, np.ndarray) and name != "predicted":
            return known_mean(np.stack(known), 0)
        return float(known_mean(np.array(known))) if isinstance(first, float) else first

    keys = dict.fromkeys(key for result in results for key in result)
    spread = {
        name: or_none(np.std([result[name] for result in results], ddof=1)) for name in ("forward_nme", "backward_nme")
    }
    together = {key: mean([result.get(key) for result in results], key) for key in keys}
    return together | {"spread": {"repeats": len(results)} | spread}


def label_counts(
    train: LandmarkSet,
    test: LandmarkSet,
    *,
    normaliser: Normaliser,
    image_side: float | None = None,
    counts: Sequence[int | str] = (1, 5, 10, 50, "all"),
    repeats: int = 10,
    seed: int = 0,
    strength: float = STRENGTH,
    missing: str = "mean",
) -> list[dict]:
    """Forward error against the number of annotated training images.

    For each count n, `repeats` random draws of n training images, each fitted with the protocol's own ridge and scored
    on all of `test`; the draws depend on (seed, n, repeat) alone. Missing points are filled in from the drawn images
    alone. 'all' is one fit. With n = 1 the prediction is that image's annotation, so the two columns agree.

    Returns:
      One dict a count: `n`, `repeats`, `forward_nme` (mean over draws), `forward_nme_std` (over draws, 0 for one),
      `mean_shape_nme`, the mean error of the drawn images' mean shape. Counts above the number of training images are
      left out with a warning.

    Raises:
      UserError: counts that are neither positive numbers nor 'all', or what `evaluate` raises.
    """
    _check(train, test)
    lengths = _lengths_or_error(test, normaliser, image_side)[:, None]
    truth = np.asarray(test.truth, np.float64)
    total = len(train.found)
    wanted = []
    for count in counts:
        if str(count) != "all" and not (str(count).isdecimal() and int(count) > 0):
            raise UserError(f"label_counts holds {count!r}; give positive numbers and 'all', such as 1,10,100,all")
        wanted.append(total if str(count) == "all" else int(count))
    if max(wanted, default=0) > total:
        warnings.warn(f"label_counts above the {total} annotated training images are left out", stacklevel=2)
    rows = []
    for n in sorted({n for n in wanted if n <= total}):
        errors = []
        for repeat in range(repeats if n < total else 1):
            draw = np.random.default_rng((seed, n, repeat)).permutation(total)[:n] if n < total else np.arange(total)
            few = train.take(draw)
            fitted = fit_forward(few, strength, missing=missing, image_side=image_side)
            predicted = apply_forward(fitted, test.found, test.score)
            mean_shape = known_mean(np.asarray(few.truth, np.float64), 0)
            errors.append([_nme(predicted, truth, lengths), _nme(mean_shape, truth, lengths)])
        forward, baseline = np.array(errors).T
        rows.append(
            {
                "n": n,
                "repeats": len(errors),
                "forward_nme": or_none(known_mean(forward)),
                "forward_nme_std": or_none(np.std(forward)),
                "mean_shape_nme": or_none(known_mean(baseline)),
            }
        )
    return rows


def _nme(predicted, truth, lengths) -> float:
    return float(known_mean(known_mean(100 * np.linalg.norm(predicted - truth, axis=-1) / lengths, 1)))


def mean_error(residuals) -> float | None:
    """Mean over images of the mean length over their points of [N,L,2], without NaN; None if there is nothing else."""
    return or_none(known_mean(known_mean(np.linalg.norm(residuals, axis=-1), 1)))
