"""Finished runs on disk: the state of a stage, for prediction or as the start of another run."""

from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from uld_jax import config as config_lib
from uld_jax import sharding
from uld_jax.config import Config
from uld_jax.engine import checkpoint
from uld_jax.engine import workdir as workdir_lib
from uld_jax.errors import UserError
from uld_jax.method import Method, Model, Start, TrainState


class Finished(NamedTuple):
    """A finished stage.

    Attributes:
      workdir: folder of the run.
      config: config of the run.
      stage: name of the stage.
      model: the stage, with its final state and the frozen weights that prediction needs.
      fingerprint: fingerprint of the training images.
      origin: record from which the state's shapes can be found without the folder: stage, config, rows, and the origin
        that the run itself started from.
    """

    workdir: epath.Path
    config: Config
    stage: str
    model: Model
    fingerprint: str
    origin: dict[str, Any]


def load(where: str, mesh=None) -> Finished:
    """Load a finished stage, `WORKDIR[:stage]`; the last stage by default.

    Raises UserError when there is no such run or stage, or when the stage is not finished.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    workdir, config, origin = origin_of(where)
    run, name = workdir_lib.read_json(workdir / "run.json"), origin["stage"]
    method, frozen, template = shapes(origin)
    state = checkpoint.restore_final(workdir, name, checkpoint.abstract(mesh, template)).state
    frozen = sharding.put_replicated(mesh, frozen)
    return Finished(workdir, config, name, Model(method, state, frozen), run["data_fingerprint"], origin)


def find(where: str) -> tuple[epath.Path, Config, str]:
    """Find a stage, `WORKDIR[:stage]`, finished or not: the folder and the config of its run, and the stage's name.

    Raises UserError when there is no such run or stage.
    """
    workdir, name = _split(str(where))
    config = workdir_lib.read_config(workdir)
    name = name or config.stages[-1]
    if name not in config.stages:
        raise UserError(f"{workdir} has no stage {name!r}; its stages are {', '.join(config.stages)}")
    return workdir, config, name


def origin_of(where: str) -> tuple[epath.Path, Config, dict[str, Any]]:
    """Find a stage, `WORKDIR[:stage]`: the folder and the config of its run, and the stage as `shapes` takes it.

    Raises UserError as `find` does.
    """
    workdir, config, name = find(where)
    run = workdir_lib.read_json(workdir / "run.json")
    origin = {"stage": name, "config": config.to_dict(), "rows": run["rows"], "init_from": run["init_from"]}
    return workdir, config, origin


def _split(where: str) -> tuple[epath.Path, str | None]:
    folder, _, stage = where.rpartition(":")
    if not folder or stage.startswith("//") or "/" in stage or (epath.Path(where) / "config.json").exists():
        return epath.Path(where), None
    return epath.Path(folder), stage


def shapes(origin) -> tuple[Method, Any, TrainState]:
    """Build the stage of an origin; return it, its frozen weights, and the shapes of its state, found by tracing."""
    config = Config(origin["config"])
    side = config.data.frame_size

    def batch(size):
        image = jax.ShapeDtypeStruct((size, side, side, 3), np.uint8)
        index = jax.ShapeDtypeStruct((size,), np.int32)
        second = {"image2": image, "index2": index} if config.data.partner else {}
        return {"image": image, "index": index} | second

    known = origin["init_from"]
    state, before = (shapes(known)[2], known["stage"]) if known else (None, "")
    for name in config.stages:
        stage = config_lib.stage(config, name)
        # Earlier stages only give shapes, because the weights that they needed may be gone.
        last = name == origin["stage"]
        frozen = stage.method.frozen("predict" if last else "shapes")

        def init(batch, frozen, previous, method=stage.method, names=(name, before)):
            start = Start(previous, origin["rows"], True, *names)
            return method.init(jax.random.key(0), batch, frozen, start)

        state, before = jax.eval_shape(init, batch(stage.batch_size), frozen, state), name
        if last:
            return stage.method, frozen, state
    raise UserError(f"the run's record names a stage {origin['stage']!r} that its config does not have")
