import collections
import fractions

import jax
import numpy as np
import pytest

from tests.convert.checks import equal, refusal
from tests.models import r2d2_test as reference
from tests.models import twins
from uld_jax import convert as converter
from uld_jax import weights
from uld_jax.convert import files, r2d2
from uld_jax.errors import UserError
from uld_jax.models import r2d2 as models

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def twin():
    return reference.make_twin(width=4)


@pytest.fixture
def entries(twin):
    return reference.entries(twin)


def convert(entries):
    return r2d2.convert(entries, where="r2d2.pt")


def without(entries, key):
    return {name: value for name, value in entries.items() if name != key}


def test_batch_normalisation_goes_into_kernels_and_biases(entries):
    params = convert(entries)
    convolutions = [0, 3, 6, 9, 12, 15, 18, 20, 22]
    assert list(params) == [*(f"ops_{n}" for n in convolutions), "clf", "sal"]
    for number in convolutions[:-1]:
        weight, bias, mean, var = (
            entries[key].astype(np.float64)
            for key in (
                f"ops.{number}.weight",
                f"ops.{number}.bias",
                f"ops.{number + 1}.running_mean",
                f"ops.{number + 1}.running_var",
            )
        )
        for o in range(len(weight)):
            kernel = weight[o].transpose(1, 2, 0) / (var[o] + 1e-5) ** 0.5
            np.testing.assert_allclose(params[f"ops_{number}"]["kernel"][..., o], kernel, rtol=1e-6)
        np.testing.assert_allclose(params[f"ops_{number}"]["bias"], (bias - mean) / np.sqrt(var + 1e-5), rtol=1e-6)
    for name in ("ops.22", "clf", "sal"):
        layer = params[name.replace(".", "_")]
        np.testing.assert_array_equal(layer["kernel"], entries[f"{name}.weight"].transpose(2, 3, 1, 0))
        np.testing.assert_array_equal(layer["bias"], entries[f"{name}.bias"])


def test_several_gpus_and_no_counters(entries):
    params = convert(entries)
    equal(convert({f"module.{key}": value for key, value in entries.items()}), params)
    uncounted = {key: value for key, value in entries.items() if not key.endswith("num_batches_tracked")}
    assert len(uncounted) == len(entries) - 8
    equal(convert(uncounted), params)


def test_the_variant_is_read(entries):
    assert "ops_23" in convert(reference.entries(reference.make_twin(width=4, fast=True)))
    assert convert(reference.entries(reference.make_twin(width=6)))["ops_15"]["kernel"].shape == (3, 3, 24, 24)


def test_entries_that_do_not_fit_are_named(entries):
    assert "'clf.bias' is missing" in refusal(convert, without(entries, "clf.bias"))
    assert "'ops.0.weight' is missing" in refusal(convert, without(entries, "ops.0.weight"))
    assert "'ops.9.weight' is missing" in refusal(convert, without(entries, "ops.9.weight"))
    assert "'ops.21.running_var' is missing" in refusal(convert, without(entries, "ops.21.running_var"))
    assert "(and 37 more) is missing" in refusal(convert, {"fc.weight": np.ones(3)})
    # Of the same family: batch normalisation that is affine.
    assert "'ops.1.weight' is used by nothing" in refusal(convert, entries | {"ops.1.weight": np.ones(4)})
    assert "'ops.20.weight' has shape (16, 16, 3, 3), not (16, 16, 2, 2)" in refusal(
        convert, entries | {"ops.20.weight": np.ones((16, 16, 3, 3))}
    )
    assert "not finite" in refusal(convert, entries | {"ops.4.running_var": -np.ones(4)})


@pytest.mark.parametrize(("width", "parameters"), [(32, 484_387), (48, 1_038_899)])
def test_files_of_the_published_layout(tmp_path, width, parameters):
    twin = reference.make_twin(width=width)
    state = {f"module.{key}": value for key, value in twin.state_dict().items()}
    assert len(state) == 46
    src, dst = tmp_path / "r2d2_made.pt", tmp_path / "r2d2"
    torch.save({"net": "Quad_L2Net_ConfCFS(mchan=6)", "state_dict": state}, src)
    source = converter.convert("r2d2", str(src), str(dst))
    assert (source["entries"], source["parameters"]) == (46, parameters)
    assert "CC BY-NC-SA" in source["licence"]
    equal(weights.load(dst, "r2d2"), convert(reference.entries(twin)))
    with pytest.raises(UserError, match=r"'conv1a.weight' \(and 23 more\) is missing"):
        converter.convert("superpoint", str(src), str(tmp_path / "other"))


def test_the_fast_networks_file_as_it_is_published(tmp_path):
    """In PyTorch's older format, with a defaultdict of what training noted beside the 46 entries."""
    twin = reference.make_twin(width=32, fast=True)
    state = {f"module.{key}": value for key, value in twin.state_dict().items()}
    notes = collections.defaultdict(list, loss=[0.5, 0.25], epoch=[1, 2])
    src, dst = tmp_path / "faster2d2_made.pt", tmp_path / "r2d2"
    made = {"net": "Fast_Quad_L2Net_ConfCFS(mchan=4)", "notes": notes, "of": collections.defaultdict(dict)}
    torch.save(made | {"state_dict": state}, src, _use_new_zipfile_serialization=False)
    source = converter.convert("r2d2", str(src), str(dst))
    assert (source["entries"], source["parameters"]) == (46, 484_387)
    params = weights.load(dst, "r2d2")
    network = models.of(params)
    assert network.fast
    x = np.random.default_rng(3).normal(size=(1, 24, 32, 3)).astype(np.float32)
    found = jax.jit(network.apply)({"params": params}, x)
    for ours, theirs in zip(found, reference.expected(twin, x), strict=True):
        twins.close(np.asarray(ours), theirs, 1e-5)
    # Other objects stay refused, and the entries may be in such a dict themselves.
    torch.save({"state_dict": collections.defaultdict(int, state)}, src, _use_new_zipfile_serialization=False)
    equal(convert(files.read(str(src))), params)
    torch.save(made | {"state_dict": state, "more": fractions.Fraction(1, 2)}, src)
    with pytest.raises(UserError, match=r"holds Python objects, .* \(the first: fractions.Fraction\)"):
        converter.convert("r2d2", str(src), str(tmp_path / "other"))


def test_the_published_file(weights_folder, tmp_path):
    src = weights_folder / "r2d2_WASF_N16.pt"
    if not src.exists():
        pytest.skip(f"there is no {src}")
    source = converter.convert("r2d2", str(src), str(tmp_path / "r2d2"))
    assert (source["entries"], source["parameters"]) == (46, 484_387)
