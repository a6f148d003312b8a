"""LEAD: what its two stages do besides what every stage does, and the landmarks that its features give."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from uld_jax import config as config_lib
from uld_jax.backbones.lead import Lead
from uld_jax.bank import Bank, Labels
from uld_jax.convert import convert
from uld_jax.detector import Detector
from uld_jax.engine import loop, runs
from uld_jax.errors import UserError
from uld_jax.hyperparameters import replace
from uld_jax.method import Start, TrainState
from uld_jax.methods import lead, lead_common, lead_compact, shared
from uld_jax.ops import coordinates, dense_matching, hypercolumns

SIDE, BATCH = 40, 8


def built(stage="byol", more="", **changes):
    name = {"moco": ",stage1=moco"}.get(stage, "") + more
    return replace(config_lib.stage(tiny.config("lead", more=name), stage).method, **changes)


def batch_of(seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8)
    return {"image": jnp.asarray(images), "index": jnp.arange(BATCH)}


def first_state(method, previous=None):
    init = lambda batch: method.init(jax.random.key(1), batch, {}, Start(previous, BATCH, before="byol"))
    return jax.jit(init)(batch_of())


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# -- stage 1 --------------------------------------------------------------------------------------------------------


def test_byols_loss_is_that_of_unit_vectors():
    rng = np.random.default_rng()
    a, b = rng.normal(size=(2, 7, 5)) * 10
    want = np.mean(np.sum((unit(a) - unit(b)) ** 2, -1))
    np.testing.assert_allclose(lead.byol_loss(a, b), want, rtol=1e-5)
    assert float(lead.byol_loss(a, 3 * a)) < 1e-10
    np.testing.assert_allclose(lead.byol_loss(a, -a), 4, rtol=1e-6)


def test_second_crops_may_be_near_the_first_and_of_another_side():
    ramp = np.arange(SIDE, dtype=np.uint8) * 5
    x, y = np.meshgrid(ramp, ramp)
    images = jnp.asarray(np.broadcast_to(np.stack([x, y, x], -1), (64, SIDE, SIDE, 3)))
    keys = jax.vmap(lambda key: jax.random.split(key, 2))(jax.random.split(jax.random.key(3), 64))

    def middles(**changes):
        crops = np.asarray(lead.Changes(**changes).crops(keys, images, 16))
        return crops.shape[2], crops[..., :2].mean((2, 3)) * 255 / 5  # [V,B,2] in pixels of the image

    far, near = middles(area=0.1, most=0.1), middles(area=0.1, most=0.1, within=0.2, side=8)
    assert (far[0], near[0]) == (16, 8)
    np.testing.assert_allclose(near[1][0], far[1][0], atol=0.3)  # the first crop is the same
    apart = lambda middles: np.linalg.norm(middles[1] - middles[0], axis=-1)
    assert apart(near[1]).max() < 0.2 * SIDE * np.sqrt(0.1 * 4 / 3) * np.sqrt(2) + 0.3
    assert np.median(apart(far[1])) > 2 * np.median(apart(near[1]))


def test_the_least_share_of_a_crop_is_at_most_the_largest():
    with pytest.raises(UserError, match="area <= most"):
        lead.Changes(area=0.5, most=0.4)


def test_the_targets_momentum_rises_to_one():
    found = [float(lead.target_momentum(0.97, step, 10)) for step in (0, 5, 10)]
    np.testing.assert_allclose(found, [0.97, 0.985, 1.0], atol=1e-6)


def test_spread_is_one_for_random_and_zero_for_equal_vectors():
    rng = np.random.default_rng()
    assert abs(float(lead.spread(rng.normal(size=(2000, 64)))) - 1) < 0.05
    assert float(lead.spread(np.tile(rng.normal(size=(1, 64)), (50, 1)))) < 1e-3


def test_byol_learns_online_alone_and_the_target_follows():
    method = built(momentum=0.6)
    state, batch = first_state(method), batch_of()
    views = method._views(batch, jax.random.key(2))
    loss = lambda params, target: method._loss(params, state.model_state, state.aux._replace(params=target), views)[0]
    online, target = jax.jit(jax.grad(loss, (0, 1)))(state.params, state.aux.params)
    assert all(float(jnp.abs(x).max()) == 0 for x in jax.tree.leaves(target))
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(online["projector"]["fc2"]))
    new, metrics = jax.jit(method.train_step)(state, {}, batch, jax.random.key(2))
    assert float(metrics["tau"]) == pytest.approx(0.6)
    for name in ("encoder", "projector"):
        want = jax.tree.map(lambda old, now: 0.6 * old + 0.4 * now, state.aux.params[name], new.params[name])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.aux.params[name], want)
    assert set(new.aux.params) == {"encoder", "projector"}
    # The target's statistics are of what it saw itself, with its own parameters.
    mean = lambda tree: np.asarray(tree["encoder"]["batch_stats"]["bn1"]["mean"])
    assert not np.allclose(mean(new.aux.statistics), mean(new.model_state))
    assert not np.allclose(mean(new.aux.statistics), mean(state.aux.statistics))


def test_mocos_loss_by_numpy():
    rng = np.random.default_rng()
    queries, keys, waiting = (unit(rng.normal(size=(n, 6))) for n in (5, 5, 11))
    logits = np.concatenate([np.sum(queries * keys, -1, keepdims=True), queries @ waiting.T], -1) / 0.1
    want = np.mean(np.log(np.exp(logits).sum(-1)) - logits[:, 0])
    value, metrics = lead.moco_loss(queries, keys, waiting, 0.1)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert float(metrics["found"]) == pytest.approx(np.mean(logits.argmax(-1) == 0))


def test_moco_keeps_keys_in_the_order_of_their_queries():
    method = built("moco", groups=1)  # then the order of a batch does not matter to its statistics
    state, batch = first_state(method), batch_of()
    views, order = method._views(batch, jax.random.key(3)), jnp.asarray([3, 1, 0, 2, 7, 6, 5, 4])
    run = jax.jit(lambda state, order: method._loss(state.params, state.model_state, state.aux, views, order)[1][2])
    found = run(state, order)
    np.testing.assert_allclose(found, run(state, jnp.arange(BATCH)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)
    assert np.abs(np.asarray(found)[1:] - np.asarray(found)[:-1]).max() > 1e-3


@pytest.mark.slow
def test_moco_forgets_its_oldest_keys():
    method = built("moco")
    state, batch = first_state(method), batch_of()
    step, before = jax.jit(method.train_step), np.asarray(state.aux.keys)
    for number in range(3):
        state, _ = step(state.replace(step=jnp.int32(number)), {}, batch, jax.random.key(number))
        place = slice(number * BATCH % method.queue, number * BATCH % method.queue + BATCH)
        now = np.asarray(state.aux.keys)
        assert (np.abs(now[place] - before[place]).max(-1) > 1e-3).all()
        rest = np.ones(method.queue, bool)
        rest[place] = False
        np.testing.assert_array_equal(now[rest], before[rest])
        before = now


def test_moco_says_which_batches_fit():
    for queue, groups in ((15, 2), (16, 3)):
        with pytest.raises(UserError, match=f"divisor of queue = {queue} that is a multiple of groups = {groups}"):
            first_state(built("moco", queue=queue, groups=groups))


def test_collapse_is_told_once(caplog):
    spec = types.SimpleNamespace(name="byol", method=built())
    warn = loop._Warner(spec)
    for spread in (0.9, 0.02, 0.01, 0.8, 0.03):
        warn({"spread": spread, "loss": 1.0})
    assert caplog.text.count("the features have collapsed") == 2
    assert "byol: projections" in caplog.text


# -- landmarks ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Colours(lead_common.DenseStage):
    """Features that are the image's own colours, at two resolutions."""

    def init(self, rng, batch, frozen, start):
        parts = self.no_parts(start.num_images, (jax.ShapeDtypeStruct((6,), jnp.float32),))
        return TrainState(jnp.int32(0), aux=lead_compact.Teacher({}, {}, parts))

    def features(self, state, frozen, shown):
        size = lambda n: jax.image.resize(shown, (len(shown), n, n, 3), "linear")
        return size(shown.shape[1] // 4), 0.1 * size(shown.shape[1] // 8)


def squares(rng, count=6):
    """Images of 32 pixels, grey but for a red, a green and a blue square; and the squares' middles."""
    images, middles = np.full((count, 32, 32, 3), 60, np.uint8), np.zeros((count, 3, 2))
    for image, middle in zip(images, middles, strict=True):
        for colour, place in enumerate(rng.choice(4, 3, replace=False)):
            x, y = 4 + 16 * (place % 2) + 4 * rng.integers(0, 2), 4 + 16 * (place // 2) + 4 * rng.integers(0, 2)
            image[y : y + 8, x : x + 8] = 255 * np.eye(3)[colour]
            middle[colour] = x + 3.5, y + 3.5
    return images, middles


def test_a_landmark_is_where_the_image_is_most_like_a_cluster():
    rng = np.random.default_rng(5)
    images, middles = squares(rng)
    view = lead_common.View(32, 1.0)
    stage = Colours(k=4, frame_size=32, steps=0, view=view, clusters=lead_common.Clusters(pixels=64))
    assert [stage.round_at(step) is not None for step in (0, 1)] == [True, False]
    batch = {"image": jnp.asarray(images), "index": jnp.arange(6)}
    state = stage.init(None, batch, {}, Start(None, 6))
    assert not stage.predict(state, {}, batch["image"]).score.any()  # nothing is known yet
    for number in range(stage.round_at(0).passes):
        seen = stage.observe(state, {}, batch, jax.random.key(7))
        bank = Bank(jax.tree.map(lambda x: x[:, None], seen), batch["index"][:, None], jnp.ones((6, 1), bool))
        state = stage.refresh(state, {}, bank, jax.random.key(number))
    found = stage.predict(state, {}, batch["image"])
    np.testing.assert_allclose(found.xy, state.aux.labels.xy, atol=1e-5)
    away = np.linalg.norm(np.asarray(found.xy)[:, :, None] - middles[:, None], axis=-1)  # [image, landmark, colour]
    number = away.mean(0).argmin(0)  # landmark of each colour; the fourth is the background's
    assert len(set(number)) == 3
    assert away[:, number, np.arange(3)].max() < 7  # a cell of the square or next to it
    assert (np.asarray(found.score) > 0.8).all()
    described = stage.describe(state, {}, batch["image"])
    np.testing.assert_allclose(np.sum(described.z * state.aux.parts.centroids, -1), found.score, atol=1e-4)
    _, maps = stage.heatmaps(state, {}, batch["image"])
    assert maps.shape == (6, 8, 8, 4)


def test_likeness_is_the_cosine_of_hypercolumns():
    rng = np.random.default_rng()
    stage = Colours(k=3, frame_size=32, steps=0, view=lead_common.View(32, 1.0))
    maps = tuple(jnp.asarray(rng.random((2, n, n, 3)), jnp.float32) for n in (8, 4))
    centroids = unit(rng.random((3, 6))).astype(np.float32)
    parts = lead_common.Parts(jnp.int32(2), jnp.asarray(centroids), None)
    whole = unit(np.asarray(hypercolumns.materialise(maps, 8)))
    np.testing.assert_allclose(stage._similar(parts, maps), whole @ centroids.T, atol=1e-5)
    narrow = replace(stage, roi=0.5)
    inside = np.asarray(narrow._similar(parts, maps)) > -1
    assert inside[:, 2:6, 2:6].all()
    assert not inside.all()


def test_landmarks_are_labels_for_other_stages():
    labels = Labels(jnp.ones((5, 4, 2)), jnp.ones((5, 4)))
    parts = lead_common.Parts(jnp.int32(2), jnp.ones((4, 6)), labels)
    detector = config_lib.stage(tiny.config("zeroshot"), "detector").method
    for aux in (
        lead.Target({}, {}, 1.0, parts),
        lead.Queue({}, {}, 0, 1.0, parts),
        lead_compact.Teacher({}, {}, parts),
    ):
        start = Start(TrainState(jnp.int32(0), aux=aux), 5)
        assert shared.take_labels(detector, start, 4) is labels


# -- stage 2 --------------------------------------------------------------------------------------------------------


def test_partners_are_neighbours_views_or_both():
    maps = [jnp.arange(4.0).reshape(4, 1, 1, 1), 10 + jnp.arange(4.0).reshape(4, 1, 1, 1)]
    teachers = [(x + 100,) for x in maps]
    want = {"different": [1, 2, 3, 0], "views": [10, 11, 12, 13], "mixed": [10, 2, 12, 0]}
    for pairs, numbers in want.items():
        method = built("compact", pairs=pairs)
        found, (pyramid,) = method._partners(maps, teachers)
        assert found.ravel().tolist() == numbers
        assert pyramid.ravel().tolist() == [100 + n for n in numbers]


def test_the_teacher_stays_and_the_student_learns():
    previous, batch = first_state(built()), batch_of()
    method = built("compact")
    state = first_state(method, previous)
    jax.tree.map(np.testing.assert_array_equal, state.params["encoder"], previous.params["encoder"])
    jax.tree.map(np.testing.assert_array_equal, state.aux.params, previous.params["encoder"])
    taught = lambda teacher: state.replace(aux=state.aux._replace(params=teacher))
    loss = lambda params, teacher: method._aligned(taught(teacher), params, batch, jax.random.key(4))[0]
    student, teacher = jax.jit(jax.grad(loss, (0, 1)))(state.params, state.aux.params)
    assert all(float(jnp.abs(x).max()) == 0 for x in jax.tree.leaves(teacher))
    assert float(jnp.abs(student["encoder"]["conv1"]["kernel"]).max()) > 0
    assert float(jnp.abs(student["head"]["fc2"]["kernel"]).max()) > 0
    new, _ = jax.jit(method.train_step)(state, {}, batch, jax.random.key(4))
    jax.tree.map(np.testing.assert_array_equal, new.aux, state.aux)
    # The head is not part of the features.
    assert [x.shape for x in method.dense(new, {}, batch["image"])] == [(BATCH, 10, 10, 8)]


def test_a_still_copy_has_its_cells_where_the_image_has_them(monkeypatch):
    method = built("compact", objective="equivariance", rotation=0.0, scale=0.0, shift=0.0, bend=0.0)
    asked = {}

    def loss(f, g, truth, valid, **options):
        asked.update(options, truth=truth, valid=valid)
        return jnp.float32(0)

    monkeypatch.setattr(dense_matching, "equivariance", loss)
    nothing = lambda self, params, model_state, seen: (jnp.zeros((BATCH, 8, 8, 8)), model_state)
    monkeypatch.setattr(lead_compact.Compact, "_study", nothing)
    method._equivariant(types.SimpleNamespace(model_state={}), {}, batch_of(), jax.random.key(0))
    np.testing.assert_allclose(asked["truth"], np.tile(coordinates.pixel_grid(8, 8), (BATCH, 1, 1, 1)), atol=1e-4)
    assert asked["valid"].all()
    assert (asked["stride"], asked["scale"]) == (4, 20.0)


def test_stage_2_wants_an_encoder_of_the_same_sizes():
    with pytest.raises(UserError, match=r"needs the network of stage 1, lead\.Byol or lead\.Moco, and no stage"):
        lead_compact.Compact.init(built("compact"), jax.random.key(0), batch_of(), {}, Start(None, BATCH))
    previous = jax.eval_shape(lambda: first_state(built()))
    other = replace(built("compact"), encoder=lead_common.Encoder(10, 8))
    with pytest.raises(UserError, match=r"has none of the same encoder\.depth and encoder\.width"):
        jax.eval_shape(lambda p: first_state(other, p), previous)


# -- a whole run ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_gives_landmarks_and_a_backbone(tmp_path):
    """Without a step, which costs compiling: `every_method_test` takes steps."""
    config = tiny.config("lead", **{"byol.steps": 0, "compact.steps": 0, "data.rows": (16, 8)})
    loop.run(config, tmp_path / "run")
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    found = Detector.load(tmp_path / "run").predict(images)
    assert found.xy.shape == (2, 4, 2)
    assert (found.score > 0).all()
    for stage, taps in (("byol", ("layer1", "layer2", "layer3", "layer4")), ("compact", ("compact",))):
        folder = tmp_path / stage
        source = convert("lead", f"{tmp_path / 'run'}:{stage}", str(folder))
        assert (source["depth"], source["width"]) == (10, 4)
        backbone = Lead(str(folder), image_size=96)
        assert tuple(tap.name for tap in backbone.spec.taps) == taps
        maps = backbone.features(backbone.load(), images)
        finished = runs.load(f"{tmp_path / 'run'}:{stage}")
        want = finished.model.method.dense(finished.model.state, finished.model.frozen, images)
        for name, level, tap in zip(taps, want, backbone.spec.taps, strict=True):
            np.testing.assert_allclose(maps[name], level, atol=1e-4)
            assert level.shape[-1] == tap.channels
    with pytest.raises(UserError, match="of the first stage; convert the second one"):
        print(Lead(str(tmp_path / "byol"), taps=("compact",)).spec)
    with pytest.raises(UserError, match="multiple of 32"):
        Lead(str(tmp_path / "byol"), image_size=50)


def test_a_stage_1_from_published_weights(tmp_path):
    previous = first_state(built())
    given = {"params": previous.params["encoder"], **previous.model_state["encoder"]}
    method = built(start="checkpoint")
    init = lambda frozen, method=method: method.init(jax.random.key(9), batch_of(), frozen, Start(None, BATCH))
    state = jax.jit(init)({"encoder": jax.tree.map(lambda x: x + 1, given)})
    want = jax.tree.map(lambda x: x + 1, given["params"])
    for params in (state.params["encoder"], state.aux.params["encoder"]):
        jax.tree.map(np.testing.assert_array_equal, params, want)
    with pytest.raises(UserError, match=r"set encoder\.depth and encoder\.width to its own"):
        jax.eval_shape(init, {"encoder": jax.tree.map(lambda x: jnp.zeros((3, *x.shape)), given)})
    with pytest.raises(UserError, match=r"config\.weights\.resnet10 is empty"):
        method.frozen()
    assert method.weight_kinds == {"resnet10"}
