"""A detector whose landmarks are always at the same places, for tests of what comes before and after it."""

import jax.numpy as jnp
import numpy as np

from tests import tiny
from uld_jax import sharding
from uld_jax.detector import Detector
from uld_jax.engine import runs
from uld_jax.method import Model, Prediction, Stage, TrainState

# Of the frame of 40 pixels: its middle, a corner, its upper and its left edge.
PLACES = np.array([[19.5, 19.5], [0, 0], [19.5, 0], [0, 19.5]], np.float32)


class Fixed(Stage):
    """Landmarks that are always at the same places of the frame."""

    def landmarks(self, state):
        return None

    def predict(self, state, frozen, images):
        return Prediction(jnp.tile(PLACES, (len(images), 1, 1)), jnp.full((len(images), 4), 0.5))


def detector(workdir):
    """A detector of such landmarks that keeps what `fit` learns in a folder."""
    config = tiny.config(**{"eval.batch_size": 4})
    finished = runs.Finished(workdir, config, "detector", Model(Fixed(), TrainState(jnp.int32(0)), {}), "", {})
    return Detector(finished, sharding.make_mesh())
