"""The head's geometry against NumPy ray marching."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.slow
def test_the_head_is_what_ray_marching_meets_before_neck_and_clothes(scenes, look):
    some = posed(pick(scenes, *range(8)), [-80, -60, -40, -20, 10, 35, 55, 75], bald=False)
    worlds, *_ = look(some)
    # Below the hair that ends at the hairline, of which the marching knows nothing.
    xy = np.random.default_rng(3).uniform([-0.9, 0.7], [0.9, 1.7], (60, 2)).astype(np.float32)
    names = list(head._anatomy(jax.tree.map(lambda a: a[0], some))[0])
    body = np.isin(names, head.BODY)
    assert body.sum() == len(head.BODY)
    found = jax.jit(jax.vmap(head.in_head, (0, 0, None, None)))(some, worlds, *xy.T)
    seen = np.zeros(3, int)
    for i in range(8):
        solids = [np.asarray(a[i], float) for a in worlds.solids]
        depth = lambda part, solids=solids: np.nan_to_num(march(*(a[part] for a in solids), xy), nan=-9)
        ahead = depth(~body) - depth(body)
        clear = (abs(ahead) > 4e-3) | (ahead == 0)
        np.testing.assert_array_equal(np.asarray(found[i])[clear], ahead[clear] > 0)
        seen += [(ahead > 0.01).sum(), ((ahead < -0.01) & (depth(~body) > -9)).sum(), (ahead == 0).sum()]
    assert (seen >= [20, 5, 20]).all(), "of the head, of the body where it hides the head, and of the background"
