"""COCO keypoints: flags of visibility, crowds, several objects."""

import json

import pytest

from tests.data.labels import made
from uld_jax.errors import UserError

SIZES = {"im/a.jpg": (30, 40), "im/b.jpg": (30, 40), "im/c.jpg": (30, 40)}


def image(number, name):
    return {"id": number, "file_name": f"{name}.jpg", "width": 40, "height": 30}


def content(**changed):
    return {
        "images": [image(7, "a"), image(8, "b"), image(9, "c")],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 3,
                "keypoints": [1, 2, 2, 10.5, 4, 1, 6.25, 7, 0],
                "num_keypoints": 2,
            },
            {"id": 2, "image_id": 8, "category_id": 3, "keypoints": [0, 0, 0] * 3, "num_keypoints": 0},
            {"id": 3, "image_id": 8, "category_id": 3, "keypoints": [1, 1, 2] * 3, "iscrowd": 1},
            {"id": 4, "image_id": 8, "category_id": 5, "bbox": [1, 2, 3, 4]},
        ],
        "categories": [{"id": 3, "name": "cat", "keypoints": ["nose", "ear", "tail"]}, {"id": 5, "name": "box"}],
    } | changed


def write(folder, data, name="ann/labels.json"):
    made.photos(folder, SIZES)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(data))
    return made.read(folder)


def test_a_file_of_keypoints(tmp_path):
    found, said = write(tmp_path, content())
    assert made.points(found) == {
        "im/a.jpg": {"nose": (1, 2), "ear": (10.5, 4)},
        "im/b.jpg": {},
        "im/c.jpg": {},
    }
    assert found.landmark_names == ("nose", "ear", "tail")
    assert found.visible.tolist() == [[True, False, False], [False] * 3, [False] * 3]
    assert said == [f"{tmp_path}/ann/labels.json: COCO keypoints, 3 points, labels of 3 images"]


def test_where_all_points_are_marked_with_1_they_are_visible(tmp_path):
    data = content()
    data["annotations"][0]["keypoints"] = [1, 2, 1, 10.5, 4, 1, 0, 0, 0]
    found, said = write(tmp_path, data)
    assert found.visible[0].tolist() == [True, True, False]
    assert any("no point has v = 2" in one for one in said)


TWO = [{"id": i, "image_id": 7, "category_id": 3, "keypoints": [1, 1, 2] * 3} for i in (1, 2)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"annotations": TWO}, rf"image a.jpg has 2 objects \(1, 2\), and {made.COMMAND}"),
        ({"annotations": [TWO[0] | {"keypoints": [1, 1, 2]}]}, "annotation 1: keypoints is not 3 times"),
        ({"annotations": [TWO[0] | {"keypoints": [1, 1, 3] * 3}]}, "the point nose has v = 3"),
        ({"annotations": [TWO[0] | {"keypoints": ["x", 1, 2] * 3}]}, "point nose: 'x' is not a number"),
        ({"annotations": [TWO[0] | {"image_id": 99}]}, "has annotations of the image 99"),
        ({"images": [{"id": 7, "file_name": "a.jpg", "width": 80, "height": 60}]}, "the labels are for 80 x 60 pixels"),
        ({"images": [image(7, "a"), image(7, "b")]}, "image b.jpg has the id 7 of another image"),
        ({"images": [image([], "a")]}, r"id of an entry is '\[\]', and no id"),
        ({"images": [{"id": 7}]}, "image 7: file_name is 'None'"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, changed, message):
    with pytest.raises(UserError, match=message) as error:
        write(tmp_path, content(**changed))
    assert "labels.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_several_objects_an_image_with_their_boxes(tmp_path):
    data = content()
    more = {"image_id": 7, "category_id": 3, "keypoints": [20, 21, 2, 22.5, 23, 1, 0, 0, 0]}
    data["annotations"][0]["bbox"] = [0.5, 1.5, 10, 4]
    data["annotations"] += [more | {"id": 9, "bbox": [20, 20, 0, 0]}, more | {"id": 10, "bbox": "none"}]
    data["annotations"] += [more | {"id": 11, "num_keypoints": 0}, more | {"id": 12, "iscrowd": 1}]
    with pytest.raises(UserError, match=r"has 3 objects \(1, 9, 10\)"):
        write(tmp_path, data)
    found, said = made.objects(tmp_path)
    second = {"nose": (20, 21), "ear": (22.5, 23)}
    assert found == {
        ("im/a.jpg", "1"): ({"nose": (1, 2), "ear": (10.5, 4)}, (0, 1, 10, 5)),
        ("im/a.jpg", "9"): (second, None),
        ("im/a.jpg", "10"): (second, None),
        ("im/b.jpg", ""): ({}, None),
        ("im/c.jpg", ""): ({}, None),
    }
    assert said == [f"{tmp_path}/ann/labels.json: COCO keypoints, 3 points, labels of 5 objects in 3 images"]


def test_an_image_that_is_listed_once_for_each_object(tmp_path):
    data = content(images=[image(7, "a"), image(8, "a")], annotations=[TWO[0], TWO[1] | {"image_id": 8}])
    with pytest.raises(UserError, match=r"image a.jpg has 2 objects"):
        write(tmp_path, data)
    assert list(made.objects(tmp_path)[0]) == [("im/a.jpg", "1"), ("im/a.jpg", "2")]


def test_sizes_from_before_the_photo_was_turned_leave_the_points_open(tmp_path):
    made.photos(tmp_path, {"a.jpg": (30, 40)}, turn=6)  # upright 40 high, 30 wide
    data = content(images=[{"id": 7, "file_name": "a.jpg", "width": 40, "height": 30}])
    data["annotations"] = data["annotations"][:1]
    (tmp_path / "labels.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"image a.jpg: the photo is turned by its EXIF tag"):
        made.read(tmp_path)
    data["images"][0] |= {"width": 30, "height": 40}
    (tmp_path / "labels.json").write_text(json.dumps(data))
    assert made.points(made.read(tmp_path)[0])["a.jpg"]["nose"] == (1, 2)
