"""Tables of studies: statistics over seeds, protocols and heat maps, with the runs made up."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.studies.training import GRIDS, SHORT, SPEC, Training
from uld_jax import viz
from uld_jax.studies import runner, sweep, table


@pytest.mark.slow
def test_the_table_has_mean_and_spread_over_seeds(tmp_path, monkeypatch):
    Training(monkeypatch)
    found = sweep.run(SPEC, GRIDS, tmp_path, overrides=SHORT)
    assert json.loads((tmp_path / "table.json").read_text()) == found.record
    assert (tmp_path / "table.md").read_text() == found.markdown
    assert not found.failed
    assert found.record["grids"] == {"detector.learning_rate": ["0.1", "0.2"], "seed": ["0", "1", "3"]}
    names = found.record["columns"]
    assert names == [*table.COLUMNS, "consistency", "steps", "minutes"]  # no silhouette: no run has it
    for row, rate in zip(found.record["rows"], (0.1, 0.2), strict=True):
        assert row["values"] == {"detector.learning_rate": str(rate)}
        errors = np.array([100 * rate + seed for seed in (0, 1, 3)])
        error = row["columns"]["forward_nme"]  # of the evaluation, not of the log
        assert error["n"] == 3
        assert error["mean"] == pytest.approx(errors.mean())
        assert error["spread"] == pytest.approx(np.sqrt(((errors - errors.mean()) ** 2).sum() / 2))
        assert row["columns"]["consistency"]["mean"] == pytest.approx(np.mean([2, 1, 0.5]))  # the last line that has it
        assert row["columns"]["backward_nme"] == {"mean": None, "spread": None, "n": 0}
        assert row["columns"]["steps"] == {"mean": 4, "spread": 0, "n": 3}
        assert row["columns"]["minutes"]["mean"] == 2
        assert [c["columns"]["forward_nme"] for c in row["cells"]] == pytest.approx(errors)
        assert [(c["seed"], c["status"]) for c in row["cells"]] == [("0", "done"), ("1", "done"), ("3", "done")]
    lines = found.markdown.splitlines()
    assert lines[0].startswith("| detector.learning_rate | runs | forward_nme | backward_nme | mean_shape_nme | stab")
    assert lines[2] == "| 0.1 | 3 | 11.33 ± 1.53 |  (0) |  (0) | 1234 | 1.167 ± 0.764 | 4 | 2 |".replace(" (0)", "")
    assert "Protocol `heads`." in lines[-1]
    assert {cell["protocol"] for row in found.record["rows"] for cell in row["cells"]} == {"heads"}
    assert Image.open(tmp_path / "curves.png").width > 1000
    other = sweep.run(SPEC, GRIDS, tmp_path, overrides=SHORT, columns=["loss", "nothing"])
    assert other.record["columns"] == ["loss", "nothing"]
    assert other.record["rows"][0]["columns"]["loss"]["mean"] == 0.5


def test_the_table_says_where_protocols_differ(tmp_path, monkeypatch):
    Training(monkeypatch).protocol = lambda config: f"heads+seed_{min(config.seed, 1)}"
    last = sweep.run(SPEC, ["seed=0,1,3"], tmp_path, overrides=SHORT).markdown.splitlines()[-1]
    assert "may not be compared: `heads+seed_0` (seed=0); `heads+seed_1` (seed=1, seed=3)." in last


@pytest.mark.slow
def test_two_grids_of_numbers_are_a_heat_map(tmp_path, monkeypatch):
    training = Training(monkeypatch)
    monkeypatch.setattr(viz, "sweep_plot", lambda rows: Image.new("RGB", (8, 8)))
    monkeypatch.setattr(runner, "check", lambda every, *_: [(every[0].config, [])])
    drawn = {}
    plot = viz.grid_plot
    monkeypatch.setattr(viz, "grid_plot", lambda **given: drawn.update(given) or plot(**given))
    training.fails = "0.3,batch_size=8"
    grids = ["detector.learning_rate=0.3,0.05,0.1", "batch_size=16,8", "seed=0,2"]
    found = sweep.run(SPEC, grids, tmp_path, overrides=SHORT)
    assert (drawn["x"], drawn["y"]) == ("detector.learning_rate", "batch_size")
    assert drawn["at"] == (["0.05", "0.1", "0.3"], ["8", "16"])
    forward, backward = drawn["panels"].values()
    np.testing.assert_allclose(forward, [[6, 11, np.nan], [6, 11, 31]])  # means over the seeds
    assert np.isnan(backward).all()  # not measured
    assert list(drawn["panels"]) == ["forward NME, %", "backward NME, %"]
    assert found.files[-1] == "grid.png"
    assert np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).std() > 5
    (panel,) = table.heat_map(found.record | {"columns": ["minutes", "steps"]})["panels"].items()
    assert panel[0] == "minutes"
    assert np.nanmax(panel[1]) == 2
    for values in ({"a": ["1", "2"], "b": ["x", "2"]}, {"a": ["1", "2"], "b": ["1"]}, {"a": ["1", "2"]}):
        assert table.heat_map({"grids": values | {"seed": ["0"]}, "columns": ["loss"], "rows": []}) is None
