"""FAN, the face alignment network: a stem and one hourglass of pre-activation blocks, with one head or two.

Bulat and Tzimiropoulos 2017, as used by Sanchez and Tzimiropoulos 2019, Mallis et al. 2020 (group normalisation) and
Awan et al. (batch normalisation). Modules are named as in the published checkpoints: `conv1`, `bn1`, `conv2`,
`m0/b1_4`, `top_m_0`, `conv_last0`, `l_0`; a block's shortcut `downsample.0` is `downsample_0` here. The two heads of
Mallis et al. end in `l0` and `l1`, without the underscore.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from uld_jax.errors import UserError
from uld_jax.models import layers


class FanOutput(NamedTuple):
    """Output of a `FAN`.

    Attributes:
      logits: [B,h,w,K] float32 or wider, unbounded.
      features: [B,h,w,width], the last hidden layer: `logits` is a linear map of it.
      taps: inner maps of the hourglass: `low1`, `low2`, `low3` [B,h/2,w/2,width], the three stages of its outermost
        level on the way down, at the bottom and on the way up; `hourglass` [B,h,w,width], its output.
    """

    logits: jax.Array
    features: jax.Array
    taps: dict[str, jax.Array]


class CorrespondenceOutput(NamedTuple):
    """Output of a `CorrespondenceFAN`.

    Attributes:
      logits: [B,h,w] float32 or wider, output of the detector; the sigmoid is its confidence of a keypoint in the cell.
      descriptors: [B,h,w,D] float32 or wider, unbounded and of any length.
      features: [B,h,w,width], the last hidden layer of the descriptors' head: `descriptors` is a linear map of it.
      taps: inner maps of the hourglass, as in `FanOutput`.
    """

    logits: jax.Array
    descriptors: jax.Array
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
      depth: number of times that the hourglass halves the resolution.
      downsample: 4 as published, a strided convolution and a 2 x 2 mean; 2 without the mean, for small images.
      norm: `batch` or `group`.
      dtype: type of the computation, None for the parameters' and the image's; the last layer is never below float32.
      param_dtype: type of the parameters.

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
        hourglass, taps = _trunk(self, image, train)
        logits, features = _head(self, hourglass, train, 0, "l_0", self.landmarks)
        return FanOutput(logits, features, taps)


class CorrespondenceFAN(nn.Module):
    """Images to a map of keypoints and a descriptor at every cell of it, two heads on one hourglass.

    Mallis et al. 2020, section 3.2: a keypoint detector and a feature extractor that share their trunk.

    Attributes:
      descriptor_size: D.
      width, depth, downsample, dtype, param_dtype: as in `FAN`.
      norm: `group` as published, which makes training and inference the same, or `batch`.

    >>> images = jnp.zeros((1, 64, 64, 3))
    >>> fan = CorrespondenceFAN(descriptor_size=16, width=32, downsample=2)
    >>> variables = jax.eval_shape(lambda: fan.init(jax.random.key(0), images))
    >>> output = jax.eval_shape(lambda v: fan.apply(v, images), variables)
    >>> output.logits.shape, output.descriptors.shape
    ((1, 32, 32), (1, 32, 32, 16))
    """

    descriptor_size: int = 256
    width: int = 256
    depth: int = 4
    downsample: int = 4
    norm: str = "group"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image, train: bool = False) -> CorrespondenceOutput:
        """`image` as for `FAN`, with the same UserError."""
        hourglass, taps = _trunk(self, image, train)
        logits, _ = _head(self, hourglass, train, 0, "l0", 1)
        descriptors, features = _head(self, hourglass, train, 1, "l1", self.descriptor_size)
        return CorrespondenceOutput(logits[..., 0], descriptors, features, taps)


def descriptor_branch(params, landmarks: int, key):
    """Make a `FAN` for K landmarks from the trunk and the descriptors' head of a `CorrespondenceFAN`.

    Mallis et al. 2020, section 3.3: the second stage keeps all layers except the last, which is new and has PyTorch's
    default initialisation, U(+-1 / sqrt(fan_in)). The detector's head is dropped.

    Args:
      params: parameters of the `CorrespondenceFAN`.
      landmarks: K, the number of landmarks.
      key: PRNG key for the new layer.

    Returns:
      Parameters of a `FAN` of the same width, depth, downsample and norm; the new layer has their dtype.

    >>> image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    >>> first = CorrespondenceFAN(descriptor_size=4, width=16, depth=1, downsample=2)
    >>> params = jax.eval_shape(first.init, jax.random.key(0), image)["params"]
    >>> branch = jax.eval_shape(lambda p, key: descriptor_branch(p, 5, key), params, jax.random.key(1))
    >>> fan = FAN(landmarks=5, width=16, depth=1, downsample=2, norm="group")
    >>> jax.eval_shape(lambda p, x: fan.apply({"params": p}, x, train=False), branch, image).logits.shape
    (1, 8, 8, 5)
    """
    trunk = {name: tree for name, tree in params.items() if name not in (*_HEAD[0], *_HEAD[1])}
    head = {mine: params[theirs] for mine, theirs in zip(_HEAD[0][:-1], _HEAD[1][:-1], strict=True)}
    old = params["l1"]["kernel"]
    width = old.shape[2]
    drawn = layers.torch_bias(width)(key, (width + 1, landmarks), old.dtype)  # kernel and bias have the same law
    return trunk | head | {"l_0": {"kernel": drawn[None, None, :-1], "bias": drawn[-1]}}


# Modules of the heads of a `CorrespondenceFAN`, the detector's and the descriptors', in order.
_HEAD = (("top_m_0", "conv_last0", "bn_end0", "l0"), ("top_m_1", "conv_last1", "bn_end1", "l1"))


def _trunk(net, image, train):
    """Stem and hourglass of a FAN `net`, called inside its compact method: (output, taps)."""
    _check(net, image.shape)
    options = dict(dtype=net.dtype, param_dtype=net.param_dtype)

    def block(name, width, x):
        return ConvBlock(width, net.norm, **options, name=name)(x, train)

    # Stem, to 1 / downsample of the resolution.
    x = layers.conv(image, net.width // 4, 7, stride=2, bias=True, name="conv1", **options)
    x = nn.relu(layers.normalize(x, net.norm, train, name="bn1", **options))
    x = block("conv2", net.width // 2, x)
    if net.downsample == 4:
        x = layers.average_pool(x)
    x = block("conv4", net.width, block("conv3", net.width // 2, x))
    # Hourglass.
    hourglass, taps = Hourglass(net.width, net.depth, net.norm, **options, name="m0")(x, train)
    return hourglass, taps | dict(hourglass=hourglass)


def _head(net, x, train, number: int, last: str, outputs: int):
    """One head of a FAN `net` on its hourglass, called inside its compact method: (outputs, last hidden layer)."""
    options = dict(dtype=net.dtype, param_dtype=net.param_dtype)
    x = ConvBlock(net.width, net.norm, **options, name=f"top_m_{number}")(x, train)
    x = layers.conv(x, net.width, 1, bias=True, name=f"conv_last{number}", **options)
    features = nn.relu(layers.normalize(x, net.norm, train, name=f"bn_end{number}", **options))
    x = features.astype(jnp.promote_types(features.dtype, net.param_dtype))
    return layers.conv(x, outputs, 1, bias=True, name=last, param_dtype=net.param_dtype), features


def _check(net, shape):
    if net.norm not in layers.NORMS:
        raise UserError(f"norm is {net.norm!r}; use one of {', '.join(layers.NORMS)}")
    if net.downsample not in (2, 4):
        raise UserError(f"downsample is {net.downsample}; use 2 or 4")
    if net.width % 8:
        raise UserError(f"width is {net.width}; use a multiple of 8")
    multiple = net.downsample * 2**net.depth
    if shape[1] % multiple or shape[2] % multiple:
        raise UserError(
            f"FAN got images of {shape[1]} x {shape[2]} pixels; with downsample {net.downsample} and "
            f"depth {net.depth} both sides must be multiples of {multiple}"
        )
