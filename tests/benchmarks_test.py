"""The timing harness on functions whose work is known."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import harness, step
from tests import tiny


def test_measure_says_what_a_call_takes():
    side = 64
    x = jnp.ones((side, side))
    timing = harness.measure(lambda a, b: a @ b, x, x, calls=6, warmup=1)
    assert timing.calls == 6
    assert 0 < timing.low <= timing.median <= timing.high
    assert timing.compile > 0
    assert timing.flops == pytest.approx(2 * side**3, rel=0.1)
    assert timing.peak_bytes >= 3 * side**2 * 4


def test_a_step_may_destroy_its_state():
    advance = jax.jit(lambda state, x: (state + x, {"loss": jnp.sum(state)}), donate_argnums=0)
    state = jnp.zeros(1000)
    timing = harness.measure(advance, state, jnp.float32(1), calls=5, warmup=2, donate_first=True)
    assert timing.calls == 5
    assert state.is_deleted()  # it was handed on, not copied


def test_the_budget_ends_a_slow_measurement():
    timing = harness.measure(lambda x: x + 1, jnp.zeros(3), calls=1000, warmup=0, budget=0.0)
    assert timing.calls == 5
    assert harness.measure(lambda x: x + 1, jnp.zeros(3), calls=1, warmup=0).median > 0


def test_utilisation_is_counted_work_over_the_peak(monkeypatch):
    timing = harness.Timing(median=0.5, low=0.4, high=0.6, compile=1.0, calls=5, flops=3e9, peak_bytes=None)
    device = jax.devices()[0]
    monkeypatch.setattr(harness, "_PEAKS", {device.device_kind: (12e9, None)})
    assert harness.utilisation(timing) == pytest.approx(3e9 / 0.5 / 12e9 / jax.device_count())
    assert harness.utilisation(timing, "bfloat16") is None
    monkeypatch.setattr(harness, "_PEAKS", {})
    assert harness.utilisation(timing) is None


def test_rows_are_shown_and_written(tmp_path, capsys):
    rows = [{"method": "zeroshot", "ms": 1.23456, "peak": None}, {"method": "b", "ms": 12, "GFLOP": 2.0}]
    harness.show(rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["method", "ms", "peak", "GFLOP"]
    assert lines[2].split() == ["zeroshot", "1.235", "-", "-"]
    assert lines[3].split() == ["b", "12", "-", "2"]
    assert lines[0].index("ms") == lines[2].index("1.235") == lines[3].index("12")
    harness.write(str(tmp_path / "rows.json"), rows)
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written["rows"] == rows
    assert written["environment"]["jax"] == jax.__version__


def test_every_stage_of_every_config_can_be_timed():
    assert step.stages() == tiny.stages()
    assert step.stages("zeroshot") == [("zeroshot", "zeroshot"), ("zeroshot", "detector")]
    assert step.stages("nothing") == []
