"""All measures of a finished stage's dense features, and the files of the report (`uld dense`).

Files, in `RUN/eval/<split>/dense/<stage>/`:

  metrics.json      all numbers, the id of each, and the choices of the protocol
  matching.csv, similarity.png                          errors by landmark; maps of similarity
  regression.csv, regression_landmarks.csv, draws.json  errors by number of labels; by landmark; images of the draws
  regression.png, labels.png                            placed landmarks; errors by number of labels
  zoom.csv, zoom_factors.csv, zoom.png, zoom_images.png errors by zoom factor; the factors of all images
  parts.csv, parts.png, tsne.png                        sizes of parts; maps of parts; their cells in the plane

`RUN/eval/<split>/dense/pairs.npz` holds the pairs of images of the matching, the same for all stages. Measures that an
earlier report has of the same state, data and choices are kept; files of other ones are removed.
"""

import contextlib
import hashlib
import json
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from uld_jax import files, sharding
from uld_jax.config import Config
from uld_jax.data import specs
from uld_jax.data.open import eval_batch, open_split
from uld_jax.data.resident import memory_budget
from uld_jax.data.specs import Source
from uld_jax.errors import UserError
from uld_jax.evaluation.dense import measures
from uld_jax.evaluation.dense.features import Features, check_stage
from uld_jax.evaluation.dense.protocols import MEASURES, preset
from uld_jax.evaluation.landmark_regression import normaliser_lengths, normaliser_name
from uld_jax.evaluation.protocol import check_label_counts
from uld_jax.evaluation.run import check_alone, measured_data, report_folder

FILES = {
    "matching": ("matching.csv", "similarity.png"),
    "regression": ("regression.csv", "regression_landmarks.csv", "draws.json", "regression.png", "labels.png"),
    "zoom": ("zoom.csv", "zoom_factors.csv", "zoom.png", "zoom_images.png"),
    "parts": ("parts.csv", "parts.png", "tsne.png"),
}
USUAL = ("matching", "regression", "parts")  # measures that are made if none is named


class Asked(NamedTuple):
    """What a user asks for.

    Attributes:
      protocol: name of a protocol.
      measures: names of measures; none for those of `USUAL` that the data allow.
      labels: numbers of labelled images, and `all`, as words.
      changes: choices of the protocol by name, see `protocols.preset`; None changes nothing.
      parts: number of parts.
      split, dataset, data_dir: what is measured, as for `uld evaluate`.
      reading: keys of `config.data` that are replaced, `scheme` and `normaliser`.
    """

    protocol: str = "lead2022"
    measures: Sequence[str] = ()
    labels: Sequence[str] = ("all",)
    changes: Mapping[str, int | None] = types.MappingProxyType({})
    parts: int = 10
    split: str = "test"
    dataset: str = ""
    data_dir: str = ""
    reading: Mapping[str, str] = types.MappingProxyType({})


def check_words(asked: Asked) -> None:
    """Raise UserError for words that no run could answer, before a run is loaded."""
    check_alone("dense")
    preset(asked.protocol, **asked.changes)
    for name in asked.measures:
        if name not in MEASURES:
            raise UserError(f"--measure={name} is unknown; use some of {', '.join(MEASURES)}")
    check_label_counts(asked.labels, "--labels")
    if not asked.labels:
        raise UserError("--labels is empty; give positive numbers and 'all', such as 10,50,all")
    if asked.parts < 2:
        raise UserError(f"--parts is {asked.parts}; use 2 or more")


def dense_report(
    finished, asked: Asked, say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
) -> tuple[dict[str, Any], epath.Path]:
    """Measure a finished stage's dense features and write the report into its run's folder (`uld dense`).

    Args:
      finished: the stage, from `engine.runs.load` on a mesh of one device.
      asked: what is measured.
      say: function that tells the user what goes on.

    Returns:
      The contents of `metrics.json` without measures of earlier reports, and the folder with the files.

    Raises:
      UserError: data, a stage or words that do not go together, before anything is computed.
    """
    check_words(asked)
    config = finished.config.copy_and_resolve_references().unlock()
    for key, value in asked.reading.items():
        config.data[key] = value
    config.data.frame_size = preset(asked.protocol, **asked.changes).frame
    check_stage(finished, preset(asked.protocol, **asked.changes).side)
    where = measured_data(config, asked.dataset, asked.data_dir)
    test = open_split(config, asked.split, *where)
    train = test if asked.split == "train" else _train_split(config, test, where)
    names, lacking = _possible(asked, train, test)
    protocol = preset(asked.protocol, test.spec.landmarks, **asked.changes)
    if set(names) & {"regression", "zoom"}:
        _check_labels(asked, train)
    mesh = sharding.make_mesh(jax.devices()[:1])
    folder = report_folder(finished.workdir, asked.split, asked.dataset, asked.data_dir) / "dense" / finished.stage
    job = measures.Job(
        features=Features(finished),
        protocol=protocol,
        train=train,
        test=test,
        batch=eval_batch(config, mesh),
        seed=config.seed,
        budget=memory_budget(mesh),
        folder=folder,
        say=say,
    )
    if set(names) - {"parts"}:
        _check_normaliser(job)
    head = _plain(_head(finished, asked, job))
    kept = _kept(folder, head)
    made = _plain(_measured(job, asked, names))
    results = {name: (kept | made)[name] for name in MEASURES if name in kept | made}
    written = head | {"not_measured": lacking or None} | results
    files.write(folder / "metrics.json", json.dumps(written, indent=2, allow_nan=False) + "\n")
    return head | {"not_measured": lacking or None} | made, folder


def _measured(job: measures.Job, asked: Asked, names: Sequence[str]) -> dict[str, Any]:
    """The results of the measures, by name."""
    made = {
        "matching": lambda: measures.matching(job),
        "regression": lambda: measures.regression_by_labels(job, asked.labels),
        "zoom": lambda: measures.zoom_out(job),
        "parts": lambda: measures.part_clusters(job, asked.parts),
    }
    return {name: made[name]() for name in MEASURES if name in names}


def _train_split(config: Config, test: Source, where) -> Source | None:
    """The training split, or None for data without one."""
    return open_split(config, "train", *where) if "train" in test.spec.splits else None


def _possible(asked: Asked, train: Source | None, test: Source) -> tuple[Sequence[str], dict[str, str]]:
    """Measures to make, and the reasons why others cannot be made, {name: end of a sentence}.

    Raises UserError if one that was asked for cannot be made, or none can.
    """
    reasons = {}
    if not len(specs.labelled(test)):
        reasons = dict.fromkeys(("matching", "regression", "zoom"), f"no image of the split {asked.split} is annotated")
    elif len(specs.labelled(test)) < 2:
        reasons["matching"] = f"the split {asked.split} has one annotated image, and a pair takes two"
    if not reasons.get("regression"):
        why = ""
        if train is test:
            why = "a regressor would be measured on its own training images"
        elif train is None or not len(specs.labelled(train)):
            why = "no image of the split train is annotated"
        reasons |= dict.fromkeys(("regression", "zoom"), why) if why else {}
    for name in asked.measures:
        if name in reasons:
            raise UserError(f"--measure={name} is not possible: {reasons[name]}; leave it out, or give other data")
    return [n for n in asked.measures or USUAL if n not in reasons], {n: w for n, w in reasons.items() if n in USUAL}


def _check_labels(asked: Asked, train: Source) -> None:
    labelled = len(specs.labelled(train))
    for word in asked.labels:
        if word != "all" and int(word) > labelled:
            raise UserError(
                f"--labels={word} is more than the {labelled} annotated training images; give fewer, or all"
            )


def _check_normaliser(job: measures.Job) -> None:
    """Raise UserError if errors of no test image have a length to be divided by."""
    if not np.isfinite(normaliser_lengths(job.test.landmarks, job.normaliser, job.protocol.frame)).any():
        raise UserError(
            f"the normaliser {normaliser_name(job.normaliser)} is missing or 0 on every image of the split; choose "
            "another one, --normaliser=NAME"
        )


def _kept(folder: epath.Path, head: Mapping[str, Any]) -> dict[str, Any]:
    """Measures of an earlier report with the same head; the files of a report with another one are removed."""
    path, old = folder / "metrics.json", {}
    if path.exists():
        with contextlib.suppress(json.JSONDecodeError):
            old = json.loads(path.read_text())
    if old and all(old.get(key) == value for key, value in head.items()):
        return {name: old[name] for name in MEASURES if name in old}
    for name in [name for names in FILES.values() for name in names]:
        (folder / name).unlink(missing_ok=True)
    return {}


def _state_id(state) -> str:
    """Hexadecimal digits that change with a stage's state."""
    leaves = jax.tree.leaves(jax.device_get(state))
    return specs.fingerprint_of(*(hashlib.sha256(np.ascontiguousarray(x)).hexdigest() for x in leaves))


def _head(finished, asked: Asked, job: measures.Job) -> dict[str, Any]:
    """The part of a report that all measures share."""
    spec = job.test.spec
    return {
        "stage": finished.stage,
        "state": _state_id(finished.model.state),
        "images": job.test.fingerprint,
        "split": asked.split,
        "protocol": job.protocol.name,
        "choices": job.protocol.asdict(),
        "data": spec.protocol or spec.name,
        "normaliser": spec.protocol and normaliser_name(job.normaliser),
        "landmarks": spec.landmarks,
        "maps": [list(shape) for shape in job.shapes],
        "n_train": None if job.train is None else len(specs.labelled(job.train)),
        "n_test": len(specs.labelled(job.test)),
    }


def summary(report: Mapping[str, Any]) -> list[str]:
    """Lines that tell a report, a dict as in `metrics.json`."""
    lines = [f"{report['stage']}: {report['protocol']} on {report['data']}, split {report['split']}"]
    if matched := report.get("matching"):
        floor = matched["floor_canonical_px"]
        lines.append(f"  matching, {matched['pairs']} pairs; the grid alone costs {floor:.2f} canonical pixels")
        for name in ("same", "different"):
            each = matched[name]
            lines.append(
                f"    {name:<10} {_number(each['canonical_px'])} canonical pixels {_number(each['percent'])} %"
                f", at the place in the source {_number(each['unmoved_canonical_px'])}"
            )
    if records := report.get("regression"):
        lines.append("  regression          error       std   mean shape")
        for r in records:
            label = f"{'all ' if r['all'] else ''}{r['labels']} labels"
            spread = _number(r["error_std"]) + " %" if r["repeats"] > 1 else ""
            numbers = f"{_number(r['error'])} % {spread:>9} {_number(r['mean_shape_error'])} %"
            lines.append(f"    {label:<16}{numbers}" + (f", {r['repeats']} draws" if r["repeats"] > 1 else ""))
    if zoomed := report.get("zoom"):
        ends = f"seen in training {_number(zoomed['seen'])} %, not seen {_number(zoomed['not_seen'])} %"
        lines.append(f"  zoom                {ends}")
    if parts := report.get("parts"):
        line = f"  parts               {parts['parts']}, mean cosine {parts['cosine']:.3f}"
        lines.append(line + (f", nmi with landmarks {parts['nmi_landmark']:.3f}" if "nmi_landmark" in parts else ""))
    lines += [f"  {name} is not measured: {why}" for name, why in (report.get("not_measured") or {}).items()]
    return lines


def _number(value: float | None) -> str:
    return "     -" if value is None else f"{value:6.2f}"


def _plain(value: Any) -> Any:
    """Plain JSON values; None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
