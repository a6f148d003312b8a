"""Agreement of image clusters with pose, by ranges of yaw (figure 7 of Tourani et al., CVPR 2024), and yaw from points.

A cluster stands for the range of yaw of most of its images. The accuracy is the share of images that are in the range
of their cluster; `hungarian` gives every range to one cluster at most. `chance` is the accuracy of a single cluster:
most photos are frontal, so read the other numbers beside it.

If the yaw of an image is not known, `yaw_of_points` computes it from five or more annotated points. No model of a head
is needed: the points of all images together determine their shape.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from uld_jax.clustering import assignment, quality
from uld_jax.evaluation.missing import known_mean

EDGES = (-90.0, -60.0, -30.0, 30.0, 60.0, 90.0)  # degrees


@dataclasses.dataclass(frozen=True)
class YawRange:
    """Images of a range of yaw.

    Attributes:
      range: label, such as `-30 to 30`, in degrees.
      n: number of images.
      clusters: numbers of the clusters that stand for the range.
      accuracy: share of the images that are in one of these, in 0..1; None without images.
    """

    range: str
    n: int
    clusters: list[int]
    accuracy: float | None


@dataclasses.dataclass(frozen=True)
class YawOfClusters:
    """Agreement of clusters with yaw; shares are in 0..1 and defined in the module's docstring.

    Attributes:
      counted: number of images whose yaw is in a range.
      accuracy: share of images that are in the range of their cluster.
      hungarian: the accuracy if every range is given to one cluster at most.
      chance: accuracy of a single cluster.
      balanced: mean of the accuracies of the ranges that have images; NaN without any.
      nmi: normalised mutual information of cluster and range, over clustered images.
      yaw_range: [Q] label of each cluster's range; None for a cluster without counted images.
      yaw_mean, yaw_std: [Q] mean and deviation of each cluster's counted images in degrees; None without any.
      ranges: the ranges in increasing order.
    """

    counted: int
    accuracy: float
    hungarian: float
    chance: float
    balanced: float
    nmi: float
    yaw_range: list[str | None]
    yaw_mean: list[float | None]
    yaw_std: list[float | None]
    ranges: list[YawRange]


@dataclasses.dataclass(frozen=True)
class PoseClusters:
    """Result of `pose_clusters`.

    Attributes:
      sizes: [Q] number of images of each cluster, up to the last cluster that has one.
      unclustered: number of images in no cluster.
      yaw: agreement of the clusters with yaw; None if no yaw is known.
    """

    sizes: list[int]
    unclustered: int
    yaw: YawOfClusters | None = None


def pose_clusters(clusters, yaw=None, edges: Sequence[float] = EDGES) -> PoseClusters:
    """Measure the agreement of clusters of images with their yaw.

    Args:
      clusters: [N] int, 0..Q-1; negative for an image in no cluster, which is a miss.
      yaw: [N] yaw in degrees, NaN where unknown; None to count only sizes.
      edges: increasing edges in degrees; a range is e0 <= yaw < e1 and so on, the last one holds its upper edge too.
        Images outside do not count.

    >>> found = pose_clusters([0, 0, 1, 1, 1], [-70.0, -80.0, 5.0, 10.0, 40.0])
    >>> found.sizes, found.yaw.accuracy, found.yaw.yaw_range
    ([2, 3], 0.8, ['-90 to -60', '-30 to 30'])
    """
    clusters = np.asarray(clusters, np.int32)
    count = max(int(clusters.max(initial=-1)) + 1, 1)
    sizes = np.bincount(clusters[clusters >= 0], minlength=count)
    known = None if yaw is None else _yaw_of_clusters(clusters, count, np.asarray(yaw, np.float64), edges)
    return PoseClusters(sizes.tolist(), int((clusters < 0).sum()), known)


def _yaw_of_clusters(clusters, count: int, yaw, edges: Sequence[float]) -> YawOfClusters:
    """Measure the agreement of `count` clusters [N] with yaw [N]."""
    labels = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
    ranges = np.searchsorted(edges, yaw, side="right") - 1  # NaN comes last
    ranges = np.where(yaw == edges[-1], len(labels) - 1, ranges)
    counted = (ranges >= 0) & (ranges < len(labels))
    which = {"mask": jnp.asarray(counted), "clusters": count, "classes": len(labels)}
    table, both = np.zeros((count, len(labels)), np.int64), counted & (clusters >= 0)  # [Q,R]
    np.add.at(table, (clusters[both], ranges[both]), 1)
    of = np.bincount(ranges[counted], minlength=len(labels))
    total = max(int(of.sum()), 1)
    major, used = table.argmax(1), table.sum(1) > 0
    right = np.array([table[used & (major == r), r].sum() for r in range(len(labels))])
    given = np.asarray(assignment.one_per_cluster(jnp.asarray(table.max() - table, jnp.float32)[None]))[0]
    by_range = np.where(of > 0, right / np.maximum(of, 1), np.nan)
    inside = [yaw[counted & (clusters == q)] for q in range(count)]
    return YawOfClusters(
        counted=int(of.sum()),
        accuracy=float(right.sum() / total),
        hungarian=float(sum(table[q, r] for q, r in enumerate(given) if r >= 0) / total),
        chance=float(of.max() / total),
        balanced=float(known_mean(by_range)),
        nmi=float(quality.nmi(jnp.asarray(clusters), jnp.asarray(ranges), **which)),
        yaw_range=[labels[r] if u else None for r, u in zip(major, used, strict=True)],
        yaw_mean=[float(y.mean()) if len(y) else None for y in inside],
        yaw_std=[float(y.std()) if len(y) else None for y in inside],
        ranges=[
            YawRange(
                range=label,
                n=int(of[r]),
                clusters=np.flatnonzero(used & (major == r)).tolist(),
                accuracy=float(by_range[r]) if of[r] else None,
            )
            for r, label in enumerate(labels)
        ],
    )


# Yaw from points


class Turned(NamedTuple):
    """Result of `yaw_of_points`.

    Attributes:
      yaw: [N] degrees, positive if the nose is turned to the image's right; NaN if the points do not determine it.
      pitch: [N] degrees above the mean pitch of all images, positive if the nose is lifted.
      shape: [L',3], the points used, symmetric, in the head's own frame: x to the image's right for a head that faces
        the camera, y down, z AWAY from the camera. NaN for a point that fewer than eight images have; None if the
        points do not determine it.
    """

    yaw: np.ndarray
    pitch: np.ndarray
    shape: np.ndarray | None


def yaw_of_points(points, mirror, use=None, *, rounds: int = 15, most: int = 1000) -> Turned:
    """Compute the yaw of heads from their annotated points alone, for many images with different poses.

    The method is structure from motion of one rigid, symmetric shape S [L,3] under weak perspective: up to noise and
    movements of the face, the points of image n are s_n R_n S + t_n with R_n the first two rows of a rotation. A mirror
    permutation m splits the coordinates into an odd part, (w_i - w_m(i)) / 2, which holds only x, and an even part,
    which holds y and z. So the shape is known up to a scale of x and a linear map of (y, z). Both are determined,
    except for a rotation in the plane of y and z, because the rows of R_n are of equal length and at right angles.
    Poses and shape are then refined in turn, with lower weights for points that fit badly.

    Points may be missing, as those are that cannot be seen on a profile. The shape is begun with the points and images
    that hold the most coordinates without a gap (`_whole`), and the other points of these images are added. Images with
    gaps, down to five points, then take part; a pose is computed for those with four points and more.

    Five points are enough, such as eyes, nose and corners of the mouth, if the heads turn far enough: the noise of few
    points, and the different lengths of noses, then decide over depth, so that the yaw of a set without any turned head
    is underestimated.

    Three properties that no picture shows are set by convention: the mean pitch of all images is 0; heads are upright
    and face the camera; and the face bulges towards the camera.

    Args:
      points: [N,L,2] `(x, y)` in pixels, NaN where not annotated.
      mirror: [L] permutation of the points in a mirrored image, as `data.specs.DatasetSpec.mirror`.
      use: numbers of the points to use, including their mirror partners; None for all.
      rounds: number of rounds of refinement.
      most: number of images, spread evenly, from which the shape is made; poses are computed for all.
    """
    points, mirror = np.asarray(points, np.float64), np.asarray(mirror)
    if use is not None:
        use = np.asarray(use)
        points, mirror = points[:, use], np.argsort(use)[np.searchsorted(np.sort(use), mirror[use])]
    known = np.isfinite(points).all(-1)
    points = np.where(known[..., None], points, 0)
    nothing = np.full(len(points), np.nan)
    for there, core in _whole(known, mirror):
        rows = _spread(np.flatnonzero(there), most)
        begun = _factorise(points[rows][:, core], np.searchsorted(core, mirror[core]))
        if begun is not None:
            break
    else:
        return Turned(nothing, nothing, None)
    shape, weights = np.zeros((len(mirror), 3)), np.zeros(len(mirror))
    shape[core], weights[core] = begun, 1
    for _ in range(rounds):
        shape, weights = _refined(points[rows], known[rows], shape, weights, mirror)
    if not there.all():
        rows = _spread(np.flatnonzero((known & (weights > 0)).sum(1) >= 5), most)
        for _ in range(rounds):
            shape, weights = _refined(points[rows], known[rows], shape, weights, mirror)
    counted = known * (weights / weights.max())
    # On synthetic heads, affine maps scatter less than poses of least squares where no point is missing.
    scale, turns = _poses(points, counted, shape)
    gaps = np.flatnonzero(~there)
    scale[gaps], turns[gaps] = _nearest(points[gaps], counted[gaps], shape, scale[gaps], turns[gaps], 30)
    forward = np.cross(turns[:, 0], turns[:, 1])  # direction of the camera's view, in the head's frame
    good = ((counted > 0).sum(1) >= 4) & (scale > 0)
    # The turn about x that makes the mean pitch 0.
    up = np.arctan2(forward[good, 1].mean(), forward[good, 2].mean())
    about_x = np.array([[1, 0, 0], [0, np.cos(up), -np.sin(up)], [0, np.sin(up), np.cos(up)]])
    forward, shape = forward @ about_x.T, shape @ about_x.T
    used = weights > 0
    if np.cov(np.abs(shape[used, 0]), shape[used, 2])[0, 1] < 0:  # points at the sides must lie farther back
        forward, shape = forward * (-1, -1, 1), shape * (1, 1, -1)
    yaw = np.degrees(np.arctan2(forward[:, 0], forward[:, 2]))
    pitch = -np.degrees(np.arcsin(np.clip(forward[:, 1], -1, 1)))
    shape[~used] = np.nan
    return Turned(np.where(good, yaw, np.nan), np.where(good, pitch, np.nan), shape)


def _spread(rows, most: int):
    """Choose `most` rows, evenly, or all if there are fewer."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]


def _whole(known, mirror):
    """Choose points [C] and the images [N] bool that have all of them, those with the most coordinates first.

    A point counts with its mirror partner. Fewer than eight images or five points do not determine a shape.
    """
    both = known & known[:, mirror]
    first = np.flatnonzero(np.arange(len(mirror)) <= mirror)
    there, core, found = np.ones(len(known), bool), [], []
    for point in first[np.argsort(-both[:, first].sum(0), kind="stable")]:
        there = there & both[:, point]
        core = sorted({*core, point, mirror[point]})
        if len(core) >= 5 and there.sum() >= 8:
            found.append((there, np.array(core)))
    return sorted(found, key=lambda one: -one[0].sum() * len(one[1]))


def _refined(points, known, shape, weights, mirror):
    """One round: poses [N] by the shape [L,3], then shape and weights [L] by the poses; points without weight join."""
    used = known * weights
    scale, turns = _nearest(points, used, shape, *_poses(points, used, shape), 10)
    middle, centre = _centres(points, used, shape)
    target = (points - middle[:, None]) / np.maximum(scale, 1e-12)[:, None, None]  # scaled to the shape
    target = target + np.einsum("nci,ni->nc", turns, centre)[:, None]  # and relative to its origin
    # A point and its partner have one place, up to the sign of x: the equations of both are added.
    flip = np.array([-1, 1, 1])
    inner = np.einsum("nl,nci,ncj->lij", known, turns, turns)
    inner = inner + inner[mirror] * flip[:, None] * flip
    cross = np.einsum("nl,nci,nlc->li", known, turns, target)
    cross = cross + cross[mirror] * flip
    shape = np.linalg.solve(inner + 1e-9 * np.eye(3), cross[..., None])[..., 0]
    variance = (((np.einsum("nci,li->nlc", turns, shape) - target) ** 2).sum(-1) * known).sum(0)
    count = known.sum(0) + known.sum(0)[mirror]
    variance = (variance + variance[mirror]) / np.maximum(count, 1)
    enough = count >= 16  # eight images of both sides
    # Ten times the usual variance, because a few points would otherwise attract the poses, and fit well for that alone.
    weights = np.where(enough, 1 / (variance + 10 * np.median(variance[enough]) + 1e-12), 0)
    shape = np.where(enough[:, None], shape - weights @ shape / weights.sum(), 0)
    return shape, weights


def _factorise(points, mirror):
    """An initial shape [L,3] from images that have all points; None if they do not determine one."""
    away = points - points.mean(1, keepdims=True)
    size = np.sqrt((away**2).sum((1, 2), keepdims=True))
    away = away[size[:, 0, 0] > 0] / size[size[:, 0, 0] > 0]
    odd, even = (away - away[:, mirror]) / 2, (away + away[:, mirror]) / 2

    def factor(part, rank):
        """Factorise [N,L,2] into coefficients [N,2,rank] of unit size and a basis [rank,L]."""
        rows = np.moveaxis(part, -1, 1).reshape(-1, part.shape[1])
        u, s, v = np.linalg.svd(rows, full_matrices=False)
        if len(s) < rank or s[rank - 1] < 1e-6 * max(s[0], 1e-300):
            return None
        coefficients = u[:, :rank] * np.sqrt(len(rows))
        return coefficients.reshape(-1, 2, rank), (s[:rank, None] * v[:rank]) / np.sqrt(len(rows))

    first, second = factor(odd, 1), factor(even, 2)
    if first is None or second is None:
        return None
    (p, x), (e, yz) = first, second
    # Both rows of (a p, e B) have one length and are at right angles: linear equations in q = a^2 and Q = B B'.
    products = lambda i, j: np.stack(
        [
            p[:, i, 0] * p[:, j, 0],
            e[:, i, 0] * e[:, j, 0],
            e[:, i, 0] * e[:, j, 1] + e[:, i, 1] * e[:, j, 0],
            e[:, i, 1] * e[:, j, 1],
        ],
        -1,
    )
    equations = np.concatenate([products(0, 0) - products(1, 1), 2 * products(0, 1)])
    _, spread, solutions = np.linalg.svd(equations, full_matrices=False)
    if spread[2] < 1e-6 * spread[0]:
        return None  # all images show the same view
    q = solutions[-1]
    q *= np.sign(q[0]) or 1
    values, vectors = np.linalg.eigh(np.array([[q[1], q[2]], [q[2], q[3]]]))
    if q[0] <= 0 or values[1] <= 0:
        return None
    # Noise may make the smaller eigenvalue negative: depth is then set small and refined later.
    values = np.maximum(values, 1e-3 * values[1])
    root = vectors * np.sqrt(values)
    shape = np.concatenate([x / np.sqrt(q[0]), np.linalg.solve(root, yz)]).T  # [L,3]
    rows = np.concatenate([p * np.sqrt(q[0]), e @ root], -1)  # [N,2,3] s_n R_n
    # Heads are upright, so y is the direction of the mean vertical row; they face the camera, so x is that of the
    # mean horizontal row.
    down = rows[:, 1, 1:].mean(0)
    down /= max(np.linalg.norm(down), 1e-12)
    shape[:, 1:] = shape[:, 1:] @ np.array([[down[0], -down[1]], [down[1], down[0]]])
    shape[:, 0] *= np.sign(rows[:, 0, 0].mean()) or 1
    return shape


def _centres(points, weights, shape):
    """Weighted means of the points [N,L,2], and of the shape's points that an image has: [N,2], [N,3]."""
    total = np.maximum(weights.sum(1), 1e-12)[:, None]
    return np.einsum("nl,nlc->nc", weights, points) / total, np.einsum("nl,li->ni", weights, shape) / total


def _moments(points, weights, shape):
    """Weighted products of points and shape [N,2,3], and of the shape with itself [N,3,3], about their means."""
    middle, centre = _centres(points, weights, shape)
    away, at = points - middle[:, None], shape - centre[:, None]
    return np.einsum("nl,nlc,nli->nci", weights, away, at), np.einsum("nl,nli,nlj->nij", weights, at, at)


def _poses(points, weights, shape):
    """Weak-perspective poses of points [N,L,2] with weights [N,L]: scale [N], rows R [N,2,3].

    A pose is the scaled rotation nearest to the affine map of least squares.
    """
    cross, inner = _moments(points, weights, shape)
    inner = inner + 1e-6 * np.trace(inner, axis1=1, axis2=2)[:, None, None] * np.eye(3) + 1e-12 * np.eye(3)
    affine = np.linalg.solve(inner, cross.transpose(0, 2, 1)).transpose(0, 2, 1)
    u, s, v = np.linalg.svd(affine, full_matrices=False)
    return s.mean(1), u @ v


def _nearest(points, weights, shape, scale, turns, rounds: int):
    """Improve weak-perspective poses towards those of least squares: scale [N], rows R [N,2,3].

    The affine map that `_poses` begins with is nearly undetermined by points in a plane, such as those of half a face.
    Each round sets the unknown depths of the points to those of the pose, and finds the rotation and scale that fit
    best in three dimensions, by which the error in the picture never grows.
    """
    cross, inner = _moments(points, weights, shape)
    size = np.maximum(np.trace(inner, axis1=1, axis2=2), 1e-12)
    for _ in range(rounds):
        depth = scale[:, None] * np.einsum("ni,nij->nj", np.cross(turns[:, 0], turns[:, 1]), inner)
        u, s, v = np.linalg.svd(np.concatenate([cross, depth[:, None]], 1))
        sign = np.linalg.det(u @ v)
        u[:, :, 2] *= sign[:, None]
        scale, turns = (s[:, 0] + s[:, 1] + sign * s[:, 2]) / size, (u @ v)[:, :2]
    return scale, turns
