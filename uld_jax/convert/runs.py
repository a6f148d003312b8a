"""Finished runs of `uld train` as sources of weights, `WORKDIR[:stage]`.

config.json                       settings of the stages
checkpoints/STAGE/final/state     the state of a finished stage; only the parts that are asked for are read
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from uld_jax.convert import files
from uld_jax.errors import UserError, flag


def open_stage(path: str, methods: Sequence[str], example: str, parts: Sequence[str] = ("params",)) -> files.Opened:
    """Open a finished stage: the entries of its state by name, joined by `/`, and its settings.

    Args:
      path: the run's folder, or FOLDER:STAGE; by default the last stage of one of `methods`.
      methods: `config.<stage>.method` of stages that will do, the usual one first.
      example: name of the config that makes such runs, for the error.
      parts: parts of the state to read; of several the names begin with the part.

    Raises:
      UserError: there is no such run or stage, or the stage is not finished.
    """
    folder, name = _split(path)
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        stages = {stage: config[stage]["method"] for stage in config["stages"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--src={path} is no run ({type(error).__name__} at its config.json); give the folder of a finished "
            f"`uld train --config=configs/{example}.py`"
        ) from error
    known = [stage for stage, method in stages.items() if method in methods]
    name = name or (known[-1] if known else "")
    if name not in known:
        what = f"no stage {name!r} that is one" if name else "none"
        raise UserError(f"--src={path}: of its stages {', '.join(stages)} there is {what}; needed is a {methods[0]}")
    final = os.path.abspath(os.path.join(folder, "checkpoints", name, "final", "state"))
    if not os.path.isdir(final):
        again = f"give its `uld train` with {flag('workdir', folder)} again, to its end"
        raise UserError(f"--src={path} holds no finished stage {name!r}; {again}")
    paths = sorted(os.path.join(at, file) for at, _, names in os.walk(final) for file in names)
    return files.Opened(_read(final, parts), paths, {"settings": config[name]})


def as_tree(entries, shapes: Any, where: str) -> Any:
    """Return entries by name, joined by `/`, as the tree of `shapes`.

    Raises UserError for entries of other shapes, or with numbers that are not finite.
    """
    wanted = {"/".join(path): leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}
    found = {key: value.shape for key, value in entries.items()}
    if differs := sorted(key for key in wanted | found if wanted.get(key) != found.get(key)):
        raise UserError(
            f"{where}: its config and its network differ ({differs[0]} has shape {found.get(differs[0])} and should "
            f"have {wanted.get(differs[0])}); give a run as `uld train` left it"
        )
    if broken := [key for key, value in entries.items() if not np.isfinite(value).all()]:
        raise UserError(f"{where}: {broken[0]} holds numbers that are not finite; the run has failed, train another")
    return traverse_util.unflatten_dict({tuple(key.split("/")): value for key, value in entries.items()})


def _split(path) -> tuple[str, str]:
    folder, _, stage = path.rpartition(":")
    return (path, "") if not folder or os.path.isdir(path) else (folder, stage)


def _read(path, parts) -> dict[str, np.ndarray]:
    """Read only some parts of a state."""
    try:
        handler, path = ocp.PyTreeCheckpointHandler(), epath.Path(path)
        saved = handler.metadata(path)
        saved = getattr(saved, "tree", saved)
        wanted = {part: saved[part] for part in parts}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        args = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
        found = handler.restore(path, args=args)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}); the run is damaged") from error
    found = found[parts[0]] if len(parts) == 1 else {part: found[part] for part in parts}
    return {"/".join(path): value for path, value in traverse_util.flatten_dict(found).items()}
