"""Checksums of saved numbers: TensorStore reads a file with a changed byte as other numbers, without an error."""

import json
import zlib
from typing import Any

import jax
import numpy as np


def crc32(arrays: Any, about: Any = None) -> str:
    """Compute the CRC-32 of all values of a pytree, in the order of its leaves, and of a JSON value.

    Names do not count, because a reader finds arrays by them.

    Args:
      arrays: pytree of arrays on the host, of any dtypes.
      about: whatever JSON can hold.

    Returns:
      Eight hexadecimal digits. Any single changed byte changes them.
    """
    plain = json.loads(json.dumps(about))  # what comes back from a file: lists for tuples, texts for keys
    found = zlib.crc32(json.dumps(plain, sort_keys=True).encode())
    for leaf in jax.tree.leaves(arrays):
        found = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8), found)
    return f"{found:08x}"
