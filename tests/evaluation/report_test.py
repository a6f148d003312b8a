"""The files of a report."""

import csv
import dataclasses
import json
import pathlib

import numpy as np
import pytest

from tests.evaluation.made_up import Points, measure
from tests.evaluation.shapes import evaluate, landmarks
from uld_jax.evaluation import curves, report
from uld_jax.evaluation.label_counts import label_counts
from uld_jax.evaluation.landmark_accuracy import landmark_accuracy
from uld_jax.evaluation.stability import Stability


def reported(test, **parts):
    """A report of what was found on the images of a `LandmarkSet`."""
    rows = np.arange(len(test.found))
    return report.Report(landmarks=test.found.shape[1], xy=test.found, score=test.score, rows=rows, **parts)


def test_report(tmp_path):
    train, test = landmarks(40, missing=0.1, seed=16), landmarks(20, missing=0.1, seed=17)
    train.score[:, 1] = 0
    errors = evaluate(train, test)
    result = reported(
        test,
        errors=errors,
        split="test",
        stage="detector",
        stability=Stability(float("nan"), np.full(6, np.nan), np.zeros(6, int), np.full((3, 6), np.nan), "turned"),
        groups={"yaw/deg": curves.group_by(vars(errors.per_image), test.columns["yaw"], [0, 30, 60, 90])},
        label_counts=label_counts(train, test, normaliser=(0, 1), counts=(1, "all"), repeats=2),
    )
    written = report.write_report(result, tmp_path / "eval" / "test")
    text = (tmp_path / "eval/test/metrics.json").read_text()
    assert json.loads(text) == written
    assert "NaN" not in text
    assert written["forward_nme"] == errors.forward_nme
    assert written["stability_px"] is None
    assert written["left_out"] == [1]
    assert len(written["groups"]["yaw/deg"]) == 3
    assert written["often_found"] == vars(errors.often_found)
    assert written["found_share"] == pytest.approx((written["found_train"] * 2 + written["found_test"]) / 3)
    rows = list(csv.DictReader((tmp_path / "eval/test/per_landmark.csv").open()))
    assert [r["kind"] for r in rows] == ["annotated"] * 9 + ["discovered"] * 6
    assert float(rows[4]["nme"]) == pytest.approx(errors.per_landmark.forward[4], rel=1e-5)
    assert rows[10]["nme"] == ""
    assert float(rows[10]["found_train"]) == 0
    pictures = {p.name for p in (tmp_path / "eval/test").glob("*.png")}
    assert pictures == {"ced.png", "group_yaw_deg.png", "label_counts.png"}
    assert "best" not in rows[0]


def test_landmark_accuracy(tmp_path):
    train, test = landmarks(40, k=4, seed=16), landmarks(20, k=4, seed=17)
    found = landmark_accuracy(train, test, normaliser=(0, 1), radius=0.5)
    point = found.per_point
    written = report.write_report(reported(test, errors=evaluate(train, test), accuracy=found), tmp_path)
    plain = {"matched": found.matched, "exclusive": found.exclusive, "best": found.best}
    areas = {name: dataclasses.asdict(area) for name, area in found.areas.items()}
    assert written["landmark_accuracy"] == {"radius": 0.5, "n_train": 40, "n_test": 20} | plain | {"areas": areas}
    assert json.loads((tmp_path / "metrics.json").read_text()) == written
    assert len(written["landmark_accuracy"]["areas"]) == 9
    rows = list(csv.DictReader((tmp_path / "per_landmark.csv").open()))
    for i, row in enumerate(rows[:9]):
        assert int(row["best_of"]) == point.best_of[i]
        assert float(row["best"]) == pytest.approx(point.best[i])
        assert (row["exclusive_of"] == "") == (row["exclusive"] == "") == (point.exclusive_of[i] < 0)
    assert rows[9]["best"] == rows[9]["exclusive_of"] == ""
    (tmp_path / "pose_clusters.png").touch()
    assert (tmp_path / "landmark_accuracy.png").exists()
    report.write_report(reported(test, errors=evaluate(train, test)), tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} == {"ced.png"}  # none of an earlier evaluation


def test_names_of_annotated_landmarks(tmp_path):
    train, test = landmarks(40, k=4, seed=16), landmarks(20, k=4, seed=17)
    names = tuple(f"point {i}" for i in range(9))
    parts = dict(errors=evaluate(train, test), accuracy=landmark_accuracy(train, test, normaliser=(0, 1), names=names))
    assert "annotated_names" not in report.write_report(reported(test, **parts), tmp_path)
    plain = list(csv.DictReader((tmp_path / "per_landmark.csv").open()))
    written = report.write_report(reported(test, annotated_names=names, **parts), tmp_path)
    assert written["annotated_names"] == list(names)
    assert list(written["landmark_accuracy"]["areas"]) == list(names)
    rows = list(csv.DictReader((tmp_path / "per_landmark.csv").open()))
    assert [row.pop("name") for row in rows] == [*names, "", "", "", ""]
    assert rows == plain


def test_report_without_annotation(tmp_path):
    still = Stability(np.float32(1.5), np.zeros(6), np.ones(6, int), np.zeros((1, 6)), "turned")
    written = report.write_report(reported(landmarks(5), split="test", stage="zeroshot", stability=still), tmp_path)
    assert written["stability_px"] == 1.5
    assert written["forward_nme"] is None
    assert written["groups"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def partly_found():
    """Sets with landmarks that are missing, or filled in; hidden points, pose clusters and a yaw."""
    train, test = Points(60, seed=1), Points(50, seed=2)
    for part, seed in ((train, 3), (test, 4)):
        draw = np.random.default_rng(seed).random(part.score.shape)
        part.score[:] = np.where(draw < 0.2, 0, np.where(draw < 0.4, 0.05, 0.9))
    test.visible[:, 1] = np.arange(50) % 2
    test.pose = np.arange(50) % 3 * 2 - (np.arange(50) == 9) * 20
    test.columns = {"yaw": [f"{v}" for v in np.linspace(-80, 80, 50)]}
    return train, test


def approximately(value):
    """A JSON value whose numbers need not agree to the last digit."""
    if isinstance(value, dict):
        return {key: approximately(v) for key, v in value.items()}
    if isinstance(value, list):
        return [approximately(v) for v in value]
    return pytest.approx(value, rel=1e-4) if isinstance(value, float) else value


def keys(value):
    """All keys of a JSON value in their order."""
    if isinstance(value, dict):
        return [(key, keys(v)) for key, v in value.items()]
    return [keys(v) for v in value] if isinstance(value, list) else None


@pytest.mark.parametrize("name", ["everything", "on_the_way", "images_alone", "not_annotated"])
def test_metrics_json_key_by_key(still, name):
    """`measured.json` is what these sets gave when a report was a dictionary."""
    few = {"eval.fit_images": 12, "eval.repeats": 3, "seed": 7}
    if name == "everything":
        result = measure(*partly_found(), few, filled_below=0.1, label_counts=(1, 10, "all"))
        result = dataclasses.replace(result, split="test", stage="detector")
    elif name == "on_the_way":
        result = measure(Points(60, seed=1), Points(50, seed=2), thorough=False)
    elif name == "images_alone":
        result = dataclasses.replace(measure(partly_found()[0], None), split="train")
    else:
        result = measure(Points(60, seed=1), None, thorough=False)
    wanted = json.loads((pathlib.Path(__file__).parent / "measured.json").read_text())[name]
    given = json.loads(json.dumps(report.metrics(result)))
    assert keys(given) == keys(wanted)
    assert given == approximately(wanted)
