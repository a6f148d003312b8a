import numpy as np
import pytest

from uld_jax import weights
from uld_jax.backbones import perceptual
from uld_jax.errors import UserError
from uld_jax.models import vgg


def test_without_a_folder_it_is_random_and_says_so(caplog):
    perceptual._drawn.cache_clear()
    params = perceptual.load("vgg16", "", 4)
    assert "random weights" in caplog.text
    np.testing.assert_array_equal(params["conv1_1"]["kernel"], vgg.random_vgg16(0, 4)["conv1_1"]["kernel"])
    assert perceptual.load("vgg16", None, 4, channels=1)["conv1_1"]["kernel"].shape == (3, 3, 1, 4)


def test_a_folder_is_what_uld_convert_made(tmp_path):
    params = vgg.random_vgg16(3, 4)
    weights.save(tmp_path / "vgg", "vgg16", params, {})
    found = perceptual.load("vgg16", str(tmp_path / "vgg"), 64)
    np.testing.assert_array_equal(found["conv3_2"]["kernel"], params["conv3_2"]["kernel"])
    with pytest.raises(UserError, match="vgg16"):
        perceptual.load("vgg16_colorization", str(tmp_path / "vgg"), 64)
    with pytest.raises(UserError, match="uld convert"):
        perceptual.load("vgg16", str(tmp_path / "none"), 64)
