"""Features of views, stages that have none, and examples of labelled images."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from uld_jax import config as config_lib
from uld_jax.data.specs import DatasetSpec, Source
from uld_jax.errors import UserError
from uld_jax.evaluation.dense import features as features_lib
from uld_jax.evaluation.dense import measures, regression
from uld_jax.evaluation.dense.features import Features
from uld_jax.evaluation.dense.protocols import LEAD_2022
from uld_jax.method import Model, Stage

PROTOCOL = LEAD_2022._replace(frame=24, side=16, points=3, regressed=8, cells=16)


@dataclasses.dataclass(frozen=True)
class Colours(Stage):
    """Features that are an image's colours, and their means."""

    def dense(self, state, frozen, images):
        colours = state * images.astype(jnp.float32) / 255
        return colours, jax.image.resize(colours, (len(images), 4, 4, 3), "linear")


class Noise(Source):
    """Images of noise, with points."""

    def __init__(self, rows=10):
        rng = np.random.default_rng(1)
        self.spec, self.frame_size, self.names = DatasetSpec("noise", 2, "image"), 24, [*map(str, range(rows))]
        self.pixels = rng.integers(0, 255, (rows, 24, 24, 3), dtype=np.uint8)
        self.landmarks = rng.uniform(6, 18, (rows, 2, 2)).astype(np.float32)
        self.columns, self.fingerprint = {}, "0" * 16

    def image(self, row):
        return self.pixels[row]


@pytest.fixture(scope="module")
def features():
    return Features(types.SimpleNamespace(model=Model(Colours(), jnp.float32(2), {})))


def job(features, budget=10**9, say=lambda text: None):
    return measures.Job(features, PROTOCOL, Noise(), Noise(), 4, 0, budget, None, say)


def test_tables_of_landmarks_have_names(features, tmp_path):
    one = job(features)._replace(folder=tmp_path)
    one.landmark_table("a.csv", ["x"], [[1.5], [2]])
    one.test.spec = one.test.spec._replace(landmark_names=("left ear", "nose"))
    one.landmark_table("b.csv", ["x"], [[1.5], [2]])
    assert (tmp_path / "a.csv").read_text() == "landmark,x\n0,1.5\n1,2\n"
    assert (tmp_path / "b.csv").read_text() == "landmark,name,x\n0,left ear,1.5\n1,nose,2\n"


def test_features_of_all_images_are_those_of_each(features):
    views = features_lib.read_views(Noise(), [1, 4, 5, 9, 2], PROTOCOL, batch=2)
    assert views.images.shape == (5, 16, 16, 3)
    np.testing.assert_array_equal(views.images[4], Noise().pixels[2, 4:20, 4:20])
    np.testing.assert_allclose(views.xy[3], Noise().landmarks[9] - 4)
    stored, whole = features.all(views.images, 2), features(views.images)
    assert [x.shape for x in stored] == [(6, 16, 16, 3), (6, 4, 4, 3)]
    for a, b in zip(stored, whole, strict=True):
        np.testing.assert_allclose(a[:5], b, atol=1e-6)
    assert features.shapes(16) == [(16, 16, 3), (4, 4, 3)]


def test_cached_features_equal_those_of_every_step(features):
    told = []
    views = features_lib.read_views(Noise(), np.arange(10), PROTOCOL)
    cached = measures.examples_of(job(features), views.images, views.xy)
    anew = measures.examples_of(job(features, budget=100, say=told.append), views.images, views.xy)
    assert "computed in every step" in told[0]
    rows = np.array([7, 7, 0])
    for a, b in zip(*(jax.tree.leaves(e.read(e.data, rows, jax.random.key(0))) for e in (cached, anew)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(
        cached.read(cached.data, rows, None)[1], regression.to_unit(views.xy[rows], 16), atol=1e-6
    )


def test_stages_without_dense_features_are_refused():
    """In ZeroShot `dense` is a hyper-parameter, and no function of the protocol."""
    config = tiny.config("zeroshot")
    for name in config.stages:
        method = config_lib.stage(config, name).method
        given = types.SimpleNamespace(model=Model(method, None, None), stage=name, config=config)
        with pytest.raises(UserError, match=f"stage '{name}' has no dense features; give a run of another method"):
            features_lib.check_stage(given, 96)
    first = types.SimpleNamespace(model=Model(Stage(), None, None), stage="first", config=tiny.config("toy"))
    with pytest.raises(UserError, match="stage 'first' has no dense features; give another one with --stage: colours"):
        features_lib.check_stage(first, 96)


def test_few_labels_are_warped_anew_in_every_step(features):
    examples = measures._examples(job(features), np.array([2, 3]), warped=True)
    read = jax.jit(examples.read)
    (first, _), target = read(examples.data, np.array([0, 0, 1]), jax.random.key(0))
    assert first.shape == (3, 16, 16, 3)
    assert np.abs(first[0] - first[1]).max() > 0.1  # two warps of the same image
    xy = regression.from_unit(np.asarray(target), 16)
    away = np.abs(xy - (Noise().landmarks[[2, 2, 3]] - 4))
    assert 0.1 < away.max() < 4
    assert np.abs(xy - xy.round()).max() < 1e-5  # whole pixels
    again = read(examples.data, np.array([0, 0, 1]), jax.random.key(1))
    assert np.abs(again[0][0] - first).max() > 0.1
