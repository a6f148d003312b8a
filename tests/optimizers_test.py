"""Optimisers against PyTorch, schedules against their formulas, accumulation against the whole batch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from uld_jax import optimizers
from uld_jax.errors import UserError


def problem(seed=0):
    """Start, inputs and targets of a small network whose gradients are now longer, now shorter than 1."""
    rng = np.random.default_rng(seed)
    params = {"w": rng.normal(0, 1, (5, 3)).astype(np.float32), "b": rng.normal(0, 1, 3).astype(np.float32)}
    return params, rng.normal(0, 2, (16, 5)).astype(np.float32), rng.normal(0, 2, (16, 3)).astype(np.float32)


def loss(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w"]) + params["b"] - y) ** 2)


@pytest.mark.parametrize(
    ("l2", "clip", "betas", "eps"),
    [(0.0, 0.0, (0.9, 0.999), 1e-8), (0.1, 0.0, (0.9, 0.999), 1e-8), (0.1, 0.5, (0.5, 0.9), 1e-3)],
)
def test_adam_is_that_of_pytorch(l2, clip, betas, eps):
    torch = pytest.importorskip("torch")
    start, x, y = problem()
    rates = [0.05 * 0.5 * (1 + math.cos(math.pi * i / 25)) for i in range(20)]

    theirs = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    optimizer = torch.optim.Adam(theirs.values(), lr=1.0, betas=betas, eps=eps, weight_decay=l2)
    for rate in rates:
        optimizer.zero_grad()
        value = ((torch.tanh(torch.tensor(x) @ theirs["w"]) + theirs["b"] - torch.tensor(y)) ** 2).mean()
        value.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()

    ours = jax.tree.map(jnp.asarray, start)
    rate = optimizers.schedule("cosine", 0.05, 25)
    transform = optimizers.adam(rate, b1=betas[0], b2=betas[1], eps=eps, l2=l2, clip=clip)

    @jax.jit
    def step(params, state):
        updates, state = transform.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    state = transform.init(ours)
    for _ in rates:
        ours, state = step(ours, state)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value.detach().numpy(), rtol=1e-5, atol=1e-5)
        assert np.abs(ours[name] - start[name]).max() > 0.1  # it went somewhere


def test_clipping_bounds_the_gradient_before_the_l2_term():
    params = {"w": jnp.array([3.0, 4.0])}
    gradient = {"w": jnp.array([30.0, 40.0])}
    # Under Adam only ratios of gradients count; eps makes their size visible: update = -rate * g / (|g| + eps).
    transform = optimizers.adam(1.0, eps=1.0, clip=1.0, l2=2.0)
    updates, _ = transform.update(gradient, transform.init(params), params)
    g = np.array([0.6, 0.8]) + 2.0 * np.array([3.0, 4.0])
    np.testing.assert_allclose(updates["w"], -g / (g + 1), rtol=1e-5)


def course(kind, rate, steps, warmup, i):
    """The schedule's formula."""
    if i < warmup:
        return rate * i / warmup
    if kind == "constant":
        return rate
    return rate * 0.5 * (1 + math.cos(math.pi * min((i - warmup) / (steps - warmup), 1)))


@pytest.mark.parametrize("kind", ["constant", "cosine"])
@pytest.mark.parametrize("warmup", [0, 7])
def test_schedules(kind, warmup):
    rate = optimizers.schedule(kind, 0.3, 40, warmup)
    found = jax.jit(jax.vmap(rate))(jnp.arange(50))
    np.testing.assert_allclose(found, [course(kind, 0.3, 40, warmup, i) for i in range(50)], rtol=1e-5, atol=1e-7)


def test_a_period_starts_the_whole_course_again():
    rate = optimizers.schedule("cosine", 0.3, 1000, warmup=3, period=12)
    found = jax.jit(jax.vmap(rate))(jnp.arange(40))
    np.testing.assert_allclose(found, [course("cosine", 0.3, 12, 3, i % 12) for i in range(40)], rtol=1e-5, atol=1e-7)


def test_an_unknown_schedule_is_refused():
    for period in (0, 5):
        with pytest.raises(UserError, match="'linear'; use constant or cosine"):
            optimizers.schedule("linear", 0.1, 10, period=period)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
    start, x, y = problem(seed=parts)

    def with_state(params, model_state, batch):
        value = loss(params, batch["x"], batch["y"])
        # A running mean, for which the order of the pieces counts.
        new = {"mean": 0.5 * model_state["mean"] + jnp.mean(batch["x"], 0), "seen": model_state["seen"] + 1}
        return value, (new, {"target": jnp.mean(batch["y"])})

    first = {"mean": jnp.ones(5), "seen": jnp.int32(0)}
    run = jax.jit(lambda p, s, b: optimizers.accumulated_gradients(with_state, p, s, b, parts))
    gradients, model_state, metrics = run(start, first, {"x": x, "y": y})

    whole, whole_gradients = jax.value_and_grad(loss)(start, x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), gradients, whole_gradients)
    np.testing.assert_allclose(metrics["loss"], whole, rtol=1e-5)
    np.testing.assert_allclose(metrics["target"], y.mean(), rtol=1e-4)
    mean = np.ones(5)
    for i in range(parts):
        mean = 0.5 * mean + x[i::parts].mean(0)
    np.testing.assert_allclose(model_state["mean"], mean, rtol=1e-4, atol=1e-5)
    assert int(model_state["seen"]) == parts


def test_each_variable_is_clipped_by_itself():
    grads = {"long": jnp.array([3.0, 4.0]), "short": jnp.array([0.3, 0.4])}
    clipped, _ = optimizers.clip_each(1.0).update(grads, optimizers.clip_each(1.0).init(grads))
    np.testing.assert_allclose(clipped["long"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(clipped["short"], grads["short"])
