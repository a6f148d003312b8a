"""WFLW (Wu et al., CVPR 2018): 98 points of 10,000 faces in photos of WIDER FACE.

  SRC/WFLW_images/0--Parade/0_Parade_Parade_0_12.jpg, ...
  SRC/WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt, list_98pt_rect_attr_test.txt

The folders may be one in the other, and the lists may lie in SRC or in WFLW_annotations itself. A line of a list is a
face: 196 coordinates x0 y0 ... x97 y97, pixels counted from 0; a box x0 y0 x1 y1; six attributes, 0 or 1; and the path
of the photo below WFLW_images. A photo with several faces has several lines, and may have faces in both lists.

  wflw    7,500 faces for training and 2,500 for tests, each cropped to 256 x 256 pixels: the square around the centre
          of the box, whose side is 1.25 x the longer side of the box, black outside the photo

The paper gives no crop; much work on face alignment enlarges the box by 1.25. A face is named `PHOTO_faceN.jpg`, where
N counts the faces of a photo from 0 within a list. The attributes are the columns pose, expression, illumination,
makeup, occlusion and blur, `1` where the face has a large pose, a strong expression and so on. The faces with a 1 are
the subsets of the test split for which the paper gives errors of their own.
"""

import posixpath
from collections import Counter

import numpy as np

from uld_jax.data.builders.official import Crop, Dataset, Files, Record
from uld_jax.errors import UserError

COUNTS = {"train": 7_500, "test": 2_500}
ATTRIBUTES = ("pose", "expression", "illumination", "makeup", "occlusion", "blur")
_POINTS = 98
_CELLS = 2 * _POINTS + 4 + len(ATTRIBUTES) + 1
_SIZE = (256, 256)
_MARGIN = 1.25  # side of the crop in longer sides of the box


def records(files: Files, name: str) -> dict[str, list[Record]]:
    """Read the faces of both splits, see the module. Raises UserError for any error in the lists."""
    photos = files.name(files.find("WFLW_images", "WFLW/WFLW_images", what="folder WFLW_images"))
    return {split: _faces(files, split, photos) for split in COUNTS}


def _faces(files: Files, split: str, photos: str) -> list[Record]:
    """The faces of a list in its order."""
    list_name = f"list_98pt_rect_attr_{split}.txt"
    folders = ("WFLW_annotations/list_98pt_rect_attr_train_test/", "list_98pt_rect_attr_train_test/")
    names = [parent + f + list_name for parent in ("", "WFLW/") for f in (*folders, "WFLW_annotations/", "")]
    path = files.find(*names, what=f"list {list_name} of WFLW")
    lines = files.lines(path)
    files.expect(path, len(lines), COUNTS[split], "faces")
    seen, out = Counter(), []
    for number, line in lines:
        place = f"{path}, line {number}"
        cells = line.split(maxsplit=_CELLS - 1)  # so that a path may have blanks
        if len(cells) != _CELLS:
            raise UserError(
                f"{place} has {len(cells)} cells where {_CELLS} are needed: {2 * _POINTS} coordinates, a box of four, "
                f"{len(ATTRIBUTES)} attributes and a path; get the official list, whose name has `rect_attr`"
            )
        values = files.numbers(cells[: 2 * _POINTS + 4], place)
        attributes, photo = cells[2 * _POINTS + 4 : -1], cells[-1]
        if not set(attributes) <= {"0", "1"}:
            raise UserError(f"{place}: the attributes are {' '.join(attributes)}; 0 and 1 are possible")
        box = values[2 * _POINTS :]
        if not (box[2] > box[0] and box[3] > box[1]):
            raise UserError(f"{place}: the box {' '.join(cells[2 * _POINTS : 2 * _POINTS + 4])} has no area; mend it")
        stem, ending = posixpath.splitext(photo)
        out.append(
            Record(
                file=f"{stem}_face{seen[photo]}{ending}",
                path=f"{photos}/{photo}",
                place=place,
                landmarks=values[: 2 * _POINTS].reshape(_POINTS, 2),
                box=tuple(box),
                columns=dict(zip(ATTRIBUTES, attributes, strict=True)),
                crop=_crop(box),
            )
        )
        seen[photo] += 1
    return out


def _crop(box: np.ndarray) -> Crop:
    """The square around the box `(x0, y0, x1, y1)` of a face."""
    # The box holds its last pixels, and edges are half a pixel beyond the centres of pixels.
    low, high = box[:2], box[2:] + 1
    half = _MARGIN * (high - low).max() / 2
    centre = (low + high) / 2
    return Crop.of((*(centre - half), *(centre + half)), _SIZE)


DATASETS = (
    Dataset("wflw", "WFLW, each face in a crop of its own", records, COUNTS, landmarks=_POINTS, scheme="wflw98"),
)
