"""Optimisers with PyTorch's definitions, in optax.

PyTorch's `weight_decay` in Adam, RMSprop and SGD is an L2 term added to the gradient (after any clipping, before the
moments), not AdamW's decoupled decay.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from uld_jax.errors import UserError


def schedule(
    kind: str,
    rate: float,
    steps: int,
    warmup: int = 0,
    period: int = 0,
    *,
    boundaries: Sequence[int] = (),
    factor: float = 0.1,
    plateaus: int = 5,
) -> optax.Schedule:
    """Return a schedule of the learning rate by step.

    `constant`: the rate stays at `rate`.
    `cosine`: the rate falls to zero at `steps`. With a `period`, the course, warm-up included, takes that many steps
      and then starts again (Loshchilov and Hutter 2017); a last course that does not fit is compressed into the
      remaining steps.
    `steps`: the rate is multiplied by `factor` from each of the `boundaries` on, counted from step 0 (PyTorch's
      `MultiStepLR`).
    `restarts`: after `warmup` steps at `rate`, every `period` is cut into `plateaus` equal parts, whose rates follow a
      cosine from `rate` to rate / 100 (published code of Mallis et al.: `CosineAnnealingWarmRestarts`, T_0 = 5, stepped
      five times a round):

          rate / 100 + 0.99 rate (1 + cos(pi i / plateaus)) / 2,   i = 0 .. plateaus - 1

    In all kinds but `restarts`, `warmup` steps first raise the rate linearly from 0.

    Raises UserError for any other kind, for `steps` without boundaries and for `restarts` without a period.

    >>> rate = schedule("restarts", 5e-4, 310_000, warmup=20_000, period=10_000)
    >>> [f"{rate(step):.3e}" for step in (0, 21_999, 22_000, 28_000, 30_000)]
    ['5.000e-04', '5.000e-04', '4.527e-04', '5.227e-05', '5.000e-04']
    """
    if kind == "cosine" and period and steps > period:
        whole, rest = schedule(kind, rate, period, warmup), steps % period
        last = schedule(kind, rate, rest, min(warmup, rest // 2)) if rest else whole
        return lambda step: jnp.where(step < steps - rest, whole(step % period), last(step - (steps - rest)))
    if kind == "restarts":
        return _restarts(rate, warmup, period, plateaus)
    if kind == "constant":
        after = optax.constant_schedule(rate)
    elif kind == "cosine":
        after = optax.cosine_decay_schedule(rate, max(steps - warmup, 1))
    elif kind == "steps":
        after = _steps(rate, boundaries, factor, warmup)
    else:
        raise UserError(f"schedule is {kind!r}; use constant, cosine, steps or restarts")
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])


def _steps(rate, boundaries, factor, warmup):
    if not boundaries:
        raise UserError("schedule is 'steps', but no step at which the rate falls is given; name some or use constant")
    return lambda step: rate * factor ** sum(step + warmup >= boundary for boundary in boundaries)


def _restarts(rate, warmup, period, plateaus):
    if period < 1:
        raise UserError("schedule is 'restarts', but the steps from one to the next are not given; name them")
    lowest = rate / 100

    def at(step):
        i = jnp.maximum(step - warmup, 0) % period * plateaus // period
        return lowest + (rate - lowest) * 0.5 * (1 + jnp.cos(jnp.pi * i / plateaus))

    return at


def adam(
    rate: float | optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    l2: float = 0.0,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """Return `torch.optim.Adam(weight_decay=l2)` after `clip_grad_norm_(clip)`; 0 switches either off."""
    return optax.chain(*_gradient_parts(l2, clip), optax.adam(rate, b1=b1, b2=b2, eps=eps))


class AmsgradState(NamedTuple):
    """State of `amsgrad`: number of updates, both moments, and the largest second moment so far."""

    count: jax.Array
    mean: optax.Updates
    square: optax.Updates
    largest: optax.Updates


def amsgrad(
    rate: float | optax.Schedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, l2: float = 0.0
) -> optax.GradientTransformation:
    """Return `torch.optim.Adam(amsgrad=True, weight_decay=l2)`.

        v <- max(v, s);   update = -rate (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    m and s are the moments of Adam at step t. The maximum is that of the raw second moment, and its bias is corrected
    by the step at hand; `optax.amsgrad` takes the maximum of corrected moments, which is another sequence.
    """

    def init(params):
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        return AmsgradState(jnp.int32(0), zeros(), zeros(), zeros())

    def update(grads, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, grads)
        square = jax.tree.map(lambda s, g: b2 * s + (1 - b2) * g * g, state.square, grads)
        largest = jax.tree.map(jnp.maximum, state.largest, square)
        # 1 - b^t would lose digits in float32 while b^t is near 1.
        first, second = (-jnp.expm1(count * math.log(b)) for b in (b1, b2))
        updates = jax.tree.map(lambda m, v: (m / first) / (jnp.sqrt(v / second) + eps), mean, largest)
        return updates, AmsgradState(count, mean, square, largest)

    decay = [optax.add_decayed_weights(l2)] if l2 else []
    return optax.chain(*decay, optax.GradientTransformation(init, update), optax.scale_by_learning_rate(rate))


def rmsprop(
    rate: float | optax.Schedule, *, l2: float = 0.0, decay: float = 0.99, eps: float = 1e-8, clip: float = 0.0
) -> optax.GradientTransformation:
    """Return `torch.optim.RMSprop(weight_decay=l2, alpha=decay)` after `clip_grad_norm_(clip)`; 0 switches either off.

    The optimiser has no momentum and is not centred. Unlike optax's default, eps is added to the root, not under it.

        v <- decay v + (1 - decay) g^2;   update = -rate g / (sqrt(v) + eps)

    >>> params = {"w": jnp.ones(2)}
    >>> optimizer = rmsprop(0.1)
    >>> updates, _ = optimizer.update({"w": jnp.array([3.0, -3.0])}, optimizer.init(params), params)
    >>> [round(float(x), 3) for x in updates["w"]]  # of length rate / sqrt(1 - decay) at first
    [-1.0, 1.0]
    """
    return optax.chain(*_gradient_parts(l2, clip), optax.rmsprop(rate, decay=decay, eps=eps, eps_in_sqrt=False))


def sgd(
    rate: float | optax.Schedule, *, momentum: float = 0.9, l2: float = 0.0, clip: float = 0.0
) -> optax.GradientTransformation:
    """Return `torch.optim.SGD(momentum=momentum, weight_decay=l2)` after `clip_grad_norm_(clip)`; 0 switches each off.

        m <- momentum m + g;   update = -rate m

    The rate is outside of the momentum, so that a change of the rate acts on all of m at once.

    >>> params = {"w": jnp.ones(1)}
    >>> optimizer = sgd(0.1, momentum=0.5)
    >>> state = optimizer.init(params)
    >>> for _ in range(3):
    ...     updates, state = optimizer.update({"w": jnp.ones(1)}, state, params)
    >>> round(float(updates["w"][0]), 3)  # of length rate * (1 + 1/2 + 1/4)
    -0.175
    """
    return optax.chain(*_gradient_parts(l2, clip), optax.sgd(rate, momentum=momentum or None))


def _gradient_parts(l2, clip):
    """Clipping and the L2 term, in PyTorch's order; neither where it is 0."""
    parts = [optax.clip_by_global_norm(clip)] if clip else []
    return [*parts, optax.add_decayed_weights(l2)] if l2 else parts


def groups(
    optimizers: Mapping[str, optax.GradientTransformation], label: Callable[[tuple[str, ...]], str | None]
) -> optax.GradientTransformation:
    """Combine optimisers for groups of parameters, for example with another rate for the last layers.

    Args:
      optimizers: optimisers by the name of their group. Operations on all gradients, such as clipping, act on the
        gradients of the group alone.
      label: function from a parameter's path, such as ("top_m_0", "conv1", "kernel"), to the name of its group.

    Raises UserError, when the state is made, for a parameter of no such group and for a group without parameters.

    >>> params = {"head": {"w": jnp.zeros(2)}, "trunk": {"w": jnp.zeros(2)}}
    >>> both = {"fast": optax.sgd(1.0), "slow": optax.sgd(0.1)}
    >>> optimizer = groups(both, lambda path: "fast" if path[0] == "head" else "slow")
    >>> updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    >>> [round(float(updates[name]["w"][0]), 3) for name in ("head", "trunk")]
    [-1.0, -0.1]
    """

    def labels(params):
        used = set()

        def one(path, _):
            path = tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
            group = label(path)
            if group not in optimizers:
                raise UserError(
                    f"the parameter {'/'.join(path)!r} is in no group of the optimiser; use one of "
                    f"{', '.join(optimizers)} for it"
                )
            used.add(group)
            return group

        tree = jax.tree_util.tree_map_with_path(one, params)
        if useless := [name for name in optimizers if name not in used]:
            raise UserError(f"the optimiser's group {useless[0]!r} holds no parameter; name some, or leave it out")
        return tree

    return optax.partition(dict(optimizers), labels)


def clip_each(norm: float) -> optax.GradientTransformation:
    """Clip the gradient of each variable separately to this norm (`tf.clip_by_norm`)."""

    def cut(g):
        size = jnp.sqrt(jnp.sum(g * g))
        return g * (norm / jnp.maximum(size, norm))

    return optax.stateless(lambda updates, _: jax.tree.map(cut, updates))


def accumulated_gradients(loss: Callable, params, model_state, batch, parts: int):
    """Compute the gradients of a mean loss over the batch in `parts` equal pieces, to save memory.

    Args:
      loss: `(params, model_state, batch) -> (loss, (model_state, metrics))`, a mean over the batch's examples.
      params: parameters to differentiate by.
      model_state: variables that are handed from piece to piece (batch statistics see each piece in turn).
      batch: pytree with leading axis B, a multiple of `parts`.
      parts: number of pieces; 1 computes everything at once.

    Returns:
      (gradients, model_state, metrics), gradients and metrics averaged over the pieces.
    """
    step = jax.value_and_grad(loss, has_aux=True)
    total = None
    for i in range(parts):  # unrolled: a scan over convolutions is many times slower on CPU
        # Strided rows, so that every device keeps computing on its own.
        piece = jax.tree.map(lambda x, i=i: x.reshape(-1, parts, *x.shape[1:])[:, i], batch) if parts > 1 else batch
        (value, (model_state, metrics)), grads = step(params, model_state, piece)
        new = (grads, {"loss": value} | metrics)
        total = new if total is None else jax.tree.map(jnp.add, total, new)
        if parts > 1:
            # Without a barrier XLA may run all pieces at once, which saves no memory.
            total, model_state, params = jax.lax.optimization_barrier((total, model_state, params))
    grads, metrics = jax.tree.map(lambda x: x / parts, total)
    return grads, model_state, metrics
