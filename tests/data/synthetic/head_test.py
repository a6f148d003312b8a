"""The head's geometry against NumPy ray marching."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.data.synthetic.heads import march, pick, posed
from uld_jax.data import synthetic
from uld_jax.data.synthetic import head


def test_names_and_mirror_agree():
    swap = {"left": "right", "right": "left"}
    for i, name in enumerate(synthetic.LANDMARKS):
        side, _, rest = name.partition("_")
        assert synthetic.LANDMARKS[synthetic.MIRROR[i]] == (f"{swap[side]}_{rest}" if side in swap else name)


def test_depth_equals_ray_marching(scenes, look):
    worlds, *_ = look(pick(scenes, *range(8)))
    world = jax.tree.map(lambda a: a[3], worlds)
    xy = np.random.default_rng(0).uniform([-1.2, -1.4], [1.2, 1.6], (40, 2)).astype(np.float32)
    depth = np.asarray(head.depth(world.solids, jnp.asarray(xy))).max(0)
    expected = march(*(np.asarray(a, np.float64) for a in world.solids), xy)
    assert 10 < np.isfinite(expected).sum() < 40
    np.testing.assert_array_equal(np.isfinite(depth), np.isfinite(expected))
    hit = np.isfinite(expected)
    np.testing.assert_allclose(depth[hit], expected[hit], atol=2e-3)


def test_visibility_equals_ray_marching(scenes, look):
    """A visible landmark is the first surface on its ray; one that lies well behind it is hidden."""
    worlds, points, _, visible = look(posed(pick(scenes, *range(8)), [-80, -60, -40, -20, 10, 35, 55, 75]))
    behind = []
    for i, turn in enumerate(np.asarray(worlds.turn, np.float64)):
        view = np.asarray(points[i], np.float64) @ turn.T
        front = march(np.asarray(worlds.solids.center[i], float), np.asarray(worlds.solids.form[i], float), view[:, :2])
        behind.append(np.where(np.isnan(front), 0.0, front - view[:, 2]))  # a miss: exactly on the outline
    behind, visible = np.array(behind), np.asarray(visible)
    assert (behind > -0.01).all(), "landmarks lie on or in the head, never in front of it"
    assert (behind[visible] < 0.04).all()
    assert 60 < visible.sum() < 140
