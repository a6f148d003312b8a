"""A stage's predictions, without the slots that it does not use."""

import csv

import jax.numpy as jnp
import numpy as np
from PIL import Image

from tests import tiny
from tests.evaluation.made_up import Slots
from uld_jax import sharding
from uld_jax.data.open import open_data
from uld_jax.detector import Detector
from uld_jax.engine.runs import Finished
from uld_jax.evaluation.measure import measure
from uld_jax.evaluation.predictor import Predictor
from uld_jax.evaluation.report import metrics
from uld_jax.method import Model, TrainState
from uld_jax.predict import predict_folder


def of_slots(used):
    return Model(Slots(), TrainState(jnp.int32(0), aux=used), {})


class Carries(Slots):
    """Carries points by the difference of both images' brightness."""

    def carry(self, state, frozen, images_a, images_b, points_b):
        a, b = (jnp.mean(x.astype(jnp.float32), (1, 2, 3)) for x in (images_a, images_b))
        return points_b + (a - b)[:, None, None]


def test_a_report_has_the_distance_of_carried_landmarks():
    config, mesh = tiny.config(**{"data.rows": (24, 8)}), sharding.make_mesh()
    data, model = open_data(config, mesh), of_slots(None)
    report = measure(config, Predictor(Carries(), mesh), model, data)
    bright = data.test.images().mean((1, 2, 3))
    by = np.abs(bright - np.roll(bright, -4))  # the flow moves a point by it in x and y, and landmarks by a 16th of it
    side = 128 / data.test.frame_size
    np.testing.assert_allclose(report.carried.px, np.sqrt(2) * by.mean() * 15 / 16 * side, rtol=1e-4)
    np.testing.assert_allclose(report.carried.same_place_px, np.sqrt(2) * by.mean() / 16 * side, rtol=1e-4)
    assert metrics(report)["carried"]["counted"] == [8] * 5
    assert measure(config, Predictor(Slots(), mesh), model, data).carried is None


def test_slots_that_are_not_in_use_are_seen_nowhere(tmp_path):
    config, mesh = tiny.config(**{"data.rows": (24, 8)}), sharding.make_mesh()
    data, used = open_data(config, mesh), jnp.array([False, True, True, False, True])
    model = of_slots(used)
    predictor = Predictor(Slots(), mesh)
    xy, score, detected = predictor.read(model, data.test_reader)
    assert xy.shape == (8, 3, 2)
    assert score.shape == detected.shape == (8, 3)
    assert detected.all()
    np.testing.assert_allclose(xy[:, 1] - xy[:, 0], [[2, 3]] * 8, atol=1e-4)
    np.testing.assert_array_equal(predictor.images(model, data.test.images())[0], xy)
    np.testing.assert_array_equal(predictor.heatmaps(model, data.test.images())[1][0, 0, 0], [1, 2, 4])
    assert Predictor(Slots(maps=1), mesh).heatmaps(model, data.test.images())[1].shape == (8, 8, 8, 1)
    first = data.test.images()[:, 0, 0, 0] // 32
    np.testing.assert_array_equal(predictor.poses(model, data.test_reader), first)
    np.testing.assert_array_equal(predictor.poses(model, data.test_reader, np.array([2, 5])), first[[2, 5]])
    assert predictor.poses(of_slots(None), data.test_reader) is None
    result = measure(config, predictor, model, data, thorough=False)
    np.testing.assert_array_equal(result.pose, first)
    assert result.landmarks == 3
    assert result.errors.found_share == 1  # the slots that are not in use are not missing landmarks
    assert result.correspondence is None

    # All slots where the stage says nothing; also, empty, where none is in use.
    for aux in (None, jnp.zeros(5, bool)):
        whole = Predictor(Slots(), mesh)
        every, scores, _ = whole.read(of_slots(aux), data.test_reader)
        assert every.shape == (8, 5, 2)
        assert (scores == (aux is None)).all()
        assert whole.count(of_slots(aux), 40) == 5

    detector = Detector(Finished(tmp_path, config, "detector", model, "", {}), mesh)
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
