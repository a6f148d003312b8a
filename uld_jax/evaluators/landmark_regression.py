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

Missing points (policy `missing_mean`, section "evaluation" of Mallis et al. without their matrix completion):

* forward: a landmark that was not found takes its mean over the training images on which it was found;
* backward: landmark j is fitted on the training images and scored on the test images on which it was found. Found on
  none of the test images, it scores 100 %;
* a landmark found on no training image is left out of both and reported in `left_out`.

The protocol id ends in `+missing_mean` when some point was missing. Annotated points without coordinates (NaN) take
no part: neither in the fit, nor in the score; as inputs of the backward fit they take their training mean.
"""

import csv
import io
import itertools
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from uld_jax import viz
from uld_jax.errors import UserError
from uld_jax.ops.ridge import choose_strength, fit_ridge

STRENGTH = 0.01  # of the largest entry of X'X
CED_LIMIT = 25.0  # percent of the normaliser

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


# The two regressions


def _mean(values, axis=None):
    """Mean of the values that are not NaN; NaN, without a warning, where there are none."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    total = np.where(known, values, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _found(landmarks: LandmarkSet) -> tuple[np.ndarray, np.ndarray]:
    """Discovered points [N,K,2] float64, NaN where missing, and where they are not, [N,K]."""
    xy = np.asarray(landmarks.found, np.float64)
    there = (np.asarray(landmarks.score) > 0) & np.isfinite(xy).all(-1)
    return np.where(there[..., None], xy, np.nan), there


def _flat(points) -> np.ndarray:
    return points.reshape(len(points), -1)


def _fit_columns(x, y, there, strength):
    """Ridge from complete x [N,I] to points y [N,J,2], each point on the rows where it is `there` [N,J].

    Points with the same rows share one fit. Returns weights [2J,I], bias [2J] and strength [J], NaN for points without
    a row.
    """
    weights = np.full((y.shape[1], 2, x.shape[1]), np.nan)
    bias = np.full((y.shape[1], 2), np.nan)
    strengths = np.full(y.shape[1], np.nan)
    patterns, member = np.unique(there, axis=1, return_inverse=True)
    for p in range(patterns.shape[1]):
        rows, points = patterns[:, p], np.flatnonzero(member.ravel() == p)
        if rows.any():
            target = _flat(y[rows][:, points])
            strengths[points] = choose_strength(x[rows], target) if strength is None else strength
            ridge = fit_ridge(x[rows], target, strengths[points[0]])
            weights[points] = ridge.weights.reshape(len(points), 2, -1)
            bias[points] = (ridge.y_mean - ridge.weights @ ridge.x_mean).reshape(len(points), 2)
    return weights.reshape(-1, x.shape[1]), bias.ravel(), strengths


def fit_forward(train: LandmarkSet, strength: float | None = STRENGTH) -> ForwardMap:
    """Fits the map from discovered to annotated landmarks on all images of `train`, from one image on.

    With a single image the map is that image's annotation, whatever is found.

    Args:
      train: landmarks of annotated images.
      strength: ridge penalty, relative as in `ops/ridge.py`; None chooses it by the leave-one-out error, which is what
        a few labelled images need. Evaluations use the protocol's fixed one.
    """
    xy, there = _found(train)
    truth = np.asarray(train.truth, np.float64)
    fill, used = _mean(xy, 0), there.any(0)
    fill = np.where(used[:, None], fill, 0.0)
    x = np.where(there[..., None], xy, fill)
    annotated = np.isfinite(truth).all(-1)
    weights, bias, strengths = _fit_columns(_flat(x), truth, annotated, strength)
    return ForwardMap(weights, bias, fill, used, strengths)


def apply_forward(forward: ForwardMap, found, score) -> np.ndarray:
    """Annotated landmarks [N,L,2] predicted from discovered ones [N,K,2] with score [N,K]; any N."""
    xy, there = _found(LandmarkSet(found, score, None))
    there &= forward.used
    x = np.where(there[..., None], xy, forward.fill)
    return (_flat(x) @ forward.weights.T + forward.bias).reshape(len(x), -1, 2)


def _backward_errors(train: LandmarkSet, test: LandmarkSet, strength: float) -> np.ndarray:
    """Pixels from the discovered landmarks of `test` to where its annotation says they should be, [N,K]."""
    y, there = _found(train)
    target, _ = _found(test)
    x, z = np.asarray(train.truth, np.float64), np.asarray(test.truth, np.float64)
    mean = _mean(x, 0)
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
) -> dict[str, Any]:
    """Fits on `train`, scores on `test`; the module says what the numbers mean.

    Args:
      train: landmarks of the annotated training images; all of them are used.
      test: landmarks of the test images.
      protocol: id of the protocol, see `data.specs.DatasetSpec`; `+missing_mean` is added where it applies.
      normaliser: two point numbers, 'box' or 'image', see `normaliser_lengths`.
      image_side: side of the frame in pixels, for the normaliser 'image'.
      strength: ridge penalty of both directions, relative as in `ops/ridge.py`.
      ced_limit: upper end, in percent, of the CED whose area is `ced_auc`.

    Returns:
      A dict. All errors are in percent of the normaliser; a mean over images is a mean of per-image means.
        protocol, normaliser, strength, n_train, n_test, landmarks (K), annotated (L)
        forward_nme, backward_nme, mean_shape_nme      over all annotated points
        forward_nme_visible, mean_shape_nme_visible    over the visible ones; None if the annotation does not tell
        ced_auc, ced_limit   area under the share of test images whose forward error is below a threshold, for
                             thresholds from 0 to `ced_limit` percent, divided by that range: 0 to 1, 1 is best
        left_out             discovered landmarks that no training image has
        not_annotated        annotated points that no training image has; they are not scored
        found_train, found_test                        share of the points that were found
        not_scored           test images whose normaliser is missing
        per_landmark         forward [L], mean_shape [L], backward [K], found_train [K], found_test [K]
        per_image            forward_nme [N], backward_nme [N], mean_shape_nme [N]
        predicted            [N,L,2] annotated landmarks as the forward map places them, in pixels of the frame

    Raises:
      UserError: no image in a split, splits that differ in their number of points, or a normaliser that fits nowhere.
      ValueError: arrays of the wrong shape.
    """
    _check(train, test)
    lengths = _lengths_or_error(test, normaliser, image_side)[:, None]
    truth = np.asarray(test.truth, np.float64)
    _, there_train = _found(train)
    _, there_test = _found(test)
    forward_map = fit_forward(train, strength)
    used = forward_map.used

    predicted = apply_forward(forward_map, test.found, test.score)
    forward = 100 * np.linalg.norm(predicted - truth, axis=-1) / lengths  # [N,L], NaN where not annotated
    mean_shape = _mean(np.asarray(train.truth, np.float64), 0)
    baseline = 100 * np.linalg.norm(mean_shape - truth, axis=-1) / lengths
    backward = 100 * _backward_errors(train, test, strength) / lengths  # [N,K], NaN where not found
    backward[:, ~used] = np.nan
    backward_landmark = np.where(used & ~there_test.any(0), 100.0, _mean(backward, 0))

    per_image = {
        "forward_nme": _mean(forward, 1),
        "backward_nme": _mean(backward, 1),
        "mean_shape_nme": _mean(baseline, 1),
    }
    seen = None if test.visible is None else np.asarray(test.visible, bool)

    def visible_nme(errors):
        return None if seen is None else float(_mean(_mean(np.where(seen, errors, np.nan), 1)))

    complete = there_train.all() and there_test.all()
    scored = per_image["forward_nme"][np.isfinite(per_image["forward_nme"])]
    return {
        "protocol": protocol if complete else f"{protocol}+missing_mean",
        "normaliser": normaliser if isinstance(normaliser, str) else f"points {normaliser[0]} and {normaliser[1]}",
        "strength": float(strength),
        "n_train": len(train.found),
        "n_test": len(test.found),
        "landmarks": len(used),
        "annotated": truth.shape[1],
        "forward_nme": float(_mean(per_image["forward_nme"])),
        "backward_nme": float(_mean(backward_landmark)),
        "mean_shape_nme": float(_mean(per_image["mean_shape_nme"])),
        "forward_nme_visible": visible_nme(forward),
        "mean_shape_nme_visible": visible_nme(baseline),
        "ced_auc": ced_auc(scored, ced_limit),
        "ced_limit": float(ced_limit),
        "left_out": np.flatnonzero(~used).tolist(),
        "not_annotated": np.flatnonzero(~np.isfinite(mean_shape).all(-1)).tolist(),
        "found_train": float(there_train.mean()),
        "found_test": float(there_test.mean()),
        "not_scored": int((~np.isfinite(lengths)).sum()),
        "per_landmark": {
            "forward": _mean(forward, 0),
            "mean_shape": _mean(baseline, 0),
            "backward": backward_landmark,
            "found_train": there_train.mean(0),
            "found_test": there_test.mean(0),
        },
        "per_image": per_image,
        "predicted": predicted,
    }


# Curves and tables


def ced(errors, limit: float = CED_LIMIT, points: int = 101) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative error distribution over images: thresholds [points] in percent and the share of images at or below.

    >>> ced([1.0, 3.0], limit=4, points=5)[1].tolist()
    [0.0, 0.5, 0.5, 1.0, 1.0]
    """
    errors = np.sort(np.asarray(errors, np.float64))
    errors = errors[np.isfinite(errors)]
    thresholds = np.linspace(0, limit, points)
    return thresholds, np.searchsorted(errors, thresholds, side="right") / max(len(errors), 1)


def ced_auc(errors, limit: float = CED_LIMIT) -> float:
    """Area under the CED up to `limit`, as a fraction of the whole: exactly the mean of max(0, 1 - error / limit)."""
    errors = np.asarray(errors, np.float64)
    return float(_mean(np.where(np.isnan(errors), np.nan, np.clip(1 - errors / limit, 0, 1))))


def ced_over_landmarks(per_landmark) -> tuple[np.ndarray, np.ndarray]:
    """The curve of Mallis et al.: landmarks sorted by error, and the mean error of the best 1, 2, ... of them.

    >>> [v.tolist() for v in ced_over_landmarks([6.0, 2.0, 4.0])]
    [[1, 2, 3], [2.0, 3.0, 4.0]]
    """
    errors = np.sort(np.asarray(per_landmark, np.float64))
    errors = errors[np.isfinite(errors)]
    count = np.arange(1, len(errors) + 1)
    return count, np.cumsum(errors) / count


def _numbers(values) -> np.ndarray | None:
    """Values as float64, NaN for empty cells; None if some value is no number."""
    try:
        return np.array([float(v) if str(v).strip() else np.nan for v in values], np.float64)
    except ValueError:
        return None


def group_by(errors: Mapping[str, Any], values: Sequence[Any], edges: Sequence[float] | None = None) -> list[dict]:
    """Mean errors per group of images.

    With edges e0 < e1 < ... an image belongs to the bin e0 <= v < e1 and so on; the last bin holds its upper edge too.
    When all edges are >= 0 and some value is negative, v is the *absolute* value and the label begins with ±:
    `yaw:0,30,60,90` speaks of the distance from frontal. Without edges every distinct value is a group, but a column
    of more than 12 different numbers is cut into fifths of equal count. Images without a value, or outside the edges,
    are groups at the end: nothing is left out in silence.

    Args:
      errors: name -> [N] per-image errors (`evaluate(...)["per_image"]`); NaN means not scored.
      values: N values of a column, strings or numbers.
      edges: increasing bin edges, at least two.

    Returns:
      One dict a group that has images: `group` (a label), `n`, and the mean of each kind of error, None if no image of
      the group has it.

    Raises:
      UserError: edges that do not increase, or edges on a column that holds text.

    >>> group_by({"forward_nme": [1, 3, 8]}, ["-10", "20", "70"], edges=[0, 30, 90])[0]
    {'group': '± 0 to 30', 'n': 2, 'forward_nme': 2.0}
    """
    values = list(values)
    errors = {name: np.asarray(e, np.float64) for name, e in errors.items()}
    if any(len(e) != len(values) for e in errors.values()):
        raise ValueError("group_by takes one value an image")
    numbers = _numbers(values)
    groups = []
    if edges is None and numbers is not None and len(np.unique(numbers[np.isfinite(numbers)])) > 12:
        edges = np.unique(np.quantile(numbers[np.isfinite(numbers)], np.linspace(0, 1, 6)))
        v, sign = numbers, ""
    elif edges is not None:
        edges = np.asarray(edges, np.float64)
        if len(edges) < 2 or not (np.diff(edges) > 0).all():
            raise UserError("the edges of group_by are at least two increasing numbers, such as yaw:0,30,60,90")
        if numbers is None:
            raise UserError("group_by has edges, but the column holds text; leave the edges out")
        absolute = (edges >= 0).all() and (numbers < 0).any()
        v, sign = (np.abs(numbers), "± ") if absolute else (numbers, "")
    if edges is not None:
        for low, high in itertools.pairwise(edges):
            inside = (v >= low) & ((v <= high) if high == edges[-1] else (v < high))
            groups.append((f"{sign}{_short(low)} to {_short(high)}", inside))
        groups.append(("outside", (v < edges[0]) | (v > edges[-1])))
        groups.append(("no value", np.isnan(v)))
    else:
        text = np.array([str(v).strip() for v in values])
        key = (lambda t: float(t)) if numbers is not None else str
        groups = [(t, text == t) for t in sorted({t for t in text.tolist() if t}, key=key)]
        groups.append(("no value", text == ""))
    return [
        {"group": label, "n": int(member.sum()), **{k: _none(_mean(e[member])) for k, e in errors.items()}}
        for label, member in groups
        if member.any()
    ]


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
) -> list[dict]:
    """Forward error against the number of annotated training images.

    For each count n, `repeats` random draws of n training images, each fitted with the protocol's own ridge and scored
    on all of `test`; the draws depend on (seed, n, repeat) alone. 'all' is one fit. With n = 1 the prediction is that
    image's annotation, so the two columns agree.

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
            predicted = apply_forward(fit_forward(few, strength), test.found, test.score)
            mean_shape = _mean(np.asarray(few.truth, np.float64), 0)
            errors.append([_nme(predicted, truth, lengths), _nme(mean_shape, truth, lengths)])
        forward, baseline = np.array(errors).T
        rows.append(
            {
                "n": n,
                "repeats": len(errors),
                "forward_nme": _none(_mean(forward)),
                "forward_nme_std": _none(np.std(forward)),
                "mean_shape_nme": _none(_mean(baseline)),
            }
        )
    return rows


def _nme(predicted, truth, lengths) -> float:
    return float(_mean(_mean(100 * np.linalg.norm(predicted - truth, axis=-1) / lengths, 1)))


def _none(value):
    """NaN and infinity become None: JSON has neither."""
    return float(value) if np.isfinite(value) else None


def _short(number: float) -> str:
    return f"{number:.3g}"


# Report

_METRICS = [
    "protocol",
    "split",
    "stage",
    "n_train",
    "n_test",
    "normaliser",
    "forward_nme",
    "backward_nme",
    "mean_shape_nme",
    "stability_px",
    "ced_auc",
    "groups",
    "label_counts",
]
_MORE = [
    "forward_nme_visible",
    "mean_shape_nme_visible",
    "ced_limit",
    "strength",
    "landmarks",
    "annotated",
    "left_out",
    "not_annotated",
    "found_train",
    "found_test",
    "not_scored",
    "stability_counted",
]


def metrics(result: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a result that goes to `metrics.json`: plain JSON values, None for what was not measured."""

    def plain(value):
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, np.ndarray | list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, bool | np.bool_):
            return bool(value)
        if isinstance(value, int | np.integer):
            return int(value)
        if isinstance(value, float | np.floating):
            return _none(value)
        return value

    keys = [*_METRICS, *(k for k in _MORE if k in result)]
    return {key: plain(result.get(key)) for key in keys}


def write_report(result: Mapping[str, Any], folder) -> dict[str, Any]:
    """Writes a result to a folder: `metrics.json`, `per_landmark.csv` and the plots that it has data for.

    Args:
      result: what `evaluate` returned, with any of these beside: `split`, `stage`, `stability_px`, `groups` (column ->
        what `group_by` returned), `label_counts` (what `label_counts` returned). Without annotation it may hold those
        alone; then there is no csv and no CED.
      folder: path, local or gs://; made if it does not exist.

    Returns:
      What was written to metrics.json.

    Files: `ced.png` (over images, and over landmarks), `group_<column>.png`, `label_counts.png`.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in [
        *folder.glob("group_*.png"),
        *(folder / name for name in ("ced.png", "label_counts.png", "per_landmark.csv")),
    ]:
        old.unlink(missing_ok=True)  # of an earlier evaluation that asked for other things
    written = metrics(result)
    (folder / "metrics.json").write_text(json.dumps(written, indent=2, allow_nan=False) + "\n")
    if "per_landmark" in result:
        (folder / "per_landmark.csv").write_text(_per_landmark_csv(result["per_landmark"]))
        per_image, limit = result["per_image"], result["ced_limit"]
        viz.save(
            viz.ced_plot(
                {
                    "forward": ced(per_image["forward_nme"], limit),
                    "mean shape": ced(per_image["mean_shape_nme"], limit),
                },
                {
                    "forward": ced_over_landmarks(result["per_landmark"]["forward"]),
                    "backward": ced_over_landmarks(result["per_landmark"]["backward"]),
                },
                title=result["protocol"],
            ),
            folder / "ced.png",
        )
    for column, groups in (result.get("groups") or {}).items():
        name = re.sub(r"[^\w.-]+", "_", column)
        viz.save(viz.bar_plot(groups, title=f"error by {column}"), folder / f"group_{name}.png")
    if result.get("label_counts"):
        viz.save(viz.label_count_plot(result["label_counts"]), folder / "label_counts.png")
    return written


def _per_landmark_csv(table: Mapping[str, Any]) -> str:
    """One row a landmark: annotated ones with their forward error, discovered ones with their backward error."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "landmark", "nme", "mean_shape_nme", "found_train", "found_test"])

    def cell(value):
        return f"{value:.6g}" if np.isfinite(value) else ""

    for i, (error, baseline) in enumerate(zip(table["forward"], table["mean_shape"])):
        writer.writerow(["annotated", i, cell(error), cell(baseline), "", ""])
    for j, values in enumerate(zip(table["backward"], table["found_train"], table["found_test"])):
        writer.writerow(["discovered", j, cell(values[0]), "", cell(values[1]), cell(values[2])])
    return text.getvalue()
