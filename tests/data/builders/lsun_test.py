"""LSUN from small databases: both encodings, the draw, crops, reading by several threads, and damaged files."""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor

import lmdb
import numpy as np
import pytest
from PIL import Image

from tests.data.builders import miniature
from uld_jax import data
from uld_jax.data.builders import lsun
from uld_jax.errors import UserError

SIZES = [(100, 140), (120, 90), (80, 80), (101, 120), (90, 101), (64, 64)]  # (height, width)
KEYS = [hashlib.sha1(bytes([i])).hexdigest() for i in range(len(SIZES))]


def photo(folder, size, kind):
    pixels = miniature.picture(folder / "photo.png", size)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=kind, quality=95)
    return out.getvalue()


def write(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(folder), map_size=1 << 24) as database, database.begin(write=True) as transaction:
        for key, value in content.items():
            transaction.put(key.encode(), value)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("photos")
    return {k: photo(scratch, s, ("WEBP", "JPEG")[i % 2]) for i, (k, s) in enumerate(zip(KEYS, SIZES, strict=True))}


@pytest.fixture
def src(photos, tmp_path):
    write(tmp_path / "src/car", photos)
    write(tmp_path / "src/bedroom_train_lmdb", dict(list(photos.items())[:3]))
    return tmp_path / "src"


def test_photos_of_both_encodings_come_back_as_squares(src, tmp_path):
    found = miniature.prepare("lsun_car", src, tmp_path)
    assert list(found) == ["train"]
    train = found["train"]
    assert sorted(train.names) == sorted(KEYS)
    for row, name in enumerate(train.names):
        height, width = SIZES[KEYS.index(name)]
        side = min(height, width)
        assert train.file_sizes[row].tolist() == [side, side]
        pixels = data.decode_image(train.encoded(row), side)[0]
        corner = (width - side) // 2, (height - side) // 2
        for x, y in ((5, 9), (side - 4, side // 2)):
            shown = miniature.place_of(pixels[y, x], (height, width))
            np.testing.assert_allclose(shown, (x + corner[0], y + corner[1]), atol=3)  # two lossy encodings
    assert sorted(miniature.opened("lsun_bedroom", src)[0]["train"].names) == sorted(KEYS[:3])


def test_the_draw_depends_on_the_keys_alone(src, monkeypatch):
    by_hash = sorted(KEYS, key=lambda key: hashlib.sha256(f"0 {key}".encode()).hexdigest())
    assert by_hash[:4] != sorted(KEYS)[:4]
    monkeypatch.setattr(lsun, "IMAGES", 4)
    assert miniature.opened("lsun_car", src)[0]["train"].names == sorted(by_hash[:4])
    assert lsun.drawn((key.encode() for key in reversed(KEYS)), 9) == sorted(key.encode() for key in KEYS)


def test_several_threads_read_at_once(src, photos):
    once, again = (miniature.opened("lsun_car", src)[0]["train"] for _ in range(2))  # a database is opened once
    alone = once.images()
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: once._records[i % 6].read(), range(400)))
        many = list(pool.map(lambda i: again.image(i % 6), range(60)))
    assert all(value == photos[once.names[i % 6]] for i, value in enumerate(read))
    np.testing.assert_array_equal(many, np.tile(alone, (10, 1, 1, 1)))


def test_counts_and_absent_databases(src):
    with pytest.raises(UserError, match=r"split train of lsun_car has 6 images .* official one has 200,000; .*partial"):
        miniature.opened("lsun_car", src, partial=False)
    with pytest.raises(
        UserError, match=r"car holds no database of LSUN, unpacked from car.zip; put it there as car/data.mdb"
    ):
        miniature.opened("lsun_car", src / "car")


def test_damaged_databases_are_told(src, photos):
    path = src / "car/data.mdb"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"car/data.mdb has [\d,]+ bytes where it needs [\d,]+; get the file again"):
        miniature.opened("lsun_car", src)
    path.write_bytes(b"<html>" * 5000)
    with pytest.raises(UserError, match=r"car cannot be read as an LMDB database \(.*not an LMDB file\); get its data"):
        miniature.opened("lsun_car", src)
    path.unlink()
    write(src / "car", {"num-samples": b"6"})
    with pytest.raises(UserError, match=r"car: the key b'num-samples' is no name of a photo of LSUN"):
        miniature.opened("lsun_car", src)
    write(src / "bedroom_train_lmdb", {KEYS[0]: photos[KEYS[0]][:300]})
    with pytest.raises(UserError, match=rf"{KEYS[0]} cannot be read as an image \("):
        miniature.prepare("lsun_bedroom", src, src / "out")
