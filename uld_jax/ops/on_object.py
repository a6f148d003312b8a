"""Which points of an image lie on its object, where a box or a mask of the object is known."""

import jax
import jax.numpy as jnp


def on_object(xy, frame_size: int, boxes=None, masks=None):
    """Return whether points lie on the object, [B,P] bool; all do where its place is not known.

    Args:
      xy: [B,P,2] in pixels of the frame.
      frame_size: side of the frame in pixels.
      boxes: [B,4], left, top, right and bottom in pixels of the frame, borders included; goes before `masks`.
      masks: [B,s,s] bool, of the whole frame.

    >>> points = jnp.array([[[1.0, 1.0], [6.0, 1.0]]])
    >>> on_object(points, 8, boxes=jnp.array([[0.0, 0.0, 4.0, 4.0]])).tolist()
    [[True, False]]
    >>> on_object(points, 8, masks=jnp.array([[[False, True], [True, True]]])).tolist()
    [[False, True]]
    """
    if boxes is not None:
        low, high = boxes[:, None, :2], boxes[:, None, 2:]
        return jnp.all((xy >= low) & (xy <= high), -1)
    if masks is not None:
        side = masks.shape[1]
        cells = jnp.clip(jnp.floor((xy + 0.5) * side / frame_size), 0, side - 1).astype(jnp.int32)
        return jax.vmap(lambda mask, cell: mask[cell[:, 1], cell[:, 0]])(masks, cells)
    return jnp.ones(xy.shape[:2], bool)
