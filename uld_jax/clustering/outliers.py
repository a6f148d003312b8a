"""Descriptors that are unlike all others (Mallis et al. 2020, section 4: outlier removal before the first clustering).

A generic detector finds many keypoints that no second image shows again: background, texture, noise. Their descriptors
have far neighbours. The published code takes the median of the squared distances to a descriptor's 100 nearest (itself
among them) and drops the 40 % of largest median. It searches neighbours among the first 500,000 descriptors by an
approximate index; here the search is exact, among all or a random sample.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from uld_jax import sharding
from uld_jax.clustering import quality
from uld_jax.errors import UserError

SAMPLE = 16_384  # rows among which neighbours are searched; all if there are fewer
_CHUNK = 1024  # rows compared at a time


class Crowd(NamedTuple):
    """The sample and the limit that tell inliers from outliers.

    Attributes:
      centre: [D], mean of all rows.
      among: [S,D], rows among which neighbours are searched, less the centre.
      there: [S] bool, False for empty slots of `among`.
      limit: scalar, the score from which a row is dropped.
    """

    centre: jax.Array
    among: jax.Array
    there: jax.Array
    limit: jax.Array


def inliers(x, mask=None, *, share: float = 0.4, neighbours: int = 100, sample: int = SAMPLE, rng=None):
    """Tell which rows are near enough to others, [N] bool; False where masked.

    With n real rows and their scores in order, a row is kept if its score is below the one at int((1 - share) (n - 1)),
    as in the published code: about (1 - share) n rows.

    Args:
      x: [N,D] float, on one device or split over a mesh on axis 0; masked rows may hold anything.
      mask: [N] bool; None for all rows.
      share: share of the rows that are dropped.
      neighbours: number of nearest rows, the row itself included, whose median squared distance is the score; all
        rows if there are fewer.
      sample: number of random rows among which neighbours are searched.
      rng: PRNG key of that sample; a fixed one by default.

    Raises:
      UserError: a shape or number that has no meaning.

    >>> inliers(jnp.array([[0.0], [0.1], [0.3], [9.0]]), share=0.25, neighbours=3).tolist()
    [True, True, False, False]
    """
    return fit(x, mask, share=share, neighbours=neighbours, sample=sample, rng=rng)[0]


def fit(
    x, mask=None, *, share: float = 0.4, neighbours: int = 100, sample: int = SAMPLE, rng=None
) -> tuple[jax.Array, Crowd]:
    """`inliers` of these rows, with the same arguments, and a `Crowd` by which `near` judges other rows."""
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
    return _fit(x, mask, rng, share=share, neighbours=neighbours, sample=min(sample, len(x)), mesh=mesh, axis=axis)


def near(crowd: Crowd, x, mask, *, neighbours: int = 100):
    """Tell which rows [n,D] other than those of `fit` are near enough, [n] bool; False where masked.

    Args:
      crowd: the result of `fit`.
      x: [n,D] float rows.
      mask: [n] bool, False for rows that do not count.
      neighbours: as for `fit`.
    """
    mesh = sharding.mesh_of(x)
    axis = None if mesh is None else mesh.axis_names[0]
    return mask & (_spread_scores(x, mask, *crowd[:3], neighbours, mesh, axis) < crowd.limit)


@functools.partial(jax.jit, static_argnames=("share", "neighbours", "sample", "mesh", "axis"))
def _fit(x, mask, rng, *, share, neighbours, sample, mesh, axis):
    wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centre = jnp.sum(wide(jnp.where(mask[:, None], x, 0)), 0) / jnp.maximum(jnp.sum(mask), 1)
    among, labels = quality.pick(rng, x, jnp.where(mask, 0, -1), sample, mesh, axis)
    among = jnp.where(labels[:, None] >= 0, wide(among) - centre, 0)  # a common offset would cost digits
    scores = _spread_scores(x, mask, centre, among, labels >= 0, neighbours, mesh, axis)
    scores = jnp.where(mask, scores, jnp.inf)
    count = jnp.sum(mask)
    # In float32 a product such as 0.6 * 5 may fall short of the whole number that it is in float64.
    place = jnp.floor((1 - share) * jnp.maximum(count - 1, 0) + 1e-4).astype(jnp.int32)
    limit = jnp.sort(scores)[place]
    return mask & (scores < limit), Crowd(centre, among, labels >= 0, limit)


def _spread_scores(x, mask, centre, among, there, neighbours, mesh, axis):
    """Score rows, each device its own."""
    score = functools.partial(_scores, neighbours=min(neighbours, len(among)))
    if mesh is not None and len(x) % mesh.shape[axis] == 0:
        places = (P(axis), P(axis), P(), P(), P())
        score = jax.shard_map(score, mesh=mesh, in_specs=places, out_specs=P(axis), check_vma=False)
    return score(x, mask, centre, among, there)


def _scores(x, mask, centre, among, there, *, neighbours):
    """Median squared distance of rows [n,D] to their nearest rows of `among` [S,D] that are `there` [S].

    Rows are centred a chunk at a time, so that there is never a second copy of all.
    """
    rows, chunk = len(x), min(_CHUNK, len(x))
    squares = jnp.where(there, jnp.sum(among**2, -1), jnp.inf)
    found = jnp.minimum(jnp.sum(there), neighbours)

    def one(part, inside):
        part = jnp.where(inside[:, None], part.astype(among.dtype) - centre, 0)
        cross = jnp.einsum("nd,sd->ns", part, among, precision="highest")
        square = jnp.sum(part**2, -1, keepdims=True) + squares - 2 * jnp.where(there, cross, 0)
        nearest = -jax.lax.top_k(-square, neighbours)[0]  # [n,neighbours], rising; infinite in unfilled slots
        middle = lambda at: jnp.take(nearest, jnp.maximum(at, 0), axis=1)
        return jnp.maximum((middle((found - 1) // 2) + middle(found // 2)) / 2, 0)

    def whole(i):
        cut = lambda a: jax.lax.dynamic_slice_in_dim(a, i * chunk, chunk)
        return one(cut(x), cut(mask))

    scores = jax.lax.map(whole, jnp.arange(rows // chunk)).reshape(-1)
    if rest := rows % chunk:
        pad = lambda a: jnp.pad(a[-rest:], ((0, chunk - rest), *[(0, 0)] * (a.ndim - 1)))
        scores = jnp.concatenate([scores, one(pad(x), pad(mask))[:rest]])
    return scores
