"""The bottleneck, the rounds and the optimisers of CGB; what every method must hold is in every_method_test.py."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import silhouette_score

from tests import tiny
from uld_jax import config as config_lib
from uld_jax.bank import Bank
from uld_jax.clustering.gcn_clusters import gcn_clusters
from uld_jax.errors import UserError
from uld_jax.hyperparameters import replace
from uld_jax.method import Round, Start, TrainState
from uld_jax.methods import cgb

D = 16


@pytest.fixture(scope="module")
def method():
    """With small descriptors and k-means, of which most tests need no more."""
    return replace(published(), descriptor_size=D, clustering="kmeans")


def published():
    return config_lib.stage(tiny.config("cgb"), "cgb").method


def consensus(method, centroids, used=None, clusterings=1):
    used = np.ones(len(centroids), bool) if used is None else used
    zero = jnp.float32(0)
    ring = cgb.Ring(jnp.zeros((method.ring_size, 8, D)), jnp.int32(0))
    found = jnp.sum(jnp.asarray(used))
    return cgb.Consensus(jnp.int32(clusterings), jnp.asarray(centroids), jnp.asarray(used), found, zero, zero, ring)


def test_consistency_is_the_best_cosine_to_a_used_centroid(method):
    rng = np.random.default_rng(0)
    centroids = rng.normal(0, 1, (6, D)).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    used = np.array([True, False, True, True, False, True])
    z = rng.normal(0, 3, (5, 4, D)).astype(np.float32)
    cosines = (z / np.linalg.norm(z, axis=-1, keepdims=True)) @ centroids[used].T
    found = method._consistency(consensus(method, centroids, used), jnp.asarray(z))
    np.testing.assert_allclose(found, cosines.max(-1), rtol=1e-5, atol=1e-6)


# Denominators of the published code (exp(-r^2 / s)): d = 0.898 gives the fixed 0.5.
@pytest.mark.parametrize(
    ("d", "s"),
    [(1, 0.2), (0.99, 0.228), (0.95, 0.343), (0.9, 0.494), (0.8, 0.818), (0.5, 2.012), (0, 5.0), (-1, 18.05)],
)
def test_the_adaptive_gaussian_of_the_published_code(method, d, s):
    method = replace(method, sigma="code_rescaled")
    sigma = method._sigma(consensus(method, np.eye(6, D, dtype=np.float32)), jnp.float32(d))
    assert 2 * float(sigma) ** 2 == pytest.approx(s, abs=6e-3)


def test_the_adaptive_gaussian_of_the_paper_and_before_the_first_round(method):
    aux = consensus(method, np.eye(6, D, dtype=np.float32))
    d = jnp.array([1.0, 0.0])
    np.testing.assert_allclose(2 * method._sigma(aux, d) ** 2, [0.271, 2.0], atol=1e-3)
    np.testing.assert_allclose(method._sigma(aux._replace(round=jnp.int32(0)), d), cgb.FIXED_SIGMA)
    fixed = replace(method, bottleneck="fixed")
    np.testing.assert_allclose(fixed._sigma(aux, d), cgb.FIXED_SIGMA)
    np.testing.assert_allclose(2 * cgb.FIXED_SIGMA**2, 0.5)


def test_a_round_clusters_what_the_ring_holds(method):
    rng = np.random.default_rng(2)
    directions = np.eye(3, D) * 5
    z = directions[rng.integers(0, 3, (method.ring_size, 8))] + rng.normal(0, 0.1, (method.ring_size, 8, D))
    z *= rng.uniform(0.5, 2, z.shape[:2])[..., None]  # lengths must not matter to who belongs where
    full = 7
    z[full:] = rng.normal(0, 50, z[full:].shape)  # not written since the last clustering
    method = replace(method, clusters=3)
    aux = consensus(method, np.zeros((3, D), np.float32), clusterings=0)
    aux = aux._replace(ring=cgb.Ring(jnp.asarray(z, jnp.float32), jnp.int32(full)))
    state = jax.jit(method.refresh)(TrainState(jnp.int32(0), aux=aux), {}, None, jax.random.key(0))
    rows = z[:full].reshape(-1, D)
    member = np.argmax(rows @ directions.T, -1)
    mean = np.stack([rows[member == t].mean(0) for t in range(3)])
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    found = np.asarray(state.aux.centroids)
    order = np.argmax(found @ mean.T, 0)
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(found[order], mean, atol=1e-5)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(state.aux.silhouette, silhouette_score(unit, member), atol=1e-3)
    assert int(state.aux.round) == 1
    assert int(state.aux.ring.count) == 0


def test_the_ring_keeps_one_step_in_some_and_forgets_the_oldest(method):
    method = replace(method, ring_every=3, ring_size=4)
    ring = cgb.Ring(jnp.zeros((4, 8, D)), jnp.int32(0))
    for step in range(16):  # steps 0, 3, ..., 15 are kept: six, for four places
        ring = method._keep(ring, jnp.full((2, 4, D), step + 1.0), jnp.int32(step))
    assert int(ring.count) == 6
    assert np.asarray(ring.descriptors[:, 0, 0]).tolist() == [13, 16, 7, 10]


def test_a_pass_gives_the_same_clusters_as_a_ring_of_the_same_descriptors(method):
    rng = np.random.default_rng(3)
    z = rng.normal(0, 1, (4, method.ring_size, 2, D)).astype(np.float32)
    aux = consensus(method, np.zeros((6, D), np.float32), clusterings=0)
    ring = cgb.Ring(jnp.asarray(z.transpose(1, 0, 2, 3).reshape(method.ring_size, 8, D)), jnp.int32(method.ring_size))
    ringed = method.refresh(TrainState(jnp.int32(0), aux=aux._replace(ring=ring)), {}, None, jax.random.key(0))
    seen, index = jnp.asarray(ring.descriptors[:, None]), jnp.arange(10)[:, None]
    bank = Bank(cgb.Seen(seen), index, jnp.ones((10, 1), bool))
    passed = method.refresh(TrainState(jnp.int32(0), aux=aux), {}, bank, jax.random.key(0))
    np.testing.assert_array_equal(ringed.aux.centroids, passed.aux.centroids)
    # What a pass has of padding does not matter.
    real = jnp.asarray(rng.permutation(10) < 7)[:, None]
    found = []
    for value in (0.0, 99.0):
        spoiled = jnp.where(real[..., None, None], seen, value)
        bank = Bank(cgb.Seen(spoiled), jnp.where(real, index, 10), real)
        found.append(method.refresh(TrainState(jnp.int32(0), aux=aux), {}, bank, jax.random.key(0)).aux)
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert int(found[0].round) == 1
    assert np.abs(found[0].centroids - passed.aux.centroids).max() > 1e-3


def test_rounds_pass_over_the_photos_or_cluster_what_steps_left(method):
    method = replace(method, steps=20, round_every=8)
    due = lambda **changes: [replace(method, **changes).round_at(step) for step in (0, 7, 8, 16, 20, 24)]
    for labels_from, one in (("ring", Round(0)), ("pass", Round(1))):
        assert due(labels_from=labels_from) == [one, None, one, one, None, None]
    assert not any(due(clustering="none", bottleneck="fixed"))


def ring_of(method, z, count=None):
    """A first state whose ring holds z [S,P,D], or the first `count` of these."""
    aux = consensus(method, np.zeros((method._slots, z.shape[-1]), np.float32), clusterings=0)
    return TrainState(
        jnp.int32(0), aux=aux._replace(ring=cgb.Ring(jnp.asarray(z), jnp.int32(len(z) if count is None else count)))
    )


def around(seed, size, centres=3, steps=10, rows=8):
    """Descriptors [steps,rows,size] about a few directions, and which one."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, centres, (steps, rows))
    z = rng.normal(0, 1, (centres, size))[kind] + 0.4 * rng.normal(0, 1, (steps, rows, size))
    return (3 * z).astype(np.float32), kind


def test_a_round_by_the_graph_is_that_of_the_clustering_library():
    method = replace(published(), neighbours=12)
    frozen = {"gcn_v": method.frozen()["gcn_v"]}
    z, kind = around(0, 256)
    aux = method.refresh(ring_of(method, z), frozen, None, jax.random.key(0)).aux
    expected = gcn_clusters(jnp.asarray(z.reshape(-1, 256)), k=12, slots=method.graph.slots)
    np.testing.assert_allclose(aux.centroids, expected.centroids, atol=1e-5)
    assert int(aux.found) == int(expected.count) >= 3
    np.testing.assert_array_equal(aux.used, np.arange(method.graph.slots) < int(aux.found))
    assert int(aux.round) == 1
    # Every cluster is of one kind, so that all descriptors are near a centroid of theirs.
    labels = np.asarray(expected.labels)
    assert all(len(np.unique(kind.reshape(-1)[labels == label])) == 1 for label in np.unique(labels))
    d = method._consistency(aux, jnp.asarray(z))
    assert float(d.min()) > 0.7
    # Without rows nothing changes.
    empty = method.refresh(ring_of(method, z, 0), frozen, None, jax.random.key(0)).aux
    assert int(empty.round) == 0
    np.testing.assert_array_equal(empty.centroids, 0)


def test_the_graph_does_without_a_network_that_does_not_fit(method, caplog):
    thin = replace(method, clustering="gcn", neighbours=12, slots=32, perceptual=0.0)
    frozen = thin.frozen()
    assert "these have 16, so confidence is density" in caplog.text
    assert "gcn_v" not in frozen
    z, _ = around(1, D)
    aux = thin.refresh(ring_of(thin, z), frozen, None, jax.random.key(0)).aux
    expected = gcn_clusters(jnp.asarray(z.reshape(-1, D)), k=12, slots=32, confidence="density")
    np.testing.assert_allclose(aux.centroids, expected.centroids, atol=1e-5)
    assert int(aux.found) == int(expected.count)


def test_optimisers_are_those_of_pytorch(method, monkeypatch):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = {n: rng.normal(0, 1, (6, 4)).astype(np.float32) for n in ("detector", "generator")}
    x, y = rng.normal(0, 2, (16, 6)).astype(np.float32), rng.normal(0, 9, (16, 4)).astype(np.float32)
    monkeypatch.setattr(cgb, "L2", 0.1)  # so large that 20 steps show it
    changes = dict(detector_rate=0.02, generator_rate=0.05, decay_every=8, decay=0.5, generator_first=0)
    method = replace(method, **changes)

    def loss(lib, p):
        return ((lib.tanh(x_ @ p["detector"]) * 3 + x_ @ p["generator"] - y_) ** 2).mean()

    x_, y_ = torch.tensor(x), torch.tensor(y)
    theirs = {n: torch.tensor(v, requires_grad=True) for n, v in start.items()}
    rates = {"detector": 0.02, "generator": 0.05}
    adams = {n: torch.optim.Adam([v], lr=rates[n], betas=(0.0, 0.9), weight_decay=0.1) for n, v in theirs.items()}
    steps = {n: torch.optim.lr_scheduler.StepLR(a, 8, 0.5) for n, a in adams.items()}
    for _ in range(20):
        for a in adams.values():
            a.zero_grad()
        loss(torch, theirs).backward()
        for n, a in adams.items():  # each network's gradient is clipped by itself
            torch.nn.utils.clip_grad_norm_([theirs[n]], 1.0)
            a.step()
            steps[n].step()

    x_, y_ = jnp.asarray(x), jnp.asarray(y)
    ours, states = dict(start), {n: method._optimizers[n].init(v) for n, v in start.items()}
    for _ in range(20):
        grads = jax.grad(lambda p: loss(jnp, p))(ours)
        for n, optimizer in method._optimizers.items():
            if n in ours:
                updates, states[n] = optimizer.update(grads[n], states[n], ours[n])
                ours[n] = optax.apply_updates(ours[n], updates)
    for n, value in theirs.items():
        np.testing.assert_allclose(ours[n], value.detach().numpy(), rtol=1e-4, atol=1e-5)
        assert np.abs(ours[n] - start[n]).max() > 0.1


def built(method, **changes):
    method = replace(method, **changes)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (4, method.frame_size, method.frame_size, 3), np.uint8)),
        "index": jnp.arange(4, dtype=jnp.int32),
    }
    return method, batch


def test_gradients_reach_what_they_should(method):
    """Positions always teach the detector; a descriptor does only where d is not detached."""
    for detach in (True, False):
        made, batch = built(method, start="scratch", detach_d=detach, perceptual=0.0, width=8)
        frozen = made.frozen()
        state = made.init(jax.random.key(0), batch, frozen, Start(None, 4))
        aux = consensus(made, np.eye(made.clusters, D, dtype=np.float32))
        images = batch["image"][:, : made.view.image_size, : made.view.image_size] / 255.0

        def loss(params, made=made, state=state, aux=aux, frozen=frozen, images=images):
            return made._loss(params, state.model_state, aux, frozen, images, images[:, ::-1])[0]

        grads = jax.jit(jax.grad(loss))(state.params)
        size = {name: float(optax.global_norm(tree)) for name, tree in grads.items()}
        assert size["detector"] > 0
        assert size["generator"] > 0
        assert (size["projection"] > 0) is not detach
        assert made._projection_learns is not detach
        assert ("projection" in state.opt_state) is not detach


def test_consistency_is_measured_alike_whether_a_gaussian_follows_it_or_not(method):
    """What figure 5 compares, the baseline's d beside the bottleneck's, is one number of one state."""
    made, batch = built(method, start="scratch", perceptual=0.0, width=8)
    state = made.init(jax.random.key(0), batch, {}, Start(None, 4))
    aux = consensus(made, np.eye(made.clusters, D, dtype=np.float32))
    images = batch["image"][:, : made.view.image_size, : made.view.image_size] / 255.0

    def metrics(**changes):
        one = replace(made, **changes)
        return jax.jit(lambda: one._loss(state.params, state.model_state, aux, {}, images, images[:, ::-1])[1][1])()

    assert made.detach_d  # by default d is a number that is measured, not one that is trained (docs/methods/cgb.md)
    usual, others = metrics(), (metrics(bottleneck="fixed"), metrics(detach_d=False, sigma="code_rescaled"))
    assert 0 < float(usual["consistency"]) < 1
    for other in others:
        np.testing.assert_allclose(other["consistency"], usual["consistency"], rtol=1e-5)
        assert float(other["pixels"]) != float(usual["pixels"])


def test_landmarks_are_described_as_a_pass_sees_them(method):
    made, batch = built(method, start="scratch", perceptual=0.0, width=8)
    state = made.init(jax.random.key(0), batch, {}, Start(None, 4))
    both = jax.jit(lambda b: (made.observe(state, {}, b, None), made.describe(state, {}, b["image"])))
    seen, described = both(batch)
    assert seen.z.shape == (4, made.k, D)
    np.testing.assert_array_equal(described.z, seen.z)
    np.testing.assert_array_equal(described.landmark, np.broadcast_to(np.arange(made.k), (4, made.k)))
    assert described.mask.all()


def test_starts(method):
    made, batch = built(method, start="scratch")
    frozen = made.frozen()
    scratch = made.init(jax.random.key(0), batch, frozen, Start(None, 4))
    detector = TrainState(
        jnp.int32(5), jax.tree.map(lambda x: x + 1, scratch.params["detector"]), scratch.model_state["detector"]
    )
    warm = replace(made, start="zeroshot").init(jax.random.key(0), batch, frozen, Start(detector, 4))
    jax.tree.map(np.testing.assert_array_equal, warm.params["detector"], detector.params)
    jax.tree.map(np.testing.assert_array_equal, warm.params["generator"], scratch.params["generator"])
    given = {
        "params": jax.tree.map(lambda x: np.full(x.shape, 3.0), scratch.params["detector"]),
        "batch_stats": scratch.model_state["detector"]["batch_stats"],
    }
    given["params"]["l_0"]["kernel"] = np.zeros((1, 1, 16, 16))  # of other joints
    given["params"]["l_0"]["bias"] = np.zeros(16)
    thin = replace(made, start="checkpoint", width=8)
    with pytest.raises(UserError, match="another size"):
        thin.init(jax.random.key(0), batch, frozen | {"fan": given}, Start(None, 4))
    other = replace(made, start="previous", ring_size=3)
    with pytest.raises(UserError, match="goes on with a warm-up of other sizes"):
        other.init(jax.random.key(0), batch, frozen, Start(warm, 4))
    loaded = replace(made, start="checkpoint").init(jax.random.key(0), batch, frozen | {"fan": given}, Start(None, 4))
    assert float(loaded.params["detector"]["conv1"]["kernel"].min()) == 3
    # A finished run is read, by the shapes of its state, without the weights that only training needs.
    bare = replace(made, start="checkpoint")
    start = Start(None, 4, shapes_only=True)
    shapes = jax.eval_shape(lambda b: bare.init(jax.random.key(0), b, bare.frozen("predict"), start), batch)
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, loaded)
    np.testing.assert_array_equal(loaded.params["detector"]["l_0"]["bias"], scratch.params["detector"]["l_0"]["bias"])
    on = replace(made, start="previous").init(jax.random.key(1), batch, frozen, Start(warm, 4))
    jax.tree.map(np.testing.assert_array_equal, on.params, warm.params)
    jax.tree.map(np.testing.assert_array_equal, on.opt_state, warm.opt_state)
    # The projection learns in the stage after alone, or before alone: its moments begin, or end, in between.
    previous = replace(made, start="previous")
    learning = replace(previous, detach_d=False)
    assert set(warm.opt_state) == {"detector", "generator"}
    spent = warm.replace(opt_state=jax.tree.map(lambda x: x + 1, warm.opt_state))
    begun = learning.init(jax.random.key(1), batch, frozen, Start(spent, 4))
    fresh = learning._optimizers["projection"].init(warm.params["projection"])
    jax.tree.map(np.testing.assert_array_equal, begun.opt_state, spent.opt_state | {"projection": fresh})
    begun = begun.replace(opt_state=jax.tree.map(lambda x: x + 1, begun.opt_state))
    on = learning.init(jax.random.key(1), batch, frozen, Start(begun, 4))
    jax.tree.map(np.testing.assert_array_equal, on.opt_state, begun.opt_state)
    ended = previous.init(jax.random.key(1), batch, frozen, Start(begun, 4))
    assert set(ended.opt_state) == {"detector", "generator"}
    jax.tree.map(np.testing.assert_array_equal, ended.params, begun.params)
    for start in ("previous", "zeroshot"):
        with pytest.raises(UserError, match="init_from"):
            replace(made, start=start).init(jax.random.key(0), batch, frozen, Start(None, 4))
    with pytest.raises(UserError, match=r"weights\.fan"):
        replace(made, start="checkpoint").frozen()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"bottleneck": "narrow"}, "narrow"),
        ({"clustering": "none"}, "kmeans"),
        ({"clustering": "graph"}, "use none, gcn, density or kmeans"),
        ({"link_space": "x"}, "gcn_hidden"),
        ({"image_size": 44}, "44"),
        ({"ring_size": 0}, "ring_size"),
    ],
)
def test_settings_that_cannot_work_are_named(method, changes, word):
    with pytest.raises(UserError, match=word):
        replace(method, **changes)


def sharded():
    """Runs in a process of its own with eight devices; prints what a round over a pass and a step send between them."""
    from tests import collectives
    from tests.compiled import count
    from uld_jax import sharding
    from uld_jax.models.fan import ConvBlock

    cgb.MEASURED = 500
    mesh = sharding.make_mesh()
    split, everywhere = sharding.split(mesh), sharding.replicated(mesh)
    row = lambda shape, dtype: jax.ShapeDtypeStruct((16, 100, *shape), dtype, sharding=split)
    bank = Bank(cgb.Seen(row((4, 256), jnp.float32)), row((), jnp.int32), row((), bool))
    report = {}
    for way in ("gcn", "kmeans"):
        method = replace(published(), clustering=way, labels_from="pass", start="scratch", perceptual=0.0)
        method, batch = built(method, slots=64)
        frozen = method.frozen()
        state = jax.eval_shape(lambda b, m=method: m.init(jax.random.key(0), b, {}, Start(None, 1600)), batch)
        state, frozen, key = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), (state, frozen, jax.random.key(0))
        )
        with jax.set_mesh(mesh):
            compiled = jax.jit(method.refresh, out_shardings=everywhere).lower(state, frozen, bank, key).compile()
        report[way] = collectives.list_collectives(compiled)

    program = lambda f, **more: sharding.OnMesh(mesh, jax.jit(f, out_shardings=everywhere, **more))
    shape = lambda *sizes, where: jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=where)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    ring = cgb.Ring(shape(100, 160, 256, where=everywhere), number)
    keep = program(published()._keep, donate_argnums=0)
    compiled = keep.lower(ring, shape(16, 10, 256, where=split), number).compile()
    report["keep"] = collectives.list_collectives(compiled)
    draw = lambda *sizes: np.random.default_rng(0).normal(size=sizes).astype(np.float32)
    given = cgb.Ring(draw(100, 160, 256), np.int32(103)), draw(16, 10, 256), np.int32(2 * published().ring_every)
    on_one = jax.jit(published()._keep)(*given)
    on_eight = compiled(*(jax.device_put(x, where) for x, where in zip(given, (everywhere, split, everywhere))))
    report["same"] = all(map(np.array_equal, on_one, on_eight))

    block, images = ConvBlock(8), shape(16, 4, 4, 4, where=split)
    variables = jax.eval_shape(lambda x: block.init(jax.random.key(0), x, True), images)
    variables = jax.tree.map(lambda x: shape(*x.shape, where=everywhere), variables)

    def loss(params, statistics, x):
        y, new = block.apply({"params": params, "batch_stats": statistics}, x, True, mutable="batch_stats")
        return jnp.sum(y**3), new

    gradient = program(jax.value_and_grad(loss, has_aux=True))
    compiled = gradient.lower(variables["params"], variables["batch_stats"], images).compile()
    report["sums"] = count(compiled, "all-reduce"), len(variables["batch_stats"])
    print(json.dumps(report))


@pytest.fixture(scope="module")
def sent():
    return json.loads(tiny.run(__file__, devices=8).stdout.splitlines()[-1])


def test_a_step_gathers_its_descriptors_and_not_the_ring(sent):
    assert sent["keep"] == [["all-gather", "f32", [16, 10, 256]]]
    assert sent["same"]


def test_a_normalisation_sends_its_sums_at_once(sent):
    """One sum over all devices for each layer, forward and backward, and one for the gradients of the parameters."""
    operations, norms = sent["sums"]
    assert norms == 4
    assert operations <= 2 * norms + 1


def test_a_round_over_a_pass_gathers_no_descriptors(sent):
    rows, devices, size, hidden = 16 * 100 * 4, 8, 256, 512
    for way in ("gcn", "kmeans"):
        found = sent[way]
        shapes = {kind: {tuple(shape) for k, _, shape in found if k == kind} for kind in {k for k, _, _ in found}}
        assert set(shapes) == {"all-gather", "all-reduce", "collective-permute"}
        assert shapes["all-gather"] == {(rows,)}  # one number a row: confidences, links, labels
        # The ring moves the block of one device: its rows, their hidden layer, their neighbours, their labels.
        block, measured = rows // devices, -(-500 // devices)
        ring = {(measured, size), (measured,)}
        ring |= {(block, size), (block, hidden), (block, 8), (block,)} if way == "gcn" else set()
        assert shapes["collective-permute"] <= ring
        # Sums over all rows, of M clusters or less, and the rows whose quality is measured.
        assert max(map(np.prod, shapes["all-reduce"])) <= 500 * size


if __name__ == "__main__":
    sharded()
