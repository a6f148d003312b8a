"""LS3D: training on a miniature of 300W-LP, tests on a miniature of LS3D-W balanced."""

import struct

import numpy as np
import pytest
from scipy.io import savemat

from tests.data.builders import miniature
from uld_jax import data
from uld_jax.data.builders import ls3d
from uld_jax.errors import UserError
from uld_jax.evaluation import measure

SIZE = (450, 450)
FINE = {"quality": 100, "subsampling": 0}
SETS = ("AFW", "HELEN", "IBUG", "LFPW")
TEST = ["new_dataset/1", "new_dataset/10", "new_dataset/2", "more/a b"]


def points_of(name):
    """Points of a picture, from 1; the corners of their box are known."""
    points = np.random.default_rng(sum(name.encode())).uniform(141, 299, (68, 2))
    points[:2] = [[120.7, 140.2], [300.9, 320.9]]
    return points.astype(np.float32)


def t7(points):
    """The bytes of a tensor of floats."""
    word = lambda text: struct.pack("<i", len(text)) + text.encode()
    shape = struct.pack(
        f"<i{2 * points.ndim + 1}q", points.ndim, *points.shape, *[points.shape[-1], 1][-points.ndim :], 1
    )
    head = struct.pack("<ii", 4, 1) + word("V 1") + word("torch.FloatTensor") + shape
    return (
        head
        + struct.pack("<ii", 4, 2)
        + word("V 1")
        + word("torch.FloatStorage")
        + struct.pack("<q", points.size)
        + (points.astype("<f4").tobytes())
    )


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    root = tmp_path_factory.mktemp("ls3d") / "src"
    for which in SETS:
        name = f"{which}_1_0"
        miniature.picture(root / f"300W_LP/{which}/{name}.jpg", SIZE, **FINE)
        miniature.picture(root / f"300W_LP/{which}_Flip/{name}.jpg", SIZE)
        (root / f"300W_LP/landmarks/{which}").mkdir(parents=True)
        points = points_of(name).astype(float)
        savemat(root / f"300W_LP/landmarks/{which}/{name}_pts.mat", {"pts_2d": points + 9, "pts_3d": points})
    for name in TEST:
        path = root / f"LS3D-W-balanced/{name}.jpg"
        miniature.picture(path, SIZE, **FINE)
        path.with_suffix(".t7").write_bytes(t7(points_of(name)))
    (root / "LS3D-W-balanced/readme.txt").write_text("x")
    return root


def stem(file):
    return file.removesuffix(".jpg").split("/")[-1] if file.startswith(SETS) else file.removesuffix(".jpg")


def test_both_sets_come_back(src, tmp_path):
    found = miniature.prepare("ls3d", src, tmp_path)
    assert {split: sorted(s.names) for split, s in found.items()} == {
        "train": [f"{which}/{which}_1_0.jpg" for which in SETS],
        "test": sorted(f"{name}.jpg" for name in TEST),
    }
    for source in found.values():
        assert source.spec.protocol == "ls3d_68_box_part"
        for row, file in enumerate(source.names):
            np.testing.assert_allclose(miniature.points(source)[file], points_of(stem(file)) - 1, atol=1e-3)
            folder = "300W_LP" if file.startswith(SETS) else "LS3D-W-balanced"
            assert source.encoded(row) == (src / folder / file).read_bytes()
    assert found["test"].columns == {}  # so that yaw is computed from the points
    assert measure.yaw_of(found["test"]) is None  # of four images it cannot


# The box of the points is (120, 140, 300, 320) in whole pixels.
# Mallis: its top is raised by 60 to 80; delta = 0.5 * (1.2 * 300 - 120 + 2 * 320 - 80) = 400, so it grows by 32 pixels.
# CGB: 120.7 to 300.9 and 140.2 to 320.9, a mean side of 180.45, so it grows by int(28.87) = 28 pixels and is rounded.
@pytest.mark.parametrize(
    ("name", "size", "part"), [("ls3d_mallis", 256, (88, 48, 332, 352)), ("ls3d_cgb", 128, (93, 112, 329, 349))]
)
def test_crops_move_pixels_and_points_alike(src, tmp_path, name, size, part):
    low, high = np.array(part[:2]), np.array(part[2:])
    for source in miniature.prepare(name, src, tmp_path).values():
        assert source.file_sizes.tolist() == [[size, size]] * len(source)
        for row, file in enumerate(source.names):
            xy = points_of(stem(file)) - 1
            want = (xy + 0.5 - low) * size / (high - low) - 0.5
            np.testing.assert_allclose(miniature.points(source)[file], want, atol=1e-3)
            pixels = data.decode_image(source.encoded(row), size)[0]
            at = np.round(want).astype(int)
            shown = miniature.place_of(pixels[at[:, 1], at[:, 0]] + 0.5, SIZE)  # colours are rounded down
            np.testing.assert_allclose(shown, xy, atol=6)  # eight bits, whole pixels of the crop and JPEG
            assert np.abs((shown - xy).mean(0)).max() < 0.7


def test_cgb_tests_on_the_first_by_name(src, monkeypatch):
    monkeypatch.setattr(ls3d, "CGB_TEST", 3)
    sources, _ = miniature.opened("ls3d_cgb", src)
    assert sources["test"].names == ["more/a b.jpg", "new_dataset/1.jpg", "new_dataset/10.jpg"]
    assert len(sources["train"]) == 4


def test_wrong_counts_name_the_folder(src):
    with pytest.raises(UserError, match=r"AFW has 1 images where the official file has 5,207"):
        miniature.opened("ls3d", src, partial=False)
    _, notes = miniature.opened("ls3d", src)
    assert "LS3D-W-balanced has 4 images where the official file has 7,200" in "\n".join(notes)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (t7(points_of("a"))[:-8], r"new_dataset/2.t7 is cut short or damaged, where a Torch7 tensor is needed"),
        (t7(np.zeros((68, 3))), r"new_dataset/2.t7 holds 68 x 3 numbers where 68 x 2 finite ones are needed"),
        (t7(np.full((68, 2), np.nan)), r"new_dataset/2.t7 holds 68 x 2 numbers where 68 x 2 finite ones are needed"),
        (t7(points_of("a") * 9), r"new_dataset/2.t7: point .* lies far outside its image of 450 x 450"),
        (None, r"new_dataset/2.t7 is absent; get the official files, or add --allow_partial"),
    ],
)
def test_bad_points_are_told(src, tmp_path, content, error, monkeypatch):
    (tmp_path / "300W_LP").symlink_to(src / "300W_LP")
    folder = tmp_path / "LS3D-W-balanced-20-03-2017/new_dataset"
    folder.mkdir(parents=True)
    for path in (src / "LS3D-W-balanced/new_dataset").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if content is None:
        (folder / "2.t7").unlink()
        sources, notes = miniature.opened("ls3d", tmp_path)
        assert len(sources["test"]) == 2
        assert "2.t7 is absent; these images are left out" in "\n".join(notes)
        monkeypatch.setattr("uld_jax.data.builders.official.Files.expect", lambda *args: None)
    else:
        (folder / "2.t7").write_bytes(content)
    with pytest.raises(UserError, match=error):
        miniature.opened("ls3d", tmp_path, partial=content is not None)


def test_absent_folders_are_told(src, tmp_path):
    (tmp_path / "300W_LP").symlink_to(src / "300W_LP")
    with pytest.raises(
        UserError, match=r"holds no folder of LS3D-W balanced; put it there as one of LS3D-W-balanced-20"
    ):
        miniature.opened("ls3d", tmp_path)
