"""The files of a report."""

import csv
import json

import numpy as np
import pytest

from tests.evaluation.shapes import evaluate, landmarks
from uld_jax.evaluation import curves, report
from uld_jax.evaluation.label_counts import label_counts
from uld_jax.evaluation.landmark_accuracy import landmark_accuracy


def test_report(tmp_path):
    train, test = landmarks(40, missing=0.1, seed=16), landmarks(20, missing=0.1, seed=17)
    train.score[:, 1] = 0
    result = evaluate(train, test)
    result |= {
        "split": "test",
        "stage": "detector",
        "stability_px": float("nan"),
        "groups": {"yaw/deg": curves.group_by(result["per_image"], test.columns["yaw"], [0, 30, 60, 90])},
        "label_counts": label_counts(train, test, normaliser=(0, 1), counts=(1, "all"), repeats=2),
    }
    written = report.write_report(result, tmp_path / "eval" / "test")
    text = (tmp_path / "eval/test/metrics.json").read_text()
    assert json.loads(text) == written
    assert "NaN" not in text
    assert written["forward_nme"] == result["forward_nme"]
    assert written["stability_px"] is None
    assert written["left_out"] == [1]
    assert len(written["groups"]["yaw/deg"]) == 3
    assert written["often_found"] == result["often_found"]
    assert written["found_share"] == pytest.approx((written["found_train"] * 2 + written["found_test"]) / 3)
    rows = list(csv.DictReader((tmp_path / "eval/test/per_landmark.csv").open()))
    assert [r["kind"] for r in rows] == ["annotated"] * 9 + ["discovered"] * 6
    assert float(rows[4]["nme"]) == pytest.approx(result["per_landmark"]["forward"][4], rel=1e-5)
    assert rows[10]["nme"] == ""
    assert float(rows[10]["found_train"]) == 0
    pictures = {p.name for p in (tmp_path / "eval/test").glob("*.png")}
    assert pictures == {"ced.png", "group_yaw_deg.png", "label_counts.png"}
    assert "best" not in rows[0]


def test_landmark_accuracy(tmp_path):
    train, test = landmarks(40, k=4, seed=16), landmarks(20, k=4, seed=17)
    result, found = evaluate(train, test), landmark_accuracy(train, test, normaliser=(0, 1), radius=0.5)
    result["per_landmark"] |= (point := found.pop("per_point"))
    written = report.write_report(result | {"landmark_accuracy": found}, tmp_path)
    assert written["landmark_accuracy"] == found
    assert json.loads((tmp_path / "metrics.json").read_text()) == written
    assert len(written["landmark_accuracy"]["areas"]) == 9
    rows = list(csv.DictReader((tmp_path / "per_landmark.csv").open()))
    for i, row in enumerate(rows[:9]):
        assert int(row["best_of"]) == point["best_of"][i]
        assert float(row["best"]) == pytest.approx(point["best"][i])
        assert (row["exclusive_of"] == "") == (row["exclusive"] == "") == (point["exclusive_of"][i] < 0)
    assert rows[9]["best"] == rows[9]["exclusive_of"] == ""
    (tmp_path / "pose_clusters.png").touch()
    assert (tmp_path / "landmark_accuracy.png").exists()
    report.write_report(evaluate(train, test), tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} == {"ced.png"}  # none of an earlier evaluation


def test_report_without_annotation(tmp_path):
    written = report.write_report({"split": "test", "stage": "zeroshot", "stability_px": np.float32(1.5)}, tmp_path)
    assert written["stability_px"] == 1.5
    assert written["forward_nme"] is None
    assert written["groups"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
