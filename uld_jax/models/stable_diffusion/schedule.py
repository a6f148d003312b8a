"""The noise schedule of Stable Diffusion's timesteps, and the DDIM moves between them.

At timestep t a noisy latent is

  x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise,    a_t = product of (1 - beta_s) over s = 0..t,    a_{-1} = 1

DDIM (Song, Meng and Ermon, ICLR 2021, equation 12 without noise) moves x from one timestep to another along the noise
that the network predicts. Taken from clean to noisy it is DDIM inversion, which the diffusion hyperfeatures of Luo et
al. (NeurIPS 2023) read off.
"""

import jax.numpy as jnp
import numpy as np

from uld_jax.errors import UserError

CLEAN = -1  # the timestep without noise
SCHEDULES = ("linear", "scaled_linear")


def alphas_cumprod(
    steps: int = 1000, first: float = 0.00085, last: float = 0.012, kind: str = "scaled_linear"
) -> np.ndarray:
    """a_t of every timestep, [steps] float32; the defaults are those of both versions.

    Args:
      steps: number of timesteps.
      first, last: beta of the first and of the last timestep.
      kind: `linear` for steps linear in beta, or `scaled_linear` for steps linear in its square root.

    Raises UserError for another `kind`.

    >>> [f"{a:.3f}" for a in alphas_cumprod()[[0, 260, 960]]]
    ['0.999', '0.657', '0.007']
    """
    if kind not in SCHEDULES:
        raise UserError(f"the schedule is {kind!r}; use {' or '.join(SCHEDULES)}")
    power = 2 if kind == "scaled_linear" else 1
    betas = np.linspace(first ** (1 / power), last ** (1 / power), steps) ** power
    return np.cumprod(1 - betas).astype(np.float32)


def alpha(alphas, timestep):
    """Look up a_t of timesteps [...] in the table `alphas` [steps]; 1 for -1.

    >>> alpha(jnp.array([0.9, 0.5]), jnp.array([-1, 0, 1])).tolist()
    [1.0, 0.8999999761581421, 0.5]
    """
    return jnp.where(timestep < 0, jnp.ones((), alphas.dtype), jnp.take(alphas, jnp.maximum(timestep, 0), mode="clip"))


def add_noise(latents, noise, alpha):
    """Compute x_t of clean latents; `noise` is standard normal, all arguments broadcast.

    >>> float(add_noise(2.0, 5.0, jnp.float32(1)))
    2.0
    """
    return jnp.sqrt(alpha) * latents + jnp.sqrt(1 - alpha) * noise


def predicted_noise(output, noisy, alpha, velocity):
    """Compute the noise from the network's output for `noisy` latents at a_t = `alpha`.

    `velocity` (0 or 1, may be an array) is 1 for a network trained to predict v = sqrt(a) noise - sqrt(1 - a) x_0
    (Salimans and Ho, ICLR 2022), as Stable Diffusion 2.1 at 768 pixels, and 0 for one that predicts the noise itself.
    """
    return jnp.where(velocity, jnp.sqrt(alpha) * output + jnp.sqrt(1 - alpha) * noisy, output)


def move(noisy, noise, here, there):
    """Move latents by DDIM from a_t = `here`, with the noise predicted there, to a_t = `there`.

    >>> clean, noise = jnp.float32(3), jnp.float32(-1)
    >>> noisy = add_noise(clean, noise, jnp.float32(0.5))
    >>> round(float(move(noisy, noise, jnp.float32(0.5), jnp.float32(1))), 6)
    3.0
    """
    clean = (noisy - jnp.sqrt(1 - here) * noise) / jnp.sqrt(here)
    return add_noise(clean, noise, there)


def inversion(steps: int, total: int = 1000) -> tuple[list[int], list[int]]:
    """Timesteps of DDIM inversion: those at which the network is evaluated, and those to which the latents then move.

    `steps` moves, spaced evenly from 0 (diffusers' `leading` spacing without offset); the first starts from the clean
    latents, whose timestep is -1. Raises UserError for a number of steps that `total` timesteps cannot be split into.

    >>> sources, targets = inversion(50)
    >>> sources[:3], targets[:3], sources[-1], targets[-1]
    ([-1, 0, 20], [0, 20, 40], 960, 980)
    """
    if not 1 <= steps <= total:
        raise UserError(f"inversion_steps is {steps}; use 1 to {total}")
    targets = [i * (total // steps) for i in range(steps)]
    return [CLEAN, *targets[:-1]], targets
