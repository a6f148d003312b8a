"""The evaluations of the published programs, each written anew in plain NumPy, image by image, for tests.

Points are [N,J,2] in pixels, NaN where missing. All return errors in percent: forward [L] and backward [K], the mean of
each landmark over the test images and the fits.
"""

import numpy as np

from tests.evaluation.shapes import flat, svd_completed


def two_points(a, b):
    """The distance of two annotated points."""
    return lambda shape: np.sqrt((shape[a, 0] - shape[b, 0]) ** 2 + (shape[a, 1] - shape[b, 1]) ** 2)


def box(shape):
    """sqrt(w * h) of the box around an image's annotated points."""
    width, height = (max(shape[:, axis]) - min(shape[:, axis]) for axis in (0, 1))
    return np.sqrt(width * height)


def distances(predicted, target, length, truth):
    """Percent of each image's normaliser, [N,J]."""
    return np.stack(
        [
            [100 * np.sqrt(((p - t) ** 2).sum()) / length(shape) for p, t in zip(one, other, strict=True)]
            for one, other, shape in zip(predicted, target, truth, strict=True)
        ]
    )


def imm(found, truth, test_found, test_truth, length, *, bias=False):
    """P6: least squares in pixels of the frame, with or without a column of ones; the backward error is ours."""

    def mapped(x, y, z):
        ones = (lambda rows: np.concatenate([flat(rows), np.ones((len(rows), 1))], 1)) if bias else flat
        normal = ones(x).T @ ones(x)
        return (ones(z) @ np.linalg.solve(normal, ones(x).T @ flat(y))).reshape(len(z), -1, 2)

    forward = distances(mapped(found, truth, test_found), test_truth, length, test_truth)
    backward = distances(mapped(truth, found, test_truth), test_found, length, test_truth)
    return forward.mean(0), backward.mean(0)


def regressor(x, y, strength, size):
    """P10, and SAIC and CGB with a size of 32: R = YX / (XX + l max(XX) I) on x / size - 0.5 without its mean."""
    x, y = flat(x) / size - 0.5, flat(y) / size - 0.5
    x_mean, y_mean = x.mean(0), y.mean(0)
    scatter = (x - x_mean).T @ (x - x_mean)
    r = (
        (y - y_mean).T
        @ (x - x_mean)
        @ np.linalg.inv(scatter + strength * (scatter.max() + 1e-12) * np.eye(len(scatter)))
    )
    return lambda z: np.stack([size * (r @ (row / size - 0.5 - x_mean) + y_mean + 0.5) for row in flat(z)]).reshape(
        len(z), -1, 2
    )


def saic(found, truth, test_found, test_truth, length, strength):
    """SAIC and CGB: points of the 128-pixel frame on a grid of 32, all training images."""
    found, truth, test_found, test_truth = (points / 4 for points in (found, truth, test_found, test_truth))
    forward = regressor(found, truth, strength, 32)(test_found)
    backward = regressor(truth, found, strength, 32)(test_truth)
    return tuple(
        distances(predicted, target, length, test_truth).mean(0)
        for predicted, target in ((forward, test_truth), (backward, test_found))
    )


def kept_2020(found, test_found):
    """The landmarks that are missing on less than 20 % of all images, strictly."""
    missing = np.isnan(np.concatenate([found, test_found])[..., 0])
    return [k for k in range(found.shape[1]) if missing[:, k].sum() < 0.2 * len(missing)]


def mallis(found, truth, test_found, test_truth, length, *, strengths, size, fits, backward_fits, frame):
    """Both programs of Mallis et al. on a pool of training images, complete or not.

    Where points are missing, the program of 2024 draws the images of a backward fit among those on which the landmark
    was found; here, as in `landmark_regression`, they are those of a common draw on which it was found.

    Args:
      found, truth: points of the pool.
      test_found, test_truth: points of the test images.
      length: function from an image's annotation to its normaliser.
      strengths: ridge strengths, forward and backward.
      size: size that coordinates are divided by.
      fits, backward_fits: rows of the pool that each fit draws.
      frame: side of the frame, of which the completion takes shares.
    """
    there = ~np.isnan(found[..., 0])
    filled = found if there.all() else svd_completed(np.where(there[..., None], found, 0.0), there, frame)
    mean = np.stack([found[there[:, k], k].mean(0) for k in range(found.shape[1])])
    given = np.where(np.isnan(test_found), mean, test_found)
    forward = [
        distances(regressor(filled[rows], truth[rows], strengths[0], size)(given), test_truth, length, test_truth)
        for rows in fits
    ]
    backward = np.zeros((len(backward_fits), found.shape[1]))
    for repeat, rows in enumerate(backward_fits):
        for k in range(found.shape[1]):
            seen, met = rows[there[rows, k]], ~np.isnan(test_found[:, k, 0])
            predicted = regressor(truth[seen], found[seen, k], strengths[1], size)(test_truth[met])
            away = distances(predicted, test_found[met][:, k : k + 1], length, test_truth[met])
            backward[repeat, k] = away.mean() if met.any() else 100.0
    return np.mean(forward, (0, 1)), backward.mean(0)


def dve(predicted, truth, size, eyes=(0, 1)):
    """P7: points normalised to [-1, 1] by (size - 1) on each axis, divided by the distance of two points, [L]."""
    predicted, truth = (2 * points / (size - 1) - 1 for points in (predicted, truth))
    return distances(predicted, truth, two_points(*eyes), truth).mean(0)


def ncnet(carried, truth, sizes, procedure):
    """P9: the PCK of each pair in percent. `scnet` scales both axes to 224 pixels; `pf` takes the box's longer side."""
    shares = []
    for found, points, (height, width) in zip(carried, truth, sizes, strict=True):
        known = ~np.isnan(points[:, 0])
        found, points = found[known], points[known]
        longest = max(np.ptp(points[:, 0]), np.ptp(points[:, 1]))
        if procedure == "scnet":
            found, points = (one * np.array([224 / width, 224 / height]) for one in (found, points))
            longest = 224
        away = np.sqrt(((found - points) ** 2).sum(1))
        shares.append(100 * np.mean(away <= 0.1 * longest))
    return np.array(shares)
