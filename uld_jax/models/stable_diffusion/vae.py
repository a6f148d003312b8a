"""The encoder of Stable Diffusion's variational autoencoder: images to latents of 1/8 of their resolution.

Versions 1.5 and 2.1 share it. Every convolution that halves the resolution is padded only by one row BELOW and one
column to the RIGHT, unlike the UNet's.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from uld_jax.errors import UserError
from uld_jax.models import layers
from uld_jax.models.stable_diffusion import unet
from uld_jax.models.stable_diffusion.attention import attend
from uld_jax.models.stable_diffusion.unet import LATENT, ResnetBlock

_EPSILON = 1e-6  # epsilon of every group normalisation


class Moments(NamedTuple):
    """The normal distribution of an image's latent.

    Attributes:
      mean: [B,h,w,4] float32 or wider.
      logvar: [B,h,w,4], logarithms of the variances, clipped to -30..20.
    """

    mean: jax.Array
    logvar: jax.Array


class Encoder(nn.Module):
    """Images to `Moments`, not yet multiplied by the scaling factor.

    Attributes:
      widths: channels of the blocks; each but the last halves the resolution.
      depth: residual blocks in a block.
      attention: one of `attention.WAYS`.
      dtype: type of the arithmetic, None for that of the parameters and the images; norms, softmax and the moments have
        float32 at least.
      param_dtype: type of the parameters.
      precision: precision of all products.

    >>> images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    >>> network = Encoder(widths=(32, 32, 64, 64), depth=1)
    >>> variables = jax.eval_shape(network.init, jax.random.key(0), images)
    >>> jax.eval_shape(network.apply, variables, images).mean.shape
    (1, 8, 12, 4)
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    depth: int = 2
    attention: str = "auto"
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = "highest"

    @nn.compact
    def __call__(self, images) -> Moments:
        """Encode `images` [B,H,W,3] in -1..1. Raises UserError for other shapes."""
        multiple = 2 ** (len(self.widths) - 1)
        if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] % multiple or images.shape[2] % multiple:
            raise UserError(
                f"the autoencoder got images of shape {images.shape}; it takes [B,H,W,3] with sides that are multiples "
                f"of {multiple}"
            )
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        x = _Body(self.widths, self.depth, self.attention, name="encoder", **types)(images)
        x = x.astype(jnp.promote_types(x.dtype, self.param_dtype))
        options = dict(param_dtype=self.param_dtype, precision=self.precision)
        mean, logvar = jnp.split(layers.conv(x, 2 * LATENT, 1, bias=True, name="quant_conv", **options), 2, -1)
        return Moments(mean, jnp.clip(logvar, -30, 20))


class _Body(nn.Module):
    widths: tuple[int, ...]
    depth: int
    attention: str
    dtype: Any
    param_dtype: Any
    precision: Any

    @nn.compact
    def __call__(self, x):
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        resnet = lambda y, width, name: ResnetBlock(width, _EPSILON, name=name, **options)(y).sum
        conv = lambda y, width, name, **more: layers.conv(y, width, 3, bias=True, name=name, **options, **more)
        x = conv(x, self.widths[0], "conv_in")
        for level, width in enumerate(self.widths):
            for i in range(self.depth):
                x = resnet(x, width, f"down_blocks_{level}_resnets_{i}")
            if level < len(self.widths) - 1:
                below_and_right = dict(stride=2, padding=((0, 1), (0, 1)))
                x = conv(x, width, f"down_blocks_{level}_downsamplers_0_conv", **below_and_right)
        x = resnet(x, self.widths[-1], "mid_block_resnets_0")
        x = _Attention(self.attention, name="mid_block_attentions_0", **options)(x)
        x = resnet(x, self.widths[-1], "mid_block_resnets_1")
        x = layers.normalize(
            x, "group", False, epsilon=_EPSILON, name="conv_norm_out", dtype=self.dtype, param_dtype=self.param_dtype
        )
        return conv(nn.silu(x), 2 * LATENT, "conv_out")


class _Attention(nn.Module):
    """Attention of one head over all cells; the input is added to the result."""

    attention: str
    dtype: Any
    param_dtype: Any
    precision: Any

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = lambda y, name: nn.Dense(width, name=name, precision=self.precision, **types)(y)
        y = layers.normalize(x, "group", False, epsilon=_EPSILON, name="group_norm", **types)
        y = y.reshape(len(x), -1, 1, width)
        y = attend(dense(y, "to_q"), dense(y, "to_k"), dense(y, "to_v"), self.attention, self.precision)
        return x + dense(y, "to_out_0").reshape(x.shape)


def prepare(params, dtype):
    """Round the parameters to the type of the arithmetic as far as the network would each time it is applied."""
    return params | {"encoder": unet.rounded(params["encoder"], dtype)}


def of(params, **options) -> Encoder:
    """The network of these parameters; `options` are further attributes."""
    body, widths, depth = params["encoder"], [], 0
    while f"down_blocks_{len(widths)}_resnets_0" in body:
        widths.append(body[f"down_blocks_{len(widths)}_resnets_0"]["conv1"]["kernel"].shape[-1])
    while f"down_blocks_0_resnets_{depth}" in body:
        depth += 1
    return Encoder(tuple(widths), depth, **options)
