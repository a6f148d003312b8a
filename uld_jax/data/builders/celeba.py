"""CelebA (Liu et al., ICCV 2015) and MAFL (Zhang et al., ECCV 2014), its subset with a split for landmarks.

  SRC/Img/img_align_celeba/000001.jpg, ...   aligned photos of 178 x 218 pixels (or img_align_celeba_hq)
  SRC/Img/img_celeba/000001.jpg, ...         photos in the wild, for celeba_wild and mafl_wild
  SRC/Eval/list_eval_partition.txt           part of each image: 0 training, 1 validation, 2 test
  SRC/Anno/list_landmarks_align_celeba.txt   five points, pixels of the aligned photo counted from 0
  SRC/Anno/list_landmarks_celeba.txt         five points, pixels of the photo in the wild
  SRC/Anno/list_bbox_celeba.txt              box of the face in the wild: x, y, width, height
  SRC/MAFL/training.txt, testing.txt         names, without points; the points are CelebA's

All files may lie in SRC itself, the lists may be Kaggle's csv files, and MAFL's may be called mafl_training.txt and
mafl_testing.txt. 808 of MAFL's 1,000 test images are in CelebA's training part, so that papers train without them, each
by a rule of its own:

  celeba          the official parts (LEAD trains on all 162,770)
  celeba_mallis   training part without MAFL's test images: 161,962 (Mallis et al., Tourani et al.)
  celeba_dve      training part without any image of MAFL: 146,501 (DVE, ContrastLandmarks); rows 30 to 207 of a photo
  celeba_imm      training part without MAFL's test images and without the last 1,900 of its training images by name,
                  which are IMM's for validation; the middle 80 % of a photo, stretched to 128 x 128
  celeba_cgb      all three parts without MAFL's test images: 201,599 (Sanchez et al., CGB); the box around the
                  annotated points, enlarged by 70 %, stretched to 128 x 128: the annotation defines the crop

The test split of these four is MAFL's. `mafl`, `mafl_dve`, `mafl_imm` and `mafl_cgb` are MAFL alone with the same
crops, for regressors; IMM's have 17,100 training images, CGB's 18,997. `mafl_saic` has CGB's images, but the box is
enlarged by 16 %, the default of the program of Sanchez et al. in tests.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from uld_jax.data import csv_tables
from uld_jax.data.builders.official import TIGHT, Crop, Dataset, Files, Record, around_points
from uld_jax.errors import UserError

IMAGES = 202_599
PARTS = {"train": 162_770, "val": 19_867, "test": 19_962}
MAFL = {"train": 19_000, "test": 1_000}
# Images of MAFL's splits in CelebA's parts.
CROSSING = {
    "train": {"train": 15_461, "val": 1_810, "test": 1_729},
    "test": {"train": 808, "val": 96, "test": 96},
}
SIZE = (218, 178)  # (height, width) of aligned photos
_IMM_HELD_OUT = 1_900  # a tenth of MAFL's training images
_CGB_LEFT_OUT = ("031524.jpg", "179577.jpg", "139803.jpg")  # of MAFL's training images, in the published code
_DVE_VAL = 2_000  # first images of the official test part that DVE validates on
_POINTS = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
_ALIGNED = ("img_align_celeba_hq", "img_align_celeba")
_WILD = ("img_celeba",)


class _Lists(NamedTuple):
    """The lists of both data sets, with file names such as `000001.jpg`.

    Attributes:
      part: split of each image by the official list, in its order.
      points: [5,2] points of each image.
      box: box of the face, {} for aligned photos.
      mafl: names of MAFL's splits, in their order; {} where they are not needed.
      folder: folder of the photos, below the root.
      place: file of the points, for messages.
    """

    part: dict[str, str]
    points: dict[str, np.ndarray]
    box: dict[str, tuple[float, float, float, float]]
    mafl: dict[str, list[str]]
    folder: str
    place: str


def records(files: Files, name: str) -> dict[str, list[Record]]:
    """Read the images of every split of one of `DATASETS`, see the module. Raises UserError for any error in them."""
    which, _, rule = name.partition("_")
    found = _read(files, wild=rule == "wild", mafl=which == "mafl" or rule not in ("", "wild"))
    parts = {split: [n for n, p in found.part.items() if p == split] for split in PARTS}
    if which == "mafl":
        names = _mafl_splits(found.mafl, rule)
    elif rule in ("", "wild"):
        names = parts
    else:
        names = {"train": _training(parts, found.mafl, rule), "test": found.mafl["test"]}
        if rule == "dve":
            names["val"] = parts["test"][:_DVE_VAL]
    return {split: [_record(found, n, rule) for n in listed] for split, listed in names.items()}


def _training(parts: dict[str, list[str]], mafl: dict[str, list[str]], rule: str) -> list[str]:
    """Images that a paper's rule trains on, in the order of the official list."""
    excluded = set(mafl["test"])
    if rule == "dve":
        excluded |= set(mafl["train"])
    if rule == "imm":
        excluded |= set(_imm_held_out(mafl["train"]))
    of = [n for split in PARTS for n in parts[split]] if rule == "cgb" else parts["train"]
    return [n for n in of if n not in excluded]


def _imm_held_out(train: list[str]) -> list[str]:
    """A tenth of the images, the last by name."""
    return sorted(train)[len(train) - round(len(train) * _IMM_HELD_OUT / MAFL["train"]) :]


def _mafl_splits(mafl: dict[str, list[str]], rule: str) -> dict[str, list[str]]:
    if rule == "imm":
        held_out = set(_imm_held_out(mafl["train"]))
        return {
            "train": [n for n in mafl["train"] if n not in held_out],
            "val": sorted(held_out),
            "test": mafl["test"],
        }
    if rule in TIGHT:
        return mafl | {"train": [n for n in mafl["train"] if n not in _CGB_LEFT_OUT]}
    return mafl


def _record(found: _Lists, name: str, rule: str) -> Record:
    points = found.points[name]
    return Record(
        file=name,
        path=f"{found.folder}/{name}",
        place=f"{found.place}, {name}",
        landmarks=points,
        box=found.box.get(name),
        crop=_crop(points, rule),
    )


def _crop(points: np.ndarray, rule: str):
    """The crop of a paper; its size does not depend on the annotation, except for those of `TIGHT`."""
    height, width = SIZE
    if rule == "dve":  # the photo from its 30th row on, as high as it is wide
        return Crop.of((0, 30, width, 30 + width), (width, width))
    if rule == "imm":
        return Crop.of((0.1 * width, 0.1 * height, 0.9 * width, 0.9 * height), (128, 128))
    if rule in TIGHT:
        return around_points(points, TIGHT[rule])
    return None


def _read(files: Files, *, wild: bool, mafl: bool) -> _Lists:
    stem = "list_landmarks_celeba" if wild else "list_landmarks_align_celeba"
    where, partition = _table(files, "Eval", "list_eval_partition", header=0, width=1)
    place, points = _table(files, "Anno", stem, header=2, width=10)
    of = {str(number): split for number, split in enumerate(PARTS)}
    part = {}
    for name, (cell,) in partition.items():
        if cell not in of:
            raise UserError(f"{where}, {name}: {cell!r} is no part; 0, 1 or 2 are")
        part[name] = of[cell]
    for split, official in PARTS.items():
        files.expect(where, sum(p == split for p in part.values()), official, f"images of the part {split}")
    _known(part, points, place)
    numbers = {n: files.numbers(points[n], f"{place}, {n}").reshape(5, 2) for n in part}
    box = {}
    if wild:
        place_of, boxes = _table(files, "Anno", "list_bbox_celeba", header=2, width=4)
        _known(part, boxes, place_of)
        for n in part:
            x, y, w, h = files.numbers(boxes[n], f"{place_of}, {n}")
            box[n] = (x, y, x + w - 1, y + h - 1)  # of pixels, the last one inside
    lists = {split: _mafl_list(files, split, part) for split in MAFL} if mafl else {}
    kinds = _WILD if wild else _ALIGNED
    folders = [path for kind in kinds for path in (f"Img/{kind}", f"{kind}/{kind}", kind)]
    photos = files.find(*folders, what=f"folder of {'photos in the wild' if wild else 'aligned photos'} of CelebA")
    return _Lists(part, numbers, box, lists, files.name(photos), str(place))


def _table(files: Files, folder: str, stem: str, *, header: int, width: int):
    """Read a list of CelebA, its path and {name: cells}: text with `header` first lines, or Kaggle's csv with one."""
    places = [f"{where}{stem}.{ending}" for where in (f"{folder}/", "") for ending in ("txt", "csv")]
    path = files.find(*places, what=f"{stem}.txt of CelebA")
    if path.name.endswith(".csv"):
        rows = [(f"{path}, line {line}", cells) for line, cells in csv_tables.read_table(path).rows]
    else:
        lines = files.lines(path)
        if header and (not lines or not lines[0][1].isdecimal()):
            first = lines[0][1][:40] if lines else ""
            raise UserError(
                f"{path}, line 1: {first!r} is not the number of images, {IMAGES}; some copies hold a saved error "
                "page, so get the official file again"
            )
        rows = [(f"{path}, line {line}", text.split()) for line, text in lines[header:]]
    out = {}
    for place, cells in rows:
        if len(cells) != 1 + width:
            raise UserError(f"{place} has {len(cells)} cells where {1 + width} are needed; get the official file again")
        out[cells[0]] = cells[1:]
    files.expect(path, len(out), IMAGES)
    return path, out


def _mafl_list(files: Files, split: str, part: dict[str, str]) -> list[str]:
    word = {"train": "training", "test": "testing"}[split]
    path = files.find(f"MAFL/{word}.txt", f"mafl_{word}.txt", f"Eval/mafl_{word}.txt", what=f"list {word}.txt of MAFL")
    names = [text for _, text in files.lines(path)]
    files.expect(path, len(names), MAFL[split])
    _known(names, part, path)
    for of, official in CROSSING[split].items():
        files.expect(path, sum(part[n] == of for n in names), official, f"images of CelebA's part {of}")
    return names


def _known(names: Iterable[str], known, place) -> None:
    """Raise UserError if a name of one list is not in another; `place` is the list that differs."""
    lacking = [n for n in names if n not in known]
    if lacking:
        raise UserError(
            f"{place} and CelebA's other lists differ in {len(lacking):,} images, first {lacking[0]}; get all lists "
            "from one source"
        )


def _dataset(name: str, about: str, counts: dict[str, int]) -> Dataset:
    return Dataset(name, about, records, counts, landmarks=len(_POINTS), scheme="eyes_nose_mouth5")


DATASETS = (
    _dataset("celeba", "CelebA's official parts, aligned", PARTS),
    _dataset("celeba_wild", "CelebA's official parts, in the wild, with boxes", PARTS),
    _dataset("celeba_mallis", "CelebA as Mallis et al. train on it", {"train": 161_962, "test": 1_000}),
    _dataset("celeba_dve", "CelebA as DVE trains on it", {"train": 146_501, "val": _DVE_VAL, "test": 1_000}),
    _dataset("celeba_imm", "CelebA as IMM trains on it", {"train": 161_962, "test": 1_000}),
    _dataset("celeba_cgb", "CelebA as Sanchez et al. and CGB train on it", {"train": 201_599, "test": 1_000}),
    _dataset("mafl", "MAFL, aligned", MAFL),
    _dataset("mafl_wild", "MAFL in the wild, with boxes", MAFL),
    _dataset("mafl_dve", "MAFL in the crop of DVE", MAFL),
    _dataset("mafl_imm", "MAFL in the crop and split of IMM", {"train": 17_100, "val": 1_900, "test": 1_000}),
    _dataset("mafl_cgb", "MAFL in the crop of CGB", MAFL | {"train": 18_997}),
    _dataset("mafl_saic", "MAFL in the crop of Sanchez et al.", MAFL | {"train": 18_997}),
)
