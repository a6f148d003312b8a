"""Checks that the tests of converters share."""

import jax
import numpy as np
import pytest

from uld_jax.errors import UserError


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def refusal(convert, entries):
    """The one sentence with which a converter refuses entries."""
    with pytest.raises(UserError) as error:
        convert(entries)
    assert "\n" not in str(error.value)
    return str(error.value)
