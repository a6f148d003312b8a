"""menpo's ljson of versions 1 to 3: (y, x), missing points."""

import json

import pytest

from tests.data.labels import made
from uld_jax.errors import UserError

POINTS = [[2, 1], [None, None], [4.5, 30.25]]
WANTED = {"0": (1, 2), "2": (30.25, 4.5)}
GROUP = {"landmarks": {"points": POINTS, "connectivity": [[0, 1]]}, "labels": [{"label": "all", "mask": [0, 1, 2]}]}


@pytest.mark.parametrize(
    "content",
    [
        {"version": 3, "groups": {"LJSON": GROUP}},
        {"version": 3, "groups": {"pupils": {"landmarks": {"points": [[0, 0]]}, "labels": []}, "LJSON": GROUP}},
        {"version": 3, "groups": {"face": {"landmarks": {"points": POINTS}, "labels": []}}},
        {"version": 2, **GROUP},
        {
            "version": 1,
            "groups": [
                {"label": "a", "landmarks": [{"point": POINTS[0]}, {"point": POINTS[1]}]},
                {"label": "b", "landmarks": [{"point": POINTS[2]}], "connectivity": []},
            ],
        },
    ],
)
def test_points(tmp_path, content):
    made.photos(tmp_path, {"a b.1.jpg": (30, 40)})
    (tmp_path / "a b.1.ljson").write_text(json.dumps(content))
    found, said = made.read(tmp_path)
    assert made.points(found) == {"a b.1.jpg": WANTED}
    assert found.landmark_names == ()
    assert any("LJSON is read" in one for one in said) == (
        len(content["groups"]) == 2 and content["version"] == 3 if "groups" in content else False
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"version": 3, "groups": {"a": GROUP, "b": GROUP}}, "has the groups a, b; keep one"),
        ({"version": 3, "groups": {}}, "has no groups"),
        ({"version": 2, "landmarks": {"points": [[1, 2, 3]]}}, r"point 0 is not \[y, x\]"),
        ({"version": 2, "landmarks": {"points": [["a", 2]]}}, "point 0: 'a' is not a number"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, content, message):
    made.photos(tmp_path, {"a.jpg": (30, 40)})
    (tmp_path / "a.ljson").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        made.read(tmp_path)
    assert "a.ljson" in str(error.value)
