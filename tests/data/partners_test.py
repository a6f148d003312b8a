"""Partners by category and by listed pairs."""

import doctest
import itertools
import types

import jax
import numpy as np
import pytest
from PIL import Image

from tests import pascal
from uld_jax import data, sharding
from uld_jax.data import open as open_lib
from uld_jax.data import partners, pipeline, resident
from uld_jax.data.pipeline import Order, StreamReader
from uld_jax.data.resident import ResidentReader
from uld_jax.errors import UserError

NUMBERS = np.array([2, 0, 1, 2, 0, 1, 1, 2, 2])  # categories of nine images
PAIRS = np.array([[0, 3], [3, 0], [2, 5], [1, 4], [1, 4], [7, 8]], np.int32)
LAWS = {"category": partners.by_category(NUMBERS), "pairs": partners.ByPairs(PAIRS)}


def test_examples():
    assert not doctest.testmod(partners).failed


def drawn(law, steps=300, batch=4, **more):
    order = Order(9, batch, law=law, **{"seed": 3} | more)
    return np.stack([[order.batch(t), order.partners(t)] for t in range(steps)]).swapaxes(1, 2).reshape(-1, 2)


def test_partners_are_the_other_images_of_the_category_evenly():
    found = drawn(LAWS["category"], 1350)
    assert (NUMBERS[found[:, 0]] == NUMBERS[found[:, 1]]).all()
    assert (found[:, 0] != found[:, 1]).all()
    counts = np.zeros((9, 9))
    np.add.at(counts, tuple(found.T), 1)
    assert (counts.sum(1) == 600).all()  # every image comes equally often
    for row, number in enumerate(NUMBERS):
        others = (number == NUMBERS) & (np.arange(9) != row)
        np.testing.assert_allclose(counts[row, others], 600 / others.sum(), atol=75)


def test_one_category_is_as_no_law():
    order, one = Order(9, 4, seed=8), Order(9, 4, seed=8, law=partners.by_category(np.zeros(9, int)))
    for step in range(9):
        np.testing.assert_array_equal(order.batch(step), one.batch(step))
        np.testing.assert_array_equal(order.partners(step), one.partners(step))


def test_listed_pairs_come_equally_often():
    found = drawn(LAWS["pairs"], 3 * 6)
    pairs, counts = np.unique(found, axis=0, return_counts=True)
    assert {tuple(pair): n for pair, n in zip(pairs.tolist(), counts, strict=True)} == {
        (0, 3): 12, (3, 0): 12, (2, 5): 12, (1, 4): 24, (7, 8): 12,
    }  # fmt: skip
    assert sorted(found[:6].tolist()) == sorted(PAIRS.tolist())


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_step_alone_tells_the_partners(law):
    np.testing.assert_array_equal(drawn(law, 60, 2), drawn(law, 30, 4))
    late = Order(9, 4, seed=3, law=law)
    np.testing.assert_array_equal(late.partners(29), drawn(law, 30)[-4:, 1])
    assert late.partners(29).dtype == late.batch(29).dtype == np.int32
    assert (drawn(law, 9) != drawn(law, 9, seed=4)).any()
    assert (drawn(law, 9) != drawn(law, 9, lane=1)).any()


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_both_readers_go_on_with_the_same_batches(law):
    mesh = sharding.make_mesh(jax.devices()[:1])
    source = Coded()
    readers = [make(source, mesh, 4, partner=law) for make in (StreamReader, ResidentReader)]
    wanted = drawn(law, 6).reshape(6, 4, 2)
    for reader in readers:
        assert reader.of_batch(2).law is law
        for step, payload in zip(range(2, 6), reader.payloads(2, seed=3), strict=False):
            batch = jax.device_get(reader.fetch(reader.store, payload))
            for number, rows in zip(("", "2"), wanted[step].T, strict=True):
                assert batch["index" + number].dtype == np.int32
                np.testing.assert_array_equal(batch["index" + number], rows)
                np.testing.assert_array_equal(batch["image" + number][:, 0, 0, 0], rows)
        (chunk,) = itertools.islice(reader.payloads(2, seed=3, chunk=3), 1)
        np.testing.assert_array_equal(chunk["index2"], wanted[2:5, :, 1])


class Coded(data.Source):
    """Row i is an image of value i."""

    def __init__(self):
        self.names, self.frame_size = [str(i) for i in range(9)], 4

    def image(self, row):
        return np.full((4, 4, 3), row, np.uint8)


def test_images_that_are_split_over_devices_have_no_such_partners(monkeypatch):
    mesh, source = sharding.make_mesh(jax.devices()[:1]), Coded()
    with pytest.raises(UserError, match=r"drawn from all of them; use config\.data\.reader=stream"):
        ResidentReader(source, mesh, 4, partner=LAWS["category"], sharded=True)
    two = types.SimpleNamespace(size=2)
    monkeypatch.setattr("uld_jax.data.memory_budget", lambda mesh: resident.image_bytes(source) - 1)
    made = []
    monkeypatch.setattr("uld_jax.data.StreamReader", lambda *args, **more: made.append("stream"))
    monkeypatch.setattr("uld_jax.data.ResidentReader", lambda *args, **more: made.append("resident"))
    for partner in (True, LAWS["pairs"]):
        data.make_reader(source, two, 4, partner=partner)
    assert made == ["resident", "stream"]


@pytest.fixture
def folder(tmp_path):
    """A folder of photos with a column of categories."""
    words = {"a.png": "cat", "b.png": " dog ", "c.png": "cat", "d.png": "dog", "e.png": "dog"}
    for name in words:
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "train.csv").write_text("file,category\n" + "".join(f"{name},{w}\n" for name, w in words.items()))
    return tmp_path


def opened(folder):
    return data.open_source("folder", "train", data_dir=folder, frame_size=8)


def test_a_folder_may_have_categories(folder):
    law = partners.law_of(opened(folder), "category")
    assert law.partners(np.arange(5), np.zeros(5, np.uint64)).tolist() == [2, 3, 0, 4, 1]
    assert partners.law_of(opened(folder), "any") is None


def test_what_gives_no_partner_is_named(folder):
    with pytest.raises(UserError, match=r"config\.data\.partner_by is 'kind'; use one of any, category, pairs"):
        partners.law_of(opened(folder), "kind")
    with pytest.raises(
        UserError, match=r"needs pairs of images, and the data set folder lists none; use category or any"
    ):
        partners.law_of(opened(folder), "pairs")
    table = folder / "train.csv"
    table.write_text(table.read_text().replace("a.png,cat", "a.png,cow"))
    with pytest.raises(
        UserError, match=r"train.csv, line 2: a.png is the only image of the category 'cow' \(so are 1 more"
    ):
        partners.law_of(opened(folder), "category")
    table.write_text(table.read_text().replace("a.png,cow", "a.png,"))
    with pytest.raises(UserError, match=r"train.csv, line 2, column category: empty; every image needs a category"):
        partners.law_of(opened(folder), "category")
    table.write_text("file\na.png\n")
    with pytest.raises(UserError, match="the data set folder has no csv column category; give it"):
        partners.law_of(opened(folder), "category")


def test_a_config_names_the_law(tmp_path):
    root = pascal.write(tmp_path / "pascal")
    mesh = sharding.make_mesh(jax.devices()[:1])
    for way, kind in (("pairs", partners.ByPairs), ("category", partners.ByCategory), ("any", type(None))):
        reader = open_lib.open_data(pascal.config(root, data__partner_by=way), mesh).train_reader
        assert type(reader.law) is kind
        assert set(next(reader.payloads())) >= {"index", "index2"}
    with pytest.raises(UserError, match=r"partner_by=pairs is .*; set config\.data\.partner=True"):
        open_lib.open_data(pascal.config(root, data__partner=False), mesh)


def test_the_law_does_not_tell_orders_apart():
    assert Order(9, 4, law=LAWS["pairs"]) == Order(9, 4)  # arrays cannot be compared as a whole
    assert pipeline.Order.__hash__(Order(9, 4)) == hash(Order(9, 4, law=LAWS["pairs"]))
