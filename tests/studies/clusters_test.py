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
from uld_jax.data.open import open_split
from uld_jax.errors import UserError
from uld_jax.method import Described, Model, Stage
from uld_jax.studies import clusters


def is_even(images):
    """Whether the sum of an image's first pixel is, [B]."""
    return images[:, 0, 0].astype(np.int32).sum(-1) % 2 == 0


@dataclasses.dataclass(frozen=True)
class Told(Stage):
    """Descriptors [B,4,D] near one direction a landmark; the last slot of odd images is masked and holds NaN."""

    size: int

    def describe(self, state, frozen, images):
        del state, frozen
        brightness = jnp.mean(images.astype(jnp.float32), (1, 2, 3))[:, None, None]
        z = 3 * jnp.eye(4, self.size) + 0.05 * jnp.sin(
            jnp.arange(self.size) * (1 + brightness + jnp.arange(4)[:, None])
        )
        mask = (jnp.arange(4) < 3) | is_even(images)[:, None]
        landmark = jnp.broadcast_to(jnp.arange(4, dtype=jnp.int32), mask.shape)
        return Described(jnp.where(mask[..., None], z, jnp.nan), landmark, mask)


@pytest.fixture
def finished(tmp_path):
    return lambda size=256, method=None: types.SimpleNamespace(
        config=tiny.config(**{"data.rows": (30, 8), "eval.batch_size": 8}),
        model=Model(method or Told(size), {}, {}),
        stage="told",
        workdir=epath.Path(tmp_path),
    )


def count(run, split="train", rows=slice(None)) -> int:
    """How many descriptors `Told` has of a split's images, or of some."""
    even = is_even(open_split(run.config, split).images())[rows]
    assert 0 < even.sum() < len(even)
    return 3 * len(even) + int(even.sum())


def test_every_way_finds_what_is_apart(finished, tmp_path):
    lines = [dict(step=s, stage="told", clusters=4 + s, silhouette=0.1 * s, consistency=0.9) for s in range(3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    run = finished()
    records, folder = clusters.report(run, sharding.make_mesh(), clusters=4, neighbours=10)
    assert [r["clustering"] for r in records] == ["kmeans", "gcn", "density", "landmark"]
    assert records[0]["clusters"] == records[3]["clusters"] == 4
    assert {r["rows"] for r in records} == {count(run)}
    np.testing.assert_allclose(records[3]["silhouette"], records[0]["silhouette"], rtol=1e-4)
    for record in records:
        assert record["purity_landmark"] == 1
        assert record["consistency"] > 0.98
        assert record["clusters"] >= 4
    assert records[0]["nmi_landmark"] == pytest.approx(1)
    assert records[0]["silhouette"] > 0.7
    saved = json.loads((folder / "clusters.json").read_text())
    assert saved["clusterings"] == records
    ways = ("kmeans_4", "gcn_10_0.8", "density_10_0.8", "landmark")
    assert [r["protocol"] for r in records] == [f"synthetic+{way}_8000+split=train" for way in ways]
    assert (saved["rows"], saved["size"]) == (count(run), 256)
    assert (folder / "table.md").read_text().count("\n") == 6
    for name in ("tsne.png", "rounds.png"):
        assert np.asarray(Image.open(folder / name)).std() > 5


def test_rows_are_spread_and_limited(finished):
    run = finished()
    rows = clusters.observe(run, sharding.make_mesh(), split="train", most=20)
    assert len(rows.z) == count(run, rows=np.linspace(0, 29, 5).astype(int))
    assert np.isfinite(rows.z).all()
    np.testing.assert_array_equal(rows.z.argmax(1), rows.landmark)


def test_any_split_can_be_looked_at(finished):
    run = finished()
    rows = clusters.observe(run, sharding.make_mesh(), split="test", most=8000)
    assert len(rows.z) == count(run, "test")


def test_other_data_can_be_looked_at(finished, tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(5):
        Image.fromarray(np.full((40, 40, 3), 2 * i, np.uint8)).save(tmp_path / f"photos/{i}.png")
    given = dict(split="train", dataset="folder", data_dir=str(tmp_path / "photos"))
    rows = clusters.observe(finished(), sharding.make_mesh(), most=12, **given)
    assert len(rows.z) == 12  # four landmarks of three of the images, which are all even
    assert (rows.data, rows.images) == ("folder", 5)


@dataclasses.dataclass(frozen=True)
class Loose(Told):
    """The same in no order; the third direction is landmark 0, the others are none."""

    def describe(self, state, frozen, images):
        seen = super().describe(state, frozen, images)
        order = jnp.where(is_even(images)[:, None], jnp.arange(4), jnp.array([2, 0, 3, 1]))
        at = lambda x: jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), 1)
        return Described(at(seen.z), jnp.where(order == 2, 0, -1), at(seen.mask))


def test_keypoints_in_no_order_are_the_landmarks_that_the_stage_says(finished):
    rows = clusters.observe(finished(method=Loose(8)), sharding.make_mesh(), split="train", most=8000)
    np.testing.assert_array_equal(rows.landmark == 0, rows.z.argmax(1) == 2)
    assert set(rows.landmark) == {0, -1}
    (record,), _ = clusters.measure(rows, ["landmark"], clusters=4, neighbours=5, tau=0.8)
    assert (record["clusters"], record["rows"]) == (1, 30)
    assert record["silhouette"] == 0  # of one cluster


def test_what_is_masked_is_left_out_and_numbers_may_be_any(finished):
    class Tells(Told):
        def describe(self, state, frozen, images):
            z = jnp.broadcast_to(jnp.eye(3), (len(images), 3, 3))
            mask = jnp.broadcast_to(jnp.array([True, True, False]), z.shape[:2])
            return Described(z, jnp.broadcast_to(jnp.array([5, -1, 0]), z.shape[:2]), mask)

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
    class Nothing(Told):
        def describe(self, state, frozen, images):
            seen = super().describe(state, frozen, images)
            return seen._replace(landmark=jnp.full_like(seen.landmark, -1))

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
    lacking = (
        "the stage told gives landmarks without a descriptor of each, so that there is nothing to cluster; give a run"
    )
    others = (
        "warmup, cgb of --config=cgb; bootstrap, duld, proxy, duldpp of --config=duld; byol, compact of --config=lead; "
        "stage1 of --config=self_training"
    )
    with pytest.raises(UserError, match=f"^{lacking} that has one of the stages {others}$"):
        clusters.report(finished(method=Stage()), mesh)
    run = finished(method=Stage())
    run.config = tiny.config("cgb", more="")
    with pytest.raises(UserError, match=r"nothing to cluster; give another one with --stage, of warmup, cgb$"):
        clusters.report(run, mesh)
