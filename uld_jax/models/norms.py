"""Batch and group normalisation whose gradient is written out, so that each device reads its maps as seldom as it can.

    y = scale (x - mean) / sqrt(var + epsilon) + bias

With g = scale dy and its means over the numbers that share a mean, the gradient is (Ioffe and Szegedy 2015)

    dx = (g - mean(g) - (x - mean) mean(g (x - mean)) / (var + epsilon)) / sqrt(var + epsilon)

which needs two sums over dy, and of what went forward x alone. On CPU the sums are products with a vector of ones: XLA
adds up columns one number at a time, four times slower. Elsewhere sums fuse with what is summed. Variables have the
names of Linen's layers.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uld_jax.errors import UserError


class BatchNorm(nn.Module):
    """Batch normalisation of [B,...,C]; under jit the batch is the whole batch of all devices.

    With `parts` > 1 the batch is normalised in parts that do not see one another. This stands for the per-device batch
    normalisation of MoCo (He et al. 2020, section 3.3), whose keys must not share statistics with their queries: on
    any number of devices the parts are the same.

    Attributes:
      parts: G, number of parts: B / G successive rows each, as `DataParallel` splits a batch.
      use_running_average: True normalises by the running statistics, and leaves them as they are.
      momentum: share of the old running statistics that stays; the new share is the mean over the parts of their
        means and of their biased variances.
      epsilon: number added to the variances.
      dtype: type of the result, None for that of the input and the parameters; statistics have float32 at least.
      param_dtype: type of the parameters.

    >>> x = jnp.array([1.0, 3.0, 100.0, 300.0]).reshape(4, 1)
    >>> split_norm = BatchNorm(parts=2)
    >>> variables = split_norm.init(jax.random.key(0), x)
    >>> split_norm.apply(variables, x, mutable="batch_stats")[0].round(3).ravel().tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """

    parts: int = 1
    use_running_average: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """Normalise x [B,...,C], and update the running statistics. Raises UserError where the parts do not fit."""
        shape = x.shape[-1:]
        scale, bias = _affine(self, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        dtype = jnp.result_type(x, scale) if self.dtype is None else self.dtype
        if self.use_running_average:
            wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            factor = jax.lax.rsqrt(running_var.value + self.epsilon) * scale
            return ((wide - running_mean.value) * factor + bias).astype(dtype)
        if len(x) % self.parts:
            raise UserError(
                f"{len(x)} images do not divide into {self.parts} groups of batch normalisation; use another batch"
            )
        y, mean, var = normalised(x.reshape(self.parts, -1, *shape), scale, bias, shape[0], self.epsilon, False)
        if not self.is_initializing():
            for running, now in ((running_mean, mean), (running_var, var)):
                running.value = self.momentum * running.value + (1 - self.momentum) * now.mean(0)
        return y.reshape(x.shape).astype(dtype)


class GroupNorm(nn.Module):
    """Group normalisation of [B,...,C]: each image by itself, C / groups successive channels together.

    Maps in half precision are read once for both statistics, which then have float32 sums.

    Attributes:
      groups: number of groups, a divisor of C.
      epsilon, dtype, param_dtype: as in `BatchNorm`.

    >>> norm = GroupNorm(groups=1)
    >>> norm.init_with_output(jax.random.key(0), jnp.array([[1.0, 3.0], [10.0, 30.0]]))[0].round(3).tolist()
    [[-1.0, 1.0], [-1.0, 1.0]]
    """

    groups: int
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """Normalise x [B,...,C]."""
        scale, bias = _affine(self, x.shape[-1:])
        dtype = jnp.result_type(x, scale) if self.dtype is None else self.dtype
        rows = x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])
        # In half precision the input is rounded more coarsely than the difference of float32 sums is.
        exact = jnp.finfo(x.dtype).bits > 16
        y, _, _ = normalised(rows, scale, bias, self.groups, self.epsilon, exact)
        return y.reshape(x.shape).astype(dtype)


def _affine(module, shape):
    """Scale and bias of a normalisation layer, inside its compact method."""
    scale = module.param("scale", nn.initializers.ones, shape, module.param_dtype)
    return scale, module.param("bias", nn.initializers.zeros, shape, module.param_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalised(x, scale, bias, groups: int, epsilon: float, exact: bool):
    """Normalise each part and each group of channels by itself, with the gradient of the module's docstring.

    Args:
      x: [A,P,C], A parts.
      scale, bias: [C].
      groups: G, a divisor of C.
      epsilon: number added to the variances.
      exact: True takes the variance about the mean, in a second pass; False as mean(x^2) - mean^2.

    Returns:
      [A,P,C] float32 or wider; means and biased variances [A,G], into which no gradient flows.
    """
    return _forward(x, scale, bias, groups, epsilon, exact)[0]


def _forward(x, scale, bias, groups, epsilon, exact):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = _means(_sums(wide), x, groups)
    if exact:
        var = _means(_sums(jnp.square(wide - _to_channels(mean, x))), x, groups)
    else:
        var = jnp.maximum(_means(_sums(jnp.square(wide)), x, groups) - jnp.square(mean), 0)  # rounding may leave less
    factor = jax.lax.rsqrt(var + epsilon)
    y = (wide - _to_channels(mean, x)) * (_to_channels(factor, x) * scale) + bias
    return (y, mean, var), (x, scale, mean, factor)


def _backward(groups, epsilon, exact, saved, slopes):
    (x, scale, mean, factor), dy = saved, slopes[0]
    away = x.astype(jnp.promote_types(x.dtype, jnp.float32)) - _to_channels(mean, x)
    total, along = _sums(dy), _sums(dy * away)  # [A,C]
    each = _to_channels(factor, x)
    straight = _to_channels(factor * _means(total * scale, x, groups), x)
    turned = _to_channels(factor**3 * _means(along * scale, x, groups), x)
    dx = each * scale * dy - straight - turned * away
    d_scale = jnp.sum(along * each[:, 0], 0)
    return dx.astype(x.dtype), d_scale.astype(scale.dtype), jnp.sum(total, 0).astype(scale.dtype)


normalised.defvjp(_forward, _backward)


def _sums(x):
    """Sums over the middle axis of x [A,P,C], [A,C]."""

    def by_product(x):
        return jnp.matmul(jnp.ones((len(x), 1, x.shape[1]), x.dtype), x, precision="highest")[:, 0]

    return jax.lax.platform_dependent(x, cpu=by_product, default=lambda x: jnp.sum(x, 1))


def _means(sums, x, groups):
    """Means [A,G] over the groups of x [A,P,C], from the sums [A,C] of its channels."""
    return jnp.sum(sums.reshape(len(x), groups, -1), -1) / (x.shape[1] * (x.shape[2] // groups))


def _to_channels(values, x):
    """Repeat a value of each group, [A,G], for its channels of x, [A,1,C]."""
    return jnp.repeat(values, x.shape[-1] // values.shape[-1], -1)[:, None]
