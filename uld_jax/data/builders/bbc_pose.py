"""BBC Pose (Charles et al., BMVC 2013): frames of sign language interpreters with seven joints of the upper body.

  SRC/bbcpose.mat       struct array `bbcpose` of 92 videos: videoName, type, source, train_frames [1,N], train_joints
                        [2,7,N], test_frames [1,M], test_joints [2,7,M]; frames and pixels are counted from 1
  SRC/1/1.jpg, ...      frames of a video by its place in the array, from 1, and the frame's number

Both may lie in SRC/bbcpose. The first 20 videos are BBC Pose; the others are Extended BBC Pose, which is not read. The
field `type` tells the split of a video: ten for training, five for validation, five for the test.

  bbc_pose   all frames of the ten training videos that have joints, which a program found (`train_*`); of the other
             videos the 200 frames each that are annotated by hand (`test_*`), 1,000 a split; whole frames

Joints: head; right and left wrist, elbow and shoulder, of the person. Mallis et al. report BBC Pose without a crop or a
choice of frames that could be followed. How many training frames there are is not published, so it is not checked. The
column `video` has the number of the video.
"""

from typing import Any, NamedTuple

import numpy as np

from uld_jax.data.builders import matlab
from uld_jax.data.builders.official import Dataset, Files, Record
from uld_jax.errors import UserError

VIDEOS = {"train": 10, "val": 5, "test": 5}
_LISTED, _READ = 92, 20  # videos of the file, and of BBC Pose
_JOINTS = 7
_FIELDS = ("type", "train_frames", "train_joints", "test_frames", "test_joints")


class _Video(NamedTuple):
    """The annotated frames that are used of a video.

    Attributes:
      split: its split.
      frames: [N] numbers of the frames, from 1.
      joints: [N,7,2] `(x, y)` in pixels from 0.
    """

    split: str
    frames: np.ndarray
    joints: np.ndarray


def records(files: Files, name: str) -> dict[str, list[Record]]:
    """Read the images of every split, see the module. Raises UserError for any error in the file of the joints."""
    del name
    path = files.find("bbcpose.mat", "bbcpose/bbcpose.mat", what="bbcpose.mat of BBC Pose")
    videos = _read(files, path)
    for split, official in VIDEOS.items():
        files.expect(path, sum(one.split == split for one in videos), official, f"videos of the split {split}")
    found = {split: [] for split in VIDEOS}
    for number, video in enumerate(videos, 1):
        for frame, joints in zip(video.frames, video.joints, strict=True):
            file = f"{number}/{frame}.jpg"
            found[video.split].append(
                Record(
                    file=file,
                    path=files.name(path.parent / file),
                    place=f"{path}, video {number}, frame {frame}",
                    landmarks=joints,
                    columns={"video": str(number)},
                )
            )
    return found


def _read(files: Files, path) -> list[_Video]:
    videos = np.ravel(matlab.load(path, "bbcpose")["bbcpose"]).tolist()
    if not videos or not all(isinstance(one, dict) and set(_FIELDS) <= set(one) for one in videos):
        raise UserError(
            f"{path} holds no struct array `bbcpose` with the fields {', '.join(_FIELDS)}; get the official file again"
        )
    files.expect(path, len(videos), _LISTED, "videos")
    return [_video(f"{path}, video {number}", fields) for number, fields in enumerate(videos[:_READ], 1)]


def _video(place: str, fields: dict[str, Any]) -> _Video:
    split = str(fields["type"])
    if split not in VIDEOS:
        raise UserError(f"{place} has the type {split!r}, and {', '.join(VIDEOS)} exist; get the official file again")
    which = "train" if split == "train" else "test"
    frames, joints = (np.asarray(fields[f"{which}_{word}"]) for word in ("frames", "joints"))
    try:
        frames = frames.astype(np.float64).ravel()
        joints = joints.astype(np.float64).reshape(2, _JOINTS, len(frames))  # the last axis is absent for one frame
    except (TypeError, ValueError):
        raise UserError(
            f"{place} has {which}_joints of shape {joints.shape} for {frames.size} frames where [2,{_JOINTS},N] are "
            "needed; get the official file again"
        ) from None
    whole = frames.astype(np.int64) if np.isfinite(frames).all() else np.zeros(len(frames), np.int64)
    if (whole != frames).any() or (whole < 1).any():
        raise UserError(f"{place}: {which}_frames holds other numbers than 1, 2, 3, ...; get the official file again")
    return _Video(split, whole, joints.transpose(2, 1, 0) - 1)


DATASETS = (
    Dataset(
        "bbc_pose",
        "BBC Pose, whole frames",
        records,
        {"train": None, "val": 1_000, "test": 1_000},
        landmarks=_JOINTS,
        scheme="bbc_pose7",
    ),
)
