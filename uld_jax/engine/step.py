"""The first state and the steps of a stage as programs on all devices."""

import logging
from collections.abc import Mapping
from typing import Any

import jax

from uld_jax import devices, sharding
from uld_jax.config import Config, StageSpec
from uld_jax.errors import UserError
from uld_jax.method import Method, Start, TrainState


class FirstState:
    """The first state of a stage, made on the devices.

    Args:
      method: the stage.
      reader: training data of the stage; `init` gets the first batch.
      mesh: the devices.
      frozen: frozen weights of the stage, replicated.
      key: typed PRNG key.
      names: of this stage and the previous one, as fields of `Start`, for errors.
    """

    def __init__(self, method: Method, reader, mesh, frozen, key: jax.Array, **names: str):
        def init(frozen, previous, store, payload, key):
            start = Start(previous, reader.rows, **names)
            return method.init(key, reader.fetch(store, payload), frozen, start)

        self._init = jax.jit(init, out_shardings=sharding.replicated(mesh))
        self._frozen, self._rest = frozen, (reader.store, next(reader.payloads(0, seed=0)), sharding.put_key(mesh, key))

    def shapes(self, previous: TrainState | None) -> TrainState:
        """Find the shapes of the state from those of the previous stage."""
        return jax.eval_shape(self._init, self._frozen, previous, *self._rest)

    def state(self, previous: TrainState | None) -> TrainState:
        """Compute the state from the final state of the previous stage."""
        return self._init(self._frozen, previous, *self._rest)


class WithTables:
    """A reader for `compile_step` whose batches also hold rows of tables of the images (`Method.step_tables`).

    A table `name` is in a batch as `name` for the images, and as `name2` for their partners.

    Args:
      reader: the training data.
      mesh: the devices, each of which gets the tables whole.
      tables: {name: pytree of [N,...] host arrays}.

    Attributes:
      store: pytree of device arrays, an argument of the step.
    """

    def __init__(self, reader, mesh, tables: Mapping[str, Any]):
        self._reader = reader
        self.store = {"reader": reader.store, "tables": sharding.put_replicated(mesh, dict(tables))}

    def fetch(self, store, payload) -> dict[str, Any]:
        """Return the batch of a payload with its rows of the tables; traced inside the jitted step."""
        batch = self._reader.fetch(store["reader"], payload)
        for number in ("", "2"):
            if "index" + number in batch:
                rows = batch["index" + number]
                found = jax.tree.map(lambda table, rows=rows: table[rows], store["tables"])
                batch = batch | {name + number: table for name, table in found.items()}
        return batch


def with_tables(reader, mesh, tables: Mapping[str, Any]):
    """Return a reader whose batches also hold rows of tables; the same reader if there are none."""
    return WithTables(reader, mesh, tables) if tables else reader


class Step:
    """A program of steps that is compiled once.

    `jax.jit` would compile anew, without a word, for a state of another shape, type or placement. Here that is a
    warning, which names the array.

    Args:
      program: the program (state, frozen, store, payload, key) -> state, metrics. It may destroy the given state.
      name: the program's name, for the warning.
    """

    def __init__(self, program: sharding.OnMesh, name: str):
        self._program, self._name, self._compiled = program, name, None

    def compile(self, *given) -> None:
        """Compile the program for such arguments, so that the first call finds it compiled."""
        self._compiled = self._program.lower(*given).compile()

    def __call__(self, *given):
        if self._compiled is None:
            self.compile(*given)
        try:
            return self._compiled(*given)
        except (TypeError, ValueError) as error:  # other arguments; they are refused before any of them is destroyed
            logging.warning(
                "%s is compiled again; steps and rounds must keep shapes, types and placement of the state. %s",
                self._name,
                error,
            )
        self.compile(*given)
        return self._compiled(*given)

    def trace(self, *given):
        """Trace the program for arguments or their shapes, as `jax.jit(f).trace`."""
        return self._program.trace(*given)

    def lower(self, *given):
        """Lower the program for arguments or their shapes, as `jax.jit(f).lower`."""
        return self._program.lower(*given)


def compile_step(method: Method, reader, mesh, chunk: int) -> Step:
    """Make one program of `chunk` steps: (state, frozen, store, payload, key) -> state, metrics of the last step."""

    def one(state, frozen, store, payload, key):
        batch = reader.fetch(store, payload)
        new, values = method.train_step(state, frozen, batch, jax.random.fold_in(key, state.step))
        return new.replace(step=state.step + 1), values

    def many(state, frozen, store, payload, key):
        if devices.platform() != "cpu":
            state, values = jax.lax.scan(lambda state, part: one(state, frozen, store, part, key), state, payload)
            return state, jax.tree.map(lambda x: x[-1], values)
        for i in range(chunk):  # on CPU a scan over convolutions is many times slower
            part = {name: rows[i] for name, rows in payload.items()}
            state, values = one(state, frozen, store, part, key)
        return state, values

    program = jax.jit(one if chunk == 1 else many, donate_argnums=0, out_shardings=sharding.replicated(mesh))
    return Step(sharding.OnMesh(mesh, program), f"the step of {type(method).__name__}")


def steps_in_one_program(config: Config, stage: StageSpec) -> int:
    """Choose the number of steps in one program; everything that happens between steps must fall on its borders.

    Raises UserError when a given `steps_per_dispatch` does not divide the steps of these events.
    """
    asked = config.steps_per_dispatch
    borders = {k: config[k] for k in ("log_every", "eval_every", "save_every") if config[k]}
    borders["steps"] = stage.steps
    for step in range(stage.steps + 1):
        if stage.method.round_at(step):
            borders[f"the round before step {step}"] = step
    for size in (asked,) if asked else (1,) if devices.platform() == "cpu" else (16, 10, 8, 5, 4, 2, 1):
        odd = [k for k, v in borders.items() if v % size]
        if not odd:
            return size
    raise UserError(f"steps_per_dispatch {asked} does not divide {odd[0]} of stage {stage.name}; use a divisor or 0")
