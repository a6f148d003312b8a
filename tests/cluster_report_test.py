import dataclasses
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from tests import tiny
from uld_jax import cluster_report, sharding
from uld_jax.errors import UserError
from uld_jax.method import Rows, Stage


@dataclasses.dataclass(frozen=True)
class Told(Stage):
    """Descriptors [B,4,D] near one direction a landmark; the last slot of odd images is masked and holds NaN."""

    size: int

    describes = True

    def observe(self, state, frozen, batch):
        del state, frozen
        noise = 0.05 * jnp.sin(jnp.arange(self.size) * (1.0 + batch["index"][:, None, None] + jnp.arange(4)[:, None]))
        z = 3 * jnp.eye(4, self.size) + noise
        mask = (jnp.arange(4) < 3) | (batch["index"][:, None] % 2 == 0)
        return Rows(jnp.where(mask[..., None], z, jnp.nan), jnp.zeros((*mask.shape, 2)), mask)


@pytest.fixture
def finished(tmp_path):
    return lambda size=256, method=None: types.SimpleNamespace(
        config=tiny.config(**{"data.rows": (30, 8), "eval.batch_size": 8}),
        method=method or Told(size),
        state={},
        frozen={},
        stage="told",
        workdir=epath.Path(tmp_path),
    )


def test_every_way_finds_what_is_apart(finished, tmp_path):
    lines = [dict(step=s, stage="told", clusters=4 + s, silhouette=0.1 * s, consistency=0.9) for s in range(3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    run = finished()
    records, folder = cluster_report.report(run, sharding.make_mesh(), clusters=4, neighbours=10)
    assert [r["clustering"] for r in records] == ["kmeans", "gcn", "density"]
    assert records[0]["clusters"] == 4
    for record in records:
        assert record["purity_landmark"] == 1
        assert record["consistency"] > 0.98
        assert record["clusters"] >= 4
    assert records[0]["nmi_landmark"] == pytest.approx(1)
    assert records[0]["silhouette"] > 0.7
    saved = json.loads((folder / "clusters.json").read_text())
    assert saved["clusterings"] == records
    assert (saved["rows"], saved["size"]) == (30 * 3 + 15, 256)
    assert (folder / "table.md").read_text().count("\n") == 5
    for name in ("tsne.png", "rounds.png"):
        assert np.asarray(Image.open(folder / name)).std() > 5


def test_rows_are_spread_and_limited(finished):
    rows = cluster_report.observe(finished(), sharding.make_mesh(), split="train", most=20)
    assert len(rows.z) == 5 * 3 + np.sum(np.linspace(0, 29, 5).astype(int) % 2 == 0)
    assert np.isfinite(rows.z).all()
    np.testing.assert_array_equal(rows.z.argmax(1), rows.landmark)


def test_other_splits_have_no_rows_that_training_could_remember(finished):
    rows = cluster_report.observe(finished(), sharding.make_mesh(), split="test", most=20)
    assert len(rows.z) == 5 * 3  # every index is the same odd one, beyond the training rows


def test_keypoints_in_no_order_are_compared_with_no_landmarks(finished):
    method = dataclasses.make_dataclass("Loose", [], bases=(Told,), frozen=True)(256)
    object.__setattr__(method, "slots_are_landmarks", False)
    records, _ = cluster_report.report(finished(method=method), sharding.make_mesh(), ways=["kmeans"], clusters=4)
    assert records[0]["silhouette"] > 0.7
    assert "nmi_landmark" not in records[0]


def test_the_network_is_left_out_where_it_does_not_fit(finished):
    records, folder = cluster_report.report(finished(8), sharding.make_mesh(), clusters=4, neighbours=5)
    assert [r["clustering"] for r in records] == ["kmeans", "density"]
    assert not (folder / "rounds.png").exists()  # a run without rounds


def test_bad_input_is_named(finished):
    mesh = sharding.make_mesh()
    with pytest.raises(UserError, match="--clustering=x is unknown; use some of kmeans, gcn, density"):
        cluster_report.report(finished(), mesh, ways=["x"])
    with pytest.raises(UserError, match="'told' has no descriptors"):
        cluster_report.report(finished(method=Stage()), mesh)
