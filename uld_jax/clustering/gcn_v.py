"""Confidence of the rows of a kNN graph by GCN-V, with the weights that ship with the library.

The published weights were trained on 256-D descriptors of faces (MS-Celeb-1M); `uld convert --kind=gcn_v` reads them.
The weights here, `gcn_v.npz`, are made by this library: initial weights with which the confidence follows the length of
x / 2 + Âx in any basis, then training on landmarks of its built-in heads, which changes little. They are reproduced by

  uld gcn --synthetic --dst=weights/gcn_v --npz=uld_jax/clustering/gcn_v.npz

in half precision, which moves a confidence by less than 1e-3. `uld_jax/studies/train_gcn.py` describes the training and
its accuracy.
"""

import functools
import importlib.resources
import io
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from uld_jax import files
from uld_jax.clustering import affinity
from uld_jax.errors import UserError
from uld_jax.models.gcn_v import DESCRIPTOR_SIZE, HIDDEN, GcnV
from uld_jax.ops import keypoints


def confidence(params, x, graph, mask=None, *, mesh=None):
    """Confidence and hidden features of every row of a graph.

    Args:
      params: parameters of `GcnV`, from `load_default()`, `uld convert --kind=gcn_v` or `uld gcn`.
      x: [N,D] float descriptors of any length; they are normalised here. Rows of zeros stay zeros.
      graph: the rows' neighbours: `indices` and `similarities` [N,k]; see `affinity.aggregate`.
      mask: [N] bool, False for rows that count nowhere; they may hold anything.
      mesh: mesh over whose axis `data` the rows are split, or None; `affinity.aggregate` says what is then sent. The
        network itself works row by row.

    Returns:
      confidence [N] and hidden [N,hidden], float32 (or wider, as x); both 0 in masked rows.

    Raises:
      UserError: the network is for descriptors of another size.
    """
    if x.shape[-1] != size(params):
        raise UserError(
            f"GCN-V got descriptors of size {x.shape[-1]}, its weights are for {size(params)}; use descriptors of that "
            "size, or clustering=density"
        )
    mask = jnp.ones(x.shape[0], bool) if mask is None else mask
    x = keypoints.unit(jnp.where(mask[:, None], x, 0).astype(jnp.promote_types(x.dtype, jnp.float32)))
    found, hidden = apply(params, x, affinity.aggregate(graph, x, mask, mesh=mesh))
    return jnp.where(mask, found, 0), jnp.where(mask[:, None], hidden, 0)


def apply(params, x, mean):
    """Apply the `GcnV` of the size of `params`."""
    return GcnV(params["conv1"]["kernel"].shape[1]).apply({"params": params}, x, mean)


def size(params) -> int:
    """D: the size of the descriptors that the network was made for."""
    return params["conv1"]["kernel"].shape[0] // 2


def initialize(key, descriptor_size: int = DESCRIPTOR_SIZE, hidden: int = HIDDEN) -> Any:
    """Random initial parameters of a `GcnV`."""
    rows = jnp.zeros((1, descriptor_size))
    return jax.jit(GcnV(hidden).init)(key, rows, rows)["params"]


def load_default() -> Any:
    """Load the parameters that ship with the library: a nested dict of float32 arrays, for descriptors of 256.

    >>> sum(leaf.size for leaf in jax.tree.leaves(load_default()))
    526337
    """
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), _shipped())


@functools.cache
def _shipped():
    with (
        importlib.resources.files("uld_jax.clustering").joinpath("gcn_v.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as found,
    ):
        params: dict[str, Any] = {}
        for path in found.files:
            module, leaf = path.split("/")
            params.setdefault(module, {})[leaf] = found[path]
        return params


def write_half(path: str, params: Any) -> None:
    """Write parameters in the format of the shipped file: in half precision, except for the last bias, one number."""
    flat = {f"{module}/{leaf}": x for module, part in params.items() for leaf, x in part.items()}
    data = io.BytesIO()
    np.savez(data, **{name: np.asarray(x, np.float16 if np.size(x) > 1 else np.float32) for name, x in flat.items()})
    path = os.fspath(path)
    files.write(path if path.endswith(".npz") else f"{path}.npz", data.getvalue())
