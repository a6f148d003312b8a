"""Hyper-parameters that say in their types what they may be, checked in one place.

    place: Literal["exemplar", "mean"] = "exemplar"
    sigma: Positive = 1.0

`check` holds a dataclass to that. Its errors, and those of a stage's own `__post_init__`, begin with the key;
`config.stage` puts `config.<stage>.` before it.
"""

import dataclasses
import functools
import typing
from typing import Annotated, Any, Literal, NamedTuple

from uld_jax.errors import UserError


class Range(NamedTuple):
    """Numbers from `low` to `high`; `open_low` and `open_high` leave the ends out."""

    low: float
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Tell whether a number is in the range."""
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self):
        if self.high == float("inf"):
            return f"a number above {self.low:g}" if self.open_low else f"{self.low:g} or more"
        first = f"above {self.low:g}" if self.open_low else f"from {self.low:g}"
        return f"a number {first}, {'below' if self.open_high else 'up to'} {self.high:g}"


Positive = Annotated[float, Range(0, open_low=True)]
PositiveInt = Annotated[int, Range(1)]
NotNegative = Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0, 1, open_low=True)]  # above 0, up to 1
Share = Annotated[float, Range(0, 1, open_high=True)]  # from 0, below 1


@functools.cache
def _allowed(cls: type) -> dict[str, Any]:
    """The `Literal` choices or the `Range` of each field that has either."""
    found = {}
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if typing.get_origin(hint) is Literal:
            found[field.name] = typing.get_args(hint)
        elif typing.get_origin(hint) is Annotated:
            for extra in typing.get_args(hint)[1:]:
                if isinstance(extra, Range):
                    found[field.name] = extra
    return found


def check(values: Any) -> None:
    """Check the fields of a dataclass against their types.

    Raises UserError, which begins with the field's name, for a value that is no choice, or outside the range.
    """
    for name, allowed in _allowed(type(values)).items():
        value = getattr(values, name)
        if isinstance(allowed, Range):
            if not allowed.holds(value):
                raise UserError(f"{name} is {value}; use {allowed}")
        elif value not in allowed:
            raise UserError(f"{name} is {value!r}; use {' or '.join(map(str, allowed))}")
