"""Optimisers against PyTorch, schedules against PyTorch or their formulas, accumulation against the whole batch."""

import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from uld_jax import optimizers, sharding
from uld_jax.engine import checkpoint
from uld_jax.errors import UserError
from uld_jax.method import TrainState


def test_examples():
    result = doctest.testmod(optimizers)
    assert result.attempted >= 10
    assert result.failed == 0


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


def falling(steps=12, seed=3):
    """Gradients that are large at first and small later, so that the largest second moment is that of an early step."""
    rng = np.random.default_rng(seed)
    return [(rng.normal(0, 3, 6) * 0.6**t).astype(np.float32) for t in range(steps)]


@pytest.mark.parametrize("l2", [0.0, 0.05])
def test_amsgrad_keeps_the_largest_raw_second_moment(l2):
    start, rate, b1, b2 = np.linspace(-1, 1, 6), 0.01, 0.9, 0.999
    x, m, s, v = start.copy(), np.zeros(6), np.zeros(6), np.zeros(6)
    transform, params = optimizers.amsgrad(rate, b1=b1, b2=b2, l2=l2), jnp.asarray(start, jnp.float32)
    state, step = transform.init(params), jax.jit(transform.update)
    for t, given in enumerate(falling(), 1):
        g = given + l2 * x
        m, s = b1 * m + (1 - b1) * g, b2 * s + (1 - b2) * g * g
        v = np.maximum(v, s)
        x = x - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
        updates, state = step(jnp.asarray(given), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, x, atol=1e-6)
    others = optax.amsgrad(rate, b1=b1, b2=b2)
    state, other = others.init(jnp.asarray(start)), jnp.asarray(start, jnp.float32)
    for given in falling():
        updates, state = others.update(jnp.asarray(given), state, other)
        other = optax.apply_updates(other, updates)
    assert np.abs(other - x).max() > 1e-3  # the difference that the transform is for


def test_amsgrad_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Parameter(torch.linspace(-1, 1, 6))
    optimizer = torch.optim.Adam([theirs], lr=0.01, weight_decay=5e-4, amsgrad=True)
    transform, ours = optimizers.amsgrad(0.01, l2=5e-4), jnp.linspace(-1, 1, 6)
    state = transform.init(ours)
    for given in falling():
        theirs.grad = torch.tensor(given)
        optimizer.step()
        updates, state = transform.update(jnp.asarray(given), state, ours)
        ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-6)


def test_clipping_bounds_the_gradient_before_the_l2_term():
    params = {"w": jnp.array([3.0, 4.0])}
    gradient = {"w": jnp.array([30.0, 40.0])}
    # Under Adam only ratios of gradients count; eps makes their size visible: update = -rate * g / (|g| + eps).
    transform = optimizers.adam(1.0, eps=1.0, clip=1.0, l2=2.0)
    updates, _ = transform.update(gradient, transform.init(params), params)
    g = np.array([0.6, 0.8]) + 2.0 * np.array([3.0, 4.0])
    np.testing.assert_allclose(updates["w"], -g / (g + 1), rtol=1e-5)


def gradients(steps):
    """Of every step, from 1e-6 to 10 in size."""
    rng = np.random.default_rng(5)
    size = 10 ** rng.uniform(-6, 1, (steps, 1))
    return [{"head": (s * rng.normal(size=7)).astype(np.float32), "trunk": s.astype(np.float32)} for s in size]


START = {"head": np.linspace(-1, 1, 7, dtype=np.float32), "trunk": np.ones(1, np.float32)}


def by_torch(optimizer_of, grads, rates, clip=0.0):
    torch = pytest.importorskip("torch")
    params = {name: torch.tensor(value, requires_grad=True) for name, value in START.items()}
    optimizer = optimizer_of(torch, params)
    for grad, rate in zip(grads, rates, strict=True):
        for name, value in params.items():
            value.grad = torch.tensor(grad[name])
        if clip:
            torch.nn.utils.clip_grad_norm_(params.values(), clip)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1)
        optimizer.step()
    return {name: value.detach().numpy() for name, value in params.items()}


def by_optax(transform, grads):
    params = jax.tree.map(jnp.asarray, START)
    state = transform.init(params)

    @jax.jit
    def step(params, state, grad):
        updates, state = transform.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    for grad in grads:
        params, state = step(params, state, grad)
    return params, state


@pytest.mark.parametrize(
    ("l2", "clip", "decay", "eps", "tolerance"),
    [(0.0, 0.0, 0.99, 1e-8, 1e-6), (0.1, 0.0, 0.9, 1e-3, 1e-6), (1e-5, 0.5, 0.99, 1e-8, 1e-5)],
)
def test_rmsprop_is_that_of_pytorch(l2, clip, decay, eps, tolerance):
    grads, rates = gradients(50), [0.01] * 50
    make = lambda torch, params: torch.optim.RMSprop(params.values(), lr=1.0, alpha=decay, eps=eps, weight_decay=l2)
    theirs = by_torch(make, grads, rates, clip)
    ours, _ = by_optax(optimizers.rmsprop(0.01, l2=l2, decay=decay, eps=eps, clip=clip), grads)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=tolerance, atol=tolerance)
        assert np.abs(value - START[name]).max() > 0.1  # it went somewhere


def test_rmsprop_adds_eps_to_the_root():
    gradient = {"w": jnp.array([1e-7])}
    transform = optimizers.rmsprop(1.0)
    updates, _ = transform.update(gradient, transform.init(gradient), gradient)
    np.testing.assert_allclose(updates["w"], -1e-7 / (0.1 * 1e-7 + 1e-8), rtol=1e-4)  # under it: -0.001


SGD = [(0.9, 0.0, 0.0), (0.9, 1e-2, 0.0), (0.0, 0.1, 0.0), (0.5, 0.1, 0.5)]


def cosine(steps, rate=0.03):
    return [rate * 0.5 * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]


@pytest.mark.parametrize(("momentum", "l2", "clip"), SGD)
def test_sgd_is_that_of_pytorch(momentum, l2, clip):
    grads = gradients(20)
    make = lambda torch, params: torch.optim.SGD(params.values(), lr=1.0, momentum=momentum, weight_decay=l2)
    theirs = by_torch(make, grads, cosine(20), clip)
    ours, _ = by_optax(
        optimizers.sgd(optimizers.schedule("cosine", 0.03, 20), momentum=momentum, l2=l2, clip=clip), grads
    )
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-6, atol=1e-6)
        assert np.abs(value - START[name]).max() > 0.01  # it went somewhere


@pytest.mark.parametrize(("momentum", "l2", "clip"), SGD)
def test_sgd_follows_its_formula(momentum, l2, clip):
    grads = gradients(20)
    params = {name: value.astype(np.float64) for name, value in START.items()}
    memory = {name: np.zeros_like(value) for name, value in params.items()}
    for grad, rate in zip(grads, cosine(20), strict=True):
        norm = math.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grad.values()))
        for name, g in grad.items():
            g = g * min(1, clip / norm) if clip else g
            memory[name] = momentum * memory[name] + g + l2 * params[name]
            params[name] = params[name] - rate * memory[name]
    ours, _ = by_optax(
        optimizers.sgd(optimizers.schedule("cosine", 0.03, 20), momentum=momentum, l2=l2, clip=clip), grads
    )
    for name, value in params.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6)


def label(path):
    assert isinstance(path, tuple)
    return {"head": "fast", "trunk": "slow"}.get(path[0])


def test_groups_are_those_of_pytorch_and_their_state_is_saved(tmp_path):
    grads = gradients(30)
    rates = [0.01 * 0.1 ** (i >= 20) for i in range(30)]

    def make(torch, params):
        sets = [{"params": [params["head"]], "share": 1}, {"params": [params["trunk"]], "share": 0.1}]
        return torch.optim.RMSprop(sets, lr=1.0, weight_decay=0.01)

    def rate(share):
        return optimizers.schedule("steps", 0.01 * share, 30, boundaries=(20,))

    theirs = by_torch(make, grads, rates)
    each = {"fast": optimizers.rmsprop(rate(1), l2=0.01), "slow": optimizers.rmsprop(rate(0.1), l2=0.01)}
    transform = optimizers.groups(each, label)
    ours, state = by_optax(transform, grads)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-6, atol=1e-6)
    whole = TrainState(step=jnp.int32(30), params=ours, opt_state=state)
    checkpoint.save_final(tmp_path, "stage", whole, {})
    template = checkpoint.abstract(sharding.make_mesh(), jax.eval_shape(lambda: whole))
    restored = checkpoint.restore_final(tmp_path, "stage", template).state
    assert jax.tree.structure(restored) == jax.tree.structure(whole)
    jax.tree.map(np.testing.assert_array_equal, restored, whole)


def test_groups_cover_every_parameter():
    each = {"fast": optimizers.rmsprop(1.0), "slow": optimizers.rmsprop(0.1)}
    params = {"head": jnp.ones(2), "trunk": {"conv": jnp.ones(2)}}
    optimizers.groups(each, label).init(params)
    with pytest.raises(UserError, match="'other/kernel' is in no group of the optimiser; use one of fast, slow"):
        optimizers.groups(each, label).init(params | {"other": {"kernel": jnp.ones(2)}})
    with pytest.raises(UserError, match="group 'fast' holds no parameter"):
        optimizers.groups(each, label).init({"trunk": jnp.ones(2)})


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


def test_steps_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [11, 25], gamma=0.2)
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    rate = optimizers.schedule("steps", 0.3, 40, boundaries=(11, 25), factor=0.2)
    np.testing.assert_allclose(jax.jit(jax.vmap(rate))(jnp.arange(40)), expected, rtol=1e-6)
    warmed = optimizers.schedule("steps", 0.3, 40, warmup=7, boundaries=(11, 25), factor=0.2)
    expected[:7] = [0.3 * i / 7 for i in range(7)]
    np.testing.assert_allclose(jax.jit(jax.vmap(warmed))(jnp.arange(40)), expected, rtol=1e-6)


def test_restarts_are_those_of_pytorch_stepped_as_in_the_published_code():
    torch = pytest.importorskip("torch")
    base, warmup, part = 5e-4, 20, 3
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=base)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=5, T_mult=1, eta_min=base / 100)
    counter, expected, rounds = 0, {}, 0
    while rounds < 4:
        # At the end of a round its counter goes on by one without a step of the optimiser.
        if counter == warmup:
            rounds, counter = rounds + 1, counter + 1
        elif counter > warmup and (counter - warmup) % part == 0:
            scheduler.step()
            if optimizer.param_groups[0]["lr"] == base:
                rounds, counter = rounds + 1, counter + 1
        expected[counter] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        counter += 1
    assert len(expected) == warmup + 3 * (5 * part - 1) + 1
    assert len({round(rate, 9) for rate in expected.values()}) == 5
    rate = optimizers.schedule("restarts", base, 10**6, warmup=warmup, period=5 * part)
    found = jax.jit(jax.vmap(rate))(jnp.array(list(expected)))
    np.testing.assert_allclose(found, list(expected.values()), rtol=1e-5)


def test_schedules_that_lack_their_steps_are_refused():
    with pytest.raises(UserError, match="'steps', but no step"):
        optimizers.schedule("steps", 0.1, 10)
    with pytest.raises(UserError, match="'restarts', but the steps"):
        optimizers.schedule("restarts", 0.1, 10, warmup=3)


def test_an_unknown_schedule_is_refused():
    for period in (0, 5):
        with pytest.raises(UserError, match="'linear'; use constant, cosine, steps or restarts"):
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
