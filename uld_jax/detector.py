"""A finished run as a user holds it: photos in, landmarks out."""

import collections
import csv
import functools
import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from uld_jax import runs, sharding, viz
from uld_jax import workdir as workdir_lib
from uld_jax.data import decode, open_source, specs
from uld_jax.data.specs import decode_threads
from uld_jax.errors import UserError
from uld_jax.evaluate import Predictor, eval_batch
from uld_jax.evaluators import landmark_regression as regression
from uld_jax.method import Prediction
from uld_jax.ops import coordinates

_SHEET_CELL = 160  # px, of the pictures kept for the contact sheet
_SHEET_MOST = 64


class LeaveOneOut(NamedTuple):
    """How well annotated landmarks are placed on images that were not used to learn it.

    Attributes:
      error: mean distance over images and points; None with a single image.
      unit: `percent` of the normaliser, or `pixels` of the images given.
      normaliser: what the errors are divided by, None for pixels.
    """

    error: float | None
    unit: str
    normaliser: str | None

    def __str__(self):
        if self.error is None:
            return "not measured, which takes two images"
        return f"{self.error:.2f} " + (f"% (normaliser: {self.normaliser})" if self.normaliser else "pixels")


class Detector:
    """A stage of a finished run; see `load`.

    Attributes:
      workdir, config, stage: of the run.
      annotated: the map made by `fit`, or None.
      leave_one_out: its error, a `LeaveOneOut`, or None.
    """

    def __init__(self, finished: runs.Finished, mesh):
        self._finished, self._mesh = finished, mesh
        self._predictor = Predictor(finished.method, mesh)
        self.workdir, self.config, self.stage = finished.workdir, finished.config, finished.stage
        self._hash = workdir_lib.tree_hash(finished.state)
        self.annotated, self.leave_one_out = _read_map(self._fit_path, self._hash) or (None, None)

    @classmethod
    def load(cls, where, *, mesh=None) -> "Detector":
        """`WORKDIR[:stage]` of a finished run. Raises UserError if there is none."""
        mesh = sharding.make_mesh() if mesh is None else mesh
        return cls(runs.load(str(where), mesh), mesh)

    @functools.cached_property
    def k(self) -> int:
        """Number of landmarks; of those in use, where the stage found out how many there are."""
        return self._predictor.count(self._finished.state, self._finished.frozen, self.frame_size)

    @property
    def frame_size(self) -> int:
        return self.config.data.frame_size

    @property
    def _fit_path(self) -> epath.Path:
        return self.workdir / f"annotated_{self.stage}.json"

    def predict(self, images, points: str = "discovered") -> Prediction:
        """Landmarks of images.

        Args:
          images: [N,H,W,3] uint8, or a sequence of [H,W,3] uint8 images of any sizes.
          points: `discovered`, or `annotated` for the landmarks that `fit` learned to place.

        Returns:
          NumPy arrays: xy [N,K,2] (or [N,L,2]) in pixels of the images given, score [N,K] (for annotated points 1).

        Raises:
          UserError: images of another kind, or `annotated` before `fit`.
        """
        frames, maps = self._frames(images)
        xy, score = self.predict_frames(frames, points)
        return Prediction(coordinates.frame_to_file(xy, maps).astype(np.float32), score)

    def predict_frames(self, frames: np.ndarray, points: str = "discovered") -> tuple[np.ndarray, np.ndarray]:
        """Landmarks of [N,F,F,3] uint8 images that are fitted to the frame already: xy in its pixels, score."""
        if points not in ("discovered", "annotated"):
            raise UserError(f"points is {points!r}; use discovered or annotated")
        if points == "annotated" and self.annotated is None:
            stage = "" if self.stage == self.config.stages[-1] else f" --stage={self.stage}"
            raise UserError(
                f"{self.workdir} has no annotated landmarks yet; run `uld fit --workdir={self.workdir}{stage}` first"
            )
        size = eval_batch(self.config, self._mesh)
        parts = []
        for start in range(0, len(frames), size):
            batch = frames[start : start + size]
            full = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), 0)])  # one size: one compilation
            xy, score = self._predictor.images(self._finished.state, self._finished.frozen, full)
            parts.append((xy[: len(batch)], score[: len(batch)]))
        xy, score = (np.concatenate(p) for p in zip(*parts, strict=True))
        if points == "annotated":
            xy = regression.apply_forward(self.annotated, xy, score)
            score = np.isfinite(xy).all(-1).astype(np.float32)
            xy = np.where(score[..., None] > 0, xy, 0)
        return xy, score

    def fit(self, images, points) -> regression.ForwardMap:
        """Learns to place annotated landmarks from a few labelled images, and keeps the map in the run's folder.

        The ridge of each point is the one with the least leave-one-out error over the images; `leave_one_out` then
        holds that error in pixels of the images.

        Args:
          images: N images as in `predict`.
          points: [N,L,2] `(x, y)` in their pixels; NaN where a point is not annotated.

        Raises:
          UserError: no images, points of another shape, or a point that is annotated on none of the images.
        """
        points = np.asarray(points, np.float64)
        frames, maps = self._frames(images)
        if points.ndim != 3 or points.shape[2] != 2 or len(points) != len(frames):
            raise UserError(f"points have shape {list(points.shape)}; give [N,L,2] for the {len(frames)} images")
        return self.fit_frames(frames, coordinates.file_to_frame(points, maps), maps)

    def fit_frames(
        self, frames: np.ndarray, points: np.ndarray, maps: np.ndarray, normaliser: regression.Normaliser | None = None
    ) -> regression.ForwardMap:
        """As `fit`, on images and points that are in the frame already.

        Args:
          frames: [N,F,F,3] uint8.
          points: [N,L,2] in pixels of the frame; NaN where a point is not annotated.
          maps: [N,4] from the images to the frame.
          normaliser: what the leave-one-out error is divided by, see `regression.normaliser_lengths`.
        """
        _check_annotated(points)
        train = regression.LandmarkSet(*self.predict_frames(frames), points)
        self.annotated = regression.fit_forward(train, strength=None)
        self.leave_one_out = _leave_one_out(train, self.annotated, maps, normaliser, self.frame_size)
        if jax.process_index() == 0:
            _write_map(self._fit_path, self.annotated, self.leave_one_out, self._hash)
        return self.annotated

    def _frames(self, images) -> tuple[np.ndarray, np.ndarray]:
        """Images of any size in the frame [N,F,F,3], and their maps [N,4]."""
        frames, maps = [], []
        for i, image in enumerate(images):
            image = np.asarray(image)
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise UserError(f"image {i} is {image.dtype} {list(image.shape)}; give [H,W,3] uint8 RGB images")
            frame, fmap = decode.fit_array(image, self.frame_size, self.config.data.fit)
            frames.append(frame)
            maps.append(fmap)
        if not frames:
            raise UserError("there are no images; give at least one")
        return np.stack(frames), np.stack(maps)


def _check_annotated(points) -> None:
    """Raises UserError for a point [N,L,2] that no image has: nothing could be learned for it."""
    never = np.flatnonzero(~np.isfinite(points).all(-1).any(0))
    if len(never) == points.shape[1]:
        raise UserError(f"none of the {len(points)} images has an annotated point; give their x and y")
    if len(never):
        raise UserError(
            f"landmark {', '.join(map(str, never))} is annotated on none of the {len(points)} images; annotate it, or "
            "leave its columns out"
        )


def _leave_one_out(train: regression.LandmarkSet, forward, maps, normaliser, side) -> LeaveOneOut:
    """The error of a fit, in percent if the normaliser is known and can be told on some image."""
    residuals = regression.leave_one_out(train, forward)  # in pixels of the frame
    lengths = None
    if normaliser is not None:
        lengths = regression.normaliser_lengths(train.truth, normaliser, side)
    if lengths is None or not np.isfinite(lengths).any():
        return LeaveOneOut(regression.mean_error(residuals / maps[:, None, :2]), "pixels", None)
    error = regression.mean_error(100 * residuals / lengths[:, None, None])
    return LeaveOneOut(error, "percent", regression.normaliser_name(normaliser))


def _write_map(path, forward: regression.ForwardMap, error: LeaveOneOut, state_hash: str) -> None:
    values = {k: np.asarray(v) for k, v in forward._asdict().items()}
    workdir_lib.write_json(path, values | {"leave_one_out": error._asdict(), "state": state_hash})


def _read_map(path, state_hash: str) -> tuple[regression.ForwardMap, LeaveOneOut | None] | None:
    """What `fit` left; None if there is nothing, or if the stage was trained further since."""
    if not epath.Path(path).exists():
        return None
    values = workdir_lib.read_json(path)
    if values.pop("state", None) != state_hash:
        return None
    error = values.pop("leave_one_out", None)  # maps from before there was one lack it
    if set(values) != set(regression.ForwardMap._fields):
        raise UserError(f"{path} is not a map that `uld fit` wrote; run `uld fit` again")
    arrays = {k: np.asarray(v, bool if k == "used" else np.float64) for k, v in values.items()}
    return regression.ForwardMap(**arrays), error and LeaveOneOut(**error)


class Skipped(NamedTuple):
    """A file that could not be read, and why."""

    file: str
    reason: str


def predict_folder(detector: Detector, folder, out, *, points: str = "discovered") -> tuple[int, list[Skipped]]:
    """Landmarks of every JPEG and PNG below `folder`, at any depth.

    Writes, in `out`: `landmarks.csv` (file,x0,y0,score0,... in pixels of the upright file; a missing landmark has empty
    coordinates and score 0), `overlays/<path>.png`, `contact_sheet.png`, and `skipped.csv` when files were unreadable.

    Returns:
      The number of images done, and the files that were skipped.

    Raises:
      UserError: no such folder, no images in it, or none that can be read.
    """
    folder, out = epath.Path(folder), epath.Path(out)
    if str(out.absolute() / "x").startswith(str(folder.absolute()) + "/"):
        raise UserError(
            f"--out={out} lies in --images={folder}, so its pictures would be read next time; choose another"
        )
    names = decode.list_images(folder)
    overlays = _overlay_names(names)
    if not names:
        raise UserError(f"{folder} holds no JPEG or PNG images; give another folder with --images")
    lines, skipped, sheet = [], [], []
    keep = set(np.unique(np.linspace(0, len(names) - 1, min(_SHEET_MOST, len(names))).astype(int)).tolist())
    size = detector.config.eval.batch_size
    with ThreadPoolExecutor(decode_threads()) as pool:
        for start in range(0, len(names), size):
            some = names[start : start + size]
            read = list(pool.map(lambda name: _read(detector, folder / name), some))
            skipped += [Skipped(n, r) for n, r in zip(some, read, strict=True) if isinstance(r, str)]
            good = [
                (start + i, n, r) for i, (n, r) in enumerate(zip(some, read, strict=True)) if not isinstance(r, str)
            ]
            if not good:
                continue
            frames = np.stack([r[0] for _, _, r in good])
            xy, score = detector.predict_frames(frames, points)
            file_xy = coordinates.frame_to_file(xy, np.stack([r[1] for _, _, r in good]))
            for (place, name, (_, _, picture, scale)), points_xy, value in zip(good, file_xy, score, strict=True):
                lines.append(_csv_row(name, points_xy, value))
                if jax.process_index():
                    continue
                shown = coordinates.rescale_points(points_xy, scale[0], scale[1])
                viz.save(viz.draw_overlay(picture, shown, value), out / "overlays" / overlays[name])
                if place in keep:
                    sheet.append((picture, shown, value))
    if not lines:
        raise UserError(f"none of the {len(names)} images in {folder} can be read; first: {skipped[0].reason}")
    if jax.process_index() == 0:
        count = len(xy[0])
        header = ["file", *(f"{c}{k}" for k in range(count) for c in ("x", "y", "score"))]
        _write_csv(out / "landmarks.csv", header, lines)
        viz.save(viz.contact_sheet(*zip(*sheet, strict=True)), out / "contact_sheet.png")
        if skipped:
            _write_csv(out / "skipped.csv", Skipped._fields, skipped)
        elif (out / "skipped.csv").exists():
            (out / "skipped.csv").unlink()  # of an earlier call
    return len(lines), skipped


def _read(detector: Detector, path) -> tuple[Any, ...] | str:
    """Frame, map, picture for overlays and (file size, its size), or why the file cannot be read."""
    try:
        frame, fmap, size = decode.decode_image(path, detector.frame_size, detector.config.data.fit)
        picture = decode.decode_picture(path)
        return frame, fmap, picture, (size, picture.shape[:2])
    except UserError as error:
        return str(error)


def _overlay_names(names: Sequence[str]) -> dict[str, str]:
    """`a/b.jpg` -> `a/b.png`; files that differ in their ending alone keep it, `a/b.jpg.png`.

    >>> _overlay_names(["a.jpg", "b.jpg", "b.png"])
    {'a.jpg': 'a.png', 'b.jpg': 'b.jpg.png', 'b.png': 'b.png.png'}
    """
    stems = collections.Counter(name.rpartition(".")[0] for name in names)
    whole = set(names)
    short = {n: n.rpartition(".")[0] for n in names}
    return {n: f"{short[n] if stems[short[n]] == 1 and short[n] not in whole else n}.png" for n in names}


def _csv_row(name: str, xy, score) -> list[str]:
    row = [name]
    for (x, y), s in zip(xy, score, strict=True):
        row += [f"{x:.3f}", f"{y:.3f}", f"{s:.4f}"] if s > 0 else ["", "", "0"]
    return row


def _write_csv(path, header: Iterable[str], rows) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.getvalue())


def fit_folder(
    detector: Detector, data_dir, split: str = "train", scheme: str = specs.NO_SCHEME
) -> tuple[regression.ForwardMap, int]:
    """`Detector.fit` on a labelled folder (`train.csv`); also how many images it used.

    `detector.leave_one_out` is in percent of the folder's normaliser (`specs.spec_of`). Raises UserError when the
    folder has no landmarks, or one that is annotated nowhere.
    """
    reading = dict(frame_size=detector.frame_size, fit=detector.config.data.fit, scheme=scheme)
    source = open_source("folder", split, data_dir=data_dir, **reading)
    if source.landmarks is None:
        raise UserError(f"{data_dir} has no {split}.csv with landmarks; add one with the columns file,x0,y0,x1,y1,...")
    normaliser = source.spec.eyes or source.spec.normaliser
    return detector.fit_frames(source.images(), source.landmarks, source.frame_maps, normaliser), len(source)
