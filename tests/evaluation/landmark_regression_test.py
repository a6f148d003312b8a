import numpy as np
import pytest
from sklearn.linear_model import Ridge

from tests.evaluation.shapes import evaluate, flat, landmarks, reference_fit, svd_completed
from uld_jax.errors import UserError
from uld_jax.evaluation import landmark_regression as lr
from uld_jax.evaluation.label_counts import label_counts
from uld_jax.evaluation.protocol import Protocol
from uld_jax.evaluation.scores import OftenFound


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
    assert result.protocol == "p"
    assert result.n_train == 80
    assert result.n_test == 30
    np.testing.assert_allclose(result.predicted, forward, rtol=1e-8)
    np.testing.assert_allclose(
        [result.forward_nme, result.backward_nme, result.mean_shape_nme], [f.mean(), b.mean(), m.mean()], 1e-8
    )
    np.testing.assert_allclose(result.per_landmark.forward, f.mean(0), 1e-8)
    np.testing.assert_allclose(result.per_landmark.backward, b.mean(0), 1e-8)
    np.testing.assert_allclose(result.per_image.backward_nme, b.mean(1), 1e-8)
    seen = [f[i, test.visible[i]].mean() for i in range(30)]
    assert result.forward_nme_visible == pytest.approx(np.mean(seen))
    assert result.forward_nme < 0.7 * result.mean_shape_nme


def test_leave_one_out_equals_a_refit_without_each_image():
    train = landmarks(20, k=4, points=5, missing=0.1)
    train.truth[3, 1] = train.truth[1:, 4] = np.nan  # the last point is on one image alone
    forward = lr.fit_forward(train, strength=None)
    residuals = lr.leave_one_out(train, forward)
    x = flat(np.where((train.score > 0)[..., None], train.found, forward.fill))
    for point in range(4):
        rows = np.flatnonzero(np.isfinite(train.truth[:, point, 0]))
        centred = x[rows] - x[rows].mean(0)
        alpha = forward.strength[point] * ((centred.T @ centred).max() + 1e-12)
        for i in rows:
            rest = rows[rows != i]
            fit = Ridge(alpha=alpha, solver="cholesky").fit(x[rest], train.truth[rest, point])
            np.testing.assert_allclose(residuals[i, point], train.truth[i, point] - fit.predict(x[[i]])[0], atol=1e-7)
    assert np.isnan(residuals[3, 1]).all()
    assert np.isnan(residuals[:, 4]).all()
    assert lr.mean_error(residuals[:, 4:]) is None
    lengths = [np.mean([np.hypot(*r) for r in row if np.isfinite(r).all()]) for row in residuals]
    assert lr.mean_error(residuals) == pytest.approx(np.mean(lengths))


def test_missing_points_follow_the_policy():
    train, test = landmarks(60, missing=0.2, seed=2), landmarks(25, missing=0.2, seed=3)
    result = evaluate(train, test, normaliser="image", image_side=128)
    assert result.protocol == "p+missing_mean"
    there, there_test = train.score > 0, test.score > 0
    mean = np.array([train.found[there[:, k], k].mean(0) for k in range(6)])
    x = np.where(there[..., None], train.found, mean)
    z = np.where(there_test[..., None], test.found, mean)
    forward = reference_fit(flat(x), flat(train.truth)).predict(flat(z)).reshape(25, 9, 2)
    error = 100 * np.linalg.norm(forward - test.truth, axis=-1).mean() / 128
    assert result.forward_nme == pytest.approx(error, rel=1e-8)
    backward = []
    for k in range(6):
        fit = reference_fit(flat(train.truth[there[:, k]]), train.found[there[:, k], k])
        predicted = fit.predict(flat(test.truth[there_test[:, k]]))
        backward.append(100 * np.linalg.norm(predicted - test.found[there_test[:, k], k], axis=1).mean() / 128)
    np.testing.assert_allclose(result.per_landmark.backward, backward, rtol=1e-8)
    assert result.backward_nme == pytest.approx(np.mean(backward))


def test_completed_points_follow_the_policy():
    train, test = landmarks(60, missing=0.2, seed=2), landmarks(25, missing=0.2, seed=3)
    options = {"normaliser": "image", "image_side": 128}
    result = evaluate(train, test, missing="svt", **options)
    assert result.protocol == "p+missing_svt"
    there, there_test = train.score > 0, test.score > 0
    x = svd_completed(train.found, there, 128)
    mean = np.array([train.found[there[:, k], k].mean(0) for k in range(6)])
    z = np.where(there_test[..., None], test.found, mean)
    fit = reference_fit(flat(x), flat(train.truth))
    np.testing.assert_allclose(flat(result.predicted), fit.predict(flat(z)), atol=0.05)
    filled = evaluate(train, test, **options)
    assert abs(result.forward_nme - filled.forward_nme) > 0.01
    assert result.backward_nme == filled.backward_nme  # never filled in
    # A landmark that is never found, and what lies where nothing was found, changes nothing.
    more = [
        part._replace(
            found=np.concatenate([np.where(part.score[..., None] > 0, part.found, np.nan), part.found[:, :1]], 1),
            score=np.concatenate([part.score, 0 * part.score[:, :1]], 1),
        )
        for part in (train, test)
    ]
    again = evaluate(*more, missing="svt", **options)
    assert again.left_out == [6]
    assert again.forward_nme == pytest.approx(result.forward_nme, rel=1e-4)
    rows = label_counts(train, test, counts=("all",), protocol=Protocol(missing="svt"), **options)
    assert rows[0].forward_nme == pytest.approx(result.forward_nme)
    whole = landmarks(60, seed=2), landmarks(25, seed=3)
    assert evaluate(*whole, missing="svt", **options).forward_nme == evaluate(*whole, **options).forward_nme
    with pytest.raises(UserError, match=r"eval\.missing"):
        evaluate(train, test, missing="nearest", **options)


@pytest.mark.parametrize("missing", ["mean", "svt"])
def test_landmarks_found_often_are_measured_alone(missing):
    train, test = landmarks(60, missing=0.05, seed=2), landmarks(30, missing=0.05, seed=3)
    train.score[:45, 1] = test.score[::2, 1] = 0  # on a third of all images
    train.score[:, 4] = 0  # on test images alone
    train.score[:12, 3], test.score[:6, 3], train.score[12:, 3], test.score[6:, 3] = 0, 0, 1, 1  # on 0.8 of all: rare
    options = {"image_side": 128, "missing": missing}
    result = evaluate(train, test, **options)
    share = ((train.score > 0).sum() + (test.score > 0).sum()) / train.score.size / 1.5
    assert result.found_share == pytest.approx(share)
    keep = [0, 2, 5]
    alone = evaluate(train.only(keep), test.only(keep), **options)
    often = result.often_found
    assert (often.min_found, often.landmarks) == (0.8, 3)
    assert often.protocol == f"p+missing_{missing}+found_above_0.8"
    assert often.forward_nme == pytest.approx(alone.forward_nme, rel=1e-4)
    assert often.backward_nme == pytest.approx(alone.backward_nme)
    assert often.forward_nme != pytest.approx(result.forward_nme, rel=1e-3)
    assert evaluate(train, test, min_found=0.79, **options).often_found.landmarks == 4
    if missing == "mean":
        none = evaluate(train, test, min_found=1.0, **options).often_found
        assert none == OftenFound("p+missing_mean+found_above_1", 1, 0, None, None)
        assert evaluate(landmarks(20), landmarks(9, seed=1)).often_found is None


def test_what_lies_at_missing_points_does_not_matter():
    train, test = landmarks(40, missing=0.3, seed=4), landmarks(20, missing=0.3, seed=5)
    noisy = [
        part._replace(found=np.where(part.score[..., None] > 0, part.found, junk))
        for part, junk in ((train, 1e6), (test, np.nan))
    ]
    a, b = evaluate(train, test), evaluate(*noisy)
    assert (a.forward_nme, a.backward_nme) == (b.forward_nme, b.backward_nme)
    nan = train._replace(
        score=np.ones_like(train.score), found=np.where(train.score[..., None] > 0, train.found, np.nan)
    )
    assert evaluate(nan, test).forward_nme == a.forward_nme


def test_landmarks_never_found():
    train, test = landmarks(40, seed=6), landmarks(20, seed=7)
    train.score[:, 2] = 0
    result = evaluate(train, test)
    assert result.left_out == [2]
    assert np.isnan(result.per_landmark.backward[2])
    keep = [0, 1, 3, 4, 5]
    small = [part._replace(found=part.found[:, keep], score=part.score[:, keep]) for part in (train, test)]
    reference = evaluate(*small)
    for key in ("forward_nme", "backward_nme"):
        assert getattr(result, key) == pytest.approx(getattr(reference, key), rel=1e-9)
    train.score[:, 2], test.score[:, 2] = 1, 0  # found in training, never in the test
    assert evaluate(train, test).per_landmark.backward[2] == 100


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
    assert result.per_landmark.forward[3] == pytest.approx(error, rel=1e-8)
    assert np.isfinite(result.backward_nme)
    assert result.protocol == "p"
    train.truth[:, 3] = np.nan
    result = evaluate(train, test)
    assert result.not_annotated == [3]
    assert np.isnan(result.per_landmark.forward[3])
    assert np.isfinite(result.forward_nme)
    test.truth[:7, 0] = np.nan  # the normaliser needs point 0
    assert evaluate(train, test).not_scored == 7


def test_normalisers():
    truth = np.array([[[0, 0], [3, 4], [8, 2]], [[1, 1], [1, 1], [5, 1]], [[0, 0], [np.nan, 2], [4, 9]]])
    np.testing.assert_allclose(lr.normaliser_lengths(truth, (0, 1)), [5, np.nan, np.nan])
    np.testing.assert_allclose(lr.normaliser_lengths(truth, "box"), [np.sqrt(32), np.nan, 6])
    np.testing.assert_allclose(lr.normaliser_lengths(truth, "image", 64), [64, 64, 64])


def test_a_frozen_and_a_perfect_detector():
    train, test = landmarks(60, seed=10), landmarks(20, seed=11)
    frozen = [part._replace(found=np.broadcast_to(train.found[:1], part.found.shape)) for part in (train, test)]
    result = evaluate(*frozen)
    assert result.forward_nme == pytest.approx(result.mean_shape_nme)
    assert result.backward_nme == pytest.approx(0, abs=1e-9)
    perfect = [part._replace(found=part.truth, score=np.ones(part.truth.shape[:2])) for part in (train, test)]
    assert evaluate(*perfect, strength=1e-9).forward_nme < 1e-3


def test_fit_forward_chooses_its_strength():
    train, test = landmarks(12, seed=12, noise=8), landmarks(200, seed=13, noise=8)

    def error(strength):
        forward = lr.fit_forward(train, strength)
        return np.linalg.norm(lr.apply_forward(forward, test.found, test.score) - test.truth, axis=-1).mean()

    assert error(None) < 0.8 * error(1e-6)
    assert len(set(lr.fit_forward(train, None).strength)) == 1
    one = lr.fit_forward(train.take([3]), None)
    np.testing.assert_allclose(lr.apply_forward(one, test.found, test.score), np.repeat(train.truth[3:4], 200, 0))


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


@pytest.mark.parametrize("missing", ["mean", "svt"])
def test_landmarks_are_completed_and_counted_on_the_pool_and_not_on_what_a_fit_draws(missing):
    pool, test = landmarks(50, missing=0.2, seed=21), landmarks(20, missing=0.2, seed=22)
    rows = np.arange(0, 50, 3)
    pool.score[rows, 2] = 0  # found on no drawn image, but on the others
    pool.score[1::3, 2], test.score[:, 2] = 1, 1
    options = {"image_side": 128, "missing": missing}
    result = evaluate(pool, test, fits=[rows], **options)
    there, there_test = pool.score > 0, test.score > 0
    mean = np.array([pool.found[there[:, k], k].mean(0) for k in range(6)])
    x = svd_completed(pool.found, there, 128) if missing == "svt" else np.where(there[..., None], pool.found, mean)
    z = np.where(there_test[..., None], test.found, mean)
    fit = reference_fit(flat(x)[rows], flat(pool.truth)[rows])
    exact = {"rtol": 1e-10} if missing == "mean" else {"atol": 0.05}  # matrix completion computes in float32
    np.testing.assert_allclose(flat(result.predicted), fit.predict(flat(z)), **exact)
    assert result.left_out == []
    assert (result.n_train, result.n_pool, result.n_test) == (17, 50, 20)
    assert result.found_train == pytest.approx(there.mean())
    assert np.isnan(result.per_landmark.backward[2])  # no drawn image says where it is
    assert np.isfinite(result.per_landmark.backward[[0, 1, 3, 4, 5]]).all()
    alone = evaluate(pool.take(rows), test, **options)
    assert alone.left_out == [2]
    assert alone.forward_nme != pytest.approx(result.forward_nme, rel=1e-5)


def test_several_fits_are_the_mean_of_their_results():
    pool, test = landmarks(50, missing=0.1, seed=23), landmarks(20, missing=0.1, seed=24)
    fits = [np.arange(20), np.arange(15, 40), np.arange(10, 50, 2)]
    together, apart = evaluate(pool, test, fits=fits), [evaluate(pool, test, fits=[rows]) for rows in fits]
    for name in ("forward_nme", "backward_nme"):
        values = [getattr(one, name) for one in apart]
        assert getattr(together, name) == pytest.approx(np.mean(values))
        assert getattr(together.spread, name) == pytest.approx(np.std(values, ddof=1))
        often = [getattr(one.often_found, name) for one in apart]
        assert getattr(together.often_found, name) == pytest.approx(np.mean(often))
    assert together.often_found.landmarks == apart[0].often_found.landmarks
    assert together.protocol == apart[0].protocol
    assert together.found_share == apart[0].found_share
