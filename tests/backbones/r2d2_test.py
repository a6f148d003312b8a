import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.models import r2d2_test as reference
from uld_jax import convert, weights
from uld_jax.backbones.r2d2 import R2D2
from uld_jax.errors import UserError
from uld_jax.method import Start
from uld_jax.methods.zeroshot import ZeroShot
from uld_jax.models import resnet

torch = pytest.importorskip("torch")

MEAN, DEVIATION = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))


def made(**sizes):
    return convert.r2d2.convert(reference.entries(reference.make_twin(width=4, **sizes)), where="made")


def test_the_published_weights_on_real_faces_equal_torch(weights_folder, faces, tmp_path):
    src = weights_folder / "r2d2_WASF_N16.pt"
    if not src.exists():
        pytest.skip(f"there is no {src}")
    state = torch.load(src, weights_only=True)["state_dict"]
    twin = reference.Twin().eval()
    twin.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    names = sorted((faces / "test").glob("*.jpg"))[:40:20]
    images = np.stack([np.asarray(Image.open(name).convert("RGB").resize((96, 96))) for name in names])
    theirs = reference.expected(twin, (np.float32(images) / 255 - MEAN) / DEVIATION)

    convert.convert("r2d2", str(src), str(tmp_path / "r2d2"))
    backbone = R2D2(str(tmp_path / "r2d2"), repeatability=0.0, reliability=0.0)
    frozen = backbone.load()
    found = jax.jit(backbone.detect)(frozen, np.float32(images) / 255)
    np.testing.assert_allclose(found.descriptors, theirs.descriptors, atol=1e-4)
    np.testing.assert_allclose(found.score, theirs.repeatability * theirs.reliability, atol=1e-4)
    described = jax.jit(backbone.features)(frozen, images)["descriptors"]
    np.testing.assert_allclose(described, theirs.descriptors, atol=1e-4)

    # The published thresholds: both maps count, and neither finds all or nothing in a face.
    strict = jax.jit(R2D2().detect)(frozen, np.float32(images) / 255).score
    least = np.minimum(theirs.repeatability, theirs.reliability)
    assert 0.001 < (least >= 0.7).mean() < 0.5
    clear = np.abs(least - 0.7) > 1e-4
    np.testing.assert_array_equal(strict[clear] > 0, least[clear] >= 0.7)
    kept = np.asarray(strict > 0)
    np.testing.assert_allclose(strict[kept], found.score[kept], atol=1e-6)


def test_each_confidence_has_its_threshold():
    params, images = made(), np.random.default_rng(0).uniform(size=(1, 12, 12, 3)).astype(np.float32)
    whole = reference.r2d2.of(params).apply({"params": params}, resnet.normalize(jnp.asarray(images)))
    middle = [float(np.median(confidence)) for confidence in whole[1:]]
    for repeatability, reliability in ((middle[0], 0.0), (0.0, middle[1]), middle):
        found = R2D2("", repeatability, reliability).detect(params, images).score
        kept = (whole.repeatability >= repeatability) & (whole.reliability >= reliability)
        assert 0.05 < kept.mean() < 0.95
        np.testing.assert_allclose(found, np.where(kept, whole.repeatability * whole.reliability, 0), atol=1e-6)


def test_the_fast_variant_leaves_out_the_last_row():
    params = made(fast=True)
    found = jax.eval_shape(R2D2().detect, params, jax.ShapeDtypeStruct((1, 13, 16, 3), jnp.float32))
    assert found.score.shape == (1, 13, 16)
    assert found.descriptors.shape == (1, 12, 16, 128)
    with pytest.raises(UserError, match="13 x 16 pixels; as a backbone it needs even sides"):
        R2D2().features(params, jnp.zeros((1, 13, 16, 3), jnp.uint8))


def test_as_a_backbone(tmp_path):
    weights.save(tmp_path / "r2d2", "r2d2", made(), {})
    backbone = R2D2(folder=str(tmp_path / "r2d2"))
    (tap,) = backbone.spec.taps
    frozen, images = backbone.load(), jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.uint8)
    found = jax.eval_shape(backbone.features, frozen, images)[tap.name]
    assert found.shape == (1, 16 // tap.stride, 16 // tap.stride, tap.channels)
    method = ZeroShot(k=3, frame_size=16, backbone="r2d2.R2D2", backbone_kwargs={"folder": backbone.folder})
    state = jax.eval_shape(lambda x: method.init(jax.random.key(0), {"image": x}, frozen, Start(None, 1)), images)
    assert state.aux.centroids.shape == (3, tap.channels + 2)
    assert backbone.spec.fingerprint != R2D2(folder=backbone.folder, reliability=0.5).spec.fingerprint


def test_fingerprint_is_of_the_weights_not_their_place(tmp_path):
    named = {}
    for name, sha256 in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "source.json").write_text(json.dumps({"kind": "r2d2", "sha256": sha256}))
        named[name] = R2D2(folder=str(tmp_path / name)).spec.fingerprint
    assert named["a"] == named["b"]
    assert named["a"] != named["c"]


def test_without_weights_one_sentence_says_so():
    with pytest.raises(UserError, match=r"config\.weights\.r2d2 is empty"):
        R2D2().load()
