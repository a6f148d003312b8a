"""What several of these tests compile or render, once for all."""

import jax
import numpy as np
import pytest

from tests.data.synthetic import heads
from uld_jax.data import synthetic
from uld_jax.data.synthetic import dataset, head, renderer


@pytest.fixture(scope="session")
def source():
    return synthetic.Synthetic("train", rows=200, frame_size=heads.SIZE)


@pytest.fixture(scope="session")
def scenes():
    """Two hundred scenes of no split."""
    keys = dataset.row_keys(7, "train", np.arange(200, dtype=np.uint32))
    return jax.jit(jax.vmap(synthetic.sample_scene))(keys)


@pytest.fixture(scope="session")
def render():
    """Two scenes at a time: another batch size than the data set's."""
    return jax.jit(jax.vmap(lambda scene: synthetic.render(scene, heads.SIZE)), compiler_options=heads.QUICK)


@pytest.fixture(scope="session")
def look():
    """Eight scenes: world, landmarks in head coordinates, in pixels, and whether they are visible."""

    def one(scene):
        world = head.make_world(scene)
        return world, head.landmarks_3d(scene), *renderer.annotation(scene, world, heads.SIZE)

    return jax.jit(jax.vmap(one), compiler_options=heads.QUICK)
