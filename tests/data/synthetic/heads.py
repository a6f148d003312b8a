"""Scenes that the tests of the synthetic data set share, and a slow but sure way to see them."""

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.data import synthetic
from uld_jax.data.synthetic import scene

SIZE = 48
# Compiled in a hurry: other programs than the data set's own.
QUICK = {"xla_backend_optimization_level": 0}


def pick(scenes, *rows):
    return jax.tree.map(lambda a: a[jnp.asarray(rows)], scenes)


def posed(scenes, yaw, bald=True):
    """The scenes turned to `yaw` with no other rotation, and with no hair unless `bald` is False."""
    zero = jnp.zeros_like(scenes.pitch)
    hair = scenes.hair.at[:, scene.HAIR.index("volume")].set(0.0) if bald else scenes.hair
    return scenes._replace(yaw=zero + jnp.asarray(yaw, jnp.float32), pitch=zero, roll=zero, hair=hair)


def at(*names):
    return [synthetic.LANDMARKS.index(name) for name in names]


def flip(scene):
    return jax.vmap(synthetic.mirror)(scene)


def march(center, form, xy):
    """First z, coming from the camera, at which rays at xy [n,2] are in any ellipsoid; NaN where in none."""
    found = np.full(len(xy), np.nan)
    for i, (x, y) in enumerate(xy):
        z = np.arange(2.5, -2.5, -1e-3)
        p = np.stack([np.full_like(z, x), np.full_like(z, y), z], -1)[:, None] - center  # [z, P, 3]
        inside = (np.einsum("zpi,pij,zpj->zp", p, form, p) <= 1.0).any(1)
        if inside.any():
            found[i] = z[inside.argmax()]
    return found
