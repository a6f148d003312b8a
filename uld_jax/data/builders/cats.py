"""The cat head data set (Zhang, Sun and Tang, ECCV 2008): photos of cats with nine points on the head.

  SRC/CAT_00/00000001_000.jpg, ...       photos of all sizes; the folders are CAT_00 to CAT_06
  SRC/CAT_00/00000001_000.jpg.cat, ...   `9 x1 y1 ... x9 y9`: eyes, mouth, three points of the left ear, three of the
                                         right one, pixels of the photo counted from 0; left is left in the image

Kaggle's copy has all folders a second time in `cats/`; the first ones are read, and those in `cats/` if there are no
others. The annotation CAT_00/00000003_019.jpg.cat has no photo and belongs to 00000003_015.jpg, which has none; a file
00000003_015.jpg.cat, as the authors' page gave it, goes first.

Papers train on three quarters of the photos in the order in which a file system lists them, which nobody can repeat.
Here they are sorted by folder and name: the first three quarters (7,497) are the training images, the rest the test.
427 of the 9,997 photos are duplicates, drawings, or show several cats, by a list of others; none is left out.

  cats       whole photos
  cats_cgb   the box around the annotated points, enlarged by 30 %, stretched to 128 x 128 (Sanchez et al., CGB): the
             annotation defines the crop

Errors are divided by sqrt(width * height) of the box around the points, as in CGB; `data.normaliser=eyes` divides by
the distance of the eyes. The ears' bases (points 3, 5, 6 and 8 from 0) are said to be less exact than the tips.

The split of lmdis-rep (Zhang et al., CVPR 2018) needs its authors' archive of cut heads, whose crop is not described.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from uld_jax.data.builders.official import Dataset, Files, Record, around_points
from uld_jax.data.specs import decode_threads
from uld_jax.errors import UserError

IMAGES = 9_997
FOLDERS = tuple(f"CAT_{number:02d}" for number in range(7))
_POINTS = 9
_ODD = "CAT_00/00000003_019.jpg", "CAT_00/00000003_015.jpg"  # name of an annotation, and of the photo that it is of
_CGB_TIGHT = 30  # percent


def records(files: Files, name: str) -> dict[str, list[Record]]:
    """Read the images of both splits of one of `DATASETS`, see the module. Raises UserError for any error in them."""
    base = "" if any((files.root / folder).exists() for folder in FOLDERS) else "cats/"
    there = [folder for folder in FOLDERS if (files.root / f"{base}{folder}").exists()]
    if not there:
        files.find(*FOLDERS[:1], f"cats/{FOLDERS[0]}", what="folder of the cat head data set")
    words = f"folder{'s' * (len(there) != 1)} of {FOLDERS[0]} to {FOLDERS[-1]}"
    files.expect(files.root / base, len(there), len(FOLDERS), words, kind="data set")
    places = _annotations(files, base, there)
    files.expect(files.root / base, len(places), IMAGES, "annotated photos", kind="data set")
    names = sorted(places)
    with ThreadPoolExecutor(decode_threads()) as pool:
        points = list(pool.map(lambda photo: _points(files, places[photo]), names))
    listed = [
        Record(
            file=photo,
            path=base + photo,
            place=str(places[photo]),
            landmarks=xy,
            crop=around_points(xy, _CGB_TIGHT) if name == "cats_cgb" else None,
        )
        for photo, xy in zip(names, points, strict=True)
    ]
    train = len(listed) * 3 // 4
    return {"train": listed[:train], "test": listed[train:]}


def _annotations(files: Files, base: str, folders: list[str]):
    """Return the annotation file of every photo, {`CAT_00/00000001_000.jpg`: path}."""
    names = {f"{folder}/{path.name}" for folder in folders for path in (files.root / f"{base}{folder}").iterdir()}
    photos = {one for one in names if one.endswith(".jpg")}
    annotated = {one.removesuffix(".cat"): files.root / f"{base}{one}" for one in names if one.endswith(".jpg.cat")}
    orphan, photo = _ODD
    if orphan in annotated and orphan not in photos:
        annotated.setdefault(photo, annotated.pop(orphan))
    if bare := sorted(photos - set(annotated)):
        said = (
            f"{files.root / base} holds {len(bare):,} photo{'s' * (len(bare) != 1)} without annotation, first {bare[0]}"
        )
        files.differ(said, "get their .cat files, or add --allow_partial to go on without these photos")
    return annotated


def _points(files: Files, path) -> np.ndarray:
    """Read an annotation, [9,2]."""
    cells = " ".join(text for _, text in files.lines(path)).split()
    if cells[:1] != [str(_POINTS)] or len(cells) != 1 + 2 * _POINTS:
        raise UserError(
            f"{path} has {len(cells)} numbers, first {cells[0] if cells else 'none'}, where {1 + 2 * _POINTS} are "
            f"needed, first {_POINTS}; get the official file again"
        )
    return files.numbers(cells[1:], str(path)).reshape(_POINTS, 2)


def _dataset(name: str, about: str) -> Dataset:
    train = IMAGES * 3 // 4
    counts = {"train": train, "test": IMAGES - train}
    return Dataset(name, about, records, counts, landmarks=_POINTS, scheme="cat9", normaliser="box")


DATASETS = (
    _dataset("cats", "heads of cats, whole photos"),
    _dataset("cats_cgb", "heads of cats as Sanchez et al. and CGB crop them"),
)
