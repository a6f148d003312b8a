"""Group normalisation (Wu and He, ECCV 2018) that reads its input once for the statistics, in the input's own layout.

Linen's `GroupNorm` views [B,H,W,C] as [B,H,W,G,C/G], for 32 groups of few channels: a TPU pads the C/G channels to 128
lanes, so that every pass over the map moves many times its bytes. Here sums are taken by channel, and only the [B,C]
sums are put together by groups:

    d = x - k,   m = mean_hw d,   v = mean_hw d^2 - m^2                         by channel; k is any number near x
    mean = k + m,   group mean M = mean_c mean,   group variance V = mean_c (v + (mean - M)^2)
    y = (x - M) scale / sqrt(V + epsilon) + bias

This is exact. With k = 0 the subtraction in v would lose digits where a mean is large beside its deviation; k is the
channel's value in the middle cell, which is about one deviation away from the mean.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class GroupNorm(nn.Module):
    """Normalise [B,...,C] over all cells and the channels of a group.

    The variables are those of `nn.GroupNorm`, `scale` [C] and `bias` [C].

    Attributes:
      groups: G, number of groups, a divisor of C.
      epsilon: number added to the variances.
      dtype: type of the result, None for that of the input and the parameters; sums have float32 at least.
      param_dtype: type of the parameters.

    >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])[None]  # an image of three cells
    >>> norm = GroupNorm(groups=1, epsilon=0)
    >>> y = norm.apply(norm.init(jax.random.key(0), x), x)
    >>> round(float(y.mean()), 5), round(float(y.var()), 5)
    (0.0, 1.0)
    """

    groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """Normalise x [B,...,C] to the same shape."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        dtype = jnp.result_type(x, scale) if self.dtype is None else self.dtype
        mean, variance = _moments(x, self.groups)
        wide = x.astype(mean.dtype)
        y = (wide - mean) * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias
        return y.astype(dtype)


def _moments(x, groups: int):
    """Mean and variance of a channel's group in [B,...,C], for every channel: [B,1,...,C] each, float32 or wider."""
    batch, *cells, channels = x.shape
    axes, ones = tuple(range(1, x.ndim - 1)), (1,) * len(cells)
    # The statistics do not depend on k, so nothing flows back through it.
    near = jax.lax.stop_gradient(x[(slice(None), *(slice(n // 2, n // 2 + 1) for n in cells))])
    wide = jnp.promote_types(x.dtype, jnp.float32)
    near = near.astype(wide)
    shifted = x.astype(wide) - near
    count = math.prod(cells)
    first = jnp.sum(shifted, axes, keepdims=True) / count
    second = jnp.sum(jnp.square(shifted), axes, keepdims=True) / count
    mean, variance = near + first, jnp.maximum(second - jnp.square(first), 0)  # rounding may leave less than 0
    grouped = lambda y: y.reshape(batch, *ones, groups, channels // groups)
    each = lambda y: jnp.repeat(y[..., 0], channels // groups, -1)
    mean, variance = grouped(mean), grouped(variance)
    middle = mean.mean(-1, keepdims=True)
    variance = jnp.mean(variance + jnp.square(mean - middle), -1, keepdims=True)
    return each(middle), each(variance)
