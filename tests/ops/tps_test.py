import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from uld_jax.ops import tps

SIZE = (30, 40)


@functools.partial(jax.jit, static_argnames="subset")
def draw(keys, spread, subset="replace"):
    return jax.vmap(lambda key: tps.random_tps(key, spread, subset=subset))(keys)


grids = jax.jit(jax.vmap(tps.grid, (0, None)), static_argnums=1)
inverse = jax.jit(jax.vmap(tps.source_to_view, (0, 0, None)), static_argnums=2)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@functools.cache
def warps():
    return draw(keys(6, 1), tps.TRAINING)


def reference(weights, view, size):
    """The formula in float64, one point and one control point at a time; view in pixels."""
    weights, last = np.asarray(weights, np.float64), np.array([size[1] - 1, size[0] - 1])
    out = np.empty_like(view, dtype=np.float64)
    for p, (x, y) in enumerate(2 * view / last - 1):
        place = weights[100] + x * weights[101] + y * weights[102]
        for row in range(10):
            for column in range(10):
                d2 = (x - (-1 + column * 2 / 9)) ** 2 + (y - (-1 + row * 2 / 9)) ** 2
                place = place + d2 * np.log(d2 + 1e-5) * weights[10 * row + column]
        out[p] = (place + 1) / 2 * last
    return out


def test_examples():
    found = doctest.testmod(tps)
    assert found.attempted >= 1
    assert found.failed == 0


def test_grid_and_points_follow_the_formula():
    places = grids(warps(), SIZE)
    assert places.shape == (6, *SIZE, 2)
    view = np.array([[0, 0], [39, 29], [13, 7], [20, 25]])
    expected = reference(warps()[2], view, SIZE)
    np.testing.assert_allclose(places[2][view[:, 1], view[:, 0]], expected, atol=1e-4)
    between = view + np.array([0.25, -0.5])
    found = tps.view_to_source(warps()[2], jnp.asarray(between, jnp.float32), SIZE)
    np.testing.assert_allclose(found, reference(warps()[2], between, SIZE), atol=1e-4)
    away = np.linalg.norm(expected - view, axis=-1)
    assert away.max() > 0.5  # or the test shows nothing


def test_affine_part_turns_as_the_published_code():
    """Rows of 1, x and y: [tx, ty], [s cos, -s sin], [s sin, s cos]."""
    rows = np.asarray(draw(keys(4000), tps.Spread(0, 0, 0.1, 0.2, 10))[:, -3:], np.float64)
    np.testing.assert_allclose(rows[:, 1, 0], rows[:, 2, 1], atol=1e-6)
    np.testing.assert_allclose(rows[:, 1, 1], -rows[:, 2, 0], atol=1e-6)
    size, angle = np.hypot(*rows[:, 1].T), np.degrees(np.arctan2(rows[:, 2, 0], rows[:, 2, 1]))
    statistics = ((rows[:, 0, 0], 0, 0.1), (rows[:, 0, 1], 0, 0.1), (size, 1, 0.2), (angle, 0, 10))
    for values, mean, deviation in statistics:
        np.testing.assert_allclose(values.mean(), mean, atol=0.06 * deviation)
        np.testing.assert_allclose(values.std(), deviation, rtol=0.05)
    assert np.abs(np.corrcoef([values for values, *_ in statistics]) - np.eye(4)).max() < 0.06


@pytest.mark.parametrize("subset", ["replace", "add"])
def test_half_of_the_weights_have_another_deviation(subset):
    bend = np.asarray(draw(keys(200), tps.Spread(1e-3, 0.1, 0, 0, 0), subset=subset)[:, :-3]).ravel()
    np.testing.assert_allclose(np.mean(np.abs(bend) > 0.005), 0.5 * 0.96, atol=0.02)
    small = bend[np.abs(bend) < 0.005]
    np.testing.assert_allclose(np.median(np.abs(small)), 0.6745e-3, rtol=0.1)
    none = np.asarray(draw(keys(200), tps.Spread(1e-3, 0, 0, 0, 0), subset=subset)[:, :-3]).ravel()
    np.testing.assert_allclose(np.mean(none == 0), 0.5 if subset == "replace" else 0, atol=0.02)


def test_displacements_are_those_of_the_published_settings():
    """Mean displacements in the central 96 of 136 pixels, by the same law in NumPy."""
    size = (136, 136)
    still = np.stack(np.meshgrid(np.arange(136), np.arange(136)), -1)
    for spread, expected in ((tps.TEST, 6.3), (tps.TRAINING, 12.2), (tps.FEW_SHOT, 2.2)):
        places = np.asarray(jax.lax.map(lambda w: tps.grid(w, size), draw(keys(100, 3), spread)))
        away = np.linalg.norm(places - still, axis=-1)[:, 20:-20, 20:-20].mean()
        np.testing.assert_allclose(away, expected, rtol=0.15)
    assert tps.TRAINING.times(bend=0.5) == tps.Spread(0.0005, 0.005, 0.1, 0.1, 5.0)
    assert tps.TRAINING.times(affine=0) == tps.Spread(0.001, 0.01, 0, 0, 0)


@pytest.mark.parametrize("outside", ["zeros", "border"])
def test_images_equal_torch_with_aligned_corners(outside):
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).uniform(size=(*SIZE, 2)).astype(np.float32)
    places = np.array(grids(warps(), SIZE))
    assert (places < -1).any()
    unit = torch.tensor(2 * places / np.array([SIZE[1] - 1, SIZE[0] - 1], np.float32) - 1)
    given = torch.tensor(np.moveaxis(image, -1, 0)[None]).expand(len(places), -1, -1, -1)
    expected = torch.nn.functional.grid_sample(given, unit, padding_mode=outside, align_corners=True)
    found = jax.jit(jax.vmap(lambda p: tps.warp_image(jnp.asarray(image), p, outside)))(places)
    np.testing.assert_allclose(found, np.moveaxis(expected.numpy(), 1, -1), atol=1e-4)


def test_pixels_are_the_nearest_of_a_tree():
    places = np.asarray(grids(warps(), SIZE))
    points = np.random.default_rng(1).uniform(-5, 45, (6, 30, 2)).astype(np.float32)
    for one, own, xy in zip(places, points, jax.jit(jax.vmap(tps.nearest_pixels))(places, points)):
        _, index = cKDTree(one.reshape(-1, 2)).query(own)
        np.testing.assert_array_equal(xy, np.stack([index % SIZE[1], index // SIZE[1]], -1))


def test_points_come_back_exactly():
    view = np.random.default_rng(2).uniform(0, 1, (6, 30, 2)).astype(np.float32) * [SIZE[1] - 1, SIZE[0] - 1]
    view = view.astype(np.float32)
    source = jax.jit(jax.vmap(tps.view_to_source, (0, 0, None)), static_argnums=2)(warps(), view, SIZE)
    found, shown = inverse(warps(), source, SIZE)
    np.testing.assert_allclose(found, view, atol=1e-3)
    assert shown.all()


def test_points_that_are_not_shown_get_the_nearest_pixel():
    points = np.random.default_rng(4).uniform(-30, 60, (6, 40, 2)).astype(np.float32)
    found, shown = inverse(warps(), points, SIZE)
    places = np.asarray(grids(warps(), SIZE))
    nearest = np.asarray(jax.jit(jax.vmap(tps.nearest_pixels))(places, points))
    at = np.stack([one[xy[:, 1].astype(int), xy[:, 0].astype(int)] for one, xy in zip(places, nearest)])
    distance = np.linalg.norm(at - points, axis=-1)
    assert 0.05 < shown.mean() < 0.5
    np.testing.assert_array_equal(np.asarray(found)[~shown], nearest[~shown])
    assert distance[shown].max() < 1.2
    assert distance[~shown].min() > 0.3


def test_a_dot_moves_with_its_point():
    size = (96, 96)
    weights = draw(keys(8, 5), tps.TEST)
    dots = np.random.default_rng(3).uniform(30, 65, (8, 1, 2)).astype(np.float32)
    still = np.stack(np.meshgrid(np.arange(96), np.arange(96)), -1)
    images = np.exp(-((still - dots[:, None]) ** 2).sum(-1) / 4)[..., None].astype(np.float32)
    views = np.asarray(jax.jit(jax.vmap(lambda w, i: tps.warp_image(i, tps.grid(w, size))))(weights, images))
    mass = (views * still).sum((1, 2)) / views.sum((1, 2))
    exact = np.asarray(inverse(weights, dots, size)[0])[:, 0]
    np.testing.assert_allclose(mass, exact, atol=0.3)  # a rough warp bends a dot
    whole = jax.jit(jax.vmap(lambda w, p: tps.nearest_pixels(tps.grid(w, size), p)))(weights, dots)[:, 0]
    assert np.abs(whole - exact).max() < 0.8  # rounded in a slightly turned frame
    assert np.linalg.norm(exact - dots[:, 0], axis=-1).mean() > 2


def test_rows_keep_their_draws_in_another_batch():
    np.testing.assert_array_equal(draw(keys(6, 1)[jnp.array([4, 1])], tps.TRAINING), warps()[jnp.array([4, 1])])
