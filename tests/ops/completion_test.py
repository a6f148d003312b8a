"""Matrix completion against plain NumPy with a full singular value decomposition."""

import doctest

import jax
import numpy as np
import pytest

from uld_jax.errors import UserError
from uld_jax.ops import completion

SHAPE = (90, 24)


def reference(a, known, tau=None, delta=None, epsilon=1e-2, iterations=1000):
    """Singular value thresholding as published, and the residuals on the way."""
    target = np.where(known, a, 0.0)
    tau = 5 * sum(a.shape) / 2 if tau is None else tau
    delta = 1.2 * a.size / known.sum() if delta is None else delta
    y, residuals = np.zeros_like(target), []
    for _ in range(iterations):
        u, s, v = np.linalg.svd(y, full_matrices=False)
        x = (u * np.maximum(s - tau, 0)) @ v
        error = np.where(known, target - x, 0)
        y = y + delta * error
        residuals.append(np.linalg.norm(error) / np.linalg.norm(target))
        if residuals[-1] < epsilon:
            break
    return np.where(known, a, x), residuals


def shapes(seed=0, missing=0.2, shape=SHAPE):
    """Coordinates as shares of a frame that lie near a subspace; points are missing with both coordinates."""
    rng = np.random.default_rng(seed)
    n, m = shape
    a = rng.uniform(0.2, 0.8, m) + rng.normal(0, 0.06, (n, 3)) @ rng.normal(0, 1, (3, m)) + rng.normal(0, 0.01, (n, m))
    return a, np.repeat(rng.random((n, m // 2)) >= missing, 2, axis=1)


def test_examples():
    assert doctest.testmod(completion).failed == 0


@pytest.mark.parametrize(
    "options", [{}, {"tau": 50.0, "delta": 1.9, "epsilon": 1e-3}, {"epsilon": 0.05}, {"tau": 10.0, "iterations": 40}]
)
def test_equals_plain_thresholding(options):
    a, known = shapes()
    wanted, residuals = reference(a, known, **options)
    found = completion.complete(a, known, **options)
    assert int(found.iterations) == len(residuals)
    assert float(found.residual) == pytest.approx(residuals[-1], abs=1e-5)
    np.testing.assert_allclose(found.x, wanted, atol=1e-4)
    assert (np.asarray(found.x) == a.astype(np.float32))[known].all()


def test_wide_matrices_and_double_precision():
    a, known = shapes(1)
    found = completion.complete(a.T, known.T, epsilon=0.02)
    np.testing.assert_allclose(found.x, reference(a.T, known.T, epsilon=0.02)[0], atol=1e-4)
    with jax.enable_x64(True):
        exact = completion.complete(a, known, epsilon=0.02)
    assert exact.x.dtype == np.float64
    np.testing.assert_allclose(exact.x, reference(a, known, epsilon=0.02)[0], atol=1e-9)
    np.testing.assert_allclose(exact.x, found.x.T, atol=1e-4)


def test_better_than_the_mean_and_blind_to_what_is_missing():
    for missing in (0.1, 0.35):
        a, known = shapes(2, missing)
        found = completion.complete(np.where(known, a, np.nan), known)
        junk = completion.complete(np.where(known, a, 1e9), known)
        np.testing.assert_array_equal(found.x, junk.x)
        mean = np.where(known, a, 0).sum(0) / known.sum(0)
        error = lambda x, a=a, known=known: np.sqrt((((x - a)[~known]) ** 2).mean())
        assert error(np.asarray(found.x)) < 0.4 * error(np.broadcast_to(mean, a.shape))


def test_a_step_that_is_too_long_keeps_the_best():
    a, known = shapes(3, 0.0)
    known[:45, :12] = known[45:, 12:] = False  # two halves that are never seen together: the default step is 2.4
    found, (_, residuals) = completion.complete(a, known), reference(a, known)
    assert residuals[-1] > 1.2 * min(residuals)
    assert float(found.residual) < 1.1 * min(residuals)  # where they jump, rounding tells
    assert float(completion.complete(a, known, delta=1.2).residual) < 0.05


def test_empty_rows_and_columns():
    a, known = shapes(4)
    known[7], known[:, 4:6] = False, False
    found = np.asarray(completion.complete(a, known).x)
    assert (found[:, 4:6] == 0).all()
    rest = np.delete(np.arange(SHAPE[1]), [4, 5])
    np.testing.assert_allclose(found[7, rest], np.where(known, a, 0).sum(0)[rest] / known.sum(0)[rest], rtol=1e-5)
    nothing = completion.complete(a, np.zeros(SHAPE, bool))
    assert (np.asarray(nothing.x) == 0).all()
    assert float(nothing.residual) == 0
    np.testing.assert_array_equal(completion.complete(a, np.ones(SHAPE, bool)).x, a.astype(np.float32))
    assert completion.complete(np.zeros((0, 4)), np.zeros((0, 4), bool)).x.shape == (0, 4)


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="same shape"):
        completion.complete(np.zeros((3, 4)), np.zeros((4, 3), bool))
