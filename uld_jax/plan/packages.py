"""The packages that compile for absent devices, and the command that installs them."""

import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence

from uld_jax.errors import UserError


def need(module: str, extra: str, what: str) -> None:
    """Raise UserError unless a module is installed; see `need_any`."""
    need_any((module,), extra, what)


def need_any(modules: Sequence[str], extra: str, what: str) -> None:
    """Raise UserError unless one of several modules is installed.

    Args:
      modules: their names.
      extra: extra of the installed JAX that has one of them in its version.
      what: devices that the module compiles for.
    """
    if not any(map(_installed, modules)):
        raise UserError(
            f"programs for {what} are compiled by a package that is not installed; run: pip install {command(extra)} "
            "(or pip install -e '.[plan]' for all of `uld plan`)"
        )


def command(extra: str) -> str:
    """Return the words after `pip install` for an extra of the installed JAX.

    >>> command("nothing") == f"'jax[nothing]=={importlib.metadata.version('jax')}'"
    True
    """
    wanted = []
    for line in importlib.metadata.requires("jax") or ():
        requirement, _, condition = line.partition(";")
        if re.search(rf"extra == ['\"]{re.escape(extra)}['\"]", condition) and not requirement.startswith("jaxlib"):
            wanted.append(f"'{requirement.strip()}'")
    return " ".join(wanted) or f"'jax[{extra}]=={importlib.metadata.version('jax')}'"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package is not installed
        return False
