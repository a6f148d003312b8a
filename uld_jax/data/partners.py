"""Laws of the second image of a training sample: an image of the same category, or the other one of a listed pair.

`config.data.partner_by` names the law. Without one the partner is any other image (`pipeline.Order`). The category is
the csv column `category` of a folder, or that of the data set; pairs are listed by the data set (`specs.Pairs`).
"""

from typing import NamedTuple

import numpy as np

from uld_jax.data import objects
from uld_jax.data.specs import Source
from uld_jax.errors import UserError

WAYS = ("any", "category", "pairs")  # of config.data.partner_by


class ByCategory(NamedTuple):
    """Partners of the image's own category; each other image of the category is equally likely.

    Attributes:
      members: [2N] int32, rows by category; those of a category stand there twice, one time after the other.
      start: [N] int64, place of the first partner of a row in `members`.
      count: [N] int64, number of partners of a row, whose places follow one another.
    """

    members: np.ndarray
    start: np.ndarray
    count: np.ndarray

    def partners(self, rows: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Return the partners of rows, [...] int32, by random bits, [...] uint64."""
        drawn = (bits % self.count[rows].astype(np.uint64)).astype(np.int64)
        return self.members[self.start[rows] + drawn]


class ByPairs(NamedTuple):
    """Samples that are listed pairs: every pair comes equally often, so an image comes as often as it is paired.

    Attributes:
      rows: [P,2] int32, rows of an image and of its partner.
    """

    rows: np.ndarray


def by_category(numbers: np.ndarray) -> ByCategory:
    """Make the law for images of categories [N], each of which has two images or more.

    >>> law = by_category(np.array([1, 0, 1, 1, 0]))
    >>> law.partners(np.arange(5), np.uint64([0, 0, 0, 1, 7])).tolist()
    [2, 4, 3, 2, 1]
    """
    order = np.argsort(numbers, kind="stable")
    size = np.bincount(numbers)
    first = np.concatenate([[0], np.cumsum(size)[:-1]])  # of a category in `order`
    members = np.concatenate([np.tile(order[a : a + n], 2) for a, n in zip(first, size, strict=True)])
    place = np.empty(len(numbers), np.int64)
    place[order] = np.arange(len(numbers)) + first[numbers[order]]  # all categories before stand there twice
    return ByCategory(members.astype(np.int32), place + 1, size[numbers] - 1)


def law_of(source: Source, way: str) -> ByCategory | ByPairs | None:
    """Return the law that `config.data.partner_by` names, for the images of a source; None for `any`.

    Raises UserError for another word, and for data without categories or pairs. An image that is alone in its category
    is an error too, because no other image can be its partner.
    """
    if way not in WAYS:
        raise UserError(f"config.data.partner_by is {way!r}; use one of {', '.join(WAYS)}")
    if way == "any":
        return None
    if way == "pairs":
        if source.pairs is None:
            raise UserError(
                f"config.data.partner_by=pairs needs pairs of images, and the data set {source.spec.name} lists none; "
                "use category or any"
            )
        return ByPairs(source.pairs.rows)
    numbers = objects.categories(source)
    alone = np.flatnonzero(np.bincount(numbers)[numbers] == 1)
    if len(alone):
        row = int(alone[0])
        more = f" (so are {len(alone) - 1} more)" if len(alone) > 1 else ""
        raise UserError(
            f"{source.place(row)}: {source.names[row]} is the only image of the category "
            f"{source.columns[objects.CATEGORY][row].strip()!r}{more}, and config.data.partner_by=category needs two "
            "or more; add images, or leave it out"
        )
    return by_category(numbers)
