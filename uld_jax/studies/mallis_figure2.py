"""Figure 2 of Mallis et al. (NeurIPS 2020, section 4.1: ablations) as runs, tables and plots: `uld figure`.

    uld figure --figure=2d --config=self_training:dataset=synthetic,preset=small --workdir=runs/figure2d

  2a  t-SNE of the generic detector's descriptors and of the learned descriptors
  2b  forward error with each generic detector
  2c  clustering against equivariance: pairs of two images, or two views of one image
  2d  initial keypoints that are a mixture of annotated landmarks and random points: NMI and F against the share of true
      points, for several numbers M of clusters and numbers of true points
  2e  numbers of clusters M at one share

A cell is one combination of a figure's grids, `--grid=NAME=VALUE,VALUE,...`: an ordinary run in its own folder, as in
`uld_jax/studies/sweep.py`. After every cell the figure is rewritten: `figure.md`, `figure.json`, `figure.png`, one row
for each combination without `seed`, with mean and spread over seeds. The same command resumes a stopped study.

The mixtures of 2d and 2e are those of `uld_jax/data/mixture.py`; `mallis_mixtures.py` prepares and measures their runs.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from uld_jax import config as config_lib
from uld_jax import files, sharding, viz
from uld_jax.config import Config
from uld_jax.data import Source
from uld_jax.data.mixture import slots
from uld_jax.data.open import open_split
from uld_jax.data.specs import labelled
from uld_jax.engine import loop
from uld_jax.engine import workdir as workdir_lib
from uld_jax.errors import UserError
from uld_jax.evaluation.protocol import Protocol
from uld_jax.studies import descriptors, grid, runner, table
from uld_jax.studies.grid import SEED, Cell
from uld_jax.studies.mallis_mixtures import Mixtures, points_path, shortened
from uld_jax.studies.table import Table

# The stages that determine the quality of detector and descriptors; stage2 only removes clusters.
BOTH = ("keypoints", "stage1")
_AGREEMENT = ("nmi", "f_measure", "precision", "recall", "matched", "keypoints_per_image")
_MIXTURE = (*_AGREEMENT, "detector_f_measure", "detector_precision", "detector_recall")
_TITLES = {"forward_nme": "forward NME, %", "nmi": "NMI", "f_measure": "F-measure", "detector_f_measure": "F, detector"}


class Figure(NamedTuple):
    """One of the paper's figures.

    Attributes:
      about: noun phrase that names what the figure compares.
      grids: {name of a grid: its default values}, in the form of `--grid=NAME=`.
      keys: {name of a grid: the config's key that takes its value}; the other grids define the mixture of keypoints.
      stages: names of the stages that are run; () for those of the config.
      columns: names of the table's columns.
      panels: names of the columns that are drawn.
      x: name of the grid along the plot's horizontal axis; "" for bars.
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
) -> Table:
    """Train the unfinished runs of a figure, one after the other, and write table and plot.

    Args:
      name: `2a` to `2e`.
      spec: `FILE_OR_NAME:arguments` of a config of self-training; unused with `finished`.
      workdir: folder of the figure, local or gs://.
      grids: `NAME=VALUE,VALUE,...` each, in place of the figure's own; or `seed=0,1,...`.
      overrides: `KEY=VALUE` each, for keys of the config, the same in all runs.
      landmarks: landmarks that true points of 2d and 2e are drawn from: a count, evenly spread over all, or landmark
        numbers with commas between them.
      finished: for 2a, folder of a finished run with the stages keypoints and stage1, in place of training one.
      mesh: the devices; all of them by default.

    Returns:
      The contents of `figure.json` and `figure.md` as a `table.Table`, with the names of the runs that failed.

    Raises:
      UserError: a bad argument or config, before any compute. A run that fails later is recorded as failed.
      stopping.Stopped: SIGTERM came, and the state of the current run is saved.
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
        return descriptors.compare(finished, BOTH, workdir, mesh)
    every, left_out = plan(name, spec, workdir, grids, overrides)
    check(name, every, workdir, mesh)
    mixed = Mixtures(every, workdir, landmarks) if "share" in figure.grids else None
    settings = {"figure": name, "landmarks": mixed and mixed.landmarks}
    _claim(workdir, settings)

    def measured(cell):
        folder = workdir / cell.name
        if not runner.finished(cell, folder) or (mixed and not mixed.path(cell).exists()):
            return None
        own = workdir_lib.read_json(mixed.path(cell)) if mixed else {}
        return table.measured(folder, figure.columns) | {key: own[key] for key in figure.columns if key in own}

    def write(errors):
        return _write(spec, every, workdir, settings, left_out, measured, errors)

    todo = [cell for cell in every if measured(cell) is None]
    if mixed:
        mixed.write(todo)
    measure = mixed and (lambda cell, found: mixed.measure(cell, found, mesh))
    result = runner.train(todo, workdir, mesh, write=write, measure=measure)
    if name == "2a" and not result.failed:
        return descriptors.compare(str(workdir / every[0].name), BOTH, workdir, mesh)
    return result


def plan(
    name: str, spec: str, workdir, grids: Sequence[str] = (), overrides: Sequence[str] = ()
) -> tuple[list[Cell], dict[str, str]]:
    """List a figure's runs, and those that are left out: {name of a run: reason}.

    Raises UserError for a grid that the figure does not have, a value that cannot be used, or an override of a key that
    the figure itself varies.
    """
    figure = FIGURES[name]
    values = _values(name, grids)
    own = {*(figure.keys[key] for key in values if key in figure.keys), SEED}
    if "share" in figure.grids:
        own |= {"keypoints.points", "stage1.clusters", "stage2.clusters"}
    given = {text.partition("=")[0].strip() for text in overrides}
    if both := sorted(given & own):
        instead = next((own_grid for own_grid, key in figure.keys.items() if key == both[0]), both[0])
        hint = f"use --grid={instead}=..." if instead in (*values, SEED) else "leave it out"
        raise UserError(f"--config.{both[0]} is what figure {name} varies; {hint}")
    fixed = list(overrides)
    if figure.stages and "stages" not in given:
        fixed.append(f"stages={figure.stages}")
    base = grid.build("uld figure", spec, fixed)
    _check_stages(name, base)
    if "share" in figure.grids:
        fixed += shortened(base, given)
    cells, left_out = [], {}
    seeds = values.pop(SEED)
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination))
        label = ",".join(f"{key}={grid.short(value)}" for key, value in chosen.items())
        detector = chosen.get("detector")
        if detector and detector in base.weights and not base.weights[detector]:
            left_out[label] = f"no weights; convert them and set --config.weights.{detector}=FOLDER"
            continue
        for seed in seeds:
            changes = [*fixed, *(f"{figure.keys[k]}={v}" for k, v in chosen.items() if k in figure.keys)]
            if "share" in chosen:
                changes.append(f"keypoints.points={_absolute(points_path(workdir, chosen, seed))}")
                most = slots(int(chosen["true"]), float(chosen["share"]))
                changes.append(f"keypoints.most={max(most, base.keypoints.most)}")
            folder = ",".join(filter(None, (label, f"seed={seed}")))
            try:
                config = grid.build("uld figure", spec, [*changes, f"seed={seed}"])
            except UserError as error:
                raise UserError(f"{folder}: {error}") from error
            cells.append(Cell(folder, chosen | {SEED: seed}, config))
    if not cells:
        raise UserError(f"figure {name} has no run left: {'; '.join(f'{k}: {v}' for k, v in left_out.items())}")
    return cells, left_out


def _values(name: str, grids: Sequence[str]) -> dict[str, list[str]]:
    """Collect the values of every grid of a figure, seed last: the given values, or else the figure's own."""
    figure, given = FIGURES[name], {}
    for text in grids:
        key, some = grid.parse_grid(text)
        if key not in figure.grids and key != SEED:
            known = ", ".join((*figure.grids, SEED))
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
    return values | {SEED: given.get(SEED, ["0"])}


def _check_stages(name: str, config: Config) -> None:
    """Raise UserError for a config of another method, or without the stages that a figure needs."""
    missing = [stage for stage in BOTH if stage not in config or stage not in config.stages]
    if missing:
        raise UserError(
            f"figure {name} is about self-training, and the config has no stage {missing[0]}; give "
            "--config=self_training:..., with that stage"
        )


def _absolute(path) -> str:
    return str(path) if "://" in str(path) else os.path.abspath(path)


def _claim(workdir, settings: dict[str, Any]) -> None:
    """Raise UserError if `workdir` holds another figure, or a figure of other landmarks."""
    path = workdir / "figure.json"
    old = workdir_lib.read_json(path) if path.exists() else settings
    for key, value in settings.items():
        if old.get(key) != value:
            raise UserError(f"{workdir} holds a figure with {key}={old.get(key)}, not {value}; use another --workdir")


def check(name: str, every: Sequence[Cell], workdir, mesh) -> None:
    """Check all runs of a figure before the first computation.

    Runs that differ only in their keypoints have states of the same shapes, so one run of each M is traced.

    Raises:
      UserError: the first error, after the run's name if the error concerns one run.
    """
    built = []
    for cell in every:
        try:
            built.append((cell.config, loop.check(cell.config, workdir / cell.name, mesh)[0]))
        except UserError as error:
            raise UserError(f"{cell.name}: {error}") from error
    config_lib.check_weights_are_read(built)
    some = {cell.values.get("clusters", cell.name): cell for cell in every}
    runner.check(list(some.values()), workdir, mesh)
    if name == "2a":
        return
    for split in ("train", "test"):
        _check_annotated(name, open_split(every[0].config, split), split)


def _check_annotated(name: str, source: Source, split: str) -> None:
    # The spec gives the number of landmarks, so that synthetic heads need not be rendered here.
    if source.spec.landmarks is None or (source.data_dir and not len(labelled(source))):
        raise UserError(
            f"figure {name} measures by annotated landmarks, and the {split} split has none; give {split}.csv the "
            "columns file,x0,y0,x1,y1,..."
        )


# The table and the plot


def _write(
    spec: str,
    every: Sequence[Cell],
    workdir,
    settings: dict[str, Any],
    left_out: dict[str, str],
    measured: Callable[[Cell], dict[str, Any] | None],
    errors: dict[str, str],
) -> Table:
    """Write the figure of all runs in their current state, by process 0."""
    figure = FIGURES[settings["figure"]]

    def entry(cell):
        values = None if cell.name in errors else measured(cell)
        state = table.state(cell, workdir / cell.name, values is not None, errors.get(cell.name))
        return state | {"columns": values or {}}

    rows = table.rows(every, figure.columns, entry)
    record = settings | {"about": figure.about, "config": spec, "columns": list(figure.columns), "rows": rows}
    record |= {"left_out": left_out, "match_radius": Protocol.of(every[0].config).match_radius}
    written = Table(record, _markdown(record), list(errors))
    if jax.process_index() == 0 and figure.columns:
        workdir_lib.write_json(workdir / "figure.json", record)
        files.write(workdir / "figure.md", written.markdown)
        viz.save(plot(record), workdir / "figure.png")
    return written


def plot(record: dict[str, Any]):
    """Draw a figure's panels from its record: lines over one of its grids, or bars."""
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
    caption = (
        f"Figure {record['figure']}, {record['about']}; `{record['config']}`, mean ± sample standard deviation over "
        f"the runs, which differ in their seed. Matches are within {record['match_radius']:g} of the normaliser"
    )
    if record["landmarks"] is not None:
        caption += (
            f"; NMI and F against landmarks {', '.join(map(str, record['landmarks']))}; `detector_...` before "
            "keypoints are assigned to clusters"
        )
    notes = table.missing_notes(record)
    notes += [f"* `{label}`: left out, {why}" for label, why in record["left_out"].items()]
    return table.page(table.markdown_rows(record, list(record["rows"][0]["values"])), f"{caption}.", notes)
