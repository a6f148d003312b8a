"""The share of correct keypoints, by hand."""

import doctest

import numpy as np
import pytest

from uld_jax.errors import UserError
from uld_jax.evaluation.alignment import pck

NAN = [np.nan, np.nan]
# Image a of the first pair has 112 x 448 pixels (height, width), so that x is halved and y doubled; three keypoints.
# Its box is 100 wide and 20 high. The second pair has a square image and one keypoint, whose box is a point.
SIZES = [[112, 448], [224, 224]]
TRUTH = np.array([[[10, 10], [110, 30], [60, 20], NAN], [[50, 50], NAN, NAN, NAN]], float)


def moved(*by):
    """The keypoints of the first pair moved, and that of the second at its place."""
    found = TRUTH.copy()
    found[0, :3] += by
    return found


@pytest.mark.parametrize(
    ("by", "image", "box"),
    [
        ([(0, 0), (0, 0), (0, 0)], [1, 1, 1], [1, 1, 1]),
        # 40 pixels in x are 20 of 224; 12 in y are 24; the box allows 10 pixels of the file.
        ([(40, 0), (0, 12), (9, 0)], [1, 0, 1], [0, 0, 1]),
        ([(44.8, 0), (44.9, 0), (0, 11.2)], [1, 0, 1], [0, 0, 0]),  # the distance itself is included
        ([(10, 0), (6, 8), (8, 8)], [1, 1, 1], [1, 1, 0]),
        ([(np.nan, 0), (np.inf, 0), (0, 0)], [0, 0, 1], [0, 0, 1]),
    ],
)
def test_correct_by_hand(by, image, box):
    for name, wanted in (("pf_pascal_ncnet", image), ("pf_pascal_box", box)):
        right = pck.correct(pck.PROTOCOLS[name], moved(*by), TRUTH, SIZES)
        np.testing.assert_array_equal(right, [[*wanted, np.nan], [1, *[np.nan] * 3]])
        np.testing.assert_allclose(pck.pck(right), [100 * sum(wanted) / 3, 100])


def test_pairs_count_once_whatever_their_keypoints():
    right = np.array([[1, 1, 1, 1], [0, np.nan, np.nan, np.nan]])
    assert pck.pck(right).mean() == 50


def test_the_same_place_is_relative_to_the_photo():
    # The corner (-0.5, -0.5) and the middle stay corner and middle, whatever the sizes.
    points = np.array([[[-0.5, -0.5], [29.5, 19.5], NAN]])
    found = pck.same_place(points, [[40, 60]], [[100, 30]])
    np.testing.assert_allclose(found, [[[-0.5, -0.5], [14.5, 49.5], NAN]])


def test_protocols_have_names():
    assert not doctest.testmod(pck).failed
    with pytest.raises(UserError, match="--protocol=ncnet is unknown; use one of pf_pascal_ncnet, pf_pascal_box"):
        pck.protocol_of("ncnet")
