"""The bank that a pass over the training data collects, and the tables that are made of it.

Shapes: see the glossary of `method.py`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.ops import keypoints

UNKNOWN = 2**31 - 1  # the dataset row of an image that is not in the training set


class Bank(NamedTuple):
    """A whole pass over the training images, sharded on the first axis.

    Attributes:
      values: pytree of [B,T,...], the results of `Method.observe`. A field called `mask` [B,T,...] is False wherever
        `index` is padding.
      index: [B,T] int32, dataset rows; N for padding.
      real: [B,T] bool, True for images, False for padding.
    """

    values: Any
    index: jax.Array
    real: jax.Array


class Labels(NamedTuple):
    """Pseudo-labels of the training set: a table on the devices with one row for each image.

    Attributes:
      xy: [N,K,2] float32 `(x, y)` in pixels of the frame.
      score: [N,K] float32, confidence; 0 means that the image has no label for the landmark.
    """

    xy: jax.Array
    score: jax.Array


def masked(values: Any, real: jax.Array) -> Any:
    """Set the `mask` of observations [B,...], if they have one, to False where an image [B] is not `real`."""
    if "mask" not in getattr(values, "_fields", ()):
        return values
    return values._replace(mask=values.mask & real.reshape(-1, *[1] * (values.mask.ndim - 1)))


def flatten(x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reshape descriptors [B,T,P,D] to rows [B*T*P,D], and their mask to [B*T*P], without communication."""
    return x.reshape(-1, x.shape[-1]), mask.reshape(-1)


def image_table(bank: Bank, values: jax.Array, num_images: int) -> jax.Array:
    """Arrange the values [B,T,...] of a pass as a table [num_images, ...] by dataset row, without padding.

    >>> bank = Bank((), jnp.array([[0, 2], [1, 3]]), jnp.array([[True, True], [True, False]]))
    >>> image_table(bank, jnp.array([[5., 7.], [6., 8.]]), 3).tolist()
    [5.0, 6.0, 7.0]
    """
    flat = values.reshape(-1, *values.shape[2:])
    return jnp.zeros((num_images, *flat.shape[1:]), flat.dtype).at[bank.index.reshape(-1)].set(flat, mode="drop")


def lookup(table: jax.Array, index: jax.Array) -> jax.Array:
    """Return rows [B,...] of a table [N,...] by dataset row [B]; zeros for images that are not in the training set.

    Images that are not in the training set have the index `UNKNOWN`, or any other number of at least N.

    >>> lookup(jnp.array([5, 6]), jnp.array([1, UNKNOWN])).tolist()
    [6, 0]
    """
    return jnp.take(table, index, 0, mode="fill", fill_value=0)


def by_batch(function, *parts):
    """Apply `function` of pytrees of [B,...] to each of the T batches of `parts` [B,T,...]; return results [B,T,...].

    The batches are processed one after the other, so that no table of all keypoints by all clusters is needed.
    """
    # Slice each batch: moving the axis T to the front would copy the whole bank first.
    cut = lambda t: jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, t, 1, keepdims=False), parts)
    batches = jnp.arange(jax.tree.leaves(parts)[0].shape[1])
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), jax.lax.map(lambda t: function(*cut(t)), batches))


def label_table(bank: Bank, xy: jax.Array, slots: jax.Array, num_images: int) -> Labels:
    """Make labels [N,C] of the keypoints xy [B,T,P,2] at slots [B,T,C]; slot -1 means no label."""
    there = slots >= 0
    points = jnp.where(there[..., None], keypoints.take_slots(xy, slots), 0)
    return Labels(image_table(bank, points, num_images), image_table(bank, there.astype(xy.dtype), num_images))
