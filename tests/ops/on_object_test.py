import doctest
import importlib

import jax.numpy as jnp
import numpy as np

from uld_jax.ops.on_object import on_object


def test_examples():
    assert doctest.testmod(importlib.import_module("uld_jax.ops.on_object")) == (0, 3)


def test_points_in_the_box_or_on_the_mask_lie_on_the_object():
    rng = np.random.default_rng(0)
    xy = rng.uniform(-4, 44, (3, 50, 2))
    box = np.array([[0, 0, 40, 40], [5, 8, 30, 20], [10, 10, 9, 9]], np.float32)
    x, y = np.moveaxis(xy, -1, 0)
    within = (x >= box[:, :1]) & (y >= box[:, 1:2]) & (x <= box[:, 2:3]) & (y <= box[:, 3:])
    found = on_object(jnp.asarray(xy), 40, boxes=jnp.asarray(box))
    np.testing.assert_array_equal(found, within)
    assert not found[2].any()
    mask = rng.random((3, 10, 10)) < 0.5
    cell = np.clip(np.floor((xy + 0.5) / 4).astype(int), 0, 9)  # points beside the frame are as at its border
    want = [[mask[b, v, u] for u, v in cell[b]] for b in range(3)]
    np.testing.assert_array_equal(on_object(jnp.asarray(xy), 40, masks=jnp.asarray(mask)), want)
    assert on_object(jnp.asarray(xy), 40).all()
