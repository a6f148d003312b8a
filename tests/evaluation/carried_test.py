import numpy as np
import pytest

from uld_jax.evaluation.carried import carried

RNG = np.random.default_rng(0)
SIDE = 64  # a pixel of these frames is two at 128 px


def of(rng, n=7, k=3):
    """Landmarks, confidences, and a function that reads frames whose colour is their number."""
    xy = rng.uniform(5, 60, (n, k, 2)).astype(np.float32)
    return xy, np.ones((n, k)), lambda i: np.broadcast_to(np.uint8(i)[:, None, None, None], (len(i), SIDE, SIDE, 3))


def test_against_a_loop_in_numpy():
    xy, score, read = of(RNG)
    score[2, 1] = score[6, 0] = 0
    shift = RNG.normal(0, 1, (7, 7, 3, 2))  # of each pair

    def carry(a, b, points):
        one, other = a[:, 0, 0, 0], b[:, 0, 0, 0]
        assert np.array_equal(points, xy[other])
        return xy[one] + shift[one, other]

    found = carried(carry, read, xy, score, batch_size=4)
    ours, still = np.full((2, 7, 3), np.nan)
    for i in range(7):
        j = (i + 3) % 7
        for k in range(3):
            if score[i, k] and score[j, k]:
                ours[i, k] = 2 * np.hypot(*shift[i, j, k])
                still[i, k] = 2 * np.hypot(*(xy[j, k] - xy[i, k]))
    assert found.px == pytest.approx(np.nanmean(np.nanmean(ours, 0)), rel=1e-6)
    assert found.same_place_px == pytest.approx(np.nanmean(np.nanmean(still, 0)), rel=1e-6)
    assert found.counted.tolist() == [5, 5, 7]
    assert found.protocol == "carried_px_128"


def test_a_stage_that_carries_nothing_has_no_number():
    xy, score, read = of(RNG)
    assert carried(lambda *given: None, read, xy, score) is None
    assert carried(lambda a, b, points: points, read, xy[:1], score[:1]) is None  # nor has a single image


def test_a_landmark_that_is_never_found_is_left_out():
    xy, score, read = of(RNG)
    score[:, 0] = 0
    found = carried(lambda a, b, points: xy[a[:, 0, 0, 0]], read, xy, score)
    assert (found.px, found.counted.tolist()) == (0, [0, 7, 7])
    score[:] = 0
    assert np.isnan(carried(lambda a, b, points: points, read, xy, score).px)
