"""Placement: host values to devices and back. How several devices compute together is tested with every method."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax import sharding


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(jax.devices()[:1])


def tree():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (4, 3, 3, 3), np.uint8),
        "deep": (rng.normal(size=(4, 2)).astype(np.float32), np.arange(4, dtype=np.int32)),
        "mask": rng.random(4) < 0.5,
    }


def check_same(a, b):
    def same(x, y):
        assert isinstance(x, np.ndarray)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)

    jax.tree.map(same, a, b)


def test_a_mesh_has_one_axis(mesh):
    assert dict(mesh.shape) == {sharding.AXIS: 1}
    assert sharding.make_mesh().size == jax.device_count()


def test_the_rows_of_a_process(mesh, monkeypatch):
    assert sharding.local_slice(mesh, 6) == slice(0, 6)
    devices = np.array([types.SimpleNamespace(process_index=p) for p in (0, 0, 1, 1, 2, 2)])
    six = types.SimpleNamespace(size=6, devices=devices)
    found = []
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append(sharding.local_slice(six, 18))
    assert found == [slice(0, 6), slice(6, 12), slice(12, 18)]
    with pytest.raises(ValueError, match="batch_size 16 does not divide over 6 devices; use a multiple of 6"):
        sharding.local_slice(six, 16)


def test_arguments_become_arrays_with_automatic_axes():
    explicit = jax.make_mesh((1,), ("rows",), devices=jax.devices()[:1])
    x = jax.device_put(np.arange(6.0), jax.NamedSharding(explicit, jax.P("rows")))
    found, nothing, listed = sharding.arrays(x, None, [1, 2])
    assert nothing is None
    assert listed.tolist() == [1, 2]
    assert set(found.sharding.mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert found.sharding.spec == jax.P("rows")
    np.testing.assert_array_equal(found, x)


def test_the_mesh_of_an_array(mesh):
    assert sharding.mesh_of(jnp.ones(3)) is None
    assert sharding.mesh_of(jax.device_put(jnp.ones(3), sharding.split(mesh))) is None  # of one device
    seen = []
    jax.jit(lambda x: seen.append(sharding.mesh_of(x)))(jnp.ones(3))
    assert seen == [None]


def test_a_batch_goes_and_comes_back(mesh):
    placed = sharding.put_batch(mesh, tree())
    for leaf in jax.tree.leaves(placed):
        assert leaf.sharding.is_equivalent_to(sharding.split(mesh), leaf.ndim)
    check_same(sharding.to_host(placed), tree())


def test_replicated_values_go_and_come_back(mesh):
    values = tree() | {"scalar": np.float32(3.5), "number": np.int32(7)}
    placed = sharding.put_replicated(mesh, values)
    for leaf in jax.tree.leaves(placed):
        assert leaf.sharding.is_equivalent_to(sharding.replicated(mesh), leaf.ndim)
    back = sharding.to_host(placed)
    check_same(back, jax.tree.map(np.asarray, values))
    assert back["scalar"].shape == ()


def test_what_is_replicated_already_is_not_copied(mesh):
    placed = sharding.put_replicated(mesh, np.arange(3))
    assert sharding.put_replicated(mesh, placed) is placed


def test_a_key_draws_the_same_numbers(mesh):
    key = jax.random.key(11)
    placed = sharding.put_key(mesh, key)
    assert placed.dtype == key.dtype
    draw = jax.jit(lambda key: jax.random.normal(jax.random.fold_in(key, 3), (5,)))
    np.testing.assert_array_equal(draw(placed), draw(key))


def test_values_stay_placed_through_a_jitted_step(mesh):
    x = sharding.put_batch(mesh, np.arange(8, dtype=np.float32))
    weight = sharding.put_replicated(mesh, np.float32(2))
    mean = jax.jit(lambda w, x: jnp.mean(w * x), out_shardings=sharding.replicated(mesh))(weight, x)
    assert mean.is_fully_replicated
    assert float(mean) == 7
