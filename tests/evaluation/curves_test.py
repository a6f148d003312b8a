"""Curves and groups against plain NumPy."""

import doctest

import numpy as np
import pytest

from uld_jax.errors import UserError
from uld_jax.evaluation import curves


def test_ced_and_its_area():
    errors = np.random.default_rng(0).gamma(3, 4, 500)
    thresholds, share = curves.ced([*errors, np.nan], limit=20, points=20001)
    np.testing.assert_allclose(share[::500], [(errors <= t).mean() for t in thresholds[::500]])
    assert curves.ced_auc(errors, 20) == pytest.approx(np.trapezoid(share, thresholds) / 20, abs=1e-4)


def test_group_by():
    errors = {"forward_nme": np.array([1.0, 2, 3, 4, 5, np.nan]), "mean_shape_nme": np.arange(6.0)}
    groups = curves.group_by(errors, ["-80", "10", "", "30", "90", "200"], [0, 30, 90])
    assert [(g.group, g.n, g.forward_nme) for g in groups] == [
        ("± 0 to 30", 1, 2.0),
        ("± 30 to 90", 3, pytest.approx(10 / 3)),
        ("outside", 1, None),
        ("no value", 1, 3.0),
    ]
    signed = curves.group_by(errors, [-80, -20, 0, 20, 80, 90], [-90, -30, 30, 90])
    assert [(g.group, g.n) for g in signed] == [("-90 to -30", 1), ("-30 to 30", 3), ("30 to 90", 2)]
    named = curves.group_by(errors, ["b", "a", "b", "", "a", "a"])
    assert [(g.group, g.n, g.forward_nme) for g in named][:2] == [("a", 3, 3.5), ("b", 2, 2.0)]
    numbered = curves.group_by(errors, ["10", "9", "10", "9", "9", "2"])
    assert [g.group for g in numbered] == ["2", "9", "10"]
    fifths = curves.group_by({"forward_nme": np.arange(100.0)}, list(range(100)))
    assert [g.n for g in fifths] == [20] * 5
    for values, edges in ((["a"] * 6, [0, 1]), ([1] * 6, [2, 1]), ([1] * 6, [3])):
        with pytest.raises(UserError, match="group_by"):
            curves.group_by(errors, values, edges)


def test_examples():
    assert doctest.testmod(curves).failed == 0
