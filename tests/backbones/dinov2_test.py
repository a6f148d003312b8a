import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.models import dinov2_test as reference
from tests.models import twins
from uld_jax import config as config_lib
from uld_jax import convert, weights
from uld_jax.backbones.dinov2 import Dinov2
from uld_jax.errors import UserError

MEAN, DEVIATION = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def twin():
    return reference.make_twin(registers=4)


@pytest.fixture(scope="module")
def folder(twin, tmp_path_factory):
    """Its weights, converted from a folder of transformers."""
    root = tmp_path_factory.mktemp("weights")
    twin.save_pretrained(root / "src")
    convert.convert("dinov2", str(root / "src"), str(root / "dinov2"))
    return root / "dinov2"


def photos(height, width):
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3)).astype(np.uint8)


def resized(images, height, width):
    """By Pillow's bicubic filter, which transformers prepares images with; not rounded to bytes as there."""
    planes = [[Image.fromarray(np.float32(p)).resize((width, height), Image.Resampling.BICUBIC) for p in image]
              for image in images.transpose(0, 3, 1, 2)]  # fmt: skip
    return np.array([[np.asarray(p) for p in image] for image in planes]).transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("sides", "image_size", "size"), [((40, 40), 98, (98, 98)), ((70, 112), 56, (42, 56)), ((42, 56), 0, (42, 56))]
)
def test_features_equal_transformers(twin, folder, sides, image_size, size):
    backbone = Dinov2(str(folder), taps=(0, -1), image_size=image_size)
    images = photos(*sides)
    found = jax.jit(backbone.features)(backbone.load(), images)
    assert list(found) == [tap.name for tap in backbone.spec.taps] == ["block0", "block2"]
    theirs = reference.expected(twin, (resized(images, *size) / 255 - MEAN) / DEVIATION)
    for tap, expected in zip(backbone.spec.taps, (theirs[0], theirs[-1]), strict=True):
        assert found[tap.name].dtype == jnp.float32
        assert found[tap.name].shape == (2, size[0] // tap.stride, size[1] // tap.stride, tap.channels)
        twins.close(np.asarray(found[tap.name]), expected, 1e-5)


def test_sides_are_rounded_to_patches():
    size = Dinov2(image_size=0)._size
    assert [size(*sides) for sides in ((20, 22), (14, 3), (160, 160))] == [(14, 28), (14, 14), (154, 154)]
    assert Dinov2()._size(160, 160) == (448, 448)
    assert Dinov2(image_size=224)._size(100, 200) == (112, 224)


def test_fingerprint_is_of_the_weights_not_their_place(folder, tmp_path):
    first = Dinov2(str(folder)).spec
    source = weights.read_source(folder, "dinov2")
    assert weights.save(tmp_path / "copy", "dinov2", weights.load(folder, "dinov2"), source) == source
    assert Dinov2(str(tmp_path / "copy")).spec == first
    changes = [dict(image_size=224), dict(taps=(1,)), dict(offset=0.1), dict(compute="bfloat16")]
    others = {Dinov2(str(folder), **change).spec.fingerprint for change in changes}
    (tmp_path / "copy" / "source.json").write_text(json.dumps(source | {"sha256": "0"}))
    others |= {Dinov2(str(tmp_path / "copy")).spec.fingerprint, first.fingerprint}
    assert len(others) == len(changes) + 2


def test_bad_input_is_named(folder):
    with pytest.raises(UserError, match=r"config\.weights\.dinov2 is empty"):
        Dinov2().load()
    with pytest.raises(UserError, match=r"config\.weights\.dinov2 is empty"):
        _ = Dinov2().spec
    for taps in ((3,), (-4,), (2, -1)):
        with pytest.raises(UserError, match="name blocks from 0 to 2, or -1 for the last, each once"):
            _ = Dinov2(str(folder), taps=taps).spec
    with pytest.raises(UserError, match="taps of Dinov2 is empty"):
        Dinov2(taps=())
    with pytest.raises(UserError, match="image_size of Dinov2 is 10; use 0, or 14 or more"):
        Dinov2(image_size=10)
    with pytest.raises(UserError, match="compute of Dinov2 is 'float16'; use float32 or bfloat16"):
        Dinov2(compute="float16")


@pytest.mark.slow
def test_zeroshot_finds_landmarks_in_its_features(twin, tmp_path, uld):
    """From a folder of transformers to landmarks, by commands alone."""

    twin.save_pretrained(tmp_path / "src")
    converted = tmp_path / "dinov2"
    code, out, err = uld("convert", "--kind=dinov2", f"--src={tmp_path / 'src'}", f"--dst={converted}")
    assert code == 0, err
    assert f"--config.weights.dinov2={converted}" in out
    spec = f"--config={tiny.ROOT}/configs/zeroshot.py:dataset=synthetic,k=4,preset=tiny,backbone=dinov2.Dinov2"
    kwargs = ("--config.zeroshot.backbone_kwargs.image_size=56", "--config.zeroshot.backbone_kwargs.taps=(1, -1)")
    train = ("train", spec, f"--workdir={tmp_path / 'run'}", '--config.stages=("zeroshot",)', *kwargs)
    code, out, err = uld(*train)
    assert code == 1
    assert "config.weights.dinov2 is empty" in err
    code, out, err = uld(*train, f"--config.weights.dinov2={converted}")
    assert code == 0, err
    metrics = json.loads((tmp_path / "run/eval/test/metrics.json").read_text())
    assert 0 < metrics["forward_nme"] < 100
    # The same by a flag in place of the argument, which leaves the usual backbone's hyper-parameters behind.
    config = tiny.config(**{"zeroshot.backbone": "dinov2.Dinov2", "weights.dinov2": str(converted)})
    assert config_lib.stage(config, "zeroshot").method._backbone == Dinov2(str(converted))
