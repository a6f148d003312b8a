"""`uld evaluate` as a user meets it: reports, keys and one-sentence errors."""

import json
import shutil

import pytest

from uld_jax.evaluation.protocol import Protocol


def test_evaluate_writes_its_report(run, photos, uld):
    args = ("evaluate", f"--workdir={run}", "--group_by=yaw:-90,0,90", "--label_counts=1,5,all")
    code, out, err = uld(*args)
    assert code == 0, err
    metrics = json.loads((run / "eval/test/metrics.json").read_text())
    assert metrics["protocol"] == "folder_20_box+ridge_0.001_0.1"  # fewer images than the paper draws
    assert metrics["n_train"] == 24
    assert sum(g["n"] for g in metrics["groups"]["yaw"]) == 8
    assert [r["n"] for r in metrics["label_counts"]] == [1, 5, 24]
    assert metrics["label_counts"][-1]["forward_nme"] == pytest.approx(metrics["forward_nme"])
    assert f"{metrics['forward_nme']:.2f}" in out
    assert "spread" not in metrics
    code, _, err = uld("evaluate", f"--workdir={run}", "--repeats=3", "--fit_images=10")
    assert code == 0, err
    few = json.loads((run / "eval/test/metrics.json").read_text())
    assert (few["n_train"], few["spread"]["repeats"]) == (10, 3)
    assert few["spread"]["forward_nme"] > 0
    assert few["protocol"] == "folder_20_box+ridge_0.001_0.1+fit_10x3"
    code, out, err = uld("evaluate", f"--workdir={run}", "--protocol=jakab2018")
    assert code == 0, err
    assert "folder_20_box+ridge_0+no_intercept" in out
    code, _, err = uld("evaluate", f"--workdir={run}", "--protocol=jakob2018")
    assert code == 1
    assert "use one of jakab2018, " in err
    code, _, err = uld("evaluate", f"--workdir={run}", "--protocol=mafl_5_full")
    assert code == 1
    assert "is for 5 points of the scheme eyes_nose_mouth5, and the data set folder has 20 of the scheme none" in err
    code, _, err = uld("evaluate", f"--workdir={run}", "--protocol=awan2023", "--repeats=3")
    assert code == 1
    assert "set eval.fit_images to the number that each repeat draws" in err
    code, _, err = uld("evaluate", f"--workdir={run}", "--stage=zeroshot")
    assert code == 0, err
    first = json.loads((run / "eval/test/zeroshot/metrics.json").read_text())
    assert first["stage"] == "zeroshot"
    assert json.loads((run / "config.json").read_text())["data_dir"] == str(photos)
    code, _, err = uld("evaluate", f"--workdir={run}", "--group_by=age")
    assert code == 1
    assert "no column 'age'" in err
    code, _, err = uld("evaluate", f"--workdir={run}", "--scheme=ibug68")
    assert code == 1
    assert "data.scheme=ibug68 has 68 points, and folder has 20 landmarks" in err
    now = (run / "config.json").read_text()
    older = json.loads(now)
    older["eval"] = {"ridge": 0.02} | {k: v for k, v in older["eval"].items() if k not in Protocol._fields}
    (run / "config.json").write_text(json.dumps(older))  # as runs had it when there was one strength
    code, _, err = uld("evaluate", f"--workdir={run}", "--normaliser=image", "--stage=zeroshot")
    (run / "config.json").write_text(now)
    assert code == 0, err
    first = json.loads((run / "eval/test/zeroshot/metrics.json").read_text())
    assert first["protocol"] == "folder_20_image+ridge_0.02"


def test_evaluate_takes_the_keys_that_its_messages_name(run, tmp_path, uld):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    config = json.loads((workdir / "config.json").read_text())
    del config["eval"]["min_found"], config["data"]["sides"]  # as in a run from before there were these keys
    (workdir / "config.json").write_text(json.dumps(config))
    evaluate_ = ("evaluate", f"--workdir={workdir}")

    def measured(*more):
        code, _, err = uld(*evaluate_, *more)
        assert code == 0, err
        return json.loads((workdir / "eval/test/metrics.json").read_text())

    box, image = measured(), measured("--config.data.normaliser=image", "--config.eval.ridge_forward=0")
    assert (box["normaliser"], image["normaliser"]) == ("box", "image")
    assert json.loads((workdir / "config.json").read_text()) == config
    for key, why in (
        ("seed=3", "a run keeps its config; evaluation can change --config.eval.KEY, --config.data.scheme"),
        ("data.fit=crop", "a run keeps its config"),
        ("eval.min_fond=0.1", "no key 'eval.min_fond'; did you mean eval.min_found"),
        (
            "eval.protocol=mafl_6",
            "eval.protocol is 'mafl_6'; use one of auto, or an id of docs/evaluation.md: mafl_5_f",
        ),
        ("eval.min_found=2", "eval.min_found is 2.0; use a share"),
        ("eval.fit_images=0", "set eval.fit_images to the number that each repeat draws"),
        ("data.sides=both", "data.sides is 'both'"),
    ):
        code, _, err = uld(*evaluate_, f"--config.{key}")
        assert (code, why in err) == (1, True), err
        assert len(err.strip().splitlines()) <= 2
