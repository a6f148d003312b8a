"""Maps of a frozen backbone for every image of a source, on disk: computed once, read by row numbers.

  write(source, backbone, frozen, folder, mesh, batch_size)      computes the missing maps
  FeatureCache(folder).read(rows) -> {tap: [n,h,w,C]}            random access

DIR/cache.json                         description of the maps: backbone, weights, images, type, shapes
DIR/features-00003-of-00012.array_record     runs of rows in order, one record for each image: its maps one after the
                                             other, row by row, little-endian

A folder belongs to one backbone with its settings and weights, one source and one type, and refuses any other. Shards
are written under another name and renamed when they are complete, so after a kill, writing resumes at the next shard.
Maps are a function of the image alone, so a backbone that draws noise gets no random key. Results of
`backbones.Latents` are stored in the same way: a folder whose only map is called `latents` holds latents.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jax.experimental import multihost_utils

from uld_jax import files, sharding
from uld_jax.data.pipeline import StreamReader, ahead_of
from uld_jax.data.specs import Source
from uld_jax.errors import UserError

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
_DESCRIPTION = "cache.json"
_PART = ".part"
_VERSION = 1
# One image per group, because images are read singly; compressing floats saves too little to be worth the time.
_OPTIONS = "group_size:1,uncompressed"
_RANDOM_ACCESS = {"max_parallelism": "0"}


@dataclasses.dataclass(frozen=True)
class Description:
    """Description of a folder, the content of `cache.json`.

    Attributes:
      backbone: fingerprint of the backbone and its settings (`backbones.Spec`).
      weights: sha256 of its frozen arrays.
      source: fingerprint of the images, their order and frame (`Source`).
      frame_size: side of the frame in pixels.
      dtype: `float16`, `bfloat16` or `float32`.
      rows: N, number of images.
      taps: (name, (h, w, C)) of each map, sorted by name.
      shard_rows: number of images in a shard; the last may have fewer.
      version: number of this layout.
    """

    backbone: str
    weights: str
    source: str
    frame_size: int
    dtype: str
    rows: int
    taps: tuple[tuple[str, tuple[int, int, int]], ...]
    shard_rows: int
    version: int = _VERSION

    @property
    def what(self) -> str:
        """Kind of the content, `latents` or `maps`."""
        return "latents" if [name for name, _ in self.taps] == ["latents"] else "maps"

    @property
    def image_bytes(self) -> int:
        """Bytes of one image's maps."""
        return sum(int(np.prod(shape)) for _, shape in self.taps) * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def shards(self) -> list[str]:
        """File names of the shards."""
        count = -(-self.rows // self.shard_rows)
        return [f"features-{i:05d}-of-{count:05d}.array_record" for i in range(count)]

    def rows_of(self, shard: int) -> range:
        """Rows of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))


def describe(source: Source, backbone, frozen: Any, *, dtype: str = "float16", shard_bytes: int = 2**28) -> Description:
    """Describe the folder that `write` would write; the shapes are found by tracing, without computation.

    Raises UserError for an unknown type.
    """
    if dtype not in DTYPES:
        raise UserError(f"the type of the features is {dtype!r}; use one of {', '.join(DTYPES)}")
    side = source.frame_size
    maps = jax.eval_shape(backbone.features, frozen, jax.ShapeDtypeStruct((1, side, side, 3), np.uint8))
    found = Description(
        backbone=backbone.spec.fingerprint,
        weights=_sha256(frozen),
        source=source.fingerprint,
        frame_size=side,
        dtype=dtype,
        rows=len(source),
        taps=tuple((name, tuple(maps[name].shape[1:])) for name in sorted(maps)),
        shard_rows=1,
    )
    return dataclasses.replace(found, shard_rows=max(1, min(len(source), shard_bytes // max(found.image_bytes, 1))))


def write(
    source: Source,
    backbone,
    frozen: Any,
    folder,
    mesh,
    batch_size: int,
    dtype: str = "float16",
    *,
    shard_bytes: int = 2**28,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Description:
    """Write the maps of every image, or those that an interrupted writer has left out.

    Args:
      source: the images.
      backbone: any object with `spec` and `features(frozen, images)`, see `uld_jax.backbones`.
      frozen: weights of the backbone.
      folder: a local folder, new, empty, or with the same maps. Several processes must all see the same folder.
      mesh: the devices; each computes its part of a batch.
      batch_size: number of images at a time, over all devices together.
      dtype: type of the maps on disk. float16 keeps 3 digits of numbers up to 65504, bfloat16 2 digits of any number.
      shard_bytes: approximate size of a shard in bytes, the most that a killed writer loses.
      report: function called after every batch with the number of images written and to be written.

    Returns:
      Description of the folder.

    Raises:
      UserError: a folder with other content, a batch that does not divide over the devices, or maps that are not
        finite in this type.
    """
    folder = _local(folder)
    sharding.local_rows(mesh, batch_size)  # raises at once if the batch does not divide
    asked = _begin(folder, describe(source, backbone, frozen, dtype=dtype, shard_bytes=shard_bytes))
    rows = _missing(folder, asked)
    if len(rows) < asked.rows:
        logging.info("%d of %d images are in %s already", asked.rows - len(rows), asked.rows, folder)
    frozen, compute = sharding.put_replicated(mesh, frozen), _computation(backbone, asked)
    first = jax.process_index() == 0
    shards = _Shards(folder, asked) if first else None
    done = 0
    try:
        batches = StreamReader(source, mesh, batch_size).ordered(rows=rows) if len(rows) else ()
        # The devices work on the next batches while this one is written.
        for found in ahead_of(compute(frozen, batch) for batch in batches):
            maps, finite, index = sharding.to_host(found)
            real = np.flatnonzero(index < asked.rows)  # maps of padding are not checked
            for place, tap in np.argwhere(~finite[real])[:1]:
                raise UserError(
                    f"{source.place(int(index[real[place]]))}: the map {asked.taps[tap][0]} is not finite as {dtype}; "
                    "use a wider type, or look at the weights"
                )
            for place in real if first else ():
                shards.add(int(index[place]), b"".join(maps[name][place].tobytes() for name, _ in asked.taps))
            done += len(real)
            report(done, len(rows))
    except BaseException:
        if first:
            shards.give_up()
        raise
    if first:
        shards.finish()
    _meet("features written")
    return asked


def _begin(folder: str, asked: Description) -> Description:
    """Check that a folder is free or holds the same maps, write its description if it has none, and return that."""
    there = _read_description(folder)
    if there is not None:
        asked = dataclasses.replace(asked, shard_rows=there.shard_rows)
        _same(folder, there, asked, "give another folder, or delete that one")
    elif os.path.exists(folder) and any(not name.endswith(_PART) for name in os.listdir(folder)):
        raise UserError(f"{folder} holds something else than features; give another folder, or delete it")
    _meet("features looked at")  # before the first process writes
    if jax.process_index() == 0 and there is None:
        os.makedirs(folder, exist_ok=True)
        _dump(os.path.join(folder, _DESCRIPTION), asked)
    return asked


def _missing(folder: str, asked: Description) -> np.ndarray:
    """List the rows whose shards are incomplete, increasing, the same for all processes."""
    missing = np.array([not _whole(folder, asked, shard) for shard in range(len(asked.shards))])
    if jax.process_count() > 1:  # the first process may start writing before another one has looked
        missing = multihost_utils.broadcast_one_to_all(missing)
    return np.array([row for shard in np.flatnonzero(missing) for row in asked.rows_of(shard)], np.int32)


def _computation(backbone, asked: Description):
    """Make a program for a batch's maps in the type of the folder, a flag [B,taps] of finite maps, and row numbers."""
    stored = DTYPES[asked.dtype]

    @jax.jit
    def compute(frozen, batch):
        maps = backbone.features(frozen, batch["image"])
        maps = {name: maps[name].astype(stored) for name, _ in asked.taps}
        finite = jnp.stack([jnp.all(jnp.isfinite(m), (1, 2, 3)) for m in maps.values()], -1)  # [B, taps]
        return maps, finite, batch["index"]

    return compute


class FeatureCache:
    """Reader, by row number, of the maps in a finished folder; it may be sent to other processes and threads.

    Args:
      folder: the local folder.

    Attributes:
      description: `Description` of the folder.

    Raises:
      UserError: no such folder, or an incomplete one.
    """

    def __init__(self, folder):
        self.folder = _local(folder)
        self.description = _read_description(self.folder)
        if self.description is None:
            raise UserError(f"{self.folder} is no folder of features; make it by `uld features --config=... --out=DIR`")
        names = self.description.shards
        there = [shard for shard in range(len(names)) if _whole(self.folder, self.description, shard)]
        if len(there) < len(names):
            raise UserError(
                f"{self.folder} has {len(there)} of {len(names)} shards; run the same `uld features` again to finish it"
            )
        self._records = ArrayRecordDataSource([os.path.join(self.folder, name) for name in names], _RANDOM_ACCESS)

    def __len__(self) -> int:
        return self.description.rows

    def check(self, source: Source, backbone, frozen: Any) -> None:
        """Raise UserError unless the maps are those of this backbone with these weights, for these images."""
        there = self.description
        asked = describe(source, backbone, frozen, dtype=there.dtype)
        asked = dataclasses.replace(asked, shard_rows=there.shard_rows)
        _same(self.folder, there, asked, "make a new one by `uld features`, or leave it out")

    def shapes(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of the maps of so many images, as `read` gives them."""
        dtype = np.dtype(DTYPES[self.description.dtype])
        return {name: jax.ShapeDtypeStruct((count, *shape), dtype) for name, shape in self.description.taps}

    def read(self, rows: Iterable[int]) -> dict[str, np.ndarray]:
        """Read the maps of the rows given, in that order: {tap: [n,h,w,C]} in the type of the folder.

        Raises UserError for a row that does not exist.
        """
        rows = [int(row) for row in rows]
        if bad := [row for row in rows if not 0 <= row < len(self)]:
            raise UserError(f"{self.folder} has no row {bad[0]}; its rows are 0 to {len(self) - 1}")
        dtype, shapes = np.dtype(DTYPES[self.description.dtype]), dict(self.description.taps)
        out = {name: np.empty((len(rows), *shape), dtype) for name, shape in shapes.items()}
        for place, record in enumerate(self._records.__getitems__(rows) if rows else ()):
            start = 0
            for name, shape in shapes.items():
                size = int(np.prod(shape))
                out[name][place] = np.frombuffer(record, dtype, size, start).reshape(shape)
                start += size * dtype.itemsize
        return out


class _Shards:
    """Writer of records, which come by increasing row, into their shards."""

    def __init__(self, folder, description):
        self._folder, self._description = folder, description
        self._shard = self._writer = None

    def add(self, row, record):
        shard = row // self._description.shard_rows
        if shard != self._shard:
            self.finish()
            self._shard = shard
            self._writer = ArrayRecordWriter(self._path() + _PART, _OPTIONS)
        self._writer.write(record)

    def finish(self):
        """Close the current shard and rename it into place."""
        if self._writer is not None:
            self._writer.close()
            os.replace(self._path() + _PART, self._path())
            self._writer = None

    def give_up(self):
        """Close and delete the unfinished shard."""
        if self._writer is not None:
            self._writer.close()
            os.remove(self._path() + _PART)
            self._writer = None

    def _path(self):
        return os.path.join(self._folder, self._description.shards[self._shard])


def _whole(folder, description, shard) -> bool:
    """Tell whether a shard exists with all its records."""
    path = os.path.join(folder, description.shards[shard])
    if not os.path.exists(path):
        return False
    try:
        reader = ArrayRecordReader(path)
        count = reader.num_records() if reader.ok() else 0
        reader.close()
    except (RuntimeError, ValueError, OSError):
        return False
    return count == len(description.rows_of(shard))


_DIFFERENCES = {
    "version": "in another layout",
    "what": "of another kind",
    "backbone": "of another backbone or other settings",
    "weights": "of other weights",
    "source": "of other images",
    "frame_size": "of another frame_size",
    "rows": "of other images",
    "dtype": "of another type",
    "taps": "of other shapes",
    "shard_rows": "in other shards",
}


def _same(folder, there: Description, asked: Description, remedy: str) -> None:
    for field, difference in _DIFFERENCES.items():
        if getattr(there, field) != getattr(asked, field):
            raise UserError(
                f"{folder} holds features {difference} ({getattr(there, field)!s:.120}, "
                f"not {getattr(asked, field)!s:.120}); {remedy}"
            )


def _dump(path, description):
    """Write the description atomically."""
    files.write(path, json.dumps(dataclasses.asdict(description), indent=2) + "\n")


def _read_description(folder) -> Description | None:
    try:
        with open(os.path.join(folder, _DESCRIPTION), encoding="utf-8") as file:
            found = json.load(file)
        found["taps"] = tuple((name, tuple(shape)) for name, shape in found["taps"])
        return Description(**found)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _meet(name):
    """Wait for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _local(folder) -> str:
    folder = os.path.expanduser(os.fspath(folder))
    if "://" in folder:
        raise UserError(f"{folder} is in a bucket, and features are read in random order; give a local folder")
    return os.path.abspath(folder)


def _sha256(tree) -> str:
    """Hash a pytree's names and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(sharding.to_host(tree)):
        leaf = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode() + leaf.tobytes())
    return digest.hexdigest()
