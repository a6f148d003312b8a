"""Training of a study's cells: checks before the first cell, one run after the other, resumption, collected errors."""

import functools
import gc
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from uld_jax import config as config_lib
from uld_jax.config import Config
from uld_jax.data.open import open_split
from uld_jax.engine import checkpoint, loop, runs, stopping
from uld_jax.engine import workdir as workdir_lib
from uld_jax.errors import UserError
from uld_jax.studies.grid import Cell

_Result = TypeVar("_Result")


def train(
    cells: Sequence[Cell],
    workdir,
    mesh,
    *,
    write: Callable[[dict[str, str]], _Result],
    measure: Callable[[Cell, loop.Trained], Any] | None = None,
) -> _Result:
    """Train cells one after the other, each in its folder `workdir / cell.name`.

    A cell that fails with a UserError, or for lack of memory, does not stop the others.

    Args:
      cells: unfinished runs; a run that was started resumes from its last checkpoint.
      workdir: folder of the study.
      mesh: the devices.
      write: function that writes the study's table, given {name of a failed cell: its error}; called before the first
        cell and after every cell.
      measure: function that measures a cell that has just been trained; its errors count as the cell's.

    Returns:
      The last result of `write`.

    Raises:
      stopping.Stopped: SIGTERM came, and the state of the current cell is saved.
    """
    errors: dict[str, str] = {}
    result = write(errors)
    with stopping.Sigterm() as stop:
        for i, cell in enumerate(cells):
            if stop.agreed(True):
                raise stopping.Stopped(f"stopped before {cell.name}; the same command goes on")
            _say(f"{cell.name}: {i + 1} of {len(cells)} runs")
            try:
                _run(cell, workdir / cell.name, mesh, stop, measure)
            except (UserError, jax.errors.JaxRuntimeError) as error:  # the latter is raised when memory runs out
                errors[cell.name] = str(error)
                _say(f"{cell.name} failed: {error}")
            finally:
                result = write(errors)
            jax.clear_caches()  # programs compiled for one cell are useless for the next
            gc.collect()
    return result


def _run(cell: Cell, folder, mesh, stop, measure) -> None:
    """Train one cell and measure it."""
    found = loop.run(cell.config, folder, mesh=mesh, stop=stop, alone=False)
    if measure is not None:
        stop.attend(functools.partial(measure, cell, found))


def finished(cell: Cell, folder) -> bool:
    """Tell whether all stages have done the config's steps, which may have grown since the run was started."""
    last, stages = (lines(folder) or [{}])[-1], cell.config.stages
    steps = sum(cell.config[name].steps for name in stages)
    return bool(last.get("done")) and last["step"] == steps and checkpoint.has_final(folder, stages[-1])


def lines(folder) -> list[dict[str, Any]]:
    """Read the lines of a run's metrics.jsonl; [] if there is none."""
    return workdir_lib.read_lines(folder / "metrics.jsonl")


def check(every: Sequence[Cell], workdir, mesh) -> list[tuple[Config, list[config_lib.StageSpec]]]:
    """Check all cells before the first computation; shared data and stages are read and traced once.

    Returns:
      The config and the stages of every cell.

    Raises:
      UserError: the first error, after the cell's name.
    """
    rows, traced, origins, built = {}, set(), {}, []
    for cell in every:
        config = cell.config
        try:
            stages, _ = loop.check(config, workdir / cell.name, mesh)
            built.append((config, stages))
            data = json.dumps([config.dataset, config.data_dir, config.data.to_dict()], default=str)
            if data not in rows:
                train = open_split(config, "train")
                if "test" in train.spec.splits:
                    open_split(config, "test")
                rows[data] = len(train)
            first = config.init_from
            if first and first not in origins:
                origins[first] = runs.load(first, mesh).origin
            what = (data, first, tuple(stages))
            if what not in traced:
                origin = {"stage": stages[-1].name, "config": config.to_dict(), "rows": rows[data]}
                runs.shapes(origin | {"init_from": origins.get(first)})
                traced.add(what)
        except UserError as error:
            raise UserError(f"{cell.name}: {error}") from error
    return built


def _say(text: str) -> None:
    """Print a line of progress, once for all processes."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr)
