"""Checksums of saved numbers."""

import zlib

import jax.numpy as jnp
import numpy as np

from uld_jax import checksums


def test_it_is_the_crc_of_the_json_and_of_all_bytes_in_order():
    rng = np.random.default_rng()
    tree = {
        "b": rng.normal(size=(3, 4)).astype(np.float32).T,  # not in one piece
        "a": (np.array([True, False]), rng.integers(0, 9, 5), np.float64(0.25)),
        "c": np.zeros((0, 3), np.float32),
        "d": np.asarray(jnp.arange(6, dtype=jnp.bfloat16)),
    }
    flag, whole, number = tree["a"]
    parts = [b'{"k": [1, 2], "x": null}', flag.tobytes(), whole.tobytes(), number.tobytes(), tree["b"].tobytes()]
    expected = zlib.crc32(b"".join([*parts, tree["d"].tobytes()]))
    assert checksums.crc32(tree, {"x": None, "k": (1, 2)}) == f"{expected:08x}"
    assert checksums.crc32(tree) != checksums.crc32(tree, {})


def test_every_changed_byte_changes_it():
    values = np.random.default_rng().normal(size=7)
    found = {checksums.crc32(values)}
    for at in range(values.nbytes):
        changed = values.copy()
        changed.view(np.uint8)[at] ^= 0xFF
        found.add(checksums.crc32(changed))
    assert len(found) == 1 + values.nbytes
