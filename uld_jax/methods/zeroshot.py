"""ZeroShot landmarks, and the detector that learns from them.

Tourani et al., "Pose-Guided Self-Training with Two-Stage Clustering for Unsupervised Landmark Discovery", CVPR 2024,
section 3.1 (ZeroShot). The heatmap detector is the last stage of the self-training papers (Mallis et al., NeurIPS 2020,
section 3.3), trained here on whatever table of landmarks the stage before it leaves in `aux.labels`.

    ZeroShot          1) describe pixels of the training images by a frozen backbone   2) k-means: K clusters
      (no training)   3) a landmark is where its cluster is best matched in an image   4) table of landmarks

    HeatmapDetector   1) warp image and landmarks alike   2) K heatmaps, soft-argmax
                      3) distance to the warped landmarks
                      4) every round: a new table, the mean over several warps of what the network itself predicts
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from uld_jax import optimizers
from uld_jax.backbones import build, finished
from uld_jax.bank import Labels, flatten, image_table
from uld_jax.clustering import foreground
from uld_jax.clustering.kmeans import kmeans
from uld_jax.errors import UserError
from uld_jax.method import Prediction, Round, Stage, TrainState, same_shapes
from uld_jax.models import layers
from uld_jax.models.fan import FAN
from uld_jax.ops import color, coordinates, heatmaps, keypoints, shape_model, views, warp


class Reading(NamedTuple):
    """How K landmarks are read off M candidates: landmark_k = mean_k + sum_m weights_km (candidate_m - centre_m).

    Attributes:
      chosen: [K] int32, the candidate that a landmark stems from; its score is the landmark's.
      centre: [M,2] mean of the candidates, in unit coordinates of the frame.
      weights: [K,2,M,2].
    """

    chosen: jax.Array
    centre: jax.Array
    weights: jax.Array


class Clusters(NamedTuple):
    """What ZeroShot finds.

    Attributes:
      round: int32, passes done: 0 none, 1 clustered, 2 placed.
      centroids: [M,D] float32.
      reading: from candidates to landmarks.
      labels: landmarks of the training images.
      key: [2] uint32, the run's, which an image's random pixels are drawn by when it is predicted; None with `dense`.
    """

    round: jax.Array
    centroids: jax.Array
    reading: Reading
    labels: Labels
    key: jax.Array | None


class ForegroundClusters(NamedTuple):
    """What ZeroShot finds with `region=foreground`: `Clusters`, and what tells the object from what is behind it.

    Attributes:
      round: as in `Clusters`, with a pass before: -1 where not even the foreground is known.
      foreground: of the backbone's descriptors.
    """

    round: jax.Array
    centroids: jax.Array
    reading: Reading
    labels: Labels
    key: jax.Array | None
    foreground: foreground.Foreground


class Seen(NamedTuple):
    """What a pass collects.

    Attributes:
      descriptors: [B,P,D] float32, of random pixels of the image.
      cells: [B,P,2] float32, where these are on the map.
      xy: [B,M,2] float32, the candidates by the clusters that there are, in pixels of the frame.
      score: [B,M] float32 of those; 0 if missing.
    """

    descriptors: jax.Array
    cells: jax.Array
    xy: jax.Array
    score: jax.Array


@dataclasses.dataclass(frozen=True)
class ZeroShot(Stage):
    """K-means over the descriptors of a frozen backbone; a stage of zero steps.

    With `candidates` above k (ours, not the paper's) more clusters are formed than landmarks wanted. A factor model of
    how their places move together tells the steady ones from those that wander, and k are chosen from which the places
    of all can be predicted best. No annotation is involved.

    Attributes:
      k: K, number of landmarks.
      frame_size: side of the frame in pixels.
      backbone: module and class below `uld_jax.backbones`.
      backbone_kwargs: its hyper-parameters.
      position: weight of the place in a descriptor. A descriptor has length 1; from one side of the frame to the
        other a place moves by `position`. 0 clusters by appearance alone, as the paper does on Stable Diffusion.
      roi: landmarks are looked for in this central fraction of the frame.
      region: where in there, `none` for everywhere; or `box`, in training images, that of the csv, which then takes the
        place of `roi` (the paper's region of interest is a detector's box); or `foreground`, in training images and
        others, the largest region that the first principal component of the backbone's maps tells from the rest
        (ours). That takes one pass more, and `pictures/` shows the region.
      pixels: random pixels an image that are clustered (P).
      dense: whether a landmark is looked for at all cells of the region, or, as in the paper, at P random places in it,
        which depend on the image and the run's seed alone. There an exemplar must be nearer to its cluster's centroid
        than to others', and landmarks without any are missing.
      place: `mean` weighs all pixels by exp(-sharpness * squared distance to the centroid); `exemplar` takes the
        nearest (paper, section 3.1).
      sharpness: see `place`.
      candidates: M, number of clusters; 0 for the paper's k.
      factors: of the factor model: about as many as the object's poses and shapes have dimensions (8 for faces). With
        more, factors are spent on single candidates, wandering ones too.
      denoise: whether a landmark is where the factor model expects its candidate, given all candidates of the image, or
        where the candidate was found.
      iterations: of k-means, at most.
      bank_gib: descriptors kept of a pass, in GiB. Where those of P pixels an image are more, fewer are clustered of
        each, the first of those drawn. Ours: 4 GiB are a million descriptors of 1024 numbers, for tens of clusters.
      weights: folders of converted weights by kind, for backbones that have any.
      cache: folder of the backbone's maps or latents of the training images (`uld features`), which the passes over
        these then read; predictions compute them. "" computes them in every pass.
    """

    uses_previous = False

    k: int
    frame_size: int
    backbone: str = "gradient.GradientHistograms"
    backbone_kwargs: Any = ()
    position: float = 2.0
    roi: float = 0.7
    region: str = "none"
    pixels: int = 60
    dense: bool = True
    place: str = "mean"
    sharpness: float = 30.0
    candidates: int = 0
    factors: int = 8
    denoise: bool = True
    iterations: int = 100
    bank_gib: float = 4.0
    weights: Any = ()
    cache: str = ""

    def __post_init__(self):
        if self.bank_gib <= 0:
            raise UserError(f"zeroshot.bank_gib is {self.bank_gib}; use a number above 0")
        if self.place not in ("mean", "exemplar"):
            raise UserError(f"zeroshot.place is {self.place!r}; use mean or exemplar")
        if not 0 < self.roi <= 1:
            raise UserError(f"zeroshot.roi is {self.roi}; use a fraction of the frame, above 0 and up to 1")
        if self.region not in ("none", "box", "foreground"):
            raise UserError(f"zeroshot.region is {self.region!r}; use none, box or foreground")
        if self.candidates and not self.dense and self.place == "exemplar":
            raise UserError(
                "zeroshot.dense=False with place=exemplar leaves clusters missing, and candidates are read off all of "
                "them; set zeroshot.candidates=0 or place=mean"
            )
        if self.pixels < 1:
            raise UserError(f"zeroshot.pixels is {self.pixels}; use 1 or more an image")
        if self.candidates and self.candidates < self.k:
            raise UserError(f"zeroshot.candidates is {self.candidates}; use 0, or at least k = {self.k}")

    @property
    def _backbone(self):
        return build.backbone(self.backbone, "zeroshot.backbone", self.backbone_kwargs, self.weights)

    @property
    def _clusters(self) -> int:
        return self.candidates or self.k

    def _kept(self, aux) -> int:
        """Pixels of an image whose descriptors are kept; all of them if they fit."""
        num_images, width = len(aux.labels.xy), aux.centroids.shape[1]
        fit = int(self.bank_gib * 2**30) // (num_images * width * aux.centroids.dtype.itemsize)
        return min(self.pixels, max(fit, 1))

    @property
    def _frame(self) -> tuple[int, int]:
        return self.frame_size, self.frame_size

    def side_tables(self):
        return {"boxes": ()} if self.region == "box" else {}

    def frozen(self, purpose="train"):
        return self._backbone.load()

    def init(self, rng, batch, frozen, start):
        width = jax.eval_shape(self._describe, frozen, batch["image"]).shape[-1]
        count = self._clusters
        first = jnp.arange(self.k, dtype=jnp.int32)
        picked = jnp.einsum("km,cd->kcmd", jax.nn.one_hot(first, count), jnp.eye(2))
        aux = Clusters(
            round=jnp.int32(0),
            centroids=jnp.zeros((count, width)),
            reading=Reading(first, jnp.zeros((count, 2)), picked),
            labels=Labels(jnp.zeros((start.num_images, self.k, 2)), jnp.zeros((start.num_images, self.k))),
            key=None if self.dense else jax.random.key_data(rng),
        )
        if self.region == "foreground":
            aux = ForegroundClusters(
                **aux._asdict() | {"round": jnp.int32(-1)}, foreground=foreground.unknown(width - 2)
            )
        return TrainState(step=jnp.int32(0), aux=aux)

    def round_at(self, step):
        # Cluster, then place; the foreground before.
        return Round(passes=3 if self.region == "foreground" else 2) if step == 0 else None

    def observe(self, state, frozen, batch, rng):
        described = self._describe(frozen, batch["image"], batch.get("features"))
        # Step 1) P random pixels an image, the same for an image whatever batch it comes in.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        boxes = batch["boxes"] if self.region == "box" else None
        cells = self._draw(keys, self.pixels, state.aux, described, boxes)[:, : self._kept(state.aux)]
        # Step 3) Candidates, which mean something once there are clusters.
        found = self._place(state.aux, described, batch["image"], boxes)
        sampled = keypoints.sample(described, cells).astype(state.aux.centroids.dtype)  # maps from files have their own
        return Seen(sampled, cells, *found)

    def refresh(self, state, frozen, bank, rng):
        aux, seen, count, num_images = state.aux, bank.values, self._clusters, len(state.aux.labels.xy)
        clustered = aux.round > 0
        # Step 2) k-means over all sampled pixels, in the first pass.
        x, real = flatten(seen.descriptors, jnp.broadcast_to(bank.real[..., None], seen.cells.shape[:-1]))
        known = aux.round >= 0
        cluster = lambda: kmeans(x, count, rng=rng, mask=real, iterations=self.iterations).centroids
        centroids = jax.lax.cond(clustered | ~known, lambda: aux.centroids, cluster)
        # Step 4) The candidates of all images, which of them are landmarks, and where.
        score = jnp.where(bank.real[..., None], seen.score, 0)
        choose = lambda: self._choose(seen.xy, jnp.all(score > 0, -1))
        reading = jax.lax.cond(clustered, choose, lambda: aux.reading) if self.candidates else aux.reading
        xy, score = self._read(reading, seen.xy, score)
        labels = Labels(image_table(bank, xy, num_images), image_table(bank, score, num_images))
        new = aux._replace(reading=reading, labels=labels)
        aux = jax.tree.map(lambda placed, old: jnp.where(clustered, placed, old), new, aux)
        if self.region == "foreground":
            # Before all else) What is object, from all sampled pixels.
            image = jax.ShapeDtypeStruct((1, *self._frame, 3), jnp.uint8)
            size = jax.eval_shape(self._describe, frozen, image).shape[1:3]
            unit = coordinates.to_unit(seen.cells.reshape(-1, 2), size)
            fit = lambda: foreground.fit(x[:, :-2], unit, real)
            aux = aux._replace(foreground=jax.lax.cond(known, lambda: aux.foreground, fit))
        return state.replace(aux=aux._replace(round=aux.round + 1, centroids=centroids))

    def predict(self, state, frozen, images):
        xy, score = self._place(state.aux, self._describe(frozen, images), images)
        return Prediction(*self._read(state.aux.reading, xy, score))

    def pictures(self, state, frozen, images):
        """Columns: the photo, the component that tells the object from the rest, grey between them, and the region."""
        if self.region != "foreground":
            return {}
        described, aux = self._describe(frozen, images), state.aux
        along = foreground.score(aux.foreground, described[..., :-2])
        along = 0.5 + 0.5 * along / jnp.maximum(jnp.max(jnp.abs(along), (1, 2), keepdims=True), 1e-6)
        big = lambda maps: jax.image.resize(maps[..., None].astype(float), (*images.shape[:3], 1), "nearest")
        photo, inside = images.astype(float) / 255, big(self._inside(aux, described))
        shown = [photo, jnp.broadcast_to(big(along), photo.shape), photo * (0.25 + 0.75 * inside)]
        return {"region": color.to_uint8(jnp.stack(shown, 1))}

    def _describe(self, frozen, images, maps=None):
        """Descriptors [B,h,w,D]: all taps at the finest one's resolution, each of length 1, and the place.

        `maps` are the backbone's for these images, where they or its latents are known.
        """
        backbone = self._backbone
        maps = backbone.features(frozen, images) if maps is None else finished(backbone, frozen, maps)
        # By name, since a dict that comes into a jitted program is sorted.
        names = sorted(maps)
        taps = [maps[name].astype(jnp.promote_types(maps[name].dtype, jnp.float32)) for name in names]
        height, width = max(t.shape[1:3] for t in taps)
        parts = [jax.image.resize(t, (len(t), height, width, t.shape[-1]), "bilinear", antialias=False) for t in taps]
        # Joined backbones weigh the same, and so do the maps of each.
        of = [name.rpartition("/")[0] for name in names]
        parts = [
            keypoints.l2_normalize(t) / (len(set(of)) * of.count(o)) ** 0.5 for t, o in zip(parts, of, strict=True)
        ]
        place = coordinates.to_unit(coordinates.pixel_grid(height, width), (height, width)) * (self.position / 2)
        place = jnp.broadcast_to(jnp.asarray(place, parts[0].dtype), (*parts[0].shape[:3], 2))
        return jnp.concatenate([*parts, place], -1)

    def _roi_bounds(self, side):
        """First and last cell of the region of interest on a map of this side."""
        half = self.roi * side / 2
        return side / 2 - half, side / 2 + half - 1

    def _box_bounds(self, boxes, size):
        """First and last place (x, y) of boxes [B,4] in pixels of the frame, in cells: two of [B,2]."""
        corners = coordinates.rescale_points(boxes.reshape(-1, 2, 2), self._frame, size)
        last = jnp.array([size[1], size[0]], corners.dtype) - 0.5
        low, high = jnp.clip(corners[:, 0], -0.5, last), jnp.clip(corners[:, 1], -0.5, last)
        return low, jnp.maximum(low, high)

    def _inside(self, aux, described, boxes=None):
        """Cells [B,h,w] or [1,h,w] of the region of interest; all of `roi` where the region would have none."""
        height, width = described.shape[1:3]
        grid = jnp.asarray(coordinates.pixel_grid(height, width), described.dtype)
        low, high = self._roi_bounds(height)
        roi = jnp.all((grid >= low) & (grid <= high), -1)[None]
        if self.region == "foreground":
            found = foreground.region(aux.foreground, described[..., :-2], roi[0])
        elif boxes is not None:
            low, high = (bound[:, None, None] for bound in self._box_bounds(boxes, (height, width)))
            found = jnp.all((grid >= low) & (grid <= high), -1)
        else:
            return roi
        return jnp.where(jnp.any(found, (1, 2), keepdims=True), found, roi)

    def _draw(self, keys, count: int, aux, described, boxes=None):
        """Random places [B,count,2] in each image's region of interest, in cells, by a key for each."""
        size, dtype = described.shape[1:3], described.dtype
        if self.region == "foreground":
            inside = self._inside(aux, described).reshape(len(described), -1)

            def draw(key, inside):
                # Cells of the region are equally likely, and so are places in a cell.
                which, within = jax.random.split(key)
                total = jnp.cumsum(inside)
                wanted = jax.random.randint(which, (count,), 0, total[-1])
                cell = jnp.searchsorted(total, wanted, side="right")
                xy = jnp.stack([cell % size[1], cell // size[1]], -1).astype(dtype)
                return xy + jax.random.uniform(within, (count, 2), dtype, -0.5, 0.5)

            return jax.vmap(draw)(keys, inside)
        if boxes is not None:
            uniform = lambda key, low, high: jax.random.uniform(key, (count, 2), dtype, low, high)
            return jax.vmap(uniform)(keys, *self._box_bounds(boxes, size))
        low, high = self._roi_bounds(size[0])
        return jax.vmap(lambda key: jax.random.uniform(key, (count, 2), dtype, low, high))(keys)

    def _place(self, aux, described, images, boxes=None):
        """Where each cluster is in each image: xy [B,M,2] in pixels of the frame, score [B,M] in 0..1, 0 if missing."""
        batch, height, width, depth = described.shape
        if self.dense:
            grid = jnp.asarray(coordinates.pixel_grid(height, width), described.dtype).reshape(-1, 2)
            inside = self._inside(aux, described, boxes).reshape(-1, height * width, 1)
            square = self._squares(described.reshape(batch, -1, depth), aux.centroids)
            square = jnp.where(inside, square, jnp.inf)
            if self.place == "mean":
                weight = jax.nn.softmax(jnp.where(inside, -self.sharpness * square, -jnp.inf), 1)
                cells = jnp.einsum("bpm,pc->bmc", weight, grid, precision="highest")
            else:
                cells = grid[jnp.argmin(square, 1)]
        else:
            keys = _content_keys(jax.random.wrap_key_data(aux.key), images)
            drawn = self._draw(keys, self.pixels, aux, described, boxes)
            square = self._squares(keypoints.sample(described, drawn), aux.centroids)
            if self.place == "mean":
                weight = jax.nn.softmax(-self.sharpness * square, 1)
                cells = jnp.einsum("bpm,bpc->bmc", weight, drawn, precision="highest")
            else:
                # Step 4) of the paper: of the pixels that are in a cluster, the nearest to its centroid.
                own = jnp.argmin(square, -1)[..., None] == jnp.arange(len(aux.centroids))
                square = jnp.where(own, square, jnp.inf)
                cells = jnp.take_along_axis(drawn, jnp.argmin(square, 1)[..., None], 1)
        score = jnp.exp(-jnp.maximum(jnp.min(square, 1), 0))
        return coordinates.rescale_points(cells, (height, width), self._frame), score

    def _squares(self, x, centroids):
        """Squared distances [B,p,M] of descriptors [B,p,D] to centroids [M,D]."""
        cross = jnp.einsum("bpd,md->bpm", x, centroids, precision="highest")
        return jnp.sum(x**2, -1, keepdims=True) - 2 * cross + jnp.sum(centroids**2, -1)

    def _choose(self, xy, there) -> Reading:
        """K of M candidates [...,M,2] in pixels of the frame, from the images that are `there` [...]."""
        points = coordinates.to_unit(xy, self._frame).reshape(-1, 2 * self._clusters)
        mean, cov = shape_model.covariance(points, there.reshape(-1))
        model = shape_model.factor_analysis(cov, min(self.factors, 2 * self._clusters - 1))
        product = functools.partial(jnp.matmul, precision="highest")
        reader = shape_model.posterior(model)
        expect = product(model.loadings, reader)  # candidates to expected
        # The target, all expected candidates, in as many coordinates as there are factors: loadings = turn @ few.
        few = jnp.linalg.qr(model.loadings, mode="r")
        source, crossed = cov, product(product(cov, reader.T), few.T)
        if self.denoise:
            source, crossed = product(expect, product(cov, expect.T)), product(expect, crossed)
        count = self._clusters
        blocks = (count, 2, count, 2)
        own = jnp.sum(model.variances.reshape(count, 2), 1) / jnp.sum(jnp.diagonal(cov).reshape(count, 2), 1)
        chosen = shape_model.choose_points(
            source.reshape(blocks), crossed.reshape(count, 2, -1), self.k, prefer=-own
        )  # of equally good ones the steadiest
        read = expect if self.denoise else jnp.eye(2 * count, dtype=cov.dtype)
        return Reading(chosen, mean.reshape(count, 2), read.reshape(blocks)[chosen])

    def _read(self, reading: Reading, xy, score):
        """Candidates [...,M,2] in pixels of the frame with score [...,M] to landmarks [...,K,2] with score [...,K]."""
        away = coordinates.to_unit(xy, self._frame) - reading.centre
        unit = jnp.einsum("kcmd,...md->...kc", reading.weights, away, precision="highest")
        return coordinates.from_unit(unit + reading.centre[reading.chosen], self._frame), score[..., reading.chosen]


def _content_keys(key, images):
    """A key [B] for each of [B,H,W,3] uint8 images, which depends on its pixels and `key` alone."""
    flat = images.reshape(len(images), -1).astype(jnp.uint32)
    factors = jnp.arange(flat.shape[1], dtype=jnp.uint32) * jnp.uint32(2654435761) + 1  # the sum wraps around
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.sum(flat * factors, 1, dtype=jnp.uint32))


class Rounds(NamedTuple):
    """What the detector learns from.

    Attributes:
      round: int32, how often the labels were replaced.
      labels: landmarks of the training images.
      key: [2] uint32, the run's, which the views of a prediction are drawn by; None where it looks once.
    """

    round: jax.Array
    labels: Labels
    key: jax.Array | None


@dataclasses.dataclass(frozen=True)
class HeatmapDetector(Stage):
    """A FAN hourglass with K heatmaps, trained on pseudo-labels that it refines itself.

    The defaults of the optimiser, the schedule and the rounds are ours: the papers train other losses for hundreds of
    thousands of steps.

    Attributes:
      k: K, number of landmarks.
      frame_size: side of the frame in pixels.
      steps: of the whole stage, for the schedule.
      image_size: side of the view that the network sees, in pixels.
      zoom: the view shows this central fraction of the frame.
      width, depth, downsample, norm: of the FAN (`models/fan.py`).
      dtype: of the network's arithmetic; parameters, statistics and losses stay float32 (float64 under float64).
      loss: `position`, the smooth L1 distance of the soft-argmax; or `heatmap`, the mean squared
        difference to a Gaussian (Mallis et al., section 3.3), decoded by its peak.
      temperature: of the soft-argmax (0.1 in Sanchez and Tzimiropoulos, NeurIPS 2019).
      delta: distance from which `loss=position` grows no longer as a square, as a fraction of the view's side.
      sigma: of the Gaussian in heatmap pixels, for `loss=heatmap`.
      round_every: steps between refreshes of the labels; 0 keeps the first ones.
      relabel_warps: views that a new label is the mean of.
      relabel_spread: their size, as a fraction of the training warps'.
      labels_from: `previous` starts from the table of the stage before; `self` from what the network given by
        `init_from` predicts, which allows other images.
      rotation (degrees), scale, shift, bend: of the training warps (`ops/warp.py`).
      colour: strength of the colour changes, 1 is usual.
      standardise: whether a view is shown to the network with its own mean and contrast taken out.
      learning_rate, l2, clip: of Adam (`optimizers.py`).
      schedule, warmup: of the learning rate; with rounds it starts again at each.
      predict_warps: views that a prediction is the mean of, the same ones of every image; 1 looks once, at the image as
        it is.
      accumulate_steps: pieces of a batch.
    """

    k: int
    frame_size: int
    steps: int
    image_size: int = 256
    zoom: float = 1.0
    width: int = 256
    depth: int = 4
    downsample: int = 4
    norm: str = "batch"
    dtype: str = "float32"
    loss: str = "position"
    temperature: float = 0.1
    delta: float = 0.03
    sigma: float = 1.0
    round_every: int = 0
    relabel_warps: int = 8
    relabel_spread: float = 0.75
    labels_from: str = "previous"
    rotation: float = 20.0
    scale: float = 0.1
    shift: float = 0.04
    bend: float = 0.0
    colour: float = 1.0
    standardise: bool = True
    learning_rate: float = 8e-3
    schedule: str = "cosine"
    warmup: int = 60
    l2: float = 0.0
    clip: float = 0.0
    predict_warps: int = 1
    accumulate_steps: int = 1

    def __post_init__(self):
        for name, value, known in (
            ("loss", self.loss, ("position", "heatmap")),
            ("labels_from", self.labels_from, ("previous", "self")),
        ):
            if value not in known:
                raise UserError(f"detector.{name} is {value!r}; use {' or '.join(known)}")
        for name in ("relabel_warps", "predict_warps", "zoom", "delta", "temperature", "learning_rate"):
            if getattr(self, name) <= 0:
                raise UserError(f"detector.{name} is {getattr(self, name)}; use a number above 0")

    @property
    def needs_previous_rows(self) -> bool:
        """Whether `previous` must come from the same images."""
        return self.labels_from == "previous"

    @property
    def _net(self):
        return FAN(self.k, self.width, self.depth, self.downsample, self.norm, **layers.precision(self.dtype))

    @property
    def _optimizer(self):
        rate = optimizers.schedule(self.schedule, self.learning_rate, self.steps, self.warmup, self.round_every)
        return optimizers.adam(rate, l2=self.l2, clip=self.clip)

    @property
    def _geometry(self) -> views.Geometry:
        return views.Geometry(self.frame_size, self.image_size, self.downsample, self.zoom, layers.wide(self.dtype))

    def init(self, rng, batch, frozen, start):
        previous = start.previous
        if previous is None:
            raise UserError("the detector needs landmarks to learn from; put a stage before it or set config.init_from")
        shape = jax.ShapeDtypeStruct((1, *self._geometry.view, 3), jnp.float32)
        params, model_state = layers.split(layers.initialize(self._net, rng, shape, train=False))
        if same_shapes(previous.params, params):
            params, model_state = previous.params, previous.model_state
        elif self.labels_from == "self":
            raise UserError(
                "detector.labels_from=self needs init_from=RUN with a detector of the same k, width and depth"
            )
        if self.labels_from == "previous":
            labels = previous.aux.labels
            if labels.xy.shape[:2] != (start.num_images, self.k):
                raise UserError(
                    f"the stage before left {labels.xy.shape[1]} landmarks of {labels.xy.shape[0]} images, "
                    f"not {self.k} of {start.num_images}; use the same k and images, or detector.labels_from=self"
                )
        else:
            labels = Labels(jnp.zeros((start.num_images, self.k, 2)), jnp.zeros((start.num_images, self.k)))
        return TrainState(
            step=jnp.int32(0),
            params=params,
            model_state=model_state,
            opt_state=self._optimizer.init(params),
            aux=Rounds(jnp.int32(0), labels, self._view_key(rng)),
        )

    def train_step(self, state, frozen, batch, rng):
        labels = jax.tree.map(lambda table: table[batch["index"]], state.aux.labels)
        # Step 1) One random warp an image moves its pixels and its landmarks.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        warps = self._warps(keys, 1.0)
        images = self._geometry.look(batch["image"], warps)
        images = jax.vmap(self._recolour)(jax.vmap(jax.random.fold_in, (0, None))(keys, 1), images)
        target = self._geometry.to_cells(labels.xy, warps)
        # A landmark that the warp moves out of the view cannot be learned from it.
        inside = jnp.all((target >= -0.5) & (target <= self._geometry.heat[0] - 0.5), -1)
        examples = {"image": images, "target": target, "weight": (labels.score > 0) & inside}

        grads, model_state, metrics = optimizers.accumulated_gradients(
            self._loss, state.params, state.model_state, examples, self.accumulate_steps
        )
        updates, opt_state = self._optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, model_state=model_state, opt_state=opt_state), metrics

    def _loss(self, params, model_state, examples):
        variables, seen = {"params": params, **model_state}, self._shown(examples["image"])
        out, model_state = self._net.apply(variables, seen, train=True, mutable=["batch_stats"])
        target, weight = examples["target"], examples["weight"]
        if self.loss == "position":
            # Steps 2), 3) Smooth L1 between soft-argmax and label, in units of `delta`, summed over x and y.
            found = heatmaps.soft_argmax(out.logits, self.temperature)
            unit = self.delta * self._geometry.heat[0]
            loss = jnp.sum(optax.losses.huber_loss(found / unit, target.astype(found.dtype) / unit), -1)
        else:
            # Eq. 4 of Mallis et al.: squared difference, for the landmarks that have a label.
            maps = heatmaps.gaussian(target, self._geometry.heat, self.sigma)
            loss = jnp.mean((out.logits.astype(maps.dtype) - maps) ** 2, (1, 2))
            found, _ = heatmaps.peak(out.logits)
        distance = jnp.linalg.norm(jax.lax.stop_gradient(found) - target, axis=-1)
        scale = self.zoom * self.frame_size / self._geometry.heat[0]  # frame pixels in a heatmap pixel
        metrics = {"distance_px": scale * keypoints.masked_mean(distance, weight)}
        return keypoints.masked_mean(loss, weight), (model_state, metrics)

    def predict(self, state, frozen, images):
        found = self._detect(state, self._geometry.still(len(images)), images)
        if self.predict_warps == 1:
            return found
        key = jax.random.wrap_key_data(state.aux.key)
        keys = jnp.tile(jax.random.split(key, self.predict_warps), len(images))  # the same of every image
        return self._several(state, images, keys, self.predict_warps)._replace(features=found.features)

    def heatmaps(self, state, frozen, images):
        seen = self._geometry.look(images)
        logits = self._apply(state, seen).logits
        maps = jax.nn.softmax(logits / self.temperature, (1, 2)) if self.loss == "position" else jnp.maximum(logits, 0)
        return color.to_uint8(seen), maps

    def round_at(self, step):
        first = step == 0 and self.labels_from == "self"
        due = self.round_every and 0 < step < self.steps and step % self.round_every == 0
        return Round(passes=1) if first or due else None

    def _view_key(self, rng):
        return None if self.predict_warps == 1 else jax.random.key_data(jax.random.fold_in(rng, 1))

    def observe(self, state, frozen, batch, rng):
        # Step 4) Mean over several views of the image, each drawn for the image and the round alone.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        keys = jax.vmap(lambda key: jax.random.split(key, self.relabel_warps))(keys).reshape(-1)
        found = self._several(state, batch["image"], keys, self.relabel_warps)
        return Labels(found.xy, found.score)

    def refresh(self, state, frozen, bank, rng):
        labels = jax.tree.map(lambda found: image_table(bank, found, len(state.aux.labels.xy)), bank.values)
        return state.replace(aux=state.aux._replace(round=state.aux.round + 1, labels=labels))

    def _warps(self, keys, spread: float) -> warp.Warp:
        draw = lambda key: warp.random_warp(
            key,
            rotation=spread * self.rotation,
            scale=spread * self.scale,
            shift=spread * self.shift,
            bend=spread * self.bend,
            zoom=self.zoom,
            dtype=layers.wide(self.dtype),
        )
        return jax.vmap(draw)(keys)

    def _recolour(self, key, image):
        s = self.colour
        return color.random_color(
            key,
            image,
            brightness=0.15 * s,
            contrast=0.3 * s,
            saturation=0.3 * s,
            gain=0.1 * s,
            grey=0.1 * s,
            noise=0.03 * s,
        )

    def _shown(self, seen):
        """What the network is given of views [B,S,S,3] in 0..1."""
        return views.standardise(seen) if self.standardise else seen

    def _apply(self, state, seen):
        return self._net.apply({"params": state.params, **state.model_state}, self._shown(seen), train=False)

    def _several(self, state, images, keys, count: int) -> Prediction:
        """Mean landmarks over `count` warped views of each image; keys [B*count]."""
        found = self._detect(state, self._warps(keys, self.relabel_spread), jnp.repeat(images, count, axis=0))
        xy = jnp.mean(found.xy.reshape(-1, count, self.k, 2), 1)
        return Prediction(xy, jnp.mean(found.score.reshape(-1, count, self.k), 1))

    def _detect(self, state, warps, images) -> Prediction:
        """Landmarks of warped views, in pixels of the frame."""
        out = self._apply(state, self._geometry.look(images, warps))
        if self.loss == "position":
            cells = heatmaps.soft_argmax(out.logits, self.temperature)
            # How much of the heatmap lies within two cells of the landmark.
            logits = out.logits.astype(cells.dtype) / self.temperature
            weight = jax.nn.softmax(logits, (1, 2))
            near = heatmaps.gaussian(cells, self._geometry.heat, 2.0)
            score = jnp.sum(weight * near, (1, 2))
        else:
            cells, score = heatmaps.peak(out.logits)
            score = jnp.clip(score, 0, 1)
        return Prediction(self._geometry.to_frame(cells, warps), score, out.features)
