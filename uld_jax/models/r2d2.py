"""R2D2: dense descriptors, and a repeatability and a reliability for every pixel (Revaud et al., NeurIPS 2019).

The network has nine convolutions at full resolution, with dilation in place of strides. The descriptor is the output x
of the last one, scaled to length 1; both confidences come from linear maps of x^2:

  repeatability = s / (1 + s), s = softplus(sal(x^2))      confidence that a keypoint there would be found again
  reliability   = softmax(clf(x^2)), the second of two     confidence that its descriptor can be told from others

As published (`Quad_L2Net_ConfCFS`), the first eight convolutions are followed by a batch normalisation without affine
parameters; with its running statistics that is a scale and a shift of each channel, which belong to the kernel and the
bias here. Layers are named as in the published checkpoints: `ops_0`, `ops_3`, ..., `clf`, `sal`.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from uld_jax.errors import UserError
from uld_jax.models import layers
from uld_jax.ops.keypoints import l2_normalize

DESCRIPTOR_SIZE = 128


class Layer(NamedTuple):
    """One of the nine convolutions.

    Attributes:
      name: `ops_N`, N its position in the published list.
      features: output channels.
      kernel: side of the kernel; an even one is padded so that it keeps the size too.
      dilation: distance of the kernel's taps in cells.
      relu: True if a ReLU follows.
      pool: True if 2 x 2 maxima follow.
    """

    name: str
    features: int
    kernel: int
    dilation: int
    relu: bool
    pool: bool


class R2D2Output(NamedTuple):
    """Output of an `R2D2`, float32 or wider. In `fast` networks odd sides lose their last row and column.

    Attributes:
      descriptors: [B,H,W,D], of length 1.
      repeatability: [B,H,W] in 0..1.
      reliability: [B,H,W] in 0..1.
    """

    descriptors: jax.Array
    repeatability: jax.Array
    reliability: jax.Array


def plan(width: int = 32, fast: bool = False, size: int = DESCRIPTOR_SIZE) -> tuple[Layer, ...]:
    """The convolutions in order.

    Args:
      width: channels of the first convolution: 32 as published, 48 in `r2d2_WASF_N8_big`.
      fast: True for the `faster2d2` variant: half the resolution from the third convolution on.
      size: D, size of a descriptor.

    >>> [layer.name for layer in plan()]
    ['ops_0', 'ops_3', 'ops_6', 'ops_9', 'ops_12', 'ops_15', 'ops_18', 'ops_20', 'ops_22']
    """
    numbers = (0, 3, 6, 10, 13, 16, 19, 21, 23) if fast else (0, 3, 6, 9, 12, 15, 18, 20, 22)
    features = (*(width * factor for factor in (1, 1, 2, 2, 4, 4, 4, 4)), size)
    dilations = (1, 1, 1, 1, 1, 2, 2, 4, 8) if fast else (1, 1, 1, 2, 2, 4, 4, 8, 16)
    return tuple(
        Layer(f"ops_{number}", features[i], 3 if i < 6 else 2, dilations[i], i < 6, fast and i == 2)
        for i, number in enumerate(numbers)
    )


class R2D2(nn.Module):
    """Images to descriptors and confidences.

    Attributes:
      width, fast, size: see `plan`.
      dtype: type of the computation, None for the parameters' and the image's; the confidences, and the length of a
        descriptor, are never below float32.
      param_dtype: type of the parameters.
      precision: precision of the convolutions; accelerators round float32 to 10 bits or fewer by default.

    >>> images = jax.ShapeDtypeStruct((1, 45, 30, 3), jnp.float32)
    >>> network = R2D2()
    >>> variables = jax.eval_shape(network.init, jax.random.key(0), images)
    >>> found = jax.eval_shape(network.apply, variables, images)
    >>> found.descriptors.shape, found.reliability.shape
    ((1, 45, 30, 128), (1, 45, 30))
    """

    width: int = 32
    fast: bool = False
    size: int = DESCRIPTOR_SIZE
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = "highest"

    @nn.compact
    def __call__(self, images) -> R2D2Output:
        """Apply the network to `images` [B,H,W,3] from `normalize`. Raises UserError for other numbers of channels."""
        if images.ndim != 4 or images.shape[-1] != 3:
            raise UserError(f"R2D2 got images of shape {images.shape}; it takes colour ones, [B,H,W,3]")
        options = dict(bias=True, param_dtype=self.param_dtype, precision=self.precision)
        x = images
        for layer in plan(self.width, self.fast, self.size):
            margin = (layer.kernel - 1) * layer.dilation // 2
            x = layers.conv(
                x,
                layer.features,
                layer.kernel,
                kernel_dilation=layer.dilation,
                padding=((margin, margin), (margin, margin)),
                dtype=self.dtype,
                name=layer.name,
                **options,
            )
            x = nn.relu(x) if layer.relu else x
            x = nn.max_pool(x, (2, 2), (2, 2)) if layer.pool else x
        x = x.astype(jnp.promote_types(x.dtype, self.param_dtype))
        if self.fast:
            batch, height, width, features = x.shape
            x = jax.image.resize(x, (batch, 2 * height, 2 * width, features), "bilinear")
        square = x * x
        softplus = jax.nn.softplus(layers.conv(square, 1, 1, name="sal", **options)[..., 0])
        reliability = jax.nn.softmax(layers.conv(square, 2, 1, name="clf", **options), -1)[..., 1]
        return R2D2Output(l2_normalize(x), softplus / (1 + softplus), reliability)


def of(params, **options) -> R2D2:
    """The network of these parameters; `options` are its `dtype`, `param_dtype` and `precision`.

    >>> images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    >>> variables = jax.eval_shape(R2D2(width=48, fast=True).init, jax.random.key(0), images)
    >>> of(variables["params"]) == R2D2(width=48, fast=True)
    True
    """
    fast = plan(fast=True)[3].name in params
    last = plan(fast=fast)[-1].name
    width, size = params["ops_0"]["kernel"].shape[-1], params[last]["kernel"].shape[-1]
    return R2D2(width, fast, size, **options)
