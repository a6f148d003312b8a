"""Clusters of poses, and of the keypoints of each pose.

Tourani et al., CVPR 2024, section 3.3.2: codes of images are clustered into Q poses; then the keypoints of each pose
are clustered by themselves. The start from the K centroids of all poses, the matching that gives crossed clusters back,
and unused clusters are ours: they make cluster k one landmark in all poses.

Shapes: B,T images of a pass, P keypoint slots an image, D descriptor size, K clusters, G groups (poses; 1 without), Z
code size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.clustering import assignment
from uld_jax.clustering.kmeans import assign, kmeans
from uld_jax.ops import contrast, coordinates, keypoints


class Groups(NamedTuple):
    """Clusters of each group.

    Attributes:
      centroids: [G,K,D].
      used: [G,K] bool, False for a cluster that is not seen in a group.
      moved: int32, identities that were given back to another cluster of a group.
    """

    centroids: jax.Array
    used: jax.Array
    moved: jax.Array


def warm_kmeans(x, count: int, start, known, rng, *, mask, iterations: int, restarts: int):
    """Centroids [count,D] of rows [N,D], from `start` [count,D] where it is `known`, else from rows drawn by `rng`."""
    seeded = lambda: kmeans(x, count, rng=rng, mask=mask, iterations=iterations, restarts=restarts).centroids
    warm = lambda: kmeans(x, count, init=start, mask=mask, iterations=iterations).centroids
    return jax.lax.cond(known, warm, seeded)


def cluster_groups(
    x, mask, keypoint_mask, group, anchors, groups: int, *, iterations: int, least_share: float, least_keypoints: int
) -> Groups:
    """Cluster the keypoints of each group by themselves, from the anchors of all.

    A group's k-means starts from the anchors, which gives each cluster its identity; where updates crossed, the best
    matching to the anchors gives it back.

    Args:
      x: [R*B*T*P,D] descriptors; R is 2 where those of mirrored images come behind the images' own, else 1.
      mask: [R*B*T*P] bool.
      keypoint_mask: [B,T,P] bool, of the images' own keypoints.
      group: [B,T] int32, the group of each image.
      anchors: [K,D].
      groups: G.
      iterations: of k-means, at most.
      least_share: a cluster with fewer keypoints than this times the group's images is not seen in the group.
      least_keypoints: a group with fewer keypoints than this times K takes the anchors.
    """
    count = len(anchors)
    of_row = jnp.broadcast_to(group[..., None], keypoint_mask.shape).reshape(-1)
    of_row = jnp.tile(of_row, len(x) // len(of_row))

    def one(number):
        here = mask & (of_row == number)
        found = kmeans(x, count, init=anchors, mask=here, iterations=iterations, refill=False)
        near = contrast.square_distances(anchors, found.centroids)
        _, cluster = assignment.linear_sum_assignment(near)
        near, counts = near[:, cluster], found.counts[cluster]
        # A cluster whose landmark is hidden in this pose collects keypoints of another landmark: mark it unused.
        strange = jnp.argmin(near, 0) != jnp.arange(count)
        rare = counts < least_share * jnp.sum(jnp.any(keypoint_mask, -1) & (group == number))
        few = jnp.sum(counts) < least_keypoints * count
        moved = jnp.where(few, 0, jnp.sum(cluster != jnp.arange(count)))
        return jnp.where(few, anchors, found.centroids[cluster]), ~(rare | strange) | few, moved

    centroids, used, moved = jax.lax.map(one, jnp.arange(groups))
    return Groups(centroids, used, jnp.sum(moved))


def _costs(described, mask, group, centroids, used):
    """Squared distances [B,P,K] of keypoints to the clusters of their image's group."""
    cost = assignment.squared_distances(described, centroids[group], mask)
    return jnp.where(used[group][:, None], cost, jnp.inf)


def nearest(described, mask, group, centroids, used):
    """Nearest cluster [B,P] int32 of keypoints, among those of their image's group; arguments as in `exemplars`."""
    return jnp.argmin(_costs(described, mask, group, centroids, used), -1).astype(jnp.int32)


def exemplars(described, mask, group, centroids, used):
    """The keypoint [B,K] int32 of each cluster, -1 if the image has none, and its squared distance [B,K].

    Of the keypoints that are nearest to a cluster it takes the nearest.

    Args:
      described: [B,P,D].
      mask: [B,P] bool.
      group: [B] int32.
      centroids, used: as in `Groups`.
    """
    cost = _costs(described, mask, group, centroids, used)
    labels = jnp.where(mask, jnp.argmin(cost, -1), -1)
    own = jnp.min(cost, -1)
    slots = assignment.best_slots(labels, -own, centroids.shape[1]).slots
    return slots, keypoints.take_slots(own, slots)


def nearest_pose(codes, poses):
    """Nearest of the clusters [Q,Z] to codes [...,Z], [...] int32."""
    labels, _ = assign(codes.reshape(-1, codes.shape[-1]), poses)
    return jnp.maximum(labels, 0).reshape(codes.shape[:-1])


def matches(described, inside, centroids):
    """Where on a map each centroid is matched best: (x, y) [B,K,2] in cells, and its squared distance [B,K].

    Args:
      described: [B,h,w,D], a descriptor for every cell.
      inside: [B,h,w] bool, the cells to look at.
      centroids: [B,K,D], of each image.
    """
    grid, cost = _cell_costs(described, inside, centroids)
    return grid[jnp.argmin(cost, 1)], jnp.min(cost, 1)


def mean_matches(described, inside, centroids, logits, sharpness: float):
    """The mean over a map's cells, weighted by how sure and how near to each centroid they are; else as `matches`.

      xy_k = sum_p w_kp p / sum_p w_kp,    w_kp = sigmoid(logit_p) exp(-sharpness |z_p - c_k|^2)

    Args:
      described, inside, centroids: as in `matches`.
      logits: [B,h,w], of the confidence of each cell.
      sharpness: see the formula.
    """
    grid, cost = _cell_costs(described, inside, centroids)
    sure = jax.nn.log_sigmoid(logits).reshape(len(cost), -1, 1)
    weight = jax.nn.softmax(sure - sharpness * cost, 1)
    return jnp.einsum("bpk,pc->bkc", weight, grid, precision="highest"), jnp.min(cost, 1)


def _cell_costs(described, inside, centroids):
    """Cells [h*w,2] of a map, and their squared distances [B,h*w,K] to centroids, infinite outside."""
    batch, height, width = inside.shape
    grid = jnp.asarray(coordinates.pixel_grid(height, width), centroids.dtype).reshape(-1, 2)
    cost = assignment.squared_distances(described.reshape(batch, height * width, -1), centroids)
    return grid, jnp.where(inside.reshape(batch, -1, 1), cost, jnp.inf)


def margin(centroids, used):
    """How much farther other clusters' centroids are than a cluster's own over the groups; a float scalar.

    The mean of squared distances from a group's centroid to the nearest other cluster's mean over the groups, less that
    to its own.
    """
    middle = jnp.mean(centroids, 0)
    square = jax.vmap(contrast.square_distances, (0, None))(centroids, middle)  # [G,K,K]
    own = jnp.diagonal(square, axis1=1, axis2=2)
    others = jnp.min(jnp.where(jnp.eye(square.shape[-1], dtype=bool), jnp.inf, square), -1)
    return keypoints.masked_mean(jnp.where(jnp.isfinite(others), others - own, 0), used)
