"""Layers that the convolutional networks share, with PyTorch's default initialisation."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from uld_jax.models import norms

NORMS = ("batch", "group")


def wide(dtype: str):
    """The type of parameters, statistics, geometry and losses if networks compute in `dtype`: float32 or float64.

    >>> wide("bfloat16").__name__, wide("float64").__name__
    ('float32', 'float64')
    """
    return jnp.float64 if dtype == "float64" else jnp.float32


def precision(dtype: str) -> dict:
    """Options of a network that computes in `dtype` (float32, bfloat16 or float64) with parameters of type `wide`.

    >>> precision("bfloat16")["dtype"].name
    'bfloat16'
    """
    return dict(dtype=jnp.dtype(dtype), param_dtype=wide(dtype))


# Kernels U(+-1 / sqrt(fan_in)): PyTorch's default for convolutions and linear layers.
torch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in: int):
    """PyTorch's default for biases, U(+-1 / sqrt(fan_in)) with the fan-in of the layer's kernel."""
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(x, features: int, kernel: int, *, stride: int = 1, dilation: int = 1, bias: bool = False, **options):
    """Square convolution of [B,h,w,C], padded by dilation (kernel - 1) // 2 on every side; inside a compact module.

    `options` are those of `nn.Conv` and take precedence: padding="SAME" pads as TensorFlow does, which differs for an
    odd kernel at stride 2 (an even image gets one row less above than below).
    """
    margin = dilation * ((kernel - 1) // 2)
    defaults = dict(
        padding=((margin, margin), (margin, margin)),
        kernel_dilation=dilation,
        kernel_init=torch_kernel,
        bias_init=torch_bias(kernel * kernel * x.shape[-1]),
    )
    return nn.Conv(features, (kernel, kernel), strides=(stride, stride), use_bias=bias, **defaults | options)(x)


def normalize(x, kind: str, train: bool, *, groups: int = 1, **options):
    """Batch or group normalisation of [B,...,C] as PyTorch has it, eps 1e-5; to be called inside a compact module.

    `batch`: running statistics keep 0.9 of the old value (PyTorch's momentum 0.1); the running variance is the
    biased one, where PyTorch stores n / (n - 1) of it. Under jit the batch is the whole batch of all devices. With
    `groups` the batch is normalised in that many parts, see `norms.BatchNorm`.
    `group`: 32 groups of channels, or as many as divide both 32 and C. `options` are those of `norms`: name, dtype,
    param_dtype; momentum and epsilon given there replace PyTorch's.
    """
    if kind == "batch":
        return norms.BatchNorm(groups, use_running_average=not train, **options)(x)
    return norms.GroupNorm(math.gcd(32, x.shape[-1]), **options)(x)


def average_pool(x):
    """Means of 2 x 2 cells, [B,h,w,C] to [B,h/2,w/2,C]; h and w are even."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def upsample(x):
    """Repeat every cell four times, [B,h,w,C] to [B,2h,2w,C]."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


class Law(NamedTuple):
    """A law by which `initialize` fills kernels and their biases: scale(name, fan) * draw(key, shape, dtype).

    Attributes:
      draw: function that gives independent numbers of one distribution for all layers.
      scale: function that gives a layer's factor for `name` "kernel" or "bias" and the kernel's fan; 0 gives zeros.
      fan: the fan that `scale` takes: `in`, the kernel's inputs to one output, or `out`, its outputs of one input,
        both over all of its cells.
    """

    draw: Callable
    scale: Callable[[str, int], float]
    fan: Literal["in", "out"] = "in"


def _symmetric(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -1, 1)


TORCH = Law(_symmetric, lambda name, fan_in: 1 / math.sqrt(fan_in))


def truncated_normal(std: float) -> Law:
    """The law of normal kernels of standard deviation `std`, redrawn beyond 2 std (so they spread 0.88 std); biases 0.

    It is TensorFlow's `truncated_normal_initializer`.
    """

    def draw(key, shape, dtype):
        return jax.random.truncated_normal(key, -2, 2, shape, dtype)

    return Law(draw, lambda name, fan_in: std if name == "kernel" else 0)


# Normal kernels of variance 2 / fan_out, biases 0: He et al. 2015, eq. 14, for layers that a ReLU follows.
HE = Law(jax.random.normal, lambda name, fan_out: math.sqrt(2 / fan_out) if name == "kernel" else 0, "out")
he_kernel = nn.initializers.variance_scaling(2, "fan_out", "normal")


def initialize(module: nn.Module, key, *args, law: Law = TORCH, **kwargs):
    """Draw the variables of a network of the layers above by the law of `module.init`, but in ONE random draw.

    Linen draws every parameter with a key of its own, and each such draw is a program: a jitted `init` of FAN compiles
    for a minute on CPU, this one for a second. `args` and `kwargs` are the network's inputs, as arrays or shapes.

    Returns:
      {collection: nested dict}. Kernels and their biases follow `law`, by default U(+-1 / sqrt(fan_in)); normalisation
      starts with scale 1, bias 0, mean 0, variance 1. Raises ValueError for a variable of any other name.
    """
    shapes = jax.eval_shape(lambda k, *a: module.init(k, *a, **kwargs), key, *args)
    flat = traverse_util.flatten_dict(shapes)
    kernels = {path[:-1]: leaf.shape for path, leaf in flat.items() if path[-1] == "kernel"}
    # The last axis of a kernel is no part of its fan-in, even in a transposed convolution, where it is the input's.
    fans = {path: math.prod(shape) // (shape[-1] if law.fan == "in" else shape[-2]) for path, shape in kernels.items()}
    factors = {path: law.scale(path[-1], fans[path[:-1]]) for path in flat if path[:-1] in fans}
    drawn = {path: flat[path] for path, factor in factors.items() if factor}
    total = sum(math.prod(leaf.shape) for leaf in drawn.values())
    widest = jnp.result_type(*(leaf.dtype for leaf in drawn.values()))
    pool = law.draw(key, (total,), widest)
    constants = dict(scale=1, bias=0, mean=0, var=1)
    variables, start = {}, 0
    for path, leaf in flat.items():
        if path in drawn:
            size = math.prod(leaf.shape)
            values = factors[path] * pool[start : start + size].reshape(leaf.shape)
            start += size
        elif path[-1] in constants:
            values = jnp.full(leaf.shape, constants[path[-1]])
        else:
            raise ValueError(f"no rule for the variable {'/'.join(path)}; use module.init")
        variables[path] = values.astype(leaf.dtype)
    return traverse_util.unflatten_dict(variables)


def split(variables):
    """Split a network's variables {collection: ...} into the learned `params` and all other collections.

    >>> split({"params": {"a": 1}, "batch_stats": {"b": 2}})
    ({'a': 1}, {'batch_stats': {'b': 2}})
    """
    return variables["params"], {name: tree for name, tree in variables.items() if name != "params"}
