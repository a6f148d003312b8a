"""300W-LP and AFLW2000-3D from miniatures of the official folders."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tests.data.builders import miniature
from uld_jax import data
from uld_jax.data.builders import w300lp
from uld_jax.data.schemes import SCHEMES
from uld_jax.errors import UserError
from uld_jax.evaluation.measure import yaw_of

SIZE = (450, 450)
FINE = {"quality": 100, "subsampling": 0}
NAMES = {
    "AFW": ["AFW_134212_1_0", "AFW_134212_1_10"],
    "HELEN": ["HELEN_1_0"],
    "IBUG": ["IBUG_image_003_1_0"],
    "LFPW": ["LFPW_image_test_0001_0"],
}
UNTURNED = np.random.default_rng(9).uniform(100, 300, (2, 68))  # the same in all .mat of a photo, as in the real files


def points_of(name):
    """Points of a picture, from 1."""
    return np.random.default_rng(sum(name.encode())).uniform(60, 380, (68, 2))


def parameters(path, pitch, yaw, roll, **more):
    pose = np.array([[*np.radians([pitch, yaw, roll]), 5, 6, 7, 1e-3]], np.float32)
    known = {
        "Pose_Para": pose,
        "roi": np.array([[1, 2, 450, 451]], np.int16),
        "Illum_Para": np.zeros((1, 10)),
        "Color_Para": np.ones((1, 7), np.float32),
        "Tex_Para": np.zeros((199, 1)),
        "Shape_Para": np.zeros((199, 1)),
        "Exp_Para": np.zeros((29, 1)),
    }
    savemat(path, known | more)


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    root = tmp_path_factory.mktemp("300wlp") / "src"
    for folder in ("300W_LP/Code", "300W_LP/landmarks"):
        (root / folder).mkdir(parents=True)
    (root / "300W_LP/Code/main.m").write_text("quit")
    for which, listed in NAMES.items():
        (root / "300W_LP/landmarks" / which).mkdir()
        for i, n in enumerate(listed):
            pixels = miniature.picture(root / f"300W_LP/{which}/{n}.jpg", SIZE, **FINE)
            parameters(root / f"300W_LP/{which}/{n}.mat", 5, -44 + 90 * i, 3, pt2d=UNTURNED)
            points = points_of(n)
            savemat(root / f"300W_LP/landmarks/{which}/{n}_pts.mat", {"pts_2d": points, "pts_3d": points + 3.25})
            (root / f"300W_LP/{which}_Flip").mkdir(exist_ok=True)
            Image.fromarray(pixels[:, ::-1]).save(root / f"300W_LP/{which}_Flip/{n}.jpg", **FINE)
            parameters(root / f"300W_LP/{which}_Flip/{n}.mat", 5, 44 - 90 * i, -3, pt2d=UNTURNED)
    return root


def test_points_are_those_of_the_picture(src, tmp_path):
    train = miniature.prepare("w300lp", src, tmp_path)["train"]
    assert sorted(train.names) == sorted(f"{which}/{n}.jpg" for which, listed in NAMES.items() for n in listed)
    assert train.spec.protocol == "w300lp_68_box_part"
    for row, file in enumerate(train.names):
        want = points_of(file.split("/")[1][:-4]) - 1
        np.testing.assert_allclose(miniature.points(train)[file], want, atol=1e-3)
        assert train.encoded(row) == (src / "300W_LP" / file).read_bytes()
    # The sample of the sheet: the file's yaw is -44 degrees, and the nose points to the image's right.
    row = train.names.index("AFW/AFW_134212_1_0.jpg")
    assert [train.columns[c][row] for c in ("yaw", "pitch", "roll")] == ["44.000", "5.000", "3.000"]


def test_mirrored_pictures_show_the_same_points(src, tmp_path):
    train = miniature.prepare("w300lp_flip", src, tmp_path, frame_size=450)["train"]
    assert len(train) == 10
    found = miniature.points(train)
    for file in train.names:
        which, name = file.split("/")
        if which.endswith("_Flip"):
            of = f"{which.removesuffix('_Flip')}/{name}"
            xy, own = found[of], found[file][list(SCHEMES["ibug68"].mirror)]
            np.testing.assert_allclose(own, np.stack([449 - xy[:, 0], xy[:, 1]], -1), atol=1e-3)
    # Both pictures have one colour at a point, and the place that it shows is the same.
    name = "AFW_134212_1_0.jpg"
    rows = [train.names.index(f"{which}/{name}") for which in ("AFW", "AFW_Flip")]
    plain, turned = (at(train.image(r), found[train.names[r]]) for r in rows)
    turned = turned[list(SCHEMES["ibug68"].mirror)]
    np.testing.assert_allclose(plain, turned, atol=2.5)
    assert abs((plain - turned)[:, 0].mean()) < 0.25  # a shift of one pixel changes the place that is shown by 1
    assert train.columns["yaw"][rows[1]] == "-44.000"


def at(pixels, xy):
    """The places whose colours the pixels at points have, between pixels."""
    low = np.floor(xy).astype(int)
    part = xy - low
    out = 0
    for dx in (0, 1):
        for dy in (0, 1):
            weight = np.abs(1 - dx - part[:, :1]) * np.abs(1 - dy - part[:, 1:])
            out += weight * miniature.place_of(pixels[low[:, 1] + dy, low[:, 0] + dx], SIZE)
    return out


def test_mirrored_pictures_of_another_size_are_told(src, tmp_path):
    root = copied(src, tmp_path)
    miniature.picture(root / "300W_LP/HELEN_Flip/HELEN_1_0.jpg", (448, 448))
    with pytest.raises(
        UserError, match=r"HELEN_1_0_pts.mat: the mirrored picture is 448 pixels wide where 450 are needed"
    ):
        miniature.opened("w300lp_flip", root)


def test_mirrored_is_exact_on_pixels():
    """A marked pixel at x is at 449 - x in a mirrored picture of 450 pixels, and the corner of the other eye."""
    picture = np.zeros(SIZE)
    picture[7, 100] = 1
    (y,), (x,) = np.nonzero(picture[:, ::-1])
    points = np.zeros((68, 2))
    points[36] = 100, 7
    assert w300lp.mirrored(points)[45].tolist() == [x, y]
    assert x == 450 - (100 + 1)  # the published formula takes x from 1 and gives x from 0


@pytest.fixture(scope="module")
def aflw(tmp_path_factory):
    root = tmp_path_factory.mktemp("aflw2000")
    rng = np.random.default_rng(1)
    for i, (pitch, yaw, roll) in enumerate([(-10, 60, 0), (0, 188, 2), (120, 5, 0), (0, 99, -99)]):
        miniature.picture(root / f"AFLW2000/image0000{i + 2}.jpg", SIZE)
        dense = rng.uniform(1, 450, (3, 68)).astype(np.float32)
        dense[0, 0], dense[2] = -1, -80  # a point outside of the photo, whose x is no mark here
        few = rng.uniform(1, 450, (2, 21))
        few[:, [0, 12]] = [[-1], [452]]
        few[:, 5] = 30, 452
        parameters(root / f"AFLW2000/image0000{i + 2}.mat", pitch, yaw, roll, pt3d_68=dense, pt2d=few)
    return root


def test_aflw2000_has_two_sets_of_points(aflw, tmp_path):
    from scipy.io import loadmat

    dense = miniature.prepare("aflw2000", aflw, tmp_path)["test"]
    few = miniature.prepare("aflw2000_21", aflw, tmp_path)["test"]
    assert (dense.spec.protocol, few.spec.protocol) == ("aflw2000_68_box_part", "aflw2000_21_21_box_part")
    for name in dense.names:
        mat = loadmat(aflw / "AFLW2000" / name.replace("jpg", "mat"))
        np.testing.assert_allclose(miniature.points(dense)[name], mat["pt3d_68"][:2].T - 1, atol=1e-3)
        points = miniature.points(few)[name]
        assert np.flatnonzero(np.isnan(points).any(-1)).tolist() == [0, 12]
        np.testing.assert_allclose(points[1:12], mat["pt2d"].T[1:12] - 1, atol=1e-3)
    columns = [dict(zip(dense.names, dense.columns[c], strict=True)) for c in ("yaw", "within_99")]
    assert [list(map(c.get, sorted(c))) for c in columns] == [
        ["-60.000", "-188.000", "-5.000", "-99.000"],
        ["yes", "no", "no", "yes"],
    ]
    assert sorted(yaw_of(dense)) == [-188, -99, -60, -5]


def test_the_sign_of_yaw_is_that_of_the_points(tmp_path):
    """A head turned by the rotation of 3DDFA has the yaw that `pose_clusters` computes from its points."""
    from uld_jax.evaluation.pose_clusters import yaw_of_points

    rng, mirror = np.random.default_rng(2), np.array(SCHEMES["ibug68"].mirror)
    shape = rng.normal(size=(68, 3))
    shape = (shape + shape[mirror] * (-1, 1, 1)) / 2
    shape[:, 2] = 1.5 - shape[:, 0] ** 2 + 0.2 * shape[:, 2]  # towards the camera, y up
    (tmp_path / "AFLW2000").mkdir()
    for i, (pitch, yaw) in enumerate(zip(rng.uniform(-20, 20, 12), rng.uniform(-60, 60, 12), strict=True)):
        (sp, sy), (cp, cy) = np.sin(np.radians([pitch, yaw])), np.cos(np.radians([pitch, yaw]))
        turn = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]]) @ np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
        x, y, z = 40 * turn @ shape.T
        miniature.picture(tmp_path / f"AFLW2000/image{i:05}.jpg", SIZE)
        parameters(tmp_path / f"AFLW2000/image{i:05}.mat", pitch, yaw, 0, pt3d_68=np.stack([225 + x, 225 - y, z]))
    source = miniature.opened("aflw2000", tmp_path)[0]["test"]
    found = yaw_of_points(source.landmarks, mirror)
    np.testing.assert_allclose(found.yaw, yaw_of(source), atol=3)
    pitch = np.array(source.columns["pitch"], float)
    np.testing.assert_allclose(found.pitch - found.pitch.mean(), pitch - pitch.mean(), atol=3)


def test_counts_by_set():
    assert sum(w300lp.SETS.values()) == w300lp.IMAGES == 61_225


def copied(src, tmp_path):
    for path in src.rglob("*"):
        if path.is_file():
            to = tmp_path / path.relative_to(src)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(path.read_bytes())
    return tmp_path


def test_wrong_counts_and_absent_files(src, tmp_path):
    with pytest.raises(UserError, match=r"300W_LP/AFW has 2 images where the official file has 5,207; .*allow_partial"):
        miniature.opened("w300lp", src, partial=False)
    root = copied(src / "300W_LP", tmp_path)  # the content in SRC itself
    (root / "landmarks/AFW/AFW_134212_1_10_pts.mat").unlink()
    (root / "HELEN/HELEN_1_0.mat").unlink()
    for path in (root / "LFPW").iterdir():
        path.unlink()
    sources, notes = miniature.opened("w300lp", root)
    assert sources["train"].names == ["AFW/AFW_134212_1_0.jpg", "IBUG/IBUG_image_003_1_0.jpg"]
    said = "\n".join(notes)
    assert "landmarks/AFW/AFW_134212_1_10_pts.mat is absent; these images are left out" in said
    assert "HELEN/HELEN_1_0.mat is absent; these images" in said
    assert "LFPW has 0 images where the official file has 16,556" in said
    with pytest.raises(UserError, match=r"holds no folder landmarks of 300W-LP, .*one of 300W_LP/landmarks, "):
        miniature.opened("w300lp", root / "AFW")
    with pytest.raises(UserError, match=r"holds no photos of AFLW2000-3D; put them there as AFLW2000/image00002.jpg"):
        miniature.opened("aflw2000", src)


def test_damaged_files(src, tmp_path):
    root = copied(src, tmp_path)
    place = root / "300W_LP/landmarks/AFW/AFW_134212_1_0_pts.mat"
    place.write_bytes(place.read_bytes()[:300])
    with pytest.raises(UserError, match=r"landmarks/AFW/AFW_134212_1_0_pts.mat cannot be read as a MATLAB file"):
        miniature.opened("w300lp", root)
    savemat(place, {"pt2d": UNTURNED})
    with pytest.raises(UserError, match=r"AFW_134212_1_0_pts.mat has no variable pts_2d"):
        miniature.opened("w300lp", root)
    savemat(place, {"pts_2d": UNTURNED})
    with pytest.raises(UserError, match=r"AFW_134212_1_0_pts.mat: the variable pts_2d is 2 x 68 where 68 x 2"):
        miniature.opened("w300lp", root)
    savemat(place, {"pts_2d": points_of("a") * 10})
    with pytest.raises(UserError, match=r"AFW_134212_1_0_pts.mat: point .* lies far outside its image of 450 x 450"):
        miniature.opened("w300lp", root)


def test_the_test_split_alone_can_be_opened(aflw, tmp_path):
    miniature.prepare("aflw2000", aflw, tmp_path)
    assert len(data.open_source("aflw2000", "test", data_dir=tmp_path, frame_size=8)) == 4
