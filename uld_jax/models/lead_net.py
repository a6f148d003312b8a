"""Heads of LEAD (Karmali et al., WACV 2022) that stand on the maps of a ResNet.

  `Projector`       stage 1: the projector and the predictor of BYOL (Grill et al. 2020), on the pooled last map;
                    stage 2: the head that is dropped after training, on every cell of the dense descriptors
  `FeaturePyramid`  stage 2: dense descriptors at a quarter of the resolution, from all four layers

Kernels and biases have PyTorch's default initialisation, U(+-1 / sqrt(fan_in)), and normalisation starts with scale 1;
`layers.initialize` draws both. LEAD's paper gives neither the pyramid's blocks nor an initialisation: the blocks are
those of the panoptic feature pyramid (Kirillov et al. 2019, section 3), with batch in place of group normalisation.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uld_jax.models import layers

LEVELS = ("layer1", "layer2", "layer3", "layer4")  # maps of the ResNet, of 4, 8, 16 and 32 pixels a cell


class Projector(nn.Module):
    """Two linear layers on the last axis, with normalisation and a ReLU in between.

      y = W2 relu(bn(W1 x + b1))

    The defaults are BYOL's projector and predictor. With hidden=256 it is the head of LEAD's stage 2, whose linear
    layers are 1x1 convolutions.

    Attributes:
      hidden: channels of the first layer.
      size: channels of the second, which has no bias.
      groups: parts of the batch with statistics of their own, see `norms.BatchNorm`.
      dtype: type of the first layer, None for the parameters' and the input's; the second is never below float32.
      param_dtype: type of the parameters.

    >>> x = jax.ShapeDtypeStruct((2, 3, 3, 64), jnp.float32)
    >>> head = Projector(hidden=256)
    >>> variables = jax.eval_shape(lambda key, x: head.init(key, x, train=True), jax.random.key(0), x)
    >>> jax.eval_shape(lambda v, x: head.apply(v, x, train=False), variables, x).shape
    (2, 3, 3, 256)
    """

    hidden: int = 4096
    size: int = 256
    groups: int = 1
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        """Map [B,...,C] to [B,...,size], float32 or wider; statistics are over all axes but the last."""
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        init = dict(kernel_init=layers.torch_kernel, bias_init=layers.torch_bias(x.shape[-1]))
        x = nn.Dense(self.hidden, name="fc1", **init, **options)(x)
        x = nn.relu(layers.normalize(x, "batch", train, groups=self.groups, name="bn1", **options))
        x = x.astype(jnp.promote_types(x.dtype, self.param_dtype))
        last = dict(kernel_init=layers.torch_kernel, param_dtype=self.param_dtype)
        return nn.Dense(self.size, use_bias=False, name="fc2", **last)(x)


class FeaturePyramid(nn.Module):
    """The four maps of a ResNet to descriptors of every cell of the finest.

    From the coarsest map on, each level is a 1x1 convolution of its map plus the level below, repeated to its size. A
    3x3 convolution gives the output of a level. Then blocks of a 3x3 convolution, normalisation, a ReLU and bilinear
    resizing to the next finer map bring it to the finest size: three of them for layer4, two for layer3, one for
    layer2, and one without resizing for layer1. The levels are added up, and a 1x1 convolution gives the descriptors.
    Maps halve from level to level where the image's sides are multiples of 32.

    Attributes:
      size: D, channels of the descriptors.
      width: channels of the levels.
      inner: channels of the blocks that bring the levels to one size.
      dtype: type of the computation, None for the parameters' and the maps'; the last layer is never below float32.
      param_dtype: type of the parameters.

    >>> one = lambda i: jax.ShapeDtypeStruct((2, 24 >> i, 24 >> i, 256 << i), jnp.float32)
    >>> maps = {name: one(i) for i, name in enumerate(LEVELS)}
    >>> pyramid = FeaturePyramid()
    >>> variables = jax.eval_shape(lambda key, x: pyramid.init(key, x, train=True), jax.random.key(0), maps)
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    4976448
    >>> jax.eval_shape(lambda v, x: pyramid.apply(v, x, train=False), variables, maps).shape
    (2, 24, 24, 64)
    """

    size: int = 64
    width: int = 256
    inner: int = 128
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Mapping[str, jax.Array], train: bool):
        """Return descriptors [B,h,w,D] of `maps`, those of LEVELS, [B,h,w,C]: float32 or wider, of any length."""
        sizes = [maps[name].shape[1:3] for name in LEVELS]
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        level, total = None, 0
        for number, name in reversed(list(enumerate(LEVELS, 1))):
            lateral = layers.conv(maps[name], self.width, 1, bias=True, name=f"lateral{number}", **options)
            level = lateral if level is None else lateral + _resized(level, sizes[number - 1], "nearest")
            x = layers.conv(level, self.width, 3, bias=True, name=f"output{number}", **options)
            for i in range(max(number - 1, 1)):
                x = layers.conv(x, self.inner, 3, name=f"conv{number}_{i}", **options)
                x = nn.relu(layers.normalize(x, "batch", train, name=f"bn{number}_{i}", **options))
                x = x if number == 1 else _resized(x, sizes[number - 2 - i], "bilinear")
            total = total + x
        total = total.astype(jnp.promote_types(total.dtype, self.param_dtype))
        return layers.conv(total, self.size, 1, bias=True, name="descriptors", param_dtype=self.param_dtype)


class Linear(nn.Module):
    """One linear layer with a bias, the head of ContrastLandmarks (Cheng et al. 2021).

    Attributes:
      size: channels of the result.
      dtype: type of the computation, None for the parameters' and the input's.
      param_dtype: type of the parameters.
    """

    size: int = 128
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        """Map [B,C] to [B,size]; there is nothing that training changes."""
        del train
        init = dict(kernel_init=layers.torch_kernel, bias_init=layers.torch_bias(x.shape[-1]))
        return nn.Dense(self.size, name="fc", dtype=self.dtype, param_dtype=self.param_dtype, **init)(x)


def pyramid(maps: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
    """Return the four maps of a hypercolumn, 3,840 channels for ResNet-50 (Cheng et al. 2021), from fine to coarse."""
    return tuple(maps[name] for name in LEVELS)


def sizes(params: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes of a `FeaturePyramid` from its parameters, by the names of its attributes."""
    return {
        "size": params["descriptors"]["kernel"].shape[3],
        "width": params["lateral1"]["kernel"].shape[3],
        "inner": params["descriptors"]["kernel"].shape[2],
    }


def _resized(x, size, method: str):
    """Resize a map [B,h,w,C] to `size` (h, w), by the centres of cells (PyTorch's `align_corners=False`)."""
    if x.shape[1:3] == tuple(size):
        return x
    return jax.image.resize(x, (len(x), *size, x.shape[-1]), method, antialias=False)
