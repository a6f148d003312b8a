"""Merges of clusters that lie on the same point of the object (Mallis et al. 2020, stage 2).

Self-training clusters into more parts than there are landmarks. Stage 2 trains one heatmap per cluster, counts in how
many images two heatmaps peak at the same place, and merges clusters that do so in more than 70 % of the images in which
the rarer one is found. The number of landmarks is what remains.
"""

import fractions
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.errors import UserError


class Colocation(NamedTuple):
    """Counts of images in which clusters are found, alone and together; batches are added field by field.

    Attributes:
      counts: [M,M] int32, images in which both are found at the same place; the diagonal equals `totals`.
      totals: [M] int32, images in which the cluster is found.
    """

    counts: jax.Array
    totals: jax.Array


@jax.jit
def colocation(xy, found, radius) -> Colocation:
    """Count images in which two clusters are found less than `radius` apart.

    The published code takes each heatmap's highest pixel, calls it found with a confidence of 0.2 or more, and asks for
    less than 5.7 pixels of a 256-pixel crop: on the heatmap of 64 pixels (radius 1.425) the pixel itself and its eight
    neighbours. On a mesh the images may be split; [M,M] and [M] are sent.

    Args:
      xy: [B,M,2] float or int, place of each cluster in each image; anything, NaN too, if the cluster is not found.
      found: [B,M] bool. Rows of padding find nothing.
      radius: largest distance in the units of xy, exclusive.

    >>> xy = jnp.array([[[5, 5], [6, 6], [9, 9]], [[5, 5], [8, 8], [8, 9]]])
    >>> counts, totals = colocation(xy, jnp.array([[True, True, False], [True, True, True]]), 1.425)
    >>> counts.tolist(), totals.tolist()
    ([[2, 1, 0], [1, 2, 1], [0, 1, 1]], [2, 2, 1])
    """
    xy = jnp.where(found[..., None], xy, 0)
    xy = xy.astype(jnp.promote_types(xy.dtype, jnp.float32))
    squared = (xy[:, :, None, 0] - xy[:, None, :, 0]) ** 2 + (xy[:, :, None, 1] - xy[:, None, :, 1]) ** 2
    both = (squared < radius**2) & found[:, :, None] & found[:, None, :]
    return Colocation(jnp.sum(both, 0, dtype=jnp.int32), jnp.sum(found, 0, dtype=jnp.int32))


class Merge(NamedTuple):
    """The result of a merge.

    Attributes:
      target: [M] int32, the cluster that each cluster joins, itself if it is kept; -1 for unused ones.
      kept: [M] bool, True for kept clusters.
      count: int32, number of kept clusters.
      rank: [M] int32, place of each cluster in the order of visits, 0 first; M for unused ones.
    """

    target: jax.Array
    kept: jax.Array
    count: jax.Array
    rank: jax.Array


def greedy_merge(counts, totals, share: float = 0.7, *, population=None, used=None) -> Merge:
    """Visit clusters from the most to the least populous; each joins the first kept one it coincides with, or is kept.

    Two coincide if counts[a,b] > share * min(totals[a], totals[b]). Only kept clusters are compared with, in the order
    in which they were kept, so merging is not transitive: of a chain a - b - c, c joins a only if it coincides with a.

    Args:
      counts, totals: [M,M] and [M] int32, results of `colocation`.
      share: a Python number in 0..1. It is compared in whole numbers, as a fraction, because float32 would put some
        borderline pairs on the wrong side.
      population: [M] int or float, sizes that give the order; the published code counts pseudo-labels. None: `totals`.
        Of equals the lower label comes first.
      used: [M] bool, clusters that take part; None for all. Never-found clusters that are used are kept.

    Raises:
      UserError: `share` is outside 0..1.

    >>> counts = jnp.array([[10, 8, 0], [8, 9, 7], [0, 7, 8]])
    >>> merge = greedy_merge(counts, jnp.diagonal(counts))
    >>> merge.target.tolist(), merge.kept.tolist(), int(merge.count)
    ([0, 0, 2], [True, False, True], 2)
    """
    if not 0 <= share <= 1:
        raise UserError(f"greedy_merge got share {share}; use a fraction of the images, 0 to 1")
    ratio = fractions.Fraction(share).limit_denominator(10_000)
    used = jnp.ones(len(totals), bool) if used is None else used
    population = totals if population is None else population
    return _greedy_merge(counts, totals, population, used, above=ratio.numerator, below=ratio.denominator)


@functools.partial(jax.jit, static_argnames=("above", "below"))
def _greedy_merge(counts, totals, population, used, *, above, below):
    clusters = totals.shape[0]
    order = jnp.lexsort((-population, ~used)).astype(jnp.int32)  # stable; the unused ones last
    totals, used = totals[order], used[order]
    fewer = jnp.minimum(totals[:, None], totals)
    # floor(fewer * above / below) without the product, which int32 need not hold
    limit = above * (fewer // below) + above * (fewer % below) // below
    close = counts[order][:, order] > limit

    def visit(i, carry):
        target, kept = carry
        joins = close[i] & kept
        absorbed = joins.any()
        target = target.at[i].set(jnp.where(absorbed, jnp.argmax(joins).astype(jnp.int32), i))
        return target, kept.at[i].set(used[i] & ~absorbed)

    start = jnp.arange(clusters, dtype=jnp.int32), jnp.zeros(clusters, bool)
    target, kept = jax.lax.fori_loop(0, clusters, visit, start)
    back = jnp.zeros(clusters, jnp.int32).at[order].set(jnp.arange(clusters, dtype=jnp.int32))
    target, rank = jnp.where(used, order[target], -1)[back], jnp.where(used[back], back, clusters)
    return Merge(target, kept[back], jnp.sum(kept, dtype=jnp.int32), rank.astype(jnp.int32))


@jax.jit
def relabel(labels, merge: Merge):
    """Pseudo-labels after a merge: a keypoint takes its cluster's target, and each image keeps one keypoint a target.

    Of several keypoints in an image that now share a label, the one whose cluster was visited first (the most populous)
    stays, or within a cluster the one in the lower slot; the others get -1, as do keypoints of unused clusters.

    Args:
      labels: [N,P] int32; -1 for masked slots. Images may be split over a mesh; nothing is sent.
      merge: the result of `greedy_merge`.

    >>> merge = Merge(jnp.array([0, 0, 2]), jnp.array([True, False, True]), 2, jnp.array([0, 1, 2]))
    >>> relabel(jnp.array([[1, 0, 2], [1, 2, -1]]), merge).tolist()
    [[-1, 0, 2], [0, 2, -1]]
    """
    clusters, slots = merge.target.shape[0], labels.shape[1]
    inside = (labels >= 0) & (labels < clusters)
    label = jnp.where(inside, labels, 0)
    target = jnp.where(inside, merge.target[label], -1)
    rank = jnp.where(inside, merge.rank[label], clusters)
    slot = jnp.arange(slots)
    earlier = (rank[:, None] < rank[..., None]) | ((rank[:, None] == rank[..., None]) & (slot < slot[:, None]))
    beaten = jnp.any((target[:, None] == target[..., None]) & earlier, -1)
    return jnp.where(beaten, -1, target).astype(jnp.int32)
