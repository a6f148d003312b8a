"""A detector and data made up, for tests of what is measured of them."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from tests import tiny
from uld_jax.data.open import Data
from uld_jax.data.specs import DatasetSpec, Source
from uld_jax.evaluation import measure as measure_lib
from uld_jax.evaluation.predictor import Found
from uld_jax.method import Prediction, Stage


class Points(Source):
    """Annotation that hangs on three made-up landmarks; `found` is what a detector finds."""

    def __init__(self, rows, seed):
        rng = np.random.default_rng(seed)
        self.spec, self.frame_size, self.columns = DatasetSpec("points", 5, "image"), 40, {"yaw": ["0"] * rows}
        self.names = [str(i) for i in range(rows)]
        self.found = rng.uniform(5, 35, (rows, 3, 2)).astype(np.float32)
        mix = np.random.default_rng(0).dirichlet(np.ones(3), 5)
        self.landmarks = np.einsum("lk,nkc->nlc", mix, self.found) + rng.normal(0, 1, (rows, 5, 2))
        self.visible = np.ones((rows, 5), bool)
        self.score, self.pose = np.ones((rows, 3)), None
        self.frame_maps = np.tile([1.0, 1, 0, 0], (rows, 1))

    def image(self, row):
        return np.full((40, 40, 3), row, np.uint8)


class Finds:
    """Stands in for `predictor.Predictor`; the readers are the sources."""

    devices = 1

    def __init__(self, filled_below=0.0):
        self._filled_below = filled_below  # landmarks with a lower score were not detected

    def read(self, model, reader, rows):
        score = reader.score[rows]
        return Found(reader.found[rows], score, score >= max(self._filled_below, 1e-9))

    def poses(self, model, reader, rows):
        return None if reader.pose is None else reader.pose[rows]

    def carry(self, model, images_a, images_b, points_b):
        return None

    def images(self, model, images):
        raise AssertionError("stability is measured elsewhere")


@dataclasses.dataclass(frozen=True)
class Slots(Stage):
    """Five slots whose places hang on the image's brightness; the state says which of them are landmarks."""

    maps: int = 5

    def landmarks(self, state):
        return state.aux

    def poses(self, state, frozen, images):
        return None if state.aux is None else images[:, 0, 0, 0].astype(jnp.int32) // 32

    def predict(self, state, frozen, images):
        bright = jnp.mean(images.astype(jnp.float32), (1, 2, 3)) / 16
        xy = jnp.arange(5.0)[:, None] * jnp.array([2.0, 3.0]) + 5 + bright[:, None, None]
        found = jnp.ones(5, bool) if state.aux is None else state.aux
        return Prediction(xy, jnp.broadcast_to(found, xy.shape[:2]).astype(jnp.float32))

    def heatmaps(self, state, frozen, images):
        return images, jnp.broadcast_to(jnp.arange(float(self.maps)), (len(images), 8, 8, self.maps))


def measure(train, test, changes=(), filled_below=0.0, **options):
    config = tiny.config(more=",protocol=awan2023", **{"eval.train_images": 30} | dict(changes))
    data = Data(train, test, train, test)
    return measure_lib.measure(config, Finds(filled_below), None, data, **options)
