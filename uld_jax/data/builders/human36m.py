"""Human3.6M (Ionescu et al., PAMI 2014): bodies with 32 joints, as Mallis et al. (NeurIPS 2020) select and crop them.

  SRC/S1/Videos/Directions 1.54138969.mp4                           subject, action, trial and camera; S1, S5, ..., S11
  SRC/S1/MyPoseFeatures/D2_Positions/Directions 1.54138969.cdf      `Pose` [1,T,64]: joints of every frame, in pixels
  SRC/S1/MySegmentsMat/ground_truth_bb/Directions 1.54138969.mat    `Masks` [T,1]: masks of the body's box, HDF5
  SRC/frames/S1/Directions 1.54138969/000001.jpg, 000002.jpg, ...   every tenth frame: the 1st, the 11th, ...

The joints may lie in S1/Poses_D2_Positions instead. Videos are not decoded here; in SRC these lines write the frames:

  for video in S*/Videos/*.mp4; do
    out="frames/${video%%/*}/$(basename "$video" .mp4)"; mkdir -p "$out"
    ffmpeg -nostdin -i "$video" -vf 'select=not(mod(n\\,10))' -fps_mode passthrough -q:v 2 "$out/%06d.jpg"
  done

Six actions are used, by their name: Directions, Discussion, Greeting, Posing, Waiting, Walking. (The published code
looks for these words in file names, so it also takes files named WalkingDog or the like.) Subjects 1, 5, 6, 7, 8 and 9
are for training, with every 10th frame, and subject 11 for the test, with every 50th.

  human36m       the square of 1.5 heights of the box around its middle, as 450 x 450 pixels
  human36m_fan   what the published network sees of that square: 1.07 heights, as 256 x 256 pixels

Joints are the person's own left and right; opened with `data.sides=auto` they change to those of the image, as in the
published evaluation. The columns `subject`, `action` and `camera` say where a frame is from. How many frames there are
is not published by the authors of the split, so it is not checked.
"""

import os
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from uld_jax.data import crops
from uld_jax.data.builders.official import Crop, Dataset, Files, Record
from uld_jax.errors import UserError

SUBJECTS = {"train": ("S1", "S5", "S6", "S7", "S8", "S9"), "test": ("S11",)}
STEP = {"train": 10, "test": 50}  # frames
ACTIONS = ("Directions", "Discussion", "Greeting", "Posing", "Waiting", "Walking")
_FRAMES = "frames"  # folder of the frames
_STORED = 10  # of so many frames of a video it holds one
_JOINTS = 32
_SQUARE, _VIEW = 450, 256  # sides of crops in pixels
_COMMAND = "ffmpeg -nostdin -i '{video}' -vf 'select=not(mod(n\\,10))' -fps_mode passthrough -q:v 2 '{folder}/%06d.jpg'"


def records(files: Files, name: str) -> dict[str, list[Record]]:
    """Read the frames of both splits of one of `DATASETS`, see the module. Raises UserError for any error in them."""
    if not any((files.root / subject).exists() for subjects in SUBJECTS.values() for subject in subjects):
        files.find("S1", what="folder S1 of Human3.6M")
    view = crops.fan_view(_SQUARE, _VIEW) if name == "human36m_fan" else None
    videos = {}
    for split, subjects in SUBJECTS.items():
        there = [subject for subject in subjects if (files.root / subject).exists()]
        files.expect(files.root, len(there), len(subjects), f"subjects of the split {split}")
        videos[split] = [(subject, poses) for subject in there for poses in _videos(files, subject)]
    for subject, poses in (video for listed in videos.values() for video in listed):
        _check_frames(files, subject, _name(poses), 0)  # before hours of reading
    found = {}
    for split, listed in videos.items():
        bar = tqdm(listed, desc=f"boxes of Human3.6M, {split}", unit=" videos", disable=None)
        found[split] = [one for subject, poses in bar for one in _frames(files, subject, poses, STEP[split], view)]
    return found


def _videos(files: Files, subject: str):
    """Return the files of joints of a subject's videos that are used, sorted by name."""
    folders = f"{subject}/MyPoseFeatures/D2_Positions", f"{subject}/Poses_D2_Positions"
    folder = files.find(*folders, what=f"joints of the subject {subject} of Human3.6M")
    paths = [path for path in folder.iterdir() if path.name.endswith(".cdf") and _action(path) in ACTIONS]
    files.expect(folder, len({_action(path) for path in paths}), len(ACTIONS), "of the six actions")
    return sorted(paths, key=lambda path: path.name)


def _action(path) -> str:
    """The action of a video, such as `Directions` of `Directions 1.54138969.cdf`."""
    return path.name.partition(".")[0].partition(" ")[0]


def _name(poses) -> str:
    return poses.name.removesuffix(".cdf")


def _frames(files: Files, subject: str, poses, step: int, view: np.ndarray | None) -> list[Record]:
    """Read every `step`-th frame of a video."""
    video, joints = _name(poses), _joints(poses)
    _check_frames(files, subject, video, len(joints))
    boxes = files.find(
        f"{subject}/MySegmentsMat/ground_truth_bb/{video}.mat", what=f"boxes of the bodies of {subject}, {video}"
    )
    columns = {"subject": subject, "action": _action(poses), "camera": video.rpartition(".")[2]}
    out = []
    for frame, mask in _masks(boxes, step, len(joints)):
        try:
            box, fmap, size = _crop(mask, view)
        except UserError as error:
            raise UserError(f"{boxes}, frame {frame + 1}: {error}") from None
        out.append(
            Record(
                file=f"{subject}/{video}/{frame + 1:06d}",
                path=f"{_FRAMES}/{subject}/{video}/{frame // _STORED + 1:06d}.jpg",
                place=f"{poses}, frame {frame + 1}",
                landmarks=joints[frame],
                box=box,
                columns=columns,
                crop=Crop(fmap, (size, size)),
            )
        )
    return out


def _crop(mask: np.ndarray, view: np.ndarray | None):
    """Find the box of a mask, and the map and side of the crop around it."""
    box = crops.mask_box(mask)
    fmap = crops.square_crop(box, _SQUARE)
    return (box, fmap, _SQUARE) if view is None else (box, crops.then(fmap, view), _VIEW)


def _check_frames(files: Files, subject: str, video: str, count: int) -> None:
    """Check that a video's folder holds frames, and if their `count` is known, that it does not hold all of them."""
    folder = f"{_FRAMES}/{subject}/{video}"
    path = files.root / folder
    found = sum(one.name.endswith(".jpg") for one in path.iterdir()) if path.is_dir() else 0
    why = None
    if not found and not files.partial:
        why = "holds no frames"
    elif count and found > count // 5 + 2:  # twice as many as the tenth ones
        why = f"holds {found:,} frames of {count:,}, where every tenth is wanted"
    if why:
        command = _COMMAND.format(video=f"{subject}/Videos/{video}.mp4", folder=folder)
        raise UserError(f"{path} {why}; make the folder anew, and in {files.root} run {command}")


def _joints(path) -> np.ndarray:
    """Read the joints of all frames of a video, [T,32,2]."""
    try:
        import cdflib
    except ImportError:
        raise UserError("Human3.6M needs the package cdflib; pip install 'uld_jax[datasets]'") from None
    try:
        pose = np.asarray(cdflib.CDF(os.fspath(path)).varget("Pose"), np.float64)
    except Exception as error:  # cdflib raises various errors for damaged files
        raise UserError(f"{path} holds no `Pose` ({_line(error)}); get the official file again") from None
    if pose.ndim != 3 or len(pose) != 1 or pose.shape[2] != 2 * _JOINTS:
        raise UserError(f"{path} has a `Pose` of {pose.shape} where [1,T,64] is needed; get D2_Positions, not D3")
    return pose.reshape(-1, _JOINTS, 2)


def _masks(path, step: int, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Read every `step`-th mask of a video of `count` frames, (number from 0, [H,W] bool)."""
    try:
        import h5py
    except ImportError:
        raise UserError("Human3.6M needs the package h5py; pip install 'uld_jax[datasets]'") from None
    try:
        with path.open("rb") as opened, h5py.File(opened, "r") as file:
            masks = file["Masks"][()].ravel()
            for frame in range(0, min(len(masks), count), step):
                yield frame, np.asarray(file[masks[frame]][()]).T == 1  # MATLAB's columns are HDF5's rows
    except Exception as error:  # h5py raises various errors for damaged files
        raise UserError(f"{path} holds no `Masks` ({_line(error)}); get the official file again") from None


def _line(error) -> str:
    return " ".join(str(error).split())[:200]


DATASETS = tuple(
    Dataset(name, about, records, dict.fromkeys(SUBJECTS), landmarks=_JOINTS, scheme="human36m_32")
    for name, about in (
        ("human36m", "Human3.6M as Mallis et al. crop it, with a margin"),
        ("human36m_fan", "Human3.6M as the network of Mallis et al. sees it"),
    )
)
