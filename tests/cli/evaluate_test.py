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


@pytest.fixture(scope="module")
def table(run, photos, tmp_path_factory):
    """The landmarks of the run on all its photos, as `uld predict` writes them."""
    from uld_jax.detector import Detector
    from uld_jax.predict import predict_folder

    out = tmp_path_factory.mktemp("predicted")
    predict_folder(Detector.load(run), photos, out)
    return out / "landmarks.csv"


def test_a_table_that_predict_wrote_has_the_errors_of_its_run(run, photos, table, tmp_path, uld_says):
    said = ("--protocol=tourani2024", "--label_counts=1,5,all", "--group_by=yaw:-90,0,90")
    uld_says("evaluate", f"--workdir={run}", *said)
    expected = json.loads((run / "eval/test/metrics.json").read_text())
    given = (f"--predictions={table}", f"--data_dir={photos}", f"--out={tmp_path / 'out'}")
    out = uld_says("evaluate", *given, "--frame_size=40", *said)
    assert out.startswith(f"{table}: forward NME ")
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    same = ("protocol", "n_train", "n_test", "landmarks", "normaliser", "found_share", "split", "settings")
    assert {key: found[key] for key in same} == {key: expected[key] for key in same}
    for key in ("forward_nme", "backward_nme", "mean_shape_nme", "ced_auc"):
        assert found[key] == pytest.approx(expected[key], rel=1e-3), key  # the csv has three decimals
    for key in ("label_counts", "groups"):
        flat = [row for part in (found, expected) for row in (part[key]["yaw"] if key == "groups" else part[key])]
        for mine, theirs in zip(flat[: len(flat) // 2], flat[len(flat) // 2 :], strict=True):
            assert mine["forward_nme"] == pytest.approx(theirs["forward_nme"], rel=2e-3)
    names = {"metrics.json", "per_landmark.csv", "ced.png", "group_yaw.png", "label_counts.png", "contact_sheet.png"}
    assert names <= {path.name for path in (tmp_path / "out").iterdir()}
    assert (found["stage"], found["stability_px"]) == (None, None)
    again = uld_says("evaluate", *given, *said)  # another frame: padded photos keep their errors
    assert again.partition("(")[0] == out.partition("(")[0]


def test_points_are_compared_directly(photos, tmp_path, uld_says):
    given = (f"--data_dir={photos}", f"--out={tmp_path / 'out'}", "--direct")
    out = uld_says("evaluate", f"--predictions={photos / 'test.csv'}", *given)
    assert "forward NME 0.00 %, backward -" in out
    assert "folder_20_box+direct, 8 images" in out
    lines = (tmp_path / "out/per_landmark.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:3]] == [["annotated", "0"], ["annotated", "1"]]


def test_a_table_that_does_not_fit_is_one_sentence(run, photos, table, tmp_path, uld):
    out = tmp_path / "out"

    def refused(*args, predictions=table, data_dir=photos):
        given = (f"--predictions={predictions}", f"--data_dir={data_dir}", f"--out={out}")
        code, _, err = uld("evaluate", *given, *args)
        assert code == 1, err
        assert len(err.strip().splitlines()) == 1, err
        assert not out.exists()
        return err

    lines = table.read_text().splitlines()
    few = tmp_path / "few.csv"
    few.write_text("\n".join([line for line in lines if not line.startswith(("test/00", "train/003"))]))
    why = "few.csv has no row for 1 of the 24 annotated train images (train/003.png) and for 8 of the 8 test images ("
    assert why + "test/000.png, test/001.png" in refused(predictions=few)
    assert "has no row for 8 of the 8 test images (test/000.png" in refused("--direct", predictions=few)
    assert "there are 4 points for 20 annotated ones" in refused("--direct")
    assert "--protocol is about regression, and --direct" in refused("--direct", "--protocol=awan2023")
    assert "--fit_images is about regression" in refused("--direct", "--fit_images=3")
    assert "--workdir is about a run" in refused(f"--workdir={run}")
    assert "no column 'age'" in refused("--group_by=age")
    assert "use one of jakab2018" in refused("--protocol=jakob2018")
    assert "--config.data.fit=crop" in refused("--config.data.fit=crop")
    assert "data.fit is 'zoom'" in refused("--fit=zoom")
    assert "data.frame_size is 0" in refused("--frame_size=0")
    assert "--dataset=synthetic has no files" in refused("--dataset=synthetic")
    assert "absent.csv cannot be read (no such file" in refused(predictions=tmp_path / "absent.csv")
    assert "--split=train is the split that" in refused("--split=train")
    assert "absent does not exist" in refused(data_dir=tmp_path / "absent")
    given = (f"--predictions={table}", f"--data_dir={photos}")
    for args, why in (
        ((), "--workdir is missing; add --workdir=RUN, or --predictions=CSV"),
        ((f"--workdir={run}", "--direct"), "--direct is about --predictions; give --predictions=CSV"),
        ((f"--workdir={run}", "--out=o"), "--out is about --predictions"),
        (given, "--out is missing; add --out=DIR"),
        ((f"--predictions={table}", f"--out={out}"), "--data_dir is missing; add --data_dir=DIR"),
        ((*given, f"--out={photos}"), "is a folder of something else"),
    ):
        code, _, err = uld("evaluate", *args)
        assert (code, why in err) == (1, True), err
