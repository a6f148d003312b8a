"""Frozen feature extractors behind one interface.

A backbone is a frozen dataclass with two members:

  spec      a `Spec`: names, channels and strides of its maps
  load()    -> frozen, a pytree of arrays ({} when there are no weights)
  features(frozen, images, rng=None) -> {tap name: [B,h,w,C] float32}

`images` are [B,H,W,3] uint8. `features` is pure and may be traced inside any jitted program.

A backbone that computes its maps in two steps, with a small result of the first, is a `TwoStep`:

  encode(frozen, images) -> latents [B,h,w,C] float32
  describe(frozen, latents, rng=None) -> the result of `features` for these images
  latents_fingerprint    changes whenever the same image would give other latents

A backbone that computes something of its weights alone has `prepare(frozen) -> frozen`: the same for `features`, with
what is the same for all images already computed, by the device at hand. `prepared` calls it where there is one.

A backbone that also finds generic keypoints is a `KeypointDetector`:

  detect(frozen, images) -> `Detected`, a score for every pixel and descriptors on a grid

The `images` of `detect` are float in 0..1, since they may come out of a warp.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

LATENTS = "latents"  # name of the one map of `Latents`


class Tap(NamedTuple):
    """One named map: its channels, and its stride in pixels of the input.

    Cell (i, j) is centred on input pixel x = (j + 0.5) * stride - 0.5, y = (i + 0.5) * stride - 0.5.
    """

    name: str
    channels: int
    stride: float


class Spec(NamedTuple):
    """The properties of a backbone's maps."""

    name: str
    taps: tuple[Tap, ...]
    size_multiple: int  # image sides must be multiples of this
    fingerprint: str  # changes whenever the same image would give other features


class Detected(NamedTuple):
    """The result of a keypoint detector on images of H x W pixels.

    Attributes:
      score: [B,H,W] float32 in 0..1, confidence of a keypoint at each pixel; neighbours are not suppressed.
      descriptors: [B,h,w,D] float32 of length 1; `Tap` defines the centres of cells.
    """

    score: jax.Array
    descriptors: jax.Array


class Backbone(Protocol):
    """The interface that methods see."""

    @property
    def spec(self) -> Spec: ...

    def load(self) -> Any: ...

    def features(self, frozen: Any, images: jax.Array, rng: jax.Array | None = None) -> dict[str, jax.Array]: ...


class KeypointDetector(Protocol):
    """The interface of a generic keypoint detector that methods see."""

    @property
    def spec(self) -> Spec: ...

    def load(self) -> Any: ...

    def detect(self, frozen: Any, images: jax.Array) -> Detected: ...


class TwoStep(Backbone, Protocol):
    """The interface that `Latents` and `finished` see."""

    @property
    def latents_fingerprint(self) -> str: ...

    def encode(self, frozen: Any, images: jax.Array) -> jax.Array: ...

    def describe(self, frozen: Any, latents: jax.Array, rng: jax.Array | None = None) -> dict[str, jax.Array]: ...


@dataclasses.dataclass(frozen=True)
class Latents:
    """The first step of a backbone as a backbone of its own, with the one map `latents`."""

    backbone: TwoStep

    @property
    def spec(self) -> Spec:
        # No taps: the latents are for `describe` alone, which knows where its cells are.
        return self.backbone.spec._replace(taps=(), fingerprint=self.backbone.latents_fingerprint)

    def load(self) -> Any:
        return self.backbone.load()

    def features(self, frozen, images, rng=None) -> dict[str, jax.Array]:
        return {LATENTS: self.backbone.encode(frozen, images)}


def prepared(backbone: Backbone, frozen: Any) -> Any:
    """The weights with what is the same for all images computed; the weights themselves where nothing is."""
    prepare = getattr(backbone, "prepare", None)
    return frozen if prepare is None else prepare(frozen)


def finished(backbone: Backbone, frozen: Any, cached: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The maps {tap: [B,h,w,C]} of images from `cached`, which holds the maps or the latents."""
    if set(cached) != {LATENTS}:
        return cached
    latents = cached[LATENTS]
    return backbone.describe(frozen, latents.astype(jnp.promote_types(latents.dtype, jnp.float32)))
