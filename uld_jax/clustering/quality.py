"""How good a clustering is, without knowing what it should be: two measures of scikit-learn, jitted and masked.

Rows that are masked, or whose label is outside 0..M - 1 (as k-means gives masked rows -1), count nowhere and may hold
anything. Clusters may be empty. Where the measures are not defined, with fewer than two clusters that have rows, both
are 0, so that a collapsed clustering shows as a bad one and not as NaN.
"""

import functools

import jax
import jax.numpy as jnp

_HIGHEST = jax.lax.Precision.HIGHEST


def _prepare(x, labels, mask, clusters):
    """Centred rows [N,D] (zeros where masked), one-hot labels [N,M] (zeros where masked)."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    mask = jnp.ones(x.shape[0], bool) if mask is None else mask
    mask &= (labels >= 0) & (labels < clusters)
    # What is common to all rows would only cost digits in float32.
    x = jnp.where(mask[:, None], x.astype(dtype), 0)
    x = jnp.where(mask[:, None], x - x.sum(0) / jnp.maximum(mask.sum(), 1), 0)
    member = (labels[:, None] == jnp.arange(clusters)) & mask[:, None]
    return x, member.astype(dtype)


@functools.partial(jax.jit, static_argnames=("clusters", "block"))
def silhouette(x, labels, mask=None, *, clusters: int, block: int = 512):
    """Mean silhouette width (Rousseeuw 1987), with Euclidean distances, as scikit-learn's `silhouette_score`.

      s_i = (b_i - a_i) / max(a_i, b_i),   a_i: mean distance to the other rows of its own cluster
                                           b_i: to the rows of the nearest other cluster

    A row that is alone in its cluster has s_i = 0.

    Args:
      x: [N,D] float rows, on one device or replicated.
      labels: [N] int, cluster of every row.
      mask: [N] bool, False for rows that count nowhere; None for none.
      clusters: M; more than there are does no harm.
      block: rows whose distances to all are held at a time: memory is block * N numbers.

    Returns:
      A scalar in -1..1; 0 if fewer than two clusters have rows.

    >>> x = jnp.array([[0.0], [1.0], [10.0], [11.0]])
    >>> round(float(silhouette(x, jnp.array([0, 0, 1, 1]), clusters=2)), 4)
    0.8997
    """
    x, member = _prepare(x, labels, mask, clusters)
    rows, block = x.shape[0], min(block, x.shape[0])
    sizes, squares = member.sum(0), jnp.sum(x * x, 1)
    blocks = -(-rows // block)
    position = jnp.arange(blocks * block).reshape(blocks, block)

    def widths(index):
        here = jnp.minimum(index, rows - 1)
        own = member[here] * (index < rows)[:, None]  # the last block's padding belongs nowhere
        squared = squares[here][:, None] + squares - 2 * jnp.einsum("bd,nd->bn", x[here], x, precision=_HIGHEST)
        # A row's distance to itself is 0 and not the root of a rounding error.
        distance = jnp.where(here[:, None] == jnp.arange(rows), 0, jnp.sqrt(jnp.maximum(squared, 0)))
        sums = jnp.einsum("bn,nm->bm", distance, member, precision=_HIGHEST)
        size = jnp.sum(own * sizes, 1)
        inner = jnp.sum(own * sums, 1) / jnp.maximum(size - 1, 1)
        outer = jnp.min(jnp.where((own > 0) | (sizes == 0), jnp.inf, sums / jnp.maximum(sizes, 1)), 1)
        larger = jnp.maximum(inner, outer)
        counts = (size > 1) & jnp.isfinite(outer) & (larger > 0)
        return jnp.sum(jnp.where(counts, (outer - inner) / jnp.where(counts, larger, 1), 0))

    total = jnp.sum(jax.lax.map(widths, position))
    return total / jnp.maximum(sizes.sum(), 1)


@functools.partial(jax.jit, static_argnames=("clusters",))
def calinski_harabasz(x, labels, mask=None, *, clusters: int):
    """Variance ratio criterion (Calinski and Harabasz 1974), as scikit-learn's `calinski_harabasz_score`.

      (sum_m n_m |mean_m - mean|^2 / (M - 1)) / (sum_i |x_i - mean_label(i)|^2 / (N - M)),   M: clusters that have rows

    Args:
      x, labels, mask, clusters: as for `silhouette`.

    Returns:
      A scalar, higher is better; 1 if no row differs from its cluster's mean, 0 if fewer than two clusters have rows.

    >>> x = jnp.array([[0.0], [1.0], [10.0], [11.0]])
    >>> round(float(calinski_harabasz(x, jnp.array([0, 0, 1, 1]), clusters=2)), 3)
    200.0
    """
    x, member = _prepare(x, labels, mask, clusters)
    sizes = member.sum(0)
    means = jnp.einsum("nm,nd->md", member, x, precision=_HIGHEST) / jnp.maximum(sizes, 1)[:, None]
    inside = jnp.where(member.sum(1)[:, None] > 0, x - jnp.einsum("nm,md->nd", member, means, precision=_HIGHEST), 0)
    within, between = jnp.sum(inside**2), jnp.sum(sizes[:, None] * means**2)  # the mean of all rows is 0
    rows, used = sizes.sum(), jnp.sum(sizes > 0)
    ratio = between * (rows - used) / (jnp.where(within > 0, within, 1) * jnp.maximum(used - 1, 1))
    return jnp.where(used < 2, 0, jnp.where(within > 0, ratio, 1)).astype(x.dtype)
