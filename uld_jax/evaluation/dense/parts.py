"""Parts: clusters of dense features over many images (LEAD, figures 5 and 6).

Hypercolumns of random cells are clustered by spherical k-means. A pixel belongs to the part whose centroid has the
largest inner product with its features, which is that of the largest cosine, because the centroids have length 1; so
maps of parts need no hypercolumns either (`ops.hypercolumns.linear`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.clustering import quality
from uld_jax.clustering.kmeans import kmeans
from uld_jax.ops import hypercolumns, keypoints
from uld_jax.ops.hypercolumns import Pyramid

_ROWS, _BYTES = 20_000, 2**28  # largest number of clustered cells, and of their bytes
DRAWN = 1500  # cells in the t-SNE picture; its time grows with the square of this number


class Parts(NamedTuple):
    """Clusters of features.

    Attributes:
      centroids: [M,sum C_l] float32 of length 1, channels in the order of the levels.
      sizes: [M] int, clustered cells of each part.
      cosine: mean cosine of the clustered cells with their centroids.
      rows: [R,sum C_l] float32, some of the clustered cells, of length 1.
      labels: [R] int, parts of these cells.
    """

    centroids: np.ndarray
    sizes: np.ndarray
    cosine: float
    rows: np.ndarray
    labels: np.ndarray


def sample(features, images: np.ndarray, cells: int, *, batch: int, seed: int = 0) -> np.ndarray:
    """Hypercolumns of random cells of [N,S,S,3] uint8 images, equally many of each: [R,sum C_l] float32 of length 1.

    Args:
      features: `features.Features`.
      images: the images.
      cells: cells along a side of the map from which they are drawn.
      batch: images at a time.
      seed: seed of the draws.
    """
    channels = sum(shape[-1] for shape in features.shapes(images.shape[1]))
    most = max(min(_ROWS, _BYTES // (4 * channels)), len(images))
    each, rng, rows = min(most // len(images), cells * cells), np.random.default_rng(seed), []
    for numbers, pyramid in features.batches(images, batch):
        index = np.stack([rng.permutation(cells * cells)[:each] for _ in range(batch)]).astype(np.int32)
        found = _columns(pyramid, index, cells=cells)[: len(numbers)]
        rows.append(np.asarray(found).reshape(-1, channels))
    return np.concatenate(rows)


@functools.partial(jax.jit, static_argnames="cells")
def _columns(pyramid: Pyramid, index, *, cells):
    return keypoints.l2_normalize(hypercolumns.at_cells(pyramid, cells, index))


def cluster(rows: np.ndarray, parts: int, seed: int = 0) -> Parts:
    """Cluster rows [R,D] of length 1 into `parts` parts; the result keeps `DRAWN` of the rows."""
    found = kmeans(rows, parts, rng=jax.random.key(seed), spherical=True)
    kept = np.unique(np.linspace(0, len(rows) - 1, min(DRAWN, len(rows))).astype(int))
    labels = np.asarray(found.labels)
    cosine = 1 - float(found.inertia) / (2 * max(len(rows), 1))
    return Parts(np.asarray(found.centroids), np.asarray(found.counts), cosine, rows[kept], labels[kept])


def part_maps(pyramid: Pyramid, centroids, cells: int):
    """The part of every cell of images [B], [B,cells,cells] int32."""
    ends = np.cumsum([x.shape[-1] for x in pyramid])[:-1]
    kernels = jnp.split(jnp.asarray(centroids).T, ends)
    return jnp.argmax(hypercolumns.linear(pyramid, kernels, cells), -1).astype(jnp.int32)


def at_points(maps: np.ndarray, xy: np.ndarray, side: int) -> np.ndarray:
    """Parts at points [N,L,2] in pixels of a view of `side` pixels, [N,L]; -1 for points outside it or unknown."""
    maps = np.asarray(maps)
    cells = maps.shape[1]
    inside = ((xy >= -0.5) & (xy <= side - 0.5)).all(-1)
    at = np.clip(np.floor((np.where(inside[..., None], xy, 0) + 0.5) * cells / side), 0, cells - 1).astype(int)
    return np.where(inside, maps[np.arange(len(maps))[:, None], at[..., 1], at[..., 0]], -1)


class Agreement(NamedTuple):
    """Agreement of parts with annotated points.

    Attributes:
      nmi: normalised mutual information of part and landmark.
      purity: share of points whose landmark is the most frequent one of their part.
      points: number of points.
    """

    nmi: float
    purity: float
    points: int


def agreement(labels: np.ndarray, parts: int) -> Agreement:
    """Compare parts [N,L] at annotated points, -1 for none, with the numbers of the landmarks."""
    truth = np.broadcast_to(np.arange(labels.shape[1]), labels.shape)
    given = jnp.asarray(labels.ravel()), jnp.asarray(truth.ravel())
    nmi, purity = (float(m(*given, clusters=parts, classes=labels.shape[1])) for m in (quality.nmi, quality.purity))
    return Agreement(nmi, purity, int((labels >= 0).sum()))


def embed(rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """Embed rows [R,D] of length 1 in the plane by t-SNE, [R,2]."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(1.0, (len(rows) - 1) / 3))
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows)
