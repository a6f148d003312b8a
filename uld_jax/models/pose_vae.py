"""Variational autoencoder of one-channel heatmaps: a map of keypoints to a pose code and back.

Tourani et al., CVPR 2024, section 3.3 and supplement section 7, give only the size of the code; the layers are ours:
strided convolutions down to 2 x 2 cells, and nearest-neighbour upsampling on the way back.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uld_jax.errors import UserError
from uld_jax.models import layers, norms

LATENT = 64
LOG_VARIANCE = (-10.0, 10.0)


def _widths(side: int, width: int) -> list[int]:
    """Channels after each halving of a map of this side, down to 2 cells.

    >>> _widths(64, 32)
    [32, 64, 128, 256, 256]
    """
    levels = side.bit_length() - 2
    if side < 4 or side != 4 << (levels - 1):
        raise UserError(f"the pose network got a map of side {side}; use a power of two from 4 on")
    return [width * min(2**i, 8) for i in range(levels)]


def _norm(x, **options):
    return norms.GroupNorm(math.gcd(8, x.shape[-1]), **options)(x)


class Encoder(nn.Module):
    """Maps [B,S,S] to mean and log-variance of the code, [B,latent] each.

    The layers are 4 x 4 convolutions of stride 2, group normalisation (8) and SiLU down to 2 x 2 cells, then one dense
    layer. S is a power of two. With S = 64, width 32 and a code of 64 there are 1.87 million parameters.

    Attributes:
      latent: size of the code.
      width: channels after the first convolution; they double up to 8 times as many.
      dtype, param_dtype: types of the arithmetic and of the parameters; the results are never below float32.
    """

    latent: int = LATENT
    width: int = 32
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps):
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = maps[..., None]
        for width in _widths(maps.shape[1], self.width):
            x = layers.conv(x, width, 4, stride=2, bias=True, padding=((1, 1), (1, 1)), **options)
            x = nn.silu(_norm(x, **options))
        x = nn.Dense(2 * self.latent, **options)(x.reshape(len(x), -1))
        mean, log_variance = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, -1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE)


class Decoder(nn.Module):
    """Codes [B,latent] to logits of maps [B,S,S].

    The layers are a dense one to 2 x 2 cells; repetition of cells, 3 x 3 convolution, normalisation and SiLU up to S;
    and a 3 x 3 convolution to one map.

    Attributes:
      side: S, a power of two.
      width, dtype, param_dtype: as in `Encoder`.
    """

    side: int
    width: int = 32
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, codes):
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        widths = _widths(self.side, self.width)
        x = nn.Dense(4 * widths[-1], **options)(codes).reshape(len(codes), 2, 2, widths[-1])
        for width in (*widths[-2::-1], widths[0]):
            x = layers.conv(layers.upsample(x), width, 3, bias=True, **options)
            x = nn.silu(_norm(x, **options))
        x = layers.conv(x, 1, 3, bias=True, **options)[..., 0]
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def kl_divergence(mean, log_variance):
    """KL of N(mean, exp(log_variance)) from N(0, 1) by unit, [...,latent] nats.

      KL = (mean^2 + exp(log_variance) - 1 - log_variance) / 2

    >>> kl_divergence(jnp.array([2.0]), jnp.array([0.0])).tolist()
    [2.0]
    """
    return 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance)


def reconstruction(logits, target, deviation: float = 0.1):
    """Negative log-likelihood of maps [B,S,S], up to a constant: a sum over cells, [B].

    sum_p (sigmoid(logit_p) - target_p)^2 / (2 deviation^2)
    """
    return jnp.sum((jax.nn.sigmoid(logits) - target) ** 2, (-2, -1)) / (2 * deviation**2)


def active_units(codes, mask, least: float = 0.01):
    """The number of units of codes [N,latent] whose variance over the rows of `mask` [N] exceeds `least`.

    A posterior that has collapsed onto the prior has no active unit (Burda et al. 2016, section 5.2).

    >>> active_units(jnp.array([[0.0, 1.0], [0.0, -1.0], [9.0, 9.0]]), jnp.array([True, True, False])).item()
    1
    """
    weight = mask[:, None].astype(codes.dtype)
    total = jnp.maximum(jnp.sum(weight), 1)
    mean = jnp.sum(jnp.where(mask[:, None], codes, 0), 0) / total
    variance = jnp.sum(jnp.where(mask[:, None], (codes - mean) ** 2, 0), 0) / total
    return jnp.sum(variance > least)
