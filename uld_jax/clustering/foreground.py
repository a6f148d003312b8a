"""The region of the object, from the features of a frozen backbone alone.

Features of an object differ more from those of the background than from one another, so that the first principal
component of many images' features tells the two apart (Amir et al., "Deep ViT Features as Dense Visual Descriptors",
2021; Oquab et al., DINOv2, 2023). This region replaces boxes or masks where no csv has them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.clustering import pca
from uld_jax.ops import connected

_BINS = 256  # bins of the histogram that is cut in two


class Foreground(NamedTuple):
    """A linear rule that separates object from background.

    Attributes:
      mean: [D], mean of the features.
      direction: [D] of length 1, from background to object.
      threshold: scalar; a cell with (features - mean) . direction above it belongs to the object.
    """

    mean: jax.Array
    direction: jax.Array
    threshold: jax.Array


def unknown(size: int, dtype=jnp.float32) -> Foreground:
    """A `Foreground` for features of this size before any fit; its `region` is empty."""
    return Foreground(jnp.zeros(size, dtype), jnp.zeros(size, dtype), jnp.zeros((), dtype))


def fit(x, place, mask=None) -> Foreground:
    """Fit a `Foreground` to features of many places in many images.

    The direction is the first principal component. Its sign puts the object in the middle: places above the mean have
    the smaller squared distance to the centre. The threshold splits the projections into two groups with the least
    squared deviation from their means (Otsu 1979).

    Args:
      x: [N,D] float; masked rows may hold anything.
      place: [N,2] places in unit coordinates: borders of the frame at -1 and 1.
      mask: [N] bool; None for all rows.
    """
    mask = jnp.ones(len(x), bool) if mask is None else mask
    found = pca.principal(x, 1, mask)
    along = _along(found.mean, found.directions[0], jnp.where(mask[:, None], x, 0))
    away = jnp.sum(place.astype(along.dtype) ** 2, -1)
    rows = jnp.maximum(jnp.sum(mask), 1)
    away = away - jnp.sum(jnp.where(mask, away, 0)) / rows
    sign = jnp.where(jnp.sum(jnp.where(mask, along * away, 0)) > 0, -1, 1).astype(along.dtype)
    return Foreground(found.mean, sign * found.directions[0], otsu(sign * along, mask))


def region(foreground: Foreground, maps, inside=None):
    """The object's cells [B,h,w] bool on features [B,h,w,D]: the largest connected region above the threshold.

    Args:
      foreground: the result of `fit` on such features.
      maps: [B,h,w,D] features.
      inside: [h,w] bool, cells that the region may contain; None for all.
    """
    above = score(foreground, maps) > 0
    return connected.largest(above if inside is None else above & inside)


def score(foreground: Foreground, maps):
    """Signed distance [...] of features [...,D] from the threshold; positive on the object's side."""
    return _along(foreground.mean, foreground.direction, maps) - foreground.threshold


def otsu(values, mask=None):
    """The threshold that splits numbers into two groups of least squared deviation from their means.

    The threshold is exact to 1/256 of the numbers' range.

    Args:
      values: [N] float.
      mask: [N] bool; None for all.

    >>> 1.0 < otsu(jnp.array([0.0, 1.0, 1.0, 4.0, 5.0])).item() < 4.0
    True
    """
    mask = jnp.ones(values.shape, bool) if mask is None else mask
    low = jnp.min(jnp.where(mask, values, jnp.inf))
    high = jnp.max(jnp.where(mask, values, -jnp.inf))
    low, width = jnp.where(low < high, low, 0), jnp.where(low < high, (high - low) / _BINS, 1)
    bins = jnp.clip((values - low) / width, 0, _BINS - 1).astype(jnp.int32)
    count = jnp.zeros(_BINS, values.dtype).at[bins].add(mask.astype(values.dtype))
    # Squared difference of the group means times both sizes, for a cut behind each bin; the rest is the same for all.
    below, middle = jnp.cumsum(count), jnp.arange(_BINS, dtype=values.dtype) + 0.5
    total, mass, all_mass = below[-1], jnp.cumsum(count * middle), jnp.sum(count * middle)
    above = total - below
    apart = mass / jnp.maximum(below, 1) - (all_mass - mass) / jnp.maximum(above, 1)
    between = below * above * apart**2
    # A gap makes several cuts equally good: take the middle one.
    best = between >= jnp.max(between) * (1 - 1e-5)
    cut = jnp.sum(jnp.where(best, middle + 0.5, 0)) / jnp.maximum(jnp.sum(best), 1)
    return low + width * cut


def _along(mean, direction, x):
    return jnp.einsum("...d,d->...", x - mean, direction, precision="highest")
