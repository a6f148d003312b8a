"""What a network is shown of a frame: a warped cut-out, in 0..1, perhaps with its own contrast taken out."""

import jax
import jax.numpy as jnp

from uld_jax.ops import warp


def still(count: int, zoom: float, dtype=jnp.float32) -> warp.Warp:
    """The view of `count` frames as they are: the central fraction `zoom` of each."""
    one = warp.identity(zoom, dtype)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), one)


def look(warps: warp.Warp, images, size):
    """Views of frames [B,H,W,3] uint8 under one warp each: [B,h,w,3] in 0..1, `size` = (h, w)."""
    return jax.vmap(lambda w, image: warp.warp_image(w, image, size))(warps, images) / 255


def standardise(views):
    """Views [B,h,w,3] in 0..1 less their own mean, over their own contrast; a flat view stays flat."""
    mean, spread = jnp.mean(views, (1, 2, 3), keepdims=True), jnp.std(views, (1, 2, 3), keepdims=True)
    return (views - mean) / (spread + 0.05)
