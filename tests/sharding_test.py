"""Placement: host values to devices and back. How several devices compute together is tested with every method."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import mesh_utils

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


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX's mesh code asks of a device of a TPU slice."""

    id: int
    process_index: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    device_kind: str = "cpu"
    platform: str = "tpu"
    core_on_chip: int = 0


def tpu(kind, shape, slices=1):
    """Chips as `jax.devices()` lists them, by process; a host has 2 x 2 x 1 of them, and ids run along x, y, z."""
    coords = [(x, y, z) for z in range(shape[2]) for y in range(shape[1]) for x in range(shape[0])]
    host = lambda x, y, z: (z * (shape[1] // 2) + y // 2) * (shape[0] // 2) + x // 2
    hosts, chips = len(coords) // 4, []
    for s in range(slices):
        chips += [Chip(s * len(coords) + i, s * hosts + host(*xyz), xyz, s, kind) for i, xyz in enumerate(coords)]
    return sorted(chips, key=lambda chip: (chip.process_index, chip.id))


def fed(mesh, batch_size, monkeypatch):
    """{process: its rows} of a global batch."""
    found = {}
    for process in {device.process_index for device in mesh.devices.flat}:
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found[process] = sharding.local_rows(mesh, batch_size).tolist()
    return found


def check_fed(mesh, monkeypatch, each=3):
    """Every process feeds the rows that its own devices take, and all rows are fed once."""
    rows, devices = fed(mesh, each * mesh.size, monkeypatch), list(mesh.devices.flat)
    for process, some in rows.items():
        own = [i for i, device in enumerate(devices) if device.process_index == process]
        assert some == [each * i + j for i in own for j in range(each)]
    assert sorted(row for some in rows.values() for row in some) == list(range(each * mesh.size))
    return rows


SLICES = {
    "v4-16": ("TPU v4", (2, 2, 2)),
    "v4-128": ("TPU v4", (4, 4, 4)),
    "v5e-8": ("TPU v5 lite", (2, 4, 1)),
    "v5e-16": ("TPU v5 lite", (4, 4, 1)),
    "v5e-32": ("TPU v5 lite", (4, 8, 1)),
    "v5e-256": ("TPU v5 lite", (16, 16, 1)),
    "v5p-16": ("TPU v5", (2, 2, 2)),
    "v5p-128": ("TPU v5", (4, 4, 4)),
    "v6e-16": ("TPU v6 lite", (4, 4, 1)),
    "v6e-32": ("TPU v6 lite", (4, 8, 1)),
    "v6e-64": ("TPU v6 lite", (8, 8, 1)),
}


@pytest.mark.parametrize(("kind", "shape"), SLICES.values(), ids=SLICES)
def test_every_host_of_a_tpu_slice_feeds_its_rows_once(kind, shape, monkeypatch):
    chips = tpu(kind, shape)
    for mesh in (sharding.make_mesh(chips), sharding.make_mesh(chips[::-1])):
        for rows in check_fed(mesh, monkeypatch).values():
            assert rows == list(range(rows[0], rows[-1] + 1))  # a host reads one run
    # A mesh that is handed in as `jax.make_mesh` orders it: along the torus, back to a host that it has left.
    torus = jax.make_mesh((len(chips),), (sharding.AXIS,), devices=chips)
    order = [chip.process_index for chip in torus.devices.flat]
    runs = 1 + sum(a != b for a, b in itertools.pairwise(order))
    if len(chips) > 8:  # the order of so few differs from version to version
        assert runs > len(set(order))
    check_fed(torus, monkeypatch)


def test_several_slices_of_tpus_stay_together(monkeypatch):
    chips = tpu("TPU v5 lite", (4, 4, 1), slices=2)
    mixed = [chips[i] for i in np.random.default_rng(0).permutation(len(chips))]
    mesh = sharding.make_mesh(mixed)
    assert [chip.slice_index for chip in mesh.devices.flat] == [0] * 16 + [1] * 16
    assert list(check_fed(mesh, monkeypatch)) == list(range(8))
    torus = mesh_utils.create_hybrid_device_mesh((16,), (2,), mixed)
    for order in (torus, np.array(mixed)):
        check_fed(jax.sharding.Mesh(order, (sharding.AXIS,)), monkeypatch)


def test_hosts_with_different_numbers_of_devices(monkeypatch):
    chips = [Chip(i, process, (i, 0, 0)) for i, process in enumerate((0, 1, 1, 0, 1, 2))]
    rows = check_fed(jax.sharding.Mesh(np.array(chips), (sharding.AXIS,)), monkeypatch, each=2)
    assert rows == {0: [0, 1, 6, 7], 1: [2, 3, 4, 5, 8, 9], 2: [10, 11]}


def test_the_rows_of_a_process(mesh, monkeypatch):
    assert sharding.local_rows(mesh, 6).tolist() == list(range(6))
    with pytest.raises(ValueError, match="batch_size 16 does not divide over 6 devices; use 12 or 18"):
        sharding.local_rows(sharding.make_mesh([Chip(i, i // 2, (i, 0, 0)) for i in range(6)]), 16)
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    with pytest.raises(ValueError, match="process 3 has no device in the mesh"):
        sharding.local_rows(mesh, 6)


def test_arguments_become_arrays_with_automatic_axes():
    explicit = jax.make_mesh((1,), ("rows",), devices=jax.devices()[:1])
    x = jax.device_put(np.arange(6.0), jax.NamedSharding(explicit, jax.P("rows")))
    found, nothing, listed = sharding.arrays(x, None, [1, 2])
    assert nothing is None
    assert listed.tolist() == [1, 2]
    assert set(found.sharding.mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert found.sharding.spec == jax.P("rows")
    np.testing.assert_array_equal(found, x)
    inside = jax.jit(lambda x: sum(sharding.arrays(x, np.ones(6))))(x)
    np.testing.assert_array_equal(inside, x + 1)


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
