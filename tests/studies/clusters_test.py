import dataclasses
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image
from sklearn.metrics import calinski_harabasz_score, silhouette_score

from tests import tiny
from uld_jax import sharding
from uld_jax.bank import Rows
from uld_jax.errors import UserError
from uld_jax.method import Prediction, Stage
from uld_jax.studies import clusters


@dataclasses.dataclass(frozen=True)
class Told(Stage):
    """Descriptors [B,4,D] near one direction a landmark; the last slot of odd images is masked and holds NaN."""

    size: int

    describes = True

    def observe(self, state, frozen, batch, rng):
        del state, frozen, rng
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
    records, folder = clusters.report(run, sharding.make_mesh(), clusters=4, neighbours=10)
    assert [r["clustering"] for r in records] == ["kmeans", "gcn", "density", "landmark"]
    assert records[0]["clusters"] == records[3]["clusters"] == 4
    assert {r["rows"] for r in records} == {30 * 3 + 15}
    np.testing.assert_allclose(records[3]["silhouette"], records[0]["silhouette"], rtol=1e-4)
    for record in records:
        assert record["purity_landmark"] == 1
        assert record["consistency"] > 0.98
        assert record["clusters"] >= 4
    assert records[0]["nmi_landmark"] == pytest.approx(1)
    assert records[0]["silhouette"] > 0.7
    saved = json.loads((folder / "clusters.json").read_text())
    assert saved["clusterings"] == records
    assert (saved["rows"], saved["size"]) == (30 * 3 + 15, 256)
    assert (folder / "table.md").read_text().count("\n") == 6
    for name in ("tsne.png", "rounds.png"):
        assert np.asarray(Image.open(folder / name)).std() > 5


def test_rows_are_spread_and_limited(finished):
    rows = clusters.observe(finished(), sharding.make_mesh(), split="train", most=20)
    assert len(rows.z) == 5 * 3 + np.sum(np.linspace(0, 29, 5).astype(int) % 2 == 0)
    assert np.isfinite(rows.z).all()
    np.testing.assert_array_equal(rows.z.argmax(1), rows.landmark)


def test_other_splits_have_no_rows_that_training_could_remember(finished):
    rows = clusters.observe(finished(), sharding.make_mesh(), split="test", most=20)
    assert len(rows.z) == 5 * 3  # every index is the same odd one, beyond the training rows


@dataclasses.dataclass(frozen=True)
class Loose(Told):
    """The same in no order, each direction at its own place; landmark 0 is at the third's, 1 filled in, 2 elsewhere."""

    describes = True
    slots_are_landmarks = False
    filled_below = 0.1

    def observe(self, state, frozen, batch, rng):
        rows = super().observe(state, frozen, batch, rng)
        xy = jnp.arange(4.0)[:, None] * 6 + batch["image"][:, :1, 0, :2] / 64
        order = jnp.where(
            (jnp.sum(batch["image"][:, 0, 0], -1) % 2 == 0)[:, None], jnp.arange(4), jnp.array([2, 0, 3, 1])
        )
        at = lambda x: jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), 1)
        return Rows(at(rows.descriptors), at(xy), at(rows.mask))

    def predict(self, state, frozen, images):
        xy = jnp.array([2.0, 3.0, 0.0])[:, None] * 6 + images[:, :1, 0, :2] / 64
        far, score = jnp.array([0.3, 0, 9.0])[:, None], jnp.array([0.9, 0.05, 0.9])  # near, filled in, elsewhere
        return Prediction(xy + far, jnp.broadcast_to(score, xy.shape[:2]))


def test_keypoints_in_no_order_are_the_landmarks_that_are_predicted_there(finished):
    run = finished(method=Loose(8))
    rows = clusters.observe(run, sharding.make_mesh(), split="train", most=8000)
    np.testing.assert_array_equal(rows.landmark == 0, rows.z.argmax(1) == 2)
    assert set(rows.landmark) == {0, -1}
    (record,), _ = clusters.measure(rows, ["landmark"], clusters=4, neighbours=5, tau=0.8)
    assert (record["clusters"], record["rows"]) == (1, 30)
    assert record["silhouette"] == 0  # of one cluster


def test_a_stage_may_tell_its_groups_itself(finished):
    class Tells(Loose):
        def grouped(self, state, frozen, images):
            z = jnp.broadcast_to(jnp.eye(3), (len(images), 3, 3))
            mask = jnp.broadcast_to(jnp.array([True, True, False]), z.shape[:2])
            return Rows(z, z[..., :2], mask), jnp.broadcast_to(jnp.array([5, -1, 0]), z.shape[:2])

    rows = clusters.observe(finished(method=Tells(8)), sharding.make_mesh(), split="train", most=8000)
    np.testing.assert_array_equal(rows.landmark, [5, -1] * 30)
    np.testing.assert_array_equal(rows.z, np.tile(np.eye(3)[:2], (30, 1)))


def test_numbers_of_groups_by_landmark_equal_those_of_scikit_learn(finished):
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(0, 1, (150, 6)) + 2 * np.eye(6)[rng.integers(0, 3, 150)], rng.normal(0, 1, (20, 6))])
    landmark = np.concatenate([(z[:150, :3]).argmax(1), np.full(20, -1)]).astype(np.int32)
    rows = clusters.Descriptors(z.astype(np.float32), landmark)
    records, labels = clusters.measure(rows, ["landmark"], clusters=4, neighbours=5, tau=0.8)
    unit = (z / np.linalg.norm(z, axis=1, keepdims=True))[:150]
    (record,) = records
    assert record["silhouette"] == pytest.approx(silhouette_score(unit, landmark[:150]), abs=1e-5)
    assert record["calinski_harabasz"] == pytest.approx(calinski_harabasz_score(unit, landmark[:150]), rel=1e-4)
    assert (record["rows"], record["clusters"]) == (150, 3)
    np.testing.assert_array_equal(labels["landmark"], landmark)


def test_stages_that_predict_nothing_at_their_keypoints_are_not_grouped_by_landmark(finished):
    class Nothing(Loose):
        def predict(self, state, frozen, images):
            return Prediction(jnp.zeros((len(images), 3, 2)), jnp.zeros((len(images), 3)))

    run = finished(method=Nothing(8))
    rows = clusters.observe(run, sharding.make_mesh(), split="train", most=8000)
    assert rows.landmark is None
    (record,), _ = clusters.measure(rows, ["kmeans"], clusters=4, neighbours=5, tau=0.8)
    assert record["silhouette"] > 0.7
    assert "nmi_landmark" not in record
    with pytest.raises(UserError, match="'told' predicts no landmark at its keypoints"):
        clusters.report(run, sharding.make_mesh(), ways=["landmark"])


def test_the_network_is_left_out_where_it_does_not_fit(finished):
    records, folder = clusters.report(finished(8), sharding.make_mesh(), clusters=4, neighbours=5)
    assert [r["clustering"] for r in records] == ["kmeans", "density", "landmark"]
    assert not (folder / "rounds.png").exists()  # a run without rounds


def test_bad_input_is_named(finished):
    mesh = sharding.make_mesh()
    with pytest.raises(UserError, match="--clustering=x is unknown; use some of kmeans, gcn, density, landmark"):
        clusters.report(finished(), mesh, ways=["x"])
    with pytest.raises(UserError, match="'told' has no descriptors to cluster; give a run of another method"):
        clusters.report(finished(method=Stage()), mesh)
