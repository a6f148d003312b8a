"""The extended variant of self-training against loops in NumPy and the published code's arithmetic."""

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
    images_of_groups,
    placed_one_by_one,
    second_params,
    state_of,
    unit,
)
from uld_jax.bank import Labels
from uld_jax.errors import UserError
from uld_jax.hyperparameters import replace
from uld_jax.method import Start, TrainState
from uld_jax.methods import self_training_extended as extended
from uld_jax.methods.self_training import Contrast
from uld_jax.methods.self_training_common import Merged


@pytest.mark.parametrize("hinge", ["squared", "distance"])
def test_keypoints_are_apart_from_others_of_their_view_and_from_random_cells(hinge):
    rng = np.random.default_rng(16)
    maps, cells = rng.normal(size=(5, 16, 16, 4)), rng.integers(0, 16, (5, 9, 2))
    at, there = rng.integers(0, 16, (5, M, 2)), rng.random((5, M)) < 0.6
    there[0], there[1, :3] = np.arange(M) < 2, True  # too few, and enough
    maps = unit(maps).astype(np.float32)
    read = lambda b, cell: maps[b, cell[1], cell[0]].astype(np.float64)
    described = np.stack([[read(b, cell) for cell in at[b]] for b in range(5)]).astype(np.float32)
    values = []
    for b in range(5):
        for i in np.flatnonzero(there[b]) if there[b].sum() > 2 else ():
            others = [at[b, j] for j in np.flatnonzero(there[b]) if j > i] + list(cells[b])
            for other in others:
                if ((at[b, i] - other) ** 2).sum() > 5.7**2:
                    square = ((read(b, at[b, i]) - read(b, other)) ** 2).sum()
                    values.append(max(0, 0.8 - square) if hinge == "squared" else max(0, 0.8 - np.sqrt(square)) ** 2)
    loss = Contrast(hinge=hinge)
    arrays = (jnp.asarray(x, jnp.float32) for x in (maps, described, at))
    found = extended.within_views(loss, *arrays, jnp.asarray(there), jnp.asarray(cells, jnp.float32), 5.7)
    assert found[1] == len(values) > 0
    assert float(found[0]) == pytest.approx(np.sum(values), rel=1e-3)


def test_random_cells_lie_on_the_map_and_differ_from_view_to_view():
    cells = np.asarray(extended.random_cells(jax.random.split(jax.random.key(0), 3), 50, (8, 8), jnp.float32))
    assert cells.shape == (3, 50, 2)
    assert (cells.min(), cells.max()) == (1, 7)
    assert (cells[0] != cells[1]).any()


def test_keypoints_that_stand_for_a_landmark_are_kept_in_images_with_several():
    mask = jnp.array([[True, True, True, False], [True, True, True, True]])
    slots = jnp.array([[2, 0, -1], [3, -1, -1]])
    assert extended.kept(mask, slots).tolist() == [[True, False, True, False], [False] * 4]


def test_a_black_square_hides_half_of_the_views():
    views = jax.vmap(extended.cut_out, (0, None, None))(
        jax.random.split(jax.random.key(0), 60), jnp.ones((16, 16, 3)), 0.25
    )
    hidden = np.asarray(views == 0).all(-1).sum((1, 2))
    assert set(hidden) == {0, 16}
    assert 15 < (hidden > 0).sum() < 45


def test_images_placed_one_batch_after_the_other_have_the_labels_of_the_whole_bank():
    bank, near = images_of_groups(np.random.default_rng(12))
    turned = jnp.asarray(near(bank.values.mask.shape), jnp.float32)
    bank = bank._replace(values=extended.Seen(*bank.values[:3], turned))
    stage = built("stage1", "extended")
    whole, parts = placed_one_by_one(stage, state_of(stage, bank.index.size), bank)
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    assert 0 < float(whole.counts.labelled) < float(whole.counts.keypoints)


def test_stage_2_wants_the_extended_stage_1_and_as_many_landmarks():
    batch = {"image": jnp.zeros((2, SIDE, SIDE, 3), jnp.uint8), "index": jnp.arange(2)}
    labels = Labels(jnp.ones((4, M, 2)), jnp.ones((4, M)))
    before = lambda first: Start(first, 4, before="stage1" if first else "")
    init = lambda stage, first: stage.init(jax.random.key(0), batch, {}, before(first))
    with pytest.raises(
        UserError, match=r"needs the landmarks of stage 1 of the extended variant, .* no stage comes before it"
    ):
        init(built("stage2", "extended"), None)
    with pytest.raises(
        UserError, match=r"needs the landmarks of .*self_training_extended\.Correspondence, and the stage before"
    ):
        init(built("stage2", "extended"), state_of(built("stage1"), 4, labels))
    first = state_of(built("stage1", "extended"), 4, labels)
    with pytest.raises(UserError, match=r"left 4 landmarks of 4 images, not 5 of 4; use the same number"):
        init(replace(built("stage2", "extended"), k=5), first)
    assert init(built("stage2", "extended"), first).aux.flips.shape == (4,)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(UserError, match="mirroring"):
        built("stage2", "extended", mirroring="shifted")


def test_the_extended_variant_finds_k_landmarks_and_their_mirrored_partners():
    """Groups 2i and 2i + 1: a keypoint of one looks in the mirrored image like a keypoint of the other."""
    rng = np.random.default_rng(9)
    k, size = 4, 16
    groups = unit(rng.normal(size=(k, size)))
    stage = built("stage1", "extended", restarts=3)
    assert stage.k == k
    bank, truth = bank_of_groups(rng, groups, 60)
    partner = np.array([1, 0, 3, 2])
    turned = np.where((truth >= 0)[..., None], groups[partner[truth]] + 0.05 * rng.normal(size=(*truth.shape, size)), 0)
    turned = jnp.asarray(unit(turned + 1e-9)[:, None], jnp.float32)
    bank = bank._replace(values=extended.Seen(*bank.values[:3], turned))
    state = jax.jit(stage.refresh)(state_of(stage, 60), {}, bank, jax.random.key(0))
    aux = state.aux
    there, xy = np.asarray(aux.landmarks.score) > 0, np.asarray(aux.landmarks.xy)
    assert there.sum() == (truth >= 0).sum()
    name = np.array([np.unique(np.round((xy[there[:, c], c, 0] - 2) / 5)).item() for c in range(k)]).astype(int)
    assert sorted(name) == list(range(k))
    np.testing.assert_array_equal(name[np.asarray(aux.flips)], partner[name])
    # What is trained on has clusters of its own, with a mirrored cluster for each label.
    labelled = np.asarray(aux.labels.score) > 0
    groups_of = np.round((np.asarray(aux.labels.xy)[..., 0] - 2) / 5).astype(int)
    mirrored = np.asarray(aux.mirrored)
    for n, m in zip(*np.nonzero(labelled), strict=True):
        other = groups_of[labelled[:, mirrored[n, m]], mirrored[n, m]]
        assert (other == partner[groups_of[n, m]]).all()


@pytest.mark.slow
def test_the_extended_variant_trains_from_end_to_end(tmp_path):
    from uld_jax.engine import loop

    short = {"stage1.steps": 4, "stage1.warmup": 2, "stage1.round_every": 2, "stage2.steps": 2}
    config = tiny.config("self_training", more=",variant=extended", eval_every=0, save_every=0, log_every=1, **short)
    found = loop.run(config, tmp_path)
    assert found.report["landmarks"] == config.k
    assert found.report["found_share"] == 1  # no visibility threshold


PARTNERS = np.array([1, 0, 3, 0])  # of landmarks in the mirror: 2 says 3, and 3 says 0


def published_map(image_maps, mirror_maps):
    """Maps [K,h,w] of a photo and of its mirror image to the mean, as the TPAMI code has it, in PyTorch."""
    torch = pytest.importorskip("torch")
    one, other = (torch.tensor(np.asarray(x).copy()) for x in (image_maps, mirror_maps))
    back = other.flip(2)[torch.tensor(PARTNERS)]
    moved = back.clone()
    moved[:, :, 1:] = back[:, :, :-1]
    return ((one + moved) * 0.5).numpy()


@pytest.mark.slow
def test_a_published_checkpoint_of_the_extended_variant_is_evaluated_as_its_code_does():
    rng = np.random.default_rng(12)
    images = jnp.asarray(rng.integers(0, 256, (6, SIDE, SIDE, 3), np.uint8))
    exact, given = built("stage2", "extended"), built("stage2", "extended", start="checkpoint")
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), second_params(given))
    aux = Merged(jnp.int32(0), jnp.ones(4, bool), None, jnp.asarray(PARTNERS))
    state = TrainState(step=jnp.int32(0), params=params, aux=aux)
    seen = given._geometry.look(images)
    own, mirrored = (
        np.moveaxis(np.asarray(given._net.apply({"params": params}, x, train=False).logits), -1, 1)
        for x in (seen, seen[:, :, ::-1])
    )
    maps = np.stack([published_map(*pair) for pair in zip(own, mirrored, strict=True)])
    cells = np.stack(np.unravel_index(maps.reshape(6, 4, -1).argmax(-1), maps.shape[2:])[::-1], -1)
    want = np.asarray(given._geometry.to_frame(jnp.asarray(cells, jnp.float32)))
    found = {name: s.predict(state, {}, images).xy for name, s in (("given", given), ("exact", exact))}
    np.testing.assert_allclose(found["given"], want, atol=1e-4)
    assert (np.abs(found["exact"] - want).max(-1) > 0.5).any()
    asked = replace(exact, mirroring="published").predict(state, {}, images).xy
    np.testing.assert_array_equal(asked, found["given"])
    unasked = replace(given, mirroring="exact").predict(state, {}, images).xy
    np.testing.assert_array_equal(unasked, found["exact"])


@pytest.mark.parametrize(("mirroring", "beside"), [("exact", 0.0), ("published", 0.5)])
def test_labels_of_mirrored_views_are_those_of_the_published_code(monkeypatch, mirroring, beside):
    """Point by point, as there: a mirrored point with number k becomes one of number PARTNERS[k]."""
    rng = np.random.default_rng(13)
    stage = built("stage2", "extended", mirroring=mirroring, rotation=0.0, scale=0.0, shift=0.0, colour=0.0, cutout=0.0)
    stage = replace(stage, head_rate=0.0)
    side, sigma = stage.view.image_size // stage.net.downsample, stage.sigma
    logits = rng.normal(size=(side, side, 4)).astype(np.float32)
    monkeypatch.setattr(extended.Landmarks, "_net", property(lambda self: Fixed(logits)))
    xy = rng.uniform(8, SIDE - 8, (1, 4, 2)).astype(np.float32)
    score = np.array([[0.0, 1.0, 1.0, 1.0]], np.float32)  # of which 1 and 3 both become 0
    cells = np.asarray(stage._geometry.to_cells(jnp.asarray(xy), stage._geometry.still(1)))[0]

    def loss(flipped):
        y, x = np.mgrid[:side, :side]
        maps, labelled = np.zeros((side, side, 4)), np.zeros(4, bool)
        for k, (u, v) in enumerate(cells):
            if not score[0, k]:
                continue
            u, number = (side - 1 - u + beside, PARTNERS[k]) if flipped else (u, k)
            maps[:, :, number] += np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma**2))
            labelled[number] = True
        return 0.5 * np.mean(((logits - maps) ** 2).mean((0, 1)) * labelled)

    params = {"w": jnp.zeros(())}
    aux = Merged(jnp.int32(0), jnp.ones(4, bool), Labels(xy, score), jnp.asarray(PARTNERS))
    state = TrainState(step=jnp.int32(0), params=params, opt_state=stage._optimizer.init(params), aux=aux)
    batch = {"image": jnp.zeros((1, SIDE, SIDE, 3), jnp.uint8), "index": jnp.zeros(1, jnp.int32)}
    step = jax.jit(stage.train_step)
    found = np.array([step(state, {}, batch, jax.random.key(n))[1]["loss"] for n in range(12)])
    want = np.array([loss(False), loss(True)])
    which = np.abs(found[:, None] - want).argmin(1)
    np.testing.assert_allclose(found, want[which], rtol=1e-4)
    assert set(which) == {0, 1}
    assert abs(want[0] - want[1]) > 1e-3
