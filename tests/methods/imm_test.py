"""IMM's warps, mask and loss; what every method must hold is in every_method_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from uld_jax import config as config_lib
from uld_jax.errors import UserError
from uld_jax.hyperparameters import replace
from uld_jax.method import Start, TrainState
from uld_jax.methods import imm


@pytest.fixture(scope="module")
def method():
    return config_lib.stage(tiny.config("imm"), "imm").method


def test_the_mask_is_the_published_one():
    mask = imm._edge_mask(128)
    assert mask.shape == (128, 128)
    line = mask[64]
    assert (line[:10] == 0).all()
    assert (line[30:98] == 1).all()
    np.testing.assert_allclose(line[10:30], 0.5 + 0.5 * np.tanh(np.linspace(-1, 1, 20) / 0.4))
    np.testing.assert_allclose(line, line[::-1])
    np.testing.assert_allclose(mask, np.outer(line, line))


def test_the_gaussians_are_the_published_ones(method):
    method = replace(method, image_size=128, gauss_std=0.1)
    cells = jnp.array([[[3.0, 7.5], [0.0, 15.0], [8.2, 1.1], [15.0, 15.0]]])
    u = np.linspace(-1, 1, 16)
    mu = -1 + 2 * np.asarray(cells)[0] / 15
    square = (u[None, :, None] - mu[:, 0]) ** 2 + (u[:, None, None] - mu[:, 1]) ** 2
    np.testing.assert_allclose(method._maps(cells)[0], np.exp(-square / 0.1**2), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_warps_have_the_published_spread(method):
    """A plain ramp image tells where each view looks: the mean linear part and the shift of many warps."""
    side = method.view.image_size
    ramp = (np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1) + 0.5) * 2 / side - 1
    images = jnp.asarray(np.broadcast_to(ramp, (400, side, side, 2)).astype(np.float32))
    keys = jax.random.split(jax.random.key(0), 400)
    looked = np.asarray(imm.warped(keys, (0.0, 0.0, 0.1, 0.0, 0.0), images, method.control))
    centre = looked[:, side // 2 - 1 : side // 2 + 1, side // 2 - 1 : side // 2 + 1].mean((1, 2))
    np.testing.assert_allclose(centre.std(0), 0.1, rtol=0.15)
    looked = np.asarray(imm.warped(keys, (0.0, 0.1, 0.0, 0.0, 0.0), 0.5 * images, method.control))
    slope = (looked[:, 8, 20, 0] - looked[:, 8, 10, 0]) / (0.5 * 10 * 2 / side)
    np.testing.assert_allclose([slope.mean(), slope.std()], [1, 0.1], atol=0.015)


def test_the_loss_is_a_thousand_times_the_terms_over_their_running_means(method):
    rng = np.random.default_rng(0)
    frozen = method.frozen()
    batch = {"image": jnp.zeros((2, method.frame_size, method.frame_size, 3), jnp.uint8), "index": jnp.arange(2)}
    state = method.init(jax.random.key(0), batch, frozen, Start(None, 2))
    side = method.view.image_size
    source, target = (jnp.asarray(rng.uniform(0, 255, (2, side, side, 3)), jnp.float32) for _ in range(2))
    inside = jnp.asarray(np.broadcast_to(imm._edge_mask(side)[None, ..., None], (2, side, side, 1)), jnp.float32)
    mean = jnp.asarray(imm.FIRST_BALANCE)

    def loss(shown, mean):
        return method._loss(state.params, state.model_state, mean, frozen, source, target, shown * inside)

    both = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (_, metrics, new)), slope = both(1.0, mean)
    terms = (np.asarray(new) - 0.99 * np.asarray(mean)) / 0.01  # a <- 0.99 a + 0.01 l
    kernels = [x for p, x in jax.tree_util.tree_leaves_with_path(state.params) if p[-1].key == "kernel"]
    decay = 0.5e-5 * sum(float(jnp.sum(x**2)) for x in kernels)
    assert float(value) == pytest.approx(1000 * (terms / np.asarray(new)).sum() + decay, rel=1e-3)
    assert float(metrics["pixels"]) == pytest.approx(terms[0] / 255**2, rel=1e-2)
    # The gradient flows through the running means as well: of l / (0.99 a + 0.01 l) it is 0.99 a / (0.99 a + 0.01 l)^2.
    want = 1000 * np.sum(terms * 0.99 * np.asarray(mean) / np.asarray(new) ** 2)
    assert float(slope) == pytest.approx(want, rel=1e-3)
    # What the mask hides costs nothing.
    (_, (_, hidden, _)), _ = both(0.0, mean)
    assert float(hidden["pixels"]) == 0


class Net:
    """A network of no weights."""

    def __init__(self, apply):
        self._apply = apply

    def apply(self, variables, *inputs, train):
        assert not train
        return self._apply(*inputs)


def test_swaps_have_the_columns_of_c3(method, monkeypatch):
    """Appearance is an image's brightness and pose a column that hangs on it; the renderer shows both."""
    bright = lambda x: x[:, 0, 0, 0]  # of frames of one colour
    column = lambda maps: maps[:, 0, :, 0].argmax(-1)

    def render(a, maps):
        shown = np.stack([a, 25.5 * column(maps), 0 * a], -1)
        return jnp.broadcast_to(shown[:, None, None], (len(a), 32, 32, 3))

    nets = {
        "appearance": Net(bright),
        "pose": Net(lambda x: np.ones((4, 4, 4)) * (np.arange(4.0)[:, None] - 1.5) * bright(x)[:, None, None, None]),
        "renderer": Net(render),
    }
    monkeypatch.setattr(imm.IMM, "_nets", nets)
    monkeypatch.setattr(imm, "warped", lambda keys, deviations, images, control: images)  # of `generated` alone
    side = method.frame_size
    images = np.stack([np.full((side, side, 3), value, np.uint8) for value in (0, 100, 200)])
    state = TrainState(jnp.int32(0), dict.fromkeys(nets), {name: {} for name in nets})
    sheets = method.pictures(state, {}, images)
    assert set(sheets) == {"generated", "swaps"}
    swaps = np.asarray(sheets["swaps"])
    assert swaps.shape == (3, 5, 32, 32, 3)
    seen = np.array([0, 100, 200])
    pose = swaps[:, 2, 0, 0, 1]
    assert len(set(pose)) > 1
    np.testing.assert_array_equal(swaps[:, :2, 0, 0, 0], np.stack([seen, np.roll(seen, -1)], 1))
    np.testing.assert_array_equal(swaps[:, 2:, 0, 0, 0], np.stack([seen, seen, np.roll(seen, -1)], 1))
    np.testing.assert_array_equal(swaps[:, 2:, 0, 0, 1], np.stack([pose, np.roll(pose, -1), pose], 1))


def test_settings_that_cannot_work_are_named(method):
    with pytest.raises(UserError, match="30"):
        replace(method, image_size=30)


def test_a_run_goes_on_with_all_of_another():
    """As the published code does on AFLW: networks, optimiser and running means stay, and the steps begin anew."""
    first = config_lib.stage(tiny.config("imm"), "imm").method
    batch = {"image": jnp.zeros((2, first.frame_size, first.frame_size, 3), jnp.uint8), "index": jnp.arange(2)}
    made = first.init(jax.random.key(0), batch, {}, Start(None, 2))
    assert not first.needs
    left = made.replace(step=jnp.int32(40), aux=imm.Balance(made.aux.mean + 1))
    method = replace(first, start="previous")
    assert [(need.what, need.of_images) for need in method.needs] == [("network", False)]
    state = method.init(jax.random.key(1), batch, {}, Start(left, 5))
    assert int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, state.replace(step=left.step), left)
    with pytest.raises(UserError, match=r"stage imm needs the network of a run of imm\.IMM, .* config\.init_from"):
        method.init(jax.random.key(1), batch, {}, Start(None, 5, stage="imm"))
    with pytest.raises(UserError, match=r"^imm\.start=previous goes on .* use the same k and width"):
        replace(method, k=method.k + 1).init(jax.random.key(1), batch, {}, Start(left, 5, stage="imm"))
    with pytest.raises(UserError, match=r"^imm\.start=previous"):
        method.init(jax.random.key(1), batch, {}, Start(left.replace(aux=()), 5, stage="imm"))
