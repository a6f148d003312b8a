"""Classes by the name that a config gives them."""

import importlib

from uld_jax.errors import UserError


def find_class(package: str, path: str, field: str):
    """The class `module.Class` of a package; `field` is named in the error."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(f"{package}.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{field} is {path!r}, but {package} has no such class; write it as module.Class ({error})"
        ) from error
