"""Protocols of dense features: their schedules, ids and refusals."""

import doctest
import math

import numpy as np
import pytest

from uld_jax.errors import UserError
from uld_jax.evaluation.dense import protocols
from uld_jax.evaluation.dense.protocols import CONTRAST_LANDMARKS_2021, DVE_2019, LEAD_2022, preset


def test_examples():
    result = doctest.testmod(protocols)
    assert result.attempted >= 6
    assert result.failed == 0


def test_rates_are_those_of_the_published_schedules():
    lowest = 1e-3 * 0.2**3 * 0.1
    theirs = [lowest + (1e-3 - lowest) * (1 + math.cos(math.pi * epoch / 200)) / 2 for epoch in range(1, 121)]
    ours = [float(CONTRAST_LANDMARKS_2021.full.rate_at(epoch)) for epoch in range(120)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert float(CONTRAST_LANDMARKS_2021.few.rate_at(999)) == pytest.approx(8e-6, rel=1e-4)
    assert float(CONTRAST_LANDMARKS_2021.full.rate_at(5000)) == pytest.approx(lowest, rel=1e-4)  # and not up again
    ours = [float(DVE_2019.full.rate_at(epoch)) for epoch in range(300)]
    np.testing.assert_allclose(ours, [1e-3] * 100 + [1e-4] * 150 + [1e-5] * 50, rtol=1e-5)
    assert [float(DVE_2019.few.rate_at(epoch)) for epoch in (0, 49)] == pytest.approx([0.01, 0.01])


def test_lead_regresses_as_contrast_landmarks():
    assert (LEAD_2022.full, LEAD_2022.few) == (CONTRAST_LANDMARKS_2021.full, CONTRAST_LANDMARKS_2021.few)
    assert LEAD_2022.few[:2] == (1e-2, 0.05)
    assert (LEAD_2022.full.b1, DVE_2019.full.b1, DVE_2019.full.amsgrad) == (0.5, 0.9, True)


def test_ids_tell_what_departs():
    usual, other = preset("lead2022", 5), preset("lead2022", 5, frame=96, epochs=45, repeats=3)
    assert usual.id("aflw_5_eyes", "regression", usual.full) == "aflw_5_eyes+lead2022+regression_120_epochs"
    assert other.id("aflw_5_eyes", "regression", other.full) == (
        "aflw_5_eyes+lead2022+view_96_of_96+regression_45_epochs"
    )
    assert preset("dve2019", 68).full.epochs == 300
    assert preset("contrast_landmarks2021", 68).full.epochs == 80
    assert other.repeats == 3
    assert other.asdict()["full"]["epochs"] == 45
    squared = preset("lead2022", 5, loss="squared", warped=True)  # few images are warped anyway
    assert (squared.full.loss, squared.few.loss) == ("squared", "squared")
    assert squared.id("d", "regression", squared.few, 5) == "d+lead2022+squared+regression_1000_epochs_x5"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": 200}, "--side=200 is larger than the frame of 136"),
        ({"epochs": 0}, "--epochs is 0; use 1 or more"),
        ({"few_epochs": -1}, "--few_epochs is -1"),
        ({"pairs": 0}, "--pairs is 0"),
        ({"repeats": 0}, "--repeats is 0"),
        ({"loss": "l2"}, "--loss=l2 is unknown; use one of smooth_l1, squared"),
    ],
)
def test_meaningless_choices_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        preset("lead2022", **changes)


def test_unknown_protocols_are_refused():
    with pytest.raises(UserError, match="use one of lead2022, contrast_landmarks2021, dve2019"):
        preset("lead2023")
