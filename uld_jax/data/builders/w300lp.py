"""300W-LP, faces of 300-W turned by a 3D model, and AFLW2000-3D, its usual test set (Zhu et al., CVPR 2016).

  SRC/300W_LP/AFW/AFW_134212_1_0.jpg, .mat              450 x 450 pixels, and the parameters of the 3D model; beside
                                                        AFW: HELEN, IBUG, LFPW
  SRC/300W_LP/AFW_Flip/AFW_134212_1_0.jpg, .mat         the mirrored picture, under the same name
  SRC/300W_LP/landmarks/AFW/AFW_134212_1_0_pts.mat      68 points of the picture: `pts_2d` with the jaw on its outline
                                                        in the picture, `pts_3d` on the head itself
  SRC/AFLW2000/image00002.jpg, .mat                     450 x 450 pixels; `pt3d_68`, and AFLW's 21 points in `pt2d`

The content of either folder may lie in SRC itself.

  w300lp          the 61,225 pictures that are not mirrored, with `pts_2d`
  w300lp_flip     all 122,450
  aflw2000        2,000 photos with 68 points on the head itself (x and y of `pt3d_68`)
  aflw2000_21     the same photos with AFLW's 21 points; those with x = -1 are missing

`pt2d` in the .mat of a picture of 300W-LP is not read: it holds the points of the photo before it was turned. Points
are counted from 1 in all these files, as MATLAB counts pixels. A picture's mirror image has no points of its own: a
point at x pixels from 0 lies at 449 - x in it, and left and right change places. (The published `450 - x` of Mallis et
al. gives the same number out of an x that is counted from 1.)

The columns yaw, pitch and roll are degrees of `Pose_Para`, which every .mat has, also of mirrored pictures. Yaw is
positive here if the nose is turned to the image's right, which is the file's sign turned round; pitch is positive if
the nose is lifted, roll if the head is turned clockwise. `within_99` of AFLW2000-3D is `yes` where all three are at
most 99 degrees: work on head pose counts these images alone. Errors are divided by the box of the points, because the
eyes of a profile coincide.
"""

from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from uld_jax.data.builders import matlab
from uld_jax.data.builders.official import Dataset, Files, Record
from uld_jax.data.schemes import SCHEMES
from uld_jax.errors import UserError

SETS = {"AFW": 5_207, "HELEN": 37_676, "IBUG": 1_786, "LFPW": 16_556}  # images, as many again mirrored
IMAGES = 61_225
AFLW2000 = 2_000
SIZE = 450  # of every picture, both sides
_FLIP = "_Flip"
_MISSING = -1  # x of a point that is not annotated
_MOST_TURN = 99.0  # degrees


def records(files: Files, name: str) -> dict[str, list[Record]]:
    """Read the images of one of `DATASETS`, see the module. Raises UserError for any error in the files."""
    if name.startswith("aflw2000"):
        return {"test": _aflw2000(files, name)}
    return {"train": pictures(files, "pts_2d", flips=name == "w300lp_flip")}


def pictures(
    files: Files, variable: str, *, flips: bool = False, pose: bool = True, crop: Callable | None = None
) -> list[Record]:
    """Read the pictures of 300W-LP with one of the variables of their points.

    Args:
      files: the folder.
      variable: `pts_2d` or `pts_3d`.
      flips: True adds the mirrored pictures.
      pose: True gives the columns yaw, pitch and roll.
      crop: function of points [68,2] that returns the crop of their record.

    Raises:
      UserError: sets, points or parameters are absent or damaged, or sets have other lengths than the official ones.
    """
    places = [f"{folder}landmarks" for folder in ("300W_LP/", "300W-LP/", "")]
    root = files.find(*places, what="folder landmarks of 300W-LP, with the points of its pictures").parent
    out = []
    for name, official in SETS.items():
        for folder in (name, name + _FLIP) if flips else (name,):
            place = lambda n, of=name: root / f"landmarks/{of}/{n.replace(_FLIP, '')}_pts.mat"
            beside = lambda n, of=folder: root / f"{of}/{n}.mat"
            found = files.stems(root / folder, ".jpg")
            files.expect(root / folder, len(found), official)
            found = files.with_file(found, place)
            if pose:
                found = files.with_file(found, beside)
            for n in tqdm(found, desc=f"reading {folder}", unit=" images", disable=None, leave=False):
                points = matlab.arrays(place(n), {variable: (68, 2)})[variable] - 1
                if folder != name:
                    points = mirrored(points)
                out.append(
                    Record(
                        file=f"{folder}/{n}.jpg",
                        path=files.name(root / folder / f"{n}.jpg"),
                        place=str(place(n)),
                        landmarks=points,
                        columns=_columns(matlab.arrays(beside(n), _POSE)["Pose_Para"]) if pose else {},
                        crop=crop(points) if crop else _of_size if folder != name else None,
                    )
                )
    return out


_POSE = {"Pose_Para": (1, 7)}  # pitch, yaw, roll in radians, shift in three directions, scale


def _of_size(file_size: tuple[int, int]) -> None:
    """Raise UserError if a mirrored picture has another size, for which `mirrored` would be wrong."""
    if file_size[1] != SIZE:
        raise UserError(
            f"the mirrored picture is {file_size[1]} pixels wide where {SIZE} are needed; get the official one"
        )


def mirrored(points: np.ndarray) -> np.ndarray:
    """Move points [68,2] of a picture, pixels from 0, to its mirror image.

    >>> points = np.zeros((68, 2)); points[36] = 100, 7
    >>> mirrored(points)[45].tolist()
    [349.0, 7.0]
    """
    return np.stack([SIZE - 1 - points[:, 0], points[:, 1]], -1)[list(SCHEMES["ibug68"].mirror)]


def _columns(pose: np.ndarray) -> dict[str, str]:
    """Columns of `Pose_Para` [1,7]."""
    pitch, yaw, roll = np.degrees(pose[0, :3])
    return {"yaw": f"{0 - yaw:.3f}", "pitch": f"{pitch:.3f}", "roll": f"{roll:.3f}"}


def _aflw2000(files: Files, name: str) -> list[Record]:
    folders = [path for path in (files.root / "AFLW2000", files.root / "AFLW2000-3D", files.root) if path.exists()]
    root = next((path for path in folders if files.stems(path, ".jpg")), None)
    if root is None:
        raise UserError(
            f"{files.root} holds no photos of AFLW2000-3D; put them there as AFLW2000/image00002.jpg and so on"
        )
    found = files.stems(root, ".jpg")
    files.expect(root, len(found), AFLW2000)
    found = files.with_file(found, lambda n: root / f"{n}.mat")
    variable, shape = ("pt2d", (2, 21)) if name == "aflw2000_21" else ("pt3d_68", (3, 68))
    out = []
    for n in found:
        place = root / f"{n}.mat"
        values = matlab.arrays(place, {variable: shape} | _POSE)
        # Only x tells that one of the 21 points is missing: its y was turned upside down after the mark had been set.
        points = values[variable][:2].T
        points = np.where(points[:, :1] == _MISSING, np.nan, points - 1) if variable == "pt2d" else points - 1
        within = np.abs(np.degrees(values["Pose_Para"][0, :3])).max() <= _MOST_TURN
        columns = _columns(values["Pose_Para"]) | {"within_99": "yes" if within else "no"}
        path = files.name(root / f"{n}.jpg")
        out.append(Record(f"{n}.jpg", str(place), landmarks=points, columns=columns, path=path))
    return out


def _dataset(name: str, about: str, counts: dict[str, int], landmarks=68, scheme="ibug68") -> Dataset:
    return Dataset(name, about, records, counts, landmarks, scheme, normaliser="box")


DATASETS = (
    _dataset("w300lp", "300W-LP without mirrored pictures", {"train": IMAGES}),
    _dataset("w300lp_flip", "300W-LP with mirrored pictures", {"train": 2 * IMAGES}),
    _dataset("aflw2000", "AFLW2000-3D, 68 points", {"test": AFLW2000}),
    _dataset("aflw2000_21", "AFLW2000-3D, AFLW's 21 points", {"test": AFLW2000}, 21, "aflw21"),
)
