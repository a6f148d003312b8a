"""Keypoints that resemble what is beside the object more than the object.

Mallis et al. (NeurIPS 2020, published code, Human3.6M): descriptors inside the object's box and those outside it are
clustered by themselves; a keypoint stays whose nearest centroid is one of those inside.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.clustering import assignment
from uld_jax.clustering.kmeans import kmeans


class Sides(NamedTuple):
    """Clusters of what is on the object, or of what is beside it.

    Attributes:
      centroids: [C,D].
      used: [C] bool, False for an empty cluster.
    """

    centroids: jax.Array
    used: jax.Array


def form(described, mask, inside, keys, *, counts: tuple[int, int], iterations: int = 100) -> tuple[Sides, Sides]:
    """Cluster the keypoints inside the object, and those outside it.

    Args:
      described: [...,D] descriptors.
      mask: [...] bool, False in empty slots.
      inside: [...] bool, whether a keypoint lies on the object.
      keys: two PRNG keys.
      counts: numbers of clusters, (inside, outside).
      iterations: of k-means, at most.
    """
    flat, found = described.reshape(-1, described.shape[-1]), []
    for key, count, part in zip(keys, counts, (inside, ~inside), strict=True):
        one = kmeans(flat, count, rng=key, mask=(mask & part).reshape(-1), iterations=iterations)
        found.append(Sides(one.centroids, one.counts > 0))
    return tuple(found)


def foreground(sides: tuple[Sides, Sides], described, mask, inside):
    """The mask [B,P] without keypoints that are outside the object, or resemble what is there.

    Args:
      sides: what `form` gave.
      described: [B,P,D].
      mask, inside: [B,P] bool, as for `form`.
    """
    nearest = []
    for centroids, used in sides:
        cost = assignment.squared_distances(described, centroids, mask)
        nearest.append(jnp.min(jnp.where(used, cost, jnp.inf), -1))
    return mask & inside & (nearest[0] < nearest[1])
