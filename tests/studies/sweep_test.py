"""Sweeps: what is refused before any run, and one sweep that trains."""

import json

import pytest

from tests.studies.training import SPEC
from uld_jax import __main__ as cli
from uld_jax.engine import loop, stopping


def uld(capsys, monkeypatch, *args):
    """Exit code, stdout and stderr of `uld sweep`, run in this process."""
    monkeypatch.setattr("sys.argv", ["uld", "sweep", *map(str, args)])
    code = cli.main()
    out = capsys.readouterr()
    return code, out.out, out.err


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
    assert "detector.loss=none: config.detector.loss is 'none'" in said("--grid=detector.loss=position,none")
    assert "multiples of" in said("--grid=detector.image_size=32,33")  # found by tracing
    assert "data_dir is not set" in said("--grid=seed=0,1", config=f"{SPEC},dataset=folder")
    assert "does not exist" in said(f"--grid=data_dir={tmp_path / 'absent'}", config=f"{SPEC},dataset=folder")
    assert "config.json is missing" in said(f"--grid=init_from={tmp_path / 'absent'}", "--config.stages=('detector',)")


def test_a_sweep_runs_resumes_and_measures(tmp_path, capsys, monkeypatch):
    args = [f"--config={SPEC}", f"--workdir={tmp_path}", "--grid=seed=0,1", "--config.stages=('zeroshot',)"]
    heads = iter([1])  # the sweep asks once before its first cell, whose only loop head comes next

    class StopOnce(stopping.Sigterm):
        def agreed(self, ask):
            self.left = getattr(self, "left", next(heads, -1) + 1) - 1
            return self.left == 0

    monkeypatch.setattr(stopping, "Sigterm", StopOnce)
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
