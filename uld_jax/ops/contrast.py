"""Losses over pairs of descriptors: near where they correspond, apart where they do not."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

_HIGHEST = jax.lax.Precision.HIGHEST


def square_distances(a, b):
    """[...,P,D], [...,Q,D] to squared distances [...,P,Q].

    >>> square_distances(jnp.array([[0.0, 1.0]]), jnp.array([[0.0, 1.0], [2.0, 1.0]])).tolist()
    [[0.0, 4.0]]
    """
    cross = jnp.einsum("...pd,...qd->...pq", a, b, precision=_HIGHEST)
    return jnp.maximum(jnp.sum(a * a, -1)[..., None] + jnp.sum(b * b, -1)[..., None, :] - 2 * cross, 0)


def attraction(square, squared: bool):
    """Of pairs that correspond, from their squared distance: d^2, or d (Tourani et al., supplement, eq. 4)."""
    return square if squared else jnp.sqrt(square + 1e-9)


def repulsion(square, margin: float, squared: bool):
    """Of pairs that do not correspond: max(0, m - d)^2 (published code of Mallis et al.), or max(0, m - d) (eq. 4)."""
    short = jax.nn.relu(margin - jnp.sqrt(square + 1e-9))
    return short**2 if squared else short


def masked_pair_mean(values, mask):
    """Mean of pairs' values over `mask`; 0 where there are none."""
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(jnp.sum(mask), 1)


def repelled_within(described, cells, mask, random, random_cells, *, least: float, margin: float, squared: bool):
    """Repulsion inside views: of every two keypoints, and of every keypoint and random cell.

      sum of `repulsion` over the pairs that are more than `least` cells apart

    Args:
      described: [B,M,D] descriptors of keypoints.
      cells: [B,M,2], where they are.
      mask: [B,M] bool, False in empty slots.
      random: [B,R,D] descriptors at random cells.
      random_cells: [B,R,2], where they are.
      least: pairs nearer than this are left out, in cells.
      margin, squared: as in `repulsion`.

    Returns:
      The sum over all views, and the number of pairs.
    """
    total, count = 0, 0
    once = ~jnp.tri(mask.shape[1], dtype=bool)  # every two of them once
    for others, places, pairs in ((described, cells, mask[:, None] & once), (random, random_cells, True)):
        negative = mask[..., None] & (square_distances(cells, places) > least**2) & pairs
        push = repulsion(square_distances(described, others), margin, squared)
        total, count = total + jnp.sum(jnp.where(negative, push, 0)), count + jnp.sum(negative)
    return total, count


class Reciprocal(NamedTuple):
    """Losses of dense correspondence between two views.

    Attributes:
      descriptor: mean negative log-likelihood of the true matches, summed over both directions.
      keypoint: binary cross-entropy of the detector, over all cells that have a true match.
      correct: share of these whose mutual best match is the true one.
    """

    descriptor: jax.Array
    keypoint: jax.Array
    correct: jax.Array


@functools.partial(jax.jit, static_argnames="block")
def reciprocal(a, b, logits_a, logits_b, match_a, match_b, *, temperature: float, block: int = 0) -> Reciprocal:
    """SiLK's objective (Gleize et al., ICCV 2023), which bootstraps D-ULD (Tourani et al., section 3.2), for ONE pair.

      s_ij = <a_i, b_j> / temperature
      descriptor  mean_i [log sum_j exp s_ij - s_i,match_a(i)] + mean_j [log sum_i exp s_ij - s_match_b(j),j]
      keypoint    of logits_a, logits_b against 1 where i and j are each other's best match and truly match, else 0

    Means are over cells that have a match; all cells of the other view are negatives. Nothing flows from the keypoint
    loss into the descriptors. Untrained descriptors have log N a direction.

    Args:
      a, b: [N,D] descriptors of both views' cells, of length 1.
      logits_a, logits_b: [N] of the detector.
      match_a: [N] int32, the cell of b that is the same place; -1 for none. `match_b` likewise of a.
      temperature: 0.1 / 1.41^2 in SiLK, whose descriptors have length 1.41.
      block: rows of s that exist at a time, a divisor of N; 0 for all. N x N numbers are 67 MB at N = 4096.

    >>> z = jnp.eye(3)
    >>> index, sure = jnp.arange(3), jnp.full(3, 9.0)
    >>> found = reciprocal(z, z, sure, sure, index, index, temperature=0.05)
    >>> bool(found.descriptor < 1e-6), bool(found.keypoint < 1e-3), found.correct.item()
    (True, True, 1.0)
    """
    count = len(a)
    block = block or count

    @jax.checkpoint  # a block is computed again for its gradient, and never stored
    def rows(carry, part):
        columns, best_score, best = carry
        x, start = part
        s = jnp.einsum("id,jd->ij", x, b, precision=_HIGHEST) / temperature
        highest = jnp.max(s, 0)
        row = start + jnp.argmax(s, 0).astype(jnp.int32)
        best = jnp.where(highest > best_score, row, best)  # of equals the first
        carry = jnp.logaddexp(columns, jax.nn.logsumexp(s, 0)), jnp.maximum(best_score, highest), best
        return carry, (jax.nn.logsumexp(s, 1), jnp.argmax(s, 1).astype(jnp.int32))

    none = jnp.full(count, -jnp.inf, a.dtype)
    start = none, none, jnp.zeros(count, jnp.int32)
    if block == count:
        (along_b, _, best_b), (along_a, best_a) = rows(start, (a, jnp.int32(0)))
    else:
        parts = a.reshape(-1, block, a.shape[-1]), jnp.arange(0, count, block, dtype=jnp.int32)
        (along_b, _, best_b), (along_a, best_a) = jax.lax.scan(rows, start, parts)
        along_a, best_a = along_a.reshape(-1), best_a.reshape(-1)

    def one(x, y, along, match):
        true = jnp.sum(x * y[jnp.maximum(match, 0)], -1) / temperature
        return masked_pair_mean(along - true, match >= 0)

    def hit(best, back, match):
        mutual = back[best] == jnp.arange(count)
        return mutual & (best == match)

    hit_a, hit_b = hit(best_a, best_b, match_a), hit(best_b, best_a, match_b)
    there_a, there_b = match_a >= 0, match_b >= 0
    logits, hits = jnp.concatenate([logits_a, logits_b]), jnp.concatenate([hit_a, hit_b]).astype(logits_a.dtype)
    there = jnp.concatenate([there_a, there_b])
    return Reciprocal(
        descriptor=one(a, b, along_a, match_a) + one(b, a, along_b, match_b),
        keypoint=masked_pair_mean(optax.losses.sigmoid_binary_cross_entropy(logits, hits), there),
        correct=masked_pair_mean(hits, there),
    )
