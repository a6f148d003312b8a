"""CGB: conditional generation of an image from landmarks, through a bottleneck guided by their consistency.

Awan et al., "Unsupervised Landmark Discovery Using Consistency Guided Bottleneck", section 3. With
`bottleneck=fixed` the same class is the paper's in-house baseline, and its warm-up.

    step    1) two views of a photo            2) landmarks and descriptors of the target view   (section 3.1, 3.2)
            3) d: the best cosine of a descriptor to a cluster's centroid                          (eq. 2)
            4) a Gaussian a landmark, the wider the less consistent                                (eq. 3, 4)
            5) the target, generated from the source view and the Gaussians; its distance from the target in pixels and
               in VGG16's features
    round   6) the descriptors of the last steps, or of a pass over the photos, are clustered     (section 3.2)

The detector sees only the target, the generator only the source: the landmarks are all that the generator knows of the
target's geometry.
"""

import dataclasses
import logging
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from uld_jax import optimizers, sharding, weights
from uld_jax.backbones import perceptual
from uld_jax.bank import flatten
from uld_jax.clustering import gcn_v, quality
from uld_jax.clustering.gcn_clusters import gcn_clusters, mean_directions
from uld_jax.clustering.kmeans import kmeans
from uld_jax.errors import UserError
from uld_jax.hyperparameters import Positive, PositiveInt
from uld_jax.method import Described, Need, Prediction, Round, Stage, TrainState, same_shapes
from uld_jax.methods import shared
from uld_jax.methods.shared import Fan, Graph, View
from uld_jax.models import layers, vgg
from uld_jax.models.fan import FAN
from uld_jax.models.heads import LandmarkDescriptors
from uld_jax.models.stargan_generator import StarGanGenerator
from uld_jax.ops import color, heatmaps, keypoints, views, warp

# Of the published code; the paper has the optimiser's name, the number of neighbours and "random similarity" alone.
ROTATION = 15.0  # standard deviation in degrees of the source view's rotation; the target's is twice as much
MAX_ROTATION = 40.0  # largest angle in degrees
JITTER = 0.033  # standard deviation of the logarithm of a view's size; there 4 % of the landmarks' box a side
TEMPERATURE = 0.1  # of the soft-argmax
FIXED_SIGMA = 0.5  # deviation of fixed Gaussians in heatmap pixels; exp(-r^2 / 0.5)
TAU = 0.8  # similarity below which an edge of the graph is cut
BETAS = (0.0, 0.9)  # of Adam, for both networks
L2 = 5e-4  # weight of the parameters' squares in the gradient of both networks
CLIP = 1.0  # largest norm of a network's gradient

MEASURED = 8192  # rows on which the quality of a clustering is measured (ours)


class Ring(NamedTuple):
    """Descriptors of some training steps since the last clustering; the oldest are overwritten.

    Attributes:
      descriptors: [S,P,D] float32, S steps of P landmarks.
      count: int32, steps written since the last clustering.
    """

    descriptors: jax.Array
    count: jax.Array


class Seen(NamedTuple):
    """The landmarks' descriptors [B,K,D] of any length, collected by a pass."""

    z: jax.Array


class Consensus(NamedTuple):
    """The clusters of descriptors.

    Attributes:
      round: int32, clusterings done.
      centroids: [M,D] float32 of length 1.
      used: [M] bool, False for an empty cluster.
      found: int32, T, number of clusters; a graph may find more than the M that have a centroid.
      silhouette, calinski_harabasz: float32, measures of the clusters' separation (Table 5).
      ring: descriptors for the next clustering.
    """

    round: jax.Array
    centroids: jax.Array
    used: jax.Array
    found: jax.Array
    silhouette: jax.Array
    calinski_harabasz: jax.Array
    ring: Ring


@dataclasses.dataclass(frozen=True)
class CGB(Stage):
    """Detector and generator, trained together.

    Attributes:
      k: K, number of landmarks.
      frame_size: side of the frame in pixels.
      start: initial state: `previous` for all of the stage before, with generator and optimisers; `zeroshot` for the
        detector that the stage before, or `init_from`, has trained; `checkpoint` for the converted MPII weights of
        `config.weights.fan`, except layers of other shapes; `scratch` for random weights.
      bottleneck: `adaptive` Gaussians (eq. 4), or `fixed` ones (the baseline).
      clustering: clustering every `round_every` steps, first before step 0, by `gcn`, the graph of nearest neighbours
        with the confidences of a GCN-V (paper); `density`, the graph with the mean similarity to the neighbours as
        confidence, also used for `gcn` if the network is for another descriptor_size; or `kmeans` (Table 7). `none`
        only gathers descriptors.
      labels_from: source of clustered descriptors: the `ring`, as in the published code, or a `pass` over all photos,
        with unwarped views and running statistics.
      steps: number of steps of the stage.
      view: view of the frame. The published code crops to the annotated landmarks' box and a margin, which is
        annotation; here only the frame is known.
      bend: bend of the views, as in `ops/warp.py`; none in the paper.
      net: the FAN's size.
      generator_width, generator_blocks: size of the generator.
      vgg_width: width of the random VGG16 that is used when `config.weights.vgg16` is empty.
      dtype: type of the networks' arithmetic.
      standardise: True if the detector sees a view less its mean and contrast, as the foundation's detector does.
      sigma: law of adaptive Gaussians: `paper`, 1 / e^d; or `code_rescaled`: 2 sigma^2 = (e^-d - e^-1) 4.8 / (1 - e^-1)
        + 0.2.
      detach_d: True if d is a constant to the gradient (ours). The published code has a gradient through d, so that the
        detector can widen or narrow a Gaussian by moving its descriptor. In measurements it widens them: d falls, but
        rises in figure 5, and no error improves (docs/methods/cgb.md).
      descriptor: pooling of features (`models/heads.py`): `softmax_pool`, `elementwise_max`, `matmul_max`.
      projection: state of the 1x1 convolution below the descriptors: `trained`, or `frozen_random` as in the published
        code. Both are equivalent unless detach_d=False and bottleneck=adaptive, because the projection receives no
        other gradient.
      descriptor_size: D, size of a descriptor.
      clusters: M, number of clusters of k-means (T = 80 in section 4.3).
      graph: neighbours and space of links; 80 and `gcn_hidden` in the published code, which counts a row among its own
        80 neighbours.
      ring_every, ring_size: steps between batches whose descriptors are kept, and number of batches kept.
      round_every: steps between clusterings.
      loss_window: central fraction of the view that the loss compares; 1 in the paper.
      perceptual: weight of each of the VGG16 terms; 1 in the published code, 0 leaves VGG16 out.
      detector_rate, generator_rate: learning rates of Adam.
      generator_first: steps during which only the generator learns, though the detector's batch statistics follow
        its views; 0 in the paper. These steps and those of the decay count from the start of the warm-up.
      decay_every, decay: decay of both rates.
      bn_eval: statistics of predictions: `running`, or those of the `batch`, as published (batches of 30 there); a
        photo's landmarks then depend on the other photos, and on the padding of the last batch.
      weights: folders of converted weights by kind; without `gcn_v` the network that ships with the library is used.
    """

    k: int
    frame_size: int
    start: Literal["previous", "zeroshot", "checkpoint", "scratch"] = "previous"
    bottleneck: Literal["adaptive", "fixed"] = "adaptive"
    clustering: Literal["none", "gcn", "density", "kmeans"] = "gcn"
    labels_from: Literal["ring", "pass"] = "ring"
    steps: int = 0
    view: View = View(128)
    bend: float = 0.0
    net: Fan = Fan()
    generator_width: int = 32
    generator_blocks: int = 6
    vgg_width: int = 64
    dtype: str = "float32"
    standardise: bool = False
    sigma: Literal["paper", "code_rescaled"] = "paper"
    detach_d: bool = True
    descriptor: Literal["softmax_pool", "elementwise_max", "matmul_max"] = "softmax_pool"
    projection: Literal["trained", "frozen_random"] = "trained"
    descriptor_size: int = 256
    clusters: PositiveInt = 80
    graph: Graph = Graph()
    ring_every: PositiveInt = 250
    ring_size: PositiveInt = 100
    round_every: PositiveInt = 12_500
    loss_window: Positive = 1.0
    perceptual: float = 1.0
    detector_rate: float = 1e-4
    generator_rate: float = 1e-4
    generator_first: int = 0
    decay_every: int = 0
    decay: float = 0.1
    bn_eval: Literal["running", "batch"] = "running"
    weights: Any = ()

    def __post_init__(self):
        super().__post_init__()
        if self.bottleneck == "adaptive" and self.clustering == "none":
            raise UserError("bottleneck=adaptive needs clusters; set clustering to gcn, density or kmeans")
        if self.view.image_size % (self.net.downsample * 2**self.net.depth) or self.net.downsample != 4:
            raise UserError(
                f"view.image_size is {self.view.image_size} and does not fit; use net.downsample=4, the generator's, "
                f"and a multiple of {4 * 2**self.net.depth} for net.depth={self.net.depth}"
            )

    # -- networks -----------------------------------------------------------------------------------------------------

    @property
    def needs(self):
        """A warm-up to go on with, or a detector to start from."""
        sizes = "the same k, net.width and net.depth"
        ring = Need("ring", "a warm-up, cgb.CGB", of_images=False)
        detector = Need("network", f"a detector of {sizes}, heatmap_detector.HeatmapDetector", of_images=False)
        return {"previous": (ring,), "zeroshot": (detector,)}.get(self.start, ())

    @property
    def _slots(self) -> int:
        """M, the number of slots for clusters."""
        return self.graph.slots if self.clustering in ("gcn", "density") else self.clusters

    @property
    def _fan(self):
        return FAN(self.k, **dataclasses.asdict(self.net), **layers.precision(self.dtype))

    @property
    def _describe(self):
        return LandmarkDescriptors(self.descriptor_size, self.descriptor, TEMPERATURE, **layers.precision(self.dtype))

    @property
    def _generator(self):
        return StarGanGenerator(self.generator_width, self.generator_blocks, **layers.precision(self.dtype))

    @property
    def _geometry(self) -> views.Geometry:
        return self.view.geometry(self.frame_size, self.net.downsample, self.dtype)

    @property
    def weight_kinds(self):
        """The kinds of converted weights that the stage uses; see `method.Stage`."""
        asked = {"fan": self.start == "checkpoint", "vgg16": self.perceptual, "gcn_v": self.clustering == "gcn"}
        return frozenset(kind for kind, read in asked.items() if read)

    def frozen(self, purpose="train"):
        if purpose != "train":
            return {}  # VGG16 is only for the loss, and the MPII weights only for the start of training
        folders, loaded = dict(self.weights), {}
        if self.start == "checkpoint":
            if not folders.get("fan"):
                raise UserError(
                    "the start from a checkpoint needs converted weights, --config.weights.fan=FOLDER (uld convert "
                    "--kind=fan); or give the config init=zeroshot or init=scratch"
                )
            loaded["fan"] = weights.load(folders["fan"], "fan")
        if self.perceptual:
            loaded["vgg"] = perceptual.load("vgg16", folders.get("vgg16"), self.vgg_width)
        if self.clustering == "gcn":
            folder = folders.get("gcn_v")
            network = weights.load(folder, "gcn_v") if folder else gcn_v.load_default()
            if gcn_v.size(network) == self.descriptor_size:
                loaded["gcn_v"] = network
            else:
                logging.warning(
                    "cgb.clustering=gcn: the network is for descriptors of %d and these have %d, so confidence is "
                    "density; set cgb.descriptor_size=%d to use it",
                    *(gcn_v.size(network), self.descriptor_size, gcn_v.size(network)),
                )
        return loaded

    # -- training -----------------------------------------------------------------------------------------------------

    def init(self, rng, batch, frozen, start):
        previous, (params, model_state) = start.previous, self._draw(rng)
        opt_state = {name: each.init(params[name]) for name, each in self._optimizers.items()}
        wide, rows_a_step = layers.wide(self.dtype), len(batch["index"]) * self.k
        ring = Ring(jnp.zeros((self.ring_size, rows_a_step, self.descriptor_size), wide), jnp.int32(0))
        if self.start == "previous":
            known = shared.take(self, start, "ring")
            # The projection may learn in only one of the stages: its moments then start, or end, between them.
            kept = {name: previous.opt_state.get(name, drawn) for name, drawn in opt_state.items()}
            if not same_shapes((previous.params, kept, known), (params, opt_state, ring)):
                raise UserError(
                    f"{start.stage}.start=previous goes on with a warm-up of other sizes; use the same k, batch, "
                    "networks, ring and kind of optimiser in both"
                )
            params, model_state, opt_state, ring = previous.params, previous.model_state, kept, known
        elif self.start == "zeroshot":
            drawn = params["detector"], model_state["detector"]
            if not same_shapes((shared.take(self, start, "network"), previous.model_state), drawn):
                raise UserError(
                    f"{start.stage}.start=zeroshot starts from a detector of other sizes; use the same k, net.width "
                    "and net.depth in both"
                )
            params["detector"], model_state["detector"] = previous.params, previous.model_state
        elif self.start == "checkpoint" and not start.shapes_only:
            drawn = params["detector"], model_state["detector"]
            params["detector"], model_state["detector"] = _loaded(frozen["fan"], *drawn)
        zero = jnp.zeros((), wide)
        aux = Consensus(
            round=jnp.int32(0),
            centroids=jnp.zeros((self._slots, self.descriptor_size), wide),
            used=jnp.zeros(self._slots, bool),
            found=jnp.int32(0),
            silhouette=zero,
            calinski_harabasz=zero,
            ring=ring,
        )
        return TrainState(jnp.int32(0), params, model_state, opt_state, aux)

    def train_step(self, state, frozen, batch, rng):
        # Step 1) Two views of each photo, the target turned twice as far.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        keys = jax.vmap(jax.random.split)(keys)
        source = self._geometry.look(batch["image"], self._warps(keys[:, 0], ROTATION))
        target = self._geometry.look(batch["image"], self._warps(keys[:, 1], 2 * ROTATION))
        (loss, (model_state, metrics, z)), grads = jax.value_and_grad(self._loss, has_aux=True)(
            state.params, state.model_state, state.aux, frozen, source, target
        )
        params, opt_state = dict(state.params), dict(state.opt_state)
        for name, optimizer in self._optimizers.items():
            updates, opt_state[name] = optimizer.update(grads[name], state.opt_state[name], params[name])
            params[name] = optax.apply_updates(params[name], updates)
        if self._projection_learns:
            # Before the first round no Gaussian depends on a descriptor, and L2 alone would shrink the projection.
            for new, old in ((params, state.params), (opt_state, state.opt_state)):
                new["projection"] = jax.tree.map(
                    lambda a, b: jnp.where(state.aux.round > 0, a, b), new["projection"], old["projection"]
                )
        aux = state.aux._replace(ring=self._keep(state.aux.ring, z, state.step))
        if self.clustering != "none":
            quantities = {"silhouette": aux.silhouette, "calinski_harabasz": aux.calinski_harabasz}
            metrics |= quantities | {"clusters": aux.found}
        new = state.replace(params=params, model_state=model_state, opt_state=opt_state, aux=aux)
        return new, {"loss": loss} | metrics

    def _loss(self, params, model_state, aux, frozen, source, target):
        # Step 2) Landmarks and descriptors of the target.
        seen, new_state = views.standardise(target) if self.standardise else target, dict(model_state)
        out, new_state["detector"] = self._fan.apply(
            {"params": params["detector"], **model_state["detector"]}, seen, train=True, mutable=["batch_stats"]
        )
        xy = heatmaps.soft_argmax(out.logits, TEMPERATURE)
        z = self._descriptors(params, out)
        # Steps 3), 4) Consistency, and Gaussians that are wider for lower consistency.
        d = self._consistency(aux, z)
        maps = heatmaps.gaussian(xy, self._geometry.heat, self._sigma(aux, d))
        # Step 5) The target again.
        made, new_state["generator"] = self._generator.apply(
            {"params": params["generator"], **model_state["generator"]},
            source,
            maps,
            train=True,
            mutable=["batch_stats"],
        )
        middle = lambda x: _middle(x, self.loss_window)
        pixels = jnp.mean(middle(made - target) ** 2)
        metrics = {"pixels": pixels}
        loss = pixels
        if self.perceptual:
            features = lambda x: vgg.vgg16(frozen["vgg"], x, vgg.CGB_TAPS, jnp.dtype(self.dtype))
            want = jax.lax.stop_gradient(features(target))
            terms = {
                name: jnp.mean(middle(found.astype(made.dtype) - want[name].astype(made.dtype)) ** 2)
                for name, found in features(made).items()
            }
            loss += self.perceptual * sum(terms.values())
            metrics["features"] = sum(terms.values())
        if self.clustering != "none":
            metrics["consistency"] = jnp.where(aux.round > 0, jnp.mean(d), 0)
        return loss, (new_state, metrics, z)

    def round_at(self, step):
        if self.clustering == "none" or step >= self.steps or step % self.round_every:
            return None
        return Round(passes=1 if self.labels_from == "pass" else 0)

    def observe(self, state, frozen, batch, rng):
        out = self._apply(state, self._geometry.look(batch["image"]), "running")
        return Seen(self._descriptors(state.params, out))

    def describe(self, state, frozen, images):
        z = self.observe(state, frozen, {"image": images}, None).z
        landmark = jnp.broadcast_to(jnp.arange(self.k, dtype=jnp.int32), z.shape[:2])
        return Described(z, landmark, jnp.ones(z.shape[:2], bool))

    def refresh(self, state, frozen, bank, rng):
        aux = state.aux
        # Step 6) Clusters of descriptors of length 1. A centroid is the mean of its members at their own lengths.
        if bank is None:
            z = aux.ring.descriptors.reshape(-1, self.descriptor_size)
            mask = jnp.repeat(jnp.arange(self.ring_size) < aux.ring.count, len(z) // self.ring_size)
        else:
            z = bank.values.z
            z, mask = flatten(z, jnp.broadcast_to(bank.real[..., None], z.shape[:-1]))
        rng, measuring = jax.random.split(rng)
        unit = keypoints.l2_normalize(jnp.where(mask[:, None], z, 0))
        labels, centroids, found = self._cluster(z, unit, mask, frozen, rng)
        some = jnp.any(mask)
        quantities = dict(labels=labels, mask=mask, clusters=self._slots)
        aux = aux._replace(
            round=aux.round + some,
            centroids=jnp.where(some, centroids, aux.centroids),
            used=jnp.where(some, jnp.arange(self._slots) < found, aux.used),
            found=jnp.where(some, found, aux.found),
            # The silhouette is measured on some rows, because its cost grows with their square.
            silhouette=quality.silhouette(unit, **quantities, sample=MEASURED, rng=measuring),
            calinski_harabasz=quality.calinski_harabasz(unit, **quantities),
            ring=aux.ring._replace(count=jnp.int32(0)),
        )
        return state.replace(aux=aux)

    def _cluster(self, z, unit, mask, frozen, rng):
        """Cluster rows z [N,D]: labels [N], centroids [M,D] with used ones first, and the number of clusters.

        `unit` are the rows at length 1.
        """
        if self.clustering == "kmeans":
            found = kmeans(unit, self.clusters, rng=rng, mask=mask)
            # Move empty clusters (they occur with few rows) to the end.
            rank = jnp.argsort(jnp.argsort(found.counts == 0, stable=True))
            labels = jnp.where(found.labels >= 0, rank[found.labels], -1)
            centroids = mean_directions(z, labels, self.clusters)
            return labels, centroids, jnp.sum(found.counts > 0, dtype=jnp.int32)
        network = frozen.get("gcn_v")
        found = gcn_clusters(
            z,
            network,
            k=self.graph.neighbours,
            tau=TAU,
            mask=mask,
            confidence="density" if network is None else "gcn",
            link_space=self.graph.link_space,
            slots=self.graph.slots,
        )
        return found.labels, found.centroids, found.count

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(self, state, frozen, images):
        out, d, _ = self._read(state, self._geometry.look(images))
        # Before the first clusters a landmark's consistency is unknown, and a score of 0 would mean "missing".
        score = jnp.where(state.aux.round > 0, jnp.clip(d, 1e-3, 1), 1)
        return Prediction(self._landmarks(out), score.astype(jnp.float32), features=out.features)

    def heatmaps(self, state, frozen, images):
        seen = self._geometry.look(images)
        return color.to_uint8(seen), self._read(state, seen)[2]

    def pictures(self, state, frozen, images):
        """Pictures in columns: source, target, bottleneck, generated target, target in the next photo's appearance.

        In the bottleneck, drawn over the target, a landmark's Gaussian has the generator's width, and its colour shows
        d (figure 6): blue is 0.5 and below, red 1.
        """
        geometry, count = self._geometry, len(images)
        turned = lambda degrees: jax.vmap(warp.turned)(geometry.still(count), jnp.full(count, degrees))
        source, target = geometry.look(images, turned(-20.0)), geometry.look(images, turned(10.0))
        _, d, maps = self._read(state, target)
        made, swapped = (self._generate(state, look, maps) for look in (source, jnp.roll(source, -1, 0)))
        red = jnp.clip(2 * d - 1, 0, 1)
        colour = jnp.stack([red, 0.1 * jnp.ones_like(red), 1 - red], -1)
        big = jax.image.resize(maps, (count, *geometry.view, self.k), "nearest")
        cover = jnp.max(big, -1, keepdims=True)
        tint = jnp.einsum("bhwk,bkc->bhwc", big, colour) / jnp.maximum(jnp.sum(big, -1, keepdims=True), 1e-6)
        shown = [source, target, (1 - cover) * target * 0.6 + cover * tint, made, swapped]
        return {"generated": color.to_uint8(jnp.stack(shown, 1))}

    # -- parts --------------------------------------------------------------------------------------------------------

    def _draw(self, rng):
        shape = lambda *sizes: jax.ShapeDtypeStruct((1, *sizes), layers.wide(self.dtype))
        heat = self._geometry.heat
        taps = shape(heat[0] // 2, heat[1] // 2, self.net.width)
        image, maps = shape(*self._geometry.view, 3), shape(*heat, self.k)
        a, b, c = jax.random.split(rng, 3)
        detector = layers.initialize(self._fan, a, image, train=False)
        projection = layers.initialize(self._describe, b, [taps] * 3, maps)
        generator = layers.initialize(self._generator, c, image, maps, train=False)
        params, model_state = {"projection": projection["params"]}, {}
        for name, drawn in (("detector", detector), ("generator", generator)):
            params[name], model_state[name] = layers.split(drawn)
        return params, model_state

    @property
    def _optimizers(self):
        """The optimisers of the networks that learn, by name."""

        def adam(rate, first=0):
            decayed = optax.exponential_decay(rate, max(self.decay_every, 1), self.decay, staircase=True)
            after = lambda step: jnp.where(step < first, 0, decayed(step) if self.decay_every else rate)
            return optimizers.adam(after, b1=BETAS[0], b2=BETAS[1], l2=L2, clip=CLIP)

        detector = adam(self.detector_rate, self.generator_first)
        both = {"detector": detector, "generator": adam(self.generator_rate)}
        return both | {"projection": detector} if self._projection_learns else both

    @property
    def _projection_learns(self) -> bool:
        """Tell whether the loss has a gradient by the projection: only through d, if a Gaussian depends on d."""
        return self.projection == "trained" and not self.detach_d and self.bottleneck == "adaptive"

    def _warps(self, keys, rotation):
        dtype = layers.wide(self.dtype)

        def draw(key):
            turn, rest = jax.random.split(key)
            degrees = rotation * jax.random.normal(turn, (), dtype)
            degrees = jnp.clip(degrees, -MAX_ROTATION, MAX_ROTATION)
            straight = warp.random_warp(rest, scale=JITTER, bend=self.bend, zoom=self.view.zoom, dtype=dtype)
            return warp.turned(straight, degrees)

        return jax.vmap(draw)(keys)

    def _keep(self, ring: Ring, z, step) -> Ring:
        """Add this step's descriptors to the ring, if it is one of the steps that are kept."""
        kept, slot = step % self.ring_every == 0, ring.count % self.ring_size
        z = sharding.gathered(jax.lax.stop_gradient(z)).reshape(ring.descriptors.shape[1:])
        return Ring(
            ring.descriptors.at[slot].set(jnp.where(kept, z, ring.descriptors[slot])),
            ring.count + kept.astype(jnp.int32),
        )

    def _descriptors(self, params, out):
        low = [out.taps[name] for name in ("low1", "low2", "low3")]
        return self._describe.apply({"params": params["projection"]}, low, out.logits)

    def _consistency(self, aux: Consensus, z):
        """The consistency d [B,K] = max_t cos(z, centroid_t)  (eq. 2)."""
        cosines = jnp.einsum(
            "bkd,md->bkm", keypoints.l2_normalize(z), aux.centroids.astype(z.dtype), precision="highest"
        )
        d = jnp.max(jnp.where(aux.used, cosines, -1), -1)
        return jax.lax.stop_gradient(d) if self.detach_d else d

    def _sigma(self, aux: Consensus, d):
        """The deviations [B,K] of the Gaussians in heatmap pixels (eq. 3)."""
        fixed = jnp.full_like(d, FIXED_SIGMA)
        if self.bottleneck == "fixed":
            return fixed
        if self.sigma == "paper":
            adaptive = jnp.exp(-d)
        else:
            low = math.exp(-1)
            adaptive = jnp.sqrt(((jnp.exp(-d) - low) * 4.8 / (1 - low) + 0.2) / 2)
        return jnp.where(aux.round > 0, adaptive, fixed)

    def _generate(self, state, source, maps):
        variables = {"params": state.params["generator"], **state.model_state["generator"]}
        return self._generator.apply(variables, source, maps, train=False)

    def _apply(self, state, seen, bn_eval):
        seen = views.standardise(seen) if self.standardise else seen
        variables = {"params": state.params["detector"], **state.model_state["detector"]}
        if bn_eval == "running":
            return self._fan.apply(variables, seen, train=False)
        return self._fan.apply(variables, seen, train=True, mutable=["batch_stats"])[0]

    def _read(self, state, seen):
        """FAN's output for views, d [B,K] of its landmarks, and their Gaussians [B,h,w,K]."""
        out = self._apply(state, seen, self.bn_eval)
        d = self._consistency(state.aux, self._descriptors(state.params, out))
        xy = heatmaps.soft_argmax(out.logits, TEMPERATURE)
        return out, d, heatmaps.gaussian(xy, self._geometry.heat, self._sigma(state.aux, d))

    def _landmarks(self, out):
        """The landmarks of unwarped views, [B,K,2] float32 in pixels of the frame."""
        return self._geometry.to_frame(heatmaps.soft_argmax(out.logits, TEMPERATURE)).astype(jnp.float32)


def _middle(x, fraction: float):
    """The central part of [B,h,w,C]."""
    if fraction >= 1:
        return x
    height, width = x.shape[1:3]
    top, left = (min(round(n * (1 - fraction) / 2), (n - 1) // 2) for n in (height, width))
    return x[:, top : height - top, left : width - left]


def _loaded(fan, params, model_state):
    """Take parameters and statistics of a converted FAN; the last layer stays as drawn if its K differs."""
    given, own = {"params": fan["params"]}, {"params": params}
    given["batch_stats"], own["batch_stats"] = fan["batch_stats"], model_state.get("batch_stats")
    if not same_shapes(given["params"]["l_0"], params["l_0"]):
        given["params"] = given["params"] | {"l_0": params["l_0"]}
    if not same_shapes(given, own):
        raise UserError(
            "the weights of config.weights.fan are of a FAN of another size; set the stage's width and depth to theirs "
            "(the published ones: 256, 4)"
        )
    given = jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), given, own)
    return given["params"], {"batch_stats": given["batch_stats"]}
