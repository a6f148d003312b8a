"""Hyper-parameters whose types give their allowed values, checked in one place.

    place: Literal["exemplar", "mean"] = "exemplar"
    sigma: Positive = 1.0

`check` compares a dataclass with its types. Its errors, and those of a stage's own `__post_init__`, begin with the
key; `config.stage` puts `config.<stage>.` before the key.
"""

import dataclasses
import functools
import typing
from collections.abc import Mapping
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
NotNegativeFloat = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1, open_low=True)]  # above 0, up to 1
Share = Annotated[float, Range(0, 1, open_high=True)]  # from 0, below 1


@functools.cache
def _allowed(cls: type) -> dict[str, Any]:
    """Return the `Literal` choices or the `Range` of each field that has either."""
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
    """Check the fields of a dataclass, and of the dataclasses in its fields, against their types.

    Raises UserError, which begins with the field's name, for a value that is not a choice or is outside the range.
    """
    for name, allowed in _allowed(type(values)).items():
        value = getattr(values, name)
        if isinstance(allowed, Range):
            if not allowed.holds(value):
                raise UserError(f"{name} is {value}; use {allowed}")
        elif value not in allowed:
            *others, last = map(str, allowed)
            raise UserError(f"{name} is {value!r}; use {' or '.join(filter(None, [', '.join(others), last]))}")
    for part in sections(type(values)):
        try:
            check(getattr(values, part))
        except UserError as error:
            raise UserError(f"{part}.{error}") from None


@functools.cache
def sections(cls: type) -> dict[str, type]:
    """Return the fields of a dataclass that are dataclasses themselves, by name."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if dataclasses.is_dataclass(hints[f.name])}


def nested(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Put each hyper-parameter of a dataclass into its section, such as `width` of a stage into its section `net`.

    A key without a section belongs to the only section that has it, so that flat configs of earlier versions work.

    Raises UserError, which begins with the key, for a key that the class does not have.
    """
    parts, own = sections(cls), {f.name for f in dataclasses.fields(cls)}
    within = {f.name: part for part, kind in parts.items() for f in dataclasses.fields(kind)}
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in parts and isinstance(value, Mapping):
            found[key] = {**found.get(key, {}), **value}
        elif key in own:
            found[key] = value
        elif key in within:
            found[within[key]] = {**found.get(within[key], {}), key: value}
        else:
            known = ", ".join(sorted((own - set(parts)) | set(within)))
            raise UserError(f"{key} is no hyper-parameter of {cls.__name__}; it has {known}")
    return found


def build(cls: type, /, **values: Any) -> Any:
    """Build a dataclass from keys with or without their sections; see `nested`.

    A section that is given in part takes its other values from the field's default.

    Raises UserError, which begins with the key, for a key that the class or section does not have.
    """
    found = nested(cls, values)
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    for part, kind in sections(cls).items():
        if isinstance(given := found.get(part), Mapping):
            if unknown := sorted(set(given) - {f.name for f in dataclasses.fields(kind)}):
                known = ", ".join(f.name for f in dataclasses.fields(kind))
                raise UserError(f"{part}.{unknown[0]} is no hyper-parameter of {cls.__name__}; {part} has {known}")
            found[part] = dataclasses.replace(defaults[part], **given)
    return cls(**found)


def replace(instance: Any, /, **changes: Any) -> Any:
    """Return a copy of a dataclass with some keys changed, with or without their sections; see `nested`."""
    found = nested(type(instance), changes)
    for part in sections(type(instance)):
        if isinstance(given := found.get(part), Mapping):
            found[part] = dataclasses.replace(getattr(instance, part), **given)
    return dataclasses.replace(instance, **found)
