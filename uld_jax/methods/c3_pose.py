"""A start of C3's landmarks from those of another method, such as ZeroShot; not the paper's.

C3's own warm-up (`c3.Paired`) finds landmarks from nothing, for which the paper has 160,000 images and ImageNet's
backbone. Here the backbone and the pose head learn the table of landmarks that the stage before leaves:

    1) warp image and landmarks alike   2) the pose head's landmarks   3) their distance to the warped ones

Appearance head and decoder stay as drawn; `Paired` goes on with all four.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from uld_jax.hyperparameters import NotNegativeFloat, Positive
from uld_jax.method import Need, TrainState
from uld_jax.methods import shared
from uld_jax.methods.c3_common import LOCATES, C3Stage
from uld_jax.methods.shared import AdamL2, Augment
from uld_jax.models import resnet
from uld_jax.ops import coordinates, keypoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pose(C3Stage):
    """Landmarks of another method, learned by the backbone and the pose head.

    Attributes:
      augment: the training views; warps are normally distributed, and colours stay.
      bend: deviation of their thin-plate weights (`warp.random_warp`).
      delta: distance from which the loss is linear instead of quadratic, as a fraction of the view's side.
    """

    compares = False
    start: Literal["checkpoint", "scratch"] = "checkpoint"
    augment: Augment = Augment()
    bend: NotNegativeFloat = 0.02
    delta: Positive = 0.03
    optimizer: AdamL2 = AdamL2(l2=0.0)

    @property
    def needs(self):
        """Landmarks to learn."""
        return (Need("labels", "a stage that finds landmarks, such as zeroshot.ZeroShot"),)

    def init(self, rng, batch, frozen, start):
        labels = shared.take_labels(self, start, self.k)
        params, model_state = self.networks(rng, frozen, start)
        opt_state = self._optimizer.init({name: params[name] for name in LOCATES})
        return TrainState(jnp.int32(0), params, model_state, opt_state, labels)

    def train_step(self, state, frozen, batch, rng):
        # Step 1)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["index"])
        warps = self.augment.random_warps(keys, self.view.zoom, self.dtype, self.bend)
        seen = resnet.normalize(self.geometry.look(batch["image"], warps))
        cells, there = shared.labels_in_views(state.aux, batch["index"], warps, self.geometry)
        size = (self.net.cells, self.net.cells)

        def loss(trained):
            params, new = state.params | trained, dict(state.model_state)
            # Step 2)
            f, _, new["backbone"] = self.maps(params, state.model_state, seen, train=True)
            xy, new["pose"] = self.pose(params, state.model_state, f, train=True)
            # Step 3) In units of `delta` of the view, which is 2 wide.
            away = (xy - coordinates.to_unit(cells, size).astype(xy.dtype)) / (2 * self.delta)
            value = keypoints.masked_mean(jnp.sum(optax.losses.huber_loss(away), -1), there)
            distance = self.delta * self.view.image_size * jnp.linalg.norm(jax.lax.stop_gradient(away), axis=-1)
            return value, (new, {"distance_px": keypoints.masked_mean(distance, there)})

        trained = {name: state.params[name] for name in LOCATES}
        (value, (model_state, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        new = shared.updated(state, self._optimizer, grads)
        return new.replace(model_state=model_state), {"loss": value} | metrics
