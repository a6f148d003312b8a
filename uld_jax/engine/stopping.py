"""Handling of SIGTERM, which saves a run and ends it at any point."""

import signal
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from uld_jax import interrupts


class Stopped(Exception):
    """A stop by SIGTERM; the run is saved and the same command resumes it."""


class Interrupted(Exception):
    """An exception that leaves a pass early."""


class Sigterm:
    """A re-entrant context that turns SIGTERM into a flag, which the loop reads at its head."""

    def __init__(self):
        self._flag, self._old = threading.Event(), []

    def __enter__(self):
        main = threading.current_thread() is threading.main_thread()
        self._old.append(signal.signal(signal.SIGTERM, lambda *_: self._flag.set()) if main else None)
        return self

    def __exit__(self, *_):
        if (old := self._old.pop()) is not None:
            signal.signal(signal.SIGTERM, old)

    def check(self) -> None:
        """Leave a pass early after SIGTERM. Several processes must leave together, so they wait for the loop's head."""
        if jax.process_count() == 1 and self._flag.is_set():
            raise Interrupted

    def attend(self, work: Callable[[], Any]) -> Any:
        """Return the result of work between runs. Raises Stopped at once when SIGTERM comes."""
        try:
            return interrupts.attended(work, self.check)
        except Interrupted:
            raise Stopped("stopped between two runs; the same command goes on") from None

    def agreed(self, ask: bool) -> bool:
        """Tell whether to stop. Several processes communicate to agree, which takes time, so only if `ask` is set."""
        if jax.process_count() == 1:
            return self._flag.is_set()
        return ask and bool(multihost_utils.process_allgather(np.asarray(self._flag.is_set())).any())
