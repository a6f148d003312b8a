"""Views of D-ULD made of warped latents, beside those of warped images, through a small encoder of the real kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.duld_test import SIZES
from uld_jax.errors import UserError
from uld_jax.hyperparameters import build
from uld_jax.methods.duld import Bootstrap
from uld_jax.models.stable_diffusion import vae
from uld_jax.ops import warp

STRIDE = 2  # pixels of a latent's cell


class Small:
    """A backbone in two steps: an encoder of Stable Diffusion's layers with random weights, and its latents as maps."""

    network = vae.Encoder(widths=(8, 8), depth=1)

    def load(self):
        return self.network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))

    def encode(self, frozen, images):
        return self.network.apply(frozen, images / 127.5 - 1).mean

    def describe(self, frozen, latents, rng=None):
        del frozen, rng
        return {"latent": latents}

    def features(self, frozen, images, rng=None):
        return self.describe(frozen, self.encode(frozen, images), rng)


class OnSmall(Bootstrap):
    """D-ULD's first stage on that backbone."""

    _backbone = property(lambda self: Small())


@pytest.fixture(scope="module")
def case():
    """Two stages, smooth images [B,32,32,3], and the maps of both under a warp each."""
    sizes = SIZES | dict(colour=0.0)
    stages = [build(OnSmall, **sizes, warped=warped) for warped in ("images", "latents")]
    rough = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3))
    images = np.asarray(jax.image.resize(rough, (2, 32, 32, 3), "cubic")).clip(0, 255).astype(np.uint8)
    frozen = Small().load()

    @jax.jit
    def maps(warps):
        found = []
        for stage in stages:
            latents = stage.latents(frozen, images)
            assert (latents is None) == (stage.warped == "images")
            found.append(stage.view_maps(frozen, stage.geometry.look(images, warps), warps, latents)["latent"])
        return found

    return stages, images, frozen, maps


def both(linear, shift=(0.0, 0.0)):
    """One warp for two images."""
    one = warp.identity(1.0)._replace(linear=jnp.asarray(linear), shift=jnp.asarray(shift))
    return jax.tree.map(lambda x: jnp.stack([x, x]), one)


def difference(found, margin):
    """Root of the mean square of the difference, over the deviation of the maps, `margin` cells from the border."""
    of_images, of_latents = (np.asarray(x)[:, margin:-margin, margin:-margin] for x in found)
    return np.sqrt(np.mean((of_images - of_latents) ** 2)) / of_images.std()


def test_views_that_show_the_frame_as_it_is_have_the_same_maps(case):
    *_, maps = case
    of_images, of_latents = maps(both(np.eye(2)))
    assert of_images.shape == (2, 16, 16, 4)
    np.testing.assert_allclose(of_latents, of_images, atol=1e-5)


def test_other_views_differ_and_how_much(case):
    *_, maps = case
    whole = difference(maps(both(np.eye(2), (4 * STRIDE / 32, 0.0))), 5)  # two cells to the side
    half = difference(maps(both(np.eye(2), (STRIDE / 32, 0.0))), 5)  # half a cell: latents are interpolated
    turn = np.deg2rad(30)
    turned = difference(maps(both([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])), 5)
    flipped = difference(maps(both(np.diag([-1.0, 1.0]))), 5)
    # A shift by whole cells leaves the statistics of the normalisations and what lies beyond the border; an
    # encoder's kernels are not symmetric, so that turns and mirrors are more than that.
    assert 1e-4 < whole < min(half, turned, flipped)
    assert max(turned, flipped) > 0.1


def test_given_latents_need_no_encoder(case):
    stages, images, frozen, _ = case
    given = Small().encode(frozen, images).astype(np.float16)  # of a cache
    text = str(jax.make_jaxpr(lambda given: stages[1].latents(frozen, images, given))(given))
    assert "conv_general_dilated" not in text
    np.testing.assert_allclose(stages[1].latents(frozen, images, given), Small().encode(frozen, images), atol=2e-3)
    assert stages[0].latents(frozen, images, given) is None


def test_bad_input_is_named():
    with pytest.raises(UserError, match="has no latents; use warped=images"):
        build(Bootstrap, **SIZES, warped="latents", colour=0.0)
    sizes = SIZES | dict(backbone="stable_diffusion.StableDiffusion", warped="latents")
    with pytest.raises(UserError, match="set zoom=1, image_size=32 and colour=0"):
        build(Bootstrap, **sizes)
