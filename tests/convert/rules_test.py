import doctest

import numpy as np
import pytest

from uld_jax.convert import rules
from uld_jax.errors import UserError

RULES = [
    rules.Rule("params/conv/kernel", {"conv.weight": (6, 4, 3, 2)}, rules.hwio),
    rules.Rule("params/conv/bias", {"conv.bias": (6,)}),
    rules.Rule("params/norm/scale", {"a": (5,), "b": (5,)}, lambda a, b: a - b),
]


def entries(**changes):
    rng = np.random.default_rng(0)
    found = {key: rng.normal(size=shape).astype(np.float32) for rule in RULES for key, shape in rule.sources.items()}
    for key, value in changes.items():
        found[key.replace("__", ".")] = value
    return {key: value for key, value in found.items() if value is not None}


def refusal(ignored=(), **changes):
    with pytest.raises(UserError) as error:
        rules.apply(RULES, entries(**changes), where="file.pth", ignored=ignored)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_examples():
    result = doctest.testmod(rules)
    assert result.attempted >= 5
    assert result.failed == 0


def test_every_entry_goes_where_its_rule_says():
    found = entries()
    tree = rules.apply(RULES, found, where="file.pth")
    assert set(tree) == {"params"}
    assert set(tree["params"]) == {"conv", "norm"}
    kernel = tree["params"]["conv"]["kernel"]
    for o, i, y, x in np.ndindex(6, 4, 3, 2):
        assert kernel[y, x, i, o] == found["conv.weight"][o, i, y, x]
    np.testing.assert_array_equal(tree["params"]["conv"]["bias"], found["conv.bias"])
    np.testing.assert_array_equal(tree["params"]["norm"]["scale"], found["a"] - found["b"])
    for array in (kernel, tree["params"]["norm"]["scale"]):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous


def test_sources_are_combined_in_float64():
    a, b = np.full(5, 1 + 2.0**-30), np.full(5, 1.0)
    tree = rules.apply(RULES, entries(a=a, b=b), where="file.pth")
    np.testing.assert_array_equal(tree["params"]["norm"]["scale"], np.full(5, 2.0**-30, np.float32))


def test_missing_entries_are_named_and_counted():
    assert "the entry 'conv.bias' is missing;" in refusal(conv__bias=None)
    assert "the entry 'conv.weight' (and 2 more) is missing;" in refusal(conv__weight=None, a=None, b=None)


def test_unused_entries_are_named_and_counted():
    more = dict(steps=np.array(3), steps2=np.array(3), other=np.ones(2))
    assert "the entry 'steps' (and 2 more) is used by nothing" in refusal(**more)
    assert "the entry 'steps2' (and 1 more) is used by nothing" in refusal(["steps"], **more)
    assert "the entry 'other' is used by nothing" in refusal(["steps", "s.*2"], **more)
    rules.apply(RULES, entries(**more), where="file.pth", ignored=["steps2?", "o.her"])


def test_shapes_and_types_are_held():
    said = refusal(conv__weight=np.ones((3, 2, 4, 6)), a=np.ones(4))
    assert "the entry 'conv.weight' (and 1 more) has shape (3, 2, 4, 6), not (6, 4, 3, 2)" in said
    assert "the entry 'b' holds int8 numbers, not floating-point ones" in refusal(b=np.ones(5, np.int8))


def test_all_problems_are_in_one_sentence():
    said = refusal(conv__bias=None, a=np.ones(4), extra=np.ones(1))
    assert said.startswith("file.pth: ")
    assert said.endswith("; check --kind and --src")
    assert said.index("'conv.bias' is missing") < said.index("'a' has shape (4,)") < said.index("'extra' is used by")


def test_what_is_not_finite_is_refused():
    with np.errstate(over="ignore"):
        assert "'conv.bias' give numbers that are not finite" in refusal(conv__bias=np.array([1, 2, np.nan, 3, 4, 5]))
        assert "'a' and 'b' give" in refusal(a=np.full(5, 1e300))  # too large for float32
