import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from uld_jax.ops import coordinates, warp

KINDS = {
    "zoom": dict(zoom=0.7),
    "similarity": dict(rotation=20.0, scale=0.15, shift=0.08, zoom=0.85),
    "thin-plate": dict(rotation=10.0, scale=0.1, shift=0.05, bend=0.02, zoom=0.85),
}

to_source, to_view = jax.jit(warp.view_to_source), jax.jit(warp.source_to_view)
show = jax.jit(warp.warp_image, static_argnums=2)


def draw(seed, kind, count):
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.jit(jax.vmap(lambda k: warp.random_warp(k, **KINDS[kind])))(keys)


def reference_view_to_source(w, view):
    """The map of the module's docstring, in float64, one point and one control point at a time."""
    linear, shift, bend = (np.asarray(a, np.float64) for a in w)
    n = round(len(bend) ** 0.5)
    out = np.empty_like(view)
    for p, v in enumerate(view):
        s = linear @ v + shift
        for row in range(n):
            for column in range(n):
                r = np.hypot(v[0] - (-1 + 2 * column / (n - 1)), v[1] - (-1 + 2 * row / (n - 1)))
                if r > 0:
                    s = s + bend[row * n + column] * r**2 * np.log(r**2)
        out[p] = s
    return out


def one(batch, i):
    return jax.tree.map(lambda a: a[i], batch)


@pytest.mark.parametrize("kind", KINDS)
def test_view_to_source_equals_numpy(kind):
    warps = draw(1, kind, 3)
    view = np.random.default_rng(0).uniform(-1.2, 1.2, (20, 2))
    view[0] = [0.5, -1.0]  # on a control point
    found = to_source(warps, jnp.asarray(view, jnp.float32))  # one set of points under a batch of warps
    for i in range(3):
        np.testing.assert_allclose(found[i], reference_view_to_source(one(warps, i), view), atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_points_come_back(kind):
    warps = draw(2, kind, 200)
    xy = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (200, 30, 2)), jnp.float32)
    np.testing.assert_allclose(to_view(warps, to_source(warps, xy)), xy, atol=1e-4)
    seen = to_view(warps, xy)  # source points near the view
    again = to_source(warps, seen)
    inside = np.abs(np.asarray(seen)).max(-1) < 1.2
    assert inside.mean() > 0.6
    np.testing.assert_allclose(again[inside], xy[inside], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_warp_image_equals_numpy(kind):
    rng = np.random.default_rng(2)
    image = rng.uniform(size=(20, 24, 3)).astype(np.float32)
    w = one(draw(3, kind, 2), 1)
    found = show(w, image, (16, 12))
    view = coordinates.to_unit(coordinates.pixel_grid(16, 12).astype(np.float64), (16, 12)).reshape(-1, 2)
    xy = coordinates.from_unit(reference_view_to_source(w, view), (20, 24))
    expected = [
        map_coordinates(image[..., c].astype(np.float64), [xy[:, 1], xy[:, 0]], order=1, mode="nearest")
        for c in range(3)
    ]
    np.testing.assert_allclose(found, np.stack(expected, -1).reshape(16, 12, 3), atol=1e-4)


def test_identity_returns_the_image():
    image = np.random.default_rng(3).integers(0, 256, (9, 7, 3), np.uint8)
    found = show(warp.identity(), image, (9, 7))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, image, atol=1e-3)  # of 255


@pytest.mark.parametrize("kind", KINDS)
def test_points_move_with_the_image(kind):
    source_size, view_size, count = (120, 120), (96, 96), 24
    warps = draw(4, kind, count)
    dots = np.random.default_rng(4).uniform(35, 85, (count, 1, 2)).astype(np.float32)
    r2 = ((coordinates.pixel_grid(*source_size) - dots[:, :, None]) ** 2).sum(-1)
    images = np.exp(-r2 / (2 * 2.0**2))[..., None]
    views = np.asarray(jax.jit(jax.vmap(lambda w, i: warp.warp_image(w, i, view_size)))(warps, images))[..., 0]
    expected = np.asarray(jax.jit(warp.points_to_view, static_argnums=(2, 3))(warps, dots, source_size, view_size))[
        :, 0
    ]
    grid = coordinates.pixel_grid(*view_size)
    mass = (views[..., None] * grid).sum((1, 2)) / views.sum((1, 2))[:, None]
    inside = (expected > 8).all(-1) & (expected < 87).all(-1)  # the whole dot is seen
    assert inside.sum() >= count // 2
    np.testing.assert_allclose(mass[inside], expected[inside], atol=0.1)
    back = jax.jit(warp.points_to_source, static_argnums=(2, 3))(warps, expected[:, None], source_size, view_size)[:, 0]
    np.testing.assert_allclose(back[inside], dots[inside, 0], atol=0.01)


def test_statistics_are_as_documented():
    keys = jax.random.split(jax.random.key(5), 4000)
    w = jax.jit(jax.vmap(lambda k: warp.random_warp(k, rotation=15.0, scale=0.2, shift=0.1, bend=0.01, limit=None)))(
        keys
    )
    linear = np.asarray(w.linear, np.float64)
    angle = np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
    log_size = 0.5 * np.log(np.linalg.det(linear))
    # A normal law cut at 3 deviations has deviation 0.987.
    for values, std in ((angle, 15), (log_size, 0.2), (w.shift, 0.2), (w.bend, 0.01)):
        np.testing.assert_allclose(np.std(np.asarray(values)), 0.987 * std, rtol=0.04)
        assert abs(np.mean(np.asarray(values))) < 0.07 * std
    assert np.abs(w.bend).max() <= 0.0300001


def test_limit_keeps_the_warp_one_to_one():
    keys = jax.random.split(jax.random.key(6), 64)
    grid = jnp.asarray(np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, 25)] * 2), -1).reshape(-1, 2), jnp.float32)

    def determinant(w, xy):
        slope = jax.vmap(jax.jacfwd(lambda p: warp.view_to_source(w, p[None])[0]))(xy)
        return jnp.linalg.det(slope) / jnp.linalg.det(w.linear)

    for limit, low in ((None, -np.inf), (0.5, 0.2)):
        w = jax.jit(jax.vmap(lambda k, limit=limit: warp.random_warp(k, bend=0.1, limit=limit)))(keys)
        worst = np.asarray(jax.jit(jax.vmap(lambda w: determinant(w, grid).min()))(w))
        assert (worst > low).all()
        if limit is None:
            assert (worst < 0).any()  # or the test shows nothing


def test_keys_decide_alone():
    make = jax.jit(lambda seed: warp.random_warp(jax.random.key(seed), rotation=9.0, bend=0.02))
    for a, b in zip(make(1), make(1), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(make(1).linear, make(2).linear)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        options = dict(rotation=9.0, shift=0.1, bend=0.02, dtype=jnp.float64)
        w = jax.jit(lambda k: warp.random_warp(k, **options))(jax.random.key(0))
        xy = jnp.asarray(np.random.default_rng(7).uniform(-1, 1, (9, 2)))
        back = to_view(w, to_source(w, xy))
        assert {a.dtype for a in w} == {jnp.dtype("float64")}
        assert back.dtype == jnp.float64
        np.testing.assert_allclose(back, xy, atol=1e-10)
        assert show(w, jnp.zeros((8, 8, 3)), (4, 4)).dtype == jnp.float64


def test_a_uniform_warp_scales_then_turns_within_its_bounds():
    keys = jax.random.split(jax.random.key(0), 500)
    draw = functools.partial(warp.uniform_warp, rotation=40, scale=0.2, shift=0.05, zoom=0.5)
    warps = jax.vmap(draw)(keys)
    forward = np.linalg.inv(np.asarray(warps.linear) / 0.5)  # from what is shown to the view
    size = np.linalg.norm(forward, axis=1)  # of the images of (1, 0) and (0, 1)
    assert 0.8 <= size.min() < 0.82
    assert 1.18 < size.max() <= 1.2 + 1e-5
    assert np.abs(np.corrcoef(size.T)[0, 1]) < 0.2
    np.testing.assert_allclose(np.sum(forward[:, :, 0] * forward[:, :, 1], -1), 0, atol=1e-5)
    angle = np.degrees(np.arctan2(forward[:, 0, 1], forward[:, 1, 1]))
    assert -40 <= angle.min() < -37
    assert 37 < angle.max() <= 40
    assert 0.045 < np.abs(warps.shift).max() <= 0.05


def test_a_mirrored_view_is_the_view_turned_left_to_right():
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    plain = warp.random_warp(jax.random.key(1), rotation=20, scale=0.1, shift=0.05)
    for flip in (True, False):
        view = warp.warp_image(warp.mirrored(plain, flip), image, (8, 8))
        want = warp.warp_image(plain, image, (8, 8))
        np.testing.assert_allclose(view, want[:, ::-1] if flip else want, atol=1e-3)
