"""What the page of a run shows: photos, landmarks of one or two runs on them, and what is known of both."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from uld_jax import sharding
from uld_jax.data import Source
from uld_jax.data.open import Data
from uld_jax.engine import runs
from uld_jax.engine import workdir as workdir_lib
from uld_jax.errors import UserError
from uld_jax.evaluation import curves
from uld_jax.evaluation.measure import SCALED, measure, yaw_of
from uld_jax.evaluation.missing import known_mean
from uld_jax.evaluation.predictor import Predictor
from uld_jax.evaluation.protocol import spread
from uld_jax.evaluation.report import Report, metrics
from uld_jax.evaluation.run import check_alone, open_splits
from uld_jax.evaluation.stability import mirrored_distances, stability
from uld_jax.landmark_names import check_count

_CURVE = 400  # most points of a training curve


class Asked(NamedTuple):
    """What a page shows.

    Attributes:
      run: a finished run, RUN or RUN:STAGE.
      compare: another one whose landmarks are shown on the same photos; empty for none.
      split: name of the split.
      dataset: name of another data set than the runs' own; empty for that.
      data_dir: folder of the data in place of the run's own; empty for that.
      photos: largest number of photos, spread evenly over the split; 0 for all.
      names: names of the run's landmarks; () for none.
    """

    run: str
    compare: str = ""
    split: str = "test"
    data_dir: str = ""
    photos: int = 300
    dataset: str = ""
    names: tuple[str, ...] = ()


class Shown(NamedTuple):
    """The landmarks of one run.

    Attributes:
      name: name of the run on the page.
      stage: name of the stage.
      xy: [N,K,2] float `(x, y)` in pixels of the frame.
      score: [N,K] float, 0 where a landmark is missing.
      moved: [N,K] float, see `disagreement`; NaN where it cannot be told.
      errors: [N] forward error of each photo in percent; None without annotation.
      table: a row a landmark: `found` (share of the split's images), `stability` (px at 128), `backward` (percent).
      numbers: the contents of `metrics.json`.
      training: {name: (steps, values)} of the numbers in `metrics.jsonl`.
      ced: {name: (thresholds, shares)}; empty without annotation.
      about: the run's config, versions and devices.
    """

    name: str
    stage: str
    xy: np.ndarray
    score: np.ndarray
    moved: np.ndarray
    errors: np.ndarray | None
    table: list[dict[str, float | None]]
    numbers: dict[str, Any]
    training: dict[str, tuple[list[int], list[float]]]
    ced: dict[str, tuple[list[float], list[float]]]
    about: dict[str, Any]


class Gathered(NamedTuple):
    """All that is on a page.

    Attributes:
      source: the split.
      rows: [N] rows of the split that are shown.
      columns: {name: N cells} of the annotation, and yaw and the pose cluster where they are known.
      runs: the run, and the one it is compared with.
    """

    source: Source
    rows: np.ndarray
    columns: dict[str, list[Any]]
    runs: list[Shown]


def gather(asked: Asked, say: Callable[[str], None] = lambda text: None) -> Gathered:
    """Measure a run as `uld evaluate` does, on one device, and collect what its page shows.

    Raises UserError for runs, data or words that do not go together, before anything is computed.
    """
    check_alone("report")
    if asked.photos < 0:
        raise UserError(f"--photos={asked.photos} is negative; give a number, or 0 for all photos")
    mesh = sharding.make_mesh(jax.devices()[:1])
    finished = [runs.load(where, mesh) for where in filter(None, (asked.run, asked.compare))]
    names = [one.workdir.name or str(one.workdir) for one in finished]
    if len(set(names)) < len(names):
        names = [f"{name}:{one.stage}" for name, one in zip(names, finished, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{i + 1}: {name}" for i, name in enumerate(names)]
    where = dict(dataset=asked.dataset, data_dir=asked.data_dir)
    data = [open_splits(one.config, mesh, asked.split, **where) for one in finished]
    first = data[0].measured
    for one in data[1:]:
        if one.measured.names != first.names or one.measured.frame_size != first.frame_size:
            raise UserError(
                f"--compare={asked.compare} is about other photos, or photos of another size, than {asked.run}; give "
                "--dataset=folder --data_dir=DIR for both"
            )
    count = Predictor(finished[0].model.method, mesh).count(finished[0].model, first.frame_size)
    check_count(asked.names, count)
    rows = spread(len(first), asked.photos)
    columns: dict[str, list[Any]] = {name: [cells[row] for row in rows] for name, cells in first.columns.items()}
    if (yaw := yaw_of(first)) is not None:
        columns["yaw"] = [_plain(yaw[row]) for row in rows]
    shown = []
    for name, one, where in zip(names, finished, data, strict=True):
        say(f"{name}: measuring {len(first)} images")
        report, found = _shown(one, name, where, mesh, rows, asked.split, say)
        if report.pose is not None:
            columns["pose" if not shown else f"pose of {name}"] = [int(p) for p in _of_rows(report, report.pose, rows)]
        shown.append(found)
    return Gathered(first, rows, columns, shown)


def _shown(finished: runs.Finished, name: str, data: Data, mesh, rows, split: str, say) -> tuple[Report, Shown]:
    """Measure one run on its split, and collect what is shown of its photos."""
    config, model = finished.config, finished.model
    predictor = Predictor(model.method, mesh, say=lambda text: say(f"{name}: {text}"))
    report = measure(config, predictor, model, data, split=split)
    report = dataclasses.replace(report, split=split, stage=finished.stage)
    say(f"{name}: turning and mirroring {len(rows)} images")
    read = lambda i: data.measured.images(rows[i])
    views = dict(seed=config.seed, batch_size=min(config.eval.batch_size, len(rows)))
    xy, score = _of_rows(report, report.xy, rows), _of_rows(report, report.score, rows)
    moved = disagreement(functools.partial(predictor.images, model), read, xy, score, **views)
    errors = report.errors
    shown = Shown(
        name,
        finished.stage,
        xy,
        score,
        moved,
        None if errors is None else _of_rows(report, errors.per_image.forward_nme, rows),
        _table(report, moved),
        metrics(report),
        training_curves(finished.workdir),
        _ced(report),
        _about(finished),
    )
    return report, shown


def disagreement(predict: Callable, read: Callable, xy, score, *, seed: int, batch_size: int) -> np.ndarray:
    """Measure how much landmarks move when an image is turned and scaled, and when it is mirrored.

    Args:
      predict, read, seed, batch_size: as in `stability`.
      xy: [N,K,2] landmarks of the images, in pixels of the frame.
      score: [N,K] their confidences, 0 = missing.

    Returns:
      [N,K] float64, mean of the distances in one turned and scaled view (`stability`) and in the mirrored one
      (`mirrored_distances`), in pixels of an image of 128; NaN where neither is known.
    """
    turned = stability(predict, read, len(xy), seed=seed, batch_size=batch_size, scale=SCALED).distances
    return known_mean(np.stack([turned, mirrored_distances(predict, read, xy, score, batch_size=batch_size)]), 0)


def training_curves(workdir) -> dict[str, tuple[list[int], list[float]]]:
    """Read the numbers that a run logged: {name: (steps, values)}, at most 400 of each; steps count over all stages.

    Names of numbers that a stage logs are `STAGE: NAME`.
    """
    found: dict[str, tuple[list[int], list[float]]] = {}
    for line in workdir_lib.read_lines(epath.Path(workdir) / "metrics.jsonl"):
        for name, value in line.items():
            if name != "step" and type(value) in (int, float) and np.isfinite(value):
                steps, values = found.setdefault(f"{line.get('stage', '')}: {name}", ([], []))
                steps.append(int(line["step"]))
                values.append(float(value))
    thin = lambda given, kept: [given[i] for i in kept]
    kept = {name: spread(len(steps), _CURVE) for name, (steps, _) in found.items()}
    return {name: (thin(s, kept[name]), thin(v, kept[name])) for name, (s, v) in found.items() if len(s) > 1}


def _of_rows(report: Report, values, rows) -> np.ndarray:
    """Rows of what a report holds of its images."""
    return np.asarray(values)[np.searchsorted(report.rows, rows)]


def _table(report: Report, moved: np.ndarray) -> list[dict[str, float | None]]:
    """A row a landmark of all that is known of it."""
    found = (report.score > 0).mean(0)
    stable = report.stability.per_landmark if report.stability else np.full(len(found), np.nan)
    backward = report.errors.per_landmark.backward if report.errors else np.full(len(found), np.nan)
    columns = {"found": found, "stability": stable, "disagreement": known_mean(moved, 0), "backward": backward}
    return [{name: _plain(values[k]) for name, values in columns.items()} for k in range(len(found))]


def _ced(report: Report) -> dict[str, tuple[list[float], list[float]]]:
    if report.errors is None:
        return {}
    each, limit = report.errors.per_image, report.errors.ced_limit
    lines = {"forward": each.forward_nme, "mean shape": each.mean_shape_nme}
    return {name: tuple(part.tolist() for part in curves.ced(values, limit)) for name, values in lines.items()}


def _about(finished: runs.Finished) -> dict[str, Any]:
    run = workdir_lib.read_json(finished.workdir / "run.json")
    return {key: run[key] for key in ("versions", "devices", "rows", "seed", "config") if key in run}


def _plain(value) -> float | None:
    return float(value) if np.isfinite(value) else None


def numeric(cells: Sequence[Any]) -> bool:
    """Tell whether all cells of a column that are not empty are numbers."""
    values = curves.numbers_of(["" if cell is None else cell for cell in cells])
    return values is not None and bool(np.isfinite(values).any())
