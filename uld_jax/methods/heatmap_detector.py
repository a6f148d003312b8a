"""A landmark detector that learns from a table of pseudo-labels and refines it; the last stage of several configs.

The detector is not a paper's method by itself, but the last stage of the self-training papers (Mallis et al., NeurIPS
2020, section 3.3), trained on the table of landmarks that the stage before leaves in `aux.labels`, such as `ZeroShot`.

    1) warp image and landmarks alike   2) K heatmaps, soft-argmax   3) distance to the warped landmarks
    4) every round: a new table, the mean of the network's own predictions over several warps
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from uld_jax import optimizers
from uld_jax.bank import Labels, image_table
from uld_jax.errors import UserError
from uld_jax.hyperparameters import Positive, PositiveInt
from uld_jax.method import Need, Prediction, Round, Stage, TrainState, same_shapes
from uld_jax.methods import shared
from uld_jax.methods.shared import Adam, Augment, Fan, View
from uld_jax.models import layers
from uld_jax.models.fan import FAN
from uld_jax.ops import batches, color, heatmaps, keypoints, views

TEMPERATURE = 0.1  # of the soft-argmax (Sanchez and Tzimiropoulos, NeurIPS 2019)
SIGMA = 1.0  # deviation of the Gaussians of `loss=heatmap`, in heatmap pixels (ours)
RELABEL_SPREAD = 0.75  # strength of the relabelling warps, as a fraction of the training warps' (ours)


class Refined(NamedTuple):
    """The labels from which the detector learns.

    Attributes:
      round: int32, number of times that the labels were replaced.
      labels: landmarks of the training images.
      key: [2] uint32, the run's key for the views of a prediction; None if a prediction has one view.
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
      steps: number of steps of the whole stage, for the schedule.
      view: view of the frame.
      net: the FAN's size.
      dtype: type of the network's arithmetic; parameters, statistics and losses stay float32 (float64 under float64).
      loss: `position`, the smooth L1 distance of the soft-argmax; or `heatmap`, the mean squared
        difference to a Gaussian (Mallis et al., section 3.3), decoded by its peak.
      delta: distance from which `loss=position` is linear instead of quadratic, as a fraction of the view's side.
      round_every: steps between refreshes of the labels; 0 keeps the first labels.
      relabel_warps: number of views whose mean is a new label.
      labels_from: source of the first labels: `previous` for the table of the stage before; `self` for predictions of
        the network given by `init_from`, which allows other images.
      augment: the training views; warps are normally distributed.
      bend: strength of the warps' thin-plate part; 0 for none.
      standardise: True if the network sees a view less its mean, over its contrast.
      optimizer: options of Adam; with rounds its schedule starts again at each round.
      predict_warps: number of views whose mean is a prediction, the same views for every image; 1 uses only the
        unwarped image.
      accumulate_steps: pieces of a batch.
    """

    k: int
    frame_size: int
    steps: int
    view: View = View()
    net: Fan = Fan()
    dtype: str = "float32"
    loss: Literal["position", "heatmap"] = "position"
    delta: Positive = 0.03
    round_every: int = 0
    relabel_warps: PositiveInt = 8
    labels_from: Literal["previous", "self"] = "previous"
    augment: Augment = Augment()
    bend: float = 0.0
    standardise: bool = True
    optimizer: Adam = Adam(8e-3, "cosine", warmup=60)
    predict_warps: PositiveInt = 1
    accumulate_steps: int = 1

    @property
    def needs(self):
        """Labels to learn from, or else the network that makes them; the network goes on where it fits."""
        own = self.labels_from == "self"
        network = Need("network", "a detector of the same k, net.width and net.depth", of_images=False, required=own)
        labels = Need("labels", "a stage that finds landmarks, such as zeroshot.ZeroShot")
        return (network,) if own else (labels, network)

    @property
    def _net(self):
        return FAN(self.k, **dataclasses.asdict(self.net), **layers.precision(self.dtype))

    @property
    def _optimizer(self):
        return self.optimizer.transform(self.steps, self.round_every)

    @property
    def _geometry(self) -> views.Geometry:
        return self.view.geometry(self.frame_size, self.net.downsample, self.dtype)

    def init(self, rng, batch, frozen, start):
        if self.labels_from == "previous":
            labels = shared.take_labels(self, start, self.k)
        else:
            labels = Labels(jnp.zeros((start.num_images, self.k, 2)), jnp.zeros((start.num_images, self.k)))
        shape = jax.ShapeDtypeStruct((1, *self._geometry.view, 3), jnp.float32)
        params, model_state = layers.split(layers.initialize(self._net, rng, shape, train=False))
        network = shared.take(self, start, "network")
        if network is not None and same_shapes(network, params):
            params, model_state = network, start.previous.model_state
        elif self.labels_from == "self":
            raise UserError(
                f"{start.stage}.labels_from=self goes on with a network of other sizes; use the same k, net.width and "
                "net.depth as the stage that config.init_from names"
            )
        return TrainState(
            step=jnp.int32(0),
            params=params,
            model_state=model_state,
            opt_state=self._optimizer.init(params),
            aux=Refined(jnp.int32(0), labels, self._view_key(rng)),
        )

    def train_step(self, state, frozen, batch, rng):
        labels = jax.tree.map(lambda table: table[batch["index"]], state.aux.labels)
        # Step 1) One random warp an image moves its pixels and its landmarks.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        warps = self.augment.random_warps(keys, self.view.zoom, self.dtype, self.bend)
        images = self._geometry.look(batch["image"], warps)
        images = batches.each(self._recolour, jax.vmap(jax.random.fold_in, (0, None))(keys, 1), images)
        target = self._geometry.to_cells(labels.xy, warps)
        # A landmark that the warp moves out of the view cannot be learned from it.
        inside = self._geometry.on_map(target)
        examples = {"image": images, "target": target, "weight": (labels.score > 0) & inside}

        grads, model_state, metrics = optimizers.accumulated_gradients(
            self._loss, state.params, state.model_state, examples, self.accumulate_steps
        )
        return shared.updated(state, self._optimizer, grads).replace(model_state=model_state), metrics

    def _loss(self, params, model_state, examples):
        variables, seen = {"params": params, **model_state}, self._shown(examples["image"])
        out, model_state = self._net.apply(variables, seen, train=True, mutable=["batch_stats"])
        target, weight = examples["target"], examples["weight"]
        if self.loss == "position":
            # Steps 2), 3) Smooth L1 between soft-argmax and label, in units of `delta`, summed over x and y.
            found = heatmaps.soft_argmax(out.logits, TEMPERATURE)
            unit = self.delta * self._geometry.heat[0]
            loss = jnp.sum(optax.losses.huber_loss(found / unit, target.astype(found.dtype) / unit), -1)
        else:
            # Eq. 4 of Mallis et al.: squared difference, for the landmarks that have a label.
            maps = heatmaps.gaussian(target, self._geometry.heat, SIGMA)
            loss = jnp.mean((out.logits.astype(maps.dtype) - maps) ** 2, (1, 2))
            found, _ = heatmaps.peak(out.logits)
        distance = jnp.linalg.norm(jax.lax.stop_gradient(found) - target, axis=-1)
        scale = self.view.zoom * self.frame_size / self._geometry.heat[0]  # frame pixels in a heatmap pixel
        metrics = {"distance_px": scale * keypoints.masked_mean(distance, weight)}
        return keypoints.masked_mean(loss, weight), (model_state, metrics)

    def predict(self, state, frozen, images):
        found = self._detect(state, None, images)
        if self.predict_warps == 1:
            return found
        key = jax.random.wrap_key_data(state.aux.key)
        keys = jnp.tile(jax.random.split(key, self.predict_warps), len(images))  # the same for every image
        return self._several(state, images, keys, self.predict_warps)._replace(features=found.features)

    def heatmaps(self, state, frozen, images):
        seen = self._geometry.look(images)
        logits = self._apply(state, seen).logits
        maps = jax.nn.softmax(logits / TEMPERATURE, (1, 2)) if self.loss == "position" else jnp.maximum(logits, 0)
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

    def _recolour(self, key, image):
        s = self.augment.colour
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
        """The network's input for views [B,S,S,3] in 0..1."""
        return views.standardise(seen) if self.standardise else seen

    def _apply(self, state, seen):
        return self._net.apply({"params": state.params, **state.model_state}, self._shown(seen), train=False)

    def _several(self, state, images, keys, count: int) -> Prediction:
        """Mean landmarks over `count` warped views of each image; keys [B*count]."""
        warps = self.augment.random_warps(keys, self.view.zoom, self.dtype, self.bend, RELABEL_SPREAD)
        found = self._detect(state, warps, jnp.repeat(images, count, axis=0))
        xy = jnp.mean(found.xy.reshape(-1, count, self.k, 2), 1)
        return Prediction(xy, jnp.mean(found.score.reshape(-1, count, self.k), 1))

    def _detect(self, state, warps, images) -> Prediction:
        """Detect the landmarks of views under one warp each, of still views without, in pixels of the frame."""
        out = self._apply(state, self._geometry.look(images, warps))
        if self.loss == "position":
            cells = heatmaps.soft_argmax(out.logits, TEMPERATURE)
            # The score is the share of the heatmap within two cells of the landmark.
            logits = out.logits.astype(cells.dtype) / TEMPERATURE
            weight = jax.nn.softmax(logits, (1, 2))
            near = heatmaps.gaussian(cells, self._geometry.heat, 2.0)
            score = jnp.sum(weight * near, (1, 2))
        else:
            cells, score = heatmaps.peak(out.logits)
            score = jnp.clip(score, 0, 1)
        return Prediction(self._geometry.to_frame(cells, warps), score, features=out.features)
