"""From a stage and a data set to numbers and pictures: what `uld evaluate` and the training loop share."""

import functools
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from uld_jax import config as config_lib
from uld_jax import interrupts, sharding, viz
from uld_jax.config import Config
from uld_jax.data import Source, make_reader, open_source, specs
from uld_jax.errors import UserError
from uld_jax.evaluation import curves, pose_clusters
from uld_jax.evaluation import landmark_regression as regression
from uld_jax.evaluation.correspondence import correspondence
from uld_jax.evaluation.landmark_accuracy import landmark_accuracy
from uld_jax.evaluation.protocol import Protocol, published
from uld_jax.evaluation.report import metrics, write_report
from uld_jax.evaluation.stability import LandmarkWarning, landmark_health, stability
from uld_jax.method import Method, TrainState

SHEET = 40  # images on a contact sheet
PICTURED = 6  # images in a stage's own pictures
POSED = 16  # images of a pose cluster
MATCHED = 5000  # training images that decide which landmark stands for which
_MEASURED_BY = {"scheme": specs.BY_NUMBER, "normaliser": "auto", "sides": "auto"}  # of config.data
SCALED = 0.0375  # deviation of log size: cut off as the rotation is, sizes of 0.9 to 1.1


class Data(NamedTuple):
    """The two splits of a run and their readers; the readers carry no annotation."""

    train: Source
    test: Source | None
    train_reader: Any
    test_reader: Any


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
        **{key: config.data.get(key, default) for key, default in _MEASURED_BY.items()},  # runs from before lack some
        on_bad_file=config.data.get("on_bad_file", "error"),
        **options,
    )


def open_data(config: Config, mesh) -> Data:
    """Both splits, checked, and their readers."""
    Protocol.of(config)  # before a long training, and not at its first evaluation
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

    Args:
      method: the stage.
      mesh: all devices.
      check: called several times a second while anything is computed; it may raise to leave.
      say: is told now and then how many images have been predicted.

    Landmarks that the stage does not use (`Method.landmarks`) are left out of all it gives.

    Attributes:
      devices: how many there are.
      filled_below: of the stage, see `method.Stage`.
    """

    def __init__(
        self,
        method: Method,
        mesh,
        check: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda text: None,
    ):
        self._mesh, self.devices, self.filled_below = mesh, mesh.size, method.filled_below
        self._check, self._say = check, say

        def rows(state, frozen, store, payload, reader):
            batch = reader.fetch(store, payload)
            found = method.predict(state, frozen, batch["image"])
            return found.xy, found.score, batch["index"]

        def poses(state, frozen, store, payload, reader):
            batch = reader.fetch(store, payload)
            return method.poses(state, frozen, batch["image"]), batch["index"]

        def images(state, frozen, batch):
            found = method.predict(state, frozen, batch)
            return found.xy, found.score

        self._predict, self._landmarks = method.predict, jax.jit(method.landmarks)
        self._rows = jax.jit(rows, static_argnums=4)
        self._poses = jax.jit(poses, static_argnums=4)
        self._images = jax.jit(images)
        self._heatmaps = jax.jit(method.heatmaps)
        self._pictures = jax.jit(method.pictures)

    def _get(self, program, *given):
        """What a program gives, on the host."""
        return interrupts.attended(lambda: sharding.to_host(program(*given)), self._check)

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
        parts, patience, passes = [], interrupts.Patience(), reader.passes(rows=rows)
        for payload in reader.ordered(rows=rows):
            parts.append(self._get(self._rows, state, frozen, reader.store, payload, reader))
            if patience.due():
                self._say(f"{len(parts)} of {passes} batches of images predicted")
        xy, score, index = (np.concatenate(p) for p in zip(*parts, strict=True))
        order = np.argsort(index, kind="stable")[: reader.rows if rows is None else len(rows)]
        return self._in_use(state, xy[order], score[order])

    def poses(self, state, frozen, reader, rows: np.ndarray | None = None) -> np.ndarray | None:
        """Pose cluster of every row, or of increasing `rows`, [N] int32; None for a stage without any."""
        parts = []
        for payload in reader.ordered(rows=rows):
            given = state, frozen, reader.store, payload, reader
            if not parts and jax.eval_shape(self._poses, *given)[0] is None:
                return None
            parts.append(self._get(self._poses, *given))
        pose, index = (np.concatenate(p) for p in zip(*parts, strict=True))
        return pose[np.argsort(index, kind="stable")[: reader.rows if rows is None else len(rows)]]

    def heatmaps(self, state, frozen, images) -> tuple[np.ndarray, np.ndarray] | None:
        """What the network sees of [B,F,F,3] uint8 host images, and its maps [B,h,w,K]; None if the stage has none."""
        local = images[sharding.local_rows(self._mesh, len(images))]
        found = self._get(self._heatmaps, state, frozen, sharding.put_batch(self._mesh, local))
        if found is None:
            return None
        seen, maps = found
        used = self.used(state)
        # The maps may be of something else: a map of all keypoints, say, has a single channel.
        return seen, maps if used is None or maps.shape[-1] != len(used) else maps[..., used]

    def pictures(self, state, frozen, images) -> dict[str, np.ndarray]:
        """The stage's own pictures of [B,F,F,3] uint8 host images, see `Method.pictures`."""
        local = images[sharding.local_rows(self._mesh, len(images))]
        return self._get(self._pictures, state, frozen, sharding.put_batch(self._mesh, local))

    def images(self, state, frozen, images) -> tuple[np.ndarray, np.ndarray]:
        """Landmarks of [B,F,F,3] uint8 host images, the same on every process. Each new B compiles anew."""
        n = len(images)
        whole = -(-n // self._mesh.size) * self._mesh.size
        padded = np.concatenate([images, np.repeat(images[-1:], whole - n, 0)])
        local = padded[sharding.local_rows(self._mesh, whole)]
        xy, score = self._get(self._images, state, frozen, sharding.put_batch(self._mesh, local))
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
    `evaluation/correspondence.py`. Where a stage fills in landmarks that it did not detect (`Stage.filled_below`) and
    did so, `detected` holds found_share, both errors and `landmark_accuracy` with these counted as missing. Of a stage
    that has pose clusters there is that of every test image, `pose`, and `pose_clusters`.

    The choices of `evaluation/protocol.py` hold, as far as there are so many training images.

    Args:
      config: of the run.
      predictor: of the stage.
      state, frozen: of the stage.
      data: both splits; without annotation only stability is measured.
      group_by: `COLUMN` or `COLUMN:edge,edge,...` of the test csv.
      label_counts: numbers of labelled images to fit with, see `landmark_regression.label_counts`.
      thorough: the protocol's own pool of training images, and not only `eval.train_images` of them; also stability,
        turned alone and turned and scaled, which predicts some images four times more.

    Raises:
      UserError: an unknown column, or splits that do not fit together.
    """
    labelled = specs.labelled(data.train)
    protocol = _protocol(config, len(labelled), thorough)
    train_rows = spread(len(data.train), 0 if thorough else config.eval.train_images)
    if data.test is None:
        test, reader, rows = data.train, data.train_reader, train_rows
    else:
        test, reader, rows = data.test, data.test_reader, np.arange(len(data.test))
    groups = _groups(group_by, test) if group_by else None  # before anything is predicted
    xy, score = predictor.read(state, frozen, reader, rows)
    result: dict[str, Any] = {"landmarks": xy.shape[1]}  # which some methods find out themselves
    normaliser, scheme = test.spec.eyes or test.spec.normaliser, specs.scheme_of(test.spec.scheme)
    if lacking := _lacking(data):
        result["not_measured"] = lacking
    else:
        train_rows = labelled[spread(len(labelled), protocol.pool_images)]
        found = (*predictor.read(state, frozen, data.train_reader, train_rows), data.train, train_rows)
        sets = [_landmark_set(*found), _landmark_set(xy, score, test, rows)]
        fits = draws(protocol, len(train_rows), config.seed)
        options = {"normaliser": normaliser, "image_side": test.frame_size}

        def scored(train, test):
            """Both errors, and how often landmarks are where annotated ones are."""
            errors = regression.evaluate(
                train, test, data=data.test.spec.protocol, protocol=protocol, fits=fits, **options
            )
            matched = train.take(spread(len(train.found), MATCHED))
            known = {"names": data.test.spec.landmark_names, "areas": scheme.areas if scheme else {}}
            accuracy = landmark_accuracy(matched, test, radius=protocol.accuracy_radius, **known, **options)
            errors["per_landmark"] |= accuracy.pop("per_point")
            return errors | {"landmark_accuracy": accuracy}

        result = scored(*sets)
        detected = [s._replace(score=np.where(s.score < predictor.filled_below, 0, s.score)) for s in sets]
        if any((a.score != b.score).any() for a, b in zip(sets, detected, strict=True)):
            kept = scored(*detected)
            names = ("protocol", "found_train", "found_test", "found_share", "forward_nme", "backward_nme", "spread")
            result["detected"] = {name: kept[name] for name in names if name in kept}
            near = {name: kept["landmark_accuracy"][name] for name in ("exclusive", "best")}
            result["detected"]["landmark_accuracy"] = near
        if not group_by and "yaw" in test.columns and yaw_of(test) is not None:  # numbers, and not words
            groups = _groups("yaw:0,30,60,90", test)
        if groups:
            column, values, edges = groups
            result["groups"] = {column: curves.group_by(result["per_image"], values, edges)}
        if label_counts:
            result["label_counts"] = regression.label_counts(
                *sets, counts=label_counts, seed=config.seed, protocol=protocol, **options
            )
    if len(specs.labelled(test)) and not (score > 0).all():
        truth = test.landmarks[rows]
        lengths = regression.normaliser_lengths(truth, normaliser, test.frame_size)
        visible = None if test.visible is None else test.visible[rows]
        result |= correspondence(xy, score, truth, lengths, radius=protocol.match_radius, visible=visible)
    if thorough:
        predict = functools.partial(predictor.images, state, frozen)
        count = min(config.eval.stability_images, len(test))
        images = test.images(np.linspace(0, len(test) - 1, count).astype(int))
        views = {"seed": config.seed, "batch_size": min(config.eval.batch_size, count)}
        found = stability(predict, images, **views)
        result |= {"stability_px": found.px, "stability_counted": int(found.counted.sum())}
        result["stability_protocol"] = found.protocol
        result["stability_scaled_px"] = stability(predict, images, scale=SCALED, **views).px
    pose = predictor.poses(state, frozen, reader, rows)
    if pose is not None:
        yaw = yaw_of(test)
        clusters = pose_clusters.pose_clusters(pose, None if yaw is None else yaw[rows])
        result |= {"pose": pose, "pose_clusters": clusters}
    return result | {"found": xy, "score": score, "rows": rows}


def _lacking(data: Data) -> str:
    """Why neither error can be measured; empty if they can."""
    if data.test is None or data.test is data.train:
        return "there is no test split"
    bare = [name for name in ("train", "test") if not len(specs.labelled(getattr(data, name)))]
    return f"no image of the split {' and of the split '.join(bare)} is annotated" if bare else ""


def _groups(group_by: str, test: Source) -> tuple[str, Any, list[float] | None]:
    """Column, its values and edges of bins. Raises UserError for an unknown column, or edges that are no numbers."""
    column, _, edges = group_by.partition(":")
    values = test.columns.get(column)
    if values is not None and not any(str(value).strip() for value in values):
        values = None  # only another split's csv has it
    if values is None and column == "yaw":
        values = yaw_of(test)
    if values is None:
        known = ", ".join(test.columns) or "none"
        raise UserError(f"--group_by={group_by}: the test csv has no column {column!r}; its columns are {known}")
    return column, values, [_number(e, "--group_by") for e in edges.split(",")] if edges else None


def yaw_of(source: Source) -> np.ndarray | None:
    """Yaw of a split's images in degrees, [N], NaN where unknown; None if it cannot be told.

    From the column `yaw`; without one, from the points of a scheme that tell it (`pose_clusters.yaw_of_points`).
    """
    if "yaw" in source.columns:
        try:
            yaw = np.array([float(v) if str(v).strip() else np.nan for v in source.columns["yaw"]])
            return yaw if np.isfinite(yaw).any() else None
        except ValueError:
            return None  # words, such as left and right
    scheme = specs.scheme_of(source.spec.scheme)
    if source.landmarks is None or scheme is None or not scheme.fixed:
        return None
    yaw = pose_clusters.yaw_of_points(source.landmarks, scheme.mirror, scheme.fixed).yaw
    return yaw if np.isfinite(yaw).any() else None


def _protocol(config: Config, images: int, thorough: bool) -> Protocol:
    """The protocol of an evaluation on a training split of so many images."""
    protocol = Protocol.of(config)
    most = 0 if thorough else config.eval.train_images
    return protocol._replace(pool_images=min(filter(None, (most, protocol.pool_images)), default=0)).on(images)


def draws(protocol: Protocol, pool: int, seed: int) -> list[np.ndarray]:
    """The images of a pool that each fit takes, increasing indices; see `Protocol.repeats`.

    >>> [draw.tolist() for draw in draws(Protocol(fit_images=3), 9, seed=0)]
    [[0, 4, 8]]
    """
    if protocol.repeats == 1:
        return [spread(pool, protocol.fit_images)]
    return [
        np.sort(np.random.default_rng((seed, repeat)).permutation(pool)[: protocol.fit_images])
        for repeat in range(protocol.repeats)
    ]


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
        sheet, posed = contact_sheet(source, result), pose_sheet(source, result)
        viz.save(sheet, workdir / "pictures" / f"{step:08d}_{stage}.png")
        if posed is not None:
            viz.save(posed, workdir / "pictures" / f"{step:08d}_{stage}_pose_clusters.png")
        if shown is not None:
            panel = viz.heatmap_panel(shown[0][0], shown[1][0])
            viz.save(panel, workdir / "pictures" / f"{step:08d}_{stage}_heatmaps.png")
        if last:
            folder = workdir / "eval" / result["split"]
            for where in (folder / stage, folder) if stage == config.stages[-1] else (folder / stage,):
                write_report(result, where)
                if posed is not None:
                    viz.save(posed, where / "pose_clusters.png")
            if stage == config.stages[-1]:
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


def pose_sheet(source: Source, result: dict[str, Any], count: int = POSED):
    """Up to `count` images of each pose cluster that `measure` saw, with their landmarks; None without clusters."""
    if result.get("pose") is None:
        return None
    about, sheets = result["pose_clusters"], []
    filled = [q for q, size in enumerate(about["sizes"]) if size]
    for q in filled:
        member = np.flatnonzero(result["pose"] == q)
        title = f"pose {q}: {len(member)} images"
        if about.get("yaw_range") and about["yaw_range"][q]:
            mean, deviation = about["yaw_mean"][q], about["yaw_std"][q]
            title += f", yaw {mean:.0f} ± {deviation:.0f} degrees, most in {about['yaw_range'][q]}"
        shown = member[spread(len(member), count)]
        given = source.images(result["rows"][shown]), result["found"][shown], result["score"][shown]
        sheets.append(viz.contact_sheet(*given, cell=96, title=title, legend=q == filled[-1]))
    return viz.stacked(sheets) if sheets else None


def summary(report: dict[str, Any]) -> str:
    """A result in one line; `report` is as in `metrics.json`."""

    def percent(value):
        return "-" if value is None else f"{value:.2f} %"  # nothing was found

    if report.get("forward_nme") is None:
        stable = report.get("stability_px")
        why = report.get("not_measured") or "there is no annotation"
        return "" if stable is None else f"errors are not measured, as {why}; stability {stable:.2f} px at 128"
    text = (
        f"forward NME {percent(report['forward_nme'])}, backward {percent(report['backward_nme'])} "
        f"(mean shape {report['mean_shape_nme']:.2f} %; {report['protocol']}, {report['n_test']} images)"
    )
    often, stable = report.get("often_found"), report.get("stability_px")
    if often and often["forward_nme"] is not None:
        text += (
            f", of the {often['landmarks']} landmarks found on more than {100 * often['min_found']:g} % of the images "
            f"{percent(often['forward_nme'])}, {percent(often['backward_nme'])}"
        )
    return text if stable is None else f"{text}, stability {stable:.2f} px at 128"


def _number(text: str, field: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{field}: {text!r} is not a number") from error


def _override(config: Config, changes: Sequence[str]) -> None:
    """Sets keys that say what is measured; all others are those that the run was trained with."""
    for change in changes:
        if not change.startswith(("eval.", *(f"data.{key}=" for key in _MEASURED_BY))):
            known = ", ".join(f"--config.data.{key}" for key in _MEASURED_BY)
            raise UserError(
                f"--config.{change}: a run keeps its config; evaluation can change --config.eval.KEY, {known}"
            )
    if changes:  # runs from before lack some of the keys
        config.eval.update({k: type(Protocol._field_defaults[k])(v) for k, v in Protocol.of(config)._asdict().items()})
        config.data.update({key: config.data.get(key, default) for key, default in _MEASURED_BY.items()})
        config_lib.override(config, changes)


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
    """`uld evaluate`: measures a finished stage on a split and writes the report into its run's folder.

    `protocol`, the name of a paper's (`evaluation/protocol.py`), and then `settings` stand in for those keys of the
    run's `config.eval`, `reading` for those of `config.data`; last come `overrides`,
    `KEY=VALUE` of `eval` and of `_MEASURED_BY`. Raises UserError for other keys.

    Returns the numbers as in `metrics.json`, and the folder that they are in.
    """
    config = finished.config.copy_and_resolve_references().unlock()
    for key, value in ((published(protocol, "--protocol").asdict() if protocol else {}) | dict(settings)).items():
        config.eval[key] = value
    for key, value in reading.items():
        config.data[key] = value
    _override(config, overrides)
    if (dataset or config.dataset) == "synthetic" and data_dir:
        raise UserError(
            f"--data_dir={data_dir} is not read by the data set synthetic, which is rendered; add --dataset=folder"
        )
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
        source = train if test is None else test
        viz.save(contact_sheet(source, result), folder / "contact_sheet.png")
        if (posed := pose_sheet(source, result)) is not None:
            viz.save(posed, folder / "pose_clusters.png")
    return metrics(result), folder
