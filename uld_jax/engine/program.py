"""A program of a run together with its arguments, for those who compile it without running it."""

import contextlib
from typing import Any, NamedTuple

import jax


class Program(NamedTuple):
    """A jitted function and what it is called with.

    Attributes:
      function: the jitted function.
      arguments: its arguments, arrays or shapes with their placement.
      mesh: devices that are set while the function is traced, for work that is spread over them by hand; or None.
    """

    function: Any
    arguments: tuple
    mesh: Any = None

    def trace(self):
        """Trace the function: `jax.stages.Traced`."""
        with self._meshed():
            return self.function.trace(*self.arguments)

    def lower(self, traced=None):
        """Lower the function to the compiler's language: `jax.stages.Lowered`."""
        traced = self.trace() if traced is None else traced
        with self._meshed():
            return traced.lower()

    def shapes(self):
        """Return the shapes of the results."""
        with self._meshed():
            return jax.eval_shape(self.function, *self.arguments)

    def _meshed(self):
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)
