"""Opening of the splits that a run's config names, and of their readers.

A config is an `ml_collections.ConfigDict` with the keys `dataset`, `data_dir` and `data` of `configs/common.py`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections

from uld_jax.data import make_reader, open_source
from uld_jax.data.partners import ByCategory, ByPairs, law_of
from uld_jax.data.specs import BY_NUMBER, Source, labelled
from uld_jax.errors import UserError

# Keys of config.data that define the measurement of errors, and their values for runs of versions without these keys.
MEASURED_BY = {"scheme": BY_NUMBER, "normaliser": "auto", "sides": "auto"}


class Data(NamedTuple):
    """The two splits of a run and their readers; the readers hold no annotation."""

    train: Source
    test: Source | None
    train_reader: Any
    test_reader: Any

    @property
    def measured(self) -> Source:
        """The split whose images are measured: the test split, or without one the training images."""
        return self.train if self.test is None else self.test


def open_split(
    config: ml_collections.ConfigDict, split: str, dataset: str | None = None, data_dir: str | None = None
) -> Source:
    """Open one split that the config names. Raises UserError for data that cannot be used."""
    name, options = dataset or config.dataset, {}
    if name == "synthetic":
        rows = config.data.rows
        if len(rows) != 2 or not all(isinstance(count, int) and count > 0 for count in rows):
            raise UserError(
                f"data.rows is {rows}; give the numbers of training and of test images, such as (2000, 500)"
            )
        options = {"rows": dict(zip(("train", "test"), rows, strict=True)).get(split)}
    return open_source(
        name,
        split,
        data_dir=config.data_dir if data_dir is None else data_dir,
        frame_size=config.data.frame_size,
        fit=config.data.fit,
        **{key: config.data.get(key, default) for key, default in MEASURED_BY.items()},  # earlier runs lack some
        on_bad_file=config.data.get("on_bad_file", "error"),
        **options,
    )


def open_data(config: ml_collections.ConfigDict, mesh) -> Data:
    """Open both splits of a run and their readers. Raises UserError for data that cannot be used."""
    train = open_split(config, "train")
    check_label_counts(config.eval.label_counts, train, config.eval.pool_images, "eval.label_counts")
    # A folder without a csv has no splits: every name would give all images.
    test = open_split(config, "test") if "test" in train.spec.splits else None
    reader = functools.partial(make_reader, mesh=mesh, kind=config.data.reader, workers=config.data.workers)
    train_reader = reader(train, batch_size=config.batch_size, partner=partner_of(config, train))
    if test is None:
        return Data(train, None, train_reader, None)
    return Data(train, test, train_reader, reader(test, batch_size=eval_batch(config, mesh), held=train_reader.held))


def partner_of(config: ml_collections.ConfigDict, train: Source) -> bool | ByCategory | ByPairs:
    """Return what `make_reader` takes as `partner`. Raises UserError for a law without partners or without images."""
    way = config.data.get("partner_by", "any")  # earlier runs lack the key
    law = law_of(train, way)
    if law is not None and not config.data.partner:
        raise UserError(
            f"config.data.partner_by={way} is not read without a second image; set config.data.partner=True"
        )
    return config.data.partner if law is None else law


def check_label_counts(counts: Sequence[int | str], train: Source, pool_images: int, field: str) -> None:
    """Check numbers of labelled images to fit with against those that there are.

    Args:
      counts: whole numbers and 'all'.
      train: the training split; without any annotation nothing is fitted, and all numbers are allowed.
      pool_images: number of its images that fits are drawn from, see `evaluation.protocol.Protocol`; 0 for all.
      field: name of the counts in the error.

    Raises:
      UserError: a number is above that of the annotated training images, or above `pool_images`.
    """
    most = len(labelled(train))
    most = min(most, pool_images or most)
    above = [count for count in counts if str(count) != "all" and int(count) > most]
    if most and above:
        raise UserError(
            f"{field} holds {above[0]}, but fits are on {most} annotated training images; use numbers up to {most}, or "
            "'all'"
        )


def eval_batch(config: ml_collections.ConfigDict, mesh) -> int:
    """Round `eval.batch_size` up to a multiple of the devices; users need not do so, because evaluation pads."""
    return -(-config.eval.batch_size // mesh.size) * mesh.size
