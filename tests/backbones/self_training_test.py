import doctest
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.convert import self_training_test as runs
from uld_jax import config as config_lib
from uld_jax import convert, weights
from uld_jax.backbones import self_training
from uld_jax.backbones.self_training import SelfTraining
from uld_jax.errors import UserError
from uld_jax.ops import keypoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The stage, its parameters, and the folder that they were converted to."""
    root = tmp_path_factory.mktemp("st")
    stage, params = runs.write_run(root / "run", **{"stage1.zoom": 1.0})
    convert.convert("self_training", str(root / "run"), str(root / "weights"))
    return stage, params, root


def photos(side):
    return np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.uint8)


def test_examples():
    assert doctest.testmod(self_training) == (0, 1)


def test_maps_are_those_of_the_stage_where_it_saw_the_whole_frame(trained):
    stage, params, root = trained
    backbone = SelfTraining(str(root / "weights"), taps=self_training.TAPS)
    images = photos(40)
    found = jax.jit(backbone.features)(backbone.load(), images)
    assert tuple(tap.name for tap in backbone.spec.taps) == self_training.TAPS
    assert set(found) == set(self_training.TAPS)
    out = jax.jit(lambda p: stage._net.apply({"params": p}, stage._geometry.look(images)))(params)
    expected = [keypoints.l2_normalize(out.descriptors), out.taps["hourglass"], out.features]
    for tap, map_ in zip(backbone.spec.taps, expected, strict=True):
        assert found[tap.name].shape == (2, 32 // tap.stride, 32 // tap.stride, tap.channels)
        np.testing.assert_allclose(found[tap.name], map_, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found["descriptors"], axis=-1), 1, atol=1e-5)


def test_the_whole_image_is_seen_at_the_scale_of_training_with_its_border_going_on(tmp_path):
    """With a zoom of 0.8 the frame is 40 pixels, the hourglass wants a multiple of 16, and sees 48."""
    changes = {"stage1.zoom": 0.8, "stage1.depth": 3}
    stage, params = runs.write_run(tmp_path / "run", **changes)
    convert.convert("self_training", str(tmp_path / "run"), str(tmp_path / "weights"))
    backbone = SelfTraining(str(tmp_path / "weights"), taps=("descriptors",))
    images = photos(40)  # one pixel of the frame is one of the view
    found = jax.jit(backbone.features)(backbone.load(), images)["descriptors"]
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="edge") / np.float32(255)
    out = jax.jit(lambda p: stage._net.apply({"params": p}, padded).descriptors)(params)
    assert found.shape == (2, 20, 20, 16)
    np.testing.assert_allclose(found, keypoints.l2_normalize(out[:, 2:-2, 2:-2]), atol=1e-4)
    finer = SelfTraining(str(tmp_path / "weights"), image_size=64)
    shapes = jax.eval_shape(finer.features, backbone.load(), images)
    assert {name: m.shape for name, m in shapes.items()} == dict.fromkeys(("descriptors", "hourglass"), (2, 32, 32, 16))


def test_fingerprint_is_of_the_weights_not_their_place(trained, tmp_path):
    folder = trained[2] / "weights"
    first, source = SelfTraining(str(folder)).spec, weights.read_source(folder, "self_training")
    assert weights.save(tmp_path / "copy", "self_training", weights.load(folder, "self_training"), source) == source
    assert SelfTraining(str(tmp_path / "copy")).spec == first
    changes = [dict(image_size=64), dict(taps=("features",)), dict(compute="bfloat16")]
    others = {SelfTraining(str(folder), **change).spec.fingerprint for change in changes}
    (tmp_path / "copy" / "source.json").write_text(json.dumps(source | {"sha256": "0"}))
    others |= {SelfTraining(str(tmp_path / "copy")).spec.fingerprint, first.fingerprint}
    assert len(others) == len(changes) + 2


def test_bad_input_is_named(trained):
    with pytest.raises(UserError, match=r"config\.weights\.self_training is empty"):
        SelfTraining().load()
    for change, words in (
        (dict(taps=()), "taps of SelfTraining are"),
        (dict(taps=("low1",)), "use descriptors, hourglass, features, each once at most"),
        (dict(taps=["features", "features"]), "taps of SelfTraining are"),
        (dict(image_size=-1), "image_size of SelfTraining is -1"),
        (dict(compute="float16"), "compute of SelfTraining is 'float16'"),
    ):
        with pytest.raises(UserError, match=words):
            SelfTraining(**change)
    backbone = SelfTraining(str(trained[2] / "weights"))
    with pytest.raises(UserError, match="images of 40 x 32 pixels; use square ones"):
        jax.eval_shape(backbone.features, backbone.load(), jnp.zeros((1, 40, 32, 3), jnp.uint8))


def test_a_config_names_it_by_its_kind(trained):
    folder = str(trained[2] / "weights")
    config = tiny.config(more=",backbone=self_training.SelfTraining", **{"weights.self_training": folder})
    config.zeroshot.backbone_kwargs.taps = ("descriptors",)
    assert config_lib.stage(config, "zeroshot").method._backbone == SelfTraining(folder, taps=("descriptors",))


@pytest.mark.slow
def test_zeroshot_finds_landmarks_in_its_features(trained, tmp_path, uld):
    """From a run to landmarks, by commands alone; its own training is `tests/methods/self_training_test.py`'s."""

    converted = tmp_path / "weights"
    code, out, err = uld("convert", "--kind=self_training", f"--src={trained[2] / 'run'}:stage1", f"--dst={converted}")
    assert code == 0, err
    assert f"--config.weights.self_training={converted}" in out
    spec = f"{tiny.ROOT}/configs/zeroshot.py:dataset=synthetic,k=4,preset=tiny,backbone=self_training.SelfTraining"
    train = ("train", f"--config={spec}", f"--workdir={tmp_path / 'run'}", '--config.stages=("zeroshot",)')
    code, out, err = uld(*train)
    assert code == 1
    assert "config.weights.self_training is empty" in err
    code, out, err = uld(*train, f"--config.weights.self_training={converted}")
    assert code == 0, err
    metrics = json.loads((tmp_path / "run/eval/test/metrics.json").read_text())
    assert 0 < metrics["forward_nme"] < 100
