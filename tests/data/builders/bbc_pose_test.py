"""BBC Pose from a miniature `bbcpose.mat`: frames as floats, all counted from 1, empty and one-frame fields."""

import shutil

import numpy as np
import pytest
from scipy import io

from tests.data.builders import miniature
from uld_jax import data
from uld_jax.data import builders
from uld_jax.data.builders import official
from uld_jax.errors import UserError

SIZE = 60, 80
SEVEN = np.array([[30, 10], [12, 50], [60, 48], [20, 35], [55, 36], [22, 20], [50, 21]])
# (type, training frames, frames annotated by hand) of each video; the fourth has one frame.
VIDEOS = [("train", [7, 1, 12], []), ("train", [3], []), ("val", [1, 2, 5], [4, 8]), ("test", [1, 9], [6])]


def joints_of(video, frame):
    """Joints in pixels from 0."""
    return SEVEN + np.array([video, frame % 5])


def fields_of(video, change=lambda field, value: value):
    """The fields of the video in the official order; joints are counted from 1, and numbers of frames are floats."""
    kind, train, test = VIDEOS[video]
    out = {"videoName": f"signer {video + 1}", "type": kind, "source": "buehler11"}
    for which, frames in (("train", train), ("test", test)):
        joints = np.zeros((0, 0))
        if frames:
            joints = np.stack([joints_of(video, frame).T + 1.0 for frame in frames], -1)
        if len(frames) == 1:
            joints = joints[..., 0]  # as MATLAB writes it
        out |= {f"{which}_frames": np.array([frames], float), f"{which}_joints": joints}
    return {field: change(field, value) for field, value in out.items()}


def write(root, videos, **options):
    array = np.empty((1, len(videos)), [(field, object) for field in videos[0]])
    for i, fields in enumerate(videos):
        for field, value in fields.items():
            array[field][0, i] = value
    io.savemat(root / "bbcpose.mat", {"bbcpose": array}, **options)


@pytest.fixture
def src(tmp_path):
    root = tmp_path / "src"
    root.mkdir()
    write(root, [fields_of(video) for video in range(len(VIDEOS))], do_compression=True)
    for video, (_, train, test) in enumerate(VIDEOS):
        for frame in (*train, *test):
            miniature.picture(root / f"{video + 1}/{frame}.jpg", SIZE)
    return root


def test_joints_found_and_annotated_by_hand_come_back(src, tmp_path):
    found = miniature.prepare("bbc_pose", src, tmp_path)
    wanted = {"train": ["1/7", "1/1", "1/12", "2/3"], "val": ["3/4", "3/8"], "test": ["4/6"]}
    assert {split: sorted(one.names) for split, one in found.items()} == {
        split: sorted(f"{name}.jpg" for name in names) for split, names in wanted.items()
    }
    for source in found.values():
        assert (source.spec.protocol, source.spec.eyes) == ("bbc_pose_7_shoulders_part", (5, 6))
        for row, name in enumerate(source.names):
            video, frame = (int(part) for part in name.removesuffix(".jpg").split("/"))
            want = joints_of(video - 1, frame)
            np.testing.assert_allclose(miniature.points(source)[name], want, atol=1e-4)
            assert source.encoded(row) == (src / name).read_bytes()
            pixels = data.decode_image(source.encoded(row), 80)[0][10:70]
            np.testing.assert_allclose(miniature.place_of(pixels[want[:, 1], want[:, 0]], SIZE), want, atol=1.5)
            assert source.columns["video"][row] == str(video)


def test_counts_and_absent_frames(src, tmp_path):
    assert builders.find_dataset("bbc_pose").counts == {"train": None, "val": 1000, "test": 1000}
    with pytest.raises(UserError, match=r"bbcpose.mat has 4 videos where the official file has 92; .*--allow_partial"):
        miniature.opened("bbc_pose", src, partial=False)
    notes = "\n".join(miniature.opened("bbc_pose", src)[1])
    assert "bbcpose.mat has 2 videos of the split train where the official file has 10" in notes
    assert "the split val of bbc_pose has 2 images" in notes
    assert "split train of bbc_pose" not in notes
    (src / "1/12.jpg").unlink()
    assert [one.file for one in miniature.opened("bbc_pose", src)[0]["train"].skipped] == ["1/12.jpg"]
    shutil.copytree(src, tmp_path / "above/bbcpose")
    below = miniature.opened("bbc_pose", tmp_path / "above")[0]
    assert below["val"].fingerprint == miniature.opened("bbc_pose", src)[0]["val"].fingerprint
    (src / "bbcpose.mat").unlink()
    with pytest.raises(UserError, match=r"holds no bbcpose.mat of BBC Pose; put it there as one of bbcpose.mat, bbcpo"):
        miniature.opened("bbc_pose", src)


def test_only_the_first_twenty_videos_are_read(src):
    write(src, [fields_of(0), *[fields_of(2)] * 18, fields_of(3), fields_of(1)])
    files = official.Files(src, partial=True)
    splits = builders.find_dataset("bbc_pose").records(files, "bbc_pose")
    assert {split: len(found) for split, found in splits.items()} == {"train": 3, "val": 36, "test": 1}
    assert splits["test"][0].file == "20/6.jpg"


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("type", "extra", r"bbcpose.mat, video 1 has the type 'extra', and train, val, test exist; get"),
        (
            "train_joints",
            np.zeros((2, 5, 3)),
            r"has train_joints of shape \(2, 5, 3\) for 3 frames where \[2,7,N",
        ),
        ("train_frames", np.array([[1.5, 2, 3]]), r"video 1: train_frames holds other numbers than 1, 2, 3, ...; get"),
        ("train_frames", np.array([[0.0, 2, 3]]), r"video 1: train_frames holds other numbers than"),
        ("train_frames", np.array([[np.nan, 2, 3]]), r"video 1: train_frames holds other numbers than"),
        ("train_joints", np.full((2, 7, 3), 900.0), r"video 1, frame 7: point 0 at \(899, 899\) lies far outside"),
    ],
)
def test_bad_fields_are_told(src, field, value, error):
    write(src, [fields_of(0, lambda name, old: value if name == field else old), fields_of(2), fields_of(3)])
    with pytest.raises(UserError, match=error):
        miniature.opened("bbc_pose", src)


def test_files_that_are_no_bbcpose_mat(src):
    path = src / "bbcpose.mat"
    content = path.read_bytes()
    for bad in (content[:300], b"<html>", b"", content[:128] + bytes(200) + content[328:]):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"bbcpose.mat cannot be read as a MATLAB file \(.*\); get the official"):
            miniature.opened("bbc_pose", src)
    io.savemat(path, {"bbcpose": np.array([[1.0]])})
    with pytest.raises(UserError, match=r"bbcpose.mat holds no struct array") as error:
        miniature.opened("bbc_pose", src)
    assert "\n" not in str(error.value)
