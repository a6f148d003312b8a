"""What the four stages of D-ULD share, and its paper does not name: `duld.py` has the paper's steps.

Here are the state, the hyper-parameters, the network on a backbone's maps, the start from the stage before, views, how
keypoints and landmarks are read off the network's maps, and prediction. What tells the stages apart in this is their
`Plan`.
"""

import dataclasses
import logging
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from uld_jax import weights
from uld_jax.backbones import build, finished, prepared
from uld_jax.bank import Labels, image_table, label_table
from uld_jax.clustering import two_stage
from uld_jax.errors import UserError
from uld_jax.hyperparameters import Fraction, Positive, PositiveInt, Share
from uld_jax.method import Clustering, Described, Need, Prediction, Round, TrainState, same_shapes
from uld_jax.methods import shared
from uld_jax.methods.shared import Adam, Augment, View
from uld_jax.models import duld_net, layers, pose_vae
from uld_jax.ops import color, coordinates, keypoints, nms, views, warp

KINDS = ("dhf_aggregator",)  # of `frozen`, besides the backbone's own
ITERATIONS = 100  # of k-means, at most (ours)
SHARPNESS = 10.0  # of the weights of `place=mean`, exp(-SHARPNESS * squared distance to the centroid) (ours)


class Memory(NamedTuple):
    """Pose codes of the last images seen.

    Attributes:
      codes: [S,Z] float32, nothing flows back into them.
      rows: [S] int32, the images they are of; -1 for an empty place.
    """

    codes: jax.Array
    rows: jax.Array


class Counts(NamedTuple):
    """Numbers that tell how a round went; float32 scalars.

    Attributes:
      keypoints: mean number of keypoints an image.
      labelled: mean number of those that stand for a landmark.
      full: number of images that filled every slot for keypoints, so that some may have been lost: raise `most`.
      absent: number of pairs of pose and landmark that are not seen together.
      moved: number of identities that the check of step 7 gave back to another cluster of a pose.
      margin: mean squared distance from a pose's centroid to the other landmarks' nearest, less that to its own.
      active_units: number of units of the pose code that vary over the images; 0 if the code has collapsed.
    """

    keypoints: jax.Array
    labelled: jax.Array
    full: jax.Array
    absent: jax.Array
    moved: jax.Array
    margin: jax.Array
    active_units: jax.Array


class Discovery(NamedTuple):
    """Landmarks and poses that a stage has found: its state.

    Attributes:
      round: int32, clusterings done, those of the stages before included.
      placed: bool, False between the two passes of a round with `place=mean`: clusters are new, labels are not yet.
      anchors: [K,D] float32, the landmarks' centroids over all images.
      centroids: [G,K,D], those of each pose; G is 1 without poses.
      used: [G,K] bool, False for a landmark that is not seen in a pose.
      labels: [N,M], the pseudo-labels that are trained on; M is K unless training clusters are more (`train_clusters`).
      mirrored: [N,M] int32, the cluster of a label in the mirrored image; None without mirrored views.
      poses: [Q,Z], centroids of codes of length 1; 0 before the first round; None in stages without codes.
      pose: [N] int32, the pose of each image; 0 before the first round; None in stages without codes.
      teacher: running mean of the parameters; None without (`ema=0`).
      memory: remembered codes; None but in the last stage.
      counts: how the last round went.
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


@dataclasses.dataclass(frozen=True)
class Net:
    """The trained network.

    Attributes:
      grid: side of the maps in cells; it divides the view's `image_size`. 64 in diffusion hyperfeatures, 128 to
        localise better.
      projection: channels of the aggregated map.
      width, depth: channels and 3 x 3 convolutions of the two heads (`heads.DenseHead`).
      descriptor_size: D, numbers a descriptor.
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
      threshold: least confidence, exclusive; 0.15 in the published code of Mallis et al. Until the detector has
        learnt landmarks, `most` keypoints of highest confidence are taken without a threshold, because confidence after
        bootstrapping is unreliable.
      nms: half the side of a keypoint's box, in cells.
      most: P, keypoints an image; those of highest confidence are kept.
      subpixel: how keypoints move between cells (`ops.nms.subpixel`).
    """

    threshold: float = 0.15
    nms: Positive = 2
    most: int = 60
    subpixel: Literal["none", "quarter", "parabola"] = "quarter"

    def keypoints(self, confidence: jax.Array, least: jax.Array):
        """Maxima of confidence maps [B,h,w] that exceed `least`: xy [B,P,2] in cells, mask [B,P]."""
        # In flat regions many cells have equal confidence; quantise so that rounding noise does not decide their order.
        ranked = jnp.round(confidence * 2**16) / 2**16
        found = nms.points(nms.greedy(ranked, least, self.nms), ranked, self.most)
        return nms.subpixel(confidence, found.xy, self.subpixel), found.mask


@dataclasses.dataclass(frozen=True)
class Localise:
    """Where a landmark is.

    Attributes:
      place: `exemplar`, its nearest keypoint (paper); or `mean`, the mean over the map's cells, weighted by
        confidence * exp(-`SHARPNESS` * squared distance to the centroid). Ours: it is exact to less than a cell, and
        takes a second pass a round, as labels are placed by the new centroids.
      fill: a landmark without a keypoint: `dense`, predicted where the map is nearest to its centroid (or where `place`
        has it), with a score below 1/2; or `none`, missing. Labels are never filled.
    """

    place: Literal["exemplar", "mean"] = "exemplar"
    fill: Literal["dense", "none"] = "dense"


@dataclasses.dataclass(frozen=True)
class Pose:
    """The pose network and its clusters.

    Attributes:
      pose_clusters: Q, number of poses; 10 in the paper's table of cluster quality, 5 beside yaw.
      latent: Z, size of the code; 64 in section 3.3.1.
      vae_width: channels of the pose network (`models/pose_vae.py`).
      vae_weight: weight of the negative bound on the likelihood (in `proxy`, and in `duldpp` with `code_loss=elbo`),
        which is divided by cells / (2 * 0.1^2), so that its reconstruction is a mean squared error, as the detector's
        loss is.
      beta, beta_steps: weight of the KL divergence, and the steps over which it rises to that.
      vae_into_detector: whether the bound teaches the detector too, or the pose network alone.
    """

    pose_clusters: PositiveInt = 10
    latent: PositiveInt = pose_vae.LATENT
    vae_width: PositiveInt = 32
    vae_weight: float = 1.0
    beta: float = 1.0
    beta_steps: int = 5_000
    vae_into_detector: bool = True


class Plan(NamedTuple):
    """What tells the stages apart.

    Attributes:
      trains: the network's parts that learn.
      keeps: its parts that are there and stay as they are.
      learnt_at: the step from which the detector knows landmarks. Before it, keypoints have no least confidence.
      clusters: M, the clusters that labels are of; K, or more (`train_clusters`).
      mirrors: whether labels know their cluster in the mirrored image.
      pose: the pose network; None for a stage without codes.
      groups: G, the poses whose keypoints are clustered by themselves; 1: all images together.
      least_keypoints: a pose with fewer keypoints than this times K takes the centroids of all images.
      memory: S, codes that are remembered; 0 for none.
    """

    trains: tuple[str, ...]
    keeps: tuple[str, ...] = ()
    learnt_at: int = 0
    clusters: int = 0
    mirrors: bool = False
    pose: Pose | None = None
    groups: int = 1
    least_keypoints: int = 0
    memory: int = 0


@dataclasses.dataclass(frozen=True)
class DuldStage(Clustering):
    """What the four stages share.

    Attributes:
      k: K, number of landmarks.
      frame_size: side of the frame in pixels.
      steps: number of the stage's steps, for the schedule.
      backbone, backbone_kwargs: frozen features, module and class below `uld_jax.backbones`.
      view: what the backbone is given of the frame.
      net: the trained network's size.
      dtype: type of the trained network's arithmetic.
      roi: keypoints are looked for in this central fraction of the frame.
      region: `box`: on training images, also in the csv's box alone (section 3.1 has a detector's); or `none`.
      detect: how keypoints are read off the detector's map.
      position: weight of the place in a descriptor, for clustering alone; ours, see `zeroshot.ZeroShot`. 0: none.
      start: `clusters` forms the first clusters of the keypoints' descriptors (paper); `labels` takes those of the
        table that the stage before left, such as ZeroShot's, and trains on it until the second round (ours).
      localise: where a landmark is.
      restarts: number of random starts of the first k-means.
      bank_gib: descriptors kept of a pass, in GiB; of a data set with more, clusters are formed from a sample of its
        images (`Clustering`).
      ema: share that the running mean of the parameters keeps a step; rounds and prediction use that mean. 0: the
        newest parameters.
      augment: the training views; warps are uniformly distributed, as in the published code of Mallis et al.
      mirror: whether views are mirrored at random (paper). Of two views that correspond, both are or none: else the
        loss asks for equal descriptors of the left eye and the right one.
      optimizer: Adam and its schedule.
      accumulate_steps: pieces of a batch, computed one after the other to save memory.
      cache: folder of the backbone's maps or latents (`uld features`) for the passes over the training images, which
        then need zoom=1 and image_size=frame_size. Training looks at warped images and computes its own, except with
        warped=latents.
      warped: what is warped to make a training view: `images`, which the backbone then encodes (paper); or `latents` of
        the images as they are, behind the backbone's encoder (ours). With a cache of latents no step has the encoder
        then, and every device holds the latents of all images. Views that show the frame as it is have the same maps
        in both; others do not, since the encoder's borders, normalisations and attention see the whole image, and a
        latent is a cell of 8 x 8 pixels. The cost in quality has to be measured with the published weights, and has
        not been. Such views need zoom=1, image_size=frame_size and colour=0.
      weights: folders of converted weights by kind; `dhf_aggregator` starts the aggregator from published weights,
        which were trained with annotated keypoints.
    """

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
    restarts: int = 3
    bank_gib: Positive = 4.0
    ema: Share = 0.999
    augment: Augment = Augment(40.0, 0.2, 0.05)
    mirror: bool = True
    optimizer: Adam = Adam(warmup=500, clip=1.0)
    accumulate_steps: int = 1
    cache: str = ""
    warped: Literal["images", "latents"] = "images"
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
        if self.warped == "latents":
            if not hasattr(self._backbone, "encode"):
                raise UserError(f"warped=latents, and the backbone {self.backbone} has no latents; use warped=images")
            if self.view.zoom != 1 or self.view.image_size != self.frame_size or self.augment.colour:
                raise UserError(
                    f"warped=latents takes frames as they are; set zoom=1, image_size={self.frame_size} and colour=0"
                )
        if self.plan.pose and (self.net.grid < 4 or self.net.grid & (self.net.grid - 1)):
            raise UserError(f"net.grid is {self.net.grid}; the pose network needs a power of two from 4 on")

    @property
    def needs(self):
        """Labels to start from, and the network of a stage of D-ULD, which also leaves its anchors."""
        labels = Need(
            "labels", "a stage that finds landmarks, such as zeroshot.ZeroShot", required=self.start == "labels"
        )
        return labels, Need("anchors", "a stage of D-ULD", of_images=False, required=False)

    @property
    def plan(self) -> Plan:
        """What tells this stage from the others."""
        raise NotImplementedError

    # -- network ------------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()

    @property
    def _backbone(self):
        return build.backbone(self.backbone, f"{self._name}.backbone", self.backbone_kwargs, self.weights)

    @property
    def network(self) -> duld_net.DuldNet:
        pose = dict(latent=p.latent, pose_width=p.vae_width) if (p := self.plan.pose) else {}
        return duld_net.DuldNet(**dataclasses.asdict(self.net), **pose, dtype=self.dtype)

    @property
    def geometry(self) -> views.Geometry:
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

    def prepared(self, frozen):
        return frozen | prepared(self._backbone, self.backbone_frozen(frozen))

    def side_tables(self):
        return {"boxes": ()} if self.region == "box" else {}

    def backbone_frozen(self, frozen):
        """Return the part of `frozen` that is the backbone's."""
        return {name: value for name, value in frozen.items() if name not in KINDS}

    def backbone_maps(self, frozen, seen):
        """The backbone's maps of views [B,S,S,3] in 0..1."""
        frozen = self.backbone_frozen(frozen)
        return shared.backbone_maps(self._backbone, frozen, seen, self.accumulate_steps, self.dtype)

    @property
    def trains_on_cache(self):
        return bool(self.cache) and self.warped == "latents"

    def latents(self, frozen, images, given=None):
        """Latents [B,h,w,C] of frames [B,H,W,3] that training views are made of, `given` or encoded.

        None where images are warped.
        """
        if self.warped == "images":
            return None
        if given is not None:
            return self._wide(given)
        encode, frozen = self._backbone.encode, self.backbone_frozen(frozen)
        return shared.in_pieces(encode, frozen, images, self.accumulate_steps, self.dtype)

    def view_maps(self, frozen, seen, warps, latents=None):
        """The backbone's maps of training views: of `seen` [B,S,S,3] in 0..1, or of warped `latents` of the frames."""
        if latents is None:
            return self.backbone_maps(frozen, seen)
        backbone = self._backbone

        def describe(frozen, given):
            return backbone.describe(frozen, jax.vmap(warp.warp_image, (0, 0, None))(*given, given[1].shape[1:3]))

        frozen = self.backbone_frozen(frozen)
        return shared.in_pieces(describe, frozen, (warps, latents), self.accumulate_steps, self.dtype)

    def _wide(self, x):
        return x.astype(layers.wide(self.dtype))

    def latest(self, state):
        """The parameters for rounds and prediction: the mean over steps, or the newest."""
        return state.aux.teacher if self.ema else state.params

    # -- start --------------------------------------------------------------------------------------------------------

    def init(self, rng, batch, frozen, start):
        plan, previous = self.plan, start.previous
        for need in self.needs:
            shared.take(self, start, need.what)
        shown = jax.ShapeDtypeStruct((1, *self.geometry.view, 3), layers.wide(self.dtype))
        maps = jax.eval_shape(self.backbone_maps, jax.eval_shape(self._backbone.load), shown)
        params = self.network.initialize(rng, (*plan.trains, *plan.keeps), maps)
        if "dhf_aggregator" in frozen:
            remedy = (
                "config.weights.dhf_aggregator is of other maps; use Stable Diffusion's 12 taps at as many timesteps, "
                "and projection=384"
            )
            params["aggregator"] = shared.take_weights(frozen["dhf_aggregator"]["params"], params["aggregator"], remedy)
            logging.warning("the aggregator starts from published weights, which were trained with annotated keypoints")
        before = None if shared.take(self, start, "anchors") is None else previous.aux
        if before is not None:
            known = previous.params if before.teacher is None else before.teacher
            same = "backbone, projection, width, depth, descriptor_size, grid and latent"
            params = shared.take_network(start, params, known, same)
        labels = shared.take_labels(self, start, self.k)
        aux = self._first(params, before, labels, start.num_images)
        opt_state = self._optimizer.init({name: params[name] for name in plan.trains})
        return TrainState(step=jnp.int32(0), params=params, opt_state=opt_state, aux=aux)

    def _first(self, params, before: Discovery | None, labels: Labels | None, num_images: int) -> Discovery:
        """What is known before the first step."""
        plan, size = self.plan, self.net.descriptor_size + 2 * (self.position > 0)
        zeros = lambda *shape: jnp.zeros(shape, layers.wide(self.dtype))
        if labels is None or plan.clusters != self.k:
            labels = Labels(zeros(num_images, plan.clusters, 2), zeros(num_images, plan.clusters))
        anchors, rounds, poses, pose, memory = zeros(self.k, size), jnp.int32(0), None, None, None
        if before is not None and before.anchors.shape == anchors.shape:
            anchors, rounds = before.anchors, before.round
        if plan.pose:
            poses, pose = zeros(plan.pose.pose_clusters, plan.pose.latent), jnp.zeros(num_images, jnp.int32)
            if before is not None and same_shapes((before.poses, before.pose), (poses, pose)):
                poses, pose = before.poses, before.pose
        if plan.memory:
            memory = Memory(zeros(plan.memory, plan.pose.latent), jnp.full(plan.memory, -1, jnp.int32))
        return Discovery(
            round=rounds,
            placed=jnp.bool_(True),
            anchors=anchors,
            centroids=jnp.broadcast_to(anchors, (plan.groups, *anchors.shape)),
            used=jnp.ones((plan.groups, self.k), bool),
            labels=jax.tree.map(self._wide, labels),
            mirrored=jnp.zeros((num_images, plan.clusters), jnp.int32) if plan.mirrors else None,
            poses=poses,
            pose=pose,
            teacher=params if self.ema else None,
            memory=memory,
            counts=Counts(*[jnp.zeros((), jnp.float32)] * len(Counts._fields)),
        )

    # -- a step -------------------------------------------------------------------------------------------------------

    def draw_views(self, images, keys, flip_keys, mirror: bool):
        """Augmented views [B,...] in 0..1 of images [B,...], their warps, and which are mirrored [B]."""
        drawn_by = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
        warps, flips = self.augment.uniform_warps(drawn_by, self.view.zoom, self.dtype), jnp.zeros(len(keys), bool)
        if mirror:
            flips = jax.vmap(jax.random.bernoulli)(flip_keys)
            warps = jax.vmap(warp.mirrored)(warps, flips)
        seen = self.geometry.look(images, warps)
        drawn_by = jax.vmap(jax.random.fold_in, (0, None))(keys, 2)
        return color.mildly_changed(drawn_by, seen, self.augment.colour), warps, flips

    def learn(self, state, loss, examples):
        """One step of Adam for the parts that learn; `loss` takes all parameters and examples [B,...]."""
        how = self._optimizer, self.accumulate_steps, self.plan.trains
        state, metrics = shared.descend(state, loss, examples, *how)
        if self.ema:
            mean = shared.running_mean(state.aux.teacher, state.params, self.ema, state.step, self.dtype)
            state = state.replace(aux=state.aux._replace(teacher=mean))
        return state, metrics

    # -- a round ------------------------------------------------------------------------------------------------------

    def round_if(self, due: bool) -> Round | None:
        # With `place=mean` labels are placed by the new clusters, in a pass of their own.
        return Round(passes=2 if self.localise.place == "mean" else 1) if due else None

    def keeps_labels(self, state):
        """Whether a round only describes the labels that there are: until the detector knows landmarks."""
        return state.step < max(self.plan.learnt_at, 1) if self.start == "labels" else False

    def settle(self, state, found, bank):
        first = lambda: self._labels_at_exemplars(state, found, bank)
        if self.localise.place == "exemplar":
            return state.replace(aux=first())
        second = lambda: self._labels_between_cells(state, bank)
        return state.replace(aux=jax.lax.cond(state.aux.placed, first, second))

    def _labels_at_exemplars(self, state, found, bank) -> Discovery:
        """Labels of the first pass, at the clusters' exemplars."""
        aux, placed, total = state.aux, bank.values, len(state.aux.labels.score)
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
            labels=self._kept(state, label_table(bank, placed.xy, placed.trained, total)),
            mirrored=None if placed.mirrored is None else image_table(bank, placed.mirrored, total),
            poses=found.poses,
            pose=image_table(bank, placed.pose, total) if self.plan.pose else None,
            memory=found.memory,
            counts=jax.tree.map(lambda x: x.astype(jnp.float32), counts),
        )

    def _labels_between_cells(self, state, bank) -> Discovery:
        """Labels of the second pass: where the clusters of the first are, for the landmarks that have an exemplar."""
        number = jnp.where(bank.values.slots >= 0, jnp.arange(self.k), -1)
        labels = label_table(bank, bank.values.weighted, number, len(state.aux.labels.score))
        return state.aux._replace(placed=jnp.bool_(True), labels=self._kept(state, labels))

    def _kept(self, state, labels):
        """New labels, or those that there are."""
        keep = self.keeps_labels(state)
        return jax.tree.map(lambda new, old: jnp.where(keep, old, new), labels, state.aux.labels)

    def summary(self, state):
        counts, poses_only = state.aux.counts._asdict(), ("active_units", "absent", "moved")
        return {name: value for name, value in counts.items() if self.plan.pose or name not in poses_only}

    def warning(self, numbers):
        if numbers.get("active_units") == 0:
            return (
                f"no unit of the pose code varies, it has collapsed: lower {self._name}.beta, or train the stage proxy "
                "longer"
            )
        return None

    # -- prediction ---------------------------------------------------------------------------------------------------

    def look(self, state, frozen, images, boxes=None, maps=None):
        """Network, region and codes of still frames: (Psi, inside [B,h,w], codes [B,Z] or None)."""
        params, still = self.latest(state), self.geometry.still(len(images))
        if maps is None:
            maps = self.backbone_maps(frozen, self.geometry.look(images))
        else:
            maps = finished(self._backbone, self.backbone_frozen(frozen), maps)
        psi = self.network.psi(params, {name: self._wide(value) for name, value in maps.items()})
        inside = self.geometry.inside(still, self.roi, boxes)
        if not self.plan.pose:
            return psi, inside, None
        # Without the boxes, which new images do not have.
        codes, _ = self.network.code(params, psi.confidence(self.geometry.inside(still, self.roi)))
        return psi, inside, codes

    def detect_keypoints(self, state, psi, inside):
        """Keypoints in cells, xy [B,P,2] and mask [B,P]; of any confidence until the detector knows landmarks."""
        least = jnp.where(state.step >= self.plan.learnt_at, self.detect.threshold, 0.0)
        return self.detect.keypoints(psi.confidence(inside), least)

    def describe_cells(self, psi, cells):
        """Descriptors [B,P,D] of length 1 at cells of still views, with their place."""
        return self._with_place(keypoints.l2_normalize(keypoints.sample(psi.descriptors, cells)), cells)

    def _with_place(self, described, cells):
        if not self.position:
            return described
        place = self.view.zoom * coordinates.to_unit(cells, self.geometry.heat) * (self.position / 2)
        return jnp.concatenate([described, place.astype(described.dtype)], -1)

    def match(self, psi, inside, centroids):
        """Where in the region each centroid [B,K,D] is matched: (x, y) [B,K,2] in cells, least distance [B,K]."""
        grid = jnp.asarray(coordinates.pixel_grid(*self.geometry.heat), centroids.dtype)
        grid = jnp.broadcast_to(grid, (len(inside), *grid.shape))
        described = self._with_place(keypoints.l2_normalize(psi.descriptors), grid)
        if self.localise.place == "exemplar":
            return two_stage.matches(described, inside, centroids)
        return two_stage.mean_matches(described, inside, centroids, psi.logits, SHARPNESS)

    def _nearest_pose(self, aux, codes):
        return two_stage.nearest_pose(duld_net.unit(codes), aux.poses)

    def _group(self, aux, codes, count: int):
        """Which of the groups of centroids each of `count` images has."""
        return self._nearest_pose(aux, codes) if self.plan.groups > 1 else jnp.zeros(count, jnp.int32)

    def centroids_of(self, aux, codes, count: int):
        """Centroids [B,K,D] of images; of a landmark that is not seen in a pose, that of all poses."""
        known = jnp.where(aux.used[..., None], aux.centroids, aux.anchors)
        return known[self._group(aux, codes, count)]

    def _read(self, state, frozen, images):
        """Network, landmarks [B,K,2] in cells, whether they have an exemplar, its distance, the least of any cell."""
        aux, count = state.aux, len(images)
        psi, inside, codes = self.look(state, frozen, images)
        cells, mask = self.detect_keypoints(state, psi, inside)
        described = jnp.where(mask[..., None], self.describe_cells(psi, cells), 0)
        slots, distance = two_stage.exemplars(described, mask, self._group(aux, codes, count), aux.centroids, aux.used)
        there = slots >= 0
        at, near = self.match(psi, inside, self.centroids_of(aux, codes, count))
        if self.localise.place == "exemplar":
            at = jnp.where(there[..., None], keypoints.take_slots(cells, slots), at)
        return psi, at, there, distance, near

    def predict(self, state, frozen, images):
        _, at, there, distance, near = self._read(state, frozen, images)
        guess = 0.499 * jnp.exp(-near) if self.localise.fill == "dense" else jnp.zeros_like(near)
        score = jnp.where(there, 0.5 + 0.5 * jnp.exp(-distance), guess)
        xy = jnp.where((score > 0)[..., None], self.geometry.to_frame(at), 0)
        return Prediction(xy.astype(jnp.float32), score.astype(jnp.float32), there)

    def describe(self, state, frozen, images):
        # At the landmarks that have an exemplar, without their place.
        psi, at, there, *_ = self._read(state, frozen, images)
        described = keypoints.l2_normalize(keypoints.sample(psi.descriptors, at))
        return Described(described, jnp.where(there, jnp.arange(self.k, dtype=jnp.int32), -1), there)

    def poses(self, state, frozen, images):
        return self._nearest_pose(state.aux, self.look(state, frozen, images)[2]) if self.plan.pose else None

    def heatmaps(self, state, frozen, images):
        seen = self.geometry.look(images)
        psi = self.network.psi(self.latest(state), self.backbone_maps(frozen, seen))
        return color.to_uint8(seen), jax.nn.sigmoid(psi.logits)[..., None]

    def pictures(self, state, frozen, images):
        if not self.plan.pose:
            return {}
        # The view, the detector's map, and what the pose network makes of it (where it still has a decoder).
        seen, geometry, params = self.geometry.look(images), self.geometry, self.latest(state)
        psi = self.network.psi(params, self.backbone_maps(frozen, seen))
        columns = [psi.confidence(geometry.inside(geometry.still(len(images)), self.roi))]
        if "decoder" in params:
            columns.append(jax.nn.sigmoid(self.network.decode(params, self.network.code(params, columns[0])[0])))
        shape = (len(images), *geometry.view, 3)
        grown = [jnp.broadcast_to(jax.image.resize(m[..., None], (*shape[:3], 1), "nearest"), shape) for m in columns]
        return {"poses": color.to_uint8(jnp.stack([seen, *grown], 1))}
