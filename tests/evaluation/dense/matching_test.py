"""Matching by dense features: floors, hand-made cases, and explicit hypercolumns."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.evaluation.dense import matching
from uld_jax.evaluation.dense.protocols import LEAD_2022
from uld_jax.ops import hypercolumns

STATIC = ("side", "cells", "similarity")
match, similarities = (jax.jit(f, static_argnames=STATIC) for f in (matching.match, matching.similarities))


def test_examples():
    result = doctest.testmod(matching)
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize(("stride", "floor"), [(1, 0.0), (2, 0.62), (4, 1.16), (8, 2.26)])
def test_perfect_features_err_by_the_floor(stride, floor):
    cells = 96 // stride
    maps = (np.random.default_rng(stride).normal(size=(cells, cells, 32)).astype(np.float32),)
    line = np.arange(8.0, 24.0)  # two whole cells of every stride, which repeat up to 87
    xy = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    found = match(maps, maps, xy, side=96, cells=cells, similarity="cosine")
    scored = matching.scored(found[None], xy[None], xy[None], np.array([35.0]), 96)
    assert scored.canonical.mean() == pytest.approx(floor, abs=0.01)
    assert scored.canonical.mean() == pytest.approx(matching.floor(96, cells), abs=1e-5)
    assert scored.percent.mean() == pytest.approx(100 * matching.floor(96, cells) * 96 / 70 / 35, abs=1e-3)


def pyramid(seed, *shapes):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_similarities_are_those_of_hypercolumns(similarity):
    shapes = (6, 6, 5), (3, 3, 7), (12, 12, 2)
    source, target = pyramid(0, *shapes), pyramid(1, *shapes)
    xy, cells, side = jnp.array([[0.0, 0.0], [11.4, 20.0], [23.0, 7.0]]), 12, 24
    ours = similarities(source, target, xy, side=side, cells=cells, similarity=similarity)
    whole = jax.jit(hypercolumns.materialise, static_argnums=1)
    a, b = (np.asarray(whole(tuple(x[None] for x in p), cells)[0], np.float64) for p in (source, target))
    at = np.clip(np.round(np.asarray(xy) / 2), 0, 11).astype(int)
    wanted = np.einsum("lc,yxc->lyx", a[at[:, 1], at[:, 0]], b)
    if similarity == "cosine":
        wanted = wanted / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(ours, wanted.reshape(3, -1), atol=1e-4)


def test_inner_products_prefer_long_features_and_cosines_do_not():
    source = np.zeros((4, 4, 2), np.float32)
    source[1, 2] = 1, 0
    target = np.full((4, 4, 2), 1e-3, np.float32)
    target[3, 0], target[0, 1] = (0.5, 0), (3, 4)
    given, xy = ((source,), (target,), np.array([[4.0, 2.0]])), dict(side=8, cells=4)
    assert match(*given, **xy, similarity="cosine").tolist() == [[0.0, 6.0]]
    assert match(*given, **xy, similarity="dot").tolist() == [[2.0, 0.0]]


def test_points_outside_count_and_unknown_ones_do_not():
    nan = np.nan
    source = np.array([[[1.0, 1.0], [5.0, 5.0], [nan, nan], [2.0, 2.0]]])
    target = np.array([[[1.0, 4.0], [5.0, 12.0], [3.0, 3.0], [2.0, 2.0]]])
    scored = matching.scored(np.tile([1.0, 0.0], (1, 4, 1)), source, target, np.array([8.0]), 10)
    assert scored.outside == 1
    np.testing.assert_allclose(scored.canonical, [[28.0, 7 * 160**0.5, nan, 7 * np.sqrt(5)]])
    np.testing.assert_allclose(scored.percent, [[50.0, 12.5 * 160**0.5, nan, 100 * np.sqrt(5) / 8]])
    mean, spread = matching.mean_and_spread(np.array([[1.0, 3.0], [6.0, nan], [nan, nan]]))
    assert (mean, spread) == (pytest.approx(10 / 3), 2.0)


class Dots:
    """Images with a disc of its own colour at each point of the annotation."""

    frame_size, colours = 48, np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]])

    def __init__(self, rows=4):
        self.names = [f"{9 - row}.png" for row in range(rows)]
        self.landmarks = np.random.default_rng(5).integers(14, 34, (rows, 3, 2)).astype(np.float32)
        self.landmarks[:, 1] = (self.landmarks[:, 0] + 8) % 20 + 14
        self.landmarks[:, 2] = np.nan

    def images(self, rows):
        y, x = np.mgrid[:48, :48]
        out = np.zeros((len(rows), 48, 48, 3), np.uint8)
        for i, row in enumerate(rows):
            for point, colour in zip(self.landmarks[row][:2], self.colours, strict=False):
                out[i][np.hypot(x - point[0], y - point[1]) <= 2.2] += colour.astype(np.uint8)
        return out


def centre(image, channel):
    """Where a channel is bright, (x, y)."""
    weight = image[..., channel].astype(float)
    y, x = np.mgrid[: len(image), : len(image)]
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def test_points_follow_the_warped_images():
    protocol, source = LEAD_2022._replace(frame=48, side=40), Dots()
    rows = matching.pair_rows(source.names, np.arange(4), 500)
    assert rows.tolist() == [[3, 2], [1, 0]]  # in the order of the names
    sets = matching.make_sets(source, rows, protocol, batch=2)
    for name in ("source", "same", "different"):
        images, xy = getattr(sets, name), getattr(sets, f"{name}_xy")
        assert images.shape == (2, 40, 40, 3)
        for pair in range(2):
            for point in range(2):
                assert np.abs(centre(images[pair], point) - xy[pair, point]).max() < 1.0, (name, pair, point)
                assert (xy[pair, point] % 1 == 0).all()
        assert np.isnan(xy[:, 2]).all()
    assert np.abs(sets.source_xy - sets.same_xy)[:, :2].max() >= 1  # it was warped once more
    assert np.abs(sets.same_xy[0, :2] - (source.landmarks[3, :2] - 4)).max() < 12
    alone = matching.make_sets(source, rows[:1], protocol, batch=2)
    np.testing.assert_array_equal(alone.source[0], sets.source[0])
    other = matching.make_sets(source, rows[:1], protocol, batch=2, seed=1)
    assert (other.source != alone.source).any()


def test_pairs_are_matched_in_batches():
    side, count = 16, 3
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (count, side, side, 3), dtype=np.uint8)
    xy = rng.integers(2, side - 2, (count, 4, 2)).astype(np.float32)
    moved = np.roll(images, 2, 2)  # two pixels to the right
    sets = matching.Sets(images, moved, images, xy, np.add(xy, (2, 0)), xy, np.zeros((count, 2), int))
    features = lambda images: (jax.nn.one_hot(images.astype(int)[..., 0], 256), jnp.asarray(images) / 255.0)
    found = matching.match_all(features, sets, cells=side, similarity="cosine", batch=2)
    error = {name: np.abs(found[name] - getattr(sets, f"{name}_xy")).max() for name in found}
    assert error["different"] == 0  # the image itself
    assert error["same"] == 0
