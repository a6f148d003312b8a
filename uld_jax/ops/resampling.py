"""Read photographs between their pixels: few channels at very many points, in the form that suits the device.

`keypoints.bilinear` does the same for maps of many channels at few points. Its gathers are right for a photograph on
CPU and GPU, but a TPU puts the three colours of each pixel that is read in the 128 lanes of a register: 125 bytes of
padding for 3 of colour. There `by_products` selects with matrix products, for which a TPU is built.
"""

import jax
import jax.numpy as jnp

from uld_jax.ops import coordinates, keypoints

_BLOCK = 8  # pixels, the side of a block of `by_products`


def bilinear(image, xy):
    """Read one photograph between its pixels: image [H,W,C] and points [P,2] in its pixels to values [P,C].

    Outside the image its border repeats. The result is float32, or wider if an argument is. Pixels must be finite: on
    a TPU a NaN would spread over the whole result.

    >>> bilinear(jnp.arange(4.0).reshape(2, 2, 1), jnp.array([[0.5, 0.5]]))[0, 0].item()
    1.5
    """
    if jnp.result_type(image.dtype, xy.dtype, jnp.float32) != jnp.float32:
        return keypoints.bilinear(image, xy)  # a TPU has no units for float64
    return jax.lax.platform_dependent(image, xy, tpu=by_products, default=keypoints.bilinear)


def by_products(image, xy):
    """Read as `bilinear` does, by matrix products without a gather.

    A point's block of 9 x 9 pixels (blocks overlap by one) is selected by the product of all blocks with a one-hot
    vector, which is exact: bytes are bfloat16 numbers, and float32 has a product of its precision. Sums over the block
    with two weights in each row, and then two in each column, interpolate. The points lie in the lanes throughout.
    """
    height, width, channels = image.shape
    dtype = jnp.result_type(image.dtype, xy.dtype, jnp.float32)
    exact = jnp.bfloat16 if image.dtype in (jnp.uint8, jnp.bfloat16) else dtype
    cell = keypoints.cell_of(xy.astype(dtype), height, width)
    rows, columns = -(-height // _BLOCK), -(-width // _BLOCK)
    missing = rows * _BLOCK + 1 - height, columns * _BLOCK + 1 - width
    padded = jnp.pad(image, [*((0, n) for n in missing), (0, 0)])
    # The pixels of all blocks, [C,9,9,blocks].
    lines = jnp.stack([padded[i : i + rows * _BLOCK : _BLOCK] for i in range(_BLOCK + 1)])
    pixels = jnp.stack([lines[:, :, i : i + columns * _BLOCK : _BLOCK] for i in range(_BLOCK + 1)])
    table = pixels.transpose(4, 1, 0, 2, 3).reshape(channels, _BLOCK + 1, _BLOCK + 1, rows * columns).astype(exact)
    block = cell.top // _BLOCK * columns + cell.left // _BLOCK
    chosen = (jnp.arange(rows * columns)[:, None] == block).astype(exact)
    found = jnp.einsum("cijn,np->cijp", table, chosen, precision="highest", preferred_element_type=dtype)
    found = jnp.sum(found * _weights(cell.left % _BLOCK, cell.right_weight), 2)
    return jnp.sum(found * _weights(cell.top % _BLOCK, cell.lower_weight), 1).T


def scaled(images, size, zoom: float = 1.0, dtype=jnp.float32):
    """Show the central fraction `zoom` of photographs [B,H,W,C] in `size` = (h, w) pixels, [B,h,w,C].

    This is the view of `warp.identity(zoom, dtype)`, which needs no reading point by point: rows and columns are mixed
    by a matrix product each. The result is float32, or wider if `dtype` is.

    >>> scaled(jnp.arange(4.0).reshape(1, 1, 4, 1), (1, 2))[0, 0, :, 0].tolist()
    [0.5, 2.5]
    """
    dtype = jnp.result_type(images.dtype, dtype, jnp.float32)
    across, down = (_mixture(n, m, zoom, dtype) for n, m in zip(images.shape[2:0:-1], size[::-1], strict=True))
    found = jnp.einsum("vw,bhwc->bhvc", across, images.astype(dtype), precision="highest")
    return jnp.einsum("uh,bhvc->buvc", down, found, precision="highest")


def _mixture(source: int, view: int, zoom: float, dtype):
    """The share [view,source] that each source pixel of a line has in each pixel of its scaled line."""
    line = jnp.zeros((view, 2), dtype).at[:, 0].set(jnp.arange(view, dtype=dtype))
    unit = zoom * coordinates.to_unit(line, (1, view))
    cell = keypoints.cell_of(coordinates.from_unit(unit, (1, source)), 1, source)
    number, share = jnp.arange(source), cell.right_weight[:, None]
    return jnp.where(number == cell.left[:, None], 1 - share, jnp.where(number == cell.left[:, None] + 1, share, 0))


def _weights(first, second_weight):
    """Weights [9,P] of a block's lines: those of the lines `first` [P] and `first` + 1, zero for the rest."""
    number = jnp.arange(_BLOCK + 1)[:, None]
    return jnp.where(number == first, 1 - second_weight, jnp.where(number == first + 1, second_weight, 0))
