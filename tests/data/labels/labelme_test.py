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


def test_groups_are_objects_and_their_rectangles_boxes(tmp_path):
    made.photos(tmp_path, {"im/a.jpg": (40, 30)})
    box = shape("cat", 9, 4, "rectangle", group=0) | {"points": [[9, 4], [1, 12.5]]}
    some = [shape("n", 2, 3, group=0), shape("n", 7, 8, group=3), shape("m", 5, 6, group=0), box]
    write(tmp_path, some)
    with pytest.raises(UserError, match=r"has 2 objects \(0, 3\)"):
        made.read(tmp_path)
    assert made.objects(tmp_path)[0] == {
        ("im/a.jpg", "0"): ({"n": (1.5, 2.5), "m": (4.5, 5.5)}, (0.5, 3.5, 8.5, 12)),
        ("im/a.jpg", "3"): ({"n": (6.5, 7.5)}, None),
    }
    write(tmp_path, some, imagePath="/elsewhere/old.jpg")  # found by the name of the label file
    assert len(made.objects(tmp_path)[0]) == 2


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([shape("n", 1, 1), shape("n", 2, 2)], "a.json has the point n twice in one object; .* a group_id of its own"),
        ([shape("n", 1, 1, group=1), shape("m", 2, 2, group=2)], rf"a.json has 2 objects \(1, 2\), and {made.COMMAND}"),
        (
            [shape("n", 1, 1, group=1), shape("m", 2, 2, group=2), shape("o", 3, 3)],
            "a.json has points of 2 groups, and the point o of none; give it a group_id",
        ),
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
