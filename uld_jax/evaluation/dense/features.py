"""The views of photos that dense features are taken of, and the features of a finished stage."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax import config as config_lib
from uld_jax.data.specs import Source
from uld_jax.errors import UserError
from uld_jax.evaluation.dense.protocols import DenseProtocol
from uld_jax.method import Stage
from uld_jax.ops import tps
from uld_jax.ops.hypercolumns import Pyramid


class Views(NamedTuple):
    """Images as the network sees them, with their annotation.

    Attributes:
      images: [N,S,S,3] uint8.
      xy: [N,L,2] float32, annotated points in pixels of the view, NaN where not annotated; points may lie outside.
    """

    images: np.ndarray
    xy: np.ndarray


def margin(protocol: DenseProtocol) -> int:
    """Pixels of the frame to the left of the view and above it."""
    return (protocol.frame - protocol.side) // 2


def central(images, protocol: DenseProtocol):
    """Cut frames [N,F,F,3] to the view [N,S,S,3]; NumPy or JAX."""
    first = margin(protocol)
    return images[:, first : first + protocol.side, first : first + protocol.side]


def warped(key, spread: tps.Spread, image, xy):
    """Warp ONE frame and its points at random, as the published code of DVE does.

    Args:
      key: a PRNG key.
      spread: law of the warp.
      image: [F,F,3]; zeros outside.
      xy: [L,2] points in pixels of the frame; NaN where unknown.

    Returns:
      The image [F,F,3] float32, and whole pixels [L,2] of the points, NaN where unknown. A point that the image no
      longer shows stands at the pixel whose place is nearest.
    """
    places, known = tps.grid(tps.random_tps(key, spread), image.shape[:2]), jnp.isfinite(xy).all(-1, keepdims=True)
    found = tps.nearest_pixels(places, jnp.where(known, xy, 0))
    return tps.warp_image(image, places), jnp.where(known, found, jnp.nan)


def to_uint8(image):
    """Round an image in 0..255 to uint8."""
    return jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8)


def read_views(source: Source, rows, protocol: DenseProtocol, batch: int = 256) -> Views:
    """Read some rows of a source, whose frame is that of the protocol; images a batch at a time, to save memory."""
    rows = np.asarray(rows)
    parts = [central(source.images(rows[i : i + batch]), protocol) for i in range(0, len(rows), batch)]
    points = np.zeros((len(rows), 0, 2), np.float32)
    if source.landmarks is not None:
        points = np.asarray(source.landmarks[rows], np.float32) - margin(protocol)
    return Views(np.concatenate(parts) if parts else np.zeros((0, protocol.side, protocol.side, 3), np.uint8), points)


class Features:
    """The dense features of a finished stage, compiled once for each shape.

    Args:
      finished: a stage from `engine.runs.load`, or anything with its field `model`.

    Attributes:
      state, frozen: state and frozen weights of the stage, the arguments of `dense`.
    """

    def __init__(self, finished):
        self._method, self.state, self.frozen = finished.model
        self._compiled = jax.jit(self.dense)

    def dense(self, state, frozen, images) -> Pyramid:
        """Compute the pyramid of [B,S,S,3] uint8 images, in float32 at least; pure, for use in other programs."""
        maps = self._method.dense(state, frozen, images)
        return tuple(x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in maps)

    def __call__(self, images) -> Pyramid:
        return self._compiled(self.state, self.frozen, images)

    def shapes(self, side: int) -> list[tuple[int, ...]]:
        """The shapes (h_l, w_l, C_l) of the maps of a view of `side` pixels; nothing is computed."""
        images = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
        return [x.shape[1:] for x in jax.eval_shape(self.dense, self.state, self.frozen, images)]

    def batches(self, images: np.ndarray, batch: int) -> Iterator[tuple[np.ndarray, Pyramid]]:
        """Iterate over (rows, pyramid [batch,...]) of images [N,S,S,3]; the last image fills a batch that is not full.

        `rows` are the numbers of the images without the copies.
        """
        for start in range(0, len(images), batch):
            rows = np.arange(start, min(start + batch, len(images)))
            padded = np.concatenate([rows, np.repeat(rows[-1:], batch - len(rows))])
            yield rows, self(images[padded])

    def all(self, images: np.ndarray, batch: int) -> Pyramid:
        """The pyramid of all images [N,S,S,3] on the device, [M,h_l,w_l,C_l] with M = N rounded up to whole batches.

        The last image fills the rest.
        """
        rows = -(-len(images) // batch) * batch
        stored = tuple(jnp.zeros((rows, *shape), jnp.float32) for shape in self.shapes(images.shape[1]))
        for first, maps in self.batches(images, batch):
            stored = _put(stored, maps, int(first[0]))
        return stored


@functools.partial(jax.jit, donate_argnums=0)
def _put(stored, maps, first):
    """Write a batch into the stored maps, in place."""
    return tuple(jax.lax.dynamic_update_slice_in_dim(s, x.astype(s.dtype), first, 0) for s, x in zip(stored, maps))


def bytes_of(shapes: Sequence[tuple[int, ...]]) -> int:
    """The bytes of one image's pyramid in float32.

    >>> bytes_of([(24, 24, 64)])
    147456
    """
    return 4 * sum(int(np.prod(shape)) for shape in shapes)


def check_stage(finished, side: int) -> None:
    """Raise UserError for a stage without dense features of views of `side` pixels, naming the run's stages with some.

    A stage may also refuse the side itself, for example one that is no multiple of its stride.
    """
    if _has_dense(finished.model.method) and _shapes(finished, side) is not None:
        return
    built = {name: config_lib.stage(finished.config, name).method for name in finished.config.stages}
    stages = [name for name, method in built.items() if _has_dense(method) and name != finished.stage]
    other = f"give another one with --stage: {', '.join(stages)}" if stages else "give a run of another method"
    raise UserError(f"stage {finished.stage!r} has no dense features; {other}")


def _has_dense(method) -> bool:
    function = type(method).dense
    return callable(function) and function is not Stage.dense  # in ZeroShot `dense` is a hyper-parameter


def _shapes(finished, side):
    images = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
    return jax.eval_shape(finished.model.method.dense, finished.model.state, finished.model.frozen, images)
