"""The training loop over the stages of a config, independent of any method.

Each step has this order, which a test checks:

    save -> refresh -> evaluate -> next(data) -> step

The first three run once more after the last step, and once in a stage of zero steps; then a save to
`checkpoints/<stage>/final` closes the stage. Saving comes before refreshing because a refresh may use the labels that
it replaces: a run restored from a save made after the refresh would refresh twice.
"""

import functools
import logging
import os
import platform
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from uld_jax import config as config_lib
from uld_jax import interrupts, sharding, viz
from uld_jax.config import Config, StageSpec
from uld_jax.data import listing, objects
from uld_jax.data.listing import Skipped
from uld_jax.data.open import check_label_counts, open_data
from uld_jax.engine import cache as cache_lib
from uld_jax.engine import checkpoint, runs
from uld_jax.engine import workdir as workdir_lib
from uld_jax.engine.progress import Progress, Trace
from uld_jax.engine.rounds import Rounds
from uld_jax.engine.step import FirstState, compile_step, steps_in_one_program, with_tables
from uld_jax.engine.stopping import Interrupted, Sigterm, Stopped
from uld_jax.engine.workdir import learned_hash, tree_hash
from uld_jax.errors import UserError
from uld_jax.evaluation import chosen
from uld_jax.evaluation.predictor import Predictor
from uld_jax.evaluation.report import summary
from uld_jax.evaluation.run import in_training
from uld_jax.method import Model, TrainState
from uld_jax.version import __version__


class Trained(NamedTuple):
    """The result of a run.

    Attributes:
      model: the last stage.
      report: its numbers on the test split, as in `metrics.json`.
      skipped: files of the data folder that are not used as images.
    """

    model: Model
    report: dict[str, Any]
    skipped: tuple[Skipped, ...] = ()


def run(
    config: Config,
    workdir,
    *,
    profile: tuple[int, int] | None = None,
    mesh=None,
    stop: Sigterm | None = None,
    alone: bool = True,
) -> Trained:
    """Train every stage of `config`, or the remaining ones of an interrupted run, in `workdir`.

    Args:
      config: configuration of the run, see `configs/common.py`.
      workdir: local folder or gs:// path; an interrupted run of the same config in the folder is resumed.
      profile: first and last step, counted over all stages, of a JAX trace written to `workdir/profile`.
      mesh: the devices; all of them by default.
      stop: the caller's own `Sigterm`, if the caller has more to do than this run.
      alone: True refuses weights that no stage looks for; False is for one of several runs, where another run may use
        these weights.

    Raises:
      UserError: a bad config or bad data, before any compute; or a loss that is not finite, keeping the last good
        checkpoint.
      Stopped: SIGTERM came, and the state is saved.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    config = _absolute(config)
    stages, chunks = check(config, workdir, mesh)
    if alone:
        config_lib.check_weights_are_read([(config, stages)])
    data = open_data(config, mesh)
    pool = chosen.choose(config, data).protocol.pool_images
    check_label_counts(config.eval.label_counts, data.train, pool, "eval.label_counts")
    with stop or Sigterm() as stop:
        run = _Run(config, epath.Path(workdir), mesh, data, stop, profile)
        try:
            return run.stages(stages, run.prepare(stages, chunks))
        except Interrupted:  # there was nothing to save yet
            raise Stopped("stopped before the first step of a stage; the same command goes on") from None


def check(config: Config, workdir, mesh) -> tuple[list[StageSpec], list[int]]:
    """Check a config without its data; return its stages, built, and the number of steps in one program of each.

    Raises UserError for a bad config, or when `workdir` holds a run of another config.
    """
    if not config.stages:
        raise UserError("config.stages is empty; name one stage or more")
    _check_numbers(config)
    chosen.check(config)  # raises before a long training, not at its first evaluation
    if config.dataset == "synthetic" and config.data_dir:
        raise UserError(
            f"config.data_dir={config.data_dir} is not read by the data set synthetic, which is rendered; for photos "
            "write --config=NAME:dataset=folder"
        )
    if config.data_dir and _same_folder(config.data_dir, workdir):
        raise UserError(
            f"--workdir={workdir} is the folder of the photos, and its pictures would be read next time; give a folder "
            "of its own, which may lie in it"
        )
    sharding.local_rows(mesh, config.batch_size)  # raises at once if the batch does not divide
    stages = [config_lib.stage(config, name) for name in config.stages]
    for stage in stages:
        _check_divides(mesh, config, stage)
    chunks = [steps_in_one_program(config, stage) for stage in stages]
    workdir_lib.claim(workdir, _absolute(config), write=False)
    return stages, chunks


def _same_folder(one, other) -> bool:
    one, other = (os.fspath(path) if "://" in os.fspath(path) else os.path.realpath(path) for path in (one, other))
    return one.rstrip("/") == other.rstrip("/")


def _absolute(config: Config) -> Config:
    """Make local paths of a config absolute (`data_dir`, `init_from`, `weights`, `cache`), as its record needs."""

    def absolute(path):
        return path if not path or "://" in path else os.path.abspath(os.path.expanduser(path))

    config = config.copy_and_resolve_references()
    config.data_dir = absolute(config.data_dir)
    config.init_from = absolute(config.init_from)  # a stage's name after the folder stays as it is
    for kind, folder in config.weights.items():
        config.weights[kind] = absolute(folder)
    for stage in config.stages:
        if "cache" in config.get(stage, ()):
            config[stage].cache = absolute(config[stage].cache)
    return config


class _Run:
    """The data, files and devices that all stages of one run share."""

    def __init__(self, config, workdir, mesh, data, stop, profile):
        self.config, self.workdir, self.mesh, self.data, self.stop = config, workdir, mesh, data, stop
        self.trace = Trace(workdir / "profile", profile)
        self.metrics = None
        self.previous = None  # the state that the first stage starts from
        self.origin = None  # stage, config and rows of `init_from`, for `run.json`
        self.lines = 0  # number of lines of metrics.jsonl when the newest restored state was saved

    def prepare(self, stages: list[StageSpec], chunks: list[int]) -> list["_Prepared"]:
        """Prepare all stages, and find every error that shows before the first computation and the first file."""
        saved = [checkpoint.newest_meta(self.workdir, stage.name) for stage in stages]
        self._check_images(saved)
        shapes = self.previous = self._init_from(stages[0])
        prepared = []
        for i, (stage, chunk) in enumerate(zip(stages, chunks, strict=True)):
            frozen = interrupts.attended(stage.method.frozen, self.stop.check)
            cache = cache_lib.opened(stage, self.data.train, frozen)
            tables = objects.tables(self.data.train, stage.method.side_tables())
            step_tables = objects.tables(self.data.train, stage.method.step_tables())
            reader = self.data.train_reader.of_batch(stage.batch_size)
            known = {"rows": tables, "step_rows": step_tables, "partners": reader.law}
            given_hash = tree_hash(frozen | {name: part for name, part in known.items() if part})
            frozen = sharding.put_replicated(self.mesh, stage.method.prepared(frozen))
            before = stages[i - 1].name if i else self.origin["stage"] if self.origin else ""
            names = dict(stage=stage.name, before=before)
            start = FirstState(stage.method, reader, self.mesh, frozen, self._key(i, 0), **names)
            shapes = start.shapes(shapes)
            template = checkpoint.abstract(self.mesh, shapes)
            seen = with_tables(reader, self.mesh, step_tables | cache_lib.latents(stage, cache))
            prepared.append(_Prepared(reader, seen, chunk, frozen, given_hash, start, template, cache, tables))
            if saved[i] and saved[i]["frozen"] != prepared[-1].frozen_hash:
                raise UserError(
                    f"the frozen weights of stage {stage.name} differ from those that {self.workdir} was trained with; "
                    "give the same ones, or start in a new workdir"
                )
        return prepared

    def _check_images(self, saved) -> None:
        """Raise UserError if a saved state belongs to other images; a mismatch of shapes would be a vaguer message."""
        if all(meta is None or meta["data"] == self.data.train.fingerprint for meta in saved):
            return
        then = workdir_lib.read_json(self.workdir / "run.json")["rows"]
        raise UserError(
            f"the training images differ from those that {self.workdir} was trained on ({then} then, "
            f"{len(self.data.train)} now); restore them, or start in a new workdir"
        )

    def stages(self, stages: list[StageSpec], prepared: list["_Prepared"]) -> Trained:
        """Run the stages that are not finished."""
        workdir_lib.claim(self.workdir, self.config)
        self._write_run_json(stages, prepared)
        skipped = tuple(dict.fromkeys([*self.data.train.skipped, *(self.data.test.skipped if self.data.test else ())]))
        if jax.process_index() == 0:
            listing.write_skipped(self.workdir / "skipped.csv", skipped)
        state, offset, report = self.previous, 0, {}
        for i, (stage, ready) in enumerate(zip(stages, prepared, strict=True)):
            if done := self._finished(stage, ready):
                state, report = done.state, done.meta["report"]
            else:
                state, report = self._stage(stage, i, ready, state, offset)
            offset += stage.steps
        if self.metrics is None:  # nothing was left to train; the last line may still be missing
            self.metrics = workdir_lib.Metrics(self.workdir, self.lines)
        self.trace.stop()
        self.metrics.write(offset, stages[-1].name, done=True, params_sha256=learned_hash(state))
        if jax.process_index() == 0:
            viz.save(viz.metrics_plot(self.metrics.read()), self.workdir / "curves.png")
        self.metrics.close()
        return Trained(Model(stages[-1].method, state, prepared[-1].frozen), report, skipped)

    def _stage(self, stage: StageSpec, number: int, ready: "_Prepared", previous, offset: int):
        config, method, reader, frozen, chunk = self.config, stage.method, ready.reader, ready.frozen, ready.chunk
        keeper = checkpoint.Keeper(self.workdir, stage.name, keep_last=config.keep_last, keep_every=config.keep_every)
        saved = keeper.latest()
        if saved is None:
            state = interrupts.attended(lambda: jax.block_until_ready(ready.start.state(previous)), self.stop.check)
        else:
            found = keeper.restore(saved, ready.template)
            state, self.lines = found.state, found.meta["metrics_lines"]
        if self.metrics is None:
            self.metrics = workdir_lib.Metrics(self.workdir, self.lines)
        step, values, report, compiled = int(state.step), {}, {}, False
        lines = self.metrics.count  # lines that belong to the state at the loop's head
        meta = lambda: {
            "stage": stage.name,
            "step": step,
            "metrics_lines": lines,
            "frozen": ready.frozen_hash,
            "data": self.data.train.fingerprint,
        }

        advance = compile_step(method, ready.seen, self.mesh, chunk)
        payloads = reader.payloads(step, seed=_fold(config.seed, number), chunk=chunk)
        pass_key = self._key(number, 1)
        step_key = sharding.put_key(self.mesh, self._key(number, 2))
        progress = Progress(stage.name, stage.steps, step, stage.batch_size)
        rounds = Rounds(method, reader, self.mesh, self.stop.check, ready.cache, ready.tables, progress.note)
        predictor = Predictor(method, self.mesh, self.stop.check, progress.note)
        warn = _Warner(stage)

        while True:
            stopping = self.stop.agreed(step % config.log_every == 0)
            if step != saved and (stopping or step == stage.steps or _due(step, config.save_every)):
                _check_finite(stage.name, step, values, state.params)
                self.metrics.flush()  # the checkpoint relies on these lines
                keeper.save(step, state, meta())
                saved = step
            if stopping:
                keeper.close()
                self.metrics.close()
                progress.close()
                raise Stopped(f"stopped in stage {stage.name} at step {step}, saved; the same command goes on")

            before = state
            try:
                if due := method.round_at(step):
                    progress.pause()
                    if due.passes:
                        progress.note(f"{due.passes} pass(es) over {reader.rows} images")
                    state = rounds.run(state, frozen, jax.random.fold_in(pass_key, step), due)
                    if found := {k: float(v) for k, v in sharding.to_host(method.summary(state)).items()}:
                        self.metrics.write(offset + step, stage.name, **found)
                        progress.note(", ".join(f"{name} {value:.4g}" for name, value in found.items()))
                        warn(found | {"step": step})

                if step == stage.steps or _due(step, config.eval_every):
                    progress.pause()
                    last, model = step == stage.steps, Model(method, state, frozen)
                    report = in_training(
                        self.config, self.workdir, stage.name, offset + step, predictor, model, self.data, last
                    )
                    numbers = {k: v for k, v in report.items() if isinstance(v, (int, float)) and k != "step"}
                    self.metrics.write(offset + step, stage.name, **numbers)
                    progress.note(summary(report))
                if step < stage.steps:
                    payload = next(payloads)
                    given = state, frozen, ready.seen.store, payload, step_key
                    if not compiled:
                        compile_for = functools.partial(advance.compile, *given)
                        say = lambda seconds: progress.note(f"compiling a step, {seconds:.0f} s so far")
                        interrupts.attended(compile_for, self.stop.check, say)
                        compiled = True
            except Interrupted:
                # The loop's head must save the state before the refresh: a refreshed state would be refreshed again.
                state = before
                continue
            before = None
            if step == stage.steps:
                break

            self.trace.at(offset + step, chunk)
            with jax.transfer_guard("disallow"):
                state, values = advance(*given)
            step += chunk
            progress.advance(chunk)
            if _due(step, config.log_every):
                values = {k: float(v) for k, v in sharding.to_host(values).items()}
                _check_finite(stage.name, step, values)
                self.metrics.write(offset + step, stage.name, **values, images_per_second=round(progress.measure(), 1))
                progress.show(values["loss"])
                warn(values | {"step": step})
            lines = self.metrics.count

        lines = self.metrics.count
        self.trace.at(offset + step, 0)
        progress.close()
        keeper.close()
        self.metrics.flush()
        checkpoint.save_final(self.workdir, stage.name, state, meta() | {"report": report})
        return state, report

    # -- where a stage starts -----------------------------------------------------------------------------------------

    def _finished(self, stage: StageSpec, ready: "_Prepared") -> checkpoint.Restored | None:
        """Restore the stage's closing save; None if there is none yet or `steps` has grown since."""
        if not checkpoint.has_final(self.workdir, stage.name):
            return None
        found = checkpoint.restore_final(self.workdir, stage.name, ready.template)
        if found.meta["step"] < stage.steps:
            return None
        self.lines = found.meta["metrics_lines"]
        return found

    def _init_from(self, first: StageSpec) -> TrainState | None:
        if not self.config.init_from:
            return None
        if not first.method.needs:
            later = [n for n in self.config.stages if n != first.name]
            raise UserError(
                f"init_from has no use for stage {first.name}, which starts from nothing; leave that stage out, "
                f'--config.stages="{tuple(later)}"'
            )
        finished = runs.load(self.config.init_from, self.mesh)
        tables = [need for need in first.method.needs if need.of_images and need.required]
        if tables and finished.fingerprint != self.data.train.fingerprint:
            raise UserError(
                f"init_from={self.config.init_from} was trained on other images, and stage {first.name} needs its "
                f"{tables[0].what} of these; run the earlier stages on them, or look for a `labels_from` switch of the "
                "stage"
            )
        self.origin = finished.origin
        return finished.model.state

    def _key(self, stage: int, use: int) -> jax.Array:
        key = jax.random.key(self.config.seed)
        return jax.random.fold_in(jax.random.fold_in(key, stage), use)

    def _write_run_json(self, stages, prepared) -> None:
        devices = self.mesh.devices.flat
        workdir_lib.write_json(
            self.workdir / "run.json",
            {
                "config": self.config.to_dict(),
                "init_from": self.origin,
                "versions": {"uld_jax": __version__, "python": platform.python_version()} | _versions(),
                "devices": {"count": len(devices), "kind": devices[0].device_kind, "processes": jax.process_count()},
                "data_fingerprint": self.data.train.fingerprint,
                "rows": self.data.train_reader.rows,
                "reader": type(self.data.train_reader).__name__,
                "seed": self.config.seed,
                "frozen_sha256": {s.name: p.frozen_hash for s, p in zip(stages, prepared, strict=True)},
                "stages": [s.name for s in stages],
            },
        )


class _Prepared(NamedTuple):
    """The inputs of a stage besides the state of the previous stage.

    Attributes:
      reader: reader of training batches of the stage's size.
      seen: the same reader, whose batches also hold what `train_step` needs of the images besides pixels.
      chunk: number of steps in one program.
      frozen: frozen weights, replicated.
      frozen_hash: sha256 of the frozen weights, the tables, and the law of partners.
      start: maker of the first state.
      template: shapes and placement of the state, for restoring.
      cache: `FeatureCache` with the maps of the stage's backbone, or None.
      tables: tables of the images that rounds need besides pixels, {name: [N,...]}.
    """

    reader: Any
    seen: Any
    chunk: int
    frozen: Any
    frozen_hash: str
    start: FirstState
    template: TrainState
    cache: Any
    tables: dict[str, Any]


def _check_numbers(config: Config) -> None:
    """Raise UserError for a number of the config that is out of range."""
    least = {"seed": 0, "batch_size": 1, "accumulate_steps": 1, "log_every": 1, "eval_every": 0, "save_every": 0}
    least |= {"steps_per_dispatch": 0, "keep_last": 1, "keep_every": 0}
    values = {name: (config[name], low) for name, low in least.items()}
    least = {"batch_size": 1, "stability_images": 0, "train_images": 0}
    values |= {f"eval.{name}": (config.eval[name], low) for name, low in least.items()}
    for name, (value, low) in values.items():
        if value < low:
            raise UserError(f"config.{name} is {value}; use {low} or more")
    if config.batch_size % config.accumulate_steps:
        raise UserError(
            f"batch_size {config.batch_size} does not divide into accumulate_steps={config.accumulate_steps} equal "
            "pieces; use a divisor"
        )
    if config.dtype not in ("float32", "bfloat16", "float64"):
        raise UserError(f"dtype is {config.dtype!r}; use float32 or bfloat16 (float64 needs JAX_ENABLE_X64=1)")


def _check_divides(mesh, config: Config, stage: StageSpec) -> None:
    """Raise UserError if a stage's own batch does not divide over the devices."""
    try:
        sharding.local_rows(mesh, stage.batch_size)
    except UserError as error:
        raise UserError(f"config.{stage.name}.{error}") from error


class _Warner:
    """Warnings of a stage, once for each time that it falls into trouble."""

    def __init__(self, stage: StageSpec):
        self._stage, self._troubled = stage, False

    def __call__(self, numbers: dict[str, float]) -> None:
        trouble = self._stage.method.warning(numbers)
        if trouble and not self._troubled:
            logging.warning("%s: %s", self._stage.name, trouble)
        self._troubled = bool(trouble)


def _due(step: int, every: int) -> bool:
    return step > 0 and every > 0 and step % every == 0


def _fold(seed: int, stage: int) -> int:
    """Make a seed for the order of the data in one stage."""
    return int(np.random.SeedSequence([seed, stage]).generate_state(1)[0])


@jax.jit
def _all_finite(tree):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def _check_finite(stage: str, step: int, values, params=()) -> None:
    bad = [k for k, v in values.items() if not np.isfinite(np.asarray(v)).all()]
    if jax.tree.leaves(params) and not bool(_all_finite(params)):
        bad.append("a parameter")
    if bad:
        raise UserError(
            f"stage {stage}: {bad[0]} is not finite at step {step}; the last good checkpoint is kept, lower the "
            "learning rate in a new --workdir, or look at the images"
        )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")
    return {name: version(name) for name in names}
