"""Evaluation of the points that a table holds, of any program: `uld evaluate --predictions=landmarks.csv`.

The table has the layout of `uld predict` (`data.annotation.read_points`). Its points are measured as those of a run
are: they are brought into the frame, the square of side `frame_size` into which every photo is fitted, a regression is
fitted on the training split, and the test split is scored. With `fit="pad"` a frame is the photo itself, moved and
scaled, and as errors are divided by a length of the photo, they hardly depend on the frame's side: not at all with the
usual ridge, and by less than a pixel of the frame for a protocol without intercept or with completed points. With
`crop` and `stretch` errors are those of the cut or stretched photo.

A point beyond its photo counts as found, where it is, like a landmark that a run places on the frame's padding. One
that lies farther away than the photo's longer side is refused, because the table cannot be in pixels of the photo.
"""

import dataclasses
import types
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from uld_jax import files, viz
from uld_jax.config import Config
from uld_jax.data import Source
from uld_jax.data.annotation import Points, read_points
from uld_jax.data.folder import check_points
from uld_jax.data.names import Index
from uld_jax.data.open import Data, check_label_counts, open_split
from uld_jax.data.schemes import NO_SCHEME
from uld_jax.errors import UserError
from uld_jax.evaluation.chosen import Chosen, choose
from uld_jax.evaluation.measure import measure_points
from uld_jax.evaluation.pictures import contact_sheet
from uld_jax.evaluation.predictor import Found
from uld_jax.evaluation.report import Report, metrics, write_report
from uld_jax.evaluation.run import check_alone, give, under
from uld_jax.ops import coordinates

FRAME = 160  # px, that of the presets `paper`
PROTOCOL = "awan2023"  # unless another one is asked for
_NAMED = 5  # number of images that an error names


class Asked(NamedTuple):
    """What a user asks for.

    Attributes:
      table: csv of the points.
      out: folder for the report.
      dataset: `folder`, or the name of a prepared data set; empty for `folder`.
      data_dir: folder of the images and their annotation.
      split: split to measure on; regressions are fitted on `train`.
      frame_size: side of the frame in pixels.
      fit: way to fit photos into the frame, see `data.open_source`; empty for the data set's own.
      scheme: name of the annotated points' scheme; empty for none.
      normaliser: what errors are divided by; empty for the scheme's.
      protocol: name of a paper's protocol, or an id; empty for `PROTOCOL`.
      settings: keys of the protocol that replace those of `protocol`.
      overrides: KEY=VALUE of `eval` and `data.open.MEASURED_BY`, applied last.
      group_by, label_counts: see `measure.measure`.
      direct: True compares the points with the annotated ones as they are, see `direct`.
    """

    table: str
    out: str
    dataset: str = ""
    data_dir: str = ""
    split: str = "test"
    frame_size: int = FRAME
    fit: str = ""
    scheme: str = ""
    normaliser: str = ""
    protocol: str = ""
    settings: Mapping[str, Any] = types.MappingProxyType({})
    overrides: Sequence[str] = ()
    group_by: str = ""
    label_counts: Sequence[Any] = ()
    direct: bool = False


def evaluate_points(asked: Asked) -> tuple[dict[str, Any], epath.Path]:
    """Measure the points of a table against a data set's annotation, and write the report.

    Returns:
      The numbers as in `metrics.json`, and the folder with the files: those of `report.write_report`, and
      `contact_sheet.png`.

    Raises:
      UserError: words, a table and data that do not go together, before anything is fitted.
    """
    _check_words(asked)
    config = _config(asked)
    train, test = (open_split(config, split) for split in ("train", asked.split))
    data = Data(train, test, None, None)
    if not asked.direct and (both := set(train.names) & set(test.names)):
        raise UserError(
            f"{min(both)} is an image of both splits train and {asked.split}, and a row of {asked.table} could be "
            "either; give the images of the splits different names"
        )
    chosen = choose(config, data, split=asked.split)
    check_label_counts(asked.label_counts, train, chosen.protocol.pool_images, "--label_counts")
    points = read_points(asked.table, train.data_dir or asked.data_dir, Index([*train.names, *test.names]))
    table = _Table(points, asked.table)
    table.check(_read(data, asked, chosen))
    options = dict(group_by=asked.group_by, label_counts=asked.label_counts, direct=asked.direct, split=asked.split)
    report = measure_points(config, table.on, data, chosen=chosen, **options)
    return _write(report, test, asked)


def _check_words(asked: Asked) -> None:
    """Raise UserError for words that no table could answer."""
    check_alone("evaluate --predictions")
    if asked.dataset == "synthetic":
        raise UserError("--dataset=synthetic has no files that --predictions could name; give --dataset=folder")
    if asked.split == "train":
        raise UserError("--split=train is the split that regressions are fitted on; give another one, such as test")
    if asked.direct:
        fitted = {"--protocol": asked.protocol, "--label_counts": asked.label_counts}
        fitted |= {f"--{key}": True for key in asked.settings}
        if given := [flag for flag, value in fitted.items() if value]:
            raise UserError(f"{given[0]} is about regression, and --direct compares points without; leave one out")
    files.check_writable(asked.out, "out")
    out = epath.Path(asked.out)
    if out.exists() and not (out / "metrics.json").exists() and next(iter(out.iterdir()), None) is not None:
        raise UserError(f"--out={out} is a folder of something else (it has no metrics.json); give a new or empty one")


def _config(asked: Asked) -> Config:
    """The keys that opening the data and measuring read. Raises UserError for unknown names and meaningless values."""
    config = Config(
        dict(
            seed=0,
            dataset=asked.dataset or "folder",
            data_dir=asked.data_dir,
            data=dict(
                frame_size=asked.frame_size,
                fit=asked.fit,
                scheme=asked.scheme or NO_SCHEME,
                normaliser=asked.normaliser or "auto",
                sides="auto",
                on_bad_file="error",
            ),
            eval=dict(train_images=0),
        )
    )
    config = under(config, asked.protocol or PROTOCOL)
    give(config, asked.settings, asked.overrides)  # refuses meaningless values before files are read
    return config


def _read(data: Data, asked: Asked, chosen: Chosen) -> list[tuple[str, Source, np.ndarray]]:
    """The images of which points are needed: the name of a split, the split, and the numbers of its rows."""
    needed = [(asked.split, data.test, np.arange(len(data.test)))]
    if not asked.direct:
        needed.insert(0, ("train", data.train, chosen.pool(data.train)))
    return needed


class _Table:
    """The points of a table by image, as `measure_points` asks for them."""

    def __init__(self, points: Points, path: str):
        self._points, self._path = points, path
        self._row_of = {name: row for row, name in enumerate(points.names)}

    def check(self, needed: Sequence[tuple[str, Source, np.ndarray]]) -> None:
        """Raise UserError, naming the images, if the table lacks some, or the line of a point far from its photo.

        Warns of points beyond their photos.
        """
        lacking = {split: self._absent(source, rows) for split, source, rows in needed}
        said = [
            f"{len(absent)} of the {len(rows)} {'annotated ' if split == 'train' else ''}{split} images "
            f"({', '.join(absent[:_NAMED])}{', ...' if len(absent) > _NAMED else ''})"
            for (split, _, rows), absent in zip(needed, lacking.values(), strict=True)
            if absent
        ]
        if said:
            where = needed[0][1].where or "the data set"
            raise UserError(
                f"{self._path} has no row for {' and for '.join(said)} of {where}; add a row for each, named "
                "relative to that folder, with empty cells where a point is missing"
            )
        for _, source, rows in needed:
            lines = [self._points.lines[at] for at in self._at(source, rows)]
            place = lambda row, lines=lines: f"{self._path}, line {lines[row]}"
            check_points(self._points.xy[self._at(source, rows)], source.file_sizes[rows], place, padded=True)
        beyond = sum(self._beyond(source, rows) for _, source, rows in needed)
        if beyond:
            warnings.warn(f"{self._path}: {beyond} points lie outside their photos, and count as found", stacklevel=2)

    def on(self, source: Source, rows: np.ndarray) -> Found:
        """The points of some rows of a split, in pixels of the frame."""
        at = self._at(source, rows)
        xy = coordinates.file_to_frame(self._points.xy[at], source.frame_maps[rows])
        score = self._points.score[at].astype(np.float32)
        return Found(np.nan_to_num(xy).astype(np.float32), score, score > 0)

    def _at(self, source: Source, rows: np.ndarray) -> np.ndarray:
        return np.array([self._row_of[source.names[row]] for row in rows], np.int64)

    def _absent(self, source: Source, rows: np.ndarray) -> list[str]:
        return [source.names[row] for row in rows if source.names[row] not in self._row_of]

    def _beyond(self, source: Source, rows: np.ndarray) -> int:
        """The number of points that lie outside their photos."""
        xy, last = self._points.xy[self._at(source, rows)], source.file_sizes[rows][:, None, ::-1] - 0.5
        return int(((xy < -0.5) | (xy > last)).any(-1).sum())


def _write(report: Report, test: Source, asked: Asked) -> tuple[dict[str, Any], epath.Path]:
    """Write the report; return the numbers and the folder."""
    report = dataclasses.replace(report, split=asked.split)
    folder = epath.Path(asked.out)
    write_report(report, folder)
    viz.save(contact_sheet(test, report), folder / "contact_sheet.png")
    return metrics(report), folder
