import csv
import json

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from uld_jax.errors import UserError
from uld_jax.evaluators import landmark_regression as lr


def landmarks(n, k=6, points=9, seed=0, noise=2.0, missing=0.0):
    """Annotated shapes that move and bend, and discovered points that hang on them."""
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(99).uniform(20, 100, (points, 2))
    modes = np.random.default_rng(98).normal(0, 6, (3, points, 2))
    truth = base + np.tensordot(rng.normal(size=(n, 3)), modes, 1) + rng.normal(0, 8, (n, 1, 2))
    mix = np.random.default_rng(97).dirichlet(np.ones(points), k)
    found = np.einsum("kp,npc->nkc", mix, truth) + rng.normal(0, noise, (n, k, 2))
    score = rng.uniform(0.1, 1, (n, k)) * (rng.random((n, k)) >= missing)
    yaw = rng.uniform(-90, 90, n)
    return lr.LandmarkSet(found, score, truth, rng.random((n, points)) < 0.8, {"yaw": [f"{v:.3f}" for v in yaw]})


def flat(points):
    return np.asarray(points).reshape(len(points), -1)


def reference_fit(x, y, strength=0.01):
    centred = x - x.mean(0)
    return Ridge(alpha=strength * ((centred.T @ centred).max() + 1e-12), solver="cholesky").fit(x, y)


def evaluate(train, test, **options):
    return lr.evaluate(train, test, protocol="p", **{"normaliser": (0, 1), **options})


def test_forward_and_backward_equal_a_loop_over_images():
    train, test = landmarks(80), landmarks(30, seed=1)
    result = evaluate(train, test)
    forward = reference_fit(flat(train.found), flat(train.truth)).predict(flat(test.found)).reshape(30, 9, 2)
    backward = reference_fit(flat(train.truth), flat(train.found)).predict(flat(test.truth)).reshape(30, 6, 2)
    f, b, m = np.zeros((30, 9)), np.zeros((30, 6)), np.zeros((30, 9))
    for i in range(30):
        length = np.hypot(*(test.truth[i, 0] - test.truth[i, 1]))
        for j in range(9):
            f[i, j] = 100 * np.hypot(*(forward[i, j] - test.truth[i, j])) / length
            m[i, j] = 100 * np.hypot(*(train.truth[:, j].mean(0) - test.truth[i, j])) / length
        for k in range(6):
            b[i, k] = 100 * np.hypot(*(backward[i, k] - test.found[i, k])) / length
    assert result["protocol"] == "p"
    assert result["n_train"] == 80
    assert result["n_test"] == 30
    np.testing.assert_allclose(result["predicted"], forward, rtol=1e-8)
    np.testing.assert_allclose(
        [result["forward_nme"], result["backward_nme"], result["mean_shape_nme"]], [f.mean(), b.mean(), m.mean()], 1e-8
    )
    np.testing.assert_allclose(result["per_landmark"]["forward"], f.mean(0), 1e-8)
    np.testing.assert_allclose(result["per_landmark"]["backward"], b.mean(0), 1e-8)
    np.testing.assert_allclose(result["per_image"]["backward_nme"], b.mean(1), 1e-8)
    seen = [f[i, test.visible[i]].mean() for i in range(30)]
    assert result["forward_nme_visible"] == pytest.approx(np.mean(seen))
    assert result["forward_nme"] < 0.7 * result["mean_shape_nme"]


def test_missing_points_follow_the_policy():
    train, test = landmarks(60, missing=0.2, seed=2), landmarks(25, missing=0.2, seed=3)
    result = evaluate(train, test, normaliser="image", image_side=128)
    assert result["protocol"] == "p+missing_mean"
    there, there_test = train.score > 0, test.score > 0
    mean = np.array([train.found[there[:, k], k].mean(0) for k in range(6)])
    x = np.where(there[..., None], train.found, mean)
    z = np.where(there_test[..., None], test.found, mean)
    forward = reference_fit(flat(x), flat(train.truth)).predict(flat(z)).reshape(25, 9, 2)
    error = 100 * np.linalg.norm(forward - test.truth, axis=-1).mean() / 128
    assert result["forward_nme"] == pytest.approx(error, rel=1e-8)
    backward = []
    for k in range(6):
        fit = reference_fit(flat(train.truth[there[:, k]]), train.found[there[:, k], k])
        predicted = fit.predict(flat(test.truth[there_test[:, k]]))
        backward.append(100 * np.linalg.norm(predicted - test.found[there_test[:, k], k], axis=1).mean() / 128)
    np.testing.assert_allclose(result["per_landmark"]["backward"], backward, rtol=1e-8)
    assert result["backward_nme"] == pytest.approx(np.mean(backward))


def test_what_lies_at_missing_points_does_not_matter():
    train, test = landmarks(40, missing=0.3, seed=4), landmarks(20, missing=0.3, seed=5)
    noisy = [
        part._replace(found=np.where(part.score[..., None] > 0, part.found, junk))
        for part, junk in ((train, 1e6), (test, np.nan))
    ]
    a, b = evaluate(train, test), evaluate(*noisy)
    assert [a[k] for k in ("forward_nme", "backward_nme")] == [b[k] for k in ("forward_nme", "backward_nme")]
    nan = train._replace(
        score=np.ones_like(train.score), found=np.where(train.score[..., None] > 0, train.found, np.nan)
    )
    assert evaluate(nan, test)["forward_nme"] == a["forward_nme"]


def test_landmarks_never_found():
    train, test = landmarks(40, seed=6), landmarks(20, seed=7)
    train.score[:, 2] = 0
    result = evaluate(train, test)
    assert result["left_out"] == [2]
    assert np.isnan(result["per_landmark"]["backward"][2])
    keep = [0, 1, 3, 4, 5]
    small = [part._replace(found=part.found[:, keep], score=part.score[:, keep]) for part in (train, test)]
    reference = evaluate(*small)
    for key in ("forward_nme", "backward_nme"):
        assert result[key] == pytest.approx(reference[key], rel=1e-9)
    train.score[:, 2], test.score[:, 2] = 1, 0  # found in training, never in the test
    assert evaluate(train, test)["per_landmark"]["backward"][2] == 100


def test_points_without_annotation_take_no_part():
    train, test = landmarks(50, seed=8), landmarks(20, seed=9)
    gone, gone_test = np.arange(50) % 4 == 0, np.arange(20) < 5
    train.truth[gone, 3] = np.nan
    test.truth[gone_test, 3] = np.nan
    result = evaluate(train, test)
    fit = reference_fit(flat(train.found[~gone]), train.truth[~gone, 3])
    predicted = fit.predict(flat(test.found[~gone_test]))
    length = np.linalg.norm(test.truth[:, 0] - test.truth[:, 1], axis=-1)[~gone_test]
    error = 100 * (np.linalg.norm(predicted - test.truth[~gone_test, 3], axis=1) / length).mean()
    assert result["per_landmark"]["forward"][3] == pytest.approx(error, rel=1e-8)
    assert np.isfinite(result["backward_nme"])
    assert result["protocol"] == "p"
    train.truth[:, 3] = np.nan
    result = evaluate(train, test)
    assert result["not_annotated"] == [3]
    assert np.isnan(result["per_landmark"]["forward"][3])
    assert np.isfinite(result["forward_nme"])
    test.truth[:7, 0] = np.nan  # the normaliser needs point 0
    assert evaluate(train, test)["not_scored"] == 7


def test_normalisers():
    truth = np.array([[[0, 0], [3, 4], [8, 2]], [[1, 1], [1, 1], [5, 1]], [[0, 0], [np.nan, 2], [4, 9]]])
    np.testing.assert_allclose(lr.normaliser_lengths(truth, (0, 1)), [5, np.nan, np.nan])
    np.testing.assert_allclose(lr.normaliser_lengths(truth, "box"), [np.sqrt(32), np.nan, 6])
    np.testing.assert_allclose(lr.normaliser_lengths(truth, "image", 64), [64, 64, 64])


def test_a_frozen_and_a_perfect_detector():
    train, test = landmarks(60, seed=10), landmarks(20, seed=11)
    frozen = [part._replace(found=np.broadcast_to(train.found[:1], part.found.shape)) for part in (train, test)]
    result = evaluate(*frozen)
    assert result["forward_nme"] == pytest.approx(result["mean_shape_nme"])
    assert result["backward_nme"] == pytest.approx(0, abs=1e-9)
    perfect = [part._replace(found=part.truth, score=np.ones(part.truth.shape[:2])) for part in (train, test)]
    assert evaluate(*perfect, strength=1e-9)["forward_nme"] < 1e-3


def test_fit_forward_chooses_its_strength():
    train, test = landmarks(12, seed=12, noise=8), landmarks(200, seed=13, noise=8)

    def error(strength):
        forward = lr.fit_forward(train, strength)
        return np.linalg.norm(lr.apply_forward(forward, test.found, test.score) - test.truth, axis=-1).mean()

    assert error(None) < 0.8 * error(1e-6)
    assert len(set(lr.fit_forward(train, None).strength)) == 1
    one = lr.fit_forward(train.take([3]), None)
    np.testing.assert_allclose(lr.apply_forward(one, test.found, test.score), np.repeat(train.truth[3:4], 200, 0))


def test_ced_and_its_area():
    errors = np.random.default_rng(0).gamma(3, 4, 500)
    thresholds, share = lr.ced([*errors, np.nan], limit=20, points=20001)
    np.testing.assert_allclose(share[::500], [(errors <= t).mean() for t in thresholds[::500]])
    assert lr.ced_auc(errors, 20) == pytest.approx(np.trapezoid(share, thresholds) / 20, abs=1e-4)


def test_group_by():
    errors = {"forward_nme": np.array([1.0, 2, 3, 4, 5, np.nan]), "mean_shape_nme": np.arange(6.0)}
    groups = lr.group_by(errors, ["-80", "10", "", "30", "90", "200"], [0, 30, 90])
    assert [(g["group"], g["n"], g["forward_nme"]) for g in groups] == [
        ("± 0 to 30", 1, 2.0),
        ("± 30 to 90", 3, pytest.approx(10 / 3)),
        ("outside", 1, None),
        ("no value", 1, 3.0),
    ]
    signed = lr.group_by(errors, [-80, -20, 0, 20, 80, 90], [-90, -30, 30, 90])
    assert [(g["group"], g["n"]) for g in signed] == [("-90 to -30", 1), ("-30 to 30", 3), ("30 to 90", 2)]
    named = lr.group_by(errors, ["b", "a", "b", "", "a", "a"])
    assert [(g["group"], g["n"], g["forward_nme"]) for g in named][:2] == [("a", 3, 3.5), ("b", 2, 2.0)]
    numbered = lr.group_by(errors, ["10", "9", "10", "9", "9", "2"])
    assert [g["group"] for g in numbered] == ["2", "9", "10"]
    fifths = lr.group_by({"e": np.arange(100.0)}, list(range(100)))
    assert [g["n"] for g in fifths] == [20] * 5
    for values, edges in ((["a"] * 6, [0, 1]), ([1] * 6, [2, 1]), ([1] * 6, [3])):
        with pytest.raises(UserError, match="group_by"):
            lr.group_by(errors, values, edges)


def test_label_counts():
    train, test = landmarks(60, seed=14), landmarks(25, seed=15)
    options = {"normaliser": "box", "repeats": 4}
    with pytest.warns(UserWarning, match="60 annotated"):
        rows = lr.label_counts(train, test, counts=(1, 10, "all", 500), seed=3, **options)
    assert [r["n"] for r in rows] == [1, 10, 60]
    assert [r["repeats"] for r in rows] == [4, 4, 1]
    assert rows[0]["forward_nme"] == pytest.approx(rows[0]["mean_shape_nme"])
    full = evaluate(train, test, normaliser="box")
    assert rows[2]["forward_nme"] == pytest.approx(full["forward_nme"])
    assert rows[2]["forward_nme_std"] == 0
    assert rows[2]["mean_shape_nme"] == pytest.approx(full["mean_shape_nme"])
    assert rows[0]["forward_nme"] > rows[1]["forward_nme"] > rows[2]["forward_nme"]
    alone = lr.label_counts(train, test, counts=("10",), seed=3, **options)
    assert alone[0] == rows[1]  # draws do not depend on the other counts
    assert lr.label_counts(train, test, counts=(10,), seed=4, **options)[0] != rows[1]
    draws = [evaluate(train.take(np.random.default_rng((3, 10, r)).permutation(60)[:10]), test, normaliser="box")
             for r in range(4)]  # fmt: skip
    assert rows[1]["forward_nme"] == pytest.approx(np.mean([d["forward_nme"] for d in draws]))
    assert rows[1]["forward_nme_std"] == pytest.approx(np.std([d["forward_nme"] for d in draws]))
    with pytest.raises(UserError, match="label_counts"):
        lr.label_counts(train, test, counts=("many",), **options)


def test_report(tmp_path):
    train, test = landmarks(40, missing=0.1, seed=16), landmarks(20, missing=0.1, seed=17)
    train.score[:, 1] = 0
    result = evaluate(train, test)
    result |= {
        "split": "test",
        "stage": "detector",
        "stability_px": float("nan"),
        "groups": {"yaw/deg": lr.group_by(result["per_image"], test.columns["yaw"], [0, 30, 60, 90])},
        "label_counts": lr.label_counts(train, test, normaliser=(0, 1), counts=(1, "all"), repeats=2),
    }
    written = lr.write_report(result, tmp_path / "eval" / "test")
    text = (tmp_path / "eval/test/metrics.json").read_text()
    assert json.loads(text) == written
    assert "NaN" not in text
    assert written["forward_nme"] == result["forward_nme"]
    assert written["stability_px"] is None
    assert written["left_out"] == [1]
    assert len(written["groups"]["yaw/deg"]) == 3
    rows = list(csv.DictReader((tmp_path / "eval/test/per_landmark.csv").open()))
    assert [r["kind"] for r in rows] == ["annotated"] * 9 + ["discovered"] * 6
    assert float(rows[4]["nme"]) == pytest.approx(result["per_landmark"]["forward"][4], rel=1e-5)
    assert rows[10]["nme"] == ""
    assert float(rows[10]["found_train"]) == 0
    pictures = {p.name for p in (tmp_path / "eval/test").glob("*.png")}
    assert pictures == {"ced.png", "group_yaw_deg.png", "label_counts.png"}


def test_report_without_annotation(tmp_path):
    written = lr.write_report({"split": "test", "stage": "zeroshot", "stability_px": np.float32(1.5)}, tmp_path)
    assert written["stability_px"] == 1.5
    assert written["forward_nme"] is None
    assert written["groups"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_bad_input_is_refused():
    train, test = landmarks(10), landmarks(5)
    with pytest.raises(UserError, match="training"):
        evaluate(train.take([]), test)
    with pytest.raises(UserError, match="number of landmarks"):
        evaluate(train, test._replace(found=test.found[:, :3], score=test.score[:, :3]))
    with pytest.raises(UserError, match="normaliser"):
        evaluate(train, test._replace(truth=np.zeros_like(test.truth)))
    with pytest.raises(ValueError, match="shapes"):
        evaluate(train, test._replace(score=test.score[0]))
