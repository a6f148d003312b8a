"""DINOv2's vision transformer (Oquab et al., TMLR 2024), with and without registers (Darcet et al., ICLR 2024).

Patches of 14 x 14 pixels become tokens; a class token, and in the second variant four register tokens, go with them
through blocks of attention and a two-layer perceptron, each scaled channel by channel before it is added:

  x = x + s1 * attention(norm1(x))
  x = x + s2 * fc2(gelu(fc1(norm2(x))))          LayerScale s; GELU by the error function, not its tanh approximation

Only patch tokens come out: the class and register tokens have no place in the image.

Position embeddings were learned on a grid of 37 x 37 (518 pixels) and are interpolated to the grid of the image: by
the cubic kernel with a = -0.75 and repeated borders, as PyTorch does, or with registers by PyTorch's antialiased one,
whose kernel has a = -0.5, widens where the grid shrinks, and leaves out cells beyond the border.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.errors import UserError

PATCH = 14  # pixels
HEAD_SIZE = 64  # channels of a head in every published size
EPSILON = 1e-6  # epsilon of the layer normalisations


class Dinov2(nn.Module):
    """Images to patch tokens after chosen blocks.

    Attributes:
      width: C, channels of a token: 384 (ViT-S), 768 (B), 1024 (L).
      heads: heads of the attention.
      hidden: channels within the perceptron.
      registers: number of register tokens; 0 for the variant without them.
      grid: side of the grid that position embeddings were learned on.
      taps: blocks whose output is returned, counted from 0; those after the last are not computed.
      offset: see `cubic_weights`; the original code has 0.1 without registers, transformers has 0.
      dtype: type of the arithmetic, None for the parameters' and the image's; norms and softmax have float32 at least.
      param_dtype: type of the parameters.
      precision: precision of all products; accelerators round float32 to 10 bits or fewer by default.

    >>> images = jax.ShapeDtypeStruct((1, 28, 42, 3), jnp.float32)
    >>> network = Dinov2(width=384, heads=6, hidden=1536, taps=(0, 1))
    >>> variables = jax.eval_shape(network.init, jax.random.key(0), images)
    >>> [x.shape for x in jax.eval_shape(network.apply, variables, images)]
    [(1, 2, 3, 384), (1, 2, 3, 384)]
    """

    width: int
    heads: int
    hidden: int
    registers: int = 0
    grid: int = 37
    taps: tuple[int, ...] = (11,)
    offset: float = 0.0
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = "highest"

    @nn.compact
    def __call__(self, images) -> tuple[jax.Array, ...]:
        """Return one map a tap, [B,H/14,W/14,C], of `images` [B,H,W,3] normalised by `models.resnet.normalize`.

        Every tap passes through the last normalisation, as in the published code. Raises UserError for sides that are
        no multiples of 14.
        """
        batch, height, width, channels = images.shape
        if channels != 3 or height % PATCH or width % PATCH or not height or not width:
            raise UserError(
                f"DINOv2 got images of shape {images.shape}; it takes colour ones [B,H,W,3] whose sides are multiples "
                f"of {PATCH}"
            )
        height, width = height // PATCH, width // PATCH
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        patches = nn.Conv(self.width, (PATCH, PATCH), (PATCH, PATCH), "VALID", name="patch_embed", **options)(images)
        # Step 1) Position embeddings of the class token and of the patches; registers have none.
        learned = self._table("position_embeddings", self.grid**2 + 1)
        place = interpolate(
            learned[1:].reshape(self.grid, self.grid, -1), (height, width), self.offset, self.registers > 0
        )
        special = self._table("cls_token", 1) + learned[:1]
        if self.registers:
            special = jnp.concatenate([special, self._table("register_tokens", self.registers)])
        tokens = (patches + place.astype(patches.dtype)).reshape(batch, height * width, -1)
        special = jnp.broadcast_to(special.astype(tokens.dtype), (batch, *special.shape))
        tokens = jnp.concatenate([special, tokens], 1)
        # Step 2) The blocks, and the last normalisation of the tapped outputs.
        last = _norm("norm", **options)
        maps = {}
        for number in range(max(self.taps) + 1):
            tokens = Block(self.width, self.heads, self.hidden, name=f"block_{number}", **options)(tokens)
            if number in self.taps:
                maps[number] = last(tokens)[:, special.shape[1] :].reshape(batch, height, width, -1)
        return tuple(maps[number] for number in self.taps)

    def _table(self, name, rows):
        return self.param(name, nn.initializers.normal(0.02), (rows, self.width), self.param_dtype)


class Block(nn.Module):
    """Attention and perceptron with their residual connections; attributes as in `Dinov2`."""

    width: int
    heads: int
    hidden: int
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = "highest"

    @nn.compact
    def __call__(self, x):
        """Tokens [B,T,C] to tokens [B,T,C]."""
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        size = self.width // self.heads
        y = _norm("norm1", **options)(x)
        query, key, value = (
            nn.DenseGeneral((self.heads, size), name=name, **options)(y) for name in ("query", "key", "value")
        )
        weight = jnp.einsum("bqhd,bkhd->bhqk", query * size**-0.5, key, precision=self.precision)
        weight = jax.nn.softmax(weight.astype(jnp.promote_types(weight.dtype, jnp.float32))).astype(value.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weight, value, precision=self.precision)
        y = nn.DenseGeneral(self.width, axis=(-2, -1), name="out", **options)(y)
        x = x + y * self._scale("scale1", y.dtype)
        y = _norm("norm2", **options)(x)
        y = nn.gelu(nn.Dense(self.hidden, name="fc1", **options)(y), approximate=False)
        y = nn.Dense(self.width, name="fc2", **options)(y)
        return x + y * self._scale("scale2", y.dtype)

    def _scale(self, name, dtype):
        return self.param(name, nn.initializers.ones, (self.width,), self.param_dtype).astype(dtype)


def _norm(name, precision, **options):
    del precision
    return nn.LayerNorm(EPSILON, use_fast_variance=False, name=name, **options)


def of(params, **options) -> Dinov2:
    """The network of these parameters; `options` are `taps` (the last block by default), `offset` and types.

    >>> images = jax.ShapeDtypeStruct((1, 14, 14, 3), jnp.float32)
    >>> network = Dinov2(width=128, heads=2, hidden=512, registers=4, grid=5, taps=(2,))
    >>> of(jax.eval_shape(network.init, jax.random.key(0), images)["params"]) == network
    True
    """
    first = params["block_0"]
    width, heads = first["query"]["kernel"].shape[:2]
    return Dinov2(
        width=width,
        heads=heads,
        hidden=first["fc1"]["kernel"].shape[-1],
        registers=params["register_tokens"].shape[0] if "register_tokens" in params else 0,
        grid=round((params["position_embeddings"].shape[0] - 1) ** 0.5),
        **{"taps": (depth(params) - 1,)} | options,
    )


def depth(params) -> int:
    """The number of blocks in these parameters."""
    return sum(name.startswith("block_") for name in params)


def interpolate(table, size: tuple[int, int], offset: float = 0.0, antialias: bool = False):
    """Interpolate position embeddings [g,g,C] to a grid of another size, [h,w,C]; an equal size leaves them unchanged.

    >>> interpolate(jnp.ones((37, 37, 2)), (12, 20)).shape
    (12, 20, 2)
    """
    if table.shape[:2] == tuple(size):
        return table
    down, across = (
        jnp.asarray(cubic_weights(old, new, offset, antialias), table.dtype) for old, new in zip(table.shape, size)
    )
    return jnp.einsum("yi,ijc,xj->yxc", down, table, across, precision="highest")


def cubic_weights(old: int, new: int, offset: float = 0.0, antialias: bool = False) -> np.ndarray:
    """The weights [new,old] of PyTorch's bicubic `interpolate` along one axis, `align_corners=False`.

    Args:
      old, new: numbers of cells before and after.
      offset: number added to `new` in the scale factor, (new + offset) / old.
      antialias: True for a kernel that widens with the cells that a new one covers.

    >>> cubic_weights(4, 4).round(6).tolist() == np.eye(4).tolist()
    True
    """
    step = old / (new + offset)
    centre = (np.arange(new) + 0.5) * step - 0.5
    if antialias:
        widen = max(step, 1.0)
        weights = _cubic((np.arange(old) - centre[:, None]) / widen, -0.5)
        return weights / weights.sum(1, keepdims=True)
    weights = np.zeros((new, old))
    first = np.floor(centre).astype(int)
    for tap in range(-1, 3):
        place = first + tap
        # Places beyond the border count for the border's cell.
        np.add.at(weights, (np.arange(new), np.clip(place, 0, old - 1)), _cubic(place - centre, -0.75))
    return weights


def _cubic(x, a: float):
    """The cubic convolution kernel (Keys 1981) at distances x; 0 from 2 on."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
