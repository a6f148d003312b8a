"""Runs of Mallis et al.'s figures 2d and 2e: their mixtures of keypoints, and their agreement with true landmarks.

All M use the same points, and no point is dropped before the first clustering: neither by a box nor as an outlier. NMI
and F are those of `evaluation/correspondence.py` on the test split, for the chosen landmarks alone.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from uld_jax.config import Config
from uld_jax.data.mixture import mixture, write_points
from uld_jax.data.open import open_split
from uld_jax.engine import loop
from uld_jax.engine import workdir as workdir_lib
from uld_jax.errors import UserError
from uld_jax.evaluation.correspondence import correspondence
from uld_jax.evaluation.protocol import Protocol, spread
from uld_jax.studies import descriptors
from uld_jax.studies.grid import SEED, Cell

STEPS = {"small": 900}  # {preset: steps of stage1}, unless --config.stage1.steps is given


def shortened(config: Config, given) -> list[str]:
    """List the changes to a config in 2d and 2e: unchanged mixtures, and fewer steps with as many rounds.

    Outliers or a box would change the share of true points before anything is learned. The run is evaluated once.

    Args:
      config: a config of self-training.
      given: keys that the user has set, which are not changed.

    Returns:
      `KEY=VALUE` each.
    """
    stage, steps = config.stage1, STEPS.get(config.preset)
    changes = {"eval_every": 0, "keypoints.outliers": 0.0, "keypoints.region": "none", "stage1.region": "none"}
    if steps and "stage1.steps" not in given:
        part = steps / stage.steps
        changes |= {"stage1.steps": steps, "stage1.warmup": round(stage.warmup * part)}
        changes |= {"stage1.round_every": max(1, round(stage.round_every * part))}
    return [f"{key}={value}" for key, value in changes.items() if key not in given]


def points_path(workdir, values, seed: str) -> epath.Path:
    """Return the path of the csv with the mixtures of a run."""
    return epath.Path(workdir) / "points" / f"true={values['true']},share={values['share']},seed={seed}.csv"


class Mixtures:
    """The mixtures of keypoints of figures 2d and 2e, and the agreement of learned landmarks with the annotation.

    Args:
      every: all runs of the figure.
      workdir: folder of the figure.
      landmarks: landmarks that true points are drawn from, see `chosen`.

    Attributes:
      landmarks: numbers of the landmarks that true points are drawn from.

    Raises:
      UserError: landmarks that do not exist, or fewer than the true points that are asked for.
    """

    def __init__(self, every: Sequence[Cell], workdir, landmarks: str):
        self._workdir, self._config = workdir, every[0].config
        self._test = None
        self._train = open_split(self._config, "train")
        self.landmarks = chosen(landmarks, self._train.spec.landmarks)
        for true in sorted({int(cell.values["true"]) for cell in every}):
            if true > len(self.landmarks):
                raise UserError(
                    f"--grid=true: {true} true points cannot be drawn from {len(self.landmarks)} landmarks; use fewer, "
                    "or more with --landmarks"
                )

    def path(self, cell: Cell) -> epath.Path:
        """Return the path of the file with a run's numbers."""
        return self._workdir / cell.name / "mixture.json"

    def write(self, cells: Sequence[Cell]) -> None:
        """Write the csv of every mixture of some runs, by process 0."""
        zoom = min(self._config.keypoints.view.zoom, self._config.stage1.view.zoom)
        paths = {points_path(self._workdir, c.values, c.values[SEED]): c.values for c in cells}
        for path, values in paths.items() if jax.process_index() == 0 else ():
            true, share, seed = int(values["true"]), float(values["share"]), int(values[SEED])
            found = mixture(self._train, self.landmarks, true, share, zoom=zoom, seed=seed)
            write_points(path, self._train.names, found.xy)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("mixtures are written")

    def measure(self, cell: Cell, found: loop.Trained, mesh) -> None:
        """Write NMI and F of a finished run on the test split."""
        if self._test is None:
            self._test = open_split(self._config, "test")
        test, radius = self._test, Protocol.of(cell.config).match_radius
        seen = descriptors.look(cell.config, found.model, mesh, test)
        lengths = descriptors.lengths(test)
        visible = None if test.visible is None else test.visible[:, self.landmarks]
        truth = test.landmarks[:, self.landmarks]
        values = dataclasses.asdict(correspondence(seen.xy, seen.score, truth, lengths, radius=radius, visible=visible))
        # Measure the detector head alone, before clusters are assigned and distant keypoints are dropped.
        detected = correspondence(
            seen.points, seen.mask.astype(np.float32), truth, lengths, radius=radius, visible=visible
        )
        detector = ("f_measure", "precision", "recall", "keypoints_per_image")
        values |= {f"detector_{key}": getattr(detected, key) for key in detector}
        workdir_lib.write_json(self.path(cell), values | {"landmarks": self.landmarks, "images": len(test)})


def chosen(text: str, total: int) -> list[int]:
    """Turn `15`, a number of landmarks spread over all, or `0,3,7` into landmark numbers.

    >>> chosen("3", 5), chosen("4,1", 5)
    ([0, 2, 4], [1, 4])
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--landmarks={text} is neither a number nor numbers with commas between them") from None
    if len(numbers) == 1 and "," not in text:
        if not 0 < numbers[0] <= total:
            raise UserError(f"--landmarks={text}: the data have {total} landmarks; use 1 to {total} of them")
        return spread(total, numbers[0]).tolist()
    if len(set(numbers)) < len(numbers) or min(numbers) < 0 or max(numbers) >= total:
        raise UserError(f"--landmarks={text}: give different numbers from 0 to {total - 1}")
    return sorted(numbers)
