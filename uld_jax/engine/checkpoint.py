"""Checkpoints: the state and the position of a run, written asynchronously and renamed into place when complete.

    checkpoints/<stage>/<step>/   state and position, kept by `keep_last` and `keep_every`
    checkpoints/<stage>/final/    the finished stage; the only one that later stages, `init_from` and `load` read

The state holds everything that a method learns, clusters and pseudo-labels included (`TrainState.aux`). The position in
the data is the step itself. Frozen weights are never written, only their hash. A CRC-32 of the state and of the JSON
beside it is saved in that JSON, and compared when they are read.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from uld_jax import checksums, sharding
from uld_jax.errors import UserError, flag
from uld_jax.method import TrainState

_SAVED, _CHECKSUM = "saved", "crc32"  # keys of the JSON around the caller's; earlier versions wrote the caller's alone


class Restored(NamedTuple):
    """A state and the JSON that was saved with the state (step, metrics_lines, ...)."""

    state: TrainState
    meta: dict[str, Any]


def abstract(mesh, shapes) -> TrainState:
    """Add the replicated placement to shapes and dtypes of a state (from `jax.eval_shape`), for restoring."""
    place = sharding.replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


def final_path(workdir, stage: str) -> epath.Path:
    """Return the path of the closing save of a stage."""
    return _folder(workdir, stage) / "final"


def _folder(workdir, stage: str) -> epath.Path:
    path = epath.Path(workdir) / "checkpoints" / stage
    return path if "://" in str(workdir) else path.absolute()  # Orbax takes only absolute local paths


def has_final(workdir, stage: str) -> bool:
    """Tell whether the stage is finished, that is, its closing save is complete."""
    path = final_path(workdir, stage)
    return path.exists() and ocp.utils.is_checkpoint_finalized(path)


def check_final(workdir, stage: str) -> None:
    """Raise UserError unless the stage is finished."""
    if not has_final(workdir, stage):
        raise UserError(
            f"{workdir} holds no finished stage '{stage}'; give its `uld train` with {flag('workdir', workdir)} again, "
            "to its end"
        )


def save_final(workdir, stage: str, state: TrainState, meta: dict[str, Any]) -> None:
    """Write the closing save of a stage; return when it is on disk."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(final_path(workdir, stage), args=_save_args(state, meta), force=True)


def restore_final(workdir, stage: str, template: TrainState) -> Restored:
    """Restore the closing save of a stage.

    Raises UserError when the stage is not finished or belongs to a network of another shape.
    """
    check_final(workdir, stage)
    return _restore(final_path(workdir, stage), template)


def newest_meta(workdir, stage: str) -> dict[str, Any] | None:
    """Read the JSON that was saved with the newest state of a stage, for any shapes of that state; None if none."""
    path = final_path(workdir, stage)
    if not has_final(workdir, stage):
        folder = _folder(workdir, stage)
        steps = [p for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []
        whole = [p for p in steps if ocp.utils.is_checkpoint_finalized(p)]
        if not whole:
            return None
        path = max(whole, key=lambda p: int(p.name))
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            return _caller(checkpointer.restore(path, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"])
    except Exception:
        return None  # restoring the state reports a damaged checkpoint


class Keeper:
    """The numbered checkpoints of one stage.

    Args:
      workdir: the run's folder, local or gs://.
      stage: the stage's name.
      keep_last: number of newest checkpoints to keep.
      keep_every: also keep every checkpoint whose step is a multiple of this number; 0 keeps no others.
    """

    def __init__(self, workdir, stage: str, *, keep_last: int = 2, keep_every: int = 0):
        self._folder = _folder(workdir, stage)
        self._folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last, keep_period=keep_every or None, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, meta: dict[str, Any]) -> None:
        """Start writing and return; the caller may donate the state at once."""
        if jax.default_backend() == "cpu":
            # On CPU the host copy that is written in the background may be the same buffer that is donated.
            state = jax.block_until_ready(jax.tree.map(jnp.copy, state))
        self._manager.save(step, args=_save_args(state, meta), force=True)

    def restore(self, step: int, template: TrainState) -> Restored:
        return _restore(self._folder / str(step), template)

    def close(self) -> None:
        """Wait for the last write."""
        self._manager.wait_until_finished()
        self._manager.close()


def _save_args(state, meta):
    meta = {_SAVED: meta, _CHECKSUM: checksums.crc32(sharding.to_host(state), meta)}
    return ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))


def _restore(path, template) -> Restored:
    try:
        saved = ocp.StandardCheckpointHandler().metadata(path / "state")
        saved, wanted = _shapes(getattr(saved, "tree", saved)), _shapes(template)
        if differs := sorted(name for name in saved | wanted if saved.get(name) != wanted.get(name)):
            # Orbax's own message would be pages long.
            name = differs[0]
            raise UserError(
                f"{path} does not hold a state of this configuration ({name} has shape {saved.get(name)} there and "
                f"{wanted.get(name)} here); use the config it was trained with"
            )
        # Orbax demands that a field with the value None be in the file, so the restore is partial. The check above
        # has shown that all arrays are there.
        placed = ocp.checkpoint_utils.construct_restore_args(template)
        state = ocp.args.PyTreeRestore(template, restore_args=placed, partial_restore=True)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            found = checkpointer.restore(path, args=ocp.args.Composite(state=state, meta=ocp.args.JsonRestore()))
    except UserError:
        raise
    except Exception as error:  # Orbax and TensorStore raise errors of any kind for files that they did not write
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}); restore it from a copy, or delete that folder, and `uld "
            "train` goes on from an older checkpoint"
        ) from error
    state, meta = found["state"], found["meta"]
    known = {_SAVED, _CHECKSUM} & set(meta)  # one without the other is damage, too
    if known and meta.get(_CHECKSUM) != checksums.crc32(sharding.to_host(state), _caller(meta)):
        raise UserError(
            f"{path} is damaged: it holds other numbers than were saved; restore it from a copy, or delete that "
            "folder, and `uld train` goes on from an older checkpoint"
        )
    return Restored(state, _caller(meta))


def _caller(meta: dict[str, Any]) -> dict[str, Any]:
    return meta.get(_SAVED, meta)


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
