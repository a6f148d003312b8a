"""The result of an evaluation, and its files in a folder: numbers, a table of landmarks, and plots."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from uld_jax import files, viz
from uld_jax.evaluation.carried import Carried
from uld_jax.evaluation.correspondence import Correspondence
from uld_jax.evaluation.curves import Group, ced, ced_over_landmarks
from uld_jax.evaluation.label_counts import LabelCount
from uld_jax.evaluation.landmark_accuracy import LandmarkAccuracy
from uld_jax.evaluation.missing import or_none
from uld_jax.evaluation.pose_clusters import PoseClusters
from uld_jax.evaluation.scores import Errors
from uld_jax.evaluation.stability import Stability


@dataclasses.dataclass(frozen=True, eq=False)
class Detected:
    """Measures for which landmarks that were filled in count as missing.

    Attributes:
      errors: forward and backward error, with their tables.
      accuracy: share of images on which landmarks are near annotated ones.
    """

    errors: Errors
    accuracy: LandmarkAccuracy


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """All measures of a stage on one split; a part that was not measured is None.

    Attributes:
      landmarks: K, number of discovered landmarks, which some methods determine themselves.
      xy: [N,K,2] discovered landmarks of the N images that were predicted, in pixels of the frame.
      score: [N,K] confidences; 0 means that the landmark was not found.
      rows: [N] int, numbers of these images in their split.
      split: name of the split; None until the caller sets it, like `stage`.
      stage: name of the stage.
      not_measured: the reason why there are no errors, as the end of a sentence.
      errors: forward and backward error, and the tables behind them.
      detected: measures for which landmarks that the stage filled in count as missing; None if it filled in none.
      accuracy: share of images on which discovered landmarks are near annotated ones.
      groups: mean errors of groups of images, by the name of the annotation's column that defines the groups.
      label_counts: errors with fewer labelled images, in increasing order.
      correspondence: keypoints against annotated points; None if every landmark was found on every image.
      stability: movement of landmarks in turned images.
      stability_scaled: movement of landmarks in turned and scaled images.
      carried: landmarks against those carried from other images; None for a stage that carries no points.
      pose: [N] int, pose cluster of every image; negative for none. None for a stage without pose clusters.
      pose_clusters: agreement of the clusters of poses with yaw.
      annotated_names: names of the annotated landmarks; None if they have none.
    """

    landmarks: int
    xy: np.ndarray
    score: np.ndarray
    rows: np.ndarray
    split: str | None = None
    stage: str | None = None
    not_measured: str | None = None
    errors: Errors | None = None
    detected: Detected | None = None
    accuracy: LandmarkAccuracy | None = None
    groups: dict[str, list[Group]] | None = None
    label_counts: list[LabelCount] | None = None
    correspondence: Correspondence | None = None
    stability: Stability | None = None
    stability_scaled: Stability | None = None
    carried: Carried | None = None
    pose: np.ndarray | None = None
    pose_clusters: PoseClusters | None = None
    annotated_names: tuple[str, ...] | None = None


def metrics(report: Report) -> dict[str, Any]:
    """The numbers of a report as in `metrics.json`: plain JSON values, None for NaN and infinity.

    Keys up to `label_counts` are always there, None if nothing was measured; other keys are there only with their part.
    """
    errors, stability = report.errors, report.stability

    def of_errors(*names):
        return {} if errors is None else {name: getattr(errors, name) for name in names}

    first = ("n_train", "n_test", "normaliser", "forward_nme", "backward_nme", "mean_shape_nme")
    values = {"protocol": errors and errors.protocol, "split": report.split, "stage": report.stage}
    values |= dict.fromkeys(first) | of_errors(*first)
    values |= {"stability_px": stability and stability.px, "ced_auc": errors and errors.ced_auc}
    values |= {"groups": report.groups, "label_counts": report.label_counts}
    if report.not_measured:
        values["not_measured"] = report.not_measured
    if errors and errors.spread:
        values["spread"] = errors.spread
    if report.detected:
        values["detected"] = _detected(report.detected)
    values |= of_errors("forward_nme_visible", "mean_shape_nme_visible", "ced_limit", "settings", "n_pool")
    values["landmarks"] = report.landmarks
    values |= of_errors("annotated", "left_out", "not_annotated", "found_train", "found_test", "found_share")
    if report.annotated_names:
        values["annotated_names"] = report.annotated_names
    if errors and errors.often_found:
        values["often_found"] = errors.often_found
    if report.correspondence:
        values |= dataclasses.asdict(report.correspondence)
    values |= of_errors("not_scored")
    if stability:
        values |= {"stability_protocol": stability.protocol, "stability_counted": stability.counted.sum()}
    if report.stability_scaled:
        values["stability_scaled_px"] = report.stability_scaled.px
    if report.carried:
        values["carried"] = report.carried._asdict()
    if report.accuracy:
        values["landmark_accuracy"] = _accuracy(report.accuracy)
    if report.pose_clusters:
        values["pose_clusters"] = _pose_clusters(report.pose_clusters)
    return _plain(values)


def _detected(detected: Detected) -> dict[str, Any]:
    names = ("protocol", "found_train", "found_test", "found_share", "forward_nme", "backward_nme", "spread")
    values = {name: getattr(detected.errors, name) for name in names}
    if values["spread"] is None:
        del values["spread"]
    accuracy = {"exclusive": detected.accuracy.exclusive, "best": detected.accuracy.best}
    return values | {"landmark_accuracy": accuracy}


def _accuracy(accuracy: LandmarkAccuracy) -> dict[str, Any]:
    """The accuracy as in `metrics.json`, without the values of every point, which are in `per_landmark.csv`."""
    names = (field.name for field in dataclasses.fields(accuracy))
    return {name: getattr(accuracy, name) for name in names if name != "per_point"}


def _pose_clusters(clusters: PoseClusters) -> dict[str, Any]:
    values = {"sizes": clusters.sizes, "unclustered": clusters.unclustered}
    return values | (dataclasses.asdict(clusters.yaw) if clusters.yaw else {})


def _plain(value):
    """Convert a value to plain JSON values."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return or_none(value)
    return value


def write_report(report: Report, folder) -> dict[str, Any]:
    """Write a report to a folder: `metrics.json`, `per_landmark.csv` and the plots for which it has data.

    Args:
      report: the report; without errors there is no csv and no CED.
      folder: path, local or gs://; made if it does not exist.

    Returns:
      The contents of metrics.json.

    Files: `ced.png` (over images, and over landmarks), `group_<column>.png`, `label_counts.png`,
    `landmark_accuracy.png`.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in [
        *folder.glob("group_*.png"),
        *(folder / f"{name}.png" for name in ("ced", "label_counts", "landmark_accuracy", "pose_clusters")),
        folder / "per_landmark.csv",
    ]:
        old.unlink(missing_ok=True)  # an earlier evaluation may have written other plots
    written = metrics(report)
    files.write(folder / "metrics.json", json.dumps(written, indent=2, allow_nan=False) + "\n")
    if report.errors:
        files.write(folder / "per_landmark.csv", _per_landmark_csv(report))
        viz.save(_ced_plot(report.errors), folder / "ced.png")
    for column, groups in (report.groups or {}).items():
        name = re.sub(r"[^\w.-]+", "_", column)
        viz.save(viz.bar_plot(groups, title=f"error by {column}"), folder / f"group_{name}.png")
    if report.label_counts:
        viz.save(viz.label_count_plot(report.label_counts), folder / "label_counts.png")
    if report.accuracy and report.accuracy.areas:
        viz.save(viz.accuracy_plot(report.accuracy), folder / "landmark_accuracy.png")
    return written


def _ced_plot(errors: Errors):
    per_image, per_landmark, limit = errors.per_image, errors.per_landmark, errors.ced_limit
    return viz.ced_plot(
        {"forward": ced(per_image.forward_nme, limit), "mean shape": ced(per_image.mean_shape_nme, limit)},
        {
            "forward": ced_over_landmarks(per_landmark.forward),
            "backward": ced_over_landmarks(per_landmark.backward),
        },
        title=errors.protocol,
    )


def summary(numbers: Mapping[str, Any]) -> str:
    """Summarise a result in one line; `numbers` are as in `metrics.json`."""

    def percent(value):
        return "-" if value is None else f"{value:.2f} %"  # nothing was found

    if numbers.get("forward_nme") is None:
        stable = numbers.get("stability_px")
        why = numbers.get("not_measured") or "there is no annotation"
        return "" if stable is None else f"errors are not measured, as {why}; stability {stable:.2f} px at 128"
    text = (
        f"forward NME {percent(numbers['forward_nme'])}, backward {percent(numbers['backward_nme'])} "
        f"(mean shape {numbers['mean_shape_nme']:.2f} %; {numbers['protocol']}, {numbers['n_test']} images)"
    )
    often, stable = numbers.get("often_found"), numbers.get("stability_px")
    if often and often["forward_nme"] is not None:
        text += (
            f", of the {often['landmarks']} landmarks found on more than {100 * often['min_found']:g} % of the images "
            f"{percent(often['forward_nme'])}, {percent(often['backward_nme'])}"
        )
    return text if stable is None else f"{text}, stability {stable:.2f} px at 128"


def _per_landmark_csv(report: Report) -> str:
    """Write one row a landmark: annotated ones with their forward error, discovered ones with their backward error.

    Rows of annotated landmarks also have the share of images on which a discovered one is near, and its number, for the
    exclusive matching and for the best one, see `landmark_accuracy`. Names of annotated landmarks are a column.
    """
    errors, accuracy, names = report.errors, report.accuracy, report.annotated_names or ()
    more = [] if accuracy is None else ["exclusive", "exclusive_of", "best", "best_of"]
    head = ["kind", "landmark", *(["name"] if names else [])]
    rows = [[*head, "nme", "mean_shape_nme", "found_train", "found_test", *more]]

    def cell(value):
        return f"{value:.6g}" if np.isfinite(value) else ""

    table = errors.per_landmark
    for i, (error, baseline) in enumerate(zip(table.forward, table.mean_shape)):
        values = [getattr(accuracy.per_point, name)[i] for name in more]
        hits = [("" if v < 0 else v) if name.endswith("_of") else cell(v) for name, v in zip(more, values)]
        rows.append(["annotated", i, *names[i : i + 1], cell(error), cell(baseline), "", "", *hits])
    for j, values in enumerate(zip(table.backward, errors.found_train_each, errors.found_test_each)):
        found = [cell(values[1]), cell(values[2])]
        rows.append(["discovered", j, *[""] * bool(names), cell(values[0]), "", *found, *("" for _ in more)])
    return files.csv_text(rows)
