"""Landmarks that are colours: each is where an image is most like its own colour. For tests."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from uld_jax.bank import Labels, image_table
from uld_jax.hyperparameters import Positive, PositiveInt
from uld_jax.method import Prediction, Round, Stage, TrainState
from uld_jax.methods.shared import Adam, View
from uld_jax.models import layers
from uld_jax.ops import color, heatmaps, keypoints


class Known(NamedTuple):
    """Where the landmarks of the training images were at the last round."""

    labels: Labels


@dataclasses.dataclass(frozen=True)
class Colours(Stage):
    """K colours that every pixel is near to; a landmark stays where it was at the last round."""

    k: int
    frame_size: int
    steps: int
    dtype: str = "float32"
    view: View = View(32)
    optimizer: Adam = Adam(3e-2)
    sharpness: Positive = 30.0
    round_every: PositiveInt = 10

    def init(self, rng, batch, frozen, start):
        wide, shape = layers.wide(self.dtype), (start.num_images, self.k)
        params = {"colours": jax.random.uniform(rng, (self.k, 3), wide)}
        aux = Known(Labels(jnp.zeros((*shape, 2), wide), jnp.zeros(shape, wide)))
        return TrainState(jnp.int32(0), params, opt_state=self.optimizer.transform(self.steps).init(params), aux=aux)

    def _look(self, params, images):
        """Landmarks [B,K,2] in pixels of the frame, and squared distances [B,h,w,K] to the colours."""
        geometry = self.view.geometry(self.frame_size, 1, self.dtype)
        away = jnp.sum((geometry.look(images)[..., None, :] - params["colours"]) ** 2, -1)
        return geometry.to_frame(heatmaps.soft_argmax(-away, 1 / self.sharpness)), away

    def train_step(self, state, frozen, batch, rng):
        labels = jax.tree.map(lambda table: table[batch["index"]], state.aux.labels)

        def loss(params):
            xy, away = self._look(params, batch["image"])
            moved = jnp.sum((xy - labels.xy) ** 2, -1) / self.frame_size**2
            return jnp.mean(jnp.min(away, -1)) + keypoints.masked_mean(moved, labels.score > 0)

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = self.optimizer.transform(self.steps).update(grads, state.opt_state, state.params)
        return state.replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state), {"loss": value}

    def round_at(self, step):
        return Round(passes=1) if 0 < step < self.steps and step % self.round_every == 0 else None

    def observe(self, state, frozen, batch, rng):
        xy, away = self._look(state.params, batch["image"])
        return Labels(xy, jnp.exp(-jnp.min(away, (1, 2))))

    def refresh(self, state, frozen, bank, rng):
        table = lambda values: image_table(bank, values, len(state.aux.labels.xy))
        return state.replace(aux=Known(jax.tree.map(table, bank.values)))

    def predict(self, state, frozen, images):
        xy, away = self._look(state.params, images)
        return Prediction(xy.astype(jnp.float32), jnp.exp(-jnp.min(away, (1, 2))).astype(jnp.float32))

    def heatmaps(self, state, frozen, images):
        return color.to_uint8(images / 255.0), jnp.exp(-self.sharpness * self._look(state.params, images)[1])
