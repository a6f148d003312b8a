"""Landmarks from dense features, by a regressor of virtual keypoints (DVE; ContrastLandmarks; LEAD, section 3.4).

Every annotated landmark has P = 50 filters. A filter's responses to the features, sharpened by a softmax over all
cells, have an expected place, a virtual keypoint; the landmark is a linear function of its own 50 keypoints alone:

  m_lp = softmax_cells(beta w_lp' f)     v_lp = sum_cells m_lp (x, y)     y_l = sum_p A_lp v_lp

with (x, y) and y_l in [-1, 1] between the centres of the first and the last pixel. w is drawn from N(0, 1) and A from
U(-0.1, 0.1); neither has a bias. With beta = 100 the softmax is close to an argmax at first, which is why its entropy
is reported at the start and at the end. Features are not normalised, so their scale matters.

Filters are applied to each level at its own size and their responses are resized (`ops.hypercolumns.linear`), which
equals the same filters on hypercolumns. Several regressors, one a draw of labelled images, are trained side by side.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uld_jax.evaluation.dense.protocols import DenseProtocol, Fit
from uld_jax.evaluation.missing import known_mean
from uld_jax.ops import hypercolumns
from uld_jax.ops.hypercolumns import Pyramid

_LOSS_SCALE = 10.0  # of predictions and targets in the smooth L1 loss (published code)
_RESPONSES = {"cpu": 2**28}  # bytes of responses at a time; what runs on accelerators may take more
_RESPONSES_ELSEWHERE = 2**31


class Regressor(NamedTuple):
    """The parameters of a regressor; several of them have a first axis R.

    Attributes:
      filters: per level [C_l,L,P].
      linear: [L,P,2,2], from (x, y) of a virtual keypoint to (x, y) of its landmark.
    """

    filters: tuple[jax.Array, ...]
    linear: jax.Array


class Placed(NamedTuple):
    """The result of `apply`.

    Attributes:
      xy: [B,L,2], landmarks in [-1, 1].
      keypoints: [B,L,P,2], virtual keypoints in [-1, 1].
      entropy: [B,L], mean entropy of the landmark's softmaxes in nats; None if it is not asked for.
    """

    xy: jax.Array
    keypoints: jax.Array
    entropy: jax.Array | None


def init(key, channels: Sequence[int], landmarks: int, points: int = 50) -> Regressor:
    """Draw the parameters of ONE regressor for maps of `channels` channels."""
    first, *others = jax.random.split(key, 1 + len(channels))
    filters = tuple(jax.random.normal(k, (c, landmarks, points)) for k, c in zip(others, channels))
    return Regressor(filters, jax.random.uniform(first, (landmarks, points, 2, 2), minval=-0.1, maxval=0.1))


def apply(
    regressor: Regressor,
    pyramid: Pyramid,
    *,
    cells: int,
    sharpness: float,
    at_a_time: int = 0,
    entropy: bool = False,
) -> Placed:
    """Place the landmarks of ONE regressor on images.

    Args:
      regressor: the parameters.
      pyramid: maps [B,h_l,w_l,C_l].
      cells: cells along a side of the map of responses.
      sharpness: beta.
      at_a_time: landmarks whose responses are in memory together, a divisor of L; 0 for all. Gradients recompute the
        responses if it is smaller than L.
      entropy: True for the entropy of the softmaxes, too.
    """
    landmarks, points = regressor.linear.shape[:2]
    at_a_time = at_a_time or landmarks
    axis = np.linspace(-1, 1, cells, dtype=np.float32)
    places = np.stack([np.tile(axis, cells), np.repeat(axis, cells), np.ones(cells**2, np.float32)], 1)

    def some(kernels):
        responses = hypercolumns.linear(pyramid, [sharpness * kernel for kernel in kernels], cells)
        responses = responses.reshape(len(responses), cells * cells, -1)
        # The sums over cells come before the division, so that the softmax itself is no array of this size.
        powers = jnp.exp(responses - jax.lax.stop_gradient(jnp.max(responses, 1, keepdims=True)))
        sums = jnp.einsum("bcf,cd->bfd", powers, places, precision="highest")
        entropies = lambda: -jnp.sum(jax.nn.softmax(responses, 1) * jax.nn.log_softmax(responses, 1), 1)
        nats = entropies() if entropy else jnp.zeros((0, powers.shape[-1]))
        return sums[..., :2] / sums[..., 2:], nats

    if at_a_time == landmarks:
        keypoints, nats = some([f.reshape(len(f), -1) for f in regressor.filters])
    else:
        split = lambda f: jnp.moveaxis(f.reshape(len(f), -1, at_a_time * points), 1, 0)
        keypoints, nats = jax.lax.map(jax.checkpoint(some), [split(f) for f in regressor.filters])
        keypoints, nats = (jnp.concatenate([*a], 1) for a in (keypoints, nats))
    keypoints = keypoints.reshape(-1, landmarks, points, 2)
    xy = jnp.einsum("blpi,lpij->blj", keypoints, regressor.linear, precision="highest")
    return Placed(xy, keypoints, jnp.mean(nats.reshape(-1, landmarks, points), -1) if entropy else None)


def loss(xy, target, kind: str = "smooth_l1"):
    """The loss of landmarks xy [B,L,2] in [-1, 1] with targets [B,L,2], NaN where unknown; mean over known coordinates.

    `smooth_l1`: with e ten times a difference, e^2 / 2 where |e| < 1 and |e| - 1/2 elsewhere (published codes).
    `squared`: the squared difference (LEAD, section 3.4, which names no factor).
    """
    known = jnp.isfinite(target)
    error = jnp.abs(xy - jnp.where(known, target, xy))
    if kind == "squared":
        each = error**2
    else:
        error = _LOSS_SCALE * error
        each = jnp.where(error < 1, 0.5 * error**2, error - 0.5)
    return jnp.sum(each) / jnp.maximum(jnp.sum(known), 1)


def to_unit(xy, side: int):
    """Pixels of a view to [-1, 1] between the centres of its first and last pixel."""
    return 2 * xy / (side - 1) - 1


def from_unit(unit, side: int):
    """Inverse of `to_unit`."""
    return (unit + 1) * (side - 1) / 2


class Examples(NamedTuple):
    """Labelled images, for `train`.

    Attributes:
      data: pytree of arrays on the device, such as cached features.
      read: pure function (data, rows [M], key) -> (pyramid [M,...], targets [M,L,2] in [-1, 1], NaN where unknown).
      image_bytes: bytes of an image's pyramid.
    """

    data: Any
    read: Callable
    image_bytes: int


def cached(pyramid: Pyramid, xy, side: int) -> Examples:
    """Examples of features that were computed once: maps [N,h_l,w_l,C_l], points [N,L,2] in pixels of the view."""
    target = jnp.asarray(to_unit(np.asarray(xy, np.float64), side))
    return Examples((pyramid, target), _read_cached, 4 * sum(int(np.prod(x.shape[1:])) for x in pyramid))


def _read_cached(data, rows, key):
    del key
    pyramid, target = data
    return tuple(x[rows] for x in pyramid), target[rows]


def draws(labelled: np.ndarray, count: int, repeats: int, seed: int) -> np.ndarray:
    """Rows of a few labelled images for each of several draws, [R,count] increasing; drawn without replacement.

    A draw depends on (seed, count, number of the draw) alone.

    >>> draws(np.arange(10, 20), 3, 2, seed=0).shape
    (2, 3)
    """
    return np.stack(
        [np.sort(np.random.default_rng((seed, count, r)).permutation(labelled)[:count]) for r in range(repeats)]
    )


def epoch_rows(rows: np.ndarray, fit: Fit, labelled: int, few: bool, key: tuple[int, ...]) -> np.ndarray:
    """The rows of one epoch's batches in random order, [steps,B] int32; -1 fills the last batch.

    Args:
      rows: [n] rows of the labelled images.
      fit: training of the regressor.
      labelled: number of all labelled training images.
      few: True repeats the rows as `Fit.images` says.
      key: seed of the order.

    >>> fit = Fit(1e-3, 0, 1, batch=4, images=9)
    >>> np.bincount(epoch_rows(np.arange(2), fit, 100, True, (0,)).ravel() + 1).tolist()
    [0, 4, 4]
    """
    if few and fit.images:
        rows = np.tile(rows, max(fit.images // len(rows), 1))
    elif few:
        rows = np.resize(rows, max(labelled, len(rows)))
    rows = np.random.default_rng(key).permutation(rows)
    size = fit.batch
    if fit.drop_last and len(rows) >= size:
        rows = rows[: len(rows) // size * size]
    steps = -(-len(rows) // size)
    return np.concatenate([rows, np.full(steps * size - len(rows), -1)]).reshape(steps, size).astype(np.int32)


class Task(NamedTuple):
    """What regressors are trained for.

    Attributes:
      channels: channels of the pyramid's levels.
      landmarks: L.
      fit: training of the regressors, one of the protocol's.
      protocol: choices of the regressor.
      labelled: number of all labelled training images.
      few: True repeats the images of a draw, see `Fit.images`.
      seed: seed of the parameters, the orders and the warps; draws differ in them.
    """

    channels: tuple[int, ...]
    landmarks: int
    fit: Fit
    protocol: DenseProtocol
    labelled: int
    few: bool = False
    seed: int = 0


class Trained(NamedTuple):
    """Regressors of several draws.

    Attributes:
      regressors: parameters with a first axis R.
      entropy_start, entropy_end: mean entropy of the softmaxes on a batch of training images, in nats, before and after
        training; means over the draws. The largest possible value is the logarithm of the number of cells.
      loss: mean loss of the last epoch over the draws.
      steps: number of steps.
    """

    regressors: Regressor
    entropy_start: float
    entropy_end: float
    loss: float
    steps: int


def train(examples: Examples, rows: np.ndarray, task: Task, say: Callable[[int], None] = lambda epoch: None) -> Trained:
    """Train R regressors, one a draw; as many side by side as the memory for their batches allows.

    Args:
      examples: the labelled images.
      rows: [R,n] rows of `examples` of each draw.
      task: what the regressors are trained for.
      say: function that is called with the number of epochs done.
    """
    count = len(rows)
    together = max(1, min(count, _most() // max(task.fit.batch * examples.image_bytes, 1)))
    parts = [np.arange(first, min(first + together, count)) for first in range(0, count, together)]
    done = [_train_together(examples, rows[part], part, task, say) for part in parts]
    regressors = jax.tree.map(lambda *x: jnp.concatenate(x), *(d.regressors for d in done))
    start, end, last = (
        float(np.average([getattr(d, name) for d in done], weights=[len(part) for part in parts]))
        for name in ("entropy_start", "entropy_end", "loss")
    )
    return Trained(regressors, start, end, last, done[0].steps)


def _train_together(examples: Examples, rows, numbers, task: Task, say) -> Trained:
    """Train the regressors of the draws `numbers`, whose rows [R,n] are given, in one program."""
    fit, protocol = task.fit, task.protocol
    keys = jnp.stack([jax.random.fold_in(jax.random.key(task.seed), number) for number in numbers])
    regressors = jax.vmap(lambda key: init(key, task.channels, task.landmarks, protocol.points))(keys)

    def batches(epoch):
        each = [
            epoch_rows(row, fit, task.labelled, task.few, (task.seed, number, epoch))
            for row, number in zip(rows, numbers, strict=True)
        ]
        return np.stack(each, 1)  # [steps,R,B]

    first = batches(0)
    settings = dict(read=examples.read, options=options_of(protocol, task.landmarks, len(rows) * fit.batch))
    step = functools.partial(_step, **settings, fit=fit, steps=len(first))
    entropy = lambda regressors: float(_entropy(regressors, examples.data, first[0], keys, **settings))
    opt_state, start, losses = jax.vmap(fit.optimizer(len(first)).init)(regressors), entropy(regressors), []
    for epoch in range(fit.epochs):
        losses = []
        for number, batch in enumerate(batches(epoch)):
            now = epoch * len(first) + number
            regressors, opt_state, value = step(regressors, opt_state, examples.data, batch, keys, now)
            losses.append(value)
        losses = jax.device_get(losses)  # waits, so that steps do not pile up
        say(epoch + 1)
    return Trained(regressors, start, entropy(regressors), float(np.mean(losses)), fit.epochs * len(first))


class Options(NamedTuple):
    """Keywords of `apply`."""

    cells: int
    sharpness: float
    at_a_time: int


def options_of(protocol: DenseProtocol, landmarks: int, images: int) -> Options:
    """The keywords of `apply` for so many landmarks and so many images at a time, within the memory for responses."""
    each = images * protocol.points * protocol.regressed**2 * 4
    fits = [n for n in range(1, landmarks + 1) if landmarks % n == 0 and n * each <= _most()]
    return Options(protocol.regressed, protocol.sharpness, max(fits, default=1))


def _most() -> int:
    return _RESPONSES.get(jax.default_backend(), _RESPONSES_ELSEWHERE)


def _read(read, data, rows, keys, now):
    """Read the batches [R,B] of all draws: a pyramid [R,B,...] and targets [R,B,L,2], NaN for rows of -1."""
    draws_, size = rows.shape
    key = jax.random.fold_in(keys[0], now)
    pyramid, target = read(data, jnp.maximum(rows, 0).reshape(-1), key)
    pyramid = tuple(x.reshape(draws_, size, *x.shape[1:]) for x in pyramid)
    target = target.reshape(draws_, size, *target.shape[1:])
    return pyramid, jnp.where((rows >= 0)[..., None, None], target, jnp.nan)


def _each_draw(function: Callable) -> Callable:
    """Apply a function to the first axis of its arguments: at once, or on CPU one after the other.

    There, products with an axis of draws were measured to take ten times as long.
    """
    if jax.default_backend() == "cpu":
        return lambda *given: jax.lax.map(lambda each: function(*each), given)
    return jax.vmap(function)


@functools.partial(jax.jit, static_argnames=("read", "options", "fit", "steps"), donate_argnums=(0, 1))
def _step(regressors, opt_state, data, rows, keys, now, *, read, options, fit, steps):
    """One step of all draws; returns their parameters, the optimisers' states and losses [R]."""
    pyramid, target = _read(read, data, rows, keys, now)

    def one(regressor, pyramid, target):
        return loss(apply(regressor, pyramid, **options._asdict()).xy, target, fit.loss)

    values, gradients = _each_draw(jax.value_and_grad(one))(regressors, pyramid, target)
    updates, opt_state = jax.vmap(fit.optimizer(steps).update)(gradients, opt_state, regressors)
    return optax.apply_updates(regressors, updates), opt_state, values


@functools.partial(jax.jit, static_argnames=("read", "options"))
def _entropy(regressors, data, rows, keys, *, read, options):
    pyramid, _ = _read(read, data, rows, keys, 0)
    each = _each_draw(lambda r, p: apply(r, p, **options._asdict(), entropy=True).entropy)
    return jnp.mean(each(regressors, pyramid))


@functools.partial(jax.jit, static_argnames=("options", "side"))
def place(regressors: Regressor, pyramid: Pyramid, *, options: Options, side: int):
    """Landmarks of R regressors on the same images [B]: [R,B,L,2] in pixels of a view of `side` pixels."""
    return from_unit(jax.lax.map(lambda r: apply(r, pyramid, **options._asdict()).xy, regressors), side)


def errors(xy, truth, lengths) -> np.ndarray:
    """Distances of placed landmarks [R,N,L,2] from truth [N,L,2] in percent of lengths [N]: [R,N,L], NaN if unknown."""
    return 100 * np.linalg.norm(xy - np.asarray(truth, np.float64), axis=-1) / lengths[:, None]


def mean_shape_error(drawn, truth, lengths) -> float:
    """Error of the mean annotation of the drawn images [R,n,L,2] on truth [N,L,2], in percent of lengths [N]."""
    shapes = known_mean(np.asarray(drawn, np.float64), 1)[:, None]
    return float(known_mean(errors(shapes, truth, lengths)))
