"""Optimisers as PyTorch defines them, in optax.

PyTorch's `weight_decay` in Adam is an L2 term added to the gradient (after any clipping, before the moments), not
AdamW's decoupled decay.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from uld_jax.errors import UserError


def schedule(kind: str, rate: float, steps: int, warmup: int = 0, period: int = 0) -> optax.Schedule:
    """Learning rate by step: `constant`, or `cosine` to zero at `steps`; both after a linear warm-up.

    With a `period` the cosine course, warm-up included, takes that many steps and then starts again (Loshchilov and
    Hutter 2017); a last course that `steps` cuts short is run through in the steps that are left. Raises UserError for
    any other kind.
    """
    if kind == "cosine" and period and steps > period:
        whole, rest = schedule(kind, rate, period, warmup), steps % period
        last = schedule(kind, rate, rest, min(warmup, rest // 2)) if rest else whole
        return lambda step: jnp.where(step < steps - rest, whole(step % period), last(step - (steps - rest)))
    if kind == "constant":
        after = optax.constant_schedule(rate)
    elif kind == "cosine":
        after = optax.cosine_decay_schedule(rate, max(steps - warmup, 1))
    else:
        raise UserError(f"schedule is {kind!r}; use constant or cosine")
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])


def adam(
    rate: float | optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    l2: float = 0.0,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """`torch.optim.Adam(weight_decay=l2)` after `clip_grad_norm_(clip)`; 0 switches either off."""
    parts = []
    if clip:
        parts.append(optax.clip_by_global_norm(clip))
    if l2:
        parts.append(optax.add_decayed_weights(l2))
    return optax.chain(*parts, optax.adam(rate, b1=b1, b2=b2, eps=eps))


def clip_each(norm: float) -> optax.GradientTransformation:
    """Every variable's gradient by itself is cut to this norm (`tf.clip_by_norm`)."""

    def cut(g):
        size = jnp.sqrt(jnp.sum(g * g))
        return g * (norm / jnp.maximum(size, norm))

    return optax.stateless(lambda updates, _: jax.tree.map(cut, updates))


def accumulated_gradients(loss: Callable, params, model_state, batch, parts: int):
    """Gradients of a mean loss over the batch, computed in `parts` equal pieces to save memory.

    Args:
      loss: `(params, model_state, batch) -> (loss, (model_state, metrics))`, a mean over the batch's examples.
      params: what to differentiate by.
      model_state: handed from piece to piece (batch statistics see each piece in turn).
      batch: pytree with leading axis B, a multiple of `parts`.
      parts: 1 computes everything at once.

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
            # One piece after the other: without a barrier XLA may run them all at once, which saves nothing.
            total, model_state, params = jax.lax.optimization_barrier((total, model_state, params))
    grads, metrics = jax.tree.map(lambda x: x / parts, total)
    return grads, model_state, metrics
