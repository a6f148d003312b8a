"""ZeroShot on patterns whose places are known, and the detector's geometry through a network that finds dots."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from uld_jax import config as config_lib
from uld_jax import sharding
from uld_jax.bank import Bank, Labels, image_table
from uld_jax.data.resident import ResidentReader
from uld_jax.data.specs import Source
from uld_jax.engine import loop, runs
from uld_jax.engine.rounds import Rounds
from uld_jax.engine.step import FirstState
from uld_jax.errors import UserError
from uld_jax.hyperparameters import build, replace
from uld_jax.method import Round, Start, TrainState
from uld_jax.methods import heatmap_detector, zeroshot
from uld_jax.models.fan import FanOutput
from uld_jax.ops import coordinates, keypoints

FRAME, PATTERNS, IMAGES, KEY = 64, 3, 24, jax.random.key(0)
BACKBONE = (("cell", 4.0), ("offsets", (-4.0, 0.0, 4.0)), ("scales", (1.0,)))


def clusterer(**changes):
    options = dict(k=12, frame_size=FRAME, backbone_kwargs=BACKBONE, position=0.0, roi=0.9, pixels=100)
    return build(zeroshot.ZeroShot, **options | changes)


def scenes(count, seed=0):
    """Images [count,F,F,3] with three coloured patterns on an even ramp, and the pattern's centres [count,3,2].

    Each pattern wanders on its own, by whole cells of the backbone's grid, within a part of the frame of its own.
    """
    rng = np.random.default_rng(seed)
    images = np.broadcast_to(np.arange(90, 90 + FRAME, dtype=np.uint8)[:, None], (count, FRAME, FRAME, 3)).copy()
    y, x = np.mgrid[-9:9, -9:9] + 0.5
    inside = np.hypot(x, y) < 8
    drawings = [inside & (x > 0), inside & (x + y < -2), inside & ((x - y) % 8 < 4)]
    homes = np.array([[16, 18], [46, 18], [32, 46]])
    places = homes + 2 * rng.integers(-3, 4, (count, PATTERNS, 2))
    for image, centres in zip(images, places, strict=True):
        for channel, (drawing, (u, v)) in enumerate(zip(drawings, centres, strict=True)):
            colour = np.full(3, 250)
            colour[channel] = 190
            image[v - 9 : v + 9, u - 9 : u + 9][drawing] = colour
    return images, places - 0.5  # the middle of 18 pixels


class Patterns(Source):
    """`scenes` in memory."""

    def __init__(self):
        self.names, self.frame_size, self.pixels = [str(i) for i in range(IMAGES)], FRAME, scenes(IMAGES)[0]

    def image(self, row):
        return self.pixels[row]


def bank_of(seen, index):
    """A pass of one batch [B,...] of nothing but images."""
    return jax.tree.map(lambda x: x[:, None], Bank(seen, index, jnp.ones(len(index), bool)))


def found(method, images, **tables):
    """The state after all passes over images [N,F,F,3], all in one batch, and tables of these."""
    batch = {"image": jnp.asarray(images), "index": jnp.arange(len(images), dtype=jnp.int32), **tables}
    state = method.init(jax.random.key(0), batch, {}, Start(None, len(images)))
    observe, refresh = jax.jit(method.observe), jax.jit(method.refresh)
    for i in range(method.round_at(0).passes):
        seen = observe(state, {}, batch, jax.random.key(i))
        state = refresh(state, {}, bank_of(seen, batch["index"]), jax.random.key(i))
    return state


@pytest.mark.parametrize("place", ["mean", "exemplar"])
def test_landmarks_move_with_the_patterns(place):
    method = clusterer(place=place, sharpness=100.0)
    images, places = scenes(IMAGES)
    state = found(method, images)
    assert int(state.aux.round) == 2
    others, moved = scenes(IMAGES, seed=1)
    for xy, truth in (
        (state.aux.labels.xy, places),
        (jax.jit(method.predict)(state, {}, jnp.asarray(others)).xy, moved),  # images that it never saw
    ):
        # Where in a pattern a landmark lies is open; that it stays there is not.
        away = np.asarray(xy)[:, :, None] - truth[:, None]  # [N,K,patterns,2]
        wander = np.sqrt(away.var(0).sum(-1))  # [K,patterns]
        assert (wander.min(0) < 0.5).all(), wander.round(2)
        assert len(set(np.argmin(wander, 0).tolist())) == PATTERNS  # each has one of its own


def test_labels_are_what_prediction_finds():
    method = clusterer(k=4, candidates=12, factors=3)
    images, _ = scenes(IMAGES)
    state = found(method, images)
    predicted = jax.jit(method.predict)(state, {}, jnp.asarray(images))
    np.testing.assert_allclose(predicted.xy, state.aux.labels.xy, atol=0.02)
    np.testing.assert_allclose(predicted.score, state.aux.labels.score, atol=1e-4)
    assert (predicted.score > 0).all()
    assert state.aux.labels.xy.shape == (IMAGES, 4, 2)


def test_fewer_pixels_of_an_image_are_clustered_where_all_would_be_too_many():
    method = clusterer(k=4, candidates=12, factors=3)
    images, _ = scenes(IMAGES)
    batch = {"image": jnp.asarray(images), "index": jnp.arange(IMAGES, dtype=jnp.int32)}
    state = method.init(jax.random.key(0), batch, {}, Start(None, IMAGES))
    width = state.aux.centroids.shape[1]
    few = replace(method, bank_gib=5.5 * IMAGES * width * 4 / 2**30)
    all_of_them, some = jax.jit(method.observe)(state, {}, batch, KEY), jax.jit(few.observe)(state, {}, batch, KEY)
    assert all_of_them.descriptors.shape == (IMAGES, method.pixels, width)
    np.testing.assert_array_equal(some.descriptors, all_of_them.descriptors[:, :5])
    np.testing.assert_array_equal(some.cells, all_of_them.cells[:, :5])
    state = found(few, images)
    predicted = jax.jit(few.predict)(state, {}, jnp.asarray(images))
    np.testing.assert_allclose(predicted.xy, state.aux.labels.xy, atol=0.02)
    np.testing.assert_allclose(predicted.score, state.aux.labels.score, atol=1e-4)
    with pytest.raises(UserError, match=r"bank_gib is 0"):
        replace(method, bank_gib=0.0)


def described(method, images, places):
    """A state whose centroids are the descriptors at the given cells of the first image."""
    batch = {"image": jnp.asarray(images), "index": jnp.arange(len(images), dtype=jnp.int32)}
    state = method.init(jax.random.key(0), batch, {}, Start(None, len(images)))
    features = jax.jit(method._describe)({}, batch["image"])[0]
    centroids = features[places[:, 1], places[:, 0]]
    return state.replace(aux=state.aux._replace(round=jnp.int32(1), centroids=centroids))


def test_an_exemplar_is_the_nearest_pixel_and_the_mean_is_softer():
    images, places = scenes(5)
    cells = np.round((places[0] - 0.5) / 2).astype(int)  # cell i of stride 2 is centred on pixel 2 i + 0.5
    exemplar = clusterer(k=PATTERNS, place="exemplar")
    state = described(exemplar, images, cells)
    prediction = jax.jit(exemplar.predict)(state, {}, jnp.asarray(images))
    expected = (2 * cells + 0.5)[None] + places - places[:1]
    np.testing.assert_allclose(prediction.xy, expected, atol=1e-3)
    np.testing.assert_allclose(prediction.score, 1, atol=1e-3)  # the very same descriptor

    sharp = clusterer(k=PATTERNS, place="mean", sharpness=1e4)
    np.testing.assert_allclose(jax.jit(sharp.predict)(state, {}, jnp.asarray(images)).xy, expected, atol=0.1)
    blunt = clusterer(k=PATTERNS, place="mean", sharpness=0.0)
    middle = np.full_like(expected, (FRAME - 1) / 2)  # of the region of interest
    np.testing.assert_allclose(jax.jit(blunt.predict)(state, {}, jnp.asarray(images)).xy, middle, atol=1e-3)


def test_landmarks_stay_in_the_region_of_interest():
    images, places = scenes(5)
    narrow = clusterer(k=PATTERNS, place="exemplar", roi=0.25)
    state = described(narrow, images, np.round((places[0] - 0.5) / 2).astype(int))
    xy = np.asarray(jax.jit(narrow.predict)(state, {}, jnp.asarray(images)).xy)
    assert np.abs(xy - (FRAME - 1) / 2).max() <= 0.25 * FRAME / 2
    # So do the pixels that are clustered, which are counted in cells.
    state = state.replace(aux=state.aux._replace(round=jnp.int32(0)))
    seen = jax.jit(narrow.observe)(state, {}, {"image": jnp.asarray(images), "index": jnp.arange(5)}, KEY)
    assert seen.cells.shape == (5, narrow.pixels, 2)
    drawn = 2 * np.asarray(seen.cells) + 0.5
    assert np.abs(drawn - (FRAME - 1) / 2).max() <= 0.25 * FRAME / 2
    assert drawn.std() > 0.25 * FRAME / 2 * 0.4  # and fill it
    assert not np.array_equal(drawn[0], drawn[1])


def test_training_images_are_looked_at_in_their_boxes():
    method = clusterer(k=4, region="box", roi=0.5, place="exemplar")
    assert method.side_tables() == {"boxes": ()}
    assert not clusterer().side_tables()
    images, places = scenes(IMAGES)
    # Around the first pattern, which is outside the central half, and beyond the frame in the last image.
    centre, radius = places[:, 0], np.array([8.0, 6.0])
    boxes = np.concatenate([centre - radius, centre + radius], -1).astype(np.float32)
    boxes[-1] = [-10, 4, 12, 90]
    mine = boxes[::-1]
    batch = {"image": jnp.asarray(images), "index": jnp.arange(IMAGES)[::-1], "boxes": jnp.asarray(mine)}
    state = method.init(jax.random.key(0), batch, {}, Start(None, IMAGES))
    drawn = 2 * np.asarray(jax.jit(method.observe)(state, {}, batch, KEY).cells) + 0.5
    within = np.clip(mine, -0.5, FRAME - 0.5)
    assert (drawn >= within[:, None, :2] - 1e-4).all()
    assert (drawn <= within[:, None, 2:] + 1e-4).all()
    np.testing.assert_allclose(drawn.min(1), within[:, :2], atol=1.5)  # and fill them
    np.testing.assert_allclose(drawn.max(1), within[:, 2:], atol=1.5)

    state = found(method, images, boxes=jnp.asarray(boxes))
    xy = np.asarray(state.aux.labels.xy)
    assert (xy >= boxes[:, None, :2]).all()
    assert (xy <= boxes[:, None, 2:]).all()
    # There is no box where it predicts; the central half is all there is.
    predicted = np.asarray(jax.jit(method.predict)(state, {}, batch["image"]).xy)
    assert np.abs(predicted - (FRAME - 1) / 2).max() <= FRAME / 4


def stripes(count, seed=0):
    """Images with a striped disc that wanders about the middle and a small striped patch in a corner; the disc."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:FRAME, :FRAME]
    centre = FRAME / 2 - 0.5 + rng.uniform(-6, 6, (count, 2, 1, 1))
    disc = np.hypot(x - centre[:, 0], y - centre[:, 1]) < 18
    patch = np.broadcast_to((x < 10) & (y < 10), disc.shape)
    wave = 60 * np.sin(x * 1.3 + rng.uniform(0, 6, (count, 1, 1)))
    grey = np.where(disc | patch, 128 + wave, 100 + 0.3 * y)
    return np.repeat(grey[..., None], 3, -1).astype(np.uint8), disc


def test_the_foreground_is_found_clustered_and_shown():
    method = clusterer(
        k=3, region="foreground", roi=1.0, backbone_kwargs=(("cell", 3.0), ("offsets", (0.0,)), ("scales", (1.0,)))
    )
    images, disc = stripes(IMAGES)
    assert method.round_at(0) == Round(3)
    assert method.round_at(1) is None
    state = found(method, images)
    assert int(state.aux.round) == 2
    described = jax.jit(method._describe)({}, jnp.asarray(images))
    inside = np.asarray(jax.jit(method._inside)(state.aux, described))
    truth = disc.reshape(IMAGES, FRAME // 2, 2, FRAME // 2, 2).mean((2, 4)) > 0.5
    overlap = (inside & truth).sum((1, 2)) / (inside | truth).sum((1, 2))
    assert overlap.min() > 0.6, overlap
    assert not inside[:, :4, :4].any()  # the patch is as striped, but smaller

    # What is clustered and what is found is in the region.
    batch = {"image": jnp.asarray(images), "index": jnp.arange(IMAGES)}
    before = state.replace(aux=state.aux._replace(round=jnp.int32(0)))
    seen = jax.jit(method.observe)(before, {}, batch, KEY)
    cells = np.floor(np.asarray(seen.cells) + 0.5).astype(int)
    assert np.take_along_axis(inside.reshape(IMAGES, -1), cells[..., 1] * FRAME // 2 + cells[..., 0], 1).all()
    counts = np.bincount((cells[0, :, 1] * FRAME // 2 + cells[0, :, 0]), minlength=inside[0].size)
    assert (counts > 0).sum() > 0.5 * method.pixels  # many cells, not few often
    predicted = jax.jit(method.predict)(state, {}, batch["image"])
    np.testing.assert_allclose(predicted.xy, state.aux.labels.xy, atol=0.05)
    exemplar = replace(method, place="exemplar")
    cells = (np.asarray(jax.jit(exemplar.predict)(state, {}, batch["image"]).xy) / 2).astype(int)
    assert np.take_along_axis(inside.reshape(IMAGES, -1), cells[..., 1] * FRAME // 2 + cells[..., 0], 1).all()

    sheet = np.asarray(jax.jit(method.pictures)(state, {}, batch["image"][:2])["region"])
    assert sheet.shape == (2, 3, FRAME, FRAME, 3)
    assert sheet.dtype == np.uint8
    np.testing.assert_array_equal(sheet[:, 0], images[:2])
    grown = inside[:2].repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(sheet[:, 2][grown], images[:2][grown])
    assert (sheet[:, 2][~grown] < 0.3 * images[:2][~grown]).all()
    assert (sheet[:, 1][grown] >= 128).all()
    assert clusterer().pictures(state, {}, batch["image"]) == {}


def test_an_image_without_foreground_is_looked_at_as_a_whole():
    method = clusterer(k=3, region="foreground", roi=0.5)
    images, _ = stripes(2)
    batch = {"image": jnp.asarray(images), "index": jnp.arange(2)}
    state = method.init(jax.random.key(0), batch, {}, Start(None, 2))  # nothing is known yet
    described = jax.jit(method._describe)({}, batch["image"])
    inside = np.asarray(method._inside(state.aux, described))
    assert inside.any((1, 2)).all()
    np.testing.assert_array_equal(inside, np.broadcast_to(clusterer(roi=0.5)._inside(None, described), inside.shape))


@pytest.mark.parametrize("place", ["mean", "exemplar"])
def test_the_papers_random_pixels(place):
    """Written as the paper has it: P pixels, each to its nearest centroid, of each cluster the nearest pixel."""
    method = clusterer(k=10, dense=False, place=place, pixels=25, sharpness=50.0)
    images, places = scenes(6)
    rng = np.random.default_rng(0)
    state = described(method, images, np.round((places[0] - 0.5) / 2).astype(int))
    few = np.asarray(state.aux.centroids)
    centroids = np.concatenate([few, rng.permuted(np.repeat(few, 3, 0)[:7], axis=1)])
    state = state.replace(aux=state.aux._replace(centroids=jnp.asarray(centroids)))
    predict = jax.jit(method.predict)
    prediction = predict(state, {}, jnp.asarray(images))

    maps = jax.jit(method._describe)({}, jnp.asarray(images))
    drawn = method._draw(zeroshot._content_keys(KEY, jnp.asarray(images)), 25, state.aux, maps)
    x = np.asarray(keypoints.sample(maps, drawn), np.float64)
    square = ((x[:, :, None] - centroids) ** 2).sum(-1)
    for i, k in np.ndindex(6, 10):
        if place == "exemplar":
            mine = np.flatnonzero(square[i].argmin(-1) == k)
            if not len(mine):
                assert prediction.score[i, k] == 0
                continue
            best = mine[square[i, mine, k].argmin()]
            xy, least = drawn[i, best], square[i, best, k]
        else:
            weight = np.exp(-50 * square[i, :, k])
            xy, least = weight @ drawn[i] / weight.sum(), square[i, :, k].min()
        np.testing.assert_allclose(prediction.xy[i, k], 2 * xy + 0.5, atol=2e-2)
        np.testing.assert_allclose(prediction.score[i, k], np.exp(-least), atol=1e-4)
    missing = np.asarray(prediction.score == 0)
    assert missing.any() == (not missing.all() and place == "exemplar")
    # The pixels depend on the image and the run's key, and on nothing else.
    alone = predict(state, {}, jnp.asarray(images[::-1].copy()))
    np.testing.assert_allclose(alone.xy[::-1], prediction.xy, atol=1e-3)
    assert len({tuple(np.asarray(d[0])) for d in drawn}) == 6
    other = state.aux._replace(key=jax.random.key_data(jax.random.key(1)))
    assert np.abs(predict(state.replace(aux=other), {}, jnp.asarray(images)).xy - prediction.xy).max() > 1


def test_the_runs_seed_reaches_the_pixels_that_are_clustered_and_looked_at():
    """Through the passes of a run: its key is all that differs."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    reader = ResidentReader(Patterns(), mesh, 8)
    method = clusterer(k=4, dense=False, place="exemplar", pixels=20)
    passes = Rounds(method, reader, mesh)
    first = [FirstState(method, reader, mesh, {}, jax.random.key(seed)).state(None) for seed in (0, 1)]
    banks = jax.device_get([passes.collect(first[0], {}, jax.random.key(seed)) for seed in (0, 0, 1)])
    jax.tree.map(np.testing.assert_array_equal, banks[0], banks[1])
    assert (np.abs(banks[0].values.cells - banks[2].values.cells).max((-1, -2)) > 1).all()  # of every image
    # Batches of another size draw the same for an image.
    smaller = Rounds(method, ResidentReader(Patterns(), mesh, 4), mesh).collect(first[0], {}, jax.random.key(0))
    by_row = lambda bank: np.asarray(image_table(bank, bank.values.cells, IMAGES))
    np.testing.assert_array_equal(by_row(smaller), by_row(banks[0]))
    # Two passes of one step, and two steps, draw anew.
    seen = [jax.device_get(passes.run(state, {}, jax.random.key(4), Round(2))).aux for state in first]
    np.testing.assert_array_equal(seen[0].centroids, seen[1].centroids)
    assert (seen[0].labels.xy != seen[1].labels.xy).any()  # where an image is looked at is by its first key
    again = jax.device_get(passes.run(first[0], {}, jax.random.key(5), Round(2))).aux
    assert np.abs(again.centroids - seen[0].centroids).max() > 1e-3


def test_landmarks_that_random_pixels_miss_have_no_label():
    method = clusterer(k=12, dense=False, place="exemplar", pixels=20)
    images, _ = scenes(IMAGES)
    state = found(method, images)
    predicted = jax.jit(method.predict)(state, {}, jnp.asarray(images))
    np.testing.assert_allclose(state.aux.labels.score, predicted.score, atol=1e-5)
    there = np.asarray(predicted.score > 0)
    assert 0.3 < there.mean() < 1
    np.testing.assert_allclose(state.aux.labels.xy[there], predicted.xy[there], atol=1e-3)


def test_the_place_in_a_descriptor_has_the_weight_it_is_given():
    images, _ = scenes(2)
    describe = lambda method: np.asarray(jax.jit(method._describe)({}, jnp.asarray(images)))
    plain, placed = (describe(clusterer(position=p)) for p in (0.0, 3.0))
    np.testing.assert_array_equal(plain[..., :-2], placed[..., :-2])
    assert not plain[..., -2:].any()
    step = 3.0 * 2 / FRAME  # `position` from side to side, a cell is 2 pixels
    np.testing.assert_allclose(np.diff(placed[..., -2], axis=2), step, atol=1e-5)
    np.testing.assert_allclose(np.diff(placed[..., -1], axis=1), step, atol=1e-5)
    length = np.linalg.norm(plain[..., :-2], axis=-1)
    assert length.max() == pytest.approx(1, abs=1e-4)
    two = clusterer(position=0.0, backbone_kwargs=(*BACKBONE[:2], ("scales", (1.0, 2.0))))
    assert np.linalg.norm(describe(two), axis=-1).max() == pytest.approx(1, abs=1e-4)


def candidates(count=400, seed=0):
    """A made table [N,M,2] in pixels: candidates 1, 3, 4 and 6 follow the image's pose, a shift; the others nothing."""
    rng = np.random.default_rng(seed)
    steady = [1, 3, 4, 6]
    xy = rng.uniform(8, FRAME - 8, (count, 8, 2))
    home = rng.uniform(20, FRAME - 20, (len(steady), 2))
    pose = rng.normal(0, 4, (count, 1, 2))
    clean = home + pose
    xy[:, steady] = clean + rng.normal(0, 0.7, clean.shape)
    return steady, xy.astype(np.float32), clean


@pytest.mark.parametrize("denoise", [False, True])
def test_steady_candidates_are_chosen_over_those_that_wander(denoise):
    method = clusterer(k=4, candidates=8, factors=2, denoise=denoise)  # as many factors as a shift has
    steady, xy, clean = candidates()
    there = np.random.default_rng(1).random(len(xy)) < 0.9
    choose = jax.jit(method._choose)
    reading = choose(jnp.asarray(xy[:, None]), jnp.asarray(there[:, None]))
    chosen = np.asarray(reading.chosen)
    assert sorted(chosen.tolist()) == steady
    # Images that lack a candidate count for nothing.
    lost = choose(jnp.asarray(np.where(there[:, None, None], xy, np.nan)[:, None]), jnp.asarray(there[:, None]))
    jax.tree.map(np.testing.assert_array_equal, lost, reading)

    score = np.random.default_rng(2).random((len(xy), 8)).astype(np.float32)
    landmarks, scores = jax.jit(method._read)(reading, jnp.asarray(xy), jnp.asarray(score))
    np.testing.assert_array_equal(scores, score[:, chosen])
    order = [steady.index(c) for c in chosen]
    error = np.sqrt(np.mean((np.asarray(landmarks) - clean[:, order]) ** 2))
    raw = np.sqrt(np.mean((xy[:, chosen] - clean[:, order]) ** 2))
    if denoise:
        assert error < 0.6 * raw  # nearer to where the pose puts them than where they were found
    else:
        np.testing.assert_allclose(landmarks, xy[:, chosen], atol=1e-3)


@pytest.mark.slow
def test_a_run_shows_its_foreground_and_is_read_again(tmp_path):
    changes = {"stages": ("zeroshot",), "zeroshot.region": "foreground", "zeroshot.roi": 1.0, "zeroshot.dense": False}
    loop.run(tiny.config(**changes), tmp_path)
    assert list((tmp_path / "pictures").glob("*_zeroshot_region.png"))
    aux = runs.load(str(tmp_path)).model.state.aux
    assert int(aux.round) == 2
    np.testing.assert_allclose(np.linalg.norm(aux.foreground.direction), 1, atol=1e-5)


def test_bad_values_of_zeroshot_are_refused():
    with pytest.raises(UserError, match=r"place is 'nearest'; use mean or exemplar"):
        clusterer(place="nearest")
    with pytest.raises(UserError, match=r"candidates is 5; use 0, or at least k = 12"):
        clusterer(candidates=5)
    with pytest.raises(UserError, match=r"pixels is 0; use 1 or more"):
        clusterer(pixels=0)
    with pytest.raises(UserError, match=r"region is 'mask'; use none, box or foreground"):
        clusterer(region="mask")
    with pytest.raises(UserError, match=r"set candidates=0 or place=mean"):
        clusterer(dense=False, place="exemplar", candidates=20)
    with pytest.raises(UserError, match=r"zeroshot\.backbone is 'gradient\.Nothing'"):
        clusterer(backbone="gradient.Nothing").frozen()
    with pytest.raises(UserError, match=r"zeroshot has nothing to train; set config\.zeroshot\.steps=0"):
        config_lib.stage(tiny.config(**{"zeroshot.steps": 1}), "zeroshot")
    with pytest.raises(NotImplementedError, match="ZeroShot has nothing to train"):
        clusterer().train_step(None, {}, {}, None)


# The detector. Landmark k is a dot in colour channel k: a "network" that returns its view as heatmaps finds it, and all
# else is geometry.

DOTS = 3


class DotFinder:
    """Stands in for FAN: the brightness of channel k is heatmap k, at the heatmap's resolution."""

    def __init__(self, method):
        self._cell, self._method = method.net.downsample, method

    def apply(self, variables, views, train, mutable=None):
        batch, side = views.shape[0], views.shape[1] // self._cell
        maps = views.reshape(batch, side, self._cell, side, self._cell, 3).mean((2, 4))
        if self._method.loss == "position":
            # The softmax over the cells is then the brightness itself.
            maps = heatmap_detector.TEMPERATURE * jnp.log(jnp.maximum(maps, 1e-7))
        out = FanOutput(maps + 0 * variables["params"]["w"], maps, {})
        return (out, {"batch_stats": variables["batch_stats"]}) if mutable else out


@pytest.fixture
def finder(monkeypatch):
    monkeypatch.setattr(heatmap_detector.HeatmapDetector, "_net", property(DotFinder))


def detector(**changes):
    options = dict(k=DOTS, frame_size=FRAME, steps=10, image_size=48, downsample=2, width=16, depth=2)
    return build(heatmap_detector.HeatmapDetector, **options | dict(standardise=False, colour=0.0, warmup=0) | changes)


def dots(count=6, seed=0, sigma=1.6):
    """Black images with one dot in each channel, and the dots [count,3,2] in pixels of the frame."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(24, FRAME - 25, (count, DOTS, 2))
    grid = coordinates.pixel_grid(FRAME, FRAME)
    square = np.sum((grid[None, :, :, None] - xy[:, None, None]) ** 2, -1)
    return np.round(255 * np.exp(-square / (2 * sigma**2))).astype(np.uint8), xy.astype(np.float32)


def started(method, labels):
    params = {"w": jnp.zeros(())}
    return TrainState(
        step=jnp.int32(0),
        params=params,
        model_state={"batch_stats": {}},
        opt_state=method._optimizer.init(params),
        aux=heatmap_detector.Refined(jnp.int32(0), labels, method._view_key(KEY)),
    )


def no_labels(count):
    return Labels(jnp.zeros((count, DOTS, 2)), jnp.zeros((count, DOTS)))


WARPS = dict(rotation=20.0, scale=0.15, shift=0.05)


@pytest.mark.parametrize("loss", ["position", "heatmap"])
@pytest.mark.parametrize("changes", [{}, {"zoom": 0.8}, {"predict_warps": 4, "zoom": 0.9}, {"downsample": 4}])
def test_predictions_are_in_pixels_of_the_frame(finder, loss, changes):
    images, xy = dots(sigma=3.0)
    method = detector(loss=loss, **WARPS | changes)
    prediction = jax.jit(method.predict)(started(method, no_labels(len(xy))), {}, jnp.asarray(images))
    # A peak is found between cells up to a tenth of one, an expected place almost exactly.
    cell = FRAME * method.view.zoom * method.net.downsample / method.view.image_size
    np.testing.assert_allclose(prediction.xy, xy, atol=0.05 * cell if loss == "position" else 0.15 * cell)
    assert (prediction.score > 0).all()
    assert (prediction.score <= 1).all()


def test_a_runs_seed_reaches_the_views_of_its_predictions(finder):
    images = jnp.asarray(dots()[0])
    method = detector(predict_warps=2, **WARPS)
    state = started(method, no_labels(len(images)))
    other = state.replace(aux=state.aux._replace(key=method._view_key(jax.random.key(1))))
    one, again, two = (jax.jit(method.predict)(s, {}, images).xy for s in (state, state, other))
    np.testing.assert_array_equal(one, again)
    assert 1e-3 < np.abs(one - two).max() < 0.4
    assert detector()._view_key(KEY) is None  # nothing is drawn where it looks once


@pytest.mark.parametrize("bend", [0.0, 0.02])
def test_new_labels_come_back_from_their_warps(finder, bend):
    images, xy = dots()
    method = detector(relabel_warps=3, bend=bend, **WARPS)
    state = started(method, no_labels(len(xy)))
    batch = {"image": jnp.asarray(images), "index": jnp.arange(len(xy), dtype=jnp.int32)[::-1]}
    seen = jax.jit(method.observe)(state, {}, batch, KEY)
    np.testing.assert_allclose(seen.xy, xy, atol=0.2)
    new = jax.jit(method.refresh)(state, {}, bank_of(seen, batch["index"]), jax.random.key(0))
    assert int(new.aux.round) == 1
    np.testing.assert_allclose(new.aux.labels.xy, xy[::-1], atol=0.2)
    np.testing.assert_array_equal(new.aux.labels.score, seen.score[::-1])
    # Another pass looks through other warps.
    again = jax.jit(method.observe)(new, {}, batch, jax.random.key(1))
    assert 0 < np.abs(again.xy - seen.xy).max() < 0.4


@pytest.mark.parametrize("loss", ["position", "heatmap"])
def test_a_step_warps_image_and_labels_alike(finder, loss):
    images, xy = dots(sigma=3.0)
    method = detector(loss=loss, bend=0.02, zoom=0.9, **WARPS)
    batch = {"image": jnp.asarray(images), "index": jnp.arange(len(xy), dtype=jnp.int32)}
    step = jax.jit(method.train_step)

    def distance(labels):
        return float(step(started(method, labels), {}, batch, jax.random.key(3))[1]["distance_px"])

    right = Labels(jnp.asarray(xy), jnp.ones((len(xy), DOTS)))
    assert distance(right) < 0.3
    # Beside the truth by 3 pixels of the frame: by as much, on average over warps that change the size a little.
    assert distance(right._replace(xy=right.xy + jnp.array([3.0, 0.0]))) == pytest.approx(3, rel=0.25)
    # One that is missing, and one that lies outside every view, count for nothing.
    wrong = right.xy.at[:, 0].add(7.0).at[:, 1].set(-500.0)
    assert distance(Labels(wrong, right.score.at[:, 0].set(0.0))) < 0.3


def test_labels_are_looked_up_by_row(finder):
    images, xy = dots()
    method = detector(**WARPS)
    rows = np.array([9, 2, 4, 0, 7, 5], np.int32)
    table = np.full((10, DOTS, 2), 5.0, np.float32)
    table[rows] = xy
    state = started(method, Labels(jnp.asarray(table), jnp.ones((10, DOTS))))
    batch = {"image": jnp.asarray(images), "index": jnp.asarray(rows)}
    assert jax.jit(method.train_step)(state, {}, batch, jax.random.key(0))[1]["distance_px"] < 0.3


def test_a_standardised_view_does_not_know_exposure():
    views = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    method = detector(standardise=True)
    shown = method._shown(views)
    np.testing.assert_allclose(shown.mean((1, 2, 3)), 0, atol=1e-5)
    darker = method._shown(0.9 * views + 0.05)
    np.testing.assert_allclose(darker, shown, atol=0.1)
    np.testing.assert_allclose(method._shown(jnp.full((1, 4, 4, 3), 0.3)), 0, atol=1e-4)  # a flat view stays flat
    np.testing.assert_array_equal(detector(standardise=False)._shown(views), views)


def test_passes_come_between_the_rounds():
    method = detector(steps=9, round_every=3)
    due = lambda method: {step: round.passes for step in range(11) if (round := method.round_at(step))}
    assert due(method) == {3: 1, 6: 1}
    assert due(replace(method, labels_from="self")) == {0: 1, 3: 1, 6: 1}
    assert not due(detector(steps=9, round_every=0))


def test_the_detector_says_what_it_starts_from():
    method, batch = detector(), {"image": None, "index": None}
    start = lambda method, previous, rows=8: jax.eval_shape(
        lambda key: method.init(key, batch, {}, Start(previous, rows)), jax.random.key(0)
    )
    labels = no_labels(8)
    stage = TrainState(step=jnp.int32(0), aux=types.SimpleNamespace(labels=labels))
    made = start(method, stage)
    assert made.aux.labels.xy.shape == (8, DOTS, 2)
    with pytest.raises(
        UserError, match=r"needs the labels of .*such as zeroshot\.ZeroShot, .*or set config\.init_from"
    ):
        start(method, None)
    with pytest.raises(UserError, match="left 3 landmarks of 8 images, not 3 of 9"):
        start(method, stage, rows=9)
    with pytest.raises(UserError, match="left 3 landmarks of 8 images, not 4 of 8"):
        start(replace(method, k=4), stage)
    own = replace(method, labels_from="self")
    with pytest.raises(UserError, match="needs the network of a detector of the same k"):
        start(own, stage)
    # With a network of the same shape it goes on from that, on other images: the labels are its own to make.
    previous = method.init(jax.random.key(0), batch, {}, Start(stage, 8))
    state = own.init(jax.random.key(1), batch, {}, Start(previous, 5))
    jax.tree.map(np.testing.assert_array_equal, state.params, previous.params)
    assert state.aux.labels.xy.shape == (5, DOTS, 2)
    assert not state.aux.labels.score.any()
    with pytest.raises(UserError, match=r"the same k, net\.width and"):
        start(replace(own, width=8), previous)
    for field, value, known in (("loss", "l1", "position or heatmap"), ("labels_from", "x", "previous or self")):
        with pytest.raises(UserError, match=rf"{field} is '{value}'; use {known}"):
            detector(**{field: value})
