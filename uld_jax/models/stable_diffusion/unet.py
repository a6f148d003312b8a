"""The UNet of Stable Diffusion 1.5 and 2.1, whole or up to the last feature map that is wanted.

The UNet has an encoder of residual blocks and transformers, a middle, and a decoder that also sees the encoder's maps.
Feature maps ("taps") are those that diffusion hyperfeatures (Luo et al., NeurIPS 2023) read: the output of the second
convolution in residual block j of decoder block i, BEFORE the input is added to it.

  up0 up1 up2 up3   at 1/8, 1/4, 1/2 and 1/1 of the latents' resolution, 1280 1280 640 320 channels, 3 taps each

The two versions differ in the number of heads, in the size of the prompt, and in whether the transformers' outer
projections are 1 x 1 convolutions or linear layers, which is the same operation.
"""

import math
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uld_jax.errors import UserError
from uld_jax.models import layers
from uld_jax.models.stable_diffusion.attention import attend

LATENT = 4  # channels of a latent
_RESNET, _TRANSFORMER, _LAYER = 1e-5, 1e-6, 1e-5  # epsilons of the normalisations
_BLOCK = "transformer_blocks_0"  # the one block of each transformer


class UNetOutput(NamedTuple):
    """Output of a `UNet`.

    Attributes:
      taps: {"up0.0": [B,h,w,C], ...}, in the order of the decoder.
      output: [B,h,w,4] float32 or wider, the predicted noise or velocity; None when it was not asked for.
    """

    taps: dict[str, jax.Array]
    output: jax.Array | None


class Embedded(NamedTuple):
    """What a `UNet` computes of timesteps and a prompt alone, and is the same for all images; see `embed`.

    Attributes:
      shifts: {residual block: [T,C]}, what is added to the block's channels at each of T timesteps.
      prompts: {transformer: (keys, values)}, [1,S,heads,D] each.
    """

    shifts: dict[str, jax.Array]
    prompts: dict[str, tuple[jax.Array, jax.Array]]


class UNet(nn.Module):
    """Latents, a timestep and a prompt to feature maps.

    Attributes:
      widths: channels of the encoder's blocks; the decoder has them backwards.
      depth: residual blocks in an encoder block; one more in a decoder block.
      heads: heads of the attention in each encoder block; the middle has as many as the last one.
      taps: (decoder block, residual block) of each feature map wanted.
      whole: True to compute the output; False computes nothing behind the last tap.
      attention: one of `attention.WAYS`.
      dtype: type of the arithmetic, None for that of the parameters and the latents; norms, softmax and the last
        convolution have float32 at least.
      param_dtype: type of the parameters.
      precision: precision of all products; accelerators round float32 to 10 bits or fewer by default.

    >>> x, prompt = jax.ShapeDtypeStruct((1, 8, 16, 4), jnp.float32), jax.ShapeDtypeStruct((77, 24), jnp.float32)
    >>> network = UNet(widths=(32, 64), depth=1, heads=(2, 4), taps=((0, 0), (1, 1)))
    >>> variables = jax.eval_shape(network.init, jax.random.key(0), x, jnp.float32(-1), prompt)
    >>> found = jax.eval_shape(network.apply, variables, x, jnp.float32(-1), prompt)
    >>> {name: tap.shape for name, tap in found.taps.items()}, found.output.shape
    ({'up0.0': (1, 4, 8, 64), 'up1.1': (1, 8, 16, 32)}, (1, 8, 16, 4))
    """

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    depth: int = 2
    heads: tuple[int, ...] = (8, 8, 8, 8)
    taps: tuple[tuple[int, int], ...] = ()
    whole: bool = True
    attention: str = "auto"
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = "highest"

    @nn.compact
    def __call__(self, latents, timestep=None, prompt=None, embedded: Embedded | None = None) -> UNetOutput:
        """Apply the network to latents with a timestep each.

        Args:
          latents: [B,h,w,4], sides divisible by 2 for every block but the last.
          timestep: [] or [B], real; -1 is the clean latent of diffusion hyperfeatures.
          prompt: [S,D] or [B,S,D], the text encoder's last hidden state.
          embedded: of T timesteps that divide B, in place of `timestep` and `prompt`: latents are images [B/T] by
            timesteps [T], those of an image side by side.

        Raises UserError for other shapes or a tap that does not exist.
        """
        self._check(latents.shape)
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        if embedded is None:
            prompt = prompt.reshape(-1, *prompt.shape[-2:])
            steps = jnp.atleast_1d(timestep)
            time = TimeEmbedding(4 * self.widths[0], name="time_embedding", **options)(steps, self.widths[0])
            time = nn.silu(time)

        def resnet(x, width, name):
            given = dict(time=time) if embedded is None else dict(shift=embedded.shifts[name])
            return ResnetBlock(width, _RESNET, name=name, **options)(x, **given)

        def transformer(x, level, name):
            seen = prompt if embedded is None else embedded.prompts[name]
            return Transformer(self.heads[level], self.attention, name=name, **options)(x, seen)

        conv = lambda x, width, name, stride=1: layers.conv(x, width, 3, stride=stride, bias=True, name=name, **options)
        levels, kept = len(self.widths), {}

        # Encoder: every intermediate map is kept for the decoder.
        x = conv(latents, self.widths[0], "conv_in")
        skips = [x]
        for level, width in enumerate(self.widths):
            for i in range(self.depth):
                x = resnet(x, width, f"down_blocks_{level}_resnets_{i}").sum
                if level < levels - 1:
                    x = transformer(x, level, f"down_blocks_{level}_attentions_{i}")
                skips.append(x)
            if level < levels - 1:
                x = conv(x, width, f"down_blocks_{level}_downsamplers_0_conv", stride=2)
                skips.append(x)
        # Middle.
        x = resnet(x, self.widths[-1], "mid_block_resnets_0").sum
        x = transformer(x, -1, "mid_block_attentions_0")
        x = resnet(x, self.widths[-1], "mid_block_resnets_1").sum
        # Decoder.
        for block, level in enumerate(reversed(range(levels))):
            for i in range(self.depth + 1):
                x = jnp.concatenate([x, skips.pop()], -1)
                found = resnet(x, self.widths[level], f"up_blocks_{block}_resnets_{i}")
                if (block, i) in self.taps:
                    kept[tap_name(block, i)] = found.branch
                if len(kept) == len(self.taps) and not self.whole:
                    return UNetOutput(kept, None)
                x = found.sum
                if block:
                    x = transformer(x, level, f"up_blocks_{block}_attentions_{i}")
            if level:
                x = conv(layers.upsample(x), self.widths[level], f"up_blocks_{block}_upsamplers_0_conv")
        x = layers.normalize(x, "group", False, epsilon=_RESNET, name="conv_norm_out", **_norm(options))
        x = nn.silu(x).astype(jnp.promote_types(x.dtype, self.param_dtype))
        wide = options | dict(dtype=None)
        return UNetOutput(kept, layers.conv(x, LATENT, 3, bias=True, name="conv_out", **wide))

    def _check(self, shape):
        multiple = 2 ** (len(self.widths) - 1)
        if len(shape) != 4 or shape[-1] != LATENT or shape[1] % multiple or shape[2] % multiple:
            raise UserError(
                f"the UNet got latents of shape {shape}; it takes [B,h,w,{LATENT}] with sides that are multiples of "
                f"{multiple}"
            )
        known = all_taps(len(self.widths), self.depth)
        for tap in self.taps:
            if tap not in known:
                raise UserError(
                    f"the UNet has no tap {tap}; its taps are (0, 0) to {known[-1]}, (decoder block, residual block)"
                )


def all_taps(levels: int = 4, depth: int = 2) -> tuple[tuple[int, int], ...]:
    """Every (decoder block, residual block) of a UNet, in order; 12 as published."""
    return tuple((block, i) for block in range(levels) for i in range(depth + 1))


def tap_name(block: int, i: int) -> str:
    """The name of a tap.

    >>> tap_name(1, 2)
    'up1.2'
    """
    return f"up{block}.{i}"


def of(params, **options) -> UNet:
    """The network of these parameters; `options` are further attributes."""
    widths, depth = [], 0
    while f"down_blocks_{len(widths)}_resnets_0" in params:
        widths.append(params[f"down_blocks_{len(widths)}_resnets_0"]["conv1"]["kernel"].shape[-1])
    while f"down_blocks_0_resnets_{depth}" in params:
        depth += 1
    attentions = [f"down_blocks_{i}_attentions_0" for i in range(len(widths) - 1)] + ["mid_block_attentions_0"]
    heads = tuple(params[name][_BLOCK]["attn1"]["to_q"]["kernel"].shape[1] for name in attentions)
    return UNet(tuple(widths), depth, heads, **options)


def embed(params, timesteps, prompt, **options) -> Embedded:
    """Compute what the network of these parameters needs of timesteps [T] and of one prompt [S,D], for all images.

    `options` are `dtype`, `param_dtype` and `precision` of the network.
    """
    width = params["conv_in"]["kernel"].shape[-1]
    time = TimeEmbedding(4 * width, **options).apply({"params": params["time_embedding"]}, timesteps, width)
    time, shifts, prompts = nn.silu(time), {}, {}
    for name, block in params.items():
        if "time_emb_proj" in block:
            layer = block["time_emb_proj"]
            shifts[name] = nn.Dense(layer["bias"].shape[0], **options).apply({"params": layer}, time)
        if _BLOCK in block:
            layers_of = block[_BLOCK]["attn2"]
            _, heads, size = layers_of["to_k"]["kernel"].shape
            part = _part(heads, heads * size, **options)
            both = (part.apply({"params": layers_of[to]}, prompt[None]) for to in ("to_k", "to_v"))
            prompts[name] = tuple(both)
    return Embedded(shifts, prompts)


def prepare(params, taps, whole: bool, dtype):
    """Keep of the parameters what a network with `Embedded` uses, in the types in which it uses them.

    Args:
      params: of the whole network.
      taps: those of the `UNet`.
      whole: whether the output is wanted; without, everything behind the last tap is left out.
      dtype: type of the arithmetic. Kernels and biases are rounded to it, which the network would do each time;
        normalisations and the last convolution stay as they are.
    """
    last = max(taps, default=(-1, -1))
    kept = {}
    for name, block in params.items():
        found = re.fullmatch(r"up_blocks_(\d+)_(resnets|attentions|upsamplers)_(\d+).*", name)
        if not whole:
            if name in ("conv_norm_out", "conv_out"):
                continue
            # A block's resnet i has the tap; its attention and its upsampling come behind.
            place = found and (int(found[1]), int(found[3]) if found[2] != "upsamplers" else math.inf)
            if found and (place > last if found[2] == "resnets" else place >= last):
                continue
        if name == "time_embedding":
            continue
        block = {key: value for key, value in block.items() if key != "time_emb_proj"}
        if _BLOCK in block:
            inner = block[_BLOCK]
            attention = {key: value for key, value in inner["attn2"].items() if key not in ("to_k", "to_v")}
            block[_BLOCK] = inner | {"attn2": attention}
        kept[name] = block if name == "conv_out" else rounded(block, dtype)
    return kept


def rounded(params, dtype):
    """Round the kernels and biases of a nested dict of parameters to a type, except the biases of normalisations."""
    if any(isinstance(value, dict) for value in params.values()):
        return {name: rounded(value, dtype) for name, value in params.items()}
    return params if "scale" in params else {name: value.astype(dtype) for name, value in params.items()}


def time_features(timestep, size: int):
    """Sinusoids of timesteps [B], [B,size] float32: cosines first, then sines.

    >>> time_features(jnp.array([0.0]), 4).tolist()
    [[1.0, 1.0, 0.0, 0.0]]
    """
    # Every step is in float32, as in diffusers: at large timesteps the last bit of a frequency matters.
    half = size // 2
    exponent = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    angle = timestep.astype(jnp.float32)[:, None] * np.exp(exponent)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


class TimeEmbedding(nn.Module):
    """Two linear layers over the sinusoids of a timestep."""

    features: int
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = "highest"

    @nn.compact
    def __call__(self, timestep, size: int):
        """`timestep` [B] to [B,features]; `size` is the number of sinusoids."""
        # This layer is tiny, and rounding here would affect every residual block.
        options = dict(dtype=_wide(self.dtype), param_dtype=self.param_dtype, precision=self.precision)
        x = time_features(timestep, size).astype(self.param_dtype)
        x = nn.Dense(self.features, name="linear_1", **options)(x)
        return nn.Dense(self.features, name="linear_2", **options)(nn.silu(x))


class Residual(NamedTuple):
    """Output of a residual block before and after its input is added, both [B,h,w,C]."""

    branch: jax.Array
    sum: jax.Array


class ResnetBlock(nn.Module):
    """norm, SiLU, convolution, twice; the timestep is added in between, except in the autoencoder."""

    features: int
    epsilon: float
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = "highest"

    @nn.compact
    def __call__(self, x, time=None, shift=None) -> Residual:
        """`x` [B,h,w,C]; `time` [T,E], after its SiLU, or in its place `shift` [T,features]; T divides B."""
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        conv = lambda y, name, kernel=3: layers.conv(y, self.features, kernel, bias=True, name=name, **options)
        norm = lambda y, name: layers.normalize(y, "group", False, epsilon=self.epsilon, name=name, **_norm(options))
        y = conv(nn.silu(norm(x, "norm1")), "conv1")
        if time is not None:
            shift = nn.Dense(self.features, name="time_emb_proj", **options)(time)
        if shift is not None:
            y += jnp.tile(shift, (len(x) // len(shift), 1))[:, None, None]
        y = conv(nn.silu(norm(y, "norm2")), "conv2")
        return Residual(y, (x if x.shape[-1] == self.features else conv(x, "conv_shortcut", 1)) + y)


class Transformer(nn.Module):
    """A transformer block over all cells of a map, between two linear layers; the input is added to the result."""

    heads: int
    attention: str = "auto"
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = "highest"

    @nn.compact
    def __call__(self, x, prompt):
        """`x` [B,h,w,C], `prompt` [1 or B,S,D] or its keys and values (`Embedded.prompts`)."""
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        width = x.shape[-1]
        y = layers.normalize(x, "group", False, epsilon=_TRANSFORMER, name="norm", **_norm(options))
        y = nn.Dense(width, name="proj_in", **options)(y.reshape(len(x), -1, width))
        y = TransformerBlock(self.heads, self.attention, name=_BLOCK, **options)(y, prompt)
        return x + nn.Dense(width, name="proj_out", **options)(y).reshape(x.shape)


class TransformerBlock(nn.Module):
    """Attention among the cells, attention to the prompt, and a gated perceptron, each added to its input."""

    heads: int
    attention: str = "auto"
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = "highest"

    @nn.compact
    def __call__(self, x, prompt):
        """`x` [B,T,C], `prompt` as in `Transformer`."""
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        norm = lambda y, name: nn.LayerNorm(_LAYER, use_fast_variance=False, name=name, **_norm(options))(y)
        attention = lambda name: Attention(self.heads, self.attention, name=name, **options)
        y = norm(x, "norm1")
        x += attention("attn1")(y, y)
        x += attention("attn2")(norm(x, "norm2"), prompt)
        return x + GatedPerceptron(name="ff", **options)(norm(x, "norm3"))


class Attention(nn.Module):
    """Queries of cells against keys and values of `seen`; the inner projections have no bias."""

    heads: int
    attention: str = "auto"
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = "highest"

    @nn.compact
    def __call__(self, x, seen):
        """Attend from `x` [B,T,C] to `seen`, [1 or B,S,D] or its keys and values [1 or B,S,heads,D], to [B,T,C]."""
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        width = x.shape[-1]
        part = lambda y, name: _part(self.heads, width, name=name, **options)(y)
        # A prompt that is the same for all images has its keys and values once.
        key, value = seen if isinstance(seen, tuple) else (part(seen, "to_k"), part(seen, "to_v"))
        y = attend(part(x, "to_q"), key, value, self.attention, self.precision)
        return nn.DenseGeneral(width, axis=(-2, -1), name="to_out_0", **options)(y)


def _part(heads: int, width: int, **options):
    """Projection to queries, keys or values of `heads` heads, which have `width` channels together."""
    return nn.DenseGeneral((heads, width // heads), use_bias=False, **options)


class GatedPerceptron(nn.Module):
    """GEGLU: the first half of the hidden units times GELU of the second half; GELU by the error function."""

    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = "highest"

    @nn.compact
    def __call__(self, x):
        options = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        y, gate = jnp.split(nn.Dense(8 * x.shape[-1], name="net_0_proj", **options)(x), 2, -1)
        return nn.Dense(x.shape[-1], name="net_2", **options)(y * nn.gelu(gate, approximate=False))


def _norm(options):
    """Options of a normalisation, which has no products."""
    return {name: value for name, value in options.items() if name != "precision"}


def _wide(dtype):
    return None if dtype is None else jnp.promote_types(dtype, jnp.float32)
