"""Self-training correspondence, extended: K landmarks, and the mirrored partner of each.

Mallis et al., "From Keypoints to Object Landmarks via Self-Training Correspondence", TPAMI 2024, as its published code
has it. It differs from the first paper (`self_training.py`) in these steps; what they share is in
`self_training_common.py`.

    Keypoints        1) generic keypoints of one scale; of those that are like others the surest M, and no clusters:
    (`self_training`)   the stage of the first paper, with assignment=none

    Correspondence   2) the network and the two losses of the first paper; until the first round an example is one
    (stage 1)           image twice, since no keypoint of another image is known to correspond
                     3) contrastive loss: a keypoint near itself in the other view; apart from the other keypoints of
                        its view, and from random cells of it
                     4) every round: detect; describe each keypoint in the image, and in the mirror image
                     5) k-means of both kinds of descriptors into K clusters, the landmarks. The cluster of a landmark's
                        mirrored descriptor is its partner
                     6) k-means of the keypoints that landmarks keep into M clusters, which are trained on. From then on
                        views are mirrored at random: a keypoint then has the number of its mirrored cluster

    Landmarks        7) K heatmaps, from the network of stage 1; every map counts, and there is no merging
    (stage 2)        8) in a mirrored view landmark k is learned as its partner; a black square hides a part of views
                     9) a prediction is the mean of a view's maps and its mirror image's; no visibility threshold
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from uld_jax import optimizers
from uld_jax.bank import Labels, by_batch, image_table, label_table
from uld_jax.clustering import assignment
from uld_jax.clustering.kmeans import kmeans
from uld_jax.hyperparameters import Positive, PositiveInt
from uld_jax.method import Clustering, Need, TrainState
from uld_jax.methods import self_training_common as common
from uld_jax.methods.self_training import DESCRIPTOR_WEIGHT, Clusters, Contrast, map_loss
from uld_jax.methods.self_training_common import Detection, Merged, Recovered, Trained, Views
from uld_jax.methods.shared import Rmsprop, descend, region_tables, take, take_flips, take_labels
from uld_jax.models import layers
from uld_jax.ops import color, contrast, heatmaps, keypoints, warp
from uld_jax.ops.on_object import on_object

BACKGROUND = 128  # random cells a view that keypoints must be apart from (published code)
APART = 5.7  # distance in heatmap pixels from which two cells of a view must be apart (published code)
HEAD = ("l_0", "bn_end0", "conv_last0", "top_m_0")  # layers of stage 2 that learn at `head_rate`


class Seen(NamedTuple):
    """Keypoints that a pass collects.

    Attributes:
      xy: [B,P,2] in pixels of the frame.
      mask: [B,P] bool, False in empty slots.
      described: [B,P,D] descriptors of length 1; 0 in empty slots.
      described_mirrored: [B,P,D], those of the same keypoints in the mirror image.
    """

    xy: jax.Array
    mask: jax.Array
    described: jax.Array
    described_mirrored: jax.Array


class TwoClusterings(NamedTuple):
    """Clusters that keypoints are assigned to.

    Attributes:
      landmarks: K clusters.
      training: M clusters of the keypoints that those keep.
    """

    landmarks: Clusters
    training: Clusters


class Placed(NamedTuple):
    """Keypoints among both kinds of clusters.

    Attributes:
      xy, mask: as in `Seen`.
      slots: [B,M] int32, the keypoint that has each cluster that is trained on; -1 where the image does not use it.
      mirrored: [B,M] int32, the cluster of that keypoint in the mirror image.
      landmarks, flipped: [B,K] int32, the same two of the landmarks.
    """

    xy: jax.Array
    mask: jax.Array
    slots: jax.Array
    mirrored: jax.Array
    landmarks: jax.Array
    flipped: jax.Array


def unknown(num_images: int, clusters: int, k: int, size: int, dtype) -> Recovered:
    """Return the state before anything is known.

    `centroids` and `limits` are of the K landmarks. Beside them it has
      mirrored: [N,M] int32, the cluster of a label in the mirror image.
      landmarks: [N,K] labels, which stage 2 learns from.
      flips: [K] int32, the mirrored partner of a landmark.
    """
    empty = common.unknown(num_images, clusters, size, dtype)
    return empty._replace(
        centroids=jnp.zeros((k, size), dtype),
        limits=jnp.zeros(k, dtype),
        mirrored=jnp.zeros((num_images, clusters), jnp.int32),
        landmarks=common.no_labels(num_images, k, dtype),
        flips=jnp.zeros(k, jnp.int32),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correspondence(Trained, Clustering):
    """Stage 1: keypoints, their landmarks, and which landmarks mirror one another (steps 2 to 6).

    It has 200,000 steps in the published code.

    Attributes, besides those of `Trained`:
      k: K, number of landmarks.
      pairs: `clusters`, or `augmented`: two views of one image alone, no clustering in training.
      descriptor_size: D.
      warmup: steps before the first clustering.
      round_every: steps between clusterings.
      clusters: M, those that are trained on, as many as the stage before has slots.
      restarts: of both clusterings from other first centroids, of which the best is kept; 10 in the published code.
      detection: of a round, and of a prediction.
      region: as in `self_training.Correspondence`.
      contrast: the contrastive loss.
      bank_gib: as in `self_training.Keypoints`.
    """

    LEARNS_FROM = (Need("labels", "keypoints in clusters, self_training.Keypoints"),)

    needs_partner = True

    k: int
    pairs: Literal["clusters", "augmented"] = "clusters"
    descriptor_size: int = 256
    warmup: int = 30_000
    round_every: PositiveInt = 5_000
    clusters: PositiveInt = 100
    restarts: PositiveInt = 10
    detection: Detection = Detection(threshold=0.15, nms=2, subpixel="quarter")
    region: Literal["none", "box", "mask"] = "none"
    contrast: Contrast = Contrast(hinge="distance")
    optimizer: Rmsprop = Rmsprop(1e-4, "steps", (150_000, 180_000))
    bank_gib: Positive = 4.0

    @property
    def room(self) -> int:
        """K, slots of a prediction."""
        return self.k

    @property
    def _net(self):
        return common.network(self)

    @property
    def _optimizer(self):
        return self.optimizer.transform(self.steps, self.warmup, self.round_every)

    def side_tables(self):
        return region_tables(self.region, self.frame_size)

    def init(self, rng, batch, frozen, start):
        params = common.new_network(self._net, self._geometry, rng)
        aux = unknown(start.num_images, self.clusters, self.k, self.descriptor_size, layers.wide(self.dtype))
        aux = common.learn_from(self, aux, start)
        if self.converted and not start.shapes_only:
            required = not self.learns
            params, aux = common.start_from_checkpoint(frozen["mallis"], params, aux, centroids_required=required)
        return TrainState(step=jnp.int32(0), params=params, opt_state=self._optimizer.init(params), aux=aux)

    def train_step(self, state, frozen, batch, rng):
        aux, keys = state.aux, common.draw_keys(rng, batch["index"])
        # Step 2) One image twice, until keypoints of several are known to correspond.
        clustered = False if self.pairs == "augmented" else aux.round > 0
        other = jax.vmap(jax.random.bernoulli)(keys.other) & clustered
        images, index = common.pair_up(batch, other)
        labels = jax.tree.map(lambda table: table[index], aux.labels)
        # Step 6) Mirrored views, whose keypoints have other numbers.
        flips = jax.vmap(jax.random.bernoulli)(keys.flips) & (aux.round > 0)
        warps = self.augment.uniform_warps(keys.warps, self.view.zoom, self.dtype)
        warps = jax.vmap(warp.mirrored)(warps, flips)
        views = common.make_views(self, images, labels, warps, keys)
        views = views._replace(number=jnp.where(flips[:, None], aux.mirrored[index], views.number))
        return descend(state, self._loss, views, self._optimizer)

    def _loss(self, params, views: Views):
        out = self._net.apply({"params": params}, views.seen)
        logits, maps = out.logits.astype(views.cells.dtype), out.descriptors.astype(views.cells.dtype)
        detector = map_loss(logits, views, "pixel")
        # Step 3)
        described, at = self.contrast.read(maps, views.cells, views.there)
        both, same = common.pairs_of(views.there, views.number)
        square = contrast.square_distances(described[0::2], described[1::2])
        cells = random_cells(views.keys, BACKGROUND, maps.shape[1:3], at.dtype)
        total, count = within_views(self.contrast, maps, described, at, views.there, cells, APART)
        total, count = jnp.sum(jnp.where(same, square, 0)) + total, jnp.sum(same) + count
        contrastive = total / jnp.maximum(count, 1)
        metrics = {"detector": detector, "contrast": contrastive} | common.contrast_metrics(square, both, same)
        return detector + DESCRIPTOR_WEIGHT * contrastive, metrics

    def round_at(self, step):
        return common.round_of_stage1(step, self.steps, self.warmup, self.round_every, self.pairs)

    def observe(self, state, frozen, batch, rng):
        # Step 4)
        geometry, look = self._geometry, self._geometry.look(batch["image"])
        maps = self._net.apply({"params": state.params}, look)
        xy, _, mask = self.detection.detect(maps)
        points = geometry.to_frame(xy)
        mask &= on_object(points, self.frame_size, batch.get("boxes"), batch.get("masks"))
        opposite = jnp.stack([geometry.heat[1] - 1 - xy[..., 0], xy[..., 1]], -1)
        mirrored = self._net.apply({"params": state.params}, look[:, :, ::-1])
        described, opposite = common.describe_at(maps, xy, mask), common.describe_at(mirrored, opposite, mask)
        return Seen(points, mask, described, opposite)

    def form(self, state, frozen, bank, rng):
        seen = bank.values
        first, second = jax.random.split(rng)
        both = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in (seen.described, seen.described_mirrored)])

        def clusters(number, key, mask):
            found = kmeans(both, number, rng=key, mask=jnp.tile(mask.reshape(-1), 2), restarts=self.restarts)
            limits = jnp.where(found.counts > 0, jnp.asarray(jnp.finfo(both.dtype).max), 0)
            return Clusters(found.centroids, limits)

        landmarks = clusters(self.k, first, seen.mask)  # step 5)
        keep = lambda seen: kept(seen.mask, place_in(landmarks, seen)[0])
        return TwoClusterings(landmarks, clusters(self.clusters, second, by_batch(keep, seen)))  # step 6)

    def locate(self, state, found, seen):
        landmarks, flipped = place_in(found.landmarks, seen)
        some = seen._replace(mask=kept(seen.mask, landmarks))
        return Placed(seen.xy, seen.mask, *place_in(found.training, some), landmarks, flipped)

    def settle(self, state, found, bank):
        placed, total = bank.values, len(state.aux.labels.score)
        landmarks = label_table(bank, placed.xy, placed.landmarks, total)
        pairs = (placed.landmarks >= 0)[..., None] & (placed.flipped[..., None] == jnp.arange(self.k))
        flips = jnp.argmax(jnp.sum(pairs, (0, 1)), -1).astype(jnp.int32)
        labels = label_table(bank, placed.xy, placed.slots, total)
        aux = state.aux._replace(
            round=state.aux.round + 1,
            centroids=found.landmarks.centroids,
            limits=found.landmarks.limits,
            labels=labels,
            fresh=labels.score > 0,
            mirrored=image_table(bank, placed.mirrored, total).astype(jnp.int32),
            landmarks=landmarks,
            flips=flips,
            counts=common.count(placed.mask, landmarks, self.detection.most),
        )
        return state.replace(aux=aux)

    def summary(self, state):
        return state.aux.counts._asdict()

    def predict(self, state, frozen, images):
        xy, described, mask = common.keypoints_of(self, state, images)
        return common.predicted(xy, described, mask, state.aux, "nearest")

    def describe(self, state, frozen, images):
        _, described, mask = common.keypoints_of(self, state, images)
        return common.described_clusters(described, mask, state.aux, "nearest")

    def heatmaps(self, state, frozen, images):
        return common.confidence_maps(self, state, images)


def random_cells(keys, number: int, heat, dtype):
    """Random cells [2B,number,2] of maps of (h, w) cells, by keys [2B]; none of the first row or column."""
    draw = lambda key: jax.random.randint(jax.random.fold_in(key, 1), (number, 2), 1, min(heat))
    return jax.vmap(draw)(keys).astype(dtype)


def within_views(loss: Contrast, maps, described, at, there, cells, apart: float):
    """Return the sum of the loss over pairs of a view that must be apart, and the number of these pairs (step 3).

    They are pairs of two keypoints, and of a keypoint and a random cell, farther from one another than `apart`, of
    views with three keypoints or more.

    Args:
      loss: whose `apart` it is.
      maps: [2B,h,w,D] descriptors.
      described: [2B,M,D] those of keypoints, read `at` [2B,M,2].
      there: [2B,M] bool, which keypoints are there.
      cells: [2B,R,2] random ones.
      apart: in cells.
    """
    far = lambda x, y: jnp.sum((x[:, :, None] - y[:, None]) ** 2, -1) > apart**2
    upper = jnp.triu(jnp.ones((there.shape[1], there.shape[1]), bool), 1)
    several = (jnp.sum(there, -1) > 2)[:, None, None]
    known = there[:, :, None] & there[:, None] & upper & far(at, at) & several
    beside = there[:, :, None] & far(at, cells) & several
    total = jnp.sum(jnp.where(known, loss.apart(contrast.square_distances(described, described)), 0))
    others = contrast.square_distances(described, keypoints.sample(maps, cells))
    return total + jnp.sum(jnp.where(beside, loss.apart(others), 0)), jnp.sum(known) + jnp.sum(beside)


def place_in(clusters: Clusters, seen: Seen):
    """Return the keypoint [B,C] of each cluster, -1 for none, and the keypoint's cluster [B,C] in the mirror image."""
    slots = assignment.assign(seen.described, seen.mask, *clusters, "nearest").slots
    cost = assignment.squared_distances(seen.described_mirrored, clusters.centroids, seen.mask)
    mirrored = jnp.argmin(jnp.where(clusters.limits > 0, cost, jnp.inf), -1)
    return slots, keypoints.take_slots(mirrored, slots)


def kept(mask, slots):
    """Mask [B,P] of keypoints that stand for a cluster, slots [B,C], in images that have several."""
    some = jnp.any((slots[..., None] == jnp.arange(mask.shape[-1])), -2) & mask
    return some & (jnp.sum(some, -1, keepdims=True) >= 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Landmarks(Trained):
    """Stage 2: K heatmaps (steps 7 to 9).

    It has 200,000 steps in the published code.

    Attributes, besides those of `Trained`:
      k: K, number of landmarks.
      sigma: of the Gaussians in target maps, in heatmap pixels; 0.75 in the published code.
      mirroring: `exact`; or `published`. The published code mirrors points by x' = 255 - x in 256 pixels that it
        divides by 4 then, so that of a mirrored view it learns to see a landmark 3/4 of a cell right of where it is;
        maps of a mirror image it shifts back by a cell. One makes up for the other, and a network that has learned with
        the first needs the second. `auto` is `published` for `start=checkpoint`, and else `exact`. In both the label of
        landmark k is, in a mirrored view, one of `flips[k]`.
      decode: `argmax`, the highest cell (published code), or `parabola`, between cells.
      cutout: side of a black square in the view, with probability 1/2, as a fraction of its side; 0 for none.
      optimizer: of all layers but the last.
      head_rate: learning rate of the last layers; 0 for that of the others.
      accumulate_steps: pieces of a batch.
    """

    LEARNS_FROM = (
        Need("landmarks", "stage 1 of the extended variant, self_training_extended.Correspondence"),
        Need("flips", "stage 1 of the extended variant, self_training_extended.Correspondence", of_images=False),
        Need("network", "stage 1", of_images=False, required=False),
    )

    k: int
    sigma: Positive = 0.75
    mirroring: Literal["auto", "exact", "published"] = "auto"
    decode: Literal["argmax", "parabola"] = "argmax"
    cutout: float = 80 / 256
    optimizer: Rmsprop = Rmsprop(1e-5, "steps", (50_000, 70_000))
    head_rate: float = 1e-4
    accumulate_steps: int = 1

    @property
    def room(self) -> int:
        """K, slots of a prediction."""
        return self.k

    @property
    def _mirrors_as_published(self) -> bool:
        return self.converted if self.mirroring == "auto" else self.mirroring == "published"

    @property
    def _net(self):
        return common.heatmap_network(self, self.k)

    @property
    def _optimizer(self):
        rest = self.optimizer.transform(self.steps)
        if not self.head_rate:
            return rest
        head = dataclasses.replace(self.optimizer, learning_rate=self.head_rate).transform(self.steps)
        return optimizers.groups({"head": head, "rest": rest}, lambda path: "head" if path[0] in HEAD else "rest")

    def init(self, rng, batch, frozen, start):
        labels, flips = self._labels(start)
        params = common.new_network(self._net, self._geometry, rng, train=False)
        active = jnp.sum(labels.score > 0, 0) > 0
        if self.converted:
            if not start.shapes_only:
                given = frozen["mallis"]
                params, active = common.second_from_checkpoint(given, params, active)
                flips = take_flips(given, flips, required=not self.learns)
        else:
            # Step 7) The network of stage 1 goes on, with new last layers.
            params = common.go_on_with(take(self, start, "network"), params, self.k, rng, start)
        labels = jax.tree.map(lambda x: x.astype(layers.wide(self.dtype)), labels)
        aux = Merged(round=jnp.int32(0), active=active, labels=labels, flips=flips)
        return TrainState(step=jnp.int32(0), params=params, opt_state=self._optimizer.init(params), aux=aux)

    def _labels(self, start) -> tuple[Labels, jax.Array]:
        """The landmarks and their partners that stage 1 left; empty ones where nothing is learned."""
        labels = take_labels(self, start, self.k, "landmarks")
        if labels is None:
            return common.no_labels(start.num_images, self.k, jnp.float32), jnp.zeros(self.k, jnp.int32)
        return labels, take(self, start, "flips")

    def train_step(self, state, frozen, batch, rng):
        aux, geometry = state.aux, self._geometry
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        warped, coloured, flipped, cut = jnp.unstack(jax.vmap(lambda key: jax.random.split(key, 4))(keys), axis=1)
        labels = jax.tree.map(lambda table: table[batch["index"]], aux.labels)
        flips = jax.vmap(jax.random.bernoulli)(flipped)
        warps = self.augment.uniform_warps(warped, self.view.zoom, self.dtype)
        warps = jax.vmap(warp.mirrored)(warps, flips)
        seen = color.mildly_changed(coloured, geometry.look(batch["image"], warps), self.augment.colour)
        if self.cutout:
            seen = jax.vmap(cut_out, (0, 0, None))(cut, seen, self.cutout)
        there, cells = (labels.score > 0) & aux.active, geometry.to_cells(labels.xy, warps)
        # Step 8)
        number = jnp.broadcast_to(jnp.arange(self.k, dtype=jnp.int32), there.shape)
        number = jnp.where(flips[:, None], aux.flips, number)
        if self._mirrors_as_published:
            cells = cells.at[..., 0].add(flips[:, None] * (1 - 1 / self.net.downsample))
        cells = jnp.where(there[..., None], cells, -100)
        examples = {"seen": seen, "cells": cells, "there": there, "number": number}

        def loss(params, examples):
            logits = self._net.apply({"params": params}, examples["seen"], train=True).logits
            cells, there, number = examples["cells"], examples["there"], examples["number"]
            maps = heatmaps.renumbered(heatmaps.gaussian(cells, geometry.heat, self.sigma), number)
            labelled = jnp.any(there[..., None] & (number[..., None] == jnp.arange(self.k)), 1)
            found, _ = heatmaps.peak(jax.lax.stop_gradient(logits), refine=False)
            found = keypoints.take_slots(found, number)
            metrics = {"distance_px": common.peak_distance(self, found, cells, there)}
            # Step 7) Maps without a label count as zeros in the mean.
            error = jnp.where(labelled, common.map_errors(logits, maps), 0)
            return 0.5 * jnp.mean(error), metrics

        state, metrics = descend(state, loss, examples, self._optimizer, self.accumulate_steps)
        return state, metrics | {"landmarks": jnp.sum(aux.active, dtype=jnp.float32)}

    def landmarks(self, state):
        return state.aux.active

    def predict(self, state, frozen, images):
        maps = self._maps(state, self._geometry.look(images))
        cells, score = heatmaps.peak(maps, refine=self.decode == "parabola")
        return common.seen_landmarks(self._geometry.to_frame(cells), score, state.aux.active)

    def heatmaps(self, state, frozen, images):
        seen = self._geometry.look(images)
        return color.to_uint8(seen), jnp.maximum(self._maps(state, seen), 0)

    def _maps(self, state, seen):
        """The mean of the maps of views [B,h,w,3] and of their mirror images (step 9)."""
        maps = self._net.apply({"params": state.params}, seen, train=False).logits
        mirrored = self._net.apply({"params": state.params}, seen[:, :, ::-1], train=False).logits
        return heatmaps.mean_with_mirrored(maps, mirrored, state.aux.flips, shift=self._mirrors_as_published)


def cut_out(key, image, fraction: float):
    """Hide ONE view [h,w,3] behind a black square inside it, with probability 1/2; its side is a fraction of h."""
    height, width = image.shape[:2]
    side = max(1, round(fraction * height))
    coin, place = jax.random.split(key)
    corner = jax.random.randint(place, (2,), 0, jnp.array([height - side + 1, width - side + 1]))
    down, across = jnp.arange(height)[:, None] - corner[0], jnp.arange(width) - corner[1]
    inside = (down >= 0) & (down < side) & (across >= 0) & (across < side) & jax.random.bernoulli(coin)
    return jnp.where(inside[..., None], 0, image)
