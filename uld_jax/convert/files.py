"""Checkpoint files to named arrays. No code in a file is ever run: Python objects are refused, not unpickled.

The one exception is what trainers save of their own in files of some kinds, an `argparse.Namespace` of options or
arrays of losses: stand-ins take the place of these objects, and keep texts alone or nothing.

PyTorch, safetensors and h5py are imported only when needed; the rest of the library does without them.
"""

import collections
import hashlib
import json
import os
import pickle
import re
import types
import warnings
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from uld_jax.errors import UserError


def sha256(*paths: str) -> str:
    """sha256 of a file's bytes, or of several files' one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


class Opened(NamedTuple):
    """A checkpoint read from a folder.

    Attributes:
      entries: named arrays, as from a file.
      paths: the files that hold the entries.
      options: further arguments of the kind's `convert`.
    """

    entries: dict[str, np.ndarray]
    paths: list[str]
    options: dict[str, Any]


TRANSFORMERS = ("model.safetensors", "pytorch_model.bin")  # names of the weights in a folder of transformers


def open_transformers(
    path: str, kind: str, fixed: Mapping[str, Collection[Any]], give: str
) -> tuple[Opened, dict[str, Any]]:
    """Open a folder of transformers: its entries, without options, and its `config.json`.

    Args:
      path: the folder.
      kind: kind of the checkpoint in messages.
      fixed: for keys of `config.json`, if it has them, the values that fit: parts of the architecture that weights do
        not show.
      give: networks that fit, for messages.

    Raises:
      UserError: a file that is missing or cannot be read, or a folder of another network.
    """
    weights = [os.path.join(path, name) for name in TRANSFORMERS if os.path.exists(os.path.join(path, name))]
    if not weights and "adapter_config.json" in os.listdir(path):
        raise UserError(
            f"--src={path} holds a LoRA, which is no network of its own; merge it into its model and save that: "
            "model.merge_and_unload().save_pretrained(DIR)"
        )
    if not weights:
        raise UserError(
            f"--src={path} holds neither {' nor '.join(TRANSFORMERS)}; give a folder of transformers, or a file"
        )
    try:
        with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
            config = dict(json.load(file))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--src={path} holds no config.json that can be read ({type(error).__name__}); get it again"
        ) from error
    for key, known in fixed.items():
        if key in config and config[key] not in known:
            raise UserError(
                f"{path}/config.json says {key}={config[key]!r}, and --kind={kind} takes "
                f"{' or '.join(map(repr, known))}; give {give}"
            )
    return Opened(read(weights[0]), weights[:1], {}), config


class Beside(NamedTuple):
    """Entries of a PyTorch file beside its `state_dict`.

    Attributes:
      arrays: names of NumPy arrays or tensors that are read too; each may be absent or None.
      ignored: names of the trainer's own entries, which are not read.
    """

    arrays: tuple[str, ...]
    ignored: tuple[str, ...] = ()


def read(
    path: str,
    flag: str = "--src",
    beside: Beside | None = None,
    nested: tuple[str, ...] = ("state_dict",),
    text: str = "",
    trainer: bool = False,
) -> dict[str, np.ndarray]:
    """Read every entry of a PyTorch, safetensors or HDF5 file; the type follows from the first bytes.

    Names inside nested dicts and HDF5 groups are joined by dots: `data.conv1_1.0`. If a PyTorch file nests its tensors
    under `state_dict`, only these are read, without the trainer's own entries (`epoch`, `optimizer`). Floating-point
    numbers of any width become float32 or float64. `nested` has other names for `state_dict`; the first that is in the
    file counts.

    With `beside` the arrays that it names are read as well, under these names, and any other entry beside `state_dict`
    is an error. Only then may a PyTorch file hold NumPy arrays, of float32, float64, int32 or int64.

    With `text`, such as "opt.dataset", the text `dataset` of the trainer's options, an `argparse.Namespace` beside the
    tensors, is read as well if it is there, as an array without axes under that name. Only then may a PyTorch file
    hold an `argparse.Namespace`.

    With `trainer` a PyTorch file may hold an `argparse.Namespace`, NumPy arrays and NumPy numbers beside the tensors,
    of which nothing is kept.

    Raises:
      UserError: there is no such file, it is no checkpoint, or the package that reads it is not installed; the message
        names `flag`. If the file holds Python objects, the message names the first of them.
    """
    if not os.path.exists(path):
        raise UserError(f"{flag}={path} does not exist; give the checkpoint file")
    if os.path.isdir(path):
        raise UserError(f"{flag}={path} is a folder; give the checkpoint file in it")
    with open(path, "rb") as file:
        head = file.read(9)
    try:
        if head.startswith(b"\x89HDF\r\n\x1a\n"):
            entries = _hdf5(path)
        elif head[8:] == b"{":  # after the length of the header, the header in JSON
            entries = _safetensors(path)
        elif head.startswith((b"PK\x03\x04", b"\x80")):
            entries = _torch(path, beside, nested, text, trainer)
        elif head == b"version h":
            raise UserError(
                f"{flag}={path} is no PyTorch, safetensors or HDF5 file, but what Git LFS leaves in its place; "
                "run `git lfs pull` in its folder"
            )
        else:
            raise UserError(f"{flag}={path} is no PyTorch, safetensors or HDF5 file; give the published checkpoint")
    except ImportError as error:
        raise UserError(
            f"{path} cannot be read without {error.name or error}; run: pip install 'uld_jax[convert]'"
        ) from error
    if not entries:
        raise UserError(f"{flag}={path} holds no tensors; give the published checkpoint")
    return entries


def _torch(path, beside, nested, text, trainer):
    import torch

    try:
        known = _plain_globals() + (_numpy_globals() if beside else [])
        known += [(Namespace, "argparse.Namespace")] if text else []
        known += _dropped_globals() if trainer else []
        with warnings.catch_warnings(), torch.serialization.safe_globals(known):
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # The unpickler's message names the object, among advice that does not apply here.
        name = re.search(r"GLOBAL ([\w.]+)|got <class '([\w.]+)'>", str(error))
        damaged, first = ("", f" (the first: {name[1] or name[2]})") if name else ("is damaged or ", "")
        raise UserError(
            f"{path} {damaged}holds Python objects, which are not unpickled because they may run any code{first}; "
            "where you trust it, save the tensors alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # a damaged archive can raise anything
        if "TorchScript" in str(error):
            raise UserError(
                f"{path} is a TorchScript program, which is not run; where you trust it, save the tensors alone: "
                f"torch.save(torch.jit.load({os.path.basename(path)!r}).state_dict(), FILE)"
            ) from error
        raise UserError(f"{path} cannot be read as a PyTorch file ({type(error).__name__}); get it again") from error
    more = {}
    inner = next((name for name in nested if isinstance(found, Mapping) and isinstance(found.get(name), Mapping)), None)
    if inner is not None:
        more = (_beside(path, found, beside) if beside else {}) | _text(found, text)
        found = found[inner]
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds a {type(found).__name__}, not named tensors; save a state_dict")

    def array(key, value):
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"{path}: the entry {key!r} is no tensor but a Python {type(value).__name__}; give a state_dict"
            )
        return _array(value.detach())

    return _flat(found, array) | more


class Namespace:
    """Stand-in for `argparse.Namespace` in a pickle; keeps its texts and drops all else.

    Attributes:
      texts: the texts by their names.
    """

    texts: Mapping[str, str] = types.MappingProxyType({})

    def __setstate__(self, state):
        items = state.items() if isinstance(state, Mapping) else ()
        self.texts = {name: value for name, value in items if isinstance(name, str) and isinstance(value, str)}


class Dropped:
    """Stand-in for an object in a pickle of which nothing is needed; keeps nothing."""

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        del state


def _dropped_globals():
    """Globals in the pickles of an `argparse.Namespace` and of NumPy's arrays and numbers, none of which is called."""
    names = [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")]
    return [(Dropped, name) for name in ("argparse.Namespace", "numpy.ndarray", "numpy.dtype", *names)]


def _text(found, text):
    name, _, attribute = text.partition(".")
    options = found.get(name)
    if not isinstance(options, Namespace) or attribute not in options.texts:
        return {}
    return {text: np.array(options.texts[attribute])}


def _plain_globals():
    """Globals in the pickle of a defaultdict, which is read as a dict, because PyTorch's unpickler fills no other."""

    def defaultdict(*_):
        return collections.OrderedDict()

    makers = [(kind, f"builtins.{kind.__name__}") for kind in (dict, list, int, float)]
    return [(defaultdict, "collections.defaultdict"), *makers]


def _numpy_globals():
    """Globals in the pickle of a plain NumPy array, under NumPy 1's and NumPy 2's names, and no others."""
    rebuild = np.zeros(0).__reduce__()[0]
    plain = [type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64")]
    names = [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    return [*names, (np.ndarray, "numpy.ndarray"), (np.dtype, "numpy.dtype"), *plain]


def _beside(path, found, beside):
    import torch

    unknown = [key for key in found if key not in ("state_dict", *beside.arrays, *beside.ignored)]
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(
            f"{path}: the entry {unknown[0]!r}{more} beside 'state_dict' is used by nothing; check --kind and --src"
        )
    entries = {}
    for name in beside.arrays:
        value = found.get(name)
        if value is None:
            continue
        if isinstance(value, torch.Tensor):
            value = _array(value.detach())
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fi":
            what = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a Python {type(value).__name__}"
            raise UserError(f"{path}: the entry {name!r} is no array of numbers but {what}; check --kind and --src")
        entries[name] = value
    return entries


def _safetensors(path):
    import torch  # for bfloat16, which NumPy lacks
    from safetensors import SafetensorError, safe_open

    del torch
    try:
        with safe_open(path, framework="pt") as file:
            return {key: _array(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a safetensors file ({error}); get it again") from error


def _hdf5(path):
    import h5py

    entries = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            entries[name.replace("/", ".")] = np.asarray(item[()])

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path} cannot be read as an HDF5 file ({type(error).__name__}); get it again") from error
    return entries


def _array(tensor) -> np.ndarray:
    """Convert a tensor to NumPy, which lacks bfloat16; float32 holds every float16 or bfloat16 number."""
    return (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()


def _flat(tree: Mapping[Any, Any], leaf, prefix: str = "") -> dict[str, np.ndarray]:
    entries = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        entries |= _flat(value, leaf, f"{key}.") if isinstance(value, Mapping) else {key: leaf(key, value)}
    return entries
