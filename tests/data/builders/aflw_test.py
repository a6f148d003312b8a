"""AFLW and its recropped faces from miniatures of the official folders."""

import contextlib
import sqlite3

import numpy as np
import pytest
from scipy.io import savemat

from tests.data.builders import miniature
from uld_jax import data
from uld_jax.data import builders
from uld_jax.data.builders import official
from uld_jax.errors import UserError

# A face of 60 x 80 pixels and one of 90 x 50; eyes, nose and mouth corners as (y, x), from 0.
SIZES = {"0/image00002_39341.jpg": (80, 60), "2/image00007_45000.jpg": (50, 90), "3/image49648_0.jpg": (80, 60)}
FIVE = np.array([[30.0, 20], [31, 42], [44, 30.5], [58, 22], [57, 40]])
LISTS = {  # the first test image is listed twice, with backslashes in one of the lists
    "train": ["0/image00002_39341.jpg", "3/image49648_0.jpg", *["2/image00007_45000.jpg"] * 8],
    "test": ["2\\image00007_45000.jpg", "0\\image00002_39341.jpg", "2\\image00007_45000.jpg"],
}


def points_of(split, row):
    """The points (y, x) of an entry of a list; entries of one name differ."""
    name = LISTS[split][row].replace("\\", "/")
    return FIVE * (0.5 if name.startswith("2") else 1) + row / 8


def write_lists(root, lists=LISTS):
    for split, names in lists.items():
        (root / f"aflw_{split}_images.txt").write_bytes(("\r\n" if split == "test" else "\n").join(names).encode())
        gt = np.stack([points_of(split, row) for row in range(len(LISTS[split]))])
        hw = np.array([SIZES[name.replace("\\", "/")] for name in LISTS[split]], np.uint16)
        savemat(root / f"aflw_{split}_keypoints.mat", {"gt": gt, "hw": hw})


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    root = tmp_path_factory.mktemp("aflw_release-2")
    for name, size in SIZES.items():
        miniature.picture(root / "output" / name, size)
    write_lists(root)
    return root


PHOTOS = {"0/image00002.jpg": (120, 160), "2/image00007.png": (100, 90), "3/image00009.jpg": (60, 60)}
# (face, photo, rectangle, (roll, pitch, yaw) in radians): two faces on one photo, one leaves it; a profile each way
FACES = [
    (39341, "0/image00002.jpg", (40, 30, 40, 40), (0.1, 0.2, 0.5)),
    (39342, "0/image00002.jpg", (-10.5, -6, 30, 30), (0, 0, -1.4)),
    (45000, "2/image00007.png", (20, 20, 41, 40), (-0.1, -0.2, 1.4)),
    (45001, "3/image00009.jpg", (10, 10, 20, 20), None),
    (45002, "3/image00009.jpg", None, (0, 0, 0)),
]
POINTS = {  # of 39341 all, of the second face the right half alone, of the third five
    39341: {feature: (40.5 + feature, 70.25 - feature) for feature in range(1, 22)},
    39342: {feature: (feature, 2.0) for feature in (4, 5, 6, 10, 11, 12, 15, 16, 17, 20, 21)},
    45000: {2: (30.0, 31), 8: (33, 41), 15: (22, 50), 18: (34, 55), 21: (33.5, 60)},
}


def write_database(path, faces=FACES, points=POINTS):
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(
            "CREATE TABLE Faces (face_id INTEGER PRIMARY KEY, file_id TEXT, db_id TEXT);"
            "CREATE TABLE FaceImages (image_id INTEGER, db_id TEXT, file_id TEXT, filepath TEXT, bw, width, height);"
            "CREATE TABLE FaceRect (face_id INTEGER, x REAL, y REAL, w REAL, h REAL, annot_type_id INTEGER);"
            "CREATE TABLE FacePose (face_id INTEGER, roll REAL, pitch REAL, yaw REAL, annot_type_id INTEGER);"
            "CREATE TABLE FeatureCoords (face_id INTEGER, feature_id INTEGER, x REAL, y REAL, annot_type_id INTEGER);"
        )
        for number, photo in enumerate(PHOTOS):
            row = (number, "flickr", photo.rpartition("/")[2], photo, 0, 1, 1)
            db.execute("INSERT INTO FaceImages VALUES (?,?,?,?,?,?,?)", row)
        for face, photo, rectangle, pose in reversed(faces):
            db.execute("INSERT INTO Faces VALUES (?,?,?)", (face, photo.rpartition("/")[2], "flickr"))
            if rectangle is not None:
                db.execute("INSERT INTO FaceRect VALUES (?,?,?,?,?,1)", (face, *rectangle))
            if pose is not None:
                db.execute("INSERT INTO FacePose VALUES (?,?,?,?,1)", (face, *pose))
        for face, found in points.items():
            for feature, xy in reversed(found.items()):
                db.execute("INSERT INTO FeatureCoords VALUES (?,?,?,?,1)", (face, feature, *xy))
        db.execute("INSERT INTO FeatureCoords VALUES (45000, 1, -1, -1, 1)")  # of a point that was deleted
        db.commit()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("aflw")
    for name, size in PHOTOS.items():
        miniature.picture(root / "data/flickr" / name, size)
    write_database(root / "data/aflw.sqlite")
    return root


def test_recropped_faces_come_back_as_they_are(src, tmp_path):
    found = miniature.prepare("aflw_r", src, tmp_path)
    assert {split: len(source) for split, source in found.items()} == {"train": 10, "test": 3}
    test = found["test"]
    assert test.spec.protocol == "aflw_r_5_eyes_part"
    assert sorted(test.names) == [
        "00000_image00007_45000.jpg",
        "00001_image00002_39341.jpg",
        "00002_image00007_45000.jpg",
    ]
    assert not test.columns
    for row, name in enumerate(test.names):
        entry = int(name[:5])
        np.testing.assert_allclose(miniature.points(test)[name], points_of("test", entry)[:, ::-1], atol=1e-4)
        path = LISTS["test"][entry].replace("\\", "/")
        assert test.encoded(row) == (src / "output" / path).read_bytes()


def test_squeezed_faces_show_what_dve_and_imm_show(src, tmp_path):
    source = miniature.prepare("aflw_r_dve", src, tmp_path, frame_size=136)["test"]
    assert source.file_sizes.tolist() == [[136, 136]] * 3
    assert source.frame_maps.tolist() == [[1, 1, 0, 0]] * 3  # the frame of `uld dense` is the stored image
    stretch = dict(zip(source.names, source.columns["crop_stretch"], strict=True))
    assert stretch["00000_image00007_45000.jpg"] == "1.80000"  # 90 / 50
    assert stretch["00001_image00002_39341.jpg"] == "0.75000"  # 60 / 80
    for row, name in enumerate(source.names):
        height, width = SIZES[LISTS["test"][int(name[:5])].replace("\\", "/")]
        xy = points_of("test", int(name[:5]))[:, ::-1]
        want = (xy + 0.5) * (136 / width, 136 / height) - 0.5
        np.testing.assert_allclose(source.landmarks[row], want, atol=1e-4)
        at = np.round(want).astype(int)
        shown = miniature.place_of(source.image(row)[at[:, 1], at[:, 0]], (height, width))
        np.testing.assert_allclose(shown, xy, atol=2.5)  # eight bits and JPEG
    imm, _ = miniature.opened("aflw_r_imm", src)
    assert {split: len(one) for split, one in imm.items()} == {"train": 9, "val": 1, "test": 3}
    assert imm["val"].names == ["00009_image00007_45000.jpg"]
    assert imm["train"].file_sizes.tolist() == [[128, 128]] * 9
    assert len(imm["train"]) + len(imm["val"]) == len(LISTS["train"])
    held_out = builders.find_dataset("aflw_r_imm").counts
    assert (held_out["train"], held_out["val"]) == (10_122 - 1_012, round(0.1 * 10_122))


def test_the_crop_of_cgb_follows_the_points(src):
    source = miniature.opened("aflw_r_cgb", src)[0]["train"]
    # The points of the first face span x from 20 to 42 and y from 30 to 58, so the box grows by int(0.7 * 25) = 17.
    xy = FIVE[:, ::-1]
    want = (xy + 0.5 - (3, 13)) * (128 / 56, 128 / 62) - 0.5
    np.testing.assert_allclose(miniature.points(source)["00000_image00002_39341.jpg"], want, atol=1e-4)
    assert source.file_sizes[0].tolist() == [128, 128]
    tighter = miniature.opened("aflw_r_saic", src)[0]["train"]  # by int(0.16 * 25) = 4
    want = (xy + 0.5 - (16, 26)) * (128 / 30, 128 / 36) - 0.5
    np.testing.assert_allclose(miniature.points(tighter)["00000_image00002_39341.jpg"], want, atol=1e-4)


def test_recropped_faces_have_the_angles_of_the_database_beside_them(src, tmp_path):
    for path in src.iterdir():
        (tmp_path / path.name).symlink_to(path)
    write_database(tmp_path / "aflw.sqlite")
    train = miniature.opened("aflw_r", tmp_path)[0]["train"]
    yaw = [f"{-np.degrees(angle):.3f}" for angle in (0.5, 1.4)]
    assert train.columns["yaw"] == [yaw[0], "", *[yaw[1]] * 8]
    assert train.columns["pitch"][0] == f"{np.degrees(0.2):.3f}"
    assert train.columns["roll"][0] == f"{-np.degrees(0.1):.3f}"


def test_aflw_has_faces_with_their_own_points_and_angles(photos, tmp_path):
    sources, notes = miniature.opened("aflw", photos)
    assert list(sources) == ["train"]  # of three photos none is the fifth
    assert "no photo or no rectangle of 1 faces" in notes[0]
    train = miniature.prepare("aflw", photos, tmp_path, frame_size=50)["train"]
    assert train.spec.protocol == "aflw_21_eyes_part"
    names = ["0/image00002_39341.jpg", "0/image00002_39342.jpg", "2/image00007_45000.jpg", "3/image00009_45001.jpg"]
    assert sorted(train.names) == sorted(names)
    row = {name: train.names.index(name) for name in names}
    size = {name: train.file_sizes[row[name]].tolist() for name in names}
    # 1.5 x 40 = 60; 1.5 x 30 = 45; 1.5 x 41 = 61.5; 1.5 x 20 = 30
    assert size == dict(zip(names, ([60] * 2, [45] * 2, [62] * 2, [30] * 2), strict=True))
    first = {names[0]: (30, 20), names[1]: (-18, -14), names[2]: (9, 9)}  # corners of the squares
    for name, (x, y) in first.items():
        want = np.full((21, 2), np.nan)
        for feature, xy in POINTS[int(name[-9:-4])].items():
            want[feature - 1] = np.array(xy) - (x, y)
        np.testing.assert_allclose(miniature.points(train)[name], want, atol=1e-4)
        np.testing.assert_array_equal(train.visible[row[name]], np.isfinite(want[:, 0]))
    assert np.isnan(miniature.points(train)[names[3]]).all()
    yaw = [train.columns["yaw"][row[name]] for name in names]
    assert yaw == [f"{-np.degrees(0.5):.3f}", f"{np.degrees(1.4):.3f}", f"{-np.degrees(1.4):.3f}", ""]
    boxes = [[train.columns[f"box_{end}"][row[names[0]]] for end in ("x0", "y0", "x1", "y1")]]
    assert boxes == [["10.000", "10.000", "49.000", "49.000"]]  # from 40, 30 on, in the square from 30, 20 on
    # The crop of the second face begins 18 columns and 14 rows before the photo, which is black there.
    pixels = data.decode_image(train.encoded(row[names[1]]), 45)[0]
    assert pixels[:12, :16].max() < 10
    shown = miniature.place_of(pixels[30, 40], (120, 160))
    np.testing.assert_allclose(shown, (40 - 18, 30 - 14), atol=2.5)


def test_every_fifth_photo_is_for_the_test(tmp_path):
    names = [f"{folder}/image{number:05d}.jpg" for folder in (0, 2) for number in range(6)]
    for name in names:
        miniature.picture(tmp_path / "flickr" / name, (20, 20))
    write_database(tmp_path / "aflw.sqlite", [], {})
    with contextlib.closing(sqlite3.connect(tmp_path / "aflw.sqlite")) as db:
        db.execute("DELETE FROM FaceImages")
        db.execute("DELETE FROM FeatureCoords")
        for number, name in enumerate(names):
            db.execute("INSERT INTO FaceImages VALUES (?,'flickr',?,?,0,20,20)", (number, f"file{number}", name))
            for face in (100 + number, 200 - number):
                db.execute("INSERT INTO Faces VALUES (?,?,'flickr')", (face, f"file{number}"))
                db.execute("INSERT INTO FaceRect VALUES (?,2,2,8,8,1)", (face,))
        db.commit()
    sources, notes = miniature.opened("aflw", tmp_path, partial=False)  # no official counts to differ from
    assert not notes
    assert sources["test"].names == [
        f"{name[:-4]}_{face}.jpg" for name, faces in ((names[4], (104, 196)), (names[9], (109, 191))) for face in faces
    ]
    assert len(sources["train"]) == 20


def test_wrong_counts_name_the_list(src):
    with pytest.raises(UserError, match=r"aflw_train_images.txt has 10 images where the official file has 10,122"):
        miniature.opened("aflw_r", src, partial=False)
    _, notes = miniature.opened("aflw_r", src)
    assert len(notes) == 4


@pytest.mark.parametrize(
    ("file", "change", "error"),
    [
        ("aflw_test_images.txt", lambda b: b[:-13], r"line 3: .* holds no output/2/image00; get the images"),
        (
            "aflw_test_images.txt",
            lambda b: b"\n".join(b.split()[:2]),
            r"gt has 3 rows and .*test_images.txt has 2 images",
        ),
        ("aflw_test_keypoints.mat", lambda b: b[:200], r"aflw_test_keypoints.mat cannot be read as a MATLAB file"),
        (
            "aflw_test_keypoints.mat",
            None,
            r"holds no aflw_test_keypoints.mat of the recropped AFLW; put it there as one",
        ),
        (
            "aflw_test_images.txt",
            lambda b: b"\n".join(b.split()[::-1][1:] + b.split()[:1]),
            r"line 1: the image has 60 x 80 pixels where the list of sizes, hw, has 90 x 50",
        ),
    ],
)
def test_bad_lists_of_recropped_faces_are_told(src, tmp_path, file, change, error):
    for path in src.iterdir():
        if path.name != file:
            (tmp_path / path.name).symlink_to(path)
    if change is not None:
        (tmp_path / file).write_bytes(change((src / file).read_bytes()))
    files = official.Files(tmp_path)
    files.expect = lambda *args: None
    dataset = builders.find_dataset("aflw_r")._replace(counts={"train": None, "test": None})

    def read():
        splits = official.read_splits(dataset, files)
        official.Official(dataset, files, splits["test"], splits=tuple(splits))

    with pytest.raises(UserError, match=error):
        read()


def test_bad_databases_are_told(photos, tmp_path):
    (tmp_path / "flickr").symlink_to(photos / "data/flickr")
    path = tmp_path / "aflw.sqlite"
    with pytest.raises(UserError, match=r"holds no aflw.sqlite of AFLW; put it there as one of aflw.sqlite, data/"):
        miniature.opened("aflw", tmp_path)
    path.write_bytes(b"<html>" * 200)
    with pytest.raises(
        UserError, match=r"aflw.sqlite cannot be read as the database of AFLW \(file is not a database\)"
    ):
        miniature.opened("aflw", tmp_path)
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE Faces (face_id INTEGER)")
    with pytest.raises(UserError, match=r"cannot be read as the database of AFLW \(no such "):
        miniature.opened("aflw", tmp_path)
    for rectangle, error in (
        ((200, 10, 20, 20), r"face 39341: the face's rectangle, 20 x 20 pixels at \(200, 10\), lies outside its photo"),
        (("a", 10, 20, 20), r"aflw.sqlite: the rectangle of face 39341 has \('a', 10.0, 20.0, 20.0\) where numbers"),
    ):
        path.unlink()
        write_database(path, [(39341, "0/image00002.jpg", rectangle, None)])
        with pytest.raises(UserError, match=error):
            miniature.opened("aflw", tmp_path)
    path.unlink()
    write_database(path, points={39341: {1: ("x", 1.0)}})
    with pytest.raises(UserError, match=r"point 1 of face 39341 has \('x', 1.0\) where numbers are needed"):
        miniature.opened("aflw", tmp_path)
