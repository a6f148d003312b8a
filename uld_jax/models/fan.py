"""FAN, the face alignment network: a stem and one hourglass of pre-activation blocks.

Bulat and Tzimiropoulos 2017, as used by Sanchez and Tzimiropoulos 2019, Mallis et al. 2020 (group normalisation) and
Awan et al. (batch normalisation). Modules are named as in the published checkpoints: `conv1`, `bn1`, `conv2`,
`m0/b1_4`, `top_m_0`, `conv_last0`, `l_0`; a block's shortcut `downsample.0` is `downsample_0` here.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from uld_jax.errors import UserError
from uld_jax.models import layers


class FanOutput(NamedTuple):
    """What the network computes.

    Attributes:
      logits: [B,h,w,K] float32 or wider, unbounded.
      features: [B,h,w,width], the last hidden layer: `logits` is a linear map of it.
      taps: the hourglass from within: `low1`, `low2`, `low3` [B,h/2,w/2,width], the three stages of its outermost
        level on the way down, at the bottom and on the way up; `hourglass` [B,h,w,width], its output.
    """

    logits: jax.Array
    features: jax.Array
    taps: dict[str, jax.Array]


class ConvBlock(nn.Module):
    """Three 3x3 convolutions in a row, the outputs of all three side by side, plus a shortcut.

    a = conv1(relu(bn1(x))), b = conv2(relu(bn2(a))), c = conv3(relu(bn3(b))) with width/2, width/4, width/4 channels.
    """

    width: int
    norm: str = "batch"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def unit(x, width, kernel, norm_name, conv_name):
            x = nn.relu(layers.normalize(x, self.norm, train, name=norm_name, **options))
            return layers.conv(x, width, kernel, name=conv_name, **options)

        a = unit(x, self.width // 2, 3, "bn1", "conv1")
        b = unit(a, self.width // 4, 3, "bn2", "conv2")
        c = unit(b, self.width // 4, 3, "bn3", "conv3")
        if x.shape[-1] != self.width:
            x = unit(x, self.width, 1, "downsample_0", "downsample_2")
        return jnp.concatenate([a, b, c], -1) + x


class Hourglass(nn.Module):
    """Blocks at `depth` + 1 resolutions, each half the one before, added up on the way back.

    Returns the output [B,h,w,width] and the outermost level's stages, `low1`, `low2` and `low3` at half resolution.
    """

    width: int
    depth: int
    norm: str = "batch"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        def block(name, x):
            return ConvBlock(self.width, self.norm, self.dtype, self.param_dtype, name=name)(x, train)

        def level(n, x):
            up = block(f"b1_{n}", x)
            low1 = block(f"b2_{n}", layers.average_pool(x))
            low2 = level(n - 1, low1)[0] if n > 1 else block("b2_plus_1", low1)
            low3 = block(f"b3_{n}", low2)
            return up + layers.upsample(low3), dict(low1=low1, low2=low2, low3=low3)

        return level(self.depth, x)


class FAN(nn.Module):
    """Images to K heatmap logits.

    Attributes:
      landmarks: K.
      width: channels of the hourglass; a multiple of 8. The stem has width / 4, then width / 2.
      depth: how often the hourglass halves the resolution.
      downsample: 4 as published, a strided convolution and a 2 x 2 mean; 2 without the mean, for small images.
      norm: `batch` or `group`.
      dtype: of the computation, None for that of the parameters and the image; the last layer is never below float32.
      param_dtype: of the parameters.

    >>> images = jnp.zeros((1, 64, 64, 3))
    >>> fan = FAN(landmarks=10, width=32, downsample=2)
    >>> variables = jax.eval_shape(lambda: fan.init(jax.random.key(0), images, train=False))
    >>> jax.eval_shape(lambda v: fan.apply(v, images, train=False), variables).logits.shape
    (1, 32, 32, 10)
    """

    landmarks: int
    width: int = 256
    depth: int = 4
    downsample: int = 4
    norm: str = "batch"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image, train: bool) -> FanOutput:
        """`image` [B,H,W,3] float in 0..1; H and W are multiples of downsample * 2^depth. UserError if they are not."""
        self._check(image.shape)
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def norm_relu(name, x):
            return nn.relu(layers.normalize(x, self.norm, train, name=name, **options))

        def block(name, width, x):
            return ConvBlock(width, self.norm, **options, name=name)(x, train)

        # Stem, to 1 / downsample of the resolution.
        x = layers.conv(image, self.width // 4, 7, stride=2, bias=True, name="conv1", **options)
        x = block("conv2", self.width // 2, norm_relu("bn1", x))
        if self.downsample == 4:
            x = layers.average_pool(x)
        x = block("conv4", self.width, block("conv3", self.width // 2, x))
        # Hourglass.
        hourglass, taps = Hourglass(self.width, self.depth, self.norm, **options, name="m0")(x, train)
        # Head.
        x = block("top_m_0", self.width, hourglass)
        x = layers.conv(x, self.width, 1, bias=True, name="conv_last0", **options)
        features = norm_relu("bn_end0", x)
        x = features.astype(jnp.promote_types(features.dtype, self.param_dtype))
        logits = layers.conv(x, self.landmarks, 1, bias=True, name="l_0", param_dtype=self.param_dtype)
        return FanOutput(logits, features, taps | dict(hourglass=hourglass))

    def _check(self, shape):
        if self.norm not in layers.NORMS:
            raise UserError(f"norm is {self.norm!r}; use one of {', '.join(layers.NORMS)}")
        if self.downsample not in (2, 4):
            raise UserError(f"downsample is {self.downsample}; use 2 or 4")
        if self.width % 8:
            raise UserError(f"width is {self.width}; use a multiple of 8")
        multiple = self.downsample * 2**self.depth
        if shape[1] % multiple or shape[2] % multiple:
            raise UserError(
                f"FAN got images of {shape[1]} x {shape[2]} pixels; with downsample {self.downsample} and "
                f"depth {self.depth} both sides must be multiples of {multiple}"
            )
