"""Layers that the convolutional networks share, with PyTorch's default initialisation."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

NORMS = ("batch", "group")

# Kernels U(+-1 / sqrt(fan_in)): PyTorch's default for convolutions and linear layers.
torch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in: int):
    """PyTorch's default for biases, U(+-1 / sqrt(fan_in)) with the fan-in of the layer's kernel."""
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(x, features: int, kernel: int, *, stride: int = 1, bias: bool = False, **options):
    """Square convolution of [B,h,w,C], padded by kernel // 2 on every side; to be called inside a compact module.

    Linen's "SAME" differs at stride 2: it pads an even image on the right and below alone. `options` are `nn.Conv`'s.
    """
    margin = kernel // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((margin, margin), (margin, margin)),
        use_bias=bias,
        kernel_init=torch_kernel,
        bias_init=torch_bias(kernel * kernel * x.shape[-1]),
        **options,
    )(x)


def normalize(x, kind: str, train: bool, **options):
    """Batch or group normalisation of [B,h,w,C] as PyTorch has it, eps 1e-5; to be called inside a compact module.

    `batch`: running statistics keep 0.9 of the old value (PyTorch's momentum 0.1); the running variance is the
    biased one, where PyTorch stores n / (n - 1) of it. Under jit the batch is the whole batch of all devices.
    `group`: 32 groups, or as many as divide both 32 and C. `options` are Linen's: name, dtype, param_dtype.
    """
    if kind == "batch":
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, **options)(x)
    groups = math.gcd(32, x.shape[-1])
    return nn.GroupNorm(groups, epsilon=1e-5, use_fast_variance=False, **options)(x)


def average_pool(x):
    """Means of 2 x 2 cells, [B,h,w,C] to [B,h/2,w/2,C]; h and w are even."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def upsample(x):
    """Every cell four times, [B,h,w,C] to [B,2h,2w,C]."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def initialize(module: nn.Module, key, *args, **kwargs):
    """Variables of a network made of the layers above: the law of `module.init`, but from ONE random draw.

    Linen draws every parameter with a key of its own, and each such draw is a program: a jitted `init` of FAN compiles
    for a minute on CPU, this one for a second. `args` and `kwargs` are the network's, as arrays or shapes.

    Returns:
      {collection: nested dict}. Kernels and their biases are U(+-1 / sqrt(fan_in)); normalisation starts with
      scale 1, bias 0, mean 0, variance 1. Raises ValueError for a variable of any other name.
    """
    shapes = jax.eval_shape(lambda k, *a: module.init(k, *a, **kwargs), key, *args)
    flat = traverse_util.flatten_dict(shapes)
    kernels = {path[:-1]: leaf.shape for path, leaf in flat.items() if path[-1] == "kernel"}
    drawn = {path: leaf for path, leaf in flat.items() if path[:-1] in kernels}
    total = sum(math.prod(leaf.shape) for leaf in drawn.values())
    widest = jnp.result_type(*(leaf.dtype for leaf in drawn.values()))
    pool = jax.random.uniform(key, (total,), widest, -1, 1)
    constants = dict(scale=1, bias=0, mean=0, var=1)
    variables, start = {}, 0
    for path, leaf in flat.items():
        if path in drawn:
            bound = 1 / math.sqrt(math.prod(kernels[path[:-1]][:-1]))
            size = math.prod(leaf.shape)
            values = bound * pool[start : start + size].reshape(leaf.shape)
            start += size
        elif path[-1] in constants:
            values = jnp.full(leaf.shape, constants[path[-1]])
        else:
            raise ValueError(f"no rule for the variable {'/'.join(path)}; use module.init")
        variables[path] = values.astype(leaf.dtype)
    return traverse_util.unflatten_dict(variables)
