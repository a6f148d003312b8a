"""What passes over the training data collect, and the tables that are made of it.

Shapes: see the glossary of `method.py`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.ops import keypoints

UNKNOWN = 2**31 - 1  # the dataset row of an image that training does not know


class Bank(NamedTuple):
    """A whole pass over the training images, sharded on the first axis.

    Attributes:
      values: what `Method.observe` gives, a pytree of [B,T,...]. A field called `mask` [B,T,...] is False wherever
        `index` is padding.
      index: [B,T] int32, dataset rows; N for padding.
      real: [B,T] bool, False for padding.
    """

    values: Any
    index: jax.Array
    real: jax.Array


class Labels(NamedTuple):
    """Pseudo-labels of the training set: a table on the devices, one row an image, in the frame's pixels.

    Attributes:
      xy: [N,K,2] float32.
      score: [N,K] float32; 0 means that the image has no label for the landmark.
    """

    xy: jax.Array
    score: jax.Array


def masked(values: Any, real: jax.Array) -> Any:
    """Observations [B,...] whose `mask`, if they have one, is False where an image [B] is not `real`."""
    if "mask" not in getattr(values, "_fields", ()):
        return values
    return values._replace(mask=values.mask & real.reshape(-1, *[1] * (values.mask.ndim - 1)))


def flatten(x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Descriptors [B,T,P,D] as rows [B*T*P,D], and their mask as [B*T*P]; local to every device."""
    return x.reshape(-1, x.shape[-1]), mask.reshape(-1)


def image_table(bank: Bank, values: jax.Array, num_images: int) -> jax.Array:
    """Values [B,T,...] of a pass as a table [num_images, ...] by dataset row; padding falls away.

    >>> bank = Bank((), jnp.array([[0, 2], [1, 3]]), jnp.array([[True, True], [True, False]]))
    >>> image_table(bank, jnp.array([[5., 7.], [6., 8.]]), 3).tolist()
    [5.0, 6.0, 7.0]
    """
    flat = values.reshape(-1, *values.shape[2:])
    return jnp.zeros((num_images, *flat.shape[1:]), flat.dtype).at[bank.index.reshape(-1)].set(flat, mode="drop")


def lookup(table: jax.Array, index: jax.Array) -> jax.Array:
    """Rows [B,...] of a table [N,...] by dataset row [B]; zeros for an image that training does not know.

    The index of such an image is `UNKNOWN`, or any other from N on.

    >>> lookup(jnp.array([5, 6]), jnp.array([1, UNKNOWN])).tolist()
    [6, 0]
    """
    return jnp.take(table, index, 0, mode="fill", fill_value=0)


def by_batch(function, *parts):
    """`function` of pytrees of [B,...], for each of the T batches of [B,T,...]; its results are [B,T,...].

    One batch after the other, so that no table of all keypoints by all clusters is ever needed.
    """
    # Cut out one by one: moved to the front, all of a bank would be copied first.
    cut = lambda t: jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, t, 1, keepdims=False), parts)
    batches = jnp.arange(jax.tree.leaves(parts)[0].shape[1])
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), jax.lax.map(lambda t: function(*cut(t)), batches))


def label_table(bank: Bank, xy: jax.Array, slots: jax.Array, num_images: int) -> Labels:
    """Labels [N,C] of keypoints xy [B,T,P,2] at slots [B,T,C], -1 for none."""
    there = slots >= 0
    points = jnp.where(there[..., None], keypoints.take_slots(xy, slots), 0)
    return Labels(image_table(bank, points, num_images), image_table(bank, there.astype(xy.dtype), num_images))
