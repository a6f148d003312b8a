import json
import shutil

import numpy as np
import pytest

from tests.convert.checks import equal
from tests.models import dinov2_test as reference
from uld_jax import convert as converter
from uld_jax import weights
from uld_jax.convert import dinov2, files
from uld_jax.errors import UserError

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

HEADS = reference.TINY["num_attention_heads"]


@pytest.fixture(params=[0, 4], ids=["plain", "registers"])
def entries(request):
    return reference.entries(reference.make_twin(request.param))


def published(entries):
    """Under the names that the published folders have."""
    names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    out = {}
    for key, value in entries.items():
        for new, old in (names | {"o_proj": "output.dense"}).items():
            key = key.replace(f"attention.{new}", f"attention.{old}")
        out[key] = value
    return out


def original(entries):
    """Under the names of the original code, which keeps query, key and value in one array."""
    out = {}
    for key, value in entries.items():
        if "k_proj" in key or "v_proj" in key:
            continue
        if "q_proj" in key:
            value = np.concatenate([entries[key.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        for theirs, name in {
            "embeddings.patch_embeddings.projection": "patch_embed.proj",
            "embeddings.position_embeddings": "pos_embed",
            "embeddings.": "",
            "encoder.layer.": "blocks.",
            "attention.q_proj": "attn.qkv",
            "attention.o_proj": "attn.proj",
            "layer_scale1.lambda1": "ls1.gamma",
            "layer_scale2.lambda1": "ls2.gamma",
            "layernorm": "norm",
        }.items():
            key = key.replace(theirs, name)
        out[key] = value
    return out


def convert(entries, heads=HEADS):
    return dinov2.convert(entries, where="dinov2.pth", heads=heads)


def refusal(call, *args, **kwargs):
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_naming_gives_the_same_network(entries):
    """Which is the one of transformers, see `models/dinov2_test.py`."""
    params = convert(entries)
    assert "attention.attention.query.weight" in str(sorted(published(entries)))
    equal(convert(published(entries)), params)
    assert "blocks.2.attn.qkv.weight" in original(entries)
    equal(convert(original(entries)), params)
    # A file alone says nothing of heads: one for 64 channels, of which there are 24 here.
    assert convert(entries, heads=0)["block_0"]["query"]["kernel"].shape == (24, 1, 24)
    assert ("register_tokens" in params) == ("embeddings.register_tokens" in entries)


def test_entries_that_do_not_fit_are_named(entries):
    def without(key):
        return {name: value for name, value in entries.items() if name != key}

    for key in ("embeddings.cls_token", "encoder.layer.1.layer_scale2.lambda1", "encoder.layer.0.mlp.fc1.weight"):
        assert f"{key!r} is missing" in refusal(convert, without(key))
    assert "'embeddings.cls_token' (and " in refusal(convert, {"fc.weight": np.ones(3)})
    assert "'pooler.weight' is used by nothing" in refusal(convert, entries | {"pooler.weight": np.ones(3)})
    convert(without("embeddings.mask_token"))
    fused = original(entries)
    assert "'blocks.0.attn.qkv.bias' has shape (24,), not (72,)" in refusal(
        convert, fused | {"blocks.0.attn.qkv.bias": np.ones(24)}
    )
    assert "ViT-g" in refusal(convert, fused | {"blocks.0.mlp.w12.weight": np.ones((2, 2))})
    lora = {"base_model.model.encoder.layer.0.attention.attention.query.lora_A.weight": np.ones((2, 24))}
    assert "holds a LoRA" in refusal(convert, entries | lora)
    assert "no square grid" in refusal(convert, fused | {"pos_embed": np.ones((1, 25, 24))})
    assert "do not divide into 5 heads" in refusal(convert, entries, heads=5)
    assert "not finite" in refusal(convert, entries | {"layernorm.bias": np.full(24, np.nan)})


def test_folders(tmp_path, entries):
    twin = reference.make_twin(4 if "embeddings.register_tokens" in entries else 0)
    src, dst = tmp_path / "small", tmp_path / "dinov2"
    twin.save_pretrained(src)
    source = converter.convert("dinov2", f"{src}/", str(dst))
    facts = {"width": 24, "blocks": 3, "registers": 4 if "embeddings.register_tokens" in entries else 0}
    assert facts.items() <= source.items()
    assert (source["file"], source["sha256"]) == ("small", files.sha256(src / "model.safetensors"))
    assert "Apache-2.0" in source["licence"]
    equal(weights.load(dst, "dinov2"), convert(entries))
    assert weights.read_source(dst, "dinov2") == source

    # The same as a PyTorch file, in a folder, under the published names.
    (src / "model.safetensors").unlink()
    torch.save({key: torch.tensor(value) for key, value in published(entries).items()}, src / "pytorch_model.bin")
    converter.convert("dinov2", str(src), str(tmp_path / "again"))
    equal(weights.load(tmp_path / "again", "dinov2"), convert(entries))


def test_a_file_of_the_published_size(tmp_path):
    """Kept small by repeating one number, which a PyTorch file stores once."""
    shapes = {"cls_token": (1, 1, 384), "mask_token": (1, 384), "pos_embed": (1, 1370, 384)}
    shapes |= {"register_tokens": (1, 4, 384), "patch_embed.proj.weight": (384, 3, 14, 14)}
    shapes |= {"patch_embed.proj.bias": (384,), "norm.weight": (384,), "norm.bias": (384,)}
    for block in range(12):
        for name, shape in {
            "norm1.weight": (384,), "norm1.bias": (384,), "norm2.weight": (384,), "norm2.bias": (384,),
            "attn.qkv.weight": (1152, 384), "attn.qkv.bias": (1152,),
            "attn.proj.weight": (384, 384), "attn.proj.bias": (384,), "ls1.gamma": (384,), "ls2.gamma": (384,),
            "mlp.fc1.weight": (1536, 384), "mlp.fc1.bias": (1536,),
            "mlp.fc2.weight": (384, 1536), "mlp.fc2.bias": (384,),
        }.items():  # fmt: skip
            shapes[f"blocks.{block}.{name}"] = shape
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    torch.save(state, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    source = converter.convert("dinov2", str(tmp_path / "dinov2_vits14_reg4_pretrain.pth"), str(tmp_path / "dst"))
    assert (source["entries"], source["parameters"]) == (176, 22_057_728)
    assert (source["width"], source["blocks"], source["registers"]) == (384, 12, 4)
    query = weights.load(tmp_path / "dst", "dinov2")["block_11"]["query"]["kernel"]
    assert query.shape == (384, 6, 64)


def test_bad_folders_are_one_sentence(tmp_path):
    src, dst = tmp_path / "small", tmp_path / "dinov2"
    reference.make_twin().save_pretrained(src)
    good = json.loads((src / "config.json").read_text())

    def refused(kind="dinov2", **changes):
        (src / "config.json").write_text(json.dumps(good | changes))
        return refusal(converter.convert, kind, str(src), str(dst))

    assert "says model_type='dinov3_vit', and --kind=dinov2 takes 'dinov2' or" in refused(model_type="dinov3_vit")
    assert "use_swiglu_ffn=True" in refused(use_swiglu_ffn=True)
    assert "hidden_act='gelu_new'" in refused(hidden_act="gelu_new")
    assert "is a folder" in refused(kind="superpoint")
    (src / "config.json").write_text("{")
    assert "no config.json that can be read" in refusal(converter.convert, "dinov2", str(src), str(dst))
    (src / "config.json").unlink()
    assert "no config.json that can be read" in refusal(converter.convert, "dinov2", str(src), str(dst))
    whole = (src / "model.safetensors").read_bytes()
    (src / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as a safetensors file" in refused()
    shutil.move(src / "model.safetensors", src / "weights.safetensors")
    assert "neither model.safetensors nor pytorch_model.bin" in refused()
    (src / "adapter_config.json").write_text("{}")
    assert "holds a LoRA" in refused()
    assert "does not exist" in refusal(converter.convert, "dinov2", str(tmp_path / "absent"), str(dst))
    assert not dst.exists()
