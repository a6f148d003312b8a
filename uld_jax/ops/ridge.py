"""Ridge regression in closed form, NumPy float64 on the host.

The regression maps discovered to annotated landmarks and back. An evaluation fits it hundreds of times on a few hundred
columns: an accelerator would not help, and float64 keeps the numbers equal on every machine.

The strength is *relative* by default: the penalty is `strength` times the largest entry of `X'X` (centred), as in the
evaluators of Mallis et al. (NeurIPS 2020, TPAMI 2024), so that it depends neither on the unit of the coordinates nor,
for large N, on the number of rows. The intercept is not penalised; a fit may also do without one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

STRENGTHS = tuple(10.0 ** np.arange(-5, 1.01, 0.5))


class Ridge(NamedTuple):
    """A fitted affine map, `y = weights @ (x - x_mean) + y_mean`.

    Attributes:
      weights: [O,I] float64.
      x_mean: [I] float64, the (weighted) mean of the inputs; 0 without an intercept.
      y_mean: [O] float64, the (weighted) mean of the outputs; 0 without an intercept.
    """

    weights: np.ndarray
    x_mean: np.ndarray
    y_mean: np.ndarray


def _rows(name: str, values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2:
        raise ValueError(f"{name} has shape {values.shape}; ridge regression takes [rows, columns]")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds values that are not finite; fill or drop missing entries first")
    return values


def _pair(x, y) -> tuple[np.ndarray, np.ndarray]:
    x, y = _rows("x", x), _rows("y", y)
    if len(x) != len(y) or not len(x):
        raise ValueError(f"x has {len(x)} rows and y has {len(y)}; ridge regression needs the same number, at least 1")
    return x, y


def _penalty(largest: float, strength: float, relative: bool) -> float:
    if strength < 0:
        raise ValueError(f"the ridge strength is {strength}; it cannot be negative")
    # The 1e-12 of the published evaluators: a single row, or equal rows, still has a solution (zero weights).
    return strength * (largest + 1e-12) if relative else strength


def fit_ridge(x, y, strength: float = 0.01, relative: bool = True, weights=None, *, intercept: bool = True) -> Ridge:
    """Ridge regression from x [N,I] to y [N,O].

    With X and Y centred by their (weighted) means, or as they are without an intercept, and W = diag(weights):

      R = Y'WX (X'WX + a I)^-1,   a = strength * (max entry of X'WX + 1e-12)   or   a = strength

    Args:
      x: [N,I] inputs.
      y: [N,O] outputs.
      strength: the penalty; with `relative=False` it is scikit-learn's `alpha`.
      relative: True if `strength` is in units of the largest entry of X'WX (found on its diagonal).
      weights: [N] row weights >= 0, or None for ones. A row of weight 0 has no effect.
      intercept: True for an affine map. Without an intercept the map is linear, so the origin of x and y matters.

    Returns:
      A `Ridge`. With one row and an intercept the prediction is that row's y, whatever x.

    Raises:
      ValueError: shapes that do not fit, values that are not finite, weights that are negative or sum to 0.

    >>> ridge = fit_ridge([[0.0], [1.0], [2.0]], [[1.0], [3.0], [5.0]], strength=0.0)
    >>> predict(ridge, [[10.0]]).round(6).tolist()
    [[21.0]]
    """
    x, y = _pair(x, y)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    if w.shape != (len(x),) or not (w >= 0).all() or not w.sum() > 0:
        raise ValueError("the row weights of a ridge regression are one number >= 0 a row, and not all 0")
    x_mean, y_mean = (w @ x / w.sum(), w @ y / w.sum()) if intercept else (np.zeros(x.shape[1]), np.zeros(y.shape[1]))
    root = np.sqrt(w)[:, None]
    xc, yc = root * (x - x_mean), root * (y - y_mean)
    gram, cross = xc.T @ xc, xc.T @ yc
    a = _penalty(gram.max(initial=0.0), strength, relative)
    if a > 0:
        solution = np.linalg.solve(gram + a * np.eye(len(gram)), cross)
    else:  # plain least squares; the smallest solution where the columns are dependent
        solution = np.linalg.lstsq(xc, yc, rcond=None)[0]
    return Ridge(solution.T, x_mean, y_mean)


def predict(ridge: Ridge, x) -> np.ndarray:
    """Predictions [N,O] for x [N,I]."""
    return (np.asarray(x, np.float64) - ridge.x_mean) @ ridge.weights.T + ridge.y_mean


def leave_one_out_residuals(x, y, strengths: Sequence[float], relative: bool = True) -> np.ndarray:
    """The difference of each row's y from a fit without that row, [S,N,O], for S strengths; no refit is needed.

    With the hat matrix H of the fit to all rows, intercept included:

      H = 11'/N + X (X'X + a I)^-1 X',      residual_i = (y_i - (H y)_i) / (1 - H_ii)

    The penalty `a` is that of all rows and is held while a row is left out. Where a row determines its own prediction
    (1 - H_ii = 0) the residual is infinite.

    Args:
      x: [N,I] inputs, N >= 2.
      y: [N,O] outputs.
      strengths: S penalties, relative or plain as in `fit_ridge`.
      relative: as in `fit_ridge`.

    Raises:
      ValueError: fewer than two rows, or an error of `fit_ridge`.
    """
    x, y = _pair(x, y)
    if len(x) < 2:
        raise ValueError("leave-one-out needs at least 2 rows")
    xc, yc = x - x.mean(0), y - y.mean(0)
    u, s, _ = np.linalg.svd(xc, full_matrices=False)
    largest = (xc**2).sum(0).max(initial=0.0)
    uy = u.T @ yc
    cut = s > s.max(initial=0.0) * 1e-13
    residuals = []
    for strength in strengths:
        a = _penalty(largest, strength, relative)
        shrink = np.where(cut, s**2 / np.where(cut, s**2 + a, 1.0), 0.0)
        hat = 1.0 / len(x) + (u**2) @ shrink
        residual = yc - u @ (shrink[:, None] * uy)
        free = 1.0 - hat
        residuals.append(np.where(free[:, None] > 1e-12, residual / np.maximum(free, 1e-12)[:, None], np.inf))
    return np.stack(residuals)


def leave_one_out(x, y, strengths: Sequence[float], relative: bool = True) -> np.ndarray:
    """Mean squared leave-one-out error (PRESS / (N O)) per strength, [S]; see `leave_one_out_residuals`."""
    return (leave_one_out_residuals(x, y, strengths, relative) ** 2).mean((1, 2))


def choose_strength(x, y, strengths: Sequence[float] = STRENGTHS, relative: bool = True) -> float:
    """The strength of the least leave-one-out error; the largest strength for a tie or a single row.

    >>> x = np.arange(8.0)[:, None]
    >>> choose_strength(x, 2 * x + 1, strengths=(1e-3, 1e-1, 10.0))
    0.001
    """
    strengths = sorted(strengths, reverse=True)
    if len(x) < 2:
        return float(strengths[0])
    return float(strengths[int(np.argmin(leave_one_out(x, y, strengths, relative)))])
