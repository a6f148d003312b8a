"""A sheet of pairs of photos with annotated and carried keypoints."""

import numpy as np
from PIL import Image

from uld_jax import viz

_CELL = 160  # pixels of a picture


def pairs_sheet(images_a: np.ndarray, images_b: np.ndarray, points_b, carried, truth, names: list[str]):
    """Draw pairs of photos, a row a pair: b with its keypoints, a with the carried ones, a with the annotated ones.

    Args:
      images_a, images_b: [n,S,S,3] uint8.
      points_b, carried, truth: [n,K,2] `(x, y)` in pixels of the images, NaN in empty slots.
      names: [n] names of the rows.
    """
    rows = []
    for i in range(len(images_a)):
        shown = (images_b[i], points_b[i]), (images_a[i], carried[i]), (images_a[i], truth[i])
        rows.append([_dots(image, points) for image, points in shown])
    return viz.labelled_grid(rows, columns=["b", "a, carried", "a, annotated"], rows=names, cell=_CELL)


def _dots(image, points):
    scaled = Image.fromarray(image).resize((_CELL, _CELL), Image.Resampling.BICUBIC)
    return viz.draw_overlay(scaled, (np.asarray(points) + 0.5) * (_CELL / len(image)) - 0.5)
