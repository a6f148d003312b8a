"""Variables of MATLAB's files (`.mat`, version 5), read by SciPy, which runs nothing that they hold."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from uld_jax.errors import UserError


def load(path, *names: str) -> dict[str, Any]:
    """Read variables of a file, {name: value}, with structures as dictionaries and cells as lists or arrays.

    Raises UserError that names the file if SciPy is absent, the file is absent or damaged, or a variable is not in it.
    """
    found = _load(path, names, simplify_cells=True)
    return {name: found[name] for name in names}


def arrays(path, shapes: Mapping[str, tuple[int | None, ...]]) -> dict[str, np.ndarray]:
    """Read variables that are arrays of finite numbers, {name: float64 array}.

    `shapes` holds their shapes by name, with None for any length; MATLAB's arrays have two dimensions or more. Raises
    UserError that names the file as `load` does, and for another shape, text, NaN or infinity.
    """
    found = _load(path, tuple(shapes))
    out = {}
    for name, shape in shapes.items():
        value = found[name]
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
            raise UserError(f"{path}: the variable {name} holds no numbers; get the official file again")
        fits = len(value.shape) == len(shape) and all(b in (None, a) for a, b in zip(value.shape, shape, strict=True))
        if not fits:
            known = " x ".join("n" if n is None else str(n) for n in shape)
            raise UserError(
                f"{path}: the variable {name} is {' x '.join(map(str, value.shape))} where {known} is needed; get the "
                "official file again"
            )
        if not np.isfinite(value).all():
            raise UserError(f"{path}: the variable {name} holds NaN or infinity; get the official file again")
        out[name] = value.astype(np.float64)
    return out


def _load(path, names: tuple[str, ...], **options) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(f"{path} is a MATLAB file, which needs SciPy; run `pip install 'uld_jax[datasets]'`") from None
    try:
        data = epath.Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({(error.strerror or str(error)).lower()}); get the file") from None
    try:
        found = loadmat(io.BytesIO(data), variable_names=list(names), **options)
    except Exception as error:  # SciPy raises errors of many kinds for damaged files
        said = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{path} cannot be read as a MATLAB file ({said}); get the official file again") from None
    lacking = [name for name in names if name not in found]
    if lacking:
        raise UserError(f"{path} has no variable {lacking[0]}; get the official file again")
    return found
