"""Corners on pictures whose corners are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.backbones.corners import Corners
from uld_jax.errors import UserError
from uld_jax.ops import nms


def square(gain=1.0, low=12, high=28):
    image = np.full((40, 40, 3), 0.2)
    image[low:high, low:high] = 0.2 + 0.6 * gain
    return jnp.asarray(image[None], jnp.float32)


@pytest.mark.slow
def test_the_corners_of_a_square_are_its_keypoints_and_contrast_does_not_matter():
    detector = Corners()
    want = {(12, 12), (12, 27), (27, 12), (27, 27)}
    for gain in (1.0, 0.2):
        score = detector.detect({}, square(gain)).score
        found = nms.points(nms.greedy(score, 0.4, 3), score, 8)
        assert int(found.mask.sum()) == 4
        for x, y in np.asarray(found.xy[0])[np.asarray(found.mask[0])]:
            assert min(abs(x - a) + abs(y - b) for a, b in want) <= 2
        edge = score[0, 20, 12]  # in the middle of a side: strong gradient, no corner
        assert edge < 0.1


def test_flat_and_cut_off_places_hold_none():
    assert not Corners().detect({}, jnp.full((1, 40, 40, 3), 0.5)).score.any()
    score = Corners(border=4).detect({}, square(low=1, high=39)).score
    assert not score[0, :4].any()
    assert not score[0, :, -4:].any()


def test_descriptors_have_length_1_and_know_a_place_again():
    described = Corners().detect({}, square()).descriptors[0]
    assert described.shape[-1] == Corners().spec.taps[0].channels
    lengths = np.linalg.norm(described, axis=-1)
    assert lengths.max() <= 1 + 1e-4
    moved = jnp.roll(square(), (4, 2), (1, 2))
    again = Corners().detect({}, moved).descriptors[0]
    np.testing.assert_allclose(again[8, 7], described[6, 6], atol=1e-4)  # a corner of the square, 4 down and 2 right
    maps = Corners().features({}, (255 * square()).astype(jnp.uint8))["descriptors"][0]
    np.testing.assert_allclose(maps, described, atol=2e-3)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(UserError, match="Corners needs"):
        Corners(window=0)
