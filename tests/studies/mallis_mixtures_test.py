"""Runs of figures 2d and 2e: the chosen landmarks, NMI and F."""

import doctest
import json

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from scipy.optimize import linear_sum_assignment

from tests.studies.fixed import Fixed
from uld_jax import sharding
from uld_jax.data import open_source
from uld_jax.engine import loop
from uld_jax.evaluation.landmark_regression import normaliser_lengths
from uld_jax.method import Model
from uld_jax.studies import mallis_figure2, mallis_mixtures

SPEC = "self_training:dataset=synthetic,preset=tiny"
CHOSEN = [0, 2, 5, 8, 11, 15]


def test_examples():
    result = doctest.testmod(mallis_mixtures)
    assert result.attempted >= 1
    assert result.failed == 0


def by_hand(xy, mask, truth, seen, lengths, radius=0.1):
    """(matched, found, annotated) by SciPy, image by image."""
    matched = 0
    for points, on, there, near in zip(xy, mask, truth, seen):
        cost = np.linalg.norm(points[on][:, None] - there[near], axis=-1) / (radius * lengths[0])
        lengths = lengths[1:]
        fine = cost <= 1
        rows, columns = linear_sum_assignment(np.where(fine, cost, 1e3))
        matched += fine[rows, columns].sum()
    return matched, mask.sum(), seen.sum()


def test_f_is_against_the_chosen_landmarks_of_the_test_split(tmp_path):
    cells, _ = mallis_figure2.plan("2d", SPEC, tmp_path, ["clusters=6", "true=2", "share=0.5"], ["data.rows=(16,21)"])
    mixed = mallis_mixtures.Mixtures(cells, epath.Path(tmp_path), ",".join(map(str, CHOSEN)))
    test = open_source("synthetic", "test", frame_size=40, rows=21)
    method = Fixed(tuple(map(tuple, test.landmarks[:4, CHOSEN].reshape(-1, 2).tolist())))
    found = loop.Trained(Model(method, {}, {}), {})
    mixed.measure(cells[0], found, sharding.make_mesh())
    values = json.loads((tmp_path / cells[0].name / "mixture.json").read_text())
    images = jnp.asarray(test.images())
    said = method.predict({}, {}, images)
    held = method.observe({}, {}, {"image": images, "index": jnp.full(21, 9999)}, None)
    lengths = normaliser_lengths(test.landmarks, "box", 40)
    truth, seen = test.landmarks[:, CHOSEN], test.visible[:, CHOSEN]
    for prefix, xy, mask in (("", said.xy, said.score > 0), ("detector_", held.xy, held.mask)):
        matched, count, annotated = by_hand(np.asarray(xy), np.asarray(mask), truth, seen, lengths)
        assert 10 < matched < count
        assert values[f"{prefix}precision"] == pytest.approx(matched / count)
        assert values[f"{prefix}recall"] == pytest.approx(matched / annotated)
        assert values[f"{prefix}f_measure"] == pytest.approx(2 * matched / (count + annotated))
    assert values["landmarks"] == CHOSEN
    assert values["images"] == 21
