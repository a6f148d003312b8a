"""Measures of a clustering, jitted and masked: from the rows alone, and against known classes.

`silhouette` and `calinski_harabasz` look at the rows alone; `nmi`, `purity` and `pairwise_f_measure` compare labels
with classes; `detection_f_measure` compares keypoints with annotated landmarks.

Rows that are masked, or whose label is outside 0..M - 1 (as k-means gives masked rows -1), count nowhere and may hold
anything. Clusters may be empty. Where a measure is not defined it is 0, so that a collapsed clustering shows as a bad
one and not as NaN.

`clusters`, the number of slots M, may be left out where labels are known: it is then read from them, on the host, and
each M compiles a program of its own. Inside `jax.jit` it must be given. It may exceed the number of clusters.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from uld_jax import sharding
from uld_jax.clustering import assignment
from uld_jax.errors import UserError

_HIGHEST = jax.lax.Precision.HIGHEST
_KEYS = 8192  # rows with which a block of rows is compared at a time


def _slots(labels, mask, given, name):
    """The number of slots that labels need, at least 1: `given`, or the largest label plus 1."""
    if given is not None:
        return given
    if isinstance(labels, jax.core.Tracer):
        raise UserError(f"inside jax.jit the number of labels is not known; give {name}=")
    if mask is not None and not isinstance(mask, jax.core.Tracer):
        labels = jnp.where(mask, labels, -1)
    return max(int(jnp.max(jnp.asarray(labels), initial=-1)) + 1, 1)


def _valid(labels, mask, clusters):
    """int32 labels, -1 for rows that count nowhere."""
    valid = (labels >= 0) & (labels < clusters)
    return jnp.where(valid if mask is None else valid & mask, labels, -1).astype(jnp.int32)


def _finite(x, mask):
    """The mask without rows that are not finite."""
    there = jnp.all(jnp.isfinite(x), 1)
    return there if mask is None else mask & there


def _centred(x, labels):
    """Subtract the rows' mean, since a common offset costs digits in float32; zeros for rows that count nowhere."""
    some = labels >= 0
    x = jnp.where(some[:, None], x.astype(jnp.promote_types(x.dtype, jnp.float32)), 0)
    return jnp.where(some[:, None], x - x.sum(0) / jnp.maximum(some.sum(), 1), 0)


def _member(labels, clusters, dtype):
    """One-hot labels [N,M], zeros for rows that count nowhere."""
    return (labels[:, None] == jnp.arange(clusters)).astype(dtype)


def silhouette(
    x, labels, mask=None, *, clusters: int | None = None, sample: int | None = None, rng=None, block: int = 512,
    mesh=None, axis: str | None = None,
):  # fmt: skip
    """Mean silhouette width (Rousseeuw 1987), with Euclidean distances, as scikit-learn's `silhouette_score`.

      s_i = (b_i - a_i) / max(a_i, b_i),   a_i: mean distance to the other rows of its own cluster
                                           b_i: to the rows of the nearest other cluster

    A row that is alone in its cluster has s_i = 0. All pairs are compared, N^2 (D + M) products, a block at a time.

    On a mesh every device holds the sums [N / devices, M] of its own rows, and the rows go round in a ring: a device
    receives one block [N / devices, D] (and its labels) at a time, all of x once. No device holds N x N or all rows.
    With `sample` only the picked rows go round: the mask [N] and the picked rows [sample, D] are sent first.

    Args:
      x: [N,D] float rows, on one device, replicated, or split over `mesh`.
      labels: [N] int, cluster of every row.
      mask: [N] bool, False for rows that count nowhere; None if all count. Rows that are not finite do not count.
      clusters: M; see the module.
      sample: number of rows to measure, drawn without replacement from those that count (all of them if they are
        fewer), as scikit-learn's `sample_size`: distances go to sampled rows only. None for the exact measure.
      rng: PRNG key, needed with `sample`.
      block: rows compared at a time: memory is block * min(N, 8192) distances.
      mesh: mesh over whose `axis` the work is spread; by default the one that x is on, or inside `jax.jit` that of
        `jax.set_mesh`.
      axis: axis of the mesh; its first by default.

    Returns:
      A scalar in -1..1; 0 if fewer than two clusters have rows.

    Raises:
      UserError: `sample` without `rng`, or `clusters` left out inside `jax.jit`.

    >>> x = jnp.array([[0.0], [1.0], [10.0], [11.0]])
    >>> round(float(silhouette(x, jnp.array([0, 0, 1, 1]))), 4)
    0.8997
    """
    if sample is not None and rng is None:
        raise UserError("silhouette with sample= needs rng= to draw the rows")
    if sample is not None and sample < 1:
        raise UserError(f"silhouette got sample={sample}; use 1 or more, or None for all rows")
    x, labels, mask = sharding.arrays(x, labels, mask)
    mesh = sharding.mesh_of(x) if mesh is None else mesh
    axis = mesh.axis_names[0] if mesh is not None and axis is None else axis
    if not len(x):
        return jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
    return _silhouette(
        x, labels, mask, rng, clusters=_slots(labels, mask, clusters, "clusters"), sample=sample, block=block,
        mesh=mesh if mesh is not None and mesh.shape[axis] > 1 else None, axis=axis,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("clusters", "sample", "block", "mesh", "axis"))
def _silhouette(x, labels, mask, rng, *, clusters, sample, block, mesh, axis):
    labels = _valid(labels, _finite(x, mask), clusters)
    if sample is not None:
        x, labels = pick(rng, x, labels, min(sample, x.shape[0]), mesh, axis)
    x = _centred(x, labels)
    member = _member(labels, clusters, x.dtype)
    means = jnp.einsum("nm,nd->md", member, x, precision=_HIGHEST) / jnp.maximum(member.sum(0), 1)[:, None]
    # Clusters a hundred times smaller than the whole: |x|^2 + |y|^2 - 2 x.y would keep few digits of their distances.
    inside = jnp.where(labels[:, None] >= 0, x - means[labels], 0)
    tight = jnp.sum(inside**2) < 1e-4 * jnp.sum(x**2)
    if mesh is None:
        sums = _distance_sums(x, labels, x, labels, 0, means, tight, block)
        sizes = _sizes(labels, clusters)
        return _mean_width(jnp.sum(_widths(sums, labels, sizes)), sizes)

    devices = mesh.shape[axis]
    missing = -x.shape[0] % devices
    x = jnp.pad(x, ((0, missing), (0, 0)))
    labels = jnp.pad(labels, (0, missing), constant_values=-1)

    def ring(x, labels, means, tight):
        def meet(step, carry):
            keys, sums = carry
            # After `step` shifts the rows here are those of the device `step` places before: itself at step 0 alone.
            own = jnp.where(step == 0, 0, -x.shape[0] - 1)
            sums += _distance_sums(x, labels, *keys, own, means, tight, block)
            shift = [(i, (i + 1) % devices) for i in range(devices)]
            return jax.tree.map(lambda a: jax.lax.ppermute(a, axis, shift), keys), sums

        start = (x, labels), jnp.zeros((x.shape[0], clusters), x.dtype)
        _, sums = jax.lax.fori_loop(0, devices, meet, start)
        sizes = jax.lax.psum(_sizes(labels, clusters), axis)
        return _mean_width(jax.lax.psum(jnp.sum(_widths(sums, labels, sizes)), axis), sizes)

    # The check of values that vary over devices is off: it fails at the sums' initial zeros.
    split = (P(axis), P(axis), P(), P())
    ring = jax.shard_map(ring, mesh=mesh, in_specs=split, out_specs=P(), check_vma=False)
    return ring(x, labels, means, tight)


def pick(rng, x, labels, sample, mesh, axis):
    """Pick `sample` random rows of [N,D] that count, and their labels; -1 and zeros where there are too few.

    Args:
      rng: PRNG key; on a mesh, rows are picked on their devices and only they are sent.
      x: [N,D] rows.
      labels: [N] int32; rows with a negative label do not count.
      sample: number of rows, at most N.
      mesh, axis: mesh and axis over which the rows are split, or None for one device.
    """
    lot = (jax.random.bits(rng, labels.shape, jnp.uint32) >> 1).astype(jnp.int32)
    _, index = jax.lax.top_k(jnp.where(labels >= 0, lot, -1), sample)

    def take(x, labels, start):
        here = index - start
        inside = (here >= 0) & (here < x.shape[0])
        here = jnp.where(inside, here, 0)
        counts = inside & (labels[here] >= 0)
        return jnp.where(counts[:, None], x[here], 0), jnp.where(inside, labels[here] + 1, 0)

    if mesh is None or x.shape[0] % mesh.shape[axis]:
        picked, label = take(x, labels, 0)
        return picked, label - 1

    def gather(x, labels):
        # x[index] would gather all rows: each device gives its own, and the sum is sent.
        return jax.lax.psum(take(x, labels, jax.lax.axis_index(axis) * x.shape[0]), axis)

    picked, label = jax.shard_map(gather, mesh=mesh, in_specs=P(axis), out_specs=P(), check_vma=False)(x, labels)
    return picked, label - 1


def _sizes(labels, clusters):
    return jnp.sum(labels[:, None] == jnp.arange(clusters), 0, dtype=jnp.int32)


def _distance_sums(x, labels, keys, key_labels, own, means, tight, block):
    """Sums [n,M] of the distances of rows x [n,D] to the keys [m,D] of each cluster.

    Args:
      own: key i + own is row i itself, whose distance is 0 and not the root of a rounding error.
      means: [M,D], means of the clusters.
      tight: True to measure distances inside a cluster from its mean, for twice the products.
    """
    rows, count, clusters = x.shape[0], keys.shape[0], means.shape[0]
    block, width = min(block, rows), min(_KEYS, count)
    blocks, parts = -(-rows // block), -(-count // width)
    keys = jnp.pad(keys, ((0, parts * width - count), (0, 0)))
    key_labels = jnp.pad(key_labels, (0, parts * width - count), constant_values=-1)

    def squared(a, b):
        cross = jnp.einsum("bd,kd->bk", a, b, precision=_HIGHEST)
        return jnp.maximum(jnp.sum(a * a, 1)[:, None] - 2 * cross + jnp.sum(b * b, 1), 0)

    def squared_from_means(a, b, label_a, label_b):
        inside = squared(a - means[label_a], b - means[label_b])
        return jnp.where(label_a[:, None] == label_b, inside, squared(a, b))

    def one(here):
        def add(part, sums):
            cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=part * width, slice_size=width)
            pair = x[here], cut(keys), labels[here], cut(key_labels)
            distances = jnp.sqrt(jax.lax.cond(tight, squared_from_means, lambda a, b, *_: squared(a, b), *pair))
            itself = (here + own)[:, None] == part * width + jnp.arange(width)
            member = _member(pair[3], clusters, x.dtype)
            return sums + jnp.einsum("bk,km->bm", jnp.where(itself, 0, distances), member, precision=_HIGHEST)

        return jax.lax.fori_loop(0, parts, add, jnp.zeros((block, clusters), x.dtype))

    here = jnp.minimum(jnp.arange(blocks * block), rows - 1).reshape(blocks, block)
    return jax.lax.map(one, here).reshape(blocks * block, clusters)[:rows]


def _widths(sums, labels, sizes):
    """s_i [n] from the sums of distances [n,M]; 0 for rows that count nowhere."""
    own = labels[:, None] == jnp.arange(sizes.shape[0])
    size = jnp.sum(jnp.where(own, sizes, 0), 1)
    inner = jnp.sum(jnp.where(own, sums, 0), 1) / jnp.maximum(size - 1, 1)
    outer = jnp.min(jnp.where(own | (sizes == 0), jnp.inf, sums / jnp.maximum(sizes, 1)), 1)
    larger = jnp.maximum(inner, outer)
    counts = (size > 1) & jnp.isfinite(outer) & (larger > 0)
    return jnp.where(counts, (outer - inner) / jnp.where(counts, larger, 1), 0)


def _mean_width(total, sizes):
    return total / jnp.maximum(sizes.sum(), 1)


def calinski_harabasz(x, labels, mask=None, *, clusters: int | None = None):
    """Variance ratio criterion (Calinski and Harabasz 1974), as scikit-learn's `calinski_harabasz_score`.

      (sum_m n_m |mean_m - mean|^2 / (M - 1)) / (sum_i |x_i - mean_label(i)|^2 / (N - M)),   M: clusters that have rows

    It grows with N: compare at equal N only. On a mesh the rows may be split; sums of [D], [M,D] and [M] are sent.

    Args:
      x, labels, mask, clusters: as for `silhouette`.

    Returns:
      A scalar, higher is better; 1 if no row differs from its cluster's mean, 0 if fewer than two clusters have rows.

    >>> x = jnp.array([[0.0], [1.0], [10.0], [11.0]])
    >>> round(float(calinski_harabasz(x, jnp.array([0, 0, 1, 1]))), 3)
    200.0
    """
    x, labels, mask = sharding.arrays(x, labels, mask)
    return _calinski_harabasz(x, labels, mask, clusters=_slots(labels, mask, clusters, "clusters"))


@functools.partial(jax.jit, static_argnames=("clusters",))
def _calinski_harabasz(x, labels, mask, *, clusters):
    labels = _valid(labels, _finite(x, mask), clusters)
    x = _centred(x, labels)
    member = _member(labels, clusters, x.dtype)
    sizes = member.sum(0)
    means = jnp.einsum("nm,nd->md", member, x, precision=_HIGHEST) / jnp.maximum(sizes, 1)[:, None]
    inside = jnp.where(labels[:, None] >= 0, x - jnp.einsum("nm,md->nd", member, means, precision=_HIGHEST), 0)
    within, between = jnp.sum(inside**2), jnp.sum(sizes[:, None] * means**2)  # the mean of all rows is 0
    rows, used = sizes.sum(), jnp.sum(sizes > 0)
    ratio = between * (rows - used) / (jnp.where(within > 0, within, 1) * jnp.maximum(used - 1, 1))
    return jnp.where(used < 2, 0, jnp.where(within > 0, ratio, 1)).astype(x.dtype)


def contingency(labels, truth, mask=None, *, clusters: int | None = None, classes: int | None = None):
    """Number of rows of each class in every cluster, [M,C] int32, from which the measures below are computed.

    On a mesh the rows may be split; [M * C] is sent.

    Args:
      labels: [N] int, the cluster of every row; rows outside 0..M - 1 count nowhere.
      truth: [N] int, the class of every row; rows outside 0..C - 1 (unknown: -1) count nowhere.
      mask: [N] bool, False for rows that count nowhere; None if all count.
      clusters: M; see the module.
      classes: C, by the same rule as `clusters`.

    >>> contingency(jnp.array([0, 0, 1, -1]), jnp.array([1, 1, 0, 0])).tolist()
    [[0, 2], [1, 0]]
    """
    labels, truth, mask = sharding.arrays(labels, truth, mask)
    clusters, classes = _slots(labels, mask, clusters, "clusters"), _slots(truth, mask, classes, "classes")
    return _contingency(labels, truth, mask, clusters=clusters, classes=classes)


@functools.partial(jax.jit, static_argnames=("clusters", "classes"))
def _contingency(labels, truth, mask, *, clusters, classes):
    labels, truth = _valid(labels, mask, clusters), _valid(truth, mask, classes)
    cell = jnp.where((labels >= 0) & (truth >= 0), labels * classes + truth, clusters * classes)
    # Whole numbers: the order in which a scatter adds them does not matter.
    return jnp.zeros(clusters * classes + 1, jnp.int32).at[cell].add(1)[:-1].reshape(clusters, classes)


def nmi(labels, truth, mask=None, *, clusters: int | None = None, classes: int | None = None):
    """Normalised mutual information, I(labels; truth) / ((H(labels) + H(truth)) / 2), scikit-learn's default.

    Args:
      labels, truth, mask, clusters, classes: as for `contingency`.

    Returns:
      A scalar in 0..1; 1 if all rows have one label and one class (as scikit-learn), 0 if no row counts.

    >>> round(float(nmi(jnp.array([0, 0, 1, 1]), jnp.array([5, 5, 2, 2]))), 6)
    1.0
    """
    return _nmi(contingency(labels, truth, mask, clusters=clusters, classes=classes))


def _chances(counts):
    """Counts as shares of all, float (0 if there are none), and their logarithms (0 where there are none)."""
    share = counts / jnp.maximum(jnp.sum(counts), 1)
    return share, jnp.log(jnp.where(share > 0, share, 1))


@jax.jit
def _nmi(table):
    (joint, log_joint), (row, log_row), (column, log_column) = map(_chances, (table, table.sum(1), table.sum(0)))
    mutual = jnp.sum(jnp.where(table > 0, joint * (log_joint - log_row[:, None] - log_column), 0))
    entropy = -(jnp.sum(row * log_row) + jnp.sum(column * log_column)) / 2
    one = (jnp.sum(row > 0) == 1) & (jnp.sum(column > 0) == 1)
    return jnp.where(one, 1.0, jnp.clip(mutual / jnp.where(entropy > 0, entropy, 1), 0, 1))


def purity(labels, truth, mask=None, *, clusters: int | None = None, classes: int | None = None):
    """Share of rows that belong to the most frequent class of their cluster; 0 if no row counts.

    Args:
      labels, truth, mask, clusters, classes: as for `contingency`.

    >>> float(purity(jnp.array([0, 0, 0, 1]), jnp.array([1, 1, 0, 0])))
    0.75
    """
    table = contingency(labels, truth, mask, clusters=clusters, classes=classes)
    return jnp.sum(table.max(1)) / jnp.maximum(jnp.sum(table), 1)


class FMeasure(NamedTuple):
    """Precision, recall and their harmonic mean, each a scalar in 0..1; 0 if there is nothing to count.

    Attributes:
      f: 2 * precision * recall / (precision + recall).
      precision: share of the found items that are right.
      recall: share of the true items that were found.
    """

    f: jax.Array
    precision: jax.Array
    recall: jax.Array


def _f_measure(right, found, there):
    share = lambda part, whole: part / jnp.where(whole > 0, whole, 1)
    return FMeasure(share(2 * right, found + there), share(right, found), share(right, there))


def pairwise_f_measure(labels, truth, mask=None, *, clusters: int | None = None, classes: int | None = None):
    """F-measure over pairs of rows, as face clustering is measured (the GCN-V paper's pairwise F).

    Precision: of the pairs in one cluster, the share in one class. Recall: of the pairs in one class, the share in one
    cluster.

    Args:
      labels, truth, mask, clusters, classes: as for `contingency`.

    Returns:
      FMeasure.

    >>> result = pairwise_f_measure(jnp.array([0, 0, 0, 1]), jnp.array([1, 1, 0, 0]))
    >>> [round(float(x), 3) for x in result]
    [0.4, 0.333, 0.5]
    """
    return _pairwise(contingency(labels, truth, mask, clusters=clusters, classes=classes))


@jax.jit
def _pairwise(table):
    # In floating point: millions of rows have more pairs than an int32 holds.
    pairs = lambda n: jnp.sum(n * (n.astype(jnp.result_type(float)) - 1))
    return _f_measure(pairs(table), pairs(table.sum(1)), pairs(table.sum(0)))


@jax.jit
def detection_f_measure(xy, mask, truth, visible, *, radius) -> FMeasure:
    """F-measure of detected keypoints against annotated landmarks, for the self-training method's detector.

    In every image as many keypoints and landmarks as possible are matched one to one, no further apart than `radius`.
    Precision is the share of keypoints that are matched, recall that of landmarks; counts are of all images together.
    (Mallis et al. 2020 report an F-measure but not its definition; this one is ours, so report the radius with it.)

    Args:
      xy: [B,P,2] float, keypoints.
      mask: [B,P] bool, False for empty slots.
      truth: [B,L,2] float, landmarks.
      visible: [B,L] bool, False for landmarks that are not annotated.
      radius: largest distance in the units of xy, inclusive.

    >>> xy, truth = jnp.array([[[0.0, 0], [5, 5], [9, 9]]]), jnp.array([[[0.0, 1], [5, 5]]])
    >>> result = detection_f_measure(xy, jnp.ones((1, 3), bool), truth, jnp.ones((1, 2), bool), radius=2)
    >>> [round(float(x), 3) for x in result]
    [0.8, 0.667, 1.0]
    """
    xy, truth = jnp.where(mask[..., None], xy, 0), jnp.where(visible[..., None], truth, 0)
    distance = jnp.sqrt(jnp.sum((xy[:, :, None] - truth[:, None]) ** 2, -1))
    near = jnp.where(distance <= radius, distance, jnp.inf)
    matched = assignment.one_per_cluster(near, mask, visible) >= 0
    return _f_measure(jnp.sum(matched), jnp.sum(mask), jnp.sum(visible))
