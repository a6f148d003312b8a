"""Runs as folders that hold what `uld train` writes: its config and a stage's closing checkpoint."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from uld_jax import config as config_lib
from uld_jax import convert, weights
from uld_jax.bank import Labels
from uld_jax.engine import checkpoint, workdir
from uld_jax.errors import UserError
from uld_jax.method import TrainState
from uld_jax.models import layers


def write_run(folder, seed=0, **changes):
    """A folder with a finished first stage, whose network is random; returns the stage and its parameters."""
    config = tiny.config("self_training", **{"stage1.zoom": 0.8} | changes)
    stage = config_lib.stage(config, "stage1").method
    image = jax.ShapeDtypeStruct((1, *stage._geometry.view, 3), jnp.float32)
    params = jax.jit(lambda key: layers.initialize(stage._net, key, image))(jax.random.key(seed))["params"]
    opt_state = jax.tree.map(jnp.zeros_like, params)
    labels = Labels(jnp.zeros((48, 6, 2)), jnp.zeros((48, 6)))
    state = TrainState(jnp.int32(20), params, opt_state=(opt_state,), aux=labels)
    workdir.write_json(folder / "config.json", config.to_dict())
    checkpoint.save_final(folder, "stage1", state, {"step": 20})
    return stage, params


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "st"
    return folder, write_run(folder)[1]


def refusal(src, tmp_path):
    with pytest.raises(UserError) as error:
        convert.convert("self_training", str(src), str(tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    return str(error.value)


@pytest.mark.parametrize("stage", ["", ":stage1"])
def test_network_and_view_are_read_and_nothing_else(run, tmp_path, stage):
    folder, params = run
    source = convert.convert("self_training", f"{folder}{stage}", str(tmp_path / "out"))
    expected = dict(width=16, descriptor_size=16, depth=1, downsample=2, image_size=32, zoom=0.8)
    assert {key: source[key] for key in expected} == expected
    assert source["file"] == f"st{stage}"
    assert source["parameters"] == sum(x.size for x in jax.tree.leaves(params))
    assert "owner" in source["licence"]
    found = weights.load(tmp_path / "out", "self_training")
    assert set(found) == {"params", "view"}
    jax.tree.map(np.testing.assert_array_equal, found["params"], params)
    # The same run again is the same conversion, whichever way the stage was named.
    assert convert.convert("self_training", f"{folder}{stage}", str(tmp_path / "out")) == source


@pytest.mark.parametrize("method", ["self_training_extended.Correspondence", "self_training.Correspondence"])
def test_runs_of_the_extended_variant_are_converted_too(run, tmp_path, method):
    """The second name is that of earlier versions, whose classes had a key `variant`."""
    folder, params = run
    shutil.copytree(folder, tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["stage1"] |= {"method": method} | ({} if "extended" in method else {"variant": "extended"})
    workdir.write_json(tmp_path / "run/config.json", config)
    convert.convert("self_training", str(tmp_path / "run"), str(tmp_path / "out"))
    found = weights.load(tmp_path / "out", "self_training")
    jax.tree.map(np.testing.assert_array_equal, found["params"], params)


def test_what_is_no_finished_run_is_refused(run, tmp_path):
    folder, _ = run
    other = tmp_path / "zeroshot"
    workdir.write_json(other / "config.json", tiny.config().to_dict())
    assert "is no run (FileNotFoundError at its config.json)" in refusal(tmp_path, tmp_path)
    assert "is no run" in refusal(tmp_path / "none", tmp_path)
    assert "of its stages zeroshot, detector there is none" in refusal(other, tmp_path)
    assert "no stage 'stage2' that is one" in refusal(f"{folder}:stage2", tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy/checkpoints/stage1/final")
    assert "holds no finished stage 'stage1'" in refusal(tmp_path / "copy", tmp_path)
    with pytest.raises(UserError, match="--core is of no use"):
        convert.convert("self_training", str(folder), str(tmp_path / "out"), core="x.pth")


def test_a_network_that_is_not_its_configs_is_refused(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["stage1"]["net"]["width"] = 24
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    assert "its config and its network differ (bn1/bias has shape (4,) and should have (6,))" in refusal(
        tmp_path / "run", tmp_path
    )


def test_a_network_that_is_not_finite_is_refused(run, tmp_path):
    folder, params = run
    shutil.copytree(folder, tmp_path / "run")
    params = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
    checkpoint.save_final(tmp_path / "run", "stage1", TrainState(jnp.int32(20), params), {})
    assert "not finite; the run has failed" in refusal(tmp_path / "run", tmp_path)
