"""Annotated shapes and points that hang on them, for tests."""

import numpy as np
from sklearn.linear_model import Ridge

from uld_jax.evaluation import landmark_regression as lr
from uld_jax.evaluation.protocol import Protocol


def landmarks(n, k=6, points=9, seed=0, noise=2.0, missing=0.0):
    """Annotated shapes that move and bend, and discovered points that hang on them."""
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(99).uniform(20, 100, (points, 2))
    modes = np.random.default_rng(98).normal(0, 6, (3, points, 2))
    truth = base + np.tensordot(rng.normal(size=(n, 3)), modes, 1) + rng.normal(0, 8, (n, 1, 2))
    mix = np.random.default_rng(97).dirichlet(np.ones(points), k)
    found = np.einsum("kp,npc->nkc", mix, truth) + rng.normal(0, noise, (n, k, 2))
    score = rng.uniform(0.1, 1, (n, k)) * (rng.random((n, k)) >= missing)
    yaw = rng.uniform(-90, 90, n)
    return lr.LandmarkSet(found, score, truth, rng.random((n, points)) < 0.8, {"yaw": [f"{v:.3f}" for v in yaw]})


def flat(points):
    return np.asarray(points).reshape(len(points), -1)


def reference_fit(x, y, strength=0.01):
    centred = x - x.mean(0)
    return Ridge(alpha=strength * ((centred.T @ centred).max() + 1e-12), solver="cholesky").fit(x, y)


def svd_completed(found, there, side):
    """[N,K,2] with what is not there as plain singular value thresholding of coordinates / side has it."""
    known = np.repeat(there, 2, axis=1)
    target, y = np.where(known, flat(found) / side, 0), np.zeros(known.shape)
    for _ in range(1000):
        u, s, v = np.linalg.svd(y, full_matrices=False)
        x = (u * np.maximum(s - 5 * sum(y.shape) / 2, 0)) @ v
        y += 1.2 * y.size / known.sum() * np.where(known, target - x, 0)
        if np.linalg.norm(np.where(known, target - x, 0)) < 1e-2 * np.linalg.norm(target):
            break
    return np.where(there[..., None], found, side * x.reshape(found.shape))


def evaluate(train, test, **options):
    """`lr.evaluate` on data `p`; choices of the protocol are given by their names, `strength` is both ridges'."""
    if "strength" in options:
        options["ridge_forward"] = options["ridge_backward"] = options.pop("strength")
    chosen = {name: options.pop(name) for name in Protocol._fields if name in options}
    return lr.evaluate(train, test, data="p", **{"normaliser": (0, 1), "protocol": Protocol(**chosen), **options})
