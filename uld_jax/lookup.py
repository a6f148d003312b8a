"""Lookup of classes by the names in a config."""

import importlib

from uld_jax.errors import UserError


def find_class(package: str, path: str, field: str):
    """Find the class `module.Class` of a package, or a class of another package by its full name `a.b.module.Class`.

    Raises UserError, which names `field`, if there is no such class.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module if "." in module else f"{package}.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{field} is {path!r}, but {package} has no such class; write it as module.Class, or the whole name of one "
            f"of your own, package.module.Class ({error})"
        ) from error
