"""A program of a run together with its arguments, for those who compile it without running it."""

from typing import Any, NamedTuple


class Program(NamedTuple):
    """A jitted function and what it is called with.

    Attributes:
      function: the jitted function, or `sharding.OnMesh` or `step.Step` around it.
      arguments: its arguments, arrays or shapes with their placement.
    """

    function: Any
    arguments: tuple

    def trace(self):
        """Trace the function: `jax.stages.Traced`."""
        return self.function.trace(*self.arguments)
