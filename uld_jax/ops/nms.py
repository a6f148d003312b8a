"""Keypoints from a map of scores or from lists of points: greedy non-maximum suppression, ordering and refinement.

Mallis et al. take keypoints one by one, the surest first, and each suppresses those whose box overlaps its own (the
published code calls torchvision's `nms` with small boxes around points). A cell that is no maximum of its neighbourhood
is kept too when all that beat it are suppressed by others, so the maxima of a window are not enough.

Here the loop over points is replaced by a few sweeps over all of them: a point that beats all its remaining neighbours
is kept and suppresses them, until no point remains. The result is that of the loop, because a neighbour that beats a
point is always decided before that point.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.errors import UserError

IOU = 0.01  # overlap from which one box suppresses another, in the published code


class Keypoints(NamedTuple):
    """Keypoints of images in P slots each, the surest first.

    Attributes:
      xy: [...,P,2] float32 (or wider, as the scores), `(x, y)` in cells of the map; 0 in empty slots.
      score: [...,P], 0 in empty slots.
      mask: [...,P] bool, True for filled slots.
      dropped: [...] int32, number of keypoints that found no slot.
    """

    xy: jax.Array
    score: jax.Array
    mask: jax.Array
    dropped: jax.Array


def greedy(scores, threshold: float, half: float = 1, *, iou: float = IOU):
    """Cells of a map kept by greedy suppression (Mallis et al., section 4; published code: `torchvision.ops.nms`).

    Cells above the threshold have boxes (x - half, y - half, x + half, y + half). In descending score (reading order
    for equal scores), a cell is kept if its box has no intersection over union above `iou` with that of a kept one.

    With half=1 a kept cell suppresses its 3 x 3 neighbourhood; with half=6 the cells up to 11 away in x and in y,
    except for the offsets (10, 11), (11, 10) and (11, 11).

    Args:
      scores: [...,h,w] float; NaN is below every threshold.
      threshold: lowest score, exclusive.
      half: half the side of a box, in cells.
      iou: intersection over union from which (exclusive) a box suppresses another; at 0 any overlap does.

    Returns:
      [...,h,w] bool.

    Raises:
      UserError: `half` is not above 0, or `iou` is below 0 or not below 1.

    >>> row = jnp.array([[0.0, 3.0, 5.0, 4.0, 3.0, 2.0]])
    >>> greedy(row, 0.5).tolist()  # 5, and 3 once the 4 beside it is gone
    [[False, False, True, False, True, False]]
    """
    return _greedy(jnp.asarray(scores), threshold, rectangles=_rectangles(half, iou))


@functools.partial(jax.jit, static_argnames=("rectangles",))
def _greedy(scores, threshold, *, rectangles):
    *lead, height, width = scores.shape
    if not scores.size:
        return jnp.zeros(scores.shape, bool)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)).reshape(-1, height, width)
    # Pairs (score, cell), no two alike: a sort to unique ranks would take longer than all sweeps.
    cell = jnp.broadcast_to(jnp.arange(height * width, dtype=jnp.int32).reshape(height, width), scores.shape)
    none = jnp.array(-jnp.inf, scores.dtype)

    def sweep(state):
        left, kept = state
        best = _around((jnp.where(left, scores, none), cell), _first, (none, height * width), rectangles)[1]
        new = left & (best == cell)
        (near,) = _around((new,), _either, (False,), rectangles)
        return left & ~near, kept | new

    start = scores > threshold, jnp.zeros(scores.shape, bool)
    _, kept = jax.lax.while_loop(lambda state: jnp.any(state[0]), sweep, start)
    return kept.reshape(*lead, height, width)


def greedy_points(xy, score, mask, half: float = 1, *, iou: float = IOU):
    """The points [...,P] bool that greedy suppression keeps: `greedy` for lists of points anywhere.

    It merges detections at several scales, and new keypoints with old ones, which win if their scores are higher.

    Args:
      xy: [...,P,2] float points, in cells.
      score: [...,P] float; of equal scores the lower slot comes first.
      mask: [...,P] bool, False for empty slots, which may hold anything; a NaN point or score is treated as empty.
      half, iou: as for `greedy`. The P x P overlaps take a few MB an image at P = 1500.

    Returns:
      [...,P] bool.

    Raises:
      UserError: as for `greedy`.

    >>> xy = jnp.array([[0.0, 0.0], [1.5, 0.5], [3.0, 0.5]])
    >>> greedy_points(xy, jnp.array([0.7, 0.9, 0.8]), jnp.array([True, True, True])).tolist()
    [False, True, False]
    >>> greedy_points(xy, jnp.array([0.7, 0.9, 0.8]), jnp.array([True, False, True])).tolist()
    [True, False, True]
    """
    _check(half, iou)
    xy, score, mask = jnp.asarray(xy), jnp.asarray(score), jnp.asarray(mask)
    mask = mask & ~jnp.isnan(score) & jnp.all(jnp.isfinite(xy), -1)
    xy, score = jnp.where(mask[..., None], xy, 0), jnp.where(mask, score, 0)
    sides = jnp.maximum(2 * half - jnp.abs(xy[..., :, None, :] - xy[..., None, :, :]), 0)
    common = sides[..., 0] * sides[..., 1]  # [...,P,P]
    overlap = common / (8 * half * half - common) > iou
    slot = jnp.arange(score.shape[-1])
    first = (score[..., None, :] > score[..., None]) | (
        (score[..., None, :] == score[..., None]) & (slot < slot[:, None])
    )
    beaten_by = overlap & first  # [...,i,j]: j comes before i and suppresses it if it is kept

    def sweep(state):
        left, kept = state
        new = left & ~jnp.any(beaten_by & left[..., None, :], -1)
        left = left & ~new & ~jnp.any(beaten_by & new[..., None, :], -1)
        return left, kept | new

    _, kept = jax.lax.while_loop(lambda state: jnp.any(state[0]), sweep, (mask, jnp.zeros_like(mask)))
    return kept


def points(keep, scores, most: int) -> Keypoints:
    """The surest kept cells of maps as points in slots; of equal scores the first in reading order.

    Args:
      keep: [...,h,w] bool, the result of `greedy`.
      scores: [...,h,w] float.
      most: P, the number of slots.

    Raises:
      UserError: `most` is below 1.

    >>> scores = jnp.array([[0.0, 3.0, 5.0, 4.0, 3.0, 2.0]])
    >>> found = points(greedy(scores, 0.5), scores, most=3)
    >>> found.xy.tolist(), found.score.tolist(), found.mask.tolist(), found.dropped.item()
    ([[2.0, 0.0], [4.0, 0.0], [0.0, 0.0]], [5.0, 3.0, 0.0], [True, True, False], 0)
    """
    if most < 1:
        raise UserError(f"points got most={most}; use 1 or more slots")
    *lead, height, width = scores.shape
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)).reshape(*lead, height * width)
    keep = keep.reshape(scores.shape)
    cell = _largest(jnp.where(keep, scores, -jnp.inf), min(most, height * width))
    score = jnp.take_along_axis(scores, cell, -1)
    missing = [(0, 0)] * len(lead) + [(0, most - score.shape[-1])]
    cell, count = jnp.pad(cell, missing), jnp.sum(keep, -1, dtype=jnp.int32)
    mask = jnp.arange(most) < count[..., None]
    xy = jnp.stack([cell % width, cell // width], -1).astype(score.dtype)
    return Keypoints(
        xy=jnp.where(mask[..., None], xy, 0),
        score=jnp.where(mask, jnp.pad(score, missing), 0),
        mask=mask,
        dropped=jnp.maximum(count - most, 0),
    )


def subpixel(scores, xy, how: str = "none"):
    """Move keypoints from whole cells to places between cells.

      none      as they are (Mallis et al.'s published code)
      quarter   xy + 0.25 sign(central difference), in x and in y, where both are above 1 and below the side less 1
                (the published code of the extended variant, and only when it clusters)
      parabola  to the top of the parabola through the cell and its two neighbours, apart in x and in y; not on the
                border, and no farther than half a cell; the same as `heatmaps.peak`

    Args:
      scores: [...,h,w] float.
      xy: [...,P,2] float, whole numbers inside the map; empty slots may hold anything.
      how: one of the names above.

    Returns:
      [...,P,2], of the dtype of xy.

    Raises:
      UserError: `how` is another word.

    >>> scores = jnp.array([[0.0, 1.0, 4.0, 3.0, 0.0]] * 5)
    >>> xy = jnp.array([[2.0, 2.0]])
    >>> [subpixel(scores, xy, how).tolist() for how in ("none", "quarter", "parabola")]
    [[[2.0, 2.0]], [[2.25, 2.0]], [[2.25, 2.0]]]
    """
    if how not in ("none", "quarter", "parabola"):
        raise UserError(f"subpixel is {how!r}; use none, quarter or parabola")
    if how == "none":
        return xy
    *lead, height, width = scores.shape
    flat = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)).reshape(*lead, height * width)
    size = jnp.array([width, height], xy.dtype)
    whole = jnp.nan_to_num(xy).astype(jnp.int32)
    cell = whole[..., 1] * width + whole[..., 0]

    def read(offset):
        return jnp.take_along_axis(flat, jnp.clip(cell + offset, 0, height * width - 1), -1)

    before = jnp.stack([read(-1), read(-width)], -1)
    after = jnp.stack([read(1), read(width)], -1)
    if how == "quarter":
        inside = jnp.all((xy > 1) & (xy < size - 1), -1, keepdims=True)
        shift = 0.25 * jnp.sign(after - before)
    else:
        curvature = before - 2 * read(0)[..., None] + after
        inside = (xy > 0) & (xy < size - 1) & (curvature < 0)
        shift = jnp.clip(0.5 * (before - after) / jnp.where(curvature < 0, curvature, -1), -0.5, 0.5)
    return xy + jnp.where(inside, shift, 0).astype(xy.dtype)


def _check(half, iou):
    if not half > 0 or not 0 <= iou < 1:
        raise UserError(f"suppression got half={half}, iou={iou}; use half above 0 and iou from 0 to below 1")


@functools.cache
def _rectangles(half: float, iou: float) -> tuple[tuple[int, int], ...]:
    """Rectangles |dx| <= x, |dy| <= y whose union is the set of offsets (dx, dy) of suppressed cells.

    >>> _rectangles(1, 0.01), _rectangles(6, 0.01)
    (((1, 1),), ((11, 9), (10, 10), (9, 11)))
    """
    _check(half, iou)
    reach, found = 0, {}
    while reach < 2 * half:
        reach += 1
    for dy in range(reach):
        inside = []
        for dx in range(reach):
            common = max(2 * half - dx, 0) * max(2 * half - dy, 0)
            if common / (8 * half * half - common) > iou:
                inside.append(dx)
        if inside:
            found[max(inside)] = dy  # a later dy, of more rows, takes the place of an earlier one of equal width
    return tuple(found.items())


def _largest(values, most: int, group: int = 16):
    """Places of the `most` largest numbers of [...,n] in falling order; of equals the lower place comes first.

    The function uses stable sorts, because `jax.lax.top_k` would gather a batch that is split over devices. Most of the
    sorting is saved, because the `most` largest lie in the `most` groups of the largest maxima.
    """
    if values.shape[-1] <= 2 * group * most:
        return jnp.argsort(-values, axis=-1, stable=True)[..., :most]
    missing = [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % group)]
    groups = jnp.pad(values, missing, constant_values=-jnp.inf).reshape(*values.shape[:-1], -1, group)
    chosen = jnp.sort(_largest(jnp.max(groups, -1), most), -1)  # so that places rise again
    members = jnp.take_along_axis(groups, chosen[..., None], -2).reshape(*values.shape[:-1], -1)
    place = jnp.argsort(-members, axis=-1, stable=True)[..., :most]
    return jnp.take_along_axis(chosen, place // group, -1) * group + place % group


def _first(a, b):
    """The pair (score, cell) that comes first: that of the higher score, or for equal scores of the earlier cell."""
    wins = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))
    return jnp.where(wins, a[0], b[0]), jnp.where(wins, a[1], b[1])


def _either(a, b):
    return (a[0] | b[0],)


def _around(arrays, larger, least, rectangles):
    """The largest value in each cell's rectangles: `larger` compares arrays [B,h,w], `least` fills the outside."""
    windows = []
    for reach_x, reach_y in rectangles:
        windows.append(_running(_running(arrays, larger, least, reach_x, 2), larger, least, reach_y, 1))
    return functools.reduce(larger, windows)


def _running(arrays, larger, least, reach: int, axis: int):
    """The largest value up to `reach` cells away along an axis.

    The maximum of a window of 2, 4, 8, ... cells is the larger of two of half the size; the last two overlap.
    """
    size, width, done = arrays[0].shape[axis], 2 * reach + 1, 1
    pad = [(reach, reach) if i == axis else (0, 0) for i in range(3)]
    arrays = tuple(jnp.pad(x, pad, constant_values=value) for x, value in zip(arrays, least, strict=True))
    while done < width:
        step = min(done, width - done)
        done += step
        count = size + width - done
        arrays = larger(*(_cut(arrays, start, count, axis) for start in (0, step)))
    return arrays


def _cut(arrays, start, count, axis):
    return tuple(jax.lax.slice_in_dim(x, start, start + count, axis=axis) for x in arrays)
