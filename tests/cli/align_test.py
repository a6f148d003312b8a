"""`uld align` as a user meets it: its files and one-sentence errors."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests import pascal, tiny
from uld_jax import config as config_lib
from uld_jax.engine import loop, runs
from uld_jax.evaluation.alignment import run as alignment
from uld_jax.method import Model, TrainState


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return pascal.write(tmp_path_factory.mktemp("pascal") / "photos")


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """A stage that carries points nowhere, as `runs.load` would give it of a finished run."""
    workdir = epath.Path(tmp_path_factory.mktemp("align") / "run")
    config = pascal.config(root)
    method = config_lib.stage(config, "pairwise").method
    return runs.Finished(workdir, config, "pairwise", Model(method, TrainState(jnp.int32(4)), {}), "", {})


@pytest.fixture
def toy(finished, monkeypatch):
    """The folder of that run."""
    monkeypatch.setattr(runs, "load", lambda where, mesh: finished)
    return finished.workdir


def by_hand(number, a, b, length):
    """PCK of the identity map in percent, keypoint by keypoint."""
    (height, width), (height_b, width_b), right = pascal.size_of(number, a), pascal.size_of(number, b), []
    truth = pascal.points_of(number, a)
    box = max(np.ptp(truth[:, 0]), np.ptp(truth[:, 1]))
    for (x, y), (x_b, y_b) in zip(truth, pascal.points_of(number, b), strict=True):
        dx, dy = (x_b + 0.5) / width_b * width - 0.5 - x, (y_b + 0.5) / height_b * height - 0.5 - y
        if length == "image":
            right.append(np.hypot(dx * 224 / width, dy * 224 / height) <= 22.4)
        else:
            right.append(np.hypot(dx, dy) <= 0.1 * box)
    return 100 * np.mean(right)


@pytest.mark.parametrize(("protocol", "length"), [("pf_pascal_ncnet", "image"), ("pf_pascal_box", "box")])
def test_align_writes_its_report(toy, uld_says, protocol, length):
    out = uld_says("align", f"--workdir={toy}", f"--protocol={protocol}", "--batch=3")
    folder = toy / "eval/test/align/pairwise"
    assert {f"{protocol}.json", f"{protocol}.csv", "pairs.png"} <= {p.name for p in folder.iterdir()}
    report = json.loads((folder / f"{protocol}.json").read_text())
    wanted = [by_hand(*row, length) for row in pascal.TEST]
    assert len({*wanted}) > 1
    whole, rest = report["all"], report["leak_free"]
    assert (whole["id"], whole["pairs"]) == (f"{protocol}+test+all_pairs", 4)
    assert (rest["id"], rest["pairs"], rest["left_out"]) == (f"{protocol}+test+leak_free", 3, 1)
    assert whole["pck"] == whole["identity"] == pytest.approx(np.mean(wanted))
    assert rest["pck"] == rest["identity"] == pytest.approx(np.mean(wanted[1:]))
    assert report["keypoints"] == 4 + 4 + 5 + 6
    assert {name: each["pairs"] for name, each in report["categories"].items()} == {"aeroplane": 2, "cat": 1, "dog": 1}
    assert report["categories"]["aeroplane"]["pck"] == pytest.approx(np.mean(wanted[:2]))
    with (folder / f"{protocol}.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["image_a", "image_b", "category", "in_training", "keypoints", "pck", "identity"]
    assert [row[3] for row in rows] == ["1", "0", "0", "0"]
    assert [float(row[5]) for row in rows] == pytest.approx(wanted, abs=0.006)
    assert f"{whole['pck']:.2f} %" in out
    assert "1 of the training list left out" in out
    assert f"written to {folder}" in out


def test_a_prepared_data_set_gives_the_same_report(root, toy, uld_says, tmp_path):
    uld_says("prepare", "--dataset=pf_pascal", f"--src={root}", f"--data_dir={tmp_path}", "--allow_partial")
    reports = []
    for where in (root, tmp_path):
        out = uld_says("align", f"--workdir={toy}", f"--data_dir={where}")
        folder = out.rpartition("written to ")[2].strip()
        reports.append(json.loads((epath.Path(folder) / "pf_pascal_ncnet.json").read_text()))
    official, prepared = reports
    assert official.pop("images") != prepared.pop("images")  # in another order
    assert official == prepared


def test_points_are_carried_from_b_to_a_in_the_frame(root, finished):
    """A function that knows the annotation carries everything right; padded photos change nothing."""
    for fit in ("stretch", "pad"):
        config = pascal.config(root, data__fit=fit)
        source = alignment._opened(config, alignment.Asked(), alignment.protocol_of("pf_pascal_ncnet"))
        images, seen = source.images(), []

        def oracle(a, b, points, mask, images=images, source=source, seen=seen):
            assert (a.shape, points.shape, mask.shape) == ((3, *images.shape[1:]), (3, 6, 2), (3, 6))
            rows = [[int(np.abs(images - np.int32(one)).sum((1, 2, 3)).argmin()) for one in some] for some in (a, b)]
            pairs = [source.pairs.rows.tolist().index([*pair]) for pair in zip(*rows, strict=True)]
            seen.extend(pairs)
            xy, maps = source.pairs.xy[pairs], source.frame_maps[source.pairs.rows[pairs]][..., None, :]
            framed = xy * maps[..., :2] + maps[..., 2:]
            np.testing.assert_allclose(points[mask], framed[:, 1][mask], atol=1e-4)
            return np.where(mask[..., None], framed[:, 0], 1e6)

        found = alignment.carry_all(source, oracle, batch=3)
        np.testing.assert_allclose(found, source.pairs.xy[:, 0], atol=1e-4)
        assert seen == [0, 1, 2, 3, 3, 3]


def test_empty_slots_are_no_nan_for_the_stage(finished):
    carry = alignment.carrier(finished)
    points = carry(None, None, np.array([[[1, 2], [np.nan, np.nan]]]), np.array([[True, False]]))
    assert points.tolist() == [[[1, 2], [0, 0]]]


def test_bad_input_is_one_sentence_before_any_compute(root, toy, finished, uld, monkeypatch, tmp_path):
    def never(*args, **more):
        raise AssertionError("something was computed")

    monkeypatch.setattr(alignment, "carry_all", never)

    def refused(*args, given=finished):
        monkeypatch.setattr(runs, "load", lambda where, mesh: given)
        code, out, err = uld("align", f"--workdir={toy}", *args)
        assert code == 1, (args, out, err)
        assert len(err.strip().splitlines()) == 1, err
        return err

    assert "--protocol=ncnet is unknown; use one of pf_pascal_ncnet, " in refused("--protocol=ncnet")
    assert "--batch is 0; use 1 or more" in refused("--batch=0")
    assert "has no split all (it has train and val and test)" in refused("--split=all")
    assert "the list of --split=val has no keypoints" in refused("--split=val")
    assert "does not exist" in refused(f"--data_dir={tmp_path / 'absent'}")
    config = tiny.config("toy")
    colours = config_lib.stage(config, "colours").method
    other = finished._replace(config=config, stage="colours", model=Model(colours, TrainState(jnp.int32(0)), {}))
    assert "stage 'colours' cannot carry points from one image to another; give a run of" in refused(given=other)
    both = pascal.config(root, stages=("colours", "pairwise"), colours=config.colours)
    other = other._replace(config=both)
    assert "another; give another one with --stage: pairwise" in refused(given=other)
    other = finished._replace(config=pascal.config(root, dataset="folder"))
    assert "the run's data set is folder; give the folder of pf_pascal" in refused(given=other)
    other = finished._replace(config=pascal.config(root, data__fit="crop"))
    assert "data.fit is crop, which cuts keypoints off" in refused(given=other)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert "measures in one process" in refused()


def test_a_run_on_other_photos_is_measured_too(root, toy, finished, uld_says, monkeypatch):
    faces = finished._replace(config=pascal.config(root, dataset="folder", data__fit="crop"))
    monkeypatch.setattr(runs, "load", lambda where, mesh: faces)
    uld_says("align", f"--workdir={toy}", f"--data_dir={root}")
    report = json.loads((toy / "eval/pf_pascal_photos_test/align/pairwise/pf_pascal_ncnet.json").read_text())
    assert report["all"]["pck"] == report["all"]["identity"]


def test_without_pairs_outside_the_training_list_there_is_no_number(root):
    lines = alignment.summary(
        {
            "stage": "s", "protocol": "p", "split": "test", "frame": 40, "choices": {"share": 0.1}, "categories": {},
            "all": {"pairs": 1, "pck": 5.0, "identity": 2.0},
            "leak_free": {"pairs": 0, "pck": None, "identity": None, "left_out": 1},
        }
    )  # fmt: skip
    assert lines[-1].split()[:6] == ["not", "in", "training", "0", "-", "-"]
    nothing = alignment._mean({"pck": np.array([1.0])}, np.array([False]))
    assert nothing == {"pairs": 0, "pck": None}


@pytest.mark.slow
def test_a_trained_run_is_measured(root, tmp_path, uld_says):
    loop.run(pascal.config(root, 2), tmp_path / "run")
    out = uld_says("align", f"--workdir={tmp_path / 'run'}", "--stage=pairwise")
    report = json.loads((tmp_path / "run/eval/test/align/pairwise/pf_pascal_ncnet.json").read_text())
    assert report["step"] == 2
    assert report["all"]["pck"] == report["all"]["identity"]
    assert "pairwise: pf_pascal_ncnet, split test, frame 40" in out
