"""Small functions that the scene, the head and its picture share."""

import jax.numpy as jnp
import numpy as np


def mix(a, b, t):
    """Interpolate linearly: a at t = 0, b at t = 1."""
    return a + (b - a) * t


def step(low, high, x):
    """Compute a smooth step: 0 below `low`, 1 above `high` (with `low` > `high` the step falls)."""
    t = jnp.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def sin(x):
    """Approximate the sine by parabolas (error below 0.06), which CPUs vectorise, unlike the exact sine.

    >>> [round(float(sin(a)), 3) for a in (0.0, np.pi / 2, 1.5 * np.pi)]
    [0.0, 1.0, -1.0]
    """
    t = x * (0.5 / np.pi)
    t = t - jnp.floor(t + 0.5)
    return t * (8.0 - 16.0 * jnp.abs(t))


def dot(a, b):
    """Compute a matrix product in full float32 on every device."""
    return jnp.matmul(a, b, precision="highest")


def rotation(yaw, pitch, roll):
    """Make the rotation [3, 3] from head to view coordinates: yaw first, then pitch, then roll, in degrees."""
    (sy, sp, sr), (cy, cp, cr) = (f(jnp.deg2rad(jnp.stack([yaw, pitch, roll]))) for f in (jnp.sin, jnp.cos))
    one, zero = jnp.ones_like(sy), jnp.zeros_like(sy)

    def matrix(*rows):
        return jnp.stack(rows).reshape(3, 3)

    about_y = matrix(cy, zero, sy, zero, one, zero, -sy, zero, cy)
    about_x = matrix(one, zero, zero, zero, cp, -sp, zero, sp, cp)
    about_z = matrix(cr, -sr, zero, sr, cr, zero, zero, zero, one)
    # `dot` is needed because a default matrix product would be rounded to bfloat16 or TF32 on some devices
    return dot(about_z, dot(about_x, about_y))


def axes(matrix, x, y, z):
    """Compute matrix @ (x, y, z), each [...], without a matrix product."""
    return tuple(matrix[i, 0] * x + matrix[i, 1] * y + matrix[i, 2] * z for i in range(3))
