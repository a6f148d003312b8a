import argparse
import hashlib
import json
import pathlib
import struct
import sys

import numpy as np
import pytest

from uld_jax.convert import files
from uld_jax.errors import UserError

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
h5py = pytest.importorskip("h5py")

RNG = np.random.default_rng(0)
ARRAYS = {"a.weight": RNG.normal(size=(2, 3)), "a.bias": RNG.normal(size=2).astype(np.float32), "n": np.array(7)}


def tensors():
    return {key: torch.tensor(value) for key, value in ARRAYS.items()}


def same(found, expected=ARRAYS):
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert isinstance(found[key], np.ndarray)
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value)


def refusal(path, **options):
    with pytest.raises(UserError) as error:
        files.read(str(path), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["a.pth", "a.bin", "no_suffix"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch(tmp_path, name, zipped):
    torch.save(tensors(), tmp_path / name, _use_new_zipfile_serialization=zipped)
    same(files.read(str(tmp_path / name)))


def test_a_state_dict_is_taken_out_of_its_checkpoint(tmp_path):
    torch.save({"epoch": 3, "state_dict": tensors(), "optimizer": {"lr": 0.1}}, tmp_path / "a.pth")
    same(files.read(str(tmp_path / "a.pth")))


def test_arrays_beside_a_state_dict_are_read_where_they_are_known(tmp_path):
    path, known = tmp_path / "a.pth", files.Beside(arrays=("numbers", "more", "absent"), ignored=("epoch",))
    numbers = {"numbers": np.arange(3), "more": torch.tensor([0.5, 2], dtype=torch.half), "absent": None}
    torch.save({"epoch": 3, "state_dict": tensors()} | numbers, path)
    expected = {"numbers": numbers["numbers"], "more": np.array([0.5, 2], np.float32)}
    same(files.read(str(path), beside=known), ARRAYS | expected)
    assert "(the first: numpy._core.multiarray._reconstruct)" in refusal(path)
    assert "'epoch' beside 'state_dict' is used by nothing" in refusal(path, beside=known._replace(ignored=()))
    torch.save({"state_dict": tensors(), "numbers": [1, 2]}, path)
    assert "'numbers' is no array of numbers but a Python list" in refusal(path, beside=known)
    torch.save({"state_dict": tensors(), "numbers": torch.tensor([True])}, path)
    assert "'numbers' is no array of numbers but an array of bool" in refusal(path, beside=known)
    same(files.read(_saved(tmp_path, tensors()), beside=known))


def test_a_text_of_the_trainers_options_is_read_where_it_is_known(tmp_path):
    options = argparse.Namespace(dataset="CelebA", rate=0.1, sizes=[1, 2], inner=argparse.Namespace(a=None))
    path = _saved(tmp_path, {"model": tensors(), "model_ema": {"x": torch.ones(1)}, "opt": options, "epoch": 3})
    known = dict(nested=("state_dict", "model"), text="opt.dataset")
    same(files.read(path, **known), ARRAYS | {"opt.dataset": np.array("CelebA")})
    assert "(the first: argparse.Namespace)" in refusal(path, nested=known["nested"])
    for text in ("opt.rate", "opt.inner", "opt.absent", "more.dataset", "epoch.dataset"):
        same(files.read(path, nested=known["nested"], text=text))
    options.folder = pathlib.PurePosixPath("a")
    assert "Posix" in refusal(_saved(tmp_path, {"model": tensors(), "opt": options}), **known)
    # The first of the names that is in the file counts; without any, all entries are tensors.
    both = {"model": {"a": torch.zeros(1)}, "state_dict": tensors()}
    same(files.read(_saved(tmp_path, both), nested=known["nested"]))
    bare = _saved(tmp_path, tensors() | {"opt": argparse.Namespace(dataset="CelebA")})
    assert "the entry 'opt' is no tensor but a Python Namespace" in refusal(bare, **known)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_trainer_saves_of_its_own_is_dropped_where_it_is_known(tmp_path, zipped):
    options = argparse.Namespace(sizes=[5, 5, 5], folder="a", inner=argparse.Namespace(rate=0.1))
    losses = dict(losses=np.zeros(5), best=np.float64(0.5), names=np.array(["a", None], object))
    path = tmp_path / "a.pth"
    torch.save(
        {"state_dict": tensors(), "args": options, "epoch": 3, **losses}, path, _use_new_zipfile_serialization=zipped
    )
    same(files.read(str(path), trainer=True))
    assert "holds Python objects" in refusal(path)
    # Nothing but tensors is among the entries, and other objects are refused as ever.
    torch.save({"state_dict": tensors() | {"args": options}}, path)
    assert "the entry 'args' is no tensor but a Python Dropped" in refusal(path, trainer=True)
    options.folder = Trap(tmp_path / "sprung")
    torch.save({"state_dict": tensors(), "args": options}, path)
    assert "(the first: getattr)" in refusal(path, trainer=True)
    assert not (tmp_path / "sprung").exists()


def _saved(folder, content):
    torch.save(content, folder / "b.pth")
    return str(folder / "b.pth")


def test_parameters_that_require_gradients_and_nested_names(tmp_path):
    module = torch.nn.Linear(3, 2)
    torch.save({"data": {"layer": {"0": module.weight, 1: module.bias}}}, tmp_path / "a.pth")
    expected = {"data.layer.0": module.weight.detach().numpy(), "data.layer.1": module.bias.detach().numpy()}
    same(files.read(str(tmp_path / "a.pth")), expected)


def test_short_floats_become_float32(tmp_path):
    values = torch.tensor([1.5, -0.25, 3.0])
    half = {"a": values.half(), "b": values.bfloat16()}
    torch.save(half, tmp_path / "a.pth")
    safetensors_torch.save_file(half, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        same(files.read(str(tmp_path / name)), {"a": values.numpy(), "b": values.numpy()})


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_safetensors_under_any_name(tmp_path, name):
    safetensors_torch.save_file(tensors(), tmp_path / name, metadata={"format": "pt"})
    same(files.read(str(tmp_path / name)))


@pytest.mark.parametrize("name", ["a.caffemodel.h5", "a"])
def test_hdf5_groups_are_joined_by_dots(tmp_path, name):
    with h5py.File(tmp_path / name, "w") as file:
        file["data/conv1/0"], file["data/conv1/1"], file["n"] = (ARRAYS[key] for key in ARRAYS)
        file.create_group("data/relu1")
    keys = ("data.conv1.0", "data.conv1.1", "n")
    same(files.read(str(tmp_path / name)), dict(zip(keys, ARRAYS.values(), strict=True)))


def test_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert files.sha256(str(tmp_path / "a")) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_what_is_no_file(tmp_path):
    assert refusal(tmp_path / "a.pth").startswith(f"--src={tmp_path / 'a.pth'} does not exist")
    assert refusal(tmp_path / "a.pth", flag="--core").startswith("--core=")
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html>", b"not a checkpoint at all"])
def test_what_is_no_checkpoint(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    assert "is no PyTorch, safetensors or HDF5 file" in refusal(tmp_path / "a.pth")


def test_damaged_files(tmp_path):
    path = tmp_path / "a"
    torch.save(tensors(), path)
    path.write_bytes(path.read_bytes()[:300])
    assert "cannot be read as a PyTorch file" in refusal(path)
    torch.save(tensors(), path, _use_new_zipfile_serialization=False)
    for length in (200, 20):
        path.write_bytes(path.read_bytes()[:length])
        assert "damaged" in refusal(path) or "cannot be read as a PyTorch file" in refusal(path)
    safetensors_torch.save_file(tensors(), path)
    path.write_bytes(path.read_bytes()[:-1])
    assert "cannot be read as a safetensors file" in refusal(path)
    with h5py.File(path, "w") as file:
        file["a"] = np.ones(1000)
    path.write_bytes(path.read_bytes()[:1500])
    assert "cannot be read as an HDF5 file" in refusal(path)


def test_files_without_tensors(tmp_path):
    path = tmp_path / "a"
    torch.save({}, path)
    assert "holds no tensors" in refusal(path)
    torch.save(torch.ones(3), path)
    assert "holds a Tensor, not named tensors" in refusal(path)
    torch.save({"a": torch.ones(3), "epoch": 4}, path)
    assert "the entry 'epoch' is no tensor but a Python int" in refusal(path)
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert "holds no tensors" in refusal(path)


class Trap:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_is_unpickled(tmp_path, zipped):
    trap = tmp_path / "sprung"
    torch.save({"a": torch.ones(1), "b": Trap(trap)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert "a.pth holds Python objects, which are not unpickled" in refusal(tmp_path / "a.pth")
    assert "(the first: getattr)" in refusal(tmp_path / "a.pth")
    assert not trap.exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert trap.exists(), "the trap must work"


@pytest.mark.parametrize("package", ["torch", "safetensors", "h5py"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    torch.save(tensors(), tmp_path / "torch")
    safetensors_torch.save_file(tensors(), tmp_path / "safetensors")
    with h5py.File(tmp_path / "h5py", "w") as file:
        file["a"] = np.ones(3)
    monkeypatch.setitem(sys.modules, package, None)
    assert f"without {package}; run: pip install 'uld_jax[convert]'" in refusal(tmp_path / package)
