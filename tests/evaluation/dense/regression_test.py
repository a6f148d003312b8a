"""The regressor of virtual keypoints: explicit hypercolumns, PyTorch, and a problem with a known answer."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.evaluation.dense import regression
from uld_jax.evaluation.dense.protocols import CONTRAST_LANDMARKS_2021, DVE_2019, LEAD_2022, Fit
from uld_jax.evaluation.dense.regression import Regressor
from uld_jax.ops import hypercolumns


def test_examples():
    result = doctest.testmod(regression)
    assert result.attempted >= 3
    assert result.failed == 0


apply = jax.jit(regression.apply, static_argnames=("cells", "sharpness", "at_a_time", "entropy"))
init = jax.jit(regression.init, static_argnums=(1, 2, 3))


def problem(seed=0, scale=0.02):
    shapes, rng = ((3, 6, 6, 5), (3, 3, 3, 4)), np.random.default_rng(seed)
    maps = tuple(scale * rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return init(jax.random.key(seed), (5, 4), 4, 3), maps


def explicit(regressor, maps, cells, sharpness):
    """As the papers write it, in float64: hypercolumns, filters, softmax, places, a linear layer a landmark."""
    columns = np.asarray(jax.jit(hypercolumns.materialise, static_argnums=1)(maps, cells), np.float64)
    filters = np.concatenate([np.asarray(f, np.float64) for f in regressor.filters])
    responses = sharpness * np.einsum("byxc,clp->blpyx", columns, filters)
    share = np.exp(responses - responses.max((-2, -1), keepdims=True))
    share /= share.sum((-2, -1), keepdims=True)
    axis = np.linspace(-1, 1, cells)
    keypoints = np.stack([share.sum(-2) @ axis, share.sum(-1) @ axis], -1)
    entropy = -(share * np.log(share)).sum((-2, -1)).mean(-1)
    return np.einsum("blpi,lpij->blj", keypoints, np.asarray(regressor.linear)), keypoints, entropy


@pytest.mark.parametrize("at_a_time", [0, 2])
def test_levels_apart_equal_hypercolumns(at_a_time):
    regressor, maps = problem()
    options = dict(cells=12, sharpness=100.0)
    ours = apply(regressor, maps, **options, at_a_time=at_a_time, entropy=True)
    for found, wanted in zip(ours, explicit(regressor, maps, **options), strict=True):
        np.testing.assert_allclose(found, wanted, atol=5e-6)
    assert 0.5 < ours.entropy.mean() < np.log(144) - 0.1  # neither flat nor a single cell


@pytest.mark.slow
def test_gradients_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    regressor, maps = problem(1)
    target = np.random.default_rng(0).uniform(-1, 1, (3, 4, 2)).astype(np.float32)

    def loss(regressor):
        return regression.loss(regression.apply(regressor, maps, cells=12, sharpness=100.0, at_a_time=2).xy, target)

    value, ours = jax.jit(jax.value_and_grad(loss))(regressor)
    tensor = lambda x: torch.tensor(np.asarray(x))
    columns = [
        torch.nn.functional.interpolate(tensor(m).permute(0, 3, 1, 2), (12, 12), mode="bilinear", align_corners=False)
        for m in maps
    ]
    filters = torch.cat([tensor(f) for f in regressor.filters]).requires_grad_()
    linear = tensor(regressor.linear).requires_grad_()
    responses = torch.einsum("bcyx,clp->blpyx", torch.cat(columns, 1), filters)
    share = torch.softmax(100 * responses.flatten(-2), -1).unflatten(-1, (12, 12))
    axis = torch.linspace(-1, 1, 12)
    places = torch.stack([share.sum(-2) @ axis, share.sum(-1) @ axis], -1)
    xy = torch.einsum("blpi,lpij->blj", places, linear)
    theirs = torch.nn.functional.smooth_l1_loss(10 * xy, 10 * torch.tensor(target))
    theirs.backward()
    assert float(value) == pytest.approx(theirs.item(), rel=1e-5)
    np.testing.assert_allclose(ours.linear, linear.grad.numpy(), atol=1e-4)
    np.testing.assert_allclose(np.concatenate(ours.filters), filters.grad.numpy(), rtol=1e-3, atol=1e-4)


def test_unknown_points_do_not_count():
    xy, target = jnp.zeros((1, 2, 2)), jnp.array([[[0.05, 0.3], [jnp.nan, jnp.nan]]])
    value, gradient = jax.jit(jax.value_and_grad(regression.loss))(xy, target)
    assert float(value) == pytest.approx((0.5 * 0.5**2 + 2.5) / 2)
    assert np.isfinite(gradient).all()
    assert not gradient[0, 1].any()


def test_parameters_start_as_published():
    regressor = init(jax.random.key(0), (400, 100), 3, 50)
    assert [f.shape for f in regressor.filters] == [(400, 3, 50), (100, 3, 50)]
    assert float(regressor.filters[0].std()) == pytest.approx(1, abs=0.02)
    assert float(jnp.abs(regressor.linear).max()) == pytest.approx(0.1, abs=0.005)
    assert regressor.linear.std() == pytest.approx(0.1 / 3**0.5, abs=0.005)


def test_pixels_and_units():
    xy = np.array([0.0, 95.0, 47.5])
    np.testing.assert_allclose(regression.to_unit(xy, 96), [-1, 1, 0])
    np.testing.assert_allclose(regression.from_unit(regression.to_unit(xy, 96), 96), xy)


SMALL = LEAD_2022._replace(points=16, sharpness=100.0, regressed=12)


def blobs(images=40, landmarks=3, seed=0):
    """Maps [N,12,12,3] with a blob a landmark, beside a map that says nothing; and the landmarks, in pixels of 24."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(4, 20, (images, landmarks, 2))
    y, x = np.mgrid[:12, :12]
    cell = (xy + 0.5) / 2 - 0.5
    away = (x[..., None] - cell[:, None, None, :, 0]) ** 2 + (y[..., None] - cell[:, None, None, :, 1]) ** 2
    return (
        jnp.asarray(np.exp(-away / 2), jnp.float32),
        jnp.asarray(rng.normal(0, 0.1, (images, 3, 3, 2)), "float32"),
    ), xy


def train(rows, epochs, *, few=False, landmarks=3, fit=None, seed=0):
    maps, xy = blobs(landmarks=landmarks)
    fit = fit or Fit(0.02, 0.0, epochs, "cosine", period=epochs, b1=0.5, batch=8)
    task = regression.Task((landmarks, 2), landmarks, fit, SMALL, len(xy), few, seed)
    return regression.train(regression.cached(maps, xy, 24), np.asarray(rows), task)


def placed_error(regressors):
    maps, xy = blobs(seed=1)
    options = regression.options_of(SMALL, 3, len(xy))
    found = regression.place(regressors, maps, options=options, side=24)
    lengths = np.full(len(xy), 24.0)
    return regression.errors(found, xy, lengths), regression.mean_shape_error(xy[None], xy, lengths)


def test_a_regressor_learns_where_the_blobs_are():
    trained = train([np.arange(40)], 25)
    errors, mean_shape = placed_error(trained.regressors)
    assert errors.shape == (1, 40, 3)
    assert errors.mean() < 0.25 * mean_shape
    assert trained.steps == 125
    assert trained.loss < 0.1
    assert 0 < trained.entropy_end < np.log(144)
    assert trained.entropy_start != trained.entropy_end


@pytest.mark.slow
def test_draws_train_apart_and_in_parts_alike(monkeypatch):
    rows = regression.draws(np.arange(40), 6, 4, seed=4)
    fit = Fit(0.02, 0.01, 2, amsgrad=True, batch=4, images=12)
    together = train(rows, 2, few=True, fit=fit)
    monkeypatch.setitem(regression._RESPONSES, "cpu", 4 * (12 * 12 * 3 + 3 * 3 * 2) * 4 * 2)  # two draws at a time
    apart = train(rows, 2, few=True, fit=fit)
    assert together.steps == apart.steps == 6
    for a, b in zip(jax.tree.leaves(together.regressors), jax.tree.leaves(apart.regressors), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert np.abs(together.regressors.linear[0] - together.regressors.linear[1]).max() > 0.01
    np.testing.assert_allclose(together[1:4], apart[1:4], rtol=1e-3)


def test_rows_that_fill_a_batch_change_nothing():
    maps, xy = blobs()
    target = regression.to_unit(jnp.asarray(xy, jnp.float32), 24)
    data, keys = (maps, target), jax.random.split(jax.random.key(0), 1)

    def stepped(rows):
        regressors = jax.tree.map(lambda x: x[None], init(keys[0], (3, 2), 3, 16))
        fit = Fit(0.01, 0.0, 1)
        state = jax.vmap(fit.optimizer(1).init)(regressors)
        settings = dict(read=regression._read_cached, options=regression.options_of(SMALL, 3, 4), fit=fit, steps=1)
        regressors, _, value = regression._step(regressors, state, data, jnp.asarray([rows]), keys, 0, **settings)
        return regressors, value

    (padded, value), (twice, other) = stepped([3, 7, -1, -1]), stepped([3, 7, 3, 7])
    np.testing.assert_allclose(value, other, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(padded), jax.tree.leaves(twice), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)  # Adam's first step of 0.01 enlarges rounding of small gradients


def test_draws_are_reproducible_and_differ():
    labelled = np.arange(100, 200)
    first = regression.draws(labelled, 10, 5, seed=0)
    np.testing.assert_array_equal(first, regression.draws(labelled, 10, 5, seed=0))
    assert len({tuple(row) for row in first}) == 5
    assert all(len(set(row)) == 10 for row in first)
    assert set(first.ravel()) <= set(labelled)
    assert (regression.draws(labelled, 10, 5, seed=1) != first).any()


def test_epochs_repeat_images_as_published():
    seen = lambda fit, rows, few: regression.epoch_rows(np.asarray(rows), fit, 500, few, (0, 1, 2))
    few = seen(CONTRAST_LANDMARKS_2021.few, range(30), True)
    assert few.shape == (31, 32)  # 33 times 30 images: 990, and two places empty
    assert np.bincount(few.ravel() + 1).tolist() == [2, *[33] * 30]
    tiled = seen(DVE_2019.few, range(30), True)
    assert np.bincount(tiled.ravel() + 1)[1:].sum() == 500
    assert set(np.bincount(tiled.ravel() + 1)[1:]) == {16, 17}
    assert seen(DVE_2019.full, range(70), False).shape == (2, 32)  # the rest is dropped
    assert (seen(DVE_2019.full, range(7), False) >= 0).sum() == 7  # unless nothing would be left
    whole = seen(LEAD_2022.full, range(70), False)
    assert sorted(whole[whole >= 0]) == [*range(70)]
    assert (whole != seen(LEAD_2022.full, range(70), False)[::-1]).any()
    other = regression.epoch_rows(np.arange(70), LEAD_2022.full, 500, False, (0, 1, 3))
    assert (whole != other).any()


def test_landmarks_at_a_time_keep_within_memory():
    full = regression.options_of(LEAD_2022, 68, 32)
    assert 68 % full.at_a_time == 0
    assert 32 * full.at_a_time * 50 * 48**2 * 4 <= 2**28
    assert regression.options_of(LEAD_2022, 5, 32).at_a_time == 5
    assert regression.options_of(LEAD_2022, 68, 10**6).at_a_time == 1
    assert isinstance(Regressor((), jnp.zeros(1)), tuple)
