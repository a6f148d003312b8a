"""Self-training correspondence: from generic keypoints to a detector of K object landmarks.

Mallis et al., "Unsupervised Learning of Object Landmarks via Self-Training Correspondence", NeurIPS 2020, and the
extended variant's code ("From Keypoints to Object Landmarks via Self-Training Correspondence", TPAMI 2024).

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
code part, the paper is the default and the code a switch.
"""

import dataclasses
import logging
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from uld_jax import optimizers, weights
from uld_jax.backbones import build
from uld_jax.bank import Labels, by_batch, flatten, image_table, label_table, lookup
from uld_jax.clustering import assignment, merge, outliers
from uld_jax.clustering.kmeans import kmeans
from uld_jax.errors import UserError
from uld_jax.hyperparameters import Fraction, Positive, PositiveInt, Share
from uld_jax.method import Clustering, Described, Prediction, Round, Stage, TrainState, same_shapes
from uld_jax.methods.shared import Augment, Fan, Rmsprop, View
from uld_jax.models import fan, layers
from uld_jax.ops import color, contrast, heatmaps, keypoints, nms, views, warp


class Recovered(NamedTuple):
    """What is known of correspondence: clusters of descriptors, and where each is in every training image.

    Attributes:
      round: int32, clusterings of this stage's own descriptors.
      centroids: [C,D] float32; C is M, or K in the extended variant.
      limits: [C] float32, the squared distance to its centroid from which a keypoint is dropped; 0 for an empty one.
      labels: the keypoints that are trained on, [N,M].
      fresh: [N,M] bool, those that the last detection found.
      mirrored: [N,M] int32, the cluster of a label in the mirrored image; None but in the extended variant.
      landmarks: [N,K] what the last stage learns in the extended variant; None else, where it learns `labels`.
      flips: [K] int32, the mirrored partner of a landmark, in the extended variant; None else.
      counts: what the last clustering saw, see `Counts`.
    """

    round: jax.Array
    centroids: jax.Array
    limits: jax.Array
    labels: Labels
    fresh: jax.Array
    mirrored: jax.Array | None
    landmarks: Labels | None
    flips: jax.Array | None
    counts: "Counts"


class Merged(NamedTuple):
    """Clusters on their way to landmarks.

    Attributes:
      round: int32, mergings done.
      active: [M] bool, heatmaps that still stand for a landmark; K of them at the end.
      labels: [N,M], the points that heatmaps are trained on.
      flips: [M] int32, the mirrored partner of a landmark, in the extended variant; None else.
    """

    round: jax.Array
    active: jax.Array
    labels: Labels
    flips: jax.Array | None


class Counts(NamedTuple):
    """How a clustering went; float32 scalars.

    Attributes:
      keypoints: mean number of keypoints an image, before assignment.
      labelled: of those that were given a cluster and kept.
      clusters: clusters that some image uses.
      full: images that filled every slot for keypoints, so that some may have been lost: raise `most`.
    """

    keypoints: jax.Array
    labelled: jax.Array
    clusters: jax.Array
    full: jax.Array


class Clusters(NamedTuple):
    """What an image's keypoints are placed by.

    Attributes:
      centroids, limits: as in `Recovered`.
    """

    centroids: jax.Array
    limits: jax.Array


class FirstClusters(NamedTuple):
    """The same of generic keypoints, of which some are dropped before.

    Attributes:
      centroids, limits: as in `Recovered`.
      background: clusters inside the object and outside it, (centroids [C,D], which are used [C]) of each; or ().
      crowd: what tells keypoints that are unlike all others; or None.
    """

    centroids: jax.Array
    limits: jax.Array
    background: tuple
    crowd: outliers.Crowd | None


class ExtendedClusters(NamedTuple):
    """What the extended variant places keypoints by.

    Attributes:
      landmarks: K clusters.
      training: M clusters of the keypoints that those keep.
    """

    landmarks: Clusters
    training: Clusters


class Seen(NamedTuple):
    """Keypoints that a pass collects.

    Attributes:
      xy: [B,P,2] in pixels of the frame.
      mask: [B,P] bool, False in empty slots.
      described: [B,P,D] descriptors of length 1; 0 in empty slots.
      turned: [B,P,D], those of the mirrored image, in the extended variant; None else.
      inside: [B,P] bool, whether a keypoint lies on the object, where background is told by clusters; None else.
    """

    xy: jax.Array
    mask: jax.Array
    described: jax.Array
    turned: jax.Array | None = None
    inside: jax.Array | None = None


class Placed(NamedTuple):
    """The same keypoints among the clusters.

    Attributes:
      xy, mask: as in `Seen`.
      slots: [B,C] int32, the keypoint that has each cluster that is trained on; -1 where the image does not use it.
      mirrored: [B,C] int32, the cluster of that keypoint in the mirrored image; None but in the extended variant.
      landmarks, flipped: the same two of the K landmarks; None but in the extended variant.
    """

    xy: jax.Array
    mask: jax.Array
    slots: jax.Array
    mirrored: jax.Array | None = None
    landmarks: jax.Array | None = None
    flipped: jax.Array | None = None


class Peaks(NamedTuple):
    """Where heatmaps peak.

    Attributes:
      xy: [B,M,2] in pixels of the frame.
      mask: [B,M] bool, whether the peak is high enough, and of a landmark in use.
    """

    xy: jax.Array
    mask: jax.Array


class Assigned(NamedTuple):
    """Where each cluster is in each image.

    Attributes:
      slots: [B,C] int32, the keypoint that has the cluster; -1 where the image does not use it.
      distance: [B,C] float32, its squared distance to the centroid.
    """

    slots: jax.Array
    distance: jax.Array


def assign(descriptors, mask, centroids, limits, how: str) -> Assigned:
    """Step 4) Keypoints of each image to clusters, each used once at most; what is beyond the limit is dropped.

    Args:
      descriptors: [B,P,D].
      mask: [B,P] bool.
      centroids: [C,D].
      limits: [C], exclusive; 0 for a cluster that takes nothing.
      how: `hungarian`, the least total distance (eq. 1); or `nearest`, each keypoint to the nearest centroid, of which
        a cluster keeps the closest (extended variant).
    """
    cost = assignment.squared_distances(descriptors, centroids, mask)
    used = limits > 0
    if how == "hungarian":
        labels = assignment.one_per_cluster(cost, mask, used)
    else:
        labels = jnp.where(mask & used.any(), jnp.argmin(jnp.where(used, cost, jnp.inf), -1), -1)
    own = jnp.take_along_axis(cost, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    keep = assignment.distance_cut(own, labels, len(limits), limits=limits)
    slots = assignment.best_slots(jnp.where(keep, labels, -1), -own, len(limits)).slots
    return Assigned(slots, keypoints.take_slots(own, slots))


def _limits(described, mask, centroids, cut: float):
    """[C]: mean plus `cut` standard deviations of squared distances to the nearest centroid; 0 for empty clusters."""

    def nearest(described, mask):
        cost = assignment.squared_distances(described, centroids, mask)
        return jnp.min(cost, -1), jnp.where(mask, jnp.argmin(cost, -1), -1)

    distances, labels = by_batch(nearest, described, mask)
    count = len(centroids)
    if cut:
        # A cluster of equal descriptors has limit 0 up to rounding, yet they are close to it.
        limits = assignment.distance_limits(distances, labels, count, deviations=cut)
        some = jnp.any((labels[..., None] == jnp.arange(count)).reshape(-1, count), 0)
        return jnp.where(some, jnp.maximum(limits, 1e-6), 0)
    some = jnp.any((labels[..., None] == jnp.arange(count)).reshape(-1, count), 0)
    return jnp.where(some, jnp.asarray(jnp.finfo(distances.dtype).max, distances.dtype), 0)


def _counts(mask, labels: Labels, most: int) -> Counts:
    num_images = jnp.asarray(len(labels.score), jnp.float32)
    held = jnp.sum(mask, -1)
    return Counts(
        keypoints=jnp.sum(held) / num_images,
        labelled=jnp.sum(labels.score > 0) / num_images,
        clusters=jnp.sum(jnp.any(labels.score > 0, 0), dtype=jnp.float32),
        full=jnp.sum(held >= most, dtype=jnp.float32),
    )


def _empty(rows: int, slots: int, size: int, dtype, k: int = 0) -> Recovered:
    """Nothing known yet; `k` is that of the extended variant, else 0."""
    zero = jnp.zeros((), jnp.float32)
    count = k or slots
    return Recovered(
        round=jnp.int32(0),
        centroids=jnp.zeros((count, size), dtype),
        limits=jnp.zeros(count, dtype),
        labels=Labels(jnp.zeros((rows, slots, 2), dtype), jnp.zeros((rows, slots), dtype)),
        fresh=jnp.zeros((rows, slots), bool),
        mirrored=jnp.zeros((rows, slots), jnp.int32) if k else None,
        landmarks=Labels(jnp.zeros((rows, k, 2), dtype), jnp.zeros((rows, k), dtype)) if k else None,
        flips=jnp.zeros(k, jnp.int32) if k else None,
        counts=Counts(zero, zero, zero, zero),
    )


class Generic(NamedTuple):
    """How a generic keypoint detector is used where the config does not say.

    Attributes:
      backbone: class below `uld_jax.backbones`.
      threshold: of its score, exclusive.
      nms: half the side of a keypoint's box, in pixels of the view.
      scales: of the view.
      descriptors: of the `first` scale, or of each keypoint's `own`.
    """

    backbone: str
    threshold: float
    nms: int
    scales: tuple[float, ...]
    descriptors: str


# SuperPoint as the published code has it. R2D2's own detection is a pyramid of smaller and smaller images.
GENERIC = {
    "superpoint": Generic("superpoint.SuperPoint", 0.1, 6, (1.0, 1.3, 1.6), "first"),
    "r2d2": Generic("r2d2.R2D2", 0.0, 2, (1.0, 0.84, 0.71), "own"),
    "corners": Generic("corners.Corners", 0.4, 3, (1.0,), "first"),
}


@dataclasses.dataclass(frozen=True)
class Keypoints(Clustering):
    """Generic keypoints and first clusters; a stage of zero steps.

    Attributes:
      frame_size: side of the frame in pixels.
      detector: `superpoint`, `r2d2` (both need converted weights, `config.weights.superpoint`, `.r2d2`), `corners`,
        which needs none; or `auto`, the first of these that can be used, which the log names.
      view: of the frame.
      scales: at 1.3 the view shows 1 / 1.3 of that, enlarged; at 0.7 all of it in 0.7 times as many pixels. () for the
        detector's own (SuperPoint: 1, 1.3, 1.6 in section 4; the extended code has 1 alone).
      threshold: of the detector's score; below 0 for its own (SuperPoint: 0.1; 0.15 in the extended code).
      nms: half the side of a keypoint's box in pixels; boxes must not overlap. 0 for the detector's own.
      descriptors: of the `first` scale (published code), of each keypoint's `own`, or as the detector has it, `auto`.
      most: P, keypoints an image; the surest are kept.
      region: keypoints outside the object are dropped: by the csv's `box` (section 4) or `mask` columns, or `none`.
      background: `clusters` drops what resembles keypoints outside the box more than those inside (Human3.6M in the
        published code, with 100 clusters inside and 250 outside).
      background_clusters: (inside, outside).
      points: a csv `file,x0,y0,...` of keypoints of the training images that are used in place of detected ones, in
        pixels of the files.
      outliers: this share of keypoints, the farthest from their neighbours, is dropped (section 4; 0.4 in the code).
      neighbours: of a keypoint, itself included, whose median distance counts.
      clusters: M; 100 for faces, 250 for bodies.
      assignment: `hungarian` (eq. 1); `nearest`; or `none`, no clusters but the surest M keypoints (extended variant).
      cut: keypoints beyond the mean and so many standard deviations of their cluster's squared distances are dropped;
        0 keeps all.
      iterations, restarts: of k-means.
      bank_gib: descriptors kept of a pass, in GiB; of a data set with more, clusters are formed from a sample of its
        images (`Clustering`).
      weights: folders of converted weights by kind.
    """

    uses_previous = False

    frame_size: int
    detector: Literal["auto", "superpoint", "r2d2", "corners"] = "auto"
    view: View = View()
    scales: tuple[float, ...] = ()
    threshold: float = -1.0
    nms: int = 0
    descriptors: Literal["auto", "first", "own"] = "auto"
    most: PositiveInt = 128
    region: Literal["none", "box", "mask"] = "none"
    background: Literal["none", "clusters"] = "none"
    background_clusters: tuple[int, int] = (100, 250)
    points: str = ""
    outliers: Share = 0.4
    neighbours: PositiveInt = 100
    clusters: PositiveInt = 100
    assignment: Literal["hungarian", "nearest", "none"] = "hungarian"
    cut: float = 1.0
    iterations: int = 100
    restarts: PositiveInt = 1
    bank_gib: Positive = 4.0
    weights: Any = ()

    def __post_init__(self):
        super().__post_init__()
        if any(scale <= 0 for scale in self.scales):
            raise UserError(f"scales is {self.scales}; use numbers above 0, such as (1.0, 1.3, 1.6)")
        if self.background == "clusters" and self.region == "none":
            raise UserError("background=clusters needs to know the object; set region=box or mask")

    @property
    def room(self) -> int:
        """M: what `predict` has room for."""
        return self.clusters

    @property
    def _detector(self) -> str:
        given = dict(self.weights)
        if self.detector != "auto":
            return self.detector
        return next((name for name in ("superpoint", "r2d2") if given.get(name)), "corners")

    @property
    def _generic(self) -> Generic:
        own = GENERIC[self._detector]
        return own._replace(
            threshold=own.threshold if self.threshold < 0 else self.threshold,
            nms=self.nms or own.nms,
            scales=self.scales or own.scales,
            descriptors=own.descriptors if self.descriptors == "auto" else self.descriptors,
        )

    @property
    def _backbone(self):
        return build.backbone(self._generic.backbone, "keypoints.detector", weights=self.weights)

    def _view(self, scale: float) -> views.Geometry:
        """The view at a scale: enlarged beyond its borders, or made smaller, by whole multiples of 8 pixels."""
        if scale >= 1:
            return views.Geometry(self.frame_size, self.view.image_size, 1, self.view.zoom / scale)
        return views.Geometry(self.frame_size, max(8, 8 * round(self.view.image_size * scale / 8)), 1, self.view.zoom)

    @property
    def weight_kinds(self):
        """See `method.Stage`."""
        return build.backbone_kinds(self._generic.backbone)

    def frozen(self, purpose="train"):
        if purpose == "shapes":
            return {}
        if self.detector == "auto":
            given = "" if self._detector != "corners" else "no --config.weights.superpoint or .r2d2: "
            logging.warning("keypoints: %sthe generic detector is %s", given, self._detector)
        return {"detector": self._backbone.load()}

    def side_tables(self):
        return _region_tables(self) | ({"keypoints": (self.points, self.most)} if self.points else {})

    def init(self, rng, batch, frozen, start):
        size = build.backbone(self._generic.backbone, "keypoints.detector").spec.taps[0].channels
        return TrainState(step=jnp.int32(0), aux=_empty(start.num_images, self.clusters, size, jnp.float32))

    def round_at(self, step):
        return Round(passes=1) if step == 0 else None

    def observe(self, state, frozen, batch, rng):
        return self._observe(frozen, batch["image"], batch)

    def _observe(self, frozen, images, known) -> Seen:
        """Steps 1), 2): keypoints [B,P] of frames, in their pixels; `known` has the images' rows of `side_tables`."""
        generic, backbone = self._generic, self._backbone
        found, first = [], None
        for scale in generic.scales:
            view = self._view(scale)
            maps = backbone.detect(frozen["detector"], view.look(images))
            first = first or (view, maps)
            points = nms.points(nms.greedy(maps.score, generic.threshold, generic.nms), maps.score, self.most)
            described = self._describe(view, maps, points.xy)
            found.append((view.to_frame(points.xy), points.score, points.mask, described))
        xy, score, mask, described = (jnp.concatenate(parts, 1) for parts in zip(*found, strict=True))
        view, maps = first
        if "keypoints" in known:
            xy, mask = known["keypoints"]
            score = jnp.broadcast_to(1 - 1e-3 * jnp.arange(xy.shape[1]), mask.shape)
        cells = view.to_cells(xy, view.still(len(images)))
        if "keypoints" not in known and len(generic.scales) > 1:
            mask = nms.greedy_points(cells, score, mask, generic.nms)
        if "keypoints" in known or generic.descriptors == "first":
            described = self._describe(view, maps, cells)
        inside = _on_object(xy, known, self.frame_size)
        if self.background == "none":
            mask &= inside
        if xy.shape[1] > self.most:
            _, order = jax.lax.top_k(jnp.where(mask, score, -1), self.most)
            xy, mask, described, inside = (keypoints.take_slots(x, order) for x in (xy, mask, described, inside))
        described = jnp.where(mask[..., None], described, 0)
        return Seen(xy, mask, described, inside=None if self.background == "none" else inside)

    def _describe(self, view, maps, xy):
        """Descriptors of length 1 at points in pixels of a view."""
        stride = self._backbone.spec.taps[0].stride
        return keypoints.l2_normalize(keypoints.sample(maps.descriptors, (xy + 0.5) / stride - 0.5))

    def refresh(self, state, frozen, bank, rng):
        seen, kept, found = self._clustered(state, bank, rng)
        slots = by_batch(lambda described, mask: self._slots(found, described, mask), seen.described, kept)
        return self.settle(state, found, bank._replace(values=Placed(seen.xy, seen.mask, slots)))

    def form(self, state, frozen, bank, rng):
        return self._clustered(state, bank, rng)[2]

    def locate(self, state, found, seen):
        if found.background:
            seen = self._foreground(found.background, seen)
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
            counts=_counts(placed.mask, labels, self.most),
        )
        return state.replace(aux=aux)

    def _clustered(self, state, bank, rng):
        """Keypoints without background, which of them [B,T,P] are like others, and the clusters of those."""
        seen, background, crowd = bank.values, (), None
        if self.background != "none":
            rng, background = self._background(seen, rng)
            # Batch by batch, as a product may round by the number of its rows.
            seen = by_batch(lambda seen: self._foreground(background, seen), seen)
        x, mask = flatten(seen.described, seen.mask)
        if self.outliers:
            # By a key that none of those is that k-means splits `rng` into.
            drawn_by = jax.random.fold_in(rng, 1 << 20)
            kept, crowd = outliers.fit(x, mask, share=self.outliers, neighbours=self.neighbours, rng=drawn_by)
            mask &= kept
        shaped = mask.reshape(seen.mask.shape)
        if self.assignment == "none":
            return seen, shaped, FirstClusters(state.aux.centroids, state.aux.limits, background, crowd)
        # Step 3)
        centroids = kmeans(
            x, self.clusters, rng=rng, mask=mask, iterations=self.iterations, restarts=self.restarts
        ).centroids
        limits = _limits(seen.described, shaped, centroids, self.cut)
        return seen, shaped, FirstClusters(centroids, limits, background, crowd)

    def _slots(self, found, described, mask):
        """Step 4) The keypoint [B,M] of each cluster; or without any, the first M keypoints."""
        if self.assignment != "none":
            return assign(described, mask, found.centroids, found.limits, self.assignment).slots
        order = jnp.argsort(~mask, axis=-1, stable=True)[..., : self.clusters]
        slots = jnp.where(jnp.take_along_axis(mask, order, -1), order, -1)
        return jnp.pad(slots, ((0, 0), (0, self.clusters - slots.shape[-1])), constant_values=-1)

    def _background(self, seen, rng):
        """The next key, and clusters inside the object and outside it."""
        flat = seen.described.reshape(-1, seen.described.shape[-1])
        rng, *keys = jax.random.split(rng, 3)
        found = []
        for key, count, part in zip(keys, self.background_clusters, (seen.inside, ~seen.inside), strict=True):
            one = kmeans(flat, count, rng=key, mask=(seen.mask & part).reshape(-1), iterations=self.iterations)
            found.append((one.centroids, one.counts > 0))
        return rng, tuple(found)

    def _foreground(self, background, seen):
        """Keypoints without those that are outside the object, or resemble what is there."""
        nearest = []
        for centroids, used in background:
            cost = assignment.squared_distances(seen.described, centroids, seen.mask)
            nearest.append(jnp.min(jnp.where(used, cost, jnp.inf), -1))
        return seen._replace(mask=seen.mask & seen.inside & (nearest[0] < nearest[1]))

    def summary(self, state):
        return state.aux.counts._asdict()

    def predict(self, state, frozen, images):
        seen = self._observe(frozen, images, {})
        if self.assignment == "none":
            shape = len(images), self.clusters
            return Prediction(jnp.zeros((*shape, 2)), jnp.zeros(shape))
        return _predicted(seen, state.aux, self.assignment)


def _region_tables(stage) -> dict[str, tuple]:
    """What a stage's `region` asks of `data.objects`."""
    return {"box": {"boxes": ()}, "mask": {"masks": (max(stage.frame_size // 4, 1),)}}.get(stage.region, {})


def _on_object(xy, known, frame_size: int):
    """Whether points [B,P,2] of the frame lie on the object; all do where its place is not known."""
    if "boxes" in known:
        low, high = known["boxes"][:, None, :2], known["boxes"][:, None, 2:]
        return jnp.all((xy >= low) & (xy <= high), -1)
    if "masks" in known:
        side = known["masks"].shape[1]
        cells = jnp.clip(jnp.floor((xy + 0.5) * side / frame_size), 0, side - 1).astype(jnp.int32)
        return jax.vmap(lambda mask, cell: mask[cell[:, 1], cell[:, 0]])(known["masks"], cells)
    return jnp.ones(xy.shape[:2], bool)


def _predicted(seen: Seen, aux: Recovered, how: str) -> Prediction:
    """Clusters of an image's keypoints, with a score that falls with the distance to the centroid."""
    found = assign(seen.described, seen.mask, aux.centroids, aux.limits, how)
    there = found.slots >= 0
    score = jnp.where(there, jnp.exp(-found.distance), 0)
    return Prediction(
        jnp.where(there[..., None], keypoints.take_slots(seen.xy, found.slots), 0).astype(jnp.float32), score
    )


class _Trained(Stage):
    """What both stages share: they learn from the stage before, and may start from a published checkpoint."""

    @property
    def weight_kinds(self):
        """See `method.Stage`."""
        return frozenset({"mallis"} if self._converted else ())

    def frozen(self, purpose="train"):
        if purpose != "train" or not self._converted:
            return {}
        return {"mallis": weights.load(dict(self.weights).get("mallis", ""), "mallis")}

    @property
    def _converted(self) -> bool:
        return self.start == "checkpoint"

    @property
    def uses_previous(self):
        """Whether there is anything to learn from what the stage before left."""
        return bool(self.steps) or not self._converted

    @property
    def needs_previous_rows(self):
        """Whether that must be of these images."""
        return self.uses_previous


@dataclasses.dataclass(frozen=True)
class Correspondence(_Trained, Clustering):
    """Stage 1: where keypoints are, and which of them correspond.

    Attributes:
      k: K of the extended variant.
      frame_size: side of the frame in pixels.
      steps: of the stage, for the schedule; 310,000 in the code, at most 300,000 in the paper.
      variant: `neurips`, or `extended`: K clusters for the landmarks, M for training, of descriptors of images and
        mirrored images; training pairs are views of one image until the first clustering; views are mirrored at random.
      start: `previous` learns from the labels of the stage before, with a new network; `checkpoint` also has the
        network and centroids of `config.weights.mallis`, and with steps=0 from nothing else.
      pairs: `clusters`, or `augmented`: two views of one image alone, no clustering in training (figure 2c).
      view: of the frame.
      net: the network's size (`models/fan.py`).
      descriptor_size: D.
      dtype: of its arithmetic.
      warmup: steps before the first clustering of its own descriptors; 20,000.
      round_every: steps between clusterings; 10,000.
      clusters: M, that of the stage before.
      assignment, cut: as in `Keypoints`; `nearest` and 0 in the extended variant.
      memory: `two_rounds` adds the keypoints of the last round to those detected now (section 3.2); `all_rounds` all
        that were ever kept, which win over new ones (published code); `none` (extended code).
      seeding: of k-means, the last round's centroids, `previous` (section 4); or `random` (published code).
      iterations, restarts: of k-means.
      threshold: of the detector's confidence; 0.2 in the code, 0.15 in the extended one.
      nms: half the side of a keypoint's box in heatmap pixels; 1, and 2 in the extended code.
      most: P, keypoints detected in an image.
      region: as in `Keypoints`, of what rounds detect in the training images. A choice of ours; paper and code have
        `none` here, where the network sees crops around the boxes and little else.
      subpixel: `none`, `quarter` (extended code) or `parabola`: detections between cells.
      target: `gaussian` (section 3.2) or `pixel`, a single one (code).
      sigma: of the Gaussian, in heatmap pixels.
      reading: descriptors between cells, `bilinear`; or at the nearest, `cell` (code, in training).
      hinge: of pairs that must be apart, `squared`: max(0, m - d^2) (eq. 2), or `distance`: max(0, m - d)^2 (code).
      margin: m; 0.8 in the code.
      negatives: pairs of other clusters, `cross`: of both images (eq. 2); `shared`: clusters that both have (code);
        `within`: in one view, and of keypoints with random cells farther than `apart` heatmap pixels (extended code).
      background, apart: random cells a view, and that distance, for `within`; 5.7 in the code.
      descriptor_weight: of the contrastive loss; 10 in the code.
      least_points: an image with fewer labels is not learned from; 9 in the code, which draws another in its place.
      augment: the training views; warps are uniformly distributed, as in the published code.
      optimizer: RMSprop, 5e-4 and 1e-5; its schedule is `constant` (section 4); `restarts`, cosine in five plateaus a
        round (published code); or `steps`, a tenth from each of `decay_at` on (extended code).
      bank_gib: descriptors kept of a pass, in GiB; of a data set with more, clusters are formed from a sample of its
        images (`Clustering`).
      weights: folders of converted weights by kind.
    """

    needs_partner = True

    k: int
    frame_size: int
    steps: int
    variant: Literal["neurips", "extended"] = "neurips"
    start: Literal["previous", "checkpoint"] = "previous"
    pairs: Literal["clusters", "augmented"] = "clusters"
    view: View = View()
    net: Fan = Fan()
    descriptor_size: int = 256
    dtype: str = "float32"
    warmup: int = 20_000
    round_every: PositiveInt = 10_000
    clusters: PositiveInt = 100
    assignment: Literal["hungarian", "nearest"] = "hungarian"
    cut: float = 1.0
    memory: Literal["two_rounds", "all_rounds", "none"] = "two_rounds"
    seeding: Literal["previous", "random"] = "previous"
    iterations: int = 100
    restarts: int = 1
    threshold: float = 0.2
    nms: PositiveInt = 1
    most: PositiveInt = 128
    region: Literal["none", "box", "mask"] = "none"
    subpixel: Literal["none", "quarter", "parabola"] = "none"
    target: Literal["gaussian", "pixel"] = "gaussian"
    sigma: Positive = 0.75
    reading: Literal["bilinear", "cell"] = "bilinear"
    hinge: Literal["squared", "distance"] = "squared"
    margin: Positive = 0.8
    negatives: Literal["cross", "shared", "within"] = "cross"
    background: int = 128
    apart: float = 5.7
    descriptor_weight: float = 10.0
    least_points: int = 0
    augment: Augment = Augment(40.0, 0.2, 0.05)
    optimizer: Rmsprop = Rmsprop()
    bank_gib: Positive = 4.0
    weights: Any = ()

    def __post_init__(self):
        super().__post_init__()
        if self.variant == "extended" and self.memory != "none":
            raise UserError("variant=extended keeps no earlier keypoints; set memory=none")

    # -- network ------------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """What `predict` has room for: M, or K in the extended variant."""
        return self.k if self.variant == "extended" else self.clusters

    @property
    def _flips(self) -> bool:
        return self.variant == "extended"

    @property
    def _net(self):
        return fan.CorrespondenceFAN(
            self.descriptor_size, **dataclasses.asdict(self.net), **layers.precision(self.dtype)
        )

    @property
    def _geometry(self) -> views.Geometry:
        return self.view.geometry(self.frame_size, self.net.downsample, self.dtype)

    @property
    def _optimizer(self):
        return self.optimizer.transform(self.steps, self.warmup, self.round_every)

    def side_tables(self):
        return _region_tables(self)

    def init(self, rng, batch, frozen, start):
        previous, num_images = start.previous, start.num_images
        wide = layers.wide(self.dtype)
        shape = jax.ShapeDtypeStruct((1, *self._geometry.view, 3), jnp.float32)
        params, _ = layers.split(layers.initialize(self._net, rng, shape))
        aux = _empty(num_images, self.clusters, self.descriptor_size, wide, self.k if self._flips else 0)
        if self.uses_previous:
            if previous is None or not isinstance(previous.aux, Recovered):
                raise UserError(
                    "stage1 learns from keypoints; put the stage keypoints before it, or set "
                    "config.init_from=RUN:keypoints"
                )
            if previous.aux.labels.xy.shape != aux.labels.xy.shape:
                images, slots = previous.aux.labels.xy.shape[:2]
                raise UserError(
                    f"the stage before left {slots} clusters of {images} images, not {self.clusters} of {num_images}; "
                    "use the same images, and the same clusters in keypoints and stage1"
                )
            aux = aux._replace(
                labels=jax.tree.map(lambda x: x.astype(wide), previous.aux.labels),
                fresh=previous.aux.labels.score > 0,
            )
        if self._converted and not start.shapes_only:
            params, aux = _from_checkpoint(frozen["mallis"], params, aux, needs_centroids=not self.uses_previous)
        return TrainState(step=jnp.int32(0), params=params, opt_state=self._optimizer.init(params), aux=aux)

    # -- training -----------------------------------------------------------------------------------------------------

    def train_step(self, state, frozen, batch, rng):
        aux = state.aux
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        coin, *drawn = jnp.unstack(jax.vmap(lambda key: jax.random.split(key, 7))(keys), axis=1)
        # Step 6) Two images, or one image twice. Keypoints that are in no cluster correspond to themselves alone.
        other = jax.vmap(jax.random.bernoulli)(coin) & self._clustered(aux)
        index = jnp.stack([batch["index"], jnp.where(other, batch["index2"], batch["index"])], 1)
        second = jnp.where(other[:, None, None, None], batch["image2"], batch["image"])
        images = jnp.stack([batch["image"], second], 1)  # [B,2,...]: both views of an example on its device
        flat = lambda x: x.reshape(-1, *x.shape[2:])
        warps, flips = self._warps(aux, flat(jnp.stack(drawn[:2], 1)), flat(jnp.stack(drawn[2:4], 1)))
        seen = self._geometry.look(flat(images), warps)
        coloured = flat(jnp.stack(drawn[4:], 1))
        seen = jax.vmap(color.mild_changes, (0, 0, None))(coloured, seen, self.augment.colour)

        labels = jax.tree.map(lambda table: table[flat(index)], aux.labels)
        cells = self._geometry.to_cells(labels.xy, warps)
        there = (labels.score > 0) & _inside(cells, self._geometry.heat)
        learned = jnp.sum(labels.score > 0, -1) >= self.least_points
        there &= learned[:, None]
        number = jnp.broadcast_to(jnp.arange(self.clusters), there.shape)
        if self._flips:
            number = jnp.where(flips[:, None], aux.mirrored[flat(index)], number)
        examples = {"seen": seen, "cells": cells, "there": there, "number": number, "key": coloured, "learned": learned}
        (loss, metrics), grads = jax.value_and_grad(self._loss, has_aux=True)(state.params, examples)
        updates, opt_state = self._optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, opt_state=opt_state), {"loss": loss} | metrics

    def _loss(self, params, examples):
        cells, there = examples["cells"], examples["there"]
        out = self._net.apply({"params": params}, examples["seen"])
        logits, maps = out.logits.astype(cells.dtype), out.descriptors.astype(cells.dtype)
        # Squared error of the map; one Gaussian a keypoint, or one pixel.
        sigma, places = (self.sigma, cells) if self.target == "gaussian" else (0.1, jnp.round(cells))
        places = jnp.where(there[..., None], places, -100)  # nothing is drawn of a keypoint that is not there
        target = jnp.max(heatmaps.gaussian(places, self._geometry.heat, sigma), -1)
        error = jnp.mean((jax.nn.sigmoid(logits) - target) ** 2, (1, 2))
        detector = 2 * keypoints.masked_mean(error, examples["learned"])  # the sum of the two views' means
        # Contrastive loss: an example's two views are neighbours in the batch.
        at = jnp.where(there[..., None], jnp.round(cells) if self.reading == "cell" else cells, 0)
        described = keypoints.sample(maps, at)
        pair = lambda x: (x[0::2], x[1::2])
        (a, b), (on_a, on_b), (is_a, is_b) = pair(described), pair(there), pair(examples["number"])
        same, apart = self._pairs(on_a, on_b, is_a, is_b)
        square = contrast.square_distances(a, b)
        total = jnp.sum(jnp.where(same, square, 0)) + jnp.sum(jnp.where(apart, self._hinge(square), 0))
        count = jnp.sum(same) + jnp.sum(apart)
        if self.negatives == "within":
            more, number = self._within(examples["key"], maps, described, at, there)
            total, count = total + more, count + number
        contrastive = total / jnp.maximum(count, 1)
        metrics = {
            "detector": detector,
            "contrast": contrastive,
            "pairs": jnp.sum(same) / len(a),  # of corresponding keypoints, an example
            "near": keypoints.masked_mean(square, same),  # mean squared distance of those
            "far": keypoints.masked_mean(square, on_a[:, :, None] & on_b[:, None] & ~same),
        }
        return detector + self.descriptor_weight * contrastive, metrics

    def _pairs(self, on_a, on_b, is_a, is_b):
        """Which pairs [B,M,M] must be near, and which apart, of keypoints [B,M] that are there and have a number."""
        both = on_a[:, :, None] & on_b[:, None]
        equal = is_a[:, :, None] == is_b[:, None]
        same, apart = both & equal, both & ~equal
        if self.negatives == "within":
            return same, jnp.zeros_like(apart)
        if self.negatives == "shared":
            apart &= jnp.any(same, 2)[:, :, None] & jnp.any(same, 1)[:, None]
        return same, apart

    def _hinge(self, square):
        if self.hinge == "squared":
            return jax.nn.relu(self.margin - square)
        return jax.nn.relu(self.margin - jnp.sqrt(square + 1e-9)) ** 2

    def _within(self, keys, maps, described, cells, there):
        """Pairs inside a view that must be apart: of two keypoints, and of a keypoint and a random cell."""
        height, width = maps.shape[1:3]
        draw = lambda key: jax.random.randint(jax.random.fold_in(key, 1), (self.background, 2), 1, min(height, width))
        random = jax.vmap(draw)(keys).astype(cells.dtype)
        far = lambda x, y: jnp.sum((x[:, :, None] - y[:, None]) ** 2, -1) > self.apart**2
        upper = jnp.triu(jnp.ones((self.clusters, self.clusters), bool), 1)
        several = (jnp.sum(there, -1) > 2)[:, None, None]
        known = there[:, :, None] & there[:, None] & upper & far(cells, cells) & several
        beside = there[:, :, None] & far(cells, random) & several
        total = jnp.sum(jnp.where(known, self._hinge(contrast.square_distances(described, described)), 0))
        others = contrast.square_distances(described, keypoints.sample(maps, random))
        return total + jnp.sum(jnp.where(beside, self._hinge(others), 0)), jnp.sum(known) + jnp.sum(beside)

    def _clustered(self, aux):
        """Whether keypoints of different images may correspond."""
        if self.pairs == "augmented":
            return False
        return aux.round > 0 if self.variant == "extended" else True

    def _warps(self, aux, keys, flip_keys):
        warps = self.augment.uniform_warps(keys, self.view.zoom, self.dtype)
        if not self._flips:
            return warps, None
        flips = jax.vmap(jax.random.bernoulli)(flip_keys) & (aux.round > 0)
        return jax.vmap(warp.mirrored)(warps, flips), flips

    # -- rounds -------------------------------------------------------------------------------------------------------

    def round_at(self, step):
        due = step >= self.warmup and (step - self.warmup) % self.round_every == 0 and self.pairs != "augmented"
        last = step == self.steps and (step > 0 or self.pairs == "augmented")
        return Round(passes=1) if last or (due and step > 0) else None

    def observe(self, state, frozen, batch, rng):
        aux, images = state.aux, batch["image"]
        maps = self._net.apply({"params": state.params}, self._geometry.look(images))
        xy, score, mask = self._detect(maps)
        if self.memory != "none":
            known = jax.tree.map(lambda table: lookup(table, batch["index"]), aux.labels)
            old = known.score > 0
            if self.memory == "two_rounds":
                old &= lookup(aux.fresh, batch["index"])
            cells = self._geometry.to_cells(known.xy, self._geometry.still(len(images)))
            rank = 2.0 if self.memory == "all_rounds" else -2.0  # the code's old keypoints win; ours fill gaps
            xy, mask = jnp.concatenate([xy, cells], 1), jnp.concatenate([mask, old], 1)
            score = jnp.concatenate([score, jnp.full_like(known.score, rank)], 1)
            mask = nms.greedy_points(xy, score, mask, self.nms)
        mask &= _on_object(self._geometry.to_frame(xy), batch, self.frame_size)
        turned = None
        if self._flips:
            opposite = jnp.stack([self._geometry.heat[1] - 1 - xy[..., 0], xy[..., 1]], -1)
            turned = self._net.apply({"params": state.params}, self._geometry.look(images)[:, :, ::-1])
            turned = self._describe(turned, opposite, mask)
        return Seen(self._geometry.to_frame(xy), mask, self._describe(maps, xy, mask), turned)

    def _detect(self, maps):
        """Keypoints of the detector head in cells: xy [B,P,2], score, mask [B,P]."""
        confidence = jax.nn.sigmoid(maps.logits.astype(jnp.promote_types(maps.logits.dtype, jnp.float32)))
        points = nms.points(nms.greedy(confidence, self.threshold, self.nms), confidence, self.most)
        return nms.subpixel(confidence, points.xy, self.subpixel), points.score, points.mask

    def _describe(self, maps, xy, mask):
        described = maps.descriptors.astype(jnp.promote_types(maps.descriptors.dtype, jnp.float32))
        return jnp.where(mask[..., None], keypoints.l2_normalize(keypoints.sample(described, xy)), 0)

    def form(self, state, frozen, bank, rng):
        # Step 7)
        form = self._form_extended if self._flips else self._form_neurips
        return form(state.aux, bank, rng)

    def locate(self, state, found, seen):
        if self._flips:
            return self._place_extended(found, seen)
        slots = assign(seen.described, seen.mask, found.centroids, found.limits, self.assignment).slots
        return Placed(seen.xy, seen.mask, slots)

    def settle(self, state, found, bank):
        settle = self._settle_extended if self._flips else self._settle_neurips
        return state.replace(aux=settle(state.aux, found, bank))

    def _form_neurips(self, aux, bank, rng) -> Clusters:
        x, mask = flatten(bank.values.described, bank.values.mask)
        seeded = lambda: (
            kmeans(x, self.clusters, rng=rng, mask=mask, iterations=self.iterations, restarts=self.restarts).centroids
        )
        warm = lambda: kmeans(x, self.clusters, init=aux.centroids, mask=mask, iterations=self.iterations).centroids
        first = aux.round == 0  # there are no centroids of these descriptors yet
        centroids = jax.lax.cond(first, seeded, warm) if self.seeding == "previous" else seeded()
        return Clusters(centroids, _limits(bank.values.described, bank.values.mask, centroids, self.cut))

    def _settle_neurips(self, aux, found, bank) -> Recovered:
        placed, slots, total = bank.values, bank.values.slots, len(aux.labels.score)
        labels = label_table(bank, placed.xy, slots, total)
        fresh = image_table(bank, (slots >= 0) & (slots < self.most), total)
        return aux._replace(
            round=aux.round + 1,
            centroids=found.centroids,
            limits=found.limits,
            labels=labels,
            fresh=fresh,
            counts=_counts(placed.mask, labels, self.most),
        )

    def _form_extended(self, aux, bank, rng) -> ExtendedClusters:
        """K clusters of descriptors and mirrored descriptors; of what they keep, M clusters to train on."""
        seen = bank.values
        first, second = jax.random.split(rng)
        both = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in (seen.described, seen.turned)])

        def clusters(count, key, mask):
            twice = jnp.tile(mask.reshape(-1), 2)
            found = kmeans(both, count, rng=key, mask=twice, iterations=self.iterations, restarts=self.restarts)
            limits = jnp.where(found.counts > 0, jnp.asarray(jnp.finfo(both.dtype).max), 0)
            return Clusters(found.centroids, limits)

        landmarks = clusters(self.k, first, seen.mask)
        keep = lambda seen: _kept(seen.mask, self._place_in(landmarks, seen)[0])
        return ExtendedClusters(landmarks, clusters(self.clusters, second, by_batch(keep, seen)))

    def _place_in(self, clusters, seen):
        """The keypoint [B,C] of each cluster, and the cluster of that keypoint in the mirrored image."""
        slots = assign(seen.described, seen.mask, *clusters, "nearest").slots
        cost = assignment.squared_distances(seen.turned, clusters.centroids, seen.mask)
        mirrored = jnp.argmin(jnp.where(clusters.limits > 0, cost, jnp.inf), -1)
        return slots, keypoints.take_slots(mirrored, slots)

    def _place_extended(self, found, seen) -> Placed:
        landmarks, flipped = self._place_in(found.landmarks, seen)
        kept = seen._replace(mask=_kept(seen.mask, landmarks))
        return Placed(seen.xy, seen.mask, *self._place_in(found.training, kept), landmarks, flipped)

    def _settle_extended(self, aux, found, bank) -> Recovered:
        placed, total = bank.values, len(aux.labels.score)
        landmarks = label_table(bank, placed.xy, placed.landmarks, total)
        pairs = (placed.landmarks >= 0)[..., None] & (placed.flipped[..., None] == jnp.arange(self.k))
        flips = jnp.argmax(jnp.sum(pairs, (0, 1)), -1).astype(jnp.int32)
        labels = label_table(bank, placed.xy, placed.slots, total)
        return aux._replace(
            round=aux.round + 1,
            centroids=found.landmarks.centroids,
            limits=found.landmarks.limits,
            labels=labels,
            fresh=labels.score > 0,
            mirrored=image_table(bank, placed.mirrored, total).astype(jnp.int32),
            landmarks=landmarks,
            flips=flips,
            counts=_counts(placed.mask, landmarks, self.most),
        )

    def summary(self, state):
        return state.aux.counts._asdict()

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(self, state, frozen, images):
        maps = self._net.apply({"params": state.params}, self._geometry.look(images))
        xy, _, mask = self._detect(maps)
        seen = Seen(self._geometry.to_frame(xy), mask, self._describe(maps, xy, mask))
        return _predicted(seen, state.aux, self._prediction_assignment)

    def describe(self, state, frozen, images):
        maps = self._net.apply({"params": state.params}, self._geometry.look(images))
        xy, _, mask = self._detect(maps)
        described = self._describe(maps, xy, mask)
        slots = assign(described, mask, state.aux.centroids, state.aux.limits, self._prediction_assignment).slots
        has = slots[..., None] == jnp.arange(mask.shape[1])  # [B,C,P]
        return Described(described, jnp.where(jnp.any(has, 1), jnp.argmax(has, 1), -1).astype(jnp.int32), mask)

    @property
    def _prediction_assignment(self) -> str:
        return "nearest" if self.variant == "extended" else self.assignment

    def heatmaps(self, state, frozen, images):
        seen = self._geometry.look(images)
        return color.to_uint8(seen), jax.nn.sigmoid(self._net.apply({"params": state.params}, seen).logits)[..., None]


def _kept(mask, slots):
    """Mask [B,P] of keypoints that stand for a cluster, in images that have several."""
    kept = jnp.any((slots[..., None] == jnp.arange(mask.shape[-1])), -2) & mask
    return kept & (jnp.sum(kept, -1, keepdims=True) >= 2)


def _inside(cells, heat):
    """Whether points [B,P,2] lie on a map of (h, w) cells."""
    high = jnp.asarray([heat[1], heat[0]], cells.dtype) - 0.5
    return jnp.all((cells >= -0.5) & (cells <= high), -1)


def _from_checkpoint(given, params, aux: Recovered, needs_centroids: bool):
    """Network and centroids of a converted stage 1."""
    if not same_shapes(given["params"], params):
        raise UserError(
            "the weights of config.weights.mallis are of another network; give a file of stage 1, and set stage1's "
            "width, depth and descriptor_size to theirs (the published ones: 256, 4, 256)"
        )
    params = jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), given["params"], params)
    centroids = given.get("centroids")
    if needs_centroids and (centroids is None or centroids.shape != aux.centroids.shape):
        raise UserError(
            f"the weights of config.weights.mallis have centroids of {0 if centroids is None else len(centroids)} "
            f"clusters, and stage1 without steps needs those of {len(aux.centroids)}; set keypoints.clusters to "
            "theirs, or train stage1 after keypoints"
        )
    if centroids is not None and centroids.shape != aux.centroids.shape:
        logging.warning(
            "config.weights.mallis has %d clusters and stage1 %d: its centroids are left out, and found anew",
            len(centroids),
            len(aux.centroids),
        )
    elif centroids is not None:
        limits = jnp.full(aux.limits.shape, jnp.finfo(aux.limits.dtype).max, aux.limits.dtype)
        aux = aux._replace(centroids=jnp.asarray(centroids, aux.centroids.dtype), limits=limits, round=jnp.int32(1))
    return params, aux


@dataclasses.dataclass(frozen=True)
class Landmarks(_Trained):
    """Stage 2: one heatmap a cluster, and fewer and fewer of them.

    Attributes:
      k: K of the extended variant; else K is found.
      frame_size: side of the frame in pixels.
      steps: of the stage, for the schedule; 80,000 in the code.
      variant: `neurips`, or `extended`: K heatmaps of the landmarks of stage 1, no merging, mirrored views, predictions
        that are the mean of a view's and its mirror image's, and no visibility threshold.
      start: `previous`, from stage 1's network but its last layer; `checkpoint`, from `config.weights.mallis`, and with
        steps=0 from nothing else.
      mirroring: of the extended variant, `exact`; or `published`. The published code mirrors points by x' = 255 - x in
        256 pixels that it divides by 4 then, so that of a mirrored view it learns to see a landmark 3/4 of a cell right
        of where it is; what a mirror image says of an image it shifts back by a cell. One makes up for the other, and
        a network that has learned with the first needs the second. `auto` is `published` for `start=checkpoint`, and
        else `exact`. In both the label of landmark k is, in a mirrored view, one of `flips[k]`.
      view, net, dtype: as in stage 1.
      clusters: M, that of stage 1.
      least_images: a cluster that is labelled in no more images is left out; 500 in the published code, 0 in the paper.
      merge_from, merge_every: steps; the first merging and those after it. In the code 25,000, then every second pass
        over the data.
      merge_share: of the rarer cluster's images, above which two coincide (section 4: 70 %).
      merge_radius: in pixels of a 64-pixel map, exclusive; 1.425 is the pixel itself and its eight neighbours.
      threshold: of a heatmap's peak, below which its landmark is not visible; 0.2 in the code.
      sigma: of the target's Gaussian, in heatmap pixels.
      decode: `argmax`, the highest cell (code), or `parabola`, between cells.
      loss_over: `labelled` maps (section 3.3), or `all`: unlabelled ones count as zeros in the mean (extended code).
      cutout: side of a black square in the view, with probability 1/2, as a fraction of its side; 80 / 256 in the
        extended code, 0 for none.
      augment: as in stage 1.
      optimizer: RMSprop; in the published code a tenth at 50,000 and 65,000 steps.
      head_rate: learning rate of the last layers, if above 0; 1e-4 beside 1e-5 in the extended code.
      accumulate_steps: pieces of a batch.
      weights: folders of converted weights by kind.
    """

    k: int
    frame_size: int
    steps: int
    variant: Literal["neurips", "extended"] = "neurips"
    start: Literal["previous", "checkpoint"] = "previous"
    mirroring: Literal["auto", "exact", "published"] = "auto"
    view: View = View()
    net: Fan = Fan()
    dtype: str = "float32"
    clusters: PositiveInt = 100
    least_images: int = 0
    merge_from: int = 25_000
    merge_every: PositiveInt = 5_000
    merge_share: Fraction = 0.7
    merge_radius: Positive = 1.425
    threshold: float = 0.2
    sigma: Positive = 0.75
    decode: Literal["argmax", "parabola"] = "argmax"
    loss_over: Literal["labelled", "all"] = "labelled"
    cutout: float = 0.0
    augment: Augment = Augment(40.0, 0.3, 0.05)
    optimizer: Rmsprop = Rmsprop()
    head_rate: float = 0.0
    accumulate_steps: int = 1
    weights: Any = ()

    @property
    def room(self) -> int:
        """Heatmaps: M, or K in the extended variant."""
        return self.k if self.variant == "extended" else self.clusters

    @property
    def _flips(self) -> bool:
        return self.variant == "extended"

    @property
    def _mirrors_as_published(self) -> bool:
        return self.start == "checkpoint" if self.mirroring == "auto" else self.mirroring == "published"

    @property
    def _net(self):
        return fan.FAN(self.room, **dataclasses.asdict(self.net), norm="group", **layers.precision(self.dtype))

    @property
    def _geometry(self) -> views.Geometry:
        return self.view.geometry(self.frame_size, self.net.downsample, self.dtype)

    @property
    def _optimizer(self):
        rest = self.optimizer.transform(self.steps)
        if not self.head_rate:
            return rest
        head = dataclasses.replace(self.optimizer, learning_rate=self.head_rate).transform(self.steps)
        return optimizers.groups({"head": head, "rest": rest}, lambda path: "head" if path[0] in HEAD else "rest")

    def init(self, rng, batch, frozen, start):
        previous = start.previous
        labels, flips = self._learns_from(previous, start.num_images)
        shape = jax.ShapeDtypeStruct((1, *self._geometry.view, 3), jnp.float32)
        params, _ = layers.split(layers.initialize(self._net, rng, shape, train=False))
        images = jnp.sum(labels.score > 0, 0)
        active = images > (0 if self._flips else self.least_images)
        if self._converted:
            if not start.shapes_only:
                needed = self._flips and not self.uses_previous
                params, active, flips = _second_from_checkpoint(frozen["mallis"], params, active, flips, needed)
        elif previous.params:
            # Step 8) The descriptor branch goes on; the last layer is new.
            branch = fan.descriptor_branch(previous.params, self.room, rng)
            if not same_shapes(branch, params):
                raise UserError("stage2 goes on with stage1's network; give both the same width, depth and downsample")
            params = branch
        aux = Merged(
            round=jnp.int32(0),
            active=active,
            labels=jax.tree.map(lambda x: x.astype(layers.wide(self.dtype)), labels),
            flips=flips,
        )
        return TrainState(step=jnp.int32(0), params=params, opt_state=self._optimizer.init(params), aux=aux)

    def _learns_from(self, previous, num_images):
        """The labels that stage 1 left, and its mirrored partners of landmarks; empty ones where nothing is learned."""
        if not self.uses_previous:
            empty = _empty(num_images, self.room, 1, jnp.float32, self.k if self._flips else 0)
            return empty.labels, empty.flips
        if previous is None or not isinstance(previous.aux, Recovered):
            raise UserError(
                "stage2 learns from the clusters of stage1; put the stages keypoints and stage1 before it, or set "
                "config.init_from=RUN:stage1"
            )
        labels = previous.aux.landmarks if self._flips else previous.aux.labels
        if labels is None:
            raise UserError("stage2.variant=extended learns from that variant of stage1; set stage1.variant=extended")
        if labels.xy.shape[:2] != (num_images, self.room):
            raise UserError(
                f"the stage before left {labels.xy.shape[1]} clusters of {labels.xy.shape[0]} images, not {self.room} "
                f"of {num_images}; use the same images, and the same clusters, k and variant in stage1 and stage2"
            )
        if not self._flips and self.least_images >= num_images:
            raise UserError(
                f"stage2.least_images={self.least_images} leaves out every cluster of {num_images} images; use a lower "
                "number"
            )
        return labels, previous.aux.flips

    def train_step(self, state, frozen, batch, rng):
        aux, heat = state.aux, self._geometry.heat
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        warped, coloured, flipped, cut = jnp.unstack(jax.vmap(lambda key: jax.random.split(key, 4))(keys), axis=1)
        warps = self.augment.uniform_warps(warped, self.view.zoom, self.dtype)
        labels = jax.tree.map(lambda table: table[batch["index"]], aux.labels)
        if self._flips:
            flips = jax.vmap(jax.random.bernoulli)(flipped)
            warps = jax.vmap(warp.mirrored)(warps, flips)
        seen = jax.vmap(color.mild_changes, (0, 0, None))(
            coloured, self._geometry.look(batch["image"], warps), self.augment.colour
        )
        if self.cutout:
            seen = jax.vmap(_cut_out, (0, 0, None))(cut, seen, self.cutout)
        # A label that the warp moves out of the view stands for an empty map: its landmark is not to be seen.
        there, cells = (labels.score > 0) & aux.active, self._geometry.to_cells(labels.xy, warps)
        number = jnp.broadcast_to(jnp.arange(self.room, dtype=jnp.int32), there.shape)
        if self._flips:
            number = jnp.where(flips[:, None], aux.flips, number)
            if self._mirrors_as_published:
                cells = cells.at[..., 0].add(flips[:, None] * (1 - 1 / self.net.downsample))
        cells = jnp.where(there[..., None], cells, -100)
        examples = {"seen": seen, "cells": cells, "there": there, "number": number}

        def loss(params, model_state, examples):
            logits = self._net.apply({"params": params}, examples["seen"], train=True).logits
            cells, there, number = examples["cells"], examples["there"], examples["number"]
            maps, labelled = heatmaps.gaussian(cells, heat, self.sigma), there
            found, _ = heatmaps.peak(jax.lax.stop_gradient(logits), refine=False)
            if self._flips:
                maps = heatmaps.renumbered(maps, number)
                labelled = jnp.any(there[..., None] & (number[..., None] == jnp.arange(self.room)), 1)
                found = keypoints.take_slots(found, number)
            error = jnp.mean((logits.astype(maps.dtype) - maps) ** 2, (1, 2))
            inside = there & _inside(cells, heat)
            pixels = self.view.zoom * self.frame_size / heat[0] * jnp.linalg.norm(found - cells, axis=-1)
            metrics = {"distance_px": keypoints.masked_mean(pixels, inside)}
            if self.loss_over == "all":
                mean = 0.5 * jnp.mean(jnp.where(labelled, error, 0))
            else:
                mean = keypoints.masked_mean(error, labelled)
            return mean, (model_state, metrics)

        grads, _, metrics = optimizers.accumulated_gradients(loss, state.params, {}, examples, self.accumulate_steps)
        updates, opt_state = self._optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {"landmarks": jnp.sum(aux.active, dtype=jnp.float32)}
        return state.replace(params=params, opt_state=opt_state), metrics

    def round_at(self, step):
        if self.variant == "extended" or not self.merge_from <= step < self.steps:
            return None
        return Round(passes=1) if (step - self.merge_from) % self.merge_every == 0 else None

    def observe(self, state, frozen, batch, rng):
        xy, score = self._peaks(state, batch["image"])
        return Peaks(xy, (score >= self.threshold) & state.aux.active)

    def refresh(self, state, frozen, bank, rng):
        # Step 9) In how many images do two heatmaps peak at the same place?
        aux = state.aux
        radius = self.merge_radius * self.view.zoom * self.frame_size / 64

        def count(peaks):
            found = merge.colocation(peaks.xy, peaks.mask, radius)
            return jax.tree.map(lambda x: x[None], found)

        # One sum a batch, then their sum.
        each = jax.lax.map(count, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), bank.values))
        together = jax.tree.map(lambda x: jnp.sum(x, (0, 1)), each)
        population = jnp.sum(aux.labels.score > 0, 0)
        merged = merge.greedy_merge(*together, self.merge_share, population=population, used=aux.active)
        return state.replace(
            aux=aux._replace(round=aux.round + 1, active=merged.kept, labels=_merged_labels(aux.labels, merged))
        )

    def summary(self, state):
        return {"landmarks": jnp.sum(state.aux.active), "mergings": state.aux.round}

    def landmarks(self, state):
        return state.aux.active

    def predict(self, state, frozen, images):
        xy, score = self._peaks(state, images)
        there = state.aux.active if self._flips else (score >= self.threshold) & state.aux.active
        score = jnp.where(there, jnp.clip(score, 1e-3, 1), 0).astype(jnp.float32)
        return Prediction(jnp.where(there[..., None], xy, 0).astype(jnp.float32), score)

    def heatmaps(self, state, frozen, images):
        seen = self._geometry.look(images)
        return color.to_uint8(seen), jnp.maximum(self._maps(state, seen), 0)

    def _maps(self, state, seen):
        maps = self._net.apply({"params": state.params}, seen, train=False).logits
        if not self._flips:
            return maps
        turned = self._net.apply({"params": state.params}, seen[:, :, ::-1], train=False).logits
        return heatmaps.mean_with_mirrored(maps, turned, state.aux.flips, shift=self._mirrors_as_published)

    def _peaks(self, state, images):
        """Highest points of the heatmaps of still views: [B,M,2] in pixels of the frame, and how high, [B,M]."""
        maps = self._maps(state, self._geometry.look(images))
        cells, score = heatmaps.peak(maps, refine=self.decode == "parabola")
        return self._geometry.to_frame(cells), score


HEAD = ("l_0", "bn_end0", "conv_last0", "top_m_0")  # of stage 2, which learn faster in the extended code


def _merged_labels(labels: Labels, merged: merge.Merge) -> Labels:
    """Labels [N,M] after a merging: a point goes to the slot of its cluster's target."""
    rows, count = labels.score.shape
    numbers = jnp.where(labels.score > 0, jnp.arange(count, dtype=jnp.int32), -1)
    target = merge.relabel(numbers, merged)
    row = jnp.arange(rows)[:, None]
    place = jnp.where(target >= 0, target, count)  # beyond the table: dropped
    return jax.tree.map(lambda x: jnp.zeros_like(x).at[row, place].set(x, mode="drop"), labels)


def _cut_out(key, image, fraction: float):
    """ONE view with a black square inside it, with probability 1/2."""
    height, width = image.shape[:2]
    side = max(1, round(fraction * height))
    coin, place = jax.random.split(key)
    corner = jax.random.randint(place, (2,), 0, jnp.array([height - side + 1, width - side + 1]))
    down, across = jnp.arange(height)[:, None] - corner[0], jnp.arange(width) - corner[1]
    inside = (down >= 0) & (down < side) & (across >= 0) & (across < side) & jax.random.bernoulli(coin)
    return jnp.where(inside[..., None], 0, image)


def _second_from_checkpoint(given, params, active, flips, needs_flips: bool):
    """Network, active heatmaps and mirrored partners of a converted stage 2."""
    if not same_shapes(given["params"], params):
        raise UserError(
            "the weights of config.weights.mallis are of another network; set stage2's width, depth and clusters (k in "
            "the extended variant) to theirs and give a file of stage 2"
        )
    if needs_flips and "flips" not in given:
        raise UserError(
            "the weights of config.weights.mallis do not say which landmarks mirror one another; convert a file of the "
            "extended variant, or set stage2.variant=neurips"
        )
    params = jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), given["params"], params)
    active = jnp.asarray(given["active"]) > 0 if "active" in given else jnp.ones_like(active)
    if flips is not None and "flips" in given:
        flips = jnp.asarray(given["flips"], jnp.int32)
    return params, active, flips
