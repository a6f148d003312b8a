"""The contact sheets of an evaluation."""

import numpy as np

from tests.evaluation.made_up import Points, measure
from uld_jax.evaluation import pictures


def test_a_contact_sheet_shows_images_that_were_measured(monkeypatch):
    train, test = Points(200, seed=1), Points(50, seed=2)
    assert pictures.contact_sheet(test, measure(train, test, thorough=False)).width > 100
    some = measure(train, None, thorough=False)
    shown = []
    monkeypatch.setattr(pictures.viz, "contact_sheet", lambda images, xy, score: shown.extend([images, xy]))
    pictures.contact_sheet(train, some, count=5)
    rows = shown[0][:, 0, 0, 0]  # of these images the colour is the row
    assert len(rows) == 5
    assert set(rows) <= set(some.rows)
    np.testing.assert_array_equal(shown[1], train.found[rows])


def test_a_sheet_of_pose_clusters():
    train, test = Points(60, seed=1), Points(50, seed=2)
    test.pose = np.arange(50) % 3 * 2  # none in 1 and 3
    test.columns = {"yaw": [f"{v}" for v in np.array([-75, 0, 40])[test.pose // 2]]}
    result = measure(train, test, thorough=False)
    sheet = pictures.pose_sheet(test, result, count=9)
    assert sheet.height > 3 * 2 * 96
    rows = np.asarray(sheet.convert("L"))
    assert (rows < 60).any()  # of these images the colour is the row
    train.pose = np.full(60, -1)
    assert pictures.pose_sheet(train, measure(train, None, thorough=False)) is None
    assert pictures.pose_sheet(test, measure(train, Points(50, seed=2), thorough=False)) is None
