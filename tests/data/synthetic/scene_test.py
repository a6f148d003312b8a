"""Scenes: the statistics that they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from uld_jax.data import synthetic
from uld_jax.data.synthetic import dataset


def test_pose_follows_the_promised_distributions():
    keys = dataset.row_keys(3, "train", np.arange(2000, dtype=np.uint32))

    @jax.jit
    @jax.vmap
    def pose(key):
        s = synthetic.sample_scene(key)
        return s.yaw, s.pitch, s.roll, s.shift[0], s.shift[1], jnp.log(s.size)

    yaw, *others = (np.asarray(a) for a in pose(keys))
    assert scipy.stats.kstest(yaw, "uniform", (-90, 180)).pvalue > 1e-3
    for values, deviation in zip(others, (9.0, 7.0, 0.04, 0.04, 0.07), strict=True):
        assert abs(values.mean()) < 4 * deviation / 2000**0.5
        np.testing.assert_allclose(values.std(), deviation, rtol=0.07)
        assert np.abs(values).max() <= 2.65 * deviation
