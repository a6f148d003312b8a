"""What the evaluations of the loop leave in a run's folder."""

import json

import jax.numpy as jnp

from tests import tiny
from tests.evaluation.made_up import Slots
from uld_jax import sharding
from uld_jax.data.open import open_data
from uld_jax.evaluation.predictor import Predictor
from uld_jax.evaluation.run import in_training
from uld_jax.method import Model, TrainState


def test_pictures_of_pose_clusters_stand_by_the_others(tmp_path, still):
    config, mesh = tiny.config(**{"data.rows": (24, 8)}), sharding.make_mesh()
    data, state = open_data(config, mesh), TrainState(jnp.int32(0), aux=jnp.ones(5, bool))
    given = Predictor(Slots(), mesh), Model(Slots(), state, {}), data
    for last in (False, True):
        report = in_training(config, tmp_path, "detector", 7, *given, last=last)
        assert sum(report["pose_clusters"]["sizes"]) == 8
        assert (tmp_path / "pictures/00000007_detector_pose_clusters.png").exists()
        for folder in ("eval/test", "eval/test/detector"):
            for name in ("pose_clusters.png", "landmark_accuracy.png"):
                assert (tmp_path / folder / name).exists() == last
    saved = json.loads((tmp_path / "eval/test/metrics.json").read_text())
    assert saved["pose_clusters"] == report["pose_clusters"]
    assert saved["pose_clusters"]["counted"] == 8  # the synthetic heads have a yaw
    assert 0 <= saved["landmark_accuracy"]["exclusive"] <= saved["landmark_accuracy"]["best"] <= 1
