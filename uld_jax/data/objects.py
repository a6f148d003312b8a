"""Data about the images besides pixels and landmarks: boxes, masks, categories, and the user's own keypoints.

Mallis et al. (NeurIPS 2020, section 4) use bounding boxes to drop initial keypoints that lie on the background. A csv
of a folder (`data/folder.py`) may carry them:

  ...,box_x0,box_y0,box_x1,box_y1   box of the object in pixels of the upright file; fractions are fine
  ...,mask                          image file of the photo's size, white on the object; path relative to the folder
  ...,category                      word for the kind of object

The built-in `synthetic` heads have boxes and masks from their renderer (`Source.mask`): the head with its hair, without
neck and clothes.

`keypoints` reads initial keypoints from a separate csv, for other detectors and for the synthetic keypoints of figure
2d. All results are in the frame that networks see (`ops.coordinates.file_to_frame`). The functions use NumPy on the
host, once in a run.
"""

import os
import posixpath
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from uld_jax.data import annotation, crops, csv_tables, decode, folder
from uld_jax.data.names import Index
from uld_jax.data.specs import Source, decode_threads
from uld_jax.errors import UserError
from uld_jax.ops import coordinates

BOX = ("box_x0", "box_y0", "box_x1", "box_y1")
MASK = "mask"
CATEGORY = "category"
_WHITE = 128  # least value, of 255, of a mask's pixel on the object


class Keypoints(NamedTuple):
    """Keypoints in P slots an image.

    Attributes:
      xy: [N,P,2] float32 `(x, y)` in pixels of the frame; 0 in empty slots.
      mask: [N,P] bool, False in empty slots.
    """

    xy: np.ndarray
    mask: np.ndarray


def tables(source: Source, asked: Mapping[str, tuple]) -> dict[str, Any]:
    """Read the tables that a stage names (`Method.side_tables`, `step_tables`), {function of this file: arguments}.

    Raises UserError as the functions do.
    """
    known = {"boxes": boxes, "masks": masks, "keypoints": keypoints, "categories": categories}
    return {name: known[name](source, *arguments) for name, arguments in asked.items()}


def table_shapes(rows: int, asked: Mapping[str, tuple]) -> dict[str, Any]:
    """Return the shapes of `tables` for so many images, without reading anything."""
    shape = lambda dtype, *sizes: jax.ShapeDtypeStruct((rows, *sizes), dtype)
    known = {
        "boxes": lambda: shape(np.float32, 4),
        "masks": lambda side: shape(bool, side, side),
        "keypoints": lambda path, most: Keypoints(shape(np.float32, most, 2), shape(bool, most)),
        "categories": lambda: shape(np.int32),
    }
    return {name: known[name](*arguments) for name, arguments in asked.items()}


def boxes(source: Source) -> np.ndarray:
    """Read the box of each image's object, [N,4] float32 `(x0, y0, x1, y1)` in pixels of the FRAME.

    A point is inside if `x0 <= x <= x1` and `y0 <= y <= y1`. Parts that `data.fit=crop` cuts off lie outside the frame.

    Args:
      source: data set whose csv has the columns `BOX`, in pixels of the upright file; or data set with its own masks,
        whose boxes then enclose the pixels, edges included.

    Raises:
      UserError: no such columns, a cell that is empty or no number, a box without area or outside its image.
    """
    missing = [name for name in BOX if name not in source.columns]
    if missing and source.mask(0) is not None:
        found = np.array([crops.mask_box(source.mask(row)) for row in range(len(source))], np.float64)
        corners = (found + np.array([-0.5, -0.5, 0.5, 0.5])).reshape(-1, 2, 2)
        return coordinates.file_to_frame(corners, source.frame_maps).reshape(-1, 4).astype(np.float32)
    if missing:
        raise UserError(
            f"the data set {source.spec.name} has no csv column {missing[0]}; "
            f"give the columns {','.join(BOX)} in pixels of the upright files, or set the stage's region=none"
        )
    found = np.empty((len(source), 4))
    for j, name in enumerate(BOX):
        for i, cell in enumerate(source.columns[name]):
            found[i, j] = csv_tables.number(cell, lambda i=i, name=name: f"{source.place(i)}, column {name}")
            if np.isnan(found[i, j]):
                raise UserError(f"{source.place(i)}, column {name}: empty; every image needs a box")
    corners = found.reshape(-1, 2, 2)
    _refuse(source, (corners[:, 1] <= corners[:, 0]).any(-1), found, "has no area; x0 < x1 and y0 < y1 are needed")
    wh = source.file_sizes[:, ::-1] - 0.5
    beside = ((corners[:, 0] >= wh) | (corners[:, 1] <= -0.5)).any(-1)
    _refuse(source, beside, found, "lies beside its image; boxes are in pixels of the upright file")
    return coordinates.file_to_frame(corners, source.frame_maps).reshape(-1, 4).astype(np.float32)


def _refuse(source, wrong, found, what):
    """Raise UserError that names the first wrong box."""
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        box = ", ".join(f"{v:g}" for v in found[row])
        raise UserError(f"{source.place(row)}: the box ({box}) of {source.names[row]} {what}")


def masks(source: Source, side: int) -> np.ndarray:
    """Read the object's region in each image, [N,side,side] bool, for `side` x `side` cells of the frame.

    A cell belongs to the object if at least half of its area does. The padding of `data.fit=pad` is background.

    Args:
      source: data set whose csv has the column `mask` with image files, white (128 to 255) on the object and of the
        size of the upright photo; or data set with its own masks.
      side: number of cells along each side of the frame; 64 is enough.

    Raises:
      UserError: no such column, a mask that is absent, unreadable, of another size, or nowhere white.
    """
    given = MASK in source.columns
    if not given and source.mask(0) is None:
        raise UserError(
            f"the data set {source.spec.name} has no csv column {MASK}; give it with the names of image files, "
            f"white on the object, or set the stage's region=none"
        )
    if given and source.data_dir is None:
        raise UserError(
            f"the data set {source.spec.name} holds no mask files; use dataset=folder with the folder itself"
        )
    out = np.empty((len(source), side, side), bool)

    def load(row):
        mask = _mask(source, row) if given else source.mask(row)
        out[row] = _coverage(mask, source.frame_maps[row], source.frame_size, side) >= 0.5

    with ThreadPoolExecutor(decode_threads()) as pool:
        try:
            for _ in pool.map(load, range(len(source))):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return out


def categories(source: Source) -> np.ndarray:
    """Read the category of each image, [N] int32: the place of its word among the sorted words of the source, from 0.

    Raises UserError if the source has no column `category`, or a cell is empty.
    """
    if CATEGORY not in source.columns:
        raise UserError(
            f"the data set {source.spec.name} has no csv column {CATEGORY}; give it, with a word for the kind of each "
            "image's object"
        )
    words = [cell.strip() for cell in source.columns[CATEGORY]]
    if "" in words:
        raise UserError(f"{source.place(words.index(''))}, column {CATEGORY}: empty; every image needs a category")
    return np.unique(words, return_inverse=True)[1].astype(np.int32)


def _mask(source, row) -> np.ndarray:
    """Read one mask at the size of its photo, [H,W] bool."""
    cell = source.columns[MASK][row].strip()
    name = posixpath.normpath(cell) if cell else ""
    place = f"{source.place(row)}, column {MASK}"
    if not name or name.startswith(("/", "../")) or "://" in name:
        raise UserError(f"{place}: {cell!r} names no file inside the folder; give a path relative to {source.data_dir}")
    path = os.path.join(source.data_dir, name)
    try:
        size = decode.image_size(path)
        pixels = decode.decode_picture(path, longest=max(size), as_is=True)  # not shrunk
    except UserError as e:
        raise UserError(f"{place}: {e}") from None
    height, width = source.file_sizes[row]
    if size != (height, width):
        raise UserError(
            f"{place}: {name} is {size[1]} x {size[0]} pixels where {source.names[row]} has {width} x {height}; "
            f"make a mask of the size of the photo"
        )
    white = pixels.mean(-1) >= _WHITE - 0.5
    if not white.any():
        raise UserError(f"{place}: {name} is nowhere white, so it shows no object; paint the object 255")
    return white


def _coverage(mask, fmap, frame_size, side) -> np.ndarray:
    """Compute the share of each frame cell that a mask [H,W] of the file covers, [side,side] float64."""
    # Borders of the cells in the file, relative to its left (upper) edge and not to its first pixel centre.
    border = np.linspace(0, frame_size, side + 1)[:, None] - 0.5
    border = (border - fmap[2:]) / fmap[:2] + 0.5
    share = mask.astype(np.float64)
    for axis in (1, 0):  # columns of the file by x, then its rows by y
        share = np.moveaxis(share, axis, 0)
        # A mask is constant within a pixel, so its integral is linear there, and parts beyond its edge add nothing.
        total = np.concatenate([np.zeros_like(share[:1]), np.cumsum(share, 0)])
        at = np.clip(border[:, 1 - axis], 0, len(share))
        low = np.minimum(at.astype(int), len(share) - 1)
        integral = total[low] + (at - low)[:, None] * share[low]
        share = np.moveaxis(np.diff(integral, axis=0) / np.diff(border[:, 1 - axis])[:, None], 0, axis)
    return share


def keypoints(source: Source, path, most: int) -> Keypoints:
    """Read a user's own initial keypoints for the images of a source.

    The csv has the first line `file,x0,y0,x1,y1,...` in pixels of the upright files. Rows may end early, and a pair of
    cells may be empty. Images without a row have no keypoints. Points that `data.fit=crop` cuts off are masked too.

    Args:
      source: the images; rows are matched to its `names`.
      path: the csv.
      most: P, number of slots for each image.

    Raises:
      UserError: a file of another layout, names of other images, points far outside their image, or an image with more
        than `most` keypoints.
    """
    header, read = csv_tables.read_table(path)[:2]
    width = len(header) // 2
    if header != ["file", *(f"{axis}{i}" for i in range(width) for axis in "xy")] or not width:
        raise UserError(f"{path}: the first line must be file,x0,y0,x1,y1,... and nothing else; mend it")
    if not read:
        raise UserError(f"{path} lists no images; add one line an image below the header")
    lines = [line for line, _ in read]
    cells, files = [cells[0] for _, cells in read], Index(source.names)
    names = annotation.read_names(path, lines, cells, source.data_dir or "", files)
    rows = {name: row for row, name in enumerate(source.names)}
    others = [name for name in names if name not in rows]
    if others:
        raise UserError(
            f"{path} names {len(others)} of {len(names)} files that are not among the images, first {others[0]}; "
            f"write names as in {source.names[0]}"
        )
    found = np.full((len(source), width, 2), np.nan)
    line_of = {}
    for line, name, (_, cells) in zip(lines, names, read, strict=True):
        place = f"{path}, line {line}"
        if len(cells) > len(header):
            raise UserError(f"{place} has {len(cells)} columns where the first line has {len(header)}; lengthen that")
        cells = cells[1:] + [""] * (len(header) - len(cells))
        xy = [csv_tables.number(c, lambda j=j, p=place: f"{p}, column {header[1 + j]}") for j, c in enumerate(cells)]
        xy = np.array(xy).reshape(-1, 2)
        half = np.isnan(xy).any(-1) & ~np.isnan(xy).all(-1)
        if half.any():
            point = int(np.flatnonzero(half)[0])
            raise UserError(f"{place}: one of x{point} and y{point} is empty; fill both or none")
        row = rows[name]
        line_of[row] = line
        found[row] = xy
    folder.check_points(found, source.file_sizes, lambda row: f"{path}, line {line_of[row]}")
    there = np.isfinite(found).all(-1)
    counts = there.sum(-1)
    if counts.max() > most:
        row = int(counts.argmax())
        raise UserError(
            f"{path}, line {line_of[row]}: {source.names[row]} has {counts[row]} keypoints, and there are {most} slots "
            f"an image; raise keypoints.most to {counts[row]}"
        )
    # Sort points first, in their order, then empty slots.
    order = np.argsort(~there, 1, kind="stable")[:, :most]
    found, there = np.take_along_axis(found, order[..., None], 1), np.take_along_axis(there, order, 1)
    xy = np.zeros((len(source), most, 2), np.float32)
    mask = np.zeros((len(source), most), bool)
    xy[:, : found.shape[1]] = coordinates.file_to_frame(found, source.frame_maps)
    inside = ((xy >= -0.5) & (xy <= source.frame_size - 0.5)).all(-1)
    mask[:, : found.shape[1]] = there
    mask &= inside
    return Keypoints(np.where(mask[..., None], xy, np.float32(0)), mask)
