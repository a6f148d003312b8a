import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.linear_model import Ridge as Reference

from uld_jax.ops import ridge


def data(n=60, inputs=7, outputs=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(100, 20, (n, inputs)) @ rng.normal(size=(inputs, inputs))
    return x, x @ rng.normal(size=(inputs, outputs)) + rng.normal(30, 4, (n, outputs))


@pytest.mark.parametrize("strength", [1e-3, 0.01, 0.3])
def test_equals_sklearn_with_the_relative_strength(strength):
    x, y = data()
    centred = x - x.mean(0)
    alpha = strength * (centred.T @ centred).max()
    reference = Reference(alpha=alpha, solver="cholesky").fit(x, y)
    ours = ridge.fit_ridge(x, y, strength)
    np.testing.assert_allclose(ours.weights, reference.coef_, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(ridge.predict(ours, x), reference.predict(x), rtol=1e-10)


def test_equals_sklearn_with_a_plain_alpha_and_row_weights():
    x, y = data(seed=1)
    weights = np.random.default_rng(2).uniform(0, 2, len(x))
    weights[::7] = 0
    reference = Reference(alpha=3.0, solver="cholesky").fit(x, y, sample_weight=weights)
    ours = ridge.fit_ridge(x, y, 3.0, relative=False, weights=weights)
    np.testing.assert_allclose(ours.weights, reference.coef_, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(ridge.predict(ours, x), reference.predict(x), rtol=1e-9)


def test_weight_zero_is_a_row_left_out_and_the_formula_holds():
    x, y = data(seed=3)
    keep = np.arange(len(x)) % 3 > 0
    full = ridge.fit_ridge(x, y, 0.05, weights=keep)
    part = ridge.fit_ridge(x[keep], y[keep], 0.05)
    for a, b in zip(full, part):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    xc, yc = x[keep] - x[keep].mean(0), y[keep] - y[keep].mean(0)
    a = 0.05 * (np.max(xc.T @ xc) + 1e-12)
    np.testing.assert_allclose(part.weights, yc.T @ xc @ np.linalg.inv(xc.T @ xc + a * np.eye(7)), rtol=1e-8)


def test_no_penalty_is_least_squares():
    x, y = data(seed=4)
    reference = LinearRegression().fit(x, y)
    np.testing.assert_allclose(ridge.predict(ridge.fit_ridge(x, y, 0.0), x), reference.predict(x), rtol=1e-8)


@pytest.mark.parametrize("strength", [0.0, 0.02])
def test_without_an_intercept_equals_sklearn(strength):
    x, y = data(seed=8)
    alpha = strength * ((x.T @ x).max() + 1e-12)
    reference = Reference(alpha=alpha, fit_intercept=False, solver="cholesky") if strength else None
    reference = (reference or LinearRegression(fit_intercept=False)).fit(x, y)
    ours = ridge.fit_ridge(x, y, strength, intercept=False)
    np.testing.assert_allclose(ours.weights, reference.coef_, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(ridge.predict(ours, x), reference.predict(x), rtol=1e-10)
    assert not ours.x_mean.any()
    assert not ours.y_mean.any()
    assert abs(ridge.predict(ours, x) - ridge.predict(ridge.fit_ridge(x, y, strength), x)).max() > 0.1


def test_the_unit_of_the_coordinates_does_not_matter():
    x, y = data(seed=5)
    small = ridge.predict(ridge.fit_ridge(x / 256 - 0.5, y / 256 - 0.5, 0.01), x / 256 - 0.5)
    np.testing.assert_allclose((small + 0.5) * 256, ridge.predict(ridge.fit_ridge(x, y, 0.01), x), rtol=1e-9)


def test_one_row_predicts_itself():
    x, y = data(n=1)
    far = ridge.predict(ridge.fit_ridge(x, y), x + 1000)
    np.testing.assert_allclose(far, y)


@pytest.mark.parametrize("n", [5, 25])  # fewer and more rows than columns
def test_leave_one_out_equals_refits(n):
    x, y = data(n=n, seed=6)
    strengths = (1e-3, 0.02, 0.5)
    centred = x - x.mean(0)
    fast = ridge.leave_one_out_residuals(x, y, strengths)
    for residuals, strength in zip(fast, strengths):
        alpha = strength * ((centred.T @ centred).max() + 1e-12)
        for i in range(n):
            rest = np.arange(n) != i
            fit = Reference(alpha=alpha).fit(x[rest], y[rest])
            np.testing.assert_allclose(residuals[i], y[i] - fit.predict(x[i : i + 1])[0], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(ridge.leave_one_out(x, y, strengths), (fast**2).mean((1, 2)))
    plain = ridge.leave_one_out(x, y, [0.02 * ((centred.T @ centred).max() + 1e-12)], relative=False)
    np.testing.assert_allclose(plain[0], ridge.leave_one_out(x, y, strengths)[1])


def test_choose_strength():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(12, 10))
    clean = x @ rng.normal(size=(10, 4))
    assert ridge.choose_strength(x, clean) == pytest.approx(min(ridge.STRENGTHS))
    noise = rng.normal(size=(12, 4))
    assert ridge.choose_strength(x, noise) >= 1.0
    assert ridge.choose_strength(x[:1], noise[:1]) == max(ridge.STRENGTHS)
    assert np.isinf(ridge.leave_one_out(x[:5], clean[:5], [0.0])).all()  # five rows, ten columns: each row fits itself


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y: ridge.fit_ridge(x[:, 0], y),
        lambda x, y: ridge.fit_ridge(x[:-1], y),
        lambda x, y: ridge.fit_ridge(np.where(x > x.mean(), np.nan, x), y),
        lambda x, y: ridge.fit_ridge(x, y, -1.0),
        lambda x, y: ridge.fit_ridge(x, y, weights=np.zeros(len(x))),
        lambda x, y: ridge.leave_one_out(x[:1], y[:1], [0.1]),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError, match=r"ridge|row|finite"):
        call(*data())
