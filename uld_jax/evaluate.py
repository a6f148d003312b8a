"""From a stage and a data set to numbers and pictures: what `uld evaluate` and the training loop share."""

import functools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from uld_jax import sharding, viz
from uld_jax.config import Config
from uld_jax.data import Source, make_reader, open_source
from uld_jax.errors import UserError
from uld_jax.evaluators import curves
from uld_jax.evaluators import landmark_regression as regression
from uld_jax.evaluators.correspondence import correspondence
from uld_jax.evaluators.report import metrics, write_report
from uld_jax.evaluators.stability import LandmarkWarning, landmark_health, stability
from uld_jax.method import Method, TrainState

SHEET = 40  # images on a contact sheet
PICTURED = 6  # images in a stage's own pictures


class Data(NamedTuple):
    """The two splits of a run and their readers; the readers carry no annotation."""

    train: Source
    test: Source | None
    train_reader: Any
    test_reader: Any


class Settings(NamedTuple):
    """Keys of `config.eval` that say what is measured; runs from before there were any have the defaults.

    Attributes:
      missing: what stands in for landmarks that were not found, see `landmark_regression`.
      min_found: share of images on which a landmark counts as found often.
      fit_images: most training images that the regressors are fitted on; 0 for all.
      match_radius: see `correspondence`.
    """

    missing: str = "mean"
    min_found: float = regression.MIN_FOUND
    fit_images: int = 0
    match_radius: float = 0.1

    @classmethod
    def of(cls, config: Config) -> "Settings":
        """Those of a config. Raises UserError for values that mean nothing."""
        values = cls(**{name: config.eval[name] for name in cls._fields if name in config.eval})
        regression.check_missing(values.missing)
        if not 0 < values.min_found <= 1:
            raise UserError(f"eval.min_found is {values.min_found}; use a share above 0, and 1 at most")
        if values.fit_images < 0:
            raise UserError(f"eval.fit_images is {values.fit_images}; use 1 or more images, or 0 for all")
        if not values.match_radius > 0:
            raise UserError(f"eval.match_radius is {values.match_radius}; use a positive share of the normaliser")
        return values


def open_split(config: Config, split: str, dataset: str | None = None, data_dir: str | None = None) -> Source:
    """The images of one split as the config says. Raises UserError for data that cannot be used."""
    name, options = dataset or config.dataset, {}
    if name == "synthetic":
        options = {"rows": dict(zip(("train", "test"), config.data.rows, strict=True)).get(split)}
    return open_source(
        name,
        split,
        data_dir=config.data_dir if data_dir is None else data_dir,
        frame_size=config.data.frame_size,
        fit=config.data.fit,
        normaliser=config.data.normaliser,
        sides=config.data.get("sides", "auto"),  # runs from before have no such key
        **options,
    )


def open_data(config: Config, mesh) -> Data:
    """Both splits, checked, and their readers."""
    Settings.of(config)  # before a long training, and not at its first evaluation
    train = open_split(config, "train")
    # Images alone have no splits: every name would give all of them.
    test = open_split(config, "test") if "test" in train.spec.splits else None
    reader = functools.partial(make_reader, mesh=mesh, kind=config.data.reader, workers=config.data.workers)
    return Data(
        train,
        test,
        reader(train, batch_size=config.batch_size, partner=config.data.partner),
        None if test is None else reader(test, batch_size=eval_batch(config, mesh)),
    )


def eval_batch(config: Config, mesh) -> int:
    """A multiple of the devices near `eval.batch_size`: evaluation may pad, so nobody needs to choose it."""
    return -(-config.eval.batch_size // mesh.size) * mesh.size


class Predictor:
    """A stage's `predict`, compiled once, on batches that are split over the devices.

    Landmarks that the stage does not use (`Method.landmarks`) are left out of all it gives.
    """

    def __init__(self, method: Method, mesh):
        self._mesh, self.devices = mesh, mesh.size

        def rows(state, frozen, store, payload, reader):
            batch = reader.fetch(store, payload)
            found = method.predict(state, frozen, batch["image"])
            return found.xy, found.score, batch["index"]

        def images(state, frozen, batch):
            found = method.predict(state, frozen, batch)
            return found.xy, found.score

        self._predict, self._landmarks = method.predict, jax.jit(method.landmarks)
        self._rows = jax.jit(rows, static_argnums=4)
        self._images = jax.jit(images)
        self._heatmaps = jax.jit(method.heatmaps)
        self._pictures = jax.jit(method.pictures)

    def used(self, state) -> np.ndarray | None:
        """Which slots of a prediction are landmarks in use, [K] bool; None for all of them.

        A stage that uses none has no point either: then all its slots are given, empty.
        """
        used = self._landmarks(state)
        used = None if used is None else np.asarray(sharding.to_host(used), bool)
        return used if used is not None and used.any() else None

    def count(self, state, frozen, side: int) -> int:
        """How many landmarks it gives for images of [side,side,3]. Only shapes are computed."""
        used = self.used(state)
        if used is not None:
            return int(used.sum())
        images = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
        return jax.eval_shape(self._predict, state, frozen, images).xy.shape[1]

    def _in_use(self, state, *arrays) -> tuple[np.ndarray, ...]:
        """Arrays [N,K,...] without the landmarks that are not in use."""
        used = self.used(state)
        return arrays if used is None else tuple(a[:, used] for a in arrays)

    def read(self, state, frozen, reader, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Landmarks of every row, or of increasing `rows`: xy [N,K,2] in pixels of the frame, score [N,K]."""
        parts = [
            sharding.to_host(self._rows(state, frozen, reader.store, payload, reader))
            for payload in reader.ordered(rows=rows)
        ]
        xy, score, index = (np.concatenate(p) for p in zip(*parts, strict=True))
        order = np.argsort(index, kind="stable")[: reader.rows if rows is None else len(rows)]
        return self._in_use(state, xy[order], score[order])

    def heatmaps(self, state, frozen, images) -> tuple[np.ndarray, np.ndarray] | None:
        """What the network sees of [B,F,F,3] uint8 host images, and its maps [B,h,w,K]; None if the stage has none."""
        local = images[sharding.local_slice(self._mesh, len(images))]
        found = self._heatmaps(state, frozen, sharding.put_batch(self._mesh, local))
        if found is None:
            return None
        seen, maps = sharding.to_host(found)
        used = self.used(state)
        # The maps may be of something else: a map of all keypoints, say, has a single channel.
        return seen, maps if used is None or maps.shape[-1] != len(used) else maps[..., used]

    def pictures(self, state, frozen, images) -> dict[str, np.ndarray]:
        """The stage's own pictures of [B,F,F,3] uint8 host images, see `Method.pictures`."""
        local = images[sharding.local_slice(self._mesh, len(images))]
        return sharding.to_host(self._pictures(state, frozen, sharding.put_batch(self._mesh, local)))

    def images(self, state, frozen, images) -> tuple[np.ndarray, np.ndarray]:
        """Landmarks of [B,F,F,3] uint8 host images, the same on every process. Each new B compiles anew."""
        n = len(images)
        whole = -(-n // self._mesh.size) * self._mesh.size
        padded = np.concatenate([images, np.repeat(images[-1:], whole - n, 0)])
        local = padded[sharding.local_slice(self._mesh, whole)]
        xy, score = sharding.to_host(self._images(state, frozen, sharding.put_batch(self._mesh, local)))
        return self._in_use(state, xy[:n], score[:n])


def measure(
    config: Config,
    predictor: Predictor,
    state: TrainState,
    frozen,
    data: Data,
    *,
    group_by: str | None = None,
    label_counts: Sequence[Any] = (),
    thorough: bool = True,
) -> dict[str, Any]:
    """All that can be measured; the arrays `found` and `score` of the test images, and their `rows`, ride along.

    Keypoints that are missing on some images of an annotated split are also compared with its points, see
    `evaluators/correspondence.py`.

    Args:
      config: of the run.
      predictor: of the stage.
      state, frozen: of the stage.
      data: both splits; without annotation only stability is measured.
      group_by: `COLUMN` or `COLUMN:edge,edge,...` of the test csv.
      label_counts: numbers of labelled images to fit with, see `landmark_regression.label_counts`.
      thorough: all training images, and not only `eval.train_images` of them (never more than `eval.fit_images` to
        fit on); also stability, which predicts some images twice more.

    Raises:
      UserError: an unknown column, or splits that do not fit together.
    """
    settings = Settings.of(config)
    most = 0 if thorough else config.eval.train_images
    train_rows = spread(len(data.train), most)
    if data.test is None:
        test, reader, rows = data.train, data.train_reader, train_rows
    else:
        test, reader, rows = data.test, data.test_reader, np.arange(len(data.test))
    xy, score = predictor.read(state, frozen, reader, rows)
    result: dict[str, Any] = {}
    normaliser = test.spec.eyes or test.spec.normaliser
    if test.landmarks is not None and data.train.landmarks is not None and test is not data.train:
        train_rows = spread(len(data.train), min(filter(None, (most, settings.fit_images)), default=0))
        found = (*predictor.read(state, frozen, data.train_reader, train_rows), data.train, train_rows)
        sets = [_landmark_set(*found), _landmark_set(xy, score, test, rows)]
        options = {"strength": config.eval.ridge, "missing": settings.missing}
        options |= {"normaliser": normaliser, "image_side": test.frame_size}
        result = regression.evaluate(*sets, protocol=test.spec.protocol, min_found=settings.min_found, **options)
        if not group_by and "yaw" in test.columns:
            group_by = "yaw:0,30,60,90"
        if group_by:
            column, _, edges = group_by.partition(":")
            if column not in test.columns:
                known = ", ".join(test.columns) or "none"
                raise UserError(
                    f"--group_by={group_by}: the test csv has no column {column!r}; its columns are {known}"
                )
            edges = [_number(e, "--group_by") for e in edges.split(",")] if edges else None
            result["groups"] = {column: curves.group_by(result["per_image"], test.columns[column], edges)}
        if label_counts:
            result["label_counts"] = regression.label_counts(*sets, counts=label_counts, seed=config.seed, **options)
    if test.landmarks is not None and not (score > 0).all():
        truth = test.landmarks[rows]
        lengths = regression.normaliser_lengths(truth, normaliser, test.frame_size)
        visible = None if test.visible is None else test.visible[rows]
        result |= correspondence(xy, score, truth, lengths, radius=settings.match_radius, visible=visible)
    if thorough:
        predict = functools.partial(predictor.images, state, frozen)
        count = min(config.eval.stability_images, len(test))
        images = test.images(np.linspace(0, len(test) - 1, count).astype(int))
        found = stability(predict, images, seed=config.seed, batch_size=min(config.eval.batch_size, count))
        result |= {"stability_px": found.px, "stability_counted": int(found.counted.sum())}
    return result | {"found": xy, "score": score, "rows": rows}


def spread(rows: int, most: int) -> np.ndarray:
    """At most `most` row numbers, evenly spread over all; 0 for all of them.

    >>> spread(9, 3).tolist(), spread(3, 0).tolist()
    ([0, 4, 8], [0, 1, 2])
    """
    return np.unique(np.linspace(0, rows - 1, min(most, rows) or rows).astype(int))


def _landmark_set(xy, score, source: Source, rows) -> regression.LandmarkSet:
    """What was found on some rows of a source, and what is annotated there."""
    visible = None if source.visible is None else source.visible[rows]
    columns = {name: [values[i] for i in rows] for name, values in source.columns.items()}
    return regression.LandmarkSet(xy, score, source.landmarks[rows], visible, columns)


def in_training(config, workdir, stage, step, predictor, state, frozen, data: Data, last: bool) -> dict[str, Any]:
    """The evaluation of the loop: numbers, a contact sheet, and when the stage is done its report.

    Returns the numbers as in `metrics.json`.
    """
    result = measure(
        config, predictor, state, frozen, data, thorough=last, label_counts=config.eval.label_counts if last else ()
    )
    source = data.train if data.test is None else data.test
    result |= {"split": "train" if data.test is None else "test", "stage": stage}
    with warnings.catch_warnings():
        warnings.simplefilter("always", LandmarkWarning)
        landmark_health(result["found"], result["score"], source.frame_size)
    shown = predictor.heatmaps(state, frozen, source.images([0] * predictor.devices))
    count = -(-PICTURED // predictor.devices) * predictor.devices
    pictures = predictor.pictures(state, frozen, source.images(np.linspace(0, len(source) - 1, count).astype(int)))
    if jax.process_index() == 0:
        workdir = epath.Path(workdir)
        for name, sheet in pictures.items():
            viz.save(viz.picture_grid(sheet[:PICTURED]), workdir / "pictures" / f"{step:08d}_{stage}_{name}.png")
            if last:
                _film(workdir / "pictures", f"_{stage}_{name}.png")
        sheet = contact_sheet(source, result)
        viz.save(sheet, workdir / "pictures" / f"{step:08d}_{stage}.png")
        if shown is not None:
            panel = viz.heatmap_panel(shown[0][0], shown[1][0])
            viz.save(panel, workdir / "pictures" / f"{step:08d}_{stage}_heatmaps.png")
        if last:
            folder = workdir / "eval" / result["split"]
            write_report(result, folder / stage)
            if stage == config.stages[-1]:
                write_report(result, folder)
                viz.save(sheet, workdir / "contact_sheet.png")
    return metrics(result)


def _film(folder: epath.Path, ending: str) -> None:
    """How a stage's pictures of one photo change with the steps: the first row of each, under one another."""
    shots = sorted(p for p in folder.iterdir() if p.name.endswith(ending) and p.name[:8].isdigit())
    viz.save(viz.film({str(int(p.name[:8])): viz.load(p) for p in shots}), folder / f"over_steps{ending}")


def contact_sheet(source: Source, result: dict[str, Any], count: int = SHEET):
    """Images spread evenly over those of a source that `measure` saw, with their landmarks."""
    shown = spread(len(result["rows"]), count)
    return viz.contact_sheet(source.images(result["rows"][shown]), result["found"][shown], result["score"][shown])


def summary(report: dict[str, Any]) -> str:
    """A result in one line."""
    if report.get("forward_nme") is None:
        stable = report.get("stability_px")
        return "" if stable is None else f"no annotated test split to measure on; stability {stable:.2f} px at 128"
    backward = "-" if report["backward_nme"] is None else f"{report['backward_nme']:.2f} %"  # nothing was found
    text = (
        f"forward NME {report['forward_nme']:.2f} %, backward {backward} "
        f"(mean shape {report['mean_shape_nme']:.2f} %; {report['protocol']}, {report['n_test']} images)"
    )
    stable = report.get("stability_px")
    return text if stable is None else f"{text}, stability {stable:.2f} px at 128"


def _number(text: str, field: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{field}: {text!r} is not a number") from error


def evaluate_run(
    finished, mesh, *, split: str, dataset: str, data_dir: str, group_by: str, label_counts: Sequence[Any]
) -> tuple[dict[str, Any], epath.Path]:
    """`uld evaluate`: measures a finished stage on a split and writes the report into its run's folder.

    Returns the numbers as in `metrics.json`, and the folder that they are in.
    """
    config = finished.config
    name, where = dataset or config.dataset, data_dir or (config.data_dir if not dataset else "")
    train = open_split(config, "train", name, where)
    # Images alone, or a train split alone: then there is stability to measure and nothing else.
    alone = split == "test" and train.spec.splits == ("train",)
    test = None if alone else open_split(config, split, name, where)
    reader = functools.partial(make_reader, mesh=mesh, batch_size=eval_batch(config, mesh), kind="stream")
    data = Data(train, test, reader(train), None if test is None else reader(test))
    predictor = Predictor(finished.method, mesh)
    result = measure(
        config,
        predictor,
        finished.state,
        finished.frozen,
        data,
        group_by=group_by,
        label_counts=label_counts,
    )
    result |= {"split": split, "stage": finished.stage}
    # Numbers on other data do not replace those of the run's own.
    other = "_".join(filter(None, (dataset, epath.Path(data_dir).name if data_dir else "")))
    folder = finished.workdir / "eval" / (f"{other}_{split}" if other else split)
    if finished.stage != config.stages[-1]:
        folder = folder / finished.stage
    if jax.process_index() == 0:
        write_report(result, folder)
        viz.save(contact_sheet(train if test is None else test, result), folder / "contact_sheet.png")
    return metrics(result), folder
