"""Checkpoint files to named arrays. No code in a file is ever run: Python objects are refused, not unpickled.

PyTorch, safetensors and h5py are imported where they are needed; the rest of the library does without them.
"""

import hashlib
import os
import pickle
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from uld_jax.errors import UserError


def sha256(path: str) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: str, flag: str = "--src") -> dict[str, np.ndarray]:
    """Every entry of a PyTorch, safetensors or HDF5 file, told apart by their first bytes.

    Names inside nested dicts and HDF5 groups are joined by dots: `data.conv1_1.0`. Of a PyTorch file that nests its
    tensors under `state_dict` only these are read; beside them is the trainer's own (`epoch`, `optimizer`). Floating-
    point numbers of any width come as float32 or float64.

    Raises:
      UserError: when there is no such file, it is no checkpoint, or the package that reads it is not installed; `flag`
        is named in the message.
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
            entries = _torch(path)
        else:
            raise UserError(f"{flag}={path} is no PyTorch, safetensors or HDF5 file; give the published checkpoint")
    except ImportError as error:
        raise UserError(
            f"{path} cannot be read without {error.name or error}; run: pip install 'uld_jax[convert]'"
        ) from error
    if not entries:
        raise UserError(f"{flag}={path} holds no tensors; give the published checkpoint")
    return entries


def _torch(path):
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged or holds Python objects, which are not unpickled because they may run any code; where "
            "you trust it, save the tensors alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # whatever a damaged archive leads to
        raise UserError(f"{path} cannot be read as a PyTorch file ({type(error).__name__}); get it again") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds a {type(found).__name__}, not named tensors; save a state_dict")

    def array(key, value):
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"{path}: the entry {key!r} is no tensor but a Python {type(value).__name__}; give a state_dict"
            )
        return _array(value.detach())

    return _flat(found, array)


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
    """NumPy has no bfloat16; every float16 or bfloat16 number is one in float32."""
    return (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()


def _flat(tree: Mapping[Any, Any], leaf, prefix: str = "") -> dict[str, np.ndarray]:
    entries = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        entries |= _flat(value, leaf, f"{key}.") if isinstance(value, Mapping) else {key: leaf(key, value)}
    return entries
