import doctest

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.clustering import foreground


def scene(count=6, side=20, size=16, seed=0):
    """Features [B,h,w,D] of a disc that wanders about the middle, and of a small thing beside it; the disc's cells."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    centre = side / 2 - 0.5 + rng.uniform(-2, 2, (count, 2))
    disc = np.hypot(x - centre[:, :1, None], y - centre[:, 1:, None]) < side / 4
    stray = np.zeros_like(disc)
    stray[:, 1:3, 1:3] = True
    kinds = rng.normal(0, 1, (2, size))
    maps = np.where((disc | stray)[..., None], kinds[0], kinds[1]) + rng.normal(0, 0.3, (count, side, side, size))
    return maps.astype(np.float32), disc, stray


def rows(maps):
    side = maps.shape[1]
    grid = (2 * (np.stack(np.meshgrid(*2 * [np.arange(side)]), -1) + 0.5) / side - 1).astype(np.float32)
    place = np.broadcast_to(grid, (*maps.shape[:3], 2))
    return maps.reshape(-1, maps.shape[-1]), place.reshape(-1, 2)


def test_examples():
    assert doctest.testmod(foreground) == (0, 1)


def test_the_object_is_the_largest_region_of_what_is_in_the_middle():
    maps, disc, stray = scene()
    x, place = rows(maps)
    mask = np.random.default_rng(1).random(len(x)) < 0.5
    spoiled = np.where(mask[:, None], x, np.nan)
    fit, region = jax.jit(foreground.fit), jax.jit(foreground.region)
    found = fit(spoiled, place, mask)
    assert stray.sum() == 24
    np.testing.assert_array_equal(region(found, maps), disc)  # without the stray cells, which look alike
    # Turned inside out, the middle is the object still.
    swapped = 2 * x.mean(0) - x
    turned = fit(swapped, place, mask)
    np.testing.assert_array_equal(region(turned, 2 * x.mean(0) - maps), disc)
    half = np.zeros(maps.shape[1:3], bool)
    half[:, :10] = True
    np.testing.assert_array_equal(region(found, maps, half), disc & half)
    assert not region(foreground.unknown(maps.shape[-1]), maps).any()


def exhaustive(values):
    """Otsu's threshold by trying every cut between sorted values: (the value below, the value above)."""
    values = np.sort(values)
    spread = [v[:i].var() * i + v[i:].var() * (len(v) - i) for v in [values] for i in range(1, len(values))]
    best = int(np.argmin(spread)) + 1
    return values[best - 1], values[best]


def test_otsu_parts_where_an_exhaustive_search_does():
    rng = np.random.default_rng(0)
    otsu = jax.jit(foreground.otsu)
    for share, gap in ((0.5, 4), (0.2, 6), (0.8, 9)):
        values = np.concatenate(
            [rng.normal(-3, 1, round(600 * share)), rng.normal(-3 + gap, 1, 600 - round(600 * share))]
        )
        low, high = exhaustive(values)
        step = np.ptp(values) / 256
        assert low - step <= otsu(jnp.asarray(values, jnp.float32)) <= high + step
        mask = np.arange(1200) < 600
        padded = jnp.asarray(np.concatenate([values, np.full(600, 1e3)]), jnp.float32)
        assert abs(otsu(padded, mask) - otsu(padded[:600])) < 1e-5
    assert np.isfinite(otsu(jnp.ones(5)))
    assert np.isfinite(otsu(jnp.ones(5), jnp.zeros(5, bool)))
