"""The detector of a finished run: photos in, landmarks out."""

import functools
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from uld_jax import sharding
from uld_jax.data import decode, open_source, schemes, specs
from uld_jax.data.open import eval_batch
from uld_jax.engine import runs
from uld_jax.engine import workdir as workdir_lib
from uld_jax.errors import UserError, shell_command
from uld_jax.evaluation import landmark_regression as regression
from uld_jax.evaluation.predictor import Predictor
from uld_jax.method import Prediction
from uld_jax.ops import coordinates


class LeaveOneOut(NamedTuple):
    """Leave-one-out error of annotated landmarks: each image is predicted by a map learned from the others.

    Attributes:
      error: mean distance over images and points, in `unit`; None with a single image.
      unit: `percent` of the normaliser, or `pixels` of the images given.
      normaliser: name of the length that errors are divided by; None for pixels.
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
      workdir: folder of the run.
      config: config of the run.
      stage: name of the stage.
      annotated: map from discovered to annotated landmarks, made by `fit`; None before.
      annotated_names: names of the annotated landmarks; () if they have none.
      leave_one_out: `LeaveOneOut` error of that map, or None.
    """

    def __init__(self, finished: runs.Finished, mesh):
        self._finished, self._mesh = finished, mesh
        self._predictor = Predictor(finished.model.method, mesh)
        self.workdir, self.config, self.stage = finished.workdir, finished.config, finished.stage
        self._hash = workdir_lib.tree_hash(finished.model.state)
        known = _read_map(self._fit_path, self._hash) or (None, None, ())
        self.annotated, self.leave_one_out, self.annotated_names = known

    @classmethod
    def load(cls, where, *, mesh=None) -> "Detector":
        """Load a stage of a finished run, `WORKDIR[:stage]`. Raises UserError if there is none."""
        mesh = sharding.make_mesh() if mesh is None else mesh
        return cls(runs.load(str(where), mesh), mesh)

    @functools.cached_property
    def k(self) -> int:
        """Number of landmarks; for a stage that estimates this number, only landmarks in use count."""
        return self._predictor.count(self._finished.model, self.frame_size)

    @property
    def frame_size(self) -> int:
        """Side of the square frame, in pixels."""
        return self.config.data.frame_size

    @property
    def _fit_path(self) -> epath.Path:
        return self.workdir / f"annotated_{self.stage}.json"

    def predict(self, images, points: str = "discovered", outside: str = "missing") -> Prediction:
        """Predict the landmarks of images.

        No point lies outside its image. A point that is found or placed outside, on the padding of the square frame,
        is missing (score 0); see `coordinates.on_file`. If an image shows nothing (`shows_nothing`), all its landmarks
        are missing, with a warning.

        Args:
          images: [N,H,W,3] uint8, or a sequence of [H,W,3] images of any sizes; see `decode.array_pixels` for grey
            images, images with alpha, and uint16.
          points: `discovered`, or `annotated` for the landmarks that `fit` learned to place.
          outside: `missing`, or `clip` to move landmarks outside an image to its edge and keep their score.

        Returns:
          NumPy arrays: xy [N,K,2] (or [N,L,2]) in pixels of the images given, score [N,K] (1 for annotated points).

        Raises:
          UserError: images of another kind, or `annotated` before `fit`.
        """
        frames, maps, sizes = self._frames(images)
        found = self.predict_files(frames, maps, sizes, points, outside)
        if len(found.empty):
            some = ", ".join(map(str, found.empty[:5])) + (", ..." if len(found.empty) > 5 else "")
            warnings.warn(
                f"{len(found.empty)} of {len(frames)} images show nothing (all of one colour), and have no landmarks: "
                f"image {some}",
                stacklevel=2,
            )
        return Prediction(found.xy.astype(np.float32), found.score)

    def predict_files(
        self, frames: np.ndarray, maps: np.ndarray, sizes, points: str = "discovered", outside: str = "missing"
    ) -> "OnFiles":
        """Predict, like `predict`, for images that already fit the frame; the landmarks are in pixels of the files.

        Args:
          frames: [N,F,F,3] uint8.
          maps: [N,4] maps from the files to the frame.
          sizes: [N,2] (height, width) of the files.
          points, outside: as in `predict`.
        """
        xy, score = self.predict_frames(frames, points)
        empty = shows_nothing(frames)
        score = np.where(empty[:, None], np.float32(0), score)
        xy = coordinates.frame_to_file(xy, maps)
        return OnFiles(*coordinates.on_file(xy, score, sizes, maps, outside), np.flatnonzero(empty))

    def predict_frames(self, frames: np.ndarray, points: str = "discovered") -> tuple[np.ndarray, np.ndarray]:
        """Predict xy [N,K,2] in pixels of the frame, and score [N,K], for [N,F,F,3] uint8 images that fit the frame."""
        if points not in ("discovered", "annotated"):
            raise UserError(f"points is {points!r}; use discovered or annotated")
        if points == "annotated" and self.annotated is None:
            stage = "" if self.stage == self.config.stages[-1] else self.stage
            fit = shell_command("fit", workdir=self.workdir, stage=stage, data_dir="LABELLED_PHOTOS")
            raise UserError(f"{self.workdir} has no annotated landmarks yet; run `{fit}` first")
        size = eval_batch(self.config, self._mesh)
        parts = []
        for start in range(0, len(frames), size):
            batch = frames[start : start + size]
            # Batches of one size need only one compilation.
            full = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), 0)])
            xy, score = self._predictor.images(self._finished.model, full)
            parts.append((xy[: len(batch)], score[: len(batch)]))
        xy, score = (np.concatenate(p) for p in zip(*parts, strict=True))
        if points == "annotated":
            xy = regression.apply_forward(self.annotated, xy, score)
            score = np.isfinite(xy).all(-1).astype(np.float32)
            xy = np.where(score[..., None] > 0, xy, 0)
        return xy, score

    def fit(self, images, points, names: Sequence[str] = ()) -> regression.ForwardMap:
        """Learn to place annotated landmarks from a few labelled images, and store the map in the run's folder.

        The ridge strength of each point is the one with the least leave-one-out error over the images; `leave_one_out`
        then holds that error in pixels of the images.

        Args:
          images: N images as in `predict`.
          points: [N,L,2] `(x, y)` in pixels of the images; NaN where a point is not annotated.
          names: names of the L points, which are stored with the map; () for none.

        Raises:
          UserError: no images, points of another shape, a point that is annotated on none of the images, or names that
            are not one for each point.
        """
        points = np.asarray(points, np.float64)
        frames, maps, _ = self._frames(images)
        if points.ndim != 3 or points.shape[2] != 2 or len(points) != len(frames):
            raise UserError(f"points have shape {list(points.shape)}; give [N,L,2] for the {len(frames)} images")
        return self.fit_frames(frames, coordinates.file_to_frame(points, maps), maps, names=names)

    def fit_frames(
        self,
        frames: np.ndarray,
        points: np.ndarray,
        maps: np.ndarray,
        normaliser: regression.Normaliser | None = None,
        names: Sequence[str] = (),
    ) -> regression.ForwardMap:
        """Fit, like `fit`, from images and points that are already in the frame.

        Args:
          frames: [N,F,F,3] uint8.
          points: [N,L,2] in pixels of the frame; NaN where a point is not annotated.
          maps: [N,4] maps from the images to the frame.
          normaliser: normaliser of the leave-one-out error, see `regression.normaliser_lengths`.
          names: names of the L points, as in `fit`.
        """
        names = tuple(names)
        if names and (len(set(names)) < len(names) or len(names) != points.shape[1] or not all(map(str.strip, names))):
            raise UserError(f"names are {list(names)}; give a name of its own for each of the {points.shape[1]} points")
        _check_annotated(points, names)
        train = regression.LandmarkSet(*self.predict_frames(frames), points)
        self.annotated, self.annotated_names = regression.fit_forward(train, strength=None), names
        self.leave_one_out = _leave_one_out(train, self.annotated, maps, normaliser, self.frame_size)
        if jax.process_index() == 0:
            _write_map(self._fit_path, self.annotated, self.leave_one_out, self._hash, names)
        return self.annotated

    def _frames(self, images) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Fit images of any size into the frame: frames [N,F,F,3], maps [N,4] and sizes [N,2]."""
        frames, maps, sizes = [], [], []
        shape = list(getattr(images, "shape", ()))
        if len(shape) == 2 or (len(shape) == 3 and shape[2] <= 4):
            raise UserError(f"images have shape {shape}, a single image; give images[None], [N,H,W,3] or [N,H,W]")
        for i, image in enumerate(images):
            try:
                image = decode.array_pixels(image)
            except UserError as error:
                raise UserError(f"image {i} {error}") from None
            frame, fmap = decode.fit_array(image, self.frame_size, self.config.data.fit)
            frames.append(frame)
            maps.append(fmap)
            sizes.append(image.shape[:2])
        if not frames:
            raise UserError("there are no images; give at least one")
        return np.stack(frames), np.stack(maps), np.array(sizes)


class OnFiles(NamedTuple):
    """Landmarks in files.

    Attributes:
      xy: [N,K,2] float64 `(x, y)` in pixels of the files; no point lies outside its file.
      score: [N,K] float32, confidence; 0 means missing.
      beyond: [N,K] bool, True for landmarks that were predicted outside their photos.
      empty: [E] row numbers of the images that show nothing; all their landmarks are missing.
    """

    xy: np.ndarray
    score: np.ndarray
    beyond: np.ndarray
    empty: np.ndarray


def shows_nothing(frames: np.ndarray) -> np.ndarray:
    """Tell which images [N,F,F,3] uint8 have a single colour, apart from noise: [N] bool.

    In such an image, the standard deviation of every channel is below one level of 255.
    """
    return (frames.std((1, 2), dtype=np.float32) < 1).all(-1)


def _check_annotated(points, names: Sequence[str] = ()) -> None:
    """Raise UserError if a point of `points` [N,L,2] is annotated on no image, because it could not be learned."""
    never = np.flatnonzero(~np.isfinite(points).all(-1).any(0))
    if len(never) == points.shape[1]:
        raise UserError(f"none of the {len(points)} images has an annotated point; give their x and y")
    if len(never):
        which = ", ".join(str(names[i] if names else i) for i in never)
        raise UserError(
            f"landmark {which} is annotated on none of the {len(points)} images; annotate it, or leave its columns out"
        )


def _leave_one_out(train: regression.LandmarkSet, forward, maps, normaliser, side) -> LeaveOneOut:
    """Return the leave-one-out error, in percent if there is a normaliser that can be measured on some image."""
    residuals = regression.leave_one_out(train, forward)  # in pixels of the frame
    lengths = None
    if normaliser is not None:
        lengths = regression.normaliser_lengths(train.truth, normaliser, side)
    if lengths is None or not np.isfinite(lengths).any():
        return LeaveOneOut(regression.mean_error(residuals / maps[:, None, :2]), "pixels", None)
    error = regression.mean_error(100 * residuals / lengths[:, None, None])
    return LeaveOneOut(error, "percent", regression.normaliser_name(normaliser))


def _write_map(path, forward: regression.ForwardMap, error: LeaveOneOut, state_hash: str, names) -> None:
    values = {k: np.asarray(v) for k, v in forward._asdict().items()}
    more = {"leave_one_out": error._asdict(), "state": state_hash, "names": list(names)}
    workdir_lib.write_json(path, values | more)


def _read_map(path, state_hash: str) -> tuple[regression.ForwardMap, LeaveOneOut | None, tuple[str, ...]] | None:
    """Read the map that `fit` stored; None if there is none, or if the stage has been trained further since."""
    if not epath.Path(path).exists():
        return None
    values = workdir_lib.read_json(path)
    if values.pop("state", None) != state_hash:
        return None
    error, names = values.pop("leave_one_out", None), values.pop("names", ())  # maps of earlier versions lack them
    if set(values) != set(regression.ForwardMap._fields):
        raise UserError(f"{path} is not a map that `uld fit` wrote; run `uld fit` again")
    arrays = {k: np.asarray(v, bool if k == "used" else np.float64) for k, v in values.items()}
    return regression.ForwardMap(**arrays), error and LeaveOneOut(**error), tuple(names)


def fit_folder(
    detector: Detector,
    data_dir,
    split: str = "train",
    scheme: str = schemes.NO_SCHEME,
    names: Sequence[str] = (),
) -> tuple[regression.ForwardMap, int]:
    """Fit on the annotated images of a folder; return the map and the number of these images.

    `detector.leave_one_out` is in percent of the folder's normaliser (`specs.spec_of`). `names` replaces the names that
    the points have. Raises UserError when the folder has no landmarks, or a landmark that is annotated nowhere, or when
    there is not a name for each.
    """
    config = detector.config.data
    reading = dict(frame_size=config.frame_size, fit=config.fit, scheme=scheme)
    reading |= dict(on_bad_file=config.get("on_bad_file", "error"))
    source = open_source("folder", split, data_dir=data_dir, **reading)
    rows = specs.labelled(source)
    if not len(rows):
        raise UserError(
            f"{data_dir} has no labels of {split} images; add {split}.csv (file,x0,y0,x1,y1,...), or files of a tool"
        )
    normaliser = source.spec.eyes or source.spec.normaliser
    given = source.images(rows), source.landmarks[rows], source.frame_maps[rows]
    return detector.fit_frames(*given, normaliser, names or source.spec.landmark_names), len(rows)
