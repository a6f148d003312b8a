"""Signals are answered while a long computation runs.

Python runs a signal's handler in the main thread, between two of its own steps. A program that XLA compiles or runs
takes a thread for as long as it lasts, and cannot be stopped. So it is given to a thread of its own, while the main one
sleeps lightly; whoever leaves the wait leaves the computation behind, and `leave` ends a process that has such a rest.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

_TICK = 0.2  # seconds between two looks at `check`
_PATIENCE = 10.0  # seconds before the first word; each next one comes after twice as long
_left: list[threading.Thread] = []


class Patience:
    """Tells when who waits should hear a word: after 10 seconds, 20, 40 and so on."""

    def __init__(self):
        self._start, self._word = time.monotonic(), _PATIENCE

    def due(self) -> float:
        """Seconds so far if a word is due, else 0."""
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
    """The result of `work`, or its error, while `check` is called several times a second.

    Contexts of the calling thread, such as `jax.set_mesh`, do not hold in `work`; it has to set its own.

    Args:
      work: what may take long. It ends with the computation, and not when that was dispatched.
      check: may raise to leave; then `work` goes on, and its result is lost.
      say: is given the seconds so far, when `Patience` ends.
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
    """Whether there is a result, after a moment at most."""
    try:
        future.exception(_TICK)
    except TimeoutError:
        return future.done()
    return True


def _settle(future: Future, work) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # whatever it is belongs to who waits
        future.set_exception(error)


def leave(code: int) -> int:
    """`code`; but a process in which a computation was left behind ends here, as Python would wait for it."""
    if any(worker.is_alive() for worker in _left):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
