"""300-W (Sagonas et al., ICCV Workshops 2013): 68 points of faces in photos of other data sets.

  SRC/afw/, helen/trainset/, lfpw/trainset/        3,148 photos for training: 337, 2,000 and 811
  SRC/helen/testset/, lfpw/testset/, ibug/         689 photos for tests: 330, 224 and 135
  SRC/01_Indoor/, 02_Outdoor/                      the 600 photos of the challenge, which may be absent
  SRC/Bounding Boxes/bounding_boxes_afw.mat, ...   boxes of the faces, for `w300_dve`

A folder holds NAME.jpg or NAME.png with NAME.pts, text with a header or with bare numbers (`labels.pts`), whose points
are counted from 1. Names may have blanks (`ibug/image_092 _01.jpg`). All folders may lie below `300W` or `300w`.

  w300        the unchanged photos, in which the faces are small and not alone; split `private` if the photos of the
              challenge are there
  w300_dve    the crop of DVE, which ContrastLandmarks and LEAD share, 100 x 100 pixels: the photo is scaled so that the
              box of the face becomes 52 pixels wide, and the crop is centred on the box, 2 pixels higher, black outside

The column `subset` is `common` or `challenging` (ibug) in the test split, `indoor` or `outdoor` in `private`, and
`train` in the training split. The published code of DVE scales photos to whole pixels, and points by the width of the
box; here the points follow the pixels, which moves most of them by less than a pixel of the crop.
"""

import math
from collections.abc import Callable

import numpy as np

from uld_jax.data.builders import matlab
from uld_jax.data.builders.official import Crop, Dataset, Files, Record
from uld_jax.data.labels import pts
from uld_jax.errors import UserError

# {split: {folder: (images, subset)}}
FOLDERS = {
    "train": {"afw": (337, "train"), "helen/trainset": (2_000, "train"), "lfpw/trainset": (811, "train")},
    "test": {
        "helen/testset": (330, "common"),
        "lfpw/testset": (224, "common"),
        "ibug": (135, "challenging"),
    },
    "private": {"01_Indoor": (300, "indoor"), "02_Outdoor": (300, "outdoor")},
}
_PARENTS = ("", "300W/", "300w/")
_ENDINGS = (".png", ".jpg", ".jpeg")
_DVE_SIZE, _DVE_FACE, _DVE_UP = 100, 52, 2  # pixels: side of the crop, width of the face, and how far up the crop lies


def records(files: Files, name: str) -> dict[str, list[Record]]:
    """Read the photos of every split of one of `DATASETS`, see the module. Raises UserError for any error in them."""
    splits = {split: folders for split, folders in FOLDERS.items() if split != "private"}
    if name == "w300" and any((files.root / p / f).exists() for p in _PARENTS for f in FOLDERS["private"]):
        splits = FOLDERS
    return {
        split: [
            record
            for folder, (images, subset) in folders.items()
            for record in _folder(files, folder, images, subset, dve=name == "w300_dve")
        ]
        for split, folders in splits.items()
    }


def _folder(files: Files, folder: str, images: int, subset: str, *, dve: bool) -> list[Record]:
    """Read the photos of one folder, in the order of their names."""
    root = next((files.root / p / folder for p in _PARENTS if (files.root / p / folder).exists()), None)
    if root is None and not files.partial:
        files.find(*(p + folder for p in _PARENTS), what=f"folder {folder} of 300-W")
    root = root or files.root / folder
    annotated = files.stems(root, ".pts")
    files.expect(root, len(annotated), images)
    boxes = _boxes(files, folder) if dve and annotated else {}
    # Some copies have the blank in one name of a photo and not in the other.
    photos = {_key(stem): stem + ending for ending in reversed(_ENDINGS) for stem in files.stems(root, ending)}
    out = []
    for stem in annotated:
        place = root / f"{stem}.pts"
        photo = photos.get(_key(stem), f"{stem}.jpg")
        record = Record(
            file=f"{folder}/{photo}",
            path=files.name(root / photo),
            place=str(place),
            landmarks=_points(place),
            columns={"subset": subset},
        )
        if dve:
            if _key(stem) not in boxes:
                raise UserError(f"{place}: {_mat(folder)} holds no box of it; get the official boxes of 300-W")
            box = boxes[_key(stem)]
            record = record._replace(box=tuple(box - 1), crop=_dve(box))
        out.append(record)
    return out


def _key(name: str) -> str:
    return name.replace(" ", "")


def _points(path) -> np.ndarray:
    """The points of a file, [68,2], pixels from 0."""
    (image,) = pts.read(path, path.read_bytes()).images
    if len(image.points) != 68:
        raise UserError(f"{path} holds {len(image.points)} points where 300-W has 68; get the official file again")
    return np.array(list(image.points.values()))


def _mat(folder: str) -> str:
    return f"bounding_boxes_{folder.replace('/', '_')}.mat"


def _boxes(files: Files, folder: str) -> dict[str, np.ndarray]:
    """Boxes `(x0, y0, x1, y1)` of the faces of a folder, pixels from 1, by the key of the photo's name."""
    names = [f"{p}{b}/{_mat(folder)}" for p in _PARENTS for b in ("Bounding Boxes", "Bounding_Boxes")]
    path = files.find(*names, what=f"boxes of the faces in {folder}, {_mat(folder)} of 300-W")
    entries = matlab.load(path, "bounding_boxes")["bounding_boxes"]
    out = {}
    for entry in [entries] if isinstance(entries, dict) else entries:
        try:
            stem = str(entry["imgName"]).rpartition(".")[0]
            box = np.asarray(entry["bb_ground_truth"], np.float64).reshape(4)
        except (KeyError, TypeError, ValueError, IndexError):
            raise UserError(f"{path}: a face has no imgName and bb_ground_truth; get the official file again") from None
        if not (np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1]):
            raise UserError(
                f"{path}, {entry['imgName']}: bb_ground_truth is no box (x0, y0, x1, y1); get the file again"
            )
        out[_key(stem)] = box
    return out


def _dve(box: np.ndarray) -> Callable:
    """The crop of DVE for a box with pixels from 1, to the pixel as in the published code."""
    width, height = box[2:] - box[:2] + 1
    scale = _DVE_FACE / width
    centre = [math.floor(scale * (low + (side + 1) / 2)) for low, side in zip(box[:2], (width, height), strict=True)]
    low = np.array(centre) - _DVE_SIZE // 2 - (0, _DVE_UP)  # edge of the first pixel, in the scaled photo

    def crop(file_size: tuple[int, int]) -> Crop:
        wh = np.array(file_size[::-1], np.float64)
        scaled = np.floor(wh * scale)
        if scaled.min() < 1:
            raise UserError(
                f"the box of the face is {width:g} pixels wide, more than fits into the photo; get the boxes"
            )
        box = np.concatenate([low, low + _DVE_SIZE]) * np.tile(wh / scaled, 2)
        return Crop.of(box, (_DVE_SIZE, _DVE_SIZE))

    return crop


def _dataset(name: str, about: str, *splits: str) -> Dataset:
    counts = {split: sum(images for images, _ in FOLDERS[split].values()) for split in splits}
    return Dataset(name, about, records, counts, landmarks=68, scheme="ibug68")


DATASETS = (
    _dataset("w300", "300-W, unchanged photos", "train", "test", "private"),
    _dataset("w300_dve", "300-W in the crop of DVE, ContrastLandmarks and LEAD", "train", "test"),
)
