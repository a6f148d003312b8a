"""Human3.6M from a miniature: joints in CDF, masks by references in HDF5, and frames of videos."""

import re

import cdflib
import h5py
import numpy as np
import pytest

from tests.data.builders import miniature
from uld_jax import data
from uld_jax.data import builders, objects, schemes
from uld_jax.data.builders import human36m
from uld_jax.errors import UserError

SIZE = 200, 260  # of frames
# Frames of each video. `WalkingDog` and `Sitting` are none of the six actions.
VIDEOS = {
    "S1/Directions 1.54138969": 23,
    "S1/WalkingDog.54138969": 11,
    "S9/Walking.60457274": 11,
    "S11/Posing 1.55011271": 101,
    "S11/Sitting.55011271": 51,
}
USED = {"train": [("S1/Directions 1.54138969", 0), ("S1/Directions 1.54138969", 10), ("S1/Directions 1.54138969", 20)]}
USED["train"] += [("S9/Walking.60457274", 0), ("S9/Walking.60457274", 10)]
USED["test"] = [("S11/Posing 1.55011271", frame) for frame in (0, 50, 100)]


def box_of(video, frame):
    start = 3 * list(VIDEOS).index(video)
    return 60 + start + frame % 7, 30 + start, 121 + start, 150 + start


def joints_of(video, frame):
    """[32,2] in pixels of the frame; the person looks away from the camera in odd videos."""
    x0, y0, x1, y1 = box_of(video, frame)
    xy = np.random.default_rng([len(video), frame]).uniform((x0, y0), (x1, y1), (32, 2))
    for pairs in schemes.SCHEMES["human36m_32"].image_sides:
        for left, right in (sorted(pair) for pair in pairs[:1]):
            xy[[left, right], 0] = (x0, x1) if list(VIDEOS).index(video) % 2 else (x1, x0)
    return xy


def write_joints(path, pose):
    path.parent.mkdir(parents=True, exist_ok=True)
    out = cdflib.cdfwrite.CDF(str(path), delete=True)
    spec = {"Variable": "Pose", "Data_Type": 44, "Num_Elements": 1, "Rec_Vary": True, "Dim_Sizes": pose.shape[1:]}
    out.write_var(spec | {"Dim_Vary": [True] * (pose.ndim - 1), "Var_Type": "zVariable"}, var_data=pose)
    out.close()


def write_masks(path, masks):
    """Masks [H,W] as MATLAB writes a cell array: references to transposed arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        cells = file.create_dataset("Masks", (len(masks), 1), h5py.ref_dtype)
        for i, mask in enumerate(masks):
            cells[i, 0] = file.create_dataset(f"#refs#/{i}", data=np.ascontiguousarray(mask.T)).ref


def mask_of(video, frame):
    x0, y0, x1, y1 = box_of(video, frame)
    mask = np.zeros(SIZE, np.uint8)
    mask[y0 : y1 + 1, x0 : x1 + 1] = 1
    return mask


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    root = tmp_path_factory.mktemp("human36m")
    for video, count in VIDEOS.items():
        subject, name = video.split("/")
        pose = np.stack([joints_of(video, frame) for frame in range(count)]).reshape(1, count, 64)
        write_joints(root / subject / f"MyPoseFeatures/D2_Positions/{name}.cdf", pose.astype(np.float32))
        masks = [mask_of(video, frame) if frame % 10 == 0 else np.zeros((2, 3), np.uint8) for frame in range(count)]
        write_masks(root / subject / f"MySegmentsMat/ground_truth_bb/{name}.mat", masks)
        for number in range(-(-count // 10)):
            miniature.picture(root / f"frames/{video}/{number + 1:06d}.jpg", SIZE, subsampling=0)
    return root


@pytest.fixture
def src(official, tmp_path):
    """A copy whose files may be changed."""
    for path in official.rglob("*.*"):
        if path.is_file():
            copy = tmp_path / "src" / path.relative_to(official)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path / "src"


@pytest.mark.parametrize(("name", "size"), [("human36m", 450), ("human36m_fan", 256)])
def test_frames_joints_and_boxes_are_cropped_alike(official, tmp_path, name, size):
    miniature.prepare(name, official, tmp_path)
    for split, used in USED.items():
        opening = dict(data_dir=tmp_path, frame_size=size)
        person, source = (data.open_source(name, split, sides=sides, **opening) for sides in ("object", "auto"))
        assert sorted(source.names) == sorted(f"{video}/{frame + 1:06d}" for video, frame in used)
        assert source.spec.protocol == f"{name}_32_shoulders_image_sides_part"
        assert person.spec.protocol == f"{name}_32_shoulders_part"
        assert np.unique(source.file_sizes).tolist() == [size]
        boxes, images = objects.boxes(source), source.images()
        for video, frame in used:
            row = source.names.index(f"{video}/{frame + 1:06d}")
            x0, y0, x1, y1 = box_of(video, frame)

            def to_crop(xy, box=(x0, y0, x1, y1)):
                """By hand: 1.5 heights of the box become 450 pixels, and the network then sees 1 / 1.4 of these."""
                x0, y0, x1, y1 = box
                u = (xy - np.array([(x0 + x1) / 2, (y0 + y1) / 2])) * 450 / (1.5 * (y1 - y0)) + 225
                return u if size == 450 else ((u - 225) * 1.4 + 225) * 256 / 450

            want = to_crop(joints_of(video, frame))
            np.testing.assert_allclose(miniature.points(person)[source.names[row]], want, atol=2e-3)
            np.testing.assert_allclose(source.landmarks[row], schemes.image_sides(want), atol=2e-3)
            np.testing.assert_allclose(boxes[row], to_crop(np.array([[x0, y0], [x1, y1]])).ravel(), atol=2e-3)
            at = np.round(want).astype(int)
            shown = miniature.place_of(images[row][at[:, 1], at[:, 0]], SIZE)
            np.testing.assert_allclose(shown, joints_of(video, frame), atol=3)
            subject, name_ = video.split("/")
            assert [source.columns[c][row] for c in ("subject", "action", "camera")] == [
                subject,
                re.split("[ .]", name_)[0],
                name_[-8:],
            ]


def test_the_other_folder_of_joints(src):
    once = miniature.opened("human36m", src)[0]["test"]
    (src / "S11/MyPoseFeatures/D2_Positions").rename(src / "S11/Poses_D2_Positions")
    assert miniature.opened("human36m", src)[0]["test"].fingerprint == once.fingerprint


def test_frames_are_asked_for_by_the_command(src, tmp_path):
    command = (
        "ffmpeg -nostdin -i 'S11/Videos/Posing 1.55011271.mp4' -vf 'select=not(mod(n\\,10))' -fps_mode passthrough"
    )
    command += " -q:v 2 'frames/S11/Posing 1.55011271/%06d.jpg'"
    assert command.partition(" -i ")[0] in human36m.__doc__
    folder = src / "frames/S11/Posing 1.55011271"
    frames = sorted(folder.iterdir())
    content = frames[0].read_bytes()
    frames[5].unlink()  # the 51st of the video
    assert [one.file for one in miniature.opened("human36m", src)[0]["test"].skipped] == [
        "frames/S11/Posing 1.55011271/000006.jpg"
    ]
    for number in range(1, 102):
        (folder / f"{number:06d}.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"55011271 holds 101 frames of 101, where every tenth is wanted") as error:
        miniature.opened("human36m", src)
    assert str(error.value).endswith(f"make the folder anew, and in {src} run {command}")
    for path in folder.iterdir():
        path.unlink()
    files = builders.official.Files(src)
    files.expect = lambda *args: None
    with pytest.raises(UserError, match=r"55011271 holds no frames; make the folder anew") as error:
        human36m.records(files, "human36m")
    assert str(error.value).endswith(command)


def test_absent_parts_are_named(src):
    with pytest.raises(UserError, match=r"has 2 subjects of the split train where the official file has 6; .*partial"):
        miniature.opened("human36m", src, partial=False)
    notes = miniature.opened("human36m", src)[1]
    assert any("S11/MyPoseFeatures/D2_Positions has 1 of the six actions where the official" in note for note in notes)
    (src / "S9/MySegmentsMat/ground_truth_bb/Walking.60457274.mat").unlink()
    with pytest.raises(UserError, match=r"holds no boxes of the bodies of S9, Walking.60457274; put it there as S9/My"):
        miniature.opened("human36m", src)
    with pytest.raises(UserError, match=r"holds no folder S1 of Human3.6M; put it there as S1"):
        miniature.opened("human36m", src / "S9")


def test_damaged_files_are_told(src):
    joints = src / "S11/MyPoseFeatures/D2_Positions/Posing 1.55011271.cdf"
    masks = src / "S11/MySegmentsMat/ground_truth_bb/Posing 1.55011271.mat"
    good = joints.read_bytes()
    for bad in (good[:300], b"", b"<html>"):
        joints.write_bytes(bad)
        with pytest.raises(UserError, match=r"55011271.cdf holds no `Pose` \(.*\); get the official file again"):
            miniature.opened("human36m", src)
    write_joints(joints, np.zeros((1, 101, 96), np.float32))
    with pytest.raises(UserError, match=r"has a `Pose` of \(1, 101, 96\) where \[1,T,64\] is needed; get D2_Positions"):
        miniature.opened("human36m", src)
    joints.write_bytes(good)
    whole = masks.read_bytes()
    for bad in (whole[: len(whole) // 3], b"", b"<html>"):
        masks.write_bytes(bad)
        with pytest.raises(UserError, match=r"55011271.mat holds no `Masks` \(.*\); get the official file again"):
            miniature.opened("human36m", src)
    write_masks(masks, [np.zeros(SIZE, np.uint8)])
    with pytest.raises(UserError, match=r"55011271.mat, frame 1: a mask has no true pixel"):
        miniature.opened("human36m", src)
