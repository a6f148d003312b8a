"""Partners and tables of the images in the steps of a run, and the programs of the steps."""

import json
import logging
import types

import jax
import numpy as np
import pytest

from tests import compiled, pascal, tiny
from uld_jax import config as config_lib
from uld_jax import sharding
from uld_jax.data.open import open_data
from uld_jax.engine import loop
from uld_jax.engine.step import FirstState, compile_step, steps_in_one_program, with_tables
from uld_jax.errors import UserError
from uld_jax.method import Round


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return pascal.write(tmp_path_factory.mktemp("pascal") / "photos")


def trained(root, workdir, steps=4, **more):
    """What the steps saw in all, and the lines of their numbers."""
    done = loop.run(pascal.config(root, steps, **more), workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return float(done.model.state.aux.seen), [line for line in lines if "same" in line]


def test_steps_see_categories_and_resume_with_the_same_partners(root, tmp_path):
    seen, lines = trained(root, tmp_path / "whole")
    assert len(lines) == 4
    assert all((line["same"], line["itself"]) == (1, 0) for line in lines)
    trained(root, tmp_path / "parts", steps=2)
    again, _ = trained(root, tmp_path / "parts")  # goes on from step 2
    assert again == seen
    chunks, lines = trained(root, tmp_path / "chunks", steps_per_dispatch=2, log_every=2)
    assert (chunks, len(lines)) == (pytest.approx(seen), 2)


def test_another_list_of_pairs_is_not_resumed(root, tmp_path):
    other = pascal.write(tmp_path / "photos")
    trained(other, tmp_path / "run", steps=2, pairwise__named=False)
    path = other / "image_pairs/train_pairs.csv"
    header, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([header, *rest, first]))  # the same images
    with pytest.raises(UserError, match="stage pairwise differ from those that"):
        trained(other, tmp_path / "run", pairwise__named=False)


def test_a_stage_may_refuse_other_partners(root):
    config = pascal.config(root, data__partner_by="any")
    with pytest.raises(UserError, match=r"takes partners by category or pairs and not by any; set config\.data\."):
        config_lib.stage(config, "pairwise")


class Rows:
    """A reader of row numbers alone."""

    def __init__(self):
        self.store = {"images": np.arange(3)}

    def fetch(self, store, payload):
        assert list(store) == ["images"]
        return payload


def test_tables_come_with_images_and_partners():
    mesh, plain = sharding.make_mesh(jax.devices()[:1]), Rows()
    assert with_tables(plain, mesh, {}) is plain
    reader = with_tables(plain, mesh, {"sizes": np.array([5, 6, 7]), "boxes": (np.eye(3),)})
    payload = {"index": np.array([2, 0])}
    batch = jax.jit(reader.fetch)(reader.store, payload)
    assert set(batch) == {"index", "sizes", "boxes"}
    assert batch["sizes"].tolist() == [7, 5]
    np.testing.assert_array_equal(batch["boxes"][0], np.eye(3)[[2, 0]])
    batch = jax.jit(reader.fetch)(reader.store, payload | {"index2": np.array([1, 1])})
    assert set(batch) == {"index", "sizes", "boxes", "index2", "sizes2", "boxes2"}
    assert batch["sizes2"].tolist() == [6, 6]


@pytest.fixture(scope="module")
def toy():
    """The toy stage, and a function that gives arguments for its steps, `chunk` of them at a time."""
    mesh, config = sharding.make_mesh(jax.devices()[:1]), tiny.config(tiny.TOY, **{"data.rows": (12, 4)})
    reader, method = open_data(config, mesh).train_reader, config_lib.stage(config, "colours").method
    start = FirstState(method, reader, mesh, {}, jax.random.key(0))

    def arguments(chunk):
        payloads, key = reader.payloads(0, seed=1, chunk=chunk), sharding.put_key(mesh, jax.random.key(9))
        return start.state(None), payloads, lambda state, payload: (state, {}, reader.store, payload, key)

    return types.SimpleNamespace(mesh=mesh, reader=reader, method=method, arguments=arguments)


def after(toy, advance, chunk, steps=4):
    """State and loss after some steps."""
    state, payloads, given = toy.arguments(chunk)
    for _ in range(steps // chunk):
        state, values = advance(*given(state, next(payloads)))
    return jax.device_get((state, values["loss"]))


@pytest.fixture(scope="module")
def one_by_one(toy):
    return after(toy, compile_step(toy.method, toy.reader, toy.mesh, 1), 1)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_several_steps_in_one_program(toy, one_by_one, monkeypatch, platform):
    """Written out, as on CPU, and in a loop, as on accelerators."""
    advance = compile_step(toy.method, toy.reader, toy.mesh, 2)
    state, payloads, given = toy.arguments(2)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: platform)
        lowered = advance.lower(*given(state, next(payloads)))
        advance.compile(*given(state, next(payloads)))
    text = lowered.compile().as_text()
    assert compiled.donated(text) >= set(range(len(jax.tree.leaves(state)))), text[:2000]
    assert ("while" in lowered.as_text()) == (platform == "tpu")
    for ours, theirs in zip(*map(jax.tree.leaves, (after(toy, advance, 2), one_by_one)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_second_compilation_is_told(toy, one_by_one, caplog):
    advance = compile_step(toy.method, toy.reader, toy.mesh, 1)
    with caplog.at_level(logging.WARNING):
        after(toy, advance, 1)
        assert not caplog.records
        # A round that gives labels of another type.
        state, payloads, given = toy.arguments(1)
        labels = state.aux.labels._replace(score=state.aux.labels.score.astype(bool))
        state = state.replace(aux=state.aux._replace(labels=labels))
        _, values = advance(*given(state, next(payloads)))
    (record,) = caplog.records
    assert record.getMessage().startswith("the step of Colours is compiled again; steps and rounds must keep shapes")
    assert "aux.labels.score' compiled with float32[12,4] and called with bool[12,4]" in record.getMessage()
    assert np.isfinite(values["loss"])


@pytest.mark.parametrize(
    ("changes", "size"),
    [({}, 10), ({"log_every": 8}, 8), ({"steps": 30, "rounds": 15}, 5), ({"log_every": 7}, 1), ({"save_every": 6}, 2)],
)
def test_rounds_and_records_fall_between_programs(monkeypatch, changes, size):
    """On an accelerator; the largest of 16, 10, 8, 5, 4, 2 and 1 that divides all steps at which something happens."""
    settings = dict(steps=80, rounds=40, log_every=20, eval_every=0, save_every=0) | changes
    config = tiny.config(tiny.TOY, **{k: v for k, v in settings.items() if k.endswith("_every")})
    round_at = lambda step: Round(1) if step % settings["rounds"] == 0 else None
    stage = types.SimpleNamespace(name="a", steps=settings["steps"], method=types.SimpleNamespace(round_at=round_at))
    assert steps_in_one_program(config, stage) == 1  # on CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert steps_in_one_program(config, stage) == size
    config.steps_per_dispatch = 3
    with pytest.raises(UserError, match=r"steps_per_dispatch 3 does not divide \w+"):
        steps_in_one_program(config, stage)
