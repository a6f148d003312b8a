"""Clusters of a kNN graph whose rows link to more confident neighbours: jitted, masked, static shapes.

CGB (Awan et al., section 3.2) with the linking of GCN-V (Yang et al. 2020):

    1) the kNN graph of the descriptors
    2) a confidence for every row, predicted by a network: how much its neighbourhood is of its own kind (Eq. 1)
    3) every row links to its nearest neighbour that is strictly more confident, if that is similar enough
    4) links lead uphill to a peak; a peak and all rows that reach it are a cluster
    5) centroids: means of the rows at their own lengths, scaled to length 1

The number of clusters follows from the data. The result has a fixed number of slots; `count` exceeds it if there were
too few.
"""

import functools
import logging
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uld_jax import sharding
from uld_jax.clustering import gcn_v
from uld_jax.clustering.knn import knn_graph
from uld_jax.errors import UserError
from uld_jax.ops import keypoints

_HIGHEST = jax.lax.Precision.HIGHEST
_ONE_HOT = 2**27  # numbers of one-hot labels at a time
LINK_SPACES = ("gcn_hidden", "descriptor")


class GraphClusters(NamedTuple):
    """A clustering.

    Attributes:
      labels: [N] int32, cluster of every row, 0 for the largest cluster; -1 for rows that are masked, not finite, or
        in a cluster beyond the last slot.
      centroids: [M,D] float32 (or wider, as x) of length 1; zeros in unused slots.
      count: int32, number of clusters; more than M if the slots were too few.
      confidence: [N] float32 (or wider, as x); 0 for rows that are masked or not finite.
    """

    labels: jax.Array
    centroids: jax.Array
    count: jax.Array
    confidence: jax.Array


def gcn_clusters(
    x,
    params: Any = None,
    *,
    k: int = 80,
    tau: float = 0.8,
    mask=None,
    confidence: str = "gcn",
    link_space: str = "gcn_hidden",
    slots: int = 512,
    mesh=None,
) -> GraphClusters:
    """Cluster rows by confidence.

    Args:
      x: [N,D] float rows of any length, on one device or split over a mesh on axis 0.
      params: parameters of the GCN-V (`models/gcn_v.py`); None for those that ship with the library. These need
        D = 256: for other descriptors the confidence is `density`, and the log says so. Unused with
        `confidence="density"`.
      k: number of neighbours of a row, without itself. There may be fewer rows.
      tau: a row links only to a neighbour of a cosine above this.
      mask: [N] bool, False for rows that count nowhere; they may hold anything, NaN too. Rows that are not finite
        count nowhere either.
      confidence: `gcn`, the network; or `density`, the mean cosine to the k neighbours, which needs no network.
      link_space: space in which "nearest" and `tau` of step 3 are measured: the network's hidden layer (published
        code), or the descriptors. With `density` it is always the descriptors.
      slots: M, the number of slots.
      mesh: mesh over whose axis the work is spread; by default the one that x is split over, or inside `jax.jit` that
        of `jax.set_mesh`. N need not divide by its size.

    Raises:
      UserError: an unknown confidence or link space, shapes that do not fit, or `params` made for another D.

    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> found = gcn_clusters(x, confidence="density", k=2, slots=4)
    >>> found.labels.tolist(), int(found.count)
    ([0, 0, 0, 1, 1], 2)
    """
    if confidence not in ("gcn", "density"):
        raise UserError(f"gcn_clusters got confidence={confidence!r}; use gcn or density")
    if link_space not in LINK_SPACES:
        raise UserError(f"gcn_clusters got link_space={link_space!r}; use {' or '.join(LINK_SPACES)}")
    x, mask = sharding.arrays(x, mask)
    if x.ndim != 2 or (mask is not None and mask.shape != x.shape[:1]):
        raise UserError(f"gcn_clusters got x {x.shape} and mask {getattr(mask, 'shape', None)}; give [N,D] and [N]")
    if k < 1 or slots < 1:
        raise UserError(f"gcn_clusters got k={k} and slots={slots}; use numbers above 0")
    if confidence == "gcn":
        given, params = params is not None, gcn_v.load_default() if params is None else params
        if x.shape[1] != gcn_v.size(params):
            if given:
                raise UserError(
                    f"the GCN-V was made for descriptors of {gcn_v.size(params)} numbers, and these have {x.shape[1]}; "
                    "use confidence=density, or train one for them (uld gcn)"
                )
            logging.warning(
                "the GCN-V that ships is for descriptors of %d numbers and these have %d: confidence is density",
                *(gcn_v.size(params), x.shape[1]),
            )
            confidence = "density"
    if confidence == "density":
        params, link_space = None, "descriptor"
    mesh = sharding.mesh_of(x) if mesh is None else mesh
    return _clusters(x, params, mask, tau, k=k, link_space=link_space, slots=slots, mesh=mesh)


@functools.partial(jax.jit, static_argnames=("k", "link_space", "slots", "mesh"))
def _clusters(x, params, mask, tau, *, k, link_space, slots, mesh):
    rows, dtype = x.shape[0], jnp.promote_types(x.dtype, jnp.float32)
    mask = jnp.ones(rows, bool) if mask is None else mask
    if not rows:
        return GraphClusters(
            jnp.zeros(0, jnp.int32), jnp.zeros((slots, x.shape[1]), dtype), jnp.int32(0), jnp.zeros(0, dtype)
        )
    if mesh is not None:
        missing = -rows % mesh.size
        x, mask = jnp.pad(x, ((0, missing), (0, 0))), jnp.pad(mask, (0, missing))
    mask &= jnp.all(jnp.isfinite(x), 1)
    x = jnp.where(mask[:, None], x.astype(dtype), 0)
    # Steps 1 and 2) Neighbours and confidences.
    graph = knn_graph(x, k, mask=mask, mesh=mesh)
    if params is None:
        confidence = density(graph)
    else:
        confidence, hidden = gcn_v.confidence(params, x, graph, mask, mesh=mesh)
        if link_space == "gcn_hidden":
            graph = knn_graph(hidden, k, mask=mask, mesh=mesh)
    confidence = jnp.where(mask, confidence, 0)
    # Steps 3 to 5)
    labels, count = components(uphill(graph, confidence, tau), mask)
    labels = jnp.where(labels < slots, labels, -1)
    return GraphClusters(labels[:rows], mean_directions(x, labels, slots), count, confidence[:rows])


def mean_directions(x, labels, slots: int):
    """Centroids: the mean of each cluster's rows at their own lengths, scaled to length 1 (published code).

    Args:
      x: [N,D] float rows.
      labels: [N] int; rows with a label outside 0..slots - 1 count nowhere and may hold anything.
      slots: M, the number of slots.

    Returns:
      [M,D]; zeros for an empty cluster.

    >>> mean_directions(jnp.array([[3.0, 1.0], [-3.0, 8.0], [5.0, 5.0]]), jnp.array([0, 0, -1]), 2).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    x = jnp.where((labels >= 0)[:, None], x, 0)
    largest = jnp.max(jnp.abs(x), initial=0)
    x = x / jnp.where(largest > 0, largest, 1)  # no sum is infinite

    def sums(names):
        # A product with one-hot labels is reproducible; on a mesh it is a local sum and one all-reduce of [M,D].
        member = (labels[:, None] == names).astype(x.dtype)
        return jnp.einsum("nm,nd->md", member, x, precision=_HIGHEST)

    blocks = -(-slots * len(x) // _ONE_HOT)
    if blocks <= 1:
        return keypoints.unit(sums(jnp.arange(slots)))
    names = jnp.arange(blocks * -(-slots // blocks)).reshape(blocks, -1)
    return keypoints.unit(jax.lax.map(sums, names).reshape(-1, x.shape[1])[:slots])


def density(graph):
    """Mean cosine to the neighbours, [N], a confidence without a network; 0 for a row without neighbours.

    >>> from uld_jax.clustering.knn import KnnGraph
    >>> density(KnnGraph(jnp.array([[1, -1], [0, -1], [-1, -1]]), jnp.array([[0.5, 0.0], [0.5, 0.0], [0.0, 0.0]])))
    Array([0.5, 0.5, 0. ], dtype=float32)
    """
    there = graph.indices >= 0
    total = jnp.sum(jnp.where(there, graph.similarities, 0), 1)
    return total / jnp.maximum(jnp.sum(there, 1), 1)


def uphill(graph, confidence, tau):
    """Link every row, [N] int32, to its nearest strictly more confident neighbour, or to itself if it has none.

    The nearest such neighbour is the only candidate: if its similarity is `tau` or less, the row links to itself.

    Args:
      graph: neighbours [N,k] by falling similarity; -1 in unfilled slots.
      confidence: [N], confidences of the rows.
      tau: scalar, cosine that a link must exceed.

    >>> from uld_jax.clustering.knn import KnnGraph
    >>> graph = KnnGraph(jnp.array([[1, 2], [0, 2], [1, 0]]), jnp.array([[0.9, 0.8], [0.9, 0.7], [0.7, 0.8]]))
    >>> uphill(graph, jnp.array([0.2, 0.1, 0.3]), 0.75).tolist()
    [2, 0, 2]
    """
    indices, similarities = graph
    higher = (indices >= 0) & (confidence[jnp.maximum(indices, 0)] > confidence[:, None])
    first = jnp.argmax(higher, 1)[:, None]
    pick = lambda values: jnp.take_along_axis(values, first, 1)[:, 0]
    links = jnp.any(higher, 1) & (pick(similarities) > tau)
    return jnp.where(links, pick(indices), jnp.arange(len(indices), dtype=jnp.int32))


def components(parent, mask=None):
    """Labels of a forest's trees, the largest first.

    Args:
      parent: [N] int32, the row that each row links to; a root links to itself. Links must not go in a circle.
      mask: [N] bool, False for rows that count nowhere.

    Returns:
      Labels [N] int32, -1 where masked, and the number of trees, int32. Trees of equal size are ordered by their roots'
      rows.

    >>> labels, count = components(jnp.array([0, 2, 2, 1]))
    >>> labels.tolist(), int(count)
    ([1, 0, 0, 0], 2)
    """
    rows = len(parent)
    mask = jnp.ones(rows, bool) if mask is None else mask
    # Pointer doubling: after s steps a row points 2^s links up.
    doublings = math.ceil(math.log2(max(rows, 2)))
    parent = jax.lax.fori_loop(0, doublings, lambda _, parent: parent[parent], parent)
    sizes = jnp.zeros(rows, jnp.int32).at[parent].add(mask.astype(jnp.int32))
    order = jnp.argsort(-sizes, stable=True)
    rank = jnp.zeros(rows, jnp.int32).at[order].set(jnp.arange(rows, dtype=jnp.int32))
    return jnp.where(mask, rank[parent], -1), jnp.sum(sizes > 0, dtype=jnp.int32)
