"""What an evaluation is made of, with landmarks made up in place of a network's."""

import doctest

import numpy as np
import pytest

from tests import tiny
from uld_jax import evaluate
from uld_jax.data.specs import DatasetSpec, Source
from uld_jax.evaluators import landmark_regression as regression
from uld_jax.evaluators.stability import Stability


class Points(Source):
    """Annotation that hangs on three made-up landmarks; `found` is what a detector finds."""

    def __init__(self, rows, seed):
        rng = np.random.default_rng(seed)
        self.spec, self.frame_size, self.columns = DatasetSpec("points", 5, "image"), 40, {"yaw": ["0"] * rows}
        self.names = [str(i) for i in range(rows)]
        self.found = rng.uniform(5, 35, (rows, 3, 2)).astype(np.float32)
        mix = np.random.default_rng(0).dirichlet(np.ones(3), 5)
        self.landmarks = np.einsum("lk,nkc->nlc", mix, self.found) + rng.normal(0, 1, (rows, 5, 2))
        self.visible = np.ones((rows, 5), bool)

    def image(self, row):
        return np.full((40, 40, 3), row, np.uint8)


class Finds:
    """Stands in for `evaluate.Predictor`; the readers are the sources."""

    devices = 1

    def read(self, state, frozen, reader, rows):
        return reader.found[rows], np.ones((len(rows), 3))

    def images(self, state, frozen, images):
        raise AssertionError("stability is measured elsewhere")


def measure(train, test, **options):
    config = tiny.config(**{"eval.train_images": 30})
    data = evaluate.Data(train, test, train, test)
    return evaluate.measure(config, Finds(), None, None, data, **options)


def test_examples():
    assert doctest.testmod(evaluate).failed == 0


def test_evaluations_on_the_way_fit_on_rows_spread_over_all_and_the_last_on_all(monkeypatch):
    train, test = Points(200, seed=1), Points(50, seed=2)
    monkeypatch.setattr(evaluate, "stability", lambda *a, **k: Stability(1.5, np.zeros(3), np.ones(3, int)))

    def expected(rows):
        sets = [
            regression.LandmarkSet(s.found[r], np.ones((len(r), 3)), s.landmarks[r])
            for s, r in ((train, rows), (test, np.arange(50)))
        ]
        return regression.evaluate(*sets, protocol="p", normaliser="image", image_side=40)

    some = measure(train, test, thorough=False)
    few = np.linspace(0, 199, 30).astype(int)
    assert (some["n_train"], some["n_test"]) == (30, 50)
    assert some["forward_nme"] == pytest.approx(expected(few)["forward_nme"])
    last = measure(train, test)
    assert last["n_train"] == 200
    assert last["forward_nme"] == pytest.approx(expected(np.arange(200))["forward_nme"])
    assert last["forward_nme"] != pytest.approx(some["forward_nme"])
    sheet = evaluate.contact_sheet(test, some)
    assert sheet.width > 100


def test_images_alone_are_looked_at_no_oftener(monkeypatch):
    train = Points(200, seed=1)
    some = measure(train, None, thorough=False)
    np.testing.assert_array_equal(some["rows"], np.linspace(0, 199, 30).astype(int))
    assert "forward_nme" not in some
    shown = []
    monkeypatch.setattr(evaluate.viz, "contact_sheet", lambda images, xy, score: shown.extend([images, xy]))
    evaluate.contact_sheet(train, some, count=5)
    rows = shown[0][:, 0, 0, 0]  # of these images the colour is the row
    assert len(rows) == 5
    assert set(rows) <= set(some["rows"])
    np.testing.assert_array_equal(shown[1], train.found[rows])
