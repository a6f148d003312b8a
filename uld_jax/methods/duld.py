"""D-ULD and D-ULD++: landmarks by self-training on frozen features, and by clustering poses before keypoints.

Tourani et al., "Pose-Guided Self-Training with Two-Stage Clustering for Unsupervised Landmark Discovery", CVPR 2024.
There is no published code of it; what the paper leaves open is decided here and said where.

    Network            a frozen backbone, an aggregator Psi_b, a detector head Psi_d (one map), a descriptor head Psi_f

    Bootstrap          1) two views of an image under a known warp: dense correspondence, and where it can be trusted
                          (SiLK; section 3.2)
    Duld               2) keypoints are the detector's maxima, described by Psi_f; k-means: K clusters
                       3) each keypoint goes to its nearest cluster, and each cluster keeps the nearest of these
                       4) squared error of the detector to a map of these; contrastive loss of descriptors (eq. 4)
                       5) every round: steps 2, 3 again, from the last round's centroids                  (section 3.2)
    Proxy              6) the detector's map is encoded into a pose code and decoded to a map of the landmarks
                          (section 3.3.1)
    DuldPP             7) k-means of codes: Q poses; in each pose k-means of its own keypoints: K clusters, started from
                          those of all images, so that cluster k is one landmark in all poses
                       8) step 3 among the clusters of the image's pose; contrastive loss of codes (eq. 3; 3.3.2)

The file has step 1; then a round, which is steps 2, 3 and 5 and, by pose, what step 7 adds; then the losses and stages
of steps 4, 6, 7 and 8. A round collects `Seen` of every image (`find_keypoints`), forms `Clusters` of it
(`form_clusters`), finds each image's `Placed` among them (`locate_landmarks`), and writes the labels
(`DuldStage.settle`); `method.Clustering` says how. What the four stages share besides, such as the backbone, views and
prediction, is in `duld_stage.py`. D-ULD is the case of one pose.

Not the paper's. Ours, and off in the preset `paper`: labels to start from (`start=labels`), the place as a part of
descriptors (`position`), landmarks between cells (`place=mean`). From the published code of Mallis et al., on which
section 3.2 builds: pairs of two images or of one, warps and colours, squares in eq. 4, negatives within a view and
random cells, mirrored descriptors in k-means. Ours, where the paper leaves it open: rounds start from the centroids of
the last one; cluster k of a pose keeps its identity (started from all images, matched back where updates crossed,
marked unused where its landmark is hidden), where the paper has Q x K labels; codes are compared with a memory of
codes, into which nothing flows back, and an image's own earlier code is one of them; the codes of a round are of still
frames, those of training of turned views; parameters are averaged over steps for rounds and prediction.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax import sharding
from uld_jax.bank import by_batch, lookup
from uld_jax.clustering import two_stage
from uld_jax.clustering.kmeans import kmeans
from uld_jax.errors import UserError
from uld_jax.hyperparameters import NotNegative, PositiveInt
from uld_jax.method import Need
from uld_jax.methods import shared
from uld_jax.methods.duld_stage import ITERATIONS, DuldStage, Memory, Plan, Pose
from uld_jax.models import layers, pose_vae
from uld_jax.models.duld_net import DuldNet, Psi, unit
from uld_jax.ops import contrast, heatmaps, keypoints

TEMPERATURE = 0.1 / 1.41**2  # divisor of similarities in step 1; SiLK has 0.1 between descriptors of length 1.41
SIGMA = 1.0  # of the Gaussians that the detector learns, in cells (the paper gives none)
DESCRIPTOR_WEIGHT = 10.0  # of the contrastive loss of descriptors (published code of Mallis et al.)
MARGIN = 0.8  # m of eq. 4 (section 4)
BACKGROUND = 64  # random cells a view, which keypoints of the view must be apart from (published code of Mallis et al.)
APART = 5.7  # pairs of a view that are nearer, in cells of a map of 64, are left out (published code of Mallis et al.)
CODE_MARGIN = 0.8  # m of eq. 3, between codes of length 1 (ours: section 4 gives 0.8 for eq. 4)
CODE_SQUARED = False  # pairs of codes weigh by distances, not by their squares (eq. 3)
CODE_SIGMA = 1.5  # of the Gaussians that are decoded, in cells (ours; the paper gives none)
DEVIATION = 0.1  # of a decoded cell in the pose network's likelihood (ours)
LEAST_SHARE = 0.05  # a cluster with fewer keypoints than this times its pose's images is not seen there (ours)


# -- 1) bootstrapping (section 3.2) -----------------------------------------------------------------------------------


def correspondence_loss(psi: Psi, matches) -> contrast.Reciprocal:
    """Step 1) SiLK's losses of pairs of views [2B,...], neighbours in the batch, whose cells match [2B,h*w]."""
    described = keypoints.l2_normalize(psi.descriptors)
    paired = lambda x: x.reshape(-1, 2, matches.shape[-1], *x.shape[3:])
    one = lambda z, at, m: contrast.reciprocal(z[0], z[1], at[0], at[1], m[0], m[1], temperature=TEMPERATURE)
    return jax.tree.map(jnp.mean, jax.vmap(one)(paired(described), paired(psi.logits), paired(matches)))


class Clustered(DuldStage):
    """A stage of this file: its rounds are steps 2, 3, 5 and 7."""

    def observe(self, state, frozen, batch, rng):
        return find_keypoints(self, state, frozen, batch)

    def form(self, state, frozen, bank, rng):
        return form_clusters(self, state, bank, rng)

    def locate(self, state, found, seen):
        return locate_landmarks(self, state, found, seen)


@dataclasses.dataclass(frozen=True)
class Bootstrap(Clustered):
    """Step 1) Aggregator and heads learn dense correspondence under warps; then the first clusters are formed."""

    @property
    def plan(self):
        # All but the backbone learns (section 3.2); landmarks are never learnt here.
        return Plan(trains=("aggregator", "detector", "descriptor"), learnt_at=self.steps + 1, clusters=self.k)

    @property
    def needs(self):
        """What the stage before left, with `start=labels`."""
        return super().needs if self.start == "labels" else ()

    def round_at(self, step):
        return self.round_if(step == self.steps)

    def train_step(self, state, frozen, batch, rng):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        first, second, flip = jnp.unstack(jax.vmap(lambda key: jax.random.split(key, 3))(keys), axis=1)
        # Both views are mirrored or none: else equal descriptors of the left eye and the right one would be asked for.
        images, flip_keys = shared.neighbours(batch["image"], batch["image"]), jnp.repeat(flip, 2)
        seen, warps, _ = self.draw_views(images, shared.neighbours(first, second), flip_keys, self.mirror)
        latents = self.latents(frozen, batch["image"], batch.get("latents"))
        latents = None if latents is None else shared.neighbours(latents, latents)
        maps = self.view_maps(frozen, seen, warps, latents)
        examples = in_pairs({"maps": maps, "matches": self.geometry.matches(warps)})

        def loss(params, examples):
            flat = out_of_pairs(examples)
            psi = self.network.psi(params, flat["maps"])
            found = correspondence_loss(psi, flat["matches"])
            return found.descriptor + found.keypoint, found._asdict()

        return self.learn(state, loss, examples)


def in_pairs(examples):
    """Examples [2B,...] as pairs [B,2,...], which stay together in the pieces of a batch."""
    return jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]), examples)


def out_of_pairs(examples):
    """Pairs [B,2,...] as examples [2B,...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), examples)


# -- 2), 3), 5) and, by pose, 7), 8): a round of clustering -----------------------------------------------------------


class Seen(NamedTuple):
    """Keypoints and descriptors that a pass collects.

    Attributes:
      xy: [B,P,2], keypoints in pixels of the frame.
      mask: [B,P] bool, False in empty slots.
      described: [B,P,D], their descriptors of length 1, then their weighted place; 0 in empty slots.
      described_mirrored: [B,P,D], descriptors of the same keypoints in the mirrored image; None without mirrored views.
      codes: [B,Z], the image's pose code; None without codes.
      weighted: [B,K,2], the place of each landmark by the clusters so far, in pixels of the frame; None but with
        `place=mean`.
    """

    xy: jax.Array
    mask: jax.Array
    described: jax.Array
    described_mirrored: jax.Array | None
    codes: jax.Array | None
    weighted: jax.Array | None


class Clusters(NamedTuple):
    """Clusters that a round forms, of all images or of a sample.

    Attributes:
      anchors, centroids, used, poses: see `Discovery`.
      trained: [M,D], centroids of the clusters that are trained on beside the K landmarks (`train_clusters`), or None.
      memory: codes that the next steps are compared with, or None.
      moved, active_units: see `Counts`.
    """

    anchors: jax.Array
    centroids: jax.Array
    used: jax.Array
    poses: jax.Array | None
    trained: jax.Array | None
    memory: Memory | None
    moved: jax.Array
    active_units: jax.Array


class Placed(NamedTuple):
    """The place of images among the clusters of a round.

    Attributes:
      xy, mask, weighted: as in `Seen`.
      pose: [B] int32, each image's cluster of codes, or None without codes.
      slots: [B,K] int32, the keypoint that stands for each landmark, -1 for none.
      trained: [B,M] int32, the keypoint of each cluster that is trained on; `slots` unless those are more.
      mirrored: [B,M] int32, the cluster of that keypoint in the mirrored image; None without mirrored views.
    """

    xy: jax.Array
    mask: jax.Array
    weighted: jax.Array | None
    pose: jax.Array | None
    slots: jax.Array
    trained: jax.Array
    mirrored: jax.Array | None


def find_keypoints(stage: DuldStage, state, frozen, batch) -> Seen:
    """Step 2) Maxima of the detector's map, or the labels that are kept, and the descriptors there."""
    images, aux, still = batch["image"], state.aux, stage.geometry.still(len(batch["image"]))
    boxes = batch["boxes"] if stage.region == "box" else None
    psi, inside, codes = stage.look(state, frozen, images, boxes, batch.get("features"))
    cells, mask = stage.detect_keypoints(state, psi, inside)
    if stage.start == "labels":
        known = jax.tree.map(lambda table: lookup(table, batch["index"])[:, : stage.k], aux.labels)
        padded = lambda x: jnp.pad(x, ((0, 0), (0, stage.detect.most - stage.k), *[(0, 0)] * (x.ndim - 2)))
        at, there, keep = stage.geometry.to_cells(known.xy, still), known.score > 0, stage.keeps_labels(state)
        cells, mask = jnp.where(keep, padded(at), cells), jnp.where(keep, padded(there), mask)
    there = lambda described: jnp.where(mask[..., None], described, 0)
    described_mirrored, weighted = None, None
    if stage.plan.mirrors:
        mirrored = stage.backbone_maps(frozen, stage.geometry.look(images)[:, :, ::-1])
        at = jnp.stack([stage.geometry.heat[1] - 1 - cells[..., 0], cells[..., 1]], -1)
        described_mirrored = there(stage.describe_cells(stage.network.psi(stage.latest(state), mirrored), at))
    if stage.localise.place == "mean":
        where, _ = stage.match(psi, inside, stage.centroids_of(aux, codes, len(images)))
        weighted = stage.geometry.to_frame(where)
    described = there(stage.describe_cells(psi, cells))
    return Seen(stage.geometry.to_frame(cells), mask, described, described_mirrored, codes, weighted)


def form_clusters(stage: DuldStage, state, bank, rng) -> Clusters:
    """Steps 2, 5, 7) Clusters of a round; in the second pass of a round with `place=mean`, those of the first."""
    if stage.localise.place == "exemplar":
        return new_clusters(stage, state, bank, rng)
    aux = state.aux
    told = aux.counts.moved, aux.counts.active_units
    known = Clusters(aux.anchors, aux.centroids, aux.used, aux.poses, None, aux.memory, *told)
    return jax.lax.cond(aux.placed, lambda: new_clusters(stage, state, bank, rng), lambda: known)


def new_clusters(stage: DuldStage, state, bank, rng) -> Clusters:
    """Steps 2, 5, 7) New clusters of poses, of all keypoints, and of each pose's."""
    aux, seen, plan = state.aux, bank.values, stage.plan
    k_means = dict(iterations=ITERATIONS, restarts=stage.restarts)
    pose_key, first_key, trained_key = jax.random.split(rng, 3)
    group, poses, active, memory, trained = jnp.zeros(bank.index.shape, jnp.int32), aux.poses, 0, aux.memory, None
    if plan.pose:  # step 7)
        poses, active = pose_clusters(seen.codes, bank.real, poses, pose_key, k_means)
    if plan.memory:
        memory = remembered(seen.codes, bank.real, bank.index, plan.memory)
    if plan.groups > 1:
        group = two_stage.nearest_pose(unit(seen.codes), poses)
    anchors = landmark_clusters(seen, aux.anchors, aux.round > 0, first_key, k_means)  # steps 2), 5)
    if stage.start == "labels":  # a label's slot is its landmark
        own, there = seen.described[:, :, : stage.k], seen.mask[:, :, : stage.k, None]
        anchors = jnp.where(stage.keeps_labels(state), keypoints.masked_mean(own, there, (0, 1)), anchors)
    limits = plan.groups, plan.least_keypoints, ITERATIONS
    centroids, used, moved = clusters_by_pose(seen, anchors, group, *limits)  # step 7)
    if plan.clusters != stage.k:  # of the keypoints that stand for one of the K landmarks (Mallis et al. 2024)
        place = lambda *described: two_stage.exemplars(*described, centroids, used)
        slots, _ = by_batch(place, seen.described, seen.mask, group)
        x, mask = all_descriptors(seen, standing(seen.mask, slots))
        trained = kmeans(x, plan.clusters, rng=trained_key, mask=mask, **k_means).centroids
    told = jnp.asarray(moved, jnp.float32), jnp.asarray(active, jnp.float32)
    return Clusters(anchors, centroids, used, poses, trained, memory, *told)


def landmark_clusters(seen: Seen, anchors, known, rng, k_means: dict):
    """Steps 2, 5) The landmarks' centroids [K,D] over all images, from the last round's if there are any `known`."""
    x, mask = all_descriptors(seen, seen.mask)
    return two_stage.warm_kmeans(x, len(anchors), anchors, known, rng, mask=mask, **k_means)


def all_descriptors(seen: Seen, mask):
    """Descriptors [n,D] of a bank at the keypoints of `mask`, and their mask [n]: images, then mirrored images."""
    parts = [seen.described] if seen.described_mirrored is None else [seen.described, seen.described_mirrored]
    x = jnp.concatenate([described.reshape(-1, described.shape[-1]) for described in parts])
    return x, jnp.tile(mask.reshape(-1), len(parts))


def locate_landmarks(stage: DuldStage, state, found: Clusters, seen: Seen) -> Placed:
    """Steps 3, 8) The keypoint of each cluster in each image, among the clusters of the image's pose."""
    plan = stage.plan
    pose = two_stage.nearest_pose(unit(seen.codes), found.poses) if plan.pose else None
    group = pose if plan.groups > 1 else jnp.zeros(len(seen.mask), jnp.int32)
    clusters = found.centroids, found.used
    slots, _ = two_stage.exemplars(seen.described, seen.mask, group, *clusters)
    trained, mirrored = slots, None
    if plan.clusters != stage.k:
        clusters = found.trained[None], jnp.ones((1, plan.clusters), bool)
        trained, _ = two_stage.exemplars(seen.described, standing(seen.mask, slots), group, *clusters)
    if plan.mirrors:
        partner = two_stage.nearest(seen.described_mirrored, seen.mask, group, *clusters)
        mirrored = keypoints.take_slots(partner, trained)
        if stage.start == "labels":  # labels that are kept are in slots of their own, whatever is nearest to them
            mirrored = jnp.where(stage.keeps_labels(state), partner[..., : stage.k], mirrored)
    return Placed(seen.xy, seen.mask, seen.weighted, pose, slots, trained, mirrored)


def standing(mask, slots):
    """Step 3) Mask [...,P] of the keypoints that stand for a landmark, slots [...,K]."""
    return mask & jnp.any(slots[..., None] == jnp.arange(mask.shape[-1]), -2)


# -- 4) D-ULD (section 3.2) -------------------------------------------------------------------------------------------


def detector_loss(logits, cells, there):
    """Step 4) Squared error of the detector's maps [B,h,w] to Gaussians at the landmarks [B,K,2] that are there."""
    # mean over p of (sigmoid(logit_p) - max_k exp(-|p - xy_k|^2 / (2 sigma^2)))^2
    target = heatmaps.keypoint_map(cells, there, logits.shape[1:], SIGMA)
    return jnp.mean((jax.nn.sigmoid(logits) - target) ** 2)


def pair_loss(psi: Psi, examples, squared: bool, negatives: str):
    """Step 4, eq. 4) Labels of one cluster in the two views of a pair are alike, and others apart.

    `examples` are of neighbours in the batch.
    """
    # mean over pairs of  d for the same cluster,  max(0, m - d) else;  d = |f - f'|   (eq. 4: squared=False, cross)
    # by default of  d^2,  and of max(0, m - d)^2 for labels of one view, and for labels and random cells of one view
    cells, there = examples["cells"], examples["there"]
    described = described_at(psi, jnp.where(there[..., None], cells, 0))
    pair = lambda x: (x[0::2], x[1::2])
    (a, b), (on_a, on_b), (is_a, is_b) = pair(described), pair(there), pair(examples["number"])
    both = on_a[:, :, None] & on_b[:, None]
    same = both & (is_a[:, :, None] == is_b[:, None])
    square = contrast.square_distances(a, b)
    total, count = jnp.sum(jnp.where(same, contrast.attraction(square, squared), 0)), jnp.sum(same)
    far = both & ~same
    if negatives == "cross":
        total += jnp.sum(jnp.where(far, contrast.repulsion(square, MARGIN, squared), 0))
        count += jnp.sum(far)
    else:
        apart, pairs = repelled_within(psi, described, examples, squared)
        total, count = total + apart, count + pairs
    means = {"near": keypoints.masked_mean(square, same), "far": keypoints.masked_mean(square, far)}  # of squares
    return total / jnp.maximum(count, 1), means


def repelled_within(psi: Psi, described, examples, squared: bool):
    """Sum and number of the pairs of a view that must be apart, of labels and of random cells."""
    cells, random = examples["cells"], examples["background"]
    least = APART * psi.logits.shape[1] / 64
    options = dict(least=least, margin=MARGIN, squared=squared)
    return contrast.repelled_within(described, cells, examples["there"], described_at(psi, random), random, **options)


def described_at(psi: Psi, cells):
    """Descriptors [B,P,D] of length 1 at points of views."""
    return keypoints.l2_normalize(keypoints.sample(psi.descriptors, cells), eps=1e-6)


def random_cells(keys, count: int, grid: int, dtype: str):
    """Cells [B,count,2] anywhere in views, by keys [B]."""
    draw = lambda key: jax.random.uniform(jax.random.fold_in(key, 3), (count, 2), layers.wide(dtype))
    return jnp.floor(jax.vmap(draw)(keys) * grid)


@dataclasses.dataclass(frozen=True)
class Duld(Clustered):
    """Steps 2) to 5) Detector and descriptors learn from clusters of their own keypoints.

    Attributes:
      round_every: steps between clusterings; 5,000 in section 4.
      train_clusters: M; landmarks' keypoints are clustered once more into so many, which are trained on, while K stand
        for landmarks (the row "Mallis (D)" of table 1: 100). 0: the K themselves (section 3.2).
      squared: True if pairs weigh by squares, d^2 and max(0, m - d)^2 (published code of Mallis et al.), in the loss of
        descriptors; False for d and max(0, m - d) (eq. 4).
      negatives: pairs that must be apart: `within` a view, of keypoints and of keypoints with random cells (published
        code of Mallis et al.); or `cross`, of both images' other clusters (the words of eq. 4).
    """

    needs_partner = True

    round_every: PositiveInt = 5_000
    train_clusters: NotNegative = 0
    squared: bool = True
    negatives: Literal["within", "cross"] = "within"

    def __post_init__(self):
        super().__post_init__()
        if self.train_clusters and (self.start == "labels" or self.localise.place == "mean"):
            raise UserError(
                "train_clusters needs clusters and keypoints of its own; set start=clusters and place=exemplar"
            )

    @property
    def plan(self):
        trains, clusters = ("aggregator", "detector", "descriptor"), self.train_clusters or self.k
        return Plan(trains, learnt_at=1, clusters=clusters, mirrors=self.mirror)

    def round_at(self, step):
        return self.round_if(step % self.round_every == 0 or step == self.steps)

    def train_step(self, state, frozen, batch, rng):
        aux = state.aux
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        coin, *drawn = jnp.unstack(jax.vmap(lambda key: jax.random.split(key, 5))(keys), axis=1)
        # Another image, or the same one again, in another view.
        other = jax.vmap(jax.random.bernoulli)(coin)
        pairs = lambda name: shared.neighbours(
            batch[name],
            jnp.where(other.reshape(-1, *[1] * (batch[name].ndim - 1)), batch[f"{name}2"], batch[name]),
        )
        index, images = pairs("index"), pairs("image")
        latents = self.latents(frozen, images, pairs("latents") if "latents" in batch else None)
        keys, flip_keys = shared.neighbours(*drawn[:2]), shared.neighbours(*drawn[2:])
        seen, warps, flips = self.draw_views(images, keys, flip_keys, self.mirror)
        cells, there = shared.labels_in_views(aux.labels, index, warps, self.geometry)
        number = jnp.broadcast_to(jnp.arange(self.plan.clusters, dtype=jnp.int32), there.shape)
        if self.mirror:
            number = jnp.where(flips[:, None], aux.mirrored[index], number)
        examples = {
            "maps": self.view_maps(frozen, seen, warps, latents),
            "cells": cells,
            "there": there,
            "number": number,
            "background": random_cells(keys, BACKGROUND, self.net.grid, self.dtype),
        }

        def loss(params, examples):
            flat = out_of_pairs(examples)
            psi = self.network.psi(params, flat["maps"])
            detector = detector_loss(psi.logits, flat["cells"], flat["there"])
            contrastive, means = pair_loss(psi, flat, self.squared, self.negatives)
            metrics = {"detector": detector, "contrast": contrastive} | means
            return detector + DESCRIPTOR_WEIGHT * contrastive, metrics

        return self.learn(state, loss, in_pairs(examples))


# -- 6) the pose network (section 3.3.1) ------------------------------------------------------------------------------


def pose_bound(net: DuldNet, params, psi: Psi, examples, into_detector: bool):
    """Step 6) Negative bound on the likelihood of the landmarks' map, given a code of the detector's map."""
    # bound = mean over images of  sum_p (decoded_p - target_p)^2 / (2 s^2) + beta KL,  times 2 s^2 / cells
    confidence = psi.confidence(examples["inside"])
    mean, log_variance = net.code(params, confidence if into_detector else jax.lax.stop_gradient(confidence))
    decoded = net.decode(params, mean + jnp.exp(0.5 * log_variance) * examples["noise"])
    target = heatmaps.keypoint_map(examples["cells"], examples["there"], (net.grid, net.grid), CODE_SIGMA)
    fit, scale = pose_vae.reconstruction(decoded, target, DEVIATION), 2 * DEVIATION**2 / net.grid**2
    kl = jnp.sum(pose_vae.kl_divergence(mean, log_variance), -1)
    bound = jnp.mean(fit + examples["beta"] * kl) * scale
    return bound, {"reconstruction": jnp.mean(fit) * scale, "kl": jnp.mean(kl)}


def posed_examples(stage: DuldStage, pose: Pose, state, frozen, batch, rng, mirror: bool) -> dict[str, Any]:
    """One view an image, ready for the losses of steps 4), 6) and 8): examples [B,...]."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
    keys, flip_keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
    seen, warps, _ = stage.draw_views(batch["image"], keys, flip_keys, mirror)
    cells, there = shared.labels_in_views(state.aux.labels, batch["index"], warps, stage.geometry)
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, 4), (pose.latent,), cells.dtype)
    beta = pose.beta * jnp.minimum(1.0, state.step / max(pose.beta_steps, 1))
    latents = stage.latents(frozen, batch["image"], batch.get("latents"))
    return {
        "maps": stage.view_maps(frozen, seen, warps, latents),
        "cells": cells,
        "there": there,
        "inside": stage.geometry.inside(warps, stage.roi),
        "noise": jax.vmap(draw)(keys),
        "beta": jnp.full(len(cells), beta, cells.dtype),
    }


@dataclasses.dataclass(frozen=True)
class Proxy(Clustered):
    """Step 6) The detector and the pose network learn; labels are those of plain k-means, as in `Duld`.

    Codes are clustered too, so that it shows how far they tell poses apart; labels do not depend on that. The last
    stage takes these clusters up.

    Attributes:
      round_every: as in `Duld`.
      pose: the pose network.
    """

    round_every: PositiveInt = 5_000
    pose: Pose = Pose()

    @property
    def plan(self):
        # Psi_f stays (section 4), and so does Psi_b: under a descriptor head that stays it would drift away (ours).
        trains, keeps = ("detector", "encoder", "decoder"), ("aggregator", "descriptor")
        return Plan(trains, keeps, learnt_at=0, clusters=self.k, pose=self.pose)

    @property
    def needs(self):
        """Labels in any case, as the stage would learn empty maps until its first round."""
        return Need("labels", "a stage that finds landmarks, such as duld.Duld with train_clusters=0"), *super().needs

    def round_at(self, step):
        due = step % self.round_every == 0 or step == self.steps
        return self.round_if(due and step > 0)  # the stage before has just made labels

    def train_step(self, state, frozen, batch, rng):
        examples = posed_examples(self, self.pose, state, frozen, batch, rng, self.mirror)

        def loss(params, examples):
            psi = self.network.psi(params, examples["maps"])
            detector = detector_loss(psi.logits, examples["cells"], examples["there"])
            bound, metrics = pose_bound(self.network, params, psi, examples, self.pose.vae_into_detector)
            return detector + self.pose.vae_weight * bound, {"detector": detector} | metrics

        return self.learn(state, loss, examples)


# -- 7) clusters of poses, and of each pose's keypoints (section 3.3.2) -----------------------------------------------


def pose_clusters(codes, real, poses, rng, k_means: dict):
    """Step 7) Centroids [Q,Z] of the codes [B,T,Z] of `real` images, and the number of active units."""
    flat, mask = codes.reshape(-1, codes.shape[-1]), real.reshape(-1)
    found = two_stage.warm_kmeans(unit(flat), len(poses), poses, jnp.any(poses != 0), rng, mask=mask, **k_means)
    return found, pose_vae.active_units(flat, mask)


def clusters_by_pose(seen: Seen, anchors, group, groups: int, least_keypoints: int, iterations: int):
    """Step 7) Centroids of each pose's keypoints, from those of all; which are seen; identities that matching moved."""
    if groups == 1:
        return two_stage.Groups(anchors[None], jnp.ones((1, len(anchors)), bool), jnp.zeros((), jnp.int32))
    x, mask = all_descriptors(seen, seen.mask)
    limits = {"least_share": LEAST_SHARE, "least_keypoints": least_keypoints}
    return two_stage.cluster_groups(x, mask, seen.mask, group, anchors, groups, iterations=iterations, **limits)


# -- 8) D-ULD++ (section 3.3.2) ---------------------------------------------------------------------------------------


def code_contrast(codes, pose, known, known_pose):
    """Step 8, eq. 3) Codes [B,Z] of poses [B] beside remembered ones [S,Z] of poses [S], -1 for an empty place."""
    # mean over pairs of one pose of d,  plus mean over other pairs of max(0, m - d);  d = |phi - phi'|.  Nothing flows
    # back into the memory, and codes of one batch are not compared with each other.
    square = contrast.square_distances(unit(codes), unit(known))
    same = pose[:, None] == known_pose
    other = ~same & (known_pose >= 0)
    near = contrast.masked_pair_mean(contrast.attraction(square, CODE_SQUARED), same)
    far = contrast.masked_pair_mean(contrast.repulsion(square, CODE_MARGIN, CODE_SQUARED), other)
    return near + far, {
        "same_pose": keypoints.masked_mean(jnp.sqrt(square), same),  # mean distances of codes
        "other_pose": keypoints.masked_mean(jnp.sqrt(square), other),
    }


def remembered(codes, real, index, size: int) -> Memory:
    """A memory of the codes [B,T,Z] of a round: those of `size` images spread evenly over all."""
    count = index.size
    place = jnp.asarray(np.linspace(0, count - 1, min(size, count)).astype(np.int32))
    pick = lambda x: jnp.pad(x.reshape(count, -1)[place], ((0, max(size - count, 0)), (0, 0)))
    rows = jnp.where(pick(real)[:, 0], pick(index)[:, 0], -1).astype(jnp.int32)
    return Memory(jnp.where(rows[:, None] >= 0, pick(codes), 0), rows)


def same_pose_loss(psi: Psi, examples, squared: bool):
    """Step 8, algorithm 2, eq. 4) A landmark's descriptors in images of one pose are alike, and apart from its view's.

    The same landmark in another pose is no negative: it has another cluster there, and is the same place.
    """
    cells, there, pose = examples["cells"], examples["there"], examples["pose"]
    described = described_at(psi, jnp.where(there[..., None], cells, 0))
    square = contrast.square_distances(*[jnp.moveaxis(described, 1, 0)] * 2)  # [K,B,B]
    both = there.T[:, :, None] & there.T[:, None] & (pose[:, None] == pose) & ~jnp.tri(len(pose), dtype=bool)
    near = jnp.sum(jnp.where(both, contrast.attraction(square, squared), 0))
    far, count = repelled_within(psi, described, examples, squared)
    return (near + far) / jnp.maximum(jnp.sum(both) + count, 1)


@dataclasses.dataclass(frozen=True)
class DuldPP(Clustered):
    """Steps 7), 8) Labels come from clusters of poses and, in each, of keypoints; codes are drawn together by pose.

    Attributes:
      round_every: as in `Duld`.
      pose: the pose network.
      code_loss: `contrast` (eq. 3), the decoder being left out; or `elbo`, the bound of the proxy stage instead (the
        ablation's "TSC with full VAE"), weighed by `vae_weight` as there; `beta` rises anew in this stage.
      code_weight: weight of eq. 3.
      memory: S, codes that a batch is compared with: those of the last round, then of the images seen since.
      train_descriptors: whether Psi_f goes on learning, by eq. 4 (algorithm 2), or is frozen (section 3.3.2).
      squared: as in `Duld`, with `train_descriptors`; keypoints are pushed apart within a view.
      least_keypoints: a pose with fewer keypoints than this times K takes the centroids of all images.
    """

    round_every: PositiveInt = 5_000
    pose: Pose = Pose()
    code_loss: Literal["contrast", "elbo"] = "contrast"
    code_weight: float = 1.0
    memory: PositiveInt = 4096
    train_descriptors: bool = False
    squared: bool = True
    least_keypoints: int = 10

    @property
    def plan(self):
        descriptor = ("descriptor",) if self.train_descriptors else ()
        coder = ("encoder", "decoder") if self.code_loss == "elbo" else ("encoder",)
        return Plan(
            trains=("detector", *descriptor, *coder),
            keeps=("aggregator",) if self.train_descriptors else ("aggregator", "descriptor"),
            learnt_at=0,
            clusters=self.k,
            pose=self.pose,
            groups=self.pose.pose_clusters,
            least_keypoints=self.least_keypoints,
            memory=self.memory if self.code_loss == "contrast" else 0,
        )

    @property
    def needs(self):
        """What the stage before left, and a pose network in any case."""
        return Need("poses", "duld.Proxy"), *super().needs

    def round_at(self, step):
        return self.round_if(step % self.round_every == 0 or step == self.steps)

    def train_step(self, state, frozen, batch, rng):
        aux, size, eq3 = state.aux, len(batch["index"]), self.code_loss == "contrast"
        # A mirrored image is of another pose than its own, so views are not mirrored here.
        examples = posed_examples(self, self.pose, state, frozen, batch, rng, mirror=False)
        examples |= {"pose": aux.pose[batch["index"]], "place": jnp.arange(size)}
        if self.train_descriptors:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(rng, 1), batch["index"])
            examples["background"] = random_cells(keys, BACKGROUND, self.net.grid, self.dtype)
        if eq3:
            poses = jnp.where(aux.memory.rows >= 0, aux.pose[jnp.maximum(aux.memory.rows, 0)], -1)

        def loss(params, examples):
            psi = self.network.psi(params, examples["maps"])
            detector = detector_loss(psi.logits, examples["cells"], examples["there"])
            if eq3:
                codes, _ = self.network.code(params, psi.confidence(examples["inside"]))
                second, metrics = code_contrast(codes, examples["pose"], aux.memory.codes, poses)
                # Metrics are means over the pieces of a batch; of these the sum is wanted.
                seen = jnp.zeros((size, self.pose.latent), codes.dtype).at[examples["place"]].set(codes)
                metrics["codes"] = self.accumulate_steps * jax.lax.stop_gradient(seen)
            else:
                second, metrics = pose_bound(self.network, params, psi, examples, self.pose.vae_into_detector)
            total = detector + (self.code_weight if eq3 else self.pose.vae_weight) * second
            if self.train_descriptors:
                metrics["contrast"] = same_pose_loss(psi, examples, self.squared)
                total += DESCRIPTOR_WEIGHT * metrics["contrast"]
            return total, {"detector": detector} | metrics

        state, metrics = self.learn(state, loss, examples)
        if eq3:  # the batch's codes take the next places of the memory, in turn
            place = (state.step * size + jnp.arange(size)) % self.memory
            codes = aux.memory.codes.at[place].set(sharding.gathered(metrics.pop("codes")))
            memory = Memory(codes, aux.memory.rows.at[place].set(sharding.gathered(batch["index"])))
            state = state.replace(aux=state.aux._replace(memory=memory))
        return state, metrics
