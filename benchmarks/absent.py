"""Functions compiled for devices that are absent, one after the other: what the benchmarks `aot_*` share."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import jax

from benchmarks import harness
from uld_jax import devices, sharding
from uld_jax.errors import UserError
from uld_jax.plan import topology as topologies

MIB = 2**20


class Compiled(NamedTuple):
    """A function that was compiled.

    Attributes:
      name: name of the function.
      text: the optimised program.
      seconds, processor_seconds: duration of tracing and compilation, and the processor's part of it.
      temporaries: MiB of a device besides arguments and results.
      clock: Hz of the devices; None where unknown.
    """

    name: str
    text: str
    seconds: float
    processor_seconds: float
    temporaries: float
    clock: float | None

    def milliseconds(self, cycles: int) -> float | None:
        """Return the duration of so many cycles; None where the clock is unknown."""
        return round(1e3 * cycles / self.clock, 2) if self.clock else None


def compile_each(
    topology: str, make: Callable[[Any], dict], only: Collection[str] = (), hlo: str = ""
) -> Iterator[Compiled]:
    """Iterate over functions (`Compiled`), as each is compiled.

    Args:
      topology: of the devices, see `uld_jax.plan.topology`.
      make: function of the mesh that returns {name: (function, arguments)}, the arguments as shapes.
      only: names of functions; all if empty.
      hlo: a folder for the compiled texts, or nothing.
    """
    found = topologies.find(topology)
    mesh, sheet = sharding.make_mesh(found.devices), devices.sheet(found.kind)
    with devices.traced_for(found.devices), jax.set_mesh(mesh):
        for name, (function, arguments) in make(mesh).items():
            if only and name not in only:
                continue
            begin, spent = time.perf_counter(), time.process_time()
            compiled = jax.jit(function).lower(*arguments).compile()
            taken = time.perf_counter() - begin, time.process_time() - spent
            text = compiled.as_text()
            if hlo:
                os.makedirs(hlo, exist_ok=True)
                with open(os.path.join(hlo, f"{name}.txt"), "w") as file:
                    file.write(text)
            temporaries = round(compiled.memory_analysis().temp_size_in_bytes / MIB, 1)
            yield Compiled(name, text, *taken, temporaries, sheet and sheet.clock)


def parser(description: str, topology: str, what: str) -> argparse.ArgumentParser:
    """Make a parser of the arguments that all such benchmarks have; `what` names the functions."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--topology", default=topology, help="absent devices, such as v5e:4x4 or h100:1")
    made.add_argument("--only", default="", help=f"names of {what}, separated by semicolons")
    made.add_argument("--hlo", default="", help="folder for the compiled texts")
    made.add_argument("--json", default="", help="file to write the rows to")
    return made


def run(benchmark: Callable[[list[str]], Iterator[dict]], args: argparse.Namespace) -> int:
    """Print the rows of a benchmark of the functions in `--only`, then all as a table; return the exit code."""
    rows = []
    try:
        for row in benchmark([name for name in args.only.split(";") if name]):
            print(row, flush=True)
            rows.append(row)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    harness.report(rows, args.json)
    return 0
