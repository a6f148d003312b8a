"""The affinity of a kNN graph as an operator, without a matrix of N x N.

GCN-V (Yang et al. 2020, as CGB uses it; Awan et al., section 3.2) sees each vertex beside the mean of its neighbourhood

  D^-1 (max(A, A^T) + I) x,    A_ij = s_ij if s_ij > 0 and j is one of the k neighbours of i, else 0,

where D holds the row sums. A vertex may be a neighbour of many others (degrees of 337 were seen at k = 80), so the k
slots of a row do not hold all its edges. The matrix is made block by block, by a scatter of maxima, which gives the
same numbers in any order, and multiplied at once: N^2 D operations, as many as the search for neighbours takes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

_HIGHEST = jax.lax.Precision.HIGHEST


class _Rows(NamedTuple):
    """Consecutive rows of the graph: x [n,D] (zeros where masked), edges [n,k] with weight 0 where there is none."""

    x: jax.Array
    mask: jax.Array
    indices: jax.Array
    weights: jax.Array


def aggregate(graph, x, mask=None, *, mesh=None, block: int = 1024, width: int = 65536):
    """Weighted mean of every vertex and its neighbours: D^-1 (max(A, A^T) + I) x.

    Args:
      graph: object with `indices` [N,k] int32, the neighbours of each row (-1: the slot is not filled), and
        `similarities` [N,k] float. An edge counts where its similarity is above 0 and both ends are unmasked; an edge
        from a row to itself does not (the identity has it). The published code of CGB keeps 80 neighbours *including*
        the vertex itself and drops that one: its graph is the one with k = 79 here. The paper has 80 neighbours.
      x: [N,D] float rows.
      mask: [N] bool, False for rows that count nowhere; they may hold anything, NaN too.
      mesh: mesh over whose devices the rows of all arguments are split, all axes as one. Each device then makes its own
        rows, and the blocks (x [n,D], mask [n], indices and similarities [n,k]) travel once around the ring of devices,
        one at a time. If N does not divide by the number of devices, padding costs a copy between devices. Without a
        mesh the arguments are on one device or replicated; split ones would be gathered.
      block: rows of the matrix made at a time.
      width: columns of the matrix made at a time; memory is block * min(n, width) numbers, n = N / devices.

    Returns:
      [N,D] float32 (or wider, as x); zeros in masked rows. Bit-equal from run to run.

    >>> from collections import namedtuple
    >>> Graph = namedtuple("Graph", "indices similarities")
    >>> graph = Graph(jnp.array([[1], [2], [-1]]), jnp.array([[1.0], [0.5], [0.0]]))
    >>> aggregate(graph, jnp.array([[3.0], [6.0], [9.0]])).ravel().tolist()  # row 1: (1 * 3 + 6 + 0.5 * 9) / 2.5
    [4.5, 5.400000095367432, 8.0]
    """
    mask = jnp.ones(x.shape[0], bool) if mask is None else mask
    return _aggregate(graph.indices, graph.similarities, x, mask, mesh=mesh, block=block, width=width)


@functools.partial(jax.jit, static_argnames=("mesh", "block", "width"))
def _aggregate(indices, similarities, x, mask, *, mesh, block, width):
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    own = jnp.arange(x.shape[0], dtype=indices.dtype)[:, None]
    valid = mask[:, None] & (indices >= 0) & (indices != own) & (similarities > 0)  # false for NaN
    rows = _Rows(
        jnp.where(mask[:, None], x.astype(dtype), 0),
        mask,
        jnp.where(valid, indices, -1),
        jnp.where(valid, similarities.astype(dtype), 0),
    )
    if mesh is None or mesh.size == 1:
        return _finish(rows, *_sums(rows, rows, 0, 0, block, width))

    axis, devices, count = mesh.axis_names, mesh.size, x.shape[0]
    fill = -count % devices
    rows = jax.tree.map(lambda a: jnp.pad(a, [(0, fill)] + [(0, 0)] * (a.ndim - 1)), rows)
    around = [(i, (i - 1) % devices) for i in range(devices)]  # the block of the next device comes

    def local(rows):
        size, here = rows.x.shape[0], jax.lax.axis_index(axis)

        def visit(step, carry):
            total, degree, others = carry
            there = (here + step) % devices
            more, edges = _sums(rows, others, here * size, there * size, block, width)
            # The last step returns each block to its owner; a branch that skips it would cost more than it saves.
            return total + more, degree + edges, jax.lax.ppermute(others, axis, around)

        start = jnp.zeros_like(rows.x), jnp.zeros_like(rows.x[:, 0])
        total, degree, _ = jax.lax.fori_loop(0, devices, visit, (*start, rows))
        return _finish(rows, total, degree)

    return jax.shard_map(local, mesh=mesh, in_specs=P(axis), out_specs=P(axis))(rows)[:count]


def _finish(rows, total, degree):
    """Add the identity and divide by the row sums."""
    return jnp.where(rows.mask[:, None], (total + rows.x) / (degree + 1)[:, None], 0)


def _sums(rows, others, first, first_other, block, width):
    """sum_j max(A, A^T)_ij x_j [n,D] and sum_j max(A, A^T)_ij [n], over the vertices j of `others`.

    `first` and `first_other` are the numbers of the first vertices of `rows` and `others`.
    """
    count = others.x.shape[0]
    parts = -(-count // width)
    if parts <= 1:
        return _part_sums(rows, others, first, first_other, block)
    length = -(-count // parts)

    def add(part, sums):
        # The last part starts earlier to be whole; what it has twice counts as masked.
        start = jnp.minimum(part * length, count - length)
        fresh = start + jnp.arange(length) >= part * length
        cut = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, length), others)
        cut = cut._replace(mask=cut.mask & fresh)
        return jax.tree.map(jnp.add, sums, _part_sums(rows, cut, first, first_other + start, block))

    return jax.lax.fori_loop(0, parts, add, (jnp.zeros_like(rows.x), jnp.zeros_like(rows.x[:, 0])))


def _part_sums(rows, others, first, first_other, block):
    """Compute `_sums` with a matrix of all columns at a time."""
    count, other_count = rows.x.shape[0], others.x.shape[0]
    block = min(block, count)
    blocks = -(-count // block)
    # Slots that point elsewhere are sent beyond the end, where a scatter drops them.
    forth = _within(rows.indices, first_other, other_count)
    back = _within(others.indices, first, count)
    column = jnp.broadcast_to(jnp.arange(other_count)[:, None], back.shape)

    def one(start):
        # The last block starts earlier to be whole; the rows it computes twice are the same.
        start = jnp.minimum(start, count - block)
        pick = lambda values: jax.lax.dynamic_slice_in_dim(values, start, block)
        row = jnp.broadcast_to(jnp.arange(block)[:, None], (block, forth.shape[1]))
        matrix = jnp.zeros((block, other_count), rows.x.dtype)
        matrix = matrix.at[row, pick(forth)].max(pick(rows.weights), mode="drop")
        matrix = matrix.at[_within(back, start, block), column].max(others.weights, mode="drop")
        matrix = jnp.where(others.mask & pick(rows.mask)[:, None], matrix, 0)
        return jnp.einsum("bn,nd->bd", matrix, others.x, precision=_HIGHEST), jnp.sum(matrix, 1)

    if blocks == 1:
        return one(0)
    starts = jnp.minimum(jnp.arange(blocks) * block, count - block)
    total, degree = jax.lax.map(one, starts)
    whole = (blocks - 1) * block
    join = lambda parts: jnp.concatenate([parts[:-1].reshape(whole, *parts.shape[2:]), parts[-1][whole - count :]])
    return join(total), join(degree)


def _within(indices, first, count):
    """Convert vertex numbers to places in the `count` rows from `first` on; others become `count` + 1."""
    place = indices - first
    return jnp.where((place >= 0) & (place < count) & (indices >= 0), place, count + 1)
