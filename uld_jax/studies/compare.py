"""Finished runs side by side on the same test images (`uld compare`).

Files:

  comparison.md, comparison.json   a row of numbers a run, and notes on what may not be compared
  sheet.png                        landmarks: a row a run, a column an image
  pictures_<kind>.png              for each kind of picture that several runs make (`Method.pictures`), such as swaps:
                                   these pictures of the images of the sheet, one run under the other
  ced.png                          the share of images over the forward error
  yaw.png                          the forward error by ranges of yaw, where yaw is known
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from uld_jax import files, sharding, viz
from uld_jax.config import Config
from uld_jax.data import Source
from uld_jax.data.open import Data
from uld_jax.engine import checkpoint, runs
from uld_jax.engine import workdir as workdir_lib
from uld_jax.errors import UserError
from uld_jax.evaluation import curves
from uld_jax.evaluation.chosen import Chosen, choose
from uld_jax.evaluation.measure import measure, yaw_of
from uld_jax.evaluation.predictor import Predictor
from uld_jax.evaluation.protocol import spread
from uld_jax.evaluation.protocols import published
from uld_jax.evaluation.report import Report, metrics
from uld_jax.evaluation.run import check_alone, open_splits, under
from uld_jax.studies import table

RECORD = "comparison.json"
YAW = (0, 30, 60, 90)  # edges of the ranges in degrees, those of `uld evaluate`
COLUMNS = {  # of the table, by their name in `metrics.json`
    "landmarks": "K",
    "forward_nme": "forward, %",
    "backward_nme": "backward, %",
    "mean_shape_nme": "mean shape, %",
    "stability_px": "stability, px",
}
KEPT = ("protocol", *COLUMNS, "stability_protocol", "n_train", "n_test", "not_measured")  # of `metrics.json`


class Asked(NamedTuple):
    """What a user asks for.

    Attributes:
      runs: finished runs, each `RUN` or `RUN:STAGE`.
      out: folder for the files.
      split: split to measure on.
      data_dir: folder of the data; empty for that of each run.
      order_by: column of the csv, or `yaw`, that orders the images of the sheets; empty for their order in the split.
      images: number of images on the sheets.
      protocol: name of a paper's protocol, or an id, for all runs; empty for that of each run.
    """

    runs: Sequence[str]
    out: str
    split: str = "test"
    data_dir: str = ""
    order_by: str = ""
    images: int = 8
    protocol: str = ""


class _Run(NamedTuple):
    """A run before it is loaded: its name in the comparison, where it is, and what it is measured on and how."""

    name: str
    workdir: epath.Path
    stage: str
    config: Config
    data: Data
    chosen: Chosen

    @property
    def source(self) -> Source:
        """The images that are measured."""
        return self.data.measured


class _Measured(NamedTuple):
    """A run with its report, its number of steps, and its own pictures of the images of the sheets by kind."""

    run: _Run
    report: Report
    step: int
    pictures: dict[str, np.ndarray]


def compare(asked: Asked, say: Callable[[str], None] = lambda text: None) -> tuple[dict[str, Any], str]:
    """Measure finished runs as `uld evaluate` does, on one device, and write their tables and pictures.

    Args:
      asked: what is compared.
      say: function that tells the user what goes on.

    Returns:
      The contents of `comparison.json` and of `comparison.md`.

    Raises:
      UserError: runs, data or words that do not go together, before anything is computed.
    """
    _check_words(asked)
    mesh = sharding.make_mesh(jax.devices()[:1])
    every = _opened(asked, mesh)
    yaw = next((known for run in every if (known := yaw_of(run.source)) is not None), None)
    shown, values = _chosen(every[0].source, yaw, asked)
    images = every[0].source.images(shown)
    measured = []
    for i, run in enumerate(every):
        say(f"{run.name}: {i + 1} of {len(every)} runs")
        measured.append(_measured(run, mesh, images, say, asked.split))
    pictures = _sheets(measured, images, shown, values, asked.order_by) | _plots(measured, yaw)
    record = _record(measured, asked, shown, sorted(pictures))
    markdown = _markdown(record)
    _write(epath.Path(asked.out), record, markdown, pictures)
    return record, markdown


# What is compared


def _check_words(asked: Asked) -> None:
    """Raise UserError for words that no run could answer."""
    check_alone("compare")
    if len(asked.runs) < 2:
        raise UserError(f"--runs={','.join(asked.runs)} is one run; give two or more, such as --runs=runs/a,runs/b")
    if asked.images < 1:
        raise UserError(f"--images is {asked.images}; use 1 or more")
    if asked.protocol:
        published(asked.protocol, "--protocol")
    out = epath.Path(asked.out)
    if out.exists() and not (out / RECORD).exists() and next(iter(out.iterdir()), None) is not None:
        raise UserError(f"--out={out} is a folder of something else (it has no {RECORD}); give a new or an empty one")


def _opened(asked: Asked, mesh) -> list[_Run]:
    """Find all runs and open their data. Raises UserError for runs that cannot be compared."""
    found = [_found(where) for where in asked.runs]
    places = [(_place(workdir), stage) for workdir, _, stage in found]
    if again := [where for i, where in enumerate(asked.runs) if places[i] in places[:i]]:
        raise UserError(f"--runs names the stage of {again[0]} twice; give each run, or stage of a run, once")
    every = []
    for name, (workdir, config, stage) in zip(_names(places), found, strict=True):
        config = under(config, asked.protocol)
        data = open_splits(config, mesh, asked.split, "", asked.data_dir)
        chosen = choose(config, data, split=asked.split)  # raises before anything is predicted
        every.append(_Run(name, workdir, stage, config, data, chosen))
    first = every[0]
    for other in every[1:]:
        if other.source.fingerprint != first.source.fingerprint:
            seen = [f"{r.name} {len(r.source)} frames of {r.source.frame_size} px" for r in (first, other)]
            raise UserError(
                f"--runs: {first.name} and {other.name} do not see the same images of the split {asked.split} "
                f"({', '.join(seen)}); give runs of one data.frame_size and data.fit, and one --data_dir for all"
            )
    return every


def _found(where: str) -> tuple[epath.Path, Config, str]:
    """The folder, config and stage of a finished run. Raises UserError for any other."""
    try:
        workdir, config, stage = runs.find(where)
        checkpoint.check_final(workdir, stage)
    except UserError as error:
        raise UserError(f"--runs={where}: {error}") from error
    return workdir, config, stage


def _place(workdir: epath.Path) -> str:
    return str(workdir) if "://" in str(workdir) else os.path.realpath(workdir)


def _names(places: Sequence[tuple[str, str]]) -> list[str]:
    """Name runs, (folder, stage), by their folders: with as many folders above as tell them apart, then with the stage.

    >>> _names([("/a/x", "s"), ("/b/x", "s"), ("/b/y", "s"), ("/b/y", "t")])
    ['a/x', 'b/x', 'y:s', 'y:t']
    """
    folders, named = sorted({folder for folder, _ in places}), {}
    for folder in folders:
        parts = folder.strip("/").split("/")
        ends = ["/".join(parts[i:]) for i in reversed(range(len(parts)))]
        alone = (end for end in ends if sum(f"/{other}".endswith(f"/{end}") for other in folders) == 1)
        named[folder] = next(alone, folder)
    stages = Counter(folder for folder, _ in places)
    return [named[folder] + (f":{stage}" if stages[folder] > 1 else "") for folder, stage in places]


def _chosen(source: Source, yaw: np.ndarray | None, asked: Asked) -> tuple[np.ndarray, list[str]]:
    """The rows of the images of the sheets, and the values of `order_by` above them, or else the rows' numbers.

    Images without a value are left out. Raises UserError for an unknown column.
    """
    column = asked.order_by
    if not column:
        shown = spread(len(source), asked.images)
        return shown, [str(row) for row in shown]
    cells = [str(value).strip() for value in source.columns.get(column, ())]
    by_yaw = column == "yaw" and yaw is not None
    if not by_yaw and not any(cells):
        known = ", ".join(name for name, some in source.columns.items() if any(str(v).strip() for v in some))
        raise UserError(
            f"--order_by={column}: the {asked.split} csv has no column {column!r}; its columns are {known or 'none'}"
        )
    numbers = yaw if by_yaw else curves.numbers_of(cells)
    if numbers is None:
        rows = np.array(sorted((row for row, cell in enumerate(cells) if cell), key=lambda row: cells[row]))
    else:
        rows = np.argsort(numbers, kind="stable")
        rows = rows[np.isfinite(numbers[rows])]
    shown = rows[spread(len(rows), asked.images)]
    return shown, [f"{yaw[row]:.3g}" if by_yaw else cells[row] for row in shown]


# Numbers and pictures


def _measured(run: _Run, mesh, images, say, split: str) -> _Measured:
    """Load and measure a run, and let it make its own pictures of some images; the model is given back."""
    model = runs.load(f"{run.workdir}:{run.stage}", mesh).model
    predictor = Predictor(model.method, mesh, say=lambda text: say(f"{run.name}: {text}"))
    report = measure(run.config, predictor, model, run.data, split=split, chosen=run.chosen)
    return _Measured(run, report, int(model.state.step), predictor.pictures(model, images))


def _sheets(measured: Sequence[_Measured], images, shown, values: Sequence[str], order_by: str) -> dict[str, Any]:
    """The sheets of pictures by the names of their files."""
    rows = {}
    for run, report, _, _ in measured:
        name = f"{run.name}\n{run.stage}, K = {report.landmarks}"
        rows[name] = (report.xy[shown], report.score[shown])  # of all images, in order
    out = {"sheet.png": viz.compared_landmarks(images, rows, columns=values, corner=order_by or "image")}
    for kind in sorted({kind for one in measured for kind in one.pictures}):
        sheets = {one.run.name: one.pictures[kind] for one in measured if kind in one.pictures}
        if len(sheets) > 1:
            named = [f"{order_by or 'image'} {value}" for value in values]
            out[f"pictures_{kind}.png"] = viz.compared_pictures(sheets, named)
    return out


def _plots(measured: Sequence[_Measured], yaw: np.ndarray | None) -> dict[str, Any]:
    """The plots of errors by the names of their files; none without errors."""
    scored = [one for one in measured if one.report.errors]
    if not scored:
        return {}
    protocols = list(dict.fromkeys(one.report.errors.protocol for one in scored))
    apart = len(protocols) > 1
    title = "not comparable: protocols differ" if apart else protocols[0]
    label = lambda text, protocol: f"{text}, {protocol}" if apart else text
    forward, baselines, yaws = {}, {}, {}
    for one in scored:
        errors = one.report.errors
        name = label(f"{one.run.name} ({errors.forward_nme:.2f} %)", errors.protocol)
        forward[name] = curves.ced(errors.per_image.forward_nme, errors.ced_limit)
        baseline = label(f"mean shape ({errors.mean_shape_nme:.2f} %)", errors.protocol)
        baselines[baseline] = curves.ced(errors.per_image.mean_shape_nme, errors.ced_limit)
        if yaw is not None:
            yaws[name] = curves.group_by(vars(errors.per_image), yaw, YAW)
    out = {"ced.png": viz.ced_plot(forward, baselines=baselines, title=title)}
    return out | ({"yaw.png": viz.grouped_bars_plot(yaws, title=f"yaw, degrees; {title}")} if yaws else {})


# Tables


def _record(measured: Sequence[_Measured], asked: Asked, shown, pictures: list[str]) -> dict[str, Any]:
    """The contents of `comparison.json`."""
    rows = []
    for run, report, step, _ in measured:
        numbers = metrics(report)
        row = {"name": run.name, "run": str(run.workdir), "stage": run.stage, "step": step}
        row |= {key: numbers[key] for key in KEPT if key in numbers}
        rows.append(row | {"training_images": run.data.train.fingerprint})
    used = table.by_protocol((row["name"], row["protocol"]) for row in rows)
    source = measured[0].run.source
    return {
        "split": asked.split,
        "images": source.fingerprint,
        "n_images": len(source),
        "shown": [int(row) for row in shown],
        "order_by": asked.order_by or None,
        "errors_comparable": len(used) < 2,
        "notes": _notes(rows, used),
        "rows": rows,
        "files": pictures,
    }


def _notes(rows: Sequence[dict[str, Any]], used: dict[str, list[str]]) -> list[str]:
    """Say what may not be compared, and what was not measured, in sentences."""
    notes = []
    if len(used) > 1:
        notes.append(f"{table.not_comparable(used)} --protocol=NAME measures all runs by one of them.")
    if len({row["training_images"] for row in rows if row["protocol"]}) > 1:
        notes.append("The regressions of these errors were fitted on different training images.")
    for row in rows:
        if row.get("not_measured"):
            notes.append(f"The errors of {row['name']} were not measured, as {row['not_measured']}.")
    return notes


def _markdown(record: dict[str, Any]) -> str:
    lines = [["run", "stage", "step", "protocol", *COLUMNS.values()]]
    for row in record["rows"]:
        numbers = [row[key] for key in COLUMNS]
        told = ["" if v is None else f"{v:.2f}" if isinstance(v, float) else str(v) for v in numbers]
        protocol = f"`{row['protocol']}`" if row["protocol"] else ""
        lines.append([row["name"], row["stage"], str(row["step"]), protocol, *told])
    body = list(map(table.piped, lines))
    body.insert(1, "| --- | --- | ---: | --- |" + " ---: |" * len(COLUMNS))
    caption = (
        f"The same {record['n_images']} images of the split {record['split']} (`{record['images']}`); errors in "
        "percent of the normaliser, stability in pixels of an image of 128."
    )
    # Above the table, where nobody reads the numbers before.
    return "\n".join([*(f"**{note}**\n" for note in record["notes"]), *body, "", caption]) + "\n"


def _write(folder: epath.Path, record: dict[str, Any], markdown: str, pictures: dict[str, Any]) -> None:
    """Write the files, and remove the pictures of an earlier comparison."""
    if (folder / RECORD).exists():
        for name in workdir_lib.read_json(folder / RECORD).get("files", ()):
            (folder / os.path.basename(name)).unlink(missing_ok=True)
    workdir_lib.write_json(folder / RECORD, record)  # first, since it tells a later call what the folder is
    files.write(folder / "comparison.md", markdown)
    for name, picture in pictures.items():
        viz.save(picture, folder / name)
