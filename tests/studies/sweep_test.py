"""Sweeps: grids to configs, and configs to a table, with the runs made up but for one sweep that trains."""

import doctest
import json
import signal

import numpy as np
import pytest
from PIL import Image

from uld_jax import __main__ as cli
from uld_jax.engine import checkpoint, loop, stopping
from uld_jax.errors import UserError
from uld_jax.studies import sweep

SPEC = "zeroshot:k=4,preset=tiny"
SHORT = ["detector.steps=4", "detector.round_every=2", "eval_every=0", "save_every=0", "log_every=1"]


def uld(capsys, monkeypatch, *args):
    """Exit code, stdout and stderr of `uld sweep`, run in this process."""
    monkeypatch.setattr("sys.argv", ["uld", "sweep", *map(str, args)])
    code = cli.main()
    out = capsys.readouterr()
    return code, out.out, out.err


def refused(*grids, spec=SPEC, **options):
    with pytest.raises(UserError) as caught:
        sweep.cells(spec, grids, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_examples():
    result = doctest.testmod(sweep)
    assert result.attempted >= 3
    assert result.failed == 0


def test_cells_are_the_product_of_the_grids():
    found = sweep.cells(SPEC, ["detector.learning_rate=0.1,1e-3", "seed=0,1"], ["detector.steps=7"])
    assert [c.name for c in found] == [f"detector.learning_rate={r},seed={s}" for r in ("0.1", "1e-3") for s in (0, 1)]
    assert [(c.config.detector.learning_rate, c.config.seed) for c in found] == [
        (0.1, 0),
        (0.1, 1),
        (1e-3, 0),
        (1e-3, 1),
    ]
    assert {c.config.detector.steps for c in found} == {7}
    assert all(c.config.is_locked for c in found)


def test_values_take_the_type_of_their_key():
    (one, two) = sweep.cells(SPEC, ["stages=('zeroshot','detector'),('zeroshot',)"])
    assert one.config.stages == ("zeroshot", "detector")
    assert two.config.stages == ("zeroshot",)
    assert [one.name, two.name] == ["stages=zeroshot+detector", "stages=zeroshot"]
    (one, two) = sweep.cells(SPEC, ["data.rows=(4, 2),(6, 3)"])
    assert (one.config.data.rows, two.config.data.rows) == ((4, 2), (6, 3))
    (one, two, three) = sweep.cells(SPEC, ["data.normaliser='3,5',\"box\",''"])
    assert [c.config.data.normaliser for c in (one, two, three)] == ["3,5", "box", ""]
    assert [c.name.partition("=")[2] for c in (one, two, three)] == ["3+5", "box", "none"]
    (one, two) = sweep.cells(SPEC, ["data.partner=true,False"])
    assert (one.config.data.partner, two.config.data.partner) == (True, False)


def test_arguments_build_the_config_anew(tmp_path):
    (one, two) = sweep.cells(SPEC, ["k=4,6"])
    assert [c.config.k for c in (one, two)] == [4, 6]
    assert [c.config.zeroshot.candidates for c in (one, two)] == [12, 18]  # which the file makes of k
    (one, two) = sweep.cells(SPEC, ["preset=tiny,small"])
    assert [c.config.data.frame_size for c in (one, two)] == [40, 80]
    path = tmp_path / "mine.py"
    path.write_text(
        "from uld_jax.configs import zeroshot, common\n\n\n"
        "def get_config(arg=None):\n"
        "    arg = common.parse(arg, size=3)\n"
        "    config = zeroshot.get_config(f'preset={arg.preset}').unlock()\n"
        "    config.seed = 10 * arg.size\n"
        "    return config.lock()\n"
    )
    assert [c.config.seed for c in sweep.cells(f"{path}:preset=tiny", ["size=3,5"])] == [30, 50]
    path.write_text(path.read_text().replace("common.parse(arg, size=3)", "common.parse('preset=tiny', size=3)"))
    # This one takes any argument, and uses none: only what the config has can be varied.
    assert [c.config.seed for c in sweep.cells(str(path), ["seed=3,5"])] == [3, 5]
    assert "takes no argument of that name" in refused("size=3,5", spec=str(path))


def test_grids_that_cannot_be_used_are_refused():
    assert "a sweep needs --grid=KEY=VALUE" in refused()
    assert "write --grid=KEY=VALUE" in refused("seed")
    assert "--grid=seed= has no value; " in refused("seed=")
    assert "has no value beside one of its commas" in refused("seed=0,,1")
    assert "--grid=seed is given twice" in refused("seed=0,1", "k=4,5", "seed=2")
    assert "has the value 1 twice" in refused("seed=1,0,1")
    assert "the config has no key 'sead' and takes no argument" in refused("sead=0,1")
    assert "wdith" in refused("detector.wdith=8,16")
    assert "preset is 'huge'" in refused("preset=huge,tiny")
    assert "seed=one: " in (said := refused("seed=one,2"))
    assert "invalid literal" in said
    assert "leave one of them out" in refused("seed=0,1", overrides=["seed=3"])
    assert "quotes and brackets come in pairs" in refused("stages=('a','b'")
    assert "quotes and brackets come in pairs" in refused("stages=a],b")
    assert "leave out the comma" in refused("dataset=(a,b),c")
    assert "would share the folder" in refused("stages=('zeroshot','detector'),['zeroshot','detector']")
    assert "there is no config 'nothing'" in refused("seed=0", spec="nothing")


def test_nothing_is_run_when_one_cell_cannot_be(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "run", lambda *a, **k: pytest.fail("a cell was run"))
    where = tmp_path / "sweep"

    def said(*args, config=SPEC):
        code, _, err = uld(capsys, monkeypatch, f"--config={config}", f"--workdir={where}", *args)
        assert code == 1
        assert len(err.strip().splitlines()) == 1, err
        assert not where.exists()
        return err

    assert "sead" in said("--grid=seed=0,1", "--config.sead=3")
    assert "detector.steps=-1: config.detector.steps is -1" in said("--grid=detector.steps=4,-1")
    assert "batch_size=0: " in said("--grid=batch_size=8,0")
    assert "detector.loss=none: detector.loss is 'none'" in said("--grid=detector.loss=position,none")
    assert "multiples of" in said("--grid=detector.image_size=32,33")  # found by tracing
    assert "data_dir is not set" in said("--grid=seed=0,1", config=f"{SPEC},dataset=folder")
    assert "does not exist" in said(f"--grid=data_dir={tmp_path / 'absent'}", config=f"{SPEC},dataset=folder")
    assert "config.json is missing" in said(f"--grid=init_from={tmp_path / 'absent'}", "--config.stages=('detector',)")


class Training:
    """Stands in for `loop.run`: writes what a run leaves, with an error that depends on the config."""

    def __init__(self, monkeypatch):
        self.ran, self.fails, self.stops = [], "", ""
        self.protocol = lambda config: "heads"
        monkeypatch.setattr(loop, "run", self)
        monkeypatch.setattr(checkpoint, "has_final", lambda folder, stage: (folder / "final").exists())
        monkeypatch.setattr(sweep.runs, "shapes", lambda *a: None)  # tracing takes longest, and is tested above

    def __call__(self, config, workdir, *, mesh, stop, alone):
        assert not alone
        self.ran.append(workdir.name)
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(json.dumps(config.to_dict(), default=str))
        if self.fails and self.fails in workdir.name:
            raise UserError("stage detector: loss is not finite at step 1")
        if self.stops and self.stops in workdir.name:
            stop._flag.set()
            raise stopping.Stopped("stopped in stage detector at step 1, saved; the same command goes on")
        error = config.detector.learning_rate * 100 + config.seed
        steps = config.detector.steps
        lines = [
            {"step": s, "stage": "detector", "seconds": 30 * s, "loss": 1 / s, "consistency": s / (1 + config.seed)}
            for s in (1, 2)
        ]
        lines += [{"step": steps, "stage": "detector", "seconds": 90, "forward_nme": 2 * error, "note": "x"}]
        lines += [{"step": steps, "stage": "detector", "seconds": 120, "done": True}]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (workdir / "eval/test").mkdir(parents=True, exist_ok=True)
        report = {"forward_nme": error, "backward_nme": None, "stability_px": 1234.5, "protocol": self.protocol(config)}
        (workdir / "eval/test/metrics.json").write_text(json.dumps(report))
        (workdir / "final").touch()


GRIDS = ["detector.learning_rate=0.1,0.2", "seed=0,1,3"]


def test_the_table_has_mean_and_spread_over_seeds(tmp_path, monkeypatch):
    Training(monkeypatch)
    table = sweep.run(SPEC, GRIDS, tmp_path, overrides=SHORT)
    assert json.loads((tmp_path / "table.json").read_text()) == table.record
    assert (tmp_path / "table.md").read_text() == table.markdown
    assert not table.failed
    assert table.record["grids"] == {"detector.learning_rate": ["0.1", "0.2"], "seed": ["0", "1", "3"]}
    names = table.record["columns"]
    assert names == [*sweep.COLUMNS, "consistency", "steps", "minutes"]  # no silhouette: no run has it
    for row, rate in zip(table.record["rows"], (0.1, 0.2), strict=True):
        assert row["values"] == {"detector.learning_rate": str(rate)}
        errors = np.array([100 * rate + seed for seed in (0, 1, 3)])
        found = row["columns"]["forward_nme"]  # of the evaluation, not of the log
        assert found["n"] == 3
        assert found["mean"] == pytest.approx(errors.mean())
        assert found["spread"] == pytest.approx(np.sqrt(((errors - errors.mean()) ** 2).sum() / 2))
        assert row["columns"]["consistency"]["mean"] == pytest.approx(np.mean([2, 1, 0.5]))  # the last line that has it
        assert row["columns"]["backward_nme"] == {"mean": None, "spread": None, "n": 0}
        assert row["columns"]["steps"] == {"mean": 4, "spread": 0, "n": 3}
        assert row["columns"]["minutes"]["mean"] == 2
        assert [c["columns"]["forward_nme"] for c in row["cells"]] == pytest.approx(errors)
        assert [(c["seed"], c["status"]) for c in row["cells"]] == [("0", "done"), ("1", "done"), ("3", "done")]
    lines = table.markdown.splitlines()
    assert lines[0].startswith("| detector.learning_rate | runs | forward_nme | backward_nme | mean_shape_nme | stab")
    assert lines[2] == "| 0.1 | 3 | 11.33 ± 1.53 |  (0) |  (0) | 1234 | 1.167 ± 0.764 | 4 | 2 |".replace(" (0)", "")
    assert "Protocol `heads`." in lines[-1]
    assert {cell["protocol"] for row in table.record["rows"] for cell in row["cells"]} == {"heads"}
    assert Image.open(tmp_path / "curves.png").width > 1000
    other = sweep.run(SPEC, GRIDS, tmp_path, overrides=SHORT, columns=["loss", "nothing"])
    assert other.record["columns"] == ["loss", "nothing"]
    assert other.record["rows"][0]["columns"]["loss"]["mean"] == 0.5


def test_the_table_says_where_protocols_differ(tmp_path, monkeypatch):
    Training(monkeypatch).protocol = lambda config: f"heads+seed_{min(config.seed, 1)}"
    last = sweep.run(SPEC, ["seed=0,1,3"], tmp_path, overrides=SHORT).markdown.splitlines()[-1]
    assert "may not be compared: `heads+seed_0` (seed=0); `heads+seed_1` (seed=1, seed=3)." in last


def test_two_grids_of_numbers_are_a_heat_map(tmp_path, monkeypatch):
    training = Training(monkeypatch)
    monkeypatch.setattr(sweep.viz, "sweep_plot", lambda rows: Image.new("RGB", (8, 8)))
    monkeypatch.setattr(sweep, "_check", lambda every, *_: [(every[0].config, [])])
    drawn = {}
    plot = sweep.viz.grid_plot
    monkeypatch.setattr(sweep.viz, "grid_plot", lambda **given: drawn.update(given) or plot(**given))
    training.fails = "0.3,batch_size=8"
    grids = ["detector.learning_rate=0.3,0.05,0.1", "batch_size=16,8", "seed=0,2"]
    table = sweep.run(SPEC, grids, tmp_path, overrides=SHORT)
    assert (drawn["x"], drawn["y"]) == ("detector.learning_rate", "batch_size")
    assert drawn["at"] == (["0.05", "0.1", "0.3"], ["8", "16"])
    forward, backward = drawn["panels"].values()
    np.testing.assert_allclose(forward, [[6, 11, np.nan], [6, 11, 31]])  # means over the seeds
    assert np.isnan(backward).all()  # not measured
    assert list(drawn["panels"]) == ["forward NME, %", "backward NME, %"]
    assert table.files[-1] == "grid.png"
    assert np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).std() > 5
    (panel,) = sweep.grid(table.record | {"columns": ["minutes", "steps"]})["panels"].items()
    assert panel[0] == "minutes"
    assert np.nanmax(panel[1]) == 2
    for values in ({"a": ["1", "2"], "b": ["x", "2"]}, {"a": ["1", "2"], "b": ["1"]}, {"a": ["1", "2"]}):
        assert sweep.grid({"grids": values | {"seed": ["0"]}, "columns": ["loss"], "rows": []}) is None


def test_finished_cells_are_not_run_again_and_failed_ones_do_not_stop_the_others(tmp_path, capsys, monkeypatch):
    training = Training(monkeypatch)
    monkeypatch.setattr(sweep.viz, "save", lambda *a: None)
    args = [f"--config={SPEC}", f"--workdir={tmp_path}", *(f"--grid={g}" for g in GRIDS)]
    args += [f"--config.{o}" for o in SHORT]
    names = [f"detector.learning_rate={rate},seed={seed}" for rate in (0.1, 0.2) for seed in (0, 1, 3)]

    training.stops = "0.1,seed=3"
    code, _, err = uld(capsys, monkeypatch, *args)
    assert code == 0
    assert "the same command goes on" in err
    assert training.ran == names[:3]
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]  # what there is when it was stopped
    assert [c["status"] for r in rows for c in r["cells"]] == ["done", "done", "started", *["waiting"] * 3]
    assert rows[0]["columns"]["forward_nme"] == {"mean": 10.5, "spread": pytest.approx(0.5**0.5), "n": 2}
    assert "| 0.1 | 2 of 3 | 10.50 ± 0.71 |" in (tmp_path / "table.md").read_text()

    training.ran, training.stops, training.fails = [], "", "0.2,seed=0"
    code, out, err = uld(capsys, monkeypatch, *args)
    assert code == 1
    assert training.ran == names[2:]
    assert f"{names[3]} failed: stage detector: loss is not finite" in err
    assert f"* `{names[3]}`: stage detector: loss is not finite at step 1" in out
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [c["status"] for r in rows for c in r["cells"]] == [*["done"] * 3, "failed", "done", "done"]
    assert rows[1]["columns"]["forward_nme"]["n"] == 2

    training.ran, training.fails = [], ""
    code, out, err = uld(capsys, monkeypatch, *args)
    assert code == 0, err
    assert training.ran == [names[3]]
    assert "Not in the table" not in out
    training.ran = []
    assert uld(capsys, monkeypatch, *args)[0] == 0
    assert training.ran == []
    more = [a.replace("steps=4", "steps=5") for a in args]
    assert uld(capsys, monkeypatch, *more)[0] == 0
    assert training.ran == names  # more steps of the last stage: all go on
    code, _, err = uld(capsys, monkeypatch, *args, "--config.batch_size=4")
    assert code == 1
    assert "batch_size=8, not 4" in err


def test_sigterm_between_two_cells_stops_the_sweep(tmp_path, monkeypatch):
    training = Training(monkeypatch)
    original = sweep._write

    def write(*args):
        if training.ran:
            signal.raise_signal(signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(sweep, "_write", write)
    with pytest.raises(stopping.Stopped, match=r"stopped before detector.learning_rate=0.1,seed=1"):
        sweep.run(SPEC, GRIDS, tmp_path, overrides=SHORT)
    assert len(training.ran) == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_sweep_runs_resumes_and_measures(tmp_path, capsys, monkeypatch):
    args = [f"--config={SPEC}", f"--workdir={tmp_path}", "--grid=seed=0,1", "--config.stages=('zeroshot',)"]
    heads = iter([1])  # the sweep asks once before its first cell, whose only loop head comes next

    class StopOnce(stopping.Sigterm):
        def agreed(self, ask):
            self.left = getattr(self, "left", next(heads, -1) + 1) - 1
            return self.left == 0

    monkeypatch.setattr(loop, "Sigterm", StopOnce)
    code, _, err = uld(capsys, monkeypatch, *args)
    assert code == 0, err
    assert "stopped in stage zeroshot at step 0" in err
    assert (tmp_path / "seed=0/checkpoints/zeroshot/0").exists()
    assert not (tmp_path / "seed=1").exists()
    code, out, err = uld(capsys, monkeypatch, *args)
    assert code == 0, err
    table = json.loads((tmp_path / "table.json").read_text())
    (row,) = table["rows"]
    assert row["values"] == {}
    for cell in row["cells"]:
        folder = tmp_path / cell["name"]
        report = json.loads((folder / "eval/test/metrics.json").read_text())
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert cell["columns"]["forward_nme"] == report["forward_nme"]
        assert cell["columns"]["steps"] == 0
        assert cell["columns"]["minutes"] == last["seconds"] / 60
    assert row["columns"]["forward_nme"]["n"] == 2
    assert "| 2 | " in out
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("metrics.jsonl")}
    assert uld(capsys, monkeypatch, *args)[0] == 0
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("metrics.jsonl")}
