"""D-ULD and D-ULD++: landmarks by self-training on frozen features, and by clustering poses before keypoints.

Tourani et al., "Pose-Guided Self-Training with Two-Stage Clustering for Unsupervised Landmark Discovery", CVPR 2024.
There is no published code; what the paper leaves open is decided here and said where.

    Network            a frozen backbone, an aggregator Psi_b, a detector head Psi_d (one map), a descriptor head Psi_f

    Bootstrap          1) two views of an image under a known warp: dense correspondence, and where it can be trusted
                          (SiLK; section 3.2)
    Duld               2) keypoints are the detector's maxima, described by Psi_f; k-means: K clusters
                       3) of an image's keypoints, each cluster takes the nearest to its centroid
                       4) squared error of the detector to a map of these; contrastive loss of descriptors
                       5) every round: steps 2, 3 again, from the last round's centroids                  (section 3.2)
    Proxy              6) the detector's map is encoded into a pose code and decoded to the map of step 4
                          (section 3.3.1)
    DuldPP             7) k-means of codes: Q poses; in each pose k-means of its own keypoints: K clusters, started from
                          those of all images, so that cluster k is one landmark in all poses
                       8) step 3 among the clusters of the image's pose; contrastive loss of codes       (section 3.3.2)

One structure serves all four: D-ULD is the case of one pose. Ours, and off in the preset `paper`: labels to start from
(`start=labels`), the place as a part of descriptors (`position`).
"""

import dataclasses
import logging
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uld_jax import optimizers, weights
from uld_jax.backbones import build, finished
from uld_jax.bank import Labels, by_batch, image_table, label_table, lookup
from uld_jax.clustering import assignment, two_stage
from uld_jax.clustering.kmeans import kmeans
from uld_jax.errors import UserError
from uld_jax.hyperparameters import Fraction, NotNegative, Positive, PositiveInt, Share
from uld_jax.method import Clustering, Described, Prediction, Round, TrainState, same_shapes
from uld_jax.methods.shared import Adam, Augment, View
from uld_jax.models import aggregator, heads, layers, pose_vae
from uld_jax.ops import color, contrast, coordinates, heatmaps, keypoints, nms, views, warp

KINDS = ("dhf_aggregator",)  # of `frozen`, besides the backbone's own


class Memory(NamedTuple):
    """Pose codes of the last images seen.

    Attributes:
      codes: [S,Z] float32, nothing flows back into them.
      rows: [S] int32, the images they are of; -1 for an empty place.
    """

    codes: jax.Array
    rows: jax.Array


class Counts(NamedTuple):
    """How a round went; float32 scalars.

    Attributes:
      keypoints: mean number of keypoints an image.
      labelled: of those that stand for a landmark.
      full: images that filled every slot for keypoints, so that some may have been lost: raise `most`.
      absent: pairs of pose and landmark that are not seen together.
      moved: identities that the check of step 7 gave back to another cluster of a pose.
      margin: mean squared distance from a pose's centroid to the other landmarks' nearest, less that to its own.
      active_units: units of the pose code that vary over the images; 0 if the code has collapsed.
    """

    keypoints: jax.Array
    labelled: jax.Array
    full: jax.Array
    absent: jax.Array
    moved: jax.Array
    margin: jax.Array
    active_units: jax.Array


class Discovery(NamedTuple):
    """What is known of landmarks and poses.

    Attributes:
      round: int32, clusterings done, those of the stages before included.
      placed: bool, False between the two passes of a round with `place=mean`: clusters are new, labels are not yet.
      anchors: [K,D] float32, the landmarks' centroids over all images.
      centroids: [G,K,D], those of each pose; G is 1 without poses.
      used: [G,K] bool, False for a landmark that is not seen in a pose.
      labels: what is trained on, [N,M]; M is K unless training clusters are more (`train_clusters`).
      mirrored: [N,M] int32, the cluster of a label in the mirrored image; None without mirrored views.
      poses: [Q,Z], centroids of codes, of length 1; None before there are any.
      pose: [N] int32, the pose of each image; None likewise.
      teacher: mean of the parameters over the last steps; None without.
      memory: of codes; None but in the last stage.
      counts: of the last round.
    """

    round: jax.Array
    placed: jax.Array
    anchors: jax.Array
    centroids: jax.Array
    used: jax.Array
    labels: Labels
    mirrored: jax.Array | None
    poses: jax.Array | None
    pose: jax.Array | None
    teacher: Any
    memory: Memory | None
    counts: Counts


class Clusters(NamedTuple):
    """What a round forms, of all images or of a sample; see `Discovery` for the first four.

    Attributes:
      more: [M,D], clusters that are trained on beside the K landmarks (`train_clusters`), or None.
      memory: codes that the next steps are compared with, or None.
      moved, active_units: see `Counts`.
    """

    anchors: jax.Array
    centroids: jax.Array
    used: jax.Array
    poses: jax.Array | None
    more: jax.Array | None
    memory: Memory | None
    moved: jax.Array
    active_units: jax.Array


class Seen(NamedTuple):
    """What a pass collects.

    Attributes:
      xy: [B,P,2], keypoints in pixels of the frame.
      mask: [B,P] bool, False in empty slots.
      described: [B,P,D], their descriptors of length 1, with their place; 0 in empty slots.
      turned: [B,P,D], the same of the mirrored image; None without mirrored views.
      codes: [B,Z], the image's pose code; None without codes.
      between: [B,K,2], where each landmark is by the clusters that there are, in pixels of the frame; None but with
        `place=mean`.
    """

    xy: jax.Array
    mask: jax.Array
    described: jax.Array
    turned: jax.Array | None
    codes: jax.Array | None
    between: jax.Array | None


class Placed(NamedTuple):
    """Where images are among these clusters.

    Attributes:
      xy, mask, between: as in `Seen`.
      pose: [B] int32, or None without codes.
      slots: [B,K] int32, the keypoint that stands for each landmark, -1 for none.
      trained: [B,M] int32, the keypoint of each cluster that is trained on; `slots` unless those are more.
      mirrored: [B,M] int32, the cluster of that keypoint in the mirrored image; None without mirrored views.
    """

    xy: jax.Array
    mask: jax.Array
    between: jax.Array | None
    pose: jax.Array | None
    slots: jax.Array
    trained: jax.Array
    mirrored: jax.Array | None


class Psi(NamedTuple):
    """The network's two maps: logits [B,h,w] of the detector, descriptors [B,h,w,D] of any length."""

    logits: jax.Array
    descriptors: jax.Array


@dataclasses.dataclass(frozen=True)
class Net:
    """The trained network.

    Attributes:
      grid: side of the maps in cells; it divides the view's `image_size`. 64 in diffusion hyperfeatures, 128 to
        localise better.
      projection: channels of the aggregated map.
      width, depth: of the heads (`heads.DenseHead`).
      descriptor_size: D.
    """

    grid: PositiveInt = 64
    projection: PositiveInt = 384
    width: PositiveInt = 256
    depth: int = 1
    descriptor_size: PositiveInt = 256


@dataclasses.dataclass(frozen=True)
class Detect:
    """How keypoints are read off the detector's map.

    Attributes:
      threshold: of the detector's confidence, exclusive; 0.15 in the code of Mallis et al. Until the detector has
        learnt landmarks, `most` keypoints of highest confidence are taken without a threshold, because confidence after
        bootstrapping is unreliable.
      nms: half the side of a keypoint's box in cells.
      most: P, keypoints an image; those of highest confidence are kept.
      subpixel: see `ops.nms.subpixel`.
    """

    threshold: float = 0.15
    nms: Positive = 2
    most: int = 60
    subpixel: Literal["none", "quarter", "parabola"] = "quarter"


@dataclasses.dataclass(frozen=True)
class Localise:
    """Where a landmark is.

    Attributes:
      place: `exemplar`, its nearest keypoint (paper); or `mean`, the mean over the map's cells, weighted by
        confidence * exp(-sharpness * squared distance to the centroid). Ours: it is exact to less than a cell, and
        takes a second pass a round, as labels are placed by the new centroids.
      sharpness: see `place`.
      fill: a landmark without a keypoint: `dense`, predicted where the map is nearest to its centroid (or where `place`
        has it), with a score below 1/2; or `none`, missing. Labels are never filled.
    """

    place: Literal["exemplar", "mean"] = "exemplar"
    sharpness: float = 10.0
    fill: Literal["dense", "none"] = "dense"


@dataclasses.dataclass(frozen=True)
class _Network(Clustering):
    """Network, rounds and prediction, which all four stages share.

    Attributes:
      k: K, number of landmarks.
      frame_size: side of the frame in pixels.
      steps: of the stage, for the schedule.
      backbone, backbone_kwargs: frozen features, module and class below `uld_jax.backbones`.
      view: of the frame, that the backbone is given.
      net: the trained network's size.
      dtype: of the trained networks' arithmetic.
      roi: keypoints are looked for in this central fraction of the frame.
      region: and, on training images, in the csv's `box` (section 3.1 has a detector's), or `none`.
      detect: keypoints.
      position: weight of the place in a descriptor, for clustering alone; ours, see `zeroshot.ZeroShot`. 0: none.
      start: `clusters` forms the first clusters of the keypoints' descriptors (paper); `labels` takes those of the
        table that the stage before left, such as ZeroShot's, and trains on it until the second round (ours).
      localise: where a landmark is.
      iterations, restarts: of k-means; restarts of the first one.
      bank_gib: descriptors kept of a pass, in GiB; of a data set with more, clusters are formed from a sample of its
        images (`Clustering`).
      ema: of the parameters that round and prediction use, per step; 0 for the newest ones.
      augment: the training views; warps are uniformly distributed, as in the code of Mallis et al.
      mirror: whether views are mirrored at random (paper). Of two views that correspond, both are or none: else the
        loss asks for equal descriptors of the left eye and the right one.
      optimizer: Adam.
      accumulate_steps: pieces of a batch.
      cache: folder of the backbone's maps or latents (`uld features`) for the passes over the training images, which
        then need zoom=1 and image_size=frame_size. Training looks at warped images and computes its own.
      weights: folders of converted weights by kind; `dhf_aggregator` starts the aggregator from published weights,
        which were trained with annotated keypoints.
    """

    needs_previous_rows = True
    weight_kinds = frozenset(KINDS)

    k: int
    frame_size: int
    steps: int
    backbone: str = "stable_diffusion.StableDiffusion"
    backbone_kwargs: Any = ()
    view: View = View()
    net: Net = Net()
    dtype: str = "float32"
    roi: Fraction = 1.0
    region: Literal["none", "box"] = "none"
    detect: Detect = Detect()
    position: float = 0.0
    start: Literal["clusters", "labels"] = "clusters"
    localise: Localise = Localise()
    iterations: int = 100
    restarts: int = 3
    bank_gib: Positive = 4.0
    ema: Share = 0.999
    augment: Augment = Augment(40.0, 0.2, 0.05)
    mirror: bool = True
    optimizer: Adam = Adam(warmup=500, clip=1.0)
    accumulate_steps: int = 1
    cache: str = ""
    weights: Any = ()

    def __post_init__(self):
        super().__post_init__()
        if self.view.image_size % self.net.grid:
            raise UserError(f"net.grid is {self.net.grid}; use a divisor of view.image_size = {self.view.image_size}")
        if self.detect.most < self.k:
            raise UserError(f"detect.most is {self.detect.most}; use at least k = {self.k} keypoints an image")
        if self.cache and (self.view.zoom != 1 or self.view.image_size != self.frame_size):
            raise UserError(
                f"cache holds maps of whole frames; set zoom=1 and image_size={self.frame_size}, or leave the cache out"
            )

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()

    # -- what a stage has ---------------------------------------------------------------------------------------------

    trains = ("aggregator", "detector", "descriptor")  # parts that learn
    keeps = ()  # parts that are there and stay as they are
    codes = False  # whether images have a pose code

    @property
    def _poses(self) -> int:
        """Q: clusters of codes; 0 without codes."""
        return 0

    @property
    def _groups(self) -> int:
        """Poses whose keypoints are clustered by themselves."""
        return 1

    @property
    def _clusters(self) -> int:
        """M: clusters that are trained on."""
        return self.k

    @property
    def _mirrors(self) -> bool:
        """Whether labels need to know their clusters in the mirrored image."""
        return False

    # -- network ------------------------------------------------------------------------------------------------------

    @property
    def _backbone(self):
        return build.backbone(self.backbone, f"{self._name}.backbone", self.backbone_kwargs, self.weights)

    @property
    def _nets(self) -> dict[str, Any]:
        options = layers.precision(self.dtype)
        return {
            "aggregator": aggregator.Aggregator(self.net.projection, **options),
            "detector": heads.DenseHead(1, self.net.width, self.net.depth, **options),
            "descriptor": heads.DenseHead(self.net.descriptor_size, self.net.width, self.net.depth, **options),
        }

    @property
    def _geometry(self) -> views.Geometry:
        return self.view.geometry(self.frame_size, self.view.image_size // self.net.grid, self.dtype)

    @property
    def _optimizer(self):
        return self.optimizer.transform(self.steps)

    def frozen(self, purpose="train"):
        if purpose != "train":
            return self._backbone.load()
        given = {kind: dict(self.weights).get(kind, "") for kind in KINDS}
        own = {kind: weights.load(folder, kind) for kind, folder in given.items() if folder}
        return self._backbone.load() | own

    def side_tables(self):
        return {"boxes": ()} if self.region == "box" else {}

    def backbone_frozen(self, frozen):
        """What of `frozen` is the backbone's."""
        return {name: value for name, value in frozen.items() if name not in KINDS}

    def _maps(self, frozen, seen):
        """The backbone's maps of views [B,S,S,3] in 0..1, in the pieces of a batch."""
        parts = math.gcd(self.accumulate_steps, len(seen))
        # Still views lie on fractions of pixels, half-way between two bytes often: a hair more, and all round one way.
        seen = color.to_uint8(seen + 1e-3 / 255)
        pieces = jnp.moveaxis(seen.reshape(-1, parts, *seen.shape[1:]), 1, 0)
        done = []
        for piece in pieces:
            done.append(self._backbone.features(self.backbone_frozen(frozen), piece))
            if parts > 1:  # one after the other, see `optimizers.accumulated_gradients`
                done, frozen = jax.lax.optimization_barrier((done, frozen))
        maps = jax.tree.map(lambda *x: self._wide(jnp.stack(x, 1).reshape(len(seen), *x[0].shape[1:])), *done)
        return jax.lax.stop_gradient(maps)

    def _wide(self, x):
        return x.astype(layers.wide(self.dtype))

    def _psi(self, params, maps) -> Psi:
        nets = self._nets
        mixed = nets["aggregator"].apply({"params": params["aggregator"]}, maps, self._geometry.heat)
        logits = nets["detector"].apply({"params": params["detector"]}, mixed)[..., 0]
        return Psi(logits, nets["descriptor"].apply({"params": params["descriptor"]}, mixed))

    def _code(self, params, maps):
        """Mean and log-variance of the code [B,Z] of confidence maps [B,h,w], zero outside the region of interest."""
        raise NotImplementedError

    def _fresh(self, rng, image) -> dict[str, Any]:
        """First parameters of all parts."""
        heat, wide = self._geometry.heat, layers.wide(self.dtype)
        frozen = jax.eval_shape(self._backbone.load)
        maps = jax.eval_shape(self._maps, frozen, jax.ShapeDtypeStruct((1, *self._geometry.view, 3), wide))
        keys = dict(zip((*self.trains, *self.keeps), jax.random.split(rng, len(self.trains + self.keeps)), strict=True))
        mixed = jax.ShapeDtypeStruct((1, *heat, self.net.projection), wide)
        shapes = {"encoder": (1, *heat), "decoder": (1, getattr(self, "latent", 1))}
        params = {}
        for name, key in keys.items():
            net = self._nets[name]
            if name == "aggregator":
                params[name] = aggregator.initialize(net, key, maps, heat)
            else:
                given = jax.ShapeDtypeStruct(shapes[name], wide) if name in shapes else mixed
                params[name], _ = layers.split(layers.initialize(net, key, given))
        bias = params["detector"][f"Conv_{self.net.depth}"]["bias"]
        params["detector"][f"Conv_{self.net.depth}"]["bias"] = jnp.full_like(bias, -4)  # keypoints are rare
        return params

    # -- start --------------------------------------------------------------------------------------------------------

    def init(self, rng, batch, frozen, start):
        previous, num_images = start.previous, start.num_images
        params = self._fresh(rng, batch["image"])
        if "dhf_aggregator" in frozen:
            params["aggregator"] = self._converted(frozen["dhf_aggregator"], params["aggregator"])
        before = previous.aux if previous is not None and isinstance(previous.aux, Discovery) else None
        if before is not None:
            known = previous.params if before.teacher is None else before.teacher
            for name in set(params) & set(known):
                if not same_shapes(known[name], params[name]):
                    raise UserError(
                        f"the stage before has another {name}; give both stages the same backbone, projection, width, "
                        "depth, descriptor_size, grid and latent"
                    )
                params[name] = known[name]
        aux = self._first(params, before, self._given(previous, num_images), num_images)
        trained = {name: params[name] for name in self.trains}
        return TrainState(step=jnp.int32(0), params=params, opt_state=self._optimizer.init(trained), aux=aux)

    def _converted(self, given, params):
        if not same_shapes(given["params"], params):
            raise UserError(
                "config.weights.dhf_aggregator is of other maps; use Stable Diffusion's 12 taps at as many timesteps, "
                "and projection=384"
            )
        logging.warning("the aggregator starts from published weights, which were trained with annotated keypoints")
        return jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), given["params"], params)

    def _given(self, previous, rows) -> Labels | None:
        """The table of labels that the stage before left, if it is of these images."""
        labels = getattr(previous.aux, "labels", None) if previous is not None else None
        if self.start == "labels" and labels is None:
            raise UserError(
                f"{self._name}.start=labels needs landmarks to start from; put a stage such as zeroshot before it, or "
                f"set {self._name}.start=clusters"
            )
        if labels is None or labels.xy.shape[:2] != (rows, self.k):
            if self.start == "labels":
                raise UserError(
                    f"the stage before left {labels.xy.shape[1]} landmarks of {labels.xy.shape[0]} images, not "
                    f"{self.k} of {rows}; use the same k and images"
                )
            return None
        return labels

    def _first(self, params, before, labels, rows) -> Discovery:
        """What is known before the first step."""
        wide, size, groups = layers.wide(self.dtype), self.net.descriptor_size + 2 * (self.position > 0), self._groups
        zeros = lambda *shape: jnp.zeros(shape, wide)
        count, number = self._clusters, jnp.zeros((), jnp.float32)
        if labels is None or count != self.k:
            labels = Labels(zeros(rows, count, 2), zeros(rows, count))
        anchors, steps = zeros(self.k, size), jnp.int32(0)
        if before is not None and before.anchors.shape == anchors.shape:
            anchors, steps = before.anchors, before.round
        poses, pose = (zeros(self._poses, self.latent), jnp.zeros(rows, jnp.int32)) if self.codes else (None, None)
        if self.codes and before is not None and same_shapes((before.poses, before.pose), (poses, pose)):
            poses, pose = before.poses, before.pose
        return Discovery(
            round=steps,
            placed=jnp.bool_(True),
            anchors=anchors,
            centroids=jnp.broadcast_to(anchors, (groups, *anchors.shape)),
            used=jnp.ones((groups, self.k), bool),
            labels=jax.tree.map(self._wide, labels),
            mirrored=jnp.zeros((rows, count), jnp.int32) if self._mirrors else None,
            poses=poses,
            pose=pose,
            teacher=params if self.ema else None,
            memory=None,
            counts=Counts(*[number] * len(Counts._fields)),
        )

    # -- what every step shares ---------------------------------------------------------------------------------------

    def _views(self, batch, second, keys, flip_keys, mirror):
        """Step of augmentation: views [2B,...] of images and `second`, neighbours in pairs; warps and flips."""
        images = jnp.stack([batch["image"], second], 1).reshape(-1, *batch["image"].shape[1:])
        warps, flips = self._warps(keys, flip_keys, mirror)
        return self._coloured(keys, self._geometry.look(images, warps)), warps, flips

    def _coloured(self, keys, seen):
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 2)  # of the same key the warp has another part
        return jax.vmap(color.mild_changes, (0, 0, None))(keys, seen, self.augment.colour)

    def _warps(self, keys, flip_keys, mirror: bool):
        drawn_by = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
        warps = self.augment.uniform_warps(drawn_by, self.view.zoom, self.dtype)
        if not mirror:
            return warps, jnp.zeros(len(keys), bool)
        flips = jax.vmap(jax.random.bernoulli)(flip_keys)
        return jax.vmap(warp.mirrored)(warps, flips), flips

    def _inside(self, warps, boxes=None):
        """Cells [B,h,w] of views whose place in the frame is in the region of interest."""
        height, width = self._geometry.heat
        cells = jnp.asarray(coordinates.pixel_grid(height, width), layers.wide(self.dtype)).reshape(1, -1, 2)
        xy = self._geometry.to_frame(jnp.broadcast_to(cells, (len(warps.shift), *cells.shape[1:])), warps)
        frame = self.frame_size, self.frame_size
        inside = jnp.all(jnp.abs(coordinates.to_unit(xy, frame)) <= self.roi, -1)
        if boxes is not None:
            inside &= jnp.all((xy >= boxes[:, None, :2]) & (xy <= boxes[:, None, 2:]), -1)
        return inside.reshape(-1, height, width)

    def _target(self, cells, there, sigma: float):
        """One map [B,h,w] of Gaussians at the points that are `there`, the highest of them at every cell."""
        places = jnp.where(there[..., None], cells, -100)
        return jnp.max(heatmaps.gaussian(places, self._geometry.heat, sigma), -1)

    def _labelled(self, labels: Labels, index, warps):
        """Labels [B,M] of training rows in cells of their views, and which are there."""
        rows = jax.tree.map(lambda table: table[index], labels)
        cells = self._geometry.to_cells(rows.xy, warps)
        high = jnp.asarray([self._geometry.heat[1], self._geometry.heat[0]], cells.dtype) - 0.5
        return cells, (rows.score > 0) & jnp.all((cells >= -0.5) & (cells <= high), -1)

    def _learn(self, state, loss, examples):
        """One step of Adam for the parts that learn; `loss` takes all parameters and examples [B,...]."""
        rest = {name: state.params[name] for name in self.keeps}

        def partial(trained, _, examples):
            value, metrics = loss(trained | rest, examples)
            return value, ({}, metrics)

        trained = {name: state.params[name] for name in self.trains}
        grads, _, metrics = optimizers.accumulated_gradients(partial, trained, {}, examples, self.accumulate_steps)
        updates, opt_state = self._optimizer.update(grads, state.opt_state, trained)
        params = optax.apply_updates(trained, updates) | rest
        aux = state.aux
        if self.ema:
            # The mean forgets faster at first, when there is little to remember.
            keep = jnp.minimum(self.ema, (1 + state.step) / (10 + state.step)).astype(layers.wide(self.dtype))
            mean = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, aux.teacher, params)
            aux = aux._replace(teacher=mean)
        return state.replace(params=params, opt_state=opt_state, aux=aux), metrics

    def _latest(self, state):
        """The parameters that see: the mean over steps, or the newest."""
        return state.aux.teacher if self.ema else state.params

    # -- rounds -------------------------------------------------------------------------------------------------------

    def _look(self, state, frozen, images, boxes=None, maps=None):
        """Network, region and codes of still frames: (Psi, inside [B,h,w], codes [B,Z] of length 1 or None)."""
        params, still = self._latest(state), self._geometry.still(len(images))
        if maps is None:
            maps = self._maps(frozen, self._geometry.look(images))
        else:
            maps = finished(self._backbone, self.backbone_frozen(frozen), maps)
        psi = self._psi(params, {name: self._wide(value) for name, value in maps.items()})
        inside = self._inside(still, boxes)
        if not self.codes:
            return psi, inside, None
        # Without the boxes, which new images do not have.
        mean, _ = self._code(params, jnp.where(self._inside(still), jax.nn.sigmoid(psi.logits), 0))
        return psi, inside, mean

    def _least(self, state):
        """The confidence that a keypoint must exceed."""
        return self.detect.threshold

    def _detect(self, state, psi: Psi, inside):
        """Step 2) Keypoints in cells: xy [B,P,2] and mask [B,P]."""
        confidence = jnp.where(inside, jax.nn.sigmoid(psi.logits), 0)
        # Where an image is flat, cells are equally sure: they shall not be ranked by how sums were rounded.
        ranked = jnp.round(confidence * 2**16) / 2**16
        found = nms.points(nms.greedy(ranked, self._least(state), self.detect.nms), ranked, self.detect.most)
        return nms.subpixel(confidence, found.xy, self.detect.subpixel), found.mask

    def _describe(self, psi: Psi, cells, mirrored: bool = False):
        """Descriptors [B,P,D] of length 1 at cells of still views, with their place; or of the mirrored views there."""
        at = cells
        if mirrored:
            at = jnp.stack([self._geometry.heat[1] - 1 - cells[..., 0], cells[..., 1]], -1)
        described = keypoints.l2_normalize(keypoints.sample(psi.descriptors, at))
        return self._placed(described, at)

    def _placed(self, described, cells):
        if not self.position:
            return described
        place = self.view.zoom * coordinates.to_unit(cells, self._geometry.heat) * (self.position / 2)
        return jnp.concatenate([described, place.astype(described.dtype)], -1)

    def _keeps_labels(self, state):
        """Whether a round now only describes the labels that are there."""
        return (state.step == 0) if self.start == "labels" else False

    def observe(self, state, frozen, batch, rng):
        images, boxes = batch["image"], batch["boxes"] if self.region == "box" else None
        psi, inside, codes = self._look(state, frozen, images, boxes, batch.get("features"))
        still = self._geometry.still(len(images))
        cells, mask = self._detect(state, psi, inside)
        if self.start == "labels":
            known = jax.tree.map(lambda table: lookup(table, batch["index"])[:, : self.k], state.aux.labels)
            pad = self.detect.most - self.k
            at = jnp.pad(self._geometry.to_cells(known.xy, still), ((0, 0), (0, pad), (0, 0)))
            there = jnp.pad(known.score > 0, ((0, 0), (0, pad)))
            keep = self._keeps_labels(state)
            cells, mask = jnp.where(keep, at, cells), jnp.where(keep, there, mask)
        there = lambda described: jnp.where(mask[..., None], described, 0)
        turned, between = None, None
        if self._mirrors:
            psi_turned = self._psi(self._latest(state), self._maps(frozen, self._geometry.look(images)[:, :, ::-1]))
            turned = there(self._describe(psi_turned, cells, mirrored=True))
        if self.localise.place == "mean":
            where, _ = self._where(psi, inside, self._centroids_of(state.aux, codes, len(images)))
            between = self._geometry.to_frame(where)
        return Seen(self._geometry.to_frame(cells), mask, there(self._describe(psi, cells)), turned, codes, between)

    def form(self, state, frozen, bank, rng):
        clusters = lambda: self._clustered(state, bank, rng)
        if self.localise.place == "exemplar":
            return clusters()
        aux = state.aux  # the second pass has the clusters of the first
        told = aux.counts.moved, aux.counts.active_units
        known = Clusters(aux.anchors, aux.centroids, aux.used, aux.poses, None, aux.memory, *told)
        return jax.lax.cond(aux.placed, clusters, lambda: known)

    def locate(self, state, found, seen):
        pose = two_stage.nearest_pose(self._scaled(seen.codes), found.poses) if self.codes else None
        group = pose if self._groups > 1 else jnp.zeros(len(seen.mask), jnp.int32)
        clusters = found.centroids, found.used
        slots, _ = two_stage.exemplars(seen.described, seen.mask, group, *clusters)
        trained, mirrored = slots, None
        if self._clusters != self.k:
            clusters = found.more[None], jnp.ones((1, self._clusters), bool)
            trained, _ = two_stage.exemplars(seen.described, _standing(seen.mask, slots), group, *clusters)
        if self._mirrors:
            partner = two_stage.nearest(seen.turned, seen.mask, group, *clusters)
            mirrored = keypoints.take_slots(partner, trained)
            if self.start == "labels":  # labels that are kept are in slots of their own, whatever is nearest to them
                mirrored = jnp.where(self._keeps_labels(state), partner[..., : self.k], mirrored)
        return Placed(seen.xy, seen.mask, seen.between, pose, slots, trained, mirrored)

    def settle(self, state, found, bank):
        first = lambda: self._labels_at_exemplars(state, found, bank)
        if self.localise.place == "exemplar":
            return state.replace(aux=first())
        second = lambda: self._labels_between_cells(state, bank)
        return state.replace(aux=jax.lax.cond(state.aux.placed, first, second))

    def _clustered(self, state, bank, rng) -> Clusters:
        """Steps 2, 7) New clusters."""
        aux = state.aux
        pose_key, first_key, more_key = jax.random.split(rng, 3)
        seen, real = bank.values, bank.real
        group, poses, active, memory = jnp.zeros(bank.index.shape, jnp.int32), aux.poses, jnp.int32(0), aux.memory
        if self.codes:
            poses, active = self._pose_clusters(seen.codes, real, aux, pose_key)
            if memory is not None:
                memory = self._remembered(seen.codes, real, bank.index, memory)
        if self._groups > 1:
            group = two_stage.nearest_pose(self._scaled(seen.codes), poses)
        anchors = self._anchors(state, seen, first_key)
        centroids, used, moved = self._centroids(seen, anchors, group)
        more = None
        if self._clusters != self.k:
            place = lambda described, mask, group: two_stage.exemplars(described, mask, group, centroids, used)
            slots, _ = by_batch(place, seen.described, seen.mask, group)
            more = self._more_clusters(seen, slots, more_key)
        told = moved.astype(jnp.float32), active.astype(jnp.float32)
        return Clusters(anchors, centroids, used, poses, more, memory, *told)

    def _labels_at_exemplars(self, state, found, bank) -> Discovery:
        """Steps 3, 8) Labels of the first pass, at the clusters' exemplars."""
        aux, placed, total = state.aux, bank.values, len(state.aux.labels.score)
        labels = label_table(bank, placed.xy, placed.trained, total)
        counts = Counts(
            keypoints=jnp.sum(placed.mask) / total,
            labelled=jnp.sum(placed.slots >= 0) / total,
            full=jnp.sum(jnp.sum(placed.mask, -1) >= self.detect.most),
            absent=jnp.sum(~found.used),
            moved=found.moved,
            margin=two_stage.margin(found.centroids, found.used),
            active_units=found.active_units,
        )
        return aux._replace(
            round=aux.round + 1,
            placed=jnp.bool_(self.localise.place == "exemplar"),
            anchors=found.anchors,
            centroids=found.centroids,
            used=found.used,
            labels=self._kept(state, labels),
            mirrored=None if placed.mirrored is None else image_table(bank, placed.mirrored, total),
            poses=found.poses,
            pose=image_table(bank, placed.pose, total) if self.codes else None,
            memory=found.memory,
            counts=jax.tree.map(lambda x: x.astype(jnp.float32), counts),
        )

    def _labels_between_cells(self, state, bank) -> Discovery:
        """Labels of the second pass: where the clusters of the first are, for the landmarks that have an exemplar."""
        number = jnp.where(bank.values.slots >= 0, jnp.arange(self.k), -1)
        labels = label_table(bank, bank.values.between, number, len(state.aux.labels.score))
        return state.aux._replace(placed=jnp.bool_(True), labels=self._kept(state, labels))

    def _kept(self, state, labels):
        """New labels, or those that there are."""
        keep = self._keeps_labels(state)
        return jax.tree.map(lambda new, old: jnp.where(keep, old, new), labels, state.aux.labels)

    def _pose_clusters(self, codes, there, aux, rng):
        """Step 7) Centroids [Q,Z] of the codes [B,T,Z] that are there, and how many units are active."""
        flat, mask = codes.reshape(-1, codes.shape[-1]), there.reshape(-1)
        active = pose_vae.active_units(flat, mask)
        options = dict(mask=mask, iterations=self.iterations, restarts=self.restarts)
        start = aux.poses
        found = two_stage.warm_kmeans(self._scaled(flat), self._poses, start, jnp.any(start != 0), rng, **options)
        return found, active

    def _scaled(self, codes):
        """Codes as clusters and losses compare them."""
        return keypoints.l2_normalize(codes, eps=1e-6)

    def _anchors(self, state, seen, rng):
        """Step 2) The landmarks' centroids [K,D] over all images."""
        x, mask = _both(seen)
        options = dict(mask=mask, iterations=self.iterations, restarts=self.restarts)
        clustered = lambda: two_stage.warm_kmeans(x, self.k, state.aux.anchors, state.aux.round > 0, rng, **options)
        if self.start == "labels":  # a label's slot is its landmark
            own = seen.described[:, :, : self.k]
            mean = keypoints.masked_mean(own, seen.mask[:, :, : self.k, None], (0, 1))
            return jnp.where(self._keeps_labels(state), mean, clustered())
        return clustered()

    def _centroids(self, seen, anchors, group):
        """Step 7) Centroids [G,K,D] of each pose's keypoints, from those of all; which are seen; how many moved."""
        if self._groups == 1:
            return two_stage.Groups(anchors[None], jnp.ones((1, self.k), bool), jnp.zeros((), jnp.int32))
        x, mask = _both(seen)
        limits = {"least_share": self.least_share, "least_keypoints": self.least_keypoints}
        return two_stage.cluster_groups(
            x, mask, seen.mask, group, anchors, self._groups, iterations=self.iterations, **limits
        )

    def _more_clusters(self, seen, slots, rng):
        """M clusters to train on, of the keypoints that stand for one of the K landmarks (Mallis et al. 2024)."""
        x, mask = _both(seen, standing=slots)
        options = dict(iterations=self.iterations, restarts=self.restarts)
        return kmeans(x, self._clusters, rng=rng, mask=mask, **options).centroids

    def summary(self, state):
        counts = state.aux.counts._asdict()
        return (
            counts if self.codes else {k: v for k, v in counts.items() if k not in ("active_units", "absent", "moved")}
        )

    def _is_due(self, step):
        return step % self.round_every == 0 or step == self.steps

    def round_at(self, step):
        # With `place=mean` labels are placed by the new clusters, in a pass of their own.
        return Round(passes=2 if self.localise.place == "mean" else 1) if self._is_due(step) else None

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(self, state, frozen, images):
        _, at, there, distance, near = self._read(state, frozen, images)
        guess = 0.499 * jnp.exp(-near) if self.localise.fill == "dense" else jnp.zeros_like(near)
        score = jnp.where(there, 0.5 + 0.5 * jnp.exp(-distance), guess)
        xy = jnp.where((score > 0)[..., None], self._geometry.to_frame(at), 0)
        return Prediction(xy.astype(jnp.float32), score.astype(jnp.float32), there)

    def _read(self, state, frozen, images):
        """Network, landmarks [B,K,2] in cells, whether they have an exemplar, its distance, the least of any cell."""
        aux = state.aux
        psi, inside, codes = self._look(state, frozen, images)
        cells, mask = self._detect(state, psi, inside)
        described = jnp.where(mask[..., None], self._describe(psi, cells), 0)
        group = self._group(aux, codes, len(images))
        slots, distance = two_stage.exemplars(described, mask, group, aux.centroids, aux.used)
        there = slots >= 0
        where, near = self._where(psi, inside, self._centroids_of(aux, codes, len(images)))
        at = where
        if self.localise.place == "exemplar":
            at = jnp.where(there[..., None], keypoints.take_slots(cells, slots), where)
        return psi, at, there, distance, near

    def describe(self, state, frozen, images):
        # At the landmarks that have an exemplar, without their place.
        psi, at, there, *_ = self._read(state, frozen, images)
        described = keypoints.l2_normalize(keypoints.sample(psi.descriptors, at))
        number = jnp.where(there, jnp.arange(self.k, dtype=jnp.int32), -1)
        return Described(described, number, there)

    def _pose(self, aux, codes):
        """Nearest pose of codes [B,Z]."""
        return jnp.argmin(contrast.square_distances(self._scaled(codes), aux.poses), -1).astype(jnp.int32)

    def _group(self, aux, codes, count: int):
        """Which of the groups of centroids each of `count` images has."""
        return self._pose(aux, codes) if self._groups > 1 else jnp.zeros(count, jnp.int32)

    def _centroids_of(self, aux, codes, count: int):
        """Centroids [B,K,D] of images; of a landmark that is not seen in a pose, that of all poses."""
        known = jnp.where(aux.used[..., None], aux.centroids, aux.anchors)
        return known[self._group(aux, codes, count)]

    def _where(self, psi: Psi, inside, centroids):
        """Where in the region each centroid [B,K,D] is best matched: (x, y) [B,K,2] in cells, least distance [B,K]."""
        batch, height, width = inside.shape
        grid = jnp.asarray(coordinates.pixel_grid(height, width), centroids.dtype).reshape(-1, 2)
        described = keypoints.l2_normalize(psi.descriptors).reshape(batch, height * width, -1)
        described = self._placed(described, jnp.broadcast_to(grid, (batch, *grid.shape)))
        cost = assignment.squared_distances(described, centroids)
        cost = jnp.where(inside.reshape(batch, -1, 1), cost, jnp.inf)
        if self.localise.place == "exemplar":
            return grid[jnp.argmin(cost, 1)], jnp.min(cost, 1)
        sure = jax.nn.log_sigmoid(psi.logits).reshape(batch, -1, 1)
        weight = jax.nn.softmax(sure - self.localise.sharpness * cost, 1)
        return jnp.einsum("bpk,pc->bkc", weight, grid, precision="highest"), jnp.min(cost, 1)

    def poses(self, state, frozen, images):
        if not self.codes:
            return None
        return self._pose(state.aux, self._look(state, frozen, images)[2])

    def heatmaps(self, state, frozen, images):
        seen = self._geometry.look(images)
        psi = self._psi(self._latest(state), self._maps(frozen, seen))
        return color.to_uint8(seen), jax.nn.sigmoid(psi.logits)[..., None]


@dataclasses.dataclass(frozen=True)
class Bootstrap(_Network):
    """Step 1) Aggregator and heads learn dense correspondence under warps; then the first clusters are formed.

    Attributes:
      temperature: of similarities of descriptors of length 1; 0.1 between descriptors of length 1.41 in SiLK.
      block: rows of a pair's similarities that exist at a time; 0 for all, enough for a grid of 64.
    """

    temperature: Positive = 0.1 / 1.41**2
    block: NotNegative = 0

    def __post_init__(self):
        super().__post_init__()
        if self.block and self.net.grid**2 % self.block:
            raise UserError(f"block is {self.block}; use a divisor of grid * grid = {self.net.grid**2}, or 0")

    @property
    def needs_previous_rows(self):
        """Whether `previous` must come from the same images."""
        return self.start == "labels"

    @property
    def uses_previous(self):
        """Whether anything of the stage before is used."""
        return self.start == "labels"

    def _is_due(self, step):
        return step == self.steps

    def _keeps_labels(self, state):
        return self.start == "labels"

    def _least(self, state):
        return 0.0

    def train_step(self, state, frozen, batch, rng):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        first, second, flip = jnp.unstack(jax.vmap(lambda key: jax.random.split(key, 3))(keys), axis=1)
        keys = jnp.stack([first, second], 1).reshape(-1)
        seen, warps, _ = self._views(batch, batch["image"], keys, jnp.repeat(flip, 2), self.mirror)
        pair = lambda x: x.reshape(-1, 2, *x.shape[1:])
        examples = {
            "maps": jax.tree.map(pair, self._maps(frozen, seen)),
            "matches": pair(self._matches(warps)),
        }

        def loss(params, examples):
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), examples["maps"])
            psi = self._psi(params, flat)
            described = keypoints.l2_normalize(psi.descriptors)
            cells = lambda x: x.reshape(-1, 2, self.net.grid**2, *x.shape[3:])
            z, logits, match = cells(described), cells(psi.logits), examples["matches"]
            one = lambda z, at, m: contrast.reciprocal(
                z[0], z[1], at[0], at[1], m[0], m[1], temperature=self.temperature, block=self.block
            )
            found = jax.tree.map(jnp.mean, jax.vmap(one)(z, logits, match))
            metrics = {"descriptor": found.descriptor, "keypoint": found.keypoint, "correct": found.correct}
            return found.descriptor + found.keypoint, metrics

        return self._learn(state, loss, examples)

    def _matches(self, warps):
        """[2B,N] int32: the cell of the pair's other view that shows the same place, -1 for none.

        A cell's centre falls into a cell of the other view, whose own centre must fall back into it.
        """
        height, width = self._geometry.heat
        grid = jnp.asarray(coordinates.pixel_grid(height, width), warps.shift.dtype).reshape(1, -1, 2)
        grid = jnp.broadcast_to(grid, (len(warps.shift), *grid.shape[1:]))
        swapped = jax.tree.map(lambda x: x.reshape(len(x) // 2, 2, *x.shape[1:])[:, ::-1].reshape(x.shape), warps)
        cells = jnp.floor(self._geometry.to_cells(self._geometry.to_frame(grid, warps), swapped) + 0.5)
        inside = jnp.all((cells >= 0) & (cells < jnp.asarray([width, height])), -1)
        index = jnp.where(inside, cells[..., 1] * width + cells[..., 0], 0).astype(jnp.int32)
        other = index.reshape(-1, 2, height * width)[:, ::-1].reshape(index.shape)
        there = inside.reshape(-1, 2, height * width)[:, ::-1].reshape(index.shape)
        back = jnp.take_along_axis(other, index, 1) == jnp.arange(height * width)
        return jnp.where(inside & jnp.take_along_axis(there, index, 1) & back, index, -1)


@dataclasses.dataclass(frozen=True)
class _Rounds(_Network):
    """What the stages with pseudo-labels share: a map of the landmarks, and when it is made anew.

    Attributes:
      round_every: steps between clusterings; 5,000.
      sigma: of the Gaussians that the detector learns, in cells.
    """

    round_every: PositiveInt = 5_000
    sigma: Positive = 1.0

    def _detector_loss(self, logits, cells, there):
        return jnp.mean((jax.nn.sigmoid(logits) - self._target(cells, there, self.sigma)) ** 2)


@dataclasses.dataclass(frozen=True)
class Duld(_Rounds):
    """Steps 2) to 5) Detector and descriptors learn from clusters of their own keypoints.

    Attributes:
      train_clusters: M; landmarks' keypoints are clustered once more into so many, which are trained on, while K stand
        for landmarks (the row "Mallis (D)" of the ablation: 100). 0: the K themselves (section 3.2).
      descriptor_weight: of the contrastive loss; 10 in the code of Mallis et al.
      squared: pairs weigh by squares, d^2 and max(0, m - d)^2 (that code); else d and max(0, m - d) (eq. 4).
      margin: m, 0.8.
      negatives: pairs that must be apart: `within` a view, of keypoints and of keypoints with random cells (that code);
        or `cross`, of both images' other clusters (the words of eq. 4).
      background: random cells a view.
      apart: pairs of a view that are nearer, in cells of a map of 64, are left out; 5.7.
    """

    needs_partner = True

    train_clusters: NotNegative = 0
    descriptor_weight: float = 10.0
    squared: bool = True
    margin: Positive = 0.8
    negatives: Literal["within", "cross"] = "within"
    background: PositiveInt = 64
    apart: float = 5.7

    def __post_init__(self):
        super().__post_init__()
        if self.train_clusters and (self.start == "labels" or self.localise.place == "mean"):
            raise UserError(
                "train_clusters needs clusters and keypoints of its own; set start=clusters and place=exemplar"
            )

    @property
    def needs_previous_rows(self):
        """Whether `previous` must come from the same images."""
        return self.start == "labels"

    @property
    def _clusters(self):
        return self.train_clusters or self.k

    @property
    def _mirrors(self):
        return self.mirror

    def _least(self, state):
        return jnp.where(state.step > 0, self.detect.threshold, 0.0)

    def train_step(self, state, frozen, batch, rng):
        aux = state.aux
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        coin, *drawn = jnp.unstack(jax.vmap(lambda key: jax.random.split(key, 5))(keys), axis=1)
        # Another image, or the same one again, in another view.
        other = jax.vmap(jax.random.bernoulli)(coin)
        index = jnp.stack([batch["index"], jnp.where(other, batch["index2"], batch["index"])], 1).reshape(-1)
        second = jnp.where(other[:, None, None, None], batch["image2"], batch["image"])
        keys, flip_keys = jnp.stack(drawn[:2], 1).reshape(-1), jnp.stack(drawn[2:], 1).reshape(-1)
        seen, warps, flips = self._views(batch, second, keys, flip_keys, self.mirror)
        cells, there = self._labelled(aux.labels, index, warps)
        number = jnp.broadcast_to(jnp.arange(self._clusters, dtype=jnp.int32), there.shape)
        if self.mirror:
            # Until there is a round, nobody knows what a label is in the mirror.
            number = jnp.where(flips[:, None], jnp.where(aux.round > 0, aux.mirrored[index], -1), number)
        examples = {
            "maps": self._maps(frozen, seen),
            "cells": cells,
            "there": there,
            "number": number,
            "background": jax.vmap(lambda key: _random_cells(self, key))(keys),
        }
        examples = jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]), examples)
        return self._learn(state, self._loss, examples)

    def _loss(self, params, examples):
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), examples)
        psi, cells, there = self._psi(params, flat["maps"]), flat["cells"], flat["there"]
        # Step 4)
        detector = self._detector_loss(psi.logits, cells, there)
        described = _unit(psi, jnp.where(there[..., None], cells, 0))
        pair = lambda x: (x[0::2], x[1::2])
        (a, b), (on_a, on_b), (is_a, is_b) = pair(described), pair(there), pair(flat["number"])
        both = on_a[:, :, None] & on_b[:, None] & (is_a >= 0)[:, :, None] & (is_b >= 0)[:, None]
        same = both & (is_a[:, :, None] == is_b[:, None])
        square = contrast.square_distances(a, b)
        total = jnp.sum(jnp.where(same, contrast.attraction(square, self.squared), 0))
        count = jnp.sum(same)
        far = both & ~same
        if self.negatives == "cross":
            total += jnp.sum(jnp.where(far, contrast.repulsion(square, self.margin, self.squared), 0))
            count += jnp.sum(far)
        else:
            apart, pairs = _apart(self, psi, described, cells, there, flat["background"])
            total, count = total + apart, count + pairs
        contrastive = total / jnp.maximum(count, 1)
        metrics = {
            "detector": detector,
            "contrast": contrastive,
            "near": keypoints.masked_mean(square, same),  # mean squared distances
            "far": keypoints.masked_mean(square, far),
        }
        return detector + self.descriptor_weight * contrastive, metrics


@dataclasses.dataclass(frozen=True)
class _Posed(_Rounds):
    """What the stages with a pose network share.

    Attributes:
      pose_clusters: Q; 10 in the paper's table of cluster quality, 5 beside yaw.
      latent: Z, size of the code; 64.
      vae_width: channels of the pose network (`models/pose_vae.py`).
      vae_weight: of the negative bound on the likelihood (in `proxy`, and in `duldpp` with `code_loss=elbo`), which is
        divided by cells / (2 * 0.1^2) so that its reconstruction is a mean squared error, as the detector's loss is.
      beta, beta_steps: weight of the KL divergence, and the steps over which it rises to that.
      code_sigma: of the Gaussians that are decoded, in cells.
      vae_into_detector: whether the bound teaches the detector too, or the pose network alone.
      freeze_aggregator: whether Psi_b learns no more; with the descriptors' head frozen it would drift away from it.
    """

    pose_clusters: PositiveInt = 10
    latent: PositiveInt = pose_vae.LATENT
    vae_width: PositiveInt = 32
    vae_weight: float = 1.0
    beta: float = 1.0
    beta_steps: int = 5_000
    code_sigma: Positive = 1.5
    vae_into_detector: bool = True
    freeze_aggregator: bool = True

    codes = True

    def __post_init__(self):
        super().__post_init__()
        if self.net.grid < 4 or self.net.grid & (self.net.grid - 1):
            raise UserError(f"net.grid is {self.net.grid}; the pose network needs a power of two from 4 on")

    @property
    def _parts(self):
        """Parts that learn."""
        raise NotImplementedError

    @property
    def trains(self):
        """Parts that learn."""
        return ("detector", *self._parts) if self.freeze_aggregator else ("aggregator", "detector", *self._parts)

    @property
    def keeps(self):
        """Parts that are there and stay as they are."""
        return tuple(name for name in ("aggregator", "descriptor") if name not in self.trains)

    @property
    def _poses(self):
        return self.pose_clusters

    @property
    def _nets(self):
        options = layers.precision(self.dtype)
        return super()._nets | {
            "encoder": pose_vae.Encoder(self.latent, self.vae_width, **options),
            "decoder": pose_vae.Decoder(self.net.grid, self.vae_width, **options),
        }

    def _code(self, params, maps):
        mean, log_variance = self._nets["encoder"].apply({"params": params["encoder"]}, maps)
        return self._wide(mean), self._wide(log_variance)

    def _seen(self, state, frozen, batch, rng, mirror: bool):
        """One view an image, ready for the losses: examples of leading axis B."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        keys, flip_keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
        warps, _ = self._warps(keys, flip_keys, mirror)
        seen = self._coloured(keys, self._geometry.look(batch["image"], warps))
        cells, there = self._labelled(state.aux.labels, batch["index"], warps)
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, 4), (self.latent,), cells.dtype)
        return {
            "maps": self._maps(frozen, seen),
            "cells": cells,
            "there": there,
            "inside": self._inside(warps),
            "noise": jax.vmap(draw)(keys),
            "beta": jnp.full(
                len(cells), self.beta * jnp.minimum(1.0, state.step / max(self.beta_steps, 1)), cells.dtype
            ),
        }

    def _bound(self, params, psi: Psi, examples):
        """Step 6) The negative bound on the likelihood of the landmarks' map, given a code of the detector's map."""
        confidence = jnp.where(examples["inside"], jax.nn.sigmoid(psi.logits), 0)
        if not self.vae_into_detector:
            confidence = jax.lax.stop_gradient(confidence)
        mean, log_variance = self._code(params, confidence)
        code = mean + jnp.exp(0.5 * log_variance) * examples["noise"]
        decoded = self._nets["decoder"].apply({"params": params["decoder"]}, code)
        target = self._target(examples["cells"], examples["there"], self.code_sigma)
        deviation = 0.1
        fit = pose_vae.reconstruction(self._wide(decoded), target, deviation)
        kl = jnp.sum(pose_vae.kl_divergence(mean, log_variance), -1)
        bound = jnp.mean(fit + examples["beta"] * kl) * (2 * deviation**2 / self.net.grid**2)
        return bound, {"reconstruction": jnp.mean(fit) * (2 * deviation**2 / self.net.grid**2), "kl": jnp.mean(kl)}

    def warning(self, summary):
        if summary.get("active_units") == 0:
            return (
                f"no unit of the pose code varies, it has collapsed: lower {self._name}.beta, or train the stage proxy "
                "longer"
            )
        return None

    def pictures(self, state, frozen, images):
        """The view, the detector's map, and what the pose network makes of it (where it still has a decoder)."""
        seen = self._geometry.look(images)
        params = self._latest(state)
        psi = self._psi(params, self._maps(frozen, seen))
        confidence = jnp.where(self._inside(self._geometry.still(len(images))), jax.nn.sigmoid(psi.logits), 0)
        columns = [confidence]
        if "decoder" in params:
            mean, _ = self._code(params, confidence)
            columns.append(jax.nn.sigmoid(self._nets["decoder"].apply({"params": params["decoder"]}, mean)))
        shape = (len(images), *self._geometry.view, 3)
        grown = [jnp.broadcast_to(jax.image.resize(m[..., None], (*shape[:3], 1), "nearest"), shape) for m in columns]
        return {"poses": color.to_uint8(jnp.stack([seen, *grown], 1))}


@dataclasses.dataclass(frozen=True)
class Proxy(_Posed):
    """Step 6) The detector and the pose network learn; labels are those of plain k-means, as in `Duld`.

    Codes are clustered too, so that it shows how far they tell poses apart; labels do not depend on that. The last
    stage takes these clusters up.
    """

    @property
    def _parts(self):
        return "encoder", "decoder"

    def _given(self, previous, rows):
        labels = super()._given(previous, rows)
        if labels is None:
            raise UserError(
                f"proxy learns from a table of {self.k} landmarks of the stage before; put the stage duld, with "
                "train_clusters=0, before it, or set config.init_from=RUN:duld"
            )
        return labels

    def _is_due(self, step):
        return step > 0 and super()._is_due(step)  # the stage before has just made labels

    def train_step(self, state, frozen, batch, rng):
        examples = self._seen(state, frozen, batch, rng, self.mirror)

        def loss(params, examples):
            psi = self._psi(params, examples["maps"])
            detector = self._detector_loss(psi.logits, examples["cells"], examples["there"])
            bound, metrics = self._bound(params, psi, examples)
            return detector + self.vae_weight * bound, {"detector": detector} | metrics

        return self._learn(state, loss, examples)


@dataclasses.dataclass(frozen=True)
class DuldPP(_Posed):
    """Steps 7), 8) Labels come from clusters of poses and, in each, of keypoints; codes are drawn together by pose.

    Attributes:
      code_loss: `contrast` (eq. 3), the decoder being left out; or `elbo`, the bound of the proxy stage goes on instead
        (the ablation's "TSC with full VAE"), and `vae_weight` is its weight, as there.
      code_weight: of eq. 3.
      code_margin: m of eq. 3, between codes of length 1; 0.8.
      code_squared: pairs weigh by squares; off in eq. 3.
      normalize_codes: whether codes have length 1 in loss and clusters. Drawn from the prior, two codes of 64 numbers
        are 11 apart, and no margin of 0.8 would ever push (ours; the paper does not say).
      memory: S, codes that a batch is compared with: those of the last round, then of the images seen since.
      train_descriptors: whether Psi_f goes on learning, by eq. 4 (algorithm 2), or is frozen (section 3.3.2).
      descriptor_weight, squared, margin, background, apart: of that, as in `Duld`.
      least_keypoints: a pose with fewer keypoints than this times K takes the centroids of all images.
      least_share: a landmark with fewer keypoints than this times a pose's images is not seen in that pose; nor is one
        whose centroid there is nearer to another landmark's.
    """

    code_loss: Literal["contrast", "elbo"] = "contrast"
    code_weight: float = 1.0
    code_margin: Positive = 0.8
    code_squared: bool = False
    normalize_codes: bool = True
    memory: PositiveInt = 4096
    train_descriptors: bool = False
    descriptor_weight: float = 10.0
    squared: bool = True
    margin: Positive = 0.8
    background: PositiveInt = 64
    apart: float = 5.7
    least_keypoints: int = 10
    least_share: float = 0.05

    @property
    def _parts(self):
        descriptor = ("descriptor",) if self.train_descriptors else ()
        return (*descriptor, "encoder", "decoder") if self.code_loss == "elbo" else (*descriptor, "encoder")

    @property
    def _groups(self):
        return self.pose_clusters

    def _scaled(self, codes):
        return super()._scaled(codes) if self.normalize_codes else codes

    def _first(self, params, before, labels, rows):
        if before is None or before.poses is None:
            raise UserError(
                "duldpp goes on from a pose network; put the stage proxy before it, or set config.init_from=RUN:proxy"
            )
        memory = None
        if self.code_loss == "contrast":
            codes = jnp.zeros((self.memory, self.latent), layers.wide(self.dtype))
            memory = Memory(codes, jnp.full(self.memory, -1, jnp.int32))
        return super()._first(params, before, labels, rows)._replace(memory=memory)

    def train_step(self, state, frozen, batch, rng):
        aux, size = state.aux, len(batch["index"])
        # A mirrored image is of another pose than its own, so views are not mirrored here.
        examples = self._seen(state, frozen, batch, rng, mirror=False)
        examples |= {"pose": aux.pose[batch["index"]], "place": jnp.arange(size)}
        if self.train_descriptors:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(rng, 1), batch["index"])
            examples["background"] = jax.vmap(lambda key: _random_cells(self, key))(keys)
        if self.code_loss == "contrast":
            poses = jnp.where(aux.memory.rows >= 0, aux.pose[jnp.maximum(aux.memory.rows, 0)], -1)

        def loss(params, examples):
            psi = self._psi(params, examples["maps"])
            detector = self._detector_loss(psi.logits, examples["cells"], examples["there"])
            if self.code_loss == "elbo":
                second, metrics = self._bound(params, psi, examples)
            else:
                codes, _ = self._code(params, jnp.where(examples["inside"], jax.nn.sigmoid(psi.logits), 0))
                second, metrics = self._code_contrast(codes, examples["pose"], aux.memory.codes, poses)
                # Metrics are means over the pieces of a batch; of these the sum is wanted.
                seen = jnp.zeros((size, self.latent), codes.dtype).at[examples["place"]].set(codes)
                metrics["codes"] = self.accumulate_steps * jax.lax.stop_gradient(seen)
            total = detector + (self.vae_weight if self.code_loss == "elbo" else self.code_weight) * second
            if self.train_descriptors:
                metrics["contrast"] = self._keypoint_contrast(psi, examples)
                total += self.descriptor_weight * metrics["contrast"]
            return total, {"detector": detector} | metrics

        state, metrics = self._learn(state, loss, examples)
        if self.code_loss == "contrast":  # the batch's codes take the places of the oldest
            place = (state.step * size + jnp.arange(size)) % self.memory
            codes = aux.memory.codes.at[place].set(metrics.pop("codes"))
            memory = Memory(codes, aux.memory.rows.at[place].set(batch["index"]))
            state = state.replace(aux=state.aux._replace(memory=memory))
        return state, metrics

    def _remembered(self, codes, there, index, memory):
        """A memory of codes [B,T,Z] that a round has seen: those of images spread evenly over all."""
        size, count = self.memory, index.size
        place = jnp.asarray(np.linspace(0, count - 1, min(size, count)).astype(np.int32))
        pick = lambda x: jnp.pad(x.reshape(count, -1)[place], ((0, max(size - count, 0)), (0, 0)))
        rows = jnp.where(pick(there)[:, 0], pick(index)[:, 0], -1).astype(jnp.int32)
        return Memory(jnp.where(rows[:, None] >= 0, pick(codes), 0).astype(memory.codes.dtype), rows)

    def _code_contrast(self, codes, pose, known, known_pose):
        """Eq. 3 for codes [B,Z] of poses [B] beside remembered ones [S,Z] of poses [S], -1 for an empty place."""
        square = contrast.square_distances(self._scaled(codes), self._scaled(known))
        same = pose[:, None] == known_pose
        other = ~same & (known_pose >= 0)
        near = contrast.masked_pair_mean(contrast.attraction(square, self.code_squared), same)
        far = contrast.masked_pair_mean(contrast.repulsion(square, self.code_margin, self.code_squared), other)
        return near + far, {
            "same_pose": keypoints.masked_mean(jnp.sqrt(square), same),  # mean distances of codes
            "other_pose": keypoints.masked_mean(jnp.sqrt(square), other),
        }

    def _keypoint_contrast(self, psi, examples):
        """Eq. 4: a landmark's descriptors in images of one pose are alike, and apart from others of the same view.

        The same landmark in another pose is no negative: it has another cluster there, and is the same place.
        """
        cells, there, pose = examples["cells"], examples["there"], examples["pose"]
        described = _unit(psi, jnp.where(there[..., None], cells, 0))
        square = contrast.square_distances(*[jnp.moveaxis(described, 1, 0)] * 2)  # [K,B,B]
        both = there.T[:, :, None] & there.T[:, None] & (pose[:, None] == pose) & ~jnp.tri(len(pose), dtype=bool)
        near = jnp.sum(jnp.where(both, contrast.attraction(square, self.squared), 0))
        far, count = _apart(self, psi, described, cells, there, examples["background"])
        return (near + far) / jnp.maximum(jnp.sum(both) + count, 1)


def _unit(psi: Psi, cells):
    """Descriptors of length 1 at points of views."""
    return keypoints.l2_normalize(keypoints.sample(psi.descriptors, cells), eps=1e-6)


def _random_cells(stage, key):
    """Cells [background,2] anywhere in ONE view."""
    dtype = layers.wide(stage.dtype)
    draw = jax.random.uniform(jax.random.fold_in(key, 3), (stage.background, 2), dtype)
    return jnp.floor(draw * stage.net.grid)


def _apart(stage, psi, described, cells, there, background):
    """Pairs of a view to be apart: of keypoints [B,M], and of keypoints with random cells. Their sum and number."""
    least, total, count = (stage.apart * stage.net.grid / 64) ** 2, 0, 0
    once = ~jnp.tri(there.shape[1], dtype=bool)  # every two of them once
    beside = _unit(psi, background)
    for others, places, pairs in ((described, cells, there[:, None] & once), (beside, background, True)):
        negative = there[..., None] & (contrast.square_distances(cells, places) > least) & pairs
        push = contrast.repulsion(contrast.square_distances(described, others), stage.margin, stage.squared)
        total, count = total + jnp.sum(jnp.where(negative, push, 0)), count + jnp.sum(negative)
    return total, count


def _both(seen: Seen, standing=None):
    """All descriptors [n,D] of a bank, those of mirrored images behind them, and their mask.

    Of the keypoints of images, not of mirrored ones, `standing` keeps those at these slots alone.
    """
    own = seen.mask if standing is None else _standing(seen.mask, standing)
    parts = [(seen.described, own)] if seen.turned is None else [(seen.described, own), (seen.turned, seen.mask)]
    x = jnp.concatenate([described.reshape(-1, described.shape[-1]) for described, _ in parts])
    return x, jnp.concatenate([mask.reshape(-1) for _, mask in parts])


def _standing(mask, slots):
    """Mask [...,P] of the keypoints that stand for a landmark, slots [...,K]."""
    return mask & jnp.any(slots[..., None] == jnp.arange(mask.shape[-1]), -2)
