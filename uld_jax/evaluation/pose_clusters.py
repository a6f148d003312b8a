"""Agreement of image clusters with pose, by ranges of yaw (figure 7 of Tourani et al., CVPR 2024), and yaw from points.

A cluster stands for the range of yaw of most of its images. The accuracy is the share of images that are in the range
of their cluster; `hungarian` gives every range to one cluster at most. `chance` is the accuracy of a single cluster:
most photos are frontal, so read the other numbers beside it.

If the yaw of an image is not known, `yaw_of_points` computes it from many annotated points. No model of a head is
needed: the points of all images together determine their shape.
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
        the camera, y down, z AWAY from the camera. None if the points do not determine it.
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
    nothing = np.full(len(points), np.nan)
    whole = np.flatnonzero(known.all(1))
    whole = whole[np.linspace(0, len(whole) - 1, min(most, len(whole))).astype(int)]
    shape = _factorise(points[whole], mirror) if len(whole) >= 8 and points.shape[1] >= 6 else None
    if shape is None:
        return Turned(nothing, nothing, None)
    weights = np.ones(points.shape[1])
    for _ in range(rounds):
        scale, turns, away = _poses(points[whole], np.broadcast_to(weights, known[whole].shape), shape)
        target = away / np.maximum(scale, 1e-12)[:, None, None]  # scaled to the shape, for equal weights
        inner = np.einsum("nci,ncj->ij", turns, turns) + 1e-9 * np.eye(3)
        shape = _symmetric(np.linalg.solve(inner, np.einsum("nci,nlc->il", turns, target)).T, mirror)
        variance = ((np.einsum("nci,li->nlc", turns, shape) - target) ** 2).sum(-1).mean(0)
        variance = (variance + variance[mirror]) / 2
        weights = 1 / (variance + 0.25 * np.median(variance) + 1e-12)
        shape -= weights @ shape / weights.sum()
    scale, turns, _ = _poses(np.where(known[..., None], points, 0), known * (weights / weights.mean()), shape)
    forward = np.cross(turns[:, 0], turns[:, 1])  # direction of the camera's view, in the head's frame
    good = (known.sum(1) >= 4) & (scale > 0)
    # The turn about x that makes the mean pitch 0.
    up = np.arctan2(forward[good, 1].mean(), forward[good, 2].mean())
    about_x = np.array([[1, 0, 0], [0, np.cos(up), -np.sin(up)], [0, np.sin(up), np.cos(up)]])
    forward, shape = forward @ about_x.T, shape @ about_x.T
    if np.cov(np.abs(shape[:, 0]), shape[:, 2])[0, 1] < 0:  # points at the sides must lie farther back
        forward, shape = forward * (-1, -1, 1), shape * (1, 1, -1)
    yaw = np.degrees(np.arctan2(forward[:, 0], forward[:, 2]))
    pitch = -np.degrees(np.arcsin(np.clip(forward[:, 1], -1, 1)))
    return Turned(np.where(good, yaw, np.nan), np.where(good, pitch, np.nan), shape)


def _symmetric(shape, mirror):
    """Average the shape [L,3] and its mirror image."""
    return (shape + shape[mirror] * (-1, 1, 1)) / 2


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


def _poses(points, weights, shape):
    """Weak-perspective poses of points [N,L,2] with weights [N,L]: scale [N], rows R [N,2,3], centred points.

    A pose is the scaled rotation nearest to the affine map of least squares. Points are centred like the shape.
    """
    total = np.maximum(weights.sum(1), 1e-12)[:, None]
    middle = np.einsum("nl,nlc->nc", weights, points) / total
    centre = np.einsum("nl,li->ni", weights, shape) / total
    at = shape - centre[:, None]
    away = points - middle[:, None]
    cross = np.einsum("nl,nlc,nli->nci", weights, away, at)
    inner = np.einsum("nl,nli,nlj->nij", weights, at, at)
    inner = inner + 1e-6 * np.trace(inner, axis1=1, axis2=2)[:, None, None] * np.eye(3) + 1e-12 * np.eye(3)
    affine = np.linalg.solve(inner, cross.transpose(0, 2, 1)).transpose(0, 2, 1)
    u, s, v = np.linalg.svd(affine, full_matrices=False)
    turns = u @ v
    # The points are relative to the shape's origin, which need not be the centre of an image's annotated points.
    scale = s.mean(1)
    return scale, turns, away + scale[:, None, None] * np.einsum("nci,ni->nc", turns, centre)[:, None]
