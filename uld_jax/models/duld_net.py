"""The network that D-ULD trains on a frozen backbone's maps (Tourani et al., CVPR 2024, sections 3.1 to 3.3.1).

    Psi_b   aggregator   mixes the backbone's maps into one
    Psi_d   detector     a head that says where keypoints are
    Psi_f   descriptor   a head that describes every cell
    Psi_V   encoder, decoder   a variational autoencoder of the detector's map: its code is the image's pose

The paper gives the size of codes; layers are those of `aggregator.py`, `heads.py` and `pose_vae.py`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.models import aggregator, heads, layers, pose_vae
from uld_jax.ops import keypoints

RARE = -4.0  # the detector's first logit: keypoints are rare


class Psi(NamedTuple):
    """The network's two maps.

    Attributes:
      logits: [B,h,w] of the detector.
      descriptors: [B,h,w,D] of any length.
    """

    logits: jax.Array
    descriptors: jax.Array

    def confidence(self, inside: jax.Array) -> jax.Array:
        """Return the detector's map [B,h,w] in 0..1, zero outside the region of interest [B,h,w]."""
        return jnp.where(inside, jax.nn.sigmoid(self.logits), 0)


@dataclasses.dataclass(frozen=True)
class DuldNet:
    """The trained network's parts, by the names under which a stage has their parameters.

    Attributes:
      grid: side of all maps in cells.
      projection: channels of the aggregated map.
      width, depth: channels and 3 x 3 convolutions of the two heads.
      descriptor_size: D.
      latent: Z, size of the pose code; 0 without a pose network.
      pose_width: channels of the pose network.
      dtype: of the arithmetic; results are never below float32.
    """

    grid: int
    projection: int
    width: int
    depth: int
    descriptor_size: int
    latent: int = 0
    pose_width: int = 0
    dtype: str = "float32"

    @property
    def parts(self) -> dict[str, Any]:
        """The Linen modules by name."""
        options = layers.precision(self.dtype)
        parts = {
            "aggregator": aggregator.Aggregator(self.projection, **options),
            "detector": heads.DenseHead(1, self.width, self.depth, **options),
            "descriptor": heads.DenseHead(self.descriptor_size, self.width, self.depth, **options),
        }
        if self.latent:
            parts["encoder"] = pose_vae.Encoder(self.latent, self.pose_width, **options)
            parts["decoder"] = pose_vae.Decoder(self.grid, self.pose_width, **options)
        return parts

    def initialize(self, rng: jax.Array, names: Sequence[str], maps: dict[str, Any]) -> dict[str, Any]:
        """Return the first parameters of the parts `names`.

        Args:
          rng: key; the order of the names decides which part of it each has.
          names: of the parts.
          maps: the backbone's maps [1,...] by tap, as arrays or shapes.
        """
        heat, wide = (self.grid, self.grid), layers.wide(self.dtype)
        shapes = {"encoder": (1, *heat), "decoder": (1, self.latent)}
        params = {}
        for name, key in zip(names, jax.random.split(rng, len(names)), strict=True):
            net = self.parts[name]
            if name == "aggregator":
                params[name] = aggregator.initialize(net, key, maps, heat)
            else:
                given = jax.ShapeDtypeStruct(shapes.get(name, (1, *heat, self.projection)), wide)
                params[name], _ = layers.split(layers.initialize(net, key, given))
        last = params["detector"][f"Conv_{self.depth}"]
        last["bias"] = jnp.full_like(last["bias"], RARE)
        return params

    def psi(self, params: dict[str, Any], maps: dict[str, jax.Array]) -> Psi:
        """Apply Psi_b, Psi_d and Psi_f to the backbone's maps {tap: [B,...]}."""
        mixed = self._apply("aggregator", params, maps, (self.grid, self.grid))
        return Psi(self._apply("detector", params, mixed)[..., 0], self._apply("descriptor", params, mixed))

    def code(self, params: dict[str, Any], confidence: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mean and log-variance [B,Z] of the pose codes of confidence maps [B,h,w]."""
        mean, log_variance = self._apply("encoder", params, confidence)
        return self._wide(mean), self._wide(log_variance)

    def decode(self, params: dict[str, Any], codes: jax.Array) -> jax.Array:
        """Return the logits [B,h,w] of the maps that codes [B,Z] stand for."""
        return self._wide(self._apply("decoder", params, codes))

    def _apply(self, name, params, *inputs):
        return self.parts[name].apply({"params": params[name]}, *inputs)

    def _wide(self, x):
        return x.astype(layers.wide(self.dtype))


def unit(codes: jax.Array) -> jax.Array:
    """Return codes [...,Z] of length 1, as clusters and losses compare them.

    Drawn from the prior, two codes of 64 numbers are 11 apart, and no margin of 0.8 would ever push (ours; the paper
    does not say).
    """
    return keypoints.l2_normalize(codes, eps=1e-6)
