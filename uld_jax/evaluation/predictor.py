"""A stage's predictions, compiled once, for finished runs and evaluations."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from uld_jax import interrupts, sharding
from uld_jax.method import Method, Model


class Found(NamedTuple):
    """Landmarks of images, on the host; see `method.Prediction`.

    Attributes:
      xy: [N,K,2] float32 in pixels of the frame.
      score: [N,K] float32 confidences; 0 where a landmark is missing.
      detected: [N,K] bool, False for landmarks that were filled in.
    """

    xy: np.ndarray
    score: np.ndarray
    detected: np.ndarray


class Predictor:
    """A stage's `predict`, compiled once, on batches that are split over the devices.

    Args:
      method: the stage.
      mesh: all devices.
      check: function called several times a second during computations; it may raise to stop them.
      say: function called now and then with the number of images predicted so far.

    Landmarks that the stage does not use (`Method.landmarks`) are left out of all results.

    Attributes:
      devices: number of devices.
    """

    def __init__(
        self,
        method: Method,
        mesh,
        check: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda text: None,
    ):
        self._mesh, self.devices = mesh, mesh.size
        self._check, self._say = check, say

        def rows(state, frozen, store, payload, reader):
            batch = reader.fetch(store, payload)
            found = method.predict(state, frozen, batch["image"])
            detected = found.score > 0 if found.detected is None else found.detected
            return Found(found.xy, found.score, detected), batch["index"]

        def poses(state, frozen, store, payload, reader):
            batch = reader.fetch(store, payload)
            return method.poses(state, frozen, batch["image"]), batch["index"]

        def images(state, frozen, batch):
            found = method.predict(state, frozen, batch)
            return found.xy, found.score

        self._predict, self._landmarks = method.predict, jax.jit(method.landmarks)
        self._rows = jax.jit(rows, static_argnums=4)
        self._poses = jax.jit(poses, static_argnums=4)
        self._images = jax.jit(images)
        self._heatmaps = jax.jit(method.heatmaps)
        self._pictures = jax.jit(method.pictures)
        self._carry = jax.jit(method.carry)

    def _get(self, program, *given):
        """Run a program and fetch its result to the host."""
        return interrupts.attended(lambda: sharding.to_host(program(*given)), self._check)

    def used(self, model: Model) -> np.ndarray | None:
        """The slots of a prediction that are landmarks in use, [K] bool; None for all of them.

        A stage that uses no landmark has no points either, and then all its slots are returned, empty.
        """
        used = self._landmarks(model.state)
        used = None if used is None else np.asarray(sharding.to_host(used), bool)
        return used if used is not None and used.any() else None

    def count(self, model: Model, side: int) -> int:
        """The number of landmarks for images of [side,side,3]; only shapes are computed."""
        used = self.used(model)
        if used is not None:
            return int(used.sum())
        images = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
        return jax.eval_shape(self._predict, model.state, model.frozen, images).xy.shape[1]

    def _in_use(self, model, *arrays) -> tuple[np.ndarray, ...]:
        """Drop the landmarks of arrays [N,K,...] that are not in use."""
        used = self.used(model)
        return arrays if used is None else tuple(a[:, used] for a in arrays)

    def read(self, model: Model, reader, rows: np.ndarray | None = None) -> Found:
        """Predict landmarks of every row, or of increasing `rows`, in pixels of the frame."""
        parts, patience, passes = [], interrupts.Patience(), reader.passes(rows=rows)
        for payload in reader.ordered(rows=rows):
            parts.append(self._get(self._rows, model.state, model.frozen, reader.store, payload, reader))
            if patience.due():
                self._say(f"{len(parts)} of {passes} batches of images predicted")
        found, index = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        order = np.argsort(index, kind="stable")[: reader.rows if rows is None else len(rows)]
        return Found(*self._in_use(model, *(x[order] for x in found)))

    def poses(self, model: Model, reader, rows: np.ndarray | None = None) -> np.ndarray | None:
        """Predict the pose cluster of every row, or of increasing `rows`, [N] int32; None for a stage without any."""
        parts = []
        for payload in reader.ordered(rows=rows):
            given = model.state, model.frozen, reader.store, payload, reader
            if not parts and jax.eval_shape(self._poses, *given)[0] is None:
                return None
            parts.append(self._get(self._poses, *given))
        pose, index = (np.concatenate(p) for p in zip(*parts, strict=True))
        return pose[np.argsort(index, kind="stable")[: reader.rows if rows is None else len(rows)]]

    def heatmaps(self, model: Model, images) -> tuple[np.ndarray, np.ndarray] | None:
        """The network's views of [B,F,F,3] uint8 host images, and its maps [B,h,w,K]; None if the stage has none."""
        local = images[sharding.local_rows(self._mesh, len(images))]
        found = self._get(self._heatmaps, model.state, model.frozen, sharding.put_batch(self._mesh, local))
        if found is None:
            return None
        seen, maps = found
        used = self.used(model)
        # The maps need not be those of landmarks: a map of all keypoints has a single channel.
        return seen, maps if used is None or maps.shape[-1] != len(used) else maps[..., used]

    def pictures(self, model: Model, images) -> dict[str, np.ndarray]:
        """The stage's own pictures of [B,F,F,3] uint8 host images, see `Method.pictures`."""
        local = images[sharding.local_rows(self._mesh, len(images))]
        return self._get(self._pictures, model.state, model.frozen, sharding.put_batch(self._mesh, local))

    def carry(self, model: Model, images_a, images_b, points_b) -> np.ndarray | None:
        """Carry points [B,P,2] of images b to images a, [B,F,F,3] uint8 host images, the same on every process.

        The points are float32 in pixels of the frame. None for a stage that carries none, see `Method.carry`.
        """
        given = images_a, images_b, np.asarray(points_b, np.float32)
        if jax.eval_shape(self._carry, model.state, model.frozen, *given) is None:
            return None
        return self._get(self._carry, model.state, model.frozen, *map(self._put, given))[: len(images_a)]

    def _put(self, rows):
        """Rows [B,...] on the devices, the last one repeated until they divide over the devices."""
        whole = -(-len(rows) // self._mesh.size) * self._mesh.size
        padded = np.concatenate([rows, np.repeat(rows[-1:], whole - len(rows), 0)])
        return sharding.put_batch(self._mesh, padded[sharding.local_rows(self._mesh, whole)])

    def images(self, model: Model, images) -> tuple[np.ndarray, np.ndarray]:
        """Predict landmarks of [B,F,F,3] uint8 host images, the same on every process; each new B compiles anew."""
        n = len(images)
        xy, score = self._get(self._images, model.state, model.frozen, self._put(images))
        return self._in_use(model, xy[:n], score[:n])
