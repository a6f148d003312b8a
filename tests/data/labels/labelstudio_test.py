"""Label Studio: percent of the turned photo, addresses of images, predictions."""

import json

import numpy as np
import pytest

from tests.data.labels import made
from uld_jax.data import labels
from uld_jax.errors import UserError


def result(label, x, y, **changed):
    value = {"x": x, "y": y, "width": 0.4, "keypointlabels": [label]}
    out = {"id": label, "type": "keypointlabels", "from_name": "k", "to_name": "i", "image_rotation": 0, "value": value}
    return out | {"original_width": 30, "original_height": 40} | changed


def task(image, *results, **changed):
    return {"id": 5, "data": {"image": image}, "annotations": [{"id": 1, "result": list(results)}]} | changed


def write(folder, *tasks):
    (folder / "project.json").write_text(json.dumps(list(tasks)))
    return made.read(folder)


@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/3/0123abcd-a%20b.jpg",
        "/data/local-files/?d=im/a%20b.jpg",
        "s3://bucket/im/a%20b.jpg",
        "https://server.org/x/y/a%20b.jpg?token=1",
        "im/a b.jpg",
    ],
)
def test_points_by_every_address(tmp_path, address):
    made.photos(tmp_path, {"im/a b.jpg": (30, 40)}, turn=8)  # upright 40 high, 30 wide
    box = {"type": "rectanglelabels", "value": {}}
    found, said = write(tmp_path, task(address, result("nose", 0, 0), result("ear", 100, 50), box))
    assert made.points(found) == {"im/a b.jpg": {"ear": (29.5, 19.5), "nose": (-0.5, -0.5)}}
    assert said == [f"{tmp_path}/project.json: Label Studio, 2 points, labels of 1 image"]


def test_tasks_that_were_cancelled_or_have_no_points(tmp_path):
    made.photos(tmp_path, {"a.jpg": (40, 30), "b.jpg": (40, 30)})
    some = [{"result": [result("n", 5, 5)], "was_cancelled": True}, {"result": [result("n", 50, 50)]}, {"result": []}]
    found, _ = write(tmp_path, task("a.jpg", annotations=some), task("b.jpg"))
    assert made.points(found) == {"a.jpg": {"n": (14.5, 19.5)}, "b.jpg": {}}


def test_regions_are_objects_and_their_rectangles_boxes(tmp_path):
    made.photos(tmp_path, {"a.jpg": (40, 30)})
    box = {"x": 10, "y": 20, "width": 50, "height": 25, "rotation": 0, "rectanglelabels": ["cat"]}
    some = [
        {"id": "A", "type": "rectanglelabels", "value": box},
        {"id": "B", "type": "rectanglelabels", "value": box | {"rotation": 30}},
        {"id": "D", "type": "rectanglelabels", "value": box},
        result("n", 0, 0, parentID="A"),
        result("n", 50, 50, parentID="B"),
        result("m", 100, 100, parentID="A"),
        result("m", 10, 10, parentID="C"),
    ]
    with pytest.raises(UserError, match=rf"task 5 \(a.jpg\) has 3 objects \(cat_0, cat_1, 2\), and {made.COMMAND}"):
        write(tmp_path, task("a.jpg", *some))
    assert made.objects(tmp_path)[0] == {
        ("a.jpg", "cat_0"): ({"n": (-0.5, -0.5), "m": (29.5, 39.5)}, (2.5, 7.5, 17.5, 17.5)),
        ("a.jpg", "cat_1"): ({"n": (14.5, 19.5)}, None),
        ("a.jpg", "2"): ({"m": (2.5, 3.5)}, None),
    }


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (
            task("a.jpg", result("n", 1, 1), result("n", 2, 2)),
            r"task 5 \(a.jpg\) has the point n twice in one object; .* onto its region",
        ),
        (
            task("a.jpg", result("n", 1, 1, parentID="A"), result("n", 2, 2, parentID="B"), result("m", 3, 3)),
            r"task 5 \(a.jpg\) has 2 objects, and the point m belongs to none; drag it",
        ),
        (task("a.jpg", annotations=[{"result": [result("n", 1, 1)]}] * 2), "has 2 annotations with points"),
        (task("a.jpg", result("n", 1, 1, image_rotation=90)), "was turned in Label Studio"),
        (task("a.jpg", result("n", 1, 1, original_width=31)), "labels are for 31 x 40 pixels"),
        (task("a.jpg", result("n", 1, 1, original_width=None)), "has no original_width"),
        (task("a.jpg", result("n", 1, 1, value={"x": 1, "y": 1})), "a point without a label"),
        (task("a.jpg", result("n", 1, "?")), r"n: '\?' is not a number"),
        (task(None, result("n", 1, 1)), "task 5: `image` of `data` is 'None'"),
        ({"annotation_id": 1, "image": "a.jpg"}, "is an export of Label Studio as JSON-MIN"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, one, message):
    made.photos(tmp_path, {"a.jpg": (40, 30)})
    with pytest.raises(UserError, match=message) as error:
        write(tmp_path, one)
    assert "project.json" in str(error.value)


def test_what_is_written_has_the_form_that_label_studio_imports(tmp_path):
    found = made.predictions(0, files=("sub/ä b.jpg",))
    labels.FORMATS["labelstudio"].write(tmp_path / "landmarks.json", found)
    (one,) = json.loads((tmp_path / "landmarks.json").read_text())
    assert one["data"] == {"image": "/data/local-files/?d=sub/%C3%A4%20b.jpg"}
    (made_by,) = one["predictions"]
    first = made_by["result"][0]
    k = list(found.names).index(first["value"]["keypointlabels"][0])
    assert (first["original_width"], first["original_height"]) == (60, 40)
    np.testing.assert_allclose(first["value"]["x"], (found.xy[0, k, 0] + 0.5) / 60 * 100, atol=1e-5)
    assert {r["value"]["keypointlabels"][0] for r in made_by["result"]} == {
        name for name, score in zip(found.names, found.score[0], strict=True) if score > 0
    }
