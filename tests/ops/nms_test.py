"""Greedy suppression against a loop over points, one at a time."""

import doctest
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from uld_jax.errors import UserError
from uld_jax.ops import heatmaps, nms


def overlap(a, b, half):
    """Intersection over union of the boxes around points a [2] and b [n,2]."""
    low, high = np.maximum(a, b) - half, np.minimum(a, b) + half
    common = np.prod(np.maximum(high - low, 0), -1)
    return common / (2 * (2 * half) ** 2 - common)


def sequential(xy, score, half, iou=0.01):
    """Numbers of the points that a loop in descending score keeps; of equal scores the first comes first."""
    order = list(np.argsort(-score, kind="stable"))
    kept = []
    while order:
        best = order.pop(0)
        kept.append(best)
        if order:
            near = overlap(xy[best], xy[order], half) > iou
            order = [other for other, gone in zip(order, near, strict=True) if not gone]
    return kept


def sequential_map(scores, threshold, half):
    y, x = np.nonzero(scores > threshold)  # in reading order
    kept = sequential(np.stack([x, y], -1).astype(float), scores[y, x].astype(np.float64), half)
    out = np.zeros(scores.shape, bool)
    out[y[kept], x[kept]] = True
    return out


def maps(seed, count, size, how):
    """Noise, smooth bumps, or plateaus: few different values, so that most cells equal a neighbour."""
    rng = np.random.default_rng(seed)
    x = rng.random((count, *size)).astype(np.float32)
    if how != "noise":
        for axis in (1, 2):
            for _ in range(2):
                x = (np.roll(x, 1, axis) + x + np.roll(x, -1, axis)) / 3
        x = (x - x.min()) / (x.max() - x.min())
    return np.round(5 * x) / 5 if how == "plateaus" else x


@pytest.mark.parametrize(
    ("size", "half", "threshold"),
    [((24, 31), 1, 0.2), ((24, 31), 2, 0.15), ((40, 33), 6, 0.1), ((9, 40), 2.5, 0.5)],
)
def test_equals_a_loop_over_cells(size, half, threshold):
    for number, how in enumerate(("noise", "bumps", "plateaus")):
        scores = maps(number, 17, size, how)  # 4 x 3 x 17 = 204 maps
        found = np.asarray(nms.greedy(scores, threshold, half))
        for one, ours in zip(scores, found, strict=True):
            expected = sequential_map(one, threshold, half)
            assert expected.any()
            np.testing.assert_array_equal(ours, expected)


def test_the_neighbourhoods_of_the_published_boxes():
    far = lambda half: {
        (dx, dy)
        for dx in range(2 * half)
        for dy in range(2 * half)
        if not any(dx <= x and dy <= y for x, y in nms._rectangles(half, nms.IOU))
    }
    assert nms._rectangles(1, nms.IOU) == ((1, 1),)
    assert nms._rectangles(2, nms.IOU) == ((3, 3),)
    assert far(4) == {(7, 7)}
    assert far(6) == {(10, 11), (11, 10), (11, 11)}
    assert len(far(8)) == 10
    assert max(max(r) for r in nms._rectangles(8, nms.IOU)) == 15


def test_equal_scores_thresholds_and_numbers_that_are_none():
    found = nms.greedy(jnp.full((5, 5), 0.5), 0.2)
    np.testing.assert_array_equal(np.argwhere(found), [[y, x] for y in (0, 2, 4) for x in (0, 2, 4)])
    assert not nms.greedy(jnp.full((5, 5), 0.5), 0.5).any()  # exclusive
    scores = np.array(maps(0, 1, (24, 31), "noise")[0])
    scores[3:9, 4:20] = np.nan
    clean = np.where(np.isnan(scores), 0, scores)
    np.testing.assert_array_equal(nms.greedy(scores, 0.2), sequential_map(clean, 0.2, 1))
    assert nms.greedy(jnp.zeros((2, 0, 4)), 0.2).shape == (2, 0, 4)
    scores = maps(1, 6, (24, 31), "plateaus").reshape(2, 3, 24, 31)
    found = jax.vmap(jax.vmap(lambda s: nms.greedy(s, 0.3)))(scores)
    np.testing.assert_array_equal(found, nms.greedy(scores, 0.3))


def lists(seed, count, size, how):
    """Points between cells or at some, with equal scores; masked ones hold NaN or what would win."""
    rng = np.random.default_rng(seed)
    xy, score = 30 * rng.random((count, size, 2)), rng.random((count, size))
    if how == "cells":
        xy, score = np.round(xy), np.round(4 * score) / 4
    mask = rng.random((count, size)) < 0.8
    wild = np.where(rng.random((count, size)) < 0.5, np.nan, 9.0)
    dirty = np.where(mask[..., None], xy, wild[..., None]), np.where(mask, score, wild)
    return xy.astype(np.float32), score.astype(np.float32), mask, *(x.astype(np.float32) for x in dirty)


@pytest.mark.parametrize("half", [1, 2, 6])
def test_equals_a_loop_over_lists_of_points(half):
    for seed, how in enumerate(("between", "cells")):
        xy, score, mask, *dirty = lists(seed, 34, 60, how)
        found = np.asarray(nms.greedy_points(*dirty, mask, half))
        for i in range(len(xy)):
            there = np.flatnonzero(mask[i])
            kept = there[sequential(xy[i][there].astype(np.float64), score[i][there], half)]
            np.testing.assert_array_equal(np.flatnonzero(found[i]), np.sort(kept))


def test_lists_and_maps_agree_and_the_higher_of_old_and_new_wins():
    scores = maps(3, 1, (24, 31), "plateaus")[0]
    y, x = np.nonzero(scores > 0.4)
    found = nms.greedy_points(np.stack([x, y], -1).astype(np.float32), scores[y, x], np.ones(len(x), bool), 2)
    expected = nms.greedy(scores, 0.4, 2)
    np.testing.assert_array_equal(found, np.asarray(expected)[y, x])
    xy = jnp.array([[4.0, 4.0], [20.0, 4.0], [4.4, 4.9], [9.0, 9.0]])
    kept = nms.greedy_points(xy, jnp.array([0.1, 0.1, 0.2, 0.2]), jnp.ones(4, bool))
    assert kept.tolist() == [False, True, True, True]
    assert not nms.greedy_points(xy, jnp.ones(4), jnp.zeros(4, bool)).any()


def test_the_surest_points_come_in_slots_and_the_others_are_counted():
    scores = maps(5, 4, (24, 31), "plateaus")
    keep = np.array(nms.greedy(scores, 0.3))
    keep[3] = False
    for most in (5, 40, 24 * 31 + 3):
        found = jax.vmap(lambda k, s, most=most: nms.points(k, s, most))(keep, scores)
        assert found.xy.shape == (4, most, 2)
        assert found.xy.dtype == found.score.dtype == jnp.float32
        for i in range(4):
            y, x = np.nonzero(keep[i])
            order = np.argsort(-scores[i][y, x], kind="stable")[:most]
            np.testing.assert_array_equal(found.mask[i], np.arange(most) < len(order))
            np.testing.assert_array_equal(found.xy[i][: len(order)], np.stack([x, y], -1)[order])
            np.testing.assert_array_equal(found.score[i][: len(order)], scores[i][y, x][order])
            assert found.dropped[i] == len(y) - len(order)
            assert not found.xy[i][len(order) :].any()
            assert not found.score[i][len(order) :].any()
    assert (np.asarray(nms.points(keep, scores, 5).dropped) > 0).tolist() == [True, True, True, False]


def test_positions_between_cells():
    truth = np.random.default_rng(6).uniform(3, 20, (30, 2)).astype(np.float32)
    bumps = heatmaps.gaussian(truth[:, None], (24, 31), 1.5)  # [30,24,31,1]
    cells, _ = heatmaps.peak(bumps, refine=False)
    logs = jnp.log(bumps[..., 0])
    np.testing.assert_allclose(nms.subpixel(logs, cells, "parabola")[:, 0], truth, atol=1e-3)
    np.testing.assert_array_equal(nms.subpixel(logs, cells, "none"), cells)
    scores = maps(7, 3, (24, 31), "noise")
    everywhere = np.stack(np.meshgrid(np.arange(31), np.arange(24)), -1).reshape(-1, 2)
    xy = np.broadcast_to(everywhere, (3, *everywhere.shape)).astype(np.float32)
    quarter, parabola = (np.asarray(nms.subpixel(scores, xy, how)) for how in ("quarter", "parabola"))
    for i in range(3):
        for j, (x, y) in enumerate(everywhere):
            shift = np.zeros(2)
            if 1 < x < 30 and 1 < y < 23:
                along = scores[i, y, x + 1] - scores[i, y, x - 1], scores[i, y + 1, x] - scores[i, y - 1, x]
                shift = 0.25 * np.sign(along)
            np.testing.assert_array_equal(quarter[i, j] - (x, y), shift)
    top = np.asarray(nms.greedy(scores, 0.1))
    slots = top[:, everywhere[:, 1], everywhere[:, 0]]
    moved = np.abs(parabola - xy)
    assert moved.max() <= 0.5
    assert moved[slots].mean() > 0.1
    assert not moved[:, (everywhere[:, 0] == 0) | (everywhere[:, 0] == 30), 0].any()
    # As heatmaps.peak, at the highest cell.
    peaks, _ = heatmaps.peak(scores[..., None])
    cells, _ = heatmaps.peak(scores[..., None], refine=False)
    np.testing.assert_allclose(nms.subpixel(scores, cells, "parabola"), peaks, atol=1e-6)
    assert np.isfinite(np.asarray(nms.subpixel(scores, cells.at[0].set(99), "quarter"))).all()


def test_bad_arguments_are_named():
    for wrong in (dict(half=0), dict(iou=1.0), dict(iou=-0.1)):
        with pytest.raises(UserError, match="half"):
            nms.greedy(jnp.zeros((3, 3)), 0.1, **wrong)
        with pytest.raises(UserError, match="half"):
            nms.greedy_points(jnp.zeros((3, 2)), jnp.zeros(3), jnp.ones(3, bool), **wrong)
    with pytest.raises(UserError, match="most"):
        nms.points(jnp.zeros((3, 3), bool), jnp.zeros((3, 3)), 0)
    with pytest.raises(UserError, match="quarter"):
        nms.subpixel(jnp.zeros((3, 3)), jnp.zeros((1, 2)), "half")


def test_examples():
    result = doctest.testmod(nms)
    assert result.attempted >= 11
    assert result.failed == 0


def sharded():
    """Runs in a process of its own with eight devices; prints what it found."""
    from tests import collectives
    from uld_jax import sharding

    mesh = sharding.make_mesh()

    def detect(scores):
        found = nms.points(nms.greedy(scores, 0.2, 1), scores, 20)
        kept = nms.greedy_points(found.xy, found.score, found.mask, 2)
        return found, kept, nms.subpixel(scores, found.xy, "parabola")

    scores = maps(8, 16, (24, 31), "noise")
    split = jax.device_put(scores, sharding.split(mesh))
    compiled = jax.jit(detect).lower(split).compile()
    one, eight = jax.jit(detect)(scores), compiled(split)
    same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), one, eight)
    print(json.dumps(dict(same=jax.tree.leaves(same), sent=collectives.list_collectives(compiled))))


def test_eight_devices_send_no_maps():
    report = json.loads(tiny.run(__file__, devices=8).stdout.splitlines()[-1])
    assert len(report["same"]) == 6
    assert all(report["same"])
    # Whether any device has cells left, once a sweep.
    assert {(kind, tuple(shape)) for kind, _, shape in report["sent"]} <= {("all-reduce", ())}


if __name__ == "__main__":
    sharded()
