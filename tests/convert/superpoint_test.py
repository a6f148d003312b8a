import numpy as np
import pytest

from tests.convert.checks import equal, refusal
from tests.models import superpoint_test as reference
from tests.models import twins
from uld_jax import convert as converter
from uld_jax import weights
from uld_jax.convert import superpoint

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")


@pytest.fixture
def entries():
    return {key: value.numpy() for key, value in reference.make_twin(**reference.SMALL).state_dict().items()}


def convert(entries):
    return superpoint.convert(entries, where="superpoint.pth", **reference.SMALL)


def test_every_entry_has_its_place(entries):
    expected = {}
    for key, value in entries.items():
        name, leaf = key.split(".")
        kernel = leaf == "weight"
        expected.setdefault(name, {})["kernel" if kernel else "bias"] = value.transpose(2, 3, 1, 0) if kernel else value
    equal(convert(entries), expected)
    equal(convert({f"module.{key}": value for key, value in entries.items()}), expected)


def test_entries_that_do_not_fit_are_named(entries):
    without = {key: value for key, value in entries.items() if key != "convDb.bias"}
    assert "'convDb.bias' is missing" in refusal(convert, without)
    assert "(and 23 more) is missing" in refusal(convert, {"fc.weight": np.ones(3)})
    assert "'bn1a.weight' is used by nothing" in refusal(convert, entries | {"bn1a.weight": np.ones(4)})
    assert "'convPb.weight' has shape (64, 16, 1, 1), not (65, 16, 1, 1)" in refusal(
        convert, entries | {"convPb.weight": np.ones((64, 16, 1, 1))}
    )
    assert "not finite" in refusal(convert, entries | {"conv1a.bias": np.full(4, np.inf)})


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_the_published_size(tmp_path, suffix):
    state = reference.make_twin().state_dict()
    assert len(state) == 24
    src, dst = tmp_path / f"superpoint_v1.{suffix}", tmp_path / "superpoint"
    (torch.save if suffix == "pth" else safetensors_torch.save_file)(state, src)
    source = converter.convert("superpoint", str(src), str(dst))
    assert (source["entries"], source["parameters"]) == (24, 1_300_865)
    assert "non-commercial" in source["licence"]
    equal(weights.load(dst, "superpoint"), twins.to_flax(state)["params"])
