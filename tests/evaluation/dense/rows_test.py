"""Each row of the registry that `uld dense` measures, by the published program written anew."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluation.dense import programs
from uld_jax import viz
from uld_jax.data.specs import Source, spec_of
from uld_jax.evaluation.dense import matching, measures, pictures, regression
from uld_jax.evaluation.dense import protocols as dense
from uld_jax.evaluation.dense.features import Features
from uld_jax.evaluation.protocols import BY_ID, ROWS
from uld_jax.method import Model, Stage
from uld_jax.ops import tps

MATCHED = {row.choices: [] for row in ROWS if row.command == "dense" and row.metric.startswith("matching")}
for row in ROWS:
    if row.command == "dense" and row.metric.startswith("matching"):
        MATCHED[row.choices].append(row.id)
ALL = [row.id for row in ROWS if row.metric == "regression, all labels"]
FEW = [row.id for row in ROWS if row.metric == "regression, a few labels"]
QUICK = (
    "mafl_dve_5_eyes+lead2022+regression_120_epochs",
    "aflw_m_5_eyes+dve2019+warped+regression_50_epochs_x3",
    "aflw_m_5_eyes+dve2019+regression_50_epochs_x3",
)
EYES = {5: (0, 1), 68: (36, 45)}
SIDE, POINTS, MOST = 96, 2, 14  # fewer virtual keypoints and repeated images than published
CELLS = {5: 12, 68: 6}  # by the number of points; fewer than published, too


def marked(names):
    """The rows, of which all but a few are slow."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def pyramid(images, xp):
    """Features [B,24,24,6] and [B,12,12,3] of views [B,96,96,3], which float32 holds without rounding."""
    pooled = lambda cell: images.astype("float32").reshape(-1, SIDE // cell, cell, SIDE // cell, cell, 3).mean((2, 4))
    fine, coarse = (pooled(cell) / 256 - 0.5 for cell in (4, 8))
    return xp.concatenate([fine, fine**2], -1) / 16, coarse / 16


@dataclasses.dataclass(frozen=True)
class Pooled(Stage):
    """A stage with these features."""

    def dense(self, state, frozen, images):
        return pyramid(images, jnp)


class Made(Source):
    """Photos of smooth noise with points, some of them missing and some outside the view; the last has none."""

    def __init__(self, data, images, seed):
        rng = np.random.default_rng(seed)
        self.spec, self.frame_size = spec_of(data.name, data.landmarks, scheme=data.scheme), 136
        self.names, self.fingerprint = [f"{i:03}.jpg" for i in rng.permutation(images)], f"{seed:016}"
        self.pixels = np.kron(rng.integers(0, 256, (images, 34, 34, 3)), np.ones((4, 4, 1))).astype(np.uint8)
        self.landmarks = rng.integers(4 * 10, 4 * 126, (images, data.landmarks, 2)).astype(np.float32) / 4
        self.landmarks[rng.random((images, data.landmarks)) < 0.15] = np.nan
        self.landmarks[-1], self.columns = np.nan, {}

    def image(self, row):
        return self.pixels[row]


def job(row, folder, **changes):
    """A job under a row, with fewer numbers than published in `changes`."""
    features = Features(types.SimpleNamespace(model=Model(Pooled(), jnp.float32(0), {})))
    protocol = dense.preset(row.choices, row.data.landmarks, **programs.flags(row) | changes)
    protocol = protocol._replace(points=POINTS, regressed=CELLS[row.data.landmarks])
    if protocol.few.images:
        protocol = protocol._replace(few=protocol.few._replace(images=MOST))
    train, test = Made(row.data, 12, 1), Made(row.data, 9, 2)
    return measures.Job(features, protocol, train, test, 4, 0, 10**9, folder)


def equal(given, wanted, tolerance=1e-9):
    given = np.array(given, np.float64)
    np.testing.assert_allclose(given, wanted, rtol=tolerance, atol=tolerance)


@pytest.fixture
def blind(monkeypatch):
    """No pictures, which take longer than the numbers."""
    monkeypatch.setattr(viz, "save", lambda *given: None)
    monkeypatch.setattr(viz, "label_count_plot", lambda *given, **more: None)
    for name in ("overlays", "similarity_sheet"):
        monkeypatch.setattr(pictures, name, lambda *given, **more: None)


# Matching


def sets_of(one):
    """Views and points of source, same and different for each pair, as DVE's loader makes them from given weights."""
    test, protocol = one.test, one.protocol
    order = sorted(np.flatnonzero(~np.isnan(test.landmarks).all((1, 2))), key=lambda row: test.names[row])
    draw = jax.jit(lambda key: tps.random_tps(key, tps.TEST))
    for pair in range(len(order) // 2):
        a, b = order[2 * pair : 2 * pair + 2]
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), pair), 3)
        weights = [np.asarray(draw(key), np.float64) for key in keys]
        same = programs.warp(test.pixels[a], test.landmarks[a], weights[0])
        other = programs.warp(test.pixels[b], test.landmarks[b], weights[1])
        twice = programs.warp(*same, weights[2])
        yield [programs.view(*each, protocol.side) for each in (twice, same, other)]


@pytest.mark.parametrize("choices", MATCHED)
def test_rows_match_as_their_program(choices, tmp_path, blind):
    row = BY_ID[MATCHED[choices][0]]
    with jax.enable_x64(True):
        one = job(row, tmp_path / "stage")
        report = measures.matching(one)
        made = list(sets_of(one))
    with np.load(tmp_path / "pairs.npz") as pairs:
        for column, part in enumerate(("source", "same", "different")):
            np.testing.assert_array_equal(pairs[f"{part}_xy"], [each[column][1] for each in made])
            levels = pairs[part].astype(int) - [each[column][0] for each in made]
            assert np.abs(levels).max() <= 1
            assert (levels != 0).mean() < 1e-4
    cells, cosine = {"lead2022": (96, True), "dve2019": (24, False)}[choices]
    for column, part in ((1, "same"), (2, "different")):
        errors, percent = [], []
        for each in made:
            maps = [programs.hypercolumn([m[0] for m in pyramid(image[None], np)], cells) for image, _ in each]
            truth = each[column][1]
            errors.append(programs.matching_errors(maps[0], maps[column], each[0][1], truth, SIDE // cells, cosine))
            percent.append(100 * errors[-1] * SIDE / 70 / np.hypot(*(truth[0] - truth[1])))
        for unit, values in (("canonical_px", errors), ("percent", percent)):
            assert 0 < np.isnan(values).sum() < np.size(values) / 2
            equal(report[part][unit], np.nanmean(values))
            equal(report[part]["per_landmark"][unit], np.nanmean(values, 0))
        assert report[part]["points"] == np.isfinite(errors).sum()
        assert report[part]["points_outside"] > 0
    ids = [f"{name}+test_images=9" for name in MATCHED[choices]]
    assert [report["protocol"], report["protocol_percent"]][: len(ids)] == ids
    equal(report["floor_canonical_px"], programs.floor(SIDE, SIDE // cells, matching.MARGIN))
    equal(report["floor_canonical_px_whole_view"], programs.floor(SIDE, SIDE // cells, 0))


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_the_floor_is_that_of_the_grid(stride):
    equal(matching.floor(96, 96 // stride), programs.floor(96, stride, matching.MARGIN))


# Regression


def first_parameters(seed, draw, landmarks):
    """The regressor that a draw begins with, as the program has it."""
    key = jax.random.fold_in(jax.random.key(seed), draw)
    drawn = regression.init(key, (6, 3), landmarks, POINTS)
    return programs.Regressor(np.concatenate(drawn.filters), np.asarray(drawn.linear))


def columns_of(images, cells):
    return np.stack([programs.hypercolumn([m[0] for m in pyramid(image[None], np)], cells) for image in images])


def unit(xy):
    return 2 * np.asarray(xy, np.float64) / (SIDE - 1) - 1


def reader(one, rows, number, count, warped):
    """What a batch of the program sees: views as they are, or warped by the weights of a step."""
    views, first = one.train.pixels[:, 20:116, 20:116], jax.random.key(0)
    cells = one.protocol.regressed
    columns, target = columns_of(views, cells), unit(one.train.landmarks.astype(np.float64) - 20)
    if not warped:
        return lambda batch, step: (columns[batch], target[batch])
    size = one.protocol.few.batch
    draw = jax.jit(jax.vmap(lambda key: tps.random_tps(key, tps.FEW_SHOT)))

    def read(batch, step):
        key = jax.random.fold_in(jax.random.fold_in(first, 0), step)
        keys = jax.random.split(key, count * size)[number * size :][: len(batch)]
        shown = [
            programs.view(*programs.warp(one.train.pixels[row], one.train.landmarks[row], weights), SIDE)
            for row, weights in zip(batch, np.asarray(draw(keys), np.float64), strict=True)
        ]
        return columns_of([image for image, _ in shown], cells), unit([xy for _, xy in shown])

    return read


def trained(row, one, rows, number, count, few):
    """Landmarks [N,L,2] in [-1, 1] of the test images by the program, trained on one draw."""
    fit = one.protocol.few if few else one.protocol.full
    kind = "squared" if "+squared+" in row.id else "smooth_l1"
    warped = few and (row.choices != "dve2019" or "+warped+" in row.id)
    last = programs.train(
        first_parameters(0, number, row.data.landmarks),
        programs.RECIPES[row.choices][few],
        fit.epochs,
        rows,
        len(one.train) - 1,
        lambda images, epoch: np.random.default_rng((0, number, epoch)).permutation(images),
        reader(one, rows, number, count, warped),
        kind,
        MOST,
    )
    return programs.place(last, columns_of(one.test.pixels[:-1, 20:116, 20:116], one.protocol.regressed))[0]


def check_regression(name, folder, labels, tolerance, **fewer):
    row = BY_ID[name]
    few = labels != "all"
    with jax.enable_x64(True):
        one = job(row, folder, **fewer)
        (report,) = measures.regression_by_labels(one, [labels])
        rows = [np.arange(11)] if not few else regression.draws(np.arange(11), int(labels), one.protocol.repeats, 0)
        placed = [trained(row, one, each, number, len(rows), few) for number, each in enumerate(rows)]
    truth = one.test.landmarks[:-1].astype(np.float64) - 20
    errors = np.stack([programs.regression_errors(each, truth, SIDE, EYES[row.data.landmarks]) for each in placed])
    assert 0 < np.isnan(errors).sum() < errors.size / 2
    each = np.nanmean(errors.reshape(len(errors), -1), 1)
    equal(report["errors"], each, tolerance)
    equal((report["error"], report["error_std"]), (each.mean(), each.std()), tolerance)
    equal(report["per_landmark"], np.nanmean(errors, (0, 1)), tolerance)
    return report


# Parameters after all steps agree to 1e-8 of their size, and so do errors, which are in percent.
@pytest.mark.parametrize("name", marked(ALL))
def test_a_row_regresses_as_its_program(name, tmp_path, blind):
    report = check_regression(name, tmp_path, "all", 1e-7)
    assert report["protocol"] == f"{name}+train_images=11+test_images=9"


@pytest.mark.parametrize("name", marked(FEW))
def test_a_row_of_few_labels_regresses_as_its_program(name, tmp_path, blind):
    report = check_regression(name, tmp_path, "3", 1e-7, few_epochs=3, repeats=2)
    assert report["protocol"] == name.rpartition("+")[0] + "+regression_3_epochs_x2"


@pytest.mark.parametrize("kind", dense.LOSSES)
def test_the_slopes_of_the_program_are_finite_differences(kind):
    rng = np.random.default_rng(0)
    columns, target = rng.normal(0, 0.02, (3, 6, 6, 4)), rng.uniform(-1, 1, (3, 2, 2))
    target[0, 1] = np.nan
    regressor = programs.Regressor(rng.normal(size=(4, 2, 3)), rng.uniform(-0.1, 0.1, (2, 3, 2, 2)))
    loss = lambda r: programs.loss_and_slope(programs.place(r, columns)[0], target, kind)[0]
    for name, slope in zip(regressor._fields, programs.gradient(regressor, columns, target, kind), strict=True):
        whole = getattr(regressor, name)
        for index in ((0, 0, 0), (3, 1, 2), (1, 0, 1)):
            at = index if name == "filters" else (index[1], index[2], 0, 1)
            moved = np.zeros_like(whole)
            moved[at] = 1e-6
            difference = loss(regressor._replace(**{name: whole + moved})) - loss(
                regressor._replace(**{name: whole - moved})
            )
            np.testing.assert_allclose(slope[at], difference / 2e-6, rtol=1e-5, atol=1e-8)
