"""Hyper-parameters in sections: building, changing and checking them."""

import dataclasses
import doctest
from typing import Literal

import pytest

from uld_jax import hyperparameters
from uld_jax.errors import UserError
from uld_jax.hyperparameters import Fraction, NotNegative, Positive, PositiveInt, Share


@dataclasses.dataclass(frozen=True)
class Net:
    """A section."""

    width: PositiveInt = 8
    depth: NotNegative = 1


@dataclasses.dataclass(frozen=True)
class Made:
    """A stage."""

    k: int
    net: Net = Net(16)
    kind: Literal["a", "b"] = "a"
    way: Literal["x", "y", "z"] = "x"
    rate: Positive = 0.5
    share: Share = 0.0
    part: Fraction = 1.0

    def __post_init__(self):
        hyperparameters.check(self)


def test_keys_find_their_section():
    assert hyperparameters.build(Made, k=3) == Made(3)
    assert hyperparameters.build(Made, k=3, depth=2).net == Net(16, 2)  # the rest is the field's default
    assert hyperparameters.build(Made, k=3, net={"width": 4}, depth=0).net == Net(4, 0)
    assert hyperparameters.build(Made, k=3, net=Net(5)).net == Net(5)
    made = hyperparameters.replace(Made(3, Net(4, 7)), width=9, kind="b")
    assert made == Made(3, Net(9, 7), "b")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"wdith": 3}, r"^wdith is no hyper-parameter of Made; it has depth, k, kind, part, rate, share, way, width$"),
        ({"net": {"size": 3}}, r"^net\.size is no hyper-parameter of Made; net has width, depth$"),
        ({"kind": "c"}, r"^kind is 'c'; use a or b$"),
        ({"way": "w"}, r"^way is 'w'; use x, y or z$"),
        ({"rate": 0}, r"^rate is 0; use a number above 0$"),
        ({"width": 0}, r"^net\.width is 0; use 1 or more$"),
        ({"depth": -1}, r"^net\.depth is -1; use 0 or more$"),
        ({"share": 1.0}, r"^share is 1\.0; use a number from 0, below 1$"),
        ({"part": 0.0}, r"^part is 0\.0; use a number above 0, up to 1$"),
    ],
)
def test_what_is_wrong_is_said_from_its_key_on(values, words):
    with pytest.raises(UserError, match=words):
        hyperparameters.build(Made, k=3, **values)


def test_examples():
    assert doctest.testmod(hyperparameters).failed == 0
