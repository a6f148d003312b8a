"""The image generator of Sanchez and Tzimiropoulos 2019 and Awan et al.: StarGAN's, with batch normalisation.

Modules are named as in the published code, `main.1.main.0` being `main_1/main_0` here; its layers without weights
(ReLU, tanh) leave gaps in the numbers.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uld_jax.errors import UserError
from uld_jax.models import layers


def _strided(x, kernel):
    """4x4 convolution at stride 2 of [B,2h,2w,O], padding 1, with a kernel [4,4,O,I], to [B,h,w,I]."""
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def transposed_conv(x, kernel):
    """The transpose of a 4x4 convolution at stride 2, padding 1: [B,h,w,I] by a kernel [4,4,O,I] to [B,2h,2w,O].

    Gradients are those of the strided convolution S: <g, S'x> = <S g, x>. JAX would find the kernel's by a
    convolution over an image full of zeros between the pixels, which takes ten times as long on CPU.
    """
    return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", transpose_kernel=True)


def _backward(saved, gradient):
    x, kernel = saved
    by_x, to_kernel = jax.vjp(lambda k: _strided(gradient, k), kernel)
    return by_x, *to_kernel(x)


transposed_conv.defvjp(lambda x, kernel: (transposed_conv(x, kernel), (x, kernel)), _backward)


class TransposedConv(nn.Module):
    """`transposed_conv` to `features` channels; as in PyTorch, the fan-in of its kernel [4,4,O,I] is 16 * O."""

    features: int
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (4, 4, self.features, x.shape[-1])
        kernel = self.param("kernel", layers.torch_kernel, shape, self.param_dtype)
        return transposed_conv(*nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype))


class ResidualBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), as wide as its input."""

    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        y = layers.conv(x, x.shape[-1], 3, name="main_0", **options)
        y = nn.relu(layers.normalize(y, "batch", train, name="main_1", **options))
        y = layers.conv(y, x.shape[-1], 3, name="main_3", **options)
        return x + layers.normalize(y, "batch", train, name="main_4", **options)


class StarGanGenerator(nn.Module):
    """Generator of the object of one image with its landmarks at the places of another image.

    The image is encoded at a quarter of its resolution, K landmark maps are put beside the features, and residual
    blocks and two transposed convolutions lead back to an image.

    Attributes:
      width: channels of the first layer; 4 * width + K in the residual blocks.
      blocks: number of residual blocks.
      dtype: type of the computation, None for the parameters' and the image's; the last layer is never below float32.
      param_dtype: type of the parameters.

    >>> images, maps = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 16, 16, 10))
    >>> generator = StarGanGenerator(width=8, blocks=2)
    >>> output, _ = jax.eval_shape(
    ...     lambda: generator.init_with_output(jax.random.key(0), images, maps, train=False))
    >>> output.shape
    (1, 64, 64, 3)
    """

    width: int = 32
    blocks: int = 6
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image, maps, train: bool):
        """Render `image` [B,H,W,3] in 0..1 with landmarks at `maps` [B,H/4,W/4,K], to an image [B,H,W,3] in 0..1.

        The result is float32 or wider. Raises UserError if a side is no multiple of 4 or the maps have another
        resolution.
        """
        self._check(image.shape, maps.shape)
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def norm(name, x):
            return layers.normalize(x, "batch", train, name=name, **options)

        # Down to a quarter of the resolution.
        x = image
        for i, kernel in enumerate((7, 4, 4)):
            x = layers.conv(x, self.width * 2**i, kernel, stride=2 if i else 1, name=f"downsampling_{3 * i}", **options)
            x = nn.relu(norm(f"downsampling_{3 * i + 1}", x))
        # Landmark maps beside the features.
        x = norm("main_0", jnp.concatenate([x, maps], -1))
        for i in range(1, self.blocks + 1):
            x = ResidualBlock(**options, name=f"main_{i}")(x, train)
        # Up again, halving the channels.
        for i in (self.blocks + 1, self.blocks + 4):
            x = TransposedConv(x.shape[-1] // 2, name=f"main_{i}", **options)(x)
            x = nn.relu(norm(f"main_{i + 1}", x))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = layers.conv(x, 3, 7, name=f"main_{self.blocks + 7}", param_dtype=self.param_dtype)
        return 0.5 * (jnp.tanh(x) + 1)

    def _check(self, image, maps):
        if image[1] % 4 or image[2] % 4:
            raise UserError(f"the generator got images of {image[1]} x {image[2]} pixels; use multiples of 4")
        if maps[1:3] != (image[1] // 4, image[2] // 4):
            raise UserError(
                f"the generator got landmark maps of {maps[1]} x {maps[2]} cells for images of {image[1]} x "
                f"{image[2]} pixels; it needs {image[1] // 4} x {image[2] // 4}"
            )
