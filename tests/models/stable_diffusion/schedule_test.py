import doctest
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.errors import UserError
from uld_jax.models.stable_diffusion import schedule

TABLE = schedule.alphas_cumprod()
OPTIONS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


def test_examples():
    result = doctest.testmod(schedule)
    assert result.attempted >= 8
    assert result.failed == 0


@pytest.mark.parametrize("kind", schedule.SCHEDULES)
def test_the_table_equals_diffusers(kind):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(**OPTIONS | dict(beta_schedule=kind)).alphas_cumprod.numpy()
    np.testing.assert_allclose(schedule.alphas_cumprod(kind=kind), theirs, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_inversion_equals_diffusers(prediction):
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    inverse = diffusers.DDIMInverseScheduler(**OPTIONS, prediction_type=prediction, set_alpha_to_one=True)
    inverse.set_timesteps(50)
    sources, targets = schedule.inversion(50)
    assert inverse.timesteps.tolist() == targets
    rng = np.random.default_rng(0)
    ours = rng.normal(size=(2, 4, 4, 4)).astype(np.float32)
    theirs = torch.tensor(ours)

    @jax.jit
    def advance(x, output, here, there):
        here, there = schedule.alpha(TABLE, here), schedule.alpha(TABLE, there)
        noise = schedule.predicted_noise(output, x, here, np.float32(prediction == "v_prediction"))
        return schedule.move(x, noise, here, there)

    for here, there in zip(sources, targets, strict=True):
        output = rng.normal(size=ours.shape).astype(np.float32)
        ours = advance(ours, output, here, there)
        theirs = inverse.step(torch.tensor(output), there, theirs).prev_sample
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-4 * float(theirs.abs().max()))


def test_noise_is_added_as_in_diffusers():
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    rng, steps = np.random.default_rng(0), np.array([0, 60, 261, 960])
    x, noise = rng.normal(size=(2, 4, 3)).astype(np.float32)
    found = schedule.add_noise(x, noise, schedule.alpha(jnp.asarray(TABLE), steps)[:, None])
    theirs = diffusers.DDIMScheduler(**OPTIONS).add_noise(*map(torch.tensor, (x, noise, steps)))
    np.testing.assert_allclose(found, theirs.numpy(), atol=2e-6)


def test_there_and_back():
    x, noise = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    steps = [float(a) for a in schedule.alpha(jnp.asarray(TABLE), jnp.array([-1, 240, 700]))]
    there = x
    for here, next_ in itertools.pairwise(steps):
        there = schedule.move(there, noise, jnp.float32(here), jnp.float32(next_))
    np.testing.assert_allclose(there, schedule.add_noise(x, noise, jnp.float32(steps[-1])), atol=1e-6)
    np.testing.assert_allclose(schedule.move(there, noise, jnp.float32(steps[-1]), jnp.float32(1)), x, atol=1e-5)


def test_the_published_inversion():
    sources, _ = schedule.inversion(50)
    saved = [-1, 60, 160, 260, 360, 460, 560, 660, 760, 860, 960]  # of diffusion hyperfeatures, clean to noisy
    assert set(saved) <= set(sources)
    assert schedule.inversion(1) == ([-1], [0])


def test_bad_numbers_are_named():
    with pytest.raises(UserError, match="inversion_steps is 0; use 1 to 1000"):
        schedule.inversion(0)
    with pytest.raises(UserError, match="the schedule is 'cosine'; use linear or scaled_linear"):
        schedule.alphas_cumprod(kind="cosine")
