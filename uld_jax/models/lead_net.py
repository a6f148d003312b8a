"""Heads of LEAD (Karmali et al. 2022): on the mean of an encoder's last map, and on the pyramid of its maps.

Initialise with `layers.initialize`, by PyTorch's default law.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uld_jax.models import layers


def pyramid(maps: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
    """Return the four maps of a hypercolumn, 3,840 channels for ResNet-50 (Cheng et al. 2021), from fine to coarse."""
    return tuple(maps[f"layer{number}"] for number in range(1, 5))


class Linear(nn.Module):
    """One linear layer with a bias, ContrastLandmarks' head.

    Attributes:
      size: channels of the result.
      dtype, param_dtype: types of the computation and of the parameters.
    """

    size: int
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        """Map [B,C] to [B,size]."""
        del train
        return _dense(x, self.size, "fc", dtype=self.dtype, param_dtype=self.param_dtype)


class Mlp(nn.Module):
    """BYOL's projector and predictor (Grill et al. 2020): linear, batch normalisation, ReLU, linear without a bias.

    Attributes:
      hidden: width of the hidden layer; 4,096 as published.
      size: channels of the result; 256 as published.
      dtype, param_dtype: types of the computation and of the parameters.
    """

    hidden: int = 4096
    size: int = 256
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        """Map [B,C] to [B,size]."""
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = _dense(x, self.hidden, "fc1", **options)
        x = nn.relu(layers.normalize(x, "batch", train, name="bn1", **options))
        return _dense(x, self.size, "fc2", bias=False, **options)


class FeaturePyramid(nn.Module):
    """A feature pyramid (Lin et al. 2017) and the sum of its branches at the finest map's size.

    Lateral 1x1 convolutions bring all maps to one width, coarser maps are added to finer ones, and a 3x3 convolution
    follows. A branch is one convolution for the finest map and one for each doubling of the others (panoptic feature
    pyramids, Kirillov et al. 2019). The paper gives neither widths nor layers; these are the usual ones.

    Attributes:
      size: channels of the result.
      width: channels of the pyramid.
      branch: channels of the branches.
      dtype, param_dtype: types of the computation and of the parameters.
    """

    size: int = 64
    width: int = 256
    branch: int = 128
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps, train: bool):
        """Map a pyramid of [B,h_l,w_l,C_l], from fine to coarse, to [B,h_1,w_1,size]."""
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        above, merged = None, []
        for number, level in reversed(list(enumerate(maps, 1))):
            x = layers.conv(level, self.width, 1, bias=True, name=f"lateral{number}", **options)
            if above is not None:
                x = x + _resized(above, x.shape, "nearest")
            above = x
            merged.append((number, layers.conv(x, self.width, 3, bias=True, name=f"out{number}", **options)))
        total, finest = 0, maps[0].shape
        for number, x in merged:
            for i in range(max(number - 1, 1)):
                x = layers.conv(x, self.branch, 3, name=f"branch{number}_{i}", **options)
                x = nn.relu(layers.normalize(x, "batch", train, name=f"branch{number}_{i}_bn", **options))
                if number > 1:
                    # The size of the next finer map, which is not always twice as large.
                    x = _resized(x, maps[number - 2 - i].shape, "linear")
            total = total + _resized(x, finest, "linear")
        return layers.conv(total, self.size, 1, bias=True, name="features", **options)


class ProjectionHead(nn.Module):
    """Two 1x1 convolutions with batch normalisation and ReLU between them; dropped after training.

    Attributes:
      width: channels of both; 256 in the paper's best row, or 64.
      dtype, param_dtype: types of the computation and of the parameters.
    """

    width: int = 256
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        """Map [B,h,w,C] to [B,h,w,width]."""
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = layers.conv(x, self.width, 1, name="conv1", **options)
        x = nn.relu(layers.normalize(x, "batch", train, name="bn1", **options))
        return layers.conv(x, self.width, 1, bias=True, name="conv2", **options)


def sizes(params) -> dict[str, int]:
    """Return the sizes of a `FeaturePyramid` from its parameters, by the names of `lead_compact.Compact`."""
    return {
        "size": params["features"]["kernel"].shape[3],
        "fpn_width": params["lateral1"]["kernel"].shape[3],
        "branch_width": params["features"]["kernel"].shape[2],
    }


def _dense(x, size: int, name: str, bias: bool = True, **options):
    init = dict(kernel_init=layers.torch_kernel, bias_init=layers.torch_bias(x.shape[-1]))
    return nn.Dense(size, use_bias=bias, name=name, **init, **options)(x)


def _resized(x, shape, method: str):
    """Resize [B,h,w,C] to the height and width of `shape`."""
    if x.shape[1:3] == shape[1:3]:
        return x
    return jax.image.resize(x, (len(x), *shape[1:3], x.shape[-1]), method, antialias=False)
