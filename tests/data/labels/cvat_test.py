"""CVAT for images: corner origin, outside, occluded, skeletons."""

import pytest

from tests.data.labels import made
from uld_jax.data import labels
from uld_jax.errors import UserError

IMAGE = '<image id="0" name="a.png" width="40" height="30">{}</image>'
POINT = '<points label="{}" source="manual" {} points="{}" z_order="0"/>'


SKELETON = '<skeleton label="s" z_order="0">{}</skeleton>'
BOX = '<box label="cat" occluded="0" xtl="{}" ytl="{}" xbr="{}" ybr="{}" {}/>'


def write(folder, *images):
    made.photos(folder, {"a.png": (30, 40), "b.png": (30, 40)})
    (folder / "annotations.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task/></meta>'
        f"{''.join(images)}</annotations>"
    )
    return made.read(folder)[0]


def test_points_and_skeletons(tmp_path):
    first = IMAGE.format(
        POINT.format("p10", 'occluded="1"', "0.5,0.5") + POINT.format("p9", "", "40.00,30.00") + "<box label='b'/>"
    )
    joints = POINT.format("p9", 'outside="0" occluded="0"', "3.25,4") + POINT.format("p10", 'outside="1"', "9,9")
    second = (
        IMAGE.replace("a.png", "b.png")
        .replace(' id="0"', ' subset="Test"')
        .format(f'<skeleton label="s" z_order="0">{joints}{POINT.format("p11", "", "")}</skeleton>')
    )
    found = write(tmp_path, first, second)
    assert made.points(found) == {"a.png": {"p9": (39.5, 29.5), "p10": (0, 0)}, "b.png": {"p9": (2.75, 3.5)}}
    assert found.landmark_names == ("p9", "p10")
    assert found.visible.tolist() == [[True, False], [True, False]]
    assert found.splits == ["train", "test"]


def test_points_of_one_shape_are_numbered(tmp_path):
    found = write(tmp_path, IMAGE.format(POINT.format("face", "", "1.5,2.5;3.5,4.5")))
    assert made.points(found)["a.png"] == {"face_0": (1, 2), "face_1": (3, 4)}


def test_several_objects_an_image(tmp_path):
    one, two = ('group_id="1"', 'group_id="2" occluded="1"')
    points = [POINT.format("p", one, "3,4"), POINT.format("q", one, "5,6"), POINT.format("p", two, "20,21")]
    boxes = BOX.format(1, 2, 9.5, 10, one) + BOX.format(0, 0, 40, 30, "")
    second = 2 * SKELETON.format(POINT.format("p", "", "7.5,8.5"))
    write_both = (IMAGE.format("".join(points) + boxes), IMAGE.replace("a.", "b.").format(second))
    with pytest.raises(
        UserError, match=rf"image a.png has 2 objects \(1, 2\) \(2 images have several\), and {made.COMMAND}"
    ):
        write(tmp_path, *write_both)
    assert made.objects(tmp_path)[0] == {
        ("a.png", "1"): ({"p": (2.5, 3.5), "q": (4.5, 5.5)}, (0.5, 1.5, 9, 9.5)),
        ("a.png", "2"): ({"p": (19.5, 20.5)}, None),
        ("b.png", "s_0"): ({"p": (7, 8)}, None),
        ("b.png", "s_1"): ({"p": (7, 8)}, None),
    }
    assert labels.read_objects(tmp_path).annotation.visible.tolist() == [
        [True, True],
        [False, False],
        *[[True, False]] * 2,
    ]


def test_points_join_the_skeleton_of_their_group_and_shapes_of_many_points_are_objects(tmp_path):
    joint = POINT.format("p", "", "1.5,1.5")
    grouped = SKELETON.replace("label", 'group_id="4" label').format(joint) + POINT.format(
        "q", 'group_id="4"', "3.5,2.5"
    )
    face = POINT.format("face", 'group_id="0"', "1.5,1.5;3.5,2.5") + POINT.format("face", "", "9.5,1.5;8.5,2.5")
    images = IMAGE.format(grouped + SKELETON.format(joint)), IMAGE.replace("a.", "b.").format(face)
    with pytest.raises(UserError, match="2 images have several"):
        write(tmp_path, *images)
    assert made.objects(tmp_path)[0] == {
        ("a.png", "s_0"): ({"p": (1, 1), "q": (3, 2)}, None),
        ("a.png", "s_1"): ({"p": (1, 1)}, None),
        ("b.png", "face_0"): ({"face_0": (1, 1), "face_1": (3, 2)}, None),
        ("b.png", "face_1"): ({"face_0": (9, 1), "face_1": (8, 2)}, None),
    }


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            (IMAGE.format(2 * POINT.format("p", "", "1,1")),),
            "image a.png has the point p twice in one object; remove one, or for two objects group",
        ),
        (
            (IMAGE.format(2 * SKELETON.format(POINT.format("p", "", "1,1"))),),
            rf"image a.png has 2 objects \(s_0, s_1\), and {made.COMMAND}",
        ),
        (
            (IMAGE.format(POINT.format("q", "", "1,1") + 2 * SKELETON.format(POINT.format("p", "", "1,1"))),),
            "image a.png has 2 objects, and the point q belongs to none; group it",
        ),
        (("<track/>",), "holds tracks of a video"),
        ((IMAGE.format(POINT.format("p", "", "1,x")),), "image a.png, p: 'x' is not a number"),
        ((IMAGE.format(POINT.format("p", "", "1")),), "'1' is not `x,y`"),
        ((IMAGE.replace("40", "44").format(POINT.format("p", "", "1,1")),), "labels are for 44 x 30 pixels"),
        ((IMAGE.replace("a.", "c.").format(POINT.format("p", "", "1,1")), "<image"), "is not valid XML"),
        (
            (
                IMAGE.format(POINT.format("p", "", "1,1;2,2")),
                IMAGE.replace("a.", "b.").format(POINT.format("p", "", "1,1")),
            ),
            "shape p has 1 points, but 2 in a.png",
        ),
    ],
)
def test_what_is_wrong_is_told(tmp_path, images, message):
    with pytest.raises(UserError, match=message) as error:
        write(tmp_path, *images)
    assert "annotations.xml" in str(error.value)


def test_entities_are_not_expanded(tmp_path):
    made.photos(tmp_path, {"a.png": (30, 40)})
    bomb = '<!DOCTYPE annotations [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotations>&b;</annotations>'
    (tmp_path / "a.xml").write_text(f'<?xml version="1.0"?>{bomb}')
    with pytest.raises(UserError, match=r"a.xml is not valid XML \(it has a document type"):
        made.read(tmp_path)
    (tmp_path / "a.xml").write_text('<?xml version="1.0" encoding="nothing"?><annotations/>')
    with pytest.raises(UserError, match=r"a.xml is not valid XML \(unknown encoding: nothing\)"):
        made.read(tmp_path)
    (tmp_path / "a.xml").write_text('<!DOCTYPE svg><svg xmlns="http://www.w3.org/2000/svg"/>')
    assert made.read(tmp_path)[0] is None
