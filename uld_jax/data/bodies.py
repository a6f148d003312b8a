"""Human bodies with joints and masks as a folder data set, cropped as Mallis et al. (NeurIPS 2020) crop Human3.6M.

Human3.6M's own files (videos, `D2_Positions` in CDF, ground-truth box masks in HDF5) may not be redistributed and need
their own readers; `write_bodies` takes the content of these files as arrays, from any reader:

  write_bodies('bodies', 'train', frames)        frames yields (image, joints, mask)
  open_source('folder', 'train', data_dir='bodies', frame_size=...)

The official selection: training frames of subjects 1, 5, 6, 7, 8 and 9, every 10th; test frames of subject 11, every
50th; of the actions Directions, Discussion, Posing, Waiting, Greeting and Walking.
"""

import io
from collections.abc import Iterable

import numpy as np
from etils import epath
from PIL import Image

from uld_jax import files
from uld_jax.data import crops, folder, objects
from uld_jax.errors import UserError
from uld_jax.ops import coordinates

SQUARE = 450  # side of the stored crop, in pixels
VIEWS = {"square": SQUARE, "fan": 256}  # side of the written images, in pixels


def write_bodies(
    data_dir,
    split: str,
    bodies: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    view: str = "square",
    quality: int = 95,
) -> epath.Path:
    """Write one split of a `folder` data set: `data_dir/split/000000.jpg`, ... and `data_dir/split.csv`.

    Every image is cropped around the body by `crops.square_crop`, and joints and box are mapped with it. The csv has
    the joints and the columns `box_x0,box_y0,box_x1,box_y1`, so that keypoints outside the body can be recognised
    (`objects.boxes`).

    Args:
      data_dir: the folder; it is made if missing.
      split: `train` or `test`.
      bodies: (image [H,W,3] uint8, joints [L,2] `(x, y)` in its pixels, NaN where not annotated, mask [H,W] whose true
        pixels span the body). The bodies are read once, so a generator over videos works. L is 32 for Human3.6M, 7 for
        BBC Pose (subtract 1 from its annotation first, which counts pixels from 1).
      view: `square` writes 450 x 450 pixels with 1.5 heights of the body, which leaves a margin for augmentation; `fan`
        writes the 256 x 256 pixels that the official network sees, 1.07 heights.
      quality: quality of the JPEG files.

    Returns:
      Path of the csv.

    Raises:
      UserError: bad arguments, a split that exists, no bodies at all, or a body whose arrays do not fit together.
    """
    if split not in ("train", "test"):
        raise UserError(f"the split is {split!r}; a folder data set has train and test")
    if view not in VIEWS:
        raise UserError(f"view is {view!r}; use one of {', '.join(VIEWS)}")
    root = epath.Path(data_dir).expanduser()
    table = root / f"{split}.csv"
    if table.exists():
        raise UserError(f"{table} exists already; remove it, or write to another folder")
    (root / split).mkdir(parents=True, exist_ok=True)
    size = VIEWS[view]
    rows, landmarks = [], None
    for number, (image, joints, mask) in enumerate(bodies):
        name = f"{split}/{number:06d}.jpg"
        joints = np.asarray(joints, np.float64)
        landmarks = len(joints) if landmarks is None else landmarks
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or mask.shape != image.shape[:2]:
            raise UserError(
                f"body {number} has an image of {image.shape} {image.dtype} and a mask of {mask.shape}; "
                f"give [H,W,3] uint8 and [H,W]"
            )
        if joints.shape != (landmarks, 2):
            raise UserError(f"body {number} has joints of {joints.shape}; give [{landmarks},2] as for the first")
        try:
            box = crops.mask_box(mask)
            fmap = crops.square_crop(box, SQUARE)
        except UserError as e:
            raise UserError(f"body {number}: {e}") from None
        pixels = crops.warp(image, fmap, SQUARE)
        if view == "fan":
            # Warp the stored crop, not the photo, because bilinear sampling in one large step would skip pixels.
            pixels, fmap = (
                crops.warp(pixels, crops.fan_view(SQUARE, size), size),
                crops.then(fmap, crops.fan_view(SQUARE, size)),
            )
        points = coordinates.file_to_frame(np.concatenate([joints, np.reshape(box, (2, 2))]), fmap)
        folder.check_points(points[None, :landmarks], np.array([[size, size]]), lambda _, n=name: n)
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, format="JPEG", quality=quality)
        files.write(root / name, encoded.getvalue())
        rows.append([name, *("" if np.isnan(v) else f"{v:.3f}" for v in points.ravel())])
    if not rows:
        raise UserError(f"there are no bodies to write to {table}; give at least one")
    header = ["file", *(f"{axis}{i}" for i in range(landmarks) for axis in "xy"), *objects.BOX]
    files.write(table, files.csv_text([header, *rows]))  # last, so that an unfinished split has no csv
    return table
