import doctest

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.ops import views, warp


def test_examples():
    result = doctest.testmod(views)
    assert result.attempted >= 3
    assert result.failed == 0


def test_a_still_view_shows_the_middle_of_each_frame():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    seen = views.look(views.still(2, 0.5), jnp.asarray(images), (8, 8))
    np.testing.assert_allclose(seen, images[:, 4:12, 4:12] / 255, atol=1e-6)


def test_a_turned_view_is_the_view_turned():
    start = warp.random_warp(jax.random.key(1), scale=0.1, shift=0.1, bend=0.0)
    points = np.random.default_rng(0).uniform(-1, 1, (5, 2)).astype(np.float32)
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = warp.view_to_source(warp.turned(start, 30.0), points)
    np.testing.assert_allclose(found, warp.view_to_source(start, points @ turn.T), atol=1e-6)


def test_standardised_views_have_mean_zero_and_one_contrast():
    rng = np.random.default_rng(0)
    seen = rng.uniform(0, 1, (3, 8, 8, 3)) * np.array([1.0, 0.5, 0.0])[:, None, None, None]
    found = np.asarray(views.standardise(jnp.asarray(seen)))
    np.testing.assert_allclose(found.mean((1, 2, 3)), 0, atol=1e-5)
    spread = seen.std((1, 2, 3))
    np.testing.assert_allclose(found.std((1, 2, 3)), spread / (spread + 0.05), rtol=1e-5)


def test_the_geometry_of_a_square_is_the_published_rescaling():
    """A still view of 32 pixels shows the middle 20 of 40 frame pixels; a heatmap cell covers 4 of its pixels."""
    geometry = views.Geometry(frame_side=40, view_side=32, stride=4, zoom=0.5)
    assert (geometry.frame, geometry.view, geometry.heat) == ((40, 40), (32, 32), (8, 8))
    cells = np.random.default_rng(0).uniform(0, 7, (2, 5, 2)).astype(np.float32)
    # Counted from the left border: cells of 4 view pixels of 20 / 32 frame pixels, the view beginning 10 pixels in.
    np.testing.assert_allclose(geometry.to_frame(jnp.asarray(cells)), (cells + 0.5) * 2.5 + 10 - 0.5, atol=1e-5)
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (2, 40, 40, 3), np.uint8))
    seen = views.look(views.still(2, 0.5), images, (32, 32))
    np.testing.assert_allclose(geometry.look(images), seen, atol=1e-6)
    assert geometry.still(2).linear.dtype == jnp.float32


def test_the_geometry_takes_points_where_it_takes_pixels():
    """A bright dot of the frame is seen in the cell that `to_cells` names, and `to_frame` leads back."""
    geometry = views.Geometry(frame_side=48, view_side=32, stride=4)
    draw = lambda key: warp.random_warp(key, rotation=20.0, scale=0.1, shift=0.03, bend=0.02)
    warps = jax.vmap(draw)(jax.random.split(jax.random.key(0), 3))
    xy = np.random.default_rng(2).uniform(16, 31, (3, 1, 2)).astype(np.float32)
    y, x = np.mgrid[:48, :48]
    square = (x - xy[:, :, 0, None]) ** 2 + (y - xy[:, :, 1, None]) ** 2
    frames = np.repeat(np.exp(-square / (2 * 2.0**2))[..., None] * 255, 3, -1).round().astype(np.uint8)
    seen = np.asarray(geometry.look(jnp.asarray(frames), warps))[..., 0]
    y, x = np.mgrid[:32, :32]
    centre = np.stack([(seen * x).sum((1, 2)), (seen * y).sum((1, 2))], -1) / seen.sum((1, 2))[:, None]
    cells = np.asarray(geometry.to_cells(jnp.asarray(xy), warps))
    np.testing.assert_allclose(cells[:, 0], (centre + 0.5) / 4 - 0.5, atol=0.05)
    np.testing.assert_allclose(geometry.to_frame(jnp.asarray(cells), warps), xy, atol=1e-3)


def test_the_region_of_interest_is_that_of_the_frame():
    """A view of 16 pixels shows the frame of 32 from (8, 8) on; cells are two of its pixels wide."""
    geometry = views.Geometry(frame_side=32, view_side=16, stride=2, zoom=0.5)
    x, y = np.meshgrid(8.5 + 2 * np.arange(8), 8.5 + 2 * np.arange(8))  # cells' centres in pixels of the frame
    still, edge = geometry.still(2), np.array([[10.0, 8.0, 20.0, 14.0], [0.0, 0.0, 31.0, 31.0]])
    central = (np.abs(x - 15.5) <= 4) & (np.abs(y - 15.5) <= 4)
    found = geometry.inside(still, 0.25, jnp.asarray(edge, jnp.float32))
    np.testing.assert_array_equal(found[0], central & (x >= 10) & (x <= 20) & (y >= 8) & (y <= 14))
    np.testing.assert_array_equal(found[1], central)
    assert np.all(geometry.inside(still))


def test_cells_match_where_warps_say():
    geometry = views.Geometry(frame_side=32, view_side=32, stride=2)
    draw = lambda key: warp.uniform_warp(key, rotation=40, scale=0.2, shift=0.1)
    warps = jax.vmap(draw)(jax.random.split(jax.random.key(np.random.default_rng().integers(1 << 30)), 4))
    found = np.asarray(geometry.matches(warps)).reshape(2, 2, 256)
    grid = np.stack(np.meshgrid(np.arange(16), np.arange(16)), -1).reshape(-1, 2) * 2 + 0.5  # cells' centres in pixels
    size = (32, 32)

    def other(a, b, xy):
        one = lambda w, i: jax.tree.map(lambda x: x[i], w)
        source = warp.points_to_source(one(warps, a), jnp.asarray(xy, jnp.float32), size, size)
        return np.floor((np.asarray(warp.points_to_view(one(warps, b), source, size, size)) + 0.5) / 2).astype(int)

    for pair in range(2):
        for view in range(2):
            there = other(2 * pair + view, 2 * pair + 1 - view, grid)
            back = other(2 * pair + 1 - view, 2 * pair + view, grid)
            want = np.full(256, -1)
            for i, (x, y) in enumerate(there):
                if 0 <= x < 16 and 0 <= y < 16 and tuple(back[16 * y + x]) == (i % 16, i // 16):
                    want[i] = 16 * y + x
            assert np.mean(found[pair, view] == want) > 0.99  # rounding at a cell's border
            assert np.mean(want >= 0) > 0.2
    still = jax.tree.map(lambda x: jnp.stack([x, x]), warp.identity())
    np.testing.assert_array_equal(geometry.matches(still), np.broadcast_to(np.arange(256), (2, 256)))
