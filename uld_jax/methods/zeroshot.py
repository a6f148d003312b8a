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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from uld_jax import config, optimizers, rounds
from uld_jax.clustering.kmeans import kmeans
from uld_jax.errors import UserError
from uld_jax.method import Labels, Prediction, Rows, Stage, TrainState
from uld_jax.models.fan import FAN
from uld_jax.ops import color, coordinates, heatmaps, keypoints, warp


class Clusters(NamedTuple):
    """What ZeroShot finds.

    Attributes:
      round: int32, passes done: 0 none, 1 clustered, 2 placed.
      centroids: [K,D] float32.
      labels: landmarks of the training images.
    """

    round: jax.Array
    centroids: jax.Array
    labels: Labels


@dataclasses.dataclass(frozen=True)
class ZeroShot(Stage):
    """K-means over the descriptors of a frozen backbone; a stage of zero steps.

    Attributes:
      k: K, number of landmarks.
      frame_size: side of the frame in pixels.
      backbone: module and class below `uld_jax.backbones`.
      backbone_kwargs: its hyper-parameters.
      position: weight of a pixel's place in its descriptor. A descriptor has length 1; from one side of the frame to the
        other a place moves by `position`. 0 clusters by appearance alone, as the paper does on Stable Diffusion.
      roi: landmarks are looked for in this central fraction of the frame (the paper's region of interest is a box).
      pixels: random pixels an image that are clustered (P).
      place: `mean` weighs all pixels by exp(-sharpness * squared distance to the centroid); `exemplar` takes the
        nearest (paper, section 3.1).
      sharpness: see `place`.
      iterations: of k-means, at most.
    """

    k: int
    frame_size: int
    backbone: str = "gradient.GradientHistograms"
    backbone_kwargs: Any = ()
    position: float = 2.0
    roi: float = 0.7
    pixels: int = 60
    place: str = "mean"
    sharpness: float = 30.0
    iterations: int = 100

    def __post_init__(self):
        if self.place not in ("mean", "exemplar"):
            raise UserError(f"zeroshot.place is {self.place!r}; use mean or exemplar")

    @property
    def _backbone(self):
        cls = config.find_class("uld_jax.backbones", self.backbone, "zeroshot.backbone")
        return cls(**dict(self.backbone_kwargs))

    @property
    def _slots(self) -> int:
        return max(self.pixels, self.k)

    def frozen(self):
        return self._backbone.load()

    def init(self, rng, batch, frozen, previous, rows):
        width = jax.eval_shape(self._describe, frozen, batch["image"]).shape[-1]
        labels = Labels(jnp.zeros((rows, self.k, 2)), jnp.zeros((rows, self.k)))
        return TrainState(step=jnp.int32(0), aux=Clusters(jnp.int32(0), jnp.zeros((self.k, width)), labels))

    def train_step(self, state, frozen, batch, rng):
        raise UserError("the stage zeroshot has nothing to train; set config.zeroshot.steps=0")

    def passes(self, step):
        return 2 if step == 0 else 0  # cluster, then place

    def observe(self, state, frozen, batch):
        described = self._describe(frozen, batch["image"])
        # Step 1) P random pixels an image, the same for an image whatever batch it comes in.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), batch["index"])
        low, high = self._roi_bounds(described.shape[1])
        cells = jax.vmap(lambda key: jax.random.uniform(key, (self._slots, 2), minval=low, maxval=high))(keys)
        sampled = keypoints.sample(described, cells)
        # Step 3) Landmarks, once there are clusters. They fill the first K slots; the score rides on the descriptor.
        found = self._place(described, state.aux.centroids)
        pad = ((0, 0), (0, self._slots - self.k))
        score = jnp.pad(found.score, pad)[..., None] * jnp.eye(sampled.shape[-1])[0]
        xy = jnp.pad(found.xy, (*pad, (0, 0)))
        clustered = state.aux.round > 0
        return Rows(
            descriptors=jnp.where(clustered, score, sampled),
            xy=jnp.where(clustered, xy, cells),
            mask=jnp.where(clustered, score[..., 0] > 0, True),
        )

    def refresh(self, state, frozen, bank, rng):
        aux, rows = state.aux, state.aux.labels.xy.shape[0]
        # Step 2) k-means over all sampled pixels; later passes start from its centroids and do not move them.
        x, mask = rounds.flatten(bank)
        clustered = aux.round > 0
        found = kmeans(x, self.k, rng=rng, mask=mask & ~clustered, iterations=self.iterations)
        # Step 4) The table of landmarks.
        labels = Labels(
            rounds.table(bank, bank.rows.xy[:, :, : self.k], rows),
            rounds.table(bank, bank.rows.descriptors[:, :, : self.k, 0], rows),
        )
        labels = jax.tree.map(lambda new, old: jnp.where(clustered, new, old), labels, aux.labels)
        return state.replace(aux=Clusters(aux.round + 1, jnp.where(clustered, aux.centroids, found.centroids), labels))

    def predict(self, state, frozen, images):
        return self._place(self._describe(frozen, images), state.aux.centroids)

    def _describe(self, frozen, images):
        """Descriptors [B,h,w,D]: all taps at the finest one's resolution, each of length 1, and the place."""
        taps = self._backbone.features(frozen, images).values()
        height, width = max(t.shape[1:3] for t in taps)
        parts = [
            jax.image.resize(t, (t.shape[0], height, width, t.shape[-1]), "bilinear", antialias=False) for t in taps
        ]
        parts = [keypoints.l2_normalize(t) / len(parts) ** 0.5 for t in parts]
        place = coordinates.to_unit(coordinates.pixel_grid(height, width), (height, width)) * (self.position / 2)
        place = jnp.broadcast_to(jnp.asarray(place, parts[0].dtype), (*parts[0].shape[:3], 2))
        return jnp.concatenate([*parts, place], -1)

    def _roi_bounds(self, side):
        """First and last cell of the region of interest on a map of this side."""
        half = self.roi * side / 2
        return side / 2 - half, side / 2 + half - 1

    def _place(self, described, centroids) -> Prediction:
        batch, height, width, depth = described.shape
        grid = jnp.asarray(coordinates.pixel_grid(height, width)).reshape(-1, 2)
        low, high = self._roi_bounds(height)
        inside = jnp.all((grid >= low) & (grid <= high), -1)
        flat = described.reshape(batch, -1, depth)
        cross = jnp.einsum("bpd,kd->bpk", flat, centroids, precision="highest")
        square = jnp.sum(flat**2, -1, keepdims=True) - 2 * cross + jnp.sum(centroids**2, -1)
        square = jnp.where(inside[:, None], square, jnp.inf)
        nearest = jnp.min(square, 1)
        if self.place == "mean":
            weight = jax.nn.softmax(-self.sharpness * square, 1)
            cells = jnp.einsum("bpk,pc->bkc", weight, grid, precision="highest")
        else:
            cells = grid[jnp.argmin(square, 1)]
        size = (self.frame_size, self.frame_size)
        return Prediction(coordinates.rescale_points(cells, (height, width), size), jnp.exp(-jnp.maximum(nearest, 0)))


class Rounds(NamedTuple):
    """What the detector learns from.

    Attributes:
      round: int32, how often the labels were replaced.
      labels: landmarks of the training images.
    """

    round: jax.Array
    labels: Labels


@dataclasses.dataclass(frozen=True)
class HeatmapDetector(Stage):
    """A FAN hourglass with K heatmaps, trained on pseudo-labels that it refines itself.

    Attributes:
      k: K, number of landmarks.
      frame_size: side of the frame in pixels.
      steps: of the whole stage, for the schedule.
      image_size: side of the view that the network sees, in pixels.
      zoom: the view shows this central fraction of the frame.
      width, depth, downsample, norm: of the FAN (`models/fan.py`).
      dtype: of the network's arithmetic; parameters, statistics and losses stay float32 (float64 under float64).
      loss: `position`, the smooth L1 distance of the soft-argmax in heatmap pixels; or `heatmap`, the mean squared
        difference to a Gaussian (Mallis et al., section 3.3), decoded by its peak.
      temperature: of the soft-argmax (0.1 in Sanchez and Tzimiropoulos, NeurIPS 2019).
      sigma: of the Gaussian in heatmap pixels, for `loss=heatmap`.
      round_every: steps between refreshes of the labels; 0 keeps the first ones.
      relabel_warps: views that a new label is the mean of.
      relabel_spread: their size, as a fraction of the training warps'.
      labels_from: `previous` starts from the table of the stage before; `self` from what the network given by
        `init_from` predicts, which allows other images.
      rotation (degrees), scale, shift, bend: of the training warps (`ops/warp.py`).
      colour: strength of the colour changes, 1 is usual.
      learning_rate, schedule, warmup, l2, clip: of Adam (`optimizers.py`).
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
    sigma: float = 1.0
    round_every: int = 0
    relabel_warps: int = 8
    relabel_spread: float = 0.75
    labels_from: str = "previous"
    rotation: float = 20.0
    scale: float = 0.1
    shift: float = 0.06
    bend: float = 0.0
    colour: float = 1.0
    learning_rate: float = 2e-3
    schedule: str = "cosine"
    warmup: int = 100
    l2: float = 0.0
    clip: float = 1.0
    accumulate_steps: int = 1

    def __post_init__(self):
        for name, value, known in (
            ("loss", self.loss, ("position", "heatmap")),
            ("labels_from", self.labels_from, ("previous", "self")),
        ):
            if value not in known:
                raise UserError(f"detector.{name} is {value!r}; use {' or '.join(known)}")

    @property
    def needs_previous_rows(self) -> bool:
        """Whether `previous` must come from the same images."""
        return self.labels_from == "previous"

    @property
    def _net(self):
        wide = jnp.float64 if self.dtype == "float64" else jnp.float32
        return FAN(
            landmarks=self.k,
            width=self.width,
            depth=self.depth,
            downsample=self.downsample,
            norm=self.norm,
            dtype=jnp.dtype(self.dtype),
            param_dtype=wide,
        )

    @property
    def _optimizer(self):
        rate = optimizers.schedule(self.schedule, self.learning_rate, self.steps, self.warmup)
        return optimizers.adam(rate, l2=self.l2, clip=self.clip)

    @property
    def _view(self) -> tuple[int, int]:
        return self.image_size, self.image_size

    @property
    def _frame(self) -> tuple[int, int]:
        return self.frame_size, self.frame_size

    def init(self, rng, batch, frozen, previous, rows):
        if previous is None:
            raise UserError("the detector needs landmarks to learn from; put a stage before it or set config.init_from")
        views = self._look(self._still(len(batch["image"])), batch["image"])
        variables = self._net.init(rng, views, train=False)
        params, model_state = variables["params"], {k: v for k, v in variables.items() if k != "params"}
        if _same_shapes(previous.params, params):
            params, model_state = previous.params, previous.model_state
        elif self.labels_from == "self":
            raise UserError(
                "detector.labels_from=self needs init_from=RUN with a detector of the same k, width and depth"
            )
        if self.labels_from == "previous":
            labels = previous.aux.labels
            if labels.xy.shape[:2] != (rows, self.k):
                raise UserError(
                    f"the stage before the detector left {labels.xy.shape[1]} landmarks of {labels.xy.shape[0]} images, "
                    f"not {self.k} of {rows}; use the same k and images, or detector.labels_from=self"
                )
        else:
            labels = Labels(jnp.zeros((rows, self.k, 2)), jnp.zeros((rows, self.k)))
        return TrainState(
            step=jnp.int32(0),
            params=params,
            model_state=model_state,
            opt_state=self._optimizer.init(params),
            aux=Rounds(jnp.int32(0), labels),
        )

    def train_step(self, state, frozen, batch, rng):
        labels = jax.tree.map(lambda table: table[batch["index"]], state.aux.labels)
        # Step 1) One random warp an image moves its pixels and its landmarks.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        warps = self._warps(keys, 1.0)
        images = self._look(warps, batch["image"])
        images = jax.vmap(self._recolour)(jax.vmap(jax.random.fold_in, (0, None))(keys, 1), images)
        target = coordinates.rescale_points(
            warp.points_to_view(warps, labels.xy, self._frame, self._view), self._view, self._heat
        )
        # A landmark that the warp moves out of the view cannot be learned from it.
        inside = jnp.all((target >= -0.5) & (target <= self._heat[0] - 0.5), -1)
        examples = {"image": images, "target": target, "weight": (labels.score > 0) & inside}

        grads, model_state, metrics = optimizers.accumulated_gradients(
            self._loss, state.params, state.model_state, examples, self.accumulate_steps
        )
        updates, opt_state = self._optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, model_state=model_state, opt_state=opt_state), metrics

    def _loss(self, params, model_state, examples):
        out, model_state = self._net.apply(
            {"params": params, **model_state}, examples["image"], train=True, mutable=["batch_stats"]
        )
        target, weight = examples["target"], examples["weight"]
        if self.loss == "position":
            # Steps 2), 3) Smooth L1 between soft-argmax and label, summed over x and y.
            found = heatmaps.soft_argmax(out.logits, self.temperature)
            loss = jnp.sum(optax.losses.huber_loss(found, target.astype(found.dtype)), -1)
        else:
            # Eq. 4 of Mallis et al.: squared difference, for the landmarks that have a label.
            maps = heatmaps.gaussian(target, self._heat, self.sigma)
            loss = jnp.mean((out.logits.astype(maps.dtype) - maps) ** 2, (1, 2))
            found, _ = heatmaps.peak(out.logits)
        distance = jnp.linalg.norm(jax.lax.stop_gradient(found) - target, axis=-1)
        scale = self.zoom * self.frame_size / self._heat[0]  # frame pixels in a heatmap pixel
        metrics = {"distance_px": scale * keypoints.masked_mean(distance, weight)}
        return keypoints.masked_mean(loss, weight), (model_state, metrics)

    def predict(self, state, frozen, images):
        warps = self._still(len(images))
        found = self._detect(state, warps, images)
        return found

    def passes(self, step):
        first = step == 0 and self.labels_from == "self"
        due = self.round_every and 0 < step < self.steps and step % self.round_every == 0
        return int(bool(first or due))

    def observe(self, state, frozen, batch):
        # Step 4) Mean over several views of the image, each drawn for the image and the round alone.
        images, views = batch["image"], self.relabel_warps
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(jax.random.key(0), state.aux.round), batch["index"]
        )
        keys = jax.vmap(lambda key: jax.random.split(key, views))(keys).reshape(-1)
        found = self._detect(state, self._warps(keys, self.relabel_spread), jnp.repeat(images, views, axis=0))
        xy = jnp.mean(found.xy.reshape(-1, views, self.k, 2), 1)
        score = jnp.mean(found.score.reshape(-1, views, self.k), 1)
        return Rows(score[..., None], xy, score > 0)

    def refresh(self, state, frozen, bank, rng):
        rows = state.aux.labels.xy.shape[0]
        labels = Labels(rounds.table(bank, bank.rows.xy, rows), rounds.table(bank, bank.rows.descriptors[..., 0], rows))
        return state.replace(aux=Rounds(state.aux.round + 1, labels))

    @property
    def _heat(self) -> tuple[int, int]:
        return self.image_size // self.downsample, self.image_size // self.downsample

    def _still(self, batch: int) -> warp.Warp:
        one = warp.identity(self.zoom)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape)), one)

    def _warps(self, keys, spread: float) -> warp.Warp:
        draw = lambda key: warp.random_warp(
            key,
            rotation=spread * self.rotation,
            scale=spread * self.scale,
            shift=spread * self.shift,
            bend=spread * self.bend,
            zoom=self.zoom,
        )
        return jax.vmap(draw)(keys)

    def _look(self, warps: warp.Warp, images):
        """What the network sees of the frames [B,F,F,3] uint8: [B,S,S,3] in 0..1."""
        return jax.vmap(lambda w, image: warp.warp_image(w, image, self._view))(warps, images) / 255

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

    def _detect(self, state, warps, images) -> Prediction:
        """Landmarks of warped views, in pixels of the frame."""
        views = self._look(warps, images)
        out = self._net.apply({"params": state.params, **state.model_state}, views, train=False)
        if self.loss == "position":
            cells = heatmaps.soft_argmax(out.logits, self.temperature)
            # How much of the heatmap lies within two cells of the landmark.
            logits = out.logits.astype(cells.dtype) / self.temperature
            weight = jax.nn.softmax(logits, (1, 2))
            near = heatmaps.gaussian(cells, self._heat, 2.0)
            score = jnp.sum(weight * near, (1, 2))
        else:
            cells, score = heatmaps.peak(out.logits)
            score = jnp.clip(score, 0, 1)
        xy = coordinates.rescale_points(cells, self._heat, self._view)
        return Prediction(warp.points_to_source(warps, xy, self._frame, self._view), score, out.features)


def _same_shapes(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.shape == y.shape for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
