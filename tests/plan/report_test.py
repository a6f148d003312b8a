"""`uld plan` from end to end: on this machine, and for absent devices where their compilers are installed."""

import doctest
import json
import os

import jax
import numpy as np
import pytest

from tests import tiny
from tests.data.pipeline_test import Coded
from uld_jax import config as config_lib
from uld_jax import devices, sharding
from uld_jax.data.absent import AbsentResident, AbsentStream, make_absent_reader
from uld_jax.data.resident import ResidentReader, words_of
from uld_jax.engine.rounds import Rounds
from uld_jax.engine.step import FirstState, compile_step
from uld_jax.errors import UserError
from uld_jax.plan import hlo, measure, programs, report, topology

ROWS = 24
TOY = f"--config={tiny.ROOT / 'tests/toy/config.py'}:dataset=synthetic,k=3"


def planned(config, mesh):
    """The programs of a config of one stage, {what: program}."""
    images = programs.Images(programs.count_images(config), 2**34)
    return {one.what: one for one in programs.gather(config, mesh, images)}


def test_doctests():
    result = doctest.testmod(measure)
    assert result.attempted >= 1
    assert result.failed == 0


def test_a_plan_compiles_the_very_programs_of_training():
    config = tiny.config(tiny.TOY, **{"data.rows": (ROWS, 8)})
    mesh = sharding.make_mesh(jax.devices()[:1])
    found = planned(config, mesh)
    method, reader = config_lib.stage(config, "colours").method, ResidentReader(Coded(ROWS, 40), mesh, 8)
    state = FirstState(method, reader, mesh, {}, jax.random.key(0)).state(None)
    rounds = Rounds(method, reader, mesh)
    key, payload = sharding.put_key(mesh, jax.random.key(1)), next(reader.ordered())
    bank = rounds.collect(state, {}, key)
    given = bank, state, {}, key, reader.store, payload, {}, sharding.put_replicated(mesh, np.int32(0))
    assert found["write"].program.trace().lower().as_text() == rounds._write.lower(*given).as_text()
    refresh = found["refresh"].program.trace().lower()
    assert refresh.as_text() == rounds._refresh.lower(state, {}, bank, key).as_text()
    assert (found["write"].runs, found["refresh"].runs) == (3 * 3, 3)  # after 10, 20 and 30 steps, of three batches

    given = state, {}, reader.store, next(reader.payloads()), key
    step = compile_step(method, reader, mesh, 1)
    assert found["step"].program.trace().lower().as_text() == step.lower(*given).as_text()
    compiled = step.lower(*given).compile()
    row = measure.measure(found["step"], topology.find("cpu:1"))
    memory, parts = compiled.memory_analysis(), row["bytes_a_device"]
    held = sum(parts[name] for name in ("state", "store", "frozen", "input", "other"))
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
    assert parts["store"] == size(reader.store)
    assert parts["state"] == size(state)
    assert parts["temporaries"] == memory.temp_size_in_bytes
    assert held >= memory.argument_size_in_bytes
    assert (row["steps"], row["runs"], row["fits"]) == (1, 40, True)


def test_the_command_prints_tables_and_writes_all_facts(uld, tmp_path):
    out = tmp_path / "plan.json"
    code, said, progress = uld("plan", TOY, "--topology=cpu:1", f"--out={out}")
    assert code == 0, progress
    found = json.loads(out.read_text())
    assert {row["program"] for row in found["rows"]} == {"step", "write", "refresh"}
    for row in found["rows"]:
        assert set(row) <= set(report.FACTS)
        assert row["fits"] is True
        assert sum(row["bytes_a_device"][part] for part in measure.PARTS) == row["bytes_a_device"]["total"]
    step = found["rows"][0]
    assert step["bytes_padded"] >= step["bytes"] > 0
    assert found["hours"] is None  # this machine has no data sheet
    lines = said.splitlines()
    assert lines[0].startswith("cpu:1: 1 x cpu, 48 images")
    for what in ("step", "write", "refresh"):
        assert sum(line.split()[:2] == ["colours", what] and len(line.split()) > 10 for line in lines) == 2
    assert f"written to {out}" in lines[-1]
    assert "colours step: compiled in" in progress

    code, said, progress = uld("plan", TOY, "--topology=cpu:1", f"--out={out}", "--stages=shapes")
    assert (code, said) == (1, "")
    assert "--stages=shapes is no stage of this config; its stages are colours" in progress
    photos = TOY.replace("synthetic", "folder")
    code, _, progress = uld("plan", photos, "--topology=cpu:1", f"--out={out}")
    assert code == 1
    assert "or give --images=N" in progress


class Fails:
    """A program that no compiler takes."""

    def trace(self):
        raise RuntimeError("Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm.\n Exceeded by 5.75G.")


def test_a_program_that_does_not_compile_is_a_row_with_the_reason():
    here = topology.find("cpu:1")
    broken = programs.Planned("stage", "step", Fails(), {}, 8, 1, 10)
    row = measure.measure(broken, here)
    assert row["fits"] is False
    assert row["bytes_a_device"] == {"total": 21.5 * 2**30, "usable": 15.75 * 2**30}
    assert "RuntimeError: Ran out of memory in memory space hbm." in row["error"]
    unknown = measure.measure(programs.Planned("other", "step", None, {}, 8, 1, 0, "no such weights"), here)
    assert (unknown["fits"], unknown["error"]) == (None, "no such weights")
    found = {"topology": "t", "devices": 1, "device_kind": "k", "images": 3, "rows": [row, unknown], "hours": None}
    assert report.failed(found)
    said = list(report.tables(found))
    assert any(line.startswith("stage") and "NO" in line.split() for line in said)
    assert "other step: no such weights" in said
    assert not report.failed({"rows": [{"fits": True}]})


def test_bounds_and_hours_by_hand():
    costs = hlo.Costs(1e9, 819e6, [], [], 0, 3_000_000, 0, 0, {})
    chips = topology.Topology("v5e:2x2", "tpu", "TPU v5 lite", [None] * 4, 2**34)
    work = measure.arithmetic.Work(half=197e9 * 8)
    found = measure.bounds(work, costs, chips, steps=2)
    assert found == pytest.approx(dict(arithmetic_s=1e-3, memory_s=5e-4, estimate_s=1e-3, bound_s=1e-3))
    rows = [{"bound_s": 1e-3, "steps": 2, "runs": 1800}, {"error": "", "steps": 1, "runs": 5}]
    assert report.hours(rows) == pytest.approx(1e-3)
    assert report.hours(rows[1:]) is None
    here = topology.Topology("cpu:1", "cpu", "cpu", [None], 2**34)
    assert set(measure.bounds(work, costs, here, 2).values()) == {None}


def test_the_largest_batch_of_made_memories():
    rng = np.random.default_rng(0)
    for _ in range(200):
        multiple, most, limit = int(rng.integers(1, 9)), int(rng.integers(1, 500)), rng.uniform(0, 300)
        memory = np.cumsum(rng.exponential(size=600))  # grows with the batch in uneven steps
        asked = []
        fits = lambda batch, m=memory, limit=limit, asked=asked: asked.append(batch) or m[batch] <= limit
        found = measure.largest(fits, int(rng.integers(1, 700)), multiple, most, precision=0.0)
        every = [b for b in range(multiple, most + 1, multiple) if memory[b] <= limit]
        assert found == max(every, default=0)
        assert len(asked) == len(set(asked)) <= 25
        near = measure.largest(fits, 8, multiple, most)
        assert near <= found <= max(near * 17 / 16, near + multiple)


def test_batches_that_do_not_divide_become_the_nearest(monkeypatch):
    config, said = tiny.config(tiny.TOY), []
    config.unlock()
    config.batch_size = 50
    mesh = type("Four", (), {"size": 4})()
    programs.fit_batches(config, mesh, said.append)
    assert config_lib.batch_of(config, "colours") == 52
    assert said == [
        "colours: a batch of 50 does not divide over 4 devices; this is a plan for the nearest that does, "
        "--config.colours.batch_size=52"
    ]
    assert [sharding.nearest_batch(mesh, size) for size in (1, 5, 6, 12, 49)] == [4, 4, 8, 12, 48]
    with pytest.raises(UserError, match="batch_size 50 does not divide over 4 devices; use 48 or 52"):
        sharding.check_divides(mesh, 50)
    with pytest.raises(UserError, match=r"over 4 devices; use 4$"):
        sharding.check_divides(mesh, 3)


def test_absent_images_are_kept_as_present_ones_would_be():
    mesh = sharding.make_mesh(jax.devices()[:1])
    options = dict(kind="auto", partner=True, whole=False)
    row = 4 * words_of(10)
    kept = make_absent_reader(100, 10, mesh, 4, memory=100 * row / 0.4 + 1, **options)
    assert isinstance(kept, AbsentResident)
    assert kept.store["images"].shape == (100, words_of(10))
    assert {k: v.shape for k, v in next(kept.payloads(chunk=3)).items()} == {"index": (3, 4), "index2": (3, 4)}
    streamed = make_absent_reader(100, 10, mesh, 4, memory=99 * row / 0.4, **options)
    assert isinstance(streamed, AbsentStream)
    assert {k: v.shape for k, v in next(streamed.payloads()).items()} == {
        "image": (4, 10, 10, 3),
        "index": (4,),
        "image2": (4, 10, 10, 3),
        "index2": (4,),
    }
    assert len(list(streamed.ordered())) == streamed.passes() == 25
    with pytest.raises(UserError, match=r"use config\.data\.reader=stream"):
        make_absent_reader(100, 10, mesh, 4, memory=row, **(options | dict(kind="resident")))


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.SHIPPED)
def test_every_program_of_every_method_is_traced(name):
    config = config_lib.load(f"{name}:preset=tiny")
    found = {}
    for one in programs.gather(config, sharding.make_mesh(jax.devices()[:1]), programs.Images(48, 2**34)):
        assert not one.error
        found.setdefault(one.stage, set()).add(one.what)
        assert one.program.trace().lower().as_text()
    assert set(found) == set(config.stages)
    assert all("step" in whats for stage, whats in found.items() if config[stage].steps)


ABSENT = [("v5e:2x2", "libtpu", "tpu"), ("h100:2", "jax_plugins.xla_cuda13", "gpu")]


@pytest.mark.parametrize(("name", "module", "platform"), ABSENT, ids=[name for name, *_ in ABSENT])
def test_programs_for_absent_devices(name, module, platform, tmp_path):
    pytest.importorskip(module, reason=f"{module} compiles for {platform}; pip install -e '.[plan]'")
    out, path = tmp_path / "plan.json", os.pathsep.join([str(tiny.ROOT), os.environ.get("PYTHONPATH", "")])
    more = {"PYTHONPATH": path, "XLA_FLAGS": ""}
    done = tiny.run("-m", "uld_jax", "plan", TOY, f"--topology={name}", f"--out={out}", env=more)
    found = json.loads(out.read_text())
    assert devices.sheet(found["device_kind"])
    step = next(row for row in found["rows"] if row["program"] == "step")
    assert step["steps"] == 10  # several in one program, unlike on CPU
    assert step["loops_unknown"] == 0
    assert 0 < step["memory_s"] <= step["bound_s"]
    assert any(one["kind"] == "all-reduce" for one in step["collectives"])
    if platform == "tpu":
        assert step["cycles"] > 0
        assert step["bytes_padded"] > step["bytes"]
    else:
        assert step["kernels"] > 0
        assert step["cycles"] is None
    assert "the whole config takes at least" in done.stdout
