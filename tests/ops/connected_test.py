import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from uld_jax.ops import connected

SIDES = (23, 31)


def masks():
    """Noise around the percolation threshold, whose regions wind; and shapes that take long to walk along."""
    rng = np.random.default_rng(0)
    made = [rng.random(SIDES) < share for share in (0.1, 0.4, 0.55, 0.6, 0.65, 0.9)]
    spiral = np.zeros(SIDES, bool)  # one cell wide
    top, left, bottom, right = 0, 0, SIDES[0] - 1, SIDES[1] - 1
    while top < bottom and left < right:
        spiral[top, left : right + 1] = spiral[top : bottom + 1, right] = spiral[bottom, left : right + 1] = True
        spiral[top + 2 : bottom + 1, left] = True
        spiral[min(top + 2, bottom), left : left + 2] = True
        top, left, bottom, right = top + 2, left + 2, bottom - 2, right - 2
    snake = np.zeros(SIDES, bool)
    snake[::2] = True
    snake[1::4, -1] = snake[3::4, 0] = True
    columns = np.zeros(SIDES, bool)
    columns[:, ::2] = True
    return np.stack([*made, spiral, snake, ~snake, columns, np.zeros(SIDES, bool), np.ones(SIDES, bool)])


def test_examples():
    assert doctest.testmod(connected) == (0, 3)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_regions_are_those_of_scipy(connectivity):
    given = masks()
    structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    expected = np.stack([ndimage.label(mask, structure)[0] for mask in given])
    found = np.asarray(jax.jit(connected.label, static_argnums=1)(jnp.asarray(given), connectivity))
    np.testing.assert_array_equal(found, expected)
    assert expected.max() > 30
    biggest = np.asarray(jax.jit(connected.largest, static_argnums=1)(jnp.asarray(given), connectivity))
    for mask, numbers, kept in zip(given, expected, biggest, strict=True):
        sizes = np.bincount(numbers.ravel(), minlength=2)[1:]
        np.testing.assert_array_equal(kept, (numbers == np.argmax(sizes) + 1) & mask)


def test_any_leading_axes():
    given = jnp.asarray(masks()[:6]).reshape(2, 3, *SIDES)
    found = jax.jit(
        lambda m: (connected.label(m), connected.label(m[1, 2]), connected.largest(m), connected.largest(m[1]))
    )(given)
    np.testing.assert_array_equal(found[0][1, 2], found[1])
    np.testing.assert_array_equal(found[2][1], found[3])
