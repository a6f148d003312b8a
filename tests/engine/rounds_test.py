"""Passes over the data, with a method whose observations and refreshes can be counted by hand."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax import sharding
from uld_jax.bank import Bank, Rows, flatten, image_table
from uld_jax.data.resident import ResidentReader
from uld_jax.data.specs import Source
from uld_jax.engine import rounds
from uld_jax.method import Clustering, Stage, TrainState

ROWS, BATCH, SIDE, SLOTS = 11, 4, 3, 2


class Noise(Source):
    """Images of noise, another one every row, in memory."""

    def __init__(self):
        self.names, self.frame_size = [str(i) for i in range(ROWS)], SIDE
        self.pixels = np.random.default_rng(0).integers(1, 256, (ROWS, SIDE, SIDE, 3), np.uint8)

    def image(self, row):
        return self.pixels[row]


class Notes(NamedTuple):
    """What the toy method learns: passes done, the mean of what it saw, a table, and the last two keys.

    And what it drew for every image, in the last two passes.
    """

    count: jax.Array
    total: jax.Array
    table: jax.Array
    keys: jax.Array
    drawn: jax.Array


@dataclasses.dataclass(frozen=True)
class Toy(Stage):
    """Describes an image by the sum of each column of pixels plus the number of passes done."""

    def observe(self, state, frozen, batch, rng):
        columns = jnp.sum(batch["image"].astype(jnp.float32), (1, 3))  # [B,W]
        described = jnp.stack([columns, -columns], 1) * frozen["scale"] + state.aux.count
        xy = jnp.broadcast_to(batch["index"][:, None, None], (len(columns), SLOTS, 2)).astype(jnp.float32)
        drawn = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(rng, row)))(batch["index"])
        xy = xy.at[:, :, 1].add(drawn[:, None])
        return Rows(described, xy, jnp.ones((len(columns), SLOTS), bool))

    def refresh(self, state, frozen, bank, rng):
        x, mask = flatten(bank)
        aux = Notes(
            count=state.aux.count + 1,
            total=jnp.sum(jnp.where(mask[:, None], jnp.abs(x), 0)),
            table=image_table(bank, bank.rows.descriptors[:, :, 0], ROWS),
            keys=jnp.stack([state.aux.keys[1], jax.random.key_data(rng)]),
            drawn=jnp.stack([state.aux.drawn[1], image_table(bank, bank.rows.xy[:, :, 0, 1] % 1, ROWS)]),
        )
        return state.replace(aux=aux)


@dataclasses.dataclass(frozen=True)
class Means(Clustering):
    """One cluster of what `Toy` describes: `total` is how many images it is of, `table` how far each is from it."""

    bank_gib: float = 4.0

    observe = Toy.observe

    def form(self, state, frozen, bank, rng):
        mask = bank.rows.mask[..., :1]
        images = jnp.sum(mask)
        return jnp.sum(jnp.where(mask, bank.rows.descriptors[:, :, 0], 0), (0, 1)) / images, images

    def locate(self, state, found, rows):
        return rows.descriptors[:, 0] - found[0]

    def settle(self, state, found, bank, placed):
        aux = state.aux._replace(table=image_table(bank, placed, ROWS), total=found[1].astype(jnp.float32))
        return state.replace(aux=aux)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(jax.devices()[:1])


@pytest.fixture(scope="module")
def reader(mesh):
    return ResidentReader(Noise(), mesh, BATCH)


@pytest.fixture(scope="module")
def passes(reader, mesh):
    return rounds.Rounds(Toy(), reader, mesh)


@pytest.fixture(scope="module")
def frozen(mesh):
    return sharding.put_replicated(mesh, {"scale": np.float32(2)})


def first(mesh):
    zeros = lambda *shape: np.zeros(shape, np.float32)
    aux = Notes(zeros(), zeros(), zeros(ROWS, SIDE), np.zeros((2, 2), np.uint32), zeros(2, ROWS))
    return sharding.put_replicated(mesh, TrainState(step=np.int32(0), aux=aux))


def columns():
    return Noise().pixels.astype(np.float32).sum((1, 3))


def test_a_bank_holds_every_row_once(passes, frozen, mesh):
    bank = jax.device_get(passes.collect(first(mesh), frozen, jax.random.key(0)))
    batches = -(-ROWS // BATCH)
    assert bank.index.shape == (BATCH, batches)
    assert bank.rows.descriptors.shape == (BATCH, batches, SLOTS, SIDE)
    assert bank.rows.xy.shape == (BATCH, batches, SLOTS, 2)
    assert bank.rows.mask.shape == (BATCH, batches, SLOTS)
    # [b, t] is the b-th image of the t-th batch; what is left of the last batch is padding.
    expected = np.minimum(np.arange(BATCH)[:, None] + BATCH * np.arange(batches), ROWS)
    np.testing.assert_array_equal(bank.index, expected)
    np.testing.assert_array_equal(bank.rows.mask, np.broadcast_to((expected < ROWS)[..., None], bank.rows.mask.shape))
    for b in range(BATCH):
        for t in range(batches):
            if (row := expected[b, t]) < ROWS:
                np.testing.assert_array_equal(bank.rows.descriptors[b, t, 0], 2 * columns()[row])
                np.testing.assert_array_equal(np.floor(bank.rows.xy[b, t]), row)


def test_passes_see_what_the_one_before_left_and_other_keys(passes, frozen, mesh):
    key = jax.random.key(5)
    one = jax.device_get(passes.run(first(mesh), frozen, key, 1)).aux
    two = jax.device_get(passes.run(first(mesh), frozen, key, 2)).aux
    assert (one.count, two.count) == (1, 2)
    np.testing.assert_array_equal(one.table, 2 * columns())
    np.testing.assert_array_equal(two.table, 2 * columns() + 1)  # `observe` saw count = 1
    assert one.total == 2 * np.sum(2 * columns())  # padding counts nowhere
    assert not np.array_equal(two.keys[0], two.keys[1])
    np.testing.assert_array_equal(two.keys[0], one.keys[1])  # a function of the key and the pass alone
    other = jax.device_get(passes.run(first(mesh), frozen, jax.random.key(6), 1)).aux
    assert not np.array_equal(one.keys[1], other.keys[1])
    # So are those that images are looked at by; each image is drawn for by itself, and not by a key of `refresh`.
    np.testing.assert_array_equal(two.drawn[0], one.drawn[1])
    drawn = np.concatenate([two.drawn, other.drawn[1:]])
    assert len(np.unique(drawn)) == drawn.size
    own = [jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(one.keys[1]), row)) for row in range(ROWS)]
    assert not np.isin(np.float32(own), drawn).any()


def test_no_passes_leave_the_state(passes, frozen, mesh):
    state = first(mesh)
    assert passes.run(state, frozen, jax.random.key(0), 0) is state


def test_a_check_that_raises_stops_and_leaves_the_state(reader, passes, frozen, mesh):
    calls = []

    def check():
        calls.append(len(calls))
        if len(calls) == 2:
            raise KeyboardInterrupt

    state = first(mesh)
    before = jax.device_get(state)
    stopped = rounds.Rounds(Toy(), reader, mesh, check)
    with pytest.raises(KeyboardInterrupt):
        stopped.run(state, frozen, jax.random.key(5), 1)
    assert len(calls) == 2
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state))
    # Started again from there, it is as if nothing had been.
    again = stopped.run(state, frozen, jax.random.key(5), 1)
    jax.tree.map(np.testing.assert_array_equal, again, passes.run(state, frozen, jax.random.key(5), 1))
    assert len(calls) >= 2 + -(-ROWS // BATCH)  # and while programs are compiled


def test_table_puts_values_at_their_rows_and_drops_padding():
    rng = np.random.default_rng(1)
    rows, batch, batches = 10, 3, 4
    index = rng.permutation(np.r_[np.arange(rows), [rows] * (batch * batches - rows)]).reshape(batch, batches)
    values = rng.normal(size=(batch, batches, 5, 2)).astype(np.float32)
    bank = Bank(Rows(jnp.zeros((batch, batches, 1, 1)), jnp.zeros(()), jnp.zeros((batch, batches, 1))), index)
    found = np.asarray(image_table(bank, jnp.asarray(values), rows))
    assert found.shape == (rows, 5, 2)
    for row in range(rows):
        b, t = np.argwhere(index == row)[0]
        np.testing.assert_array_equal(found[row], values[b, t])
    # A row that no image has stays zero.
    np.testing.assert_array_equal(image_table(bank, jnp.asarray(values), rows + 2)[rows + 1], 0)


def test_flatten_keeps_descriptors_beside_their_mask(passes, frozen, mesh):
    bank = passes.collect(first(mesh), frozen, jax.random.key(0))
    x, mask = jax.device_get(flatten(bank))
    assert x.shape == (BATCH * 3 * SLOTS, SIDE)
    assert mask.sum() == ROWS * SLOTS
    found = {tuple(row) for row in x[mask]}
    assert found == {tuple(s * 2 * row) for row in columns() for s in (1, -1)}


def test_clusters_of_a_sample_place_every_image(reader, frozen, mesh):
    each = SLOTS * SIDE * 4
    few = rounds.Rounds(Means(bank_gib=5.5 * each / 2**30), reader, mesh)
    key = jax.random.key(5)
    drawn = few._sample(first(mesh), frozen, jax.random.fold_in(key, rounds.OBSERVE))
    assert len(set(drawn.tolist())) == 5
    assert (np.diff(drawn) > 0).all()
    assert drawn.tolist() != few._sample(first(mesh), frozen, jax.random.fold_in(key, rounds.OBSERVE + 1)).tolist()
    found = jax.device_get(few.run(first(mesh), frozen, key, 1)).aux
    assert found.total == 5
    np.testing.assert_allclose(found.table, 2 * (columns() - columns()[drawn].mean(0)), atol=1e-2)
    again = jax.device_get(few.run(first(mesh), frozen, key, 1)).aux
    jax.tree.map(np.testing.assert_array_equal, found, again)


def test_where_all_descriptors_fit_nothing_is_drawn(reader, frozen, mesh):
    each = SLOTS * SIDE * 4
    all_of_them = rounds.Rounds(Means(bank_gib=ROWS * each / 2**30), reader, mesh)
    assert all_of_them._sample(first(mesh), frozen, jax.random.key(5)) is None
    found = jax.device_get(all_of_them.run(first(mesh), frozen, jax.random.key(5), 1)).aux
    assert found.total == ROWS
    np.testing.assert_allclose(found.table, 2 * (columns() - columns().mean(0)), atol=1e-2)
