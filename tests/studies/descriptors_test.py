"""Descriptors of two stages, compared on the same images."""

import doctest
import json

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.studies.fixed import Fixed
from uld_jax import __main__ as cli
from uld_jax.data import open_source
from uld_jax.engine import runs
from uld_jax.method import Model
from uld_jax.studies import descriptors


def uld(capsys, monkeypatch, *args):
    """Exit code, stdout and stderr of `uld figure`, run in this process."""
    monkeypatch.setattr("sys.argv", ["uld", "ablate", *map(str, args)])
    code = cli.main()
    out = capsys.readouterr()
    return code, out.out, out.err


def test_examples():
    result = doctest.testmod(descriptors)
    assert result.attempted >= 1
    assert result.failed == 0


def test_initial_and_learned_descriptors_are_compared(tmp_path, capsys, monkeypatch):
    config = tiny.config("self_training", **{"data.rows": (16, 21), "keypoints.clusters": 5})
    points = open_source("synthetic", "test", frame_size=40, rows=21).landmarks.mean(0)
    methods = {"keypoints": Fixed(tuple(map(tuple, points.tolist()))), "stage1": Fixed(((5.0, 5.0), (30.0, 30.0)))}

    def load(where, mesh):
        folder, _, stage = where.rpartition(":")
        return runs.Finished(folder, config, stage, Model(methods[stage], {}, {}), "", {})

    drawn = []

    def embed(rows, seed):  # t-SNE takes long and has a test of its own
        drawn.append(rows)
        return np.arange(0, len(rows.z), 2), rows.z[::2, :2]

    monkeypatch.setattr(descriptors.runs, "load", load)
    monkeypatch.setattr(descriptors.clusters_study, "embed", embed)
    code, out, err = uld(capsys, monkeypatch, "--figure=2a", f"--run={tmp_path / 'run'}", f"--workdir={tmp_path}")
    assert code == 0, err
    first, second = json.loads((tmp_path / "figure.json").read_text())["rows"]
    assert (first["descriptors"], second["descriptors"]) == ("initial", "learned")
    for row in (first, second):
        assert row["clusters"] <= 5
        assert {"silhouette", "silhouette_landmark", "nmi"} <= row.keys()
    assert first["near_landmark"] > second["near_landmark"]
    for row, rows in zip((first, second), drawn):  # coloured by the annotated point that is near, if one is
        assert row["rows"] == len(rows.z) == len(rows.landmark)
        assert row["near_landmark"] == pytest.approx((rows.landmark >= 0).mean())
    assert len(set(drawn[0].landmark)) > 5
    assert (tmp_path / "figure.md").read_text() in out
    assert np.asarray(Image.open(tmp_path / "figure.png")).std() > 3


def test_near_points_are_those_within_the_radius():
    rng = np.random.default_rng(0)
    points, truth, mask = rng.uniform(0, 9, (6, 7, 2)), rng.uniform(0, 9, (6, 4, 2)), rng.random((6, 7)) < 0.8
    truth[0, 1], points[~mask] = np.nan, np.nan
    found = descriptors.nearest(points, mask, truth, np.full(6, 2.0))
    for n, p in np.ndindex(6, 7):
        far = [np.inf if not mask[n, p] or np.isnan(t).any() else np.hypot(*(points[n, p] - t)) for t in truth[n]]
        assert found[n, p] == (int(np.argmin(far)) if min(far) <= 2 else -1)
