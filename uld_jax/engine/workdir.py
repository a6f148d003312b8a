"""The files of a run's folder that scripts rely on, and the rules for resuming a run.

config.json     the whole configuration
run.json        versions, devices, data fingerprints, seed, frozen-weight hashes, rows
metrics.jsonl   one JSON object a line
tb/             the same numbers as TensorBoard events
"""

import hashlib
import json
import math
import os
import time
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from uld_jax import files, sharding
from uld_jax.errors import UserError
from uld_jax.method import TrainState

# A run may be resumed with other values of these keys; any other difference makes another experiment.
_FREE = ("data_dir", "log_every", "eval_every", "save_every", "keep_last", "keep_every")
_FREE += ("workers", "train_images", "on_bad_file")


def write_json(path, value: Any) -> None:
    """Write a value as JSON (see `files.write`); only process 0 writes."""
    if jax.process_index():
        return
    files.write(path, json.dumps(value, indent=2, sort_keys=True, default=_plain) + "\n")


def read_lines(path) -> list[dict[str, Any]]:
    """Read the objects of a file such as metrics.jsonl, without a torn last line; none if there is no file."""
    path, out = epath.Path(path), []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            out.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return out


def read_json(path) -> Any:
    """Read a JSON file. Raises UserError when the file is missing or torn."""
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"{path} is missing; give a folder that `uld train` made")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it or start in a new workdir") from error


def read_config(workdir) -> ml_collections.ConfigDict:
    """Read the configuration of an existing run."""
    return ml_collections.ConfigDict(read_json(epath.Path(workdir) / "config.json")).lock()


def claim(workdir, config: ml_collections.ConfigDict, write: bool = True) -> None:
    """Record this configuration in `workdir`, or check that it is the recorded one; without `write`, only check.

    Raises UserError, naming the key, when the folder holds a run of another configuration. `data_dir`, the folders in
    `weights` and of a `cache`, logging, `eval.train_images`, checkpoint keeping and a larger `steps` of the last stage
    may differ.
    """
    path = epath.Path(workdir) / "config.json"
    new = _flat(json.loads(json.dumps(config.to_dict(), default=_plain)))
    if path.exists():
        old = _flat(read_json(path))
        last_steps = f"{config.stages[-1]}.steps"
        for key in sorted(set(old) | set(new)):
            if key.split(".")[-1] in _FREE or old.get(key) == new.get(key):
                continue
            if key == last_steps and new.get(key, -1) > old.get(key, 0):
                continue
            if _is_folder(key) and bool(old.get(key)) == bool(new.get(key)):
                continue
            raise UserError(
                f"{workdir} holds a run with {key}={old.get(key)!r}, not {new.get(key)!r}; "
                "use another --workdir, or the same config to resume"
            )
    if write:
        write_json(path, config.to_dict())


def recipe(config: dict[str, Any]) -> dict[str, Any]:
    """Reduce the config of a run to what makes the experiment: its keys, flat, without those that `claim` lets differ.

    Folders of weights and caches count as given or not.

    >>> recipe({"seed": 0, "data_dir": "photos", "imm": {"steps": 9}, "weights": {"fan": "w", "vgg16": ""}})
    {'seed': 0, 'imm.steps': 9, 'weights.fan': True, 'weights.vgg16': False}
    """
    flat = {key: value for key, value in _flat(config).items() if key.split(".")[-1] not in _FREE}
    return {key: bool(value) if _is_folder(key) else value for key, value in flat.items()}


def _is_folder(key: str) -> bool:
    """Tell whether a key names a folder that may have moved; the loop compares the hash of its content."""
    return key.startswith("weights.") or key.endswith(".cache")


def tree_hash(tree) -> str:
    """Compute the sha256 of a pytree's names and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(sharding.to_host(tree)):
        leaf = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
    return digest.hexdigest()


def learned_hash(state: TrainState) -> str:
    """Compute the sha256 of all that a stage learned: parameters, statistics, and the method's clusters and labels."""
    return tree_hash({"params": state.params, "model_state": state.model_state, "aux": state.aux})


def _flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    out = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return out


def _plain(value):
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return np.asarray(value).tolist()
    if isinstance(value, (set, tuple)):
        return list(value)
    return str(value)


class Metrics:
    """Writer of `metrics.jsonl` and TensorBoard. Only process 0 writes; the others count the lines.

    Args:
      workdir: folder of the run. Remote files cannot be appended to, so in a remote folder `flush` rewrites the file.
      lines: number of lines to keep of an existing file, those that were there when the restored state was saved.

    `seconds` of a line is the working time of the run so far, without the time between a stop and its resumption and
    without work that was repeated.
    """

    def __init__(self, workdir, lines: int):
        self._path = epath.Path(workdir) / "metrics.jsonl"
        self._remote = "://" in str(workdir)
        self._writer = jax.process_index() == 0
        self._lines = []
        self.count = lines
        if not self._writer:
            return
        if self._path.exists():
            self._lines = self._path.read_text().splitlines(keepends=True)[:lines]
        files.write(self._path, "".join(self._lines))
        from tensorboardX import SummaryWriter  # imported late: only this process needs it

        last = json.loads(self._lines[-1]) if self._lines else {}
        self._before, self._start = last.get("seconds", 0.0), time.monotonic()
        step = last.get("step", 0)
        self._board = None if self._remote else SummaryWriter(os.fspath(self._path.parent / "tb"), purge_step=step + 1)

    def write(self, step: int, stage: str, **values) -> None:
        """Write one line: step (counted over all stages), stage, time, seconds and the values, scalars or JSON."""
        values = {
            k: v.item() if isinstance(v, (np.ndarray, np.generic)) and v.ndim == 0 else v for k, v in values.items()
        }
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self.count += 1
        if not self._writer:
            return
        clock = {"time": round(time.time(), 3), "seconds": round(self._before + time.monotonic() - self._start, 3)}
        line = json.dumps({"step": step, "stage": stage} | clock | values, default=_plain) + "\n"
        self._lines.append(line)
        if self._remote:
            return
        with self._path.open("a") as file:
            file.write(line)
        for key, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._board.add_scalar(f"{stage}/{key}", value, step)

    def read(self) -> list[dict[str, Any]]:
        """Return the lines written so far, on process 0."""
        return [json.loads(line) for line in self._lines]

    def flush(self) -> None:
        if not self._writer:
            return
        if self._remote:
            files.write(self._path, "".join(self._lines))
        else:
            self._board.flush()

    def close(self) -> None:
        self.flush()
        if self._writer and self._board:
            self._board.close()
