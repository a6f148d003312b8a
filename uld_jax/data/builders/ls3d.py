"""LS3D as the papers use it: training on 300W-LP, tests on LS3D-W balanced (Bulat and Tzimiropoulos, ICCV 2017).

  SRC/300W_LP/                             see `w300lp.py`; the points are `pts_3d`
  SRC/LS3D-W-balanced/**/NAME.jpg, .t7     7,200 faces, in folders of any name; a .t7 is a Torch7 tensor of 68 x 2

The second folder may have the name of its archive, LS3D-W-balanced-20-03-2017. Points of both are on the head itself,
so that those of a far cheek are hidden. No human has set those of LS3D-W: a network made them out of the points of
other data sets, so an error below some percent says nothing.

  ls3d            the unchanged pictures; 61,225 of 300W-LP, not mirrored, and 7,200
  ls3d_mallis     the same in the crop of Mallis et al. (NeurIPS 2020) at evaluation, 256 x 256 pixels: the box of the
                  points in whole pixels, its top raised by a third of its height, enlarged by `crops.fan_crop` (0.5).
                  They train on crops around other boxes, which they publish as a pickle; pickles are not read, so the
                  boxes of the points are used for training too
  ls3d_cgb        the crop of CGB: the box of the points enlarged by 16 % on all sides, stretched to 128 x 128 pixels;
                  training on the 61,225, tests on 870 images. CGB fits its regressors on 11,970 of the 61,225 at most

Either paper takes images in the order in which a file system lists them, which nobody can repeat: CGB's 870 are the
first of LS3D-W's names in alphabetical order here. Points are counted from 1: those of 300W-LP are MATLAB's, and
LS3D-W's authors add 1 to predicted points before they compare them (issue 13 of 1adrianb/2D-and-3D-face-alignment). The
published code of both papers takes the points as if counted from 0; its crops are kept to the pixel, and the points lie
where the annotation says.

The sets have no columns: nothing about LS3D-W's images tells their yaw, which is computed from the points where it is
needed (`evaluation.measure.yaw_of`). Errors are divided by the square root of the area of the points' box, as in both
papers.
"""

from collections.abc import Callable

import numpy as np

from uld_jax.data import crops, listing
from uld_jax.data.builders import torch7, w300lp
from uld_jax.data.builders.official import Crop, Dataset, Files, Record, around_points
from uld_jax.errors import UserError

BALANCED = 7_200
CGB_TEST = 870  # 29 batches of 30
_CGB_TIGHT = 16  # percent
_FOLDERS = ("LS3D-W-balanced-20-03-2017", "LS3D-W-balanced", "LS3D-W", "LS3D")


def records(files: Files, name: str) -> dict[str, list[Record]]:
    """Read the images of both splits, see the module. Raises UserError for any error in the files."""
    rule = name.partition("_")[2]
    crop = {"": None, "mallis": _mallis, "cgb": _cgb}[rule]
    train = w300lp.pictures(files, "pts_3d", pose=False, crop=crop)
    test = _balanced(files, crop)
    return {"train": train, "test": test[:CGB_TEST] if rule == "cgb" else test}


def _balanced(files: Files, crop: Callable | None) -> list[Record]:
    """Images of LS3D-W balanced, in the order of their names."""
    root = files.find(*_FOLDERS, what="folder of LS3D-W balanced")
    found = [name[:-4] for name in listing.list_images(root) if name.endswith(".jpg")]
    files.expect(root, len(found), BALANCED)
    out = []
    for name in files.with_file(found, lambda n: root / f"{n}.t7"):
        place = root / f"{name}.t7"
        points = torch7.read(place)
        if points.shape != (68, 2) or not np.isfinite(points).all():
            shape = " x ".join(map(str, points.shape))
            raise UserError(f"{place} holds {shape} numbers where 68 x 2 finite ones are needed; get the official file")
        points = points - 1
        path = files.name(root / f"{name}.jpg")
        shown = crop(points) if crop else None
        out.append(Record(f"{name}.jpg", str(place), landmarks=points, crop=shown, path=path))
    return out


def _mallis(points: np.ndarray) -> Callable:
    """The crop of Mallis et al. for points from 0, whose formula is for numbers of the file."""
    x0, y0, x1, y1 = (int(v) for v in (*(points + 1).min(0), *(points + 1).max(0)))
    box, size = (x0, y0 - (y1 - y0) / 3, x1, y1), (256, 256)
    return lambda file_size: Crop.of(crops.fan_crop(box, file_size), size)


def _cgb(points: np.ndarray) -> Callable:
    """The crop of CGB for points from 0, whose formula is for numbers of the file."""
    return around_points(points + 1, _CGB_TIGHT)


def _dataset(name: str, about: str, test: int) -> Dataset:
    counts = {"train": w300lp.IMAGES, "test": test}
    return Dataset(name, about, records, counts, landmarks=68, scheme="ibug68", normaliser="box")


DATASETS = (
    _dataset("ls3d", "300W-LP for training, LS3D-W balanced for tests", BALANCED),
    _dataset("ls3d_mallis", "300W-LP and LS3D-W balanced in the crop of Mallis et al.", BALANCED),
    _dataset("ls3d_cgb", "300W-LP and a part of LS3D-W balanced in the crop of CGB", CGB_TEST),
)
