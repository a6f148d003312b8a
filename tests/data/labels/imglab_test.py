"""dlib's imglab: order by text, absent parts, photos as they are stored."""

import numpy as np
import pytest
from PIL import Image

from tests.data.labels import made
from uld_jax.data import decode
from uld_jax.errors import UserError

HEAD = (
    "<?xml version='1.0' encoding='ISO-8859-1'?>\n<?xml-stylesheet type='text/xsl' href='a.xsl'?>\n"
    "<dataset>\n<images>\n"
)
TAIL = "</images>\n</dataset>\n"
IMAGE = "<image file='{}' width='40' height='30'>{}</image>"
BOX = "<box top='1' left='2' width='9' height='9'{}>{}</box>"
PART = "<part name='{}' x='{}' y='{}'/>"


def write(folder, body):
    (folder / "faces.xml").write_bytes((HEAD + body + TAIL).encode("latin-1"))
    return made.read(folder)[0]


def test_parts(tmp_path):
    made.photos(tmp_path, {"é.png": (30, 40), "b.png": (30, 40)})
    first = BOX.format("", PART.format("10", 3, 4) + PART.format("9", 0, 0)) + BOX.format(" ignore='1'", "")
    body = IMAGE.format("é.png", first) + IMAGE.format("b.png", BOX.format("", PART.format("1", 39, 29)))
    found = write(tmp_path, body)
    assert found.landmark_names == ("1", "10", "9")  # as text
    assert made.points(found) == {"é.png": {"10": (3, 4), "9": (0, 0)}, "b.png": {"1": (39, 29)}}


def test_a_list_of_boxes_beside_that_of_parts(tmp_path):
    made.photos(tmp_path, {"a.png": (30, 40)})
    (tmp_path / "boxes.xml").write_text(HEAD + IMAGE.format("a.png", 2 * BOX.format("", "")) + TAIL)
    assert made.read(tmp_path)[0] is None
    found = write(tmp_path, IMAGE.format("a.png", BOX.format("", PART.format("p", 3, 4))))
    assert made.points(found) == {"a.png": {"p": (3, 4)}}
    assert found.sources == {"faces.xml"}


def test_boxes_are_objects(tmp_path):
    made.photos(tmp_path, {"a.png": (30, 40)})
    first, second = (
        BOX.format("", PART.format("p", 3, 4)),
        BOX.format("", "<label>cat</label>" + PART.format("p", 5, 6)),
    )
    with pytest.raises(UserError, match=r"has 3 objects \(0, cat, 2\)"):
        write(tmp_path, IMAGE.format("a.png", first + second + BOX.format("", "").replace("9", "4")))
    assert made.objects(tmp_path)[0] == {
        ("a.png", "0"): ({"p": (3, 4)}, (1.5, 0.5, 10.5, 9.5)),
        ("a.png", "cat"): ({"p": (5, 6)}, (1.5, 0.5, 10.5, 9.5)),
        ("a.png", "2"): ({}, (1.5, 0.5, 5.5, 4.5)),
    }


@pytest.mark.parametrize("turn", range(1, 9))
def test_points_of_stored_pixels_are_turned_with_the_photo(tmp_path, turn):
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[4, 3] = 255
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found = write(tmp_path, IMAGE.format("a.png", BOX.format("", PART.format("p", 3, 4))))
    x, y = made.points(found)["a.png"]["p"]
    shown = decode.decode_picture(tmp_path / "a.png")
    assert np.argwhere(shown[..., 0] == 255).tolist() == [[y, x]]
    (_, box), *_ = made.objects(tmp_path)[0].values()
    stored = np.zeros((30, 40), bool)
    stored[1:10, 2:11] = True
    y, x = np.argwhere(decode.turn_upright(stored, turn)).T
    assert box == (x.min() - 0.5, y.min() - 0.5, x.max() + 0.5, y.max() + 0.5)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            BOX.format("", "") + BOX.format("", PART.format("p", 1, 1)),
            rf"image a.png has 2 objects \(0, 1\), and {made.COMMAND}",
        ),
        (BOX.format("", 2 * PART.format("p", 1, 1)), "has the point p twice"),
        (BOX.format("", "<part name='p' x='1'/>"), "part p: 'None' is not a number"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, body, message):
    made.photos(tmp_path, {"a.png": (30, 40)})
    with pytest.raises(UserError, match=message):
        write(tmp_path, IMAGE.format("a.png", body))
