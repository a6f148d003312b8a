"""Sources as TFDS data sets, written and read: ArrayRecord files with random access, for very many images.

  prepare('my_faces', {'train': source, 'test': source}, data_dir)     writes data_dir/my_faces/1.0.0/
  open_source('my_faces', 'train', data_dir=data_dir, ...)             reads it; so does
  open_source('folder', 'train', data_dir=data_dir/my_faces, ...)

A record holds the unchanged image file, its name, the landmarks in pixels of the file, visibility and the other
columns, so it can be read at any frame size. Rows are mixed when they are written (`writing`); afterwards the row
number in the prepared data set is the identity of an example, not the row of its source. Pairs of images, which
PF-Pascal has, are written beside the records as the lists of `data/pf_pascal.py`, and their names are looked up when
they are read.

TensorFlow is not needed, because TFDS neither encodes nor decodes the images, which are passed as encoded bytes.
"""

import json
import os
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from uld_jax.data import decode, pf_pascal
from uld_jax.data.builders import writing
from uld_jax.data.listing import BadFile, Skipped, bad_files
from uld_jax.data.schemes import BY_NUMBER, NO_SCHEME, SCHEMES
from uld_jax.data.specs import (
    DatasetSpec,
    Source,
    broken,
    decode_threads,
    fingerprint_of,
    set_sides,
    sort_out,
    spec_of,
)
from uld_jax.errors import UserError
from uld_jax.ops import coordinates

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ABOUT = "dataset_info.json", "features.json", "metadata.json"  # files that say what the records are
_FEATURES = tfds.features.FeaturesDict, tfds.features.Image, tfds.features.Tensor, tfds.features.Text  # by `writing`
_CLASSES = {f"{feature.__module__}.{feature.__name__}" for feature in _FEATURES}
_KEYS = {"pythonClassName", "featuresDict", "image", "tensor", "text", "description", "valueRange"}


def prepare(name: str, sources: Mapping[str, Source], data_dir, *, version: str = "1.0.0") -> epath.Path:
    """Write sources, one for each split, as the TFDS data set `name`.

    Args:
      name: name of lower-case letters, digits and underscores.
      sources: {split: source}; splits may differ in size, but not in landmarks or columns.
      data_dir: parent folder; the data set is written to `data_dir/name/version`.
      version: three numbers with dots.

    Returns:
      The folder written.

    Raises:
      UserError: bad name or version, splits that do not go together, images that cannot be decoded, all of them named,
        or a data set that exists already.
    """
    target = check_target(name, data_dir, version)
    first = next(iter(sources.values()))
    for split, source in sources.items():
        if source.spec.landmarks != first.spec.landmarks or set(source.columns) != set(first.columns):
            raise UserError(f"split {split} of {name} has other landmarks or columns than the first; make them equal")
    bad, total = [], sum(map(len, sources.values()))
    for source in sources.values():
        bad += [] if source.checked else source.broken()
    if bad:
        raise bad_files(bad, total, first.where)
    writing.write(name, version, sources, target)
    return target


def check_target(name: str, data_dir, version: str = "1.0.0") -> epath.Path:
    """Return the folder that `prepare` writes. Raises UserError for a bad name or version, or an existing data set."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot name a data set; use lower-case letters, digits and _, a letter first")
    if not _VERSION.fullmatch(version):
        raise UserError(f"{version!r} is not a version; use three numbers such as 1.0.0")
    target = epath.Path(data_dir).expanduser() / name / version
    if target.exists():
        raise UserError(f"{target} exists already; remove it, or write to another folder")
    return target


def find(root, name: str | None = None) -> epath.Path | None:
    """Find the newest prepared data set at `root`, `root/VERSION`, `root/name` or `root/name/VERSION`, or None.

    With a name, only a data set of that name is accepted. Raises UserError if the data set's name cannot be read.
    """
    root = epath.Path(root)
    for folder in (root, root / name) if name else (root,):
        versions = []
        if folder.is_dir():
            versions = sorted(
                (f for f in folder.iterdir() if _VERSION.fullmatch(f.name)),
                key=lambda f: tuple(int(n) for n in f.name.split(".")),
                reverse=True,
            )
        for candidate in (folder, *versions):
            about = candidate / "dataset_info.json"
            if not ((candidate / "features.json").exists() and about.exists()):
                continue
            if name in (None, _content(about).get("name")):
                return candidate
    return None


def _content(path: epath.Path) -> dict:
    """Read a file of `_ABOUT`. Raises UserError if it is absent or damaged."""
    try:
        content = json.loads(path.read_bytes())
        why = "" if isinstance(content, dict) else "it holds no object"
    except FileNotFoundError:
        raise UserError(f"{path} is absent; {_again(path.parent)}") from None
    except (OSError, ValueError) as error:
        why = _line(error)
    if why:
        raise UserError(f"{path} cannot be read ({why}); {_again(path.parent)}")
    return content


def _builder(folder: str):
    """Open a prepared data set with TFDS.

    Raises UserError if a file of `_ABOUT` is absent or damaged, or if it holds what `prepare` does not write.
    """
    about = {name: _content(epath.Path(folder) / name) for name in _ABOUT}
    # TFDS imports the module of any class that this file names, so that an unknown name would run code.
    if foreign := _foreign(about["features.json"]):
        where = epath.Path(folder) / "features.json"
        raise UserError(f"{where} holds {foreign}, which `uld prepare` does not write; {_again(folder)}")
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # TFDS raises various errors for objects that it did not write
        raise UserError(
            f"{' or '.join(_ABOUT[:2])} of {folder} is not as TFDS writes it ({_line(error)}); {_again(folder)}"
        ) from None


def _foreign(feature) -> str:
    """Name the first thing in a feature of features.json that `prepare` does not write; empty when there is none."""
    if not isinstance(feature, dict):
        return f"{feature!r} in place of a feature"
    name = feature.get("pythonClassName")
    if name not in _CLASSES:
        return f"the class {name}"
    if odd := sorted(set(feature) - _KEYS):
        return odd[0]
    group = feature.get("featuresDict", {})
    inner = group.get("features", {}) if isinstance(group, dict) else group
    if not isinstance(inner, dict):
        return f"{inner!r} in place of features"
    return next(filter(None, map(_foreign, inner.values())), "")


def _again(folder) -> str:
    return f"remove {folder} and write the data set again with `uld prepare`"


class Prepared(Source):
    """One split of a prepared data set in a `folder` that `find` returned. Raises UserError for any error in it."""

    def __init__(
        self,
        folder,
        split: str,
        *,
        frame_size: int,
        fit: str = "pad",
        scheme: str = NO_SCHEME,
        normaliser: str = "auto",
        sides: str = "auto",
        on_bad_file: str = "error",
    ):
        self._folder, self._split, self._fit, self.frame_size = str(folder), split, fit, frame_size
        self.where = self._folder
        info = _builder(self._folder).info
        if split not in info.splits:
            raise UserError(f"{folder} has no split {split}; it has {', '.join(sorted(info.splits))}")
        if not {"file", "image"} <= set(info.features):
            raise UserError(f"{folder} has no features `file` and `image`; write it with `prepare`")
        self._records = self._open()
        self._rows = range(len(self._records))
        with ThreadPoolExecutor(decode_threads()) as pool:
            heads = list(pool.map(self._head, self._rows))
        heads = self._usable(heads, on_bad_file)
        self.names = [h["file"] for h in heads]
        self.file_sizes = np.array([h["size"] for h in heads], np.int32)
        self.frame_maps = np.stack([coordinates.frame_map(h["size"], (frame_size, frame_size), fit) for h in heads])
        columns = info.features["columns"] if "columns" in info.features else ()  # noqa: SIM401 (it has no `get`)
        self.columns = {c: [h["columns"][c] for h in heads] for c in columns}
        count = None
        if "landmarks" in info.features:
            count = info.features["landmarks"].shape[0]
            landmarks = np.stack([h["landmarks"] for h in heads]).astype(np.float64)
            self.landmarks = coordinates.file_to_frame(landmarks, self.frame_maps).astype(np.float32)
            self.visible = np.isfinite(landmarks).all(-1)
            if "visible" in info.features:
                self.visible &= np.stack([h["visible"] for h in heads]).astype(bool)
        root = epath.Path(self._folder)
        if pf_pascal.find_list(root, split) is not None:
            rows = zip(self.names, self.columns["category"], strict=True)
            self.pairs = pf_pascal.pairs_of_rows(pf_pascal.read_pairs(root, split), rows)
        self.spec = _spec(info, count, scheme, normaliser)
        set_sides(self, sides)
        self.fingerprint = fingerprint_of(
            frame_size, fit, [(h["file"], h["size"], h["bytes"], h["checksum"]) for h in heads]
        )

    def image(self, row):
        """Decode the image of one row; see `Source`."""
        try:
            return decode.decode_image(self.encoded(row), self.frame_size, self._fit)[0]
        except BadFile as e:
            raise BadFile(os.path.join(self._folder, self.names[row]), e.why) from None

    def encoded(self, row):
        """Return the unchanged bytes of the image file."""
        if self._records is None:
            self._records = self._open()
        return self._record(self._rows[row])["image"]

    def broken(self):
        """Find the images that cannot be decoded; see `Source`."""
        return list(broken(self.names, lambda row: decode.check(self.encoded(row))).values())

    def _usable(self, heads, on_bad_file) -> list[dict]:
        """Return the heads of usable records; the others are named in an error, or left out."""
        names = [h.file if isinstance(h, BadFile) else h["file"] for h in heads]
        bad = sort_out(names, heads, lambda row: decode.check(self._record(row)["image"]), on_bad_file, self._folder)
        self.checked = on_bad_file == "skip"
        full = lambda b: BadFile(os.path.join(self._folder, b.file), b.why)
        self.skipped = tuple(Skipped(b.file, str(full(b))) for b in bad.values())
        self._rows = [row for row in self._rows if row not in bad]
        return [heads[row] for row in self._rows]

    def _record(self, number: int) -> dict:
        """Read one record. Raises UserError if the files on disk are damaged."""
        try:
            return self._records[number]
        except Exception as error:  # ArrayRecord raises various errors for damaged files
            raise UserError(
                f"record {number} of split {self._split} in {self._folder} cannot be read ({_line(error)}); its files "
                "are damaged, so write the data set again"
            ) from None

    def __getstate__(self):
        # Open files cannot be sent to another process, which opens its own.
        return self.__dict__ | {"_records": None}

    def _open(self):
        decoders = {"image": tfds.decode.SkipDecoding()}
        return _builder(self._folder).as_data_source(split=self._split, decoders=decoders)

    def _head(self, row) -> "dict | BadFile":
        record = dict(self._record(row))
        data, file = record.pop("image"), record["file"].decode()
        try:
            size = decode.image_size(data)
        except BadFile as e:
            return BadFile(file, e.why)
        columns = {c: v.decode() for c, v in record.get("columns", {}).items()}
        known = {
            "file": file,
            "columns": columns,
            "size": size,
            "bytes": len(data),
            "checksum": zlib.crc32(data[:4096]),
        }
        return record | known


def _line(error) -> str:
    return " ".join(str(error).split())[:200]


def _spec(info, landmarks, scheme, normaliser) -> DatasetSpec:
    """Return the written spec, changed by the given scheme and normaliser; `none` and `auto` change nothing."""
    splits = tuple(info.splits)
    written = dict(info.metadata or {})
    if not set(DatasetSpec._fields) - {"sides", "scheme", "partial"} <= set(
        written
    ):  # as in data sets of earlier versions
        return spec_of(info.name, landmarks, scheme=scheme, normaliser=normaliser, splits=splits)
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in written.items() if k in DatasetSpec._fields}
    spec = DatasetSpec(**tuples)._replace(splits=splits)
    if "scheme" not in written:  # earlier versions chose it by the number of points; its mirror partners identify it
        known = [name for name, one in SCHEMES.items() if one.mirror == spec.mirror]
        spec = spec._replace(scheme=known[0] if known else NO_SCHEME)
    if scheme in (NO_SCHEME, BY_NUMBER, spec.scheme):
        scheme = spec.scheme
    elif spec.sides == "image":
        raise UserError(
            f"the data set {info.name} was written by data.scheme={spec.scheme}, and its joints stand by the sides of "
            f"the image; read it with that scheme, or write it again with {scheme}"
        )
    if normaliser == "auto" and scheme == spec.scheme:
        return spec
    if normaliser == spec.normaliser and spec.eyes is not None and scheme == spec.scheme:
        return spec
    asked = spec_of(info.name, landmarks, scheme=scheme, normaliser=normaliser)
    mirror = spec.mirror if scheme == spec.scheme else asked.mirror
    return spec._replace(normaliser=asked.normaliser, eyes=asked.eyes, mirror=mirror, scheme=scheme)
