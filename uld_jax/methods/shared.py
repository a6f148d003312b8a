"""Hyper-parameters that several stages have, each documented once here; and what a stage takes from the one before.

A stage has them in sections, `config.<stage>.<section>.<key>`, of which a flag may leave out the section.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from uld_jax import optimizers
from uld_jax.backbones import Backbone
from uld_jax.bank import Labels
from uld_jax.errors import UserError
from uld_jax.hyperparameters import NotNegative, Positive, PositiveInt, Share
from uld_jax.method import Stage, Start, TrainState, same_shapes
from uld_jax.models import layers
from uld_jax.ops import color, views, warp

RMSPROP_L2 = 1e-5  # weight of the parameters' squares in the gradient (Mallis et al., section 4)


@dataclasses.dataclass(frozen=True)
class View:
    """What a network sees of a frame.

    Attributes:
      image_size: side of the square view in pixels.
      zoom: the view shows this central fraction of the frame.
    """

    image_size: PositiveInt = 256
    zoom: Positive = 1.0

    def geometry(self, frame_size: int, stride: int, dtype: str) -> views.Geometry:
        """Return the geometry of views whose heatmap cells are `stride` pixels wide."""
        return views.Geometry(frame_size, self.image_size, stride, self.zoom, layers.wide(dtype))


@dataclasses.dataclass(frozen=True)
class Fan:
    """A stacked-hourglass network (`models/fan.py`).

    Attributes:
      width: channels.
      depth: of an hourglass.
      downsample: pixels of the view in a cell of the heatmaps.
    """

    width: PositiveInt = 256
    depth: PositiveInt = 4
    downsample: PositiveInt = 4


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random views of a training image.

    Attributes:
      rotation: in degrees; the most of it in `uniform_warps`, its standard deviation in `random_warps`.
      scale: of the change of size.
      shift: as a fraction of what is shown.
      colour: strength of the colour changes; 1 is usual.
    """

    rotation: float = 20.0
    scale: float = 0.1
    shift: float = 0.04
    colour: float = 1.0

    def uniform_warps(self, keys, zoom: float, dtype: str) -> warp.Warp:
        """Return warps [B] by keys [B], see `warp.uniform_warp`."""
        draw = lambda key: warp.uniform_warp(
            key, rotation=self.rotation, scale=self.scale, shift=self.shift, zoom=zoom, dtype=layers.wide(dtype)
        )
        return jax.vmap(draw)(keys)

    def random_warps(self, keys, zoom: float, dtype: str, bend: float = 0.0, spread: float = 1.0) -> warp.Warp:
        """Return warps [B] by keys [B], `spread` times as strong as usual; see `warp.random_warp`."""
        draw = lambda key: warp.random_warp(
            key,
            rotation=spread * self.rotation,
            scale=spread * self.scale,
            shift=spread * self.shift,
            bend=spread * bend,
            zoom=zoom,
            dtype=layers.wide(dtype),
        )
        return jax.vmap(draw)(keys)


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam and its schedule (`optimizers.py`).

    Attributes:
      learning_rate: the highest of the schedule.
      schedule: `constant` or `cosine`, see `optimizers.schedule`.
      warmup: steps of a linear rise.
      clip: largest norm of the gradient; 0 for no limit.
    """

    learning_rate: Positive = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    clip: float = 0.0

    def transform(self, steps: int, period: int = 0) -> optax.GradientTransformation:
        """Return the optimiser of a stage of so many steps; `period` is that of `optimizers.schedule`."""
        options = dict(warmup=min(self.warmup, steps // 2), period=period)
        rate = optimizers.schedule(self.schedule, self.learning_rate, steps, **options)
        return optimizers.adam(rate, clip=self.clip)


@dataclasses.dataclass(frozen=True)
class Rmsprop:
    """RMSprop and its schedule (`optimizers.py`).

    Attributes:
      learning_rate: the highest of the schedule.
      schedule: `constant`, `cosine`, `restarts` or `steps`, see `optimizers.schedule`.
      decay_at: steps from which `schedule=steps` has a tenth each.
    """

    learning_rate: Positive = 5e-4
    schedule: Literal["constant", "cosine", "restarts", "steps"] = "constant"
    decay_at: tuple[int, ...] = ()

    def transform(self, steps: int, held: int = 0, period: int = 0) -> optax.GradientTransformation:
        """Return the optimiser of a stage of so many steps; `schedule=restarts` begins after `held` of them."""
        options = dict(warmup=held if self.schedule == "restarts" else 0, period=period, boundaries=self.decay_at)
        rate = optimizers.schedule(self.schedule, self.learning_rate, steps, **options)
        return optimizers.rmsprop(rate, l2=RMSPROP_L2)


@dataclasses.dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with momentum and its schedule (`optimizers.py`).

    Attributes:
      learning_rate, schedule, warmup, decay_at, clip: as in `Adam`; `cosine` falls to 0, step by step.
      momentum: share of the gradients before that stays in every step; 0 for none.
      l2: weight of all parameters in the gradient, those of normalisation and biases included, as PyTorch has it.
    """

    learning_rate: Positive = 3e-2
    schedule: Literal["constant", "cosine", "steps"] = "cosine"
    warmup: NotNegative = 0
    decay_at: tuple[int, ...] = ()
    momentum: Share = 0.9
    l2: float = 1e-4
    clip: float = 0.0

    def transform(self, steps: int, period: int = 0) -> optax.GradientTransformation:
        """Return the optimiser of a stage of so many steps; `period` is that of `optimizers.schedule`."""
        rate = _stepped(self, steps, period)
        return optimizers.sgd(rate, momentum=self.momentum, l2=self.l2, clip=self.clip)


@dataclasses.dataclass(frozen=True)
class AdamL2:
    """Adam with the parameters' squares in the gradient, as PyTorch's `weight_decay`, and its schedule.

    Attributes:
      learning_rate, schedule, warmup, decay_at, clip: as in `Sgd`.
      l2: weight of all parameters in the gradient.
    """

    learning_rate: Positive = 5e-4
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    warmup: NotNegative = 0
    decay_at: tuple[int, ...] = ()
    l2: float = 1e-4
    clip: float = 0.0

    def transform(self, steps: int) -> optax.GradientTransformation:
        """Return the optimiser of a stage of so many steps."""
        return optimizers.adam(_stepped(self, steps), l2=self.l2, clip=self.clip)


def _stepped(how: Sgd | AdamL2, steps: int, period: int = 0) -> optax.Schedule:
    """The learning rate of an optimiser with `decay_at`, in a stage of so many steps."""
    options = dict(warmup=min(how.warmup, steps // 2), period=period, boundaries=how.decay_at)
    return optimizers.schedule(how.schedule, how.learning_rate, steps, **options)


@dataclasses.dataclass(frozen=True)
class Graph:
    """Clusters of a graph of nearest neighbours (`clustering/gcn_clusters.py`).

    Attributes:
      neighbours: of a row, itself not counted.
      link_space: whose similarity, `gcn_hidden` or `descriptor`.
      slots: M, to be larger than any number of clusters.
    """

    neighbours: PositiveInt = 80
    link_space: Literal["gcn_hidden", "descriptor"] = "gcn_hidden"
    slots: PositiveInt = 512


def backbone_maps(backbone: Backbone, frozen: Any, seen: jax.Array, pieces: int, dtype: str) -> dict[str, jax.Array]:
    """Return a frozen backbone's maps {tap: [B,h,w,C]} of views [B,S,S,3] in 0..1; nothing flows back into them.

    They are computed in as many of `pieces` as divide B, to save memory.
    """
    # Add 0.001 / 255 before rounding to uint8: resampled values often lie exactly between two bytes, and this makes
    # them all round the same way.
    return in_pieces(backbone.features, frozen, color.to_uint8(seen + 1e-3 / 255), pieces, dtype)


def in_pieces(run, frozen: Any, given: Any, pieces: int, dtype: str) -> Any:
    """Return run(frozen, given), of arrays [B,...], in as many of `pieces` as divide B; nothing flows back into it.

    Both `given` and the result are pytrees of arrays [B,...]; the result is in the type `layers.wide` of `dtype`.
    """
    count = len(jax.tree.leaves(given)[0])
    parts = math.gcd(pieces, count)
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(count // parts, parts, *x.shape[1:]), 1, 0), given)
    done = []
    for i in range(parts):
        done.append(run(frozen, jax.tree.map(lambda x, i=i: x[i], split)))
        if parts > 1:  # one after the other, see `optimizers.accumulated_gradients`
            done, frozen = jax.lax.optimization_barrier((done, frozen))
    joined = lambda *x: jnp.stack(x, 1).reshape(count, *x[0].shape[1:]).astype(layers.wide(dtype))
    return jax.lax.stop_gradient(jax.tree.map(joined, *done))


def labels_in_views(labels: Labels, index: jax.Array, warps: warp.Warp, geometry: views.Geometry):
    """Labels of training images [B] in their views: (cells [B,K,2], which of them are labelled and seen [B,K])."""
    rows = jax.tree.map(lambda table: table[index], labels)
    cells = geometry.to_cells(rows.xy, warps)
    return cells, (rows.score > 0) & geometry.on_map(cells)


def take(method: Stage, start: Start, what: str) -> Any:
    """Return what a stage `needs` of the one before, by the name of the need.

    None stands for what that stage did not leave, or this one does not need. Raises UserError if this stage cannot
    start without.
    """
    need = next((need for need in method.needs if need.what == what), None)
    found = None if need is None else start.left(what)
    if need is not None and found is None and need.required:
        given = f"the stage before, {start.before}, leaves none" if start.before else "no stage comes before it"
        raise UserError(
            f"stage {start.stage} needs the {what} of {need.left_by}, and {given}; put such a stage before it, or set "
            "config.init_from=RUN:STAGE to one of a finished run"
        )
    return found


def take_labels(method: Stage, start: Start, slots: int, what: str = "labels") -> Labels | None:
    """Return the table of labels [N,slots] that the stage before left; None if it left none that fits.

    Raises UserError if the stage `needs` such a table and there is none of these images and so many landmarks.
    """
    labels = take(method, start, what)
    if labels is None or labels.xy.shape[:2] == (start.num_images, slots):
        return labels
    if not next(need for need in method.needs if need.what == what).required:
        return None
    images, given = labels.xy.shape[:2]
    raise UserError(
        f"the stage before {start.stage} left {given} landmarks of {images} images, not {slots} of "
        f"{start.num_images}; use the same number of landmarks (k, or clusters) and the same images in both"
    )


def take_network(start: Start, params: dict[str, Any], known: dict[str, Any], same: str) -> dict[str, Any]:
    """Return the parameters, by part of the network, with those of the stage before for all parts that it has.

    Raises UserError for a part of other shapes; `same` names the hyper-parameters that give both the same.
    """
    for name in set(params) & set(known):
        if not same_shapes(known[name], params[name]):
            raise UserError(f"the stage before {start.stage} has another {name}; give both stages the same {same}")
    return params | {name: known[name] for name in set(params) & set(known)}


def take_weights(given: Any, params: Any, remedy: str) -> Any:
    """Return the converted parameters `given`, in the types of `params`, which are new ones of the same network.

    Raises UserError with the sentence `remedy` where the shapes differ.
    """
    if not same_shapes(given, params):
        raise UserError(remedy)
    return jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), given, params)


def take_resnet(given: Any, params: dict[str, Any], model_state: dict[str, Any], part: str, remedy: str):
    """Return the parameters and the statistics, by part of the network, with those of a converted ResNet in one part.

    Raises UserError with the sentence `remedy` where the shapes differ.
    """
    network = take_weights(given["params"], params[part], remedy)
    statistics = take_weights(given["batch_stats"], model_state[part]["batch_stats"], remedy)
    return params | {part: network}, model_state | {part: {"batch_stats": statistics}}


def descend(
    state: TrainState,
    loss,
    examples: Any,
    optimizer: optax.GradientTransformation,
    pieces: int = 1,
    names: Sequence[str] | None = None,
):
    """Take one step of the optimiser down a loss.

    Args:
      state: its `opt_state` is of the parameters that learn.
      loss: `(params, examples) -> (value, metrics)`, a mean over examples.
      examples: pytree [B,...].
      optimizer: for the parameters that learn.
      pieces: of the batch, computed one after the other; they divide B.
      names: of the parts of `state.params` that learn, while the other parts stay; None if all learn.

    Returns:
      The state with new `params` and `opt_state`, and metrics with `loss`.
    """
    trained = state.params if names is None else {name: state.params[name] for name in names}

    def partial(trained, _, examples):
        value, metrics = loss(state.params | trained, examples)
        return value, ({}, metrics)

    grads, _, metrics = optimizers.accumulated_gradients(partial, trained, {}, examples, pieces)
    return updated(state, optimizer, grads), metrics


def updated(state: TrainState, optimizer: optax.GradientTransformation, grads: dict[str, Any]) -> TrainState:
    """Return the state after one step of the optimiser; parts of the network without gradients stay."""
    trained = {name: state.params[name] for name in grads}
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    return state.replace(params=state.params | optax.apply_updates(trained, updates), opt_state=opt_state)


def neighbours(first: jax.Array, second: jax.Array) -> jax.Array:
    """Return [2B,...] of pairs, which are neighbours, from their first and second parts [B,...].

    >>> neighbours(jnp.array([1, 2]), jnp.array([3, 4])).tolist()
    [1, 3, 2, 4]
    """
    return jnp.stack([first, second], 1).reshape(-1, *first.shape[1:])


def running_mean(mean: Any, new: Any, keep: float, step: jax.Array, dtype: str) -> Any:
    """Return the running mean of parameters after a step.

      mean = a mean + (1 - a) new,    a = min(keep, (1 + step) / (10 + step))

    It forgets faster at first, when there is little to remember.
    """
    kept = jnp.minimum(keep, (1 + step) / (10 + step)).astype(layers.wide(dtype))
    return jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, mean, new)


def region_tables(region: Literal["none", "box", "mask"], frame_size: int) -> dict[str, tuple]:
    """Return the `side_tables` of a stage that asks for the place of objects; see `ops/on_object.py`."""
    return {"box": {"boxes": ()}, "mask": {"masks": (max(frame_size // 4, 1),)}}.get(region, {})


def take_centroids(given: Any, centroids: jax.Array, *, required: bool) -> jax.Array | None:
    """Return the centroids [C,D] of a converted stage 1 of self-training; None where there are none that fit.

    Args:
      given: what `uld convert --kind=mallis` wrote.
      centroids: [C,D], the stage's own.
      required: whether the stage can do nothing without.

    Raises:
      UserError: they are required, and missing or of another number.
    """
    found = given.get("centroids")
    fits = found is not None and found.shape == centroids.shape
    if required and not fits:
        raise UserError(
            f"the weights of config.weights.mallis have centroids of {0 if found is None else len(found)} clusters, "
            f"and stage1 without steps needs those of {len(centroids)}; set keypoints.clusters to theirs, or train "
            "stage1 after keypoints"
        )
    if found is not None and not fits:
        logging.warning(
            "config.weights.mallis has %d clusters and stage1 %d: its centroids are left out, and found anew",
            len(found),
            len(centroids),
        )
    return jnp.asarray(found, centroids.dtype) if fits else None


def take_flips(given: Any, flips: jax.Array, *, required: bool) -> jax.Array:
    """Return the mirrored partners [K] int32 of a converted stage 2 of extended self-training, or else `flips`.

    Raises UserError where they are required and missing.
    """
    if "flips" in given:
        return jnp.asarray(given["flips"], jnp.int32)
    if required:
        raise UserError(
            "the weights of config.weights.mallis do not say which landmarks mirror one another; convert a file of the "
            "extended variant, or leave out variant=extended"
        )
    return flips
