"""Finished runs made up, for tests of their comparison: no training, and nothing to restore."""

import dataclasses

import jax.numpy as jnp

from tests import tiny
from tests.evaluation.made_up import Slots
from uld_jax.engine import checkpoint, runs
from uld_jax.engine import workdir as workdir_lib
from uld_jax.evaluation import run as evaluation
from uld_jax.method import Model, TrainState


@dataclasses.dataclass(frozen=True)
class Shows(Slots):
    """Slots whose stage has pictures of some kinds: a photo, the next one, and one column more for the second kind."""

    kinds: tuple[str, ...] = ()

    def poses(self, state, frozen, images):
        return None

    def pictures(self, state, frozen, images):
        columns = [images, jnp.roll(images, -1, 0), images]
        return {kind: jnp.stack(columns[: 2 + i], 1) for i, kind in enumerate(self.kinds)}


class Finished:
    """Stands in for what `runs.load` and `checkpoint` find on disk."""

    def __init__(self, monkeypatch):
        self._models = {}
        monkeypatch.setattr(checkpoint, "has_final", lambda workdir, stage: str(workdir) in self._models)
        monkeypatch.setattr(runs, "load", self._load)

    def make(self, folder, data_dir, landmarks=5, kinds=(), step=7, finished=True, **changes):
        """Write the config of a run, whose stage finds so many landmarks and makes pictures of these kinds."""
        config = tiny.config(dataset="folder", data_dir=str(data_dir), **{"eval.stability_images": 4} | changes)
        workdir_lib.write_json(folder / "config.json", config.to_dict())
        state = TrainState(jnp.int32(step), aux=jnp.arange(5) < landmarks)
        if finished:
            self._models[str(folder)] = Model(Shows(kinds=kinds), state, {})
        return folder

    def _load(self, where, mesh=None):
        workdir, config, stage = runs.find(where)
        return runs.Finished(workdir, config, stage, self._models[str(workdir)], "", {})


def evaluated(where, mesh):
    """The numbers that `uld evaluate` writes of a run."""
    plain = dict(split="test", dataset="", data_dir="", group_by="", label_counts=())
    return evaluation.evaluate_run(runs.load(where), mesh, **plain)[0]
