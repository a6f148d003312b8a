"""`uld dense` as a user meets it: its files and one-sentence errors."""

import csv
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests import tiny
from uld_jax import config as config_lib
from uld_jax.engine import loop, runs
from uld_jax.evaluation.dense import parts, protocols
from uld_jax.evaluation.dense.run import FILES
from uld_jax.method import Model, TrainState

EVERY = "--measure=matching,regression,zoom,parts"


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A stage with dense features, as `runs.load` would give it of a finished run."""
    workdir = epath.Path(tmp_path_factory.mktemp("dense") / "run")
    config = tiny.config("toy", dataset="folder", data_dir=str(photos))
    method = config_lib.stage(config, "colours").method
    state = TrainState(jnp.int32(0), {"colours": jnp.asarray(np.random.default_rng(0).uniform(size=(4, 3)), "float32")})
    return runs.Finished(workdir, config, "colours", Model(method, state, {}), "", {})


@pytest.fixture
def toy(finished, monkeypatch):
    """The folder of that run."""
    load = runs.load
    given = str(finished.workdir)
    monkeypatch.setattr(runs, "load", lambda where, mesh: finished if str(where) == given else load(where, mesh))
    return finished.workdir


@pytest.fixture
def small(monkeypatch):
    """A protocol of the name lead2022 that takes a second; of the t-SNE, only a few rows."""
    usual, fit = protocols.LEAD_2022, protocols.DVE_2019.few._replace(epochs=2, batch=8)
    shape = dict(frame=40, side=32, cells=16, points=4, regressed=12, repeats=2)
    few = fit._replace(epochs=1, images=16)
    monkeypatch.setitem(protocols.PRESETS, "lead2022", usual._replace(full=fit, few=few, **shape))
    monkeypatch.setattr(parts, "DRAWN", 40)


@pytest.mark.slow
def test_dense_writes_its_report(toy, uld_says, small):
    out = uld_says("dense", f"--workdir={toy}", EVERY, "--labels=3,all", "--parts=3")
    folder = toy / "eval/test/dense/colours"
    report = json.loads((folder / "metrics.json").read_text())
    assert {p.name for p in folder.iterdir()} == {"metrics.json", *(n for names in FILES.values() for n in names)}
    assert (report["stage"], report["n_train"], report["n_test"]) == ("colours", 24, 8)
    assert report["maps"] == [[16, 16, 4], [4, 4, 3]]
    matched = report["matching"]
    assert (matched["pairs"], matched["stride"]) == (4, 2.0)
    assert matched["protocol"] == "folder_20_box+lead2022+matching"
    assert matched["same"]["canonical_px"] < matched["different"]["canonical_px"]
    for name in ("same", "different"):
        with np.load(toy / "eval/test/dense/pairs.npz") as pairs:
            both = np.stack([pairs["source_xy"], pairs[f"{name}_xy"]]).astype(np.float64)
        seen = ((both >= -0.5) & (both <= 31.5)).all((0, -1))
        away = np.linalg.norm(both[1] - both[0], axis=-1)[seen] * 70 / 32
        assert matched[name]["unmoved_canonical_px"] == pytest.approx(away.mean(), rel=1e-5)
    few, full = report["regression"]
    assert (few["labels"], few["repeats"], few["steps"], few["all"]) == (3, 2, 2, False)
    assert (full["labels"], full["repeats"], full["steps"], full["all"]) == (24, 1, 6, True)
    assert few["protocol"] == "folder_20_box+lead2022+regression_1_epochs_x2"
    assert few["error"] == pytest.approx(np.mean(few["errors"]))
    assert few["error_std"] == pytest.approx(np.std(few["errors"]))
    assert 0 < full["entropy_end"] <= full["entropy_most"] == pytest.approx(np.log(144))
    drawn = json.loads((folder / "draws.json").read_text())["draws"]
    assert [len(draw) for draw in drawn["3"]] == [3, 3]
    assert all(name.startswith("train/") for draw in drawn["3"] for name in draw)
    assert (report["zoom"]["object"], report["zoom"]["beyond_the_photo"] > 0) == ("frame", True)
    with (folder / "zoom_factors.csv").open() as file:
        assert len([*csv.reader(file)]) == 1 + 24 + 8
    assert sum(report["parts"]["sizes"]) == report["parts"]["cells"]
    assert 0 <= report["parts"]["nmi_landmark"] <= 1
    assert f"{full['error']:.2f} %" in out
    assert f"written to {folder}" in out
    with np.load(folder.parent / "pairs.npz") as pairs:
        assert pairs["source"].shape == (4, 32, 32, 3)
        assert pairs["same_xy"].shape == (4, 20, 2)


def test_pairs_are_made_once_and_earlier_measures_kept(toy, uld_says, small):
    metrics = toy / "eval/test/dense/colours/metrics.json"
    path = toy / "eval/test/dense/pairs.npz"

    def pixels(*more):
        uld_says("dense", f"--workdir={toy}", "--measure=matching", *more)
        return json.loads(metrics.read_text())["matching"]["same"]["canonical_px"], os.stat(path).st_mtime_ns

    first = pixels()
    assert pixels() == first
    kept = json.loads(metrics.read_text())
    metrics.write_text(json.dumps(kept | {"zoom": "of an earlier report"}))
    (metrics.parent / "zoom.png").touch()
    assert pixels() == first
    assert json.loads(metrics.read_text())["zoom"] == "of an earlier report"
    other = pixels("--pairs=2")  # other choices: nothing is kept
    assert "zoom" not in json.loads(metrics.read_text())
    assert not (metrics.parent / "zoom.png").exists()
    assert other[1] != first[1]
    assert pixels()[0] == pytest.approx(first[0])  # made again, and alike


def test_without_annotation_there_are_parts(toy, photos, tmp_path, uld, small, monkeypatch):
    monkeypatch.setattr(parts, "embed", lambda rows, seed: rows[:, :2])  # t-SNE takes seconds for any number of rows
    bare = tmp_path / "bare"  # photos without a csv
    shutil.copytree(photos / "test", bare)
    given = ("dense", f"--workdir={toy}", "--dataset=folder", f"--data_dir={bare}", "--parts=2")
    code, out, err = uld(*given)
    assert code == 0, err
    assert "matching is not measured: no image of the split test is annotated" in out
    report = json.loads((toy / "eval/folder_bare_test/dense/colours/metrics.json").read_text())
    assert set(report["not_measured"]) == {"matching", "regression"}
    assert report["parts"]["protocol"] == "folder+lead2022+parts_2"
    code, _, err = uld(*given, "--measure=zoom")
    assert (code, "--measure=zoom is not possible: no image of the split test is annotated" in err) == (1, True)


def test_bad_input_is_one_sentence_before_any_compute(toy, uld, monkeypatch):
    def never(*args, **more):
        raise AssertionError("something was computed")

    monkeypatch.setattr("uld_jax.evaluation.dense.run._measured", never)

    def refused(*args):
        code, out, err = uld("dense", f"--workdir={toy}", *args)
        assert code == 1, (args, out, err)
        assert len(err.strip().splitlines()) == 1, err
        return err

    assert "--protocol=lead is unknown; use one of lead2022, " in refused("--protocol=lead")
    assert "--measure=speed is unknown; use some of matching, " in refused("--measure=speed")
    for labels in ("0", "ten", "5,-1", "1.5"):
        assert "--labels holds" in refused(f"--labels={labels}")
    assert "--labels is empty" in refused("--labels=")
    assert "--labels=25 is more than the 24 annotated training images; give fewer" in refused("--labels=5,25,all")
    assert "--epochs is 0; use 1 or more" in refused("--epochs=0")
    assert "--repeats is 0; use 1 or more" in refused("--repeats=0")
    assert "--side=200 is larger than the frame" in refused("--side=200")
    assert "--parts is 1; use 2 or more" in refused("--parts=1")
    assert "config.json is missing" in refused("--stage=last")
    assert "has no split validation" in refused("--split=validation")
    own = "--measure=regression is not possible: a regressor would be measured on its own training images"
    assert own in refused("--measure=regression", "--split=train")
    assert "68 points, and folder has 20 landmarks" in refused("--scheme=ibug68")
    assert "is not read by the data set synthetic" in refused("--dataset=synthetic", f"--data_dir={toy}")
    assert "normaliser" in refused("--normaliser=nose")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert "measures in one process" in refused()


@pytest.mark.slow
def test_a_trained_run_is_measured_with_warped_images(photos, tmp_path, uld_says, small, monkeypatch):
    warped = protocols.PRESETS["lead2022"]
    warped = warped._replace(few=warped.few._replace(warped=True))
    monkeypatch.setitem(protocols.PRESETS, "lead2022", warped)
    config = tiny.config("toy", dataset="folder", data_dir=str(photos), **{"colours.steps": 2, "eval_every": 0})
    loop.run(config, tmp_path / "run")
    out = uld_says("dense", f"--workdir={tmp_path / 'run'}", "--measure=regression", "--labels=3")
    report = json.loads((tmp_path / "run/eval/test/dense/colours/metrics.json").read_text())
    (few,) = report["regression"]
    assert (few["labels"], few["repeats"], few["steps"]) == (3, 2, 2)
    assert f"{few['error']:.2f} %" in out
