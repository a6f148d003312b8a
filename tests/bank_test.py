"""Tables by dataset row, and masks, on banks made by hand."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.bank import UNKNOWN, Bank, image_table, label_table, lookup, masked


class Seen(NamedTuple):
    x: jax.Array
    mask: jax.Array


class Bare(NamedTuple):
    x: jax.Array


def shuffled(rows=10, batch=3, batches=4):
    """A bank without values of shuffled rows, padding among them, and where each row is."""
    padding = [rows] * (batch * batches - rows)
    index = np.random.default_rng(1).permutation(np.r_[np.arange(rows), padding]).reshape(batch, batches)
    return Bank((), jnp.asarray(index, jnp.int32), jnp.asarray(index < rows)), [
        tuple(np.argwhere(index == row)[0]) for row in range(rows)
    ]


def test_an_image_table_has_values_at_their_rows_and_drops_padding():
    bank, places = shuffled()
    values = np.random.default_rng(2).normal(size=(*bank.index.shape, 5, 2)).astype(np.float32)
    found = np.asarray(image_table(bank, jnp.asarray(values), 10))
    assert found.shape == (10, 5, 2)
    for row, place in enumerate(places):
        np.testing.assert_array_equal(found[row], values[place])
    # A row that no image has stays zero.
    np.testing.assert_array_equal(image_table(bank, jnp.asarray(values), 12)[11], 0)


def test_a_label_table_has_the_keypoint_at_each_slot():
    bank, places = shuffled()
    rng = np.random.default_rng(3)
    xy = rng.normal(size=(*bank.index.shape, 6, 2)).astype(np.float32)
    slots = rng.integers(-1, 6, (*bank.index.shape, 4))
    found = label_table(bank, jnp.asarray(xy), jnp.asarray(slots), 10)
    assert found.xy.shape == (10, 4, 2)
    for row, place in enumerate(places):
        for c, slot in enumerate(slots[place]):
            assert found.score[row, c] == (slot >= 0)
            np.testing.assert_array_equal(found.xy[row, c], xy[place][slot] if slot >= 0 else 0)


@pytest.mark.parametrize("shape", [(), (6,), (6, 2)])
def test_a_mask_is_false_for_padding_and_all_else_stays(shape):
    rng = np.random.default_rng(4)
    real = np.array([True, False, True, True, False])
    mask = rng.random((5, *shape)) < 0.7
    mask[1] = True
    seen = Seen(jnp.asarray(rng.normal(size=(5, *shape, 3))), jnp.asarray(mask))
    found = masked(seen, jnp.asarray(real))
    for b in range(5):
        np.testing.assert_array_equal(found.mask[b], mask[b] if real[b] else np.zeros_like(mask[b]))
    assert found.x is seen.x


@pytest.mark.parametrize("values", [Bare(jnp.ones((2, 3))), (), (jnp.ones((2, 3)), jnp.ones(2)), jnp.ones((2, 3))])
def test_what_has_no_mask_is_as_it_was(values):
    assert masked(values, jnp.array([True, False])) is values


@pytest.mark.parametrize("dtype", [np.float32, np.int32, bool])
def test_an_unknown_image_has_zeros_and_any_other_its_row(dtype):
    table = np.random.default_rng(5).integers(1, 9, (7, 4, 2)).astype(dtype)
    index = np.array([6, UNKNOWN, 0, 3, 7, 3], np.int32)  # 7 is padding
    found = np.asarray(jax.jit(lookup)(jnp.asarray(table), jnp.asarray(index)))
    assert found.dtype == dtype
    known = index < 7
    np.testing.assert_array_equal(found[known], table[index[known]])
    assert not found[~known].any()
    assert np.iinfo(np.int32).max == UNKNOWN
