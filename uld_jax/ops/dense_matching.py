"""Losses over soft matches between all cells of two feature maps.

A cell u of one map matches cell v of the other with the probability

  q_uv = softmax_v(<f_u, g_v> / tau)

of which there are N x N for maps of N cells. Each loss has a dense form, which keeps them, and one by blocks of rows,
`block` rows at a time, which computes a block again for its gradient: neither matches nor distances of all cells then
exist at once. Both forms give the same numbers up to rounding. Logits, softmax and sums are float32 or wider.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.errors import UserError
from uld_jax.ops import coordinates, hypercolumns, keypoints

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Alignment(NamedTuple):
    """How well a student's soft matches follow a teacher's; means over all rows of all pairs.

    Attributes:
      loss: cross-entropy of q under p in nats, at least the entropy of p and log N for a uniform q.
      divergence: Kullback-Leibler divergence, `loss` less the entropy of p, which a perfect student brings to 0.
      perplexity: exp of the entropy of p, the number of cells among which the teacher is undecided; N if p is flat.
    """

    loss: jax.Array
    divergence: jax.Array
    perplexity: jax.Array


def similarity_alignment(
    f,
    g,
    teacher_f: hypercolumns.Pyramid,
    teacher_g: hypercolumns.Pyramid,
    *,
    tau: float = 0.05,
    teacher_tau: float = 0.05,
    block: int = 0,
) -> Alignment:
    """LEAD's second stage (Karmali et al. 2022, section 3.3): a student's similarities follow those of hypercolumns.

      p_uv = softmax_v(cos(F_u, G_v) / teacher_tau)      F, G: hypercolumns of the teacher at the student's size
      q_uv = softmax_v(<f_u, g_v> / tau)
      loss = mean_u -sum_v p_uv log q_uv = mean_u [log sum_v exp s_uv - sum_v p_uv s_uv],   s = <f, g> / tau

    The paper sums over u and has one temperature. A mean keeps the gradient independent of the maps' size.

    Args:
      f, g: [B,R,R,C] maps of the student for the images of each pair, of length 1 along C (`keypoints.l2_normalize`).
      teacher_f, teacher_g: pyramids of the teacher for the same images, whose cells cover the same area. Hypercolumns
        are never made, and no gradient reaches the pyramids.
      tau, teacher_tau: temperatures.
      block: rows of p and q that exist at a time, a divisor of R^2; 0 for all.

    Raises:
      UserError: maps that are not square or not alike, or a block that does not divide.

    >>> f = keypoints.l2_normalize(jnp.array([[[[1.0, 0], [0, 1]], [[1, 1], [1, -1]]]]))
    >>> found = similarity_alignment(f, f, (f,), (f,))  # the student is the teacher
    >>> bool(abs(found.divergence) < 1e-6), bool(abs(found.loss - jnp.log(found.perplexity)) < 0.01)
    (True, True)
    """
    if f.shape != g.shape or f.ndim != 4 or f.shape[1] != f.shape[2]:
        raise UserError(f"similarity_alignment got maps {f.shape} and {g.shape}; give two of one shape [B,R,R,C]")
    side = f.shape[1]
    teacher_f, teacher_g = jax.lax.stop_gradient((teacher_f, teacher_g))
    teacher = hypercolumns.similarity(teacher_f, teacher_g, side)
    g = g.reshape(len(g), side * side, -1)

    def rows(cells, f):
        target = hypercolumns.rows_of(teacher, cells) / teacher_tau
        logits = _logits(f, g) / tau
        p = jax.nn.softmax(target)
        # Neither log q nor log p is made: both sums are what is expected of the logits, less a number for each row.
        cross = jax.nn.logsumexp(logits, -1) - jnp.sum(p * logits, -1)
        entropy = jax.nn.logsumexp(target, -1) - jnp.sum(p * target, -1)
        return jnp.sum(cross, 1), jnp.sum(entropy, 1), jnp.sum(jnp.exp(entropy), 1)

    loss, entropy, perplexity = (jnp.mean(x) / side**2 for x in _over_rows(rows, (f,), block))
    return Alignment(loss, jax.lax.stop_gradient(loss - entropy), perplexity)


def equivariance(
    f,
    g,
    truth,
    valid=None,
    *,
    stride: float = 1.0,
    exponent: float = 0.5,
    scale: float | None = 20.0,
    exchange: bool = False,
    block: int = 0,
):
    """Dense equivariance (Thewlis et al. 2017, 2019 DVE; ContrastLandmarks, Cheng et al. 2021): matches lie near truth.

      loss = mean_u sum_v q_uv (stride |v - truth_u|)^exponent,   q_uv = softmax_v(<f_u, g_v>)

    Args:
      f: [B,h,w,C] maps of images, not normalised.
      g: [B,h',w',C] maps of their deformed copies.
      truth: [B,h,w,2] `(x, y)` in cells of g, where the place of each cell of f is in the copy.
      valid: [B,h,w] bool, cells of f that count; None for all, as in the published code, where places outside the copy
        count too.
      stride: pixels of the images in a cell of g, because distances are in pixels.
      exponent: of the distance; 0.5 in DVE.
      scale: length to which features of f and g are scaled: logits are scale^2 cosines, so a temperature is scale^-2.
        None leaves features as they are, as DVE with SmallNet.
      exchange: whether f goes through another image, DVE's vector exchange, see `exchanged`.
      block: rows that exist at a time, a divisor of h w; 0 for all.

    Returns:
      A scalar, 0 if no cell is valid.

    >>> f = jnp.eye(4).reshape(1, 2, 2, 4)
    >>> truth = jnp.array([[[[0.0, 0], [1, 0]], [[0, 1], [1, 1]]]])
    >>> bool(equivariance(f, f, truth) < 1e-6), round(equivariance(f, f, truth + 4, stride=2).item(), 3)
    (True, 3.364)
    """
    if f.ndim != 4 or g.ndim != 4 or len(f) != len(g) or truth.shape != (*f.shape[:3], 2):
        raise UserError(
            f"equivariance got maps {f.shape} and {g.shape} and truth {truth.shape}; give [B,h,w,C], [B,h',w',C] and "
            "[B,h,w,2]"
        )
    height, width = g.shape[1:3]
    if scale is not None:
        f, g = (scale * keypoints.l2_normalize(x.astype(_wide(x))) for x in (f, g))
    weight = jnp.ones(f.shape[:3], bool) if valid is None else valid
    weight = weight.astype(_wide(f))
    # With an exchange f is still needed whole, as the other image's map.
    other = jnp.roll(f, -1, 0).reshape(len(f), -1, f.shape[-1]) if exchange else None
    g = g.reshape(len(g), height * width, -1)
    places = jnp.asarray(coordinates.pixel_grid(height, width).reshape(-1, 2), weight.dtype)

    def rows(cells, f, truth, weight):
        del cells
        if exchange:
            f = _attended(f, other)
        square = jnp.sum((truth[:, :, None] - places) ** 2, -1) * stride**2
        expected = jnp.sum(jax.nn.softmax(_logits(f, g)) * square ** (exponent / 2), -1)
        return jnp.sum(expected * weight, 1), jnp.sum(weight, 1)

    total, count = _over_rows(rows, (f, jax.lax.stop_gradient(truth).astype(weight.dtype), weight), block)
    return jnp.sum(total) / jnp.maximum(jnp.sum(count), 1)


def exchanged(f, other):
    """DVE's vector exchange: each feature of f, read as a mean of features of another image that resemble it.

      f_u <- sum_v softmax_v(<f_u, a_v>) a_v

    Args:
      f: [B,h,w,C] features, scaled as for their logits.
      other: [B,h',w',C] features a of other images, scaled alike; `equivariance` takes those of the next image of f.

    Returns:
      [B,h,w,C], float32 or wider; not scaled again.
    """
    flat = [x.reshape(len(x), -1, x.shape[-1]) for x in (f, other)]
    return _attended(*flat).reshape(f.shape)


def _attended(f, other):
    return _einsum("buv,bvc->buc", jax.nn.softmax(_logits(f, other)), other.astype(_wide(other)))


def _logits(f, g):
    """Inner products [B,P,N] of rows [B,P,C] and [B,N,C]."""
    return _einsum("bpc,bnc->bpn", f, g, preferred_element_type=_wide(f, g))


def _wide(*arrays):
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def _over_rows(rows, maps, block):
    """Add up rows(cells [P], *maps [B,P,...]) -> tuple of [B] over all cells of maps [B,h,w,...], a block at a time.

    Sums stay per image until the end, so that devices send each other nothing for each block.
    """
    batch, cells = len(maps[0]), maps[0].shape[1] * maps[0].shape[2]
    maps = [x.reshape(batch, cells, *x.shape[3:]) for x in maps]
    index = jnp.arange(cells, dtype=jnp.int32)
    block = block or cells
    if block < 1 or cells % block:
        raise UserError(f"block is {block}, which does not divide {cells} cells; use a divisor, or 0 for all at once")
    if block == cells:
        return rows(index, *maps)
    # Within a scan there is nothing for common subexpressions to be shared with, so barriers against it are left out.
    again = jax.checkpoint(rows, prevent_cse=False)

    def add(sums, part):
        return tuple(a + b for a, b in zip(sums, again(*part))), None

    cut = [jnp.moveaxis(x.reshape(batch, -1, block, *x.shape[2:]), 1, 0) for x in maps]
    first = jax.eval_shape(rows, index[:block], *[x[0] for x in cut])
    start = tuple(jnp.zeros(x.shape, x.dtype) for x in first)
    return jax.lax.scan(add, start, (index.reshape(-1, block), *cut))[0]
