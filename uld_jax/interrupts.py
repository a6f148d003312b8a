"""Handling of signals while a long computation runs.

Python runs a signal's handler in the main thread, between two of its own steps. A program that XLA compiles or runs
blocks its thread for as long as it lasts, and cannot be stopped. Therefore it runs in a thread of its own, while the
main thread waits in short intervals. Leaving the wait leaves the computation running, and `leave` ends a process with
such a computation.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

_TICK = 0.2  # seconds between two calls of `check`
_PATIENCE = 10.0  # seconds before the first message; each further message comes after twice the time
_left: list[threading.Thread] = []


class Patience:
    """A clock for progress messages during a wait: they are due after 10 seconds, 20, 40 and so on."""

    def __init__(self):
        self._start, self._word = time.monotonic(), _PATIENCE

    def due(self) -> float:
        """Return the seconds so far if a message is due, else 0."""
        seconds = time.monotonic() - self._start
        if seconds < self._word:
            return 0.0
        self._word *= 2
        return seconds


def attended(
    work: Callable[[], T],
    check: Callable[[], None] = lambda: None,
    say: Callable[[float], None] = lambda seconds: None,
) -> T:
    """Return the result of `work`, or raise its error, while calling `check` several times a second.

    Contexts of the calling thread, such as `jax.set_mesh`, do not apply in `work`; it has to set its own.

    Args:
      work: the long computation. It must return when the computation ends, not when it is dispatched.
      check: function that may raise to leave the wait; then `work` continues, and its result is lost.
      say: function that is called with the seconds so far, at the times of `Patience`.
    """
    future = Future()
    worker = threading.Thread(target=_settle, args=(future, work), daemon=True)
    patience = Patience()
    worker.start()
    try:
        while not _done(future):
            check()
            if seconds := patience.due():
                say(seconds)
    except BaseException:
        _left.append(worker)
        raise
    return future.result()


def _done(future: Future) -> bool:
    """Tell whether there is a result, after waiting at most `_TICK` seconds."""
    try:
        future.exception(_TICK)
    except TimeoutError:
        return future.done()
    return True


def _settle(future: Future, work) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # any error is raised in the waiting thread
        future.set_exception(error)


def leave(code: int) -> int:
    """Return `code`; but end a process with an unfinished computation here, because Python would wait for it."""
    if any(worker.is_alive() for worker in _left):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
