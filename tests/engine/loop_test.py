"""The loop: its order, stopping and resuming, what it writes, what it refuses."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from uld_jax import data, detector, interrupts, sharding
from uld_jax.engine import checkpoint, loop, runs, stopping, workdir
from uld_jax.engine import rounds as rounds_lib
from uld_jax.errors import UserError

SHORT = {"detector.steps": 4, "detector.round_every": 2, "eval_every": 3, "save_every": 2, "log_every": 1}
SHORT |= {"eval.train_images": 20, "detector.batch_size": 4}


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def tear(workdir):
    """As a kill leaves the file: with half a last line."""
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "sta')


def final_hash(workdir):
    last = lines(workdir)[-1]
    assert last["done"] is True
    return last["params_sha256"]


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    """The workdir of a run, in what order it did what, and how many images its steps saw."""
    events, sizes = [], []

    def note(patch, owner, name, event, after=lambda result: result):
        original = getattr(owner, name)

        def noted(*args, **kwargs):
            events.append(event)
            return after(original(*args, **kwargs))

        patch.setattr(owner, name, noted)

    def counted(payloads):
        for payload in payloads:
            events.append("next")
            yield payload

    def stepped(step):
        def one(*args):
            events.append("step")
            sizes.append(len(args[3]["index"]))
            return step(*args)

        def program(*args):
            events.append("program")
            step.compile(*args)

        one.compile = program
        return one

    original = loop.open_data
    workdir = tmp_path_factory.mktemp("reference") / "run"
    with pytest.MonkeyPatch.context() as patch:
        note(patch, checkpoint.Keeper, "save", "save")
        note(patch, checkpoint, "save_final", "final")
        note(patch, rounds_lib.Rounds, "run", "refresh")
        note(patch, loop, "in_training", "evaluate")
        note(patch, loop, "compile_step", "compile", stepped)

        def open_data(config, mesh):
            data = original(config, mesh)
            kind = type(data.train_reader)
            payloads = kind.payloads
            patch.setattr(kind, "payloads", lambda *a, **k: counted(payloads(*a, **k)))
            return data

        patch.setattr(loop, "open_data", open_data)
        loop.run(tiny.config(**SHORT), workdir)
    return workdir, events, sizes


@pytest.fixture(scope="module")
def reference(noted):
    return noted[0]


def test_the_order_is_save_refresh_evaluate_next_step(noted):
    first, second = (" ".join(part.split()) for part in " ".join(noted[1]).split("final")[:2])
    assert first == "next next compile save refresh evaluate"  # each stage's `init` is shown a batch beforehand
    steps = "next program step next step save refresh next step evaluate next step save evaluate"
    assert second == f"compile {steps}"


def test_a_run_writes_what_scripts_rely_on(reference):
    for name in (
        "config.json",
        "run.json",
        "contact_sheet.png",
        "eval/test/metrics.json",
        "eval/test/per_landmark.csv",
    ):
        assert (reference / name).stat().st_size, name
    for name in ("eval/test/zeroshot/metrics.json", "checkpoints/zeroshot/final", "checkpoints/detector/final", "tb"):
        assert (reference / name).exists(), name
    metrics = json.loads((reference / "eval/test/metrics.json").read_text())
    assert metrics["stage"] == "detector"
    assert metrics["protocol"] == "synthetic_20_box+ridge_0.001_0.1"
    assert 0 < metrics["forward_nme"] < 100 < 1e9
    assert {"n_train", "n_test", "backward_nme", "mean_shape_nme", "stability_px", "ced_auc", "groups"} <= set(metrics)
    written = lines(reference)
    assert [r["step"] for r in written if "loss" in r] == [1, 2, 3, 4]
    assert all({"step", "stage", "time", "seconds"} <= set(r) for r in written)
    assert [r["n_train"] for r in written if "n_train" in r] == [48, 20, 48]  # all, but for the one on the way
    run = json.loads((reference / "run.json").read_text())
    assert {"versions", "devices", "data_fingerprint", "seed", "frozen_sha256", "config"} <= set(run)


def test_a_run_measures_predicts_and_loads(reference):
    metrics = json.loads((reference / "eval/test/metrics.json").read_text())
    assert np.isfinite(metrics["forward_nme"])
    assert np.isfinite(metrics["backward_nme"])
    found = detector.Detector.load(reference)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    prediction = found.predict([image, image[:, :50]])
    assert prediction.xy.shape == (2, found.k, 2)
    assert np.isfinite(prediction.xy).all()


class _StopAt:
    """Stands in for SIGTERM at the n-th loop head."""

    def __init__(self, heads):
        self.heads = heads

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def check(self):
        pass

    def agreed(self, ask):
        self.heads -= 1
        return self.heads == 0


LATER = ("duld", "proxy", "duldpp")
OTHERS = {
    "cgb": {"warmup.steps": 2, "cgb.steps": 4, "cgb.round_every": 2, "cgb.ring_every": 1, "warmup.ring_every": 1},
    "imm": {"imm.steps": 3},
    "self_training": {
        "stage1.steps": 4,
        "stage1.warmup": 2,
        "stage1.round_every": 2,
        "stage2.steps": 4,
        "stage2.merge_from": 1,
        "stage2.merge_every": 2,
        "stage2.batch_size": 4,
    },
    "duld": {"bootstrap.steps": 1} | {f"{s}.{key}": v for s in LATER for key, v in (("steps", 2), ("round_every", 1))},
}


@pytest.fixture(scope="module")
def references(reference, tmp_path_factory):
    """(config, final hash) by the config's name: what an uninterrupted run ends in."""
    found = {"zeroshot": (SHORT, final_hash(reference))}

    def get(name):
        if name not in found:
            settings = OTHERS[name] | {"eval_every": 0, "save_every": 2, "log_every": 1}
            workdir = tmp_path_factory.mktemp(name) / "run"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loop, "in_training", lambda *a: {})
                loop.run(tiny.config(name, **settings), workdir)
            found[name] = settings, final_hash(workdir)
        return found[name]

    return get


# Heads of the loop, in all. zeroshot: one, then steps 0 to 4 of the detector, with a round before step 2. cgb: steps 0
# to 2 of the warm-up, then 0 to 4 with rounds before 0 and 2. imm: steps 0 to 3. self_training: one, then 0 to 4 of
# stage 1 with rounds before 2 and after 4, then 0 to 4 of stage 2 with mergings before 1 and 3. duld: steps 0 and 1 of
# the bootstrap, then 0 to 2 of each of the others with rounds before all of them (proxy: but the first).
QUICK = [("zeroshot", 4)]
EVERY = [("zeroshot", 6), ("cgb", 8), ("imm", 4), ("self_training", 11), ("duld", 11)]
SLOW = [(name, head) for name, count in EVERY for head in range(1, count + 1) if (name, head) not in QUICK]


@pytest.mark.parametrize(("name", "heads"), [*QUICK, *(pytest.param(*x, marks=pytest.mark.slow) for x in SLOW)])
def test_stop_and_resume_at_every_step_ends_in_the_same_parameters(references, tmp_path, monkeypatch, name, heads):
    settings, want = references(name)
    monkeypatch.setattr(loop, "in_training", lambda *a: {})  # measured elsewhere; only the training counts here
    monkeypatch.setattr(loop, "Sigterm", lambda: _StopAt(heads))
    with pytest.raises(stopping.Stopped):
        loop.run(tiny.config(name, **settings), tmp_path)
    tear(tmp_path)
    monkeypatch.setattr(loop, "Sigterm", lambda: _StopAt(-1))
    loop.run(tiny.config(name, **settings), tmp_path)
    assert final_hash(tmp_path) == want
    steps = [r["step"] for r in lines(tmp_path) if "loss" in r]
    assert steps == list(range(1, len(steps) + 1))


def test_a_stage_has_a_batch_of_its_own(noted):
    assert tiny.config().batch_size == 8
    assert noted[2] == 4 * [SHORT["detector.batch_size"]]


@pytest.mark.slow
def test_a_batch_of_a_stage_is_that_of_the_config(tmp_path, monkeypatch):
    """The run whose stage says 4, in a config that says 8, is the one whose config says 4."""
    monkeypatch.setattr(loop, "in_training", lambda *a: {})
    short = {"imm.steps": 2, "eval_every": 0, "save_every": 0, "log_every": 1}
    for name, size in (("whole", {"batch_size": 4}), ("stage", {"batch_size": 8, "imm.batch_size": 4})):
        loop.run(tiny.config("imm", **short, **size), tmp_path / name)
    assert final_hash(tmp_path / "stage") == final_hash(tmp_path / "whole")
    assert workdir.learned_hash(runs.load(tmp_path / "stage").model.state) == final_hash(tmp_path / "stage")


def test_a_stage_whose_batch_does_not_divide_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "_rows_of", lambda *a: np.arange(1))
    two = type("Mesh", (), {"size": 2})()
    with pytest.raises(UserError, match=r"config\.imm\.batch_size 3 does not divide over 2 devices; use 2 or 4"):
        loop.check(tiny.config("imm", **{"imm.batch_size": 3}), tmp_path, two)


class _StopWithin(_StopAt):
    """Stands in for SIGTERM that comes while something is computed, from when `now` is set."""

    now = False

    def __init__(self):
        pass

    def check(self):
        if self.now:
            raise stopping.Interrupted

    def agreed(self, ask):
        return self.now


@pytest.mark.parametrize("where", ["refresh", pytest.param("evaluation", marks=pytest.mark.slow)])
def test_a_run_stopped_within_a_computation_ends_in_the_same_parameters(references, tmp_path, monkeypatch, where):
    settings, want = references("zeroshot")
    stop = _StopWithin()
    work = rounds_lib.Rounds._work

    def refresh(self, program, *given, **options):
        stop.now = where == "refresh" and program is self._refresh
        return work(self, program, *given, **options)

    def evaluation(config, workdir, stage, step, predictor, model, data, last):
        stop.now = True  # after a refresh, which must not be done again on what it left
        predictor.images(model, data.train.images([0]))
        raise AssertionError("nothing stopped it")

    measure = evaluation if where == "evaluation" else lambda *a: {}
    monkeypatch.setattr(interrupts, "_TICK", 0.0)
    monkeypatch.setattr(rounds_lib.Rounds, "_work", refresh)
    monkeypatch.setattr(loop, "in_training", measure)
    with pytest.raises(stopping.Stopped, match="stage zeroshot at step 0"):
        loop.run(tiny.config(**settings), tmp_path, stop=stop)
    monkeypatch.undo()
    monkeypatch.setattr(loop, "in_training", lambda *a: {})
    loop.run(tiny.config(**settings), tmp_path)
    assert final_hash(tmp_path) == want


@pytest.mark.slow
def test_a_killed_run_ends_bit_equal_when_the_same_command_goes_on(reference, tmp_path):
    flags = [f"--config.{k}={v}" for k, v in SHORT.items()]
    spec = "--config=configs/zeroshot.py:dataset=synthetic,k=4,preset=tiny"
    command = [sys.executable, "-m", "uld_jax", "train", spec, f"--workdir={tmp_path}", *flags]
    for wait_for in ("checkpoints/zeroshot/final", "checkpoints/detector/2"):
        process = subprocess.Popen(
            command, env=tiny.environment(), cwd=tiny.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(600):
            if (tmp_path / wait_for).exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    tear(tmp_path)
    tiny.run(*command[1:])
    assert final_hash(tmp_path) == final_hash(reference)


def test_sigterm_saves_and_exits_with_0(tmp_path):
    flags = ["--config.detector.steps=100000", "--config.eval_every=0", "--config.save_every=0", "--config.log_every=1"]
    spec = "--config=configs/zeroshot.py:dataset=synthetic,k=4,preset=tiny"
    process = subprocess.Popen(
        [sys.executable, "-m", "uld_jax", "train", spec, f"--workdir={tmp_path}", *flags],
        env=tiny.environment(),
        cwd=tiny.ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("detector 2/"):
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stderr.read()
    assert process.wait() == 0, rest
    assert "the same command goes on" in rest
    saved = [p.name for p in (tmp_path / "checkpoints/detector").iterdir() if p.name.isdigit()]
    assert len(saved) == 1
    assert int(saved[0]) >= 2


@pytest.mark.slow
def test_more_steps_of_the_last_stage_go_on_and_other_changes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "in_training", lambda *a: {})
    constant = SHORT | {"detector.schedule": "constant", "detector.warmup": 1}  # which half of the steps allow
    longer = constant | {"detector.steps": 5}
    loop.run(tiny.config(**constant | {"detector.steps": 3}), tmp_path / "run")
    loop.run(tiny.config(**longer | {"log_every": 5}), tmp_path / "run")
    loop.run(tiny.config(**longer), tmp_path / "whole")
    assert final_hash(tmp_path / "run") == final_hash(tmp_path / "whole")
    with pytest.raises(UserError, match="holds a run with seed=0, not 1"):
        loop.run(tiny.config(**longer | {"seed": 1}), tmp_path / "run")
    with pytest.raises(UserError, match=r"detector\.optimizer\.learning_rate"):
        loop.run(tiny.config(**longer | {"detector.learning_rate": 0.5}), tmp_path / "run")


@pytest.mark.slow
def test_init_from_starts_from_a_finished_stage(reference, tmp_path):
    only = tiny.config(**SHORT, stages=("detector",), init_from=f"{reference}:zeroshot")
    found = loop.run(only, tmp_path / "again")
    assert workdir.tree_hash(found.model.state.params) != ""
    other = tiny.config(**SHORT, stages=("detector",), init_from=f"{reference}:zeroshot", **{"data.rows": (40, 16)})
    with pytest.raises(UserError, match="other images"):
        loop.run(other, tmp_path / "other")
    own = dict(SHORT) | {"detector.labels_from": "self", "data.rows": (40, 16)}
    found = loop.run(tiny.config(**own, stages=("detector",), init_from=str(reference)), tmp_path / "own")
    assert int(found.model.state.aux.round) == 2
    loaded = runs.load(str(tmp_path / "own"))
    assert workdir.tree_hash(loaded.model.state) == workdir.tree_hash(found.model.state)


def test_local_paths_of_a_config_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    for given, recorded in (
        ("", ""),
        ("runs/a", f"{tmp_path}/runs/a"),
        ("runs/a:detector", f"{tmp_path}/runs/a:detector"),
        ("../a:detector", f"{tmp_path.parent}/a:detector"),
        ("~/a:detector", "/home/somebody/a:detector"),
        ("/runs/a:detector", "/runs/a:detector"),
        ("gs://bucket/a:detector", "gs://bucket/a:detector"),
    ):
        config = tiny.config(init_from=given, data_dir=given)
        found = loop._absolute(config)
        assert (found.init_from, found.data_dir) == (recorded, recorded)
        assert config.init_from == given


def test_a_folder_is_the_same_run_from_wherever_its_start_is_named(tmp_path, monkeypatch):
    workdir.claim(tmp_path / "run", tiny.config(init_from=f"{tmp_path}/start:zeroshot"))
    monkeypatch.chdir(tmp_path)
    loop.check(tiny.config(init_from="start:zeroshot"), tmp_path / "run", sharding.make_mesh())
    with pytest.raises(UserError, match="holds a run with init_from="):
        loop.check(tiny.config(init_from="other:zeroshot"), tmp_path / "run", sharding.make_mesh())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    config = tiny.config(**SHORT | {"detector.learning_rate": 1e30, "detector.warmup": 0, "detector.clip": 0.0})
    with pytest.raises(UserError, match="not finite at step"):
        loop.run(config, tmp_path)
    assert checkpoint.has_final(tmp_path, "zeroshot")
    kept = [int(p.name) for p in (tmp_path / "checkpoints/detector").iterdir() if p.name.isdigit()]
    assert not kept  # the first step was the bad one, and what it left was not saved


@pytest.mark.slow
def test_several_steps_in_one_program_give_the_same_parameters(reference, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "in_training", lambda *a: {})
    config = tiny.config(**SHORT | {"log_every": 2, "eval_every": 2}, steps_per_dispatch=2)
    loop.run(config, tmp_path)
    # The same rounding is not promised between programs, and Adam's first steps turn it into signs: compare losses.
    one, two = ([r["loss"] for r in lines(w) if r.get("loss") and r["step"] in (2, 4)] for w in (reference, tmp_path))
    np.testing.assert_allclose(one, two, rtol=1e-3)
    with pytest.raises(UserError, match="steps_per_dispatch 3 does not divide"):
        loop.run(tiny.config(**SHORT, steps_per_dispatch=3), tmp_path / "odd")


def test_a_photo_more_is_told_as_such_and_a_run_never_reads_its_own_pictures(tmp_path):
    """A run inside the folder of its photos goes on when called again; with another photo it is refused, unharmed."""
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for i in range(9):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(photos / f"{i}.png")
    config = dict(dataset="folder", data_dir=str(photos), batch_size=4, save_every=2, eval_every=2)
    short, longer = (tiny.config(**config, **{"detector.steps": steps}) for steps in (2, 4))
    workdir = photos / "runs/mine"
    loop.run(short, workdir)
    assert list((workdir / "pictures").iterdir())
    assert len(data.list_images(photos)) == 9
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(photos / "new.png")
    before = (workdir / "run.json").read_bytes()
    with pytest.raises(UserError, match=r"the training images differ from those that .* trained on \(9 then, 10 now\)"):
        loop.run(longer, workdir)
    assert (workdir / "run.json").read_bytes() == before
    (photos / "new.png").unlink()
    loop.run(longer, workdir)
    with pytest.raises(UserError, match="is the folder of the photos, and its pictures would be read next time"):
        loop.run(short, photos)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"eval.missing": "nearest"}, "missing"),
        ({"eval.min_found": 1.1}, "min_found"),
        ({"eval.ridge_forward": -1.0}, "ridge_forward"),
        ({"eval.pool_images": -1}, "pool_images"),
        ({"eval.fit_images": -1}, "fit_images"),
        ({"eval.match_radius": -0.1}, "match_radius"),
        ({"eval.accuracy_radius": 0.0}, "accuracy_radius"),
        ({"eval.repeats": 0}, "repeats"),
        ({"eval.repeats": 5, "eval.fit_images": 0}, "repeats"),  # all training images each time
    ],
)
def test_a_protocol_that_means_nothing_is_refused_before_the_run(tmp_path, changes, word):
    with pytest.raises(UserError, match=rf"eval\.{word}"):
        loop.run(tiny.config(**changes), tmp_path)
