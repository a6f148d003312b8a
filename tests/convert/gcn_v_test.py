import jax
import numpy as np
import pytest

from tests.clustering.gcn_v_test import HIDDEN, D, torch_twin
from tests.convert.checks import refusal
from uld_jax import __main__ as cli
from uld_jax import weights
from uld_jax.clustering import gcn_v as network
from uld_jax.convert import gcn_v

torch = pytest.importorskip("torch")


@pytest.fixture
def entries():
    return {key: value.numpy() for key, value in torch_twin()[0].items()}


def convert(entries):
    return gcn_v.convert(entries, where="gcn.pth", size=D, hidden=HIDDEN)


def test_every_entry_has_its_place(entries):
    params = convert(entries)
    shapes = jax.eval_shape(lambda: network.initialize(jax.random.key(0), D, HIDDEN))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    np.testing.assert_array_equal(params["conv1"]["kernel"], entries["conv1.weight"])  # no transpose
    np.testing.assert_array_equal(params["conv1"]["bias"], entries["conv1.bias"])
    np.testing.assert_array_equal(params["classifier_0"]["kernel"], entries["classifier.0.weight"].T)
    np.testing.assert_array_equal(params["classifier_0"]["bias"], entries["classifier.0.bias"])
    np.testing.assert_array_equal(params["classifier_1"]["slope"], entries["classifier.1.weight"])
    np.testing.assert_array_equal(params["classifier_2"]["kernel"], entries["classifier.2.weight"].T)
    np.testing.assert_array_equal(params["classifier_2"]["bias"], entries["classifier.2.bias"])
    parallel = convert({f"module.{key}": value for key, value in entries.items()})
    jax.tree.map(np.testing.assert_array_equal, parallel, params)


def test_entries_that_do_not_fit_are_named(entries):
    def without(*keys):
        return {key: value for key, value in entries.items() if key not in keys}

    assert "'classifier.1.weight' is missing" in refusal(convert, without("classifier.1.weight"))
    assert "'conv1.weight' (and 6 more) is missing" in refusal(convert, {"fc.weight": np.ones(3)})
    assert "'conv2.bias' is used by nothing" in refusal(convert, entries | {"conv2.bias": np.ones(HIDDEN)})
    deep = refusal(convert, entries | {"conv1.weight": np.ones((2 * D + 1, HIDDEN))})
    assert f"'conv1.weight' has shape ({2 * D + 1}, {HIDDEN}), not ({2 * D}, {HIDDEN})" in deep
    assert "not finite" in refusal(convert, entries | {"classifier.2.bias": np.array([np.nan])})


def test_a_trainers_file_of_the_published_size(tmp_path, capsys, monkeypatch):
    state, _ = torch_twin(256, 512)
    assert len(state) == 7
    src, dst = tmp_path / "pretrained_gcn_v_ms1m.pth", tmp_path / "gcn_v"
    torch.save({"meta": {"epoch": 80_000}, "state_dict": state, "optimizer": {"state": {}}}, src)
    monkeypatch.setattr("sys.argv", ["uld", "convert", "--kind=gcn_v", f"--src={src}", f"--dst={dst}"])
    assert cli.main() == 0
    out = capsys.readouterr().out
    assert "7 entries, 526337 parameters" in out
    assert "MS-Celeb-1M" in out
    assert f"--config.weights.gcn_v={dst}" in out
    params = weights.load(dst, "gcn_v")
    expected = gcn_v.convert({key: value.numpy() for key, value in state.items()}, where="")
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert network.size(params) == 256
