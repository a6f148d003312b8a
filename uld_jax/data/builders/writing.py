"""Sources as TFDS data sets of ArrayRecord files, written shard by shard; `prepared.prepare` is the way in.

TFDS's own writer keeps a split in memory up to 1,000 MiB, and above that needs TensorFlow to keep it in files. Here
the shards are written one after the other, and TFDS describes them (`tfds.core.SplitInfo`), as it does for data sets
that other programs have written.

The folder `incomplete.VERSION` beside the data set holds the finished shards until all are there; then it is renamed. A
run that was stopped goes on behind the last finished shard, if the images are the same. A lock, which the system drops
with the process, keeps a second run out.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tqdm import tqdm

from uld_jax import files
from uld_jax.data import listing, pf_pascal
from uld_jax.data.specs import Source, decode_threads, fingerprint_of, skipped
from uld_jax.errors import UserError
from uld_jax.ops import coordinates

SHARD = 8192  # most images of a file
_AHEAD = 256  # images that are read at a time
_STATE = "state.json"


def write(name: str, version: str, sources: Mapping[str, Source], target: epath.Path) -> None:
    """Write the splits of a data set to the folder `target`, which appears when it is complete.

    `skipped.csv` lists the files that are not used as images.

    Raises:
      UserError: another process is writing the data set, or an image cannot be read.
    """
    unfinished = target.parent / f"incomplete.{version}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.parent, f"lock.{version}"):
        _start(unfinished, sources)
        first = next(iter(sources.values()))
        features = _features(first)
        infos = []
        for split, source in sources.items():
            lengths, size = _write_split(unfinished, name, split, source, features)
            template = tfds.core.ShardedFileTemplate(
                data_dir=unfinished, dataset_name=name, split=split, filetype_suffix="array_record"
            )
            infos.append(
                tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)
            )
            if source.pairs is not None:
                pf_pascal.write_pairs(unfinished, split, source)
        _describe(unfinished, name, version, sources, features, infos)
        listing.write_skipped(unfinished / "skipped.csv", skipped(sources.values()))
        (unfinished / _STATE).unlink()
        unfinished.rename(target)


@contextlib.contextmanager
def _alone(folder: epath.Path, name: str) -> Iterator[None]:
    """Hold the lock `name` of a folder. Raises UserError if another process holds it; remote folders have no locks."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        fcntl = None
    if fcntl is None or not listing.is_local(folder):
        yield
        return
    path = os.path.join(folder, name)
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another `uld prepare` is writing to {folder}; wait for its end, or give another --data_dir"
            ) from None
        try:
            yield
        finally:
            os.unlink(path)
    finally:
        os.close(handle)


def _start(unfinished: epath.Path, sources: Mapping[str, Source]) -> None:
    """Make the folder, or keep it with its shards if they are of the same images; remove what others have left."""
    for other in unfinished.parent.glob(f"incomplete.*_{unfinished.name.removeprefix('incomplete.')}"):
        other.rmtree()  # of TFDS's own writer, which earlier versions used
    marks = {split: _mark(source) for split, source in sources.items()}
    try:
        same = json.loads((unfinished / _STATE).read_text()) == marks
    except (OSError, ValueError):
        same = False
    if not same and unfinished.exists():
        unfinished.rmtree()
    if not same:
        unfinished.mkdir(parents=True)
        files.write(unfinished / _STATE, json.dumps(marks))


def _mark(source: Source) -> str:
    """Text that changes with the images of a source and with all that is written of them."""
    arrays = [b"" if x is None else np.ascontiguousarray(x).tobytes() for x in (source.landmarks, source.visible)]
    told = [hashlib.sha256(x).hexdigest() for x in arrays]
    return fingerprint_of(source.fingerprint, source.spec, source.names, source.columns, source.frame_size, *told)


def _write_split(folder: epath.Path, name: str, split: str, source: Source, features) -> tuple[list[int], int]:
    """Write the missing shards of a split; return the numbers of their images, and their bytes."""
    parts = np.array_split(_order(source), -(-len(source) // SHARD))
    paths = [folder / f"{name}-{split}.array_record-{i:05d}-of-{len(parts):05d}" for i in range(len(parts))]
    serialize = lambda row: features.serialize_example(_example(source, row))
    with (
        tqdm(total=len(source), desc=f"writing {split}", unit=" images", disable=None) as bar,
        ThreadPoolExecutor(decode_threads()) as pool,
    ):
        for path, rows in zip(paths, parts, strict=True):
            if not path.exists():
                part = path.parent / f"part.{path.name}"
                part.unlink(missing_ok=True)
                writer = array_record_module.ArrayRecordWriter(os.fspath(part), "group_size:1")
                try:
                    for first in range(0, len(rows), _AHEAD):
                        for record in pool.map(serialize, rows[first : first + _AHEAD].tolist()):
                            writer.write(record)
                            bar.update()
                finally:
                    writer.close()
                part.rename(path)
            else:
                bar.update(len(rows))
    return [len(rows) for rows in parts], sum(path.stat().length for path in paths)


def _order(source: Source) -> np.ndarray:
    """The order in which rows are written, which depends on their names alone and mixes them, [N] int."""
    keys = [hashlib.sha256(f"{name}\0{row}".encode()).digest() for row, name in enumerate(source.names)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__))


def _features(source: Source) -> "tfds.features.FeaturesDict":
    """The features of a record."""
    found: dict[str, Any] = {"file": tfds.features.Text(), "image": tfds.features.Image(shape=(None, None, 3))}
    if source.spec.landmarks is not None:
        found["landmarks"] = tfds.features.Tensor(shape=(source.spec.landmarks, 2), dtype=np.float32)
        found["visible"] = tfds.features.Tensor(shape=(source.spec.landmarks,), dtype=np.bool_)
    if source.columns:
        found["columns"] = tfds.features.FeaturesDict({c: tfds.features.Text() for c in source.columns})
    return tfds.features.FeaturesDict(found)


def _example(source: Source, row: int) -> dict[str, Any]:
    """One row as an example of `_features`."""
    example: dict[str, Any] = {"file": source.names[row], "image": source.encoded(row)}
    if source.landmarks is not None:
        example["landmarks"] = coordinates.frame_to_file(
            source.landmarks[row].astype(np.float64), source.frame_maps[row]
        ).astype(np.float32)
        example["visible"] = source.visible[row]
    if source.columns:
        example["columns"] = {c: values[row] for c, values in source.columns.items()}
    return example


def _describe(folder: epath.Path, name: str, version: str, sources: Mapping[str, Source], features, infos) -> None:
    """Write TFDS's description of the data set, with its spec."""
    spec = next(iter(sources.values())).spec._replace(name=name, splits=tuple(sources))
    identity = tfds.core.DatasetIdentity(
        name=name, version=tfds.core.Version(version), data_dir=os.fspath(folder), module_name=__name__
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description="Images with landmarks (x, y) in pixels of the upright file, pixel centres at integers.",
        features=features,
        metadata=tfds.core.MetadataDict(spec._asdict()),
    )
    info.set_file_format("array_record")
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(folder)
