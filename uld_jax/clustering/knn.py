"""The exact k nearest neighbours of every row by cosine: jitted, masked, and a ring of devices on a mesh.

CGB (Awan et al., section 3.2) clusters descriptors by the graph of their 80 nearest neighbours. Descriptors can be
nearly collinear (cosines that differ by 1e-4), so the products are float32 at the highest precision.

No N x N matrix ever exists. A block of rows is compared with a block of keys, and the best k so far are merged with the
best k of this tile. On a mesh each device keeps its own rows, and the keys travel once around the ring of devices: no
device ever holds more than its own rows and those of one other.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec as P

from uld_jax import devices, sharding
from uld_jax.errors import UserError
from uld_jax.ops import keypoints

_HIGHEST = jax.lax.Precision.HIGHEST
_GROUP = 16  # columns in a group; at first only the largest of each group is compared


class KnnGraph(NamedTuple):
    """The neighbours of every row, the most similar first.

    Attributes:
      indices: [N,k] int32, row numbers of the neighbours. -1 in slots that could not be filled: those of masked rows,
        and the last ones where fewer than k other rows are unmasked. Such a slot gathers the last row, which may be
        masked and hold NaN; ask for `indices >= 0` before the gathered numbers are used.
      similarities: [N,k] float32 (or wider, as x), their cosines. 0 in unfilled slots: no edge where edges have
        similarities above 0, and nothing in a sum.
    """

    indices: jax.Array
    similarities: jax.Array


def knn_graph(
    x,
    k: int,
    *,
    mask=None,
    mesh=None,
    block: int | None = None,
    width: int | None = None,
    approximate: bool = False,
    recall_target: float = 0.95,
) -> KnnGraph:
    """The k most similar other rows of every row.

    A row is excluded from its own list by its number, so an equal row is a proper neighbour. Of equally similar rows
    the one of lower number comes first (equal as computed: cosines of equal rows may differ by 1e-7). A row of zeros
    has cosine 0 to all. A row that is not finite is treated as masked.

    The work is 2 N^2 D operations. Memory beside x and the result is a copy of x and `block * width` similarities, and
    on a mesh one more block of keys [N / devices, D] (two while one is on its way), on each device.

    Args:
      x: [N,D] float rows of any length, on one device or split over a mesh on axis 0.
      k: number of neighbours of a row, without itself; it may exceed the number of rows.
      mask: [N] bool, False for rows that have no neighbours and are no neighbours; they may hold anything, NaN too.
      mesh: the devices of the ring, all axes of the mesh as one. By default those over which x is split, or
        inside `jax.jit`, where that cannot be seen, those of `jax.set_mesh`. If N does not divide by their number, a
        copy of x between devices is needed.
      block: rows at a time; by default 512 on a CPU, else 1280. It changes only time and memory.
      width: keys at a time; by default 32768 on a CPU, else 65536. It changes only time and memory.
      approximate: True for `jax.lax.approx_max_k` instead of exact choice (Chern et al. 2022). It is faster on a TPU,
        where some neighbours may be missing and ties be in any order. On other devices it is exact and slower.
      recall_target: with `approximate`, the expected share of neighbours that are found in each tile.

    Raises:
      UserError: k below 1, or shapes that do not fit.

    >>> x = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    >>> graph = knn_graph(x, 2)
    >>> graph.indices.tolist()
    [[1, 3], [0, 3], [3, 0], [0, 1]]
    >>> [f"{cosine:.4f}" for cosine in graph.similarities[0]]
    ['1.0000', '0.7071']
    >>> knn_graph(x, 2, mask=jnp.array([True, True, True, False])).indices.tolist()
    [[1, 2], [0, 2], [0, 1], [-1, -1]]
    """
    x, mask = sharding.arrays(x, mask)
    if x.ndim != 2:
        raise UserError(f"knn_graph got x of shape {x.shape}; it needs rows [N,D]")
    if mask is not None and mask.shape != x.shape[:1]:
        raise UserError(f"knn_graph got mask of shape {mask.shape}; these rows need {x.shape[:1]}")
    if k < 1 or (width is not None and width < 1) or (block is not None and block < 1):
        raise UserError(f"knn_graph got k={k}, block={block}, width={width}; use numbers above 0")
    mesh = sharding.mesh_of(x) if mesh is None else mesh
    if mesh is not None and mesh.size == 1:
        mesh = None
    cpu = devices.platform() == "cpu"
    block, width = block or (512 if cpu else 1280), width or (32768 if cpu else 65536)
    sorts = _sorts() and not approximate
    target = recall_target if approximate else None
    return _knn_graph(x, mask, k=k, mesh=mesh, block=block, width=width, target=target, sorts=sorts)


def _sorts() -> bool:
    """Whether the best are chosen by sorts along columns, `_by_sorting`."""
    return devices.platform() == "tpu"


@functools.partial(jax.jit, static_argnames=("k", "mesh", "block", "width", "target", "sorts"))
def _knn_graph(x, mask, *, k, mesh, block, width, target, sorts):
    count, dtype = x.shape[0], jnp.promote_types(x.dtype, jnp.float32)
    if count == 0:
        return KnnGraph(jnp.zeros((0, k), jnp.int32), jnp.zeros((0, k), dtype))
    mask = jnp.ones(count, bool) if mask is None else mask
    search = functools.partial(_search, k=k, block=block, width=width, target=target, sorts=sorts)
    if mesh is None:
        return search(x, mask, axes=None, devices=1)
    axes, missing = mesh.axis_names, -count % mesh.size
    local = functools.partial(search, axes=axes, devices=mesh.size)
    ring = jax.shard_map(local, mesh=mesh, in_specs=P(axes), out_specs=P(axes))
    if not missing:
        return ring(x, mask)
    graph = ring(jnp.pad(x, ((0, missing), (0, 0))), jnp.pad(mask, (0, missing)))
    return jax.tree.map(lambda field: field[:count], graph)


def recall(found, true):
    """Share of the true neighbours that were found: two `indices`, [N,j] and [N,k], to a float32 scalar.

    Unfilled slots (-1) count on neither side; without any true neighbour the recall is 1.

    >>> float(recall(jnp.array([[1, 2], [0, -1]]), jnp.array([[2, 1], [2, 3]])))
    0.5
    """
    there = true >= 0
    # One column at a time: [N,j,k] comparisons would be 6 GB at a million rows and k = 80.
    columns = jnp.where(there, true, -2).T
    hits = jax.lax.map(lambda column: jnp.sum(jnp.any(found == column[:, None], 1), dtype=jnp.float32), columns)
    total = jnp.sum(there, dtype=jnp.float32)
    return jnp.where(total > 0, jnp.sum(hits) / jnp.maximum(total, 1), 1)


def _search(x, mask, *, k, axes, devices, block, width, target, sorts):
    """Search on one device, whose rows are x [n,D] with mask [n]."""
    size, here = x.shape[0], 0 if axes is None else jax.lax.axis_index(axes)
    x, mask = _unit(x, mask)

    # Blocks of equal size that cover the rows with little padding: `wide` of keys, of `tall` blocks of rows each.
    wide = -(-size // width)
    tall = -(-size // (wide * block))
    block = -(-size // (wide * tall))
    block += -block % _GROUP if size > _GROUP else 0
    rows = wide * tall * block
    x, mask = jnp.pad(x, ((0, rows - size), (0, 0))), jnp.pad(mask, (0, rows - size))
    position = jnp.arange(rows, dtype=jnp.int32)
    queries, owners = x.reshape(wide * tall, block, -1), (here * size + position).reshape(wide * tall, block)

    def meet(best, keys, valid, there):
        """Merge the keys of device `there` into the best [blocks,block,k] of all rows."""
        keys = keys.reshape(wide, tall * block, -1)
        valid, names = valid.reshape(wide, -1), (there * size + position).reshape(wide, -1)

        def rows_of(inputs):
            query, owner, best = inputs
            choose = _by_sorting if sorts else functools.partial(_by_top_k, target=target)
            tile = lambda best, keys: (choose(best, query, owner, *keys), None)
            return jax.lax.scan(tile, best, (keys, valid, names))[0]

        return jax.lax.map(rows_of, (queries, owners, best))

    lists = 1 if sorts else min(devices, 2)
    shape = (lists, wide * tall, *((k, block) if sorts else (block, k)))
    best = jnp.full(shape, -jnp.inf, x.dtype), jnp.full(shape, -1, jnp.int32)
    if axes is None:
        values, indices = meet(jax.tree.map(lambda a: a[0], best), x, mask, 0)
    else:
        best = jax.lax.pcast(best, axes, to="varying")
        around = [(i, (i - 1) % devices) for i in range(devices)]  # the keys of the next device come

        def visit(step, carry):
            best, keys, valid = carry
            coming = jax.lax.ppermute((keys, valid), axes, around)  # nothing waits for it until the tiles are done
            # The keys come in order of their numbers, but for one jump from the last device to the first. Two lists,
            # of what came before and after it, keep ties in order; sorts need one, because they compare the numbers.
            there = (here + step) % devices
            jumped = (there < here).astype(jnp.int32) if lists == 2 else 0
            new = meet(jax.tree.map(lambda a: a[jumped], best), keys, valid, there)
            return jax.tree.map(lambda a, b: a.at[jumped].set(b), best, new), *coming

        (values, indices), *_ = jax.lax.fori_loop(0, devices, visit, (best, x, mask))
        flat = lambda late: (values[late].reshape(-1, k), indices[late].reshape(-1, k))
        values, indices = _merge(flat(1), flat(0)) if lists == 2 else (values[0], indices[0])
    if sorts:
        values, indices = jnp.moveaxis(values, 1, 2), jnp.moveaxis(indices, 1, 2)
    values, indices = values.reshape(-1, k)[:size], indices.reshape(-1, k)[:size]
    filled = mask[:size, None] & (values > -jnp.inf)
    return KnnGraph(jnp.where(filled, indices, -1), jnp.where(filled, values, 0))


def _unit(x, mask):
    """Rows scaled to length 1 (zeros where masked), and the mask without rows that are not finite."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mask = mask & jnp.all(jnp.isfinite(x), 1)
    return keypoints.unit(jnp.where(mask[:, None], x, 0)), mask


def _by_top_k(best, query, owner, key, valid, name, target):
    """Merge keys into the best of a block of rows.

    Args:
      best: values and indices [n,k], the best so far.
      query, owner: [n,D] and [n], the rows and their numbers.
      key, valid, name: [m,D], [m] and [m], the keys, their mask and their numbers, which rise by 1.
      target: the expected recall of an approximate choice; None for the exact one.
    """
    similarity = jnp.einsum("nd,md->nm", query, key, precision=_HIGHEST)
    similarity = jnp.where(valid & (name != owner[:, None]), similarity, -jnp.inf)
    found, place = _top(similarity, min(best[0].shape[1], len(name)), target)
    return _merge(best, (found, name[place]))


def _by_sorting(best, query, owner, key, valid, name):
    """Merge keys into the best [k,n] of a block of rows; for the arguments see `_by_top_k`.

    The same choice in two steps as in `_top`, for a TPU. Rows lie along the last axis, keys across: a group is whole
    tiles of the product, so that neither its maximum nor its members need the product in another layout. Numbers
    travel with the values that are sorted, because to look up single numbers afterwards is slow there; where values
    are equal the sort compares the numbers.
    """
    k, columns = best[0].shape[0], key.shape[0]
    group = _GROUP if columns % _GROUP == 0 and columns >= 2 * _GROUP * k else 1
    split = lambda a: a.reshape(columns // group, group, *a.shape[1:])
    similarity = jnp.einsum("gmd,nd->gmn", split(key), query, precision=_HIGHEST)
    there = split(valid)[..., None] & (split(name)[..., None] != owner)
    similarity = jnp.where(there, similarity, -jnp.inf)
    if group == 1:
        names = jnp.broadcast_to(name[:, None, None], similarity.shape)
    else:
        # The compiler would put members of a group far apart for the maxima, and copy the product for the choice.
        similarity = with_layout_constraint(similarity, Layout(major_to_minor=(0, 1, 2)))
        half = group // 2
        highest = jnp.max(jnp.maximum(similarity[:, :half], similarity[:, half:]), 1)
        _, chosen = _first(k, highest, jax.lax.broadcasted_iota(jnp.int32, highest.shape, 0))
        similarity = jnp.take_along_axis(similarity, chosen[:, None], 0)
        names = name[0] + chosen[:, None] * group + jnp.arange(group, dtype=jnp.int32)[:, None]
    flat = lambda a: a.reshape(-1, a.shape[-1])
    return _first(k, *(jnp.concatenate(pair) for pair in zip(best, (flat(similarity), flat(names)), strict=True)))


def _first(count, values, names):
    """The `count` largest values of each column of [m,n] and their names; of equals the lower names come first."""
    values, names = jax.lax.sort((-values, names), dimension=0, num_keys=2, is_stable=False)
    return -values[:count], names[:count]


def _merge(first, second):
    """The best k of two lists of (values, indices) [n,k] and [n,j]; of equals those of the first list come first."""
    k = first[0].shape[1]
    values, indices = (jnp.concatenate(pair, 1) for pair in zip(first, second, strict=True))
    values, place = jax.lax.top_k(values, k)
    return values, jnp.take_along_axis(indices, place, 1)


def _top(values, k, target):
    """Values and places of the k largest of each row of [n,m]; of equals the lower place comes first.

    Long rows take two exact steps, which save most of the sorting: the k largest lie in the k groups of the largest
    maxima, because for an element outside of them each of these groups holds one that is larger, or equal and before.
    """
    if target is not None:
        return jax.lax.approx_max_k(values, k, recall_target=target)
    rows, columns = values.shape
    if columns % _GROUP or columns < 2 * _GROUP * k:
        return jax.lax.top_k(values, k)
    groups = values.reshape(rows, -1, _GROUP)
    _, chosen = _top(jnp.max(groups, 2), k, None)
    chosen = jnp.sort(chosen, 1)  # so that places rise again
    members = jnp.take_along_axis(groups, chosen[:, :, None], 1).reshape(rows, -1)
    found, place = _top(members, k, None)
    return found, jnp.take_along_axis(chosen, place // _GROUP, 1) * _GROUP + place % _GROUP
