"""Features of VGG16 (Simonyan and Zisserman 2015) for perceptual losses, as one pure function.

Parameters are {"conv1_1": {"kernel": [3,3,in,out], "bias": [out]}, ..., "conv5_3": ...}.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.errors import UserError

# Convolutions in each of the five blocks, and their channels in multiples of the first block's.
DEPTHS = (2, 2, 3, 3, 3)
WIDTHS = (1, 2, 4, 8, 8)
LAYERS = tuple(f"{block + 1}_{i + 1}" for block, depth in enumerate(DEPTHS) for i in range(depth))

# Layers that the perceptual losses of Awan et al. and of Jakab et al. compare.
CGB_TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
IMM_TAPS = ("relu1_2", "relu2_2", "relu3_2", "relu4_2", "relu5_2")


def vgg16(params, images, taps: Sequence[str], dtype=None) -> dict[str, jax.Array]:
    """Activations after the ReLUs named in `taps`, `relu1_1` to `relu5_3`; no deeper layer is computed.

    Block n follows n - 1 max-pools of 2 x 2 cells, which leave out the last row of an odd height. Other networks call
    conv1_2, read after its ReLU, the layer that is `relu1_2` here.

    Args:
      params: parameters as in the module's docstring; layers beyond the deepest tap may be missing.
      images: [B,H,W,C], scaled as the parameters expect, C the input channels of `conv1_1`.
      taps: names of the ReLUs.
      dtype: type of the computation, None for that of the parameters and the images.

    Returns:
      {tap: [B,h,w,channels]}. Raises UserError for an unknown tap, another number of channels, images too small.

    >>> features = vgg16(random_vgg16(0, width=4), jnp.zeros((1, 32, 32, 3)), CGB_TAPS)
    >>> features["relu4_3"].shape
    (1, 4, 4, 32)
    """
    unknown = set(taps) - {f"relu{name}" for name in LAYERS}
    if unknown:
        raise UserError(f"VGG16 has no layer {', '.join(sorted(unknown))}; use relu{LAYERS[0]} to relu{LAYERS[-1]}")
    needed = LAYERS[: max((LAYERS.index(tap.removeprefix("relu")) + 1 for tap in taps), default=0)]
    if needed:
        _check(images.shape, params, int(needed[-1][0]))
    x, features = images, {}
    for name in needed:
        if name.endswith("_1") and name != "1_1":
            x = _max_pool(x)
        kernel, bias = params[f"conv{name}"]["kernel"], params[f"conv{name}"]["bias"]
        common = jnp.result_type(x, kernel, bias) if dtype is None else dtype
        x, kernel, bias = (jnp.asarray(value, common) for value in (x, kernel, bias))
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + bias)
        if f"relu{name}" in taps:
            features[f"relu{name}"] = x
    return features


def _check(shape, params, blocks):
    channels = params["conv1_1"]["kernel"].shape[2]
    if shape[-1] != channels:
        raise UserError(f"VGG16 got images of {shape[-1]} channels; these weights take {channels}")
    smallest = 2 ** (blocks - 1)
    if min(shape[1:3]) < smallest:
        raise UserError(f"VGG16 got images of {shape[1]} x {shape[2]} pixels; block {blocks} needs {smallest}")


def _max_pool(x):
    """Maxima of 2 x 2 cells, [B,h,w,C] to [B,h//2,w//2,C]."""
    batch, height, width, channels = x.shape
    height, width = height // 2, width // 2
    x = x[:, : 2 * height, : 2 * width].reshape(batch, height, 2, width, 2, channels)
    # Pairwise maxima: on CPU their gradient takes half the time of that of `max`, a tenth of that of `nn.max_pool`.
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def gray_input(images):
    """Convert images [B,H,W,3] in 0..255 to the input of the colourisation VGG16 of Larsson et al., [B,H,W,1] about 0.

    The input is mean(R, G, B) / 255 - 114.451 / 255, as in the published code of Jakab et al.
    """
    return (images.mean(-1, keepdims=True) - 114.451) / 255


def random_vgg16(seed: int, width: int = 64, channels: int = 3) -> dict:
    """Untrained parameters: kernels normal with variance 2 / fan_in (He et al. 2015), biases 0, float32.

    Activations keep the size of the input. `width` is the number of channels in the first block: 64 is VGG16, less is a
    narrow copy. `channels` is the number of channels of the images: 3, or 1 for `gray_input`.
    """
    rng = np.random.default_rng(seed)
    params, before = {}, channels
    for name in LAYERS:
        after = width * WIDTHS[int(name[0]) - 1]
        kernel = rng.normal(0, np.sqrt(2 / (9 * before)), (3, 3, before, after))
        params[f"conv{name}"] = dict(kernel=kernel.astype(np.float32), bias=np.zeros(after, np.float32))
        before = after
    return params
