"""The ablations of Mallis et al. (NeurIPS 2020, section 4.1, figure 2) as runs, tables and plots: `uld figure`.

    uld figure --figure=2d --config=self_training:dataset=synthetic,preset=small --workdir=runs/figure2d

  2a  t-SNE of the generic detector's descriptors, next to the learned ones
  2b  the generic detector: forward error with each
  2c  clustering against equivariance: pairs of two images, or two views of one
  2d  initial keypoints that are a mixture of annotated landmarks and random points: NMI and F against the share of true
      points, for several M and numbers of true points
  2e  the number of clusters M at one share

A cell is one combination of a figure's grids, `--grid=NAME=VALUE,VALUE,...`: an ordinary run in a folder of its own, as
in `uld_jax/studies/sweep.py`. After every cell the figure is written anew: `figure.md`, `figure.json`, `figure.png`,
one row for each combination without `seed`, with mean and spread over seeds. The same command goes on where it was
stopped.

The supplement that defines the mixtures is not public. Here an image has at most `true` of the visible ones among the
chosen landmarks, drawn at random, and so many points from anywhere in the view that the share of true ones is `share`.
The same points serve every M, and none is dropped before the first clustering: no box, no outliers. NMI and F are those
of `evaluation/correspondence.py` on the test split, and of the chosen landmarks alone.
"""

import functools
import gc
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from uld_jax import config as config_lib
from uld_jax import files, sharding, viz
from uld_jax.clustering import quality
from uld_jax.config import Config
from uld_jax.data import Source, annotated, make_reader
from uld_jax.data.specs import labelled
from uld_jax.engine import loop, runs, stopping
from uld_jax.engine import workdir as workdir_lib
from uld_jax.errors import UserError
from uld_jax.evaluation import evaluate
from uld_jax.evaluation import landmark_regression as regression
from uld_jax.evaluation.correspondence import correspondence
from uld_jax.evaluation.protocol import Protocol
from uld_jax.ops import coordinates, keypoints
from uld_jax.studies import clusters as clusters_study
from uld_jax.studies import sweep

BOTH = ("keypoints", "stage1")  # what shows the quality of detector and descriptors; stage2 only removes clusters
COMPARED_IMAGES, COMPARED_ROWS = 200, 4000  # of figure 2a
_AGREEMENT = ("nmi", "f_measure", "precision", "recall", "matched", "keypoints_per_image")
_MIXTURE = (*_AGREEMENT, "detector_f_measure", "detector_precision", "detector_recall")
_TITLES = {"forward_nme": "forward NME, %", "nmi": "NMI", "f_measure": "F-measure", "detector_f_measure": "F, detector"}


class Figure(NamedTuple):
    """One of the paper's figures.

    Attributes:
      about: what it compares.
      grids: name -> values by default, as they would be written after `--grid=NAME=`.
      keys: name -> the config's key that takes the value; others make the mixture of keypoints.
      stages: that are run; () for those of the config.
      columns: of the table.
      panels: columns that are drawn.
      x: the grid that the plot's axis shows; "" for bars.
    """

    about: str
    grids: dict[str, str]
    keys: dict[str, str]
    stages: tuple[str, ...]
    columns: tuple[str, ...]
    panels: tuple[str, ...]
    x: str = ""


_SWEPT = {"clusters": "keypoints.clusters"}
FIGURES = {
    "2a": Figure("initial and learned descriptors", {}, {}, BOTH, (), ()),
    "2b": Figure(
        "initial keypoints of several detectors",
        {"detector": "superpoint,r2d2,corners"},
        {"detector": "keypoints.detector"},
        (),
        ("forward_nme", "backward_nme", "landmarks", *_AGREEMENT, "minutes"),
        ("forward_nme", "nmi", "f_measure"),
    ),
    "2c": Figure(
        "pairs by clustering, or by augmentation alone (equivariance)",
        {"pairs": "clusters,augmented"},
        {"pairs": "stage1.pairs"},
        BOTH,
        (*_AGREEMENT, "forward_nme", "minutes"),
        ("nmi", "f_measure"),
    ),
    "2d": Figure(
        "initial keypoints that are a mixture of annotated landmarks and random points",
        {"clusters": "20,40", "true": "5,15", "share": "0.2,0.4,0.6,0.8"},
        _SWEPT,
        BOTH,
        (*_MIXTURE, "minutes"),
        ("nmi", "f_measure"),
        "share",
    ),
    "2e": Figure(
        "numbers of clusters",
        {"clusters": "10,20,30,40,60", "true": "15", "share": "0.6"},
        _SWEPT,
        BOTH,
        (*_MIXTURE, "minutes"),
        ("nmi",),
        "clusters",
    ),
}
STEPS = {"small": 900}  # of stage1 in figures 2d and 2e, unless --config.stage1.steps says otherwise


class Mixture(NamedTuple):
    """Keypoints in P slots an image, in an order that does not tell which are true.

    Attributes:
      xy: [N,P,2] float64 `(x, y)` in pixels of the upright file; NaN in empty slots.
      true: [N,P] bool, those that are annotated landmarks.
    """

    xy: np.ndarray
    true: np.ndarray


def mixture(source: Source, landmarks, true: int, share: float, *, zoom: float = 1.0, seed: int = 0) -> Mixture:
    """Annotated landmarks among random points (section 4.1, "robustness to noise").

    An image with n <= `true` true points gets n (1 - share) / share others; the fraction of a point is a whole one with
    that probability. The true points of an image are the same for every share.

    Args:
      source: annotated images.
      landmarks: [C] numbers of those that true points are drawn from; hidden ones are not drawn.
      true: how many of them, at most.
      share: of true points among all of an image, above 0 up to 1.
      zoom: the others are uniform over what this central fraction of the frame shows of the image, and true points are
        inside it too.
      seed: of both draws.

    Raises:
      UserError: no annotation, or a number or share that cannot be.

    >>> from uld_jax.data import open_source
    >>> faces = open_source("synthetic", "train", frame_size=40, rows=16)
    >>> found = mixture(faces, range(15), true=5, share=0.5)
    >>> found.xy.shape, bool((found.true.sum(1) == 5).all())
    ((16, 10, 2), True)
    """
    known = annotated(source) & (True if source.visible is None else source.visible)
    landmarks = np.asarray(list(landmarks), int)
    if not 1 <= true <= len(landmarks):
        raise UserError(
            f"{true} true points cannot be drawn from {len(landmarks)} landmarks; use 1 to {len(landmarks)}"
        )
    if not 0 < share <= 1:
        raise UserError(f"the share of true points is {share:g}; use a share above 0, up to 1")
    low, high = _shown(source, zoom)
    known = known & ((source.landmarks >= low[:, None]) & (source.landmarks <= high[:, None])).all(-1)
    rows, slots = len(source), _most(true, share)
    xy, is_true = np.full((rows, slots, 2), np.nan), np.zeros((rows, slots), bool)
    for row in range(rows):
        first, second = (np.random.default_rng([seed, row, draw]) for draw in range(2))
        some = landmarks[known[row, landmarks]]
        some = first.permutation(some)[:true]
        others = min(int(len(some) * (1 - share) / share + second.random()), slots - len(some))
        points = np.concatenate([source.landmarks[row, some], second.uniform(low[row], high[row], (others, 2))])
        order = second.permutation(len(points))
        xy[row, : len(points)], is_true[row, : len(points)] = points[order], order < len(some)
    return Mixture(coordinates.frame_to_file(xy, source.frame_maps), is_true)


def _shown(source: Source, zoom: float) -> tuple[np.ndarray, np.ndarray]:
    """First and last `(x, y)` [N,2] of each image, in pixels of the frame, in the central fraction `zoom` of that."""
    side, margin = source.frame_size, source.frame_size * (1 - min(zoom, 1)) / 2
    sizes = source.file_sizes[:, None, ::-1]
    corners = np.concatenate([np.zeros_like(sizes), sizes], 1) - 0.5
    low, high = np.moveaxis(coordinates.file_to_frame(corners, source.frame_maps), 1, 0)
    return np.maximum(low, margin - 0.5), np.minimum(high, side - margin - 0.5)


def _most(true: int, share: float) -> int:
    """Slots that hold any image's mixture."""
    return true + math.ceil(true * (1 - share) / share - 1e-9)


def write_points(path, names: Sequence[str], xy) -> None:
    """Points [N,P,2] of files, NaN for none, as the csv `file,x0,y0,...` that `keypoints.points` takes."""
    header = ["file", *(f"{axis}{i}" for i in range(xy.shape[1]) for axis in "xy")]
    cell = lambda value: f"{value:.3f}" if np.isfinite(value) else ""
    rows = ([name, *map(cell, points.ravel())] for name, points in zip(names, xy, strict=True))
    files.write(path, files.csv_text([header, *rows]))


# Runs


def run(
    name: str,
    spec: str,
    workdir,
    *,
    grids: Sequence[str] = (),
    overrides: Sequence[str] = (),
    landmarks: str = "15",
    finished: str = "",
    mesh=None,
) -> sweep.Table:
    """Trains what is not finished of a figure's runs, one after the other, and writes table and plot.

    Args:
      name: `2a` to `2e`.
      spec: `FILE_OR_NAME:arguments` of a config of self-training; unused with `finished`.
      workdir: the figure's folder, local or gs://.
      grids: `NAME=VALUE,VALUE,...` each, in place of the figure's own; or `seed=0,1,...`.
      overrides: `KEY=VALUE` each, for keys of the config, the same in all runs.
      landmarks: those that 2d and 2e draw true points from: how many, evenly spread over all, or their numbers.
      finished: for 2a, a finished run with the stages keypoints and stage1, in place of training one.
      mesh: the devices; all of them by default.

    Returns:
      `figure.json`, whose layout is that of `sweep.Table`, `figure.md`, and the runs that failed.

    Raises:
      UserError: what cannot be used, before any compute. A run that fails later is written down as failed.
      stopping.Stopped: after SIGTERM, when the state of the run under way is saved.
    """
    if name not in FIGURES:
        raise UserError(f"--figure={name} is unknown; use one of {', '.join(FIGURES)}")
    if finished and name != "2a":
        raise UserError(f"--run is for figure 2a; figure {name} trains its own runs from --config")
    if not finished and not spec:
        raise UserError(f"figure {name} needs --config=self_training:..." + (" or --run=RUN" if name == "2a" else ""))
    mesh = sharding.make_mesh() if mesh is None else mesh
    figure, workdir = FIGURES[name], epath.Path(workdir)
    if finished:
        if grids or overrides:
            raise UserError("--run takes a run as it is; leave --grid and --config out")
        _claim(workdir, {"figure": name})
        return _compare(finished, workdir, mesh)
    every, left_out = plan(name, spec, workdir, grids, overrides)
    _check(name, every, workdir, mesh)
    mixed = _Mixed(every, workdir, landmarks) if "share" in figure.grids else None
    settings = {"figure": name, "landmarks": mixed and mixed.landmarks}
    _claim(workdir, settings)

    def measured(cell):
        folder = workdir / cell.name
        if not sweep._finished(cell, folder) or (mixed and not mixed.path(cell).exists()):
            return None
        own = workdir_lib.read_json(mixed.path(cell)) if mixed else {}
        return sweep.measured(folder, figure.columns) | {key: own[key] for key in figure.columns if key in own}

    errors: dict[str, str] = {}

    def written():
        return _write(name, spec, every, workdir, settings, left_out, measured, errors)

    todo = [cell for cell in every if measured(cell) is None]
    if mixed:
        mixed.write(todo)
    table = written()
    with stopping.Sigterm() as stop:
        for i, cell in enumerate(todo):
            if stop.agreed(True):
                raise stopping.Stopped(f"stopped before {cell.name}; the same command goes on")
            sweep._say(f"{cell.name}: {i + 1} of {len(todo)} runs")
            try:
                found = loop.run(cell.config, workdir / cell.name, mesh=mesh, stop=stop, alone=False)
                if mixed:
                    stop.attend(functools.partial(mixed.measure, cell, found, mesh))
            except (UserError, jax.errors.JaxRuntimeError) as error:  # the latter: out of memory, say
                errors[cell.name] = str(error)
                sweep._say(f"{cell.name} failed: {error}")
            finally:
                table = written()
            jax.clear_caches()  # nothing compiled for a run serves the next one
            gc.collect()
    if name == "2a" and not table.failed:
        return _compare(str(workdir / every[0].name), workdir, mesh)
    return table


def plan(
    name: str, spec: str, workdir, grids: Sequence[str] = (), overrides: Sequence[str] = ()
) -> tuple[list[sweep.Cell], dict[str, str]]:
    """A figure's runs, and what is left out of them: name of a run -> why.

    Raises UserError: a grid that the figure does not have, a value that cannot be used, or a key of the config that is
    the figure's own.
    """
    figure = FIGURES[name]
    values = _values(name, grids)
    own = {*(figure.keys[grid] for grid in values if grid in figure.keys), sweep.SEED}
    if "share" in figure.grids:
        own |= {"keypoints.points", "stage1.clusters", "stage2.clusters"}
    given = {text.partition("=")[0].strip() for text in overrides}
    if both := sorted(given & own):
        instead = next((grid for grid, key in figure.keys.items() if key == both[0]), both[0])
        hint = f"use --grid={instead}=..." if instead in (*values, sweep.SEED) else "leave it out"
        raise UserError(f"--config.{both[0]} is what figure {name} varies; {hint}")
    fixed = list(overrides)
    if figure.stages and "stages" not in given:
        fixed.append(f"stages={figure.stages}")
    base = config_lib.parse_flags(_argv(spec, fixed))
    _check_stages(name, base)
    if "share" in figure.grids:
        fixed += _shortened(base, given)
    cells, left_out = [], {}
    seeds = values.pop(sweep.SEED)
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination))
        label = ",".join(f"{key}={sweep._short(value)}" for key, value in chosen.items())
        detector = chosen.get("detector")
        if detector and detector in base.weights and not base.weights[detector]:
            left_out[label] = f"no weights; convert them and set --config.weights.{detector}=FOLDER"
            continue
        for seed in seeds:
            changes = [*fixed, *(f"{figure.keys[k]}={v}" for k, v in chosen.items() if k in figure.keys)]
            if "share" in chosen:
                changes.append(f"keypoints.points={_absolute(_points_path(workdir, chosen, seed))}")
                most = _most(int(chosen["true"]), float(chosen["share"]))
                changes.append(f"keypoints.most={max(most, base.keypoints.most)}")
            folder = ",".join(filter(None, (label, f"seed={seed}")))
            try:
                config = config_lib.parse_flags(_argv(spec, [*changes, f"seed={seed}"]))
            except UserError as error:
                raise UserError(f"{folder}: {error}") from error
            cells.append(sweep.Cell(folder, chosen | {sweep.SEED: seed}, config))
    if not cells:
        raise UserError(f"figure {name} has no run left: {'; '.join(f'{k}: {v}' for k, v in left_out.items())}")
    return cells, left_out


def _argv(spec: str, changes: Sequence[str]) -> list[str]:
    return ["uld figure", f"--config={config_lib.resolve(spec)}", *(f"--config.{change}" for change in changes)]


def _values(name: str, grids: Sequence[str]) -> dict[str, list[str]]:
    """The values of every grid of a figure, seed last: those given, or else its own."""
    figure, given = FIGURES[name], {}
    for text in grids:
        key, some = sweep.parse_grid(text)
        if key not in figure.grids and key != sweep.SEED:
            known = ", ".join((*figure.grids, sweep.SEED))
            raise UserError(f"--grid={key}: figure {name} has no grid {key!r}; it has {known}")
        if name == "2a" and len(some) > 1:
            raise UserError("figure 2a shows one run; give --grid=seed one value")
        if key in given:
            raise UserError(f"--grid={key} is given twice; put all its values into one")
        given[key] = some
    values = {key: given.get(key, text.split(",")) for key, text in figure.grids.items()}
    for key, kind, what, fits in (
        ("clusters", int, "a whole number above 0", lambda v: v > 0),
        ("true", int, "a whole number above 0", lambda v: v > 0),
        ("share", float, "a share above 0, up to 1", lambda v: 0 < v <= 1),
    ):
        for text in values.get(key, ()):
            try:
                fine = fits(kind(text))
            except ValueError:
                fine = False
            if not fine:
                raise UserError(f"--grid={key}: {text} is not {what}")
    return values | {sweep.SEED: given.get(sweep.SEED, ["0"])}


def _check_stages(name: str, config: Config) -> None:
    """Raises UserError for a config of another method, or without the stages that a figure is about."""
    missing = [stage for stage in BOTH if stage not in config or stage not in config.stages]
    if missing:
        raise UserError(
            f"figure {name} is about self-training, and the config has no stage {missing[0]}; give "
            "--config=self_training:..., with that stage"
        )


def _shortened(config: Config, given) -> list[str]:
    """What 2d and 2e have of their own: mixtures as they are, fewer steps with as many rounds, one evaluation.

    Outliers or a box would change the share of true points before anything is learned.
    """
    stage, steps = config.stage1, STEPS.get(config.preset)
    changes = {"eval_every": 0, "keypoints.outliers": 0.0, "keypoints.region": "none", "stage1.region": "none"}
    if steps and "stage1.steps" not in given:
        part = steps / stage.steps
        changes |= {"stage1.steps": steps, "stage1.warmup": round(stage.warmup * part)}
        changes |= {"stage1.round_every": max(1, round(stage.round_every * part))}
    return [f"{key}={value}" for key, value in changes.items() if key not in given]


def _points_path(workdir, values, seed: str) -> epath.Path:
    return epath.Path(workdir) / "points" / f"true={values['true']},share={values['share']},seed={seed}.csv"


def _absolute(path) -> str:
    return str(path) if "://" in str(path) else os.path.abspath(path)


def _claim(workdir, settings: dict[str, Any]) -> None:
    """Raises UserError where `workdir` holds another figure, or one of other landmarks."""
    path = workdir / "figure.json"
    old = workdir_lib.read_json(path) if path.exists() else settings
    for key, value in settings.items():
        if old.get(key) != value:
            raise UserError(f"{workdir} holds a figure with {key}={old.get(key)}, not {value}; use another --workdir")


def _check(name: str, every: Sequence[sweep.Cell], workdir, mesh) -> None:
    """Everything that can be found wrong before the first computation.

    Runs that differ in their keypoints alone have states of one shape, so one of each M is traced.
    """
    built = []
    for cell in every:
        try:
            built.append((cell.config, loop.check(cell.config, workdir / cell.name, mesh)[0]))
        except UserError as error:
            raise UserError(f"{cell.name}: {error}") from error
    config_lib.check_weights_are_read(built)
    some = {cell.values.get("clusters", cell.name): cell for cell in every}
    sweep._check(list(some.values()), workdir, mesh)
    if name == "2a":
        return
    for split in ("train", "test"):
        _check_annotated(name, evaluate.open_split(every[0].config, split), split)


def _check_annotated(name: str, source: Source, split: str) -> None:
    # The number of landmarks is known without those of synthetic heads, which would be rendered.
    if source.spec.landmarks is None or (source.data_dir and not len(labelled(source))):
        raise UserError(
            f"figure {name} measures by annotated landmarks, and the {split} split has none; give {split}.csv the "
            "columns file,x0,y0,x1,y1,..."
        )


# Figures 2d and 2e


class _Mixed:
    """The mixtures of keypoints of figures 2d and 2e, and how well what was learned from them agrees with the truth.

    Attributes:
      landmarks: numbers of those that true points are drawn from.
    """

    def __init__(self, every: Sequence[sweep.Cell], workdir, landmarks: str):
        self._workdir, self._config = workdir, every[0].config
        self._test = None
        self._train = evaluate.open_split(self._config, "train")
        self.landmarks = _chosen(landmarks, self._train.spec.landmarks)
        for true in sorted({int(cell.values["true"]) for cell in every}):
            if true > len(self.landmarks):
                raise UserError(
                    f"--grid=true: {true} true points cannot be drawn from {len(self.landmarks)} landmarks; use fewer, "
                    "or more with --landmarks"
                )

    def path(self, cell: sweep.Cell) -> epath.Path:
        """Where the numbers of a run are."""
        return self._workdir / cell.name / "mixture.json"

    def write(self, cells: Sequence[sweep.Cell]) -> None:
        """The csv of every mixture of some runs, by process 0."""
        zoom = min(self._config.keypoints.zoom, self._config.stage1.zoom)
        paths = {_points_path(self._workdir, c.values, c.values["seed"]): c.values for c in cells}
        for path, values in paths.items() if jax.process_index() == 0 else ():
            true, share, seed = int(values["true"]), float(values["share"]), int(values["seed"])
            found = mixture(self._train, self.landmarks, true, share, zoom=zoom, seed=seed)
            write_points(path, self._train.names, found.xy)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("mixtures are written")

    def measure(self, cell: sweep.Cell, found: loop.Found, mesh) -> None:
        """Writes NMI and F of a finished run on the test split."""
        if self._test is None:
            self._test = evaluate.open_split(self._config, "test")
        test, radius = self._test, Protocol.of(cell.config).match_radius
        seen = look(cell.config, found.method, found.state, found.frozen, mesh, test)
        lengths = _lengths(test)
        visible = None if test.visible is None else test.visible[:, self.landmarks]
        truth = test.landmarks[:, self.landmarks]
        values = correspondence(seen.xy, seen.score, truth, lengths, radius=radius, visible=visible)
        # The detector head alone, before clusters are assigned and what is far from them is dropped.
        detected = correspondence(
            seen.points, seen.mask.astype(np.float32), truth, lengths, radius=radius, visible=visible
        )
        detector = ("f_measure", "precision", "recall", "keypoints_per_image")
        values |= {f"detector_{key}": detected[key] for key in detector}
        workdir_lib.write_json(self.path(cell), values | {"landmarks": self.landmarks, "images": len(test)})


def _chosen(text: str, total: int) -> list[int]:
    """`15` or `0,3,7` to landmark numbers.

    >>> _chosen("3", 5), _chosen("4,1", 5)
    ([0, 2, 4], [1, 4])
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--landmarks={text} is neither a number nor numbers with commas between them") from None
    if len(numbers) == 1 and "," not in text:
        if not 0 < numbers[0] <= total:
            raise UserError(f"--landmarks={text}: the data have {total} landmarks; use 1 to {total} of them")
        return evaluate.spread(total, numbers[0]).tolist()
    if len(set(numbers)) < len(numbers) or min(numbers) < 0 or max(numbers) >= total:
        raise UserError(f"--landmarks={text}: give different numbers from 0 to {total - 1}")
    return sorted(numbers)


def _lengths(source: Source) -> np.ndarray:
    """What distances on each image are measured by, [N] pixels: the error's normaliser."""
    return regression.normaliser_lengths(
        source.landmarks, source.spec.eyes or source.spec.normaliser, source.frame_size
    )


class Seen(NamedTuple):
    """What a stage finds on images, on the host, in pixels of the frame.

    Attributes:
      xy, score: [n,K,2], [n,K], the prediction: one slot a cluster.
      points, mask: [n,P,2], [n,P], keypoints before they are assigned.
      descriptors: [n,P,D] of those, or None.
    """

    xy: np.ndarray
    score: np.ndarray
    points: np.ndarray
    mask: np.ndarray
    descriptors: np.ndarray | None


def look(config: Config, method, state, frozen, mesh, source: Source, rows=None, describe: bool = False) -> Seen:
    """What a stage predicts and observes on a source's images, or on increasing `rows` of them.

    The stage's memory of training images is left out, so that they are as new to it as others.
    """
    reader = make_reader(source, mesh=mesh, batch_size=evaluate.eval_batch(config, mesh), kind="stream")
    frozen = sharding.put_replicated(mesh, {key: value for key, value in frozen.items() if key != "rows"})

    @jax.jit
    def found(state, frozen, payload, key):
        batch = reader.fetch({}, payload)
        unknown = batch | {"index": jnp.full_like(batch["index"], jnp.iinfo(jnp.int32).max)}
        seen, held = method.predict(state, frozen, batch["image"]), method.observe(state, frozen, unknown, key)
        descriptors = held.descriptors if describe else jnp.zeros((len(batch["index"]), 0))
        return batch["index"], Seen(seen.xy, seen.score, held.xy, held.mask, descriptors)

    key = sharding.put_key(mesh, jax.random.key(config.seed))
    parts = [sharding.to_host(found(state, frozen, payload, key)) for payload in reader.ordered(rows=rows)]
    index, seen = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    order = np.argsort(index, kind="stable")[: reader.rows if rows is None else len(rows)]
    seen = Seen(*(x[order] for x in seen))
    return seen if describe else seen._replace(descriptors=None)


# Figure 2a


def _compare(where: str, workdir, mesh) -> sweep.Table:
    """Descriptors of both stages of a finished run, on the same images: numbers and t-SNE."""
    records, places, groups = [], {}, {}
    for stage, title in zip(BOTH, ("initial", "learned"), strict=True):
        run = runs.load(f"{where}:{stage}", mesh)
        source = evaluate.open_split(run.config, "train")
        if "test" in source.spec.splits:
            source = evaluate.open_split(run.config, "test")
        rows = evaluate.spread(len(source), COMPARED_IMAGES)
        seen = look(run.config, run.method, run.state, run.frozen, mesh, source, rows, describe=True)
        mask = seen.mask & np.isfinite(seen.descriptors).all(-1)
        if mask.sum() < 2:
            raise UserError(f"stage {stage!r} of {where} finds nothing on these images; there is nothing to compare")
        pick = evaluate.spread(int(mask.sum()), COMPARED_ROWS)
        z, landmark = seen.descriptors[mask][pick], None
        if len(labelled(source)):
            radius = Protocol.of(run.config).match_radius
            near = nearest(seen.points, mask, _visible(source)[rows], _lengths(source)[rows] * radius)
            landmark = near[mask][pick]
        record, clusters = _quality(z, landmark, run.config.keypoints.clusters, run.config.seed)
        records.append({"descriptors": title, "stage": stage, "rows": len(z)} | record)
        shown = clusters if landmark is None else landmark
        drawn, places[title] = clusters_study.embed(clusters_study.Descriptors(z, shown), run.config.seed)
        groups[title] = shown[drawn]
    colour = "clusters (k-means)" if not len(labelled(source)) else "annotated landmarks; grey: none near"
    caption = (
        f"Descriptors of {len(rows)} images, clustered by k-means alike. `silhouette`: of these clusters; "
        "`silhouette_landmark`: of those near an annotated landmark, grouped by it; `nmi`: of clusters and landmarks. "
        f"Colours in figure.png: {colour}."
    )
    record = {"figure": "2a", "landmarks": None, "run": where, "rows": records, "columns": list(records[0])}
    table = sweep.Table(record, f"{clusters_study.table(records)}\n{caption}\n", [])
    if jax.process_index() == 0:
        workdir_lib.write_json(workdir / "figure.json", record)
        files.write(workdir / "figure.md", table.markdown)
        titles = {title: f"{title}: {r['rows']} descriptors" for title, r in zip(places, records, strict=True)}
        plot = viz.scatter_plot({titles[t]: places[t] for t in places}, {titles[t]: groups[t] for t in places})
        viz.save(plot, workdir / "figure.png")
    return table


def _visible(source: Source) -> np.ndarray:
    """Annotated points [N,L,2], NaN where one is hidden."""
    return source.landmarks if source.visible is None else np.where(source.visible[..., None], source.landmarks, np.nan)


def nearest(points, mask, truth, radius) -> np.ndarray:
    """The annotated point nearest to each keypoint, [N,P] int32; -1 where none is within the radius.

    Args:
      points: [N,P,2].
      mask: [N,P] bool.
      truth: [N,L,2], NaN where there is none.
      radius: [N], in the same pixels, inclusive.

    >>> nearest(np.zeros((1, 2, 2)), np.array([[True, False]]), np.array([[[3.0, 4], [0, 1]]]), np.array([5])).tolist()
    [[1, -1]]
    """
    distance = np.linalg.norm(points[:, :, None] - truth[:, None], axis=-1)
    distance = np.where(np.isfinite(distance) & mask[..., None], distance, np.inf)
    near = distance.min(-1) <= np.asarray(radius)[:, None]
    return np.where(near, distance.argmin(-1), -1).astype(np.int32)


def _quality(z, landmark, clusters: int, seed: int) -> tuple[dict[str, float | int], np.ndarray]:
    """Numbers of one set of descriptors, and the k-means cluster of each; `landmark` is None without annotation."""
    clusters, z = min(clusters, len(z)), jnp.asarray(z)
    found, _, count = clusters_study.cluster(z, "kmeans", clusters=clusters, neighbours=0, tau=0, seed=seed)
    unit = keypoints.l2_normalize(z)
    record = {"clusters": count, "silhouette": float(quality.silhouette(unit, found, clusters=clusters))}
    if landmark is not None:
        near, classes = landmark >= 0, int(landmark.max()) + 1 or 1
        record |= {
            "near_landmark": float(near.mean()),
            "silhouette_landmark": float(quality.silhouette(unit, landmark, near, clusters=classes)),
            "nmi": float(quality.nmi(found, landmark, near, clusters=clusters, classes=classes)),
        }
    return record, np.asarray(found)


# The table and the plot


def _write(
    name: str,
    spec: str,
    every: Sequence[sweep.Cell],
    workdir,
    settings: dict[str, Any],
    left_out: dict[str, str],
    measured: Callable[[sweep.Cell], dict[str, Any] | None],
    errors: dict[str, str],
) -> sweep.Table:
    """The figure of all runs as they are now, written by process 0."""
    figure, rows = FIGURES[name], []
    for values, group in sweep._rows(every):
        found = {cell.name: None if cell.name in errors else measured(cell) for cell in group}
        cells = []
        for cell in group:
            started = "started" if (workdir / cell.name / "config.json").exists() else "waiting"
            status = "failed" if cell.name in errors else "done" if found[cell.name] is not None else started
            known = {"name": cell.name, "seed": cell.values[sweep.SEED], "status": status}
            cells.append(known | {"error": errors.get(cell.name), "columns": found[cell.name] or {}})
        columns = {c: sweep._statistics([cell["columns"].get(c) for cell in cells]) for c in figure.columns}
        rows.append({"values": values, "columns": columns, "cells": cells})
    record = settings | {"about": figure.about, "config": spec, "columns": list(figure.columns), "rows": rows}
    record |= {"left_out": left_out, "match_radius": Protocol.of(every[0].config).match_radius}
    table = sweep.Table(record, _markdown(record), list(errors))
    if jax.process_index() == 0 and figure.columns:
        workdir_lib.write_json(workdir / "figure.json", record)
        files.write(workdir / "figure.md", table.markdown)
        viz.save(plot(record), workdir / "figure.png")
    return table


def plot(record: dict[str, Any]):
    """A figure's panels from its record: lines over one of its grids, or bars."""
    figure = FIGURES[record["figure"]]
    panels = {}
    for column in figure.panels:
        panel = panels.setdefault(_TITLES.get(column, column), {})
        for row in record["rows"]:
            value, others = row["columns"][column], {k: v for k, v in row["values"].items() if k != figure.x}
            if value["mean"] is None:
                continue
            label = _label(others)
            if figure.x:
                panel.setdefault(label, []).append((float(row["values"][figure.x]), value["mean"], value["spread"]))
            else:
                panel[label] = value["mean"], value["spread"]
    if not figure.x:
        return viz.bars_plot(panels)
    return viz.lines_plot(panels, x={"share": "share of true points", "clusters": "clusters M"}[figure.x])


def _label(values: dict[str, str]) -> str:
    words = {"clusters": "M = {}", "true": "{} true", "share": "share {}"}
    return ", ".join(words.get(key, "{}").format(value) for key, value in values.items())


def _markdown(record: dict[str, Any]) -> str:
    keys = list(record["rows"][0]["values"])
    lines = [[*keys, "runs", *record["columns"]]]
    for row in record["rows"]:
        done = sum(cell["status"] == "done" for cell in row["cells"])
        count = f"{done}" if done == len(row["cells"]) else f"{done} of {len(row['cells'])}"
        numbers = [sweep._number(value, done) for value in row["columns"].values()]
        lines.append([*(row["values"][key] for key in keys), count, *numbers])
    body = ["| " + " | ".join(line) + " |" for line in lines]
    body.insert(1, "|" + " --- |" * len(keys) + " ---: |" * (len(lines[0]) - len(keys)))
    caption = (
        f"Figure {record['figure']}, {record['about']}; `{record['config']}`, mean ± sample standard deviation over "
        f"the runs, which differ in their seed. Matches are within {record['match_radius']:g} of the normaliser"
    )
    if record["landmarks"] is not None:
        caption += (
            f"; NMI and F against landmarks {', '.join(map(str, record['landmarks']))}; `detector_...` before "
            "keypoints are assigned to clusters"
        )
    notes = [f"* `{c['name']}`: {c['error'] or c['status']}" for r in record["rows"] for c in r["cells"]]
    notes = [note for note in notes if not note.endswith(": done")]
    notes += [f"* `{label}`: left out, {why}" for label, why in record["left_out"].items()]
    return "\n".join([*body, "", f"{caption}.", *(["", "Not in the table:", "", *notes] if notes else [])]) + "\n"
