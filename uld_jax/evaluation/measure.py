"""All measures of a stage's landmarks on a data set, as a `report.Report`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from uld_jax.config import Config
from uld_jax.data import Source, schemes, specs
from uld_jax.data.open import Data
from uld_jax.data.specs import DatasetSpec
from uld_jax.errors import UserError
from uld_jax.evaluation import curves, protocols
from uld_jax.evaluation import landmark_regression as regression
from uld_jax.evaluation.carried import carried
from uld_jax.evaluation.chosen import Chosen, choose
from uld_jax.evaluation.correspondence import Correspondence, correspondence
from uld_jax.evaluation.direct import direct_errors
from uld_jax.evaluation.label_counts import label_counts
from uld_jax.evaluation.landmark_accuracy import landmark_accuracy
from uld_jax.evaluation.landmark_regression import LandmarkSet
from uld_jax.evaluation.pose_clusters import pose_clusters, yaw_of_points
from uld_jax.evaluation.predictor import Found, Predictor
from uld_jax.evaluation.protocol import draws, spread
from uld_jax.evaluation.report import Detected, Report
from uld_jax.evaluation.scores import Errors
from uld_jax.evaluation.stability import Stability, stability
from uld_jax.method import Model

MATCHED = 5000  # training images on which discovered landmarks are matched to annotated ones
SCALED = 0.0375  # deviation of log size; with the cut-off of the rotation, sizes are 0.9 to 1.1


def measure(
    config: Config,
    predictor: Predictor,
    model: Model,
    data: Data,
    *,
    group_by: str | None = None,
    label_counts: Sequence[Any] = (),
    thorough: bool = True,
    split: str = "test",
    chosen: Chosen | None = None,
) -> Report:
    """Measure a stage on the test split; the caller sets `split` and `stage` of the report.

    Keypoints that are missing on some images of an annotated split are also compared with its points, see
    `evaluation/correspondence.py`. If a stage places landmarks that it did not detect (`Prediction.detected`),
    `Report.detected` has the errors with these counted as missing.

    The choices are those of `evaluation/chosen.py`, as far as there are enough training images.

    Args:
      config: config of the run.
      predictor: predictor of the stage.
      model: the stage.
      data: both splits; without annotation only stability is measured.
      group_by: `COLUMN` or `COLUMN:edge,edge,...` of the test csv.
      label_counts: numbers of labelled images to fit with, see `label_counts.label_counts`.
      thorough: True for the protocol's whole pool of training images instead of `eval.train_images` of them, and for
        stability in turned and in turned and scaled views, which predicts some images four times more, and carried
        landmarks.
      split: name of the measured split, for the ids of numbers.
      chosen: protocol that was chosen of the same config, data, thoroughness and split already; None chooses it.

    Raises:
      UserError: an unknown column, splits that do not fit together, or a protocol that does not fit the data.
    """
    chosen = chosen or choose(config, data, thorough=thorough, split=split)
    if data.test is None:
        test, reader = data.train, data.train_reader
        rows = spread(len(data.train), 0 if thorough else config.eval.train_images)
    else:
        test, reader, rows = data.test, data.test_reader, np.arange(len(data.test))
    groups = _groups(group_by, test) if group_by else None  # before anything is predicted
    found = predictor.read(model, reader, rows)
    xy, score = found.xy, found.score
    pool = lambda train_rows: predictor.read(model, data.train_reader, train_rows)
    parts = _compared(config, chosen, data, rows, found, pool, groups, label_counts)
    if thorough:
        parts |= _stability(
            config, functools.partial(predictor.images, model), test, "train" if data.test is None else split
        )
        some = spread(len(rows), config.eval.stability_images)
        carry, read = functools.partial(predictor.carry, model), lambda i: test.images(rows[some[i]])
        parts["carried"] = carried(carry, read, xy[some], score[some])
    pose = predictor.poses(model, reader, rows)
    if pose is not None:
        yaw = yaw_of(test)
        parts |= {"pose": pose, "pose_clusters": pose_clusters(pose, None if yaw is None else yaw[rows])}
    return Report(landmarks=xy.shape[1], xy=xy, score=score, rows=rows, **parts)


def measure_points(
    config: Config,
    points: Callable[[Source, np.ndarray], Found],
    data: Data,
    *,
    group_by: str = "",
    label_counts: Sequence[Any] = (),
    direct: bool = False,
    split: str = "test",
    chosen: Chosen | None = None,
) -> Report:
    """Measure points that are known already, of any program, as `measure` measures those of a stage.

    There is no stability, since nothing can be predicted anew; the caller sets `split` and `stage` of the report.

    Args:
      config: config with `seed` and the keys of `eval` that make a protocol.
      points: function of a split and of increasing numbers of its rows that returns their points.
      data: both splits; their readers are not used.
      group_by, label_counts: as for `measure`.
      direct: True compares each point with the annotated point of its number, see `direct.direct_errors`; then only
        points of the test split are asked for.
      split, chosen: as for `measure`.

    Raises:
      UserError: a split without annotation, an unknown column, splits or points that do not fit together, or a protocol
        that does not fit the data.
    """
    if lacking := _lacking(data):
        raise UserError(f"there is nothing to compare points with, as {lacking}; annotate images of both splits")
    test, rows = data.test, np.arange(len(data.test))
    groups = _groups(group_by, test) if group_by else None
    found = points(test, rows)
    if direct:
        errors = direct_errors(
            _landmark_set(found.xy, found.score, test, rows),
            data.train.landmarks[specs.labelled(data.train)],
            data=test.spec.protocol,
            **_lengths(test.spec, test),
        )
        parts = {"errors": errors, "groups": _grouped(errors, groups, test)}
    else:
        pool = functools.partial(points, data.train)
        chosen = chosen or choose(config, data, split=split)
        parts = _compared(config, chosen, data, rows, found, pool, groups, label_counts)
    return Report(landmarks=found.xy.shape[1], xy=found.xy, score=found.score, rows=rows, **parts)


def _compared(
    config: Config,
    chosen: Chosen,
    data: Data,
    rows: np.ndarray,
    found: Found,
    pool: Callable[[np.ndarray], Found],
    groups: tuple | None,
    counts: Sequence[Any],
) -> dict[str, Any]:
    """The parts of a report that compare landmarks with annotation.

    Args:
      config: config of the run.
      chosen: protocol under which landmarks are measured.
      data: both splits.
      rows: [N] rows of the measured split.
      found: landmarks on these rows.
      pool: function that returns the landmarks on rows of the training split; not called without annotation.
      groups, counts: see `_against_annotation`.
    """
    test, parts = data.measured, {}
    if lacking := _lacking(data):
        parts["not_measured"] = lacking
    else:
        train_rows = chosen.pool(data.train)
        both = pool(train_rows), found
        where = (data.train, train_rows), (test, rows)
        sets = tuple(_landmark_set(f.xy, f.score, *at) for f, at in zip(both, where, strict=True))
        detected = [s._replace(score=np.where(f.detected, s.score, 0)) for f, s in zip(both, sets, strict=True)]
        parts |= _against_annotation(config, chosen, test, sets, detected, groups, counts)
    if len(specs.labelled(test)) and not (found.score > 0).all():
        parts["correspondence"] = _correspondence(found.xy, found.score, test, rows, chosen)
    return parts


def _against_annotation(
    config: Config,
    chosen: Chosen,
    test: Source,
    sets: tuple[LandmarkSet, LandmarkSet],
    detected: Sequence[LandmarkSet],
    groups: tuple | None,
    counts: Sequence[Any],
) -> dict[str, Any]:
    """The parts of a report that need annotation in both splits: errors, accuracy, groups, label_counts and others.

    Args:
      config: config of the run.
      chosen: protocol under which landmarks are measured.
      test: the test split.
      sets: landmarks of the pool of training images, and of the test images.
      detected: the same sets with landmarks that were not detected as missing.
      groups: the result of `_groups`, or None for bins of yaw if the split has a column of it.
      counts: numbers of labelled images to fit with.
    """
    protocol, spec = chosen.protocol, chosen.spec
    fits = draws(protocol, len(sets[0].found), config.seed)
    options = _lengths(spec, test)

    def scored(train, test_set):
        """Both errors, and the accuracy of landmarks at annotated points."""
        scheme = schemes.scheme_of(spec.scheme)
        errors = regression.evaluate(train, test_set, data=spec.protocol, protocol=protocol, fits=fits, **options)
        if errors.often_found is None:
            errors = dataclasses.replace(errors, protocol=chosen.id(complete=True))
        else:
            often = dataclasses.replace(errors.often_found, protocol=chosen.often())
            errors = dataclasses.replace(errors, protocol=chosen.id(complete=False), often_found=often)
        matched = train.take(spread(len(train.found), MATCHED))
        known = {"names": spec.landmark_names, "areas": scheme.areas if scheme else {}}
        return errors, landmark_accuracy(matched, test_set, radius=protocol.accuracy_radius, **known, **options)

    errors, accuracy = scored(*sets)
    parts: dict[str, Any] = {"errors": errors, "accuracy": accuracy}
    parts["annotated_names"] = test.spec.landmark_names or None
    if any((a.score != b.score).any() for a, b in zip(sets, detected, strict=True)):
        parts["detected"] = Detected(*scored(*detected))
    parts["groups"] = _grouped(errors, groups, test)
    if counts:
        parts["label_counts"] = label_counts(*sets, counts=counts, seed=config.seed, protocol=protocol, **options)
    return parts


def _lengths(spec: DatasetSpec, test: Source) -> dict[str, Any]:
    """The normaliser of a spec and the side of the frame of a split, as functions that measure take them."""
    return {"normaliser": spec.eyes or spec.normaliser, "image_side": test.frame_size}


def _grouped(errors: Errors, groups: tuple | None, test: Source) -> dict[str, list[curves.Group]] | None:
    """The errors of groups of images, by bins of yaw if no column was asked for; None without either."""
    if groups is None and "yaw" in test.columns and yaw_of(test) is not None:  # numbers, and not words
        groups = _groups("yaw:0,30,60,90", test)
    if groups is None:
        return None
    column, values, edges = groups
    return {column: curves.group_by(vars(errors.per_image), values, edges)}


def _correspondence(xy, score, test: Source, rows, chosen: Chosen) -> Correspondence:
    """The agreement of found keypoints and annotated points of some rows."""
    truth = test.landmarks[rows]
    lengths = regression.normaliser_lengths(truth, chosen.spec.eyes or chosen.spec.normaliser, test.frame_size)
    visible = None if test.visible is None else test.visible[rows]
    return correspondence(xy, score, truth, lengths, radius=chosen.protocol.match_radius, visible=visible)


def _stability(config: Config, predict: Callable, test: Source, split: str) -> dict[str, Stability]:
    """Stability in views that are turned, and in views that are turned and scaled."""
    rows = spread(len(test), config.eval.stability_images)
    read, views = lambda i: test.images(rows[i]), {"seed": config.seed}
    views["batch_size"] = min(config.eval.batch_size, len(rows))
    measured = {"stability": {}, "stability_scaled": {"scale": SCALED}}
    found = {name: stability(predict, read, len(rows), **views, **more) for name, more in measured.items()}
    named = lambda measure: protocols.plain(test.spec.name, measure, len(rows), len(test), split)
    return {name: each._replace(protocol=named(each.protocol)) for name, each in found.items()}


def _lacking(data: Data) -> str:
    """The reason why neither error can be measured; empty if they can."""
    if data.test is None or data.test is data.train:
        return "there is no test split"
    bare = [name for name in ("train", "test") if not len(specs.labelled(getattr(data, name)))]
    return f"no image of the split {' and of the split '.join(bare)} is annotated" if bare else ""


def _groups(group_by: str, test: Source) -> tuple[str, Any, list[float] | None]:
    """A column, its values and edges of bins. Raises UserError for an unknown column, or edges that are no numbers."""
    column, _, edges = group_by.partition(":")
    values = test.columns.get(column)
    if values is not None and not any(str(value).strip() for value in values):
        values = None  # only another split's csv has it
    if values is None and column == "yaw":
        values = yaw_of(test)
    if values is None:
        known = ", ".join(test.columns) or "none"
        raise UserError(f"--group_by={group_by}: the test csv has no column {column!r}; its columns are {known}")
    return column, values, [_edge(edge, group_by) for edge in edges.split(",")] if edges else None


def yaw_of(source: Source) -> np.ndarray | None:
    """Yaw of a split's images in degrees, [N], NaN where unknown; None if no source has it.

    The yaw is read from the column `yaw`, or without one computed from the points of a scheme that allows it
    (`pose_clusters.yaw_of_points`). The stretch of images, in the frame or in their file, is undone for that.
    """
    if "yaw" in source.columns:
        try:
            yaw = np.array([float(v) if str(v).strip() else np.nan for v in source.columns["yaw"]])
            return yaw if np.isfinite(yaw).any() else None
        except ValueError:
            return None  # words, such as left and right
    scheme = schemes.scheme_of(source.spec.scheme)
    if source.landmarks is None or scheme is None or not scheme.fixed:
        return None
    stretch = source.frame_maps[:, 1] / source.frame_maps[:, 0]  # magnification of y by that of x
    stretch = stretch * np.array(source.columns.get(specs.STRETCH, [1] * len(source)), np.float64)
    upright = source.landmarks / np.stack([np.ones_like(stretch), stretch], -1)[:, None]
    yaw = yaw_of_points(upright, scheme.mirror, scheme.fixed).yaw
    return yaw if np.isfinite(yaw).any() else None


def _landmark_set(xy, score, source: Source, rows) -> LandmarkSet:
    """Discovered and annotated landmarks on some rows of a source."""
    visible = None if source.visible is None else source.visible[rows]
    columns = {name: [values[i] for i in rows] for name, values in source.columns.items()}
    return LandmarkSet(xy, score, source.landmarks[rows], visible, columns)


def _edge(text: str, group_by: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(
            f"--group_by={group_by}: {text!r} is not a number; give the edges as numbers, such as yaw:0,30,60,90"
        ) from error
