"""Writing in shards: going on after a stop, a second process, and no limit of memory or need of TensorFlow."""

import os
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

from tests import tiny
from uld_jax import data
from uld_jax.data.builders import prepared, writing
from uld_jax.errors import UserError

COUNT = 10


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Ten annotated photos, to be written in shards of four."""
    monkeypatch.setattr(writing, "SHARD", 4)
    monkeypatch.setattr(writing, "_AHEAD", 3)
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    lines = ["file,x0,y0"]
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 255, (9, 8, 3), np.uint8)).save(photos / f"{i}.png")
        lines.append(f"{i}.png,{i}.5,2.25")
    (photos / "train.csv").write_text("\n".join(lines))
    return data.open_source("folder", "train", data_dir=photos, frame_size=8)


def check(source, root):
    found = data.open_source("ten", "train", data_dir=root, frame_size=8)
    assert sorted(found.names) == source.names
    assert found.names != source.names
    rows = [source.names.index(name) for name in found.names]
    np.testing.assert_array_equal(found.images(), source.images(rows))
    np.testing.assert_allclose(found.landmarks, source.landmarks[rows], atol=1e-5)
    assert [path.name for path in (root / "ten").iterdir()] == ["1.0.0"]
    shards = sorted(path.name for path in (root / "ten/1.0.0").glob("*.array_record*"))
    assert shards == [f"ten-train.array_record-0000{i}-of-00003" for i in range(3)]


def test_a_split_of_several_shards(source, tmp_path):
    prepared.prepare("ten", {"train": source}, tmp_path / "out")
    check(source, tmp_path / "out")


def test_a_stopped_run_goes_on_behind_its_last_shard(source, tmp_path, monkeypatch):
    def stopping(row, encoded=source.encoded, seen=[]):  # noqa: B006 (it counts)
        seen.append(row)
        if len(seen) > 5:
            raise KeyboardInterrupt
        return encoded(row)

    monkeypatch.setattr(source, "encoded", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepared.prepare("ten", {"train": source}, tmp_path / "out")
    unfinished = tmp_path / "out/ten/incomplete.1.0.0"
    finished = unfinished / "ten-train.array_record-00000-of-00003"
    written = finished.stat().st_mtime_ns
    with pytest.raises(UserError, match="there is no data set ten"):
        data.open_source("ten", "train", data_dir=tmp_path / "out", frame_size=8)
    monkeypatch.undo()
    monkeypatch.setattr(writing, "SHARD", 4)
    read = []
    monkeypatch.setattr(source, "encoded", lambda row, encoded=source.encoded: read.append(row) or encoded(row))
    prepared.prepare("ten", {"train": source}, tmp_path / "out")
    assert len(read) == COUNT - 4
    assert (tmp_path / "out/ten/1.0.0" / finished.name).stat().st_mtime_ns == written
    check(source, tmp_path / "out")


def test_shards_of_other_images_or_points_are_not_kept(source, tmp_path):
    unfinished = epath.Path(tmp_path / "out/ten/incomplete.1.0.0")
    writing._start(unfinished, {"train": source})
    (unfinished / "ten-train.array_record-00000-of-00003").write_text("old")
    writing._start(unfinished, {"train": source})
    assert len(list(unfinished.iterdir())) == 2
    source.landmarks = source.landmarks + 1
    writing._start(unfinished, {"train": source})
    assert [path.name for path in unfinished.iterdir()] == ["state.json"]


def test_a_second_process_is_kept_out(source, tmp_path):
    program = (
        "import sys, time; from etils import epath; from uld_jax.data.builders import writing;"
        "lock = writing._alone(epath.Path(sys.argv[1]), 'lock.1.0.0'); lock.__enter__(); print('held', flush=True);"
        "time.sleep(60)"
    )
    root = tmp_path / "out"
    (root / "ten").mkdir(parents=True)
    other = subprocess.Popen(
        [sys.executable, "-c", program, root / "ten"], stdout=subprocess.PIPE, text=True, env=tiny.environment()
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"another `uld prepare` is writing to .*/ten; wait for its end"):
            prepared.prepare("ten", {"train": source}, root)
    finally:
        other.kill()
        other.wait()
    assert os.path.exists(root / "ten/lock.1.0.0")  # what a killed process leaves holds nothing
    prepared.prepare("ten", {"train": source}, root)
    check(source, root)
