"""Evaluations and their files in a run's folder: those of the training loop, and `uld evaluate` of a finished run."""

import dataclasses
import functools
import types
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from uld_jax import config as config_lib
from uld_jax import viz
from uld_jax.config import Config
from uld_jax.data import make_reader
from uld_jax.data.open import MEASURED_BY, Data, check_label_counts, eval_batch, open_split
from uld_jax.errors import UserError
from uld_jax.evaluation.chosen import check, choose
from uld_jax.evaluation.measure import measure
from uld_jax.evaluation.pictures import contact_sheet, film_over_steps, pose_sheet
from uld_jax.evaluation.predictor import Predictor
from uld_jax.evaluation.protocol import Protocol
from uld_jax.evaluation.protocols import fill
from uld_jax.evaluation.report import metrics, write_report
from uld_jax.evaluation.stability import LandmarkWarning, landmark_health

PICTURED = 6  # images in a stage's own pictures


def evaluate_run(
    finished,
    mesh,
    *,
    split: str,
    dataset: str,
    data_dir: str,
    group_by: str,
    label_counts: Sequence[Any],
    protocol: str = "",
    settings: Mapping[str, Any] = types.MappingProxyType({}),
    reading: Mapping[str, Any] = types.MappingProxyType({}),
    overrides: Sequence[str] = (),
) -> tuple[dict[str, Any], epath.Path]:
    """Measure a finished stage on a split and write the report into its run's folder (`uld evaluate`).

    `protocol`, the name of a paper's protocol or an id (`evaluation/protocols.py`), and then `settings` replace keys of
    the run's `config.eval`, and `reading` replaces keys of `config.data`; `overrides`, `KEY=VALUE` of `eval` and of
    `MEASURED_BY`, are applied last. Raises UserError for other keys, and for an id that does not fit the data.

    Returns the numbers as in `metrics.json`, and the folder with the files.
    """
    config = under(finished.config, protocol)
    for key, value in reading.items():
        config.data[key] = value
    give(config, settings, overrides)
    data = open_splits(config, mesh, split, dataset, data_dir)
    chosen = choose(config, data, split=split)  # raises before anything is predicted
    check_label_counts(label_counts, data.train, chosen.protocol.pool_images, "--label_counts")
    predictor = Predictor(finished.model.method, mesh)
    report = measure(
        config,
        predictor,
        finished.model,
        data,
        group_by=group_by,
        label_counts=label_counts,
        split=split,
        chosen=chosen,
    )
    report = dataclasses.replace(report, split=split, stage=finished.stage)
    folder = report_folder(finished.workdir, split, dataset, data_dir)
    if finished.stage != config.stages[-1]:
        folder = folder / finished.stage
    if jax.process_index() == 0:
        write_report(report, folder)
        viz.save(contact_sheet(data.measured, report), folder / "contact_sheet.png")
        if (posed := pose_sheet(data.measured, report)) is not None:
            viz.save(posed, folder / "pose_clusters.png")
    return metrics(report), folder


def under(config: Config, protocol: str) -> Config:
    """Copy a run's config, unlocked; a paper's protocol or an id replaces the run's own, unless the name is empty.

    Raises UserError for an unknown name.
    """
    config = config.copy_and_resolve_references().unlock()
    if protocol:
        fill(config, protocol, "--protocol")
    return config


def open_splits(config: Config, mesh, split: str, dataset: str = "", data_dir: str = "") -> Data:
    """Open the training images and the split to measure on, of a run's own data or of others, with their readers.

    With images alone, or a train split alone, there is no test split, and only stability can be measured.
    """
    name, where = measured_data(config, dataset, data_dir)
    train = open_split(config, "train", name, where)
    alone = split == "test" and train.spec.splits == ("train",)
    test = None if alone else open_split(config, split, name, where)
    reader = functools.partial(make_reader, mesh=mesh, batch_size=eval_batch(config, mesh), kind="stream")
    return Data(train, test, reader(train), None if test is None else reader(test))


def measured_data(config: Config, dataset: str, data_dir: str) -> tuple[str, str]:
    """Name and folder of the data to measure on: those given, or the run's. Raises UserError for a useless folder."""
    if (dataset or config.dataset) == "synthetic" and data_dir:
        raise UserError(
            f"--data_dir={data_dir} is not read by the data set synthetic, which is rendered; add --dataset=folder"
        )
    return dataset or config.dataset, data_dir or (config.data_dir if not dataset else "")


def check_alone(command: str) -> None:
    """Raise UserError in one of several processes, for a command that measures in one."""
    if jax.process_count() > 1:
        raise UserError(f"uld {command} measures in one process; start it on one machine, without --coordinator")


def report_folder(workdir: epath.Path, split: str, dataset: str, data_dir: str) -> epath.Path:
    """Folder for numbers on a split; those on other data do not replace those on the run's own data."""
    other = "_".join(filter(None, (dataset, epath.Path(data_dir).name if data_dir else "")))
    return workdir / "eval" / (f"{other}_{split}" if other else split)


def in_training(config, workdir, stage, step, predictor, model, data: Data, last: bool) -> dict[str, Any]:
    """Evaluate in the training loop: numbers, a contact sheet, and at the end of the stage its report.

    Returns the numbers as in `metrics.json`.
    """
    report = measure(
        config, predictor, model, data, thorough=last, label_counts=config.eval.label_counts if last else ()
    )
    source = data.measured
    report = dataclasses.replace(report, split="train" if data.test is None else "test", stage=stage)
    with warnings.catch_warnings():
        warnings.simplefilter("always", LandmarkWarning)
        landmark_health(report.xy, report.score, source.frame_size)
    shown = predictor.heatmaps(model, source.images([0] * predictor.devices))
    count = -(-PICTURED // predictor.devices) * predictor.devices
    pictures = predictor.pictures(model, source.images(np.linspace(0, len(source) - 1, count).astype(int)))
    if jax.process_index() == 0:
        workdir = epath.Path(workdir)
        for name, sheet in pictures.items():
            viz.save(viz.picture_grid(sheet[:PICTURED]), workdir / "pictures" / f"{step:08d}_{stage}_{name}.png")
            if last:
                film_over_steps(workdir / "pictures", f"_{stage}_{name}.png")
        sheet, posed = contact_sheet(source, report), pose_sheet(source, report)
        viz.save(sheet, workdir / "pictures" / f"{step:08d}_{stage}.png")
        if posed is not None:
            viz.save(posed, workdir / "pictures" / f"{step:08d}_{stage}_pose_clusters.png")
        if shown is not None:
            panel = viz.heatmap_panel(shown[0][0], shown[1][0])
            viz.save(panel, workdir / "pictures" / f"{step:08d}_{stage}_heatmaps.png")
        if last:
            folder = workdir / "eval" / report.split
            for where in (folder / stage, folder) if stage == config.stages[-1] else (folder / stage,):
                write_report(report, where)
                if posed is not None:
                    viz.save(posed, where / "pose_clusters.png")
            if stage == config.stages[-1]:
                viz.save(sheet, workdir / "contact_sheet.png")
    return metrics(report)


def give(config: Config, settings: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Set the keys that a user gives on the command line, keep their names in `eval.given`, and check the protocol.

    Args:
      config: unlocked config of the run.
      settings: keys of `eval` and their values.
      overrides: `KEY=VALUE` of `eval` and of `MEASURED_BY`, applied last.

    Raises:
      UserError: another key, an unknown protocol, or meaningless values.
    """
    config.eval.update(settings)
    _override(config, overrides)
    keys = (change.partition("=")[0] for change in overrides)
    with config.unlocked():  # an override has locked it
        config.eval.given = (*settings, *(key.removeprefix("eval.") for key in keys if key.startswith("eval.")))
    check(config)


def _override(config: Config, changes: Sequence[str]) -> None:
    """Set keys that define the measurement, `KEY=VALUE`; all others are those that the run was trained with.

    Raises UserError for other keys.
    """
    for change in changes:
        if not change.startswith(("eval.", *(f"data.{key}=" for key in MEASURED_BY))):
            known = ", ".join(f"--config.data.{key}" for key in MEASURED_BY)
            raise UserError(
                f"--config.{change}: a run keeps its config; evaluation can change --config.eval.KEY, {known}"
            )
    if changes:  # older runs lack some of the keys
        config.eval.update({k: type(Protocol._field_defaults[k])(v) for k, v in Protocol.of(config)._asdict().items()})
        config.eval.update({key: config.eval.get(key, "") for key in ("protocol", "paper")})
        config.data.update({key: config.data.get(key, default) for key, default in MEASURED_BY.items()})
        config_lib.override(config, changes)
