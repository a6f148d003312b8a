"""The run's folder: who may come back to it, and what survives an interruption."""

import json
import os
import pathlib
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from uld_jax.engine import workdir
from uld_jax.errors import UserError
from uld_jax.method import TrainState


def config(**changes):
    out = ConfigDict(
        {
            "seed": 0,
            "data_dir": "a",
            "log_every": 10,
            "keep_last": 2,
            "data": {"rows": (4, 2), "frame_size": 8},
            "eval": {"train_images": 9},
            "stages": ("one", "two"),
            "one": {"steps": 0, "kwargs": {"bins": 8}},
            "two": {"steps": 10, "rate": 0.5},
        }
    )
    out.update_from_flattened_dict(changes)
    return out.lock()


def saved(folder):
    return json.loads((folder / "config.json").read_text())


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_folder_belongs_to_the_first_configuration(tmp_path):
    folder = tmp_path / "deep" / "run"
    workdir.claim(folder, config(), write=False)
    assert not folder.exists()
    workdir.claim(folder, config())
    workdir.claim(folder, config())  # tuples come back from JSON as lists; that is no difference
    read = workdir.read_config(folder)
    assert read.is_locked
    assert read.two.steps == 10
    workdir.claim(folder, read)


@pytest.mark.parametrize(
    ("key", "value"),
    [("data_dir", "b"), ("log_every", 3), ("keep_last", 9), ("eval.train_images", 0), ("two.steps", 11)],
)
def test_some_values_may_change(tmp_path, key, value):
    workdir.claim(tmp_path, config())
    workdir.claim(tmp_path, config(**{key: value}))
    assert workdir.read_config(tmp_path).to_dict() == json.loads(json.dumps(config(**{key: value}).to_dict()))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", 1, "seed=0, not 1"),
        ("data.rows", (4, 3), r"data\.rows=\[4, 2\], not \[4, 3\]"),
        ("one.kwargs.bins", 9, r"one\.kwargs\.bins=8, not 9"),
        ("one.steps", 1, r"one\.steps=0, not 1"),  # not the last stage
        ("two.steps", 9, r"two\.steps=10, not 9"),  # not more
        ("two.rate", 0.25, r"two\.rate=0\.5, not 0\.25"),
        ("stages", ("two",), "stages="),
    ],
)
def test_other_differences_are_refused_by_name(tmp_path, key, value, said):
    workdir.claim(tmp_path, config())
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(UserError, match=said):
        workdir.claim(tmp_path, config(**{key: value}))
    assert (tmp_path / "config.json").read_bytes() == before


def test_keys_that_came_or_went_are_refused(tmp_path):
    workdir.claim(tmp_path, config())
    more = config().copy_and_resolve_references()
    with more.unlocked():
        more.two.momentum = 0.9
    with pytest.raises(UserError, match=r"two\.momentum=None, not 0\.9"):
        workdir.claim(tmp_path, more)
    less = config().copy_and_resolve_references()
    with less.unlocked():
        del less.two["rate"]
    with pytest.raises(UserError, match=r"two\.rate=0\.5, not None"):
        workdir.claim(tmp_path, less)


def test_json_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file.json"
    workdir.write_json(path, {"b": np.float32(0.5), "a": jnp.arange(2), "c": (1, pathlib.PurePosixPath("x"))})
    assert json.loads(path.read_text()) == {"a": [0, 1], "b": 0.5, "c": [1, "x"]}
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
    before = path.read_bytes()

    def fail(*args):
        raise OSError("the power went")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="power"):
        workdir.write_json(path, {"a": 1})
    assert path.read_bytes() == before


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing; give a folder that"):
        workdir.read_config(tmp_path / "absent")
    (tmp_path / "run.json").write_text('{"seed": ')
    with pytest.raises(UserError, match=r"run\.json is not valid JSON"):
        workdir.read_json(tmp_path / "run.json")


def test_metrics_are_one_object_a_line(tmp_path):
    metrics = workdir.Metrics(tmp_path, 0)
    metrics.write(
        1, "two", loss=np.float32(0.5), rate=float("nan"), worst=np.float64(-np.inf), whole=True, n=np.int64(3)
    )
    metrics.write(2, "two", loss=0.25, per_landmark=np.arange(2.0), note={"a": [1]})
    assert metrics.count == 2
    one, two = lines(tmp_path)  # on disk before any flush
    assert one.pop("time") > 0
    assert 0 <= one.pop("seconds") <= two.pop("seconds") < 60
    assert one == {"step": 1, "stage": "two", "loss": 0.5, "rate": None, "worst": None, "whole": True, "n": 3}
    assert two["per_landmark"] == [0, 1]
    assert two["note"] == {"a": [1]}
    metrics.close()
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert list((tmp_path / "tb").glob("events*"))


def test_a_resumed_run_goes_on_where_its_checkpoint_was(tmp_path):
    metrics = workdir.Metrics(tmp_path, 0)
    for step in range(1, 6):
        metrics.write(step, "two", loss=float(step))
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    metrics = workdir.Metrics(tmp_path, 3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    metrics.write(4, "two", loss=-4.0)
    assert metrics.count == 4
    metrics.close()
    assert [line["loss"] for line in lines(tmp_path)] == [1, 2, 3, -4]


def test_seconds_leave_out_what_lies_between_a_stop_and_its_resumption(tmp_path, monkeypatch):
    clock = iter([100.0, 105.0, 110.0, 140.0, 9000.0, 9003.0])
    monkeypatch.setattr(workdir, "time", types.SimpleNamespace(monotonic=lambda: next(clock), time=time.time))
    metrics = workdir.Metrics(tmp_path, 0)
    for _ in range(3):
        metrics.write(1, "two", loss=1.0)
    metrics.close()
    metrics = workdir.Metrics(tmp_path, 2)  # the third line's work was lost
    metrics.write(2, "two", loss=1.0)
    metrics.close()
    assert [line["seconds"] for line in lines(tmp_path)] == [5, 10, 13]


def test_only_the_line_that_was_being_written_is_lost(tmp_path):
    metrics = workdir.Metrics(tmp_path, 0)
    metrics.write(1, "two", loss=1.0)
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    metrics = workdir.Metrics(tmp_path, 1)
    metrics.write(2, "two", loss=2.0)
    metrics.close()
    assert [line["loss"] for line in lines(tmp_path)] == [1, 2]


def test_a_remote_file_is_rewritten_at_flush(tmp_path, monkeypatch):
    def local(path):
        return pathlib.Path(str(path).replace("gs://", f"{tmp_path}/"))

    monkeypatch.setattr(workdir, "epath", types.SimpleNamespace(Path=local))
    metrics = workdir.Metrics("gs://bucket/run", 0)
    folder = tmp_path / "bucket" / "run"
    metrics.write(1, "two", loss=1.0)
    metrics.write(2, "two", loss=2.0)
    assert lines(folder) == []
    metrics.flush()
    metrics.write(3, "two", loss=3.0)
    assert [line["step"] for line in lines(folder)] == [1, 2]
    metrics.close()
    assert [line["step"] for line in lines(folder)] == [1, 2, 3]
    resumed = workdir.Metrics("gs://bucket/run", 2)
    resumed.write(3, "two", loss=-3.0)
    resumed.close()
    assert [line["loss"] for line in lines(folder)] == [1, 2, -3]


def test_other_processes_count_but_do_not_write(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    metrics = workdir.Metrics(tmp_path / "run", 2)
    metrics.write(3, "two", loss=1.0)
    metrics.close()
    assert metrics.count == 3
    workdir.write_json(tmp_path / "file.json", {})
    assert list(tmp_path.iterdir()) == []


def test_the_hash_of_what_was_learned_covers_labels_and_statistics():
    """Stages without networks learn labels alone; the optimiser's numbers are not the result."""
    first = TrainState(step=np.int32(3), params={"w": np.ones(2)}, model_state={"mean": np.ones(1)}, aux=(np.ones(3),))
    same = first.replace(step=np.int32(4), opt_state={"mu": np.ones(2)})
    assert workdir.learned_hash(first) == workdir.learned_hash(same)
    others = [first.replace(**{name: {"w": np.zeros(2)}}) for name in ("params", "model_state", "aux")]
    assert len({workdir.learned_hash(state) for state in [first, *others]}) == 4
