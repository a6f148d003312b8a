"""Pictures of dense features: similarity, parts, and placed landmarks (LEAD, figures 3 and 5 to 10)."""

import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from PIL import Image

from uld_jax import viz
from uld_jax.evaluation.dense import matching, parts
from uld_jax.evaluation.dense.zoom import Range

_CELL = 128  # pixels of a picture
SHOWN = 6  # images besides the source
_POINTS = 5  # source points


def similarity_sheet(features, images: np.ndarray, xy: np.ndarray, *, cells: int, similarity: str):
    """Similarity of points of the first image to all cells of the others (figure 3 of LEAD): a row a point.

    Args:
      features: `features.Features`.
      images: [1 + n,S,S,3] uint8, first the source.
      xy: [L,2] points of the source in pixels; a few of those inside are shown.
      cells, similarity: see `matching.match`.

    Colours run from the median to the largest similarity of a row; a dot is at the largest one of each image. Without
    a point inside, the result is None.
    """
    side = images.shape[1]
    inside = np.flatnonzero(((xy >= 0) & (xy <= side - 1)).all(-1))
    if not len(inside):
        return None
    shown = inside[np.unique(np.linspace(0, len(inside) - 1, min(_POINTS, len(inside))).astype(int))]
    pyramid = features(images)
    maps = np.asarray(_maps(pyramid, xy[shown], side=side, cells=cells, similarity=similarity))
    scale, rows = _CELL / side, []
    for k, (point, values) in enumerate(zip(xy[shown], np.moveaxis(maps, 1, 0), strict=True)):
        low, high = float(np.median(values)), float(values.max())
        row = [_dots(images[0], point[None], scale, k)]
        for image, each in zip(images[1:], values, strict=True):
            at = each.argmax()
            heat = viz.heat_overlay(image, each.reshape(cells, cells), low=low, high=high, cell=_CELL)
            best = np.array([[at % cells, at // cells]]) * (side / cells)
            row.append(_dots(heat, best, scale, k))
        rows.append(row)
    columns = ["source", *(f"image {i}" for i in range(1, len(images)))]
    return viz.labelled_grid(rows, columns=columns, rows=[f"point {k}" for k in shown], cell=_CELL)


@functools.partial(jax.jit, static_argnames=("side", "cells", "similarity"))
def _maps(pyramid, xy, **options):
    """Similarity [n,P,cells * cells] of points of the first image to the others."""
    source = tuple(x[0] for x in pyramid)
    one = lambda target: matching.similarities(source, target, xy, **options)
    return jax.lax.map(one, tuple(x[1:] for x in pyramid))


def _dots(image, xy, scale: float, number: int | None = None):
    """Draw points [K,2] in pixels of the view on its picture of `_CELL` pixels, in the colour of one or of each."""
    colours = None if number is None else np.repeat(viz.palette(number + 1)[-1:], len(xy), 0)
    return viz.draw_overlay(_scaled(image), (np.asarray(xy) + 0.5) * scale - 0.5, colours=colours)


def _scaled(image):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return image.resize((_CELL, _CELL), Image.Resampling.BICUBIC)


def parts_sheet(features, images: np.ndarray, centroids: np.ndarray):
    """Images and, below each, its parts in colours (figures 5 and 6 of LEAD); a map has as many cells as pixels."""
    side = images.shape[1]
    maps = np.asarray(jax.jit(parts.part_maps, static_argnums=2)(features(images), centroids, side))
    cells = []
    for first in range(0, len(images), 8):
        some = range(first, min(first + 8, len(images)))
        cells.append([_scaled(images[i]) for i in some])
        cells.append([viz.label_overlay(images[i], maps[i], cell=_CELL) for i in some])
    return viz.labelled_grid(cells, columns=[""] * min(8, len(images)), cell=_CELL)


def overlays(images: np.ndarray, xy: Mapping[str, np.ndarray]):
    """Landmarks on the same images by several means (figures 7 and 8 of LEAD): a row an image.

    Args:
      images: [n,S,S,3] uint8.
      xy: {name of a column: [n,L,2] in pixels of the view}.
    """
    scale = _CELL / images.shape[1]
    rows = [[_dots(image, points[i], scale) for points in xy.values()] for i, image in enumerate(images)]
    return viz.labelled_grid(rows, columns=list(xy), cell=_CELL)


def by_factor_sheet(images: np.ndarray, factor: Sequence[float], truth: np.ndarray, placed: np.ndarray):
    """Images with increasing zoom factors; annotated landmarks above, placed ones below (figure 9 of LEAD)."""
    order, scale = np.argsort(factor), _CELL / images.shape[1]
    rows = [[_dots(images[i], points[i], scale) for i in order] for points in (truth, placed)]
    names = [f"{factor[i]:.2f}" for i in order]
    return viz.labelled_grid(rows, columns=names, rows=["annotated", "placed"], cell=_CELL)


def factor_plot(ranges: Sequence[Range], title: str):
    """Error by zoom factor, seen in training and not (figure 10 of LEAD)."""
    lines = {"seen in training": [], "not seen": []}
    for each in ranges:
        if each.error is not None:
            name = "seen in training" if each.seen else "not seen"
            lines[name].append(((each.low + each.high) / 2, each.error, None))
    return viz.lines_plot({title: {name: points for name, points in lines.items() if points}}, x="zoom factor")
