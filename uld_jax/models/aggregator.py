"""The aggregation network of diffusion hyperfeatures: one map from many maps of a frozen backbone.

Luo et al., "Diffusion Hyperfeatures", NeurIPS 2023, section 3.1; the feature network of Tourani et al., CVPR 2024.

    aggregated = sum_tl w_tl B_l(maps_tl),  w = softmax over all (t, l)

for timesteps t and taps l, where B_l is a Detectron2 bottleneck on the map resized to the grid. A backbone without
timesteps counts as having one. The order of the sum, and so of the mixing weights, is that of `order`.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from uld_jax.errors import UserError
from uld_jax.models import layers

_TIMED = re.compile(r"t(-?\d+)[.](.+)")


def order(names: Iterable[str]) -> list[list[str]]:
    """Sort names of maps by timestep: a list a timestep, from low (clean) to high, with the same taps in one order.

    `t<step>.<tap>` is a tap at a timestep; if no name has this form, there is one timestep. Taps come in natural order:
    numbers in them count as numbers. The names alone decide, since a dict that enters a jitted program is sorted.
    For Stable Diffusion's maps the order is that of the published checkpoints.

    Raises:
      UserError: no names, or timesteps with different taps.

    >>> order(["t60.up0.1", "t-1.up0.0", "t60.up0.0", "t-1.up0.1"])
    [['t-1.up0.0', 't-1.up0.1'], ['t60.up0.0', 't60.up0.1']]
    >>> order(["block10", "block9"])
    [['block9', 'block10']]
    """
    names = list(names)
    found = [_TIMED.fullmatch(name) for name in names]
    timed = bool(found) and all(found)
    steps = {}
    for name, match in zip(names, found, strict=True):
        steps.setdefault(int(match[1]) if timed else 0, {})[match[2] if timed else name] = name
    taps = [sorted(step, key=_natural) for _, step in sorted(steps.items())]
    if not taps or any(step != taps[0] for step in taps):
        raise UserError(f"maps are called {', '.join(names) or 'nothing'}; give the same taps at each timestep")
    return [[step[tap] for tap in taps[0]] for _, step in sorted(steps.items())]


class Aggregator(nn.Module):
    """Maps of any resolution to one map of `projection` channels.

    A bottleneck's first two convolutions are 1 x 1 and without bias, so that they commute with a bilinear change of
    resolution: both are applied where there are fewer cells. The result is exact at a third of the arithmetic, and the
    backbone's wide maps are never resized to the grid.

    Attributes:
      projection: channels of the result, a multiple of 4.
      timesteps: number of timesteps of the maps; 0 for the number in their names.
      dtype: type of the computation, None for that of the parameters and the maps; the sum is never below float32.
      param_dtype: type of the parameters.

    >>> maps = {"up0.0": jnp.zeros((2, 4, 4, 32)), "up1.0": jnp.zeros((2, 8, 8, 16))}
    >>> network = Aggregator(projection=16)
    >>> params = jax.eval_shape(lambda m: initialize(network, jax.random.key(0), m, (8, 8)), maps)
    >>> jax.eval_shape(lambda p, m: network.apply({"params": p}, m, (8, 8)), params, maps).shape
    (2, 8, 8, 16)
    """

    projection: int = 384
    timesteps: int = 0
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Mapping[str, jax.Array], grid: Sequence[int]):
        """Mix maps {name: [B,h,w,C]} into one of sides `grid` (height, width), [B,height,width,projection] float32.

        Parameters: `bottleneck_<tap>` and `mixing` [T,L], both in the order of `order`. Raises UserError for names
        that `order` refuses, another number of timesteps, or a projection that is no multiple of 4.
        """
        names = order(maps)
        if self.projection < 4 or self.projection % 4:
            raise UserError(f"projection is {self.projection}; use a multiple of 4")
        if self.timesteps and len(names) != self.timesteps:
            raise UserError(f"maps are of {len(names)} timesteps, not {self.timesteps}; use the same timesteps")
        mixing = self.param("mixing", nn.initializers.ones, (len(names), len(names[0])), self.param_dtype)
        weight = jax.nn.softmax(mixing, (0, 1))
        total = 0
        for tap, steps in enumerate(zip(*names, strict=True)):
            # All timesteps share a tap's bottleneck, which treats each map on its own, so they form one batch.
            stacked = jnp.concatenate([maps[name] for name in steps])
            block = _Bottleneck(self.projection, self.dtype, self.param_dtype, name=f"bottleneck_{tap}")
            out = block(stacked, tuple(grid))
            out = out.astype(jnp.promote_types(out.dtype, jnp.float32))
            out = out.reshape(len(steps), -1, *out.shape[1:])
            total += jnp.tensordot(weight[:, tap].astype(out.dtype), out, 1, precision="highest")
        return total


class _Bottleneck(nn.Module):
    """relu(norm3(conv3(relu(norm2(conv2(relu(norm1(conv1(x)))))))) + shortcut(x)), with group normalisation.

    The shortcut is a convolution and its normalisation, or x itself if x already has the result's channels.
    """

    projection: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x, grid: tuple[int, int]):
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        narrow = self.projection // 4
        early = x.shape[1] * x.shape[2] <= math.prod(grid)
        norm = lambda y, number: layers.normalize(y, "group", False, name=f"norm{number}", **options)
        conv = lambda y, width, side, name: layers.conv(y, width, side, kernel_init=_msra, name=name, **options)

        def resized(y):
            return jax.image.resize(y, (len(y), *grid, y.shape[-1]), "bilinear", antialias=False)

        def first(width, name):
            return resized(conv(x, width, 1, name)) if early else conv(resized(x), width, 1, name)

        y = nn.relu(norm(first(narrow, "conv1"), 1))
        y = nn.relu(norm(conv(y, narrow, 3, "conv2"), 2))
        y = norm(conv(y, self.projection, 1, "conv3"), 3)
        if x.shape[-1] == self.projection:
            return nn.relu(y + resized(x).astype(y.dtype))
        return nn.relu(y + norm(first(self.projection, "shortcut"), "_shortcut"))


# Kaiming normal by the fan-out, with the gain of a ReLU.
_msra = nn.initializers.variance_scaling(2, "fan_out", "normal")


def initialize(network: Aggregator, key, maps, grid) -> dict[str, Any]:
    """Draw parameters by the law of `network.init`, but in ONE random draw, which compiles in a fraction of the time.

    Args:
      network: the network, which gives the projection and the types.
      key: PRNG key.
      maps: {name: [B,h,w,C]} as arrays or shapes.
      grid: sides (height, width) of the result.

    Returns:
      Kernels N(0, 2 / fan_out), mixing weights and scales 1, biases 0.
    """
    shapes = jax.eval_shape(lambda k, m: network.init(k, m, grid), key, maps)["params"]
    flat = traverse_util.flatten_dict(shapes)
    sizes = {path: math.prod(leaf.shape) for path, leaf in flat.items() if path[-1] == "kernel"}
    pool = jax.random.normal(key, (sum(sizes.values()),), network.param_dtype)
    params, start = {}, 0
    for path, leaf in flat.items():
        if path in sizes:
            height, width, _, outputs = leaf.shape
            values = pool[start : start + sizes[path]].reshape(leaf.shape) * math.sqrt(2 / (height * width * outputs))
            start += sizes[path]
        else:
            values = jnp.full(leaf.shape, 0.0 if path[-1] == "bias" else 1.0, leaf.dtype)
        params[path] = values.astype(leaf.dtype)
    return traverse_util.unflatten_dict(params)


def _natural(name: str):
    """A sort key that puts `block9` before `block10`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
