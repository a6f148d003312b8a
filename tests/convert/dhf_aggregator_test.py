import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.convert.checks import equal, refusal
from tests.models import aggregator_test as reference
from uld_jax import __main__ as cli
from uld_jax import convert as converter
from uld_jax import weights
from uld_jax.convert import dhf_aggregator
from uld_jax.errors import UserError
from uld_jax.models.aggregator import Aggregator

torch = pytest.importorskip("torch")

WIDTHS, PROJECTION, TIMESTEPS = (10, 24, 7), 24, 2


def state(seed=0, timesteps=TIMESTEPS):
    torch.manual_seed(seed)
    return reference.randomized(reference.torch_twin(WIDTHS, PROJECTION, timesteps), seed).state_dict()


@pytest.fixture
def entries():
    return {key: value.numpy() for key, value in state().items()}


def convert(entries):
    return dhf_aggregator.convert(entries, where="aggregation.pt")


def test_examples():
    assert doctest.testmod(dhf_aggregator) == (0, 1)


def test_every_entry_has_its_place(entries):
    assert len(entries) == 1 + 3 * (4 + 3 + 4)
    found = convert(entries)
    equal(found, reference.to_flax(state(), TIMESTEPS))
    maps = {f"t{t}.{i}": jnp.zeros((1, 4, 4, c)) for t in range(TIMESTEPS) for i, c in enumerate(WIDTHS)}
    drawn = jax.eval_shape(lambda m: Aggregator(PROJECTION).init(jax.random.key(0), m, (4, 4))["params"], maps)
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, drawn)


def test_entries_that_do_not_fit_are_named(entries):
    norm = "bottleneck_layers.2.0.conv3.norm.bias"
    assert f"{norm!r} is missing" in refusal(convert, {key: value for key, value in entries.items() if key != norm})
    assert "'mixing_weights' (and 144 more) is missing; the entry 'fc' is used by nothing" in refusal(
        convert, {"fc": np.ones(3)}
    )
    second = {"bottleneck_layers.0.1.conv1.weight": np.ones((6, 24, 1, 1))}
    assert f"{next(iter(second))!r} is used by nothing" in refusal(convert, entries | second)
    assert "'mixing_weights' has shape (7,), not (6,)" in refusal(convert, entries | {"mixing_weights": np.ones(7)})
    kernel = "bottleneck_layers.1.0.conv2.weight"
    assert f"{kernel!r} has shape (6, 6, 1, 1), not (6, 6, 3, 3)" in refusal(
        convert, entries | {kernel: np.ones((6, 6, 1, 1))}
    )
    assert "not finite" in refusal(convert, entries | {"mixing_weights": np.full(6, np.nan)})


def test_a_file_as_its_trainer_writes_it(tmp_path, monkeypatch, capsys):
    """Of the published size, beside step, settings and optimiser; the log says that it was supervised."""
    widths = [1280] * 6 + [640] * 3 + [320] * 3
    network = reference.randomized(reference.torch_twin(widths, 384, 11))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    whole = {
        "step": 5000,
        "config": {"save_timestep": [49, 45, 0], "model_id": "x", "idxs": None, "lr": 1e-3},
        "aggregation_network": network.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
    }
    src, dst = tmp_path / "aggregation_network.pt", tmp_path / "dhf"
    torch.save(whole, src)
    monkeypatch.setattr("sys.argv", ["uld", "convert", "--kind=dhf_aggregator", f"--src={src}", f"--dst={dst}"])
    assert cli.main() == 0
    out = capsys.readouterr().out
    assert "SUPERVISED" in out
    assert "SPair-71k" in out
    assert "no licence" in out
    assert f"--config.weights.dhf_aggregator={dst}" in out
    source = weights.read_source(dst, "dhf_aggregator")
    assert (source["parameters"], source["entries"]) == (6_529_536 + 132, 145)
    assert (source["widths"], source["timesteps"], source["projection"]) == (widths, 11, 384)
    assert source["supervised"]
    assert "SUPERVISED" in source["licence"]
    equal(weights.load(dst, "dhf_aggregator"), reference.to_flax(network.state_dict(), 11))


def test_a_bare_state_dict_and_one_that_holds_code(tmp_path):
    torch.save(state(), tmp_path / "bare.pt")
    source = converter.convert("dhf_aggregator", str(tmp_path / "bare.pt"), str(tmp_path / "bare"))
    assert source["timesteps"] == TIMESTEPS
    torch.save({"aggregation_network": state(), "config": Settings()}, tmp_path / "code.pt")
    with pytest.raises(UserError, match="holds Python objects"):
        converter.convert("dhf_aggregator", str(tmp_path / "code.pt"), str(tmp_path / "code"))
    assert not (tmp_path / "code").exists()


class Settings:
    """A class that no reader of weights knows."""
