"""ResNet-18, ResNet-50 and ResNet-101 (He et al. 2016), the encoders of LEAD, C3 and NC-Net, as torchvision has them.

Modules are named as in torchvision's files, `layer1.0.downsample.0` being `layer1_0/downsample_0`. A bottleneck with
stride 2 has the stride in its 3x3 convolution (torchvision's variant 1.5), and all padding is PyTorch's: the same on
every side, with -inf for the max-pool.

Initialise with `layers.initialize(..., law=resnet.INITIAL)`: He et al.'s normal kernels of variance 2 / fan_out, as
torchvision does, and normalisation with scale 1 in every layer (BYOL's paper has 1 in the last one of a block too).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from uld_jax.errors import UserError
from uld_jax.models import layers

# By depth; 10 was never published, it is for tests.
BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
OUTPUT_STRIDES = (8, 16, 32)
INITIAL = layers.HE

# Mean and standard deviation of the images 0..1 that published weights expect, red, green, blue.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CELEBA = ((0.5084, 0.4224, 0.3769), (0.2599, 0.2371, 0.2323))  # ContrastLandmark's weights of faces


class Place(NamedTuple):
    """How a block samples its input.

    Attributes:
      stride: step of the block's strided convolution in cells.
      before: dilation of that convolution.
      after: dilation of the 3x3 convolutions that follow, in this block and the next ones of the layer.
    """

    stride: int
    before: int
    after: int


def places(output_stride: int) -> tuple[Place, ...]:
    """Return the place of the first block of each of the four layers.

    From `output_stride` on, every stride of 2 is left out and all later 3x3 convolutions are dilated twice as much
    (DeepLab; torchvision's `replace_stride_with_dilation`). The maps are then finer, and equal those of the strided
    network at its cells.

    >>> [tuple(place) for place in places(8)]
    [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]
    """
    found, reached, dilation = [Place(1, 1, 1)], 4, 1
    for _ in range(3):
        stride = 2 if reached < output_stride else 1
        after = dilation if stride == 2 else 2 * dilation
        found.append(Place(stride, dilation, after))
        reached, dilation = stride * reached, after
    return tuple(found)


class Block(nn.Module):
    """Two 3x3 convolutions, or a 3x3 between two 1x1, plus a shortcut.

    Attributes:
      width: channels of the 3x3 convolutions.
      bottleneck: True for the block of ResNet-50 and 101, whose output has 4 width channels; False for ResNet-18's.
      place: how the block samples its input.
      groups, dtype, param_dtype, precision: as in `ResNet`.
    """

    width: int
    bottleneck: bool
    place: Place
    groups: int = 1
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, x, train: bool):
        """Map [B,h,w,C] to [B,h/stride,w/stride,width or 4 width], sides rounded up."""
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def unit(x, width, kernel, conv_name, norm_name, **where):
            init = dict(kernel_init=layers.he_kernel, precision=self.precision)
            x = layers.conv(x, width, kernel, name=conv_name, **where, **init, **options)
            return layers.normalize(x, "batch", train, groups=self.groups, name=norm_name, **options)

        stride, before, after = self.place
        width = 4 * self.width if self.bottleneck else self.width
        if self.bottleneck:
            y = nn.relu(unit(x, self.width, 1, "conv1", "bn1"))
            y = nn.relu(unit(y, self.width, 3, "conv2", "bn2", stride=stride, dilation=before))
            y = unit(y, width, 1, "conv3", "bn3")
        else:
            y = nn.relu(unit(x, width, 3, "conv1", "bn1", stride=stride, dilation=before))
            y = unit(y, width, 3, "conv2", "bn2", dilation=after)
        # Where a stride is left out, the channels still change, so that the parameters do not depend on it.
        if x.shape[-1] != width:
            x = unit(x, width, 1, "downsample_0", "downsample_1", stride=stride)
        return nn.relu(y + x)


class ResNet(nn.Module):
    """Images to the maps after the stem and after each of the four layers.

    Attributes:
      depth: 101, 50 or 18; or 10, half as deep as 18, for tests.
      width: channels of the stem; 64 as published. Layer n has 2^(n-1) times as many, and 4 times these from depth 50.
      output_stride: pixels of the image in a cell of layer 4: 32 as published, or 16 or 8, see `places`. The
        parameters are the same.
      groups: parts of the batch, each with its own batch statistics in training, see `norms.BatchNorm`; 1 for
        statistics over the whole batch of all devices.
      last: number of the last layer; those after it have neither maps nor parameters. NC-Net's features are
        `ResNet(depth=101, last=3)` with train=False.
      dtype: type of the computation, None for the parameters' and the image's; statistics have float32 at least.
      param_dtype: type of the parameters.
      precision: precision of the convolutions; accelerators round float32 to 10 bits or fewer by default.

    >>> images = jax.ShapeDtypeStruct((2, 96, 96, 3), jnp.float32)
    >>> network = ResNet(depth=18, output_stride=16)
    >>> variables = jax.eval_shape(lambda key, x: network.init(key, x, train=False), jax.random.key(0), images)
    >>> maps = jax.eval_shape(lambda v, x: network.apply(v, x, train=False), variables, images)
    >>> maps["stem"].shape, maps["layer3"].shape, maps["layer4"].shape
    ((2, 24, 24, 64), (2, 6, 6, 256), (2, 6, 6, 512))
    """

    depth: int = 50
    width: int = 64
    output_stride: int = 32
    groups: int = 1
    last: int = 4
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, image, train: bool) -> dict[str, jax.Array]:
        """Return {stem, layer1, layer2, layer3, layer4: [B,h,w,C]} of `image` [B,H,W,3], normalised; up to `last`.

        The stem and layer1 have a cell for 4 pixels; the sides of a map are rounded up. Raises UserError for images
        without 3 channels, an unknown depth, output stride or last layer, and, in training, a batch that does not
        divide into `groups`.
        """
        _check(self, image.shape)
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        init = dict(kernel_init=layers.he_kernel, precision=self.precision)
        x = layers.conv(image, self.width, 7, stride=2, name="conv1", **init, **options)
        x = nn.relu(layers.normalize(x, "batch", train, groups=self.groups, name="bn1", **options))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        maps = {"stem": x}
        for number, (blocks, first) in enumerate(zip(BLOCKS[self.depth][: self.last], places(self.output_stride)), 1):
            for i in range(blocks):
                place = first if i == 0 else Place(1, first.after, first.after)
                width, more = self.width * 2 ** (number - 1), dict(precision=self.precision, **options)
                block = Block(width, self.depth >= 50, place, self.groups, name=f"layer{number}_{i}", **more)
                x = block(x, train)
            maps[f"layer{number}"] = x
        return maps


def normalize(images, statistics=IMAGENET):
    """Normalise images [...,3] in 0..1: subtract the mean and divide by the deviation of `statistics`."""
    mean, deviation = (jnp.asarray(x, images.dtype) for x in statistics)
    return (images - mean) / deviation


def denormalize(images, statistics=IMAGENET):
    """Return images [...,3] in 0..1, the inverse of `normalize`."""
    mean, deviation = (jnp.asarray(x, images.dtype) for x in statistics)
    return images * deviation + mean


def pool(x):
    """Return the means over the cells of a map [B,h,w,C], [B,C] float32 or wider: torchvision's input of `fc`.

    >>> pool(jnp.ones((2, 3, 3, 5), jnp.bfloat16)).dtype.name
    'float32'
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))


def _check(net, shape):
    if net.depth not in BLOCKS:
        raise UserError(f"depth is {net.depth}; use one of {', '.join(map(str, BLOCKS))}")
    if net.output_stride not in OUTPUT_STRIDES:
        raise UserError(f"output_stride is {net.output_stride}; use one of {', '.join(map(str, OUTPUT_STRIDES))}")
    if net.last not in range(1, 5):
        raise UserError(f"last is {net.last}; use the number of a layer, 1 to 4")
    if len(shape) != 4 or shape[-1] != 3:
        raise UserError(f"ResNet got images of shape {shape}; it takes colour ones, [B,H,W,3]")
