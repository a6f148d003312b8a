import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import superpoint_test as reference
from tests.models import twins
from uld_jax import weights
from uld_jax.backbones.superpoint import SuperPoint
from uld_jax.errors import UserError
from uld_jax.method import Start
from uld_jax.methods.zeroshot import ZeroShot

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def twin():
    """Of the published size, surer of keypoints than random weights are."""
    twin = reference.make_twin()
    with torch.no_grad():
        twin.convPb.weight.mul_(8)
    return twin


@pytest.fixture(scope="module")
def frozen(twin):
    return twins.to_flax(twin.state_dict())["params"]


def photos(height, width):
    return np.random.default_rng(0).uniform(size=(2, height, width, 3)).astype(np.float32)


# Sides that are no multiples of 8, one by the smallest and one by the largest rest.
@pytest.mark.parametrize(("gray", "weight"), [("rgb", (0.299, 0.587, 0.114)), ("bgr_swapped", (0.114, 0.587, 0.299))])
def test_scores_and_descriptors_equal_torch(twin, frozen, gray, weight):
    images = photos(33, 47)
    found = jax.jit(SuperPoint(gray=gray).detect)(frozen, images)
    logits, descriptors = reference.expected(twin, (images @ np.float32(weight))[..., None])
    with torch.no_grad():
        share = torch.softmax(torch.tensor(logits.transpose(0, 3, 1, 2)), 1)[:, :64]
        score = torch.nn.functional.pixel_shuffle(share, 8)[:, 0].numpy()
    assert found.score.shape == (2, 33, 47)
    assert score.shape == (2, 32, 40)
    np.testing.assert_allclose(found.score[:, :32, :40], score, atol=1e-5)
    assert score.max() > 0.3
    assert not found.score[:, 32:].any()
    assert not found.score[:, :, 40:].any()
    twins.close(np.asarray(found.descriptors), descriptors, 1e-5)
    assert found.descriptors.shape == (2, 4, 5, 256)


def test_as_a_backbone(tmp_path, frozen):
    weights.save(tmp_path / "superpoint", "superpoint", frozen, {})
    backbone = SuperPoint(folder=str(tmp_path / "superpoint"))
    loaded = backbone.load()
    jax.tree.map(np.testing.assert_array_equal, loaded, frozen)
    images = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3)).astype(np.uint8)
    (tap,) = backbone.spec.taps
    found = jax.jit(backbone.features)(loaded, images)[tap.name]
    assert found.shape == (1, 16 // tap.stride, 24 // tap.stride, tap.channels)
    again = jax.jit(backbone.detect)(loaded, np.float32(images) / 255).descriptors
    np.testing.assert_allclose(found, again, atol=1e-6)
    method = ZeroShot(k=3, frame_size=16, backbone="superpoint.SuperPoint", backbone_kwargs={"folder": backbone.folder})
    state = jax.eval_shape(lambda x: method.init(jax.random.key(0), {"image": x}, loaded, Start(None, 1)), images)
    assert state.aux.centroids.shape == (3, tap.channels + 2)
    assert SuperPoint().spec.fingerprint != SuperPoint(gray="bgr_swapped").spec.fingerprint


def test_fingerprint_is_of_the_weights_not_their_place(tmp_path):
    named = {}
    for name, sha256 in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "source.json").write_text(json.dumps({"kind": "superpoint", "sha256": sha256}))
        named[name] = SuperPoint(folder=str(tmp_path / name)).spec.fingerprint
    assert named["a"] == named["b"]
    assert named["a"] != named["c"]


def test_bad_input_is_named(frozen):
    with pytest.raises(UserError, match=r"config\.weights\.superpoint is empty"):
        SuperPoint().load()
    with pytest.raises(UserError, match="gray of SuperPoint is 'luma'; use rgb or bgr_swapped"):
        SuperPoint(gray="luma")
    with pytest.raises(UserError, match="16 x 20 pixels; as a backbone it needs sides that are multiples of 8"):
        SuperPoint().features(frozen, jnp.zeros((1, 16, 20, 3), jnp.uint8))
