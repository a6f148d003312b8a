import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests import tiny
from uld_jax import interrupts


class Left(Exception):
    pass


def test_the_result_or_the_error_of_the_work_is_given():
    assert interrupts.attended(lambda: (threading.current_thread() is threading.main_thread(), 5)) == (False, 5)

    def fail(error):
        raise error

    for error in (KeyError("a"), TimeoutError("its own")):
        with pytest.raises(type(error), match=error.args[0]):
            interrupts.attended(lambda error=error: fail(error))


def test_a_check_leaves_work_behind_and_words_come_while_it_lasts(monkeypatch):
    monkeypatch.setattr(interrupts, "_TICK", 0.01)
    monkeypatch.setattr(interrupts, "_PATIENCE", 0.02)
    monkeypatch.setattr(interrupts, "_left", [])
    ended, said, calls = threading.Event(), [], []

    def check():
        calls.append(None)
        if len(calls) > 20:
            raise Left

    with pytest.raises(Left):
        interrupts.attended(lambda: ended.wait(60), check, said.append)
    assert said[0] >= 0.02
    assert len(said) < len(calls)
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    interrupts.leave(3)
    assert codes == [3]  # Python would wait for the work
    ended.set()
    interrupts._left[0].join(60)
    assert interrupts.leave(4) == 4
    assert codes == [3]


ENDLESS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs start without
import jax, jax.numpy as jnp
from uld_jax import interrupts
endless = jax.jit(lambda x: jax.lax.while_loop(lambda x: x[0] >= 0, lambda x: x + 1e-9, x))
print("begun", flush=True)
try:
    interrupts.attended(lambda: jax.block_until_ready(endless(jnp.ones(8))))
except KeyboardInterrupt:
    sys.exit(interrupts.leave(7))
"""


def test_ctrl_c_ends_a_process_whose_program_would_run_for_ever():
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS], env=tiny.environment(), cwd=tiny.ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(2)  # until the program is compiled, or not: either is answered
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 7
