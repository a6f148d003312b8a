"""Folders of small photos, and the labels that are read from them."""

import warnings

import numpy as np
from PIL import Image

from uld_jax.data import labels
from uld_jax.data.annotation import CsvNote


def photos(folder, sizes, turn=1):
    """Noise of the given (height, width), by file names; JPEG with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = turn
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name, **({"exif": exif} if turn != 1 else {}))
    return folder


def read(folder):
    """The labels of a folder, and what the reader said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", CsvNote)
        found = labels.read_folder(folder)
    return found, [str(w.message) for w in said]


def points(found):
    """{file: {point: (x, y)}} of the points that are there; those of no name by their numbers."""
    names = found.landmark_names or tuple(map(str, range(found.landmarks.shape[1])))
    return {
        file: {name: tuple(xy) for name, xy in zip(names, rows, strict=True) if np.isfinite(xy).all()}
        for file, rows in zip(found.names, found.landmarks.tolist(), strict=True)
    }


def objects(folder):
    """{(file, object): (points, box)} of all labels of a folder, and what the reader said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", CsvNote)
        found = labels.read_objects(folder)
    note = found.annotation
    names = note.landmark_names or tuple(map(str, range(note.landmarks.shape[1])))
    out = {}
    for file, name, rows, box in zip(note.names, found.objects, note.landmarks, found.boxes, strict=True):
        there = {n: tuple(xy.tolist()) for n, xy in zip(names, rows, strict=True) if np.isfinite(xy).all()}
        assert (file, name) not in out
        out[file, name] = there, None if np.isnan(box).any() else tuple(box.tolist())
    return out, [str(w.message) for w in said]


COMMAND = (
    "an image of a folder has one object; cut out each by `uld prepare --dataset=NAME --src=.* --crop_objects=1.5 "
)


def predictions(seed, files=("a.jpg", "b/c d.jpg"), count=3, side=40):
    """Random landmarks, a third of them missing."""
    rng = np.random.default_rng(seed)
    score = np.where(rng.random((len(files), count)) < 0.3, 0, rng.uniform(0.1, 1, (len(files), count)))
    xy = rng.uniform(0, side - 1, (len(files), count, 2))
    return labels.Predictions(
        files, [(side, side + 20)] * len(files), xy, score, [f"p {k}" for k in range(count)], "in"
    )
