"""The start of C3's landmarks from those of another method."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from uld_jax import config as config_lib
from uld_jax.bank import Labels
from uld_jax.errors import UserError
from uld_jax.hyperparameters import replace
from uld_jax.method import Start, TrainState
from uld_jax.methods.c3_common import LOCATES

B, K = 4, 4


class Before(NamedTuple):
    """What the stage before left."""

    labels: Labels


def after(labels):
    return Start(TrainState(jnp.int32(0), aux=Before(labels)), B)


@pytest.fixture(scope="module")
def start():
    """The stage of the preset tiny, a batch, and labels: the third landmark of the first image is missing."""
    method = config_lib.stage(tiny.config("c3", more=",init=zeroshot"), "pose").method
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (B, 40, 40, 3)), jnp.uint8)
    score = np.ones((B, K), np.float32)
    score[0, 2] = 0
    labels = Labels(jnp.asarray(rng.uniform(10, 30, (B, K, 2)), jnp.float32), jnp.asarray(score))
    batch = {"image": images, "index": jnp.arange(B)}
    return method, batch, labels


def test_backbone_and_pose_head_learn_the_labels_and_the_rest_stays(start):
    method, batch, labels = start
    state = method.init(jax.random.key(1), batch, {}, after(labels))
    first, step = state, jax.jit(method.train_step)
    distances = []
    for i in range(70):
        state, metrics = step(state, {}, batch, jax.random.key(i))
        distances.append(float(metrics["distance_px"]))
    assert np.mean(distances[-5:]) < 0.75 * np.mean(distances[:5]), distances
    for name in first.params:
        same = all(map(np.array_equal, *map(jax.tree.leaves, (first.params[name], state.params[name]))))
        assert same == (name not in LOCATES), name


def test_labels_that_are_missing_have_no_weight(start):
    method, batch, labels = start
    other = labels._replace(xy=labels.xy.at[0, 2].set(-50.0))
    losses = []
    for given in (labels, other):
        state = method.init(jax.random.key(1), batch, {}, after(given))
        losses.append(float(jax.jit(method.train_step)(state, {}, batch, jax.random.key(0))[1]["loss"]))
    assert losses[0] == losses[1]


def test_the_rate_of_the_pose_scales_steps_of_what_places_landmarks(start):
    method, batch, labels = start
    moved = []
    for rate in (1.0, 0.25):
        slow = replace(method, pose_rate=rate)
        state = slow.init(jax.random.key(1), batch, {}, after(labels))
        new = jax.jit(slow.train_step)(state, {}, batch, jax.random.key(0))[0]
        moved.append(jax.tree.map(lambda a, b: a - b, new.params["pose"], state.params["pose"]))
    for a, b in zip(*map(jax.tree.leaves, moved), strict=True):
        np.testing.assert_allclose(b, 0.25 * a, rtol=1e-3, atol=1e-6)


def test_without_labels_the_error_names_the_stage(start):
    method, batch, _ = start
    with pytest.raises(UserError, match="needs the labels of a stage that finds landmarks"):
        method.init(jax.random.key(1), batch, {}, Start(None, B))
