"""Lloyd's k-means with k-means++ seeding: jitted, masked, sharded over a mesh, in little more memory than its rows.

Rows are visited in chunks. A visit centres a chunk, finds its nearest centroids and adds it to their sums, so there is
never a second copy of the rows, nor a distance of every row to every centroid: 5 million rows of 256 need 5.3 GB.

Rows may be split over devices (global view). An iteration then sends one [k,D] and one [k] all-reduce, and rows stay on
their devices: chunks are cut from each device's own rows, and a seed row is picked on its device before it is sent.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uld_jax import devices, sharding
from uld_jax.errors import UserError

_HIGHEST = jax.lax.Precision.HIGHEST


class KMeans(NamedTuple):
    """A clustering.

    Attributes:
      centroids: [k,D] float32 (or wider, as x).
      labels: [N] int32, the nearest centroid of every row; -1 for masked rows, and for those that are not finite.
      counts: [k] int32, rows that have the label; 0 where there were fewer distinct rows than clusters.
      inertia: scalar, sum over rows of weight times squared distance to the nearest centroid.
      iterations: int32, number of updates made; less than the limit if the clustering converged.
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
    spherical: bool = False,
    refill: bool = True,
    block: int = 256,
    chunk: int | None = None,
) -> KMeans:
    """Cluster rows into k (Lloyd 1982; seeding of Arthur and Vassilvitskii 2007 with greedy trials, as scikit-learn).

    The distances use float32 at the highest precision on centred rows, because descriptors can be nearly collinear.
    A cluster that runs empty moves to the row farthest from all centroids (several: one after the other). With fewer
    distinct rows than clusters the rest stays empty; with no row at all the centroids are finite and mean nothing.

    Rows with a NaN, an infinity, a squared length beyond float32, or such a weight, are masked: label -1. If
    `spherical`, rows of length 0 are masked too, because they have no direction.

    Args:
      x: [N,D] float rows, on one device or split over a mesh on axis 0.
      k: number of clusters.
      rng: PRNG key for the seeding; needed when `init` is not given.
      init: [k,D] first centroids, such as those of an earlier round, instead of seeding. A centroid that is not finite
        is an empty cluster.
      mask: [N] bool, False for rows that count nowhere; they may hold anything, NaN too.
      weights: [N] row weights of 0 or more, for seeding, means and inertia.
      iterations: largest number of updates.
      tol: relative tolerance. Updates stop when the squared moves of all centroids add up to no more than `tol` times
        the mean variance of a column, as in scikit-learn, or when no label changes; 0 leaves only the second rule.
      restarts: seedings to try one after the other; the clustering of least inertia is kept. Unused with `init`.
      spherical: spherical k-means (Dhillon and Modha 2001): rows are scaled to length 1, and centroids after every
        update. The squared distances in the inertia are then 2 (1 - cosine).
      refill: True moves empty clusters; False leaves them in place, which keeps the meaning that `init` gave them.
      block: centroids compared at a time.
      chunk: rows of a device visited at a time; the default suits the device. Memory beyond x, labels and a few numbers
        a row is chunk * (D + min(k, block)).

    Raises:
      UserError: neither `rng` nor `init`, no rows, k below 1, or shapes that do not fit.

    >>> x = jnp.array([[0.0], [1.0], [10.0], [11.0]])
    >>> result = kmeans(x, 2, init=jnp.array([[0.0], [1.0]]))
    >>> result.centroids.tolist(), result.labels.tolist()
    ([[0.5], [10.5]], [0, 0, 1, 1])
    """
    x, init, mask, weights = sharding.arrays(x, init, mask, weights)
    if rng is None and init is None:
        raise UserError("kmeans needs rng for its seeding, or init with the first centroids")
    if k < 1 or x.ndim != 2 or not len(x):
        raise UserError(f"kmeans got k = {k} and x of shape {x.shape}; it needs k of 1 or more and rows [N,D]")
    if init is not None and init.shape != (k, x.shape[1]):
        raise UserError(f"kmeans got init of shape {init.shape}; k = {k} clusters of these rows need {(k, x.shape[1])}")
    for name, value in (("mask", mask), ("weights", weights)):
        if value is not None and value.shape != x.shape[:1]:
            raise UserError(f"kmeans got {name} of shape {value.shape}; {len(x)} rows need {x.shape[:1]}")
    if restarts < 1 or iterations < 0:
        raise UserError(f"kmeans got restarts={restarts} and iterations={iterations}; use 1 and 0 or more")
    return _kmeans(
        x,
        rng,
        init,
        mask,
        weights,
        tol,
        k=k,
        iterations=iterations,
        restarts=restarts,
        spherical=spherical,
        refill=refill,
        block=block,
        chunk=chunk,
    )


@functools.partial(jax.jit, static_argnames=("k", "iterations", "restarts", "spherical", "refill", "block", "chunk"))
def _kmeans(x, rng, init, mask, weights, tol, *, k, iterations, restarts, spherical, refill, block, chunk):
    rows = _prepare(x, mask, weights, chunk or _suitable(x.shape[1] + min(k, block)), spherical=spherical)
    mean, dtype = rows.mean, rows.mean.dtype
    total = jnp.maximum(jnp.sum(rows.weights), jnp.finfo(dtype).tiny)
    threshold = tol * jnp.sum(rows.weights * rows.norms) / (total * x.shape[1])

    def unfinished(carry):
        _, _, moved, changed, step = carry
        return (step < iterations) & ~(moved <= threshold) & changed  # NaN moves: a first centroid was not finite

    def update(carry):
        centroids, labels, _, _, step = carry
        found = _assign(rows, centroids, labels, block)
        some = found.sizes > 0
        new = found.sums / jnp.where(some, found.sizes, 1)[:, None]
        if spherical:
            length = jnp.linalg.norm(new + mean, axis=1)
            some &= length > jnp.finfo(dtype).eps  # False if the members cancel; the centroid then stays
            new = (new + mean) / jnp.where(some, length, 1)[:, None] - mean
        new = jnp.where(some[:, None], new, jnp.where(jnp.isfinite(centroids), centroids, 0))
        if refill:
            new = _refill(rows, new, found.sizes > 0, found.distances)
        return new, found.labels, jnp.sum((new - centroids) ** 2), found.changed, step + 1

    def lloyd(centroids):
        unknown = jnp.full(rows.weights.shape, -1, jnp.int32)
        start = (centroids, unknown, jnp.asarray(jnp.inf, dtype), jnp.bool_(True), jnp.int32(0))
        centroids, labels, _, _, step = jax.lax.while_loop(unfinished, update, start)
        found = _assign(rows, centroids, labels, block, last=True)
        return found.inertia, centroids, found.labels, found.sizes, step

    if init is not None:
        init = init.astype(dtype)
        init = init / jnp.linalg.norm(init, axis=1, keepdims=True) if spherical else init
        inertia, centroids, labels, counts, step = lloyd(init - mean)
    else:
        keys = jax.random.split(rng, restarts) if restarts > 1 else rng[None]
        runs = jax.lax.map(lambda key: lloyd(_seed(key, rows, k)), keys)
        best = jnp.argmin(runs[0])
        inertia, centroids, labels, counts, step = (field[best] for field in runs)
    return KMeans(centroids + mean, labels.reshape(-1), counts, inertia, step)


@functools.partial(jax.jit, static_argnames=("block", "chunk"))
def assign(x, centroids, mask=None, *, block: int = 256, chunk: int | None = None):
    """Nearest centroid of every row: x [N,D], centroids [k,D] to labels [N] int32 and squared distances [N].

    Masked rows, and rows that `kmeans` would mask, get label -1 and distance 0. The lower label wins a tie.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    mean = jnp.mean(centroids.astype(dtype), 0)
    rows = _prepare(x, mask, None, chunk or _suitable(x.shape[1] + min(len(centroids), block)), mean=mean)
    unknown = jnp.full(rows.weights.shape, -1, jnp.int32)
    found = _assign(rows, centroids.astype(dtype) - mean, unknown, block, last=True)
    return found.labels.reshape(-1), jnp.where(rows.valid, found.distances, 0).reshape(-1)


class _Rows(NamedTuple):
    """Rows [G,R,D] in G groups of R. If rows are split over devices, a group is on one device."""

    x: jax.Array  # [G,R,D], the rows as given
    valid: jax.Array  # [G,R] bool
    weights: jax.Array  # [G,R], 0 where not valid
    scale: jax.Array | None  # [G,R], factors that make the length 1
    mean: jax.Array  # [D], subtracted because a common offset would cost digits
    norms: jax.Array  # [G,R] squared length of the centred rows
    chunk: int

    def visit(self, body, carry):
        """Compute `_visit` over these rows."""
        return _visit(self.x.shape[1], self.chunk, body, carry)

    def centred(self, cut=lambda a: a):
        """Rows from which the mean was taken; `cut` takes [G,R,...] to some of the rows. Where not valid: the mean."""
        x = cut(self.x).astype(self.mean.dtype)
        x = x if self.scale is None else x * cut(self.scale)[..., None]
        return jnp.where(cut(self.valid)[..., None], x - self.mean, 0)


def _suitable(columns):
    """Number of rows in a chunk with so many numbers a row: it should stay in a CPU's cache, or fill an accelerator."""
    numbers = 2**20 if devices.platform() == "cpu" else 2**25
    return max(numbers // columns // 8 * 8, 8)


def _prepare(x, mask, weights, chunk, *, spherical=False, mean=None):
    count, dtype = x.shape[0], jnp.promote_types(x.dtype, jnp.float32)
    groups = math.gcd(count, devices.count())
    split = lambda a: a.reshape(groups, count // groups, *a.shape[1:])
    x = split(x)
    # In chunks as everything else: of all rows at once some compilers keep every square.
    lengths = lambda square, cut, put, fresh: put(square, jnp.sum(cut(x).astype(dtype) ** 2, -1))
    square = _visit(x.shape[1], chunk, lengths, jnp.zeros(x.shape[:2], dtype))
    valid = jnp.isfinite(square) & (square > 0 if spherical else True)
    valid &= True if mask is None else split(mask)
    if weights is None:
        weights = valid.astype(dtype)
    else:
        weights = split(weights.astype(dtype))
        valid &= jnp.isfinite(weights) & (weights >= 0)
        weights = jnp.where(valid, weights, 0)
    scale = 1 / jnp.sqrt(jnp.where(valid, square, 1)) if spherical else None
    zero = jnp.zeros(x.shape[-1], dtype)
    rows = _Rows(x, valid, weights, scale, zero, jnp.zeros(weights.shape, dtype), chunk)

    if mean is None:

        def add(sums, cut, put, fresh):
            part = jnp.where(fresh, cut(weights), 0)
            return sums + jnp.einsum("gr,grd->gd", part, rows.centred(cut), precision=_HIGHEST)

        sums = rows.visit(add, jnp.zeros((groups, x.shape[-1]), dtype))
        mean = sums.sum(0) / jnp.maximum(jnp.sum(weights), jnp.finfo(dtype).tiny)
    rows = rows._replace(mean=mean)
    measure = lambda norms, cut, put, fresh: put(norms, jnp.sum(rows.centred(cut) ** 2, -1))
    return rows._replace(norms=rows.visit(measure, rows.norms))


def _visit(size: int, chunk: int, body, carry):
    """Compute carry = body(carry, cut, put, fresh) for one chunk of the `size` rows of all groups after the other.

    `cut` takes an array [G,R,...] to the chunk's part [G,C,...]; `put(array, part)` is the array [...,G,R] with that
    part replaced. If R does not divide, the last chunk overlaps the one before; `fresh` [C] is False there.
    """
    chunks = -(-size // chunk)
    length = -(-size // chunks)
    if chunks == 1:
        return body(carry, lambda a: a, lambda a, part: part, jnp.ones(size, bool))

    def step(i, carry):
        start = jnp.minimum(i * length, size - length)
        fresh = start + jnp.arange(length) >= i * length
        cut = lambda a, axis=1: jax.lax.dynamic_slice_in_dim(a, start, length, axis)

        def put(a, part):
            axis = a.ndim - 1
            return jax.lax.dynamic_update_slice_in_dim(a, jnp.where(fresh, part, cut(a, axis)), start, axis)

        return body(carry, cut, put, fresh)

    return jax.lax.fori_loop(0, chunks, step, carry)


class _Found(NamedTuple):
    labels: jax.Array  # [G,R], -1 where not valid
    distances: jax.Array  # [G,R] squared, to the nearest centroid
    changed: jax.Array | None  # True if any label changed
    sums: jax.Array | None  # [k,D] of weighted rows
    sizes: jax.Array  # [k] total weights; numbers of rows if `last`
    inertia: jax.Array | None


def _assign(rows, centroids, labels, block, last=False):
    """Compute in one pass over the rows all that an update needs, or with `last` all that the result needs."""
    groups, k, dtype = len(rows.x), len(centroids), centroids.dtype

    def add(found, cut, put, fresh):
        x, valid, weights = rows.centred(cut), cut(rows.valid), jnp.where(fresh, cut(rows.weights), 0)
        label, score = _nearest(x, centroids, block)
        distance = jnp.maximum(score + cut(rows.norms), 0)
        masked = jnp.where(valid, label, -1)
        new = found._replace(labels=put(found.labels, masked), distances=put(found.distances, distance))
        if last:
            member = (masked[..., None] == jnp.arange(k)) & fresh[:, None]
            inertia = found.inertia + jnp.sum(weights * distance, 1)
            return new._replace(sizes=found.sizes + jnp.sum(member, 1, dtype=jnp.int32), inertia=inertia)
        sums, sizes = _sums(x, weights, label, k, block)
        changed = found.changed | jnp.any((masked != cut(labels)) & fresh, 1)
        return new._replace(changed=changed, sums=found.sums + sums, sizes=found.sizes + sizes)

    zeros = lambda *shape: jnp.zeros((groups, *shape), dtype)
    # The new labels have an array of their own: an array both read and written would be copied for every chunk.
    start = _Found(jnp.zeros_like(labels), zeros(labels.shape[1]), None, None, zeros(k).astype(jnp.int32), zeros())
    if not last:
        start = _Found(*start[:2], jnp.zeros(groups, bool), zeros(k, centroids.shape[1]), zeros(k), None)
    found = rows.visit(add, start)
    # Groups are combined only here: devices send each other nothing else.
    return found._replace(
        changed=None if last else jnp.any(found.changed),
        sums=None if last else jnp.sum(found.sums, 0),
        sizes=jnp.sum(found.sizes, 0),
        inertia=jnp.sum(found.inertia) if last else None,
    )


def _blocks(k, block):
    """Ranges of at most `block` that cover 0..k."""
    return [(start, min(start + block, k)) for start in range(0, k, block)]


def _nearest(x, centroids, block):
    """Labels of x [...,D] and squared distances less the rows' squared lengths; the lower label wins a tie."""
    best, labels = None, None
    for start, stop in _blocks(len(centroids), block):
        part = centroids[start:stop]
        square = jnp.sum(part * part, 1)
        here = jnp.isfinite(square)
        part, square = jnp.where(here[:, None], part, 0), jnp.where(here, square, jnp.inf)
        # |x - c|^2 without |x|^2, which is the same for all c
        score = jnp.einsum("...d,kd->...k", x, -2 * part, precision=_HIGHEST) + square
        # On a CPU argmin is one slow loop; a minimum and a search for it, in floats, are two fast ones.
        low = jnp.min(score, -1)
        label = jnp.where(score == low[..., None], jnp.arange(start, stop, dtype=jnp.float32), stop - 1)
        label = jnp.min(label, -1).astype(jnp.int32)
        if best is None:
            best, labels = low, label
        else:
            best, labels = jnp.minimum(best, low), jnp.where(low < best, label, labels)
    return labels, best


def _sums(x, weights, labels, k, block):
    """Weighted sums [G,k,D] and total weights [G,k] of the clusters of x [G,C,D].

    A scatter is the least work, and on a CPU it adds in the order of the rows. On other devices its order and so its
    rounding differ between runs, so a product with one-hot labels is used there.
    """
    if len(x) == 1 and devices.platform() == "cpu":
        sums = jnp.zeros((k, x.shape[-1]), x.dtype).at[labels[0]].add(weights[0, :, None] * x[0])
        return sums[None], jnp.zeros(k, x.dtype).at[labels[0]].add(weights[0])[None]
    sums, sizes = [], []
    for start, stop in _blocks(k, block):
        member = jnp.where(labels[..., None] == jnp.arange(start, stop, dtype=labels.dtype), weights[..., None], 0)
        sums.append(jnp.einsum("grk,grd->gkd", member, x, precision=_HIGHEST))
        sizes.append(jnp.sum(member, 1))
    return jnp.concatenate(sums, 1), jnp.concatenate(sizes, 1)


def _pick(rows, values):
    """The centred rows [T,D] of lowest `values` [T,G,R], the first of equals; each device picks from its own rows."""
    low = jnp.min(values, -1)  # [T,G]
    at = jnp.where(values == low[..., None], jnp.arange(values.shape[-1], dtype=jnp.int32), values.shape[-1] - 1).min(
        -1
    )
    take = jax.vmap(lambda a, i: a[i], (0, 1), 1)  # [G,R,...] and [T,G] to [T,G,...]
    picked = rows.centred(lambda a: take(a, at))
    group = jnp.arange(len(rows.x))
    first = jnp.min(jnp.where(low == jnp.min(low, 1, keepdims=True), group, len(group) - 1), 1, keepdims=True)
    return jnp.sum(jnp.where((group == first)[..., None], picked, 0), 1)


def _distances(rows, picked):
    """Squared distances of all rows to a few others [T,D], [T,G,R]."""
    square = jnp.sum(picked * picked, 1)[:, None, None]

    def measure(distances, cut, put, fresh):
        cross = jnp.einsum("td,grd->tgr", picked, rows.centred(cut), precision=_HIGHEST)
        return put(distances, jnp.maximum(square - 2 * cross + cut(rows.norms), 0))

    return rows.visit(measure, jnp.zeros((len(picked), *rows.norms.shape), picked.dtype))


def _draw(key, rows, chances, trials):
    """Draw `trials` rows [trials,D], each with probability proportional to `chances` [G,R].

    The draw is a race: the smallest of exponential variables E_n / chance_n belongs to row n with that probability. The
    uniform numbers have all 32 bits: with the usual 23 bits, exact zeros would win races among millions of rows.
    """
    bits = jax.random.bits(key, (trials, *chances.shape), jnp.uint32)
    uniform = (bits.astype(chances.dtype) + 0.5) * 2.0**-32
    return _pick(rows, -jnp.log1p(-uniform) / chances)


def _seed(key, rows, k):
    """Seed by k-means++: each next centroid is drawn by squared distance to those before, the best of a few trials."""
    trials = 2 + int(math.log(k))
    key, first_key = jax.random.split(key)
    first = _draw(first_key, rows, rows.weights, 1)
    nearest = _distances(rows, first)[0]
    centroids = jnp.zeros((k, first.shape[1]), first.dtype).at[0].set(first[0])

    def add(i, carry):
        centroids, nearest = carry
        chances = rows.weights * nearest
        chances = jnp.where(jnp.any(chances > 0), chances, rows.weights)  # fewer distinct rows than clusters
        picked = _draw(jax.random.fold_in(key, i), rows, chances, trials)
        after = jnp.minimum(nearest, _distances(rows, picked))  # [trials,G,R]
        best = jnp.argmin(jnp.sum(after * rows.weights, (1, 2)))
        return centroids.at[i].set(picked[best]), after[best]

    return jax.lax.fori_loop(1, k, add, (centroids, nearest))[0]


def _refill(rows, centroids, full, distances):
    """Move empty clusters to far rows; leave them in place once every row lies on a centroid."""
    # Rows within rounding of a centroid count as on it; otherwise copies of one row would be offered again and again.
    on = distances <= 16 * jnp.finfo(distances.dtype).eps * rows.norms
    nearest = jnp.where((rows.weights > 0) & ~on, distances, 0)

    def more(carry):
        _, full, nearest = carry
        return ~jnp.all(full) & (jnp.max(nearest) > 0)

    def fill(carry):
        centroids, full, nearest = carry
        row = _pick(rows, -nearest[None])
        empty = jnp.argmin(full)  # the first

        def measure(nearest, cut, put, fresh):
            exact = jnp.sum((rows.centred(cut) - row) ** 2, -1)  # 0 for its copies
            return put(nearest, jnp.minimum(cut(nearest), exact))

        nearest = rows.visit(measure, nearest)
        return centroids.at[empty].set(row[0]), full.at[empty].set(True), nearest

    return jax.lax.while_loop(more, fill, (centroids, full, nearest))[0]
