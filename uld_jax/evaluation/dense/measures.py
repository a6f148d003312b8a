"""The measures of a stage's dense features on a data set: numbers, tables and pictures of each, in a folder."""

import functools
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from uld_jax import files, interrupts, viz
from uld_jax.data import specs
from uld_jax.data.specs import Source, fingerprint_of
from uld_jax.evaluation import protocols as registry
from uld_jax.evaluation.dense import matching as matching_lib
from uld_jax.evaluation.dense import parts as parts_lib
from uld_jax.evaluation.dense import pictures, regression, zoom
from uld_jax.evaluation.dense.features import Features, bytes_of, central, margin, read_views, to_uint8, warped
from uld_jax.evaluation.dense.protocols import DenseProtocol
from uld_jax.evaluation.label_counts import LabelCount
from uld_jax.evaluation.landmark_regression import normaliser_lengths
from uld_jax.evaluation.missing import known_mean, or_none
from uld_jax.evaluation.protocol import spread
from uld_jax.ops import tps

_PAIR_SEED = 0  # of the pairs and of the zoom factors, the same for all runs
_UNITS = ("canonical_px", "percent")  # of matching errors
_PICTURED = 6  # images on a sheet of placed landmarks
_PART_IMAGES = 400  # images whose cells are clustered
_PART_SHEET = 16


class Job(NamedTuple):
    """What is measured, and where its files go.

    Attributes:
      features: features of the stage.
      protocol: choices of the measurement.
      train: training split, whose frame is that of the protocol; None if it is not needed.
      test: split to measure on.
      batch: images at a time.
      seed: seed of the run, for draws of labelled images, regressors and parts.
      budget: bytes that cached features may take.
      folder: folder of the report.
      say: function that tells the user what goes on.
    """

    features: Features
    protocol: DenseProtocol
    train: Source | None
    test: Source
    batch: int
    seed: int
    budget: int
    folder: epath.Path
    say: Callable[[str], None] = lambda text: None

    @property
    def normaliser(self) -> str | tuple[int, int]:
        """What errors are divided by, see `landmark_regression.normaliser_lengths`."""
        return self.test.spec.eyes or self.test.spec.normaliser

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the maps of a view."""
        return self.features.shapes(self.protocol.side)

    def lengths(self, xy) -> np.ndarray:
        """Lengths [N] by which errors of points [N,L,2] are divided, in pixels of the view."""
        return normaliser_lengths(xy, self.normaliser, self.protocol.frame)

    def id(self, measure: str, fit=None, repeats: int = 1) -> str:
        """The id of a number of this job; that of a row of the registry tells other numbers of images."""
        name = self.protocol.id(self.test.spec.protocol, measure, fit, repeats)
        trained = None if self.train is None or fit is None else len(specs.labelled(self.train))
        return registry.counted(name, trained, len(self.test))

    def landmark_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write a table with a row for each annotated landmark: its number, its name if it has one, and `rows`."""
        names = self.test.spec.landmark_names
        numbered = [[i, *names[i : i + 1], *row] for i, row in enumerate(rows)]
        self.table(name, [["landmark", *(["name"] if names else []), *columns], *numbered])

    def table(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        """Write a table; numbers have six digits, and cells of None or NaN are empty."""
        files.write(self.folder / name, files.csv_text([[_cell(value) for value in row] for row in rows]))


def _cell(value) -> Any:
    if isinstance(value, float | np.floating):
        return f"{value:.6g}" if np.isfinite(value) else ""
    return "" if value is None else value


# Matching


def matching(job: Job) -> dict[str, Any]:
    """Measure landmark matching; see `dense.matching`."""
    protocol, test = job.protocol, job.test
    sets, side = _sets(job), protocol.side
    cells = matching_lib.cells_of(protocol, job.shapes)
    job.say(f"matching: {len(sets.rows)} pairs of images")
    options = dict(cells=cells, similarity=protocol.similarity)
    found = matching_lib.match_all(job.features, sets, **options, batch=max(1, job.batch // 4))
    result = {
        "protocol": job.id("matching"),
        "protocol_percent": job.id("matching_percent"),
        "pairs": len(sets.rows),
        "similarity": protocol.similarity,
        "cells": cells,
        "stride": side / cells,
        "floor_canonical_px": matching_lib.floor(side, cells),
        "floor_canonical_px_whole_view": matching_lib.floor(side, cells, whole=False),
        "same_is": "a warped copy of the same photo",
        "different_is": "another photo; that it shows another identity is assumed",
        "pairs_of_two_identities": _two_identities(test, sets.rows),
        "draws": "our own generator, seed 0; the draws of DVE depend on PyTorch's and cannot be repeated",
    }
    columns: list[Any] = []
    for name in matching_lib.TARGETS:
        xy = getattr(sets, f"{name}_xy")
        scored = matching_lib.scored(found[name], sets.source_xy, xy, job.lengths(xy), side)
        canonical, percent = (matching_lib.mean_and_spread(v) for v in (scored.canonical, scored.percent))
        # The error of the source's own places: features that know nothing but where they are do not do better.
        unmoved = matching_lib.scored(sets.source_xy, sets.source_xy, xy, job.lengths(xy), side)
        result[name] = {
            "canonical_px": or_none(canonical[0]),
            "canonical_px_std": or_none(canonical[1]),
            "percent": or_none(percent[0]),
            "unmoved_canonical_px": or_none(known_mean(unmoved.canonical)),
            "unmoved_percent": or_none(known_mean(unmoved.percent)),
            "points": int(np.isfinite(scored.canonical).sum()),
            "points_outside": scored.outside,
        }
        each = known_mean(scored.canonical, 0), known_mean(scored.percent, 0)
        result[name]["per_landmark"] = dict(zip(_UNITS, ([or_none(e) for e in one] for one in each), strict=True))
        columns += each
    header = [f"{name}_{unit}" for name in matching_lib.TARGETS for unit in _UNITS]
    job.landmark_table("matching.csv", header, np.stack(columns, 1))
    views = read_views(test, specs.labelled(test)[spread(len(specs.labelled(test)), 1 + pictures.SHOWN)], protocol)
    sheet = pictures.similarity_sheet(job.features, views.images, views.xy[0], **options)
    if sheet is not None:
        viz.save(sheet, job.folder / "similarity.png")
    return result


def _two_identities(source: Source, rows) -> int | None:
    """Number of pairs whose images have two values of the csv's column `identity`; None without the column."""
    identity = source.columns.get("identity")
    return None if identity is None else sum(identity[a] != identity[b] for a, b in rows)


def _sets(job: Job) -> matching_lib.Sets:
    """The pairs of the test split: those of the file `pairs.npz` if they are the same, otherwise made and written."""
    protocol, test = job.protocol, job.test
    view = protocol.frame, protocol.side, protocol.pairs, _PAIR_SEED, matching_lib.VERSION
    points = np.ascontiguousarray(test.landmarks, np.float32).tobytes()
    key = fingerprint_of(test.fingerprint, view, points)
    path = job.folder.parent / "pairs.npz"
    if path.exists():
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["key"]) == key:
                return matching_lib.Sets(*(stored[name] for name in matching_lib.Sets._fields))
    rows = matching_lib.pair_rows(test.names, specs.labelled(test), protocol.pairs)
    job.say(f"matching: warping {len(rows)} pairs of images")
    sets = matching_lib.make_sets(test, rows, protocol, seed=_PAIR_SEED)
    out = io.BytesIO()
    np.savez_compressed(out, key=np.array(key), **sets._asdict())
    files.write(path, out.getvalue())
    return sets


# Regression


def regression_by_labels(job: Job, labels: Sequence[int | str]) -> list[dict[str, Any]]:
    """Measure landmark regression with all labels or a few; see `dense.regression`.

    Args:
      job: what is measured.
      labels: numbers of labelled images, and `all`.

    Returns:
      A record for each of the numbers, `all` last.
    """
    labelled, train = specs.labelled(job.train), {}
    counts = sorted({int(n) for n in labels if n != "all"})
    drawn = {n: regression.draws(labelled, n, job.protocol.repeats, job.seed) for n in counts}
    if "all" in labels:
        drawn["all"] = labelled[None]
    for n, rows in drawn.items():
        train[n] = _trained(job, rows, "regression", few=n != "all")
    truth = specs.labelled(job.test)
    views = read_views(job.test, truth, job.protocol)
    placed = place_all(job, {n: trained.regressors for n, trained in train.items()}, views.images)
    lengths, records, each = job.lengths(views.xy), [], {}
    for n, rows in drawn.items():
        errors = regression.errors(placed[n], views.xy, lengths)
        known = known_mean(errors.reshape(len(errors), -1), 1)
        fit = job.protocol.full if n == "all" else job.protocol.few
        shape = regression.mean_shape_error(job.train.landmarks[rows] - margin(job.protocol), views.xy, lengths)
        each[n] = known_mean(errors.reshape(-1, errors.shape[-1]), 0)
        records.append(
            {
                "protocol": job.id("regression", fit, len(rows)),
                "labels": n if n != "all" else len(labelled),
                "all": n == "all",
                "repeats": len(rows),
                "error": or_none(known_mean(known)),
                "error_std": or_none(known.std()),
                "errors": [or_none(e) for e in known],
                "per_landmark": [or_none(e) for e in each[n]],
                "mean_shape_error": or_none(shape),
                **_told(job, train[n]),
            }
        )
    _write_regression(job, records, each, drawn, views, placed)
    return records


def _told(job: Job, trained: regression.Trained) -> dict[str, Any]:
    return {
        "entropy_start": trained.entropy_start,
        "entropy_end": trained.entropy_end,
        "entropy_most": float(np.log(job.protocol.regressed**2)),
        "loss": trained.loss,
        "steps": trained.steps,
    }


def _trained(job: Job, rows: np.ndarray, name: str, few: bool) -> regression.Trained:
    """Train regressors on draws [R,n] of rows of the training split."""
    fit, labelled = (job.protocol.few if few else job.protocol.full), len(specs.labelled(job.train))
    used = np.unique(rows)
    label = f"{name}, {'all' if not few else rows.shape[1]} labels"
    job.say(f"{label}: {len(used)} images")
    task = regression.Task(
        tuple(shape[-1] for shape in job.shapes),
        job.test.spec.landmarks,
        fit,
        job.protocol,
        labelled,
        few,
        job.seed,
    )
    examples = _examples(job, used, fit.warped and few)
    return regression.train(examples, np.searchsorted(used, rows), task, _epochs_told(job, label, fit.epochs))


def _epochs_told(job: Job, label: str, epochs: int) -> Callable[[int], None]:
    patience = interrupts.Patience()

    def say(epoch):
        if patience.due():
            job.say(f"{label}: epoch {epoch} of {epochs}")

    return say


def _examples(job: Job, rows: np.ndarray, warped: bool) -> regression.Examples:
    """Labelled images of the training split: cached features if these fit, and images in every step otherwise."""
    protocol, features = job.protocol, job.features
    each = bytes_of(job.shapes)
    if warped:
        points = jnp.asarray(job.train.landmarks[rows], jnp.float32)
        data = features.state, features.frozen, jnp.asarray(job.train.images(rows)), points
        return regression.Examples(data, _warped_reader(features, protocol), each)
    views = read_views(job.train, rows, protocol)
    return examples_of(job, views.images, views.xy)


def examples_of(job: Job, images: np.ndarray, xy: np.ndarray) -> regression.Examples:
    """Labelled views [N,S,S,3] with points [N,L,2], without warps."""
    features, side, each = job.features, job.protocol.side, bytes_of(job.shapes)
    if each * len(images) <= job.budget:
        return regression.cached(features.all(images, job.batch), xy, side)
    job.say(
        f"features of {len(images)} images take {each * len(images) / 2**30:.1f} GiB and are computed in every step"
    )
    target = jnp.asarray(regression.to_unit(np.asarray(xy, np.float64), side))
    data = features.state, features.frozen, jnp.asarray(images), target

    def read(data, rows, key):
        del key
        state, frozen, images, target = data
        return features.dense(state, frozen, images[rows]), target[rows]

    return regression.Examples(data, read, each)


def _warped_reader(features: Features, protocol: DenseProtocol):
    """Function `Examples.read` that warps frames and points at random before it takes the view."""

    def read(data, rows, key):
        state, frozen, images, points = data

        def one(key, image, xy):
            shown, xy = warped(key, tps.FEW_SHOT, image.astype(jnp.float32), xy)
            return to_uint8(shown), xy

        shown, xy = jax.vmap(one)(jax.random.split(key, len(rows)), images[rows], points[rows])
        target = regression.to_unit(xy - margin(protocol), protocol.side)
        return features.dense(state, frozen, central(shown, protocol)), target

    return read


def place_all(job: Job, regressors: dict[Any, regression.Regressor], images: np.ndarray) -> dict[Any, np.ndarray]:
    """Landmarks of several groups of regressors on views [N,S,S,3]: {name: [R,N,L,2] in pixels of the view}."""
    options = regression.options_of(job.protocol, job.test.spec.landmarks, job.batch)
    found = {name: [] for name in regressors}
    for rows, pyramid in job.features.batches(images, job.batch):
        for name, some in regressors.items():
            xy = regression.place(some, pyramid, options=options, side=job.protocol.side)
            found[name].append(np.asarray(xy)[:, : len(rows)])
    return {name: np.concatenate(parts, 1) for name, parts in found.items()}


def _write_regression(job: Job, records, each, drawn, views, placed) -> None:
    names = ["labels", "all", "repeats", "error", "error_std", "mean_shape_error", "entropy_start", "entropy_end"]
    job.table("regression.csv", [names, *([record[name] for name in names] for record in records)])
    columns = [f"labels_{n}" for n in each]
    job.landmark_table("regression_landmarks.csv", columns, np.stack(list(each.values()), 1))
    files_of = lambda rows: [[job.train.names[row] for row in draw] for draw in rows.tolist()]
    kept = {"seed": job.seed, "draws": {str(n): files_of(rows) for n, rows in drawn.items() if n != "all"}}
    files.write(job.folder / "draws.json", files.printable(json.dumps(kept, indent=1)) + "\n")
    shown = spread(len(views.images), _PICTURED)
    xy = {"annotated": views.xy[shown]} | {f"{n} labels": found[0][shown] for n, found in placed.items()}
    viz.save(pictures.overlays(views.images[shown], xy), job.folder / "regression.png")
    curve = [
        LabelCount(r["labels"], r["repeats"], r["error"], r["error_std"], r["mean_shape_error"])
        for r in sorted(records, key=lambda r: r["labels"])
    ]
    if len({point.n for point in curve}) > 1:
        viz.save(viz.label_count_plot(curve, title=job.protocol.name), job.folder / "labels.png")


# Zoom


def zoom_out(job: Job) -> dict[str, Any]:
    """Measure regression on objects at other sizes; see `dense.zoom`."""
    protocol, rows, factor, seen = job.protocol, {}, {}, {}
    boxed = zoom.has_boxes(job.train) and zoom.has_boxes(job.test)
    for name, source in (("train", job.train), ("test", job.test)):
        rows[name] = specs.labelled(source)
        factor[name] = zoom.factors(len(source), name == "test", _PAIR_SEED)[rows[name]]
        job.say(f"zoom: reading {len(rows[name])} images of the split {name}")
        seen[name] = zoom.zoomed_views(source, rows[name], factor[name], protocol, boxed=boxed)
    points = {name: np.where(z.inside[..., None], z.views.xy, np.nan) for name, z in seen.items()}
    images, fit = seen["test"].views.images, protocol.full
    examples = examples_of(job, seen["train"].views.images, points["train"])
    channels = tuple(shape[-1] for shape in job.shapes)
    task = regression.Task(channels, job.test.spec.landmarks, fit, protocol, len(rows["train"]), seed=job.seed)
    told = _epochs_told(job, "zoom", fit.epochs)
    trained = regression.train(examples, np.arange(len(rows["train"]))[None], task, told)
    placed = place_all(job, {"zoom": trained.regressors}, images)["zoom"]
    errors = regression.errors(placed, points["test"], job.lengths(seen["test"].views.xy))[0]
    ranges = zoom.by_factor(errors, factor["test"])
    low, high = zoom.seen_and_unseen(errors, factor["test"])
    _write_zoom(job, rows, factor, ranges, images, points["test"], placed[0])
    known = np.isfinite(seen["test"].views.xy).all(-1)
    return {
        "protocol": job.id("zoom", fit),
        "seen": low,
        "not_seen": high,
        "ranges": [each._asdict() for each in ranges],
        "object": "box" if boxed else "frame",
        "beyond_the_photo": float(seen["test"].beyond.mean()),
        "points_outside": int((known & ~seen["test"].inside).sum()),
        **_told(job, trained),
    }


def _write_zoom(job: Job, rows, factor, ranges, images, truth, placed) -> None:
    job.table("zoom.csv", [zoom.Range._fields, *ranges])
    table = [["split", "file", "factor"]]
    for name, source in (("train", job.train), ("test", job.test)):
        table += [[name, source.names[row], float(f)] for row, f in zip(rows[name], factor[name], strict=True)]
    job.table("zoom_factors.csv", table)
    title = f"error, % of the normaliser ({job.test.spec.normaliser})"
    viz.save(pictures.factor_plot(ranges, title), job.folder / "zoom.png")
    order = np.argsort(factor["test"])
    shown = order[spread(len(order), pictures.SHOWN + 1)]
    sheet = pictures.by_factor_sheet(images[shown], factor["test"][shown], truth[shown], placed[shown])
    viz.save(sheet, job.folder / "zoom_images.png")


# Parts


def part_clusters(job: Job, count: int) -> dict[str, Any]:
    """Cluster features into `count` parts; see `dense.parts`."""
    side, cells = job.protocol.side, max(shape[0] for shape in job.shapes)
    rows = spread(len(job.test), _PART_IMAGES)
    views = read_views(job.test, rows, job.protocol)
    job.say(f"parts: cells of {len(rows)} images")
    columns = parts_lib.sample(job.features, views.images, cells, batch=job.batch, seed=job.seed)
    found = parts_lib.cluster(columns, count, job.seed)
    result = {
        "protocol": f"{job.test.spec.name}+{job.protocol.name}+parts_{count}",
        "parts": count,
        "cells": len(columns),
        "sizes": found.sizes.tolist(),
        "cosine": found.cosine,
    }
    places = {"cells by part": parts_lib.embed(found.rows, job.seed)}
    groups = {"cells by part": found.labels}
    if views.xy.shape[1]:
        maps = jax.jit(functools.partial(parts_lib.part_maps, cells=side))
        seen = job.features.batches(views.images, job.batch)
        at_points = [np.asarray(maps(pyramid, found.centroids))[: len(numbers)] for numbers, pyramid in seen]
        labels = parts_lib.at_points(np.concatenate(at_points), views.xy, side)
        agreed = parts_lib.agreement(labels, count)
        result |= {"nmi_landmark": agreed.nmi, "purity_landmark": agreed.purity, "points": agreed.points}
    job.table("parts.csv", [["part", "cells"], *enumerate(result["sizes"])])
    shown = spread(len(views.images), _PART_SHEET)
    viz.save(pictures.parts_sheet(job.features, views.images[shown], found.centroids), job.folder / "parts.png")
    viz.save(viz.scatter_plot(places, groups), job.folder / "tsne.png")
    return result
