"""The programs of a config: every step and every part of a round, those of training, with shapes as arguments."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from uld_jax import config as config_lib
from uld_jax import sharding, weights
from uld_jax.backbones import build
from uld_jax.config import Config, StageSpec
from uld_jax.convert import published
from uld_jax.data import objects
from uld_jax.data.absent import make_absent_reader
from uld_jax.data.feature_cache import FeatureCache
from uld_jax.data.open import open_split
from uld_jax.engine import checkpoint, runs
from uld_jax.engine.program import Program
from uld_jax.engine.rounds import Rounds
from uld_jax.engine.step import FirstState, compile_step, steps_in_one_program, with_tables
from uld_jax.errors import UserError
from uld_jax.method import TrainState

# Weights without which a stage starts or clusters in another way; absent ones stay absent.
_OPTIONAL = frozenset({"dhf_aggregator", "gcn_v", "vgg16", "vgg16_colorization"})


class Planned(NamedTuple):
    """A program of a stage.

    Attributes:
      stage: name of the stage.
      what: `step`, or a part of a round: `write`, `refresh`, `form`, `locate` or `settle` (`Rounds.programs`).
      program: the program; None if `error` tells why there is none.
      resident: {name: pytree of shapes} of what the stage keeps in device memory while the program runs.
      batch: number of images in a step.
      steps: number of steps in one run of the program.
      runs: how often the program runs in the whole stage.
      error: reason why the program cannot be traced; "" if there is none.
    """

    stage: str
    what: str
    program: Program | None
    resident: dict[str, Any]
    batch: int
    steps: int
    runs: int
    error: str = ""


class Images(NamedTuple):
    """The training images that a plan is for.

    Attributes:
      count: N, number of images.
      memory: bytes of a device's memory, which decides where the images are kept.
    """

    count: int
    memory: float


def count_images(config: Config) -> int:
    """Return the number of training images of a config's data set. Raises UserError if it cannot be opened."""
    if config.dataset == "synthetic":
        return config.data.rows[0]
    try:
        return len(open_split(config, "train"))
    except UserError as error:
        raise UserError(f"the number of images is not known: {error}; or give --images=N") from error


def fit_batches(config: Config, mesh, say: Callable[[str], None]) -> None:
    """Give every stage the batch nearest to its own that divides over the devices, and tell where they differ."""
    for name in config.stages:
        asked = config_lib.batch_of(config, name)
        found = sharding.nearest_batch(mesh, asked)
        if found != asked:
            with config.unlocked():
                config[name].batch_size = found
            say(
                f"{name}: a batch of {asked} does not divide over {mesh.size} devices; this is a plan for the nearest "
                f"that does, --config.{name}.batch_size={found}"
            )


def stages(config: Config) -> list[StageSpec]:
    """Build all stages, with the shapes of weights in place of weights. Raises UserError for a bad config."""
    published.publish()
    config = config.copy_and_resolve_references()
    asked = set()
    for name in config.stages:
        method = config_lib.stage(config, name).method
        asked |= method.weight_kinds
        if method.backbone:
            asked |= build.backbone_kinds(method.backbone, method.backbone_kwargs)
    with config.unlocked():
        for kind, folder in config.weights.items():
            if folder or kind in asked - _OPTIONAL:
                config.weights[kind] = f"{weights.SHAPES}{folder}"
    return [config_lib.stage(config, name) for name in config.stages]


def gather(config: Config, mesh, images: Images, only: Sequence[str] = ()):
    """Iterate over the programs (`Planned`) of a config's stages, or of some of them, one stage after the other.

    Raises UserError for a bad config or an unknown stage, before the first program.
    """
    if unknown := [name for name in only if name not in config.stages]:
        raise UserError(f"--stages={unknown[0]} is no stage of this config; its stages are {', '.join(config.stages)}")
    built = stages(config)
    return _gather(config, built, mesh, images, only)


def _gather(config, built, mesh, images, only):
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    state, before = _start(config)
    last = max((i for i, stage in enumerate(built) if stage.name in only), default=len(built) - 1)
    for stage in built[: last + 1]:
        try:
            one = _Stage(config, stage, mesh, images, key, before)
            state, before = checkpoint.abstract(mesh, one.start.shapes(state)), stage.name
        except Exception as error:  # whatever tracing may raise is a row of the table
            yield _failed(stage, "step" if stage.steps else "round", error)
            return  # later stages start from this one
        if only and stage.name not in only:
            continue
        try:
            yield from one.programs(state, key)
        except Exception as error:  # as above, and the other stages go on
            yield _failed(stage, "round", error)


def _failed(stage, what, error) -> Planned:
    said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return Planned(stage.name, what, None, {}, stage.batch_size, 1, 0, said)


def _start(config) -> tuple[TrainState | None, str]:
    """The state that the first stage starts from, as shapes, and the name of its stage."""
    if not config.init_from:
        return None, ""
    origin = runs.origin_of(config.init_from)[2]
    return runs.shapes(origin)[2], origin["stage"]


class _Stage:
    """One stage with its reader, its weights and the maker of its first state, all of them shapes."""

    def __init__(self, config, stage: StageSpec, mesh, images: Images, key, before: str):
        self._config, self._stage, self._mesh, method = config, stage, mesh, stage.method
        by = config.data.get("partner_by", "any")
        options = dict(kind=config.data.reader, partner=bool(config.data.partner), whole=by != "any")
        self._reader = make_absent_reader(
            images.count, config.data.frame_size, mesh, stage.batch_size, memory=images.memory, **options
        )
        prepared = jax.eval_shape(method.prepared, _shapes(method.frozen()))
        self._frozen = sharding.put_replicated(mesh, prepared)
        self._tables = objects.table_shapes(images.count, method.side_tables())
        self._cache = FeatureCache(os.path.expanduser(method.cache)) if method.cache else None
        self._seen = with_tables(self._reader, mesh, objects.table_shapes(images.count, method.step_tables()))
        self.start = FirstState(method, self._reader, mesh, self._frozen, key, stage=stage.name, before=before)

    def programs(self, state: TrainState, key):
        """Iterate over the stage's programs."""
        stage, method, key = self._stage, self._stage.method, sharding.put_key(self._mesh, key)
        resident = {"state": state, "frozen": self._frozen, "store": self._seen.store}
        known = dict(stage=stage.name, batch=stage.batch_size, resident=resident)
        if stage.steps:
            try:
                chunk = steps_in_one_program(self._config, stage)
            except UserError as error:
                yield _failed(stage, "step", error)
                return
            payload = next(self._reader.payloads(0, seed=0, chunk=chunk))
            given = state, self._frozen, self._seen.store, payload, key
            step = Program(compile_step(method, self._seen, self._mesh, chunk), given)
            yield Planned(what="step", program=step, steps=chunk, runs=stage.steps // chunk, **known)
        rounds = Rounds(method, self._reader, self._mesh, cache=self._cache, tables=self._tables)
        due = [found for found in map(method.round_at, range(stage.steps + 1)) if found]
        counts = {passes: sum(one.passes == passes for one in due) for passes in {one.passes for one in due}}
        done = {}
        for passes, times in sorted(counts.items()):
            for what, (program, each) in rounds.programs(state, self._frozen, key, _round(due, passes)).items():
                runs_of = times * max(passes, 1) * each
                if what in done:  # the same program, of rounds with more passes
                    done[what] = done[what]._replace(runs=done[what].runs + runs_of)
                else:
                    done[what] = Planned(what=what, program=program, steps=1, runs=runs_of, **known)
        yield from done.values()


def _round(due, passes):
    return next(one for one in due if one.passes == passes)


def _shapes(tree) -> Any:
    """Replace arrays by their shapes."""

    def one(x):
        if isinstance(x, jax.ShapeDtypeStruct):
            return x
        x = np.asarray(x) if not hasattr(x, "dtype") else x
        return jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))

    return jax.tree.map(one, tree)
