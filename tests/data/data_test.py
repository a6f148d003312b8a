"""Opening data sets and choosing readers by name."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from uld_jax import data, sharding
from uld_jax.data.folder import Folder
from uld_jax.data.pipeline import StreamReader
from uld_jax.data.resident import ResidentReader
from uld_jax.errors import UserError


@pytest.fixture
def photos(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_open_source_by_name(photos):
    source = data.open_source("folder", "train", data_dir=str(photos), frame_size=8)
    assert isinstance(source, Folder)
    assert len(source) == 3
    with pytest.raises(UserError, match=r"no data set celeba under"):
        data.open_source("celeba", "train", data_dir=photos, frame_size=8)
    with pytest.raises(UserError, match=r"data_dir is not set"):
        data.open_source("folder", "train", frame_size=8)
    with pytest.raises(UserError, match=r"folder has no option rows"):
        data.open_source("folder", "train", data_dir=photos, frame_size=8, rows=(1, 2))
    with pytest.raises(UserError, match=r"frame_size is 0"):
        data.open_source("folder", "train", data_dir=photos, frame_size=0)
    for name in ("folder", "synthetic"):
        with pytest.raises(UserError, match=r"data.fit is 'zoom'; use one of pad, crop, stretch"):
            data.open_source(name, "train", data_dir=photos, frame_size=8, fit="zoom")


def test_make_reader_by_kind(photos, monkeypatch):
    source = data.open_source("folder", "train", data_dir=photos, frame_size=8)
    mesh = sharding.make_mesh()
    batch = 2 * mesh.size
    assert isinstance(data.make_reader(source, mesh, batch, kind="stream"), StreamReader)
    assert isinstance(data.make_reader(source, mesh, batch), ResidentReader)
    monkeypatch.setattr("uld_jax.data.memory_budget", lambda mesh: 100)
    assert isinstance(data.make_reader(source, mesh, batch), StreamReader)
    monkeypatch.setattr("uld_jax.data.resident.memory_budget", lambda mesh: 100)
    with pytest.raises(UserError, match=r"use config.data.reader=stream"):
        data.make_reader(source, mesh, batch, kind="resident")
    with pytest.raises(UserError, match=r"data.reader is 'fast'"):
        data.make_reader(source, mesh, batch, kind="fast")
    with pytest.raises(UserError, match=r"batch_size 0 does not divide"):
        data.make_reader(source, mesh, 0)
    with pytest.raises(UserError, match=r"batch_size 3 does not divide over 2 devices; use 2 or 4"):
        data.make_reader(source, _Size(2), 3)


@dataclasses.dataclass
class _Size:
    size: int
