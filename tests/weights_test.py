"""Folders of converted weights, and the config's key that names them."""

import dataclasses
import json
import os
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import tiny
from uld_jax import config as config_lib
from uld_jax import weights
from uld_jax.engine import workdir
from uld_jax.errors import UserError
from uld_jax.method import Stage

SOURCE = dict(file="a.pth", sha256="123", entries=4, licence="none")


def tree(seed=0):
    rng = np.random.default_rng(seed)
    norm = {"mean": rng.normal(size=3).astype(np.float32), "var": rng.normal(size=3)}
    return {
        "params": {"conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 1, 3)), jnp.float32)}, "b": np.ones(3)},
        "batch_stats": {"norm": norm},
    }


def test_what_is_saved_is_loaded(tmp_path):
    said = weights.save(tmp_path / "deep" / "fan", "fan", tree(), SOURCE)
    assert said == SOURCE | dict(kind="fan", parameters=30, crc32=said["crc32"])
    assert json.loads((tmp_path / "deep/fan/source.json").read_text()) == said
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["fan"]
    assert sorted(p.name for p in (tmp_path / "deep/fan").iterdir()) == ["params", "source.json"]
    found = weights.load(tmp_path / "deep" / "fan", "fan")
    for array, expected in zip(jax.tree.leaves(found), jax.tree.leaves(tree()), strict=True):
        assert type(array) is np.ndarray
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, np.asarray(expected, np.float32))
    assert jax.tree.structure(found) == jax.tree.structure(tree())
    # Of several networks, statistics do not count either; a network alone counts whole.
    both = {"first": tree(), "second": {"params": {"bias": np.ones(4)}}}
    assert weights.save(tmp_path / "both", "two", both, SOURCE)["parameters"] == 34
    assert weights.save(tmp_path / "one", "one", tree()["params"], SOURCE)["parameters"] == 30


def test_paths_may_be_relative_and_start_at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    weights.save("fan", "fan", tree(), SOURCE)
    weights.save("~/fan", "fan", tree(), SOURCE)
    assert (tmp_path / "home/fan/source.json").exists()
    for path in ("fan", "./fan", "~/fan"):
        assert "params" in weights.load(path, "fan")


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / "fan").mkdir()  # an empty folder is nobody's
    said = weights.save(tmp_path / "fan", "fan", tree(), SOURCE)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "fan").rglob("*")}
    again = weights.save(tmp_path / "fan", "fan", tree(), SOURCE | dict(file="moved.pth"))
    assert again == said
    for kind, seed, source in (
        ("vgg16", 0, SOURCE),
        ("fan", 0, SOURCE | dict(sha256="456")),
        ("fan", 0, SOURCE | dict(core_sha256="456")),
        ("fan", 1, SOURCE),
    ):
        with pytest.raises(UserError, match=r"exists and holds weights of kind 'fan' from a\.pth; give another folder"):
            weights.save(tmp_path / "fan", kind, tree(seed), source)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "fan").rglob("*")} == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    for name in ("photos", "photos/a.jpg"):
        with pytest.raises(UserError, match="exists and holds something else"):
            weights.save(tmp_path / name, "fan", tree(), SOURCE)
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fan", "photos"]


def test_half_a_folder_is_never_seen(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("the disk is full")

    rename = os.rename
    last = lambda part, to: fail() if str(to) == str(tmp_path / "fan") else rename(part, to)
    for where, name, value in (
        (ocp.Checkpointer, "save", fail),
        (weights, "json", types.SimpleNamespace(dumps=fail)),
        (os, "rename", last),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            with pytest.raises(OSError, match="the disk is full"):
                weights.save(tmp_path / "fan", "fan", tree(), SOURCE)
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "fan.part" / "params").mkdir(parents=True)  # left by a killed process
    weights.save(tmp_path / "fan", "fan", tree(), SOURCE)
    assert [p.name for p in tmp_path.iterdir()] == ["fan"]
    assert "params" in weights.load(tmp_path / "fan", "fan")


def test_what_cannot_be_loaded_is_one_sentence(tmp_path):
    def refusal(path, kind="fan"):
        with pytest.raises(UserError) as error:
            weights.load(path, kind)
        assert "\n" not in str(error.value)
        assert f"uld convert --kind={kind} --src=FILE --dst=DIR" in str(error.value)
        return str(error.value)

    folder = tmp_path / "fan"
    assert "config.weights.fan is empty" in refusal("")
    assert f"config.weights.fan={folder} does not exist" in refusal(folder)
    assert "is not a folder of converted weights" in refusal(tmp_path)
    weights.save(folder, "fan", tree(), SOURCE)
    assert "holds weights of kind 'fan'" in refusal(folder, "vgg16")
    written = (folder / "source.json").read_text()
    for text in ("", "[]", '{"kind": ', '{"kind": 3}'):
        (folder / "source.json").write_text(text)
        assert "is not a folder of converted weights" in refusal(folder)
    (folder / "source.json").write_text(written)
    data = [p for p in (folder / "params").rglob("*") if p.is_file() and "/d/" in str(p)]
    assert data
    contents = [path.read_bytes() for path in data]
    for path in data:
        path.write_bytes(b"")
    assert "is damaged" in refusal(folder)
    for path, content in zip(data, contents, strict=True):
        path.write_bytes(content)
    assert "params" in weights.load(folder, "fan")
    # Numbers of another save stand for a changed byte that the file format does not notice.
    weights.save(tmp_path / "other", "fan", tree(1), SOURCE)
    (folder / "params").rename(tmp_path / "params")
    assert "is damaged" in refusal(folder)
    (tmp_path / "other/params").rename(folder / "params")
    assert "is damaged (other numbers than were saved)" in refusal(folder)


@dataclasses.dataclass(frozen=True)
class Reader(Stage):
    """A method that wants weights."""

    k: int
    weights: Any = ()


def test_a_method_with_such_a_field_is_given_the_folders(monkeypatch):
    monkeypatch.setattr(config_lib, "find_class", lambda *_: Reader)
    config = config_lib.Config(tiny.config(**{"weights.vgg16": "some/folder"}).to_dict())
    config.one = {"method": "any.Reader", "steps": 0}
    config.stages = ("one",)
    method = config_lib.stage(config, "one").method
    assert dict(method.weights) == dict.fromkeys(config.weights, "") | dict(vgg16="some/folder")
    hash(method)
    del config["weights"]  # as in the folder of a run from before there were any
    assert config_lib.stage(config, "one").method.weights == ()
    assert "weights" not in config_lib.defaults("methods", "any.Reader")


def test_every_kind_has_its_key_in_the_config():
    from uld_jax.convert import KINDS

    assert set(tiny.config().weights) == set(KINDS)


def test_a_run_goes_on_with_weights_that_moved(tmp_path):
    old = tiny.config(**{"weights.fan": "here"})
    workdir.claim(tmp_path, old)
    workdir.claim(tmp_path, tiny.config(**{"weights.fan": "there"}))
    with pytest.raises(UserError, match=r"weights\.fan='there', not ''"):
        workdir.claim(tmp_path, tiny.config())
    with pytest.raises(UserError, match=r"weights\.vgg16='', not 'there'"):
        workdir.claim(tmp_path, tiny.config(**{"weights.fan": "there", "weights.vgg16": "there"}))
    before = json.loads((tmp_path / "config.json").read_text())
    del before["weights"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    workdir.claim(tmp_path, tiny.config())
