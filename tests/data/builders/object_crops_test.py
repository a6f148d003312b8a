"""Crops around labelled objects: their pixels, points, boxes, names and splits, and what has no crop."""

import doctest
import json

import numpy as np
import pytest
from PIL import Image

from tests.data.builders import miniature
from uld_jax import data
from uld_jax.data import decode
from uld_jax.data.builders import object_crops, prepared
from uld_jax.errors import UserError

SIZE = (100, 120)  # height, width
NAMES = ["nose", "tail", "ear"]


def coco(path, *images):
    """A file of images `(name, [(id, keypoints, bbox), ...])`."""
    listed = [{"id": i, "file_name": name, "width": SIZE[1], "height": SIZE[0]} for i, (name, _) in enumerate(images)]
    notes = [
        {"id": one, "image_id": i, "category_id": 1, "keypoints": points, **({"bbox": box} if box else {})}
        for i, (_, some) in enumerate(images)
        for one, points, box in some
    ]
    categories = [{"id": 1, "name": "cat", "keypoints": NAMES}]
    path.write_text(json.dumps({"images": listed, "annotations": notes, "categories": categories}))


@pytest.fixture
def src(tmp_path):
    """Two photos for training, of which one has two objects, one for test, and one without labels."""
    root = tmp_path / "src"
    for name in ("im/a.png", "im/b.png", "c.png", "d.png"):
        miniature.picture(root / name, SIZE, quality=95)
    near = [30, 40, 2, 50, 44, 2, 0, 0, 0]  # its box 20 wide from x = 29.5
    edge = [100, 10, 2, 119, 0, 1, 110, 5, 2]  # no box: its points are 19 wide around (109.5, 5)
    coco(
        root / "cats_train.json",
        ("a.png", [(7, near, [30, 36, 20, 10]), (8, edge, None)]),
        ("b.png", [(9, near, None)]),
    )
    coco(root / "cats_test.json", ("c.png", [(1, near, [0, 0, 120, 100])]))
    return root


def read(root, out, margin=2.0, **more):
    """Prepare crops and read them back: {name: (pixels, points, row)}, the sources, and the notes."""
    sources, notes = object_crops.open_all("kittens", root, margin, **more)
    prepared.prepare("kittens", sources, out)
    found = {s: data.open_source("kittens", s, data_dir=out, frame_size=64) for s in sources}
    rows = {}
    for source in found.values():
        for row, (name, points) in enumerate(miniature.points(source).items()):
            rows[name] = decode.decode_picture(source.encoded(row)), points, (source, row)
    return rows, found, (sources, notes)


def test_doctests():
    assert doctest.testmod(object_crops).attempted >= 2
    assert doctest.testmod(object_crops).failed == 0


def test_every_object_becomes_an_image(src, tmp_path):
    rows, found, (sources, notes) = read(src, tmp_path / "out")
    assert {s: sorted(one.names) for s, one in found.items()} == {
        "train": ["im/a_7.jpg", "im/a_8.jpg", "im/b_9.jpg"],
        "test": ["c_1.jpg"],
    }
    assert notes == ["1 image without a labelled object, first d.png: no crop"]
    assert [one.file for source in sources.values() for one in source.skipped] == []
    # The side of each square, and its first pixel; by hand.
    squares = {"im/a_7.jpg": (40, (20, 21)), "im/a_8.jpg": (38, (91, -14)), "im/b_9.jpg": (40, (20, 22))}
    squares["c_1.jpg"] = 240, (-60, -70)
    near, edge = [[30, 40], [50, 44], [np.nan] * 2], [[100, 10], [119, 0], [110, 5]]
    for name, (side, corner) in squares.items():
        pixels, points, (source, row) = rows[name]
        assert pixels.shape == (side, side, 3), name
        np.testing.assert_allclose(points, np.array(edge if "8" in name else near) - corner, atol=1e-3)
        # Each pixel is that of the photo; outside it is black, up to the blocks of JPEG at its edge.
        y, x = np.mgrid[:side, :side]
        x, y = x + corner[0], y + corner[1]
        inside = (x >= 0) & (y >= 0) & (x < SIZE[1]) & (y < SIZE[0])
        photo = decode.decode_picture(src / source.columns["source"][row])
        want = np.where(inside[..., None], photo[y.clip(0, SIZE[0] - 1), x.clip(0, SIZE[1] - 1)], 0)
        assert np.median(np.abs(pixels.astype(int) - want)) <= 2, name
        assert pixels[~inside].mean() < 8 if (~inside).any() else True
    source = found["train"]
    of = {name: {c: values[row] for c, values in source.columns.items()} for row, name in enumerate(source.names)}
    assert of["im/a_7.jpg"] == {
        **{"object": "7", "source": "im/a.png"},
        **{"box_x0": "9.500", "box_y0": "14.500", "box_x1": "29.500", "box_y1": "24.500"},
    }
    assert of["im/a_8.jpg"] == {"object": "8", "source": "im/a.png"} | dict.fromkeys(
        ("box_x0", "box_y0", "box_x1", "box_y1"), ""
    )
    visible = dict(zip(source.names, source.visible.tolist(), strict=True))
    assert visible == {
        "im/a_7.jpg": [True, True, False],
        "im/b_9.jpg": [True, True, False],
        "im/a_8.jpg": [True, False, True],
    }
    assert source.spec.landmark_names == tuple(NAMES)
    assert set(source.spec.splits) == {"train", "test"}


TABLE = """scorer,A,A,A,A,A,A,A,A,A,A
individuals,m 1,m 1,m 1,m 1,m/2,m/2,m/2,m/2,single,single
bodyparts,nose,nose,tail,tail,nose,nose,tail,tail,corner,corner
coords,x,y,x,y,x,y,x,y,x,y
a.png,10,20,30,20,50,50,,,1,1
b.png,10,20,30,20,50,50,60,50,,
"""


def test_animals_of_a_table(tmp_path):
    for name in ("a.png", "b.png"):
        miniature.picture(tmp_path / "src" / name, SIZE)
    (tmp_path / "src/CollectedData.csv").write_text(TABLE)
    for without, lost in (((), ["m/2", "single"]), (("single",), ["m/2"])):
        rows, found, (sources, notes) = read(tmp_path / "src", tmp_path / f"out{len(without)}", 1.0, without=without)
        assert sorted(rows) == ["a_m_1.jpg", "b_m_1.jpg", "b_m_2.jpg"]
        assert sorted(found["train"].columns["object"]) == ["m 1", "m 1", "m/2"]
        # The corner of the cage is a point of nothing that was cropped.
        assert found["train"].spec.landmark_names == ("nose", "tail")
        np.testing.assert_allclose(rows["b_m_1.jpg"][1], [[0, 10], [20, 10]], atol=1e-3)
        skipped = [one.reason for one in sources["train"].skipped]
        assert all(
            f"object {name} has no box and one labelled point" in one for name, one in zip(lost, skipped, strict=True)
        )
        assert notes == (["1 object called single: no crop"] if without else [])
    with pytest.raises(
        UserError, match=r"--without_objects=m3: no object is called like that; the objects are m 1, m/2"
    ):
        object_crops.open_all("kittens", tmp_path / "src", 1.0, without=["m3"])


def test_a_csv_of_its_own_has_an_object_an_image(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        miniature.picture(tmp_path / "src" / name, SIZE)
    (tmp_path / "src/train.csv").write_text(
        "file,x0,y0,yaw,mask,box_x0,box_y0,box_x1,box_y1\na.png,40,40,5,m.png,30,30,49,49\nb.png,40,40,6,,,,,\n"
    )
    rows, found, (sources, notes) = read(tmp_path / "src", tmp_path / "out", 1.0)
    assert sorted(rows) == ["a.jpg"]
    assert found["train"].columns["yaw"] == ["5"]
    assert "mask" not in found["train"].columns
    assert rows["a.jpg"][0].shape == (19, 19, 3)
    np.testing.assert_allclose(rows["a.jpg"][1], [[10, 10]], atol=1e-3)
    assert ["one labelled point" in one.reason for one in sources["train"].skipped] == [True]
    assert notes == ["1 image without a labelled object, first c.png: no crop"]


def test_photos_that_are_turned_by_their_exif_tag(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    y, x = np.mgrid[:100, :120]
    (tmp_path / "src").mkdir()
    stored = np.stack([2 * x, 2 * y, 0 * x], -1).astype(np.uint8)
    Image.fromarray(stored).save(tmp_path / "src/a.png", exif=exif)
    part = "<part name='p' x='30' y='50'/><part name='q' x='40' y='52'/>"
    box = f"<box top='40' left='20' width='40' height='20'>{part}</box>"
    (tmp_path / "src/a.xml").write_text(f"<dataset><images><image file='a.png'>{box}</image></images></dataset>")
    ((pixels, points, _),) = read(tmp_path / "src", tmp_path / "out", 1.0)[0].values()
    assert pixels.shape == (40, 40, 3)
    for (u, v), (px, py) in zip(np.round(points).astype(int), ((30, 50), (40, 52)), strict=True):
        np.testing.assert_allclose(pixels[v, u, :2], stored[py, px, :2], atol=12)


def test_files_that_are_absent_or_bad(src, tmp_path):
    (src / "im/b.png").unlink()
    with pytest.raises(UserError, match=r"cats_train.json, image b.png: b.png is not in .* \(1 such file\); put the"):
        object_crops.open_all("kittens", src, 2.0)
    (src / "im/b.png").write_bytes((src / "d.png").read_bytes()[:300])
    sources, _ = object_crops.open_all("kittens", src, 2.0)
    with pytest.raises(UserError, match=r"im/b.png cannot be read as an image \(image file is truncated\)"):
        prepared.prepare("kittens", sources, tmp_path / "out")
    with pytest.warns(UserWarning, match="left out"):
        sources, _ = object_crops.open_all("kittens", src, 2.0, on_bad_file="skip")
    assert sources["train"].names == ["im/a_7.jpg", "im/a_8.jpg"]
    assert [one.file for one in sources["train"].skipped] == ["im/b.png"]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (
            [200, 10, 20, 20],
            r"image c.png, object 1: the box \(199.5, 9.5, 219.5, 29.5\) lies beside its photo of 120 x",
        ),
        ([-9000, 10, 9900, 20], "object 1: the box .* lies beside its photo"),
    ],
)
def test_boxes_of_other_coordinates(src, box, message):
    coco(src / "cats_test.json", ("c.png", [(1, [30, 40, 2, 50, 44, 2, 0, 0, 0], box)]))
    with pytest.raises(UserError, match=message):
        object_crops.open_all("kittens", src, 2.0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--crop_objects=-1"], "--crop_objects is -1; give the side"),
        (["--crop_objects=nan"], "--crop_objects is nan"),
        (["--crop_objects=99"], "at most 10"),
        (["--crop_objects=x"], "crop_objects"),
        (["--crop_objects=1.5", "--dataset=celeba"], "--crop_objects is for folders of photos"),
        (["--crop_objects=1.5", "--dataset=synthetic", "--src="], "--crop_objects is for labelled photos"),
        (["--without_objects=cat"], "add --crop_objects=1.5"),
    ],
)
def test_flags_that_do_not_go_together(src, tmp_path, uld, flags, message):
    code, _, err = uld("prepare", "--dataset=kittens", f"--src={src}", f"--data_dir={tmp_path / 'out'}", *flags)
    assert code == 1
    assert message in err


def test_the_command_and_the_error_that_names_it(src, tmp_path, uld):
    to = f"--data_dir={tmp_path / 'out'}"
    code, _, err = uld("prepare", "--dataset=kittens", f"--src={src}", to)
    assert code == 1
    assert f"uld prepare --dataset=NAME --src={src} --crop_objects=1.5 --data_dir=OUT`" in err
    code, out, err = uld("prepare", "--dataset=kittens", f"--src={src}", to, "--crop_objects=1.5")
    assert code == 0, err
    assert f"dataset=folder --config.data_dir={tmp_path / 'out/kittens/1.0.0'}" in out
    assert "1 image without a labelled object, first d.png: no crop" in err
    assert len(data.open_source("folder", "train", data_dir=tmp_path / "out/kittens", frame_size=8)) == 3
    (src / "cats_test.json").unlink()
    (src / "cats_train.json").unlink()
    code, _, err = uld("prepare", "--dataset=cats2", f"--src={src}", to, "--crop_objects=1.5")
    assert (code, "holds no labels, so there is nothing to crop" in err) == (1, True)
