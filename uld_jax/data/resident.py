"""The reader that keeps the whole data set in device memory as uint8.

A step gets only row numbers, and gathers its images itself. If one device can hold all images, every device holds them
all, and batches are those of `pipeline.StreamReader`, row for row, on any number of devices.

Otherwise the rows are split over the devices. Each device then draws its part of every batch from its own rows, in its
own order, so that no image moves between devices. Rows still come equally often (as far as the devices have equally
many), but batches differ from those of the other mode and depend on the number of devices. Partners by category or
pairs (`data.partners`) may be any rows, and so need the images whole.

In memory an image is a row of 32-bit words, four bytes each, and not [F,F,3] bytes: a TPU keeps the first axis of such
bytes in its lanes, and then copies all images to gather a few. It does the same to rows that do not fill its lanes, so
rows are filled up to a multiple of 128 words (a frame of 80 pixels takes 1.3 % more; of 128 or 160, nothing), and to
rows of more than 32,768 words, so a larger image (from 210 pixels on) is several rows.
"""

import itertools
import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

from uld_jax import sharding
from uld_jax.data.partners import ByCategory, ByPairs
from uld_jax.data.pipeline import OnePass, Order, ahead_of, of_batch, put
from uld_jax.data.specs import Source
from uld_jax.errors import UserError

# Fraction for the images of a device's memory (on CPU: of the host's, shared by its devices). Training takes the rest.
FRACTION = 0.4

_LANES = 128  # numbers in a row of a TPU's memory tiles
_LONGEST = 2**15  # words in a row; libtpu 0.0.42 cuts a table of longer rows in two before it gathers any


class ResidentReader:
    """The resident reader (see the module), with the interface of `pipeline.StreamReader`.

    Args:
      source: the images, which the constructor decodes once.
      mesh, batch_size, partner: as for `StreamReader`.
      sharded: True splits the rows over the devices; None splits them only if one device cannot hold all.
      held: bytes of other readers' images on each device.

    Attributes:
      held: bytes of images on each device, those of other readers included.

    Raises:
      UserError: the images do not fit even when split, or there are fewer images than devices to split them over; or
        the images are split, and partners are by category or pairs.
    """

    def __init__(
        self,
        source: Source,
        mesh,
        batch_size: int,
        *,
        partner: bool | ByCategory | ByPairs = False,
        sharded: bool | None = None,
        held: int = 0,
    ):
        sharding.local_rows(mesh, batch_size)  # raises at once if the batch does not divide
        if sharded is None:
            need, budget = image_bytes(source), max(memory_budget(mesh) - held, 0)
            sharded = need > budget
            if need > budget * mesh.size:
                raise UserError(
                    f"the images take {need / 2**30:.1f} GiB and the devices have "
                    f"{budget * mesh.size / 2**30:.1f} GiB for them; use config.data.reader=stream"
                )
        if sharded and not isinstance(partner, bool):
            raise UserError(
                "the images do not fit on one device, and partners by category or pairs are drawn from all of them; "
                "use config.data.reader=stream"
            )
        self._set(mesh, len(source), source.frame_size, batch_size, partner, sharded, held)
        self.store = self._sharded_store(source) if sharded else {"images": self._whole(source)}

    def _set(self, mesh, rows, side, batch_size, partner, sharded, held=0):
        """Set everything but the images."""
        sharding.check_divides(mesh, batch_size)
        self._mesh, self._partner, self.sharded = mesh, bool(partner), sharded
        self.law = None if isinstance(partner, bool) else partner
        self.batch_size, self.rows, self._side = batch_size, rows, side
        self._blocks = _Blocks(rows, mesh.size if sharded else 1)
        self.held = held + 4 * words_of(side) * self._blocks.longest

    def of_batch(self, batch_size: int) -> "ResidentReader":
        """Return a reader with batches of another size. Raises UserError if it does not divide over the devices."""
        return of_batch(self, self._mesh, batch_size)

    def payloads(self, first_step: int = 0, seed: int = 0, chunk: int = 1) -> Iterator[dict[str, jax.Array]]:
        """Iterate without end over row numbers from `first_step` on: index [B] int32 (and index2).

        With chunk = S > 1, they are [S,B].
        """
        per_block = self.batch_size // self._blocks.count
        orders = self._of_blocks(lambda lane, rows: Order(rows, per_block, seed, lane, self.law))

        def batches():
            for step in itertools.count(first_step):
                out = {"index": self._mine({k: o.batch(step) for k, o in orders.items()})}
                if self._partner:
                    out["index2"] = self._mine({k: o.partners(step) for k, o in orders.items()})
                yield out

        return ahead_of(put(self._mesh, batch, chunk) for batch in _joined(batches(), chunk))

    def ordered(self, batch_size: int | None = None, rows: np.ndarray | None = None) -> Iterator[dict[str, jax.Array]]:
        """Iterate over every row once, in ceil(N / batch_size) batches; padding has index N.

        The rows are in order, with the padding at the end; if they are split, they are in the order of each device's
        own rows. With `rows`, increasing row numbers, only these rows are given; if split over devices, they may take
        more batches.
        """
        batch_size = batch_size or self.batch_size
        sharding.local_rows(self._mesh, batch_size)
        per_block = batch_size // self._blocks.count
        chosen = self._blocks.locally(np.arange(self.rows) if rows is None else np.asarray(rows))
        passes = self._of_blocks(lambda lane, size: OnePass(size, chosen[lane]))

        def batches():
            for t in range(self.passes(batch_size, rows)):
                samples = np.arange(t * per_block, (t + 1) * per_block)
                yield {"index": self._mine({k: one.at(samples) for k, one in passes.items()})}

        return ahead_of(put(self._mesh, batch, 1) for batch in batches())

    def passes(self, batch_size: int | None = None, rows: np.ndarray | None = None) -> int:
        """Return the number of batches of `ordered`."""
        chosen = self._blocks.locally(np.arange(self.rows) if rows is None else np.asarray(rows))
        return -(-max(map(len, chosen)) // ((batch_size or self.batch_size) // self._blocks.count))

    def fetch(self, store, payload) -> dict[str, jax.Array]:
        """Gather the images of a payload, without communication: image [B,F,F,3] split over `data`, index [B]."""
        out = {}
        for number in ("", "2"):
            if "index" + number in payload:
                index = payload["index" + number]
                out |= {"image" + number: self._gather(store, index), "index" + number: index}
        return out

    def _gather(self, store, index):
        if not self.sharded:
            words = _take(store["images"], index, self._parts)
            words = jax.lax.with_sharding_constraint(words, sharding.split(self._mesh))
        else:
            split = P(sharding.AXIS)
            words = jax.shard_map(
                lambda images, start, index: _take(images, index - start, self._parts),
                mesh=self._mesh,
                in_specs=(split, split, split),
                out_specs=split,
            )(store["images"], store["start"], index)
        return unpacked(words, self._side)

    @property
    def _parts(self) -> int:
        return shape_of(self._side)[0]

    def _of_blocks(self, make):
        """Make {block: make(block, number of its rows)} for the blocks that this process draws from."""
        here = sharding.local_rows(self._mesh, self._mesh.size).tolist() if self.sharded else [0]
        return {k: make(k, self._blocks.sizes[k]) for k in here}

    def _mine(self, local) -> np.ndarray:
        """Convert {block: its part of the batch, counted within the block} to rows of this process, [n] int32."""
        rows = np.concatenate([self._blocks.globally(k, x) for k, x in local.items()])
        return rows if self.sharded else rows[sharding.local_rows(self._mesh, len(rows))]

    def _whole(self, source):
        return sharding.put_replicated(self._mesh, _decoded(source, range(self.rows), self.rows))

    def _sharded_store(self, source):
        blocks, (parts, words) = self._blocks, shape_of(source.frame_size)
        if min(blocks.sizes) == 0:
            raise UserError(
                f"{self.rows} images cannot be split over {self._mesh.size} devices; use config.data.reader=stream"
            )

        def block(place):
            device = (place[0].start or 0) // (blocks.longest * parts)
            size, start = blocks.sizes[device], blocks.starts[device]
            return _decoded(source, range(start, start + size), blocks.longest)

        shape = (blocks.longest * blocks.count * parts, words)
        split = sharding.split(self._mesh)
        starts = np.array(blocks.starts, np.int32)
        return {
            "images": jax.make_array_from_callback(shape, split, block),
            "start": jax.make_array_from_callback(starts.shape, split, lambda place: starts[place]),
        }


class _Blocks:
    """Rows cut into `count` runs whose lengths differ by at most one, the longer runs first.

    >>> _Blocks(7, 3).starts, _Blocks(7, 3).sizes
    ([0, 3, 5], [3, 2, 2])
    """

    def __init__(self, rows, count):
        self.rows, self.count = rows, count
        self.sizes = [rows // count + (i < rows % count) for i in range(count)]
        self.starts = [sum(self.sizes[:i]) for i in range(count)]
        self.longest = self.sizes[0]

    def globally(self, block: int, rows: np.ndarray) -> np.ndarray:
        """Convert rows counted within a block to rows of the data set, int32; a row beyond the block is padding, N."""
        return np.where(rows < self.sizes[block], rows + self.starts[block], self.rows).astype(np.int32)

    def locally(self, rows: np.ndarray) -> list[np.ndarray]:
        """Convert increasing rows of the data set to the rows of each block, counted within the block."""
        parts = np.split(rows, np.searchsorted(rows, self.starts[1:]))
        return [part - start for part, start in zip(parts, self.starts, strict=True)]


def _joined(batches, chunk):
    """Concatenate every `chunk` batches {name: [n]} to {name: [chunk * n]}."""
    while True:
        several = list(itertools.islice(batches, chunk))
        yield {name: np.concatenate([b[name] for b in several]) for name in several[0]}


def _take(rows, index, parts: int):
    """Return the words [B,W] of images whose rows, `parts` each, follow one another; zeros beyond the last image."""
    if parts > 1:
        index = (index[:, None] * parts + jnp.arange(parts, dtype=index.dtype)).reshape(-1)
    found = jnp.take(rows, index, axis=0, mode="fill", fill_value=0)
    return found.reshape(-1, parts * rows.shape[1])


def _decoded(source: Source, rows: range, count: int) -> np.ndarray:
    """Return `count` images of a source as rows of words (`shape_of`) uint32; those beyond the given rows are zeros."""
    words = np.zeros((count, words_of(source.frame_size)), "<u4")
    source.images(rows, out=pixels_in(words[: len(rows)], source.frame_size))
    return words.astype(np.uint32, copy=False).reshape(-1, shape_of(source.frame_size)[1])


def shape_of(side: int) -> tuple[int, int]:
    """Return the number of rows of an image [side,side,3] uint8, and of 32-bit words in a row.

    Rows are filled up to whole rows of a TPU's tiles.

    >>> shape_of(160), shape_of(80)  # 160 * 160 * 3 / 4 and 80 * 80 * 3 / 4 + 64
    ((1, 19200), (1, 4864))
    >>> shape_of(256)  # 256 * 256 * 3 / 4 in two rows
    (2, 24576)
    """
    words = -(-(side * side * 3) // 4)
    parts = -(-words // _LONGEST)
    return parts, -(-words // (parts * _LANES)) * _LANES


def words_of(side: int) -> int:
    """Return the number of 32-bit words of an image [side,side,3] uint8 with what fills its rows up."""
    parts, words = shape_of(side)
    return parts * words


def pixels_in(words: np.ndarray, side: int) -> np.ndarray:
    """View words [N,W] uint32, the lowest bits first, as the images [N,side,side,3] uint8 in them; see `unpacked`."""
    return words.view(np.uint8)[:, : side * side * 3].reshape(len(words), side, side, 3)


def unpacked(words: jax.Array, side: int) -> jax.Array:
    """Unpack words [B,W] uint32 to images [B,side,side,3] uint8; traceable."""
    flat = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(len(words), -1)
    return flat[:, : side * side * 3].reshape(len(words), side, side, 3)


def image_bytes(source: Source) -> int:
    """Return the number of bytes of all images of a source in the memory of one device."""
    return len(source) * 4 * words_of(source.frame_size)


def memory_budget(mesh) -> int:
    """Return the number of bytes that each device may spend on images, the same on every process."""
    devices = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    limits = [(d.memory_stats() or {}).get("bytes_limit") for d in devices]
    if all(limits):
        budget = min(limits)
    else:
        budget = host_memory() // len(devices)
    budget = int(budget * FRACTION)
    if jax.process_count() > 1:
        mebibytes = multihost_utils.process_allgather(np.int32(budget >> 20))  # int32: 64 bits would be cut without x64
        budget = int(mebibytes.min()) << 20
    return budget


def host_memory() -> int:
    """Return the bytes of memory of this host, or of the container's share."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        total = 4 * 2**30  # for systems that do not report it
    try:
        with open("/sys/fs/cgroup/memory.max") as f:
            total = min(total, int(f.read()))
    except (OSError, ValueError):
        pass
    return total
