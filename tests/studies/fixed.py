"""A stage that finds the same points on every image."""

import dataclasses

import jax.numpy as jnp

from uld_jax.method import Prediction, Stage
from uld_jax.methods.self_training import Seen


@dataclasses.dataclass(frozen=True)
class Fixed(Stage):
    """The same points on every image, some of them masked; observed ones are a pixel off, and one more."""

    xy: tuple[tuple[float, float], ...]

    def predict(self, state, frozen, images):
        xy = jnp.broadcast_to(jnp.asarray(self.xy, jnp.float32), (len(images), len(self.xy), 2))
        # Which are found depends on the image, so that rows in another order would be noticed.
        seen = images[:, :3, :3].astype(jnp.int32).sum((1, 2, 3))[:, None] // (1 + jnp.arange(len(self.xy))) % 3 > 0
        return Prediction(xy, jnp.where(seen, 0.5, 0.0))

    def observe(self, state, frozen, batch, rng):
        assert set(batch) == {"image", "index"}
        found = self.predict(state, frozen, batch["image"])
        xy = jnp.concatenate([found.xy + 1, found.xy[:, :1]], 1)
        mask = jnp.pad(found.score > 0, ((0, 0), (0, 1)), constant_values=True) & (batch["index"] > 1000)[:, None]
        noise = jnp.sin(jnp.arange(xy.shape[1])[:, None] * jnp.arange(1.0, 9.0)) + 1e-3 * xy[..., :1]
        return Seen(xy, mask, jnp.where(mask[..., None], noise, jnp.nan))
