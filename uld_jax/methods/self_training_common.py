"""Parts of self-training correspondence that both papers have: states, the trained stages' fields, and functions.

`self_training.py` (Mallis et al., NeurIPS 2020) and `self_training_extended.py` (TPAMI 2024) tell how the methods go;
their steps are numbered there.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from uld_jax import weights
from uld_jax.bank import Labels
from uld_jax.clustering import assignment
from uld_jax.hyperparameters import PositiveInt
from uld_jax.method import Described, Need, Prediction, Round, Stage
from uld_jax.methods.shared import Augment, Fan, Rmsprop, View, take_centroids, take_labels, take_weights
from uld_jax.models import fan, layers
from uld_jax.ops import color, keypoints, nms, views

SIGMA = 0.75  # of the Gaussians in the maps of stage 1, in heatmap pixels; the published code has it in stage 2


class Counts(NamedTuple):
    """How a clustering went; float32 scalars.

    Attributes:
      keypoints: mean number of keypoints an image, before assignment.
      labelled: mean number of keypoints an image that were given a cluster and kept.
      clusters: clusters that some image uses.
      full: images that filled every slot for keypoints, so that some may have been lost: raise `most`.
    """

    keypoints: jax.Array
    labelled: jax.Array
    clusters: jax.Array
    full: jax.Array


class Recovered(NamedTuple):
    """Correspondence as it is known: clusters of descriptors, and where each is in every training image.

    Attributes:
      round: int32, clusterings of this stage's own descriptors.
      centroids: [M,D] float32; [K,D] in the extended variant.
      limits: [M] float32, the squared distance to its centroid from which a keypoint is dropped; 0 for an empty
        cluster.
      labels: [N,M] keypoints that are trained on.
      fresh: [N,M] bool, the labels that the last detection found.
      mirrored, landmarks, flips: of the extended variant, see `self_training_extended.unknown`; None else.
      counts: of the last clustering.
    """

    round: jax.Array
    centroids: jax.Array
    limits: jax.Array
    labels: Labels
    fresh: jax.Array
    mirrored: jax.Array | None
    landmarks: Labels | None
    flips: jax.Array | None
    counts: Counts


class Merged(NamedTuple):
    """Clusters on their way to landmarks.

    Attributes:
      round: int32, mergings done.
      active: [M] bool, heatmaps that still stand for a landmark; K of them at the end. M is K in the extended variant.
      labels: [N,M], the points that heatmaps are trained on.
      flips: [K] int32, the mirrored partner of a landmark, in the extended variant; None else.
    """

    round: jax.Array
    active: jax.Array
    labels: Labels
    flips: jax.Array | None


def unknown(num_images: int, clusters: int, size: int, dtype) -> Recovered:
    """Return the state before anything is known: empty clusters of descriptors [D=size], and no label."""
    zero = jnp.zeros((), jnp.float32)
    return Recovered(
        round=jnp.int32(0),
        centroids=jnp.zeros((clusters, size), dtype),
        limits=jnp.zeros(clusters, dtype),
        labels=no_labels(num_images, clusters, dtype),
        fresh=jnp.zeros((num_images, clusters), bool),
        mirrored=None,
        landmarks=None,
        flips=None,
        counts=Counts(zero, zero, zero, zero),
    )


def no_labels(num_images: int, slots: int, dtype) -> Labels:
    """Return a table [N,slots] without a label."""
    return Labels(jnp.zeros((num_images, slots, 2), dtype), jnp.zeros((num_images, slots), dtype))


def count(mask, labels: Labels, most: int) -> Counts:
    """Count the keypoints, mask [B,T,P], and the labels of a clustering; `most` is P."""
    num_images = jnp.asarray(len(labels.score), jnp.float32)
    held = jnp.sum(mask, -1)
    return Counts(
        keypoints=jnp.sum(held) / num_images,
        labelled=jnp.sum(labels.score > 0) / num_images,
        clusters=jnp.sum(jnp.any(labels.score > 0, 0), dtype=jnp.float32),
        full=jnp.sum(held >= most, dtype=jnp.float32),
    )


def predicted(xy, described, mask, aux: Recovered, how: str) -> Prediction:
    """Return the clusters of images' keypoints, with a score that falls with the distance to the centroid."""
    found = assignment.assign(described, mask, aux.centroids, aux.limits, how)
    there = found.slots >= 0
    score = jnp.where(there, jnp.exp(-found.distance), 0)
    points = jnp.where(there[..., None], keypoints.take_slots(xy, found.slots), 0)
    return Prediction(points.astype(jnp.float32), score)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained(Stage):
    """Fields of the trained stages of both papers, and where they start.

    Attributes:
      frame_size: side of the frame in pixels.
      steps: of the stage, for the schedule.
      start: `previous` learns from what the stage before left; `checkpoint` has the network (and what else a published
        file holds) of `config.weights.mallis`, and learns with steps=0 from nothing else.
      view: of the frame.
      net: the network's size (`models/fan.py`).
      dtype: of its arithmetic.
      augment: the training views; warps are uniformly distributed, as in the published code.
      optimizer: RMSprop at a constant rate of 5e-4 (section 4).
      weights: folders of converted weights by kind.
    """

    LEARNS_FROM: ClassVar[tuple[Need, ...]]  # of every stage

    frame_size: int
    steps: int
    start: Literal["previous", "checkpoint"] = "previous"
    view: View = View()
    net: Fan = Fan()
    dtype: str = "float32"
    augment: Augment = Augment(40.0, 0.2, 0.05)
    optimizer: Rmsprop = Rmsprop()
    weights: Any = ()

    @property
    def weight_kinds(self):
        """See `method.Stage`."""
        return frozenset({"mallis"} if self.converted else ())

    def frozen(self, purpose="train"):
        if purpose != "train" or not self.converted:
            return {}
        return {"mallis": weights.load(dict(self.weights).get("mallis", ""), "mallis")}

    @property
    def converted(self) -> bool:
        """Whether the stage starts from converted weights."""
        return self.start == "checkpoint"

    @property
    def learns(self) -> bool:
        """Whether the stage learns from what the stage before left."""
        return bool(self.steps) or not self.converted

    @property
    def needs(self):
        """What the stage before left, unless converted weights are all there is."""
        return self.LEARNS_FROM if self.learns else ()

    @property
    def _geometry(self) -> views.Geometry:
        return self.view.geometry(self.frame_size, self.net.downsample, self.dtype)


def new_network(net, geometry: views.Geometry, rng, **call):
    """Return the first parameters of a network."""
    shape = jax.ShapeDtypeStruct((1, *geometry.view, 3), jnp.float32)
    return layers.split(layers.initialize(net, rng, shape, **call))[0]


@dataclasses.dataclass(frozen=True)
class Detection:
    """Keypoints of stage 1's map.

    Attributes:
      threshold: of the detector's confidence; 0.2 in the published code, 0.15 in the extended one.
      nms: half the side of a keypoint's box in heatmap pixels; 1, and 2 in the extended code.
      most: P, keypoints detected in an image.
      subpixel: `none`, `quarter` (extended code) or `parabola`: detections between cells.
    """

    threshold: float = 0.2
    nms: PositiveInt = 1
    most: PositiveInt = 128
    subpixel: Literal["none", "quarter", "parabola"] = "none"

    def detect(self, maps: fan.CorrespondenceOutput):
        """Return the keypoints of a map in cells: xy [B,P,2], score [B,P], mask [B,P]."""
        confidence = jax.nn.sigmoid(maps.logits.astype(jnp.promote_types(maps.logits.dtype, jnp.float32)))
        points = nms.points(nms.greedy(confidence, self.threshold, self.nms), confidence, self.most)
        return nms.subpixel(confidence, points.xy, self.subpixel), points.score, points.mask


class Keys(NamedTuple):
    """Random keys of a step.

    Attributes:
      other: [B], whether an example is of two images.
      warps, flips, colours: [2B], of its two views, one after the other.
    """

    other: jax.Array
    warps: jax.Array
    flips: jax.Array
    colours: jax.Array


class Views(NamedTuple):
    """What a step of stage 1 learns from: two views of each example, one after the other.

    Attributes:
      seen: [2B,h,w,3] in 0..1.
      cells: [2B,M,2] labels in heatmap cells of their view.
      there: [2B,M] bool, labels that are learned from.
      learned: [2B] bool, whether an image has enough labels.
      number: [2B,M] int32, the cluster of each label in its view.
      keys: [2B] random keys.
    """

    seen: jax.Array
    cells: jax.Array
    there: jax.Array
    learned: jax.Array
    number: jax.Array
    keys: jax.Array


def draw_keys(rng, index) -> Keys:
    """Return the keys of a step for the dataset rows [B]."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, index)
    other, *drawn = jnp.unstack(jax.vmap(lambda key: jax.random.split(key, 7))(keys), axis=1)
    both = [jnp.stack(drawn[i : i + 2], 1).reshape(-1) for i in (0, 2, 4)]
    return Keys(other, *both)


def pair_up(batch, other):
    """Return images [2B,H,W,3] and dataset rows [2B]: two images where `other` [B], else one image twice."""
    index = jnp.stack([batch["index"], jnp.where(other, batch["index2"], batch["index"])], 1)
    second = jnp.where(other[:, None, None, None], batch["image2"], batch["image"])
    images = jnp.stack([batch["image"], second], 1)  # [B,2,...]: both views of an example on its device
    return images.reshape(-1, *images.shape[2:]), index.reshape(-1)


def make_views(stage: Trained, images, labels: Labels, warps, keys: Keys, least_points: int = 0) -> Views:
    """Warp images [2B,H,W,3] and their labels [2B,M] alike, and change the colours."""
    geometry = stage._geometry
    seen = color.mildly_changed(keys.colours, geometry.look(images, warps), stage.augment.colour)
    cells = geometry.to_cells(labels.xy, warps)
    there = (labels.score > 0) & geometry.on_map(cells)
    learned = jnp.sum(labels.score > 0, -1) >= least_points
    there &= learned[:, None]
    number = jnp.broadcast_to(jnp.arange(there.shape[1]), there.shape)
    return Views(seen, cells, there, learned, number, keys.colours)


def pairs_of(there, number):
    """Pairs [B,M,M] of keypoints in an example's two views: all of keypoints that are there, and those of one cluster.

    Args:
      there: [2B,M] bool.
      number: [2B,M] int32, clusters.
    """
    both = there[0::2, :, None] & there[1::2, None]
    return both, both & (number[0::2, :, None] == number[1::2, None])


def contrast_metrics(square, both, same):
    """Scalars for `metrics.jsonl` of squared distances [B,M,M] of pairs."""
    return {
        "pairs": jnp.sum(same) / len(same),  # of corresponding keypoints, an example
        "near": keypoints.masked_mean(square, same),  # mean squared distance of those
        "far": keypoints.masked_mean(square, both & ~same),
    }


def describe_at(maps: fan.CorrespondenceOutput, xy, mask):
    """Descriptors [B,P,D] of length 1 at cells [B,P,2]; 0 in empty slots."""
    described = maps.descriptors.astype(jnp.promote_types(maps.descriptors.dtype, jnp.float32))
    return jnp.where(mask[..., None], keypoints.l2_normalize(keypoints.sample(described, xy)), 0)


def described_clusters(described, mask, aux: Recovered, how: str) -> Described:
    """Return descriptors with the cluster that each of them stands for."""
    slots = assignment.assign(described, mask, aux.centroids, aux.limits, how).slots
    has = slots[..., None] == jnp.arange(mask.shape[1])  # [B,C,P]
    return Described(described, jnp.where(jnp.any(has, 1), jnp.argmax(has, 1), -1).astype(jnp.int32), mask)


def learn_from(stage: Trained, aux: Recovered, start) -> Recovered:
    """Return the state of a stage 1 with the labels that the stage before left, if it learns.

    Raises UserError where there are none that fit.
    """
    dtype, slots = aux.labels.xy.dtype, aux.labels.score.shape[1]
    labels = take_labels(stage, start, slots)
    if labels is None:
        return aux
    return aux._replace(labels=jax.tree.map(lambda x: x.astype(dtype), labels), fresh=labels.score > 0)


def start_from_checkpoint(given, params, aux: Recovered, *, centroids_required: bool):
    """Return the parameters and the state of a converted stage 1. Raises UserError where they do not fit."""
    other = (
        "the weights of config.weights.mallis are of another network; give a file of stage 1, and set stage1's width, "
        "depth and descriptor_size to theirs (the published ones: 256, 4, 256)"
    )
    params = take_weights(given["params"], params, other)
    centroids = take_centroids(given, aux.centroids, required=centroids_required)
    if centroids is not None:
        limits = jnp.full(aux.limits.shape, jnp.finfo(aux.limits.dtype).max, aux.limits.dtype)
        aux = aux._replace(centroids=centroids, limits=limits, round=jnp.int32(1))
    return params, aux


def round_of_stage1(step: int, steps: int, warmup: int, every: int, pairs: str) -> Round | None:
    """Return the round before a step: the first after `warmup` steps, a last one at the end.

    With pairs=augmented there is the last one alone.
    """
    due = step >= warmup and (step - warmup) % every == 0 and pairs != "augmented"
    last = step == steps and (step > 0 or pairs == "augmented")
    return Round(passes=1) if last or (due and step > 0) else None


def network(stage) -> fan.CorrespondenceFAN:
    """Return the network of a stage 1: a map of where keypoints are, and a descriptor at every cell."""
    return fan.CorrespondenceFAN(
        stage.descriptor_size, **dataclasses.asdict(stage.net), **layers.precision(stage.dtype)
    )


def keypoints_of(stage, state, images):
    """Return what a stage 1 detects: xy [B,P,2] in the frame, descriptors [B,P,D] and mask [B,P]."""
    geometry = stage._geometry
    maps = network(stage).apply({"params": state.params}, geometry.look(images))
    xy, _, mask = stage.detection.detect(maps)
    return geometry.to_frame(xy), describe_at(maps, xy, mask), mask


def confidence_maps(stage, state, images):
    """Return what a stage 1 sees, and its one map; see `method.Method.heatmaps`."""
    seen = stage._geometry.look(images)
    return color.to_uint8(seen), jax.nn.sigmoid(network(stage).apply({"params": state.params}, seen).logits)[..., None]


def heatmap_network(stage, maps: int) -> fan.FAN:
    """Return the network of a stage 2, with so many heatmaps."""
    return fan.FAN(maps, **dataclasses.asdict(stage.net), norm="group", **layers.precision(stage.dtype))


def go_on_with(previous, params, maps: int, rng, start):
    """Return the descriptor branch of stage 1 with a new last layer; new parameters where there is no stage 1.

    Raises UserError for another network.
    """
    if previous is None:
        return params
    branch = fan.descriptor_branch(previous, maps, rng)
    other = (
        f"stage {start.stage} goes on with the network of the stage before; give both the same net.width, net.depth "
        "and net.downsample"
    )
    return take_weights(branch, params, other)


def second_from_checkpoint(given, params, active):
    """Return the parameters and the active heatmaps [M] of a converted stage 2.

    Raises UserError for another network.
    """
    other = (
        "the weights of config.weights.mallis are of another network; set stage2's width, depth and clusters (k in the "
        "extended variant) to theirs and give a file of stage 2"
    )
    params = take_weights(given["params"], params, other)
    return params, jnp.asarray(given["active"]) > 0 if "active" in given else jnp.ones_like(active)


def map_errors(logits, maps):
    """Mean squared errors [B,M] of heatmaps [B,h,w,M]."""
    return jnp.mean((logits.astype(maps.dtype) - maps) ** 2, (1, 2))


def peak_distance(stage, found, cells, there):
    """Mean distance, in pixels of the frame, of the highest cells [B,M,2] to the labels that are to be seen."""
    geometry = stage._geometry
    pixels = stage.view.zoom * stage.frame_size / geometry.heat[0] * jnp.linalg.norm(found - cells, axis=-1)
    return keypoints.masked_mean(pixels, there & geometry.on_map(cells))


def seen_landmarks(xy, score, there) -> Prediction:
    """Return a prediction of peaks [B,M,2], of which those that are not `there` are missing."""
    score = jnp.where(there, jnp.clip(score, 1e-3, 1), 0).astype(jnp.float32)
    return Prediction(jnp.where(there[..., None], xy, 0).astype(jnp.float32), score)
