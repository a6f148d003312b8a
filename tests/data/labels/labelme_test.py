"""labelme: one file an image, corner origin, turned photos."""

import json

import pytest

from tests.data.labels import made
from uld_jax.errors import UserError


def shape(label, x, y, kind="point", group=None):
    return {"label": label, "points": [[x, y]], "group_id": group, "shape_type": kind, "flags": {}}


def write(folder, shapes, name="im/a.json", **changed):
    data = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": "a.jpg", "imageData": None}
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(data | {"imageHeight": 40, "imageWidth": 30} | changed))


def test_points(tmp_path):
    made.photos(tmp_path, {"im/a.jpg": (30, 40), "im/b.jpg": (30, 40)}, turn=6)  # upright 40 high, 30 wide
    write(tmp_path, [shape("nose", 0.5, 0.5), shape("ear", 29.5, 12.75), shape("all", 1, 1, "polygon")])
    write(tmp_path, [shape("tail", 2, 3)], "im/b.json", imagePath="..\\im\\b.jpg")
    found, said = made.read(tmp_path)
    assert made.points(found) == {"im/a.jpg": {"nose": (0, 0), "ear": (29, 12.25)}, "im/b.jpg": {"tail": (1.5, 2.5)}}
    assert found.landmark_names == ("ear", "nose", "tail")
    assert said == [f"{tmp_path}: 2 files: labelme, 3 points, labels of 2 images"]
    assert found.sources == {"im/a.json", "im/b.json"}


def test_a_renamed_picture_is_found_by_the_name_of_its_label_file(tmp_path):
    made.photos(tmp_path, {"im/a.png": (40, 30)})
    write(tmp_path, [shape("nose", 1, 1)], imagePath="/elsewhere/old.jpg")
    assert made.read(tmp_path)[0].names == ["im/a.png"]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([shape("n", 1, 1), shape("n", 2, 2)], "a.json has the point n twice, .*crop"),
        ([shape("n", 1, 1, group=1), shape("m", 2, 2, group=2)], "a.json has points of 2 groups"),
        ([shape("", 1, 1)], "a.json: a label is ''"),
        ([shape("n", "1px", 1)], "point n: '1px' is not a number"),
        ([shape("n", float("nan"), 1)], "point n: 'nan' is not a number"),
        ([shape("n", True, 1)], "point n: 'True' is not a number"),
        ([{"label": "n", "shape_type": "point", "points": []}], "the point n has not one x and one y"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, shapes, message):
    made.photos(tmp_path, {"im/a.jpg": (40, 30)})
    write(tmp_path, shapes)
    with pytest.raises(UserError, match=message):
        made.read(tmp_path)


def test_polygons_alone_are_no_landmarks(tmp_path):
    made.photos(tmp_path, {"im/a.jpg": (40, 30)})
    write(tmp_path, [shape("all", 1, 1, "polygon")])
    assert made.read(tmp_path)[0] is None
