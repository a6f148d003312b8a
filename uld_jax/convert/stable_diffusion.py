"""Published Stable Diffusion 1.5 and 2.1 to the parameters of `uld_jax.models.stable_diffusion`.

`src` is a folder of diffusers, as such models are published:

  unet/config.json        unet/diffusion_pytorch_model.safetensors         or .fp16.safetensors, or .bin
  vae/config.json         vae/diffusion_pytorch_model.safetensors          or as for unet; its decoder is not read
  scheduler/scheduler_config.json                                          noise schedule, and what the UNet predicts
  text_encoder/config.json text_encoder/model.safetensors                  or .fp16.safetensors, or pytorch_model.bin
  tokenizer/vocab.json     tokenizer/special_tokens_map.json               or tokenizer.json, tokenizer_config.json

Features use only the empty prompt, whose embedding is one array [77, D]: the text encoder (CLIP) is run on it here,
once, in float32, and not kept. If a folder has `empty_prompt.npy`, that array is used, and neither text encoder nor
tokenizer is needed.

Old autoencoders name the parts of their attention `query`, `key`, `value`, `proj_attn`, and may store them as 1 x 1
convolutions; they are read like `to_q`, `to_k`, `to_v`, `to_out.0`.

The result is a nested dict,

  unet, vae         parameters
  empty_prompt      [77, D], embedding of the empty prompt
  alphas_cumprod    [1000], a_t of `models/stable_diffusion/schedule`
  v_prediction      1 if the UNet predicts velocity (2.1 at 768 pixels), 0 if noise
  scaling_factor    factor of latents
"""

import functools
import json
import math
import os
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from uld_jax.convert import files, rules
from uld_jax.errors import UserError
from uld_jax.models.stable_diffusion import schedule, unet, vae

_DIFFUSERS = tuple(f"diffusion_pytorch_model{suffix}" for suffix in (".safetensors", ".fp16.safetensors", ".bin"))
_TRANSFORMERS = ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin")
_PROMPT = "empty_prompt.npy"
_LORA = re.compile(r".*(?:lora|[.]base_layer[.]).*", re.IGNORECASE)
# Values that the two config.json must have for these keys, if they have them: the fixed parts of the architecture.
UNET = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": None,
    "in_channels": 4,
    "out_channels": 4,
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "timestep_post_act": None,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "center_input_sample": False,
    "downsample_padding": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "mid_block_scale_factor": 1,
    "transformer_layers_per_block": 1,
    "only_cross_attention": False,
    "dual_cross_attention": False,
    "cross_attention_norm": None,
    "attention_type": "default",
    "num_attention_heads": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "latent_channels": 4,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "use_quant_conv": True,
    "mid_block_add_attention": True,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}
SCHEDULER = {"trained_betas": None, "rescale_betas_zero_snr": False}
TEXT = {"model_type": "clip_text_model", "layer_norm_eps": 1e-5}
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_PUBLISHED = "give Stable Diffusion 1.5 or 2.1"


class Settings(NamedTuple):
    """The config files of a folder, and the token numbers of the empty prompt.

    Attributes:
      unet, vae, scheduler: contents of their config files.
      text: contents of the text encoder's config file; None if the embedding is given.
      tokens: token numbers of the empty prompt; None if the embedding is given.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    scheduler: dict[str, Any]
    text: dict[str, Any] | None
    tokens: list[int] | None


def open_folder(path: str) -> files.Opened:
    """Open a folder of diffusers: entries behind `unet.`, `vae.` and `text.` or `empty_prompt`, and its `Settings`.

    Raises:
      UserError: a file that is missing or cannot be read, or a folder of another network.
    """
    _refuse_others(path)
    settings, paths = {}, []
    for part, name in (("unet", "config"), ("vae", "config"), ("scheduler", "scheduler_config")):
        settings[part], file = _json(path, part, f"{name}.json")
        paths.append(file)
    for part, fixed in (("unet", UNET), ("vae", VAE), ("scheduler", SCHEDULER)):
        _check(os.path.join(path, part), settings[part], fixed)

    entries = {}
    for part in ("unet", "vae"):
        found, file = _weights(path, part, _DIFFUSERS)
        entries |= {f"{part}.{key}": value for key, value in found.items()}
        paths.append(file)
    given = os.path.join(path, _PROMPT)
    if os.path.exists(given):
        try:
            entries["empty_prompt"] = np.load(given, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{given} cannot be read as an array ({type(error).__name__}); make it again") from error
        return files.Opened(entries, [*paths, given], {"settings": Settings(**settings, text=None, tokens=None)})

    if not os.path.isdir(os.path.join(path, "text_encoder")):
        raise UserError(
            f"--src={path} holds neither text_encoder nor {_PROMPT}; get text_encoder and tokenizer of the same model, "
            f"or save the empty prompt's embedding, [77, D], as {_PROMPT}"
        )
    text, file = _json(path, "text_encoder", "config.json")
    _check(os.path.join(path, "text_encoder"), text, TEXT)
    paths.append(file)
    found, file = _weights(path, "text_encoder", _TRANSFORMERS)
    entries |= {f"text.{key}": value for key, value in found.items()}
    tokens, used = _tokens(path, int(text.get("max_position_embeddings", 77)))
    return files.Opened(entries, [*paths, file, *used], {"settings": Settings(**settings, text=text, tokens=tokens)})


def convert(entries: rules.Entries, *, where: str, settings: Settings | None = None) -> dict[str, Any]:
    """Convert the entries to the dict in the module's docstring, float32.

    Raises:
      UserError: entries that do not fit, or entries of a single file.
    """
    if any(_LORA.fullmatch(key) for key in entries):
        raise UserError(
            f"{where} holds a LoRA, which is no network of its own; merge it into its model and save that: "
            "pipeline.fuse_lora(), pipeline.unload_lora_weights(), pipeline.save_pretrained(DIR)"
        )
    if settings is None:
        if any(key.startswith("conditioner.embedders.") for key in entries):
            raise UserError(f"{where} is Stable Diffusion XL; {_PUBLISHED}")
        whole = any(key.startswith("model.diffusion_model.") for key in entries)
        what = "is a checkpoint of the original code in one file" if whole else "is a file"
        raise UserError(
            f"{where} {what}; give the folder of diffusers, with unet, vae, text_encoder and scheduler in it"
        )
    parts = {part: {} for part in ("unet", "vae", "text")}
    for key, value in entries.items():
        part, _, name = key.partition(".")
        if part in parts:
            parts[part][name] = value
    size = settings.unet.get("cross_attention_dim", 1280)
    converted = {
        "unet": _unet(parts["unet"], settings.unet, size, f"{where}/unet"),
        "vae": _vae(parts["vae"], settings.vae, f"{where}/vae"),
    }
    if settings.text is None:
        prompt, origin = _given(entries["empty_prompt"], f"{where}/{_PROMPT}"), _PROMPT
    else:
        prompt, origin = _encode(parts["text"], settings.text, settings.tokens, f"{where}/text_encoder"), "text_encoder"
    if prompt.shape[1] != size:
        raise UserError(
            f"{where}: the prompt's embedding from {origin} has {prompt.shape[1]} numbers, but the UNet takes {size}; "
            "they are of different versions of Stable Diffusion"
        )
    return converted | {"empty_prompt": prompt} | _schedule(settings, where)


def facts(converted: dict[str, Any]) -> dict[str, Any]:
    """The facts about the network for `source.json`, which can be read without the weights."""
    network, encoder = unet.of(converted["unet"]), vae.of(converted["vae"])
    return {
        "widths": list(network.widths),
        "depth": network.depth,
        "heads": list(network.heads),
        "prompt": converted["empty_prompt"].shape[1],
        "stride": 2 ** (len(encoder.widths) - 1),
        "prediction": "velocity" if converted["v_prediction"] else "noise",
    }


# -- the folder -------------------------------------------------------------------------------------------------------


def _refuse_others(path):
    there = set(os.listdir(path))
    if "text_encoder_2" in there:
        raise UserError(f"--src={path} is Stable Diffusion XL or 3 (it has a text_encoder_2); {_PUBLISHED}")
    if "unet" not in there:
        if there & {"pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "adapter_config.json"}:
            raise UserError(
                f"--src={path} holds a LoRA, which is no network of its own; merge it into its model and save that: "
                "pipeline.fuse_lora(), pipeline.unload_lora_weights(), pipeline.save_pretrained(DIR)"
            )
        raise UserError(
            f"--src={path} has no folder unet; give the folder of diffusers that has unet, vae, text_encoder and "
            "scheduler in it"
        )


def _json(path, part, name):
    file = os.path.join(path, part, name)
    if not os.path.exists(file):
        raise UserError(f"--src={path} has no {part}/{name}; get the whole folder of {part}")
    try:
        with open(file, encoding="utf-8") as opened:
            found = json.load(opened)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({type(error).__name__}); get it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is no JSON object; get it again")
    return found, file


def _check(folder, found, fixed):
    if found.get("addition_embed_type") == "text_time":
        raise UserError(f"{folder} is Stable Diffusion XL's; {_PUBLISHED}")
    for key, value in fixed.items():
        if found.get(key, value) != value:
            raise UserError(f"{folder} says {key}={found[key]!r}, and {value!r} is what is known; {_PUBLISHED}")


def _weights(path, part, names):
    there = [name for name in names if os.path.exists(os.path.join(path, part, name))]
    if not there and any(f"{name}.index.json" in os.listdir(os.path.join(path, part)) for name in names):
        raise UserError(
            f"--src={path} has {part} in several files; save it in one: "
            "pipeline.save_pretrained(DIR, max_shard_size='20GB')"
        )
    if not there:
        raise UserError(f"--src={path} has no {part}/{names[0]}; get the whole folder of {part}")
    file = os.path.join(path, part, there[0])
    return files.read(file), file


def _tokens(path, length):
    """Token numbers of the empty prompt: a first, a last, and padding, which differs between versions 1.5 and 2.1."""
    vocabulary, used = {}, []
    for name in ("vocab.json", "tokenizer.json"):
        if os.path.exists(os.path.join(path, "tokenizer", name)):
            found, file = _json(path, "tokenizer", name)
            more = found
            if name == "tokenizer.json":
                model = found.get("model", {})
                more = model.get("vocab", {}) | {t["content"]: t["id"] for t in found.get("added_tokens", ())}
            vocabulary |= {token: number for token, number in more.items() if isinstance(number, int)}
            used.append(file)
    if not used:
        raise UserError(f"--src={path} has no tokenizer/vocab.json; get the whole folder of tokenizer")
    special = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if os.path.exists(os.path.join(path, "tokenizer", name)):
            found, file = _json(path, "tokenizer", name)
            special |= {key: value for key, value in found.items() if key.endswith("_token")}
            used.append(file)
    numbers = []
    for kind, usual in (("bos", "<|startoftext|>"), ("eos", "<|endoftext|>"), ("pad", "<|endoftext|>")):
        token = special.get(f"{kind}_token") or usual
        token = token["content"] if isinstance(token, dict) else token
        if token not in vocabulary:
            raise UserError(f"{path}/tokenizer has no token {token!r} in its vocabulary; get the whole folder again")
        numbers.append(vocabulary[token])
    first, end, pad = numbers
    return [first, end, *[pad] * (length - 2)], used


# -- the networks -----------------------------------------------------------------------------------------------------


def _unet(entries, config, size, where):
    widths, depth = config.get("block_out_channels", (320, 640, 1280, 1280)), config.get("layers_per_block", 2)
    heads = config.get("attention_head_dim", 8)  # diffusers' name for the number of heads
    levels = _widths(where, widths, depth)
    attends = "CrossAttn{}Block2D"
    for side, places in (("down", range(levels)), ("up", reversed(range(levels)))):
        expected = [(attends if level < levels - 1 else "{}Block2D").format(side.capitalize()) for level in places]
        _same(where, config, f"{side}_block_types", expected)
    heads = [heads] * levels if isinstance(heads, int) else heads
    if not isinstance(heads, list) or len(heads) != levels or any(w % h for w, h in zip(widths, heads, strict=True)):
        raise UserError(
            f"{where} says attention_head_dim={config.get('attention_head_dim')!r}, which does not divide "
            f"block_out_channels={widths!r} into heads; {_PUBLISHED}"
        )
    if not isinstance(size, int):
        raise UserError(f"{where} says cross_attention_dim={size!r}, and one number is what is known; {_PUBLISHED}")
    shapes = _shapes(unet.UNet(tuple(widths), depth, tuple(heads), attention="xla"), size)
    return rules.apply(_rules(shapes, entries), entries, where=where)


def _vae(entries, config, where):
    widths, depth = config.get("block_out_channels", (128, 256, 512, 512)), config.get("layers_per_block", 2)
    levels = _widths(where, widths, depth)
    _same(where, config, "down_block_types", ["DownEncoderBlock2D"] * levels)
    renamed = {}
    for key, value in entries.items():
        name = re.match(r"(encoder[.]mid_block[.]attentions[.]0[.])(query|key|value|proj_attn)([.].*)", key)
        renamed[name[1] + _OLD[name[2]] + name[3] if name else key] = value
    shapes = _shapes(vae.Encoder(tuple(widths), depth))
    ignored = (r"decoder[.].*", r"post_quant_conv[.].*")
    return rules.apply(_rules(shapes, renamed), renamed, where=where, ignored=ignored)


@functools.cache
def _shapes(network, prompt=0):
    """Shapes of a network's parameters; `prompt` is the size of the UNet's prompt."""
    side = 2 ** (len(network.widths) - 1)
    zeros = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    seen = (zeros(1, side, side, 4), zeros(), zeros(77, prompt)) if prompt else (zeros(1, side, side, 3),)
    return jax.eval_shape(network.init, jax.random.key(0), *seen)


def _widths(where, widths, depth):
    numbers = isinstance(widths, list | tuple) and all(isinstance(width, int) for width in widths)
    if not numbers or len(widths) < 2 or any(width % 32 or not width for width in widths) or not isinstance(depth, int):
        raise UserError(f"{where} says block_out_channels={widths!r}, layers_per_block={depth!r}; {_PUBLISHED}")
    return len(widths)


def _same(where, config, key, expected):
    if config.get(key, expected) != expected:
        raise UserError(f"{where} says {key}={config[key]!r}, and {expected!r} is what is known; {_PUBLISHED}")


def _rules(shapes, entries):
    """Rules for all parameters of a network, from their paths and shapes."""
    made = []
    for path, leaf in traverse_util.flatten_dict(shapes["params"]).items():
        key = _name(path)
        there = entries[key].shape if key in entries else ()
        made.append(rules.Rule("/".join(path), *_source(key, path, leaf.shape, there)))
    return made


def _name(path):
    """The name of a parameter's entry.

    >>> _name(("down_blocks_0_attentions_1", "transformer_blocks_0", "attn1", "to_out_0", "kernel"))
    'down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0.weight'
    >>> _name(("time_embedding", "linear_2", "bias")), _name(("mid_block_resnets_1", "norm1", "scale"))
    ('time_embedding.linear_2.bias', 'mid_block.resnets.1.norm1.weight')
    """
    *modules, leaf = path
    name = ".".join(modules).replace("mid_block_", "mid_block.")
    name = re.sub(r"(?<!linear)_(\d+)(?:_|(?=[.]|$))", r".\1.", name).replace("..", ".").strip(".")
    return f"{name}.{'bias' if leaf == 'bias' else 'weight'}"


def _source(key, path, shape, there):
    """Sources and transform of a rule; `there` is the shape that the entry has."""
    if path[-1] != "kernel":
        return {key: shape}, rules.same
    if len(shape) == 4:
        height, width, inputs, outputs = shape
        return {key: (outputs, inputs, height, width)}, rules.hwio
    # A linear layer, with any number of heads, may be stored as a 1 x 1 convolution.
    inputs = math.prod(shape[:-1]) if path[-2] == "to_out_0" else shape[0]
    stored = (math.prod(shape) // inputs, inputs)
    one = (1, 1) if len(there) == 4 and path[-2] in ("proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out_0") else ()
    return {key: stored + one}, functools.partial(_linear, shape=shape)


def _linear(weight, shape):
    return weight.reshape(weight.shape[:2]).T.reshape(shape)


# -- the empty prompt -------------------------------------------------------------------------------------------------


def _given(prompt, where):
    prompt = prompt[0] if prompt.ndim == 3 and len(prompt) == 1 else prompt
    if prompt.ndim != 2 or prompt.dtype.kind != "f" or not np.isfinite(prompt).all():
        raise UserError(
            f"{where} is {prompt.dtype} of shape {prompt.shape}; save the text encoder's last hidden state, [77, D], "
            "all finite"
        )
    return prompt.astype(np.float32)


def _encode(entries, config, tokens, where):
    """Apply CLIP's text encoder (Radford et al., ICML 2021) to one prompt: last hidden state [T,D] after the last norm.

    A block has causal attention and a two-layer perceptron, each after a layer normalisation and added to its input.
    """
    entries = {key.removeprefix("text_model."): value for key, value in entries.items()}
    try:
        width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        inner, blocks = int(config["intermediate_size"]), int(config["num_hidden_layers"])
        activation = _ACTIVATIONS[config.get("hidden_act", "quick_gelu")]
        words, length = int(config["vocab_size"]), int(config.get("max_position_embeddings", 77))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}/config.json does not say what is needed ({error}); get it again") from error
    if width % heads or max(tokens) >= words:
        raise UserError(f"{where}/config.json does not fit itself or the tokenizer; get both folders again")

    shapes = {
        "embeddings.token_embedding.weight": (words, width),
        "embeddings.position_embedding.weight": (length, width),
    }
    dense = lambda name, before, after: {f"{name}.weight": (after, before), f"{name}.bias": (after,)}
    norm = lambda name: {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for i in range(blocks):
        block = f"encoder.layers.{i}"
        for part in "qkv":
            shapes |= dense(f"{block}.self_attn.{part}_proj", width, width)
        shapes |= dense(f"{block}.self_attn.out_proj", width, width)
        shapes |= dense(f"{block}.mlp.fc1", width, inner) | dense(f"{block}.mlp.fc2", inner, width)
        shapes |= norm(f"{block}.layer_norm1") | norm(f"{block}.layer_norm2")
    shapes |= norm("final_layer_norm")
    found = rules.apply(
        [rules.Rule(key, {key: shape}) for key, shape in shapes.items()],
        entries,
        where=where,
        ignored=(r"embeddings[.]position_ids",),
    )
    linear = lambda x, name: x @ found[f"{name}.weight"].T + found[f"{name}.bias"]

    def normalized(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + TEXT["layer_norm_eps"])
        return x * found[f"{name}.weight"] + found[f"{name}.bias"]

    # float64: exactness costs nothing for one prompt.
    x = found["embeddings.token_embedding.weight"][tokens].astype(np.float64)
    x += found["embeddings.position_embedding.weight"][: len(tokens)]
    later = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
    for i in range(blocks):
        block = f"encoder.layers.{i}"
        y = normalized(x, f"{block}.layer_norm1")
        q, k, v = (linear(y, f"{block}.self_attn.{part}_proj").reshape(len(tokens), heads, -1) for part in "qkv")
        logits = np.einsum("thd,shd->hts", q, k) / math.sqrt(width // heads) + later
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + linear(np.einsum("hts,shd->thd", weights, v).reshape(x.shape), f"{block}.self_attn.out_proj")
        y = activation(linear(normalized(x, f"{block}.layer_norm2"), f"{block}.mlp.fc1"))
        x = x + linear(y, f"{block}.mlp.fc2")
    return normalized(x, "final_layer_norm").astype(np.float32)


def _quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def _gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


_ACTIVATIONS = {"quick_gelu": _quick_gelu, "gelu": _gelu}


# -- the schedule -----------------------------------------------------------------------------------------------------


def _schedule(settings, where):
    scheduler, scaling = settings.scheduler, settings.vae.get("scaling_factor", 0.18215)
    predicted = scheduler.get("prediction_type", "epsilon")
    if predicted not in ("epsilon", "v_prediction"):
        raise UserError(f"{where}/scheduler says prediction_type={predicted!r}; {_PUBLISHED}")
    try:
        table = schedule.alphas_cumprod(
            int(scheduler["num_train_timesteps"]),
            float(scheduler["beta_start"]),
            float(scheduler["beta_end"]),
            scheduler["beta_schedule"],
        )
        return {
            "alphas_cumprod": table,
            "v_prediction": np.float32(predicted == "v_prediction"),
            "scaling_factor": np.float32(scaling),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}/scheduler does not say what is needed ({error}); get it again") from error
