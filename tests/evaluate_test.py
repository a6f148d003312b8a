"""What an evaluation is made of, with landmarks made up in place of a network's."""

import csv
import dataclasses
import doctest

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from uld_jax import evaluate, sharding
from uld_jax.data.specs import DatasetSpec, Source
from uld_jax.detector import Detector, predict_folder
from uld_jax.errors import UserError
from uld_jax.evaluators import landmark_regression as regression
from uld_jax.evaluators.correspondence import correspondence
from uld_jax.evaluators.report import metrics
from uld_jax.evaluators.stability import Stability
from uld_jax.method import Prediction, Stage, TrainState
from uld_jax.runs import Finished


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
        self.score = np.ones((rows, 3))

    def image(self, row):
        return np.full((40, 40, 3), row, np.uint8)


class Finds:
    """Stands in for `evaluate.Predictor`; the readers are the sources."""

    devices = 1

    def read(self, state, frozen, reader, rows):
        return reader.found[rows], reader.score[rows]

    def images(self, state, frozen, images):
        raise AssertionError("stability is measured elsewhere")


def measure(train, test, changes=(), **options):
    config = tiny.config(**{"eval.train_images": 30} | dict(changes))
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


def test_missing_landmarks_are_compared_with_the_annotation():
    train, test = Points(60, seed=1), Points(50, seed=2)
    assert "nmi" not in measure(train, test, thorough=False)
    for part, seed in ((train, 3), (test, 4)):
        part.score[:] = np.random.default_rng(seed).random(part.score.shape) < 0.7
    test.visible[:, 1] = np.arange(50) % 2
    result = measure(train, test, {"eval.match_radius": 0.2, "eval.missing": "svt"}, thorough=False)
    wanted = correspondence(test.found, test.score, test.landmarks, np.full(50, 40.0), radius=0.2, visible=test.visible)
    assert {k: result[k] for k in wanted} == wanted
    assert result["protocol"].endswith("+missing_svt")
    assert {k: metrics(result)[k] for k in wanted} == wanted
    assert result["often_found"]["landmarks"] == 0
    assert measure(train, test, {"eval.min_found": 0.5}, thorough=False)["often_found"]["landmarks"] == 3
    rows = np.linspace(0, 59, 30).astype(int)
    some = Points(60, seed=1)
    assert measure(some, None, {"eval.match_radius": 0.2}, thorough=False).keys() == {"found", "score", "rows"}
    some.score[:, 0] = 0
    alone = measure(some, None, {"eval.match_radius": 0.2}, thorough=False)
    np.testing.assert_array_equal(alone["rows"], rows)
    assert alone["keypoints_per_image"] == 2


@pytest.mark.parametrize(
    ("thorough", "most", "fitted"), [(True, 0, 60), (True, 20, 20), (False, 20, 20), (False, 50, 30)]
)
def test_the_images_that_regressors_are_fitted_on_may_be_few(monkeypatch, thorough, most, fitted):
    monkeypatch.setattr(evaluate, "stability", lambda *a, **k: Stability(1.5, np.zeros(3), np.ones(3, int)))
    result = measure(Points(60, seed=1), Points(9, seed=2), {"eval.fit_images": most}, thorough=thorough)
    assert result["n_train"] == fitted
    assert len(measure(Points(60, seed=1), None, {"eval.fit_images": 5})["rows"]) == 60  # nothing is fitted


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"eval.missing": "nearest"}, "missing"),
        ({"eval.min_found": 0.0}, "min_found"),
        ({"eval.fit_images": -1}, "fit_images"),
        ({"eval.match_radius": -0.1}, "match_radius"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_the_run(changes, word):
    with pytest.raises(UserError, match=rf"eval\.{word}"):
        evaluate.open_data(tiny.config(**changes), sharding.make_mesh())


def test_runs_from_before_there_were_settings_have_the_defaults():
    config = tiny.config()
    assert evaluate.Settings.of(config) == evaluate.Settings()
    with config.unlocked():
        for name in evaluate.Settings._fields:
            del config.eval[name]
    assert evaluate.Settings.of(config) == evaluate.Settings()


@dataclasses.dataclass(frozen=True)
class Slots(Stage):
    """Five slots whose places hang on the image's brightness; the state says which of them are landmarks."""

    maps: int = 5

    def landmarks(self, state):
        return state.aux

    def predict(self, state, frozen, images):
        bright = jnp.mean(images.astype(jnp.float32), (1, 2, 3)) / 16
        xy = jnp.arange(5.0)[:, None] * jnp.array([2.0, 3.0]) + 5 + bright[:, None, None]
        found = jnp.ones(5, bool) if state.aux is None else state.aux
        return Prediction(xy, jnp.broadcast_to(found, xy.shape[:2]).astype(jnp.float32))

    def heatmaps(self, state, frozen, images):
        return images, jnp.broadcast_to(jnp.arange(float(self.maps)), (len(images), 8, 8, self.maps))


def test_slots_that_are_not_in_use_are_seen_nowhere(tmp_path):
    config, mesh = tiny.config(**{"data.rows": (24, 8)}), sharding.make_mesh()
    data, used = evaluate.open_data(config, mesh), jnp.array([False, True, True, False, True])
    state = TrainState(jnp.int32(0), aux=used)
    predictor = evaluate.Predictor(Slots(), mesh)
    xy, score = predictor.read(state, {}, data.test_reader)
    assert xy.shape == (8, 3, 2)
    assert score.shape == (8, 3)
    np.testing.assert_allclose(xy[:, 1] - xy[:, 0], [[2, 3]] * 8, atol=1e-4)
    np.testing.assert_array_equal(predictor.images(state, {}, data.test.images())[0], xy)
    np.testing.assert_array_equal(predictor.heatmaps(state, {}, data.test.images())[1][0, 0, 0], [1, 2, 4])
    assert evaluate.Predictor(Slots(maps=1), mesh).heatmaps(state, {}, data.test.images())[1].shape == (8, 8, 8, 1)
    result = evaluate.measure(config, predictor, state, {}, data, thorough=False)
    assert result["landmarks"] == 3
    assert result["found_share"] == 1  # the slots that are not in use are not missing landmarks
    assert "nmi" not in result

    # All slots where the stage says nothing; also, empty, where none is in use.
    for aux in (None, jnp.zeros(5, bool)):
        whole = evaluate.Predictor(Slots(), mesh)
        every, scores = whole.read(TrainState(jnp.int32(0), aux=aux), {}, data.test_reader)
        assert every.shape == (8, 5, 2)
        assert (scores == (aux is None)).all()
        assert whole.count(TrainState(jnp.int32(0), aux=aux), {}, 40) == 5

    detector = Detector(Finished(tmp_path, config, "detector", Slots(), state, {}, "", {}), mesh)
    assert detector.k == 3
    frames = data.train.images()
    detector.fit_frames(frames, data.train.landmarks, data.train.frame_maps)
    assert detector.annotated.fill.shape == (3, 2)
    assert Detector(detector._finished, mesh).predict_frames(frames, "annotated")[0].shape[1] == 20
    (tmp_path / "photos").mkdir()
    Image.fromarray(frames[0]).save(tmp_path / "photos/a.png")
    predict_folder(detector, tmp_path / "photos", tmp_path / "out")
    header = next(csv.reader((tmp_path / "out/landmarks.csv").open()))
    assert header == ["file", *(f"{c}{k}" for k in range(3) for c in ("x", "y", "score"))]
