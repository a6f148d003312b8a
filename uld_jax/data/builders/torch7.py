"""Tensors of Torch7's binary files (`.t7`), such as the labels of LS3D-W.

A file holds one object. Numbers are little-endian; an `int` has 4 bytes and a `long` 8, as Torch7 writes them on 64-bit
machines.

  int 4, int index                         a Torch object, and its number in the file
  int n, n bytes                           the version, `V 1`; files of before versions have the class name here
  int n, n bytes                           the class, `torch.DoubleTensor` or `torch.FloatTensor`
  int d, d longs, d longs, long offset     dimensions, sizes, strides, and the first element in the storage, from 1
  the storage: int 4, int index, version, class `torch.DoubleStorage` or `torch.FloatStorage`, long n, n numbers
               (int 0 in place of it: no storage, for an empty tensor)

Torch7's format can hold any Lua object, functions too. `read` knows these two classes alone, and runs nothing.
"""

import struct

import numpy as np
from etils import epath

from uld_jax.errors import UserError

_NIL, _TORCH = 0, 4  # type numbers of the format
_DTYPES = {"Double": np.dtype("<f8"), "Float": np.dtype("<f4")}
_LONGEST = 64  # characters of a class name
_MOST_DIMENSIONS = 8
_OTHERS = {1: "a number", 2: "a text", 3: "a table", 5: "a boolean", 6: "a function", 7: "a function", 8: "a function"}


class _Unreadable(Exception):
    """What a file holds in place of a tensor, to follow its name."""


class _Bytes:
    """The content of a file and a place in it."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        if not 0 <= size <= len(self.data) - self.at:
            raise _Unreadable("is cut short or damaged")
        self.at += size
        return self.data[self.at - size : self.at]

    def int(self) -> int:
        """Return the next int."""
        return struct.unpack("<i", self.take(4))[0]

    def longs(self, count: int) -> list[int]:
        """Return the next longs."""
        return list(struct.unpack(f"<{count}q", self.take(8 * count)))

    def name(self) -> str:
        """Return the next version or class name."""
        size = self.int()
        if not 0 < size <= _LONGEST:
            raise _Unreadable("is cut short or damaged")
        return self.take(size).decode("latin-1")

    def object(self) -> str:
        """Return the class of the next object, "" without one."""
        kind = self.int()
        if kind == _NIL:
            return ""
        if kind != _TORCH:
            raise _Unreadable(f"holds {_OTHERS.get(kind, 'something else')} in place of a tensor")
        self.int()
        name = self.name()
        return self.name() if name.startswith("V ") else name


def read(path) -> np.ndarray:
    """Read the tensor of doubles or floats in a file, float64 of any shape.

    Raises UserError that names the file if the file holds anything else, is cut short, or has bytes after the tensor.
    """
    try:
        return _tensor(_Bytes(epath.Path(path).read_bytes()))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({(error.strerror or str(error)).lower()})") from None
    except _Unreadable as error:
        raise UserError(f"{path} {error}, where a Torch7 tensor is needed; get the official file again") from None


def _tensor(data: _Bytes) -> np.ndarray:
    of = {f"torch.{word}Tensor": word for word in _DTYPES}
    found = data.object()
    if found not in of:
        said = f"an object of class {found[:40]!r}" if found else "nothing"
        raise _Unreadable(f"holds {said} in place of a tensor of floats or doubles")
    dimensions = data.int()
    if not 0 <= dimensions <= _MOST_DIMENSIONS:
        raise _Unreadable("is cut short or damaged")
    sizes, strides, (offset,) = data.longs(dimensions), data.longs(dimensions), data.longs(1)
    numbers = _storage(data, of[found])
    if data.at != len(data.data):
        raise _Unreadable("goes on after its tensor")
    if dimensions == 0 or 0 in sizes:
        return np.zeros(sizes if dimensions else 0)
    # Python's integers do not overflow, so sizes that do not fit into the storage are told before an array is made.
    last = offset - 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if min(*sizes, *strides, offset - 1) < 0 or last >= len(numbers) or np.prod(sizes, dtype=object) > len(numbers):
        raise _Unreadable("has sizes that do not fit its numbers")
    bytes_of = [stride * numbers.itemsize for stride in strides]
    view = np.lib.stride_tricks.as_strided(numbers[offset - 1 :], sizes, bytes_of, writeable=False)
    return view.astype(np.float64)


def _storage(data: _Bytes, word: str) -> np.ndarray:
    found = data.object()
    if not found:
        return np.zeros(0, _DTYPES[word])
    if found != f"torch.{word}Storage":
        raise _Unreadable(f"holds {found[:40]!r} in place of its numbers")
    (count,) = data.longs(1)
    dtype = _DTYPES[word]
    return np.frombuffer(data.take(count * dtype.itemsize), dtype)
