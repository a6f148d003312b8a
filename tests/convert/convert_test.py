"""`uld convert` as a user meets it, with files of the published size."""

import json
import sys

import numpy as np
import pytest

from tests.convert.checks import equal
from tests.models import fan_test as reference
from uld_jax import __main__ as cli
from uld_jax import convert, weights
from uld_jax.convert import files, vgg16
from uld_jax.errors import UserError

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
h5py = pytest.importorskip("h5py")


@pytest.fixture
def uld(capsys, monkeypatch):
    """Exit code, stdout and stderr of `uld convert` with these flags, run in this process."""

    def run(**flags):
        monkeypatch.setattr("sys.argv", ["uld", "convert", *(f"--{name}={value}" for name, value in flags.items())])
        code = cli.main()
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture
def refused(uld):
    def run(**flags):
        code, out, err = uld(**flags)
        assert (code, out) == (1, ""), err
        assert len(err.strip().splitlines()) == 1, err
        assert err.startswith("uld convert: ")
        return err

    return run


@pytest.fixture(scope="module")
def fan_state():
    """Of the published size, for 10 landmarks."""
    state = reference.torch_twin(landmarks=10, width=256, depth=4, downsample=4, norm="batch").state_dict()
    assert len(state) == 334
    return state


def test_fan(uld, refused, tmp_path, fan_state):
    src, dst = tmp_path / "fan.pth", tmp_path / "weights" / "fan"
    torch.save({"epoch": 109, "state_dict": {f"module.{key}": value for key, value in fan_state.items()}}, src)
    code, out, err = uld(kind="fan", src=src, dst=dst)
    assert code == 0, err
    assert "334 entries, 6234762 parameters" in out
    assert "CC BY-NC" in out
    assert f"--config.weights.fan={dst}" in out
    equal(weights.load(dst, "fan"), reference.to_flax(fan_state))
    source = json.loads((dst / "source.json").read_text())
    assert source.pop("licence")
    assert len(source.pop("crc32")) == 8
    expected = dict(kind="fan", file="fan.pth", sha256=files.sha256(src), entries=334, parameters=6_234_762)
    assert source == expected
    assert uld(kind="fan", src=src, dst=dst)[:2] == (0, out)  # again
    fan_state = fan_state | {"l_0.bias": fan_state["l_0.bias"] + 1}
    torch.save(fan_state, src)
    assert "exists and holds weights of kind 'fan' from fan.pth" in refused(kind="fan", src=src, dst=dst)
    assert json.loads((dst / "source.json").read_text())["sha256"] == expected["sha256"]
    assert [p.name for p in dst.parent.iterdir()] == ["fan"]


def test_an_incremental_fan(uld, refused, tmp_path, fan_state):
    src, core, dst = tmp_path / "model_80.fan.pth", tmp_path / "fan_109.safetensors", tmp_path / "fan"
    safetensors_torch.save_file(fan_state, core)
    inner = [key for key, value in fan_state.items() if value.shape[2:] == (3, 3)]
    assert len(inner) == 51
    adapted = {key: value for key, value in fan_state.items() if key not in inner}
    adapted |= {key.removesuffix("weight") + "W": 2 * torch.eye(len(fan_state[key])) for key in inner}
    torch.save(adapted, src)
    assert "--core=FILE" in refused(kind="fan", src=src, dst=dst)
    assert "--core=" in refused(kind="fan", src=src, dst=dst, core=tmp_path / "absent.pth")
    code, _, err = uld(kind="fan", src=src, dst=dst, core=core)
    assert code == 0, err
    plain = fan_state | {key: 2 * fan_state[key] for key in inner}
    equal(weights.load(dst, "fan"), reference.to_flax(plain))
    source = json.loads((dst / "source.json").read_text())
    assert (source["entries"], source["core_file"]) == (334, core.name)
    assert source["core_sha256"] == files.sha256(core)


def vgg_arrays(inputs):
    """Kernel and bias of every layer, cheap to make and to tell apart."""
    for i, (name, (before, after)) in enumerate(vgg16.layers(inputs).items()):
        kernel = np.zeros((after, before, 3, 3), np.float32)
        kernel[1, 0] = np.arange(9).reshape(3, 3) + i
        yield name, kernel, np.full(after, i, np.float32)


def test_vgg16(uld, tmp_path):
    numbers = iter((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
    state = {"classifier.6.bias": torch.zeros(1000)}
    for _, kernel, bias in vgg_arrays(3):
        number = next(numbers)
        state |= {f"features.{number}.weight": torch.tensor(kernel), f"features.{number}.bias": torch.tensor(bias)}
    safetensors_torch.save_file(state, tmp_path / "vgg16.safetensors")
    code, out, err = uld(kind="vgg16", src=tmp_path / "vgg16.safetensors", dst=tmp_path / "dst")
    assert code == 0, err
    assert "27 entries, 14714688 parameters" in out
    found = weights.load(tmp_path / "dst", "vgg16")
    equal(found, {name: dict(kernel=w.transpose(2, 3, 1, 0), bias=b) for name, w, b in vgg_arrays(3)})


def test_vgg16_colorization(uld, tmp_path):
    with h5py.File(tmp_path / "vgg16.caffemodel.h5", "w") as file:
        for name, kernel, bias in vgg_arrays(1):
            variance = 4 - 1e-5
            moments = (np.full(len(bias), 3.0), np.full(len(bias), 10 * variance), np.array([10.0]))
            for layer, arrays in ((name, (kernel, bias)), (f"batch_{name}", moments)):
                for i, array in enumerate(arrays):
                    file[f"data/{layer}/{i}"] = array
        file["data/fc6/0"] = np.zeros((2, 2))
    flags = dict(kind="vgg16_colorization", src=tmp_path / "vgg16.caffemodel.h5", dst=tmp_path / "dst")
    code, _, err = uld(**flags)
    assert code == 0, err
    found = weights.load(tmp_path / "dst", "vgg16_colorization")
    for name, kernel, bias in vgg_arrays(1):
        np.testing.assert_allclose(found[name]["kernel"], kernel.transpose(2, 3, 1, 0) / 2, rtol=1e-6)
        np.testing.assert_allclose(found[name]["bias"], (bias - 0.3) / 2, rtol=1e-6)


def test_bad_input_is_one_sentence_and_leaves_nothing(refused, tmp_path, monkeypatch, fan_state):
    src, dst, text = tmp_path / "fan.pth", tmp_path / "dst", tmp_path / "readme.txt"
    torch.save(fan_state, src)
    text.write_text("no checkpoint")
    assert "--kind" in refused(src=src, dst=dst)
    kinds = ", ".join(convert.KINDS)
    assert f"--kind=resnet is unknown; use one of {kinds}" in refused(kind="resnet", src=src, dst=dst)
    assert "--src" in refused(kind="fan", dst=dst)
    assert "--dst is empty" in refused(kind="fan", src=src, dst="")
    assert "does not exist" in refused(kind="fan", src=tmp_path / "absent.pth", dst=dst)
    assert "is a folder" in refused(kind="fan", src=tmp_path, dst=dst)
    assert "is no PyTorch, safetensors or HDF5 file" in refused(kind="fan", src=text, dst=dst)
    assert "'features.0.weight' (and 25 more) is missing" in refused(kind="vgg16", src=src, dst=dst)
    assert "--core is of no use for --kind=vgg16" in refused(kind="vgg16", src=src, dst=dst, core=src)
    assert "leave --core out" in refused(kind="fan", src=src, dst=dst, core=src)
    assert "is a file; give a folder" in refused(kind="fan", src=src, dst=text)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        assert "pip install 'uld_jax[convert]'" in refused(kind="fan", src=src, dst=dst)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fan.pth", "readme.txt"]
    with pytest.raises(UserError, match="unknown"):
        convert.convert("resnet", src, dst)
