"""The programs of DVE, ContrastLandmarks and LEAD for dense features, each written anew in plain NumPy, for tests.

An image is [S,S,3]; its features are maps [h,w,C], its points [L,2] in pixels of the view, NaN where missing. All is
float64. Draws, which are ours, are given: weights of warps, rows of images and first parameters.
"""

import re
from typing import NamedTuple

import numpy as np


def flags(row):
    """The flags of `uld dense` that the source of a row of the registry names, as words of `dense.protocols.preset`."""
    given = {}
    for name, value in re.findall(r"--(\w+)(?:=(\w+))?", row.source):
        given[name] = int(value) if value.isdigit() else value or True
    return given


# Warps (DVE, tps.py)


def places(weights, side):
    """Where each pixel of a warped image is read, [side,side,2] in pixels, for weights [103,2] of a thin-plate warp."""
    line, controls = np.linspace(-1, 1, side), np.linspace(-1, 1, 10)
    out = np.empty((side, side, 2))
    for row, y in enumerate(line):
        square = (line[:, None, None] - controls) ** 2 + (y - controls[:, None]) ** 2  # of [x, control y, control x]
        kernel = (square * np.log(square + 1e-5)).reshape(side, 100)
        out[row] = np.concatenate([kernel, np.ones((side, 1)), line[:, None], np.full((side, 1), y)], 1) @ weights
    return (out + 1) / 2 * (side - 1)


def warp(image, points, weights):
    """The image read at `places`, zeros outside, and the pixels that show the places nearest to the points."""
    side, at = len(image), places(weights, len(image))
    padded = np.pad(np.asarray(image, np.float64), ((1, 2), (1, 2), (0, 0)))
    x, y = np.clip(np.moveaxis(at, -1, 0), -1, side)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    out = np.zeros((side, side, 3))
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = np.abs(1 - down - (y - top)) * np.abs(1 - right - (x - left))
        out += share[..., None] * padded[top + down + 1, left + right + 1]
    moved = np.full(points.shape, np.nan)
    for k, point in enumerate(points):
        if not np.isnan(point).any():
            moved[k] = np.unravel_index(np.argmin(((at - point) ** 2).sum(-1)), (side, side))[::-1]
    return out, moved


def view(image, points, side):
    """The central part of a warped frame, in whole levels, and its points."""
    first = (len(image) - side) // 2
    seen = np.clip(np.round(image), 0, 255)[first : first + side, first : first + side]
    return seen.astype(np.uint8), points - first


# Hypercolumns (ContrastLandmarks)


def hypercolumn(maps, cells):
    """All maps, each resized as PyTorch's bilinear `interpolate` does, side by side: [cells,cells,C]."""
    columns = []
    for one in maps:
        one = np.asarray(one, np.float64)
        for axis in (0, 1):
            size = one.shape[axis]
            at = np.maximum((np.arange(cells) + 0.5) * size / cells - 0.5, 0)
            low = np.minimum(at.astype(int), size - 1)
            high, share = np.minimum(low + 1, size - 1), np.expand_dims(at - low, [1, 2] if axis == 0 else [0, 2])
            one = np.take(one, low, axis) * (1 - share) + np.take(one, high, axis) * share
        columns.append(one)
    return np.concatenate(columns, -1)


# Matching (DVE, test_matching.py)


def find_descriptor(point, source, target, stride, cosine):
    """The pixel of the target whose descriptor is most similar to that at a point of the source; maps [H,W,C]."""
    height, width, channels = source.shape
    x, y = (int(np.round(value / stride)) for value in point)
    descriptor = source[min(max(y, 0), height - 1), min(max(x, 0), width - 1)]
    target = target.reshape(-1, channels)
    similarity = target @ descriptor
    if cosine:
        similarity = similarity / np.linalg.norm(target, axis=1)
    best = int(np.argmax(similarity))
    return np.array([best % width, best // width]) * stride


def matching_errors(source, target, source_points, target_points, stride, cosine):
    """Errors [L] of one pair in pixels of a view of 70 pixels, NaN for points that are missing on either."""
    errors = np.full(len(source_points), np.nan)
    for k, (point, truth) in enumerate(zip(source_points, target_points, strict=True)):
        if not np.isnan([*point, *truth]).any():
            found = find_descriptor(point, source, target, stride, cosine)
            errors[k] = np.hypot(*(found - truth)) * 70 / (stride * len(target))
    return errors


def floor(side, stride, margin):
    """The mean error of descriptors that all differ, over all whole pixels within a margin, one after the other."""
    line = np.arange(0, side, stride)
    return np.mean(
        [
            np.hypot(x - line[min(round(x / stride), len(line) - 1)], y - line[min(round(y / stride), len(line) - 1)])
            for x in range(margin, side - margin)
            for y in range(margin, side - margin)
        ]
    ) * (70 / side)


# Regression (ContrastLandmarks, eval_face.py; DVE, keypoint_regressor)


class Regressor(NamedTuple):
    """Filters [C,L,P], and the linear layer of each landmark [L,P,2,2]."""

    filters: np.ndarray
    linear: np.ndarray


def place(regressor, columns, beta=100.0):
    """Landmarks [B,L,2] in [-1, 1] on hypercolumns [B,R,R,C], the virtual keypoints, and the softmaxes [B,R,R,L,P]."""
    responses = beta * np.einsum("byxc,clp->byxlp", columns, regressor.filters, optimize=True)
    share = np.exp(responses - responses.max((1, 2), keepdims=True))
    share /= share.sum((1, 2), keepdims=True)
    axis = np.linspace(-1, 1, columns.shape[1])
    keypoints = np.stack([np.einsum("byxlp,x->blp", share, axis), np.einsum("byxlp,y->blp", share, axis)], -1)
    return np.einsum("blpi,lpij->blj", keypoints, regressor.linear), keypoints, share


def loss_and_slope(placed, target, kind="smooth_l1"):
    """The loss and its derivative by the placed landmarks; the mean is over the coordinates that are not missing."""
    known = ~np.isnan(target)
    away = np.where(known, placed - np.where(known, target, 0), 0)
    if kind == "squared":
        return (away**2).sum() / known.sum(), 2 * away / known.sum()
    away = 10 * away
    near = np.abs(away) < 1
    each = np.where(near, away**2 / 2, np.abs(away) - 0.5) * known
    return each.sum() / known.sum(), 10 * np.where(near, away, np.sign(away)) / known.sum()


def gradient(regressor, columns, target, kind="smooth_l1", beta=100.0):
    """The derivatives of the loss by filters and linear layers, by hand."""
    placed, keypoints, share = place(regressor, columns, beta)
    _, slope = loss_and_slope(placed, target, kind)
    by_keypoint = np.einsum("blj,lpij->blpi", slope, regressor.linear)
    axis = np.linspace(-1, 1, columns.shape[1])
    # An expected coordinate changes with the response of a cell by the cell's share of its distance from the mean.
    by_x = (axis[None, None, :, None, None] - keypoints[:, None, None, ..., 0]) * by_keypoint[:, None, None, ..., 0]
    by_y = (axis[None, :, None, None, None] - keypoints[:, None, None, ..., 1]) * by_keypoint[:, None, None, ..., 1]
    filters = beta * np.einsum("byxlp,byxc->clp", share * (by_x + by_y), columns, optimize=True)
    return Regressor(filters, np.einsum("blpi,blj->lpij", keypoints, slope))


class Adam:
    """PyTorch's Adam with its L2 term, `amsgrad` or not."""

    def __init__(self, parameters, decays, l2, amsgrad):
        self.decays, self.l2, self.amsgrad, self.steps = decays, l2, amsgrad, 0
        self.mean, self.square, self.largest = ([np.zeros_like(p) for p in parameters] for _ in range(3))

    def step(self, parameters, gradients, rate):
        self.steps, out = self.steps + 1, []
        for i, (parameter, slope) in enumerate(zip(parameters, gradients, strict=True)):
            slope = slope + self.l2 * parameter
            self.mean[i] = self.decays[0] * self.mean[i] + (1 - self.decays[0]) * slope
            self.square[i] = self.decays[1] * self.square[i] + (1 - self.decays[1]) * slope**2
            self.largest[i] = np.maximum(self.largest[i], self.square[i])
            first, second = (1 - decay**self.steps for decay in self.decays)
            root = np.sqrt((self.largest if self.amsgrad else self.square)[i]) / np.sqrt(second) + 1e-8
            out.append(parameter - rate / first * self.mean[i] / root)
        return Regressor(*out)


class Recipe(NamedTuple):
    """The training of a program: rate of an epoch, decays and kind of Adam, L2, and the images of an epoch.

    `images` is a function (rows of the draw, number of all labelled images, largest number of repeated images) -> rows
    of an epoch, before they are mixed.
    """

    rate: object
    decays: tuple
    amsgrad: bool
    l2: float
    images: object
    drop_last: bool = False
    batch: int = 32


def _cosine(first, period):
    """CosineAnnealingLR that is stepped before each epoch, with the last rate 0.2^3 / 10 of the first."""
    last = first * 0.2**3 * 0.1
    return lambda epoch: last + (first - last) * (1 + np.cos(np.pi * (epoch + 1) / period)) / 2


def _steps(epoch):
    """MultiStepLR."""
    return 1e-3 * 0.1 ** ((epoch >= 100) + (epoch >= 250))


_ONCE = lambda rows, labelled, most: list(rows)
_REPEATED = lambda rows, labelled, most: list(rows) * (most // len(rows))
_TILED = lambda rows, labelled, most: [rows[i % len(rows)] for i in range(labelled)]
_CONTRAST = {
    False: Recipe(_cosine(1e-3, 200), (0.5, 0.999), False, 5e-4, _ONCE),
    True: Recipe(_cosine(1e-2, 1000), (0.5, 0.999), False, 0.05, _REPEATED),
}
# Whether labels are few, by the name of the protocol.
RECIPES = {
    "lead2022": _CONTRAST,
    "contrast_landmarks2021": _CONTRAST,
    "dve2019": {
        False: Recipe(_steps, (0.9, 0.999), True, 5e-4, _ONCE, drop_last=True),
        True: Recipe(lambda epoch: 1e-2, (0.9, 0.999), True, 5e-4, _TILED),
    },
}


def train(regressor, recipe, epochs, rows, labelled, mixed, read, kind="smooth_l1", most=1000):
    """Train one regressor on the rows of a draw.

    Args:
      regressor: first parameters.
      recipe: the training.
      epochs: number of epochs.
      rows: rows of the labelled images.
      labelled: number of all labelled images.
      mixed: function (rows, number of the epoch) -> the rows in random order.
      read: function (rows of a batch, number of the step) -> (hypercolumns [B,R,R,C], targets [B,L,2] in [-1, 1]).
      kind: name of the loss.
      most: largest number of images of an epoch of ContrastLandmarks' few labels.
    """
    optimizer, step = Adam(regressor, recipe.decays, recipe.l2, recipe.amsgrad), 0
    for epoch in range(epochs):
        order = mixed(recipe.images(rows, labelled, most), epoch)
        for first in range(0, len(order), recipe.batch):
            batch = order[first : first + recipe.batch]
            if recipe.drop_last and len(batch) < recipe.batch <= len(order):
                continue
            columns, target = read(batch, step)
            regressor = optimizer.step(regressor, gradient(regressor, columns, target, kind), recipe.rate(epoch))
            step += 1
    return regressor


def regression_errors(placed, truth, side, eyes):
    """Errors [N,L] in percent: both in [-1, 1], divided by the distance of the eyes' points."""
    truth = 2 * truth / (side - 1) - 1
    return np.stack(
        [
            [100 * np.hypot(*(p - t)) / np.hypot(*(shape[eyes[0]] - shape[eyes[1]])) for p, t in zip(one, shape)]
            for one, shape in zip(placed, truth, strict=True)
        ]
    )
