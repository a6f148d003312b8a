"""What an evaluation is made of, with landmarks made up in place of a network's."""

import csv
import dataclasses
import doctest
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from uld_jax import sharding
from uld_jax.data.schemes import SCHEMES
from uld_jax.data.specs import DatasetSpec, Source, spec_of
from uld_jax.detector import Detector
from uld_jax.engine.runs import Finished
from uld_jax.errors import UserError
from uld_jax.evaluation import evaluate
from uld_jax.evaluation import landmark_regression as regression
from uld_jax.evaluation.correspondence import correspondence
from uld_jax.evaluation.report import metrics
from uld_jax.evaluation.stability import Stability
from uld_jax.method import Prediction, Stage, TrainState
from uld_jax.predict import predict_folder


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
        self.score, self.pose = np.ones((rows, 3)), None

    def image(self, row):
        return np.full((40, 40, 3), row, np.uint8)


class Finds:
    """Stands in for `evaluate.Predictor`; the readers are the sources."""

    devices = 1

    def __init__(self, filled_below=0.0):
        self.filled_below = filled_below

    def read(self, state, frozen, reader, rows):
        return reader.found[rows], reader.score[rows]

    def poses(self, state, frozen, reader, rows):
        return None if reader.pose is None else reader.pose[rows]

    def images(self, state, frozen, images):
        raise AssertionError("stability is measured elsewhere")


def measure(train, test, changes=(), filled_below=0.0, **options):
    config = tiny.config(more=",protocol=awan2023", **{"eval.train_images": 30} | dict(changes))
    data = evaluate.Data(train, test, train, test)
    return evaluate.measure(config, Finds(filled_below), None, None, data, **options)


@pytest.fixture
def still(monkeypatch):
    """Stability that takes no time."""
    px = lambda *a, scale=0.0, **k: Stability(1.5 + scale, np.zeros(3), np.ones(3, int), "turned")
    monkeypatch.setattr(evaluate, "stability", px)


def test_examples():
    assert doctest.testmod(evaluate).failed == 0


def test_evaluations_on_the_way_fit_on_rows_spread_over_all_and_the_last_on_all(still):
    train, test = Points(200, seed=1), Points(50, seed=2)

    def expected(rows):
        sets = [
            regression.LandmarkSet(s.found[r], np.ones((len(r), 3)), s.landmarks[r])
            for s, r in ((train, rows), (test, np.arange(50)))
        ]
        return regression.evaluate(*sets, data="p", normaliser="image", image_side=40)

    some = measure(train, test, thorough=False)
    few = np.linspace(0, 199, 30).astype(int)
    assert (some["n_train"], some["n_test"]) == (30, 50)
    assert some["protocol"] == "points_5_image+pool_30"
    assert some["forward_nme"] == pytest.approx(expected(few)["forward_nme"])
    last = measure(train, test)
    assert last["n_train"] == 200
    assert last["protocol"] == "points_5_image"
    assert last["stability_protocol"] == "turned"
    assert last["forward_nme"] == pytest.approx(expected(np.arange(200))["forward_nme"])
    assert last["forward_nme"] != pytest.approx(some["forward_nme"])
    assert (last["stability_px"], last["stability_scaled_px"]) == (1.5, 1.5 + evaluate.SCALED)
    assert "stability_px" not in some
    assert "detected" not in last
    assert "spread" not in last
    assert "pose_clusters" not in last
    sheet = evaluate.contact_sheet(test, some)
    assert sheet.width > 100


@pytest.mark.parametrize("thorough", [False, True])
def test_images_without_annotation_neither_cost_nor_change_anything(still, monkeypatch, thorough):
    """40 annotated images among 400 give the numbers that the 40 alone give, and only they are predicted."""
    train, test, few = Points(400, seed=1), Points(50, seed=2), Points(40, seed=1)
    rows = np.sort(np.random.default_rng(0).permutation(400)[:40])
    without = np.ones(400, bool)
    without[rows] = False
    few.found, few.landmarks = train.found[rows], train.landmarks[rows]
    train.landmarks = np.where(without[:, None, None], np.nan, train.landmarks)
    train.found[without] += 1000
    read, plain = [], Finds.read
    monkeypatch.setattr(Finds, "read", lambda *a: (read.append((a[3], a[4])), plain(*a))[1])
    options = dict(thorough=thorough, label_counts=(1, 10, "all"))
    found, alone = (measure(one, test, {"eval.fit_images": 30}, **options) for one in (train, few))
    assert set(np.concatenate([r for s, r in read if s is train])) <= set(rows)
    for key in ("n_train", "forward_nme", "backward_nme", "mean_shape_nme", "landmark_accuracy", "label_counts"):
        assert found[key] == alone[key]
    assert found["label_counts"][-1]["n"] == (40 if thorough else 30)
    assert "not_measured" not in found


def test_what_is_lacking_is_said(still):
    train, test = Points(9, seed=1), Points(9, seed=2)
    train.landmarks = np.full_like(train.landmarks, np.nan)
    result = measure(train, test)
    assert result["not_measured"] == "no image of the split train is annotated"
    assert "not measured, as no image of the split train is annotated; stab" in evaluate.summary(metrics(result))
    test.landmarks = None
    assert measure(train, test)["not_measured"] == "no image of the split train and of the split test is annotated"
    assert measure(train, None)["not_measured"] == "there is no test split"


def test_images_alone_are_looked_at_no_oftener(monkeypatch):
    train = Points(200, seed=1)
    some = measure(train, None, thorough=False)
    np.testing.assert_array_equal(some["rows"], np.linspace(0, 199, 30).astype(int))
    assert "forward_nme" not in some
    assert some["landmarks"] == 3  # that are found does not hang on annotation
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
    assert "landmarks" not in evaluate.summary(metrics(result))
    some = measure(train, test, {"eval.min_found": 0.5}, thorough=False)
    assert some["often_found"]["landmarks"] == 3
    assert ", of the 3 landmarks found on more than 50 % of the images " in evaluate.summary(metrics(some))
    rows = np.linspace(0, 59, 30).astype(int)
    some = Points(60, seed=1)
    assert measure(some, None, {"eval.match_radius": 0.2}, thorough=False).keys() == {
        "landmarks",
        "found",
        "score",
        "rows",
        "not_measured",
    }
    some.score[:, 0] = 0
    alone = measure(some, None, {"eval.match_radius": 0.2}, thorough=False)
    np.testing.assert_array_equal(alone["rows"], rows)
    assert alone["keypoints_per_image"] == 2


@pytest.mark.parametrize(
    ("thorough", "most", "fitted"), [(True, 0, 60), (True, 20, 20), (False, 20, 20), (False, 50, 30)]
)
def test_the_images_that_regressors_are_fitted_on_may_be_few(still, thorough, most, fitted):
    result = measure(Points(60, seed=1), Points(9, seed=2), {"eval.fit_images": most}, thorough=thorough)
    assert result["n_train"] == fitted
    assert len(measure(Points(60, seed=1), None, {"eval.fit_images": 5})["rows"]) == 60  # nothing is fitted


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"eval.missing": "nearest"}, "missing"),
        ({"eval.min_found": 1.1}, "min_found"),
        ({"eval.ridge_forward": -1.0}, "ridge_forward"),
        ({"eval.pool_images": -1}, "pool_images"),
        ({"eval.fit_images": -1}, "fit_images"),
        ({"eval.match_radius": -0.1}, "match_radius"),
        ({"eval.accuracy_radius": 0.0}, "accuracy_radius"),
        ({"eval.repeats": 0}, "repeats"),
        ({"eval.repeats": 5, "eval.fit_images": 0}, "repeats"),  # all training images each time
    ],
)
def test_settings_that_mean_nothing_are_refused_before_the_run(changes, word):
    with pytest.raises(UserError, match=rf"eval\.{word}"):
        evaluate.open_data(tiny.config(**changes), sharding.make_mesh())


def test_repeats_fit_on_other_images_each_time(still):
    train, test = Points(60, seed=1), Points(50, seed=2)
    train.score[::4, 0] = 0
    changes = {"eval.fit_images": 12, "eval.repeats": 3, "seed": 7}
    result = measure(train, test, changes)
    alone = []
    sets = [regression.LandmarkSet(s.found, s.score, s.landmarks) for s in (train, test)]
    for repeat in range(3):
        rows = np.random.default_rng((7, repeat)).permutation(60)[:12]
        alone.append(regression.evaluate(*sets, data="p", normaliser="image", image_side=40, fits=[rows]))
    for name in ("forward_nme", "backward_nme"):
        values = [one[name] for one in alone]
        assert result[name] == pytest.approx(np.mean(values))
        assert result["spread"][name] == pytest.approx(np.std(values, ddof=1))
        assert result["spread"][name] > 0
        np.testing.assert_allclose(result["per_image"][name], np.mean([a["per_image"][name] for a in alone], 0))
    assert result["spread"]["repeats"] == 3
    assert (result["n_train"], result["n_pool"]) == (12, 60)
    assert result["protocol"] == "points_5_image+fit_12x3+missing_mean"
    assert result["found_train"] == pytest.approx(1 - 15 / 180)  # of all training images
    assert result["per_image"]["forward_nme"].mean() == pytest.approx(result["forward_nme"])
    assert metrics(result)["spread"] == result["spread"]
    assert result["landmark_accuracy"]["n_train"] == 60  # all images that were looked at
    again = measure(train, test, changes)
    assert again["forward_nme"] == result["forward_nme"]
    on_the_way = measure(train, test, changes, thorough=False)
    assert on_the_way["protocol"] == "points_5_image+pool_30+fit_12x3+missing_mean"
    whole = measure(Points(12, seed=1), test, changes)  # there is but one way to draw 12 of 12
    assert whole["protocol"] == "points_5_image"
    assert "spread" not in whole
    pooled = measure(train, test, changes | {"eval.pool_images": 20})
    rows = np.linspace(0, 59, 20).astype(int)
    drawn = [rows[np.random.default_rng((7, r)).permutation(20)[:12]] for r in range(3)]
    known = regression.complete_inputs(sets[0].take(rows)).xy
    assert (pooled["n_train"], pooled["n_pool"]) == (12, 20)
    assert pooled["found_train"] == pytest.approx((train.score[rows] > 0).mean())
    same = [regression.LandmarkSet(known, np.ones((20, 3)), train.landmarks[rows]), sets[1]]
    fits = [np.searchsorted(rows, draw) for draw in drawn]
    wanted = regression.evaluate(*same, data="p", normaliser="image", image_side=40, fits=fits)
    assert pooled["forward_nme"] == pytest.approx(wanted["forward_nme"])


def test_landmarks_that_were_filled_in_also_count_as_missing(still):
    train, test = Points(60, seed=1), Points(50, seed=2)
    for part, seed in ((train, 3), (test, 4)):
        filled = np.random.default_rng(seed).random(part.score.shape) < 0.3
        part.score[:] = np.where(filled, 0.05, 0.9)
        part.found += np.where(filled[..., None], np.random.default_rng(seed).normal(0, 8, part.found.shape), 0)
    result = measure(train, test, filled_below=0.1)
    sets = [regression.LandmarkSet(s.found, np.where(s.score < 0.1, 0, s.score), s.landmarks) for s in (train, test)]
    wanted = regression.evaluate(*sets, data="p", normaliser="image", image_side=40)
    for name in ("forward_nme", "backward_nme", "found_test", "found_share"):
        assert result["detected"][name] == wanted[name]
    assert result["found_share"] == 1
    assert 0.6 < result["detected"]["found_share"] < 0.8
    assert result["detected"]["backward_nme"] < result["backward_nme"]
    assert result["detected"]["protocol"] == "points_5_image+missing_mean"
    assert result["detected"]["landmark_accuracy"]["best"] < result["landmark_accuracy"]["best"]
    assert metrics(result)["detected"] == result["detected"]
    assert "detected" not in measure(train, test)  # the stage says nothing of it
    assert "detected" not in measure(train, test, filled_below=0.04)


def test_pose_clusters_and_their_sheet(still):
    train, test = Points(60, seed=1), Points(50, seed=2)
    test.pose = np.arange(50) % 3 * 2  # none in 1 and 3
    test.columns = {"yaw": [f"{v}" for v in np.array([-75, 0, 40])[test.pose // 2]]}
    result = measure(train, test)
    np.testing.assert_array_equal(result["pose"], test.pose)
    found = metrics(result)["pose_clusters"]
    assert found["sizes"] == [17, 0, 17, 0, 16]
    assert (found["accuracy"], found["nmi"]) == (1, pytest.approx(1))
    assert found["yaw_range"] == ["-90 to -60", None, "-30 to 30", None, "30 to 60"]
    sheet = evaluate.pose_sheet(test, result, count=9)
    assert sheet.height > 3 * 2 * 96
    rows = np.asarray(sheet.convert("L"))
    assert (rows < 60).any()  # of these images the colour is the row
    test.columns = {"yaw": [""] * 49 + ["left"]}
    unknown = measure(train, test, thorough=False)["pose_clusters"]
    assert unknown == {"sizes": [17, 0, 17, 0, 16], "unclustered": 0}
    train.pose = np.full(60, -1)
    alone = measure(train, None, thorough=False)
    assert alone["pose_clusters"]["unclustered"] == 30
    assert evaluate.pose_sheet(train, alone) is None
    assert evaluate.pose_sheet(test, {"pose": None}) is None


def test_pictures_of_pose_clusters_stand_by_the_others(tmp_path, still):
    config, mesh = tiny.config(**{"data.rows": (24, 8)}), sharding.make_mesh()
    data, state = evaluate.open_data(config, mesh), TrainState(jnp.int32(0), aux=jnp.ones(5, bool))
    given = evaluate.Predictor(Slots(), mesh), state, {}, data
    for last in (False, True):
        report = evaluate.in_training(config, tmp_path, "detector", 7, *given, last=last)
        assert sum(report["pose_clusters"]["sizes"]) == 8
        assert (tmp_path / "pictures/00000007_detector_pose_clusters.png").exists()
        for folder in ("eval/test", "eval/test/detector"):
            for name in ("pose_clusters.png", "landmark_accuracy.png"):
                assert (tmp_path / folder / name).exists() == last
    saved = json.loads((tmp_path / "eval/test/metrics.json").read_text())
    assert saved["pose_clusters"] == report["pose_clusters"]
    assert saved["pose_clusters"]["counted"] == 8  # the synthetic heads have a yaw
    assert 0 <= saved["landmark_accuracy"]["exclusive"] <= saved["landmark_accuracy"]["best"] <= 1


def test_yaw_is_told_from_68_points(still):
    class Faces(Points):
        def __init__(self, rows, seed):
            super().__init__(rows, seed)
            yaw, rng = np.linspace(-70, 70, rows), np.random.default_rng(0)
            shape, mirror = rng.uniform((0, -10, 0), (10, 10, 3), (68, 3)), np.array(SCHEMES["ibug68"].mirror)
            shape[:, 2] += shape[:, 0]
            shape[:, 0] *= np.where(np.arange(68) < mirror, -1, np.where(np.arange(68) == mirror, 0, 1))
            partner = np.arange(68) > mirror
            shape[partner] = (shape * (-1, 1, 1))[mirror[partner]]
            x = shape[:, 0] * np.cos(np.radians(yaw))[:, None] - shape[:, 2] * np.sin(np.radians(yaw))[:, None]
            self.landmarks = np.stack([x, np.broadcast_to(shape[:, 1], x.shape)], -1) + 20
            self.spec, self.visible = spec_of("points", 68, scheme="ibug68"), None
            self.columns = {"yaw_proxy": ["0"] * rows}
            self.pose = np.digitize(yaw, [-30, 30])

    train, test = Faces(41, seed=1), Faces(31, seed=2)
    assert evaluate.yaw_of(test) == pytest.approx(np.linspace(-70, 70, 31), abs=1)
    result = measure(train, test, group_by="yaw:0,30,90", thorough=False)
    assert [g["group"] for g in result["groups"]["yaw"]] == ["± 0 to 30", "± 30 to 90"]
    assert result["pose_clusters"]["yaw_range"] == ["-60 to -30", "-30 to 30", "30 to 60"]
    assert list(result["landmark_accuracy"]["areas"]) == ["jaw", "brows", "nose", "eyes", "mouth"]
    test.spec = spec_of("points", 68)  # 68 points of anything else
    assert evaluate.yaw_of(test) is None
    assert list(measure(train, test, thorough=False)["landmark_accuracy"]["areas"]) == []
    assert evaluate.yaw_of(Points(5, 0)).tolist() == [0] * 5
    few = Points(5, 0)
    few.columns = {}
    assert evaluate.yaw_of(few) is None
    few.pose = None
    with pytest.raises(UserError, match="no column 'yaw'"):
        measure(Points(9, 1), few, group_by="yaw", thorough=False)


def test_runs_of_before_keep_their_protocol(tmp_path):
    """They have no `data.scheme`: schemes were told by the number of points then."""
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "train.csv").write_text("file,x0,y0,x1,y1,x2,y2,x3,y3,x4,y4\na.png,1,2,3,4,5,6,7,8,9,10\n")
    config = tiny.config(dataset="folder", data_dir=str(tmp_path))
    assert evaluate.open_split(config, "train").spec.protocol == "folder_5_box"
    with config.unlocked():
        config.data.scheme = "eyes_nose_mouth5"
        assert evaluate.open_split(config, "train").spec.protocol == "folder_5_eyes"
        del config.data.scheme
    assert evaluate.open_split(config, "train").spec.protocol == "folder_5_eyes"


@pytest.mark.parametrize(
    ("asked", "words"), [("age", "the test csv has no column 'age'"), ("yaw_proxy:0,a", "--group_by")]
)
def test_groups_that_cannot_be_are_refused_before_anything_is_predicted(monkeypatch, asked, words):
    monkeypatch.setattr(Finds, "read", lambda *_: pytest.fail("landmarks were predicted"))
    train, test = Points(9, seed=1), Points(9, seed=2)
    test.columns = {"yaw_proxy": ["0"] * 9}
    with pytest.raises(UserError, match=words):
        measure(train, test, group_by=asked)


@dataclasses.dataclass(frozen=True)
class Slots(Stage):
    """Five slots whose places hang on the image's brightness; the state says which of them are landmarks."""

    maps: int = 5

    def landmarks(self, state):
        return state.aux

    def poses(self, state, frozen, images):
        return None if state.aux is None else images[:, 0, 0, 0].astype(jnp.int32) // 32

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
    first = data.test.images()[:, 0, 0, 0] // 32
    np.testing.assert_array_equal(predictor.poses(state, {}, data.test_reader), first)
    np.testing.assert_array_equal(predictor.poses(state, {}, data.test_reader, np.array([2, 5])), first[[2, 5]])
    assert predictor.poses(TrainState(jnp.int32(0), aux=None), {}, data.test_reader) is None
    result = evaluate.measure(config, predictor, state, {}, data, thorough=False)
    np.testing.assert_array_equal(result["pose"], first)
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
