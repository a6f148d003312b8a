"""The stages of a method, short, on four devices of one process or of two that take turns in the mesh.

    python -m tests.interleaved OUT CONFIG [HOST:PORT PROCESS]

leaves OUT/PROCESS.npz: losses, banks, what evaluations found and measured, and the states.
"""

import pathlib
import sys

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from tests import tiny
from uld_jax import config as config_lib
from uld_jax import sharding
from uld_jax.data import objects
from uld_jax.data.open import open_data
from uld_jax.engine import cache as cache_lib
from uld_jax.engine.rounds import Rounds
from uld_jax.engine.step import FirstState, compile_step, with_tables
from uld_jax.evaluation.measure import measure
from uld_jax.evaluation.predictor import Predictor
from uld_jax.evaluation.report import metrics
from uld_jax.method import Model
from uld_jax.studies import features

ROWS = (45, 13)  # no multiple of a batch: the last one is padded
STEPS = 3


def mesh_of_four(processes: int) -> Mesh:
    """All devices; of two processes in the order 0 1 0 1, as a TPU slice's torus may have them."""
    devices = sharding.make_mesh().devices[[0, 2, 1, 3]] if processes == 2 else sharding.make_mesh().devices
    assert [d.process_index for d in devices] == [i % processes for i in range(4)]
    return Mesh(devices, (sharding.AXIS,), axis_types=(AxisType.Auto,))


def config_of(name: str):
    """The method's `tiny` config, shorter, in arithmetic that shows more than rounding."""
    config = tiny.config(name, dtype="float64")
    config.data.update(rows=ROWS, reader="stream")
    config.eval.batch_size = config.batch_size  # one program for both splits
    if name == "cgb":  # Adam without momentum at tiny's high rate multiplies rounding by ten a step
        config.cgb.update(detector_rate=1e-4, generator_rate=1e-4)
    for stage in config.stages:
        config[stage].steps = min(config[stage].steps, STEPS)
        if config[stage].get("round_every"):
            config[stage].round_every = STEPS - 1
    return config


def run(config, mesh, seen) -> None:
    """What `loop.run` computes, in its order; `seen(name, tree)` keeps it."""
    data, state = open_data(config, mesh), None
    for number, name in enumerate(config.stages):
        stage = config_lib.stage(config, name)
        method, frozen = stage.method, stage.method.frozen()
        cache = cache_lib.opened(stage, data.train, frozen)
        tables = objects.tables(data.train, method.side_tables())
        frozen = sharding.put_replicated(mesh, frozen)
        reader = data.train_reader.of_batch(stage.batch_size)
        state = FirstState(method, reader, mesh, frozen, jax.random.key(number)).state(state)
        rounds, predictor = Rounds(method, reader, mesh, cache=cache, tables=tables), Predictor(method, mesh)
        seen_by_steps = with_tables(reader, mesh, objects.tables(data.train, method.step_tables()))
        advance, payloads = compile_step(method, seen_by_steps, mesh, 1), reader.payloads(0, seed=1)
        key = sharding.put_key(mesh, jax.random.key(9))
        for step in range(stage.steps + 1):
            state = rounds.run(state, frozen, jax.random.fold_in(jax.random.key(7), step), method.round_at(step))
            if step < stage.steps:
                state, values = advance(state, frozen, seen_by_steps.store, next(payloads), key)
                seen(f"{name} loss {step}", values["loss"])
        seen(f"{name} state", (state.params, state.aux))
        found = measure(config, predictor, Model(method, state, frozen), data, thorough=False)
        seen(f"{name} landmarks", (found.xy, found.score))
        seen(f"{name} measured", {k: v for k, v in metrics(found).items() if isinstance(v, int | float)})


def main(out: str, name: str, address: str = "", process: str = "0") -> None:
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")
    if address:
        jax.distributed.initialize(address, 2, int(process))
    mesh, config, folder = mesh_of_four(jax.process_count()), config_of(name), pathlib.Path(out)
    # Processes meet at once: later one may compile for longer than the other waits for its first message.
    sharding.to_host(sharding.put_batch(mesh, np.zeros(len(sharding.local_rows(mesh, mesh.size)))))
    if name == "zeroshot":  # its passes read features from files
        features.main(config, str(folder / "features"), mesh, dtype="float32", batch_size=config.batch_size)
        config.zeroshot.cache = str(folder / "features")
    kept = {}

    def seen(what, tree):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            leaf = sharding.to_host(leaf) if isinstance(leaf, jax.Array) else leaf
            kept[f"{what}{jax.tree_util.keystr(path)} {len(kept)}"] = np.asarray(leaf)

    collect = Rounds.collect

    def recorded(self, *args):
        bank = collect(self, *args)
        seen(f"bank of {type(self._method).__name__}", (bank.index, bank.values))
        return bank

    Rounds.collect = recorded
    run(config, mesh, seen)
    np.savez(folder / f"{process}.npz", **kept)


if __name__ == "__main__":
    main(*sys.argv[1:])
