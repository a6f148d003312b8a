"""The heads and the decoder of C3, on the maps of a ResNet (`models/resnet.py`).

Xu et al., "Unsupervised Landmark Learning from Unpaired Data", 2020, section 4.1 and its appendix. Normalisation in the
heads and the decoder is ours: kernels of deviation 0.01, the paper's, let signals die without it, and the paper does
not mention any. Initialise with `layers.initialize(..., law=c3_net.INITIAL)`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uld_jax.errors import UserError
from uld_jax.models import layers

STD = 0.01  # of kernels (appendix)
INITIAL = layers.Law(jax.random.normal, lambda name, fan: STD if name == "kernel" else 0)


def _unit(x, features: int, number: int, train: bool, options):
    """A 3 x 3 convolution, batch normalisation and ReLU."""
    kinds = {name: options[name] for name in ("dtype", "param_dtype")}
    x = layers.conv(x, features, 3, name=f"conv_{number}", kernel_init=nn.initializers.normal(STD), **options)
    return nn.relu(layers.normalize(x, "batch", train, name=f"bn_{number}", **kinds))


def _two(x, features: int, first: int, train: bool, options):
    """Two of these, numbered from `first`."""
    for number in (first, first + 1):
        x = _unit(x, features, number, train, options)
    return x


class AppearanceHead(nn.Module):
    """E_a: a backbone's map to the appearance, by two 3 x 3 convolutions.

    Attributes:
      width: channels of both.
      dtype: type of the computation, None for that of the parameters and the map.
      param_dtype: type of the parameters.
      precision: precision of the convolutions.
    """

    width: int = 256
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, features, train: bool):
        """Map [B,h,w,C] to [B,h,w,width]."""
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        return _two(features, self.width, 1, train, options)


class PoseHead(nn.Module):
    """E_p: a backbone's map to K landmark logits, by two 3 x 3 convolutions and one of 1 x 1.

    Attributes:
      landmarks: K.
      width, dtype, param_dtype, precision: as in `AppearanceHead`; the last layer is never below float32.
    """

    landmarks: int
    width: int = 256
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, features, train: bool):
        """Map [B,h,w,C] to logits [B,h,w,K], float32 or wider."""
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        x = _two(features, self.width, 1, train, options)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # Without a bias: a softmax over cells does not see it, so that Adam would learn it from rounding errors.
        last = dict(param_dtype=self.param_dtype, precision=self.precision, kernel_init=nn.initializers.normal(STD))
        return layers.conv(x, self.landmarks, 1, name="logits", **last)


class Decoder(nn.Module):
    """D: appearance and pose to an image (appendix).

    Blocks of two 3 x 3 convolutions; each block but the first takes the map at twice the size, bilinearly, and has half
    the channels of the one before, but not fewer than `least`; a last convolution gives red, green and blue.

    Attributes:
      side: of the image in pixels, that of the maps times a power of two.
      width: channels of the first block.
      least: fewest channels of a block.
      dtype, param_dtype, precision: as in `AppearanceHead`; the last layer is never below float32.

    >>> maps = [jax.ShapeDtypeStruct((2, 16, 16, c), jnp.float32) for c in (256, 10)]
    >>> decoder = Decoder(side=128)
    >>> drawn = jax.eval_shape(lambda key, a, p: decoder.init(key, a, p, train=False), jax.random.key(0), *maps)
    >>> [drawn["params"][f"conv_{i}"]["kernel"].shape[-1] for i in range(1, 9)]
    [256, 256, 128, 128, 64, 64, 32, 32]
    """

    side: int
    width: int = 256
    least: int = 32
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, appearance, pose, train: bool):
        """Maps [B,h,h,A] and [B,h,h,K] to an image [B,side,side,3], float32 or wider, not clipped.

        Raises UserError if `side` is not h times a power of two.
        """
        start = appearance.shape[1]
        doublings = max(self.side // start, 1).bit_length() - 1
        if start << doublings != self.side:
            raise UserError(f"C3 decodes {self.side} pixels from {start} cells; use a power of two times these")
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        x = jnp.concatenate([appearance, pose.astype(appearance.dtype)], -1)
        for block in range(doublings + 1):
            if block:
                x = jax.image.resize(x, (len(x), 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), "linear")
            width = max(self.width >> block, min(self.least, self.width))
            x = _two(x, width, 2 * block + 1, train, options)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        last = dict(param_dtype=self.param_dtype, precision=self.precision, bias_init=nn.initializers.zeros)
        return layers.conv(x, 3, 3, bias=True, name="image", kernel_init=nn.initializers.normal(STD), **last)
