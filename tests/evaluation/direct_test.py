"""Errors without regression."""

import numpy as np
import pytest

from uld_jax.errors import UserError
from uld_jax.evaluation.direct import direct_errors
from uld_jax.evaluation.landmark_regression import LandmarkSet

TRUTH = np.array([[[0.0, 0], [10, 0], [5, 5]], [[0, 0], [20, 0], [np.nan, np.nan]]])
OPTIONS = dict(data="faces_3_0-1", normaliser=(0, 1), image_side=40)


def test_distances_are_divided_by_the_normaliser_and_averaged_by_image():
    found = TRUTH + np.array([[[3.0, 4]], [[0, 2]]])
    found[1, 2] = 7  # not annotated, not scored
    visible = np.array([[True, False, True], [True, True, False]])
    errors = direct_errors(LandmarkSet(found, np.ones((2, 3)), TRUTH, visible), TRUTH, **OPTIONS)
    assert errors.forward_nme == pytest.approx((50 + 10) / 2)
    assert errors.forward_nme_visible == pytest.approx((50 + 10) / 2)
    np.testing.assert_allclose(errors.per_landmark.forward, [30, 30, 50])
    assert errors.protocol == "faces_3_0-1+direct"
    assert np.isnan(errors.backward_nme)
    assert errors.ced_auc == pytest.approx((0 + 1 - 10 / 25) / 2)


def test_missing_points_stand_at_the_mean_annotation():
    score = np.array([[1, 0, 1], [1, 1, 1.0]])
    errors = direct_errors(LandmarkSet(np.nan_to_num(TRUTH), score, TRUTH), TRUTH, **OPTIONS)
    assert errors.per_image.forward_nme[0] == pytest.approx(100 * 5 / 10 / 3)  # (15, 0) in place of (10, 0)
    assert errors.protocol == "faces_3_0-1+direct+missing_mean_shape"
    assert errors.found_test == pytest.approx(5 / 6)


def test_another_number_of_points_is_refused():
    with pytest.raises(UserError, match="there are 2 points for 3 annotated ones"):
        direct_errors(LandmarkSet(TRUTH[:, :2], np.ones((2, 2)), TRUTH), TRUTH, **OPTIONS)
