"""Passes over the data, with a method whose observations and refreshes can be counted by hand."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax import sharding
from uld_jax.bank import flatten, image_table
from uld_jax.data.resident import ResidentReader
from uld_jax.data.specs import Source
from uld_jax.engine import rounds
from uld_jax.method import Clustering, Round, Stage, TrainState

ROWS, BATCH, SIDE, SLOTS = 11, 4, 3, 2


class Noise(Source):
    """Images of noise, another one every row, in memory."""

    def __init__(self):
        self.names, self.frame_size = [str(i) for i in range(ROWS)], SIDE
        self.pixels = np.random.default_rng(0).integers(1, 256, (ROWS, SIDE, SIDE, 3), np.uint8)

    def image(self, row):
        return self.pixels[row]


class Seen(NamedTuple):
    """Descriptors [B,P,D] of the toy method, the row [B] of each image, what was drawn for it, and a mask [B,P]."""

    described: jax.Array
    row: jax.Array
    drawn: jax.Array
    mask: jax.Array


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
        drawn = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(rng, row)))(batch["index"])
        return Seen(described, batch["index"], drawn, jnp.ones((len(columns), SLOTS), bool))

    def refresh(self, state, frozen, bank, rng):
        seen = bank.values
        x, mask = flatten(seen.described, seen.mask)
        aux = Notes(
            count=state.aux.count + 1,
            total=jnp.sum(jnp.where(mask[:, None], jnp.abs(x), 0)),
            table=image_table(bank, seen.described[:, :, 0], ROWS),
            keys=jnp.stack([state.aux.keys[1], jax.random.key_data(rng)]),
            drawn=jnp.stack([state.aux.drawn[1], image_table(bank, seen.drawn, ROWS)]),
        )
        return state.replace(aux=aux)


@dataclasses.dataclass(frozen=True)
class Means(Clustering):
    """One cluster of what `Toy` describes: `total` is how many images it is of, `table` how far each is from it."""

    bank_gib: float = 4.0

    observe = Toy.observe

    def form(self, state, frozen, bank, rng):
        mask = bank.values.mask[..., :1]
        images = jnp.sum(mask)
        return jnp.sum(jnp.where(mask, bank.values.described[:, :, 0], 0), (0, 1)) / images, images

    def locate(self, state, found, seen):
        return seen.described[:, 0] - found[0]

    def settle(self, state, found, bank):
        aux = state.aux._replace(table=image_table(bank, bank.values, ROWS), total=found[1].astype(jnp.float32))
        return state.replace(aux=aux)


class Held(Toy):
    """Refreshes from what the state holds: a stage whose rounds make no passes."""

    observe = Stage.observe

    def refresh(self, state, frozen, bank, rng):
        assert bank is None
        keys = jnp.stack([state.aux.keys[1], jax.random.key_data(rng)])
        return state.replace(aux=state.aux._replace(count=state.aux.count + frozen["scale"], keys=keys))


class Beside(NamedTuple):
    """What an image's rows of two tables say, one of them of two arrays; there is no mask."""

    boxes: jax.Array
    points: jax.Array
    there: jax.Array


class Asks(Toy):
    """Observes its tables alone."""

    def observe(self, state, frozen, batch, rng):
        return Beside(batch["boxes"], *batch["keypoints"])


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
    assert bank.real.shape == (BATCH, batches)
    assert bank.values.described.shape == (BATCH, batches, SLOTS, SIDE)
    assert bank.values.row.shape == (BATCH, batches)
    assert bank.values.mask.shape == (BATCH, batches, SLOTS)
    # [b, t] is the b-th image of the t-th batch; what is left of the last batch is padding.
    expected = np.minimum(np.arange(BATCH)[:, None] + BATCH * np.arange(batches), ROWS)
    np.testing.assert_array_equal(bank.index, expected)
    np.testing.assert_array_equal(bank.real, expected < ROWS)
    np.testing.assert_array_equal(bank.values.mask, np.broadcast_to(bank.real[..., None], bank.values.mask.shape))
    for b in range(BATCH):
        for t in range(batches):
            if (row := expected[b, t]) < ROWS:
                np.testing.assert_array_equal(bank.values.described[b, t, 0], 2 * columns()[row])
                assert bank.values.row[b, t] == row


@pytest.mark.parametrize("rows", [None, np.array([1, 2, 4, 5, 8, 9])], ids=["all", "some"])
def test_tables_reach_a_pass_by_dataset_row(reader, frozen, mesh, rows):
    rng = np.random.default_rng(2)
    boxes, points = rng.normal(size=(ROWS, 4)).astype(np.float32), rng.normal(size=(ROWS, 5, 2)).astype(np.float32)
    tables = {"boxes": boxes, "keypoints": (points, rng.random((ROWS, 5)) < 0.5)}
    asks = rounds.Rounds(Asks(), reader, mesh, tables=tables)
    bank = jax.device_get(asks.collect(first(mesh), frozen, jax.random.key(0), rows))
    every = np.arange(ROWS) if rows is None else rows
    batches = -(-len(every) // BATCH)
    assert batches > 1
    assert 0 < (~bank.real).sum() == BATCH * batches - len(every)
    assert sorted(bank.index[bank.real].tolist()) == every.tolist()
    row = np.minimum(bank.index, ROWS - 1)  # padding is given the last one
    for found, table in zip(bank.values, (boxes, *tables["keypoints"]), strict=True):
        np.testing.assert_array_equal(found, table[row])
        assert found.dtype == table.dtype


def test_passes_see_what_the_one_before_left_and_other_keys(passes, frozen, mesh):
    key = jax.random.key(5)
    one = jax.device_get(passes.run(first(mesh), frozen, key, Round(1))).aux
    two = jax.device_get(passes.run(first(mesh), frozen, key, Round(2))).aux
    assert (one.count, two.count) == (1, 2)
    np.testing.assert_array_equal(one.table, 2 * columns())
    np.testing.assert_array_equal(two.table, 2 * columns() + 1)  # `observe` saw count = 1
    assert one.total == 2 * np.sum(2 * columns())  # padding counts nowhere
    assert not np.array_equal(two.keys[0], two.keys[1])
    np.testing.assert_array_equal(two.keys[0], one.keys[1])  # a function of the key and the pass alone
    other = jax.device_get(passes.run(first(mesh), frozen, jax.random.key(6), Round(1))).aux
    assert not np.array_equal(one.keys[1], other.keys[1])
    # So are those that images are looked at by; each image is drawn for by itself, and not by a key of `refresh`.
    np.testing.assert_array_equal(two.drawn[0], one.drawn[1])
    drawn = np.concatenate([two.drawn, other.drawn[1:]])
    assert len(np.unique(drawn)) == drawn.size
    own = [jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(one.keys[1]), row)) for row in range(ROWS)]
    assert not np.isin(np.float32(own), drawn).any()


def test_no_round_leaves_the_state(passes, frozen, mesh):
    state = first(mesh)
    assert passes.run(state, frozen, jax.random.key(0), None) is state


def test_a_round_of_no_passes_refreshes_once_from_the_state(reader, passes, frozen, mesh):
    held, key = rounds.Rounds(Held(), reader, mesh), jax.random.key(5)
    found = jax.device_get(held.run(first(mesh), frozen, key, Round(0))).aux
    assert found.count == 2
    # By the key that the bank of a first pass would have been worked on by.
    passed = jax.device_get(passes.run(first(mesh), frozen, key, Round(1))).aux
    np.testing.assert_array_equal(found.keys, passed.keys)
    other = jax.device_get(held.run(first(mesh), frozen, jax.random.key(6), Round(0))).aux
    assert not np.array_equal(other.keys[1], found.keys[1])


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
        stopped.run(state, frozen, jax.random.key(5), Round(1))
    assert len(calls) == 2
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state))
    # Started again from there, it is as if nothing had been.
    again = stopped.run(state, frozen, jax.random.key(5), Round(1))
    jax.tree.map(np.testing.assert_array_equal, again, passes.run(state, frozen, jax.random.key(5), Round(1)))
    assert len(calls) >= 2 + -(-ROWS // BATCH)  # and while programs are compiled


def test_flatten_keeps_descriptors_beside_their_mask(passes, frozen, mesh):
    bank = passes.collect(first(mesh), frozen, jax.random.key(0))
    x, mask = jax.device_get(flatten(bank.values.described, bank.values.mask))
    assert x.shape == (BATCH * 3 * SLOTS, SIDE)
    assert mask.sum() == ROWS * SLOTS
    found = {tuple(row) for row in x[mask]}
    assert found == {tuple(s * 2 * row) for row in columns() for s in (1, -1)}


def test_clusters_of_a_sample_place_every_image(reader, frozen, mesh):
    each = SLOTS * SIDE * 4 + 4 + 4 + SLOTS  # all that is seen of an image
    few = rounds.Rounds(Means(bank_gib=5.5 * each / 2**30), reader, mesh)
    key = jax.random.key(5)
    drawn = few._sample(first(mesh), frozen, jax.random.fold_in(key, rounds.OBSERVE))
    assert len(set(drawn.tolist())) == 5
    assert (np.diff(drawn) > 0).all()
    assert drawn.tolist() != few._sample(first(mesh), frozen, jax.random.fold_in(key, rounds.OBSERVE + 1)).tolist()
    found = jax.device_get(few.run(first(mesh), frozen, key, Round(1))).aux
    assert found.total == 5
    np.testing.assert_allclose(found.table, 2 * (columns() - columns()[drawn].mean(0)), atol=1e-2)
    again = jax.device_get(few.run(first(mesh), frozen, key, Round(1))).aux
    jax.tree.map(np.testing.assert_array_equal, found, again)


def test_where_all_descriptors_fit_nothing_is_drawn(reader, frozen, mesh):
    each = SLOTS * SIDE * 4 + 4 + 4 + SLOTS  # all that is seen of an image
    all_of_them = rounds.Rounds(Means(bank_gib=ROWS * each / 2**30), reader, mesh)
    assert all_of_them._sample(first(mesh), frozen, jax.random.key(5)) is None
    found = jax.device_get(all_of_them.run(first(mesh), frozen, jax.random.key(5), Round(1))).aux
    assert found.total == ROWS
    np.testing.assert_allclose(found.table, 2 * (columns() - columns().mean(0)), atol=1e-2)
