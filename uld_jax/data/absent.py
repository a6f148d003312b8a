"""Readers of images that are absent: their batches are shapes, for programs that are compiled and not run.

The programs that take such batches are those of a run over as many images of the same size, because the store and the
payloads have the same shapes and placement, and `fetch` is the real reader's.
"""

import itertools
from collections.abc import Iterator

import jax
import numpy as np

from uld_jax import sharding
from uld_jax.data.pipeline import StreamReader
from uld_jax.data.resident import FRACTION, ResidentReader, shape_of, words_of
from uld_jax.errors import UserError


class _Shapes:
    """The batches of a reader as shapes; see `data.pipeline` for the functions."""

    def payloads(self, first_step: int = 0, seed: int = 0, chunk: int = 1) -> Iterator[dict[str, jax.ShapeDtypeStruct]]:
        del first_step, seed
        return itertools.repeat(self._batch(self.batch_size, chunk, ("", "2") if self._partner else ("",)))

    def ordered(self, batch_size: int | None = None, rows=None) -> Iterator[dict[str, jax.ShapeDtypeStruct]]:
        batch_size = batch_size or self.batch_size
        return itertools.repeat(self._batch(batch_size, 1, ("",)), self.passes(batch_size, rows))

    def _batch(self, batch_size, chunk, numbers):
        lead = (chunk, len(sharding.local_rows(self._mesh, batch_size)))[chunk == 1 :]
        shapes = {
            name + number: jax.ShapeDtypeStruct((*lead, *each), dtype)
            for number in numbers
            for name, (each, dtype) in self._of_an_image().items()
        }
        return sharding.put_batch(self._mesh, shapes, axis=len(lead) - 1)


class AbsentResident(_Shapes, ResidentReader):
    """`ResidentReader` of `rows` absent images [side,side,3]; `sharded` splits them over the devices."""

    def __init__(self, rows: int, side: int, mesh, batch_size: int, *, partner=False, sharded: bool = False):
        self._set(mesh, rows, side, batch_size, partner, sharded)
        parts, words = shape_of(side)
        if not sharded:
            images = jax.ShapeDtypeStruct((rows * parts, words), np.uint32)
            self.store = {"images": sharding.put_replicated(mesh, images)}
            return
        here = len(sharding.local_rows(mesh, mesh.size))
        local = {
            "images": jax.ShapeDtypeStruct((self._blocks.longest * here * parts, words), np.uint32),
            "start": jax.ShapeDtypeStruct((here,), np.int32),
        }
        self.store = sharding.put_batch(mesh, local)

    def _of_an_image(self):
        return {"index": ((), np.int32)}


class AbsentStream(_Shapes, StreamReader):
    """`StreamReader` of `rows` absent images [side,side,3]."""

    def __init__(self, rows: int, side: int, mesh, batch_size: int, *, partner=False):
        sharding.check_divides(mesh, batch_size)
        self._mesh, self._partner, self._side = mesh, bool(partner), side
        self.law, self.batch_size, self.rows, self.store = None, batch_size, rows, {}

    def _of_an_image(self):
        return {"image": ((self._side, self._side, 3), np.uint8), "index": ((), np.int32)}


def make_absent_reader(
    rows: int, side: int, mesh, batch_size: int, *, kind: str, partner: bool, whole: bool, memory: float
) -> AbsentResident | AbsentStream:
    """Make the reader that `make_reader` would make of such images.

    Args:
      rows: N, number of images.
      side: F, side of the frame in pixels.
      mesh: the devices.
      batch_size: B, number of images in a batch.
      kind: `config.data.reader`.
      partner: True also gives a second image.
      whole: True if partners are drawn from all images (`data.partner_by`), so that the images cannot be split.
      memory: bytes of memory of a device.

    Raises:
      UserError: the batch does not divide over the devices, or the images do not fit.
    """
    need, budget = rows * 4 * words_of(side), int(memory * FRACTION)
    if kind == "auto":
        kind = "resident" if need <= budget * (1 if whole else mesh.size) else "stream"
    if kind == "stream":
        return AbsentStream(rows, side, mesh, batch_size, partner=partner)
    if need > budget * (1 if whole else mesh.size):
        raise UserError(
            f"the images take {need / 2**30:.1f} GiB and the devices have too little memory for them; use "
            "config.data.reader=stream"
        )
    return AbsentResident(rows, side, mesh, batch_size, partner=partner, sharded=need > budget)
