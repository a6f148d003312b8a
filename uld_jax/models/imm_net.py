"""The three networks of IMM: an appearance encoder, a pose encoder and a renderer.

Jakab, Gupta, Bilen and Vedaldi, "Unsupervised Learning of Object Landmarks through Conditional Image Generation", 2018,
as in their TensorFlow code: input and rendered images are in 0..255; convolutions have biases and TensorFlow's padding;
normalisation is TensorFlow's (epsilon 1e-3, running statistics keep 0.99). Landmarks are read off the pose logits by
`ops.heatmaps.separable_soft_argmax`. Initialise with
`layers.initialize(..., law=imm_net.INITIAL)`: one program instead of one for every parameter.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from uld_jax.errors import UserError
from uld_jax.models import layers

STD = 0.01
INITIAL = layers.truncated_normal(STD)


def legacy_upsample(x):
    """Double [B,h,w,C] bilinearly to [B,2h,2w,C] as TensorFlow 1 did: output row i reads input row i / 2.

    There is no half-pixel shift, so even rows are the input's rows, odd ones the means of two neighbours, and the
    last row comes twice; columns follow the same rule. `jax.image.resize` puts pixel centres elsewhere.

    >>> legacy_upsample(jnp.array([[1.0, 3.0]]).reshape(1, 1, 2, 1))[0, :, :, 0].tolist()
    [[1.0, 2.0, 3.0, 3.0], [1.0, 2.0, 3.0, 3.0]]
    """
    batch, height, width, channels = x.shape
    below = jnp.concatenate([x[:, 1:], x[:, -1:]], 1)
    x = jnp.stack([x, (x + below) / 2], 2).reshape(batch, 2 * height, width, channels)
    right = jnp.concatenate([x[:, :, 1:], x[:, :, -1:]], 2)
    return jnp.stack([x, (x + right) / 2], 3).reshape(batch, 2 * height, 2 * width, channels)


def _conv(x, features, kernel, name, stride=1, **options):
    init = dict(kernel_init=nn.initializers.truncated_normal(STD), bias_init=nn.initializers.zeros)
    return layers.conv(x, features, kernel, stride=stride, bias=True, padding="SAME", name=name, **init, **options)


def _unit(x, features, kernel, number, train, stride=1, **options):
    """Convolution, batch normalisation, ReLU."""
    x = _conv(x, features, kernel, f"conv_{number}", stride, **options)
    return nn.relu(layers.normalize(x, "batch", train, momentum=0.99, epsilon=1e-3, name=f"bn_{number}", **options))


def _last_conv(x, features, name, kernel, param_dtype):
    """A convolution without normalisation, in float32 or wider."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return _conv(x, features, kernel, name, param_dtype=param_dtype)


class ImmEncoder(nn.Module):
    """Encoder of an object's appearance: images to features at an eighth of the resolution.

    Attributes:
      width: channels of the first stage; each of the three others has twice as many as the one before.
      dtype: type of the computation, None for that of the parameters and the image.
      param_dtype: type of the parameters.
    """

    width: int = 32
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image, train: bool):
        """`image` [B,H,W,3] float in 0..255 to [B,H/8,W/8,8*width]. UserError if a side is no multiple of 8."""
        if image.shape[1] % 8 or image.shape[2] % 8:
            raise UserError(f"IMM got images of {image.shape[1]} x {image.shape[2]} pixels; use multiples of 8")
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = image
        for stage in range(4):
            features, first = self.width * 2**stage, 2 * stage + 1
            if stage == 0:
                x = _unit(x, features, 7, first, train, **options)
            else:
                x = _unit(x, features, 3, first, train, stride=2, **options)
            x = _unit(x, features, 3, first + 1, train, **options)
        return x


class ImmPose(nn.Module):
    """Images to K landmark logits at an eighth of the resolution: an encoder of its own and a 1x1 convolution.

    Attributes:
      landmarks: K.
      width, dtype, param_dtype: as in `ImmEncoder`; the last layer is never below float32.

    >>> import jax
    >>> pose = ImmPose(landmarks=10, width=8)
    >>> logits, _ = jax.eval_shape(
    ...     lambda: pose.init_with_output(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    >>> logits.shape
    (1, 8, 8, 10)
    """

    landmarks: int
    width: int = 32
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image, train: bool):
        """`image` [B,H,W,3] float in 0..255 to logits [B,H/8,W/8,K], float32 or wider."""
        x = ImmEncoder(self.width, self.dtype, self.param_dtype, name="encoder")(image, train)
        return _last_conv(x, self.landmarks, "logits", 1, self.param_dtype)


class ImmRenderer(nn.Module):
    """Appearance features and landmark maps to an image of eight times their resolution.

    Attributes:
      width: width of the encoder; the stages have 8, 4, 2 and 1 times as many channels, the last stage one layer, the
        others two.
      channels: channels of the last layer. The published code has 9 and reads only the first three; the other weights
        learn nothing but count in the published size.
      dtype, param_dtype: as in `ImmEncoder`; the last layer is never below float32.
    """

    width: int = 32
    channels: int = 9
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features, maps, train: bool):
        """`features` [B,h,w,8*width] and `maps` [B,h,w,K] to an image [B,8h,8w,3] about 0..255, not clipped.

        The image is float32 or wider. UserError if the maps have another resolution than the features.
        """
        if maps.shape[1:3] != features.shape[1:3]:
            raise UserError(
                f"IMM's renderer got landmark maps of {maps.shape[1]} x {maps.shape[2]} cells and features of "
                f"{features.shape[1]} x {features.shape[2]}; both come at an eighth of the image's resolution"
            )
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = jnp.concatenate([features, maps], -1)
        for stage in range(3):
            for number in (2 * stage + 1, 2 * stage + 2):
                x = _unit(x, self.width * 2 ** (3 - stage), 3, number, train, **options)
            x = legacy_upsample(x)
        x = _unit(x, self.width, 3, 7, train, **options)
        return _last_conv(x, self.channels, "conv_8", 3, self.param_dtype)[..., :3]
