"""Which cluster each keypoint of an image belongs to: at most one keypoint per cluster, or simply the nearest.

Self-training (Mallis et al. 2020, Eq. 1) wants the least total distance under the constraint that a cluster is used at
most once in an image, and then drops keypoints that are too far from their cluster; ZeroShot and D-ULD (and the later
code of Mallis et al.) take the nearest centroid and keep the best keypoint of each cluster. Images hold P keypoint
slots and a mask; there are M cluster slots and, where some are empty, `used`. Every function is jitted.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from uld_jax import sharding
from uld_jax.errors import UserError
from uld_jax.ops import keypoints

_HIGHEST = jax.lax.Precision.HIGHEST


@jax.jit
def linear_sum_assignment(cost):
    """Rows and columns of the pairs of least total cost, in the order of SciPy's function of that name: rows rise.

    Optax, which does the search, orders the pairs of a square table by rising column, those of a wide one by falling
    row, and those of a tall one by falling column.

    Args:
      cost: [P,M] float, finite.

    Returns:
      rows, columns [min(P,M)] int32. Of several matchings of least cost SciPy may give another one.

    >>> [x.tolist() for x in linear_sum_assignment(jnp.array([[9.0, 1.0, 9.0], [9.0, 9.0, 1.0], [1.0, 9.0, 9.0]]))]
    [[0, 1, 2], [1, 2, 0]]
    """
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    order = jnp.argsort(rows)
    return rows[order].astype(jnp.int32), columns[order].astype(jnp.int32)


def one_per_cluster(cost, mask=None, used=None, *, mesh=None, axis: str = "data"):
    """Minimum-cost matching of keypoints and clusters in every image (Mallis et al. 2020, Eq. 1; Hungarian method).

    As many keypoints as possible are matched, min(real keypoints, used clusters); the others get no label. A pair whose
    cost is not finite is forbidden: it is never matched, and as many keypoints as possible are matched without it.

    Padding. Every pair that is masked or forbidden costs the same `pad`, so a matching of all rows (or all columns) of
    the padded table with t allowed pairs costs their sum plus (min(P,M) - t) * pad, and every matching of allowed pairs
    extends to one. With nothing forbidden, a matching that leaves a real keypoint and a used cluster free gets cheaper
    by joining them, as every real cost is below `pad`: the optimum has the most pairs, and among those least cost. With
    forbidden pairs that needs pad > min(P,M) * (largest - smallest cost). Costs are taken relative to the image's
    smallest and `pad` is no larger than it must be, because float32 loses the costs' digits next to a large number.
    With forbidden pairs a total is least up to 1e-6 * min(P,M) * (largest - smallest cost).

    Args:
      cost: [B,P,M] float; what masked and unused entries hold does not matter, NaN neither.
      mask: [B,P] bool, False for slots without a keypoint; None: all hold one. An image may have none.
      used: [M] or [B,M] bool, clusters that may be given; None for all.
      mesh: over whose `axis` the images are split. Each device then matches its own and sends nothing; without one, a
        program for several devices asks all of them at every step of the search whether they have finished. By default
        that of `cost`, or of `jax.set_mesh`, if the images divide over it.
      axis: of the mesh.

    Returns:
      labels [B,P] int32 in 0..M - 1; -1 for masked and for unmatched slots.

    Raises:
      UserError: shapes that do not fit, or images that do not divide over the mesh.

    >>> cost = jnp.array([[[1.0, 2.0], [0.0, 5.0], [9.0, 9.0]]])
    >>> one_per_cluster(cost, jnp.array([[True, True, True]])).tolist()
    [[1, 0, -1]]
    >>> one_per_cluster(cost, jnp.array([[True, False, True]])).tolist()
    [[0, -1, 1]]
    """
    cost, mask, used = sharding.arrays(cost, mask, used)
    if cost.ndim != 3:
        raise UserError(f"one_per_cluster got costs {cost.shape}; give [B,P,M], images of slots of clusters")
    images, slots, clusters = cost.shape
    if not cost.size:
        return jnp.full((images, slots), -1, jnp.int32)
    mask = jnp.ones((images, slots), bool) if mask is None else mask
    used = jnp.ones(clusters, bool) if used is None else used
    if mask.shape != (images, slots) or used.shape not in ((clusters,), (images, clusters)):
        raise UserError(
            f"one_per_cluster got costs {cost.shape}, mask {mask.shape} and used {used.shape}; "
            f"give mask {(images, slots)} and used {(clusters,)} or {(images, clusters)}"
        )
    if mesh is None and (around := sharding.mesh_of(cost)) is not None and axis in around.shape:
        mesh = around if images % around.shape[axis] == 0 else None
    if mesh is not None and images % mesh.shape[axis]:
        raise UserError(f"{images} images do not divide over {mesh.shape[axis]} devices; pad them, masked")
    return _one_per_cluster(cost, mask, used, mesh=mesh, axis=axis)


@functools.partial(jax.jit, static_argnames=("mesh", "axis"))
def _one_per_cluster(cost, mask, used, *, mesh, axis):
    used = jnp.broadcast_to(used, (cost.shape[0], cost.shape[2]))
    match = jax.vmap(_match)
    if mesh is not None and mesh.shape[axis] > 1:
        # The check of what varies over devices does not know the constants inside the search.
        match = jax.shard_map(match, mesh=mesh, in_specs=P(axis), out_specs=P(axis), check_vma=False)
    return match(cost, mask, used)


def _match(cost, mask, used):
    """Labels [P] of one image: cost [P,M], mask [P], used [M]."""
    slots, clusters = cost.shape
    cost = cost.astype(jnp.promote_types(cost.dtype, jnp.float32))
    real = mask[:, None] & used
    allowed = real & jnp.isfinite(cost)
    # A keypoint (or cluster) that may be joined to nothing is as good as masked, and asks for no larger padding.
    forbidden = jnp.any(real & allowed.any(1)[:, None] & allowed.any(0) & ~allowed)
    least = jnp.min(jnp.where(allowed, cost, jnp.inf))
    span = jnp.max(jnp.where(allowed, cost, -jnp.inf)) - least
    pad = jnp.where(span > 0, span, 1) * jnp.where(forbidden, min(slots, clusters) + 1, 1.25)
    pad = jnp.where(allowed.any(), pad, 1).astype(cost.dtype)
    slot, label = linear_sum_assignment(jnp.where(allowed, cost - least, pad))
    label = jnp.where(allowed[slot, label], label, -1).astype(jnp.int32)
    return jnp.full(slots, -1, jnp.int32).at[slot].set(label)


@jax.jit
def squared_distances(descriptors, centroids, mask=None):
    """|f - c|^2 of all keypoints to all centroids: the cost of Mallis et al., for `one_per_cluster`.

    Args:
      descriptors: [B,P,D] float.
      centroids: [M,D], the same for all images, or [B,M,D], each image its own (D-ULD's pose clusters).
      mask: [B,P] bool; distances of masked slots are 0.

    Returns:
      [B,P,M] float32 (or wider, as the descriptors).

    >>> squared_distances(jnp.array([[[0.0, 1.0]]]), jnp.array([[3.0, 1.0], [0.0, 0.0]])).tolist()
    [[[9.0, 1.0]]]
    """
    dtype = jnp.promote_types(descriptors.dtype, jnp.float32)
    centroids = _per_image(centroids.astype(dtype), descriptors)
    x = descriptors.astype(dtype) if mask is None else jnp.where(mask[..., None], descriptors, 0).astype(dtype)
    # What is common to all centroids would only cost digits. One that is not finite spoils its own column alone.
    finite = jnp.isfinite(centroids).all(-1, keepdims=True)
    middle = jnp.mean(centroids, 1, keepdims=True, where=finite)
    middle = jnp.where(jnp.isfinite(middle), middle, 0)
    x, centroids = x - middle, centroids - middle
    cross = jnp.einsum("bpd,bmd->bpm", x, centroids, precision=_HIGHEST)
    distances = jnp.sum(x * x, -1)[..., None] - 2 * cross + jnp.sum(centroids**2, -1)[:, None]
    distances = jnp.maximum(distances, 0)  # NaN stays NaN
    return distances if mask is None else jnp.where(mask[..., None], distances, 0)


def _per_image(rows, descriptors):
    """[M,D] or [B,M,D] as [B,M,D], or [1,M,D]: one table for all images."""
    if rows.shape[-1] != descriptors.shape[-1]:
        raise UserError(f"descriptors of size {descriptors.shape[-1]} cannot be compared with {rows.shape[-1]} numbers")
    rows = rows if rows.ndim == 3 else rows[None]
    return jnp.broadcast_to(rows, (descriptors.shape[0], *rows.shape[1:]))


class Nearest(NamedTuple):
    """Nearest exemplars.

    Attributes:
      labels: [B,P] int32, the most similar exemplar in use; -1 where there is none.
      similarity: [B,P] float32, its cosine, -1..1; 0 where the label is -1.
    """

    labels: jax.Array
    similarity: jax.Array


@jax.jit
def nearest_exemplar(descriptors, exemplars, mask=None, used=None) -> Nearest:
    """The exemplar of greatest cosine for every keypoint; several keypoints may share one (see `best_slots`).

    Neither descriptors nor exemplars need length 1. Of equal cosines the lower label wins. Masked slots, and
    descriptors without a direction (all zeros, or not finite), get label -1; such exemplars count as unused.

    Args:
      descriptors: [B,P,D] float.
      exemplars: [M,D], or [B,M,D]: each image its own (D-ULD's exemplars of an image's pose cluster).
      mask: [B,P] bool, False for slots without a keypoint; None: all hold one.
      used: [M] or [B,M] bool, exemplars that may be given; None for all.

    >>> found = nearest_exemplar(jnp.array([[[0.0, 2.0], [3.0, 0.1]]]), jnp.eye(2))
    >>> found.labels.tolist(), found.similarity.round(2).tolist()
    ([[1, 0]], [[1.0, 1.0]])
    """
    x, some = _unit(descriptors)
    exemplars, directed = _unit(_per_image(exemplars, descriptors))
    used = directed if used is None else directed & used
    some = some if mask is None else some & mask
    cosine = jnp.einsum("bpd,bmd->bpm", x, exemplars, precision=_HIGHEST)
    cosine = jnp.where(used[:, None, :], cosine, -jnp.inf)
    some &= used.any(1)[:, None]
    return Nearest(
        jnp.where(some, jnp.argmax(cosine, -1).astype(jnp.int32), -1), jnp.where(some, jnp.max(cosine, -1), 0)
    )


def _unit(x):
    """Rows of length 1 (zeros where there is no direction) and which have one."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    some = (length > 0) & jnp.isfinite(length)
    return jnp.where(some, x / jnp.where(some, length, 1), 0), some[..., 0]


class BestSlots(NamedTuple):
    """One keypoint for each cluster and image.

    Attributes:
      slots: [B,M] int32, the slot that represents the cluster in the image; -1 where the cluster is absent.
      keep: [B,P] bool, the slots that represent their cluster.
    """

    slots: jax.Array
    keep: jax.Array


@functools.partial(jax.jit, static_argnames="clusters")
def best_slots(labels, scores, clusters: int) -> BestSlots:
    """Of all keypoints with the same label in an image, the one of highest score; of equal scores the lower slot.

    This is ZeroShot's exemplar assignment (argmin of the distance: give similarities, or distances with a minus) and
    the "closest point of each cluster" of the later Mallis code.

    Args:
      labels: [B,P] int32; slots with a label outside 0..clusters - 1 take no part.
      scores: [B,P] float; slots with a NaN take no part.
      clusters: M.

    >>> best_slots(jnp.array([[1, 1, 0, -1]]), jnp.array([[0.2, 0.9, 0.5, 1.0]]), 3).slots.tolist()
    [[2, 1, -1]]
    """
    slots = labels.shape[1]
    member = (labels[..., None] == jnp.arange(clusters)) & ~jnp.isnan(scores)[..., None]
    highest = jnp.max(jnp.where(member, scores[..., None], -jnp.inf), 1, keepdims=True)
    position = jnp.arange(slots, dtype=jnp.int32)[:, None]
    first = jnp.min(jnp.where(member & (scores[..., None] == highest), position, slots), 1)  # [B,M]
    keep = jnp.any(member & (first[:, None] == position), -1)
    return BestSlots(jnp.where(first < slots, first, -1), keep)


@functools.partial(jax.jit, static_argnames="clusters")
def distance_limits(distances, labels, clusters: int, *, deviations=1.0):
    """Mean plus `deviations` standard deviations (of the population) of the distances in each cluster.

    The self-training code takes squared distances of all keypoints to their nearest centroid, one deviation. On a
    mesh the images may be split: two sums of [M] are sent.

    Args:
      distances: [B,P] (or any shape), of every keypoint to the cluster of its label; masked slots may hold anything.
      labels: as distances, int32; slots with a label outside 0..clusters - 1, or with a distance that is not finite,
        count nowhere.
      clusters: M.
      deviations: how many; negative ones cut below the mean.

    Returns:
      [M] float32 (or wider); 0 for a cluster without keypoints, so that the strict cut rejects everything, as there.

    >>> distance_limits(jnp.array([[1.0, 3.0, 7.0]]), jnp.array([[0, 0, -1]]), 2).tolist()
    [3.0, 0.0]
    """
    distances, labels = distances.reshape(-1), labels.reshape(-1)
    distances = distances.astype(jnp.promote_types(distances.dtype, jnp.float32))
    # Compared and added, not scattered: the order of summation, and so the rounding, is the same every time.
    member = (labels[:, None] == jnp.arange(clusters)) & jnp.isfinite(distances)[:, None]
    count = jnp.maximum(jnp.sum(member, 0), 1)
    mean = jnp.sum(jnp.where(member, distances[:, None], 0), 0) / count
    variance = jnp.sum(jnp.where(member, (distances[:, None] - mean) ** 2, 0), 0) / count
    return jnp.where(member.any(0), mean + deviations * jnp.sqrt(variance), 0)


def distance_cut(distances, labels, clusters: int, *, deviations=1.0, limits=None):
    """Which keypoints are close enough to their cluster: distance < limit (strict), limits as `distance_limits`.

    Self-training measures the limits on the nearest centroids but cuts by the cluster that the matching gave: pass
    `limits=distance_limits(nearest distances, nearest labels, M)` for that. By default both are the same.

    Args:
      distances, labels, clusters, deviations: as for `distance_limits`; images [B,P].
      limits: [M], instead of those of these very distances.

    Returns:
      keep [B,P] bool; False where the label is outside 0..M - 1 or the distance is NaN.

    >>> distance_cut(jnp.array([[1.0, 1.0, 1.0, 5.0]]), jnp.array([[0, 0, 0, 0]]), 1).tolist()
    [[True, True, True, False]]
    """
    limits = distance_limits(distances, labels, clusters, deviations=deviations) if limits is None else limits
    inside = (labels >= 0) & (labels < clusters)
    return inside & (distances < limits[jnp.where(inside, labels, 0)])


def nearest_centroid(descriptors, mask, centroids):
    """The squared distance [B,P] of keypoints to their nearest centroid, and which [B,P] that is; -1 in masked slots.

    Args:
      descriptors: [B,P,D] float.
      mask: [B,P] bool, False for slots without a keypoint.
      centroids: [M,D].
    """
    cost = squared_distances(descriptors, centroids, mask)
    return jnp.min(cost, -1), jnp.where(mask, jnp.argmin(cost, -1), -1)


def nearest_limits(distances, labels, clusters: int, deviations: float):
    """The limits [M] of `assign`, measured on each keypoint's nearest centroid; 0 for a cluster without keypoints.

    Args:
      distances, labels: of any shape, what `nearest_centroid` gave.
      clusters: M.
      deviations: standard deviations beyond the mean; 0 for no limit.

    >>> nearest_limits(jnp.array([[1.0, 3.0, 7.0]]), jnp.array([[0, 0, -1]]), 2, deviations=1.0).tolist()
    [3.0, 0.0]
    """
    some = jnp.any((labels[..., None] == jnp.arange(clusters)).reshape(-1, clusters), 0)
    if deviations:
        # A cluster of equal descriptors has limit 0 up to rounding, yet they are close to it.
        limits = distance_limits(distances, labels, clusters, deviations=deviations)
        return jnp.where(some, jnp.maximum(limits, 1e-6), 0)
    return jnp.where(some, jnp.asarray(jnp.finfo(distances.dtype).max, distances.dtype), 0)


class Assigned(NamedTuple):
    """Where each cluster is in each image.

    Attributes:
      slots: [B,M] int32, the keypoint that has the cluster; -1 where the image does not use it.
      distance: [B,M] float32, its squared distance to the centroid.
    """

    slots: jax.Array
    distance: jax.Array


def assign(descriptors, mask, centroids, limits, how: Literal["hungarian", "nearest"]) -> Assigned:
    """Assign the keypoints of each image to clusters, each used once at most; what is beyond its limit is dropped.

    Args:
      descriptors: [B,P,D] float.
      mask: [B,P] bool, False for slots without a keypoint.
      centroids: [M,D].
      limits: [M] squared distances, exclusive; 0 for a cluster that takes nothing.
      how: `hungarian`, the least total distance (Mallis et al. 2020, eq. 1); or `nearest`, each keypoint to the nearest
        centroid, of which a cluster keeps the closest (their later code).
    """
    cost = squared_distances(descriptors, centroids, mask)
    used = limits > 0
    if how == "hungarian":
        labels = one_per_cluster(cost, mask, used)
    else:
        labels = jnp.where(mask & used.any(), jnp.argmin(jnp.where(used, cost, jnp.inf), -1), -1)
    own = jnp.take_along_axis(cost, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    keep = distance_cut(own, labels, len(limits), limits=limits)
    slots = best_slots(jnp.where(keep, labels, -1), -own, len(limits)).slots
    return Assigned(slots, keypoints.take_slots(own, slots))
