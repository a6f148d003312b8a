"""Neighbourhood consensus: a convolutional network over all pairs of cells of two images (Rocco et al. 2018, NC-Net).

A match is right where its neighbours match alike, so that correlations [B,h,w,h',w'] are filtered in all four spatial
axes: a's rows and columns, then b's. A layer has one of two forms:

  full        a kernel over all four axes, as published: `convolve`
  separable   C3 (Xu et al. 2020, eq. 3): a kernel over b's cells, then one over a's, `convolve_separable`; this is a
              4-D kernel of rank M for each pair of channels, M being the channels between both, here the layer's own

No convolution has more than three spatial axes, the most that cuDNN takes.

Layers are named as in NC-Net's files: `conv_0`, `conv_2`, `conv_4`, with ReLUs at the odd places. Initialise with
`module.init`: `layers.initialize` knows neither the separable kernels nor the last bias.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uld_jax.errors import UserError
from uld_jax.models import layers

FORMS = ("separable", "full")
LAST_BIAS = 0.01  # first bias of the last layer, so that its one ReLU is open where all channels before it are 0


def convolve(x, kernel, precision: Any = None):
    """Filter [B,h,w,h',w',C] by a 4-D kernel [k,k,k,k,C,O], k odd; zeros surround both maps. Returns [B,h,w,h',w',O].

    As in other networks the kernel is not flipped: its first two axes are of a's rows and columns, the next of b's.

    >>> x = jnp.arange(6.0).reshape(1, 1, 1, 2, 3, 1)
    >>> right = jnp.zeros((3, 3, 3, 3, 1, 1)).at[1, 1, 1, 2].set(1)  # reads what is to the right in b
    >>> convolve(x, right)[0, 0, 0, ..., 0].tolist()
    [[1.0, 2.0, 0.0], [4.0, 5.0, 0.0]]
    """
    batch, height, *rest, inputs = x.shape
    taps, outputs = len(kernel), kernel.shape[-1]
    margin = ((0, 0), (taps // 2, taps // 2), *[(0, 0)] * 4)
    # A's rows join the batch. The taps along them join the channels, of the input or of the output, where there are
    # fewer: one 3-D convolution then has the work of all taps, and needs `taps` times the memory of the smaller map.
    if inputs <= outputs:
        x = jnp.pad(x, margin)
        x = jnp.concatenate([x[:, tap : tap + height] for tap in range(taps)], -1)
        kernel = jnp.moveaxis(kernel, 0, 3).reshape(*kernel.shape[1:4], taps * inputs, outputs)
        y = _convolve3(x.reshape(batch * height, *rest, -1), kernel, precision)
        return y.reshape(batch, height, *rest, outputs)
    kernel = jnp.moveaxis(kernel, 0, 4).reshape(*kernel.shape[1:4], inputs, taps * outputs)
    y = _convolve3(x.reshape(batch * height, *rest, inputs), kernel, precision)
    y = jnp.pad(y.reshape(batch, height, *rest, -1), margin)
    return sum(y[:, tap : tap + height, ..., tap * outputs : (tap + 1) * outputs] for tap in range(taps))


def convolve_separable(x, over_b, over_a, precision: Any = None):
    """Filter [B,h,w,h',w',C] over b's cells by [1,k,k,C,M], then over a's by [k,k,1,M,O]; k odd, zeros around.

    Both are 3-D convolutions of maps whose cells of the other image are one axis, so that nothing is transposed.

    Returns:
      [B,h,w,h',w',O], which is `convolve` by the kernel sum_m over_b[0,k,l,c,m] over_a[i,j,0,m,o].

    >>> x = jnp.ones((1, 2, 3, 4, 5, 1))
    >>> convolve_separable(x, jnp.ones((1, 3, 3, 1, 1)), jnp.ones((3, 3, 1, 1, 1)))[0, 0, 1, 1, 1, 0].item()
    54.0
    """
    return _over_a(_over_b(x, over_b, precision), over_a, precision)


def _over_b(x, kernel, precision):
    batch, height, width, *other, channels = x.shape
    y = _convolve3(x.reshape(batch, height * width, *other, channels), kernel, precision)
    return y.reshape(batch, height, width, *other, -1)


def _over_a(x, kernel, precision):
    batch, height, width, *other, channels = x.shape
    y = _convolve3(x.reshape(batch, height, width, -1, channels), kernel, precision)
    return y.reshape(batch, height, width, *other, -1)


def _convolve3(x, kernel, precision):
    """Filter [B,i,j,k,C] by a kernel [p,q,r,C,O] of odd sides; zeros surround the map."""
    padding = [(side // 2, side // 2) for side in kernel.shape[:3]]
    axes = ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), padding, dimension_numbers=axes, precision=precision)


class Layer(nn.Module):
    """One filter of all pairs of cells, with a bias; attributes as in `NeighConsensus`.

    Attributes:
      features: O, channels of the result.
      bias: first value of the bias.
    """

    features: int
    kernel: int
    form: str
    bias: float = 0.0
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, x, swapped: bool):
        """Map [B,h,w,h',w',C] to [B,h,w,h',w',O]; `swapped` filters a's cells as b's, and b's as a's."""
        side, inputs, outputs = self.kernel, x.shape[-1], self.features
        shapes = {"kernel": (side, side, side, side, inputs, outputs)}
        if self.form == "separable":
            shapes = {"over_b": (1, side, side, inputs, outputs), "over_a": (side, side, 1, outputs, outputs)}
        kernels = [self.param(name, layers.he_kernel, shape, self.param_dtype) for name, shape in shapes.items()]
        bias = self.param("bias", nn.initializers.constant(self.bias), (outputs,), self.param_dtype)
        x, bias, *kernels = nn.dtypes.promote_dtype(x, bias, *kernels, dtype=self.dtype)
        if self.form == "full":
            # The transpose of a filtered transpose is a filter by the transposed kernel, which is the smaller array.
            kernel = kernels[0].transpose(2, 3, 0, 1, 4, 5) if swapped else kernels[0]
            return convolve(x, kernel, self.precision) + bias
        if not swapped:
            return convolve_separable(x, *kernels, self.precision) + bias
        first, second = kernels
        first, second = first.reshape(side, side, 1, *first.shape[3:]), second.reshape(1, side, side, *second.shape[3:])
        return _over_b(_over_a(x, first, self.precision), second, self.precision) + bias


class NeighConsensus(nn.Module):
    """Correlations of all pairs of cells to filtered ones, none negative.

    Attributes:
      channels: channels of each layer; the last has 1.
      kernel: side of all kernels, odd: 5 for PF-Pascal as published, 3 with channels (16, 1) for InLoc.
      form: `separable` or `full`.
      symmetric: True for net(C) + transpose(net(transpose(C))), which does not depend on the order of the images.
      dtype: type of the computation, None for the parameters' and the correlation's; the last layer is never below
        `param_dtype`.
      param_dtype: type of the parameters.
      precision: precision of the convolutions; accelerators round float32 to 10 bits or fewer by default.

    >>> correlation = jax.ShapeDtypeStruct((2, 8, 6, 7, 9), jnp.float32)
    >>> network = NeighConsensus()
    >>> variables = jax.eval_shape(network.init, jax.random.key(0), correlation)
    >>> jax.tree.map(lambda x: x.shape, variables["params"]["conv_4"])
    {'bias': (1,), 'over_a': (5, 5, 1, 1, 1), 'over_b': (1, 5, 5, 16, 1)}
    >>> jax.eval_shape(network.apply, variables, correlation).shape
    (2, 8, 6, 7, 9)
    """

    channels: tuple[int, ...] = (16, 16, 1)
    kernel: int = 5
    form: str = "separable"
    symmetric: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, correlation):
        """Filter `correlation` [B,h,w,h',w'], such as `ops.correlation.correlate` gives; the shape stays.

        Raises UserError for another shape, an unknown form, an even kernel, and channels that do not end with 1.
        """
        _check(self, correlation.shape)
        options = dict(param_dtype=self.param_dtype, precision=self.precision)
        *inner, last = (
            Layer(features, self.kernel, self.form, bias, name=f"conv_{2 * number}", dtype=dtype, **options)
            for number, (features, bias, dtype) in enumerate(
                [*((n, 0.0, self.dtype) for n in self.channels[:-1]), (self.channels[-1], LAST_BIAS, None)]
            )
        )

        def filtered(x, swapped):
            for layer in inner:
                x = nn.relu(layer(x, swapped))
            x = x.astype(jnp.promote_types(x.dtype, self.param_dtype))
            return nn.relu(last(x, swapped))

        x = correlation[..., None]
        y = filtered(x, False)
        return (y + filtered(x, True) if self.symmetric else y)[..., 0]


def of(params, **options) -> NeighConsensus:
    """The network of these parameters; `options` are its `symmetric`, `dtype`, `param_dtype` and `precision`.

    >>> shapes = jax.eval_shape(NeighConsensus((4, 1), 3).init, jax.random.key(0), jnp.zeros((1, 2, 2, 2, 2)))
    >>> of(shapes["params"]) == NeighConsensus((4, 1), 3)
    True
    """
    found = [params[f"conv_{2 * number}"] for number in range(len(params))]
    full = "kernel" in found[0]
    side = found[0]["kernel" if full else "over_a"].shape[0]
    channels = tuple(layer["bias"].shape[0] for layer in found)
    return NeighConsensus(channels, side, "full" if full else "separable", **options)


def _check(net, shape):
    if net.form not in FORMS:
        raise UserError(f"form is {net.form!r}; use {' or '.join(FORMS)}")
    if net.kernel < 1 or net.kernel % 2 == 0:
        raise UserError(f"kernel is {net.kernel}; use an odd number of cells")
    if not net.channels or net.channels[-1] != 1:
        raise UserError(f"channels is {net.channels}; the last layer has 1, as in (16, 16, 1)")
    if len(shape) != 5:
        raise UserError(f"NeighConsensus got correlations of shape {shape}; it takes [B,h,w,h',w']")
