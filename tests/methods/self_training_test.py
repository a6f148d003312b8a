"""Self-training correspondence against brute force, and what each switch of paper and code does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.methods.recovered import (
    SIDE,
    Fixed,
    M,
    bank_of_groups,
    built,
    changed,
    images_of_groups,
    net_params,
    placed_one_by_one,
    second_params,
    state_of,
    unit,
)
from uld_jax import config as config_lib
from uld_jax import weights
from uld_jax.bank import Bank, Labels
from uld_jax.clustering import merge
from uld_jax.engine import runs
from uld_jax.errors import UserError
from uld_jax.hyperparameters import build, replace
from uld_jax.method import Start, TrainState
from uld_jax.methods import self_training
from uld_jax.methods import self_training_common as common
from uld_jax.methods.self_training import Peaks
from uld_jax.methods.self_training_common import Merged, Views

# Step 6


def interleaved(x):
    """Values [2,B,...] of first and second views as [2B,...], view after view of an example."""
    return np.stack(x, 1).reshape(-1, *x.shape[2:])


def pairs_by_hand(on_a, on_b, is_a, is_b, kind):
    same, apart = np.zeros((M, M), bool), np.zeros((M, M), bool)
    for i in range(M):
        for j in range(M):
            if on_a[i] and on_b[j]:
                (same if is_a[i] == is_b[j] else apart)[i, j] = True
    if kind == "shared":
        in_b = [on_a[i] and any(on_b[j] and is_b[j] == is_a[i] for j in range(M)) for i in range(M)]
        in_a = [on_b[j] and any(on_a[i] and is_a[i] == is_b[j] for i in range(M)) for j in range(M)]
        apart &= np.outer(in_b, in_a)
    return same, apart


@pytest.mark.parametrize("negatives", ["cross", "shared"])
def test_pairs_never_join_other_labels_nor_points_that_are_not_there(negatives):
    rng = np.random.default_rng(2)
    there = rng.random((2, 50, M)) < 0.6
    number = np.stack([np.stack([rng.permutation(M) for _ in range(50)]) for _ in range(2)])  # as mirrored views have
    both, same = common.pairs_of(interleaved(there), interleaved(number))
    apart = self_training.negatives_of(both, same, negatives)
    for b in range(50):
        want = pairs_by_hand(there[0, b], there[1, b], number[0, b], number[1, b], negatives)
        np.testing.assert_array_equal(same[b], want[0])
        np.testing.assert_array_equal(apart[b], want[1])


@pytest.mark.parametrize(("hinge", "reading"), [("squared", "bilinear"), ("distance", "cell")])
def test_the_loss_is_that_of_a_list_of_pairs_and_a_map_of_points(hinge, reading):
    stage = built("stage1", hinge=hinge, reading=reading, target="pixel", negatives="cross")
    rng, heat = np.random.default_rng(3), stage._geometry.heat[0]
    params = net_params(stage)
    seen = jnp.asarray(rng.random((4, stage.view.image_size, stage.view.image_size, 3)), jnp.float32)
    cells = rng.integers(0, heat, (4, M, 2)).astype(np.float32)
    there, number = rng.random((4, M)) < 0.7, np.tile(np.arange(M), (4, 1))
    views = Views(seen, jnp.asarray(cells), jnp.asarray(there), jnp.ones(4, bool), jnp.asarray(number), keys=None)
    compiled = jax.jit(stage._loss)
    loss, metrics = compiled(params, views)
    out = stage._net.apply({"params": params}, seen)
    target, values = np.zeros((4, heat, heat)), []
    for b in range(4):
        for m in range(M):
            if there[b, m]:
                target[b, int(cells[b, m, 1]), int(cells[b, m, 0])] = 1
    detector = ((1 / (1 + np.exp(-np.asarray(out.logits, np.float64))) - target) ** 2).mean((1, 2))
    for b in (0, 2):
        read = lambda v, m: np.asarray(out.descriptors[v, int(cells[v, m, 1]), int(cells[v, m, 0])], np.float64)
        for i in np.flatnonzero(there[b]):
            for j in np.flatnonzero(there[b + 1]):
                square = ((read(b, i) - read(b + 1, j)) ** 2).sum()
                far = max(0, 0.8 - square) if hinge == "squared" else max(0, 0.8 - np.sqrt(square)) ** 2
                values.append(square if i == j else far)
    want = detector[::2].mean() + detector[1::2].mean() + 10 * np.mean(values)
    assert float(loss) == pytest.approx(want, rel=1e-4)
    assert metrics["pairs"] == (there[0] & there[1]).sum() / 2 + (there[2] & there[3]).sum() / 2
    # A view of an image with too few labels is no picture without keypoints: nothing is learned of its map.
    learned = np.array([True, False, True, True])
    there[1] = False
    few = views._replace(there=jnp.asarray(there), learned=jnp.asarray(learned))
    assert float(compiled(params, few)[1]["detector"]) == pytest.approx(2 * detector[learned].mean(), rel=1e-4)


def test_images_with_few_labels_are_not_learned_from():
    score = np.zeros((4, M), np.float32)
    score[0, 0] = score[1, :3] = score[2] = 1  # 1, 3, M and no labels
    stage = built("stage1", least_points=3)
    state = state_of(stage, 4, Labels(jnp.full((4, M, 2), 20.0), jnp.asarray(score)))
    seen = {}
    stage_loss = type(stage)._loss

    class Noted(type(stage)):
        def _loss(self, params, views):
            seen.update(learned=views.learned, there=views.there)
            return stage_loss(self, params, views)

    noted = Noted(**{f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)})
    images = jnp.zeros((4, SIDE, SIDE, 3), jnp.uint8)
    batch = {"image": images, "image2": images, "index": jnp.arange(4), "index2": jnp.arange(4)}

    def step(state):
        noted.train_step(state, {}, batch, jax.random.key(0))
        return seen["learned"], seen["there"]

    learned, there = jax.jit(step)(state)
    np.testing.assert_array_equal(learned, np.repeat([False, True, True, False], 2))
    assert not np.asarray(there)[~np.asarray(learned)].any()
    assert np.asarray(there)[np.asarray(learned)].any()


# Step 7


@pytest.mark.parametrize(("memory", "from_memory"), [("two_rounds", 1), ("all_rounds", 2), ("none", 0)])
def test_memory_holds_the_last_round_or_all_or_nothing(memory, from_memory):
    stage = built("stage1", memory=memory, threshold=0.999)  # an untrained network detects nothing
    xy = np.full((3, M, 2), 20.0, np.float32)
    xy[1, 2], xy[1, 4] = (8, 9), (30, 12)
    score = np.zeros((3, M), np.float32)
    score[1, [2, 4]] = 1
    state = state_of(stage, 3, Labels(jnp.asarray(xy), jnp.asarray(score)))
    fresh = np.zeros((3, M), bool)
    fresh[1, 4] = True  # the last detection found one of the two
    state = state.replace(aux=state.aux._replace(fresh=jnp.asarray(fresh)))
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8))
    seen = jax.jit(stage.observe)(
        state, {}, {"image": images, "index": jnp.array([1, 9])}, None
    )  # 9: a photo that is not trained on
    assert int(seen.mask[0].sum()) == from_memory
    assert not seen.mask[1].any()
    if from_memory:
        kept = np.asarray(seen.xy[0])[np.asarray(seen.mask[0])]
        assert np.abs(kept - [30, 12]).sum(-1).min() < 1e-3


def test_rounds_drop_what_lies_beside_the_object_where_that_is_known():
    stage = built("stage1", threshold=0.0, memory="all_rounds", region="mask")
    assert list(stage.side_tables()) == ["masks"]
    assert list(built("stage1", region="box").side_tables()) == ["boxes"]
    assert not built("stage1", region="none").side_tables()
    labels = Labels(jnp.full((3, M, 2), 30.0), jnp.ones((3, M)))  # of the first clusters, beside the object
    state = state_of(stage, 3, labels)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8))
    batch = {"image": images, "index": jnp.array([2, 1])}
    box = np.array([[0, 0, SIDE, SIDE], [0, 0, 40, 25], [8, 3, 20, 25]], np.float32)
    mask = np.zeros((3, SIDE // 4, SIDE // 4), bool)
    mask[1, 1:5, 2:6], mask[2, 3:6] = True, True
    everything = stage.observe(state, {}, batch, None)  # an image that training does not know has no region
    for tables in ({"boxes": box}, {"masks": mask}):
        known = {name: jnp.asarray(table[[2, 1]]) for name, table in tables.items()}
        seen = stage.observe(state, {}, batch | known, None)
        np.testing.assert_array_equal(seen.xy, everything.xy)
        x, y = np.moveaxis(np.asarray(seen.xy), -1, 0)
        cell = np.clip(np.floor(np.stack([y, x]) + 0.5).astype(int) // 4, 0, SIDE // 4 - 1)
        for i, row in enumerate((2, 1)):
            inside = (x[i] >= box[row, 0]) & (y[i] >= box[row, 1]) & (x[i] <= box[row, 2]) & (y[i] <= box[row, 3])
            inside = mask[row, cell[0, i], cell[1, i]] if "masks" in known else inside
            np.testing.assert_array_equal(seen.mask[i], np.asarray(everything.mask[i]) & inside)
            assert 0 < seen.mask[i].sum() < everything.mask[i].sum()
        assert not np.asarray(seen.described)[~np.asarray(seen.mask)].any()


def test_descriptors_are_those_of_keypoints_and_know_the_landmark_that_is_predicted_there():
    rng = np.random.default_rng(14)
    stage = built("stage1", threshold=0.0)
    limits = np.full(M, 1e30, np.float32)
    limits[2] = 0  # an empty cluster
    state = state_of(stage, 3)
    centroids = jnp.asarray(unit(rng.normal(size=(M, 16))), jnp.float32)
    state = state.replace(aux=state.aux._replace(centroids=centroids, limits=jnp.asarray(limits)))
    images = jnp.asarray(rng.integers(0, 256, (2, SIDE, SIDE, 3), np.uint8))
    predicted, seen = jax.jit(lambda *given: (stage.predict(*given), stage.describe(*given)))(state, {}, images)
    assert (seen.mask.sum(1) > M).all()
    for b in range(2):
        z, landmark, score = (np.asarray(x[b]) for x in (seen.z, seen.landmark, predicted.score))
        assert sorted(landmark[landmark >= 0]) == np.flatnonzero(score).tolist() == [0, 1, 3, 4, 5]
        for p in np.flatnonzero(landmark >= 0):
            assert seen.mask[b, p]
            away = np.sum((z[p] - np.asarray(centroids)[landmark[p]]) ** 2)
            assert score[landmark[p]] == pytest.approx(np.exp(-away), rel=1e-4)


def test_a_round_recovers_groups_and_goes_on_with_its_centroids():
    rng = np.random.default_rng(4)
    groups = unit(rng.normal(size=(M, 16)))
    stage = built("stage1", cut=0.0)
    bank, truth = bank_of_groups(rng, groups, 40)
    state = jax.jit(stage.refresh)(state_of(stage, 40), {}, bank, jax.random.key(0))
    xy, score = np.asarray(state.aux.labels.xy), np.asarray(state.aux.labels.score)
    groups_of = np.round((xy[..., 0] - 2) / 5).astype(int)
    for m in range(M):
        assert len(np.unique(groups_of[score[:, m] > 0, m])) == 1  # a cluster is one group
    assert score.sum() == (truth >= 0).sum()
    assert float(state.aux.counts.labelled) == pytest.approx(score.sum() / 40)
    again = jax.jit(stage.refresh)(state, {}, bank, jax.random.key(7))  # another key: warm centroids do not care
    np.testing.assert_allclose(again.aux.centroids, state.aux.centroids, atol=1e-5)
    other = jax.jit(built("stage1", cut=0.0, seeding="random").refresh)(state, {}, bank, jax.random.key(7))
    assert np.abs(other.aux.centroids - state.aux.centroids).max() > 1e-2


@pytest.mark.parametrize("name", ["keypoints", "background", "stage1"])
def test_images_placed_one_batch_after_the_other_have_the_labels_of_the_whole_bank(name, monkeypatch):
    rng = np.random.default_rng(12)
    bank, _ = images_of_groups(rng)
    images, slots = bank.index.size, bank.values.mask.shape[2]
    if name == "background":
        bank = changed(bank, inside=jnp.asarray(rng.random(bank.values.mask.shape) < 0.7))
    if name == "stage1":
        stage = built("stage1")
        state = state_of(stage, images)
    else:
        monkeypatch.setattr(self_training, "BACKGROUND_CLUSTERS", (5, 7))
        options = dict(background="clusters", region="box") if name == "background" else {}
        stage = build(self_training.Keypoints, frame_size=SIDE, clusters=M, most=slots, neighbours=10, **options)
        state = TrainState(step=jnp.int32(0), aux=common.unknown(images, M, 16, jnp.float32))
    whole, parts = placed_one_by_one(stage, state, bank)
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    assert 0 < float(whole.counts.labelled) < float(whole.counts.keypoints)


def test_the_cut_drops_what_is_unlike_its_cluster():
    rng = np.random.default_rng(5)
    groups = unit(rng.normal(size=(M, 16)))
    bank, truth = bank_of_groups(rng, groups, 60, noise=0.02)
    odd = rng.random(truth.shape) < 0.1
    x = np.where(
        (odd & (truth >= 0))[:, None, :, None],
        unit(rng.normal(size=(60, 1, truth.shape[1], 16))),
        bank.values.described,
    )
    bank = changed(bank, described=jnp.asarray(x))
    kept = {}
    for cut in (0.0, 1.0):
        stage = built("stage1", cut=cut)
        kept[cut] = float(
            jax.jit(stage.refresh)(state_of(stage, 60), {}, bank, jax.random.key(0)).aux.labels.score.sum()
        )
    assert kept[1.0] < kept[0.0] <= (truth >= 0).sum()


# Stage 2


def test_heatmaps_without_a_label_are_not_learned(monkeypatch):
    """Section 3.3: the mean is over the maps of clusters that the image has."""
    stage = replace(built("stage2"), rotation=0.0, scale=0.0, shift=0.0, colour=0.0)
    rng = np.random.default_rng(15)
    xy, score = rng.uniform(8, SIDE - 8, (1, M, 2)).astype(np.float32), (np.arange(M)[None] % 3 > 0).astype(np.float32)
    side = stage.view.image_size // stage.net.downsample
    logits = rng.normal(size=(side, side, M)).astype(np.float32)
    monkeypatch.setattr(self_training.Landmarks, "_net", property(lambda self: Fixed(logits)))
    params = {"w": jnp.zeros(())}
    aux = Merged(jnp.int32(0), jnp.arange(M) != 4, Labels(jnp.asarray(xy), jnp.asarray(score)), None)
    state = TrainState(step=jnp.int32(0), params=params, opt_state=stage._optimizer.init(params), aux=aux)
    batch = {"image": jnp.zeros((1, SIDE, SIDE, 3), jnp.uint8), "index": jnp.zeros(1, jnp.int32)}
    found = jax.jit(stage.train_step)(state, {}, batch, jax.random.key(0))[1]
    cells = np.asarray(stage._geometry.to_cells(jnp.asarray(xy), stage._geometry.still(1)))[0]
    y, x = np.mgrid[:side, :side]
    gaussian = lambda u, v: np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * stage.sigma**2))
    errors = [((logits[..., m] - gaussian(*cells[m])) ** 2).mean() for m in (1, 2, 5)]
    assert float(found["loss"]) == pytest.approx(np.mean(errors), rel=1e-3)
    assert found["landmarks"] == M - 1


def test_labels_move_to_the_target_of_their_cluster():
    rng = np.random.default_rng(6)
    target, rank = np.array([0, 0, 2, 0, 4, -1]), np.array([1, 0, 2, 3, 4, 6])
    merged = merge.Merge(jnp.asarray(target), jnp.asarray(target == np.arange(6)), jnp.int32(3), jnp.asarray(rank))
    there, xy = rng.random((30, 6)) < 0.6, rng.uniform(0, 40, (30, 6, 2)).astype(np.float32)
    labels = self_training.merged_labels(Labels(jnp.asarray(xy), jnp.asarray(there, jnp.float32)), merged)
    for n in range(30):
        for t in range(6):
            members = [m for m in range(6) if there[n, m] and target[m] == t]
            assert bool(labels.score[n, t] > 0) == bool(members)
            if members:
                np.testing.assert_array_equal(labels.xy[n, t], xy[n, min(members, key=lambda m: rank[m])])


def test_heatmaps_that_peak_together_become_one_landmark():
    stage = built("stage2")
    rng = np.random.default_rng(7)
    xy = rng.uniform(3, 37, (20, 2, M, 2)).astype(np.float32)
    xy[:, :, 3] = xy[:, :, 1] + 0.1  # the same place
    score = np.where(rng.random((20, 2, M)) < 0.9, 0.8, 0.0).astype(np.float32)
    labels = Labels(jnp.asarray(xy.reshape(40, M, 2)), jnp.asarray(score.reshape(40, M)))
    first = state_of(built("stage1"), 40, labels)
    batch = {"image": jnp.zeros((2, SIDE, SIDE, 3), jnp.uint8), "index": jnp.arange(2)}
    state = stage.init(jax.random.key(0), batch, {}, Start(first, 40))
    peaks = Peaks(jnp.asarray(xy), jnp.asarray(score > 0.2))
    bank = Bank(peaks, jnp.arange(40).reshape(20, 2), jnp.ones((20, 2), bool))
    after = jax.jit(stage.refresh)(state, {}, bank, jax.random.key(0))
    assert int(state.aux.active.sum()) == M
    assert int(after.aux.active.sum()) == M - 1
    assert bool(after.aux.active[1]) != bool(after.aux.active[3])
    gone = 3 if after.aux.active[1] else 1
    assert not after.aux.labels.score[:, gone].any()
    images = jnp.asarray(rng.integers(0, 256, (2, SIDE, SIDE, 3), np.uint8))
    assert not stage.predict(after, {}, images).score[:, gone].any()  # and is never predicted


def test_stage_2_goes_on_with_the_descriptor_branch():
    first = state_of(built("stage1"), 4, Labels(jnp.ones((4, M, 2)), jnp.ones((4, M))))
    batch = {"image": jnp.zeros((2, SIDE, SIDE, 3), jnp.uint8), "index": jnp.arange(2)}
    second = built("stage2").init(jax.random.key(3), batch, {}, Start(first, 4))
    same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    assert same(second.params["m0"], first.params["m0"])
    assert same(second.params["top_m_0"], first.params["top_m_1"])
    assert second.params["l_0"]["kernel"].shape[-1] == M
    with pytest.raises(UserError, match=r"\.least_images=4 leaves out every cluster of 4 images"):
        built("stage2", least_images=4).init(jax.random.key(3), batch, {}, Start(first, 4))


# Keypoints


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(8)
    picture = np.zeros((3, SIDE, SIDE, 3), np.uint8)
    for n in range(3):
        for _ in range(6):
            x, y = rng.integers(4, SIDE - 10, 2)
            picture[n, y : y + 6, x : x + 6] = rng.integers(80, 256, 3)
    return jnp.asarray(picture)


def test_keypoints_outside_the_box_or_the_mask_are_dropped(images):
    box = np.array([[5, 5, 25, 30]] * 3, np.float32)
    side = SIDE // 4
    mask = np.zeros((3, side, side), bool)
    mask[:, 2:7, 1:6] = True
    batch = {"image": images, "index": jnp.arange(3)}
    stage = built("keypoints")
    everything = jax.jit(stage.observe)(None, stage.frozen(), batch, None)
    for region, known in (("box", {"boxes": box}), ("mask", {"masks": mask})):
        stage = built("keypoints", region=region)
        seen = jax.jit(stage.observe)(None, stage.frozen(), batch | jax.tree.map(jnp.asarray, known), None)
        xy = np.asarray(seen.xy)[np.asarray(seen.mask)]
        assert 0 < len(xy) < int(everything.mask.sum())
        if region == "box":
            assert ((xy >= 5) & (xy <= [25, 30])).all()
        else:
            cell = np.floor((xy + 0.5) / 4).astype(int)
            assert mask[0, cell[:, 1], cell[:, 0]].all()


def test_given_keypoints_take_the_place_of_detected_ones(images):
    stage = built("keypoints", points="given.csv")
    xy = np.random.default_rng(0).uniform(2, 37, (3, stage.most, 2)).astype(np.float32)
    mask = np.random.default_rng(1).random((3, stage.most)) < 0.5
    known = {"keypoints": (jnp.asarray(xy), jnp.asarray(mask))}
    seen = stage.observe(None, stage.frozen(), {"image": images, "index": jnp.arange(3)} | known, None)
    np.testing.assert_array_equal(seen.xy, xy)
    np.testing.assert_array_equal(seen.mask, mask)
    lengths = np.linalg.norm(seen.described, axis=-1)
    np.testing.assert_allclose(lengths[mask], 1, atol=1e-4)


@pytest.mark.parametrize(
    ("stage", "changes", "word"),
    [
        ("keypoints", {"region": "circle"}, "region"),
        ("keypoints", {"outliers": 1.0}, "outliers"),
        ("keypoints", {"scales": (1.0, 0.0)}, "scales"),
        ("keypoints", {"background": "clusters", "region": "none"}, "region"),
        ("stage1", {"hinge": "soft"}, "hinge"),
        ("stage1", {"region": "circle"}, "region"),
        ("stage1", {"round_every": 0}, "round_every"),
        ("stage2", {"sigma": 0.0}, "sigma"),
    ],
)
def test_settings_that_mean_nothing_are_refused(stage, changes, word):
    with pytest.raises(UserError, match=word):
        built(stage, **changes)


def test_stages_out_of_order_are_refused():
    batch = {"image": jnp.zeros((2, SIDE, SIDE, 3), jnp.uint8), "index": jnp.arange(2)}
    for stage in ("stage1", "stage2"):
        with pytest.raises(UserError, match=r"needs the labels of .*put such a stage before it"):
            built(stage).init(jax.random.key(0), batch, {}, Start(None, 4))


@pytest.mark.parametrize("detector", ["corners", "r2d2"])
def test_what_follows_is_read_without_the_generic_detector(tmp_path, detector):
    config = tiny.config("self_training", **{"keypoints.detector": detector, "weights.r2d2": str(tmp_path / "gone")})
    origin = {"config": config.to_dict(), "rows": 8, "init_from": None}
    _, frozen, state = runs.shapes(origin | {"stage": "stage2"})
    assert frozen == {}
    assert state.aux.labels.xy.shape == (8, M, 2)
    if detector == "r2d2":  # what looks through it must have it
        with pytest.raises(UserError, match="does not exist"):
            runs.shapes(origin | {"stage": "keypoints"})
    else:
        assert runs.shapes(origin | {"stage": "keypoints"})[2].aux.centroids.shape == first_size(config, 8)


def first_size(config, num_images):
    """Of the centroids that the first stage keeps, when it is not told of any weights."""
    stage = config_lib.stage(config, "keypoints").method
    batch = {"image": jnp.zeros((2, SIDE, SIDE, 3), jnp.uint8), "index": jnp.arange(2)}
    start = Start(None, num_images, shapes_only=True)
    return stage.init(jax.random.key(0), batch, stage.frozen("shapes"), start).aux.centroids.shape


# Published weights


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_both_stages_start_from_converted_weights(tmp_path, caplog, name):
    given = built(name)
    rng = np.random.default_rng(10)
    draw = lambda x: rng.normal(size=x.shape).astype(np.float32)
    params = jax.tree.map(draw, net_params(given) if name == "stage1" else second_params(given))
    extra = {"centroids": draw(np.zeros((M, 16)))} if name == "stage1" else {"active": np.arange(M) % 2}
    weights.save(tmp_path / "w", "mallis", {"params": params} | extra, {"file": "a", "sha256": "b", "licence": ""})
    stage = built(name, start="checkpoint", weights=(("mallis", str(tmp_path / "w")),))
    batch = {"image": jnp.zeros((2, SIDE, SIDE, 3), jnp.uint8), "index": jnp.arange(2)}
    first = state_of(built("stage1"), 4, Labels(jnp.ones((4, M, 2)), jnp.ones((4, M))))
    state = stage.init(jax.random.key(0), batch, stage.frozen(), Start(first, 4))
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    if name == "stage1":
        np.testing.assert_array_equal(state.aux.centroids, extra["centroids"])
    else:
        np.testing.assert_array_equal(state.aux.active, extra["active"] > 0)
    assert stage.predict(state, {}, batch["image"]).xy.shape == (2, M, 2)
    if name == "stage1":  # centroids of other clusters are of no use
        other = {"params": params, "centroids": draw(np.zeros((M + 1, 16)))}
        weights.save(tmp_path / "o", "mallis", other, {"file": "a", "sha256": "b", "licence": ""})
        stage = replace(stage, weights=(("mallis", str(tmp_path / "o")),))
        assert stage.init(jax.random.key(0), batch, stage.frozen(), Start(first, 4)).aux.round == 0
        assert f"has {M + 1} clusters and stage1 {M}: its centroids are left out" in caplog.text
    wider = replace(stage, width=24)
    start = Start(first if name == "stage1" else first.replace(params={}), 4)
    with pytest.raises(UserError, match="of another network"):
        wider.init(jax.random.key(0), batch, stage.frozen(), start)
    with pytest.raises(UserError, match=r"config\.weights\.mallis is empty"):
        built(name, start="checkpoint").frozen()


@pytest.mark.parametrize("name", [pytest.param("stage1", marks=pytest.mark.slow), "stage2"])
def test_published_weights_are_evaluated_as_they_are(tmp_path, name):
    """No keypoints, no training: the command of docs/methods/self_training.md."""
    from uld_jax import sharding
    from uld_jax.engine import loop, runs

    given = built(name)
    rng = np.random.default_rng(11)
    draw = lambda x: rng.normal(size=x.shape).astype(np.float32)
    params = jax.tree.map(draw, net_params(given) if name == "stage1" else second_params(given))
    extra = {"centroids": draw(np.zeros((M, 16)))} if name == "stage1" else {"active": np.arange(M) % 2}
    source = {"file": "a", "sha256": "b", "licence": ""}
    weights.save(tmp_path / "w", "mallis", {"params": params} | extra, source)
    keys = {"stages": (name,), f"{name}.steps": 0, f"{name}.start": "checkpoint", "eval_every": 0}
    config = tiny.config("self_training", **keys, **{"weights.mallis": str(tmp_path / "w")})
    report = loop.run(config, tmp_path / "run").report
    assert report["landmarks"] == (M if name == "stage1" else M // 2)
    found = runs.load(tmp_path / "run", sharding.make_mesh())
    jax.tree.map(np.testing.assert_array_equal, found.model.state.params, params)
    if name == "stage1":
        weights.save(tmp_path / "o", "mallis", {"params": params}, source)
        config = tiny.config("self_training", **keys, **{"weights.mallis": str(tmp_path / "o")})
        with pytest.raises(UserError, match="have centroids of 0 clusters, and stage1 without steps needs those of 6"):
            loop.run(config, tmp_path / "other")
