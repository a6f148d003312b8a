"""The order of rows, and the streaming reader."""

import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from uld_jax import data, sharding
from uld_jax.data import pipeline
from uld_jax.data.pipeline import OnePass, Order, StreamReader
from uld_jax.data.specs import Source
from uld_jax.errors import UserError


class Coded(Source):
    """Row i is an image of value i; it has no annotation to look at: asking for any is an error."""

    def __init__(self, rows, side=4):
        self.names, self.frame_size = [str(i) for i in range(rows)], side

    def __getattr__(self, name):
        raise AssertionError(f"a reader asked for {name}")

    landmarks = property(lambda self: self.__getattr__("landmarks"))
    visible = property(lambda self: self.__getattr__("visible"))

    def image(self, row):
        if not 0 <= row < len(self):
            raise IndexError(row)
        return np.full((self.frame_size, self.frame_size, 3), row, np.uint8)


def rows_of(order, steps):
    return np.concatenate([order.batch(t) for t in range(steps)])


@pytest.mark.parametrize(("rows", "batch"), [(10, 4), (10, 10), (7, 16), (1, 3), (100, 1)])
def test_order_is_one_permutation_after_another(rows, batch):
    steps = -(-3 * rows // batch)
    seen = rows_of(Order(rows, batch, seed=5), steps)
    assert seen.dtype == np.int32
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(seen[epoch * rows : (epoch + 1) * rows]), np.arange(rows))
    # the stream of samples does not depend on how it is cut into batches, nor on what was asked before
    np.testing.assert_array_equal(rows_of(Order(rows, 1, seed=5), len(seen)), seen)
    np.testing.assert_array_equal(Order(rows, batch, seed=5).batch(steps - 1), seen[-batch:])


def test_orders_differ_by_epoch_seed_and_lane():
    rows = 50
    one = rows_of(Order(rows, rows, seed=0), 2)
    assert (one[:rows] != one[rows:]).any()
    assert (one[:rows] != Order(rows, rows, seed=1).batch(0)).any()
    assert (one[:rows] != Order(rows, rows, seed=0, lane=1).batch(0)).any()


def test_order_is_fixed_for_ever():
    # A run resumed after an upgrade must go on with the same rows.
    assert Order(8, 8, seed=3).batch(0).tolist() == [0, 1, 2, 7, 5, 6, 4, 3]
    assert Order(8, 8, seed=3).partners(0).tolist() == [6, 6, 7, 0, 2, 1, 6, 1]


def test_permutations_are_uniform():
    # 4000 permutations of 4 rows: each of the 24 about 167 times; chi-squared with 23 degrees of freedom.
    order = Order(4, 4, seed=11)
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for t in range(4000):
        counts[tuple(order.batch(t).tolist())] += 1
    chi2 = sum((n - 4000 / 24) ** 2 / (4000 / 24) for n in counts.values())
    assert chi2 < 53  # exceeded once in 2500 by chance


def test_partners_are_other_rows_evenly():
    order = Order(6, 12, seed=2)
    pairs = np.concatenate([np.stack([order.batch(t), order.partners(t)], 1) for t in range(500)])
    assert (pairs[:, 0] != pairs[:, 1]).all()
    counts = np.zeros((6, 6))
    np.add.at(counts, tuple(pairs.T), 1)
    off = counts[~np.eye(6, dtype=bool)]
    np.testing.assert_allclose(off, 200, atol=70)  # five standard deviations
    assert Order(1, 3, seed=2).partners(0).tolist() == [0, 0, 0]


def test_one_pass_ends_in_padding():
    assert OnePass(3).at(np.arange(5)).tolist() == [0, 1, 2, 3, 3]
    assert OnePass(9, [1, 4]).at(np.arange(4)).tolist() == [1, 4, 9, 9]


@pytest.mark.parametrize("partner", [False, True])
def test_stream_gives_the_images_of_the_order(partner):
    mesh = sharding.make_mesh(jax.devices()[:1])
    reader = StreamReader(Coded(11), mesh, 4, partner=partner)
    assert reader.rows == 11
    assert reader.store == {}
    order = Order(11, 4, seed=9)
    for step, payload in zip(range(3, 9), reader.payloads(3, seed=9), strict=False):
        batch = jax.jit(reader.fetch)(reader.store, payload)
        assert set(batch) == ({"image", "index", "image2", "index2"} if partner else {"image", "index"})
        assert batch["index"].dtype == np.int32
        assert batch["image"].dtype == np.uint8
        assert batch["image"].shape == (4, 4, 4, 3)
        np.testing.assert_array_equal(batch["index"], order.batch(step))
        np.testing.assert_array_equal(np.asarray(batch["image"])[:, 0, 0, 0], batch["index"])
        if partner:
            np.testing.assert_array_equal(batch["index2"], order.partners(step))
            np.testing.assert_array_equal(np.asarray(batch["image2"])[:, 3, 3, 2], batch["index2"])


def test_chunks_are_the_same_batches():
    mesh = sharding.make_mesh(jax.devices()[:1])
    reader = StreamReader(Coded(5), mesh, 4, partner=True)
    single = list(itertools.islice(reader.payloads(2, seed=1), 6))
    for i, chunk in enumerate(itertools.islice(reader.payloads(2, seed=1, chunk=3), 2)):
        for name, value in chunk.items():
            expected = np.stack([np.asarray(p[name]) for p in single[3 * i : 3 * i + 3]])
            np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(("rows", "batch"), [(11, 4), (8, 4), (3, 8)])
def test_ordered_gives_every_row_once(rows, batch):
    reader = StreamReader(Coded(rows), sharding.make_mesh(jax.devices()[:1]), 2)
    batches = [jax.device_get(b) for b in reader.ordered(batch)]
    assert len(batches) == -(-rows // batch)
    index = np.concatenate([b["index"] for b in batches])
    images = np.concatenate([b["image"] for b in batches])
    padding = len(index) - rows
    np.testing.assert_array_equal(index, [*range(rows), *[rows] * padding])
    np.testing.assert_array_equal(images[:, 1, 2, 0], [*range(rows), *[0] * padding])
    assert {len(b["index"]) for b in batches} == {batch}
    some = np.arange(1, rows, 2)
    index = np.concatenate([b["index"] for b in reader.ordered(batch, some)])
    assert len(index) == batch * -(-len(some) // batch)
    np.testing.assert_array_equal(index, [*some, *[rows] * (len(index) - len(some))])


def test_worker_processes_give_the_same_batches(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).save(tmp_path / f"{i}.png")
    source = data.open_source("folder", "train", data_dir=tmp_path, frame_size=8)
    mesh = sharding.make_mesh(jax.devices()[:1])
    threads = itertools.islice(StreamReader(source, mesh, 2, partner=True).payloads(5, seed=4), 5)
    processes = StreamReader(source, mesh, 2, workers=2, partner=True).payloads(5, seed=4)
    for a, b in zip(threads, processes, strict=False):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    processes.close()


def test_an_unreadable_image_ends_the_stream_with_its_name():
    class Broken(Coded):
        def image(self, row):
            raise UserError("5.jpg cannot be read")

    reader = StreamReader(Broken(9), sharding.make_mesh(jax.devices()[:1]), 3)
    with pytest.raises(UserError, match=r"5.jpg"):
        next(reader.payloads(0, seed=0))


def test_ahead_of_keeps_order_and_asks_early():
    asked = []

    def items():
        for i in range(5):
            asked.append(i)
            yield i

    ahead = pipeline.ahead_of(items(), depth=2)
    assert next(ahead) == 0
    assert asked == [0, 1, 2]
    assert list(ahead) == [1, 2, 3, 4]
