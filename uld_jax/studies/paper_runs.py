"""Finished runs below a folder, with the numbers of their evaluations, grouped by what differs beside the seed."""

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from uld_jax.engine import workdir as workdir_lib
from uld_jax.evaluation.curves import ced_over_landmarks
from uld_jax.studies import runner
from uld_jax.studies.grid import SEED

LABELS, CED = "labelled images", "landmarks"  # kinds of curves, by their x axis
EPOCHS, EPOCH = (65, 110), 2500  # epochs whose clusters CGB measures (table 5), and their steps (published code)
_SPLIT = "test"
_ERRORS, _SEPARATION = ("forward_nme", "backward_nme"), ("silhouette", "calinski_harabasz")
_MOST_KEYS = 4  # keys that a name lists


class Number(NamedTuple):
    """One number of an evaluation.

    Attributes:
      stage: stage of the run.
      on: folder of the evaluation below `eval`: `test` for the run's own data; or `training`.
      measure: what the number is, a key of `paper_rows.MEASURES`.
      landmarks: K, number of discovered landmarks; None for a measure that does not depend on them.
      protocol: id of the number.
      part: which of several numbers of the measure it is, such as `5 labels`; empty for a single one.
      value: the number.
    """

    stage: str
    on: str
    measure: str
    landmarks: int | None
    protocol: str
    part: str
    value: float | None


class Curve(NamedTuple):
    """One curve of an evaluation.

    Attributes:
      stage, on, landmarks, protocol: as for `Number`.
      measure: what is along the y axis, `forward` or `backward`, or `regression`.
      kind: what is along the x axis, `LABELS` or `CED`.
      points: (x, y) in increasing order of x.
    """

    stage: str
    on: str
    measure: str
    landmarks: int | None
    protocol: str
    kind: str
    points: Sequence[tuple[float, float]]


class Run(NamedTuple):
    """A finished run.

    Attributes:
      name: its folder, relative to the folder that was searched.
      config: its config, as in config.json.
      seed: its seed.
      recipe: what makes the experiment beside the seed: the config (`workdir.recipe`), the images and the run it
        started from.
      numbers: numbers of all its evaluations on the test split and of its training, each once.
      curves: curves of these evaluations.
    """

    name: str
    config: dict[str, Any]
    seed: int
    recipe: dict[str, Any]
    numbers: list[Number]
    curves: list[Curve]


class LeftOut(NamedTuple):
    """A run without a place in the table: its name, and the reason as the end of a sentence."""

    name: str
    why: str


def find(root, wanted: Callable[[dict[str, Any]], str]) -> tuple[list[Run], list[LeftOut]]:
    """Find the finished runs below a folder, at any depth, or the folder's own.

    Args:
      root: the folder, local or gs://.
      wanted: function of a config that returns the reason why its run is left out, or an empty text.
    """
    root, every, left = epath.Path(root), [], []
    for folder in _folders(root):
        name = str(folder)[len(str(root)) :].strip("/") or folder.name
        config = workdir_lib.read_json(folder / "config.json")
        if why := wanted(config) or _unfinished(folder, config):
            left.append(LeftOut(name, why))
            continue
        recorded = workdir_lib.read_json(folder / "run.json")
        numbers, curves = _measured(folder, config)
        run = Run(name, config, config[SEED], _recipe(config, recorded), numbers, curves)
        if not numbers:
            left.append(LeftOut(name, f"has no errors of the split {_SPLIT}; measure it by `uld evaluate`"))
        elif twin := [one for one in every if (one.recipe, one.seed) == (run.recipe, run.seed)]:
            left.append(LeftOut(name, f"has the config and the seed of {twin[0].name}"))
        else:
            every.append(run)
    return every, left


def groups(every: Sequence[Run]) -> list[list[Run]]:
    """Group the runs that differ only in their seed, in the order of their seeds."""
    out: list[list[Run]] = []
    for run in every:
        same = next((group for group in out if group[0].recipe == run.recipe), None)
        out.append([run]) if same is None else same.append(run)
    return [sorted(group, key=lambda run: run.seed) for group in out]


def names(found: Sequence[Sequence[Run]]) -> list[str]:
    """Name groups by the keys that differ between them, or by what the names of a group's runs share if many keys do.

    A single group is named by its runs, too.
    """
    keys = sorted({key for group in found for key in group[0].recipe})
    apart = [key for key in keys if len({repr(group[0].recipe.get(key)) for group in found}) > 1]
    if not apart or len(apart) > _MOST_KEYS or "init_from" in apart:
        every = [[run.name for run in group] for group in found]
        shared = [_shared(group) for group in every]
        return [one if shared.count(one) == 1 else _joined(group) for one, group in zip(shared, every, strict=True)]
    return [", ".join(f"{key}={group[0].recipe.get(key, 'absent')}" for key in apart) for group in found]


def _shared(runs: Sequence[str]) -> str:
    """Return what the names of runs begin with, without the number that tells them apart; all names if nothing.

    >>> _shared(["k10/0", "k10/1"]), _shared(["imm_10", "imm_11"]), _shared(["0", "1"]), _shared(["a/0"])
    ('k10', 'imm', '0 and 1', 'a/0')
    """
    if len(runs) == 1:
        return runs[0]
    start = os.path.commonprefix(list(runs))  # noqa: RUF071 (characters are meant)
    if any(run[len(start) :][:1].isdecimal() for run in runs):
        start = start.rstrip("0123456789")
    return start.rstrip("/_-. ") or _joined(runs)


def _joined(runs: Sequence[str]) -> str:
    """Name one run or two, or the first and the number of the others."""
    return " and ".join(runs) if len(runs) < 3 else f"{runs[0]} and {len(runs) - 1} more"


# What a run's folder holds


def _folders(root: epath.Path) -> Iterator[epath.Path]:
    """The folders of runs, those with a run.json, in order; runs inside a run are not looked for."""
    if (root / "run.json").exists():
        yield root
        return
    for folder in sorted(root.iterdir()):
        if folder.is_dir():
            yield from _folders(folder)


def _unfinished(folder: epath.Path, config: dict[str, Any]) -> str:
    """The reason why a run is not finished, as the end of a sentence; empty if it is."""
    last = (runner.lines(folder) or [{}])[-1]
    steps = sum(config[stage]["steps"] for stage in config["stages"])
    if last.get("done") and last["step"] == steps:
        return ""
    return f"is not finished, at step {last.get('step', 0)} of {steps}"


def _recipe(config: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """What makes an experiment beside the seed; also of the run that it started from, whose folder does not matter."""
    recipe = {key: value for key, value in workdir_lib.recipe(config).items() if key not in (SEED, "init_from")}
    recipe["images"] = recorded["data_fingerprint"]
    if origin := recorded.get("init_from"):
        start = {"data_fingerprint": origin["rows"], "init_from": origin.get("init_from")}  # its record has no images
        recipe["init_from"] = {"stage": origin["stage"]} | _recipe(origin["config"], start)
    return recipe


def _measured(folder: epath.Path, config: dict[str, Any]) -> tuple[list[Number], list[Curve]]:
    """The numbers and curves of all evaluations of a run on the test split."""
    numbers, curves = [], []
    evaluated = folder / "eval"
    for at in sorted(evaluated.iterdir()) if evaluated.exists() else ():
        # The file above is the latest evaluation of the last stage, and so stands before that of the training loop.
        for where in (at, *(at / stage for stage in config["stages"])):
            if (where / "metrics.json").exists():
                report = workdir_lib.read_json(where / "metrics.json")
                if report.get("split") == _SPLIT:
                    numbers += _landmarks(report, at.name)
                    curves += _curves(report, where, at.name) if report.get("protocol") else []
        for stage in config["stages"]:
            if (path := at / "dense" / stage / "metrics.json").exists():
                report = workdir_lib.read_json(path)
                if report["split"] == _SPLIT:
                    numbers += _dense(report, at.name)
                    curves += _dense_curves(report, at.name)
            pairs = at / "align" / stage
            for path in sorted(pairs.glob("*.json")) if pairs.exists() else ():
                report = workdir_lib.read_json(path)
                if report["split"] == _SPLIT:
                    numbers += _aligned(report, stage, at.name)
    for stage in config["stages"]:
        numbers += [number for path in _clusters(folder, stage) for number in _separated(path)]
    numbers += _rounds(folder, config)
    numbers = [number for number in numbers if number.value is not None]
    return list({number[:6]: number for number in reversed(numbers)}.values())[::-1], _first(curves)


def _first(curves: Sequence[Curve]) -> list[Curve]:
    """The first curve of each stage, measure, protocol and kind."""
    return list({curve[:6]: curve for curve in reversed(curves) if curve.points}.values())[::-1]


def _landmarks(report: dict[str, Any], on: str) -> list[Number]:
    """The numbers of a report of `uld evaluate` or of the training loop: errors, stability and agreement."""
    given, out = (report["stage"], on), []
    for each in (report, report.get("often_found") or {}):  # an id is of all landmarks, or of those found often
        if each.get("protocol"):
            out += [
                Number(*given, name, each.get("landmarks"), each["protocol"], "", each.get(name)) for name in _ERRORS
            ]
    if report.get("protocol"):
        out.append(Number(*given, "nmi", None, report["protocol"], "", report.get("nmi")))
        of_all = report.get("landmarks"), report["protocol"]
        for group in (report.get("groups") or {}).get("yaw") or ():
            for name in _ERRORS:
                measure = name.replace("nme", "yaw")
                out.append(Number(*given, measure, *of_all, group["group"], group[name]))
    if report.get("stability_protocol"):
        place = report.get("landmarks"), report["stability_protocol"]
        out.append(Number(*given, "stability", *place, "", report.get("stability_px")))
    return out


def _aligned(report: dict[str, Any], stage: str, on: str) -> list[Number]:
    """The numbers of a report of `uld align`: of all pairs, of those that are not in training, and of categories."""
    given, of_all = (stage, on), report["all"]
    out = [Number(*given, "pck", None, part["id"], "", part["pck"]) for part in (of_all, report["leak_free"])]
    categories = (report.get("categories") or {}).items()
    return out + [Number(*given, "pck_category", None, of_all["id"], name, each["pck"]) for name, each in categories]


def _clusters(folder: epath.Path, stage: str) -> list[epath.Path]:
    """The reports of `uld clusters` of a stage."""
    every = sorted((folder / "clusters").iterdir()) if (folder / "clusters").exists() else ()
    return [path for at in every if (path := at / stage / "clusters.json").exists()]


def _separated(path: epath.Path) -> list[Number]:
    """The numbers of a report of `uld clusters` on the test split."""
    report, on = workdir_lib.read_json(path), path.parent.parent.name
    if report["split"] != _SPLIT:
        return []
    named = [each for each in report["clusterings"] if each.get("protocol")]  # earlier versions wrote no id
    return [
        Number(report["stage"], on, name, None, each["protocol"], "", each[name])
        for each in named
        for name in _SEPARATION
    ]


def _rounds(folder: epath.Path, config: dict[str, Any]) -> list[Number]:
    """The separation of the clusters that CGB's training has made at `EPOCHS`, from its metrics.jsonl.

    A line tells the clusters of its step; those that an epoch ends with are in the first line after it.
    """
    lines, out = [line for line in runner.lines(folder) if "silhouette" in line], []
    for epoch in EPOCHS:
        line = next((line for line in lines if line["step"] > epoch * EPOCH), None)
        if line is None or line["step"] > (epoch + 5) * EPOCH:  # clusters are made anew every five epochs
            continue
        section = config[line["stage"]]
        steps = min(section["ring_size"], section["round_every"] // section["ring_every"])  # kept since the last round
        rows = steps * (section["batch_size"] or config["batch_size"]) * config["k"]
        protocol = f"{config['dataset']}+rounds_{rows}"
        if section["labels_from"] != "ring":
            protocol += f"+labels_from={section['labels_from']}"
        place = line["stage"], "training"
        out += [Number(*place, name, None, protocol, f"epoch {epoch}", line.get(name)) for name in _SEPARATION]
    return out


def _curves(report: dict[str, Any], where: epath.Path, on: str) -> list[Curve]:
    """The error over the number of labelled images, and both errors over the number of landmarks."""
    given = (report["stage"], on), (report.get("landmarks"), report["protocol"])
    few = [(row["n"], row["forward_nme"]) for row in report.get("label_counts") or () if row["forward_nme"] is not None]
    out = [Curve(*given[0], "forward", *given[1], LABELS, few)]
    path = where / "per_landmark.csv"
    rows = list(csv.DictReader(io.StringIO(path.read_text()))) if path.exists() else []
    for kind, measure in (("annotated", "forward"), ("discovered", "backward")):
        errors = [float(row["nme"] or np.nan) for row in rows if row["kind"] == kind]
        points = [(float(n), float(error)) for n, error in zip(*ced_over_landmarks(errors), strict=True)]
        out.append(Curve(*given[0], measure, *given[1], CED, points))
    return out


def _dense(report: dict[str, Any], on: str) -> list[Number]:
    """The numbers of a report of `uld dense`: matching, and regression with all labels and with a few."""
    given, out = (report["stage"], on), []
    if matched := report.get("matching"):
        for name in ("same", "different"):
            pixels = matched[name]["canonical_px"]
            out.append(Number(*given, f"matching_{name}", None, matched["protocol"], "", pixels))
    for row in report.get("regression") or ():
        few = "" if row["all"] else f"{row['labels']} label{'s' * (row['labels'] > 1)}"
        measure = "regression_few" if few else "regression"
        out.append(Number(*given, measure, None, row["protocol"], few, row["error"]))
    return out


def _dense_curves(report: dict[str, Any], on: str) -> list[Curve]:
    """The error of `uld dense` over the number of labelled images; its id is that of the numbers without the epochs.

    The regressors of all and of few labels are trained for other numbers of epochs, as the protocol has it. What else
    departs from it in either is in the id.
    """
    rows = [row for row in report.get("regression") or () if row["error"] is not None]
    if not rows:
        return []
    protocol = max((re.sub(r"regression_\d+_epochs.*", "regression", row["protocol"]) for row in rows), key=len)
    points = sorted((row["labels"], row["error"]) for row in rows)
    return [Curve(report["stage"], on, "regression", None, protocol, LABELS, points)]
