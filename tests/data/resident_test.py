"""The resident reader: equal to the stream on one device and on eight, and without communication."""

import itertools
import re

import jax
import numpy as np
import pytest

from tests import tiny
from uld_jax import sharding
from uld_jax.data import make_reader, resident
from uld_jax.data.pipeline import StreamReader
from uld_jax.data.resident import ResidentReader
from uld_jax.data.specs import Source
from uld_jax.errors import UserError


class Noise(Source):
    """Images of noise, another one every row."""

    def __init__(self, rows, side=5):
        self.names, self.frame_size = [str(i) for i in range(rows)], side
        self.pixels = np.random.default_rng(rows).integers(1, 256, (rows, side, side, 3), np.uint8)

    def image(self, row):
        return self.pixels[row]


def fetched(reader, payloads, count=None):
    """Batches on the host, through a jitted fetch."""
    fetch = jax.jit(reader.fetch)
    return [jax.device_get(fetch(reader.store, p)) for p in itertools.islice(payloads, count)]


def check_equal(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
            assert one[name].dtype == other[name].dtype


def check_readers_agree(mesh):
    source, batch = Noise(2 * mesh.size + 3), 2 * mesh.size
    readers = [StreamReader(source, mesh, batch, partner=True), ResidentReader(source, mesh, batch, partner=True)]
    assert not readers[1].sharded
    check_equal(*[fetched(r, r.payloads(4, seed=6), 5) for r in readers])
    check_equal(*[fetched(r, r.ordered()) for r in readers])
    check_equal(*[fetched(r, r.ordered(mesh.size)) for r in readers])
    # another batch size: the samples of the run in other pieces, of images that stay where they are
    for r in readers:
        other = r.of_batch(mesh.size)
        assert (other.batch_size, r.batch_size, other.store is r.store) == (mesh.size, batch, True)
        whole = [fetched(x, x.payloads(0, seed=6), count)[-1] for x, count in ((r, 1), (other, 2))]
        check_equal([jax.tree.map(lambda x: x[mesh.size :], whole[0])], whole[1:])
        if mesh.size > 1:
            with pytest.raises(UserError, match="does not divide"):
                r.of_batch(mesh.size + 1)
    # chunks: the same batches, stacked; compare one by one
    single = fetched(readers[1], readers[1].payloads(4, seed=6), 4)
    for r in readers:
        for i, chunk in enumerate(itertools.islice(r.payloads(4, seed=6, chunk=2), 2)):
            for j in range(2):
                one = jax.tree.map(lambda x, j=j: x[j], chunk)
                check_equal(fetched(r, [one]), [single[2 * i + j]])
            assert chunk["index"].shape == (2, batch)
            assert chunk["index"].sharding.shard_shape((2, batch)) == (2, 2)


@pytest.mark.parametrize("longest", [resident._LONGEST, 8])
def test_readers_agree_on_one_device(monkeypatch, longest):
    monkeypatch.setattr(resident, "_LONGEST", longest)  # with 8 an image is three rows
    check_readers_agree(sharding.make_mesh(jax.devices()[:1]))


@pytest.mark.parametrize("longest", [resident._LONGEST, 8])
def test_padding_is_black_and_batches_may_exceed_the_rows(monkeypatch, longest):
    monkeypatch.setattr(resident, "_LONGEST", longest)
    mesh = sharding.make_mesh(jax.devices()[:1])
    for sharded in (False, True):
        reader = ResidentReader(Noise(3), mesh, 8, sharded=sharded)
        (batch,) = fetched(reader, reader.ordered())
        np.testing.assert_array_equal(batch["index"], [0, 1, 2, 3, 3, 3, 3, 3])
        np.testing.assert_array_equal(batch["image"][:3], Noise(3).pixels)
        assert (batch["image"][3:] == 0).all()
        (some,) = fetched(reader, reader.ordered(rows=np.array([0, 2])))
        np.testing.assert_array_equal(some["index"], [0, 2, 3, 3, 3, 3, 3, 3])
        train = fetched(reader, reader.payloads(), 3)
        np.testing.assert_array_equal(np.bincount(np.concatenate([b["index"] for b in train])), [8, 8, 8])


def test_blocks_cut_rows_evenly():
    for rows, count in ((7, 3), (8, 8), (1000, 7), (9, 1)):
        blocks = resident._Blocks(rows, count)
        cut = np.array_split(np.arange(rows), count)
        assert blocks.sizes == [len(c) for c in cut]
        assert blocks.starts == [c[0] for c in cut]


@pytest.mark.parametrize("side", [1, 2, 5, 6, 40])
def test_words_hold_every_byte(side):
    images = np.random.default_rng(side).integers(0, 256, (3, side, side, 3), np.uint8)
    words = np.zeros((3, resident.words_of(side)), np.uint32)
    resident.pixels_in(words, side)[...] = images
    assert words[0, 0] & 255 == images[0, 0, 0, 0]
    assert words.shape[1] % 128 == 0  # a TPU copies rows that do not fill its lanes
    assert 0 <= words.nbytes - images.nbytes < 3 * 512
    np.testing.assert_array_equal(jax.jit(resident.unpacked, static_argnums=1)(words, side), images)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_batch_is_gathered_without_a_copy_of_all_images(sharded):
    reader = ResidentReader(Noise(33), sharding.make_mesh(jax.devices()[:1]), 4, sharded=sharded)
    text = jax.jit(reader.fetch).lower(reader.store, next(reader.payloads())).compile().as_text()
    results = re.findall(r"= (\w+)\[([\d,]+)\]\S* (\S+?)\(", text)
    whole = [(kind, operation) for kind, shape, operation in results if shape.startswith("33,")]
    assert set(whole) == {("u32", "parameter")}, whole


def test_the_images_of_a_run_share_one_budget(monkeypatch):
    """Those of training take their part first."""
    mesh, source = sharding.make_mesh(jax.devices()[:1]), Noise(4)
    need = resident.image_bytes(source)
    monkeypatch.setattr("uld_jax.data.memory_budget", lambda mesh: 2 * need - 1)
    first = make_reader(source, mesh, 2)
    assert (first.held, first.store["images"].nbytes) == (need, need)
    assert isinstance(make_reader(source, mesh, 2, held=first.held), StreamReader)
    monkeypatch.setattr("uld_jax.data.memory_budget", lambda mesh: 2 * need)
    assert make_reader(source, mesh, 2, held=first.held).held == 2 * need
    monkeypatch.setattr(resident, "memory_budget", lambda mesh: 2 * need - 1)
    with pytest.raises(UserError, match=r"use config\.data\.reader=stream"):
        ResidentReader(source, mesh, 2, held=first.held)


def test_memory_budget_is_sane():
    mesh = sharding.make_mesh()
    assert 2**20 < resident.memory_budget(mesh) < resident.host_memory()


def test_auto_splits_rows_only_when_they_do_not_fit(monkeypatch):
    mesh = sharding.make_mesh(jax.devices()[:1])
    source = Noise(4)
    monkeypatch.setattr(resident, "memory_budget", lambda mesh: resident.image_bytes(source))
    assert not ResidentReader(source, mesh, 2).sharded
    monkeypatch.setattr(resident, "memory_budget", lambda mesh: resident.image_bytes(source) - 1)
    with pytest.raises(UserError, match=r"the images take .* GiB .*; use config.data.reader=stream"):
        ResidentReader(source, mesh, 2)


def test_eight_devices():
    assert "eight devices agree" in tiny.run(__file__, devices=8, timeout=300).stdout


def check_sharded(mesh, rows):
    n, batch = mesh.size, 2 * mesh.size
    source = Noise(rows)
    reader = ResidentReader(source, mesh, batch, partner=True, sharded=True)
    parts = np.array_split(np.arange(rows), n)
    held = reader.store["images"].sharding.shard_shape(reader.store["images"].shape)[0]
    assert held == len(parts[0]) * resident.shape_of(source.frame_size)[0]

    black = np.concatenate([source.pixels, np.zeros_like(source.pixels[:1])])
    steps = 40
    train = fetched(reader, reader.payloads(0, seed=3), steps)
    for b in train:
        for number in ("", "2"):
            np.testing.assert_array_equal(b["image" + number], black[b["index" + number]])
        if len(parts[-1]) > 1:
            assert (b["index"] != b["index2"]).all()
        for d, part in enumerate(parts):
            for name in ("index", "index2"):
                assert set(b[name][2 * d : 2 * d + 2].tolist()) <= set(part.tolist())
    seen = np.bincount(np.concatenate([b["index"] for b in train]), minlength=rows)
    for part in parts:
        assert seen[part].max() - seen[part].min() <= 1
        assert seen[part].sum() == 2 * steps

    whole = fetched(reader, reader.ordered())
    assert len(whole) == -(-rows // batch)
    for b in whole:
        np.testing.assert_array_equal(b["image"], black[b["index"]])
    index = np.concatenate([b["index"] for b in whole])
    np.testing.assert_array_equal(np.sort(index), [*range(rows), *[rows] * (len(index) - rows)])

    for some in (np.arange(0, rows, 3), np.array([0]), np.arange(rows // 2)):  # the last: from half of the devices
        found = fetched(reader, reader.ordered(rows=some))
        for b in found:
            np.testing.assert_array_equal(b["image"], black[b["index"]])
        index = np.concatenate([b["index"] for b in found])
        np.testing.assert_array_equal(np.sort(index), [*some, *[rows] * (len(index) - len(some))])
    return reader


def check_no_communication(reader):
    payload = next(reader.payloads())
    text = jax.jit(reader.fetch).lower(reader.store, payload).compile().as_text()
    assert not re.findall(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", text)
    out = jax.jit(reader.fetch)(reader.store, payload)
    assert all(x.sharding.is_equivalent_to(payload["index"].sharding, 1) for x in (out["index"],))
    assert out["image"].sharding.shard_shape(out["image"].shape)[0] * reader._mesh.size == reader.batch_size


if __name__ == "__main__":
    eight = sharding.make_mesh()
    assert eight.size == 8
    check_readers_agree(eight)
    for count in (8, 19, 40, 41):
        split = check_sharded(eight, count)
    check_no_communication(split)
    check_no_communication(ResidentReader(Noise(20), eight, 16))
    resident._LONGEST = 8  # an image is three rows
    check_readers_agree(eight)
    check_no_communication(check_sharded(eight, 19))
    check_no_communication(ResidentReader(Noise(20), eight, 16))
    with pytest.raises(UserError, match=r"7 images cannot be split over 8 devices"):
        ResidentReader(Noise(7), eight, 16, sharded=True)
    print("eight devices agree")
