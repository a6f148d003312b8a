import jax
import numpy as np
import pytest

from uld_jax import config as config_lib
from uld_jax.backbones import build
from uld_jax.backbones.corners import Corners
from uld_jax.backbones.gradient import GradientHistograms
from uld_jax.errors import UserError
from uld_jax.methods.zeroshot import ZeroShot

PATH = "corners.Corners+gradient.GradientHistograms"


def images(count=2, side=32):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def test_maps_are_those_of_the_parts():
    joined = build.backbone(PATH, "b", (("gradient", (("bins", 4),)),))
    frozen = joined.load()
    found = jax.jit(joined.features)(frozen, images())
    parts = {"corners": Corners(), "gradient": GradientHistograms(bins=4)}
    expected = {
        f"{name}/{tap}": value
        for name, part in parts.items()
        for tap, value in jax.jit(part.features)(part.load(), images()).items()
    }
    assert set(found) == set(expected) == {tap.name for tap in joined.spec.taps}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6)
    assert joined.spec.fingerprint != build.backbone(PATH, "b").spec.fingerprint


@pytest.mark.slow
def test_zeroshot_gives_each_part_the_same_weight():
    stage = ZeroShot(k=3, frame_size=32, backbone=PATH, position=0.0)
    described = np.asarray(stage._describe(stage.frozen(), images()))[..., :-2]
    corners = sum(tap.channels for tap in Corners().spec.taps)
    assert len(GradientHistograms().spec.taps) > 1  # more maps give it no more weight
    norms = [np.sum(part**2, -1) for part in (described[..., :corners], described[..., corners:])]
    np.testing.assert_allclose(norms[1], 0.5, atol=1e-3)
    np.testing.assert_allclose(norms[0], 0.5, atol=1e-3)


def test_a_config_has_a_section_for_each():
    config = config_lib.load(f"zeroshot:preset=tiny,backbone={PATH}", **{"zeroshot.backbone_kwargs.gradient.bins": 5})
    built = dict(config_lib.stage(config, "zeroshot").method._backbone.parts)
    assert built["gradient"].bins == 5
    assert built["corners"] == Corners()


def test_what_cannot_be_joined_is_refused():
    with pytest.raises(UserError, match="join backbones of different modules"):
        build.backbone("corners.Corners+corners.Corners", "config.zeroshot.backbone")
    with pytest.raises(UserError, match=r"backbone_kwargs\.bins is none of its backbones; they are corners, gradient"):
        build.backbone(PATH, "config.zeroshot.backbone", {"bins": 3})
    with pytest.raises(UserError, match="has no such class"):
        build.backbone("corners.Corners+nothing.Nothing", "config.zeroshot.backbone")
