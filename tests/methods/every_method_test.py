"""What every stage of every method must hold, found by listing `configs/`: see also `tests/loop_test.py`."""

import functools
import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uld_jax.methods
from tests import tiny
from uld_jax import config as config_lib
from uld_jax import detector
from uld_jax.bank import Bank, Labels, masked
from uld_jax.engine import loop
from uld_jax.method import Stage, Start

EXTENDED = "self_training:variant=extended"  # whose first stage is that of self_training
# What these configs have besides takes long to compile.
SLOW = [("lead:stage1=moco", "moco"), ("lead:compact=nmf", "compact"), ("c3:init=zeroshot", "pose")]
STAGES = [*tiny.stages(), (EXTENDED, "stage1"), (EXTENDED, "stage2"), *SLOW]
CASES = [pytest.param(*s, marks=[pytest.mark.slow] * (s in SLOW), id="-".join(s)) for s in STAGES]
ids = pytest.mark.parametrize(("name", "stage"), CASES)
ROWS = 24
# IMM and C3 divide each term of the loss by the term's own running mean: `loss` stays put. LEAD's second stage has the
# teacher's entropy in its loss.
FALLS = {
    ("imm", "imm"): "pixels",
    ("c3", "paired"): "pixels",
    ("c3", "joint"): "cycle",
    ("lead", "compact"): "divergence",
}


class Built(NamedTuple):
    """A stage with the first state that it has in a run, and its programs, which all tests share: compiling costs."""

    spec: Any
    frozen: Any
    batch: dict
    state: Any
    step: Callable
    observe: Callable
    refresh: Callable

    def bank(self):
        """A bank [B,T,...] of batches of 24 rows."""
        parts, batch = [], self.batch
        for t in range(-(-ROWS // len(batch["index"]))):
            index = batch["index"] + t * len(batch["index"])
            shown = batch | {"index": index, "image": jnp.roll(batch["image"], 5 * t, 1)}
            seen, real = self.observe(self.state, self.frozen, shown, jax.random.key(8)), index < ROWS
            parts.append(Bank(masked(seen, real), jnp.minimum(index, ROWS), real))
        return jax.tree.map(lambda *x: jnp.stack(x, 1), *parts)

    def makes_passes(self):
        """Whether any of the stage's rounds does."""
        due = [self.spec.method.round_at(step) for step in range(self.spec.steps + 1)]
        return any(one.passes for one in due if one)


@functools.cache
def built(name, stage) -> Built:
    """The stage after those before it have been refreshed."""
    config = tiny.config(name)
    rng = np.random.default_rng(3)
    side = config.data.frame_size
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (config.batch_size, side, side, 3), np.uint8)),
        "index": jnp.arange(config.batch_size, dtype=jnp.int32),
    }
    if config.data.partner:
        batch |= {"image2": batch["image"][::-1], "index2": batch["index"][::-1]}
    spec = config_lib.stage(config, stage)
    method, frozen = spec.method, spec.method.frozen()
    number = config.stages.index(stage)
    previous = after(name, config.stages[number - 1]) if number else None
    state = jax.jit(lambda b, f, p: method.init(jax.random.key(1), b, f, Start(p, ROWS)))(batch, frozen, previous)
    return Built(spec, frozen, batch, state, *map(jax.jit, (method.train_step, method.observe, method.refresh)))


@functools.cache
def after(name, stage):
    """The stage's state after its first round: what the next one is given, untrained."""
    one = built(name, stage)
    # The extended stage 1 finds the landmarks in its first round, which is later.
    later = name == EXTENDED and one.spec.method.round_at(one.spec.steps)
    if due := one.spec.method.round_at(0) or later:
        for i in range(max(due.passes, 1)):
            bank = one.bank() if due.passes else None
            one = one._replace(state=one.refresh(one.state, one.frozen, bank, jax.random.key(i)))
    return one.state


def test_every_method_class_has_a_config():
    named = {tiny.config(n)[s].method for n, s in STAGES if n != tiny.TOY}
    found = set()
    for module in pkgutil.iter_modules(uld_jax.methods.__path__):
        for name, cls in vars(importlib.import_module(f"uld_jax.methods.{module.name}")).items():
            own = inspect.isclass(cls) and cls.__module__.endswith(module.name) and not name.startswith("_")
            # What stages share is no method; other tests may have made stages of their own.
            below = cls.__subclasses__() if own else ()
            if own and hasattr(cls, "predict") and not any(sub.__module__.startswith("uld_jax.") for sub in below):
                found.add(f"{module.name}.{name}")
    assert found == named


@ids
def test_shapes(name, stage):
    one = built(name, stage)
    spec, frozen, batch, state = one[:4]
    # A method that finds out how many landmarks there are has room for more.
    k, size = getattr(spec.method, "room", tiny.config(name).k), len(batch["index"])
    found = jax.eval_shape(spec.method.predict, state, frozen, batch["image"])
    assert found.xy.shape == (size, k, 2)
    assert found.score.shape == (size, k)
    assert found.xy.dtype == found.score.dtype == jnp.float32
    if spec.steps:
        new, metrics = one.step.eval_shape(state, frozen, batch, jax.random.key(0))
        assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
        assert all(v.shape == () for v in metrics.values())
        assert "loss" in metrics
    if one.makes_passes():
        seen = one.observe.eval_shape(state, frozen, batch, jax.random.key(0))
        assert seen._fields  # the method's own words
        assert all(x.shape[0] == size for x in jax.tree.leaves(seen))
        if (slots := there(seen)) is not None:
            assert slots.dtype == (bool if "mask" in seen._fields else jnp.float32)
            assert seen.xy.shape == (*slots.shape, 2)
            assert all(x.shape[:2] == slots.shape for x in jax.tree.leaves(by_slot(seen)))
    if type(spec.method).describe is not Stage.describe:
        described = jax.eval_shape(spec.method.describe, state, frozen, batch["image"])
        assert described.z.shape[:2] == described.landmark.shape == described.mask.shape
        assert described.z.shape[0] == size
        assert (described.landmark.dtype, described.mask.dtype) == (jnp.int32, bool)


# Fields that have a value for each of a mask's slots; those of other names are of the image, or of other things.
BY_SLOT = {"xy", "described", "turned", "inside"}


def there(seen):
    """What says which slots of an image are not empty: a mask, or a score that is 0 where nothing is; None without."""
    return getattr(seen, "mask", getattr(seen, "score", None))


def by_slot(seen) -> dict:
    return {name: x for name, x in seen._asdict().items() if name in BY_SLOT and x is not None}


def spoiled(rng, x, keep, size: float):
    """An array whose parts that are not to be kept, [...] of its first axes, are noise."""
    noise = rng.random(x.shape) < 0.5 if x.dtype == bool else rng.normal(0, size, x.shape)
    return jnp.where(jnp.reshape(keep, (*keep.shape, *[1] * (x.ndim - keep.ndim))), x, jnp.asarray(noise, x.dtype))


@ids
@pytest.mark.parametrize("when", ["first", "later"])
def test_masked_slots_and_padding_do_not_matter(name, stage, when):
    one = built(name, stage)
    if not one.makes_passes():
        pytest.skip("this stage makes no passes")
    if when == "later":
        one = one._replace(state=after(name, stage))
    bank = one.bank()
    rng = np.random.default_rng(0)
    real = bank.real & jnp.asarray(rng.random(bank.real.shape) < 0.8)
    bank = Bank(jax.vmap(masked)(bank.values, real), jnp.where(real, bank.index, ROWS), real)
    assert not real.all()
    seen = bank.values
    if (slots := there(seen)) is not None:
        slots = jnp.where(jnp.asarray(rng.random(slots.shape) < 0.8), slots, jnp.zeros((), slots.dtype))
        seen = seen._replace(**{"mask" if "mask" in seen._fields else "score": slots})

    def filled(size):
        values = {field: x for field, x in seen._asdict().items() if x is not None}
        if slots is not None:
            values |= {field: spoiled(rng, x, slots > 0, size) for field, x in by_slot(seen).items()}
        values = {field: x if field == "mask" else spoiled(rng, x, real, size) for field, x in values.items()}
        return bank._replace(values=seen._replace(**values))

    a = one.refresh(one.state, one.frozen, filled(1.0), jax.random.key(5))
    b = one.refresh(one.state, one.frozen, filled(100.0), jax.random.key(5))
    jax.tree.map(np.testing.assert_array_equal, visible(a.aux), visible(b.aux))


def visible(aux):
    """An aux with the coordinates of missing labels, which nobody may read, blanked."""

    def blank(x):
        return Labels(jnp.where(x.score[..., None] > 0, x.xy, 0), x.score) if isinstance(x, Labels) else x

    return jax.tree.map(blank, aux, is_leaf=lambda x: isinstance(x, Labels))


@ids
def test_labels_that_are_missing_do_not_matter_to_a_step(name, stage):
    spec, frozen, batch, state, step, *_ = built(name, stage)
    labels = state.aux.labels if "labels" in getattr(state.aux, "_fields", ()) else None
    if not spec.steps or labels is None:
        pytest.skip("this stage trains on no labels")
    there = jnp.asarray(np.random.default_rng(1).random(labels.score.shape) < 0.5)
    results = []
    for value in (0.0, 11.0):
        xy = jnp.where(there[..., None], labels.xy, value)
        changed = state.replace(aux=state.aux._replace(labels=Labels(xy, there.astype(labels.score.dtype))))
        results.append(step(changed, frozen, batch, jax.random.key(2))[0].params)
    jax.tree.map(np.testing.assert_array_equal, *results)


@ids
def test_thirty_steps_lower_the_loss(name, stage):
    spec, frozen, batch, _, step, *_ = built(name, stage)
    if not spec.steps:
        pytest.skip("a stage of zero steps")
    losses, state = [], after(name, stage)  # as the loop has it before the first step
    for i in range(30):
        state, metrics = step(state, frozen, batch, jax.random.key(i))
        losses.append(float(metrics[FALLS.get((name, stage), "loss")]))
    first = 1 if stage == "moco" else 0  # its queue starts with random keys, which are easily told from real ones
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[first : first + 5]), losses
    assert step._cache_size() == 1, step._cache_size()


@pytest.mark.slow
@pytest.mark.parametrize("init", ["scratch", "zeroshot"])
def test_a_whole_run_of_cgb(tmp_path, init):
    """From the first stage, clusters formed of a pass, with everything that an evaluation shows."""
    short = {"detector.steps": 2, "detector.round_every": 0, "warmup.steps": 2, "cgb.steps": 4, "cgb.round_every": 2}
    short = {key: value for key, value in short.items() if init == "zeroshot" or not key.startswith("detector")}
    config = tiny.config("cgb", more=f",init={init}", eval_every=0, save_every=0, log_every=2, **short)
    config.cgb.update(labels_from="pass", bn_eval="batch", loss_window=0.5, projection="frozen_random")
    assert config.warmup.loss_window == 0.5  # one setting for both
    found = loop.run(config, tmp_path)
    assert int(found.model.state.aux.round) == 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["stage"] == "cgb" and "loss" in line]
    assert all(0 < line["consistency"] <= 1 for line in trained)
    assert all("consistency" not in line for line in lines if line["stage"] == "warmup")
    pictures = {p.name for p in (tmp_path / "pictures").iterdir()}
    last = f"{sum(config[s].steps for s in config.stages):08d}_cgb"
    assert {f"{last}_generated.png", f"{last}_heatmaps.png", "over_steps_cgb_generated.png"} <= pictures
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    score = detector.Detector.load(tmp_path).predict(images).score
    assert ((score > 0) & (score <= 1)).all()
    assert score.std() > 0  # the consistency of each landmark, and not a constant


@pytest.mark.slow
def test_imm_shows_what_it_generates(tmp_path):
    config = tiny.config("imm", eval_every=0, save_every=0, log_every=2, **{"imm.steps": 2})
    loop.run(config, tmp_path)
    pictures = {p.name for p in (tmp_path / "pictures").iterdir()}
    assert {f"00000002_imm_{name}.png" for name in ("generated", "heatmaps", "swaps")} <= pictures
    assert np.isfinite(json.loads((tmp_path / "eval/test/metrics.json").read_text())["forward_nme"])


DEVICES = """
import sys
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_default_matmul_precision", "highest")
from tests import collectives, compiled, tiny
from uld_jax import config as config_lib, sharding
from uld_jax.data.open import open_data
from uld_jax.engine.rounds import Rounds
from uld_jax.engine.step import FirstState, compile_step

def check(program, state):  # the state stays where it is, and no table of it is sent
    text, leaves = program.as_text(), jax.tree.leaves(state)
    assert compiled.donated(text) >= set(range(len(leaves)))
    tables = {x.shape for x in jax.tree.leaves(state.aux) if x.ndim > 1}
    gathered = {one.shape for one in collectives.list_collectives(text) if one.kind == "all-gather"}
    assert not gathered & tables, gathered & tables

assert jax.device_count() == 8
dtype, names = sys.argv[1], sys.argv[2:]
steps, bound = {"float64": (10, 1e-8), "float32": (1, 4e-6)}[dtype]
for name in names:
    results = []
    for mesh in (sharding.make_mesh(jax.devices()[:1]), sharding.make_mesh()):
        config = tiny.config(name, dtype=dtype)
        if name == "cgb":  # Adam without momentum at tiny's high rate multiplies rounding by ten a step
            config.cgb.update(detector_rate=1e-4, generator_rate=1e-4)
        data = open_data(config, mesh)
        losses, state = [], None
        for number, stage in enumerate(config.stages):
            spec = config_lib.stage(config, stage)
            frozen = sharding.put_replicated(mesh, spec.method.frozen())
            state = FirstState(spec.method, data.train_reader, mesh, frozen, jax.random.key(number)).state(state)
            rounds = Rounds(spec.method, data.train_reader, mesh)
            state = rounds.run(state, frozen, jax.random.key(7), spec.method.round_at(0))
            advance = compile_step(spec.method, data.train_reader, mesh, 1)
            payloads = data.train_reader.payloads(0, seed=1)
            key = sharding.put_key(mesh, jax.random.key(9))
            share = -(-steps // sum(config[s].steps > 0 for s in config.stages))
            for _ in range(min(share, spec.steps, steps - len(losses))):
                state, values = advance(state, frozen, data.train_reader.store, next(payloads), key)
                losses.append(float(values["loss"]))
            if advance._compiled is not None and mesh.size > 1:
                check(advance._compiled, state)
        results.append((losses, jax.device_get(state)))
    (one, a), (eight, b) = results
    print(name, dtype, np.abs(np.subtract(one, eight)).max(), len(one))
    assert len(one) == steps and np.allclose(one, eight, rtol=bound, atol=bound)
    for x, y in zip(jax.tree.leaves(a.aux), jax.tree.leaves(b.aux), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != tiny.TOY)) for n in tiny.CONFIGS])
def test_ten_steps_on_one_device_and_on_eight_agree_in_float64(name):
    tiny.run("-c", DEVICES, "float64", name, devices=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_one_step_on_one_device_and_on_eight_agree_in_float32(name):
    # With the compiler's optimisations, as users run it: without them sums round in another order.
    tiny.run("-c", DEVICES, "float32", name, devices=8, env={"XLA_FLAGS": "--xla_force_host_platform_device_count=8"})
