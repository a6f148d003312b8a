"""MTFL (Zhang et al., ECCV 2014), and AFLW_M: faces of AFLW, of which MTFL's test images are the test.

  SRC/MTFL/training.txt, testing.txt        path, x1..x5, y1..y5, gender, smile, glasses, pose; pixels counted from 1
  SRC/MTFL/lfw_5590/, net_7876/             training images of 250 x 250, 400 x 400 and 160 x 216 pixels
  SRC/MTFL/AFLW/0001-image00026.jpg, ...    test images, faces of AFLW in 150 x 150 pixels
  SRC/aflw_cropped/facedata_cropped.csv     `crop_file`, `set`, and x1, y1, x2, ... in columns 4 to 13, counted from 0
  SRC/aflw_cropped/cropped/39341.jpg, ...   faces of AFLW in 150 x 150 pixels, cropped by Thewlis et al.

MTFL's files may lie in SRC itself. Its training list has backslashes in paths, and the test list slashes.

  mtfl     MTFL itself: 10,000 images for training and 2,995 for the test
  aflw_m   rows of the csv with set = 1, 10,122 images, for training, and MTFL's test (Thewlis et al., DVE, LEAD)

The images stay as they are. `pose` is 1 (left profile), 2 (left), 3 (frontal), 4 (right) or 5 (right profile), and
empty for training images of AFLW_M; the other columns of `mtfl` are MTFL's numbers as well. MTFL does not say where it
counts from; 1 is subtracted as in the code of DVE.
"""

import posixpath

import numpy as np

from uld_jax.data import csv_tables
from uld_jax.data.builders.official import Dataset, Files, Record
from uld_jax.errors import UserError

MTFL = {"train": 10_000, "test": 2_995}
AFLW_M = {"train": 10_122, "test": 2_995}
_ATTRIBUTES = ("gender", "smile", "glasses", "pose")
_POSES = tuple("12345")
_FIRST = 4  # column of the first point in the csv


def records(files: Files, name: str) -> dict[str, list[Record]]:
    """Read the images of both splits of one of `DATASETS`, see the module. Raises UserError for any error in them."""
    if name == "mtfl":
        return {split: _listed(files, split, _ATTRIBUTES) for split in MTFL}
    return {"train": _cropped(files), "test": _listed(files, "test", ("pose",))}


def _listed(files: Files, split: str, columns: tuple[str, ...]) -> list[Record]:
    """The images of one of MTFL's lists."""
    file = {"train": "training.txt", "test": "testing.txt"}[split]
    path = files.find(f"MTFL/{file}", file, what=f"list {file} of MTFL")
    folder, out = path.parent, []
    for line, text in files.lines(path):
        place, cells = f"{path}, line {line}", text.split()
        if len(cells) != 1 + 10 + len(_ATTRIBUTES):
            raise UserError(f"{place} has {len(cells)} cells where 15 are needed; get the official file again")
        facts = dict(zip(_ATTRIBUTES, cells[11:], strict=True))
        if facts["pose"] not in _POSES:
            raise UserError(f"{place}: the pose {facts['pose']!r} is none of 1 to 5; get the official file again")
        name = cells[0].replace("\\", "/")
        out.append(
            Record(
                file=name,
                place=place,
                landmarks=files.numbers(cells[1:11], place).reshape(2, 5).T - 1,
                columns={column: facts[column] for column in columns},
                path=files.name(folder / name),
            )
        )
    files.expect(path, len(out), MTFL[split])
    return out


def _cropped(files: Files) -> list[Record]:
    """The training images of AFLW_M."""
    path = files.find(
        "aflw_cropped/facedata_cropped.csv", "facedata_cropped.csv", what="facedata_cropped.csv of aflw_cropped"
    )
    table, out = csv_tables.read_table(path), []
    lacking = [column for column in ("crop_file", "set") if column not in table.header]
    if lacking or len(table.header) < _FIRST + 10:
        said = f"has no column {lacking[0]}" if lacking else f"has {len(table.header)} columns where 14 are needed"
        raise UserError(f"{path} {said}; get the official file again")
    file, which = (table.header.index(column) for column in ("crop_file", "set"))
    for line, cells in table.rows:
        place = f"{path}, line {line}"
        if len(cells) != len(table.header):
            raise UserError(
                f"{place} has {len(cells)} cells and the first line {len(table.header)}; get the official file again"
            )
        if files.numbers([cells[which]], place)[0] != 1:
            continue
        name = posixpath.normpath(cells[file].strip().replace("\\", "/"))
        out.append(
            Record(
                file=name,
                place=place,
                landmarks=np.reshape(files.numbers(cells[_FIRST : _FIRST + 10], place), (5, 2)) - 1,
                columns={"pose": ""},
                path=files.name(path.parent / name),
            )
        )
    files.expect(path, len(out), AFLW_M["train"], "images with set = 1")
    return out


DATASETS = (
    Dataset("mtfl", "MTFL's official parts", records, MTFL, landmarks=5, scheme="eyes_nose_mouth5"),
    Dataset("aflw_m", "faces of AFLW with MTFL's test", records, AFLW_M, landmarks=5, scheme="eyes_nose_mouth5"),
)
