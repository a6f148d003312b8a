"""Lloyd's k-means with k-means++ seeding: jitted, masked, and at home on a mesh.

Rows may be split over devices (global view). Then an iteration sends one [k,D] and one [k] all-reduce and no row
ever leaves its device: a row is picked by a one-hot contraction, because `x[i]` would gather all rows first.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.errors import UserError

_HIGHEST = jax.lax.Precision.HIGHEST


class KMeans(NamedTuple):
    """A clustering.

    Attributes:
      centroids: [k,D] float32 (or wider, as x).
      labels: [N] int32, the nearest centroid of every row; -1 for masked rows.
      counts: [k] int32, rows that have the label; 0 where there were fewer distinct rows than clusters.
      inertia: sum over rows of weight times squared distance to the nearest centroid.
      iterations: int32, how many updates were made; less than the limit when it converged.
    """

    centroids: jax.Array
    labels: jax.Array
    counts: jax.Array
    inertia: jax.Array
    iterations: jax.Array


def kmeans(
    x,
    k: int,
    *,
    rng=None,
    init=None,
    mask=None,
    weights=None,
    iterations: int = 100,
    tol: float = 1e-4,
    restarts: int = 1,
    block: int = 256,
) -> KMeans:
    """Clusters rows into k (Lloyd 1982; seeding of Arthur and Vassilvitskii 2007 with greedy trials, as scikit-learn).

    The distances use float32 at the highest precision on rows that were centred: descriptors can be nearly collinear.
    A cluster that runs empty moves to the row farthest from all centroids (several: one after the other).

    Args:
      x: [N,D] float rows, on one device or split over a mesh on axis 0.
      k: number of clusters.
      rng: PRNG key for the seeding; needed when `init` is not given.
      init: [k,D] first centroids, such as those of an earlier round, instead of seeding.
      mask: [N] bool, False for rows that count nowhere; they may hold anything, NaN too.
      weights: [N] of 0 or more, how much a row counts in seeding, means and inertia.
      iterations: most updates.
      tol: stops when the squared moves of all centroids add up to no more than this times the mean variance of a
        column, as scikit-learn; 0 goes on until nothing moves.
      restarts: seedings to try one after the other; the clustering of least inertia is kept. Unused with `init`.
      block: centroids compared at a time; memory is N * min(k, block) distances.

    Raises:
      UserError: neither `rng` nor `init`, or shapes that do not fit.

    >>> x = jnp.array([[0.0], [1.0], [10.0], [11.0]])
    >>> result = kmeans(x, 2, init=jnp.array([[0.0], [1.0]]))
    >>> result.centroids.tolist(), result.labels.tolist()
    ([[0.5], [10.5]], [0, 0, 1, 1])
    """
    if rng is None and init is None:
        raise UserError("kmeans needs rng for its seeding, or init with the first centroids")
    if init is not None and init.shape != (k, x.shape[1]):
        raise UserError(f"kmeans got init of shape {init.shape}; k = {k} clusters of these rows need {(k, x.shape[1])}")
    return _kmeans(x, rng, init, mask, weights, tol, k=k, iterations=iterations, restarts=restarts, block=block)


@functools.partial(jax.jit, static_argnames=("k", "iterations", "restarts", "block"))
def _kmeans(x, rng, init, mask, weights, tol, *, k, iterations, restarts, block):
    count = x.shape[0]
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    weights = jnp.ones(count, dtype) if weights is None else weights.astype(dtype)
    mask = jnp.ones(count, bool) if mask is None else mask
    weights = jnp.where(mask, weights, 0)
    total = jnp.maximum(jnp.sum(weights), jnp.finfo(dtype).tiny)

    # Centred rows: what is common to all would only cost digits. Masked rows become zeros.
    x = jnp.where(mask[:, None], x.astype(dtype), 0)
    mean = _contract(weights, x) / total
    x = jnp.where(mask[:, None], x - mean, 0)
    threshold = tol * _contract(weights, x * x).mean() / total

    def unfinished(carry):
        _, moved, step = carry
        return (step < iterations) & (moved > threshold)

    def update(carry):
        centroids, _, step = carry
        labels, distances = _nearest(x, centroids, block)
        sums, sizes = _sums(x, weights, labels, k, block)
        new = jnp.where(sizes[:, None] > 0, sums / jnp.where(sizes > 0, sizes, 1)[:, None], centroids)
        new = _refill(x, weights, new, sizes > 0, distances)
        return new, jnp.sum((new - centroids) ** 2), step + 1

    def lloyd(centroids):
        start = (centroids, jnp.asarray(jnp.inf, dtype), jnp.int32(0))
        centroids, _, step = jax.lax.while_loop(unfinished, update, start)
        labels, distances = _nearest(x, centroids, block)
        return jnp.sum(weights * distances), centroids, labels, step

    if init is not None:
        inertia, centroids, labels, step = lloyd(init.astype(dtype) - mean)
    else:
        keys = jax.random.split(rng, restarts) if restarts > 1 else rng[None]
        runs = jax.lax.map(lambda key: lloyd(_seed(key, x, weights, k)), keys)
        best = jnp.argmin(runs[0])
        inertia, centroids, labels, step = (field[best] for field in runs)
    labels = jnp.where(mask, labels, -1)
    return KMeans(
        centroids=centroids + mean,
        labels=labels,
        counts=jnp.sum(labels[:, None] == jnp.arange(k), 0, dtype=jnp.int32),
        inertia=inertia,
        iterations=step,
    )


def assign(x, centroids, mask=None, *, block: int = 256):
    """Nearest centroid of every row: x [N,D], centroids [k,D] to labels [N] int32 and squared distances [N].

    Masked rows get label -1 and distance 0.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    mean = jnp.mean(centroids.astype(dtype), 0)
    labels, distances = _nearest(x.astype(dtype) - mean, centroids.astype(dtype) - mean, block)
    if mask is None:
        return labels, distances
    return jnp.where(mask, labels, -1), jnp.where(mask, distances, 0)


def _contract(weights, x):
    """sum_n weights_n x_n, [D]: on a mesh a local sum and an all-reduce of [D]."""
    return jnp.einsum("n,nd->d", weights, x, precision=_HIGHEST)


def _blocks(k, block):
    """Ranges that cover 0..k."""
    return [(start, min(start + block, k)) for start in range(0, k, block)]


def _nearest(x, centroids, block):
    """Labels and squared distances; of equal distances the lower label."""
    best, labels = None, None
    for start, stop in _blocks(len(centroids), block):
        part = centroids[start:stop]
        # |x - c|^2 without |x|^2, which is the same for all c
        score = jnp.sum(part * part, 1) - 2 * jnp.einsum("nd,kd->nk", x, part, precision=_HIGHEST)
        label, low = jnp.argmin(score, 1).astype(jnp.int32) + start, jnp.min(score, 1)
        if best is None:
            best, labels = low, label
        else:
            best, labels = jnp.minimum(best, low), jnp.where(low < best, label, labels)
    return labels, jnp.maximum(best + jnp.sum(x * x, 1), 0)


def _sums(x, weights, labels, k, block):
    """Weighted sums [k,D] and total weights [k] of the clusters.

    A product with one-hot labels, not a scatter: its order of summation, and so its rounding, is the same every time.
    """
    sums, sizes = [], []
    for start, stop in _blocks(k, block):
        member = jnp.where(labels[:, None] == jnp.arange(start, stop, dtype=labels.dtype), weights[:, None], 0)
        sums.append(jnp.einsum("nk,nd->kd", member, x, precision=_HIGHEST))
        sizes.append(jnp.sum(member, 0))
    return jnp.concatenate(sums), jnp.concatenate(sizes)


def _row(x, values):
    """The row of x [N,D] where `values` [...,N] is lowest (of equals the first), [...,D]; moves no other row."""
    position = jnp.arange(x.shape[0], dtype=jnp.int32)
    lowest = jnp.min(values, -1, keepdims=True)
    first = jnp.min(jnp.where(values == lowest, position, x.shape[0]), -1, keepdims=True)
    return jnp.einsum("...n,nd->...d", (position == first).astype(x.dtype), x, precision=_HIGHEST)


def _distances(x, rows):
    """Squared distances of all rows of x [N,D] to a few others [T,D], [T,N]."""
    cross = jnp.einsum("td,nd->tn", rows, x, precision=_HIGHEST)
    return jnp.maximum(jnp.sum(rows * rows, 1)[:, None] - 2 * cross + jnp.sum(x * x, 1), 0)


def _draw(key, x, chances, trials):
    """`trials` rows of x, each drawn with probability proportional to `chances` [N]: [trials,D].

    A race: the smallest of exponential variables E_n / chance_n belongs to row n with just that probability. The
    uniform numbers have all 32 bits: with the usual 23 bits, exact zeros would win races among millions of rows.
    """
    bits = jax.random.bits(key, (trials, x.shape[0]), jnp.uint32)
    uniform = (bits.astype(x.dtype) + 0.5) * 2.0**-32
    return _row(x, -jnp.log1p(-uniform) / chances)


def _seed(key, x, weights, k):
    """k-means++: each next centroid is drawn by squared distance to those before, the best of a few trials."""
    trials = 2 + int(math.log(k))
    key, first_key = jax.random.split(key)
    first = _draw(first_key, x, weights, 1)
    nearest = _distances(x, first)[0]
    centroids = jnp.zeros((k, x.shape[1]), x.dtype).at[0].set(first[0])

    def add(i, carry):
        centroids, nearest = carry
        chances = weights * nearest
        chances = jnp.where(jnp.any(chances > 0), chances, weights)  # fewer distinct rows than clusters
        rows = _draw(jax.random.fold_in(key, i), x, chances, trials)
        after = jnp.minimum(nearest, _distances(x, rows))  # [trials,N]
        best = jnp.argmin(jnp.einsum("tn,n->t", after, weights, precision=_HIGHEST))
        return centroids.at[i].set(rows[best]), after[best]

    return jax.lax.fori_loop(1, k, add, (centroids, nearest))[0]


def _refill(x, weights, centroids, full, distances):
    """Moves empty clusters to far rows; leaves them where they are once every row lies on a centroid."""
    nearest = jnp.where(weights > 0, distances, 0)

    def more(carry):
        _, full, nearest = carry
        return ~jnp.all(full) & (jnp.max(nearest) > 0)

    def fill(carry):
        centroids, full, nearest = carry
        row = _row(x, -nearest)
        empty = jnp.argmin(full)  # the first
        nearest = jnp.minimum(nearest, _distances(x, row[None])[0])
        nearest = jnp.where(jnp.all(x == row, 1), 0, nearest)  # exactly, or rounding would offer the row again
        return centroids.at[empty].set(row), full.at[empty].set(True), nearest

    return jax.lax.while_loop(more, fill, (centroids, full, nearest))[0]
