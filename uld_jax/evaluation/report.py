"""What an evaluation leaves in a folder: numbers, a table of landmarks, and plots."""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from uld_jax import files, viz
from uld_jax.evaluation.curves import ced, ced_over_landmarks
from uld_jax.evaluation.missing import or_none

_FIRST = [
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
    "not_measured",
    "spread",
    "detected",
    "forward_nme_visible",
    "mean_shape_nme_visible",
    "ced_limit",
    "settings",
    "n_pool",
    "landmarks",
    "annotated",
    "left_out",
    "not_annotated",
    "found_train",
    "found_test",
    "found_share",
    "often_found",
    "nmi",
    "f_measure",
    "precision",
    "recall",
    "purity",
    "matched",
    "keypoints_per_image",
    "match_radius",
    "not_scored",
    "stability_protocol",
    "stability_counted",
    "stability_scaled_px",
    "landmark_accuracy",
    "pose_clusters",
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
            return or_none(value)
        return value

    keys = [*_FIRST, *(k for k in _MORE if k in result)]
    return {key: plain(result.get(key)) for key in keys}


def write_report(result: Mapping[str, Any], folder) -> dict[str, Any]:
    """Writes a result to a folder: `metrics.json`, `per_landmark.csv` and the plots that it has data for.

    Args:
      result: what `evaluate` returned, with any of these beside: `split`, `stage`, `stability_px`, `groups` (column ->
        what `group_by` returned), `label_counts` (what `label_counts` returned), `landmark_accuracy` (what that
        returned, but for `per_point`, which is in `per_landmark`), `pose_clusters`. Without annotation it may hold
        those alone; then there is no csv and no CED.
      folder: path, local or gs://; made if it does not exist.

    Returns:
      What was written to metrics.json.

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
        old.unlink(missing_ok=True)  # of an earlier evaluation that asked for other things
    written = metrics(result)
    files.write(folder / "metrics.json", json.dumps(written, indent=2, allow_nan=False) + "\n")
    if "per_landmark" in result:
        files.write(folder / "per_landmark.csv", _per_landmark_csv(result["per_landmark"]))
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
    if (result.get("landmark_accuracy") or {}).get("areas"):
        viz.save(viz.accuracy_plot(result["landmark_accuracy"]), folder / "landmark_accuracy.png")
    return written


def summary(report: Mapping[str, Any]) -> str:
    """A result in one line; `report` is as in `metrics.json`."""

    def percent(value):
        return "-" if value is None else f"{value:.2f} %"  # nothing was found

    if report.get("forward_nme") is None:
        stable = report.get("stability_px")
        why = report.get("not_measured") or "there is no annotation"
        return "" if stable is None else f"errors are not measured, as {why}; stability {stable:.2f} px at 128"
    text = (
        f"forward NME {percent(report['forward_nme'])}, backward {percent(report['backward_nme'])} "
        f"(mean shape {report['mean_shape_nme']:.2f} %; {report['protocol']}, {report['n_test']} images)"
    )
    often, stable = report.get("often_found"), report.get("stability_px")
    if often and often["forward_nme"] is not None:
        text += (
            f", of the {often['landmarks']} landmarks found on more than {100 * often['min_found']:g} % of the images "
            f"{percent(often['forward_nme'])}, {percent(often['backward_nme'])}"
        )
    return text if stable is None else f"{text}, stability {stable:.2f} px at 128"


def _per_landmark_csv(table: Mapping[str, Any]) -> str:
    """One row a landmark: annotated ones with their forward error, discovered ones with their backward error.

    Annotated ones also have how often a discovered one is where they are, and which: of the exclusive matching, and the
    best one, see `landmark_accuracy`.
    """
    more = [name for name in ("exclusive", "exclusive_of", "best", "best_of") if name in table]
    rows = [["kind", "landmark", "nme", "mean_shape_nme", "found_train", "found_test", *more]]

    def cell(value):
        return f"{value:.6g}" if np.isfinite(value) else ""

    for i, (error, baseline) in enumerate(zip(table["forward"], table["mean_shape"])):
        values = [table[name][i] for name in more]
        hits = [("" if v < 0 else v) if name.endswith("_of") else cell(v) for name, v in zip(more, values)]
        rows.append(["annotated", i, cell(error), cell(baseline), "", "", *hits])
    for j, values in enumerate(zip(table["backward"], table["found_train"], table["found_test"])):
        found = [cell(values[1]), cell(values[2])]
        rows.append(["discovered", j, cell(values[0]), "", *found, *("" for _ in more)])
    return files.csv_text(rows)
