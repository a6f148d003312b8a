"""The protocol of an evaluation, from a config and the data that it measures, and the ids of its numbers.

`config.eval.protocol` is `auto` or the id of a row of `protocols.ROWS`. `auto` takes the row of the run's paper
(`config.eval.paper`) for the data set and its points, if there is one. The row replaces all keys of `config.eval` that
are still those of the paper, and `data.normaliser=auto`. What departs is written behind the id as `+key=value`: other
choices, another data set, another number of images. Without a row the keys stand as they are, and ids are composed of
the data and the choices (`Protocol.id`). So they are for runs of versions without `eval.protocol`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from uld_jax.config import Config
from uld_jax.data import specs
from uld_jax.data.open import Data
from uld_jax.data.specs import DatasetSpec, Source
from uld_jax.errors import UserError
from uld_jax.evaluation import protocols
from uld_jax.evaluation.protocol import Protocol, taken
from uld_jax.evaluation.protocols import AUTO, Row

_STRENGTHS = ("ridge_forward", "ridge_backward")
_PLAIN = ("intercept", "pool_images", "pool_from", "fit_images", "repeats", "backward_draw")  # keys that every id tells


class Chosen(NamedTuple):
    """The protocol of an evaluation.

    Attributes:
      protocol: choices, simplified for the number of training images.
      spec: facts of the measured data; their normaliser is that of the row, unless the config has another.
      row: row of the registry, or None.
      departs: what departs from the row, each as `key=value`, without the treatment of missing points.
    """

    protocol: Protocol
    spec: DatasetSpec
    row: Row | None = None
    departs: tuple[str, ...] = ()

    def pool(self, train: Source) -> np.ndarray:
        """The rows of the pool among the labelled images of the training split, increasing; none without labels."""
        labelled = specs.labelled(train)
        if not len(labelled):
            return labelled
        return labelled[taken(len(labelled), self.protocol.pool_images, self.protocol.pool_from)]

    def id(self, complete: bool) -> str:
        """The id of a number over all landmarks.

        Args:
          complete: True if every landmark was found on every image.
        """
        if self.row is None:
            return self.protocol.id(self.spec.protocol, complete)
        all_landmarks = ["min_found=0"] if self.row.often else []
        return "+".join([self.row.id, *self.departs, *([] if complete else [*self._missing(), *all_landmarks])])

    def often(self) -> str:
        """The id of a number over the landmarks that are found often."""
        if self.row is None:
            return self.protocol.often(self.spec.protocol)
        share = self.protocol.min_found
        same = self.row.often and share == self.row.choices.min_found
        return "+".join([self.row.id, *self.departs, *self._missing(), *([] if same else [f"min_found={share:g}"])])

    def _missing(self) -> list[str]:
        missing = self.protocol.missing
        return [] if missing == self.row.choices.missing else [f"missing={missing}"]


def check(config: Config) -> None:
    """Check the protocol of a config without its data.

    Raises UserError for an id that the registry lacks or that `uld evaluate` does not measure, for an unknown paper,
    and for meaningless values (`Protocol.of`).
    """
    named = config.eval.get("protocol", "")
    if named not in ("", AUTO):
        protocols.row_of(named, "eval.protocol")
    if paper := config.eval.get("paper", ""):
        protocols.published(paper, "eval.paper")
    Protocol.of(config)


def choose(config: Config, data: Data, *, thorough: bool = True, split: str = "test") -> Chosen:
    """Find the protocol of an evaluation, before any compute.

    Args:
      config: config of the run. `eval.given`, which `uld evaluate` sets, names keys of `eval` that were given on the
        command line and depart from a row even where they have the paper's value.
      data: both splits.
      thorough: True for the protocol's whole pool of training images instead of `eval.train_images` of them.
      split: name of the measured split.

    Raises:
      UserError: meaningless values, or an id whose scheme or number of points are not those of the data.
    """
    check(config)
    spec, images = data.measured.spec, len(specs.labelled(data.train))
    row = None if spec.landmarks is None else _row(config, spec)
    protocol = Protocol.of(config) if row is None else _filled(config, row)
    limit = 0 if thorough else config.eval.train_images
    pool = min(filter(None, (limit, protocol.pool_images)), default=0)
    protocol = protocol._replace(pool_images=pool).on(images)
    if row is None:
        return Chosen(protocol, spec)
    if config.data.get("normaliser", AUTO) == AUTO:
        named = specs.spec_of(spec.name, spec.landmarks, scheme=spec.scheme, normaliser=row.data.normaliser)
        spec = spec._replace(normaliser=named.normaliser, eyes=named.eyes)
    return Chosen(protocol, spec, row, tuple(_departs(row, protocol, spec, data, split)))


def _row(config: Config, spec: DatasetSpec) -> Row | None:
    """The row that a config names for its data, or None. Raises UserError for a row of other points."""
    named, paper = config.eval.get("protocol", ""), config.eval.get("paper", "")
    if named in ("", AUTO):
        return protocols.of_paper(paper, spec.name, spec.scheme, spec.landmarks) if named and paper else None
    row = protocols.row_of(named, "eval.protocol")
    if (spec.scheme, spec.landmarks) != (row.data.scheme, row.data.landmarks):
        raise UserError(
            f"eval.protocol={named} is for {row.data.landmarks} points of the scheme {row.data.scheme}, and the data "
            f"set {spec.name} has {spec.landmarks} of the scheme {spec.scheme}; use eval.protocol=auto, or set "
            f"data.scheme={row.data.scheme} if that is what the points are"
        )
    return row


def _filled(config: Config, row: Row) -> Protocol:
    """The choices of a row, with those keys of a config that were changed."""
    values, paper = Protocol.of(config), config.eval.get("paper", "")
    usual = protocols.published(paper, "eval.paper") if paper else row.choices
    given = config.eval.get("given", ())
    changed = [name for name in Protocol._fields if name in given or getattr(values, name) != getattr(usual, name)]
    return row.choices._replace(**{name: getattr(values, name) for name in changed}).checked()


def _departs(row: Row, protocol: Protocol, spec: DatasetSpec, data: Data, split: str) -> Iterator[str]:
    """Tell what of an evaluation departs from its row."""
    images, official = len(specs.labelled(data.train)), row.data
    if spec.name != official.name:
        yield f"data={spec.name}"
    if spec.partial:
        yield f"train_images={images}"
        yield f"test_images={0 if data.test is None else len(data.test)}"
    elif spec.name == official.name:
        yield from protocols.counts(official, images, 0 if data.test is None else len(data.test))
    if split != "test":
        yield f"split={split}"
    for key in ("normaliser", "sides"):
        if getattr(spec, key) != getattr(official, key):
            yield f"{key}={getattr(spec, key)}"
    usual = row.choices.on(official.train_images or _MANY)
    yield from _strengths(protocol, usual)
    for key in _PLAIN:
        if getattr(protocol, key) != getattr(usual, key):
            yield _told(key, getattr(protocol, key))


_MANY = 10**9  # images of a training split whose number no source gives: more than any pool


def _strengths(protocol: Protocol, usual: Protocol) -> Iterator[str]:
    """Tell ridge strengths that are not the usual ones; one word for both if they are equal."""
    other = [key for key in _STRENGTHS if getattr(protocol, key) != getattr(usual, key)]
    if other and protocol.ridge_forward == protocol.ridge_backward:
        yield _told("ridge", protocol.ridge_forward)
    else:
        yield from (_told(key, getattr(protocol, key)) for key in other)


def _told(key: str, value: Any) -> str:
    return f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
