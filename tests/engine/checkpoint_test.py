"""Checkpoints: what is kept, what is in them, and when a stage counts as finished."""

import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from uld_jax import sharding
from uld_jax.bank import Labels
from uld_jax.engine import checkpoint
from uld_jax.errors import UserError
from uld_jax.method import TrainState


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(jax.devices()[:1])


def state(mesh, seed=0, width=6):
    rng = np.random.default_rng(seed)
    params = {"layer": {"w": rng.normal(size=(width, 3)).astype(np.float32), "b": np.zeros(3, np.float32)}}
    made = TrainState(
        step=np.int32(seed),
        params=params,
        model_state={"batch_stats": {"mean": rng.normal(size=3).astype(np.float32)}},
        opt_state=optax.adam(0.1).init(params),
        aux=Labels(rng.normal(size=(5, 2, 2)).astype(np.float32), np.ones((5, 2), np.float32)),
    )
    return sharding.put_replicated(mesh, made)


def template(mesh, of):
    return checkpoint.abstract(mesh, jax.eval_shape(lambda x: x, of))


def check_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)

    def same(x, y):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)

    jax.tree.map(same, a, b)


def numbers(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


@pytest.mark.parametrize(("every", "kept"), [(0, [5, 6]), (3, [3, 5, 6])])
def test_the_newest_are_kept_and_every_nth(mesh, tmp_path, every, kept):
    keeper = checkpoint.Keeper(tmp_path, "one", keep_last=2, keep_every=every)
    assert keeper.latest() is None
    for step in range(1, 7):
        keeper.save(step, state(mesh, step), {"step": step})
    keeper.close()
    assert numbers(tmp_path / "checkpoints" / "one") == kept
    again = checkpoint.Keeper(tmp_path, "one", keep_last=2, keep_every=every)
    assert again.latest() == 6
    for step in kept:
        found = again.restore(step, template(mesh, state(mesh)))
        check_same(found.state, state(mesh, step))
        assert found.meta == {"step": step}
    again.close()


def test_a_donated_state_is_saved_as_it_was(mesh, tmp_path):
    """The next step destroys the buffers while the checkpoint is still being written."""
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    one = sharding.put_replicated(mesh, TrainState(step=np.int32(1), params=np.ones((1500, 700), np.float32)))
    keeper = checkpoint.Keeper(tmp_path, "one", keep_last=5)
    for step in range(1, 4):
        keeper.save(step, one, {})
        saved = one
        for _ in range(3):
            one = advance(one)
        assert saved.params.is_deleted()
    keeper.close()
    keeper = checkpoint.Keeper(tmp_path, "one", keep_last=5)
    for step in range(1, 4):
        found = keeper.restore(step, template(mesh, one)).state
        assert int(found.step) == 1 + 3 * (step - 1)
        np.testing.assert_array_equal(found.params, 1 + 3 * (step - 1))
    keeper.close()


def test_a_state_of_another_shape_is_refused(mesh, tmp_path):
    keeper = checkpoint.Keeper(tmp_path, "one")
    keeper.save(4, state(mesh), {})
    keeper.close()
    checkpoint.save_final(tmp_path, "one", state(mesh), {})
    renamed = state(mesh)
    renamed = renamed.replace(params={"other": renamed.params["layer"]})
    more = state(mesh)
    more = more.replace(params=more.params | {"more": more.params["layer"]})
    keeper = checkpoint.Keeper(tmp_path, "one")
    for other, named in (
        (state(mesh, width=7), r"opt_state/0/mu/layer/w has shape \(6, 3\) there and \(7, 3\) here"),
        (renamed, r"params/layer/b has shape \(3,\) there and None here"),
        (more, r"params/more/b has shape None there and \(3,\) here"),
    ):
        with pytest.raises(UserError, match=f"one/4 does not hold a state of this configuration .{named}"):
            keeper.restore(4, template(mesh, other))
        with pytest.raises(UserError, match=f"one/final does not hold a state of this configuration .{named}"):
            checkpoint.restore_final(tmp_path, "one", template(mesh, other))
    keeper.close()


@pytest.mark.parametrize("lost", ["state", "state/_METADATA", "meta/metadata"])
def test_a_damaged_save_is_one_sentence(mesh, tmp_path, lost):
    checkpoint.save_final(tmp_path, "one", state(mesh), {})
    path = checkpoint.final_path(tmp_path, "one") / lost
    path.rmtree() if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=r"one/final cannot be read .*; restore it from a copy, or delete that folder"):
        checkpoint.restore_final(tmp_path, "one", template(mesh, state(mesh)))


def test_other_numbers_than_were_saved_are_damage(mesh, tmp_path):
    """The arrays or the JSON of another save stand for a changed byte that the file formats do not notice."""
    meta = {"step": 3, "report": {"rows": (1, 2), "nothing": None, "error": 0.1}}
    for name, seed in (("one", 0), ("two", 1), ("three", 2)):
        checkpoint.save_final(tmp_path, name, state(mesh, seed), meta | {"stage": name})
    here = template(mesh, state(mesh))
    assert checkpoint.restore_final(tmp_path, "one", here).meta == {
        "step": 3,
        "report": {"rows": [1, 2], "nothing": None, "error": 0.1},
        "stage": "one",
    }
    for name, item, other in (("one", "state", "two"), ("three", "meta", "two")):
        place = tmp_path / "checkpoints" / name / "final" / item
        shutil.rmtree(place)
        shutil.copytree(tmp_path / "checkpoints" / other / "final" / item, place)
        with pytest.raises(UserError, match=rf"{name}/final is damaged: it holds other .*; restore it from a copy, or"):
            checkpoint.restore_final(tmp_path, name, here)


def test_a_changed_byte_never_changes_a_number(mesh, tmp_path):
    rng, saved = np.random.default_rng(), state(mesh, 5)
    checkpoint.save_final(tmp_path, "one", saved, {"step": 5})
    paths = [p for p in (tmp_path / "checkpoints/one/final").rglob("*") if p.is_file()]
    refused = 0
    for path in [*paths, *rng.choice(paths, 10)]:
        content = path.read_bytes()
        at = rng.integers(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.integers(8)]) + content[at + 1 :])
        try:
            found = checkpoint.restore_final(tmp_path, "one", template(mesh, saved))
            check_same(found.state, saved)
            assert found.meta == {"step": 5}
        except UserError:
            refused += 1
        path.write_bytes(content)
    assert refused
    check_same(checkpoint.restore_final(tmp_path, "one", template(mesh, saved)).state, saved)


def test_a_closing_save_goes_and_comes_back(mesh, tmp_path):
    meta = {"step": 9, "metrics_lines": 3, "config": {"k": [1, 2]}}
    checkpoint.save_final(tmp_path, "one", state(mesh, 9), meta)
    assert checkpoint.has_final(tmp_path, "one")
    assert not checkpoint.has_final(tmp_path, "two")
    found = checkpoint.restore_final(tmp_path, "one", template(mesh, state(mesh)))
    check_same(found.state, state(mesh, 9))
    assert found.meta == meta
    for leaf in jax.tree.leaves(found.state):
        assert leaf.sharding.is_equivalent_to(sharding.replicated(mesh), leaf.ndim)
    checkpoint.save_final(tmp_path, "one", state(mesh, 10), meta)  # a run that went on
    check_same(checkpoint.restore_final(tmp_path, "one", template(mesh, state(mesh))).state, state(mesh, 10))
    # Numbered checkpoints and the closing one live side by side.
    keeper = checkpoint.Keeper(tmp_path, "one")
    assert keeper.latest() is None
    keeper.close()


def test_a_closing_save_that_broke_off_does_not_count(mesh, tmp_path, monkeypatch):
    from pathlib import Path

    with monkeypatch.context() as patch:
        for name in ("rename", "replace"):

            def fail(self, target, name=name):
                raise OSError("the power went")

            patch.setattr(Path, name, fail)
            patch.setattr(f"os.{name}", fail)
        with pytest.raises(OSError, match="power"):
            checkpoint.save_final(tmp_path, "one", state(mesh), {})
    left = [p.name for p in (tmp_path / "checkpoints" / "one").iterdir()]
    assert left  # something was written, beside the place where it belongs
    assert not checkpoint.has_final(tmp_path, "one")
    with pytest.raises(UserError, match=r"holds no finished stage 'one'; give its `uld train"):
        checkpoint.restore_final(tmp_path, "one", template(mesh, state(mesh)))
    checkpoint.save_final(tmp_path, "one", state(mesh, 2), {})
    check_same(checkpoint.restore_final(tmp_path, "one", template(mesh, state(mesh))).state, state(mesh, 2))


def test_abstract_knows_shapes_and_places_alone(mesh):
    made = template(mesh, state(mesh))
    for leaf, shape in zip(jax.tree.leaves(made), jax.tree.leaves(state(mesh)), strict=True):
        assert isinstance(leaf, jax.ShapeDtypeStruct)
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
        assert leaf.sharding.is_fully_replicated
    assert jnp.issubdtype(made.step.dtype, jnp.integer)


def test_a_relative_folder_will_do(mesh, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = state(mesh)
    keeper = checkpoint.Keeper("runs/mine", "zeroshot")
    keeper.save(3, first, {"step": 3})
    keeper.close()
    checkpoint.save_final("runs/mine", "zeroshot", first, {"step": 3})
    assert (tmp_path / "runs/mine/checkpoints/zeroshot/3").is_dir()
    check_same(checkpoint.restore_final("runs/mine", "zeroshot", template(mesh, first)).state, first)


class Older(NamedTuple):
    centroids: jax.Array


class Newer(NamedTuple):
    centroids: jax.Array
    key: jax.Array | None = None


@pytest.mark.parametrize(("written", "read"), [(Older, Newer), (Newer, Older), (Newer, Newer)])
def test_a_field_that_is_not_in_use_need_not_be_in_the_file(mesh, tmp_path, written, read):
    saved = state(mesh).replace(aux=written(jnp.ones((3, 2))))
    asked = saved.replace(aux=read(saved.aux.centroids))
    checkpoint.save_final(tmp_path, "one", saved, {"step": 0})
    keeper = checkpoint.Keeper(tmp_path, "one")
    keeper.save(0, saved, {"step": 0})
    keeper.close()
    check_same(checkpoint.restore_final(tmp_path, "one", template(mesh, asked)).state, asked)
    keeper = checkpoint.Keeper(tmp_path, "one")
    check_same(keeper.restore(0, template(mesh, asked)).state, asked)
    keeper.save(1, asked, {"step": 1})  # and goes on
    keeper.close()
    assert numbers(tmp_path / "checkpoints" / "one") == [0, 1]


def test_a_field_that_is_in_use_must_be_in_the_file(mesh, tmp_path):
    saved = state(mesh).replace(aux=Older(jnp.ones((3, 2))))
    checkpoint.save_final(tmp_path, "one", saved, {"step": 0})
    asked = saved.replace(aux=Newer(saved.aux.centroids, jnp.zeros(2)))
    with pytest.raises(UserError, match="aux/key has shape None there and \\(2,\\) here"):
        checkpoint.restore_final(tmp_path, "one", template(mesh, asked))
