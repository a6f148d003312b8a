"""SuperPoint: one network for keypoints and their descriptors (DeTone, Malisiewicz and Rabinovich 2018).

Mallis et al. start their self-training from it (section 4). It has an encoder to 1/8 of the resolution and two heads:

  detector    65 logits a cell of 8 x 8 pixels: one a pixel, in rows, and a last one, the dustbin, for no keypoint
  descriptor  256 numbers a cell, of length 1

Layers are named as in the published checkpoint: `conv1a` to `conv4b`, `convPa`, `convPb`, `convDa`, `convDb`.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from uld_jax.errors import UserError
from uld_jax.models import layers
from uld_jax.ops.keypoints import l2_normalize

CELL = 8  # side of a cell in pixels
DESCRIPTOR_SIZE = 256


class SuperPointOutput(NamedTuple):
    """Output of a `SuperPoint`; h = H // 8 and w = W // 8.

    Attributes:
      logits: [B,h,w,65] float32 or wider; number 8 r + c is the pixel in row r and column c of the cell, 64 dustbin.
      descriptors: [B,h,w,D] float32 or wider, of length 1.
    """

    logits: jax.Array
    descriptors: jax.Array


class SuperPoint(nn.Module):
    """Grey images to keypoint logits and descriptors.

    Attributes:
      width: channels of the first block; 64 as published, less is a narrow copy.
      size: D, size of a descriptor.
      dtype: type of the computation, None for the parameters' and the image's; the last layers are never below float32.
      param_dtype: type of the parameters.
      precision: precision of the convolutions; accelerators round float32 to 10 bits or fewer by default.

    >>> images = jax.ShapeDtypeStruct((1, 218, 178, 1), jnp.float32)
    >>> network = SuperPoint()
    >>> variables = jax.eval_shape(network.init, jax.random.key(0), images)
    >>> found = jax.eval_shape(network.apply, variables, images)
    >>> found.logits.shape, found.descriptors.shape
    ((1, 27, 22, 65), (1, 27, 22, 256))
    """

    width: int = 64
    size: int = DESCRIPTOR_SIZE
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = "highest"

    @nn.compact
    def __call__(self, images) -> SuperPointOutput:
        """Apply the network to `images` [B,H,W,1] in 0..1, sides of 8 or more. Raises UserError for other shapes."""
        _check(images.shape)
        options = dict(bias=True, param_dtype=self.param_dtype, precision=self.precision)

        def unit(name, features, x):
            return nn.relu(layers.conv(x, features, 3, name=name, dtype=self.dtype, **options))

        # Encoder: a pool leaves out the last row of an odd height, so a cell is always 8 x 8 pixels.
        x = images
        for block, features in enumerate((1, 1, 2, 2), 1):
            if block > 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = unit(f"conv{block}a", features * self.width, x)
            x = unit(f"conv{block}b", features * self.width, x)
        # Heads.
        where, what = unit("convPa", 4 * self.width, x), unit("convDa", 4 * self.width, x)
        where, what = (y.astype(jnp.promote_types(y.dtype, self.param_dtype)) for y in (where, what))
        logits = layers.conv(where, CELL * CELL + 1, 1, name="convPb", **options)
        descriptors = layers.conv(what, self.size, 1, name="convDb", **options)
        return SuperPointOutput(logits, l2_normalize(descriptors))


def scores(logits):
    """Confidence of a keypoint at each pixel: [B,h,w,65] logits to [B,8h,8w] in 0..1.

    The confidences are a softmax over the 65 logits; those of a cell and its dustbin sum to 1.

    >>> scores(jnp.zeros((1, 3, 2, 65))).shape
    (1, 24, 16)
    """
    batch, height, width, _ = logits.shape
    score = jax.nn.softmax(logits, -1)[..., :-1].reshape(batch, height, width, CELL, CELL)
    return score.transpose(0, 1, 3, 2, 4).reshape(batch, height * CELL, width * CELL)


def _check(shape):
    if len(shape) != 4 or shape[-1] != 1:
        raise UserError(f"SuperPoint got images of shape {shape}; it takes grey ones, [B,H,W,1]")
    if min(shape[1:3]) < CELL:
        raise UserError(f"SuperPoint got images of {shape[1]} x {shape[2]} pixels; both sides must be {CELL} or more")
