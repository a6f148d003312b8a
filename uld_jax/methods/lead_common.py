"""What the stages of LEAD share: the encoder, and K landmarks from a stage's dense features.

LEAD (`methods/lead.py`) ends with dense features. This library's question is K landmarks of every image, so each of its
stages also clusters its features in a round, and takes the cell of an image that is most like a cluster for a landmark.
This is ours, not the paper's.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.bank import Labels, flatten, image_table
from uld_jax.clustering.kmeans import kmeans
from uld_jax.hyperparameters import Fraction, NotNegative, Positive, PositiveInt
from uld_jax.method import Described, Prediction, Round, Stage
from uld_jax.methods.shared import View
from uld_jax.models import layers, resnet
from uld_jax.models.lead_net import pyramid
from uld_jax.ops import color, coordinates, heatmaps, hypercolumns, keypoints

STRIDE = 4  # pixels of the image in a cell of the dense features
COLOURS = {"celeba": resnet.CELEBA, "imagenet": resnet.IMAGENET}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The network whose maps are the dense features (`models/resnet.py`).

    Attributes:
      depth: 50 as in the paper, 18, or 10 for tests.
      width: channels of the stem; 64 as published.
      colours: the mean and deviation that images are normalised by: `celeba`, those of ContrastLandmarks; or
        `imagenet`, for weights that were trained so.
    """

    depth: Literal[50, 18, 10] = 50
    width: PositiveInt = 64
    colours: Literal["celeba", "imagenet"] = "celeba"

    def network(self, dtype: str, groups: int = 1) -> resnet.ResNet:
        """Return the network, in training with statistics of `groups` parts of the batch."""
        return resnet.ResNet(self.depth, self.width, groups=groups, **layers.precision(dtype))

    def normalised(self, images):
        """Normalise images [B,H,W,3] in 0..1 by the mean and deviation of `colours`."""
        return resnet.normalize(images, COLOURS[self.colours])


def encode(stage, params, model_state, shown) -> hypercolumns.Pyramid:
    """Return the pyramid of an encoder, by the statistics that training collected, of images [B,S,S,3] in 0..1."""
    network, variables = stage.encoder.network(stage.dtype), {"params": params, **model_state}
    return pyramid(network.apply(variables, stage.encoder.normalised(shown), train=False))


@dataclasses.dataclass(frozen=True)
class Clusters:
    """K landmarks from dense features.

    Attributes:
      pixels: P, number of random cells of an image that are clustered.
      roi: central fraction of the view in which cells are drawn and landmarks are searched.
      iterations: largest number of iterations of k-means.
      round_every: steps between rounds; 0 for one at the end of the stage.
      bank_gib: size in GiB of the descriptors kept of a pass. If P cells an image need more, fewer cells of each image
        are clustered.
    """

    pixels: PositiveInt = 30
    roi: Fraction = 1.0
    iterations: PositiveInt = 100
    round_every: NotNegative = 0
    bank_gib: Positive = 4.0


class Parts(NamedTuple):
    """Clusters of dense features, and their landmarks.

    Attributes:
      passes: int32, number of passes done; those of a round cluster and then place, in turn.
      centroids: [K,C] float32 of length 1.
      labels: landmarks of the training images.
    """

    passes: jax.Array
    centroids: jax.Array
    labels: Labels


class Seen(NamedTuple):
    """The data that a pass collects.

    Attributes:
      descriptors: [B,P,C] float32 of length 1, at random cells.
      xy: [B,K,2] float32, landmarks of the present clusters, in pixels of the frame.
      score: [B,K] float32 in 0..1.
    """

    descriptors: jax.Array
    xy: jax.Array
    score: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseStage(Stage):
    """A stage with dense features; `aux.parts` holds its landmarks, which the class finds.

    Attributes:
      k: K, number of landmarks.
      frame_size: side of the frame in pixels.
      steps: number of steps of the stage.
      dtype: type of the networks' arithmetic.
      view: the network's view of a frame for landmarks: 96 px from the middle of one of 136 px (ContrastLandmarks).
      encoder: the network.
      clusters: how landmarks are found.
    """

    k: int
    frame_size: int
    steps: int
    dtype: str = "float32"
    view: View = View(96, 96 / 136)
    encoder: Encoder = Encoder()
    clusters: Clusters = Clusters()

    # -- what a stage of LEAD writes ----------------------------------------------------------------------------------

    def features(self, state, frozen, shown) -> hypercolumns.Pyramid:
        """Return the dense features of images [B,S,S,3] in 0..1: maps whose hypercolumns they are."""
        raise NotImplementedError

    # -- what it has by that ------------------------------------------------------------------------------------------

    @property
    def _geometry(self):
        return self.view.geometry(self.frame_size, STRIDE, self.dtype)

    @property
    def _side(self) -> int:
        return self._geometry.heat[0]

    def no_parts(self, num_images: int, maps) -> Parts:
        """Return the parts that are known before the first round, of features of the shapes `maps`."""
        zeros = lambda *shape: jnp.zeros(shape, layers.wide(self.dtype))
        channels = sum(level.shape[-1] for level in maps)
        labels = Labels(zeros(num_images, self.k, 2), zeros(num_images, self.k))
        return Parts(jnp.int32(0), zeros(self.k, channels), labels)

    def dense(self, state, frozen, images):
        return self.features(state, frozen, images.astype(layers.wide(self.dtype)) / 255)

    def round_at(self, step):
        every = self.clusters.round_every
        due = step == self.steps or (every and step > 0 and step % every == 0)
        return Round(passes=2) if due else None

    def observe(self, state, frozen, batch, rng):
        maps = self.features(state, frozen, self._geometry.look(batch["image"]))
        drawn = self.drawn(rng, batch["index"], state)
        described = keypoints.l2_normalize(hypercolumns.at_cells(maps, self._side, drawn))
        return Seen(described, *self._place(state.aux.parts, maps))

    def refresh(self, state, frozen, bank, rng):
        parts, seen = state.aux.parts, bank.values
        x, real = flatten(seen.descriptors, jnp.broadcast_to(bank.real[..., None], seen.descriptors.shape[:-1]))
        options = dict(mask=real, iterations=self.clusters.iterations, spherical=True)
        # The first pass of a round clusters, and the second places. Rounds after the first go on from its clusters.
        count = parts.passes
        found = lambda: kmeans(x, self.k, rng=rng, **options).centroids
        again = lambda: kmeans(x, self.k, init=parts.centroids, **options).centroids
        branch = jnp.where(count % 2 == 1, 0, jnp.where(count == 0, 1, 2))
        centroids = jax.lax.switch(branch, (lambda: parts.centroids, found, again))
        num_images = len(parts.labels.xy)
        score = jnp.where(bank.real[..., None], seen.score, 0)
        labels = Labels(image_table(bank, seen.xy, num_images), image_table(bank, score, num_images))
        labels = jax.tree.map(lambda new, old: jnp.where(count % 2 == 1, new, old), labels, parts.labels)
        return state.replace(aux=state.aux._replace(parts=Parts(count + 1, centroids, labels)))

    def predict(self, state, frozen, images):
        xy, score = self._place(state.aux.parts, self.features(state, frozen, self._geometry.look(images)))
        return Prediction(xy.astype(jnp.float32), score.astype(jnp.float32))

    def describe(self, state, frozen, images):
        maps = self.features(state, frozen, self._geometry.look(images))
        similar = self._similar(state.aux.parts, maps)
        cells = jnp.argmax(similar.reshape(len(similar), -1, self.k), 1)
        described = keypoints.l2_normalize(hypercolumns.at_cells(maps, self._side, cells))
        numbers = jnp.broadcast_to(jnp.arange(self.k, dtype=jnp.int32), cells.shape)
        return Described(described, numbers, jnp.broadcast_to(state.aux.parts.passes > 0, cells.shape))

    def heatmaps(self, state, frozen, images):
        seen = self._geometry.look(images)
        similar = self._similar(state.aux.parts, self.features(state, frozen, seen))
        return color.to_uint8(seen), jnp.maximum(similar, 0)

    def drawn(self, rng, index, state):
        """Draw random cells [B,P] int32 of images, by the key of the pass and their rows [B]."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, index)
        cells = jnp.asarray(np.flatnonzero(self._inside()), jnp.int32)
        return cells[jax.vmap(lambda key: jax.random.randint(key, (self._kept(state),), 0, len(cells)))(keys)]

    def _kept(self, state) -> int:
        """Number of cells of an image whose descriptors are kept; all of them if they fit."""
        parts = state.aux.parts
        width, each = parts.centroids.shape[1], parts.centroids.dtype.itemsize
        fit = int(self.clusters.bank_gib * 2**30) // (len(parts.labels.xy) * width * each)
        return min(self.clusters.pixels, max(fit, 1))

    def _inside(self):
        """Cells [side,side] in which landmarks are searched; at least the middle ones."""
        grid = coordinates.to_unit(coordinates.pixel_grid(self._side, self._side), (self._side, self._side))
        inside = (abs(grid) <= self.clusters.roi).all(-1)
        return inside if inside.any() else (abs(grid) <= 1 / self._side).all(-1)

    def _similar(self, parts: Parts, maps) -> jax.Array:
        """Cosine of every cell with every centroid, [B,side,side,K]; -1 outside of where landmarks are searched."""
        kernels, start = [], 0
        for level in maps:
            kernels.append(parts.centroids[:, start : start + level.shape[-1]].T)
            start += level.shape[-1]
        length = jnp.sqrt(hypercolumns.squared_norms(maps, self._side))[..., None]
        cosine = hypercolumns.linear(maps, kernels, self._side) / jnp.maximum(length, 1e-12)
        return jnp.where(jnp.asarray(self._inside())[..., None], cosine, -1)

    def _place(self, parts: Parts, maps):
        """The landmarks xy [B,K,2] in pixels of the frame, and scores [B,K], 0 before the first clusters."""
        cells, cosine = heatmaps.peak(self._similar(parts, maps), refine=False)
        score = jnp.where(parts.passes > 0, jnp.clip(cosine, 1e-3, 1), 0)
        return self._geometry.to_frame(cells.astype(layers.wide(self.dtype))), score
