"""Clusters, labels and losses of D-ULD and D-ULD++ on made data with known answers, against loops in NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from uld_jax.bank import Bank, Labels
from uld_jax.errors import UserError
from uld_jax.hyperparameters import build, replace
from uld_jax.method import Round, Start, TrainState
from uld_jax.methods import duld
from uld_jax.methods.duld import Bootstrap, Duld, DuldPP, Proxy, Seen
from uld_jax.methods.duld_stage import Memory
from uld_jax.models import pose_vae
from uld_jax.ops import heatmaps

K, P, D = 3, 6, 8
B, T = 4, 10
N = B * T
SIZES = dict(
    k=K,
    frame_size=32,
    steps=10,
    backbone="gradient.GradientHistograms",
    image_size=32,
    grid=16,
    projection=16,
    width=8,
    descriptor_size=D,
    most=P,
    restarts=2,
    ema=0.0,
    mirror=False,
)
POSED = SIZES | dict(pose_clusters=2, latent=4, vae_width=4)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def keypoints_of(rng, prototypes, mask=None, noise=0.05):
    """Descriptors [N,P,D] near the prototypes [K,D] or [N,K,D], in shuffled slots, their numbers [N,P] or -1, xy."""
    prototypes = np.broadcast_to(prototypes, (N, K, D))
    number = np.full((N, P), -1)
    for n in range(N):
        number[n, rng.permutation(P)[:K]] = np.arange(K)
    if mask is not None:  # [N,K], landmarks that an image has
        number = np.where((number >= 0) & np.take_along_axis(mask, np.maximum(number, 0), 1), number, -1)
    z = np.take_along_axis(prototypes, np.maximum(number, 0)[..., None], 1)
    z = unit(z + noise * rng.normal(size=z.shape))
    return np.where(number[..., None] >= 0, z, rng.normal(size=z.shape)), number, rng.uniform(0, 31, (N, P, 2))


def bank_of(z, xy, mask, turned=None, codes=None, between=None):
    """[N,...] as a bank [B,T,...]."""
    seen = Seen(
        np.float32(xy), mask, np.float32(z), *(x if x is None else np.float32(x) for x in (turned, codes, between))
    )
    bank = Bank(seen, np.arange(N, dtype=np.int32), np.ones(N, bool))
    return jax.tree.map(lambda x: jnp.asarray(x.reshape(B, T, *x.shape[1:])), bank)


def without(bank, real):
    """A bank whose other images are padding."""
    seen = bank.values._replace(mask=bank.values.mask & real[..., None])
    return Bank(seen, jnp.where(real, bank.index, N), real)


def state_of(method, step=5, before=None, labels=None):
    return TrainState(step=jnp.int32(step), aux=method._first({}, before, labels, N))


def refreshed(method, state, bank, seed=0):
    return jax.jit(method.refresh)(state, {}, bank, jax.random.key(seed)).aux


def identity_of(labels, number, xy):
    """Which landmark each cluster is: that of the labels' points; raises where a cluster mixes two."""
    found = {}
    for n, k in np.argwhere(labels.score > 0):
        slot = int(np.argmin(np.linalg.norm(xy[n] - labels.xy[n, k], axis=-1)))
        assert np.linalg.norm(xy[n, slot] - labels.xy[n, k]) < 1e-4
        found.setdefault(int(k), set()).add(int(number[n, slot]))
    assert all(len(which) == 1 for which in found.values()), found
    return {k: which.pop() for k, which in found.items()}


def prototypes_of(rng, count=K):
    return np.linalg.qr(rng.normal(size=(D, D)))[0][:count]


def test_a_round_finds_the_clusters_and_keeps_them():
    rng = np.random.default_rng()
    seen = rng.random((N, K)) < 0.8
    prototypes = prototypes_of(rng)
    z, number, xy = keypoints_of(rng, prototypes, seen)
    method = build(Duld, **SIZES)
    aux = refreshed(method, state_of(method), bank_of(z, xy, number >= 0))
    first = identity_of(aux.labels, number, xy)
    assert sorted(first.values()) == [0, 1, 2]
    order = [first[k] for k in range(K)]
    np.testing.assert_array_equal(np.asarray(aux.labels.score) > 0, seen[:, order])
    assert int(aux.round) == 1
    assert float(aux.counts.labelled) == pytest.approx(seen.sum(1).mean())
    # Other images of the same landmarks, turned a little: clusters stay what they are.
    z, number, xy = keypoints_of(rng, unit(prototypes + 0.2 * rng.normal(size=(K, D))))
    again = refreshed(method, TrainState(step=jnp.int32(6), aux=aux), bank_of(z, xy, number >= 0), seed=7)
    assert identity_of(again.labels, number, xy) == first


def test_given_labels_become_the_first_clusters():
    rng = np.random.default_rng()
    method = build(Duld, **SIZES | dict(start="labels"))
    given = Labels(
        jnp.asarray(rng.uniform(0, 31, (N, K, 2)), jnp.float32), jnp.asarray(rng.random((N, K)) < 0.9, float)
    )
    # In the first round keypoint slots 0..K-1 hold the labels' points.
    z = unit(rng.normal(size=(N, P, D)))
    mask = np.arange(P) < K
    mask = mask & np.pad(np.asarray(given.score) > 0, ((0, 0), (0, P - K)))
    aux = refreshed(method, state_of(method, 0, labels=given), bank_of(z, rng.uniform(0, 31, (N, P, 2)), mask))
    for k in range(K):
        np.testing.assert_allclose(aux.anchors[k], z[mask[:, k], k].mean(0), atol=1e-5)
    np.testing.assert_array_equal(aux.labels.xy, given.xy)
    np.testing.assert_array_equal(aux.labels.score, given.score)


def test_a_second_pass_places_the_landmarks_that_have_an_exemplar():
    rng = np.random.default_rng()
    seen = rng.random((N, K)) < 0.8
    z, number, xy = keypoints_of(rng, prototypes_of(rng), seen)
    where = rng.uniform(0, 31, (N, K, 2))
    method = build(Duld, **SIZES | dict(place="mean"))
    assert [method.round_at(step) for step in (0, 1, 10)] == [Round(2), None, Round(2)]
    bank = bank_of(z, xy, number >= 0, between=where)
    first = refreshed(method, state_of(method), bank)
    assert not first.placed
    second = refreshed(method, TrainState(step=jnp.int32(5), aux=first), bank)
    assert second.placed
    np.testing.assert_array_equal(second.centroids, first.centroids)
    assert int(second.round) == 1
    cluster = identity_of(first.labels, number, xy)
    there = seen[:, [cluster[k] for k in range(K)]]
    np.testing.assert_array_equal(np.asarray(second.labels.score) > 0, there)
    np.testing.assert_allclose(second.labels.xy, np.where(there[..., None], where, 0), rtol=1e-6)


def test_labels_know_their_cluster_in_the_mirror():
    rng = np.random.default_rng()
    prototypes = prototypes_of(rng)
    z, number, xy = keypoints_of(rng, prototypes)
    partner = np.array([1, 0, 2])  # left and right, and one in the middle
    turned = unit(prototypes[partner[np.maximum(number, 0)]] + 0.05 * rng.normal(size=z.shape))
    method = build(Duld, **SIZES | dict(mirror=True))
    aux = refreshed(method, state_of(method), bank_of(z, xy, number >= 0, turned))
    landmark = identity_of(aux.labels, number, xy)
    cluster = {v: k for k, v in landmark.items()}
    want = [cluster[partner[landmark[k]]] for k in range(K)]
    np.testing.assert_array_equal(aux.mirrored, np.broadcast_to(want, (N, K)))


def test_labels_that_are_kept_know_their_cluster_in_the_mirror():
    rng = np.random.default_rng()
    z, turned = unit(rng.normal(size=(N, P, D))), unit(rng.normal(size=(N, P, D)))  # far from their own means
    score = rng.random((N, K)) < 0.9
    given = Labels(jnp.asarray(rng.uniform(0, 31, (N, K, 2)), jnp.float32), jnp.asarray(score, jnp.float32))
    method = build(Duld, **SIZES | dict(start="labels", mirror=True))
    bank = bank_of(z, rng.uniform(0, 31, (N, P, 2)), np.pad(score, ((0, 0), (0, P - K))), turned)
    aux = refreshed(method, state_of(method, 0, labels=given), bank)
    means = np.stack([z[score[:, k], k].mean(0) for k in range(K)])
    want = np.sum((turned[:, :K, None] - means) ** 2, -1).argmin(-1)
    np.testing.assert_array_equal(np.asarray(aux.mirrored)[score], want[score])


def test_training_clusters_split_landmarks():
    rng = np.random.default_rng()
    kind = rng.integers(0, 2, (N, K))  # each landmark looks one way or the other
    near = unit(prototypes_of(rng, 2 * K))
    prototypes = unit(near[np.arange(K)] + 0.6 * kind[..., None] * near[K + np.arange(K)])
    z, number, xy = keypoints_of(rng, prototypes, noise=0.02)
    method = build(Duld, **SIZES | dict(train_clusters=2 * K, restarts=8))
    aux = refreshed(method, state_of(method), bank_of(z, xy, number >= 0))
    assert aux.labels.xy.shape == (N, 2 * K, 2)
    assert len(aux.anchors) == K
    np.testing.assert_array_equal(np.sum(np.asarray(aux.labels.score) > 0, 1), K)
    assert sorted(identity_of(aux.labels, number, xy).values()) == [0, 0, 1, 1, 2, 2]


def test_keypoints_that_stand_for_no_landmark_are_left_out_in_mirrored_images_too():
    rng = np.random.default_rng()
    z, turned, slots = rng.normal(size=(N, P, D)), rng.normal(size=(N, P, D)), rng.integers(-1, P, (N, K))
    seen = bank_of(z, np.zeros((N, P, 2)), rng.random((N, P)) < 0.8, turned).values
    mask = duld.standing(seen.mask, jnp.asarray(slots.reshape(B, T, K)))
    x, there = duld.all_descriptors(seen, mask)
    one = np.array([[p in slots[n] for p in range(P)] for n in range(N)]) & np.asarray(seen.mask).reshape(N, P)
    np.testing.assert_array_equal(there, np.concatenate([one, one]).reshape(-1))
    np.testing.assert_allclose(x, np.concatenate([z, turned]).reshape(-1, D), rtol=1e-6)


def posed_bank(rng, prototypes, seen=None):
    """A bank of images of two poses, whose codes tell them apart."""
    pose = rng.integers(0, 2, N)
    z, number, xy = keypoints_of(rng, prototypes[pose], None if seen is None else seen[pose])
    codes = np.where(pose[:, None] == 0, [3.0, 0, 0, 0], [0, 2.0, 0, 0]) + 0.2 * rng.normal(size=(N, 4))
    return bank_of(z, xy, number >= 0, codes=codes), pose, number, xy


def last_stage(**changes):
    """The last stage and a state that knows the landmarks of all images together."""
    method = build(DuldPP, **POSED | dict(least_keypoints=2) | changes)
    proxy = build(Proxy, **POSED)
    return method, state_of(method, before=state_of(proxy).aux)


def test_two_stage_clustering_keeps_a_landmark_in_all_poses():
    rng = np.random.default_rng()
    base = prototypes_of(rng)
    # In the second pose every landmark looks a good deal like the next one does in the first.
    other = unit(base + 0.7 * np.roll(base, -1, 0) + 0.3 * prototypes_of(rng))
    seen = np.array([[True] * K, [True, True, False]])
    bank, pose, number, xy = posed_bank(rng, np.stack([base, other]), seen)
    method, state = last_stage()
    state = state.replace(
        aux=state.aux._replace(round=jnp.int32(3), anchors=jnp.asarray(base + 0.3 * other, jnp.float32))
    )
    aux = refreshed(method, state, bank)
    name = np.asarray(aux.pose)[pose == 0][0]
    np.testing.assert_array_equal(np.asarray(aux.pose) == name, pose == 0)
    assert aux.centroids.shape == (2, K, D)
    for q, wanted in ((int(name), base), (1 - int(name), other)):
        for k in range(K):
            if seen[int(q != name), k]:
                assert np.linalg.norm(unit(aux.centroids[q, k]) - wanted[k]) < 0.2
    np.testing.assert_array_equal(aux.used[1 - int(name)], seen[1])
    assert float(aux.counts.absent) == 1
    assert float(aux.counts.active_units) == 4
    assert identity_of(aux.labels, number, xy) == {0: 0, 1: 1, 2: 2}
    np.testing.assert_array_equal(np.asarray(aux.labels.score) > 0, seen[pose])


def test_a_pose_of_few_keypoints_takes_the_centroids_of_all():
    rng = np.random.default_rng()
    bank, *_ = posed_bank(rng, np.stack([prototypes_of(rng)] * 2))
    method, state = last_stage(least_keypoints=N)
    aux = refreshed(method, state, bank)
    np.testing.assert_array_equal(aux.centroids, np.broadcast_to(aux.anchors, aux.centroids.shape))
    assert np.all(aux.used)


def test_clusters_of_a_pose_stay_with_their_anchors():
    rng = np.random.default_rng()
    method, _ = last_stage()
    anchors = prototypes_of(rng).astype(np.float32)
    number = rng.integers(0, K, (B, T, P))
    z = unit(anchors[number] + 0.02 * rng.normal(size=(B, T, P, D))).astype(np.float32)
    seen = bank_of(z.reshape(N, P, D), np.zeros((N, P, 2)), np.ones((N, P), bool)).values
    group = rng.integers(0, 2, (B, T))
    limits = 2, method.least_keypoints, duld.ITERATIONS
    by_pose = jax.jit(lambda seen, anchors, group: duld.clusters_by_pose(seen, anchors, group, *limits))
    centroids, used, moved = by_pose(seen, jnp.asarray(anchors), jnp.asarray(group))
    for q in range(2):
        for k in range(K):
            np.testing.assert_allclose(centroids[q, k], z[(number == k) & (group[..., None] == q)].mean(0), atol=1e-5)
    assert int(moved) == 0
    assert np.all(used)


def lloyd(x, centroids):
    """K-means of rows [n,D] from centroids [K,D], in NumPy."""
    for _ in range(100):
        label = np.argmin(np.sum((x[:, None] - centroids) ** 2, -1), 1)
        centroids = np.stack([x[label == k].mean(0) for k in range(len(centroids))])
    return centroids


@pytest.mark.parametrize("seed", [215, 480, 4134])  # of which two are cycles of three, and one a swap
def test_clusters_that_crossed_come_back_as_scipy_says(seed):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(K, 2))
    few = rng.normal(size=(12, 2)) + rng.normal(size=2)
    # Many images of one pose hold the anchors where they are; in four of another, k-means from there goes astray.
    pose = np.r_[np.zeros(N - 4, int), np.ones(4, int)]
    many = np.broadcast_to(np.tile(base, (2, 1)), (N - 4, P, 2))
    z = np.pad(np.concatenate([many, np.tile(few.reshape(4, 3, 2), (1, 2, 1))]), ((0, 0), (0, 0), (0, D - 2)))
    codes = 2.0 * np.eye(4)[3 * pose]
    method, state = last_stage()
    anchors = jnp.pad(jnp.asarray(base, jnp.float32), ((0, 0), (0, D - 2)))
    state = state.replace(aux=state.aux._replace(round=jnp.int32(3), anchors=anchors))
    aux = refreshed(method, state, bank_of(z, np.zeros((N, P, 2)), np.ones((N, P), bool), codes=codes))
    other = int(np.asarray(aux.pose)[-1])
    assert np.asarray(aux.pose).tolist() == np.where(pose, other, 1 - other).tolist()
    found = lloyd(few, np.asarray(aux.anchors[:, :2], np.float64))
    _, cluster = linear_sum_assignment(np.sum((np.asarray(aux.anchors)[:, None, :2] - found) ** 2, -1))
    assert (cluster != np.arange(K)).any()
    np.testing.assert_allclose(aux.centroids[other, :, :2], found[cluster], atol=1e-5)
    np.testing.assert_allclose(aux.centroids[1 - other, :, :2], base, atol=1e-5)
    assert float(aux.counts.moved) == np.sum(cluster != np.arange(K)) > 0


def test_a_round_fills_the_memory():
    rng = np.random.default_rng()
    bank, _, _, _ = posed_bank(rng, np.stack([prototypes_of(rng)] * 2))
    bank = without(bank, bank.real.at[1, 2].set(False))._replace(index=bank.index)
    for size in (7, N + 3):
        method, state = last_stage(memory=size)
        memory = refreshed(method, state, bank).memory
        rows = np.asarray(memory.rows)
        assert len(rows) == size
        for row, code in zip(rows, np.asarray(memory.codes), strict=True):
            want = np.asarray(bank.values.codes).reshape(N, 4)[row] if row >= 0 else np.zeros(4)
            np.testing.assert_array_equal(code, want)
        assert len(set(rows[rows >= 0])) == min(size, N) - (size > N)
        assert int(bank.index[1, 2]) not in rows


@pytest.mark.parametrize("name", ["mirrored", "more", "poses", "between cells"])
def test_images_placed_one_batch_after_the_other_have_the_labels_of_the_whole_bank(name):
    rng = np.random.default_rng()
    if name in ("mirrored", "more"):
        method = build(Duld, **SIZES | dict(mirror=True, train_clusters=2 * K * (name == "more")))
        state, made = state_of(method), dict(turned=unit(rng.normal(size=(N, P, D))))
    else:
        method, state = last_stage(place="mean" if name == "between cells" else "exemplar")
        made = dict(codes=rng.normal(size=(N, 4)))
        made |= dict(between=rng.uniform(0, 31, (N, K, 2))) if name == "between cells" else {}
    z, mask = unit(rng.normal(size=(N, P, D))), rng.random((N, P)) < 0.8
    bank = bank_of(z, rng.uniform(0, 31, (N, P, 2)), mask, **made)
    bank = without(bank, jnp.asarray(rng.random((B, T)) < 0.8))
    form, locate, settle = jax.jit(method.form), jax.jit(method.locate), jax.jit(method.settle)
    for turn in range(2):  # with `place=mean` a round takes two passes
        key = jax.random.key(turn)
        found = form(state, {}, bank, key)
        batches = [locate(state, found, jax.tree.map(lambda x, t=t: x[:, t], bank.values)) for t in range(T)]
        placed = jax.tree.map(lambda *parts: jnp.stack(parts, 1), *batches)
        assert all(D not in x.shape[2:] for x in jax.tree.leaves(placed))  # no descriptors
        parts = settle(state, found, bank._replace(values=placed)).aux
        whole = refreshed(method, state, bank, seed=turn)
        # Compiled apart, sums may round otherwise; labels do not.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), parts, whole)
        for one in ("labels", "pose", "mirrored"):
            jax.tree.map(np.testing.assert_array_equal, getattr(parts, one), getattr(whole, one))
        assert 0 < float(whole.counts.labelled) < float(whole.counts.keypoints)
        assert bool(whole.placed) == (turn == 1 or name != "between cells")
        state = state.replace(aux=whole, step=state.step + 1)


def test_contrast_of_codes_equals_loops():
    rng = np.random.default_rng()
    codes, known = rng.normal(size=(5, 4)), rng.normal(size=(9, 4))
    pose, known_pose = rng.integers(0, 2, 5), rng.integers(-1, 2, 9)
    near, far = [], []
    for i in range(5):
        for j in range(9):
            distance = np.linalg.norm(unit(codes[i]) - unit(known[j]))
            if known_pose[j] == pose[i]:
                near.append(distance)
            elif known_pose[j] >= 0:
                far.append(max(0.8 - distance, 0))
    loss, values = duld.code_contrast(*map(jnp.asarray, (codes, pose, known, known_pose)))
    mean = lambda x: np.mean(x) if x else 0
    assert loss == pytest.approx(mean(near) + mean(far), rel=1e-4)
    assert values["same_pose"] == pytest.approx(mean(near), rel=1e-4)


@pytest.fixture(scope="module")
def trained():
    """The last stage with parameters, and a batch."""
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (4, 32, 32, 3), np.uint8)),
        "index": jnp.arange(4, dtype=jnp.int32),
    }
    proxy, method = build(Proxy, **POSED), build(DuldPP, **POSED | dict(memory=6, warmup=0))
    labels = Labels(jnp.asarray(rng.uniform(8, 24, (N, K, 2)), jnp.float32), jnp.ones((N, K)))

    @jax.jit
    def start(batch):
        first = proxy.init(jax.random.key(0), batch, {}, Start(state_of(build(Duld, **SIZES)), N))
        second = method.init(jax.random.key(1), batch, {}, Start(first, N))
        return second.replace(aux=second.aux._replace(labels=labels, pose=jnp.arange(N) % 2))

    return method, start(batch), batch


def test_codes_are_remembered_in_a_ring(trained):
    method, state, batch = trained
    step = jax.jit(method.train_step)
    state, metrics = step(state, {}, batch, jax.random.key(0))
    assert {"loss", "detector", "same_pose", "other_pose"} == set(metrics)
    np.testing.assert_array_equal(state.aux.memory.rows, [0, 1, 2, 3, -1, -1])
    first = np.asarray(state.aux.memory.codes)
    assert (np.linalg.norm(first[:4], axis=1) > 0).all()
    later = batch | {"index": batch["index"] + 10}
    state, _ = step(state.replace(step=state.step + 1), {}, later, jax.random.key(1))
    np.testing.assert_array_equal(state.aux.memory.rows, [12, 13, 2, 3, 10, 11])
    np.testing.assert_array_equal(state.aux.memory.codes[2:4], first[2:4])


def test_pieces_of_a_batch_leave_the_same_memory(trained):
    method, state, batch = trained
    parts = replace(method, accumulate_steps=2)
    one, two = (jax.jit(m.train_step)(state, {}, batch, jax.random.key(0))[0] for m in (method, parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one.aux.memory, two.aux.memory)


def test_parts_that_are_frozen_stay(trained):
    method, state, batch = trained
    step = jax.jit(method.train_step)
    new = step(state, {}, batch, jax.random.key(0))[0]  # there are no codes to compare with yet
    new = step(new.replace(step=new.step + 1), {}, batch, jax.random.key(1))[0]
    assert set(state.params) == {"aggregator", "detector", "descriptor", "encoder"}
    changed = {
        name: any(
            np.any(a != b) for a, b in zip(jax.tree.leaves(state.params[name]), jax.tree.leaves(new.params[name]))
        )
        for name in state.params
    }
    assert changed == {"aggregator": False, "descriptor": False, "detector": True, "encoder": True}


def test_what_was_not_detected_is_filled_in_or_missing(trained):
    method, state, batch = trained
    described = jnp.asarray(unit(np.random.default_rng().normal(size=(K, D))), jnp.float32)
    aux = state.aux._replace(centroids=jnp.stack([described] * 2), anchors=described)
    state = state.replace(aux=aux)
    sure = replace(method, threshold=1.0)  # nothing is ever detected
    filled = jax.jit(sure.predict)(state, {}, batch["image"])
    assert ((filled.score > 0) & ~filled.detected).all()
    missing = jax.jit(replace(sure, fill="none").predict)(state, {}, batch["image"])
    assert not np.any(missing.score)
    # Where it is filled in, no other cell is nearer to the centroid.
    psi, _, _ = method.look(state, {}, batch["image"])
    z = unit(np.asarray(psi.descriptors).reshape(4, -1, D))
    cell = np.argmin(np.sum((z[:, :, None] - np.asarray(described)) ** 2, -1), 1)
    np.testing.assert_allclose(filled.xy, np.stack([cell % 16, cell // 16], -1) * 2 + 0.5, atol=1e-4)


def test_the_landmarks_that_have_an_exemplar_are_described(trained):
    method, state, batch = trained
    described = jnp.asarray(unit(np.random.default_rng().normal(size=(2, K, D))), jnp.float32)
    used = jnp.array([[True, True, False], [True, False, True]])  # so that every image lacks one, whatever is drawn
    state = state.replace(aux=state.aux._replace(centroids=described, used=used))
    method = replace(method, threshold=0.0, subpixel="none")  # at whole cells
    predicted, seen = jax.jit(lambda *given: (method.predict(*given), method.describe(*given)))(
        state, {}, batch["image"]
    )
    there = np.asarray(predicted.detected)
    assert 0 < there.sum() < there.size
    np.testing.assert_array_equal(seen.mask, there)
    np.testing.assert_array_equal(seen.landmark, np.where(there, np.arange(K), -1))
    psi, _, _ = method.look(state, {}, batch["image"])
    cell = np.round((np.asarray(predicted.xy) - 0.5) / 2).astype(int)
    z = unit(np.asarray(psi.descriptors))[np.arange(4)[:, None], cell[..., 1], cell[..., 0]]
    np.testing.assert_allclose(np.asarray(seen.z)[there], z[there], atol=1e-4)


def started_proxy(batch):
    """The first state of the proxy stage, after a stage of D-ULD."""
    start = Start(state_of(build(Duld, **SIZES)), N)
    return jax.jit(lambda b: build(Proxy, **POSED).init(jax.random.key(0), b, {}, start))(batch)


def test_both_losses_of_the_last_stage_and_its_options(trained):
    method, state, batch = trained
    proxy = jax.jit(
        lambda b: build(Proxy, **POSED).init(jax.random.key(0), b, {}, Start(state_of(build(Duld, **SIZES)), N))
    )(batch)
    for changes in (dict(code_loss="elbo"), dict(train_descriptors=True)):
        other = replace(method, **changes)
        start = jax.jit(lambda b, p, m=other: m.init(jax.random.key(1), b, {}, Start(p, N)))(batch, proxy)
        start = start.replace(aux=start.aux._replace(labels=state.aux.labels, pose=state.aux.pose))
        new, metrics = jax.jit(other.train_step)(start, {}, batch, jax.random.key(0))
        assert all(np.isfinite(v) for v in metrics.values())
        assert set(new.params) - set(state.params) == ({"decoder"} if "code_loss" in changes else set())
        assert ("descriptor" in other.plan.trains) == ("train_descriptors" in changes)


def test_each_weight_of_the_last_stage_scales_its_own_loss(trained):
    method, state, batch = trained
    key = jax.random.key(0)
    proxy = jax.jit(
        lambda b: build(Proxy, **POSED).init(jax.random.key(0), b, {}, Start(state_of(build(Duld, **SIZES)), N))
    )(batch)

    def second_term(state, **changes):
        metrics = jax.jit(replace(method, **changes).train_step)(state, {}, batch, key)[1]
        return float(metrics["loss"] - metrics["detector"]), metrics

    # Before the first step the KL divergence has no weight yet.
    full = replace(method, code_loss="elbo")
    start = jax.jit(lambda b, p: full.init(jax.random.key(1), b, {}, Start(p, N)))(batch, proxy)
    start = start.replace(aux=start.aux._replace(labels=state.aux.labels, pose=state.aux.pose))
    for weight, other in ((1.0, 1.0), (3.0, 7.0)):
        term, metrics = second_term(start, code_loss="elbo", vae_weight=weight, code_weight=other)
        assert term == pytest.approx(weight * float(metrics["reconstruction"]), rel=1e-3)
        assert metrics["reconstruction"] > 0
    # Codes of the image itself and of one of the other pose are remembered.
    rng = np.random.default_rng(2)
    codes = jnp.asarray(unit(rng.normal(size=(6, 4))), jnp.float32)
    known = state.replace(aux=state.aux._replace(memory=Memory(codes, jnp.arange(6, dtype=jnp.int32))))
    terms = [second_term(known, code_weight=c, vae_weight=v)[0] for c, v in ((1.0, 1.0), (3.0, 7.0))]
    assert terms[0] > 0
    assert terms[1] == pytest.approx(3 * terms[0], rel=1e-3)


def test_a_code_does_not_depend_on_the_box(trained):
    method, state, batch = trained
    boxes = jnp.tile(jnp.array([[8.0, 8.0, 20.0, 24.0]]), (4, 1))
    look = jax.jit(method.look)
    free, boxed = look(state, {}, batch["image"]), look(state, {}, batch["image"], boxes)
    assert (np.asarray(free[1]).sum((1, 2)) > np.asarray(boxed[1]).sum((1, 2))).all()
    np.testing.assert_array_equal(free[2], boxed[2])


def test_a_code_that_collapsed_is_told():
    assert "collapsed" in build(Proxy, **POSED).warning({"active_units": 0.0})
    assert build(Proxy, **POSED).warning({"active_units": 3.0}) is None


def test_the_bound_is_that_of_the_pose_network(trained):
    _, state, batch = trained
    method = build(Proxy, **POSED)
    first = jax.jit(lambda b: method.init(jax.random.key(0), b, {}, Start(state_of(build(Duld, **SIZES)), N)))(batch)
    labelled = first.replace(aux=first.aux._replace(labels=state.aux.labels))
    examples = duld.posed_examples(method, method.pose, labelled, {}, batch, jax.random.key(0), mirror=False)
    examples["beta"] = jnp.full(4, 0.5)
    psi = method.network.psi(first.params, examples["maps"])
    bound, _ = duld.pose_bound(method.network, first.params, psi, examples, into_detector=True)
    confidence = np.where(examples["inside"], 1 / (1 + np.exp(-np.asarray(psi.logits))), 0)
    encoder, decoder = method.network.parts["encoder"], method.network.parts["decoder"]
    mean, log_variance = encoder.apply({"params": first.params["encoder"]}, jnp.asarray(confidence))
    decoded = decoder.apply({"params": first.params["decoder"]}, mean + jnp.exp(log_variance / 2) * examples["noise"])
    target = np.asarray(heatmaps.keypoint_map(examples["cells"], examples["there"], (16, 16), 1.5))
    fit = np.sum((1 / (1 + np.exp(-np.asarray(decoded))) - target) ** 2, (1, 2)) / 0.02
    want = float(np.mean(fit + 0.5 * np.sum(pose_vae.kl_divergence(mean, log_variance), 1)) * 0.02 / 256)
    assert bound == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(
    ("cls", "changes", "message"),
    [
        (Duld, {"grid": 5}, "net.grid is 5; use a divisor of view.image_size = 32"),
        (Duld, {"most": 2}, "detect.most is 2; use at least k = 3"),
        (Duld, {"negatives": "all"}, "negatives is 'all'; use within or cross"),
        (Duld, {"start": "labels", "train_clusters": 9}, "set start=clusters and place=exemplar"),
        (Duld, {"cache": "maps", "zoom": 0.8}, "cache holds maps of whole frames"),
        (Duld, {"ema": 1.0}, "ema is 1.0"),
        (Duld, {"train_clusters": -3}, "train_clusters is -3; use 0 or more"),
        (Bootstrap, {"roi": 0.0}, "roi is 0.0"),
        (Proxy, {"grid": 2, "image_size": 32}, "net.grid is 2"),
        (DuldPP, {"code_loss": "mse"}, "code_loss is 'mse'"),
    ],
)
def test_bad_settings(cls, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build(cls, **(POSED if cls in (Proxy, DuldPP) else SIZES) | changes)


def test_stages_that_need_another_before_them(trained):
    _, _, batch = trained
    shape = lambda method, previous=None: jax.eval_shape(
        lambda b: method.init(jax.random.key(0), b, {}, Start(previous, N, before="before" if previous else "")), batch
    )
    with pytest.raises(UserError, match=r"needs the poses of duld\.Proxy, and no stage"):
        shape(build(DuldPP, **POSED))
    with pytest.raises(UserError, match=r"needs the labels of .*such as zeroshot\.ZeroShot, and no stage"):
        shape(build(Duld, **SIZES | dict(start="labels")))
    few = TrainState(step=jnp.int32(0), aux=Memory(jnp.zeros(1), jnp.zeros(1)))
    with pytest.raises(UserError, match=r"needs the labels of .*and the stage before"):
        shape(build(Duld, **SIZES | dict(start="labels")), few)
    wide = jax.eval_shape(
        lambda b: build(Duld, **SIZES | dict(width=16)).init(jax.random.key(0), b, {}, Start(None, N)), batch
    )
    with pytest.raises(UserError, match="the stage before STAGE has another"):
        shape(build(Proxy, **POSED), wide)
    # Without labels the proxy stage would learn empty maps until its first round.
    many = jax.eval_shape(lambda: state_of(build(Duld, **SIZES | dict(train_clusters=7))))
    for previous, why in ((None, r"such as duld\.Duld with train_clusters=0, and no"), (many, "left 7 landmarks of")):
        with pytest.raises(UserError, match=why):
            shape(build(Proxy, **POSED), previous)
