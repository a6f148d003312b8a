"""Descriptors that are unlike all others (Mallis et al. 2020, section 4: outlier removal before the first clustering).

A generic detector finds many keypoints that no second image shows again: background, texture, noise. Their descriptors
have far neighbours. The paper's code takes the median of the squared distances to a descriptor's 100 nearest (itself
among them) and drops the 40 % of largest median. It looks for neighbours among the first 500,000 descriptors by an
approximate index; here they are looked for exactly, among all or a random sample.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from uld_jax import sharding
from uld_jax.clustering import quality
from uld_jax.errors import UserError

SAMPLE = 16_384  # rows that neighbours are looked for among; all where there are fewer
_CHUNK = 1024  # rows compared at a time


def inliers(x, mask=None, *, share: float = 0.4, neighbours: int = 100, sample: int = SAMPLE, rng=None):
    """Which rows are near enough to others, [N] bool; False where masked.

    With n real rows and their scores in order, a row is kept if its score is below the one at int((1 - share) (n - 1)),
    as in the published code: about (1 - share) n rows.

    Args:
      x: [N,D] float, on one device or split over a mesh on axis 0; masked rows may hold anything.
      mask: [N] bool; None for all rows.
      share: of the rows that are dropped.
      neighbours: nearest rows whose median squared distance is the score, the row itself counted; all there are where
        they are fewer.
      sample: neighbours are looked for among so many random rows.
      rng: PRNG key of that sample; a fixed one by default.

    Raises:
      UserError: shapes or numbers that mean nothing.

    >>> inliers(jnp.array([[0.0], [0.1], [0.3], [9.0]]), share=0.25, neighbours=3).tolist()
    [True, True, False, False]
    """
    x, mask = sharding.arrays(x, mask)
    if x.ndim != 2 or not len(x) or (mask is not None and mask.shape != x.shape[:1]):
        raise UserError(
            f"inliers got rows {x.shape} and mask {None if mask is None else mask.shape}; give [N,D] and [N]"
        )
    if not 0 <= share < 1 or neighbours < 1 or sample < 1:
        raise UserError(
            f"inliers got share={share}, neighbours={neighbours} and sample={sample}; use a share from 0 to below 1 "
            "and at least one neighbour and row"
        )
    mesh = sharding.mesh_of(x)
    axis = None if mesh is None else mesh.axis_names[0]
    mask = jnp.ones(len(x), bool) if mask is None else mask
    rng = jax.random.key(0) if rng is None else rng
    return _inliers(x, mask, rng, share=share, neighbours=neighbours, sample=min(sample, len(x)), mesh=mesh, axis=axis)


@functools.partial(jax.jit, static_argnames=("share", "neighbours", "sample", "mesh", "axis"))
def _inliers(x, mask, rng, *, share, neighbours, sample, mesh, axis):
    x = jnp.where(mask[:, None], x, 0).astype(jnp.promote_types(x.dtype, jnp.float32))
    centre = jnp.sum(x, 0) / jnp.maximum(jnp.sum(mask), 1)
    x = jnp.where(mask[:, None], x - centre, 0)  # what is common to all would only cost digits
    among, labels = quality.pick(rng, x, jnp.where(mask, 0, -1), sample, mesh, axis)
    score = functools.partial(_scores, neighbours=min(neighbours, sample))
    if mesh is not None and len(x) % mesh.shape[axis] == 0:
        spread = jax.shard_map(score, mesh=mesh, in_specs=(P(axis), P(), P()), out_specs=P(axis), check_vma=False)
        scores = spread(x, among, labels >= 0)
    else:
        scores = score(x, among, labels >= 0)
    scores = jnp.where(mask, scores, jnp.inf)
    count = jnp.sum(mask)
    # In float32 a product such as 0.6 * 5 may fall short of the whole number that it is in float64.
    place = jnp.floor((1 - share) * jnp.maximum(count - 1, 0) + 1e-4).astype(jnp.int32)
    return mask & (scores < jnp.sort(scores)[place])


def _scores(x, among, there, *, neighbours):
    """Median squared distance of rows [n,D] to their nearest of `among` [S,D], where these are `there` [S]."""
    rows, chunk = len(x), min(_CHUNK, len(x))
    chunks = -(-rows // chunk)
    parts = jnp.pad(x, ((0, chunks * chunk - rows), (0, 0))).reshape(chunks, chunk, -1)
    squares = jnp.where(there, jnp.sum(among**2, -1), jnp.inf)
    found = jnp.minimum(jnp.sum(there), neighbours)

    def one(part):
        cross = jnp.einsum("nd,sd->ns", part, among, precision="highest")
        square = jnp.sum(part**2, -1, keepdims=True) + squares - 2 * jnp.where(there, cross, 0)
        nearest = -jax.lax.top_k(-square, neighbours)[0]  # [n,neighbours], rising; infinite beyond those there are
        middle = lambda at: jnp.take(nearest, jnp.maximum(at, 0), axis=1)
        return jnp.maximum((middle((found - 1) // 2) + middle(found // 2)) / 2, 0)

    return jax.lax.map(one, parts).reshape(-1)[:rows]
