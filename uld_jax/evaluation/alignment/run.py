"""The semantic alignment of a finished stage, and the files of its report (`uld align`).

Files, in `RUN/eval/<split>/align/<stage>/`:

  <protocol>.json   the PCK of all pairs, of those that are not in the training list, and of each category; the same
                    numbers of the identity map
  <protocol>.csv    the PCK of each pair
  pairs.png         a few pairs with carried keypoints
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from uld_jax import config as config_lib
from uld_jax import files, interrupts, viz
from uld_jax.data import open_source, pf_pascal
from uld_jax.data.specs import Source
from uld_jax.errors import UserError
from uld_jax.evaluation.alignment.pck import AlignmentProtocol, correct, pck, protocol_of, same_place
from uld_jax.evaluation.alignment.pictures import pairs_sheet
from uld_jax.evaluation.missing import known_mean, or_none
from uld_jax.evaluation.run import check_alone, report_folder
from uld_jax.method import Stage
from uld_jax.ops import coordinates

SHOWN = 6  # pairs of the sheet

# images a and b [B,F,F,3] uint8, points on b [B,P,2] float32 in pixels of the frame, and which of these are keypoints
# [B,P] bool; to points on a [B,P,2] in pixels of the frame.
Carry = Callable[[Any, Any, Any, Any], Any]


class Asked(NamedTuple):
    """What a user asks for.

    Attributes:
      protocol: name of a protocol.
      split: split whose pairs are measured.
      data_dir: folder of PF-Pascal; empty for that of the run.
      batch: pairs at a time.
    """

    protocol: str = "pf_pascal_ncnet"
    split: str = "test"
    data_dir: str = ""
    batch: int = 8


def check_words(asked: Asked) -> None:
    """Raise UserError for words that no run could answer, before a run is loaded."""
    check_alone("align")
    protocol_of(asked.protocol)
    if asked.batch < 1:
        raise UserError(f"--batch is {asked.batch}; use 1 or more")


def align_report(
    finished, asked: Asked, say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
) -> tuple[dict[str, Any], epath.Path]:
    """Measure how well a finished stage carries keypoints, and write the report into its run's folder (`uld align`).

    Args:
      finished: the stage, from `engine.runs.load` on a mesh of one device.
      asked: what is measured.
      say: function that tells the user what goes on.

    Returns:
      The contents of `<protocol>.json`, and the folder with the files.

    Raises:
      UserError: data, a stage or words that do not go together, before anything is computed.
    """
    check_words(asked)
    check_stage(finished)
    protocol = protocol_of(asked.protocol)
    source = _opened(finished.config, asked, protocol)
    leaked = pf_pascal.leaked(source.where, asked.split)
    carried = carry_all(source, carrier(finished), asked.batch, say)
    measured = {"pck": _pck(protocol, source, carried), "identity": _pck(protocol, source, _identity(source))}
    report = {
        "stage": finished.stage,
        "step": int(finished.model.state.step),
        "images": source.fingerprint,
        "split": asked.split,
        "protocol": protocol.name,
        "choices": protocol._asdict(),
        "frame": source.frame_size,
        "keypoints": int(np.isfinite(source.pairs.xy[:, 0]).all(-1).sum()),
        "all": {"id": protocol.id(asked.split, "all_pairs")} | _mean(measured, np.ones_like(leaked)),
        "leak_free": {"id": protocol.id(asked.split, "leak_free"), "left_out": int(leaked.sum())}
        | _mean(measured, ~leaked),
        "categories": {name: _mean(measured, of) for name, of in _by_category(source).items()},
    }
    own = finished.config.dataset == protocol.dataset
    where = report_folder(finished.workdir, asked.split, "" if own else protocol.dataset, asked.data_dir)
    folder = where / "align" / finished.stage
    files.write(folder / f"{protocol.name}.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    files.write(folder / f"{protocol.name}.csv", files.csv_text(_table(source, leaked, measured)))
    viz.save(_sheet(source, carried, measured["pck"]), folder / "pairs.png")
    return report, folder


def _opened(config, asked: Asked, protocol: AlignmentProtocol) -> Source:
    """Open the split. Raises UserError for data that cannot be measured."""
    own = config.dataset == protocol.dataset
    data_dir = asked.data_dir or (config.data_dir if own else "")
    if not data_dir:
        raise UserError(
            f"the run's data set is {config.dataset}; give the folder of {protocol.dataset} with --data_dir=DIR"
        )
    fit = config.data.fit if own else pf_pascal.FIT
    if fit == "crop":
        raise UserError("the run's data.fit is crop, which cuts keypoints off; measure a run with stretch or pad")
    source = open_source(protocol.dataset, asked.split, data_dir=data_dir, frame_size=config.data.frame_size, fit=fit)
    if source.pairs.xy is None:
        raise UserError(
            f"the list of --split={asked.split} has no keypoints (the columns XA, YA, XB and YB); use --split=test"
        )
    return source


def check_stage(finished) -> None:
    """Raise UserError for a stage that carries no points, naming the run's stages that do."""
    if _carries(finished.model.method) and _shape(finished) is not None:
        return
    built = {name: config_lib.stage(finished.config, name).method for name in finished.config.stages}
    stages = [name for name, method in built.items() if _carries(method) and name != finished.stage]
    other = f"give another one with --stage: {', '.join(stages)}" if stages else "give a run of another method"
    raise UserError(f"stage {finished.stage!r} cannot carry points from one image to another; {other}")


def _carries(method) -> bool:
    return type(method).carry is not Stage.carry


def _shape(finished):
    """Shape of what `carry` returns for one point; None for a stage that cannot. Nothing is computed."""
    side = finished.config.data.frame_size
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
    point = jax.ShapeDtypeStruct((1, 1, 2), np.float32)
    method, state, frozen = finished.model
    return jax.eval_shape(method.carry, state, frozen, image, image, point)


def carrier(finished) -> Carry:
    """Compile the `carry` of a finished stage as a function of images, points and mask.

    Points in empty slots are moved to (0, 0), because their values may be NaN.
    """
    method, state, frozen = finished.model
    program = jax.jit(method.carry)
    clean = jax.jit(lambda points, mask: jnp.where(mask[..., None], points, 0).astype(jnp.float32))
    return lambda a, b, points, mask: program(state, frozen, a, b, clean(points, mask))


def carry_all(source: Source, carry: Carry, batch: int, say: Callable[[str], None] = lambda text: None) -> np.ndarray:
    """Carry the keypoints of all pairs of a source from b to a, [P,K,2] float64 in pixels of files a, NaN where empty.

    Args:
      source: split with pairs that have keypoints.
      carry: function from images and points to points.
      batch: pairs at a time; the last pair fills a batch that is not full.
      say: function called now and then with the number of pairs done so far.
    """
    pairs, patience, found = source.pairs, interrupts.Patience(), []
    known = np.isfinite(pairs.xy[:, 1]).all(-1)
    points = coordinates.file_to_frame(pairs.xy[:, 1], source.frame_maps[pairs.rows[:, 1]]).astype(np.float32)
    for start in range(0, len(pairs.rows), batch):
        some = np.minimum(np.arange(start, start + batch), len(pairs.rows) - 1)
        images = source.images(pairs.rows[some].T.ravel())
        found.append(np.asarray(carry(images[:batch], images[batch:], points[some], known[some]), np.float64))
        if patience.due():
            say(f"{start} of {len(pairs.rows)} pairs carried")
    found = np.concatenate(found)[: len(pairs.rows)]
    return np.where(known[..., None], coordinates.frame_to_file(found, source.frame_maps[pairs.rows[:, 0]]), np.nan)


def _identity(source: Source) -> np.ndarray:
    """Keypoints carried to the same place of the other photo, [P,K,2] in pixels of files a."""
    a, b = source.pairs.rows.T
    return same_place(source.pairs.xy[:, 1], source.file_sizes[b], source.file_sizes[a])


def _pck(protocol: AlignmentProtocol, source: Source, carried: np.ndarray) -> np.ndarray:
    """PCK of each pair, [P] in percent."""
    return pck(correct(protocol, carried, source.pairs.xy[:, 0], source.file_sizes[source.pairs.rows[:, 0]]))


def _mean(measured: Mapping[str, np.ndarray], chosen: np.ndarray) -> dict[str, Any]:
    """Number of the chosen pairs and the means over them; None without any."""
    return {"pairs": int(chosen.sum())} | {k: or_none(known_mean(v[chosen])) for k, v in measured.items()}


def _categories(source: Source) -> np.ndarray:
    """Category of each pair, [P] words."""
    return np.array(source.columns["category"])[source.pairs.rows[:, 0]]


def _by_category(source: Source) -> dict[str, np.ndarray]:
    """The pairs of each category, [P] bool."""
    words = _categories(source)
    return {str(word): words == word for word in np.unique(words)}


def _table(source: Source, leaked: np.ndarray, measured: Mapping[str, np.ndarray]):
    """Lines of the csv, the first with the names of columns."""
    yield ["image_a", "image_b", "category", "in_training", "keypoints", *measured]
    counts = np.isfinite(source.pairs.xy[:, 0]).all(-1).sum(1)
    for pair, (a, b) in enumerate(source.pairs.rows):
        numbers = [f"{values[pair]:.2f}" for values in measured.values()]
        names = source.names[a], source.names[b], source.columns["category"][a]
        yield [*names, int(leaked[pair]), counts[pair], *numbers]


def _sheet(source: Source, carried: np.ndarray, percent: np.ndarray):
    """Picture of a few pairs, evenly spread over the list."""
    pairs = source.pairs
    chosen = np.unique(np.linspace(0, len(pairs.rows) - 1, min(SHOWN, len(pairs.rows))).astype(int))
    a, b = pairs.rows[chosen].T
    points = [pairs.xy[chosen, 1], carried[chosen], pairs.xy[chosen, 0]]
    points = [coordinates.file_to_frame(xy, source.frame_maps[of]) for xy, of in zip(points, (b, a, a), strict=True)]
    words = [f"{word} {value:.0f} %" for word, value in zip(_categories(source)[chosen], percent[chosen], strict=True)]
    return pairs_sheet(source.images(a), source.images(b), *points, words)


def summary(report: Mapping[str, Any]) -> list[str]:
    """Lines that tell a report, a dict as in `<protocol>.json`."""
    share, left_out = report["choices"]["share"], report["leak_free"]["left_out"]
    lines = [
        f"{report['stage']}: {report['protocol']}, split {report['split']}, frame {report['frame']}",
        f"  {'':<22}{'pairs':>6}{f'PCK@{share:g}':>10}{'identity':>10}",
        _line("all pairs", report["all"]),
        _line("not in training", report["leak_free"]) + f"   {left_out} of the training list left out",
    ]
    return lines + [_line(name, each) for name, each in report["categories"].items()]


def _line(name: str, each: Mapping[str, Any]) -> str:
    numbers = "".join(f"{'-' if each[key] is None else f'{each[key]:.2f} %':>10}" for key in ("pck", "identity"))
    return f"  {name:<22}{each['pairs']:>6}{numbers}"
