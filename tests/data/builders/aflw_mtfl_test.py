"""MTFL and AFLW_M from a miniature of the official folders."""

import numpy as np
import pytest

from tests.data.builders import miniature
from uld_jax.errors import UserError

FIVE = np.array([[50.5, 60.25], [98, 61], [75, 80], [55, 110], [96, 111.5]])  # counted from 1
TRAIN = {r"lfw_5590\Aaron_Eckhart_0001.jpg": (250, 250), r"net_7876\0000_image.jpg": (216, 160)}
TEST = {"AFLW/0001-image00026.jpg": (150, 150), "AFLW/0002-image00027.jpg": (150, 150), "AFLW/0004-x.jpg": (150, 150)}
CROPS = {"cropped/39341.jpg": 1, "cropped/39342_b.jpg": 1, "cropped/39350.jpg": 2, "cropped/39351.jpg": 0}


def points_of(row):
    return FIVE + row


def lines(names):
    """Lines as MTFL has them: CRLF, a blank before all but the first, and one blank at the end of the file."""
    rows = []
    for row, name in enumerate(names):
        xy = points_of(row)
        numbers = [f"{v:.6f}" for v in (*xy[:, 0], *xy[:, 1])]
        rows.append(" ".join([name, *numbers, "1", "2", "2", str(1 + row)]))
    return "\r\n ".join(rows) + "\r\n "


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    root = tmp_path_factory.mktemp("aflw-mtfl")
    for name, size in (TRAIN | TEST).items():
        grey = name == "AFLW/0002-image00027.jpg"
        miniature.picture(root / "MTFL" / name.replace("\\", "/"), size, grey=grey)
    (root / "MTFL/training.txt").write_bytes(lines(TRAIN).encode())
    (root / "MTFL/testing.txt").write_bytes(lines(TEST).encode())
    header = ["image_file", "face_id", "crop_file", "set", *(f"{a}{i}" for i in range(5) for a in "xy"), "sex"]
    rows = [",".join(header)]
    for row, (name, which) in enumerate(CROPS.items()):
        miniature.picture(root / "aflw_cropped" / name, (150, 150))
        numbers = ["NaN"] * 10 if which == 0 else [f"{v:g}" for v in points_of(row).ravel()]
        rows.append(",".join([f"image{row:05d}.jpg", "39341", name, str(which), *numbers, "m"]))
    (root / "aflw_cropped/facedata_cropped.csv").write_text("\n".join(rows) + "\n")
    return root


def test_aflw_m_trains_on_crops_of_thewlis_and_tests_on_mtfl(src, tmp_path):
    found = miniature.prepare("aflw_m", src, tmp_path)
    train, test = found["train"], found["test"]
    assert sorted(train.names) == ["cropped/39341.jpg", "cropped/39342_b.jpg"]
    assert sorted(test.names) == sorted(TEST)
    assert train.spec.protocol == "aflw_m_5_eyes_part"
    for source, names in ((train, list(CROPS)), (test, list(TEST))):
        for name, xy in miniature.points(source).items():
            np.testing.assert_allclose(xy, points_of(names.index(name)) - 1, atol=1e-4)
    assert train.columns["pose"] == ["", ""]
    assert [test.columns["pose"][test.names.index(name)] for name in TEST] == ["1", "2", "3"]
    row = test.names.index("AFLW/0001-image00026.jpg")
    assert test.encoded(row) == (src / "MTFL/AFLW/0001-image00026.jpg").read_bytes()
    grey = test.image(test.names.index("AFLW/0002-image00027.jpg"))
    assert (grey[..., 0] == grey[..., 1]).all()


def test_mtfl_has_its_own_parts(src, tmp_path):
    found = miniature.prepare("mtfl", src, tmp_path)
    assert sorted(found["train"].names) == sorted(name.replace("\\", "/") for name in TRAIN)
    assert {name: sorted(values) for name, values in found["train"].columns.items()} == {
        "gender": ["1", "1"],
        "smile": ["2", "2"],
        "glasses": ["2", "2"],
        "pose": ["1", "2"],
    }
    points = miniature.points(found["train"])["net_7876/0000_image.jpg"]
    np.testing.assert_allclose(points, points_of(1) - 1, atol=1e-4)
    (tmp_path / "alone").symlink_to(src / "MTFL")  # MTFL's files in SRC itself
    alone, notes = miniature.opened("mtfl", tmp_path / "alone")
    assert len(alone["test"]) == 3
    assert len(notes) == 4


def test_wrong_counts_name_the_list(src):
    with pytest.raises(UserError, match=r"facedata_cropped.csv has 2 images with set = 1 where the official .* 10,122"):
        miniature.opened("aflw_m", src, partial=False)
    with pytest.raises(UserError, match=r"training.txt has 2 images where the official file has 10,000"):
        miniature.opened("mtfl", src, partial=False)


@pytest.mark.parametrize(
    ("file", "change", "error"),
    [
        ("MTFL/testing.txt", lambda t: t.replace(" 2 2 3", " 2 2"), r"testing.txt, line 3 has 14 cells where 15 are"),
        ("MTFL/testing.txt", lambda t: t.replace("2 2 3", "2 2 6"), r"line 3: the pose '6' is none of 1 to 5; get"),
        ("MTFL/testing.txt", lambda t: t.replace("50.500000", "50.5.0", 1), r"line 1: '50.5.0' is no number"),
        ("MTFL/testing.txt", None, r"holds no list testing.txt of MTFL; put it there as one of MTFL/testing.txt, "),
        ("aflw_cropped/facedata_cropped.csv", lambda t: t.replace("set", "part", 1), r"csv has no column set; get"),
        ("aflw_cropped/facedata_cropped.csv", lambda t: t.replace("50.5,", "a,"), r"line 2: 'a' is no number"),
        (
            "aflw_cropped/facedata_cropped.csv",
            lambda t: t.replace(",m\n", "\n", 1),
            r"line 2 has 14 cells and the first",
        ),
        ("aflw_cropped/facedata_cropped.csv", lambda t: t.replace(",1,5", ",one,5"), r"line 2: 'one' is no number"),
        ("aflw_cropped/facedata_cropped.csv", None, r"no facedata_cropped.csv of aflw_cropped; put it there as one of"),
    ],
)
def test_bad_lists_are_told(src, tmp_path, file, change, error):
    for folder in src.iterdir():
        (tmp_path / folder.name).mkdir()
        for path in folder.iterdir():
            if f"{folder.name}/{path.name}" != file:
                (tmp_path / folder.name / path.name).symlink_to(path)
    if change is not None:
        (tmp_path / file).write_bytes(change((src / file).read_bytes().decode()).encode())
    with pytest.raises(UserError, match=error):
        miniature.opened("aflw_m", tmp_path)


def test_absent_images_are_left_out_of_a_part(src, tmp_path):
    (tmp_path / "lfw_5590").symlink_to(src / "MTFL/lfw_5590")
    (tmp_path / "training.txt").write_bytes((src / "MTFL/training.txt").read_bytes())
    (tmp_path / "testing.txt").write_bytes((src / "MTFL/testing.txt").read_bytes())
    (tmp_path / "AFLW").symlink_to(src / "MTFL/AFLW")
    train = miniature.opened("mtfl", tmp_path)[0]["train"]
    assert train.names == ["lfw_5590/Aaron_Eckhart_0001.jpg"]
    assert [one.file for one in train.skipped] == ["net_7876/0000_image.jpg"]
