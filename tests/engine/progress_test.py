"""The line that says how far a stage is, on a clock that the test turns."""

import sys

import jax
import pytest

from uld_jax.engine import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds, to be set by the test."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "perf_counter", lambda: Clock.now)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    return Clock


def advance(line, clock, seconds, steps=1):
    clock.now += seconds
    line.advance(steps)


def test_the_rate_leaves_out_compiling_and_pauses(clock):
    line = progress.Progress("detector", 100, 20, 8)
    assert line.measure() == 0
    advance(line, clock, 50)  # compiles
    assert line.measure() == 0
    advance(line, clock, 1)
    advance(line, clock, 3)
    assert line.measure() == pytest.approx(2 * 8 / 4)
    line.pause()  # an evaluation
    advance(line, clock, 1000)
    advance(line, clock, 2, steps=5)
    assert line.measure() == pytest.approx(5 * 8 / 2)
    assert line.measure() == 0  # nothing since


def test_a_line_says_step_loss_rate_and_time_left(clock, capsys):
    line = progress.Progress("detector", 100, 20, 8)
    line.show(0.123456)
    assert capsys.readouterr().err == "detector 20/100  loss 0.1235  0 images/s  ? left\n"
    advance(line, clock, 5, steps=10)
    advance(line, clock, 16, steps=10)
    line.measure()
    line.show(2.0)
    out = capsys.readouterr()
    # 10 steps of 8 images in 16 s, and 60 steps to go
    assert out.err == "detector 40/100  loss 2  5 images/s  1.6 min left\n"
    assert out.out == ""


def test_notes_are_lines_of_their_own(clock, capsys):
    line = progress.Progress("detector", 100, 20, 8)
    line.note("nme 4.2")
    line.note("")
    line.close()
    assert capsys.readouterr().err == "detector 20: nme 4.2\n"


def test_other_processes_are_silent(clock, capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    line = progress.Progress("detector", 100, 0, 8)
    advance(line, clock, 1)
    advance(line, clock, 1)
    assert line.measure() == 8  # measured all the same, for the metrics
    line.show(1.0)
    line.note("nme 4.2")
    line.close()
    out = capsys.readouterr()
    assert out.out == out.err == ""


def test_a_terminal_gets_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    line = progress.Progress("detector", 100, 20, 8)
    for _ in range(3):
        advance(line, clock, 2, steps=10)
    line.measure()
    line.show(0.5)
    line.note("nme 4.2")
    line.close()
    err = capsys.readouterr().err
    assert "50/100" in err
    assert "loss 0.5, 40 images/s" in err
    assert "detector 50: nme 4.2" in err
    assert "left\n" not in err
