"""Correlations of all cells of two feature maps, and what they tell: matches, warped maps, carried points, losses.

A correlation [B,h,w,h',w'] has a number for each cell of map a (h x w) and each cell of map b (h' x w'). Functions with
a direction read it for a: each cell u of a has its match T(u) in b. `swap` exchanges the roles, so that they read it
for b. In C3's words (Xu et al. 2020, section 3.2), with a of image i and b of image j, T is T^{j->i}.

Sources: NC-Net (Rocco et al. 2018) and its published code for `correlate`, `mutual_matching`, `weak_score` and
`carry_points`; C3, eq. 3 and 4, for `scores` and `warp_maps`. Sums and softmax are float32 or wider.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.errors import UserError
from uld_jax.ops import coordinates, keypoints

MODES = ("hard", "soft", "softargmax", "st")

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Scores(NamedTuple):
    """Softmax of a correlation in both directions.

    Attributes:
      in_b: [B,h,w,h',w'], for each cell of a the scores of b's cells, which sum to 1; C3's S^{j->i}.
      in_a: [B,h,w,h',w'], for each cell of b the scores of a's cells, which sum to 1; C3's S^{i->j}.
    """

    in_b: jax.Array
    in_a: jax.Array


def correlate(a, b, eps: float = 1e-6):
    """Cosines of the features of all pairs of cells, [B,h,w,h',w'], of maps a [B,h,w,C] and b [B,h',w',C].

    Features are divided by sqrt(sum_c f_c^2 + eps) as in NC-Net, so that a feature of zeros has the cosine 0 and a
    gradient. Raises UserError for maps that do not go together.

    >>> a = jnp.eye(3).reshape(1, 1, 3, 3)
    >>> correlate(a, 2 * a[:, :, 1:]).round(3)[0, 0, :, 0].tolist()
    [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    if a.ndim != 4 or b.ndim != 4 or len(a) != len(b) or a.shape[-1] != b.shape[-1]:
        raise UserError(f"correlate got maps {a.shape} and {b.shape}; give [B,h,w,C] and [B,h',w',C]")

    def unit(f):
        f = f.astype(_wide(f))
        return f * jax.lax.rsqrt(jnp.sum(f * f, -1, keepdims=True) + eps)

    return _einsum("bijc,bklc->bijkl", unit(a), unit(b))


def swap(correlation):
    """Exchange the images of a correlation, [B,h,w,h',w'] to [B,h',w',h,w].

    >>> swap(jnp.zeros((1, 2, 3, 4, 5))).shape
    (1, 4, 5, 2, 3)
    """
    return correlation.transpose(0, 3, 4, 1, 2)


def mutual_matching(correlation, eps: float = 1e-5):
    """NC-Net's filter of mutual matches: c (c / max over a's cells) (c / max over b's cells), [B,h,w,h',w'].

    A correlation stays where it is the largest of both its cells, and shrinks elsewhere. `eps` is added to both maxima.
    Correlations must not be negative; those of features after a ReLU are not.

    >>> c = jnp.array([[2.0, 1.0], [1.0, 1.0]]).reshape(1, 1, 2, 1, 2)
    >>> mutual_matching(c)[0, 0, :, 0].round(3).tolist()
    [[2.0, 0.5], [0.5, 1.0]]
    """
    of_b = correlation / (jnp.max(correlation, (1, 2), keepdims=True) + eps)
    of_a = correlation / (jnp.max(correlation, (3, 4), keepdims=True) + eps)
    return correlation * (of_a * of_b)  # grouped so that the result does not depend on the order of the images


def scores(correlation) -> Scores:
    """Softmax over the cells of one image for each cell of the other, in both directions, without a temperature.

    >>> found = scores(jnp.zeros((1, 1, 2, 1, 4)))
    >>> found.in_b[0, 0, 0, 0].tolist(), found.in_a[0, 0, :, 0, 0].tolist()
    ([0.25, 0.25, 0.25, 0.25], [0.5, 0.5])
    """
    c = correlation.astype(_wide(correlation))
    return Scores(jax.nn.softmax(c, (3, 4)), jax.nn.softmax(c, (1, 2)))


def matches(correlation):
    """The cell of b that each cell of a correlates with most, [B,h,w,2] `(x, y)`, float32 or wider.

    The first of equal ones counts. No gradient reaches the correlation. The match of each cell of b in a is
    `matches(swap(correlation))`.
    """
    height, width = correlation.shape[3:]
    cells = coordinates.pixel_grid(height, width).reshape(-1, 2)
    return jnp.asarray(cells, _wide(correlation))[_best(correlation)].reshape(*correlation.shape[:3], 2)


def expected_matches(correlation):
    """The mean of b's cells under the scores of each cell of a (soft-argmax), [B,h,w,2] `(x, y)`.

    >>> c = jnp.zeros((1, 1, 1, 2, 3))
    >>> matches(c).ravel().tolist(), expected_matches(c).round(3).ravel().tolist()
    ([0.0, 0.0], [1.0, 0.5])
    """
    height, width = correlation.shape[3:]
    return _expected(correlation, jnp.asarray(coordinates.pixel_grid(height, width), _wide(correlation)))


def warp_maps(correlation, maps, mode: str = "hard"):
    """Warp maps of b to the cells of a, [B,h',w',K] to [B,h,w,K]: the value at cell u of a is maps at T(u) in b.

    This is backward warping, T^{j->i} o p_j in C3's eq. 4. Maps of a go to the cells of b by
    `warp_maps(swap(correlation), maps)`.

    Args:
      correlation: [B,h,w,h',w'].
      maps: [B,h',w',K] of b.
      mode: how T and its gradient are made:
        hard        the value at the cell that correlates most; no gradient to the correlation
        soft        the mean of all values under the scores, which blurs
        softargmax  the value at the mean cell under the scores, between cells bilinearly
        st          the result of `hard` with the gradient of `soft` (straight-through)

    Returns:
      float32 or wider.

    Raises:
      UserError: another mode, or maps of other cells than b's.

    A row of two cells and one of three: the first cell of a matches the last one of b, and the second the first, so
    the first takes the last value. Moving b's values to where they match in b instead would give no value twice.

    >>> c = jnp.array([[0.1, 0.2, 0.9], [0.8, 0.1, 0.3]]).reshape(1, 1, 2, 1, 3)
    >>> maps = jnp.array([5.0, 6.0, 7.0]).reshape(1, 1, 3, 1)
    >>> warp_maps(c, maps).ravel().tolist()
    [7.0, 5.0]
    """
    if mode not in MODES:
        raise UserError(f"mode is {mode!r}; use one of {', '.join(MODES)}")
    if correlation.ndim != 5 or maps.shape[:3] != (len(correlation), *correlation.shape[3:]) or maps.ndim != 4:
        raise UserError(
            f"warp_maps got a correlation {correlation.shape} and maps {maps.shape}; give [B,h,w,h',w'] and [B,h',w',K]"
        )
    maps = maps.astype(_wide(correlation, maps))
    if mode == "soft":
        return _expected(correlation, maps)
    if mode == "softargmax":
        xy = expected_matches(correlation)
        return keypoints.sample(maps, xy.reshape(len(xy), -1, 2)).reshape(*xy.shape[:3], -1)
    flat = maps.reshape(len(maps), -1, maps.shape[-1])
    hard = jnp.take_along_axis(flat, _best(correlation)[..., None], 1).reshape(*correlation.shape[:3], -1)
    if mode == "hard":
        return hard
    soft = _expected(correlation, maps)
    return jax.lax.stop_gradient(hard) + (soft - jax.lax.stop_gradient(soft))  # the difference is exactly 0


def carry_points(field, xy):
    """Carry points [B,P,2] of one image to another by its field of matches [B,h,w,2], read between cells bilinearly.

    The field is that of `matches`: points in cells of a become points in cells of b. NC-Net carries points of its
    target b to its source a, by `matches(swap(correlation))`.

    Coordinates are in cells. NC-Net has them in -1..1, with these ends at the centres of the first and the last cell.
    Along each axis this is x / ((w - 1) / 2) - 1, for points, cells and matches alike. A bilinear reading commutes
    with it: its weights are ratios of distances, which stay, and sum to 1. So the points are the same, and the pixels
    that NC-Net tells are `coordinates.rescale_corners` of the cells. Outside the field its border repeats, a case that
    NC-Net does not have, because annotated points lie on the image.

    >>> field = jnp.array([[2.0, 0.0], [4.0, 1.0]]).reshape(1, 1, 2, 2)
    >>> carry_points(field, jnp.array([[[0.25, 0.0]]])).tolist()
    [[[2.5, 0.25]]]
    """
    return keypoints.sample(field, xy)


def weak_score(correlation):
    """NC-Net's score of a pair of images, [B] in 0..1: how certain the matches of its cells are.

    It is the mean over the cells of an image of the largest score, and over both directions. A flat correlation has
    (1/N + 1/N') / 2 for maps of N and N' cells.
    """
    c = correlation.astype(_wide(correlation))

    def certainty(axes):
        # The largest of a softmax, without the others.
        return jnp.mean(jnp.exp(jnp.max(c, axes) - jax.nn.logsumexp(c, axes)), (1, 2))

    return (certainty((3, 4)) + certainty((1, 2))) / 2


def weak_loss(positive, negative, counts=None):
    """NC-Net's loss: the mean score of pairs of unrelated images less that of pairs of one category, a scalar.

    Args:
      positive: [B] scores (`weak_score`) of pairs that show the same category.
      negative: [B] scores of pairs that do not, which NC-Net makes of neighbours in the batch.
      counts: [B] bool, False for negative pairs that do not count, such as those of the same category by chance; None
        for all, as published. If none counts, their mean is 0.

    >>> weak_loss(jnp.array([0.5, 0.75]), jnp.array([0.25, 0.9]), jnp.array([True, False])).item()
    -0.375
    """
    counts = jnp.ones(negative.shape, bool) if counts is None else counts
    return keypoints.masked_mean(negative, counts) - jnp.mean(positive)


def grid_cross_entropy(correlation, in_b, in_a):
    """Cross-entropy of the scores for pairs whose warp is known: -log score at the nearest true cell, in nats.

    It is the mean of both directions, of each the mean over those cells of all pairs whose true place is on the other
    map, 0 if there is none. To leave a cell out, give it NaN or a place that is not on the map.

    Args:
      correlation: [B,h,w,h',w'].
      in_b: [B,h,w,2] `(x, y)` in cells of b, the true place of each cell of a.
      in_a: [B,h',w',2] `(x, y)` in cells of a, the true place of each cell of b.

    Raises:
      UserError: places of other cells.
    """
    batch, *sides = correlation.shape
    if correlation.ndim != 5 or in_b.shape != (batch, *sides[:2], 2) or in_a.shape != (batch, *sides[2:], 2):
        raise UserError(
            f"grid_cross_entropy got a correlation {correlation.shape} and places {in_b.shape} and {in_a.shape}; give "
            "[B,h,w,h',w'], [B,h,w,2] and [B,h',w',2]"
        )
    flat = _flat(correlation).astype(_wide(correlation))
    total = 0
    for places, size, axis in ((in_b, sides[2:], 2), (in_a, sides[:2], 1)):
        cells, inside = _nearest(places, size)
        cells = jnp.expand_dims(cells.reshape(batch, -1), axis)
        score = jnp.take_along_axis(flat, cells, axis).squeeze(axis) - jax.nn.logsumexp(flat, axis)
        total = total - keypoints.masked_mean(score, inside.reshape(batch, -1)) / 2
    return total


def _nearest(xy, size):
    """Numbers [...] of the cells of a map of `size` (height, width) nearest to points [...,2], and which are on it."""
    height, width = size
    last = jnp.asarray([width - 1, height - 1], xy.dtype)
    inside = jnp.all((xy >= -0.5) & (xy < last + 0.5), -1)  # False for NaN
    x, y = jnp.moveaxis(jnp.floor(jnp.where(inside[..., None], xy, 0) + 0.5), -1, 0).astype(jnp.int32)
    return y * width + x, inside


def _best(correlation):
    """Numbers [B,h w] of the cells of b that correlate most with each cell of a; no gradient."""
    return jnp.argmax(_flat(jax.lax.stop_gradient(correlation)), -1)


def _expected(correlation, maps):
    """Means [B,h,w,K] of maps [B,h',w',K], or [h',w',K] for all pairs, under the scores of each cell of a."""
    p = jax.nn.softmax(_flat(correlation).astype(maps.dtype))
    maps = jnp.broadcast_to(maps, (len(p), *maps.shape[-3:])).reshape(len(p), -1, maps.shape[-1])
    return _einsum("buv,bvk->buk", p, maps).reshape(*correlation.shape[:3], -1)


def _flat(correlation):
    batch, height, width = correlation.shape[:3]
    return correlation.reshape(batch, height * width, -1)


def _wide(*arrays):
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
