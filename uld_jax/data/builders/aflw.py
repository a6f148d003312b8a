"""AFLW (Koestinger et al., ICCV workshops 2011), and the recropped faces of Zhang et al. (CVPR 2018), AFLW_R in papers.

  SRC/aflw_train_images.txt, aflw_test_images.txt         recropped faces, one a line, as paths below output/
  SRC/aflw_train_keypoints.mat, aflw_test_keypoints.mat   in the order of the lists: `gt` [N,5,2], points as (y, x)
                                                          counted from 0, and `hw` [N,2], (height, width) of the images
  SRC/output/0/image00002_39341.jpg, ...                  the recropped faces, NUMBER_FACEID; also in output/2, output/3
  SRC/data/aflw.sqlite                                    the annotation of AFLW itself
  SRC/data/flickr/0/image00002.jpg, ...                   its photos, which may show several faces

The first three lie in SRC itself or in SRC/aflw_release-2, the database and the photos also in SRC or in SRC/aflw/data.

  aflw_r      10,122 faces for training and 2,991 for the test, as they are
  aflw_r_dve  the same, each squeezed to 136 x 136 pixels (DVE, ContrastLandmarks, LEAD). `uld dense` fits images into a
              frame of 136 pixels, so it neither resamples these nor pads them, and its central 96 are those of DVE
  aflw_r_imm  each stretched to 128 x 128; the last tenth of the training list is for validation (IMM, C3)
  aflw_r_cgb  the box around the annotated points, enlarged by 70 %, stretched to 128 x 128: the annotation defines the
              crop (CGB; Sanchez et al. train on it)
  aflw_r_saic the same, enlarged by 16 %, the default of the program of Sanchez et al. in tests
  aflw        AFLW's faces with its 21 points, each in a square around its rectangle with 1.5 times the longer side

The lists of AFLW_R name some faces more than once, 132 of the test (README of DVE), and papers keep them. So the name
of a record begins with its place in the list, from 0. If SRC has aflw.sqlite too, the faces of AFLW_R have its angles.

AFLW has no official split. Here every fifth photo in the order of paths is for the test, with all its faces, so that no
photo is in both parts. About 24,400 faces have a rectangle; the others are left out. Points that are not annotated,
which are those that cannot be seen, have no row in the database. Crops are black beyond the photo.

Angles are AFLW's in degrees, of a rotation that rolls a head first, then pitches and last yaws it. `yaw` is positive if
the nose is turned to the image's right, `pitch` if it is lifted, and `roll` if the head is turned clockwise; yaw and
roll thus have the opposite sign of the database, by the code with which AFLW's authors computed the poses. Several
percent of the yaws exceed 90 degrees.
"""

import contextlib
import functools
import math
import posixpath
import urllib.parse
from typing import NamedTuple

import numpy as np
from etils import epath

from uld_jax.data.builders import matlab
from uld_jax.data.builders.official import TIGHT, Crop, Dataset, Files, Record, around_points
from uld_jax.errors import UserError

RECROPPED = {"train": 10_122, "test": 2_991}
_IMM_HELD_OUT = 0.1  # share of the training list, rounded to images
_SQUEEZED = {"dve": (136, 136), "imm": (128, 128)}
_POINTS = 21
_ENLARGED = 1.5  # so that ears and chin, which lie at the rectangle's border, are in the crop
_TEST_EVERY = 5
_ANGLES = ("yaw", "pitch", "roll")
_SIGNS = (-1, 1, -1)  # of the angles, ours by AFLW's


def recropped(files: Files, name: str) -> dict[str, list[Record]]:
    """Read the faces of every split of AFLW_R, see the module. Raises UserError for any error in the lists."""
    rule = name.removeprefix("aflw_r").removeprefix("_")
    database = _database(files)
    angles = None if database is None else _angles(database)
    splits = {split: _recropped(files, split, rule, angles) for split in RECROPPED}
    if rule == "imm":
        train = splits["train"]
        kept = len(train) - round(_IMM_HELD_OUT * len(train))
        splits = {"train": train[:kept], "val": train[kept:], "test": splits["test"]}
    return splits


def _recropped(files: Files, split: str, rule: str, angles) -> list[Record]:
    listed, matrices = (
        files.find(
            *(f"{folder}{name}" for folder in ("", "aflw_release-2/", "aflw/aflw_release-2/")),
            what=f"{name} of the recropped AFLW",
        )
        for name in (f"aflw_{split}_images.txt", f"aflw_{split}_keypoints.mat")
    )
    names = [(line, text.replace("\\", "/").strip("/").removeprefix("output/")) for line, text in files.lines(listed)]
    files.expect(listed, len(names), RECROPPED[split])
    found = matlab.arrays(matrices, {"gt": (None, 5, 2), "hw": (None, 2)})
    for variable, value in found.items():
        if len(value) != len(names):
            raise UserError(
                f"{matrices}: {variable} has {len(value):,} rows and {listed} has {len(names):,} images; get both from "
                "one source"
            )
    folder = files.name(listed.parent / "output")
    return [
        Record(
            file=f"{row:05d}_{posixpath.basename(name)}",
            place=f"{listed}, line {line}",
            landmarks=points[:, ::-1],
            columns={} if angles is None else angles.get(_face_id(name), dict.fromkeys(_ANGLES, "")),
            crop=functools.partial(_crop, points=points[:, ::-1], listed=tuple(hw.astype(int)), rule=rule),
            path=f"{folder}/{name}",
        )
        for row, ((line, name), points, hw) in enumerate(zip(names, found["gt"], found["hw"], strict=True))
    ]


def _crop(size: tuple[int, int], points: np.ndarray, listed: tuple[int, int], rule: str) -> Crop | None:
    """The crop of a paper for the (height, width) of a file, which must be the listed one; None for the whole file."""
    if tuple(size) != listed:
        raise UserError(
            f"the image has {size[1]} x {size[0]} pixels where the list of sizes, hw, has {listed[1]} x {listed[0]}; "
            "get the lists, the points and the images from one source"
        )
    if rule in TIGHT:
        return around_points(points, TIGHT[rule])(size)
    if rule in _SQUEEZED:
        return Crop.of((0, 0, size[1], size[0]), _SQUEEZED[rule])
    return None


def _face_id(name: str) -> int | None:
    """The number of a face in AFLW, from a name such as `0/image00002_39341.jpg`; 0 stands for an unknown one."""
    number = posixpath.basename(name).partition(".")[0].rpartition("_")[2]
    return int(number) if number.isdecimal() else None


# AFLW itself


class _Face(NamedTuple):
    """A face: its number, the path of its photo, and its rectangle x, y, width, height, which may leave the photo."""

    number: int
    photo: str
    rectangle: tuple[float, float, float, float]


def annotated(files: Files, name: str) -> dict[str, list[Record]]:
    """Read the faces of both splits of AFLW, see the module. Raises UserError for any error in the database."""
    del name
    path = _database(files)
    if path is None:
        raise UserError(f"{files.root} holds no aflw.sqlite of AFLW; put it there as one of {', '.join(_PLACES)}")
    photos = files.find("flickr", "data/flickr", "aflw/data/flickr", what="folder flickr with the photos of AFLW")
    faces, angles, points = _faces(files, path), _angles(path), {}
    query = "SELECT face_id, feature_id, x, y FROM FeatureCoords WHERE feature_id BETWEEN 1 AND 21"
    for face, feature, x, y in _rows(path, query):
        x, y = _numbers(path, f"point {feature} of face {face}", x, y)
        if min(x, y) >= 0:  # the authors' tools leave out rows with negative numbers
            points.setdefault(face, np.full((_POINTS, 2), np.nan))[int(feature) - 1] = x, y
    number = {photo: place for place, photo in enumerate(sorted({face.photo for face in faces}))}
    splits = {"train": [], "test": []}
    for face in faces:
        x, y, width, height = face.rectangle
        stem = face.photo.rpartition(".")[0]
        record = Record(
            file=f"{stem}_{face.number}.jpg",
            place=f"{path}, face {face.number}",
            landmarks=points.get(face.number, np.full((_POINTS, 2), np.nan)),
            box=(x, y, x + width - 1, y + height - 1),  # of pixels, the last one inside
            columns=angles.get(face.number, dict.fromkeys(_ANGLES, "")),
            crop=functools.partial(_around, rectangle=face.rectangle),
            path=f"{files.name(photos)}/{face.photo}",
        )
        splits["test" if number[face.photo] % _TEST_EVERY == _TEST_EVERY - 1 else "train"].append(record)
    return splits


def _faces(files: Files, path) -> list[_Face]:
    """All faces with a photo and a rectangle, in the order of photos and numbers; says how many have none."""
    query = (
        "SELECT Faces.face_id, filepath, FaceRect.x, FaceRect.y, FaceRect.w, FaceRect.h FROM Faces "
        "LEFT JOIN FaceImages ON FaceImages.file_id = Faces.file_id LEFT JOIN FaceRect USING (face_id)"
    )
    found, without = {}, set()
    for face, photo, *rectangle in _rows(path, query):
        if photo is None or None in rectangle:
            without.add(face)
            continue
        rectangle = _numbers(path, f"the rectangle of face {face}", *rectangle)
        if min(rectangle[2:]) > 0:
            found.setdefault(face, _Face(face, str(photo).replace("\\", "/"), rectangle))
        else:
            without.add(face)
    if lacking := without - set(found):
        files.notes.append(f"{path} has no photo or no rectangle of {len(lacking):,} faces, which are left out")
    return sorted(found.values(), key=lambda face: (face.photo, face.number))


def _around(size: tuple[int, int], rectangle: tuple[float, float, float, float]) -> Crop:
    """The square of whole pixels around a rectangle, at the photo's own resolution."""
    x, y, width, height = rectangle
    if x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0:
        raise UserError(
            f"the face's rectangle, {width:g} x {height:g} pixels at ({x:g}, {y:g}), lies outside its photo of "
            f"{size[1]} x {size[0]}; get aflw.sqlite and the photos from one source"
        )
    side = math.ceil(_ENLARGED * max(width, height))
    left, top = (math.floor(start + (length - side) / 2) for start, length in ((x, width), (y, height)))
    return Crop.of((left, top, left + side, top + side), (side, side))


# The database

_PLACES = ("aflw.sqlite", "data/aflw.sqlite", "aflw/data/aflw.sqlite")


def _database(files: Files) -> epath.Path | None:
    return next((files.root / name for name in _PLACES if (files.root / name).exists()), None)


def _angles(path) -> dict[int, dict[str, str]]:
    """The angles of faces in degrees, {face: {name: text}}."""
    out = {}
    for face, *angles in _rows(path, f"SELECT face_id, {', '.join(_ANGLES)} FROM FacePose"):
        if None not in angles:
            degrees = np.degrees(_numbers(path, f"the pose of face {face}", *angles)) * _SIGNS
            out.setdefault(face, {name: f"{angle:.3f}" for name, angle in zip(_ANGLES, degrees, strict=True)})
    return out


def _rows(path, query: str) -> list[tuple]:
    """The rows of a query, in the order of the file."""
    import sqlite3

    try:
        address = f"file:{urllib.parse.quote(str(path))}?mode=ro"  # which creates no file
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            return connection.execute(query).fetchall()
    except sqlite3.Error as error:
        raise UserError(f"{path} cannot be read as the database of AFLW ({error}); get aflw.sqlite again") from None


def _numbers(path, what: str, *cells) -> tuple[float, ...]:
    try:
        out = tuple(float(cell) for cell in cells)
    except (TypeError, ValueError):
        out = (math.nan,)
    if not all(map(math.isfinite, out)):
        raise UserError(f"{path}: {what} has {cells!r} where numbers are needed; get aflw.sqlite again")
    return out


def _of_recropped(name: str, about: str, counts=RECROPPED) -> Dataset:
    return Dataset(name, about, recropped, counts, landmarks=5, scheme="eyes_nose_mouth5")


DATASETS = (
    _of_recropped("aflw_r", "recropped faces of AFLW"),
    _of_recropped("aflw_r_dve", "recropped faces of AFLW, squeezed as by DVE"),
    _of_recropped(
        "aflw_r_imm",
        "recropped faces of AFLW in the crop and split of IMM",
        {"train": 9_110, "val": 1_012, "test": 2_991},
    ),
    _of_recropped("aflw_r_cgb", "recropped faces of AFLW in the crop of CGB"),
    _of_recropped("aflw_r_saic", "recropped faces of AFLW in the crop of Sanchez et al."),
    Dataset("aflw", "AFLW with 21 points", annotated, {"train": None, "test": None}, _POINTS, "aflw21"),
)
