"""Torch7 tensors, against files written byte by byte."""

import struct

import numpy as np
import pytest

from uld_jax.data.builders import torch7
from uld_jax.errors import UserError

# The tensor ((1, 2, 3), (4, 5, 6)) of doubles, every byte as Torch7 writes it.
SIX = bytes.fromhex(
    "04000000 01000000 03000000 562031 12000000"  # Torch object 1, "V 1", 18 characters
    + b"torch.DoubleTensor".hex()
    + "02000000 0200000000000000 0300000000000000"  # two dimensions, 2 x 3
    + "0300000000000000 0100000000000000 0100000000000000"  # strides 3 and 1, offset 1
    + "04000000 02000000 03000000 562031 13000000"
    + b"torch.DoubleStorage".hex()
    + "0600000000000000 000000000000f03f 0000000000000040 0000000000000840"
    + "0000000000001040 0000000000001440 0000000000001840"
)


def text(word):
    return struct.pack("<i", len(word)) + word.encode()


def tensor(values, sizes, strides, offset=1, word="Double", version=True):
    """The bytes of a tensor with a storage of `values`."""
    v = text("V 1") if version else b""
    head = struct.pack("<ii", 4, 1) + v + text(f"torch.{word}Tensor") + struct.pack("<i", len(sizes))
    view = struct.pack(f"<{2 * len(sizes) + 1}q", *sizes, *strides, offset)
    store = struct.pack("<ii", 4, 2) + v + text(f"torch.{word}Storage") + struct.pack("<q", len(values))
    return head + view + store + np.asarray(values, {"Double": "<f8", "Float": "<f4"}[word]).tobytes()


def read(tmp_path, data):
    path = tmp_path / "a.t7"
    path.write_bytes(data)
    return torch7.read(path)


@pytest.mark.parametrize(
    ("data", "want"),
    [
        (SIX, [[1, 2, 3], [4, 5, 6]]),
        (tensor([1, 2, 3, 4, 5, 6], (2, 3), (3, 1)), [[1, 2, 3], [4, 5, 6]]),
        (tensor([1, 2, 3, 4, 5, 6], (3, 2), (1, 3)), [[1, 4], [2, 5], [3, 6]]),  # a transposed view
        (tensor([9, 9, 1.5, 2, 3, 4.25, 9], (2, 2), (2, 1), 3, "Float"), [[1.5, 2], [3, 4.25]]),  # a part of a storage
        (tensor([7, 8], (2,), (1,), version=False), [7, 8]),
        (tensor([], (0, 2), (2, 1)), np.zeros((0, 2))),
        (struct.pack("<ii", 4, 1) + text("V 1") + text("torch.FloatTensor") + struct.pack("<iqi", 0, 1, 0), []),
    ],
)
def test_tensors_come_back(tmp_path, data, want):
    found = read(tmp_path, data)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.array(want, float))


def test_68_points(tmp_path):
    points = np.random.default_rng(0).uniform(0, 450, (68, 2)).astype(np.float32)
    found = read(tmp_path, tensor(points.ravel(), (68, 2), (2, 1), word="Float"))
    np.testing.assert_array_equal(found, points)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "a.t7 is cut short or damaged, where a Torch7 tensor is needed; get the official file again"),
        (SIX[:100], "cut short"),
        (SIX[:-1], "cut short"),
        (SIX + b"\0", "goes on after its tensor"),
        (b"<html>404", "holds something else in place"),
        (struct.pack("<iii", 3, 1, 1), "holds a table in place"),
        (struct.pack("<i", 6) + b"print", "holds a function in place"),
        (struct.pack("<ii", 4, 1) + text("V 1") + text("nn.Sequential"), "class 'nn.Sequential'"),
        (struct.pack("<i", 0), "holds nothing"),
        (SIX.replace(b"torch.DoubleTensor", b"torch.\xff\xfeubleTensor"), "class 'torch.ÿþubleTensor'"),
        (SIX.replace(b"DoubleStorage", b"HalfxxStorage"), "holds 'torch.HalfxxStorage' in place of its numbers"),
        (tensor([1, 2, 3], (2, 2), (2, 1)), "sizes that do not fit"),
        (tensor([1, 2, 3, 4], (2, 2), (2, 1), 0), "sizes that do not fit"),
        (tensor([1, 2, 3, 4], (2, 2), (2, 1), 2), "sizes that do not fit"),
        (tensor([1, 2, 3, 4], (-2, 2), (2, 1)), "sizes that do not fit"),
        (tensor([1, 2, 3, 4], (2, 2), (-2, 1), 3), "sizes that do not fit"),
        (tensor([1], (1 << 40,), (0,)), "sizes that do not fit"),  # one number, repeated to fill the memory
        (tensor([1], (1 << 62, 1 << 62), (1 << 62, 1)), "sizes that do not fit"),
        (SIX.replace(struct.pack("<q", 6), struct.pack("<q", 1 << 60)), "cut short"),
        (SIX.replace(struct.pack("<q", 6), struct.pack("<q", -1)), "cut short"),
        (struct.pack("<iii", 4, 1, 1 << 30) + b"V 1", "cut short"),
        (SIX.replace(b"DoubleTensor\2\0\0\0", b"DoubleTensor\x7f\xff\xff\x7f"), "cut short"),
    ],
)
def test_anything_else_is_told(tmp_path, data, error):
    with pytest.raises(UserError, match=error):
        read(tmp_path, data)


def test_no_changed_byte_does_harm(tmp_path):
    rng, told = np.random.default_rng(0), 0
    for _ in range(300):
        data = bytearray(SIX)
        data[rng.integers(len(data))] = rng.integers(256)
        try:
            read(tmp_path, bytes(data))
        except UserError:
            told += 1
    assert 100 < told < 250  # the other bytes are numbers, indices and versions


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"b.t7 cannot be read \(no such file"):
        torch7.read(tmp_path / "b.t7")
