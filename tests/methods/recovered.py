"""Stages, states and banks that the tests of self-training make up."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny
from uld_jax import config as config_lib
from uld_jax.bank import Bank, Labels
from uld_jax.hyperparameters import replace
from uld_jax.method import Start, TrainState
from uld_jax.methods import self_training_common as common
from uld_jax.methods.self_training import Seen
from uld_jax.models import layers

M, SIDE = 6, 40


def built(stage: str, variant: str = "neurips", **changes):
    config = tiny.config("self_training", more=f",variant={variant}")
    return replace(config_lib.stage(config, stage).method, **changes)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def net_params(stage):
    shape = jax.ShapeDtypeStruct((1, stage.view.image_size, stage.view.image_size, 3), jnp.float32)
    return layers.initialize(stage._net, jax.random.key(0), shape)["params"]


def second_params(stage):
    shape = jax.ShapeDtypeStruct((1, stage.view.image_size, stage.view.image_size, 3), jnp.float32)
    return layers.initialize(stage._net, jax.random.key(0), shape, train=False)["params"]


def state_of(stage, num_images: int, labels: Labels | None = None):
    batch = {"image": jnp.zeros((2, SIDE, SIDE, 3), jnp.uint8), "index": jnp.arange(2)}
    width = 16
    aux = common.unknown(num_images, M, width, jnp.float32)
    previous = jax.tree.map(lambda x: x, TrainState(jnp.int32(0), aux=aux))
    if labels is not None:
        previous = previous.replace(aux=aux._replace(labels=labels))
    return stage.init(jax.random.key(0), batch, {}, Start(previous, num_images))


def bank_of_groups(rng, groups, images: int, noise: float = 0.05):
    """Every image shows some of the groups' directions once, at the group's place."""
    p, size = len(groups) + 2, groups.shape[1]
    x, xy = np.zeros((images, 1, p, size), np.float32), np.zeros((images, 1, p, 2), np.float32)
    mask, truth = np.zeros((images, 1, p), bool), -np.ones((images, p), int)
    for n in range(images):
        some = rng.permutation(len(groups))[: rng.integers(2, len(groups) + 1)]
        slots = rng.permutation(p)[: len(some)]
        x[n, 0, slots] = unit(groups[some] + noise * rng.normal(size=(len(some), size)))
        xy[n, 0, slots] = np.stack([some * 5 + 2, some * 3 + 4], -1)
        mask[n, 0, slots], truth[n, slots] = True, some
    seen = Seen(jnp.asarray(xy), jnp.asarray(mask), jnp.asarray(x))
    return Bank(seen, jnp.arange(images)[:, None], jnp.ones((images, 1), bool)), truth


def changed(bank, **values):
    """A bank with other values."""
    return bank._replace(values=bank.values._replace(**values))


def images_of_groups(rng):
    """Observed keypoints of 40 images, [20,2] of them, that resemble one of eight groups' directions."""
    images, slots = 40, 14
    groups = unit(rng.normal(size=(8, 16)))
    near = lambda shape: unit(groups[rng.integers(0, 8, shape)] + 0.4 * rng.normal(size=(*shape, 16)))
    x = near((2, images // 2, slots))
    mask, xy = rng.random(x.shape[:3]) < 0.8, rng.uniform(0, SIDE, (*x.shape[:3], 2))
    index = jnp.asarray(rng.permutation(images).reshape(2, -1), jnp.int32)
    seen = Seen(jnp.asarray(xy, jnp.float32), jnp.asarray(mask), jnp.asarray(x, jnp.float32))
    return Bank(seen, index, jnp.ones_like(index, bool)), near


def placed_one_by_one(stage, state, bank):
    """The states after a refresh from a whole bank, and after one whose batches are placed one after the other."""
    key = jax.random.key(2)
    whole = jax.jit(stage.refresh)(state, {}, bank, key).aux
    found, locate = jax.jit(stage.form)(state, {}, bank, key), jax.jit(stage.locate)
    cut = lambda t: jax.tree.map(lambda x: x[:, t], bank.values)
    batches = [locate(state, found, cut(t)) for t in range(bank.index.shape[1])]
    placed = jax.tree.map(lambda *parts: jnp.stack(parts, 1), *batches)
    assert all(16 not in x.shape[2:] for x in jax.tree.leaves(placed))  # no descriptors
    return whole, jax.jit(stage.settle)(state, found, bank._replace(values=placed)).aux


class Fixed:
    """Stands in for a FAN: heatmaps that no image changes."""

    def __init__(self, maps):
        self.maps = maps

    def apply(self, variables, seen, train):
        return types.SimpleNamespace(logits=jnp.asarray(self.maps)[None] + 0 * variables["params"]["w"])
