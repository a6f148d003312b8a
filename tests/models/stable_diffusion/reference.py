"""Stable Diffusion in diffusers and transformers, with random weights, written as such models are published."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

VERSIONS = ("1.5", "2.1")
# Two blocks fewer than published, one layer each, and as different between the versions as the published ones.
WIDTHS, PROMPT = (32, 64, 64), 48
TINY = {
    "1.5": dict(attention_head_dim=4, use_linear_projection=False, cross_attention_dim=PROMPT),
    "2.1": dict(attention_head_dim=[2, 4, 4], use_linear_projection=True, cross_attention_dim=PROMPT),
}
SHAPE = dict(
    block_out_channels=WIDTHS,
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
)
FULL = {
    "1.5": dict(attention_head_dim=8, cross_attention_dim=768),
    "2.1": dict(attention_head_dim=[5, 10, 20, 20], use_linear_projection=True, cross_attention_dim=1024),
}
VAE = dict(block_out_channels=(32, 64, 64), layers_per_block=1)
FULL_VAE = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2)
TEXT = {
    "1.5": dict(hidden_act="quick_gelu", num_attention_heads=4),
    "2.1": dict(hidden_act="gelu", num_attention_heads=3),
}
WORDS = {"!": 0, "a": 1, "b": 2, "a</w>": 3, "<|startoftext|>": 4, "<|endoftext|>": 5}
TOLERANCE = 5e-6  # of the largest value


def make_unet(version="1.5", seed=0, **config):
    """Random weights; normalisations scale and shift by random numbers too."""
    torch.manual_seed(seed)
    return _random(diffusers.UNet2DConditionModel(**config or TINY[version] | SHAPE))


def make_vae(seed=0, **config):
    torch.manual_seed(seed)
    config = config or VAE
    count = len(config["block_out_channels"])
    types = dict(down_block_types=("DownEncoderBlock2D",) * count, up_block_types=("UpDecoderBlock2D",) * count)
    return _random(diffusers.AutoencoderKL(**config, **types))


def make_text(version="1.5", seed=0):
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=PROMPT,
        intermediate_size=40,
        num_hidden_layers=2,
        **TEXT[version],
        bos_token_id=0,
        eos_token_id=1,
    )
    return _random(transformers.CLIPTextModel(config))


def _random(network):
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.ndim == 1:
                value.normal_(float(name.endswith("weight") and "norm" in name), 0.2)
    return network.eval()


def write(folder, version="1.5", unet=None, vae=None, text=None):
    """A folder of diffusers."""
    (unet or make_unet(version)).save_pretrained(folder / "unet")
    (vae or make_vae()).save_pretrained(folder / "vae")
    (text or make_text(version)).save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(WORDS))
    special = dict(bos_token="<|startoftext|>", eos_token=dict(content="<|endoftext|>", lstrip=False))
    special |= dict(pad_token="<|endoftext|>" if version == "1.5" else "!")
    (folder / "tokenizer/special_tokens_map.json").write_text(json.dumps(special))
    (folder / "scheduler").mkdir()
    scheduler = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler |= dict(_class_name="PNDMScheduler", trained_betas=None)
    scheduler |= dict(prediction_type="v_prediction") if version == "2.1" else {}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def run_unet(network, latents, timesteps, prompt):
    """Every tap, {"up0.0": [B,h,w,C]}, and the output, [B,h,w,4]; what is tapped is `conv2` of a residual block."""
    taps, handles = {}, []
    for block, part in enumerate(network.up_blocks):
        for i, resnet in enumerate(part.resnets):
            keep = lambda module, args, output, name=f"up{block}.{i}": taps.update({name: _numpy(output)})
            handles.append(resnet.conv2.register_forward_hook(keep))
    with torch.no_grad():
        prompt = torch.tensor(np.broadcast_to(prompt, (len(latents), *prompt.shape)).copy())
        output = network(_torch(latents), torch.tensor(timesteps), prompt).sample
    for handle in handles:
        handle.remove()
    return taps, _numpy(output)


def run_vae(network, images):
    """Mean and log variance [B,h,w,4] of images [B,H,W,3] in -1..1."""
    with torch.no_grad():
        found = network.encode(_torch(images)).latent_dist
    return _numpy(found.mean), _numpy(found.logvar)


def error(found, expected):
    """Largest difference over the largest value."""
    assert found.shape == expected.shape
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def _torch(x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())


def _numpy(x):
    return x.detach().numpy().transpose(0, 2, 3, 1).copy()
