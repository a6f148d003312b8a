"""Folders of converted weights, written by `uld convert` and read by the methods that use them.

DIR/params/      the arrays (Orbax)
DIR/source.json  kind, file, sha256 and entries of the source, parameters, licence, CRC-32 of the arrays

For programs that are compiled and not run, `shapes:DIR` in place of a folder reads the shapes of the arrays alone, and
`shapes:` without a folder those of the published network of the kind, if `publish` named them.
"""

import functools
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from uld_jax import checksums, files
from uld_jax.errors import UserError

SHAPES = "shapes:"
_IDENTITY = ("kind", "sha256", "core_sha256")
_published: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {}


def publish(kind: str, make: Callable[[], tuple[Any, dict[str, Any]]]) -> None:
    """Name a function that returns the shapes of the published weights of a kind, and their facts in `source.json`."""
    _published[kind] = functools.cache(make)


def save(dst, kind: str, params: Any, source: dict[str, Any]) -> dict[str, Any]:
    """Write a folder of weights beside `dst` and rename it, so that half a folder is never seen.

    Args:
      dst: the folder, local or gs://. It must not exist, be empty, or hold the same weights from the same source; in
        the last case nothing is written.
      kind: kind of the weights, the name that `load` takes.
      params: nested dict of arrays; they are stored as float32.
      source: origin of the weights: `file`, `sha256`, `entries`, `licence`, ...

    Returns:
      Content of `source.json`: `source`, the kind, the number of trained parameters and the CRC-32 of all.

    Raises:
      UserError: `dst` holds something else.
    """
    dst = _path(dst)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    # Networks alone, or `params` and other collections, these by network or not.
    flat = traverse_util.flatten_dict(params)
    apart = any("params" in path for path in flat)
    trained = {path: x for path, x in flat.items() if not apart or "params" in path}
    about = {"kind": kind, "parameters": sum(x.size for x in trained.values()), "crc32": checksums.crc32(params)}
    source = source | about
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        return _same(dst, kind, params, source)
    # A bucket cannot rename folders, so there `source.json` comes last: `load` refuses a folder without it.
    part = dst if "://" in str(dst) else dst.parent / f"{dst.name}.part"
    try:
        if part != dst and part.exists():
            part.rmtree()
        part.mkdir(parents=True, exist_ok=True)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(part / "params", args=ocp.args.PyTreeSave(params), force=True)
        files.write(part / "source.json", json.dumps(source, indent=2, sort_keys=True) + "\n")
        if part != dst:
            os.rename(part, dst)  # also replaces an empty folder
    finally:
        if part != dst and part.exists():
            part.rmtree()
    return source


def load(path, kind: str) -> Any:
    """Read the weights in a folder that `uld convert --kind=<kind>` made: a nested dict of float32 NumPy arrays.

    Args:
      path: the folder, local or gs://, the value of `config.weights.<kind>`; after `shapes:` the result holds shapes.
      kind: kind that the weights must have.

    Raises:
      UserError: there is no folder, or it holds no converted weights, damaged ones, or those of another kind.
    """
    about = read_source(path, kind)
    shapes_only, path = str(path).startswith(SHAPES), str(path).removeprefix(SHAPES)
    if not path:
        return _published[kind]()[0]
    path = _path(path)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            saved = checkpointer.metadata(path / "params")
            saved = getattr(saved, "item_metadata", saved)
            if shapes_only:
                return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float32), saved.tree)
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved.tree)
            params = checkpointer.restore(path / "params", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        known = about.get("crc32")  # earlier versions wrote none
        same = known is None or known == checksums.crc32(params)
        why = "" if same else "other numbers than were saved"
    except Exception as error:  # Orbax and TensorStore raise errors of any kind for files that they did not write
        why = type(error).__name__
    if why:
        raise UserError(f"config.weights.{kind}={path} is damaged ({why}); delete that folder and {_make(kind)}")
    return params


def read_source(path, kind: str) -> dict[str, Any]:
    """Read `source.json` of a folder of weights; arguments and errors are those of `load`."""
    if str(path) == SHAPES:
        if kind not in _published:
            raise UserError(
                f"config.weights.{kind} is empty, and the size of its network is not known without them: "
                f"{_make(kind)}, then set the key to DIR"
            )
        return {"kind": kind, "sha256": "", "file": ""} | _published[kind]()[1]
    path = str(path).removeprefix(SHAPES)
    if not path:
        raise UserError(
            f"config.weights.{kind} is empty, but weights are needed: {_make(kind)}, then set the key to DIR"
        )
    path = _path(path)
    if not path.exists():
        raise UserError(f"config.weights.{kind}={path} does not exist; {_make(kind)}")
    found = _source(path)
    if found is None:
        raise UserError(f"config.weights.{kind}={path} is not a folder of converted weights; {_make(kind)}")
    if found["kind"] != kind:
        raise UserError(f"config.weights.{kind}={path} holds weights of kind {found['kind']!r}; {_make(kind)}")
    return found


def _make(kind):
    return f"make it by `uld convert --kind={kind} --src=FILE --dst=DIR`"


def _same(dst, kind, params, source):
    found = _source(dst) or {}
    if all(found.get(key) == source.get(key) for key in _IDENTITY):
        there = load(dst, kind)
        if jax.tree.structure(there) == jax.tree.structure(params) and all(
            jax.tree.leaves(jax.tree.map(np.array_equal, there, params))
        ):
            return found
    what = f"weights of kind {found['kind']!r} from {found.get('file')}" if found else "something else"
    raise UserError(f"--dst={dst} exists and holds {what}; give another folder, or delete it")


def _source(path) -> dict[str, Any] | None:
    try:
        found = json.loads((path / "source.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("kind"), str) else None


def _path(path) -> epath.Path:
    path = epath.Path(os.path.expanduser(path))
    return path if "://" in str(path) else path.absolute()  # Orbax takes only absolute local paths
