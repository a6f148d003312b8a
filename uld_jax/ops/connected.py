"""Connected regions of masks, with static shapes: any number of masks in one program."""

import jax
import jax.numpy as jnp

_NEIGHBOURS = {4: ((0, 1), (1, 0)), 8: ((0, 1), (1, 0), (1, 1), (1, -1))}  # the other half by symmetry


def label(masks, connectivity: int = 4):
    """Number the connected regions of masks [...,H,W], int32: 0 outside, then 1, 2, ... by first cell in reading order.

    Every cell points to a cell of smaller or equal index, at first to itself. In a step, the cell it points to is made
    to point to the smallest target of its neighbours' pointers, and then all pointers are followed once more. Distances
    halve, so the number of steps grows with the logarithm of a region's length, whatever its shape.

    Args:
      masks: [...,H,W] bool, with any leading axes.
      connectivity: 4 connects cells that share a side; 8 also connects cells that share a corner.

    >>> label(jnp.array([[1, 1, 0, 1], [0, 0, 1, 0]], bool)).tolist()
    [[1, 1, 0, 2], [0, 0, 3, 0]]
    >>> label(jnp.array([[1, 1, 0, 1], [0, 0, 1, 0]], bool), 8).tolist()
    [[1, 1, 0, 1], [0, 0, 1, 0]]
    """
    roots = _roots(masks, connectivity)
    size = masks.shape[-2] * masks.shape[-1]
    first = (roots == jnp.arange(size).reshape(masks.shape[-2:])) & masks
    number = jnp.cumsum(first.reshape(*masks.shape[:-2], size), -1, dtype=jnp.int32)
    found = jnp.take_along_axis(number, roots.reshape(number.shape), -1).reshape(masks.shape)
    return jnp.where(masks, found, 0)


def largest(masks, connectivity: int = 4):
    """The cells [...,H,W] bool of the largest connected region of each mask; the first in reading order of a tie.

    A mask without cells stays empty. `connectivity` is that of `label`.

    >>> largest(jnp.array([[1, 0, 1, 1], [1, 0, 0, 1]], bool)).astype(int).tolist()
    [[0, 0, 1, 1], [0, 0, 0, 1]]
    """
    roots = _roots(masks, connectivity)
    flat, there = roots.reshape(*masks.shape[:-2], -1), masks.reshape(*masks.shape[:-2], -1)
    count = lambda roots, there: jnp.zeros(there.shape, jnp.int32).at[roots].add(there)
    for _ in range(flat.ndim - 1):
        count = jax.vmap(count)
    most = jnp.argmax(count(flat, there), -1, keepdims=True)
    return ((flat == most) & there).reshape(masks.shape)


def _roots(masks, connectivity):
    """The index in reading order of the first cell of each cell's region; a cell outside has its own index."""
    height, width = masks.shape[-2:]
    own = jnp.arange(height * width, dtype=jnp.int32)

    def one(mask):
        # A neighbour outside the mask, or beyond the border, points nowhere.
        nowhere = jnp.int32(height * width)
        pairs = []
        for dy, dx in _NEIGHBOURS[connectivity]:
            for sy, sx in ((dy, dx), (-dy, -dx)):
                padded = jnp.pad(mask, 1)[1 + sy : 1 + sy + height, 1 + sx : 1 + sx + width]
                pairs.append((sy * width + sx, (padded & mask).reshape(-1)))

        def step(state):
            points, _ = state
            beyond = points[points]
            least = beyond
            for shift, there in pairs:
                least = jnp.minimum(least, jnp.where(there, jnp.roll(beyond, -shift), nowhere))
            new = points.at[points].min(least)  # the cell's target learns of the cell's neighbours
            new = jnp.minimum(new, least)
            new = new[new]
            return new, jnp.any(new != points)

        points, _ = jax.lax.while_loop(lambda state: state[1], step, (own, True))
        return points.reshape(height, width)

    for _ in range(masks.ndim - 2):
        one = jax.vmap(one)
    return one(masks)
