"""What an evaluation is made of, with landmarks made up in place of a network's."""

import numpy as np
import pytest

from tests.evaluation.made_up import Finds, Points, measure
from uld_jax.data.specs import SCHEMES, spec_of
from uld_jax.errors import UserError
from uld_jax.evaluation import landmark_regression as regression
from uld_jax.evaluation.correspondence import correspondence
from uld_jax.evaluation.measure import SCALED, yaw_of
from uld_jax.evaluation.report import metrics, summary


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
    assert (some.errors.n_train, some.errors.n_test) == (30, 50)
    assert some.errors.protocol == "points_5_image+pool_30"
    assert some.errors.forward_nme == pytest.approx(expected(few).forward_nme)
    last = measure(train, test)
    assert last.errors.n_train == 200
    assert last.errors.protocol == "points_5_image"
    assert last.stability.protocol == "points+turned+images=16"
    assert measure(train, test, {"eval.stability_images": 0}).stability.protocol == "points+turned"
    assert last.errors.forward_nme == pytest.approx(expected(np.arange(200)).forward_nme)
    assert last.errors.forward_nme != pytest.approx(some.errors.forward_nme)
    assert (last.stability.px, last.stability_scaled.px) == (1.5, 1.5 + SCALED)
    assert some.stability is None
    assert last.detected is None
    assert last.errors.spread is None
    assert last.pose_clusters is None


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
    monkeypatch.setattr(Finds, "read", lambda *a: (read.append((a[2], a[3])), plain(*a))[1])
    options = dict(thorough=thorough, label_counts=(1, 10, "all"))
    found, alone = (measure(one, test, {"eval.fit_images": 30}, **options) for one in (train, few))
    assert set(np.concatenate([r for s, r in read if s is train])) <= set(rows)
    for key in ("n_train", "forward_nme", "backward_nme", "mean_shape_nme", "landmark_accuracy", "label_counts"):
        assert metrics(found)[key] == metrics(alone)[key]
    assert found.label_counts[-1].n == (40 if thorough else 30)
    assert found.not_measured is None


def test_what_is_lacking_is_said(still):
    train, test = Points(9, seed=1), Points(9, seed=2)
    train.landmarks = np.full_like(train.landmarks, np.nan)
    result = measure(train, test)
    assert result.not_measured == "no image of the split train is annotated"
    assert "not measured, as no image of the split train is annotated; stab" in summary(metrics(result))
    test.landmarks = None
    assert measure(train, test).not_measured == "no image of the split train and of the split test is annotated"
    assert measure(train, None).not_measured == "there is no test split"


def test_images_alone_are_looked_at_no_oftener():
    train = Points(200, seed=1)
    some = measure(train, None, thorough=False)
    np.testing.assert_array_equal(some.rows, np.linspace(0, 199, 30).astype(int))
    assert some.errors is None
    assert some.landmarks == 3  # that are found does not hang on annotation


def test_missing_landmarks_are_compared_with_the_annotation():
    train, test = Points(60, seed=1), Points(50, seed=2)
    assert measure(train, test, thorough=False).correspondence is None
    for part, seed in ((train, 3), (test, 4)):
        part.score[:] = np.random.default_rng(seed).random(part.score.shape) < 0.7
    test.visible[:, 1] = np.arange(50) % 2
    result = measure(train, test, {"eval.match_radius": 0.2, "eval.missing": "svt"}, thorough=False)
    wanted = correspondence(test.found, test.score, test.landmarks, np.full(50, 40.0), radius=0.2, visible=test.visible)
    assert result.correspondence == wanted
    assert result.errors.protocol.endswith("+missing_svt")
    assert {k: metrics(result)[k] for k in vars(wanted)} == vars(wanted)
    assert result.errors.often_found.landmarks == 0
    assert "landmarks" not in summary(metrics(result))
    some = measure(train, test, {"eval.min_found": 0.5}, thorough=False)
    assert some.errors.often_found.landmarks == 3
    assert ", of the 3 landmarks found on more than 50 % of the images " in summary(metrics(some))
    rows = np.linspace(0, 59, 30).astype(int)
    some = Points(60, seed=1)
    alone = measure(some, None, {"eval.match_radius": 0.2}, thorough=False)
    assert {name for name, part in vars(alone).items() if part is not None} == {
        "landmarks",
        "xy",
        "score",
        "rows",
        "not_measured",
    }
    some.score[:, 0] = 0
    alone = measure(some, None, {"eval.match_radius": 0.2}, thorough=False)
    np.testing.assert_array_equal(alone.rows, rows)
    assert alone.correspondence.keypoints_per_image == 2


@pytest.mark.parametrize(
    ("thorough", "most", "fitted"), [(True, 0, 60), (True, 20, 20), (False, 20, 20), (False, 50, 30)]
)
def test_the_images_that_regressors_are_fitted_on_may_be_few(still, thorough, most, fitted):
    result = measure(Points(60, seed=1), Points(9, seed=2), {"eval.fit_images": most}, thorough=thorough)
    assert result.errors.n_train == fitted
    assert len(measure(Points(60, seed=1), None, {"eval.fit_images": 5}).rows) == 60  # nothing is fitted


def test_repeats_fit_on_other_images_each_time(still):
    train, test = Points(60, seed=1), Points(50, seed=2)
    train.score[::4, 0] = 0
    changes = {"eval.fit_images": 12, "eval.repeats": 3, "seed": 7}
    result = measure(train, test, changes)
    errors = result.errors
    alone = []
    sets = [regression.LandmarkSet(s.found, s.score, s.landmarks) for s in (train, test)]
    for repeat in range(3):
        rows = np.random.default_rng((7, repeat)).permutation(60)[:12]
        alone.append(regression.evaluate(*sets, data="p", normaliser="image", image_side=40, fits=[rows]))
    for name in ("forward_nme", "backward_nme"):
        values = [getattr(one, name) for one in alone]
        assert getattr(errors, name) == pytest.approx(np.mean(values))
        assert getattr(errors.spread, name) == pytest.approx(np.std(values, ddof=1))
        assert getattr(errors.spread, name) > 0
        some = [getattr(a.per_image, name) for a in alone]
        np.testing.assert_allclose(getattr(errors.per_image, name), np.mean(some, 0))
    assert errors.spread.repeats == 3
    assert (errors.n_train, errors.n_pool) == (12, 60)
    assert errors.protocol == "points_5_image+fit_12x3+missing_mean"
    assert errors.found_train == pytest.approx(1 - 15 / 180)  # of all training images
    assert errors.per_image.forward_nme.mean() == pytest.approx(errors.forward_nme)
    assert metrics(result)["spread"] == vars(errors.spread)
    assert result.accuracy.n_train == 60  # all images that were looked at
    again = measure(train, test, changes)
    assert again.errors.forward_nme == errors.forward_nme
    on_the_way = measure(train, test, changes, thorough=False)
    assert on_the_way.errors.protocol == "points_5_image+pool_30+fit_12x3+missing_mean"
    whole = measure(Points(12, seed=1), test, changes)  # there is but one way to draw 12 of 12
    assert whole.errors.protocol == "points_5_image"
    assert whole.errors.spread is None
    pooled = measure(train, test, changes | {"eval.pool_images": 20})
    rows = np.linspace(0, 59, 20).astype(int)
    drawn = [rows[np.random.default_rng((7, r)).permutation(20)[:12]] for r in range(3)]
    known = regression.complete_inputs(sets[0].take(rows)).xy
    assert (pooled.errors.n_train, pooled.errors.n_pool) == (12, 20)
    assert pooled.errors.found_train == pytest.approx((train.score[rows] > 0).mean())
    same = [regression.LandmarkSet(known, np.ones((20, 3)), train.landmarks[rows]), sets[1]]
    fits = [np.searchsorted(rows, draw) for draw in drawn]
    wanted = regression.evaluate(*same, data="p", normaliser="image", image_side=40, fits=fits)
    assert pooled.errors.forward_nme == pytest.approx(wanted.forward_nme)


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
        assert getattr(result.detected.errors, name) == getattr(wanted, name)
    assert result.errors.found_share == 1
    assert 0.6 < result.detected.errors.found_share < 0.8
    assert result.detected.errors.backward_nme < result.errors.backward_nme
    assert result.detected.errors.protocol == "points_5_image+missing_mean"
    assert result.detected.accuracy.best < result.accuracy.best
    assert metrics(result)["detected"]["backward_nme"] == result.detected.errors.backward_nme
    assert measure(train, test).detected is None  # the stage says nothing of it
    assert measure(train, test, filled_below=0.04).detected is None


def test_pose_clusters(still):
    train, test = Points(60, seed=1), Points(50, seed=2)
    test.pose = np.arange(50) % 3 * 2  # none in 1 and 3
    test.columns = {"yaw": [f"{v}" for v in np.array([-75, 0, 40])[test.pose // 2]]}
    result = measure(train, test)
    np.testing.assert_array_equal(result.pose, test.pose)
    found = metrics(result)["pose_clusters"]
    assert found["sizes"] == [17, 0, 17, 0, 16]
    assert (found["accuracy"], found["nmi"]) == (1, pytest.approx(1))
    assert found["yaw_range"] == ["-90 to -60", None, "-30 to 30", None, "30 to 60"]
    test.columns = {"yaw": [""] * 49 + ["left"]}
    unknown = metrics(measure(train, test, thorough=False))["pose_clusters"]
    assert unknown == {"sizes": [17, 0, 17, 0, 16], "unclustered": 0}
    train.pose = np.full(60, -1)
    alone = measure(train, None, thorough=False)
    assert alone.pose_clusters.unclustered == 30


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
    assert yaw_of(test) == pytest.approx(np.linspace(-70, 70, 31), abs=1)
    result = measure(train, test, group_by="yaw:0,30,90", thorough=False)
    assert [g.group for g in result.groups["yaw"]] == ["± 0 to 30", "± 30 to 90"]
    assert result.pose_clusters.yaw.yaw_range == ["-60 to -30", "-30 to 30", "30 to 60"]
    assert list(result.accuracy.areas) == ["jaw", "brows", "nose", "eyes", "mouth"]
    test.spec = spec_of("points", 68)  # 68 points of anything else
    assert yaw_of(test) is None
    assert list(measure(train, test, thorough=False).accuracy.areas) == []
    assert yaw_of(Points(5, 0)).tolist() == [0] * 5
    few = Points(5, 0)
    few.columns = {}
    assert yaw_of(few) is None
    few.pose = None
    with pytest.raises(UserError, match="no column 'yaw'"):
        measure(Points(9, 1), few, group_by="yaw", thorough=False)


def test_yaw_is_told_from_the_points_of_stretched_images():
    class Faces(Points):
        def __init__(self, rows):
            super().__init__(rows, 0)
            yaw = np.radians(np.linspace(-60, 60, rows))
            shape = np.array([[-3, -3, 2], [3, -3, 2], [0, 0, -2], [-2, 4, 1], [2, 4, 1]])
            x = shape[:, 0] * np.cos(yaw)[:, None] - shape[:, 2] * np.sin(yaw)[:, None]
            away = x + 1j * shape[:, 1]
            away = away * np.exp(1j * np.random.default_rng(0).uniform(-0.5, 0.5, (rows, 1)))  # turned in the picture
            self.landmarks = np.stack([away.real, away.imag], -1) + 20
            self.spec, self.columns = spec_of("points", 5, scheme="eyes_nose_mouth5"), {}

    faces, yaw = Faces(31), pytest.approx(np.linspace(-60, 60, 31), abs=1)
    assert yaw_of(faces) == yaw
    faces.landmarks = faces.landmarks * (1, 1.5)
    assert yaw_of(faces) != yaw
    faces.frame_maps = np.tile([1, 1.5, 0, 0], (31, 1))
    assert yaw_of(faces) == yaw
    faces.frame_maps, faces.columns = np.tile([2, 2, 0, 0], (31, 1)), {"crop_stretch": ["1.50000"] * 31}
    assert yaw_of(faces) == yaw
    faces.columns["yaw"] = ["7"] * 31  # the data set's own
    assert (yaw_of(faces) == 7).all()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("age", "the test csv has no column 'age'"),
        ("yaw_proxy:0,a", "--group_by=yaw_proxy:0,a: 'a' is not a number; give"),
    ],
)
def test_groups_that_cannot_be_are_refused_before_anything_is_predicted(monkeypatch, asked, words):
    monkeypatch.setattr(Finds, "read", lambda *_: pytest.fail("landmarks were predicted"))
    train, test = Points(9, seed=1), Points(9, seed=2)
    test.columns = {"yaw_proxy": ["0"] * 9}
    with pytest.raises(UserError, match=words):
        measure(train, test, group_by=asked)
