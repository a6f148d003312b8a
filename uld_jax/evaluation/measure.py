"""Everything that can be measured of a stage's landmarks on a data set."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from uld_jax.config import Config
from uld_jax.data import Source, specs
from uld_jax.data.open import Data
from uld_jax.errors import UserError
from uld_jax.evaluation import curves, pose_clusters
from uld_jax.evaluation import landmark_regression as regression
from uld_jax.evaluation.correspondence import correspondence
from uld_jax.evaluation.label_counts import label_counts as label_counts_of
from uld_jax.evaluation.landmark_accuracy import landmark_accuracy
from uld_jax.evaluation.predictor import Predictor
from uld_jax.evaluation.protocol import Protocol, draws, spread
from uld_jax.evaluation.stability import stability
from uld_jax.method import TrainState

MATCHED = 5000  # training images that decide which landmark stands for which
SCALED = 0.0375  # deviation of log size: cut off as the rotation is, sizes of 0.9 to 1.1


def measure(
    config: Config,
    predictor: Predictor,
    state: TrainState,
    frozen,
    data: Data,
    *,
    group_by: str | None = None,
    label_counts: Sequence[Any] = (),
    thorough: bool = True,
) -> dict[str, Any]:
    """All that can be measured; the arrays `found` and `score` of the test images, and their `rows`, ride along.

    Keypoints that are missing on some images of an annotated split are also compared with its points, see
    `evaluation/correspondence.py`. Where a stage fills in landmarks that it did not detect (`Stage.filled_below`) and
    did so, `detected` holds found_share, both errors and `landmark_accuracy` with these counted as missing. Of a stage
    that has pose clusters there is that of every test image, `pose`, and `pose_clusters`.

    The choices of `evaluation/protocol.py` hold, as far as there are so many training images.

    Args:
      config: of the run.
      predictor: of the stage.
      state, frozen: of the stage.
      data: both splits; without annotation only stability is measured.
      group_by: `COLUMN` or `COLUMN:edge,edge,...` of the test csv.
      label_counts: numbers of labelled images to fit with, see `label_counts.label_counts`.
      thorough: the protocol's own pool of training images, and not only `eval.train_images` of them; also stability,
        turned alone and turned and scaled, which predicts some images four times more.

    Raises:
      UserError: an unknown column, or splits that do not fit together.
    """
    labelled = specs.labelled(data.train)
    protocol = _protocol(config, len(labelled), thorough)
    train_rows = spread(len(data.train), 0 if thorough else config.eval.train_images)
    if data.test is None:
        test, reader, rows = data.train, data.train_reader, train_rows
    else:
        test, reader, rows = data.test, data.test_reader, np.arange(len(data.test))
    groups = _groups(group_by, test) if group_by else None  # before anything is predicted
    xy, score = predictor.read(state, frozen, reader, rows)
    result: dict[str, Any] = {"landmarks": xy.shape[1]}  # which some methods find out themselves
    normaliser, scheme = test.spec.eyes or test.spec.normaliser, specs.scheme_of(test.spec.scheme)
    if lacking := _lacking(data):
        result["not_measured"] = lacking
    else:
        train_rows = labelled[spread(len(labelled), protocol.pool_images)]
        found = (*predictor.read(state, frozen, data.train_reader, train_rows), data.train, train_rows)
        sets = [_landmark_set(*found), _landmark_set(xy, score, test, rows)]
        fits = draws(protocol, len(train_rows), config.seed)
        options = {"normaliser": normaliser, "image_side": test.frame_size}

        def scored(train, test):
            """Both errors, and how often landmarks are where annotated ones are."""
            errors = regression.evaluate(
                train, test, data=data.test.spec.protocol, protocol=protocol, fits=fits, **options
            )
            matched = train.take(spread(len(train.found), MATCHED))
            known = {"names": data.test.spec.landmark_names, "areas": scheme.areas if scheme else {}}
            accuracy = landmark_accuracy(matched, test, radius=protocol.accuracy_radius, **known, **options)
            errors["per_landmark"] |= accuracy.pop("per_point")
            return errors | {"landmark_accuracy": accuracy}

        result = scored(*sets)
        detected = [s._replace(score=np.where(s.score < predictor.filled_below, 0, s.score)) for s in sets]
        if any((a.score != b.score).any() for a, b in zip(sets, detected, strict=True)):
            kept = scored(*detected)
            names = ("protocol", "found_train", "found_test", "found_share", "forward_nme", "backward_nme", "spread")
            result["detected"] = {name: kept[name] for name in names if name in kept}
            near = {name: kept["landmark_accuracy"][name] for name in ("exclusive", "best")}
            result["detected"]["landmark_accuracy"] = near
        if not group_by and "yaw" in test.columns and yaw_of(test) is not None:  # numbers, and not words
            groups = _groups("yaw:0,30,60,90", test)
        if groups:
            column, values, edges = groups
            result["groups"] = {column: curves.group_by(result["per_image"], values, edges)}
        if label_counts:
            result["label_counts"] = label_counts_of(
                *sets, counts=label_counts, seed=config.seed, protocol=protocol, **options
            )
    if len(specs.labelled(test)) and not (score > 0).all():
        truth = test.landmarks[rows]
        lengths = regression.normaliser_lengths(truth, normaliser, test.frame_size)
        visible = None if test.visible is None else test.visible[rows]
        result |= correspondence(xy, score, truth, lengths, radius=protocol.match_radius, visible=visible)
    if thorough:
        predict = functools.partial(predictor.images, state, frozen)
        count = min(config.eval.stability_images, len(test))
        images = test.images(np.linspace(0, len(test) - 1, count).astype(int))
        views = {"seed": config.seed, "batch_size": min(config.eval.batch_size, count)}
        found = stability(predict, images, **views)
        result |= {"stability_px": found.px, "stability_counted": int(found.counted.sum())}
        result["stability_protocol"] = found.protocol
        result["stability_scaled_px"] = stability(predict, images, scale=SCALED, **views).px
    pose = predictor.poses(state, frozen, reader, rows)
    if pose is not None:
        yaw = yaw_of(test)
        clusters = pose_clusters.pose_clusters(pose, None if yaw is None else yaw[rows])
        result |= {"pose": pose, "pose_clusters": clusters}
    return result | {"found": xy, "score": score, "rows": rows}


def _lacking(data: Data) -> str:
    """Why neither error can be measured; empty if they can."""
    if data.test is None or data.test is data.train:
        return "there is no test split"
    bare = [name for name in ("train", "test") if not len(specs.labelled(getattr(data, name)))]
    return f"no image of the split {' and of the split '.join(bare)} is annotated" if bare else ""


def _groups(group_by: str, test: Source) -> tuple[str, Any, list[float] | None]:
    """Column, its values and edges of bins. Raises UserError for an unknown column, or edges that are no numbers."""
    column, _, edges = group_by.partition(":")
    values = test.columns.get(column)
    if values is not None and not any(str(value).strip() for value in values):
        values = None  # only another split's csv has it
    if values is None and column == "yaw":
        values = yaw_of(test)
    if values is None:
        known = ", ".join(test.columns) or "none"
        raise UserError(f"--group_by={group_by}: the test csv has no column {column!r}; its columns are {known}")
    return column, values, [_number(e, "--group_by") for e in edges.split(",")] if edges else None


def yaw_of(source: Source) -> np.ndarray | None:
    """Yaw of a split's images in degrees, [N], NaN where unknown; None if it cannot be told.

    From the column `yaw`; without one, from the points of a scheme that tell it (`pose_clusters.yaw_of_points`).
    """
    if "yaw" in source.columns:
        try:
            yaw = np.array([float(v) if str(v).strip() else np.nan for v in source.columns["yaw"]])
            return yaw if np.isfinite(yaw).any() else None
        except ValueError:
            return None  # words, such as left and right
    scheme = specs.scheme_of(source.spec.scheme)
    if source.landmarks is None or scheme is None or not scheme.fixed:
        return None
    yaw = pose_clusters.yaw_of_points(source.landmarks, scheme.mirror, scheme.fixed).yaw
    return yaw if np.isfinite(yaw).any() else None


def _protocol(config: Config, images: int, thorough: bool) -> Protocol:
    """The protocol of an evaluation on a training split of so many images."""
    protocol = Protocol.of(config)
    most = 0 if thorough else config.eval.train_images
    return protocol._replace(pool_images=min(filter(None, (most, protocol.pool_images)), default=0)).on(images)


def _landmark_set(xy, score, source: Source, rows) -> regression.LandmarkSet:
    """What was found on some rows of a source, and what is annotated there."""
    visible = None if source.visible is None else source.visible[rows]
    columns = {name: [values[i] for i in rows] for name, values in source.columns.items()}
    return regression.LandmarkSet(xy, score, source.landmarks[rows], visible, columns)


def _number(text: str, field: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{field}: {text!r} is not a number") from error
