"""C3's swaps, flow and losses; what every method must hold is in every_method_test.py."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests import pascal, tiny
from uld_jax import config as config_lib
from uld_jax.errors import UserError
from uld_jax.hyperparameters import replace
from uld_jax.method import Start, TrainState
from uld_jax.methods import c3, c3_common
from uld_jax.methods.c3_common import Net, Seen, Terms
from uld_jax.models.c3_net import Decoder
from uld_jax.ops import correlation

B = 4


def built(stage: str, more: str = "", **changes):
    """A stage of the tiny preset."""
    return replace(config_lib.stage(tiny.config("c3", more=more), stage).method, **changes)


def images(seed: int = 0, count: int = B, side: int = 40):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, 256, (count, side, side, 3)), jnp.uint8)


@pytest.fixture(scope="module")
def joint():
    """The stage, its first state with a flow, and frozen weights."""
    paired, flow, method = built("paired"), built("flow"), built("joint")
    batch = {"image": images(), "index": jnp.arange(B)}
    state = jax.jit(lambda key: paired.init(key, batch, {}, Start(None, B)))(jax.random.key(0))
    state = jax.jit(lambda key, s: flow.init(key, batch, {}, Start(s, B)))(jax.random.key(1), state)
    return method, method.init(jax.random.key(2), batch, {}, Start(state, B)), method.frozen()


def test_a_decoder_doubles_and_halves():
    maps = [jax.ShapeDtypeStruct((1, 4, 4, c), jnp.float32) for c in (24, 3)]
    decoder = Decoder(side=32, width=24, least=8)
    found, drawn = jax.eval_shape(lambda k, *m: decoder.init_with_output(k, *m, train=False), jax.random.key(0), *maps)
    assert found.shape == (1, 32, 32, 3)
    widths = [drawn["params"][f"conv_{i}"]["kernel"].shape[2:] for i in range(1, 9)]
    assert widths == [(27, 24), (24, 24), (24, 12), (12, 12), (12, 8), (8, 8), (8, 8), (8, 8)]
    with pytest.raises(UserError, match="24 pixels from 4 cells"):
        jax.eval_shape(lambda k, *m: Decoder(side=24).init(k, *m, train=False), jax.random.key(0), *maps)


def test_gaussians_are_as_wide_as_imms_on_16_cells_and_a_cell_on_fewer():
    middle = jnp.zeros((1, 1, 2))
    for side, width in ((16, 0.1), (32, 0.1), (8, 2 / 7), (4, 2 / 3)):
        line = np.linspace(-1, 1, side)
        want = np.exp(-(line[:, None] ** 2 + line[None] ** 2) / width**2)
        np.testing.assert_allclose(Net().gaussians(middle, side)[0, :, :, 0], want, rtol=1e-4, atol=1e-6)


def test_the_first_divisor_is_the_first_term_itself_and_then_a_running_mean():
    terms, values = Terms.first(6, jnp.float32), np.random.default_rng(0).uniform(0.1, 3, (5, 6)).astype(np.float32)
    weight, mean = 0, 0
    for i, each in enumerate(values):
        terms, divisors = terms.updated(jnp.asarray(each))
        weight, mean = 0.99 * weight + 0.01, 0.99 * mean + 0.01 * each
        np.testing.assert_allclose(divisors, mean / weight, rtol=1e-4)
        assert int(terms.count) == i + 1
    # Nothing flows back through the divisors.
    slope = jax.grad(lambda x: jnp.sum(x / Terms.first(6, jnp.float32).updated(x)[1]))(jnp.asarray(values[0]))
    np.testing.assert_allclose(slope, 1 / values[0], rtol=1e-4)


def cycle_with_constants(method, state, frozen, seen, made, params, weights=(1.0, 1.0)):
    """Eq. 1 and 2 as the paper writes them, for images of the first swap that are given."""
    state_of = state.model_state
    found, _ = method.encode(params, state_of, seen, train=True)
    again, _ = method.encode(params, state_of, made, train=True)
    # The image at i has the appearance of i and the pose of j: p'_i is that of the image at j.
    other = np.array([1, 0, 3, 2])
    back, _ = method.decode(params, state_of, again.appearance, again.pose[other], train=True)
    cycle, _, _ = method.distance(frozen, state.aux.cycle, back, seen)
    invariance = jnp.mean(jnp.sum((again.pose[other] - found.pose) ** 2, (1, 2)))
    return weights[0] * cycle + weights[1] * invariance


def test_nothing_flows_back_through_the_first_swap(joint):
    method, state, frozen = joint
    method = replace(method, equivariance=0.0)
    seen = method.look(images(1))
    params = {name: state.params[name] for name in c3_common.PARTS}
    found, _ = method.encode(params, state.model_state, seen, train=True)
    other = np.array([1, 0, 3, 2])
    made, _ = method.decode(params, state.model_state, found.appearance, found.pose[other], train=True)

    def ours(params):
        return method._loss(params, state, frozen, seen, None, None)[0]

    def papers(params):
        return cycle_with_constants(method, state, frozen, seen, made, params)

    (a, own), (b, want) = (jax.jit(jax.value_and_grad(f))(params) for f in (ours, papers))
    assert float(a) == pytest.approx(float(b), rel=1e-4)
    largest = max(float(jnp.max(abs(x))) for x in jax.tree.leaves(want))
    assert largest > 0
    for x, y in zip(jax.tree.leaves(own), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-2 * largest)


@pytest.mark.slow
def test_the_first_decoders_activations_are_not_kept(joint):
    """The compiled program needs no more memory than one that gets the images of the first swap as constants."""
    method, state, frozen = joint
    method = replace(method, equivariance=0.0)
    seen = method.look(images(1, 64))
    params = {name: state.params[name] for name in c3_common.PARTS}
    stopped = lambda p, seen: method._loss(p, state, frozen, seen, None, None)[0]

    def kept(p, seen):
        stop, jax.lax.stop_gradient = jax.lax.stop_gradient, lambda x: x
        try:
            return method._loss(p, state, frozen, seen, None, None)[0]
        finally:
            jax.lax.stop_gradient = stop

    size = lambda f: jax.jit(jax.grad(f)).lower(params, seen).compile().memory_analysis().temp_size_in_bytes
    assert size(stopped) < 0.85 * size(kept)


def translated(cells: int):
    """Features of pairs of images, the second one the first moved by so many cells to the right; and both landmarks.

    What leaves on the right comes back on the left, so that every cell has a match.
    """
    rng = np.random.default_rng(3)
    a = rng.normal(size=(2, 8, 8, 32)).astype(np.float32)
    b = np.roll(a, cells, 2)
    place = rng.uniform(-0.3, 0.1, (2, 5, 2)).astype(np.float32)
    moved = place + np.float32([2 * cells / 8, 0])
    pair = lambda x, y: jnp.asarray(np.stack([x, y], 1).reshape(-1, *x.shape[1:]))
    return pair(a, b), pair(place, moved)


@pytest.mark.parametrize("mode", correlation.MODES)
def test_landmarks_that_follow_a_known_flow_cost_nothing(joint, mode):
    method = replace(joint[0], warp=mode)
    features, xy = translated(2)
    of = lambda xy, f: method.equivariance({"flow": {}}, Seen(f, None, xy, None))
    value, metrics = of(xy, features)
    if mode in ("hard", "st"):  # the scores of cosines are too flat for the others
        assert float(metrics["carried"]) < 0.02 * method.view.image_size / 8
        assert float(value) < 0.02
        # The other way round the landmarks are four cells away.
        wrong, far = of(c3.pairs_swapped(xy), features)
        assert float(wrong) > 1
        assert float(far["carried"]) > 3 * method.view.image_size / 8
    assert np.isfinite(float(value))
    identical = jnp.repeat(features[::2], 2, 0), jnp.repeat(xy[::2], 2, 0)
    if mode == "hard":
        assert float(of(identical[1], identical[0])[0]) == pytest.approx(0, abs=1e-6)


def test_points_are_carried_from_b_to_a(joint):
    """Image b is image a moved to the right by 8 pixels of the view: its points are 8 to the left in a."""
    method, state, _ = joint
    method = replace(method, zoom=1.0, image_size=64, cells=8, output_stride=8)
    rng = np.random.default_rng(5)
    noise = np.repeat(np.repeat(rng.integers(0, 256, (2, 8, 12, 3)), 8, 1), 8, 2).astype(np.uint8)
    a, b = noise[:, :, 32:], np.concatenate([noise[:, :, 24:32], noise[:, :, 32:-8]], 2)
    a, b = (jnp.asarray(jax.image.resize(x, (2, 40, 40, 3), "nearest")) for x in (a, b))
    points = jnp.asarray(rng.uniform(14, 26, (2, 6, 2)), jnp.float32)
    state = TrainState(jnp.int32(0), state.params | {"flow": {}}, state.model_state)
    found = jax.jit(method.carry)(state, {}, a, b, points)
    off = np.asarray(found - points) * 64 / 40
    assert np.median(np.abs(off - [-8, 0]), (0, 1)).max() < 4.5  # half a cell


def test_collapse_is_told(joint):
    method = joint[0]
    rng = np.random.default_rng(0)
    photos, spread = rng.normal(size=(2, 8, 8, 3)), rng.uniform(-0.5, 0.5, (2, 4, 2))
    numbers = lambda xy, made: {k: float(v) for k, v in c3_common.health(xy, made, photos).items()}
    assert method.warning(numbers(spread, photos)) is None
    assert "at one point" in method.warning(numbers(0 * spread + 0.3, photos))
    assert "one colour" in method.warning(numbers(spread, 0 * photos + 0.3))
    assert method.warning(numbers(0 * spread, photos) | {"step": 100}) is None  # all landmarks start in the middle
    assert method.warning(numbers(0 * spread, photos) | {"step": 500})


def test_rows_of_the_papers_table_are_configs():
    weights = {}
    for cell in ("none", "cycle", "flow", "both"):
        config = tiny.config("c3", more=f",cell={cell}")
        losses = config.joint.losses
        weights[cell] = losses.cycle, losses.invariance, losses.equivariance, losses.paired
        assert ("flow" in config.stages) == (cell in ("flow", "both"))
    assert weights == {"none": (0, 0, 0, 1), "cycle": (1, 1, 0, 0), "flow": (0, 0, 1, 1), "both": (1, 1, 1, 0)}
    with pytest.raises(UserError, match="cell is 'all'; use both, cycle, flow, none"):
        tiny.config("c3", more=",cell=all")


def test_settings_that_cannot_work_are_named(joint):
    method, state, _ = joint
    batch = {"image": images(count=3), "index": jnp.arange(3)}
    with pytest.raises(UserError, match="batches of 3; use an even number"):
        method.init(jax.random.key(0), batch, {}, Start(state, 3, stage="joint"))
    batch = {"image": images(), "index": jnp.arange(B)}
    without = TrainState(jnp.int32(0), {n: state.params[n] for n in c3_common.PARTS}, state.model_state)
    with pytest.raises(UserError, match=r"joint\.losses\.equivariance needs a flow"):
        method.init(jax.random.key(0), batch, {}, Start(without, B, stage="joint"))
    other = replace(method, width=4)
    with pytest.raises(UserError, match=r"none of the same k, view\.image_size and net"):
        other.init(jax.random.key(0), batch, {}, Start(state, B, stage="joint"))
    with pytest.raises(UserError, match=r"a power of two times net\.cells"):
        replace(method, cells=6)


def test_published_networks_of_neighbourhood_consensus_replace_features_and_flow():
    method = built("flow", start="ncnet", form="full")
    batch = {"image": images(), "index": jnp.arange(B)}
    begin = lambda frozen, key: method.init(jax.random.key(key), batch, frozen, Start(None, B))
    drawn = begin({}, 1)
    whole = drawn.params["backbone"], drawn.model_state["backbone"]["batch_stats"]
    features = [{k: v for k, v in part.items() if not k.startswith("layer4")} for part in whole]
    given = {"features": dict(zip(("params", "batch_stats"), features)), "consensus": {"params": drawn.params["flow"]}}
    given = jax.tree.map(lambda x: x + 1, given)
    state = begin({"ncnet": given}, 2)
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    same(state.params["flow"], given["consensus"]["params"])
    for name, part in given["features"]["params"].items():
        same(state.params["backbone"][name], part)
    assert state.params["backbone"].keys() == drawn.params["backbone"].keys()
    with pytest.raises(UserError, match=r"needs net\.depth=101, matcher\.form=full"):
        replace(method, form="separable").init(jax.random.key(0), batch, {"ncnet": given}, Start(None, B))


def write_moved_objects(folder):
    """PF-Pascal's layout: each category is a constellation of coloured dots, which every photo shows elsewhere."""
    (folder / pascal.FOLDER).mkdir(parents=True)
    (folder / "image_pairs").mkdir()
    rng, points, side, count = np.random.default_rng(0), {}, 96, 6
    for number in pascal.CLASSES:
        at, colours = rng.uniform(-20, 20, (8, 2)), rng.integers(40, 256, (8, 3))
        for image in range(count):
            points[number, image] = here = at + rng.uniform(24, side - 24, 2)
            drawn = Image.new("RGB", (side, side), (0, 0, 0))
            pen = ImageDraw.Draw(drawn)
            for (x, y), colour in zip(here, colours, strict=True):
                pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=tuple(colour.tolist()))
            drawn.save(folder / pascal.name_of(number, image), quality=95)
    pairs = [(n, a, b) for n in pascal.CLASSES for a in range(count) for b in range(count) if a != b]
    names = lambda n, a, b: f"{pascal.name_of(n, a)},{pascal.name_of(n, b)},{n}"
    cells = lambda *row: ",".join([names(*row), *pascal.cells(points[row[:2]]), *pascal.cells(points[row[0], row[2]])])
    for split, more in (("train", ",flip"), ("val", ",flip"), ("test", ",XA,YA,XB,YB")):
        lines = [cells(*row) if split == "test" else names(*row) + ",0" for row in pairs]
        (folder / f"image_pairs/{split}_pairs.csv").write_text("\n".join([pascal.HEADER + more, *lines]))
    return folder


@pytest.mark.slow
def test_the_weak_loss_falls_and_points_go_where_they_belong(tmp_path, uld):
    photos, run = write_moved_objects(tmp_path / "photos"), tmp_path / "run"
    changes = ["--config.data.frame_size=64", "--config.flow.image_size=64", "--config.flow.steps=80"]
    changes += ["--config.stages=('flow',)", "--config.flow.stem=16", "--config.log_every=10", "--config.eval_every=0"]
    name = "configs/c3.py:dataset=pf_pascal,task=alignment,preset=tiny"
    uld("train", f"--config={tiny.ROOT / name}", f"--config.data_dir={photos}", f"--workdir={run}", *changes)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.05
    uld("align", f"--workdir={run}")
    report = json.loads((run / "eval/test/align/flow/pf_pascal_ncnet.json").read_text())
    assert report["all"]["pck"] > report["all"]["identity"] + 20
