"""A folder of diffusers, tiny and with random weights, through the converter; and what is refused."""

import doctest
import json
import shutil

import jax
import numpy as np
import pytest

from tests.convert.checks import equal
from tests.models.stable_diffusion import reference
from uld_jax import convert as converter
from uld_jax import weights
from uld_jax.convert import stable_diffusion
from uld_jax.errors import UserError
from uld_jax.models.stable_diffusion import schedule

torch, transformers = reference.torch, reference.transformers
safetensors_torch = pytest.importorskip("safetensors.torch")
load_file, save_file = safetensors_torch.load_file, safetensors_torch.save_file

NAME = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", params=reference.VERSIONS)
def version(request):
    return request.param


@pytest.fixture(scope="module")
def published(version, tmp_path_factory):
    return reference.write(tmp_path_factory.mktemp("published") / version, version)


@pytest.fixture
def folder(tmp_path_factory, request):
    """A copy of version 1.5's that a test may damage."""
    path = tmp_path_factory.mktemp("copy") / "sd"
    shutil.copytree(request.getfixturevalue("plain"), path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return reference.write(tmp_path_factory.mktemp("plain") / "sd")


def convert(folder):
    opened = stable_diffusion.open_folder(str(folder))
    return stable_diffusion.convert(opened.entries, where=str(folder), **opened.options)


def refusal(folder):
    with pytest.raises(UserError) as error:
        convert(folder)
    text = str(error.value)
    assert "\n" not in text
    assert str(folder) in text
    return text


def edit(path, **changes):
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | changes))


def test_examples():
    result = doctest.testmod(stable_diffusion)
    assert result.attempted >= 2
    assert result.failed == 0


def test_every_array_is_somewhere_once(version, published):
    found = convert(published)
    for part in ("unet", "vae"):
        state = load_file(published / part / NAME)
        wanted = [value.numpy() for key, value in state.items() if not key.startswith(("decoder", "post_quant"))]
        mine = jax.tree.leaves(found[part])
        # Whatever the order and the layout of axes: the same numbers.
        signature = lambda arrays: sorted(float(np.float64(x).sum()) for x in arrays)
        np.testing.assert_allclose(signature(mine), signature(wanted), rtol=1e-6, atol=1e-6)
        assert {x.dtype for x in mine} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found["alphas_cumprod"], schedule.alphas_cumprod())
    assert found["v_prediction"] == (version == "2.1")
    assert found["scaling_factor"] == np.float32(0.18215)
    heads = [4, 4, 4] if version == "1.5" else [2, 4, 4]
    prediction = "noise" if version == "1.5" else "velocity"
    assert stable_diffusion.facts(found) == dict(
        widths=[32, 64, 64], depth=1, heads=heads, prompt=reference.PROMPT, stride=4, prediction=prediction
    )


def test_the_empty_prompt_equals_transformers(version, published, tmp_path):
    end = reference.WORDS["<|endoftext|>" if version == "1.5" else "!"]
    tokens = [4, 5] + [end] * 75
    with torch.no_grad():
        network = transformers.CLIPTextModel.from_pretrained(published / "text_encoder")
        expected = network(torch.tensor([tokens])).last_hidden_state[0].numpy()
    found = convert(published)["empty_prompt"]
    assert found.shape == (77, reference.PROMPT)
    assert reference.error(found, expected) <= reference.TOLERANCE
    # With the other activation it would be seen.
    shutil.copytree(published, tmp_path / "other")
    edit(tmp_path / "other/text_encoder/config.json", hidden_act="gelu" if version == "1.5" else "quick_gelu")
    assert reference.error(convert(tmp_path / "other")["empty_prompt"], expected) > 10 * reference.TOLERANCE
    # And the tokens are those of the tokenizer.
    pad = "<|endoftext|>" if version == "1.5" else "!"
    tokenizer = transformers.CLIPTokenizer(vocab=reference.WORDS, merges=[], pad_token=pad, unk_token="<|endoftext|>")
    said = tokenizer("", padding="max_length", max_length=77, truncation=True).input_ids
    assert stable_diffusion._tokens(str(published), 77)[0] == said == tokens
    # However they are stored: here as transformers writes them today.
    shutil.rmtree(tmp_path / "other/tokenizer")
    tokenizer.save_pretrained(tmp_path / "other/tokenizer")
    assert stable_diffusion._tokens(str(tmp_path / "other"), 77)[0] == tokens


def test_a_given_embedding_needs_no_text_encoder(folder):
    whole = convert(folder)
    shutil.rmtree(folder / "text_encoder")
    shutil.rmtree(folder / "tokenizer")
    assert "holds neither text_encoder nor empty_prompt.npy" in refusal(folder)
    np.save(folder / "empty_prompt.npy", whole["empty_prompt"][None])
    equal(convert(folder), whole)
    np.save(folder / "empty_prompt.npy", whole["empty_prompt"][:, :-1])
    assert "has 47 numbers, but the UNet takes 48" in refusal(folder)
    np.save(folder / "empty_prompt.npy", whole["empty_prompt"][0])
    assert "empty_prompt.npy is float32 of shape (48,); save the text encoder's last hidden state" in refusal(folder)
    np.save(folder / "empty_prompt.npy", np.array([{}], object))
    assert "empty_prompt.npy cannot be read as an array" in refusal(folder)


def test_old_names_and_layouts_give_the_same(folder):
    expected = convert(folder)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(folder / "vae" / NAME)
    for four in (False, True):  # linear layers, and 1 x 1 convolutions
        renamed = {}
        for key, value in state.items():
            part = next((new for new in old if f"attentions.0.{new}." in key), None)
            square = part and four and value.ndim == 2
            renamed[key.replace(part, old[part]) if part else key] = value[:, :, None, None] if square else value
        assert sum(".query." in key for key in renamed) == 4  # weight and bias, encoder and decoder
        save_file(renamed, folder / "vae" / NAME)
        equal(convert(folder), expected)
    # The transformers' outer projections: convolutions in 1.5, linear layers in 2.1.
    state = load_file(folder / "unet" / NAME)
    outer = [key for key in state if ".proj_in.weight" in key or ".proj_out.weight" in key]
    assert {state[key].ndim for key in outer} == {4}
    save_file(state | {key: state[key][:, :, 0, 0].contiguous() for key in outer}, folder / "unet" / NAME)
    equal(convert(folder), expected)
    # Half precision, behind a prefix, in PyTorch's own format.
    text = {f"text_model.{k}": v.half() for k, v in load_file(folder / "text_encoder/model.safetensors").items()}
    (folder / "text_encoder/model.safetensors").unlink()
    torch.save(
        text | {"text_model.embeddings.position_ids": torch.arange(77)}, folder / "text_encoder/pytorch_model.bin"
    )
    (folder / "vae" / NAME).rename(folder / "vae/diffusion_pytorch_model.fp16.safetensors")
    found = convert(folder)
    equal(found["vae"], expected["vae"])
    np.testing.assert_allclose(found["empty_prompt"], expected["empty_prompt"], atol=0.02)


def test_what_is_missing_is_named(folder):
    for name in (
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "text_encoder/model.safetensors",
        f"vae/{NAME}",
        f"unet/{NAME}",
        "vae/config.json",
    ):
        away = folder / name
        away.rename(folder / "away")
        assert f"has no {name}; get the whole folder of {away.parent.name}" in refusal(folder)
        (folder / "away").rename(away)
    (folder / "unet" / NAME).rename(folder / "unet/diffusion_pytorch_model-00001-of-00002.safetensors")
    (folder / "unet" / f"{NAME}.index.json").write_text("{}")
    assert "has unet in several files; save it in one" in refusal(folder)
    shutil.move(folder / "unet", folder / "away")
    assert "has no folder unet; give the folder of diffusers" in refusal(folder)


def test_damaged_files_are_named(folder):
    whole = (folder / "unet" / NAME).read_bytes()
    (folder / "unet" / NAME).write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as a safetensors file" in refusal(folder)
    (folder / "unet" / NAME).write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "is no PyTorch, safetensors or HDF5 file, but what Git LFS leaves in its place" in refusal(folder)
    # Likewise in PyTorch's own format, whose end holds the table of contents.
    (folder / "unet" / NAME).unlink()
    old = folder / "unet/diffusion_pytorch_model.bin"
    torch.save({"conv_in.bias": torch.ones(1000)}, old)
    old.write_bytes(old.read_bytes()[:2000])
    assert "diffusion_pytorch_model.bin cannot be read as a PyTorch file" in refusal(folder)
    old.unlink()
    state = load_file(reference.write(folder.parent / "again") / "unet" / NAME)
    save_file(state | {"conv_in.bias": torch.full_like(state["conv_in.bias"], torch.nan)}, folder / "unet" / NAME)
    assert "'conv_in.bias' give numbers that are not finite" in refusal(folder)
    save_file({k: v for k, v in state.items() if k != "conv_in.bias"}, folder / "unet" / NAME)
    assert "unet: the entry 'conv_in.bias' is missing" in refusal(folder)
    save_file(state | {"add_embedding.linear_1.bias": torch.ones(3)}, folder / "unet" / NAME)
    assert "'add_embedding.linear_1.bias' is used by nothing" in refusal(folder)
    (folder / "vae/config.json").write_text("{")
    assert "vae/config.json cannot be read (JSONDecodeError)" in refusal(folder)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        (
            "unet/config.json",
            dict(addition_embed_type="text_time"),
            "is Stable Diffusion XL's; give Stable Diffusion 1.5",
        ),
        ("unet/config.json", dict(in_channels=9), "unet says in_channels=9, and 4 is what is known"),  # inpainting
        ("unet/config.json", dict(class_embed_type="timestep"), "says class_embed_type='timestep'"),
        ("unet/config.json", dict(time_cond_proj_dim=256), "says time_cond_proj_dim=256"),  # a consistency model
        ("unet/config.json", dict(transformer_layers_per_block=[1, 2, 10]), "says transformer_layers_per_block="),
        ("unet/config.json", dict(down_block_types=["DownBlock2D"] * 3), "says down_block_types="),
        ("unet/config.json", dict(block_out_channels=[32, 64, 96]), "has shape"),
        ("unet/config.json", dict(block_out_channels=[32, 64, 70]), "says block_out_channels=[32, 64, 70]"),
        ("unet/config.json", dict(attention_head_dim=7), "says attention_head_dim=7, which does not divide"),
        ("unet/config.json", dict(cross_attention_dim=40), "has shape"),
        ("vae/config.json", dict(latent_channels=16), "vae says latent_channels=16"),
        ("vae/config.json", dict(_class_name="AutoencoderTiny"), "vae says _class_name='AutoencoderTiny'"),
        ("scheduler/scheduler_config.json", dict(prediction_type="sample"), "scheduler says prediction_type='sample'"),
        ("scheduler/scheduler_config.json", dict(beta_schedule="cosine"), "the schedule is 'cosine'"),
        ("scheduler/scheduler_config.json", dict(beta_start=None), "scheduler does not say what is needed"),
        ("text_encoder/config.json", dict(model_type="t5"), "text_encoder says model_type='t5'"),
        ("text_encoder/config.json", dict(hidden_act="relu"), "does not say what is needed ('relu')"),
        ("tokenizer/special_tokens_map.json", dict(pad_token="<pad>"), "has no token '<pad>' in its vocabulary"),
    ],
)
def test_other_architectures_are_refused(folder, file, changes, words):
    edit(folder / file, **changes)
    assert words in refusal(folder)


def test_a_unet_with_old_attention_names_is_refused(folder):
    """As the autoencoder's, which are taken; no published UNet of 1.5 or 2.1 has them."""
    state = load_file(folder / "unet" / NAME)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    save_file(state, folder / "unet" / NAME)
    text = refusal(folder)
    assert "/unet: the entry 'down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_" in text
    assert "more) is missing; the entry '" in text
    assert "more) is used by nothing; check --kind and --src" in text


def test_xl_lora_and_single_files_are_told_apart(folder, tmp_path):
    lora = {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 2)}
    (tmp_path / "lora").mkdir()
    save_file(lora, tmp_path / "lora/pytorch_lora_weights.safetensors")
    assert "holds a LoRA" in refusal(tmp_path / "lora")
    (tmp_path / "old_lora").mkdir()
    torch.save(lora, tmp_path / "old_lora/pytorch_lora_weights.bin")
    assert "holds a LoRA" in refusal(tmp_path / "old_lora")
    trained = {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.ones(2, 2)}
    save_file(trained, tmp_path / "style.safetensors")
    original = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2, 2)}
    save_file(original, tmp_path / "v1-5.safetensors")
    xl = {"conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": torch.ones(2)}
    save_file(original | xl, tmp_path / "xl.safetensors")
    for name, words in (
        ("lora/pytorch_lora_weights.safetensors", "holds a LoRA"),
        ("style.safetensors", "holds a LoRA"),
        ("xl.safetensors", "is Stable Diffusion XL; give Stable Diffusion 1.5 or 2.1"),
        ("v1-5.safetensors", "is a checkpoint of the original code in one file; give the folder of diffusers"),
    ):
        with pytest.raises(UserError, match=words):
            converter.convert("stable_diffusion", str(tmp_path / name), str(tmp_path / "dst"))
    state = load_file(folder / "unet" / NAME)
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = state.pop(f"{key}.weight")
    wrapped = {f"{key}.base_layer.weight": weight, f"{key}.lora_A.default.weight": torch.ones(2, 32)}
    save_file(state | wrapped, folder / "unet" / NAME)
    assert "holds a LoRA" in refusal(folder)
    (folder / "text_encoder_2").mkdir()
    assert "is Stable Diffusion XL or 3" in refusal(folder)


def test_uld_convert(plain, tmp_path):
    source = converter.convert("stable_diffusion", str(plain), str(tmp_path / "dst"))
    assert "OpenRAIL" in source["licence"]
    assert source["file"] == "sd"
    assert source["widths"] == [32, 64, 64]
    assert weights.read_source(tmp_path / "dst", "stable_diffusion") == source
    equal(weights.load(tmp_path / "dst", "stable_diffusion"), convert(plain))
