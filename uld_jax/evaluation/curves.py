"""Errors as curves over thresholds and as tables over groups of images."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uld_jax.errors import UserError
from uld_jax.evaluation.missing import known_mean, or_none

CED_LIMIT = 25.0  # percent of the normaliser


@dataclasses.dataclass(frozen=True)
class Group:
    """Mean errors of a group of images, in percent of the normaliser; None if no image of the group has one.

    Attributes:
      group: label, such as `0 to 30`, `± 0 to 30`, a value of the column, `outside` or `no value`.
      n: number of images, 1 or more.
      forward_nme, backward_nme, mean_shape_nme: means over the images.
    """

    group: str
    n: int
    forward_nme: float | None = None
    backward_nme: float | None = None
    mean_shape_nme: float | None = None


def ced(errors, limit: float = CED_LIMIT, points: int = 101) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative error distribution over images: thresholds [points] in percent and the share of images at or below.

    >>> ced([1.0, 3.0], limit=4, points=5)[1].tolist()
    [0.0, 0.5, 0.5, 1.0, 1.0]
    """
    errors = np.sort(np.asarray(errors, np.float64))
    errors = errors[np.isfinite(errors)]
    thresholds = np.linspace(0, limit, points)
    return thresholds, np.searchsorted(errors, thresholds, side="right") / max(len(errors), 1)


def ced_auc(errors, limit: float = CED_LIMIT) -> float:
    """Area under the CED up to `limit`, as a fraction of the whole: exactly the mean of max(0, 1 - error / limit)."""
    errors = np.asarray(errors, np.float64)
    return float(known_mean(np.where(np.isnan(errors), np.nan, np.clip(1 - errors / limit, 0, 1))))


def ced_over_landmarks(per_landmark) -> tuple[np.ndarray, np.ndarray]:
    """The curve of Mallis et al.: landmarks sorted by error, and the mean error of the best 1, 2, ... of them.

    >>> [v.tolist() for v in ced_over_landmarks([6.0, 2.0, 4.0])]
    [[1, 2, 3], [2.0, 3.0, 4.0]]
    """
    errors = np.sort(np.asarray(per_landmark, np.float64))
    errors = errors[np.isfinite(errors)]
    count = np.arange(1, len(errors) + 1)
    return count, np.cumsum(errors) / count


def numbers_of(values) -> np.ndarray | None:
    """Values as float64, NaN for empty cells; None if some value is no number."""
    try:
        return np.array([float(v) if str(v).strip() else np.nan for v in values], np.float64)
    except ValueError:
        return None


def group_by(errors: Mapping[str, Any], values: Sequence[Any], edges: Sequence[float] | None = None) -> list[Group]:
    """Mean errors per group of images.

    With edges e0 < e1 < ... an image belongs to the bin e0 <= v < e1 and so on; the last bin holds its upper edge too.
    If all edges are >= 0 and some value is negative, v is the *absolute* value and the label begins with ±:
    `yaw:0,30,60,90` is the distance from a frontal view. Without edges every distinct value is a group, but a column
    of more than 12 different numbers is cut into fifths of equal count. Images without a value, or outside the edges,
    form groups at the end, so that every image is in the table.

    Args:
      errors: [N] errors of the images by their name in `Group`; NaN means not scored.
      values: N values of a column, strings or numbers.
      edges: increasing bin edges, at least two.

    Returns:
      The groups that have images.

    Raises:
      UserError: edges that do not increase, or edges on a column that holds text.

    >>> first = group_by({"forward_nme": [1, 3, 8]}, ["-10", "20", "70"], edges=[0, 30, 90])[0]
    >>> first.group, first.n, first.forward_nme
    ('± 0 to 30', 2, 2.0)
    """
    values = list(values)
    errors = {name: np.asarray(e, np.float64) for name, e in errors.items()}
    if any(len(e) != len(values) for e in errors.values()):
        raise ValueError("group_by takes one value an image")
    numbers = numbers_of(values)
    groups = []
    if edges is None and numbers is not None and len(np.unique(numbers[np.isfinite(numbers)])) > 12:
        edges = np.unique(np.quantile(numbers[np.isfinite(numbers)], np.linspace(0, 1, 6)))
        v, sign = numbers, ""
    elif edges is not None:
        edges = np.asarray(edges, np.float64)
        if len(edges) < 2 or not (np.diff(edges) > 0).all():
            raise UserError("the edges of group_by are at least two increasing numbers, such as yaw:0,30,60,90")
        if numbers is None:
            raise UserError("group_by has edges, but the column holds text; leave the edges out")
        absolute = (edges >= 0).all() and (numbers < 0).any()
        v, sign = (np.abs(numbers), "± ") if absolute else (numbers, "")
    if edges is not None:
        for low, high in itertools.pairwise(edges):
            inside = (v >= low) & ((v <= high) if high == edges[-1] else (v < high))
            groups.append((f"{sign}{_short(low)} to {_short(high)}", inside))
        groups.append(("outside", (v < edges[0]) | (v > edges[-1])))
        groups.append(("no value", np.isnan(v)))
    else:
        text = np.array([str(v).strip() for v in values])
        key = (lambda t: float(t)) if numbers is not None else str
        groups = [(t, text == t) for t in sorted({t for t in text.tolist() if t}, key=key)]
        groups.append(("no value", text == ""))
    return [
        Group(label, int(member.sum()), **{name: or_none(known_mean(e[member])) for name, e in errors.items()})
        for label, member in groups
        if member.any()
    ]


def _short(number: float) -> str:
    return f"{number:.3g}"
