"""Training of GCN-V from labelled descriptors, so that weights from a withdrawn data set are not needed.

CGB (Awan et al., section 3.2) takes its confidence network from learn-to-cluster (Yang et al., CVPR 2020), trained on
descriptors of faces (MS-Celeb-1M). Here the network learns from any descriptors whose labels are known:

    1) take rows of a set, all of them or a random part; compute the graph of their nearest neighbours, and a mean over
       each neighbourhood (x and Âx)
    2) compute the target of each row: the degree to which its neighbours carry its own label (Eq. 1)
    3) turn x and Âx by a random rotation
    4) minimise the squared error of the network's confidence

Three parts differ from the original. They are needed because W acts on single coordinates, and the features of another
detector are in another basis, in which weights learned in one basis are meaningless.

    - The rotation. With it, the network can only learn relations that hold in any basis: lengths and angles of x and
      Âx.
    - The first weights. Training from random weights found no such relation in 800 updates. The most informative
      quantity is |Âx|, because a mean of vectors of length 1 is long where they agree. `start` makes a network that
      nearly computes it, and training continues from there at a small rate; a larger rate learns the clusters of the
      training sets and is worse on others. The first weights account for the result: on eight graphs of other heads the
      correlation with the target was 0.37 before and after training (the density's: 0.29), and on the eight graphs of
      `uld gcn` it is 0.38 (0.33). The hidden layer of such a network keeps x and Âx together, and its nearest
      neighbours have the same label more often than those of x alone.
    - The error. It is that of differences within a graph (and a tenth of the squared difference of means). Only these
      differences decide the links; the level of the target depends on the graph, which the network cannot see.

The library's own descriptors (`synthetic`) describe the landmarks of its built-in heads, whose positions are known
exactly, by gradient histograms in random projections. The positions are disturbed by noise of various strengths, so
that some descriptors are less certain than others. Taps of FANs with random weights were tried too, but hardly
distinguish landmarks: with ten landmarks, 25 % of a row's neighbours had its label; with gradient histograms, 75 %.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from uld_jax import weights
from uld_jax.backbones.gradient import GradientHistograms
from uld_jax.clustering import affinity, gcn_v
from uld_jax.clustering.gcn_clusters import density
from uld_jax.clustering.knn import knn_graph
from uld_jax.data.synthetic import LANDMARKS, Synthetic
from uld_jax.errors import UserError
from uld_jax.ops import keypoints

D = gcn_v.DESCRIPTOR_SIZE
# Layouts of gradient histograms, each of 2 x 16 cells of 8 directions.
LAYOUTS = tuple(
    (("cell", cell), ("offsets", offsets))
    for cell, offsets in itertools.product((4.0, 6.0), ((-8.0, -3.0, 3.0, 8.0), (-6.0, -2.0, 2.0, 6.0)))
)
FRAME = 64  # px, side of the images of heads
NOISE = 0.03  # largest standard deviation of a landmark's position, as a fraction of the frame
STRETCH = 16  # largest factor for directions that distinguish landmarks
LEVEL = 0.1  # weight of a graph's mean error beside the errors around it
KEPT = 16  # number of latest graphs that updates choose from
OPTIMIZERS = ("adam", "sgd")
TARGETS = ("paper", "max")


class Labelled(NamedTuple):
    """Descriptors whose labels are known.

    Attributes:
      descriptors: [N,D] float, rows of any length.
      labels: [N] int, label of each descriptor.
    """

    descriptors: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the training of GCN-V.

    Attributes:
      steps: number of updates of the weights.
      k: number of neighbours in the graph, without the vertex itself.
      batch: number of rows of a graph, drawn from a set at random (sub-graph batches); 0: all rows (full graph).
      graphs: number of graphs that are drawn, one after the other; at most one for each step.
      rows: number of rows of an update, drawn at random from one of the last 16 graphs; 0: a whole graph. Rows suffice
        because the network works row by row when Âx is given.
      rotate: True turns descriptors by a random rotation at each update; see the head of this file.
      vary: True makes graphs differ in more than their rows, so that training includes sparse and dense graphs: some
        labels left out, k / 4 to k neighbours, noise and a common offset added to the descriptors.
      scale: scale of the target; see `targets`.
      optimizer: `adam`, its rate falling to 0 as a half cosine; or `sgd`, with momentum 0.9 and the rate divided by 10
        after 50, 80 and 90 % of the steps, as in the published code (which has rate 0.1).
      rate: first learning rate.
      decay: L2 of the weights, coupled as in PyTorch.
      seed: random seed.

    Raises:
      UserError: a value that cannot be used.
    """

    steps: int = 400
    k: int = 80
    batch: int = 2048
    graphs: int = 40
    rows: int = 512
    rotate: bool = True
    vary: bool = True
    scale: str = "paper"
    optimizer: str = "adam"
    rate: float = 2e-5
    decay: float = 1e-5
    seed: int = 0

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise UserError(f"train got optimizer={self.optimizer!r}; use {' or '.join(OPTIMIZERS)}")
        if min(self.steps, self.k, self.graphs) < 1 or min(self.batch, self.rows) < 0:
            given = ", ".join(f"{name}={getattr(self, name)}" for name in ("steps", "k", "graphs", "batch", "rows"))
            raise UserError(f"train got {given}; use numbers above 0")
        if self.scale not in TARGETS:
            raise UserError(f"train got scale={self.scale!r}; use {' or '.join(TARGETS)}")


class Trained(NamedTuple):
    """Result of training.

    Attributes:
      params: parameters of `models.gcn_v.GcnV`.
      losses: [steps] float32, the error at each step.
    """

    params: Any
    losses: np.ndarray


class Measured(NamedTuple):
    """Agreement of confidences with their targets on one set; the correlations are Pearson's.

    Attributes:
      gcn: correlation of the network's confidence with the target.
      density: correlation of the mean similarity to the neighbours with the target, which needs no network.
      error: mean squared error of the network.
      spread: variance of the target, which is the error of the best constant.
    """

    gcn: float
    density: float
    error: float
    spread: float


def targets(graph, labels, mask=None, *, scale: str = "paper"):
    """Compute the targets of the network (Eq. 1), a mean over the neighbours N_i of vertex i:

      c_i = 1 / |N_i| sum_j (1[y_j = y_i] - 1[y_j != y_i]) s_ij.

    Args:
      graph: graph with `indices` and `similarities` [N,k]; slots of index -1 are not filled.
      labels: [N] int, label of each vertex.
      mask: [N] bool, False for rows that are ignored.
      scale: `paper`, as above; or `max`, the sum over the largest absolute sum of all rows, as in the published code
        (where the vertex is one of its own neighbours).

    Returns:
      [N] float32, in -1..1; 0 where there are no neighbours and where masked.

    Raises:
      UserError: an unknown scale.

    >>> from uld_jax.clustering.knn import KnnGraph
    >>> graph = KnnGraph(jnp.array([[1, 2], [0, 2], [1, -1]]), jnp.array([[0.9, 0.5], [0.9, 0.4], [0.4, 0.0]]))
    >>> [f"{target:.2f}" for target in targets(graph, jnp.array([7, 7, 8]))]
    ['0.20', '0.25', '-0.40']
    """
    if scale not in TARGETS:
        raise UserError(f"targets got scale={scale!r}; use {' or '.join(TARGETS)}")
    mask = jnp.ones(labels.shape[0], bool) if mask is None else mask
    there = (graph.indices >= 0) & mask[:, None] & mask[graph.indices]
    sign = jnp.where(labels[graph.indices] == labels[:, None], 1, -1)
    total = jnp.sum(jnp.where(there, sign * graph.similarities, 0), 1)
    if scale == "max":
        return total / jnp.maximum(jnp.max(jnp.abs(total)), jnp.finfo(total.dtype).tiny)
    return total / jnp.maximum(jnp.sum(there, 1), 1)


def start(key, size: int = D, hidden: int = gcn_v.HIDDEN) -> Any:
    """Make parameters of a GCN-V whose confidence is nearly a rising function of |x / 2 + Âx| in any basis.

      v = (x / 2 + Âx) / 1.5,   h = ReLU([Q'v | -Q'v]),   confidence ~ sum_j f(r_j . Q'v),   f(t) = max(|t| - delta, 0)

    Q [size,hidden/2] and the r_j are columns of random rotations, one after the other. Among all such f, the sum
    depends least on the direction of v if delta is 0.8 of the spread of t (by Gauss's law); its error is then 0.8 % of
    |v| with 256 directions. Âx alone is more informative where clusters of different labels overlap. Where they do not,
    its length falls towards the middle of a cluster, whose vertices have the most neighbours; adding x counters that.
    The last layer is scaled to the targets, for vertices with |v| around 0.8.
    """
    pairs = hidden // 2
    first, second = (_frame(k, a, pairs) for k, a in zip(jax.random.split(key), (size, pairs)))
    first, second = (jnp.concatenate([frame, -frame], 1) for frame in (first / 1.5, second))
    spread = 0.8 / np.sqrt(size)
    delta = float(np.float16(0.8 * spread))  # a value that many units share is made exact in half precision
    t = spread * np.linspace(-6, 6, 10_001)
    chance = np.exp(-0.5 * (t / spread) ** 2)
    chance /= chance.sum()
    value = hidden * np.sum(chance * np.maximum(t - delta, 0))  # value of the sum for |v| = 0.8
    gain = float(np.float16(5 / (hidden * np.sum(chance * t * (t > delta)) / 0.8)))  # 5 over the slope of the sum there
    return {
        "conv1": {"kernel": jnp.concatenate([0.5 * first, first]), "bias": jnp.zeros(hidden)},
        "classifier_0": {"kernel": jnp.concatenate([second, -second]), "bias": jnp.full(hidden, -delta)},
        "classifier_1": {"slope": jnp.zeros(hidden)},
        "classifier_2": {"kernel": jnp.full((hidden, 1), gain), "bias": jnp.full(1, -gain * value)},
    }


def _frame(key, size, count):
    """Draw `count` columns of random rotations, [size,count]."""
    parts = jax.random.normal(key, (-(-count // size), size, size))
    return jnp.concatenate(list(jnp.linalg.qr(parts)[0]), 1)[:, :count]


def train(
    sets: Sequence[Labelled],
    options: Options | None = None,
    *,
    params: Any = None,
    report: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train GCN-V on graphs of the sets, one after the other.

    Args:
      sets: at least one set. Sizes may differ, but all descriptors have the same D.
      options: options of training; the defaults of `Options` if None.
      params: parameters to start from; those of `start` if None. `gcn_v.initialize(key)` gives random ones.
      report: function called with step and mean loss after every 100 steps.

    Raises:
      UserError: a set that cannot be used, or parameters of another D.
    """
    size, o = _check(sets), options or Options()
    largest = max(len(one.labels) for one in sets)
    most = min(o.batch, largest) if o.batch else largest
    k = min(o.k, most - 1)
    rng, key = np.random.default_rng(o.seed), jax.random.key(o.seed)
    params = start(key, size) if params is None else jax.tree.map(jnp.asarray, params)
    if gcn_v.size(params) != size:
        raise UserError(f"params are for descriptors of {gcn_v.size(params)} numbers, and these have {size}")
    update = _optimizer(o.optimizer, o.rate, o.decay, o.steps)
    draw, step = _drawing(k, o.scale), _stepping(update, size, o.rotate)

    state, losses, kept, redraw = jax.jit(update.init)(params), [], [], max(o.steps // o.graphs, 1)
    for number in range(o.steps):
        now = jax.random.fold_in(key, number)
        if number % redraw == 0:
            x, labels = _rows(sets[rng.integers(len(sets))], most, bool(o.batch), o.vary, rng)
            neighbours = round(k * 4 ** -rng.random()) if o.vary else k
            fill = most - len(labels)
            x, labels = np.pad(x, ((0, fill), (0, 0))), np.pad(labels, (0, fill))
            drawn = draw(x, labels, np.arange(most) < most - fill, neighbours)
            kept = [*kept, jax.device_get(drawn)][-KEPT:]
        params, state, value = step(params, state, _pick(kept, o.rows, rng), now)
        losses.append(value)
        if report is not None and (number + 1) % 100 == 0:
            report(number + 1, float(jnp.mean(jnp.stack(losses[-100:]))))
    return Trained(jax.device_get(params), np.asarray(jax.device_get(losses), np.float32))


def _drawing(k: int, scale: str):
    """Compile the computation of a graph from a set's rows: x, Âx, targets and mask."""

    @jax.jit
    def draw(x, labels, mask, neighbours):
        graph = _thinned(knn_graph(x, k, mask=mask), neighbours)
        unit = keypoints.l2_normalize(jnp.where(mask[:, None], x, 0))
        return unit, affinity.aggregate(graph, unit, mask), targets(graph, labels, mask, scale=scale), mask

    return draw


def _stepping(update, size: int, rotate: bool):
    """Compile one update of the parameters by rows of a graph."""

    @jax.jit
    def step(params, state, drawn, key):
        x, mean, target, mask = drawn
        if rotate:
            turn, _ = jnp.linalg.qr(jax.random.normal(key, (size, size)))
            x, mean = jnp.split(jnp.concatenate([x, mean]) @ turn, 2)

        def loss(params):
            off = gcn_v.apply(params, x, mean)[0] - target
            level = keypoints.masked_mean(off, mask)
            return keypoints.masked_mean((off - level) ** 2, mask) + LEVEL * level**2

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = update.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def measure(params, one: Labelled, *, k: int = 80) -> Measured:
    """Compare the confidences of a whole set with its targets (Eq. 1)."""
    _check([one])
    x, labels = jnp.asarray(one.descriptors, jnp.float32), jnp.asarray(one.labels, jnp.int32)
    graph = knn_graph(x, min(k, len(labels) - 1))
    want = np.asarray(targets(graph, labels), np.float64)
    found = np.asarray(gcn_v.confidence(params, x, graph)[0], np.float64)
    dense = np.asarray(density(graph), np.float64)
    return Measured(_correlation(found, want), _correlation(dense, want), np.mean((found - want) ** 2), np.var(want))


def _correlation(a, b) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


def _check(sets) -> int:
    """Check the sets; return their D."""
    if not sets:
        raise UserError("training needs at least one set of labelled descriptors")
    for x, labels in sets:
        if np.ndim(x) != 2 or np.shape(labels) != np.shape(x)[:1] or len(x) < 3:
            raise UserError(
                f"descriptors have shape {np.shape(x)} and labels {np.shape(labels)}; they must be [N,D] and [N], N > 2"
            )
        if not np.isfinite(x).all():
            raise UserError("some descriptors are not finite; leave these rows out")
    sizes = {np.shape(x)[1] for x, _ in sets}
    if len(sizes) > 1:
        raise UserError(f"the sets have descriptors of different sizes, {sorted(sizes)}; use sets of one size")
    return sizes.pop()


def _pick(graphs, rows, rng):
    """Pick the input of one update: a graph, or some rows of it."""
    graph = graphs[rng.integers(len(graphs))]
    if not rows:
        return graph
    some = rng.integers(graph[3].sum(), size=rows)  # masked rows come last
    return tuple(part[some] for part in graph)


def _optimizer(name, rate, decay, steps):
    if name == "adam":
        return optax.chain(optax.add_decayed_weights(decay), optax.adam(optax.cosine_decay_schedule(rate, steps)))
    falls = {round(steps * part): 0.1 for part in (0.5, 0.8, 0.9)}
    return optax.chain(
        optax.add_decayed_weights(decay), optax.sgd(optax.piecewise_constant_schedule(rate, falls), momentum=0.9)
    )


def _thinned(graph, neighbours):
    """Keep the nearest few neighbours of a graph."""
    return graph._replace(indices=jnp.where(jnp.arange(graph.indices.shape[1]) < neighbours, graph.indices, -1))


def _rows(one: Labelled, count: int, some: bool, vary: bool, rng) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows of a set: all or at most `count`; with `vary`, of some labels only, with noise and an offset."""
    labels = np.asarray(one.labels)
    rows = np.arange(len(labels))
    if vary:
        kinds = np.unique(labels)
        kept = rng.permutation(kinds)[: rng.integers(min(4, len(kinds)), len(kinds) + 1)]
        rows = rows[np.isin(labels, kept)]
    if some and len(rows) > count:
        rows = rng.choice(rows, count, replace=False)
    x = np.asarray(one.descriptors, np.float32)[rows]
    if vary:
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        around = np.std(x, 0).mean()  # spread of the rows; the noise of a row is up to half of it
        noise = rng.normal(size=x.shape) * rng.random((len(x), 1)) ** 2
        offset = rng.normal(size=x.shape[1]) / np.sqrt(x.shape[1])
        x = x + 0.5 * rng.random() * around * noise + rng.exponential(0.5) * offset
    return x.astype(np.float32), labels[rows].astype(np.int32)


# -- descriptors of known landmarks ------------------------------------------------------------------------------------


def synthetic(seeds: Sequence[int], images: int = 400, *, heads: int = 0) -> list[Labelled]:
    """Compute descriptors of the visible landmarks of built-in heads, a set for each seed.

    Untrained features distinguish landmarks less than those of a detector do. Therefore the directions in which
    landmarks differ most, found by linear discriminants, are stretched by a different factor for each set.

    Args:
      seeds: seeds of the projections, positions and factors; each also selects one of four layouts of the histograms.
      images: number of images of heads; about 15 rows come from each.
      heads: seed of the heads.

    Returns:
      Sets of descriptors of size 256; labels are numbers of `data.synthetic.LANDMARKS`.
    """
    source = Synthetic("train", images, heads, FRAME)
    pictures, xy, visible = source.images(), source.landmarks, source.visible
    labels = np.broadcast_to(np.arange(len(LANDMARKS), dtype=np.int32), visible.shape)[visible]
    sets = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        off = NOISE * FRAME * rng.random(visible.shape) ** 2
        places = xy + off[..., None] * rng.normal(size=xy.shape)
        z = _gradients(LAYOUTS[seed % len(LAYOUTS)], pictures, places.astype(np.float32))[visible]
        z = _stretched(z, labels, 2 * (STRETCH / 2) ** rng.random())
        projection = rng.normal(size=(z.shape[1], D)) / np.sqrt(D)
        sets.append(Labelled((z @ projection).astype(np.float32), labels))
    return sets


def _stretched(x, labels, factor):
    """Even out the variances within labels of [N,D], and multiply the directions between labels by `factor`."""
    x = x.astype(np.float64)
    kinds, number = np.unique(labels, return_inverse=True)
    means = np.stack([x[number == i].mean(0) for i in range(len(kinds))])
    inner = x - means[number]
    values, vectors = np.linalg.eigh(inner.T @ inner / len(x))
    even = vectors / np.sqrt(np.maximum(values, 0) + 0.1 * values.mean())
    between = np.linalg.svd((means - means.mean(0)) @ even, full_matrices=False)[2][: len(kinds) - 1]
    x, middle = x @ even, x.mean(0) @ even
    return (x + (factor - 1) * ((x - middle) @ between.T) @ between).astype(np.float32)


def _in_chunks(function, *arrays, chunk: int = 50):
    """Apply a function to the rows in chunks; the last chunk is padded with its own last row."""
    out = []
    for start in range(0, len(arrays[0]), chunk):
        part = [a[start : start + chunk] for a in arrays]
        short = chunk - len(part[0])
        padded = [np.concatenate([a, np.repeat(a[-1:], short, 0)]) for a in part]
        out.append(np.asarray(function(*padded))[: chunk - short])
    return np.concatenate(out)


@functools.partial(jax.jit, static_argnums=0)
def _describe(layout, pictures, xy):
    backbone = GradientHistograms(**dict(layout))
    maps = jnp.concatenate(list(backbone.features({}, pictures).values()), -1)
    return keypoints.sample(maps, (xy + 0.5) / backbone.stride - 0.5)


def _gradients(layout, pictures, xy):
    """Compute gradient histograms at the landmarks, [B,K,C]."""
    return _in_chunks(functools.partial(_describe, layout), pictures, xy)


# -- uld gcn -----------------------------------------------------------------------------------------------------------


def read(path: str) -> Labelled:
    """Read a set from a file of NumPy arrays: `descriptors` [N,D] float and `labels` [N] int.

    Raises:
      UserError: no such file, or a file with other content.
    """
    if not os.path.isfile(path):
        raise UserError(f"--descriptors={path} does not exist; give an npz file with descriptors [N,D] and labels [N]")
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in Labelled._fields if name in found}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"--descriptors={path} cannot be read ({type(error).__name__}); give an npz file of plain arrays"
        ) from error
    missing = [name for name in Labelled._fields if name not in arrays]
    if missing:
        raise UserError(f"--descriptors={path} has no array {missing[0]!r}; it needs descriptors [N,D] and labels [N]")
    x, labels = (arrays[name] for name in Labelled._fields)
    if x.dtype.kind != "f" or labels.dtype.kind not in "iu":
        raise UserError(
            f"--descriptors={path} has descriptors of {x.dtype} and labels of {labels.dtype}; give floats and integers"
        )
    one = Labelled(x.astype(np.float32), labels.astype(np.int32))
    _check([one])
    return one


def main(
    dst: str,
    *,
    descriptors: str = "",
    npz: str = "",
    seeds: int = 12,
    images: int = 400,
    report: Callable[[int, float], None] | None = None,
    **options,
) -> tuple[dict[str, Any], list[Measured]]:
    """Train GCN-V and write a folder of weights, which `config.weights.gcn_v` then names.

    Args:
      dst: folder to write; see `uld_jax.weights`.
      descriptors: an npz file for `read`; a fifth of its rows is held out. If empty, descriptors of the built-in heads
        are used; other heads, projections and factors are held out, and graphs of ten landmarks are measured.
      npz: another file to write, with the weights in half precision, as in the package.
      seeds: number of sets of built-in descriptors.
      images: number of heads in each of these sets.
      report: function called with step and mean loss after every 100 steps.
      **options: fields of `Options`.

    Returns:
      The content of `dst/source.json`, and measures of the held-out sets.

    Raises:
      UserError: see `read`, `Options`, `train` and `weights.save`.
    """
    folder = epath.Path(dst)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--dst={dst} exists; give another folder, or delete it")  # raised now, not after training
    if npz and not epath.Path(npz).parent.exists():
        raise UserError(f"--npz={npz} lies in a folder that does not exist; make it first")
    sets, others, source = _sets_of_file(descriptors) if descriptors else _sets_of_heads(seeds, images)
    trained = train(sets, Options(**options), report=report)
    source |= {
        "entries": sum(len(one.labels) for one in sets),
        "options": {key: options[key] for key in sorted(options)},
        "licence": "that of the descriptors" if descriptors else "Apache-2.0, as the library",
    }
    source = weights.save(dst, "gcn_v", trained.params, source)
    if npz:
        gcn_v.write_half(npz, trained.params)
    return source, [measure(trained.params, one, k=options.get("k", Options.k)) for one in others]


def _sets_of_file(path: str) -> tuple[list[Labelled], list[Labelled], dict[str, str]]:
    """Read the sets to train on and the held-out sets, a fifth of the rows, with the file's name and digest."""
    one = read(path)
    if len(one.labels) < 15:
        raise UserError(f"{path} has {len(one.labels)} rows; give at least 15, of which a fifth is held out")
    order = np.random.default_rng(0).permutation(len(one.labels))
    held = len(order) // 5
    sets, others = ([Labelled(*(a[rows] for a in one))] for rows in (order[held:], order[:held]))
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return sets, others, {"file": os.path.basename(path), "sha256": digest}


def _sets_of_heads(seeds: int, images: int) -> tuple[list[Labelled], list[Labelled], dict[str, str]]:
    """Make the sets to train on and the held-out sets of other heads, with a name and the digest of the settings."""
    sets = synthetic(range(seeds), images)
    others = [_ten(one, i) for i, one in enumerate(synthetic(range(1000, 1008), images, heads=1))]
    digest = hashlib.sha256(repr((seeds, images)).encode()).hexdigest()
    return sets, others, {"file": "synthetic", "sha256": digest}


def _ten(one: Labelled, seed: int) -> Labelled:
    """Select the rows of ten labels drawn at random."""
    rows = np.isin(one.labels, np.random.default_rng(seed).permutation(len(LANDMARKS))[:10])
    return Labelled(one.descriptors[rows], one.labels[rows])
