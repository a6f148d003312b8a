"""300-W from a miniature of the official folder, with all layouts of `.pts`."""

import numpy as np
import pytest
from scipy.io import savemat

from tests.data.builders import miniature
from uld_jax import data
from uld_jax.data.builders import w300
from uld_jax.errors import UserError

SIZE = (240, 320)
NAMES = {
    "afw": ["134212_1.jpg", "134212_2.jpg"],
    "helen/trainset": ["100032540_1.jpg"],
    "lfpw/trainset": ["image_0001.png"],
    "helen/testset": ["30427236_2.jpg"],
    "lfpw/testset": ["image_0001.png"],
    "ibug": ["image_003_1.jpg", "image_092 _01.jpg"],
    "01_Indoor": ["indoor_001.png"],
    "02_Outdoor": ["outdoor_001.png"],
}
BOXES = [f for f in NAMES if f[0] != "0"]


def points_of(file):
    """Points from 1, with three decimals; the first is the least that there is."""
    points = np.random.default_rng(sum(file.encode())).uniform(60, 200, (68, 2)).round(3)
    points[0] = 1
    return points


def text_of(file):
    """The three layouts: two blanks and no final newline; one blank and three decimals; bare numbers."""
    points = points_of(file)
    lines = "\n".join(f"{x:.6f} {y:.6f}" for x, y in points)
    if file.startswith("0"):
        return "version: 1\nn_points: 68\n{\n" + "\n".join(f"{x:.3f} {y:.3f}" for x, y in points) + "\n}\n"
    if file.startswith("helen/trainset"):
        return lines + "\n"
    return "version: 1\nn_points:  68\n{\n" + lines + "\n}"


def box_of(file):
    """A box from 1, 104 pixels wide."""
    return np.array([100.0, 80, 203, 199]) + [len(file) % 3, 0] * 2


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    root = tmp_path_factory.mktemp("300w") / "src"
    (root / "Bounding Boxes").mkdir(parents=True)
    for folder, listed in NAMES.items():
        for name in listed:
            options = {} if name.endswith("jpg") else {"quality": None}
            miniature.picture(root / folder / name, SIZE, **options)
            (root / folder / name).with_suffix(".pts").write_text(text_of(f"{folder}/{name}"))
        faces = [*listed, "strange.jpg"] if folder == "ibug" else listed  # ibug's list has more faces than photos
        cells = np.empty((1, len(faces)), object)
        for i, name in enumerate(faces):
            cells[0, i] = {"imgName": name, "bb_detector": np.ones((1, 4)), "bb_ground_truth": box_of(name)[None]}
        if folder in BOXES:
            savemat(root / f"Bounding Boxes/bounding_boxes_{folder.replace('/', '_')}.mat", {"bounding_boxes": cells})
    return root


def files_of(split):
    return [f"{folder}/{name}" for folder in w300.FOLDERS[split] for name in NAMES[folder]]


def test_photos_come_back_as_they_are(src, tmp_path):
    found = miniature.prepare("w300", src, tmp_path)
    assert {split: sorted(s.names) for split, s in found.items()} == {
        split: sorted(files_of(split)) for split in ("train", "test", "private")
    }
    for source in found.values():
        assert source.spec.protocol == "w300_68_eyes_part"
        for row, file in enumerate(source.names):
            np.testing.assert_allclose(miniature.points(source)[file], points_of(file) - 1, atol=1e-3)
            assert source.encoded(row) == (src / file).read_bytes()
    subsets = {file: s for f in found.values() for file, s in zip(f.names, f.columns["subset"], strict=True)}
    assert subsets["ibug/image_092 _01.jpg"] == "challenging"
    assert subsets["lfpw/testset/image_0001.png"] == "common"
    assert subsets["lfpw/trainset/image_0001.png"] == "train"
    assert subsets["02_Outdoor/outdoor_001.png"] == "outdoor"


def test_dve_sees_the_face_alone(src, tmp_path):
    found = miniature.prepare("w300_dve", src, tmp_path)
    assert {split: sorted(s.names) for split, s in found.items()} == {
        split: sorted(files_of(split)) for split in ("train", "test")
    }
    for source in found.values():
        assert source.file_sizes.tolist() == [[100, 100]] * len(source)
        for row, file in enumerate(source.names):
            x0, y0, x1, y1 = box_of(file.split("/")[-1])
            # The box is 104 pixels wide, so the photo is halved. The centre of the box, from 1, is at
            # ((x0 + 52.5) / 2, (y0 + 60.5) / 2), rounded down; 50 pixels before it begins the crop, and 2 higher.
            low = np.array([(x0 + 52.5) // 2 - 50, (y0 + 60.5) // 2 - 52])
            want = (points_of(file) - 1 + 0.5) / 2 - low - 0.5
            points = miniature.points(source)[file]
            np.testing.assert_allclose(points, want, atol=1e-3)
            published = points_of(file) / 2 - low - 1  # of the published code
            assert np.abs(points - published).max() <= 0.5
            np.testing.assert_allclose(
                [float(source.columns[f"box_{c}"][row]) for c in ("x0", "y0", "x1", "y1")],
                (np.array([x0, y0, x1, y1]) - 0.5) / 2 - np.tile(low, 2) - 0.5,
                atol=1e-3,
            )
            pixels = data.decode_image(source.encoded(row), 100)[0]
            inside = ((want >= 1) & (want <= 98)).all(-1)
            at = np.round(want[inside]).astype(int)
            shown = miniature.place_of(pixels[at[:, 1], at[:, 0]] + 0.5, SIZE)
            np.testing.assert_allclose(shown, points_of(file)[inside] - 1, atol=5)
            assert np.abs((shown - (points_of(file)[inside] - 1)).mean(0)).max() < 0.8
            if low[1] < 0:
                assert pixels[: int(-low[1]) - 1].max() < 30  # black above the photo


def test_the_official_photos_of_the_challenge_may_be_absent(src, tmp_path):
    for folder in ("afw", "helen", "lfpw", "ibug"):
        (tmp_path / "300w" / folder).parent.mkdir(exist_ok=True)
        (tmp_path / "300w" / folder).symlink_to(src / folder)
    sources, notes = miniature.opened("w300", tmp_path)
    assert list(sources) == ["train", "test"]
    assert sources["train"].names == files_of("train")
    assert "private" not in "\n".join(notes)
    with pytest.raises(UserError, match=r"holds no boxes of the faces in afw, bounding_boxes_afw.mat of 300-W; put"):
        miniature.opened("w300_dve", tmp_path)


def test_counts():
    assert {s: sum(n for n, _ in f.values()) for s, f in w300.FOLDERS.items()} == {
        "train": 3_148,
        "test": 689,
        "private": 600,
    }
    assert sum(n for n, subset in w300.FOLDERS["test"].values() if subset == "common") == 554


def test_wrong_counts_and_absent_folders(src, tmp_path):
    with pytest.raises(UserError, match=r"afw has 2 images where the official file has 337; .*--allow_partial"):
        miniature.opened("w300", src, partial=False)
    (tmp_path / "afw").symlink_to(src / "afw")
    (tmp_path / "ibug").symlink_to(src / "ibug")
    _, notes = miniature.opened("w300", tmp_path)
    assert f"{tmp_path}/helen/trainset has 0 images where the official file has 2,000" in notes
    (tmp_path / "afw").unlink()
    with pytest.raises(
        UserError, match=r"holds no folder afw of 300-W; put it there as one of afw, 300W/afw, 300w/afw"
    ):
        miniature.opened("w300", tmp_path, partial=False)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("w300", "version: 1\nn_points: 68\n{\n1 2\n}", r"ibug/image_003_1.pts holds 2 numbers, and n_points is 68"),
        ("w300", "1 2\n3 4\n", r"ibug/image_003_1.pts holds 2 points where 300-W has 68"),
        ("w300", "-1 -1\n" * 68, r"ibug/image_003_1.pts holds negative numbers, which 300-W does not have"),
        ("w300", "1 2\n3 x\n", r"ibug/image_003_1.pts: 'x' is not a number"),
        ("w300", "9000 9000\n" * 68, r"ibug/image_003_1.pts: point 0 at \(8999, 8999\) lies far outside its image"),
    ],
)
def test_bad_points_are_told(src, tmp_path, name, content, error):
    (tmp_path / "ibug").mkdir()
    for path in (src / "ibug").iterdir():
        (tmp_path / "ibug" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "ibug/image_003_1.pts").write_text(content)
    with pytest.raises(UserError, match=error):
        miniature.opened(name, tmp_path)


def test_names_that_differ_by_a_blank_and_absent_photos(src, tmp_path):
    (tmp_path / "ibug").mkdir()
    for path in (src / "ibug").iterdir():
        name = "image_092_01.pts" if path.name == "image_092 _01.pts" else path.name
        (tmp_path / "ibug" / name).write_bytes(path.read_bytes())
    assert miniature.opened("w300", tmp_path)[0]["test"].names == ["ibug/image_003_1.jpg", "ibug/image_092 _01.jpg"]
    (tmp_path / "ibug/image_003_1.jpg").unlink()
    sources, _ = miniature.opened("w300", tmp_path)
    assert sources["test"].names == ["ibug/image_092 _01.jpg"]
    assert sources["test"].skipped[0].file == "ibug/image_003_1.jpg"


@pytest.mark.parametrize(
    ("cells", "error"),
    [
        ([], r"ibug/image_003_1.pts: bounding_boxes_ibug.mat holds no box of it"),
        ([{"imgName": "image_003_1.jpg"}], r"bounding_boxes_ibug.mat: a face has no imgName and bb_ground_truth"),
        (
            [{"imgName": "image_003_1.jpg", "bb_ground_truth": np.array([[9.0, 9, 9, 20]])}],
            r"bounding_boxes_ibug.mat, image_003_1.jpg: bb_ground_truth is no box",
        ),
        (None, r"bounding_boxes_ibug.mat cannot be read as a MATLAB file"),
    ],
)
def test_bad_boxes_are_told(src, tmp_path, cells, error):
    (tmp_path / "ibug").symlink_to(src / "ibug")
    path = tmp_path / "Bounding Boxes/bounding_boxes_ibug.mat"
    path.parent.mkdir()
    if cells is None:
        path.write_text("<html>")
    else:
        array = np.empty((1, len(cells)), object)
        array[0] = cells
        savemat(path, {"bounding_boxes": array})
    with pytest.raises(UserError, match=error):
        miniature.opened("w300_dve", tmp_path)
