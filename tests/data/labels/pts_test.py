"""300-W pts: three layouts, 1-based, what only looks like it."""

import pytest

from tests.data.labels import made
from uld_jax.errors import UserError

LINES = "1.000000 2.500000\n30.25 1\n3 4"


@pytest.mark.parametrize(
    "text",
    [
        f"version: 1\nn_points:  3\n{{\n{LINES}\n}}\n",
        f"version: 1\nn_points: 3\n{{\n{LINES}\n}}",
        f"version: 1\r\nn_points: 3\r\n{{\r\n{LINES}\r\n}}\r\n".replace("5\n", "5\r\n"),
        LINES,
        LINES.replace("\n", " "),
    ],
)
def test_points(tmp_path, text):
    made.photos(tmp_path, {"ibug/image_092 _01.jpg": (30, 40)})
    (tmp_path / "ibug/image_092 _01.pts").write_bytes(text.encode())
    found, _ = made.read(tmp_path)
    assert made.points(found) == {"ibug/image_092 _01.jpg": {"0": (0, 1.5), "1": (29.25, 0), "2": (2, 3)}}
    assert found.landmark_names == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\nn_points: 4\n{\n1 2\n}\n", "a.pts holds 2 numbers, and n_points is 4"),
        ("version: 1\nn_points: 1\n{\n-1 -1\n}\n", "a.pts holds negative numbers"),
        ("version: 1\nn_points: 1\n{\n1 nan\n}\n", "a.pts: 'nan' is not a number"),
        ("version: 1\nn_points: 1\n1 2\n", "a.pts has not the form"),
        ("1 2 3", "a.pts holds 3 numbers"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, text, message):
    made.photos(tmp_path, {"a.jpg": (30, 40)})
    (tmp_path / "a.pts").write_text(text)
    with pytest.raises(UserError, match=message):
        made.read(tmp_path)


def test_files_without_one_picture_of_their_name(tmp_path):
    made.photos(tmp_path, {"b.jpg": (30, 40)})
    (tmp_path / "a.pts").write_text(LINES)
    with pytest.raises(UserError, match=r"a.pts: there is no picture of this name"):
        made.read(tmp_path)
    made.photos(tmp_path, {"a.jpg": (30, 40), "a.png": (30, 40)})
    with pytest.raises(UserError, match=r"a.pts: there are a.jpg and a.png of this name"):
        made.read(tmp_path)
    (tmp_path / "a.pts").rename(tmp_path / "a.txt")  # numbers alone are labels by the name only
    assert made.read(tmp_path)[0] is None
