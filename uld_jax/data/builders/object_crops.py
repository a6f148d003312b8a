"""Crops around the labelled objects of a folder of photos, as sources that `prepared.prepare` writes.

  uld prepare --dataset=NAME --src=DIR --crop_objects=1.5 --data_dir=OUT

A photo may hold several objects, which the labels of most tools tell apart (`data.labels`); the project's own csv files
have one an image. A crop is a square around the object's box, or around its labelled points where it has no box. Its
side is a multiple of their longer side, in whole pixels of the photo, so that no pixel is interpolated. It is black
outside the photo, and may show other objects in part.
"""

import collections
import functools
import os
import posixpath
import re
from collections.abc import Sequence

import numpy as np

from uld_jax.data import annotation, csv_tables, decode, folder, labels, listing, objects
from uld_jax.data.builders import official
from uld_jax.data.labels import Objects
from uld_jax.data.names import same_on_disk
from uld_jax.data.schemes import NO_SCHEME
from uld_jax.data.specs import sort_out
from uld_jax.errors import UserError

OBJECT, SOURCE = "object", "source"  # columns: the name of the object, and the file that it was cut from
LARGEST = 10  # most that a crop may be larger than its object


def open_all(
    name: str,
    src,
    margin: float,
    *,
    without: Sequence[str] = (),
    scheme: str = NO_SCHEME,
    frame_size: int = 128,
    on_bad_file: str = "error",
) -> tuple[dict[str, official.Official], list[str]]:
    """Open a crop of every labelled object, for `prepared.prepare`.

    Args:
      name: name of the data set.
      src: folder of the photos and their labels.
      margin: side of a crop, in longer sides of the object's box.
      without: names of objects that get no crop.
      scheme, frame_size, on_bad_file: see `data.open_source`.

    Returns:
      {split: source}, with the columns `object` and `source`; and sentences about what was left out.

    Raises:
      UserError: no labels, any error in them, or images that are absent or cannot be read; nothing has been written.
    """
    if not 0 < margin <= LARGEST:
        raise UserError(
            f"--crop_objects is {margin:g}; give the side of a crop in longer sides of its object, such as 1.5, and at "
            f"most {LARGEST}"
        )
    files = official.Files(src)
    found = _found(files.root)
    note = found.annotation
    used, skipped = _usable(files.root, found, on_bad_file)
    used, notes = _without(found, used, without)
    around = {row: _around(found, row) for row in used}
    skipped += [listing.Skipped(note.names[row], why) for row, why in around.items() if isinstance(why, str)]
    around = {row: box for row, box in around.items() if isinstance(box, tuple)}
    if not around:
        raise UserError(f"{files.root} has labels, and no object with a box or with two points to crop; label more")
    listed = listing.list_files(files.root)
    skipped += [one for one in listed.others if one.file not in note.sources]
    if bare := {*listed.images} - {note.names[row] for row in around} - {one.file for one in skipped}:
        notes.append(f"{folder.counted(bare, 'image')} without a labelled object, first {min(bare)}: no crop")
    points = _points(note, list(around))
    names = _names([note.names[row] for row in around], [found.objects[row] for row in around])
    records = {split: [] for split in annotation.SPLITS if split in {note.splits[row] for row in around}}
    for (row, box), name in zip(around.items(), names, strict=True):
        records[note.splits[row]].append(_record(found, row, name, functools.partial(square, box, margin), points))
    dataset = official.Dataset(
        name,
        "crops around labelled objects",
        records=lambda *_: records,
        counts={split: len(some) for split, some in records.items()},
        landmarks=None if points is None else len(points),
        scheme=scheme,
        landmark_names=tuple(note.landmark_names[i] for i in points) if note.landmark_names else (),
    )
    opening = functools.partial(official.Official, dataset, files, splits=tuple(records), frame_size=frame_size)
    sources = {split: opening(some) for split, some in records.items()}
    for source in sources.values():
        source.checked = on_bad_file == "skip"
    next(iter(sources.values())).skipped = tuple(sorted(skipped))
    return sources, notes


def _found(root) -> Objects:
    """Read the objects of a folder: the project's own csv files, or labels of tools."""
    note = annotation.read_folder(root)
    if note is None:
        found = labels.read_objects(root)
        if found is None:
            raise UserError(f"{root} holds no labels, so there is nothing to crop; add labels (docs/labels.md)")
        return found
    boxes = np.full((len(note.names), 4), np.nan)
    columns = dict(note.columns)
    for j, column in enumerate(objects.BOX):
        for row, cell in enumerate(columns.pop(column, ())):
            boxes[row, j] = csv_tables.number(cell, lambda row=row, c=column: f"{note.places[row]}, column {c}")
    there = np.isfinite(boxes)
    if (wrong := there.any(1) & ~there.all(1)).any():
        place = note.places[int(np.flatnonzero(wrong)[0])]
        raise UserError(f"{place}: a part of {','.join(objects.BOX)} is empty; fill all four or none")
    names = [name.strip() for name in columns.pop(OBJECT, [""] * len(note.names))]
    columns.pop(objects.MASK, None)  # masks are files of the photo's size
    return Objects(note._replace(columns=columns), names, boxes)


def _without(found: Objects, rows: Sequence[int], names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Leave out the rows of objects of some names; also return a note about that."""
    known = sorted({*found.objects} - {""}, key=labels.natural)
    for name in names:
        if name not in known:
            some = f"the objects are {', '.join(known[:8])}" if known else "the objects have no names"
            raise UserError(f"--without_objects={name}: no object is called like that; {some}")
    kept = [row for row in rows if found.objects[row] not in names]
    left = folder.counted(range(len(rows) - len(kept)), "object")
    return kept, [f"{left} called {' or '.join(names)}: no crop"] if names else []


def _points(note: annotation.Annotation, rows: Sequence[int]) -> np.ndarray | None:
    """List the points, without those that are labelled on other rows alone; None without landmarks."""
    if note.landmarks is None:
        return None
    there = np.isfinite(note.landmarks).all(-1)
    return np.flatnonzero(there[rows].any(0) | ~there.any(0))


def _usable(root, found: Objects, on_bad_file: str) -> tuple[list[int], list[listing.Skipped]]:
    """Return the rows whose files can be read; the other files are named in an error, or left out."""
    note = found.annotation
    names = list(dict.fromkeys(note.names))
    paths = [os.path.join(os.fspath(root), name) for name in names]
    heads = folder.read_heads(paths)
    absent = {name for name, head in zip(names, heads, strict=True) if isinstance(head, listing.AbsentFile)}
    if absent and on_bad_file == "error":
        first = next(row for row, name in enumerate(note.names) if name in absent)
        raise UserError(
            f"{note.places[first]}: {note.names[first]} is not in {root} ({folder.counted(absent, 'such file')}); put "
            "the images into the folder, or remove them from the labels"
        )
    bad = sort_out(names, heads, lambda i: decode.check(paths[i]), on_bad_file, os.fspath(root))
    skipped = [listing.Skipped(names[i], str(error.of(paths[i]))) for i, error in bad.items()]
    left = {names[i] for i in bad}
    return [row for row, name in enumerate(note.names) if name not in left], skipped


def _around(found: Objects, row: int) -> "tuple[float, ...] | str | None":
    """Return the box of an object, or that around its points; the reason if there is none; None without an object."""
    if np.isfinite(found.boxes[row]).all():
        return tuple(found.boxes[row].tolist())
    if found.annotation.landmarks is None:
        return None
    points = found.annotation.landmarks[row]
    points = points[np.isfinite(points).all(-1)]
    if not len(points):
        return None
    low, high = points.min(0).tolist(), points.max(0).tolist()
    if low == high:
        return f"{_place(found, row)} has no box and one labelled point, so its size is not known; label another point"
    return (*low, *high)


def _place(found: Objects, row: int) -> str:
    return found.annotation.places[row] + (f", object {found.objects[row]}" if found.objects[row] else "")


def _record(found: Objects, row: int, file: str, crop, points) -> official.Record:
    """Make the record of an object; `points` are the numbers of its points in the annotation, or None."""
    note, box = found.annotation, found.boxes[row]
    own = {OBJECT: found.objects[row], SOURCE: note.names[row]}
    return official.Record(
        file,
        _place(found, row),
        landmarks=None if points is None else note.landmarks[row, points],
        visible=None if points is None else note.visible[row, points],
        box=tuple(box.tolist()) if np.isfinite(box).all() else None,
        columns={column: cells[row] for column, cells in note.columns.items()} | own,
        crop=crop,
        path=note.names[row],
    )


def square(box, margin: float, size: tuple[int, int]) -> official.Crop:
    """Return the square of whole pixels around a box `(x0, y0, x1, y1)` of a photo of a size (height, width).

    Raises UserError for a box without extent, or one that lies beside the photo or reaches far beyond it.

    >>> crop = square((9.5, 19.5, 19.5, 29.5), 2, (100, 100))
    >>> crop.size, crop.fmap.tolist()
    ((20, 20), [1.0, 1.0, -5.0, -15.0])
    """
    x0, y0, x1, y1 = box
    height, width = size
    beside = x1 < -0.5 or y1 < -0.5 or x0 > width - 0.5 or y0 > height - 0.5
    far = min(x0 / width, y0 / height) < -1 or max(x1 / width, y1 / height) > 2
    if beside or far or max(x1 - x0, y1 - y0) <= 0:
        raise UserError(
            f"the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) lies beside its photo of {width} x {height} pixels or encloses "
            "nothing; coordinates must be pixels of the upright file"
        )
    side = max(1, round(margin * max(x1 - x0, y1 - y0)))
    left, top = (round((low + high + 1 - side) / 2) for low, high in ((x0, x1), (y0, y1)))
    return official.Crop(np.array([1.0, 1.0, -left, -top]), (side, side))


def _names(files: Sequence[str], own: Sequence[str]) -> list[str]:
    """Name crops after their files and objects: `a/b.png`, `cat` -> `a/b_cat.jpg`, each name once on every disk.

    >>> _names(["a.png", "a.png", "b.png", "b.jpg", "c.png"], ["cat", "dog/2", "1", "1", ""])
    ['a_cat.jpg', 'a_dog_2.jpg', 'b.png_1.jpg', 'b.jpg_1.jpg', 'c.jpg']
    """
    choices = []
    for file, name in zip(files, own, strict=True):
        tail = "_" + re.sub(r"[^\w.-]+", "_", name) if name else ""
        choices.append(tuple(dict.fromkeys((f"{posixpath.splitext(file)[0]}{tail}.jpg", f"{file}{tail}.jpg"))))
    taken = collections.Counter(same_on_disk(one) for some in choices for one in some)
    used, out = collections.Counter(), []
    for some in choices:
        free = [one for one in some if taken[same_on_disk(one)] == 1]
        name = free[0] if free else some[-1]
        if not free:
            used[same_on_disk(name)] += 1
            number = used[same_on_disk(name)]
            while same_on_disk(name := f"{some[-1].removesuffix('.jpg')}~{number}.jpg") in taken:
                number += 1
        out.append(name)
    return out
