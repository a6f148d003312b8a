"""Display of training progress: a line of step, loss, speed and time left; a profiler trace on request."""

import dataclasses
import logging
import os
import sys
import time

import jax
from etils import epath
from tqdm import tqdm


class Progress:
    """A progress bar on a terminal, or single lines on any other output. Only process 0 prints."""

    def __init__(self, stage: str, steps: int, start: int, batch_size: int):
        self._stage, self._steps, self._step, self._batch = stage, steps, start, batch_size
        self._loud = jax.process_index() == 0
        self._bar = None
        if self._loud and steps and sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=start, desc=stage, unit="step", dynamic_ncols=True, leave=False)
        self._then, self._seconds, self._counted, self._rate = None, 0.0, 0, 0.0

    def advance(self, steps: int) -> None:
        """Count steps that were just dispatched."""
        now = time.perf_counter()
        if self._then is not None:
            self._seconds += now - self._then
            self._counted += steps
        self._then = now
        self._step += steps
        if self._bar is not None:
            self._bar.update(steps)

    def pause(self) -> None:
        """Leave the time until the next step, which is not training, out of the rate."""
        self._then = None

    def measure(self) -> float:
        """Return images per second since the last call; the first step, which compiles, does not count."""
        if self._then is not None:  # the device has worked until now on steps dispatched earlier
            now = time.perf_counter()
            self._seconds, self._then = self._seconds + now - self._then, now
        self._rate = self._counted * self._batch / self._seconds if self._seconds else 0.0
        self._seconds, self._counted = 0.0, 0
        return self._rate

    def show(self, loss: float) -> None:
        rate = self._rate
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4g}, {rate:.0f} images/s")
        elif self._loud:
            left = f"{(self._steps - self._step) * self._batch / rate / 60:.1f} min" if rate else "?"
            print(
                f"{self._stage} {self._step}/{self._steps}  loss {loss:.4g}  {rate:.0f} images/s  {left} left",
                file=sys.stderr,
            )

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if self._loud and text:
            tqdm.write(f"{self._stage} {self._step}: {text}", file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@dataclasses.dataclass
class Trace:
    """A JAX profiler trace between two steps."""

    folder: epath.Path
    steps: tuple[int, int] | None
    on: bool = False

    def at(self, step: int, ahead: int) -> None:
        """Start or stop the trace before `ahead` more steps."""
        if self.steps is None:
            return
        first, last = self.steps
        if not self.on and step < last and first < step + ahead:
            jax.profiler.start_trace(os.fspath(self.folder))
            self.on = True
        elif self.on and step >= last:
            self.stop()

    def stop(self) -> None:
        if self.on:
            jax.profiler.stop_trace()
            self.on = False
            logging.info("trace written to %s", self.folder)
