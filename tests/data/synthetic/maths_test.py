"""The shared functions against NumPy."""

import doctest

import jax.numpy as jnp
import numpy as np
from scipy.spatial.transform import Rotation

from uld_jax.data.synthetic import maths


def test_examples():
    result = doctest.testmod(maths)
    assert result.attempted >= 1
    assert result.failed == 0


def test_sin_is_nearly_a_sine():
    x = np.linspace(-20, 20, 1001, dtype=np.float32)
    np.testing.assert_allclose(maths.sin(x), np.sin(x), atol=0.06)


def test_step_and_mix():
    x = np.array([-1.0, 1.0, 2.0, 3.0, 9.0])
    np.testing.assert_allclose(maths.step(1.0, 3.0, x), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(maths.step(3.0, 1.0, x), [1, 1, 0.5, 0, 0])
    np.testing.assert_allclose(maths.mix(2.0, 6.0, np.array([0.0, 0.25, 1.0])), [2, 3, 6])


def test_rotation_turns_by_yaw_then_pitch_then_roll():
    yaw, pitch, roll = np.random.default_rng(0).uniform(-90, 90, (3,)).astype(np.float32)
    # Extrinsic turns about y, x, z: positive yaw turns the nose (+z) to +x, positive pitch lifts it (to -y).
    expected = Rotation.from_euler("yxz", [yaw, pitch, roll], degrees=True).as_matrix()
    np.testing.assert_allclose(maths.rotation(*map(jnp.float32, (yaw, pitch, roll))), expected, atol=1e-6)
    p = np.random.default_rng(1).normal(size=(3, 7)).astype(np.float32)
    np.testing.assert_allclose(maths.axes(expected.astype(np.float32), *p), expected @ p, atol=1e-5)
