"""Training of cells: those that are finished, that fail and that are stopped, with the runs made up."""

import json
import signal

import pytest

from tests.studies.training import GRIDS, SHORT, SPEC, Training
from uld_jax import __main__ as cli
from uld_jax import viz
from uld_jax.engine import stopping
from uld_jax.studies import sweep, table


def uld(capsys, monkeypatch, *args):
    """Exit code, stdout and stderr of `uld sweep`, run in this process."""
    monkeypatch.setattr("sys.argv", ["uld", "sweep", *map(str, args)])
    code = cli.main()
    out = capsys.readouterr()
    return code, out.out, out.err


def test_finished_cells_are_not_run_again_and_failed_ones_do_not_stop_the_others(tmp_path, capsys, monkeypatch):
    training = Training(monkeypatch)
    monkeypatch.setattr(viz, "save", lambda *a: None)
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
    original = table.write

    def write(*args):
        if training.ran:
            signal.raise_signal(signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(table, "write", write)
    with pytest.raises(stopping.Stopped, match=r"stopped before detector.learning_rate=0.1,seed=1"):
        sweep.run(SPEC, GRIDS, tmp_path, overrides=SHORT)
    assert len(training.ran) == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
