"""Hypercolumns (Hariharan et al. 2015) of a pyramid of feature maps, without hypercolumns where linearity allows.

A pyramid is a tuple of maps [B,h_l,w_l,C_l], in any order. Its hypercolumn at a side R is the concatenation of all
maps, each resized to R x R; the maps of ResNet-50's four stages make 3840 channels (LEAD, Karmali et al. 2022).
Resizing is bilinear with half-pixel centres and without a low-pass filter, as PyTorch's
`interpolate(align_corners=False)`; where a map is enlarged, `jax.image.resize` gives the same.

Resizing is a linear map U_l of cells, and sums over channels are sums over levels. Therefore:

  <a_u, b_v> = sum_l [U_l (A_l' B_l) U_l']_uv     inner products, from each level's Gram matrix at its own size
  W' a       = sum_l U_l (W_l' A_l)               a 1 x 1 convolution, from one of each level at its own size

Cells are numbered in reading order, cell = y * R + x. Sums are float32, or wider if a map is, at the highest precision.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.errors import UserError
from uld_jax.ops import coordinates, keypoints

Pyramid = tuple[jax.Array, ...]

_EPS = 1e-12  # the smallest length by which a hypercolumn is divided

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@functools.cache
def resize_matrix(n_in: int, n_out: int) -> np.ndarray:
    """The matrix [n_out,n_in] float32 that resizes one axis of a map from `n_in` to `n_out` cells.

    Output i lies at (i + 0.5) n_in / n_out - 0.5 of the input, whose border repeats. A row has at most two entries that
    are not 0, side by side, so an axis that is shortened is sampled and not averaged.

    >>> resize_matrix(2, 4).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    at = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    matrix = np.maximum(1 - np.abs(at[:, None] - np.arange(n_in)), 0).astype(np.float32)
    matrix.setflags(write=False)  # all callers share it
    return matrix


def materialise(pyramid: Pyramid, side: int):
    """The hypercolumns of all cells, [B,side,side,sum C_l]: a reference, and for what needs few images.

    >>> maps = jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 1, 1, 2))
    >>> materialise(maps, 2)[0, 1, 1].tolist()
    [1.0, 1.0, 1.0, 0.0, 0.0]
    """
    _check(pyramid)
    return jnp.concatenate([_resize_map(x, side) for x in pyramid], -1)


def at_cells(pyramid: Pyramid, side: int, index):
    """The hypercolumns [B,P,sum C_l] of chosen cells alone.

    Args:
      pyramid: maps [B,h_l,w_l,C_l].
      side: R.
      index: [B,P] int32 cells, or [P] for the same ones in all images.
    """
    _check(pyramid)
    return jnp.concatenate([_sample(x, side, index) for x in pyramid], -1)


def linear(pyramid: Pyramid, kernels, side: int):
    """A 1 x 1 convolution of the hypercolumns, [B,side,side,F], as a sum of resized convolutions of the levels.

    Args:
      pyramid: maps [B,h_l,w_l,C_l].
      kernels: a kernel [C_l,F] for each level; those of a kernel [sum C_l,F] are its rows in the pyramid's order.
      side: R.

    Raises:
      UserError: kernels that do not fit the maps.
    """
    _check(pyramid)
    have, take = [x.shape[-1] for x in pyramid], [k.shape[0] for k in kernels]
    if have != take:
        raise UserError(f"kernels take {take} input channels; give one kernel for each map, whose channels are {have}")
    levels = [_einsum("byxc,cf->byxf", x, k) for x, k in zip(pyramid, kernels)]
    whole = [_resize_map(x, side) for x in levels if x.shape[1] == side]
    rows = [_resize_across(x, side) for x in levels if x.shape[1] != side]
    if rows:
        # One product over the rows of all levels, so that only one array of the final size is written.
        down = jnp.concatenate([_matrix(x, 1, side) for x in rows], 1)
        whole.append(_einsum("byXc,Yy->bYXc", jnp.concatenate(rows, 1), down))
    return sum(whole)


def squared_norms(pyramid: Pyramid, side: int):
    """Squared lengths of the hypercolumns, [B,side,side].

    An interpolated vector is a weighted sum of four neighbours, which lie in two adjacent rows of cells. Its squared
    length needs no inner products but those within a row and those of a row with the next one. With v and u the weights
    of `resize_matrix` along y and x, and G_y,z = [A_y' A_z] the Gram matrices of rows y and z of a level,

      |a|^2_YX = sum_y v_Yy^2 (u_X' G_y,y u_X) + sum_y 2 v_Yy v_Y,y+1 (u_X' G_y,y+1 u_X)

    These are 2 h_l w_l^2 C_l multiplications, by matrix products that copy nothing but shifted rows. The five products
    of a cell with its neighbours alone would be fewer, but XLA copies a shifted map for each, which was measured as
    six times the memory of the pyramid on CPU; a whole Gram matrix is h_l / 2 times the work, and the interpolated
    vectors are the hypercolumns. A level that already has the final size has no neighbours.

    Where features of opposite sign cancel, the result loses digits relative to the native cells' squared lengths.
    Features after a ReLU do not cancel.
    """
    _check(pyramid)
    return sum(_level_norms(x, side) for x in pyramid)


def cosine(a: Pyramid, b: Pyramid, side: int):
    """Cosine of every hypercolumn of `a` with every hypercolumn of `b`, [B,side^2,side^2]; 0 for one of length 0.

    The result is the only array of its size; where it is too large, read `cosine_rows` or `rows_of`.
    """
    _check(a, b)
    total = 0
    for x, y in zip(a, b):
        gram = _einsum("byxc,bklc->byxkl", x, y, preferred_element_type=_wide(x, y))
        gram = _resize_map(gram.reshape(*gram.shape[:3], -1), side)  # of a's cells
        gram = gram.reshape(len(gram), side * side, *y.shape[1:3])
        total = total + _resize_last(gram, side)
    return total * _inverse_lengths(a, side)[:, :, None] * _inverse_lengths(b, side)[:, None]


class Similarity(NamedTuple):
    """What rows of `cosine` are computed from, made once by `similarity` for many reads.

    Attributes:
      maps: per level, either the Gram matrix as a map of a's cells, [B,h,w,h' w'], or a's map itself, [B,h,w,C].
      others: per level b's map [B,h',w',C], or after a Gram matrix [B,h',w',0], which only holds its shape.
      inverse_a, inverse_b: [B,R^2], one over the lengths of the hypercolumns.
    """

    maps: tuple[jax.Array, ...]
    others: tuple[jax.Array, ...]
    inverse_a: jax.Array
    inverse_b: jax.Array


def similarity(a: Pyramid, b: Pyramid, side: int, count: int | None = None) -> Similarity:
    """Prepare for `rows_of`.

    A level of which more rows are read than it has cells is kept as its Gram matrix; of another level the inner
    products are computed anew for each read, which costs no more and stores nothing: at R = 24 the Gram matrix of the
    finest map of ResNet-50 would be as large as the result.

    Args:
      a, b: pyramids of the same channels.
      side: R.
      count: number of rows that all reads together will ask for; R^2 by default.
    """
    _check(a, b)
    count = side * side if count is None else count
    maps, others = [], []
    for x, y in zip(a, b):
        if x.shape[1] * x.shape[2] < count:
            gram = _einsum("byxc,bklc->byxkl", x, y, preferred_element_type=_wide(x, y))
            x, y = gram.reshape(*gram.shape[:3], -1), y[..., :0]
        maps.append(x)
        others.append(y)
    return Similarity(tuple(maps), tuple(others), _inverse_lengths(a, side), _inverse_lengths(b, side))


def rows_of(prepared: Similarity, rows):
    """Rows [B,P,R^2] of the cosine between cells `rows` of a, [P] or [B,P] int32, and all cells of b."""
    side = math.isqrt(prepared.inverse_a.shape[1])
    total = 0
    for x, y in zip(prepared.maps, prepared.others):
        read = _sample(x, side, rows)  # [B,P,C], or a row of the Gram matrix
        if y.shape[-1]:
            # A map of the final size is read without interpolation, so that its own type holds what is read.
            read = read.astype(y.dtype) if x.shape[1:3] == (side, side) else read
            read = _einsum("bpc,bklc->bpkl", read, y, preferred_element_type=_wide(x, y))
        total = total + _resize_last(read.reshape(*read.shape[:2], *y.shape[1:3]), side)
    own = jnp.take_along_axis(prepared.inverse_a, _each(rows, len(total)), 1)
    return total * own[:, :, None] * prepared.inverse_b[:, None]


def cosine_rows(a: Pyramid, b: Pyramid, side: int, rows):
    """Rows [B,P,side^2] of `cosine`: some cells of `a`, such as one query an image, with all cells of `b`.

    At R = 96, where all rows are 340 MB a pair, a row is 37 kB.

    Args:
      a, b: pyramids of the same channels.
      side: R.
      rows: [B,P] int32 cells of `a`, or [P] for the same ones in all images.
    """
    return rows_of(similarity(a, b, side, np.shape(rows)[-1]), rows)


def _check(*pyramids):
    for pyramid in pyramids:
        if not pyramid or any(x.ndim != 4 for x in pyramid):
            raise UserError(f"a pyramid has maps of shape {[x.shape for x in pyramid]}; give one or more [B,h,w,C]")
    channels = [[x.shape[-1] for x in pyramid] for pyramid in pyramids]
    if any(each != channels[0] for each in channels):
        raise UserError(f"pyramids have channels {channels[0]} and {channels[-1]}; give the same levels of both images")


def _wide(*arrays):
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def _matrix(x, axis, side):
    return jnp.asarray(resize_matrix(x.shape[axis], side), _wide(x))


def _resize_map(x, side):
    """Resize [B,h,w,C] to [B,side,side,C]; a map of that size already stays as it is."""
    x = _resize_across(x, side)
    return x if x.shape[1] == side else _einsum("byxc,Yy->bYxc", x, _matrix(x, 1, side))


def _resize_across(x, side):
    """Resize [B,h,w,C] to [B,h,side,C]."""
    x = x.astype(_wide(x))
    return x if x.shape[2] == side else _einsum("byxc,Xx->byXc", x, _matrix(x, 2, side))


def _resize_last(x, side):
    """Resize [B,P,h,w] to [B,P,side^2]."""
    if x.shape[3] != side:
        x = _einsum("bpyx,Xx->bpyX", x, _matrix(x, 3, side))
    if x.shape[2] != side:
        x = _einsum("bpyx,Yy->bpYx", x, _matrix(x, 2, side))
    return x.reshape(*x.shape[:2], -1)


def _each(index, batch):
    return jnp.broadcast_to(index, (batch, np.shape(index)[-1]))


def _sample(x, side, index):
    """Read the map [B,h,w,C] at cells of the larger map, [B,P,C]: four neighbours each."""
    cell = _each(index, len(x))
    xy = jnp.stack([cell % side, cell // side], -1).astype(_wide(x))
    return keypoints.sample(x, coordinates.rescale_points(xy, (side, side), x.shape[1:3]))


def _level_norms(x, side):
    across = _matrix(x, 2, side)
    down = resize_matrix(x.shape[1], side)
    own, pair = down**2, 2 * down[:, :-1] * down[:, 1:]

    def along_rows(weights, a, b):
        """sum_y weights_Yy |row y interpolated at X|^2, or its product with the row below: [B,side,side]."""
        gram = _einsum("byxc,bykc->byxk", a, b, preferred_element_type=across.dtype)
        return _einsum("byxk,Xx,Xk,Yy->bYX", gram, across, across, jnp.asarray(weights, across.dtype))

    if x.shape[1:3] == (side, side):
        return jnp.sum(x.astype(across.dtype) ** 2, -1)
    square = along_rows(own, x, x)
    if np.any(pair):
        square = square + along_rows(pair, x[:, :-1], x[:, 1:])
    return jnp.maximum(square, 0)


def _inverse_lengths(pyramid, side):
    square = squared_norms(pyramid, side)
    return jax.lax.rsqrt(jnp.maximum(square, _EPS**2)).reshape(len(square), -1)
