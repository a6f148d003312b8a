"""What passes over the training data collect, and the tables that are made of it.

Shapes: see the glossary of `method.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.ops import keypoints


class Rows(NamedTuple):
    """What one pass over the data collects from every image.

    Attributes:
      descriptors: [B,P,D] float32.
      xy: [B,P,2] float32 `(x, y)` in pixels of the frame.
      mask: [B,P] bool, False where a slot is empty.
    """

    descriptors: jax.Array
    xy: jax.Array
    mask: jax.Array


class Bank(NamedTuple):
    """A whole pass: `Rows` with leading axes [B,T], sharded on the first.

    Attributes:
      rows: Rows of [B,T,P,...]; the mask is False wherever `index` is padding.
      index: [B,T] int32 dataset rows, N for padding.
    """

    rows: Rows
    index: jax.Array


class Labels(NamedTuple):
    """Pseudo-labels of the training set: a table on the devices, one row an image, in the frame's pixels.

    Attributes:
      xy: [N,K,2] float32.
      score: [N,K] float32; 0 means that the image has no label for the landmark.
    """

    xy: jax.Array
    score: jax.Array


def flatten(bank: Bank) -> tuple[jax.Array, jax.Array]:
    """All descriptors [B*T*P, D] of a bank and their mask [B*T*P]; local to every device."""
    descriptors, mask = bank.rows.descriptors, bank.rows.mask
    return descriptors.reshape(-1, descriptors.shape[-1]), mask.reshape(-1)


def image_table(bank: Bank, values: jax.Array, rows: int) -> jax.Array:
    """Values [B,T,...] of a pass as a table [rows, ...] by dataset row; padding falls away.

    >>> bank = Bank(Rows(*[jnp.zeros((2, 2, 1))] * 3), jnp.array([[0, 2], [1, 3]]))
    >>> image_table(bank, jnp.array([[5., 7.], [6., 8.]]), 3).tolist()
    [5.0, 6.0, 7.0]
    """
    flat = values.reshape(-1, *values.shape[2:])
    return jnp.zeros((rows, *flat.shape[1:]), flat.dtype).at[bank.index.reshape(-1)].set(flat, mode="drop")


def by_batch(function, *parts):
    """`function` of pytrees of [B,...], for each of the T batches of [B,T,...]; its results are [B,T,...].

    One batch after the other, so that no table of all keypoints by all clusters is ever needed.
    """
    # Cut out one by one: moved to the front, all of a bank would be copied first.
    cut = lambda t: jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, t, 1, keepdims=False), parts)
    batches = jnp.arange(jax.tree.leaves(parts)[0].shape[1])
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), jax.lax.map(lambda t: function(*cut(t)), batches))


def label_table(bank: Bank, xy: jax.Array, slots: jax.Array, rows: int) -> Labels:
    """Labels [N,C] of keypoints xy [B,T,P,2] at slots [B,T,C], -1 for none."""
    there = slots >= 0
    points = jnp.where(there[..., None], keypoints.take_slots(xy, slots), 0)
    return Labels(image_table(bank, points, rows), image_table(bank, there.astype(xy.dtype), rows))
