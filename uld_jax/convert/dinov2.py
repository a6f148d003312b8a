"""Published DINOv2 checkpoints to the parameters of `uld_jax.models.dinov2.Dinov2`: ViT-S, B, L, any registers.

`src` is a folder of transformers (`config.json` beside `model.safetensors` or `pytorch_model.bin`), or a file of one of

  transformers   embeddings.{cls_token, mask_token, position_embeddings, register_tokens, patch_embeddings.projection}
                 encoder.layer.N.{norm1, norm2, layer_scale1.lambda1, layer_scale2.lambda1, mlp.fc1, mlp.fc2}
                 encoder.layer.N.attention.attention.{query, key, value}  .attention.output.dense     as published
                 encoder.layer.N.attention.{q_proj, k_proj, v_proj, o_proj}                           from version 5
                 layernorm
  the original   cls_token mask_token pos_embed register_tokens patch_embed.proj
                 blocks.N.{norm1, norm2, ls1.gamma, ls2.gamma, attn.qkv, attn.proj, mlp.fc1, mlp.fc2}  norm

`mask_token` is for training and ignored. A file alone does not give the number of heads; every published size has
one head for 64 channels.
"""

import re
from typing import Any

import numpy as np

from uld_jax.convert import files, rules
from uld_jax.errors import UserError
from uld_jax.models.dinov2 import HEAD_SIZE, PATCH, depth

IGNORED = (r"(?:embeddings[.])?mask_token",)
# Values that config.json must have for these keys, if it has them: parts of the architecture that weights do not show.
FIXED = {
    "model_type": ("dinov2", "dinov2_with_registers"),
    "hidden_act": ("gelu",),
    "layer_norm_eps": (1e-6,),
    "patch_size": (PATCH,),
    "num_channels": (3,),
    "qkv_bias": (True,),
    "use_swiglu_ffn": (False,),
}
_LORA = re.compile(r".*(?:lora|[.]base_layer[.]).*", re.IGNORECASE)
_GIANT = re.compile(r".*[.]mlp[.](?:w12|w3|weights_in|weights_out|gate_proj)[.]weight")


def open_folder(path: str) -> files.Opened:
    """Open a folder of transformers: its entries, and the number of heads from its `config.json`.

    Raises:
      UserError: a file that is missing or cannot be read, or a folder of another network.
    """
    opened, config = files.open_transformers(path, "dinov2", FIXED, "DINOv2 ViT-S, B or L")
    try:
        heads = int(config.get("num_attention_heads", 0))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"--src={path} holds no config.json that can be read ({type(error).__name__}); get it again"
        ) from error
    return opened._replace(options={"heads": heads})


def convert(entries: rules.Entries, *, where: str, heads: int = 0):
    """Convert the entries to the parameters of a DINOv2; `heads` 0 is one for every 64 channels.

    Raises:
      UserError: entries that do not fit.
    """
    if any(_LORA.fullmatch(key) for key in entries):
        raise UserError(
            f"{where} holds a LoRA, which is no network of its own; merge it into its model and save that: "
            "model.merge_and_unload().save_pretrained(DIR)"
        )
    if any(_GIANT.fullmatch(key) for key in entries):
        raise UserError(f"{where} is the giant DINOv2 (ViT-g), whose perceptron is another; give ViT-S, B or L")
    names = _Original if "pos_embed" in entries or "blocks.0.norm1.weight" in entries else _Transformers
    names = names(entries)
    width = _side(entries, names.cls, -1, 384)
    positions = _side(entries, names.positions, 1, 37**2 + 1)
    registers = _side(entries, names.registers, 1, 0)
    hidden = _side(entries, f"{names.block(0)}.mlp.fc1.weight", 0, 4 * width)
    blocks = len({key.split(".")[names.number] for key in entries if key.startswith(names.blocks)}) or 12
    heads = heads or max(width // HEAD_SIZE, 1)
    if width % heads:
        raise UserError(f"{where}: {width} channels do not divide into {heads} heads; check --kind and --src")
    if round((positions - 1) ** 0.5) ** 2 != positions - 1:
        raise UserError(f"{where}: {positions - 1} position embeddings are no square grid; check --kind and --src")

    made = [
        rules.Rule("cls_token", {names.cls: (1, 1, width)}, _first),
        rules.Rule("position_embeddings", {names.positions: (1, positions, width)}, _first),
        rules.Rule("patch_embed/kernel", {f"{names.patches}.weight": (width, 3, PATCH, PATCH)}, rules.hwio),
        rules.Rule("patch_embed/bias", {f"{names.patches}.bias": (width,)}),
        *_norm("norm", names.norm, width),
    ]
    if registers:
        made.append(rules.Rule("register_tokens", {names.registers: (1, registers, width)}, _first))
    for number in range(blocks):
        block, ours = names.block(number), f"block_{number}"
        for part in ("query", "key", "value"):
            weight, bias, start, parts = names.part(block, part)
            cut = slice(start * width, (start + 1) * width)
            made += [
                rules.Rule(f"{ours}/{part}/kernel", {weight: (parts * width, width)}, _heads(cut, heads)),
                rules.Rule(f"{ours}/{part}/bias", {bias: (parts * width,)}, _heads(cut, heads)),
            ]
        made += [
            rules.Rule(f"{ours}/out/kernel", {f"{names.out(block)}.weight": (width, width)}, _from_heads(heads)),
            rules.Rule(f"{ours}/out/bias", {f"{names.out(block)}.bias": (width,)}),
            *_dense(f"{ours}/fc1", f"{block}.mlp.fc1", width, hidden),
            *_dense(f"{ours}/fc2", f"{block}.mlp.fc2", hidden, width),
        ]
        for i in "12":
            made += _norm(f"{ours}/norm{i}", f"{block}.norm{i}", width)
            made.append(rules.Rule(f"{ours}/scale{i}", {names.scale(block, i): (width,)}))
    return rules.apply(made, entries, where=where, ignored=IGNORED)


def facts(params) -> dict[str, Any]:
    """The facts about the network for `source.json`, which can be read without the weights."""
    registers = params["register_tokens"].shape[0] if "register_tokens" in params else 0
    return {"width": params["cls_token"].shape[-1], "blocks": depth(params), "registers": registers}


class _Transformers:
    """Names of the entries in transformers."""

    cls, positions = "embeddings.cls_token", "embeddings.position_embeddings"
    registers, patches = "embeddings.register_tokens", "embeddings.patch_embeddings.projection"
    norm, blocks, number = "layernorm", "encoder.layer.", 2

    def __init__(self, entries):
        self._renamed = "encoder.layer.0.attention.q_proj.weight" in entries

    def block(self, number):
        return f"encoder.layer.{number}"

    def part(self, block, part):
        """Weight and bias of a part of the attention, its place among the parts in the same array, and their number."""
        name = f"{block}.attention.{part[0]}_proj" if self._renamed else f"{block}.attention.attention.{part}"
        return f"{name}.weight", f"{name}.bias", 0, 1

    def out(self, block):
        return f"{block}.attention.o_proj" if self._renamed else f"{block}.attention.output.dense"

    def scale(self, block, i):
        return f"{block}.layer_scale{i}.lambda1"


class _Original:
    """Names of the entries in the files of the published code."""

    cls, positions, registers, patches = "cls_token", "pos_embed", "register_tokens", "patch_embed.proj"
    norm, blocks, number = "norm", "blocks.", 1

    def __init__(self, entries):
        del entries

    def block(self, number):
        return f"blocks.{number}"

    def part(self, block, part):
        return f"{block}.attn.qkv.weight", f"{block}.attn.qkv.bias", ("query", "key", "value").index(part), 3

    def out(self, block):
        return f"{block}.attn.proj"

    def scale(self, block, i):
        return f"{block}.ls{i}.gamma"


def _side(entries, key, axis, default) -> int:
    """One side of an entry; the default if it is missing, for which the rules then raise an error."""
    shape = entries[key].shape if key in entries else ()
    return shape[axis] if len(shape) > max(axis, 0) else default


def _first(array: np.ndarray) -> np.ndarray:
    return array[0]


def _norm(target, source, width) -> list[rules.Rule]:
    return [
        rules.Rule(f"{target}/scale", {f"{source}.weight": (width,)}),
        rules.Rule(f"{target}/bias", {f"{source}.bias": (width,)}),
    ]


def _dense(target, source, before, after) -> list[rules.Rule]:
    return [
        rules.Rule(f"{target}/kernel", {f"{source}.weight": (after, before)}, np.transpose),
        rules.Rule(f"{target}/bias", {f"{source}.bias": (after,)}),
    ]


def _heads(cut: slice, heads: int):
    """The rows `cut` of a linear layer's weight [O,I], as [I,heads,O/heads], or of a bias [O], as [heads,O/heads]."""
    return lambda array: array[cut].T.reshape(*array.shape[1:], heads, -1)


def _from_heads(heads: int):
    """A linear layer's weight [O,I] as [heads,I/heads,O]."""
    return lambda array: array.T.reshape(heads, -1, array.shape[0])
