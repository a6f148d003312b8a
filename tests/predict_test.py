"""What `uld predict` writes: nothing outside a photo, any name, whole files or rows that say they are not all."""

import csv
import doctest
import hashlib
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from PIL import Image

from tests import fixed, tiny
from uld_jax import files, predict
from uld_jax.data import labels, listing
from uld_jax.detector import shows_nothing
from uld_jax.errors import UserError
from uld_jax.evaluation import landmark_regression as regression
from uld_jax.ops import coordinates
from uld_jax.predict import Overlays, overlay_names, predict_folder


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return fixed.detector(tmp_path_factory.mktemp("run"))


def photo(path, size=(40, 40), seed=0):
    """A picture of (height, width) with something in it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    with open(path, "wb") as file:  # Pillow would tell the format by the ending alone
        Image.fromarray(pixels).save(file, "PNG")
    return pixels


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return {row["file"]: row for row in csv.DictReader(file, strict=True)}


def written(out):
    """Overlays, by their paths."""
    return sorted(str(p.relative_to(out / "overlays")) for p in (out / "overlays").rglob("*.png"))


def test_doctests():
    assert doctest.testmod(predict).attempted >= 1
    assert doctest.testmod(predict).failed == 0


SIZES = {"wide": (20, 5000), "tall": (4000, 3), "dot": (1, 1), "small": (7, 9), "photo": (60, 80), "square": (50, 50)}


@pytest.mark.parametrize("outside", ["missing", "clip"])
def test_no_coordinate_lies_outside_its_photo(detector, tmp_path, outside):
    for name, size in SIZES.items():
        photo(tmp_path / f"in/{name}.png", size)
    done = predict_folder(detector, tmp_path / "in", tmp_path / "out", outside=outside)
    assert (done.images, done.skipped, done.empty) == (6, [], ["dot.png"])
    rows = table(tmp_path / "out/landmarks.csv")
    found = {}
    for name, (height, width) in SIZES.items():
        row = rows[f"{name}.png"]
        found[name] = [bool(row[f"x{k}"]) for k in range(4)]
        for k in np.flatnonzero(found[name]):
            assert 0 <= float(row[f"x{k}"]) <= width - 1
            assert 0 <= float(row[f"y{k}"]) <= height - 1
            assert float(row[f"score{k}"]) == 0.5
        assert all(row[f"y{k}"] == "" and row[f"score{k}"] == "0" for k in np.flatnonzero(np.invert(found[name])))
        shown = Image.open(tmp_path / f"out/overlays/{name}.png")
        assert max(shown.size) / min(shown.size) == pytest.approx(max(height, width) / min(height, width), rel=0.07)
    assert not any(found.pop("dot"))  # nothing can be found there
    if outside == "clip":
        assert all(map(all, found.values()))
        assert (float(rows["photo.png"]["x2"]), float(rows["photo.png"]["y2"])) == (39.5, 0)
    else:  # in 40 x 30 pixels of the frame, and so on
        # A strip of 0.03 pixels has its landmarks only where they are within a pixel of it.
        assert found["wide"] == [True, False, False, True]
        assert found["tall"] == [True, False, True, False]
        assert found["photo"] == [True, False, False, True]
        assert found["square"] == [True] * 4
        assert done.beyond == sum(row.count(False) for row in found.values())
    assert Image.open(tmp_path / "out/contact_sheet.png").width > 100


def test_points_up_to_a_pixel_of_the_frame_outside_are_at_the_edge():
    sizes, maps = np.array([[30, 40]]), coordinates.frame_map((30, 40), (80, 80))[None]  # two pixels of the frame each
    xy = np.array([[[-0.9, 5], [-1.1, 5], [39.9, 5], [40.1, 5], [5, -0.9], [5, 30.1], [-0.5, 29.5], [3.25, 4]]])
    score = np.array([[1, 1, 1, 1, 1, 1, 1, 0]], np.float32)
    inside, kept, beyond = coordinates.on_file(xy, score, sizes, maps)
    assert kept.tolist() == [[1, 0, 1, 0, 1, 0, 1, 0]]
    assert kept.dtype == np.float32
    assert beyond.tolist() == [[False, True, False, True, False, True, False, False]]
    np.testing.assert_array_equal(inside[0, [0, 2, 4, 6, 7]], [[0, 5], [39, 5], [5, 0], [0, 29], [3.25, 4]])
    assert (coordinates.on_file(xy, score, sizes, maps, "clip")[1] == score).all()
    with pytest.raises(UserError, match="outside is 'keep'; use missing or clip"):
        coordinates.on_file(xy, score, sizes, maps, "keep")


def test_in_python_no_coordinate_lies_outside_its_image_either(detector, tmp_path):
    images = [photo(tmp_path / f"{n}.png", size) for n, size in SIZES.items() if n != "dot"]
    for outside in ("missing", "clip"):
        found = detector.predict(images, outside=outside)
        for image, xy, score in zip(images, found.xy, found.score, strict=True):
            assert (xy >= 0).all()
            assert (xy <= np.array(image.shape[1::-1]) - 1).all()
            assert (score > 0).all() or outside == "missing"
    assert (found.score > 0).all()


def test_annotated_points_stay_on_the_photo_too(detector, tmp_path):
    places = np.tile(fixed.PLACES, (3, 1, 1))
    beyond = np.full((3, 2, 2), [[5, 5], [60, 5]])
    far = regression.fit_forward(regression.LandmarkSet(places, np.ones(places.shape[:2]), beyond), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector, "annotated", far)
        images = [photo(tmp_path / "in/a.png")]
        assert detector.predict(images, "annotated").score.tolist() == [[1, 0]]
        np.testing.assert_allclose(detector.predict(images, "annotated", "clip").xy, [[[5, 5], [39, 5]]], atol=0.1)
        done = predict_folder(detector, tmp_path / "in", tmp_path / "out", points="annotated")
    assert done.beyond == 1
    assert table(tmp_path / "out/landmarks.csv")["a.png"]["x1"] == ""


def test_pictures_with_nothing_in_them_have_no_landmarks(detector, tmp_path):
    rng = np.random.default_rng(0)
    plain = np.full((40, 40, 3), (200, 30, 90), np.uint8)
    noisy = (plain + rng.integers(0, 2, plain.shape)).astype(np.uint8)
    dim = (plain + np.linspace(0, 12, 40)[:, None, None]).astype(np.uint8)
    assert shows_nothing(np.stack([plain, noisy, dim])).tolist() == [True, True, False]
    with pytest.warns(UserWarning, match=r"2 of 3 images show nothing \(all of one colour\).*: image 0, 1$"):
        found = detector.predict([plain, noisy, dim])
    assert (found.score > 0).tolist() == [[False] * 4] * 2 + [[True] * 4]
    for name, image in (("a", plain), ("b", dim)):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"in/{name}.jpg", quality=95)
    done = predict_folder(detector, tmp_path / "in", tmp_path / "out")
    assert (done.images, done.empty) == (2, ["a.jpg"])
    rows = table(tmp_path / "out/landmarks.csv")
    assert [rows[f"{n}.jpg"]["score0"] for n in "ab"] == ["0", "0.5000"]


def hard_names():
    """Names that a file system holds, as bytes."""
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    return [
        b"caf\xe9.jpg",
        rb"caf\xe9.jpg",  # what the one before is written as
        b"new\nline.jpg",
        b"return\r.jpg",
        b'com,ma "quoted".jpg',
        b"-dash.jpg",
        b"--images=x.jpg",
        b" space .jpg",
        b"CASE.jpg",
        b"case.jpg",
        b"case.png",
        b"a.jpg",
        b"a.png/b.jpg",  # a folder called like an overlay
        b"l" * 251 + b".jpg",
        b"l" * 250 + b".jpeg",
        b"m" * 251 + b".png",
        f"{composed}.jpg".encode(),
        f"{decomposed}.jpg".encode(),
        ("日本" * 30).encode() + b".png",
        b"%2e%2e.jpg",
        b"[1].jpg",
        b"*.jpg",
        b"~.jpg",
        b"$HOME.jpg",
    ]


def test_any_name_gets_through(detector, tmp_path):
    names = hard_names()
    for i, name in enumerate(names):
        photo(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"in", name)), seed=i)
    done = predict_folder(detector, tmp_path / "in", tmp_path / "out")
    assert (done.images, done.skipped) == (len(names), [])
    with open(tmp_path / "out/landmarks.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, strict=True))
    assert sorted(row[0] for row in rows[1:]) == sorted(files.printable(os.fsdecode(n)) for n in names)
    assert {len(row) for row in rows} == {13}
    # Each has an overlay of its own, and the index says which.
    with open(tmp_path / "out/overlays/index.csv", newline="", encoding="utf-8") as file:
        index = list(csv.DictReader(file, strict=True))
    assert len(written(tmp_path / "out")) == len(names) == len(index)
    assert {row["overlay"] for row in index} == set(written(tmp_path / "out"))
    assert len({unicodedata.normalize("NFC", row["overlay"]).casefold() for row in index}) == len(names)
    for row in index:
        data = (tmp_path / "out/overlays" / row["overlay"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(data).hexdigest()


def test_rows_are_kept_when_the_program_is_killed(tmp_path):
    """In a process that is killed while its third batch is at work."""
    for i in range(12):
        photo(tmp_path / f"in/{i:02d}.png", seed=i)
    program = f"""
import os, signal
from pathlib import Path
from tests import fixed
from uld_jax.predict import predict_folder
folder = Path({str(tmp_path)!r})
stop = lambda done, of: done == 8 and os.kill(os.getpid(), signal.SIGKILL)
predict_folder(fixed.detector(folder), folder / "in", folder / "out", report=stop)
"""
    done = subprocess.run([sys.executable, "-c", program], env=tiny.environment(), cwd=tiny.ROOT)
    assert done.returncode == -9
    out = tmp_path / "out"
    assert sorted(table(out / "landmarks.partial.csv")) == [f"{i:02d}.png" for i in range(8)]
    assert not (out / "landmarks.csv").exists()
    assert not (out / "overlays/index.csv").exists()
    assert written(out) == [f"{i:02d}.png" for i in range(8)]


def test_overlays_of_an_earlier_call_do_not_stay_and_those_of_others_do(detector, tmp_path):
    out = tmp_path / "out"
    for i in range(3):
        photo(tmp_path / f"in/deep/{i}.png", seed=i)
    photo(tmp_path / "in/top.png")
    predict_folder(detector, tmp_path / "in", out)
    assert written(out) == ["deep/0.png", "deep/1.png", "deep/2.png", "top.png"]
    mine = out / "overlays/deep/mine.png"
    mine.write_bytes(b"a user's")
    (out / "overlays/deep/1.png").write_bytes(b"painted over by a user")
    photo(tmp_path / "new/top.png", seed=7)
    photo(tmp_path / "new/more.png", seed=8)
    predict_folder(detector, tmp_path / "new", out)
    assert written(out) == ["deep/1.png", "deep/mine.png", "more.png", "top.png"]
    assert list(table(out / "landmarks.csv")) == ["more.png", "top.png"]
    for path in (mine, out / "overlays/deep/1.png"):
        path.unlink()
    (out / "overlays/deep").rmdir()
    # A call that was killed left overlays, and one half-written.
    killed = Overlays(out / "overlays")
    killed.add("x.png", "x/x.png", b"killed")
    files.part_of(out / "overlays/x/x.png").write_bytes(b"kil")
    killed._index._file.close()
    predict_folder(detector, tmp_path / "new", out)
    assert sorted(p.name for p in (out / "overlays").iterdir()) == ["index.csv", "more.png", "top.png"]


def test_an_index_that_leads_elsewhere_removes_nothing(tmp_path):
    outside = tmp_path / "a.png"
    outside.write_bytes(b"a user's")
    digest = hashlib.sha256(b"a user's").hexdigest()
    for name in ("../a.png", str(outside)):
        files.write(tmp_path / "overlays/index.csv", files.csv_text([Overlays.HEADER, ["a", name, digest]]))
        overlays = Overlays(tmp_path / "overlays")
        overlays.finish()
        assert outside.exists()


def test_one_name_that_a_disk_does_not_take_costs_nothing(detector, tmp_path, monkeypatch):
    for name in ("bad", "good"):
        photo(tmp_path / f"in/{name}.png")
    write = files.write

    def picky(path, data):
        if os.path.basename(path) == "bad.png":
            raise OSError(84, "Invalid or incomplete multibyte or wide character")
        write(path, data)

    monkeypatch.setattr(files, "write", picky)
    assert predict_folder(detector, tmp_path / "in", tmp_path / "out").images == 2
    assert [name[:4] for name in written(tmp_path / "out")] == ["bad~", "good"]

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(OSError, match="No space left"):
        predict_folder(detector, tmp_path / "in", tmp_path / "full")
    assert sorted(table(tmp_path / "full/landmarks.partial.csv")) == ["bad.png", "good.png"]


def test_files_that_are_named_one_by_one(detector, tmp_path):
    for name in ("a.png", "b.png", "sub/c.png", "[1].png", "1.png"):
        photo(tmp_path / "in" / name)
    out = tmp_path / "out"

    def names(*given):
        predict_folder(detector, given[0] if len(given) == 1 else given, out)
        return list(table(out / "landmarks.csv"))

    given = tmp_path / "in"
    assert names(given / "a.png") == ["a.png"]
    assert written(out) == ["a.png"]
    assert names(str(given / "?.png")) == ["1.png", "a.png", "b.png"]
    assert names(str(given / "**/*.png")) == ["1.png", "[1].png", "a.png", "b.png", "sub/c.png"]
    assert names(str(given / "[1].png")) == ["[1].png"]  # there is a file of that name
    assert names(given / "b.png", given / "sub", given / "a.png", given / "b.png") == ["b.png", "sub/c.png", "a.png"]
    for wrong, why in ((given / "d.png", "does not exist"), (given / "*.gif", "no file is called like that")):
        with pytest.raises(UserError, match=why):
            names(wrong)
    with pytest.raises(UserError, match="lies in --images="):
        predict_folder(detector, given, given / "out")
    with pytest.raises(UserError, match="lies in the overlays of"):
        predict_folder(detector, out / "overlays", out)


def test_overlay_names_differ_on_every_file_system():
    names = ["A.jpg", "a.jpg", "b.jpg", "B/x.jpg", "b/x.jpg", "é.jpg", "e\u0301.jpg", "caf\udce9.jpg", "caf\\xe9.jpg"]
    named = overlay_names(names)
    assert named["b.jpg"] == "b.png"
    keys = {unicodedata.normalize("NFC", n).casefold() for n in named.values()}
    assert len(keys) == len(names)
    assert overlay_names(reversed(names)) == named


@pytest.mark.parametrize("word", predict.FORMATS)
def test_the_table_in_the_layout_of_a_tool(detector, tmp_path, word):
    """Labels of the photos, read from the table beside them, are the predictions."""
    for name, size in {"a.png": (60, 80), "b/c d.png": (50, 50)}.items():
        photo(tmp_path / "in" / name, size)
    predict_folder(detector, tmp_path / "in", tmp_path / "csv")
    predict_folder(detector, tmp_path / "in", tmp_path / "out", format=word)
    assert listing.list_files(tmp_path).others == []  # its output is known as that
    written = predict.table_of(tmp_path / "out", word)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["contact_sheet.png", written.name, "overlays"]
    want = table(tmp_path / "csv/landmarks.csv")
    if word == "csv":
        assert table(written) == want
        return
    written.rename(tmp_path / "in" / written.name)
    with pytest.warns(UserWarning, match="labels of 2 images"):
        read = labels.read_folder(tmp_path / "in")
    assert read.landmark_names == tuple(f"landmark{k}" for k in range(4))
    xy = [[[float(want[f][f"{a}{k}"] or "nan") for a in "xy"] for k in range(4)] for f in read.names]
    np.testing.assert_allclose(read.landmarks, xy, atol=2e-3)


def test_an_unknown_format_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="format is 'xml'; use one of csv, coco, dlc, slp, labelstudio"):
        predict_folder(None, tmp_path / "nothing", tmp_path / "out", format="xml")
