"""Self-training correspondence: from generic keypoints to a detector of K object landmarks.

Mallis et al., "Unsupervised Learning of Object Landmarks via Self-Training Correspondence", NeurIPS 2020.

    Keypoints        1) keypoints of a generic detector at several scales, greedy suppression    (section 4)
    (no training)    2) those outside the object's box or mask, or unlike all others, are dropped
                     3) k-means of their descriptors into M clusters
                     4) an image uses a cluster once at most; what is far from its centroid is dropped  (eq. 1)

    Correspondence   5) one network: a map of where keypoints are, and a descriptor at every cell     (section 3.2)
    (stage 1)        6) squared error of the map; contrastive loss over pairs from two images, or views of one  (eq. 2)
                     7) every round: detect, add what was known, describe; steps 3, 4 from the last round's centroids

    Landmarks        8) M heatmaps; squared error for those that have a label in the image             (section 3.3)
    (stage 2)        9) clusters whose heatmaps peak at the same place become one: K are left

A label table has one slot a cluster: [N,M] points, since an image uses a cluster once at most. Where the paper and its
published code part, the paper is the default and the published code a switch. The later version of the method, in
which K is given, is in `self_training_extended.py`; what both need is in `self_training_common.py`.
"""

import dataclasses
import logging
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.backbones import build
from uld_jax.bank import Labels, by_batch, flatten, image_table, label_table, lookup
from uld_jax.clustering import assignment, background, merge, outliers
from uld_jax.clustering.kmeans import kmeans
from uld_jax.errors import UserError
from uld_jax.hyperparameters import Positive, PositiveInt, Share
from uld_jax.method import Clustering, Need, Prediction, Round, TrainState
from uld_jax.methods import generic_keypoints
from uld_jax.methods import self_training_common as common
from uld_jax.methods.self_training_common import Detection, Merged, Trained, Views
from uld_jax.methods.shared import Augment, View, descend, region_tables, take, take_labels
from uld_jax.models import layers
from uld_jax.ops import color, contrast, heatmaps, keypoints, nms
from uld_jax.ops.on_object import on_object

BACKGROUND_CLUSTERS = (100, 250)  # of `background=clusters`, inside and outside (published code)
CUT = 1.0  # step 4) keypoints beyond the mean and so many deviations of squared distances are dropped (published code)
DESCRIPTOR_WEIGHT = 10.0  # of the contrastive loss, beside that of the map (published code)
MARGIN = 0.8  # m of eq. 2 (published code)
MERGE_SHARE = 0.7  # of the rarer cluster's images, above which two clusters coincide (section 4)
THRESHOLD = 0.2  # height of a heatmap's peak below which its landmark is not visible (published code)
MERGE_RADIUS = 1.425  # in pixels of a 64-pixel map, exclusive: the pixel itself and its eight neighbours (step 9)


class Seen(NamedTuple):
    """Keypoints that a pass collects.

    Attributes:
      xy: [B,P,2] in pixels of the frame.
      mask: [B,P] bool, False in empty slots.
      described: [B,P,D] descriptors of length 1; 0 in empty slots.
      inside: [B,P] bool, whether a keypoint lies on the object, where background is told by clusters; None else.
    """

    xy: jax.Array
    mask: jax.Array
    described: jax.Array
    inside: jax.Array | None = None


class Clusters(NamedTuple):
    """Clusters that an image's keypoints are assigned to.

    Attributes:
      centroids, limits: as in `Recovered`.
    """

    centroids: jax.Array
    limits: jax.Array


class FirstClusters(NamedTuple):
    """Clusters of generic keypoints, of which some are dropped before.

    Attributes:
      centroids, limits: as in `Recovered`.
      sides: clusters on the object and beside it, see `clustering/background.py`; or ().
      crowd: tells keypoints that are unlike all others; or None.
    """

    centroids: jax.Array
    limits: jax.Array
    sides: tuple
    crowd: outliers.Crowd | None


class Placed(NamedTuple):
    """Keypoints among the clusters.

    Attributes:
      xy, mask: as in `Seen`.
      slots: [B,M] int32, the keypoint that has each cluster; -1 where the image does not use it.
    """

    xy: jax.Array
    mask: jax.Array
    slots: jax.Array


class Peaks(NamedTuple):
    """Highest points of heatmaps.

    Attributes:
      xy: [B,M,2] in pixels of the frame.
      mask: [B,M] bool, whether the peak is high enough, and of a landmark in use.
    """

    xy: jax.Array
    mask: jax.Array


def limits_of(described, mask, centroids, cut: float):
    """Limits [M]: mean plus `cut` standard deviations of squared distances to the nearest centroid; 0 for none."""
    near = by_batch(lambda x, mask: assignment.nearest_centroid(x, mask, centroids), described, mask)
    return assignment.nearest_limits(*near, len(centroids), cut)


@dataclasses.dataclass(frozen=True)
class Keypoints(Clustering):
    """Generic keypoints and first clusters (steps 1 to 4); a stage of zero steps.

    Attributes:
      frame_size: side of the frame in pixels.
      generic: the generic detector.
      view: of the frame.
      most: P, keypoints an image; the surest are kept.
      region: keypoints outside the object are dropped: by the csv's `box` (section 4) or `mask` columns, or `none`.
      background: `clusters` drops what resembles keypoints outside the box more than those inside (Human3.6M in the
        published code), both in clusters of their own.
      points: a csv `file,x0,y0,...` of keypoints of the training images that are used in place of detected ones, in
        pixels of the files.
      outliers: share of keypoints, the farthest from their neighbours, that is dropped (section 4; 0.4 in the published
        code).
      neighbours: of a keypoint, itself included, whose median distance counts.
      clusters: M; 100 for faces, 250 for bodies.
      assignment: `hungarian` (eq. 1); `nearest`; or `none`, no clusters but the surest M keypoints (extended variant).
      bank_gib: descriptors kept of a pass, in GiB; of a data set with more, clusters are formed from a sample of its
        images (`Clustering`).
      weights: folders of converted weights by kind.
    """

    frame_size: int
    generic: generic_keypoints.Generic = generic_keypoints.Generic()
    view: View = View()
    most: PositiveInt = 128
    region: Literal["none", "box", "mask"] = "none"
    background: Literal["none", "clusters"] = "none"
    points: str = ""
    outliers: Share = 0.4
    neighbours: PositiveInt = 100
    clusters: PositiveInt = 100
    assignment: Literal["hungarian", "nearest", "none"] = "hungarian"
    bank_gib: Positive = 4.0
    weights: Any = ()

    def __post_init__(self):
        super().__post_init__()
        if self.background == "clusters" and self.region == "none":
            raise UserError("background=clusters needs to know the object; set region=box or mask")

    @property
    def room(self) -> int:
        """M, slots of a prediction."""
        return self.clusters

    @property
    def _detector(self) -> generic_keypoints.Detector:
        return self.generic.chosen(self.weights)

    @property
    def weight_kinds(self):
        """See `method.Stage`."""
        return build.backbone_kinds(self._detector.backbone)

    def frozen(self, purpose="train"):
        if purpose == "shapes":
            return {}
        if self.generic.detector == "auto":
            name = self.generic.name(self.weights)
            given = "" if name != "corners" else "no --config.weights.superpoint or .r2d2: "
            logging.warning("keypoints: %sthe generic detector is %s", given, name)
        return {"detector": self._detector.build(self.weights).load()}

    def side_tables(self):
        points = {"keypoints": (self.points, self.most)} if self.points else {}
        return region_tables(self.region, self.frame_size) | points

    def init(self, rng, batch, frozen, start):
        size = self._detector.build().spec.taps[0].channels
        return TrainState(step=jnp.int32(0), aux=common.unknown(start.num_images, self.clusters, size, jnp.float32))

    def round_at(self, step):
        return Round(passes=1) if step == 0 else None

    def observe(self, state, frozen, batch, rng):
        return self._observe(frozen, batch["image"], batch)

    def _observe(self, frozen, images, known) -> Seen:
        """Keypoints of frames (steps 1, 2); `known` has the images' rows of `side_tables`."""
        # Step 1)
        backbone = self._detector.build(self.weights)
        options = dict(frame_size=self.frame_size, view=self.view, most=self.most, given=known.get("keypoints"))
        found = generic_keypoints.detect(self._detector, backbone, frozen["detector"], images, **options)
        xy, score, mask, described = found
        # Step 2) The box or the mask; what is unlike all others is dropped in `_clustered`.
        inside = on_object(xy, self.frame_size, known.get("boxes"), known.get("masks"))
        if self.background == "none":
            mask &= inside
        if xy.shape[1] > self.most:
            _, order = jax.lax.top_k(jnp.where(mask, score, -1), self.most)
            xy, mask, described, inside = (keypoints.take_slots(x, order) for x in (xy, mask, described, inside))
        described = jnp.where(mask[..., None], described, 0)
        return Seen(xy, mask, described, inside=None if self.background == "none" else inside)

    def refresh(self, state, frozen, bank, rng):
        seen, kept, found = self._clustered(state, bank, rng)
        slots = by_batch(lambda described, mask: self._slots(found, described, mask), seen.described, kept)
        return self.settle(state, found, bank._replace(values=Placed(seen.xy, seen.mask, slots)))

    def form(self, state, frozen, bank, rng):
        return self._clustered(state, bank, rng)[2]

    def locate(self, state, found, seen):
        if found.sides:
            seen = _foreground(found.sides, seen)
        kept = seen.mask
        if found.crowd is not None:
            flat = lambda x: x.reshape(-1, *x.shape[2:])
            near = outliers.near(found.crowd, flat(seen.described), flat(seen.mask), neighbours=self.neighbours)
            kept = near.reshape(seen.mask.shape)
        return Placed(seen.xy, seen.mask, self._slots(found, seen.described, kept))

    def settle(self, state, found, bank):
        placed, total = bank.values, len(state.aux.labels.score)
        labels = label_table(bank, placed.xy, placed.slots, total)
        aux = state.aux._replace(
            round=state.aux.round + 1,
            centroids=found.centroids,
            limits=found.limits,
            labels=labels,
            fresh=labels.score > 0,
            counts=common.count(placed.mask, labels, self.most),
        )
        return state.replace(aux=aux)

    def _clustered(self, state, bank, rng):
        """Keypoints without background, which of them [B,T,P] are like others, and the clusters of those."""
        seen, sides, crowd = bank.values, (), None
        if self.background != "none":
            rng, *keys = jax.random.split(rng, 3)
            sides = background.form(seen.described, seen.mask, seen.inside, keys, counts=BACKGROUND_CLUSTERS)
            # Batch by batch, as a product may round by the number of its rows.
            seen = by_batch(lambda seen: _foreground(sides, seen), seen)
        x, mask = flatten(seen.described, seen.mask)
        if self.outliers:  # step 2)
            # By a key that none of those is that k-means splits `rng` into.
            drawn_by = jax.random.fold_in(rng, 1 << 20)
            kept, crowd = outliers.fit(x, mask, share=self.outliers, neighbours=self.neighbours, rng=drawn_by)
            mask &= kept
        shaped = mask.reshape(seen.mask.shape)
        if self.assignment == "none":
            return seen, shaped, FirstClusters(state.aux.centroids, state.aux.limits, sides, crowd)
        # Step 3)
        centroids = kmeans(x, self.clusters, rng=rng, mask=mask).centroids
        limits = limits_of(seen.described, shaped, centroids, CUT)
        return seen, shaped, FirstClusters(centroids, limits, sides, crowd)

    def _slots(self, found, described, mask):
        """The keypoint [B,M] of each cluster (step 4); or without clusters, the first M keypoints."""
        if self.assignment != "none":
            return assignment.assign(described, mask, found.centroids, found.limits, self.assignment).slots
        order = jnp.argsort(~mask, axis=-1, stable=True)[..., : self.clusters]
        slots = jnp.where(jnp.take_along_axis(mask, order, -1), order, -1)
        return jnp.pad(slots, ((0, 0), (0, self.clusters - slots.shape[-1])), constant_values=-1)

    def summary(self, state):
        return state.aux.counts._asdict()

    def predict(self, state, frozen, images):
        seen = self._observe(frozen, images, {})
        if self.assignment == "none":
            shape = len(images), self.clusters
            return Prediction(jnp.zeros((*shape, 2)), jnp.zeros(shape))
        return common.predicted(seen.xy, seen.described, seen.mask, state.aux, self.assignment)


def _foreground(sides, seen: Seen) -> Seen:
    return seen._replace(mask=background.foreground(sides, seen.described, seen.mask, seen.inside))


# -- stage 1 ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Contrastive loss of stage 1.

    Attributes:
      hinge: of pairs that must be apart, `squared`: max(0, m - d^2) (eq. 2), or `distance`: max(0, m - d)^2 (published
        code).
      reading: descriptors between cells, `bilinear`; or at the nearest, `cell` (published code, in training).
    """

    hinge: Literal["squared", "distance"] = "squared"
    reading: Literal["bilinear", "cell"] = "bilinear"

    def apart(self, square):
        """Return the loss of squared distances d^2 of descriptors that must be apart."""
        if self.hinge == "squared":
            return jax.nn.relu(MARGIN - square)
        return jax.nn.relu(MARGIN - jnp.sqrt(square + 1e-9)) ** 2

    def read(self, maps, cells, there):
        """Descriptors [B,P,D] of maps [B,h,w,D] at cells [B,P,2], and where they were read; at (0, 0) if not there."""
        at = jnp.where(there[..., None], jnp.round(cells) if self.reading == "cell" else cells, 0)
        return keypoints.sample(maps, at), at


def map_loss(logits, views: Views, target: str):
    """Squared error of the map of where keypoints are (section 3.2): the sum of the two views' means.

    Args:
      logits: [2B,h,w].
      views: of these images.
      target: `gaussian`; or `pixel`, one cell a keypoint (published code).
    """
    sigma, places = (common.SIGMA, views.cells) if target == "gaussian" else (0.1, jnp.round(views.cells))
    maps = heatmaps.keypoint_map(places, views.there, logits.shape[1:3], sigma)
    error = jnp.mean((jax.nn.sigmoid(logits) - maps) ** 2, (1, 2))
    return 2 * keypoints.masked_mean(error, views.learned)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correspondence(Trained, Clustering):
    """Stage 1: where keypoints are, and which of them correspond (steps 5 to 7).

    It has 310,000 steps in the published code, at most 300,000 in the paper.

    Attributes, besides those of `Trained`:
      pairs: `clusters`, or `augmented`: two views of one image alone, no clustering in training (figure 2c).
      descriptor_size: D.
      warmup: steps before the first clustering of its own descriptors; 20,000.
      round_every: steps between clusterings; 10,000. `schedule=restarts` of the optimiser is a cosine in five plateaus
        a round (published code).
      clusters: M, that of the stage before.
      cut: keypoints beyond the mean and so many standard deviations of their cluster's squared distances are dropped;
        0 keeps all.
      memory: `two_rounds` adds the keypoints of the last round to those detected now (section 3.2); `all_rounds` all
        that were ever kept, which win over new ones (published code); `none`.
      seeding: of k-means, the last round's centroids, `previous` (section 4); or `random` (published code).
      detection: of a round, and of a prediction.
      region: as in `Keypoints`, of what rounds detect in the training images. A choice of ours; paper and published
        code have `none` here, where the network sees crops around the boxes and little else.
      target: of the map, `gaussian` (section 3.2) or `pixel`, a single one (published code).
      contrast: the contrastive loss.
      negatives: pairs of other clusters, `cross`: of both images (eq. 2); `shared`: clusters that both have (published
        code).
      least_points: an image with fewer labels is not learned from; 9 in the published code, which draws another in its
        place.
      bank_gib: as in `Keypoints`.
    """

    LEARNS_FROM = (Need("labels", "keypoints in clusters, self_training.Keypoints"),)

    needs_partner = True

    pairs: Literal["clusters", "augmented"] = "clusters"
    descriptor_size: int = 256
    warmup: int = 20_000
    round_every: PositiveInt = 10_000
    clusters: PositiveInt = 100
    cut: float = CUT
    memory: Literal["two_rounds", "all_rounds", "none"] = "two_rounds"
    seeding: Literal["previous", "random"] = "previous"
    detection: Detection = Detection()
    region: Literal["none", "box", "mask"] = "none"
    target: Literal["gaussian", "pixel"] = "gaussian"
    contrast: Contrast = Contrast()
    negatives: Literal["cross", "shared"] = "cross"
    least_points: int = 0
    bank_gib: Positive = 4.0

    @property
    def room(self) -> int:
        """M, slots of a prediction."""
        return self.clusters

    @property
    def _net(self):
        return common.network(self)  # step 5)

    @property
    def _optimizer(self):
        return self.optimizer.transform(self.steps, self.warmup, self.round_every)

    def side_tables(self):
        return region_tables(self.region, self.frame_size)

    def init(self, rng, batch, frozen, start):
        params = common.new_network(self._net, self._geometry, rng)
        aux = common.unknown(start.num_images, self.clusters, self.descriptor_size, layers.wide(self.dtype))
        aux = common.learn_from(self, aux, start)
        if self.converted and not start.shapes_only:
            required = not self.learns
            params, aux = common.start_from_checkpoint(frozen["mallis"], params, aux, centroids_required=required)
        return TrainState(step=jnp.int32(0), params=params, opt_state=self._optimizer.init(params), aux=aux)

    def train_step(self, state, frozen, batch, rng):
        keys = common.draw_keys(rng, batch["index"])
        # Step 6) Two images, or one image twice.
        other = jax.vmap(jax.random.bernoulli)(keys.other) & (self.pairs == "clusters")
        images, index = common.pair_up(batch, other)
        labels = jax.tree.map(lambda table: table[index], state.aux.labels)
        warps = self.augment.uniform_warps(keys.warps, self.view.zoom, self.dtype)
        views = common.make_views(self, images, labels, warps, keys, self.least_points)
        return descend(state, self._loss, views, self._optimizer)

    def _loss(self, params, views: Views):
        out = self._net.apply({"params": params}, views.seen)
        logits, maps = out.logits.astype(views.cells.dtype), out.descriptors.astype(views.cells.dtype)
        detector = map_loss(logits, views, self.target)
        described, _ = self.contrast.read(maps, views.cells, views.there)
        both, same = common.pairs_of(views.there, views.number)
        apart = negatives_of(both, same, self.negatives)
        # Eq. 2: the mean of d^2 of keypoints of one cluster, and of max(0, m - d^2) of those of two.
        square = contrast.square_distances(described[0::2], described[1::2])
        total = jnp.sum(jnp.where(same, square, 0)) + jnp.sum(jnp.where(apart, self.contrast.apart(square), 0))
        contrastive = total / jnp.maximum(jnp.sum(same) + jnp.sum(apart), 1)
        metrics = {"detector": detector, "contrast": contrastive} | common.contrast_metrics(square, both, same)
        return detector + DESCRIPTOR_WEIGHT * contrastive, metrics

    def round_at(self, step):
        return common.round_of_stage1(step, self.steps, self.warmup, self.round_every, self.pairs)

    def observe(self, state, frozen, batch, rng):
        # Step 7) Keypoints that are detected now, and those that were known.
        aux, images, geometry = state.aux, batch["image"], self._geometry
        maps = self._net.apply({"params": state.params}, geometry.look(images))
        xy, score, mask = self.detection.detect(maps)
        if self.memory != "none":
            known = jax.tree.map(lambda table: lookup(table, batch["index"]), aux.labels)
            old = known.score > 0
            if self.memory == "two_rounds":
                old &= lookup(aux.fresh, batch["index"])
            cells = geometry.to_cells(known.xy, geometry.still(len(images)))
            rank = 2.0 if self.memory == "all_rounds" else -2.0  # old keypoints win there; here they fill gaps
            xy, mask = jnp.concatenate([xy, cells], 1), jnp.concatenate([mask, old], 1)
            score = jnp.concatenate([score, jnp.full_like(known.score, rank)], 1)
            mask = nms.greedy_points(xy, score, mask, self.detection.nms)
        mask &= on_object(geometry.to_frame(xy), self.frame_size, batch.get("boxes"), batch.get("masks"))
        return Seen(geometry.to_frame(xy), mask, common.describe_at(maps, xy, mask))

    def form(self, state, frozen, bank, rng):
        # Step 3) again
        aux, seen = state.aux, bank.values
        x, mask = flatten(seen.described, seen.mask)
        seeded = lambda: kmeans(x, self.clusters, rng=rng, mask=mask).centroids
        warm = lambda: kmeans(x, self.clusters, init=aux.centroids, mask=mask).centroids
        first = aux.round == 0  # there are no centroids of these descriptors yet
        centroids = jax.lax.cond(first, seeded, warm) if self.seeding == "previous" else seeded()
        return Clusters(centroids, limits_of(seen.described, seen.mask, centroids, self.cut))

    def locate(self, state, found, seen):
        # Step 4) again
        slots = assignment.assign(seen.described, seen.mask, found.centroids, found.limits, "hungarian").slots
        return Placed(seen.xy, seen.mask, slots)

    def settle(self, state, found, bank):
        placed, slots, total = bank.values, bank.values.slots, len(state.aux.labels.score)
        most = self.detection.most  # slots of the keypoints detected now; those that were known come after them
        labels = label_table(bank, placed.xy, slots, total)
        aux = state.aux._replace(
            round=state.aux.round + 1,
            centroids=found.centroids,
            limits=found.limits,
            labels=labels,
            fresh=image_table(bank, (slots >= 0) & (slots < most), total),
            counts=common.count(placed.mask, labels, most),
        )
        return state.replace(aux=aux)

    def summary(self, state):
        return state.aux.counts._asdict()

    def predict(self, state, frozen, images):
        xy, described, mask = common.keypoints_of(self, state, images)
        return common.predicted(xy, described, mask, state.aux, "hungarian")

    def describe(self, state, frozen, images):
        _, described, mask = common.keypoints_of(self, state, images)
        return common.described_clusters(described, mask, state.aux, "hungarian")

    def heatmaps(self, state, frozen, images):
        return common.confidence_maps(self, state, images)


def negatives_of(both, same, which: Literal["cross", "shared"]):
    """Pairs [B,M,M] of keypoints of two images that must be apart, see `Correspondence.negatives`."""
    apart = both & ~same
    if which == "shared":
        apart &= jnp.any(same, 2)[:, :, None] & jnp.any(same, 1)[:, None]
    return apart


# -- stage 2 ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Landmarks(Trained):
    """Stage 2: one heatmap a cluster, and fewer and fewer of them (steps 8, 9).

    It has 80,000 steps in the published code, with a tenth of the learning rate at 50,000 and 65,000.

    Attributes, besides those of `Trained`:
      clusters: M, that of stage 1.
      sigma: of the Gaussians in target maps, in heatmap pixels; 0.75 in the published code.
      least_images: a cluster that is labelled in no more images is left out; 500 in the published code, 0 in the paper.
      merge_from, merge_every: steps; the first merging and those after it. In the published code 25,000, then every
        second pass over the data.
      decode: `argmax`, the highest cell (published code), or `parabola`, between cells.
      accumulate_steps: pieces of a batch.
    """

    LEARNS_FROM = (
        Need("labels", "stage 1, self_training.Correspondence"),
        Need("network", "stage 1", of_images=False, required=False),
    )

    clusters: PositiveInt = 100
    sigma: Positive = 0.75
    least_images: int = 0
    merge_from: int = 25_000
    merge_every: PositiveInt = 5_000
    decode: Literal["argmax", "parabola"] = "argmax"
    augment: Augment = Augment(40.0, 0.3, 0.05)
    accumulate_steps: int = 1

    @property
    def room(self) -> int:
        """M, slots of a prediction."""
        return self.clusters

    @property
    def _net(self):
        return common.heatmap_network(self, self.clusters)

    @property
    def _optimizer(self):
        return self.optimizer.transform(self.steps)

    def init(self, rng, batch, frozen, start):
        labels = self._labels(start)
        params = common.new_network(self._net, self._geometry, rng, train=False)
        active = jnp.sum(labels.score > 0, 0) > self.least_images
        if self.converted:
            if not start.shapes_only:
                params, active = common.second_from_checkpoint(frozen["mallis"], params, active)
        else:
            # Step 8) The network of stage 1 goes on, with new last layers.
            params = common.go_on_with(take(self, start, "network"), params, self.clusters, rng, start)
        labels = jax.tree.map(lambda x: x.astype(layers.wide(self.dtype)), labels)
        aux = Merged(round=jnp.int32(0), active=active, labels=labels, flips=None)
        return TrainState(step=jnp.int32(0), params=params, opt_state=self._optimizer.init(params), aux=aux)

    def _labels(self, start) -> Labels:
        """The labels that stage 1 left; empty ones where nothing is learned."""
        labels = take_labels(self, start, self.clusters)
        if labels is None:
            return common.no_labels(start.num_images, self.clusters, jnp.float32)
        if self.least_images >= start.num_images:
            raise UserError(
                f"{start.stage}.least_images={self.least_images} leaves out every cluster of {start.num_images} "
                "images; use a lower number"
            )
        return labels

    def train_step(self, state, frozen, batch, rng):
        aux, geometry = state.aux, self._geometry
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        warped, coloured = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
        warps = self.augment.uniform_warps(warped, self.view.zoom, self.dtype)
        labels = jax.tree.map(lambda table: table[batch["index"]], aux.labels)
        seen = color.mildly_changed(coloured, geometry.look(batch["image"], warps), self.augment.colour)
        # A label that the warp moves out of the view stands for an empty map: its landmark is not to be seen.
        there, cells = (labels.score > 0) & aux.active, geometry.to_cells(labels.xy, warps)
        examples = {"seen": seen, "cells": jnp.where(there[..., None], cells, -100), "there": there}

        def loss(params, examples):
            # Step 8)
            logits = self._net.apply({"params": params}, examples["seen"], train=True).logits
            cells, there = examples["cells"], examples["there"]
            error = common.map_errors(logits, heatmaps.gaussian(cells, geometry.heat, self.sigma))
            found, _ = heatmaps.peak(jax.lax.stop_gradient(logits), refine=False)
            metrics = {"distance_px": common.peak_distance(self, found, cells, there)}
            return keypoints.masked_mean(error, there), metrics

        state, metrics = descend(state, loss, examples, self._optimizer, self.accumulate_steps)
        return state, metrics | {"landmarks": jnp.sum(aux.active, dtype=jnp.float32)}

    def round_at(self, step):
        if not self.merge_from <= step < self.steps:
            return None
        return Round(passes=1) if (step - self.merge_from) % self.merge_every == 0 else None

    def observe(self, state, frozen, batch, rng):
        xy, score = self._peaks(state, batch["image"])
        return Peaks(xy, (score >= THRESHOLD) & state.aux.active)

    def refresh(self, state, frozen, bank, rng):
        # Step 9) In how many images do two heatmaps peak at the same place?
        aux = state.aux
        radius = MERGE_RADIUS * self.view.zoom * self.frame_size / 64

        def coincide(peaks):
            found = merge.colocation(peaks.xy, peaks.mask, radius)
            return jax.tree.map(lambda x: x[None], found)

        # One sum a batch, then their sum.
        each = jax.lax.map(coincide, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), bank.values))
        together = jax.tree.map(lambda x: jnp.sum(x, (0, 1)), each)
        population = jnp.sum(aux.labels.score > 0, 0)
        merged = merge.greedy_merge(*together, MERGE_SHARE, population=population, used=aux.active)
        labels = merged_labels(aux.labels, merged)
        return state.replace(aux=aux._replace(round=aux.round + 1, active=merged.kept, labels=labels))

    def summary(self, state):
        return {"landmarks": jnp.sum(state.aux.active), "mergings": state.aux.round}

    def landmarks(self, state):
        return state.aux.active

    def predict(self, state, frozen, images):
        xy, score = self._peaks(state, images)
        return common.seen_landmarks(xy, score, (score >= THRESHOLD) & state.aux.active)

    def heatmaps(self, state, frozen, images):
        seen = self._geometry.look(images)
        return color.to_uint8(seen), jnp.maximum(self._maps(state, seen), 0)

    def _maps(self, state, seen):
        return self._net.apply({"params": state.params}, seen, train=False).logits

    def _peaks(self, state, images):
        """Highest points of the heatmaps of still views: [B,M,2] in pixels of the frame, and how high, [B,M]."""
        maps = self._maps(state, self._geometry.look(images))
        cells, score = heatmaps.peak(maps, refine=self.decode == "parabola")
        return self._geometry.to_frame(cells), score


def merged_labels(labels: Labels, merged: merge.Merge) -> Labels:
    """Labels [N,M] after a merging: a point goes to the slot of its cluster's target."""
    num_images, slots = labels.score.shape
    numbers = jnp.where(labels.score > 0, jnp.arange(slots, dtype=jnp.int32), -1)
    target = merge.relabel(numbers, merged)
    row = jnp.arange(num_images)[:, None]
    place = jnp.where(target >= 0, target, slots)  # beyond the table: dropped
    return jax.tree.map(lambda x: jnp.zeros_like(x).at[row, place].set(x, mode="drop"), labels)
