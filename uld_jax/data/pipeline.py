"""The order of the training rows, and the reader that streams them from files.

All readers have one interface:

  rows                                  N, number of images
  store                                 pytree of device arrays, an argument of the step ({} when streaming)
  of_batch(batch_size)                  the same reader with batches of another size; both share their images
  payloads(first_step, seed, chunk)     endless iterator of the step's other argument, from any step on
  ordered(batch_size, rows)             every row once, in batches; padding has index N and a black image
  passes(batch_size, rows)              number of batches of `ordered`
  fetch(store, payload) -> Batch        function that is traced inside the jitted step

The step alone gives the position in the data, so no position is saved, and the worker count may change between a run
and its resumption. A reader takes images and row numbers from its source; it never sees annotation.
"""

import collections
import copy
import dataclasses
import functools
from collections.abc import Iterable, Iterator

import grain
import jax
import numpy as np
from absl import flags

from uld_jax import sharding
from uld_jax.data.listing import BadFile, bad_files
from uld_jax.data.partners import ByCategory, ByPairs
from uld_jax.data.specs import Source, decode_threads

_ENDLESS = 2**40  # batches, because Grain requires a length
_PERMUTATION, _PARTNER = 0, 1  # streams of random numbers under one seed


@dataclasses.dataclass(frozen=True)
class Order:
    """Rows of the training batches: one permutation of all rows after another, without a gap between them.

    Sample s of the run is row `perm_e[s mod N]` of permutation `e = s // N`, and step t holds the samples from `t * B`
    to `t * B + B - 1`. Hence the order depends on the seed and the step alone, B may exceed N, and every row comes
    equally often. The partner of a sample is another row, drawn independently, and of the same category by the law
    `ByCategory`. By the law `ByPairs` the permutations are of all P pairs, and a sample and its partner are a pair.

    Attributes:
      rows: N, number of rows.
      batch_size: B, number of samples in a batch.
      seed: non-negative seed.
      lane: number that separates orders with the same seed.
      law: law of partners; None for any other row.

    >>> order = Order(rows=3, batch_size=2, seed=0)
    >>> sorted(np.concatenate([order.batch(0), order.batch(1), order.batch(2)]).tolist())
    [0, 0, 1, 1, 2, 2]
    """

    rows: int
    batch_size: int
    seed: int = 0
    lane: int = 0
    law: ByCategory | ByPairs | None = dataclasses.field(default=None, compare=False)

    def batch(self, step: int) -> np.ndarray:
        """Return the rows of one step, [B] int32."""
        return self.at(self._samples(step))

    def partners(self, step: int) -> np.ndarray:
        """Return the rows of the partners of one step, [B] int32; each differs from its `batch` row, unless N is 1.

        A listed pair may be of one image.
        """
        return self.partner_at(self._samples(step))

    def at(self, samples: np.ndarray) -> np.ndarray:
        """Return the rows of samples given by their number in the run, [...] int64 -> [...] int32."""
        return self._pairs(samples)[..., 0] if isinstance(self.law, ByPairs) else self._rows(samples)

    def partner_at(self, samples: np.ndarray) -> np.ndarray:
        """Return the partner rows of the given samples, [...] int64 -> [...] int32."""
        if isinstance(self.law, ByPairs):
            return self._pairs(samples)[..., 1]
        if self.law is not None:
            return self.law.partners(self._rows(samples), self._look_up(_bits, samples, self.rows, np.uint64))
        return (self._rows(samples) + self._look_up(_offsets, samples, self.rows)) % np.int32(self.rows)

    def _rows(self, samples):
        return self._look_up(_permutation, samples, self.rows)

    def _pairs(self, samples):
        return self.law.rows[self._look_up(_permutation, samples, len(self.law.rows))]

    def _samples(self, step):
        return np.arange(self.batch_size, dtype=np.int64) + int(step) * self.batch_size

    def _look_up(self, table, samples, count, dtype=np.int32):
        """Read a table of `count` numbers an epoch at samples given by their number in the run."""
        epochs, places = np.divmod(samples, count)
        out = np.empty(np.shape(samples), dtype)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            out[here] = table(self.seed, self.lane, int(epoch), count)[places[here]]
        return out


def _random(seed, lane, stream, epoch, count) -> np.ndarray:
    """Draw raw bits of Philox, [count] uint64, which NumPy keeps stable across versions, unlike derived numbers."""
    return np.random.Philox(np.random.SeedSequence([seed, lane, stream, epoch])).random_raw(count)


@functools.lru_cache(maxsize=32)
def _permutation(seed, lane, epoch, rows) -> np.ndarray:
    return np.argsort(_random(seed, lane, _PERMUTATION, epoch, rows), kind="stable").astype(np.int32)


@functools.lru_cache(maxsize=32)
def _offsets(seed, lane, epoch, rows) -> np.ndarray:
    """Draw the distance from each sample to its partner, 1 to N - 1 (0 if N is 1)."""
    if rows == 1:
        return np.zeros(1, np.int32)
    return (_random(seed, lane, _PARTNER, epoch, rows) % np.uint64(rows - 1) + np.uint64(1)).astype(np.int32)


@functools.lru_cache(maxsize=32)
def _bits(seed, lane, epoch, rows) -> np.ndarray:
    return _random(seed, lane, _PARTNER, epoch, rows)


class OnePass:
    """An order of every row once, or only those of `chosen`; samples beyond the last are padding, row N.

    >>> OnePass(9, np.array([2, 5])).at(np.arange(4)).tolist()
    [2, 5, 9, 9]
    """

    def __init__(self, rows: int, chosen: np.ndarray | None = None):
        chosen = np.arange(rows) if chosen is None else np.asarray(chosen)
        self._rows = np.append(chosen, rows).astype(np.int32)

    def __len__(self):
        return len(self._rows) - 1

    def at(self, samples: np.ndarray) -> np.ndarray:
        """Return the rows of the given samples, [...] int64 -> [...] int32."""
        return self._rows[np.minimum(samples, len(self))]


class StreamReader:
    """A reader that decodes the images of every batch while the devices work on the previous one.

    Args:
      source: the images.
      mesh: the devices; each process reads its own rows of the batch.
      batch_size: B, number of images in a batch over all processes together.
      workers: number of decoding processes. With 0, threads of this process decode, which suffices for a source that
        spends its time outside Python, as Pillow does. Processes need a source that can be pickled.
      partner: True also gives an independent second image of every sample, `image2` and `index2`; a law of
        `data.partners`, which is True too, tells which images it is drawn from.

    Attributes:
      law: law of partners, or None.
      held: 0, bytes of images that stay on each device.
    """

    held = 0

    def __init__(
        self,
        source: Source,
        mesh,
        batch_size: int,
        *,
        workers: int = 0,
        partner: bool | ByCategory | ByPairs = False,
    ):
        sharding.local_rows(mesh, batch_size)  # raises at once if the batch does not divide
        self._source, self._mesh, self._workers, self._partner = source, mesh, workers, bool(partner)
        self.law = None if isinstance(partner, bool) else partner
        self.batch_size, self.rows, self.store = batch_size, len(source), {}

    def of_batch(self, batch_size: int) -> "StreamReader":
        """Return a reader with batches of another size. Raises UserError if it does not divide over the devices."""
        return of_batch(self, self._mesh, batch_size)

    def payloads(self, first_step: int = 0, seed: int = 0, chunk: int = 1) -> Iterator[dict[str, jax.Array]]:
        """Iterate over batches from `first_step` on: image [B,F,F,3] uint8, index [B] int32, split over `data`.

        The iterator is endless. With chunk = S > 1, it gives S batches at a time, stacked: [S,B,...], split on axis 1.
        """
        order = Order(self.rows, self.batch_size, seed, law=self.law)
        examples = _Examples(self._source, order, *self._mine(self.batch_size), first_step, _ENDLESS, self._partner)
        return self._read(examples, chunk)

    def ordered(self, batch_size: int | None = None, rows: np.ndarray | None = None) -> Iterator[dict[str, jax.Array]]:
        """Iterate over every row once, in ceil(N / batch_size) batches; padding has index N and a black image.

        With `rows`, increasing row numbers, only these rows are given. The padding is at the end.
        """
        batch_size, once = batch_size or self.batch_size, OnePass(self.rows, rows)
        batches = self.passes(batch_size, rows)
        examples = _Examples(self._source, once, *self._mine(batch_size), 0, batches, False)
        return self._read(examples, 1)

    def passes(self, batch_size: int | None = None, rows: np.ndarray | None = None) -> int:
        """Return the number of batches of `ordered`."""
        return -(-(self.rows if rows is None else len(rows)) // (batch_size or self.batch_size))

    def fetch(self, store, payload) -> dict[str, jax.Array]:
        """Return the payload, which is the batch."""
        del store
        return payload

    def _mine(self, batch_size):
        return sharding.local_rows(self._mesh, batch_size), batch_size

    def _read(self, examples, chunk):
        per_step = examples.per_step
        data = grain.MapDataset.source(examples)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # Grain sends its flags to the workers; a notebook parses none
                flags.FLAGS.mark_as_parsed()
            # Whole batches go to the workers in turn, so their number does not change the order.
            data = data.batch(per_step * chunk).to_iter_dataset(
                grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
            )
            data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2))
        else:
            threads = decode_threads()
            ahead = max(2 * per_step * chunk, threads)
            data = data.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
            data = data.batch(per_step * chunk)
        return ahead_of(put(self._mesh, batch, chunk) for batch in self._naming_all(_closing(iter(data))))

    def _naming_all(self, batches):
        """Pass batches on; if an image cannot be decoded, check all others before raising, to name all bad files."""
        try:
            yield from batches
        except BadFile as error:
            bad = self._source.broken()
            raise bad_files(bad, self.rows, self._source.where) if bad else error from None


def of_batch(reader, mesh, batch_size: int):
    """Copy a reader for batches of another size; the copy shares all data.

    Raises UserError if the batches do not divide over the devices.
    """
    sharding.local_rows(mesh, batch_size)
    other = copy.copy(reader)
    other.batch_size = batch_size
    return other


class _Examples:
    """Grain source of this process's rows by position, in the order of an `Order` or `OnePass`."""

    def __init__(self, source, order, mine: np.ndarray, batch_size, first_step, steps, partner):
        self._source, self._order, self._partner = source, order, partner
        self._mine, self._first, self._batch_size = mine, first_step * batch_size, batch_size
        self.per_step, self._steps = len(mine), steps

    def __len__(self):
        return self.per_step * self._steps

    def __getitem__(self, position):
        step, place = divmod(int(position), self.per_step)
        sample = np.asarray(self._first + step * self._batch_size + self._mine[place])
        index = self._order.at(sample)
        out = {"image": self._image(index), "index": index}
        if self._partner:
            index = self._order.partner_at(sample)
            out |= {"image2": self._image(index), "index2": index}
        return out

    def _image(self, index):
        if index < len(self._source):
            return self._source.image(int(index))
        side = self._source.frame_size
        return np.zeros((side, side, 3), np.uint8)


def put(mesh, batch, chunk: int):
    """Make global arrays of this process's rows: [n,...] -> [B,...], or with chunk = S > 1 [S*n,...] -> [S,B,...]."""
    if chunk == 1:
        return sharding.put_batch(mesh, batch)
    stacked = jax.tree.map(lambda x: x.reshape(chunk, -1, *x.shape[1:]), batch)
    return sharding.put_batch(mesh, stacked, axis=1)


def ahead_of(items: Iterable, depth: int = 2) -> Iterator:
    """Iterate over items, requesting each `depth` items before its use, so that transfers overlap with compute."""
    waiting = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


def _closing(iterator):
    """Iterate, and stop Grain's threads and processes when reading ends at any point."""
    try:
        yield from iterator
    finally:
        iterator.close()
