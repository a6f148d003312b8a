"""Landmark matching: the place of a point of one image on another, by dense features (DVE, published code).

Images in the order of their names are taken in pairs, 2i and 2i + 1. Each is warped once, and image 2i once more:

  source      image 2i, warped twice
  same        image 2i, warped once:      a copy of the same photo, and not another photo of the same person
  different   image 2i + 1, warped once:  another photo; that it shows another person is assumed, and not checked

A point of the source is sought on the other two by its own features, as the cell of the target whose features are
most similar. Errors are distances in canonical pixels, those of a view of 70 pixels, and in percent of the normaliser,
by default the inter-ocular distance, of the target. Errors of the two units must not be compared.

Points are whole pixels, as the published code looks them up in the warp. A point (x, y) is read at the cell
round(x / stride), and cell i stands for the pixel i * stride. Hence perfect features have an error, too, the
quantisation floor (`floor`). All annotated points count, as in the published code: one outside the source's view is
read at the nearest cell, and one that a warped frame no longer shows has the pixel whose place is nearest.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.data.specs import Source
from uld_jax.evaluation.dense.features import central, margin, to_uint8, warped
from uld_jax.evaluation.dense.protocols import CANONICAL, MARGIN, DenseProtocol
from uld_jax.evaluation.missing import known_mean
from uld_jax.ops import hypercolumns, tps
from uld_jax.ops.hypercolumns import Pyramid

TARGETS = ("same", "different")
VERSION = 2  # of the warps and their draws


def to_cells(xy, side: int, cells: int):
    """Cells [...,2] (x, y) at which points in pixels of a view are read: round(x / stride), within the map."""
    return jnp.clip(jnp.round(xy * cells / side), 0, cells - 1).astype(jnp.int32)


def floor(side: int, cells: int, whole: bool = True) -> float:
    """The mean matching error of perfect features in canonical pixels: that of integer points moved to their cells.

    Args:
      side: S, side of the view in pixels.
      cells: cells along a side of the map.
      whole: True for the points MARGIN to S - MARGIN - 1 in x and y, around which all strides have whole cells; False
        for all points of the view.

    >>> [round(floor(96, cells), 2) for cells in (96, 48, 24, 12)]
    [0.0, 0.62, 1.16, 2.26]
    >>> [round(floor(96, cells, whole=False), 2) for cells in (96, 48, 24, 12)]
    [0.0, 0.62, 1.18, 2.41]
    """
    margin = MARGIN if whole and side > 2 * MARGIN else 0
    line = np.arange(margin, side - margin)
    away = line - np.clip(np.round(line * cells / side), 0, cells - 1) * side / cells
    return float(np.hypot(*np.meshgrid(away, away)).mean() * CANONICAL / side)


class Sets(NamedTuple):
    """P sources and their two targets, with their points.

    Attributes:
      source, same, different: [P,S,S,3] uint8.
      source_xy, same_xy, different_xy: [P,L,2] float32 whole pixels of the view, NaN where unknown; points may lie
        outside.
      rows: [P,2] int64, rows of the images 2i and 2i + 1 in their split.
    """

    source: np.ndarray
    same: np.ndarray
    different: np.ndarray
    source_xy: np.ndarray
    same_xy: np.ndarray
    different_xy: np.ndarray
    rows: np.ndarray


def pair_rows(names, labelled: np.ndarray, pairs: int) -> np.ndarray:
    """Rows [P,2] of at most `pairs` pairs of labelled images: neighbours in the order of their names, evenly spread.

    >>> pair_rows(["c", "a", "b", "d", "e"], np.arange(5), 500).tolist()
    [[1, 2], [0, 3]]
    """
    ordered = np.array(sorted(labelled, key=lambda row: names[row]), np.int64)
    both = ordered[: len(ordered) // 2 * 2].reshape(-1, 2)
    return both[np.unique(np.linspace(0, len(both) - 1, min(pairs, len(both))).astype(int))]


def make_sets(source: Source, rows: np.ndarray, protocol: DenseProtocol, *, seed: int = 0, batch: int = 32) -> Sets:
    """Warp the images of pairs at random; a warp depends on the seed and the number of its pair alone.

    Args:
      source: a split whose frame is that of the protocol.
      rows: [P,2] rows of the pairs, from `pair_rows`.
      protocol: protocol of the view.
      seed: seed of the warps.
      batch: pairs at a time.
    """
    first, parts = margin(protocol), []
    for start in range(0, len(rows), batch):
        pairs = np.minimum(np.arange(start, start + batch), len(rows) - 1)
        images = source.images(rows[pairs].ravel()).reshape(batch, 2, *[source.frame_size] * 2, 3)
        points = jnp.asarray(source.landmarks[rows[pairs]], jnp.float32)
        parts.append(jax.device_get(_warped(jax.random.key(seed), pairs, images, points)))
    shown, xy = (np.concatenate(part)[: len(rows)] for part in zip(*parts, strict=True))
    images = [central(np.ascontiguousarray(shown[:, i]), protocol) for i in range(3)]
    return Sets(*images, *(xy[:, i] - first for i in range(3)), rows)


@jax.jit
def _warped(key, numbers, images, xy):
    """Source, same and different of pairs [B,2,F,F,3] with points [B,2,L,2]: [B,3,F,F,3] uint8 and [B,3,L,2]."""

    def pair(number, images, xy):
        keys = jax.random.split(jax.random.fold_in(key, number), 3)
        same, different = (warped(keys[i], tps.TEST, images[i].astype(jnp.float32), xy[i]) for i in range(2))
        sets = warped(keys[2], tps.TEST, *same), same, different
        return jnp.stack([to_uint8(image) for image, _ in sets]), jnp.stack([points for _, points in sets])

    return jax.vmap(pair)(numbers, images, xy)


def match(source: Pyramid, target: Pyramid, xy, *, side: int, cells: int, similarity: str):
    """Find points of ONE image on another: whole pixels [L,2] of the target's view.

    The inner products of L source descriptors with all cells of the target are a 1 x 1 convolution, so only one map of
    `cells` x `cells` numbers a point is stored.

    Args:
      source, target: maps [h_l,w_l,C_l] of the two images.
      xy: [L,2] points in pixels of the source's view.
      side: S, side of the view in pixels.
      cells: cells along a side of the map on which matches are sought.
      similarity: `cosine`, or `dot` for inner products of features that are not normalised.
    """
    found = jnp.argmax(similarities(source, target, xy, side=side, cells=cells, similarity=similarity), 1)
    return jnp.stack([found % cells, found // cells], -1) * (side / cells)


def similarities(source: Pyramid, target: Pyramid, xy, *, side: int, cells: int, similarity: str):
    """Similarity of points of ONE image to all cells of another, [L,cells * cells]; arguments as in `match`.

    Cosines lack the factor of the source's length, which changes no maximum.
    """
    at = to_cells(jnp.where(jnp.isfinite(xy), xy, 0), side, cells)
    levels = [hypercolumns.at_cells((x[None],), cells, at[:, 1] * cells + at[:, 0])[0] for x in source]
    target = tuple(x[None] for x in target)
    products = hypercolumns.linear(target, [z.T for z in levels], cells)[0]
    if similarity == "cosine":
        products /= jnp.sqrt(jnp.maximum(hypercolumns.squared_norms(target, cells)[0], 1e-24))[..., None]
    return products.reshape(cells * cells, -1).T


def cells_of(protocol: DenseProtocol, shapes) -> int:
    """Cells along a side of the map on which matches are sought, for maps of shapes (h_l, w_l, C_l)."""
    return protocol.cells or max(shape[0] for shape in shapes)


class Matched(NamedTuple):
    """Errors of the points of one target, per pair and point; NaN where one of the two is unknown.

    Attributes:
      canonical: [P,L] in pixels of a view of 70 pixels.
      percent: [P,L] in percent of the normaliser of the target.
      outside: number of known points that lie outside one of the views; they count.
    """

    canonical: np.ndarray
    percent: np.ndarray
    outside: int


def scored(found, source_xy, target_xy, lengths, side: int) -> Matched:
    """Errors of matches found [P,L,2] for points of sources and targets, [P,L,2], with normaliser lengths [P]."""
    source_xy, target_xy = np.asarray(source_xy, np.float64), np.asarray(target_xy, np.float64)
    known = np.isfinite(source_xy).all(-1) & np.isfinite(target_xy).all(-1)
    outside = known & ~(_inside(source_xy, side) & _inside(target_xy, side))
    away = np.where(known, np.linalg.norm(np.asarray(found, np.float64) - target_xy, axis=-1), np.nan)
    return Matched(away * CANONICAL / side, 100 * away / lengths[:, None], int(outside.sum()))


def _inside(xy, side):
    return ((xy >= -0.5) & (xy <= side - 0.5)).all(-1)


def mean_and_spread(values) -> tuple[float, float]:
    """The mean of known values over all points, and the standard deviation over pairs of the mean of a pair."""
    of_pair = known_mean(values, 1)
    of_pair = of_pair[np.isfinite(of_pair)]
    return float(known_mean(values)), float(of_pair.std()) if len(of_pair) else float("nan")


def match_all(features, sets: Sets, *, cells: int, similarity: str, batch: int) -> dict[str, np.ndarray]:
    """Find the points of all sources on both targets: {target: [P,L,2] whole pixels of the view}.

    Args:
      features: function from images [B,S,S,3] uint8 to their pyramid, such as `features.Features`.
      sets: the images and points.
      cells, similarity: see `match`.
      batch: pairs at a time.
    """
    side, found = sets.source.shape[1], {name: [] for name in TARGETS}
    for start in range(0, len(sets.rows), batch):
        rows = np.minimum(np.arange(start, start + batch), len(sets.rows) - 1)
        source = features(sets.source[rows])
        for name in TARGETS:
            target = features(getattr(sets, name)[rows])
            xy = _match_batch(source, target, sets.source_xy[rows], side=side, cells=cells, similarity=similarity)
            found[name].append(np.asarray(xy)[: len(sets.rows) - start])
    return {name: np.concatenate(parts) for name, parts in found.items()}


_match_batch = jax.jit(
    lambda source, target, xy, **options: jax.lax.map(lambda each: match(*each, **options), (source, target, xy)),
    static_argnames=("side", "cells", "similarity"),
)
