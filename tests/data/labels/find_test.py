"""Labels of a folder: which files hold them, whose images and splits they are; writing and reading again."""

import doctest
import json

import numpy as np
import pytest

from tests.data.labels import made
from uld_jax.data import decode, labels, open_source
from uld_jax.data.labels import common, find
from uld_jax.errors import UserError

SIZE = (40, 60)


def ljson(path, *xys):
    path.parent.mkdir(parents=True, exist_ok=True)
    points = [[y, x] for x, y in xys]
    path.write_text(json.dumps({"version": 3, "groups": {"LJSON": {"landmarks": {"points": points}, "labels": []}}}))


def coco(path, files, xy=(1, 2), names=("nose",)):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": f} for i, f in enumerate(files)]
    notes = [{"id": i, "image_id": i, "category_id": 1, "keypoints": [*xy, 2] * len(names)} for i in range(len(files))]
    categories = [{"id": 1, "keypoints": list(names)}]
    path.write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))


def test_examples():
    for module in (common, find):
        assert doctest.testmod(module).attempted
        assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("word", ["coco", "dlc", "slp", "labelstudio"])
def test_what_is_written_is_read_as_it_was(tmp_path, word):
    for seed in range(5):
        found, folder = made.predictions(seed), tmp_path / str(seed) / "in"
        made.photos(folder, dict.fromkeys(found.files, (40, 60)))
        labels.FORMATS[word].write(folder / f"landmarks{labels.FORMATS[word].ENDING}", found)
        read = made.read(folder)[0].take(found.files)
        if word == "labelstudio":  # does not list points that are missing everywhere
            there = [name for k, name in enumerate(found.names) if (found.score[:, k] > 0).any()]
        else:
            there = list(found.names)
        assert list(read.landmark_names) == there
        want = np.where(found.score[..., None] > 0, found.xy, np.nan)
        np.testing.assert_allclose(read.landmarks, want[:, [found.names.index(n) for n in there]], atol=1e-3)


def test_a_folder_of_labels_is_the_same_as_one_with_a_csv(tmp_path):
    """`open_source`, which `uld fit`, `evaluate` and `prepare` call, gives the same of both."""
    rng, names = np.random.default_rng(0), [f"{s}/{i}.png" for s in ("train", "test") for i in range(3)]
    xy = rng.uniform(0, 39, (6, 4, 2)).round(2)
    for kind in ("csv", "ljson"):
        made.photos(tmp_path / kind, dict.fromkeys([*names, "train/bare.png"], SIZE))
    header = ["file", *(f"{a}{i}" for i in range(4) for a in "xy")]
    for split in ("train", "test"):
        rows = [[n, *map(str, p.ravel())] for n, p in zip(names, xy, strict=True) if n.startswith(split)]
        (tmp_path / f"csv/{split}.csv").write_text("\n".join(map(",".join, [header, *rows])))
    for name, points in zip(names, xy, strict=True):
        ljson((tmp_path / "ljson" / name).with_suffix(".ljson"), *points.tolist())
    for split in ("train", "test"):
        one, other = (
            open_source("folder", split, data_dir=tmp_path / kind, frame_size=32) for kind in ("csv", "ljson")
        )
        assert other.names == one.names
        np.testing.assert_array_equal(other.landmarks, one.landmarks)
        np.testing.assert_array_equal(other.visible, one.visible)
        assert other.spec == one.spec
        assert other.fingerprint == one.fingerprint
        assert list(other.skipped) == []  # label files are no bad pictures


def test_names_of_points_and_errors_reach_the_source(tmp_path):
    made.photos(tmp_path, {"a.png": SIZE, "b.png": SIZE})
    coco(tmp_path / "labels.json", ["a.png"], names=("left ear", "nose"))
    source = open_source("folder", "train", data_dir=tmp_path, frame_size=32)
    assert source.spec.landmark_names == ("left ear", "nose")
    assert (source.place(0), source.place(1)) == (f"{tmp_path}/labels.json, image a.png", "b.png")
    with pytest.raises(UserError, match=r"has no split test .*put `test` into the name of a label file"):
        open_source("folder", "test", data_dir=tmp_path, frame_size=32)
    coco(tmp_path / "labels.json", ["a.png"], xy=(999, 2))
    with pytest.raises(UserError, match=r"labels.json, image a.png: point 0 at \(999, 2\) lies far outside"):
        open_source("folder", "train", data_dir=tmp_path, frame_size=32)
    coco(tmp_path / "labels.json", ["a.png", "absent.png"])
    with pytest.raises(UserError, match=r"image absent.png: absent.png is not in .*remove them from the labels"):
        open_source("folder", "train", data_dir=tmp_path, frame_size=32)
    coco(tmp_path / "labels.json", ["../../secret.png"])
    with pytest.raises(UserError, match=r"image ../../secret.png: .* not in"):
        open_source("folder", "train", data_dir=tmp_path, frame_size=32)


def test_the_own_csv_comes_first(tmp_path):
    made.photos(tmp_path, {"a.png": SIZE})
    coco(tmp_path / "labels.json", ["a.png"])
    (tmp_path / "train.csv").write_text("file,x0,y0,x1,y1\na.png,3,4,5,6\n")
    assert open_source("folder", "train", data_dir=tmp_path, frame_size=32).spec.landmarks == 2


def test_labels_of_the_same_image_twice(tmp_path):
    made.photos(tmp_path, {"a.png": SIZE, "b.png": SIZE})
    coco(tmp_path / "one.json", ["a.png", "b.png"])
    ljson(tmp_path / "b.ljson", (1, 2))
    with pytest.raises(UserError, match=r"b.ljson and .*one.json, image b.png both label b.png \(menpo ljson and COCO"):
        made.read(tmp_path)
    (tmp_path / "b.ljson").unlink()
    coco(tmp_path / "two.json", ["b.png"])
    with pytest.raises(UserError, match=r"one.json, image b.png and .*two.json, image b.png both label b.png; keep"):
        made.read(tmp_path)
    coco(tmp_path / "one.json", ["a.png"])
    coco(tmp_path / "two.json", ["b.png"], names=("ear",))
    with pytest.raises(UserError, match=r"one.json and .*two.json have other points"):
        made.read(tmp_path)


def test_splits_by_names(tmp_path):
    made.photos(tmp_path, {f"im/{n}.png": SIZE for n in ("a", "b", "test")})
    coco(tmp_path / "ann/my_train.json", ["a.png"])
    coco(tmp_path / "ann/test-2017.json", ["im/b.png", "im/test.png"])
    found, _ = made.read(tmp_path)
    assert dict(zip(found.names, found.splits, strict=True)) == {
        "im/a.png": "train",
        "im/b.png": "test",
        "im/test.png": "test",
    }
    source = open_source("folder", "train", data_dir=tmp_path, frame_size=32)
    assert source.names == ["im/a.png"]


def test_images_are_found_by_the_ends_of_their_paths(tmp_path):
    made.photos(tmp_path, {f"x/{n}": SIZE for n in ("v1/1.png", "v1/2.png", "v2/1.png", "3.png")})
    coco(tmp_path / "labels.json", ["/home/me/proj/v1/1.png", "/home/me/proj/v2/1.png", "C:\\data\\3.png"])
    with pytest.raises(UserError, match="not inside"):
        made.read(tmp_path)  # no folders in common
    coco(tmp_path / "labels.json", ["/home/me/proj/v1/1.png", "/home/me/proj/v2/1.png"])
    assert made.read(tmp_path)[0].names == ["x/v1/1.png", "x/v2/1.png"]
    coco(tmp_path / "labels.json", ["1.png"])
    with pytest.raises(UserError, match=r"1.png may be x/v1/1.png or x/v2/1.png"):
        made.read(tmp_path)
    coco(tmp_path / "x/v2/labels.json", ["1.png"])  # beside the label file
    (tmp_path / "labels.json").unlink()
    assert made.read(tmp_path)[0].names == ["x/v2/1.png"]


def test_other_files_are_no_labels(tmp_path):
    made.photos(tmp_path, {"a.png": SIZE})
    for name, text in {
        "a.json": '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "box"}]}',
        "b.json": "[1, 2]",
        "c.json": "[]",
        "d.json": "{broken",
        "e.xml": "<annotation><object/></annotation>",
        "f.txt": "0 0.5 0.5 0.1 0.1\n",
        "g.csv": "image,x,y\na.png,1,2\n",
        "h.txt": "",
        "i.json": "[" * 100000,
        "j.xml": "<html><br></html>",
    }.items():
        (tmp_path / name).write_text(text)
    assert made.read(tmp_path) == (None, [])
    assert len(open_source("folder", "train", data_dir=tmp_path, frame_size=32).skipped) == 9
    (tmp_path / "d.json").write_text('{"shapes": [], "imagePath": a.png}')
    with pytest.raises(UserError, match=r"d.json is not valid JSON"):
        made.read(tmp_path)


def test_labels_without_their_end_are_an_error_wherever_they_are_cut(tmp_path):
    """A copy that stopped may hold no word that tells what it was."""
    made.photos(tmp_path, {"a.png": (20, 30)})
    json = (
        '{"info": {"n": [1.5e-3, -2, true, false, null]}, "images": [{"file_name": "ä\\u00e4.png"}], "annotations": []}'
    )
    xml = '<?xml version="1.0"?><!-- made --><annotations><image name="ä.png"><![CDATA[a]]></image></annotations>'
    for name, text, first in (("d.json", json, 1), ("d.ljson", json, 1), ("d.xml", xml, 2)):
        data = text.encode()
        for end in range(first, len(data)):
            (tmp_path / name).write_bytes(data[:end])
            with pytest.raises(
                UserError, match=rf"{name} is not whole, its end is missing \(.*; copy it again, or move"
            ):
                made.read(tmp_path)
        (tmp_path / name).unlink()
    for text in ("{a: 1}", "[1, 2,]", "// settings\n{}", '{"a": 1} // one', '{"a": 1}}', "{'a'", "<a></b>", "{a"):
        (tmp_path / "d.json").write_text(text)
        assert made.read(tmp_path) == (None, [])


def test_points_turn_as_pixels_do():
    for turn in range(1, 9):
        pixels = np.arange(12).reshape(3, 4)
        upright = decode.turn_upright(pixels, turn)
        for y, x in np.ndindex(3, 4):
            u, v = decode.turn_points(np.array([x, y]), turn, upright.shape)
            assert upright[v, u] == pixels[y, x]
