"""Strict conversion: a rule for every array of the target, and an error that names entries without a rule."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from uld_jax.errors import UserError

Entries = Mapping[str, np.ndarray]


def same(array: np.ndarray) -> np.ndarray:
    """Return the array as it is in the file, for biases, scales and statistics."""
    return array


def hwio(kernel: np.ndarray) -> np.ndarray:
    """Transpose a convolution's kernel from [O,I,h,w], the order of PyTorch and Caffe, to [h,w,I,O].

    >>> hwio(np.zeros((64, 3, 7, 5))).shape
    (7, 5, 3, 64)
    """
    return kernel.transpose(2, 3, 1, 0)


class Rule(NamedTuple):
    """A rule that makes one array of the target.

    Attributes:
      target: path of the array, such as `params/conv1/kernel`.
      sources: names of the entries that it is made of, with the shapes that they must have in the file.
      transform: function of these entries, in that order, that returns the array.
    """

    target: str
    sources: Mapping[str, tuple[int, ...]]
    transform: Callable[..., np.ndarray] = same


def apply(rules: Iterable[Rule], entries: Entries, *, where: str, ignored: Iterable[str] = ()) -> dict[str, Any]:
    """Apply `rules` to make the target, a nested dict of float32 arrays.

    Args:
      rules: one rule for every array of the target.
      entries: entries of the source file.
      where: name of the file in error messages.
      ignored: patterns, each matching a whole key, of entries that the target does not need.

    Raises:
      UserError: entries that are missing, have another shape, are not floating-point, or that no rule uses or ignores.
        The message, one sentence, names the first of each sort and the number of others.

    >>> rules = [Rule("conv/kernel", {"c.weight": (8, 3, 1, 1)}, hwio), Rule("conv/bias", {"c.bias": (8,)})]
    >>> found = {"c.weight": np.ones((8, 3, 1, 1)), "c.bias": np.ones(8), "c.step": np.array(3)}
    >>> apply(rules, found, where="c.pth", ignored=[r"c[.]step"])["conv"]["kernel"].shape
    (1, 1, 3, 8)
    >>> apply(rules, found, where="c.pth")
    Traceback (most recent call last):
    uld_jax.errors.UserError: c.pth: the entry 'c.step' is used by nothing; check --kind and --src
    """
    rules = list(rules)
    wanted = {key: tuple(shape) for rule in rules for key, shape in rule.sources.items()}
    useless = re.compile("|".join(f"(?:{pattern})" for pattern in ignored) or r"(?!)")
    missing = [key for key in wanted if key not in entries]
    unused = [key for key in entries if key not in wanted and not useless.fullmatch(key)]
    present = [key for key in wanted if key in entries]
    shapes = [key for key in present if entries[key].shape != wanted[key]]
    kinds = [key for key in present if entries[key].dtype.kind != "f"]
    problems = []
    for keys, problem in (
        (missing, lambda key: "is missing"),
        (shapes, lambda key: f"has shape {entries[key].shape}, not {wanted[key]}"),
        (kinds, lambda key: f"holds {entries[key].dtype} numbers, not floating-point ones"),
        (unused, lambda key: "is used by nothing"),
    ):
        if keys:
            more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            problems.append(f"the entry {keys[0]!r}{more} {problem(keys[0])}")
    if problems:
        raise UserError(f"{where}: {'; '.join(problems)}; check --kind and --src")
    return traverse_util.unflatten_dict({tuple(rule.target.split("/")): _make(rule, entries, where) for rule in rules})


def _make(rule, entries, where):
    # Entries are combined in float64; an entry that is only moved stays the same number in float32.
    with np.errstate(all="ignore"):
        array = rule.transform(*(entries[key].astype(np.float64) for key in rule.sources)).astype(np.float32)
    if not np.isfinite(array).all():
        names = " and ".join(map(repr, rule.sources))
        raise UserError(f"{where}: {names} give numbers that are not finite; the file is damaged, get it again")
    return np.ascontiguousarray(array)
