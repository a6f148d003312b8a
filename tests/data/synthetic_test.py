"""The built-in data set against NumPy ray marching, its own mirror image and the statistics that it promises."""

import doctest
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from uld_jax.data import open_source, synthetic
from uld_jax.errors import UserError

SIZE = 48
NAMES = synthetic.LANDMARKS


@pytest.fixture(scope="module")
def source():
    return synthetic.Synthetic("train", rows=200, frame_size=SIZE)


@pytest.fixture(scope="module")
def scenes():
    """Two hundred scenes of no split."""
    keys = synthetic.row_keys(7, "train", np.arange(200, dtype=np.uint32))
    return jax.jit(jax.vmap(synthetic.sample_scene))(keys)


# Compiled in a hurry: other programs than the data set's own.
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def render():
    """Two scenes at a time: another batch size than the data set's."""
    return jax.jit(jax.vmap(lambda scene: synthetic.render(scene, SIZE)), compiler_options=QUICK)


@pytest.fixture(scope="module")
def look():
    """Eight scenes: world, landmarks in head coordinates, in pixels, and whether they are visible."""

    def one(scene):
        world = synthetic._world(scene)
        return world, synthetic.landmarks_3d(scene), *synthetic._annotation(scene, world, SIZE)

    return jax.jit(jax.vmap(one), compiler_options=QUICK)


def pick(scenes, *rows):
    return jax.tree.map(lambda a: a[jnp.asarray(rows)], scenes)


def posed(scenes, yaw, bald=True):
    """The scenes turned to `yaw` with no other rotation, and with no hair unless `bald` is False."""
    zero = jnp.zeros_like(scenes.pitch)
    hair = scenes.hair.at[:, synthetic.HAIR.index("volume")].set(0.0) if bald else scenes.hair
    return scenes._replace(yaw=zero + jnp.asarray(yaw, jnp.float32), pitch=zero, roll=zero, hair=hair)


def at(*names):
    return [NAMES.index(name) for name in names]


def test_a_row_depends_on_seed_split_and_number_alone(source):
    fewer = synthetic.Synthetic("train", rows=5, frame_size=SIZE)
    np.testing.assert_array_equal(fewer.images(), source.images()[:5])
    np.testing.assert_array_equal(fewer.landmarks, source.landmarks[:5])
    np.testing.assert_array_equal(fewer.visible, source.visible[:5])
    for other in (synthetic.Synthetic("test", 5, frame_size=SIZE), synthetic.Synthetic("train", 5, 1, SIZE)):
        assert (other.images() != fewer.images()).any((1, 2, 3)).all()
        assert other.fingerprint != fewer.fingerprint
    assert fewer.fingerprint == synthetic.Synthetic("train", rows=5, frame_size=SIZE).fingerprint != source.fingerprint


def test_images_do_not_depend_on_the_batch(source, render):
    keys = synthetic.row_keys(0, "train", np.array([33, 4], np.uint32))
    image, landmarks, visible = render(jax.vmap(synthetic.sample_scene)(keys))
    rows = [33, 4]
    # another program may round otherwise: by a grey level, and more on a pixel whose ray just misses the head
    apart = np.abs(np.asarray(image, int) - source.images(rows))
    assert (apart > 1).mean() < 1e-3
    np.testing.assert_allclose(landmarks, source.landmarks[rows], atol=1e-3)
    np.testing.assert_array_equal(visible, source.visible[rows])


def test_source_is_complete(source):
    assert len(source) == 200
    assert source.names[35] == "train/000035.png"
    assert source.spec.protocol == "synthetic_20_box"
    expected = {"images": ((200, SIZE, SIZE, 3), "uint8"), "landmarks": ((200, 20, 2), "float32")}
    expected["visible"] = (200, 20), "bool"
    for name, found in (("images", source.images()), ("landmarks", source.landmarks), ("visible", source.visible)):
        assert (found.shape, found.dtype.name) == expected[name]
    np.testing.assert_array_equal(source.image(20), source.images([3, 20])[1])
    assert np.isfinite(source.landmarks).all()
    np.testing.assert_array_equal(source.frame_maps, np.tile([1.0, 1.0, 0.0, 0.0], (200, 1)))
    np.testing.assert_array_equal(source.file_sizes, SIZE)
    assert sorted(source.columns) == ["pitch", "roll", "yaw"]
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.image(7), source.image(7))
    assert copy.columns == source.columns


def test_names_and_mirror_agree():
    swap = {"left": "right", "right": "left"}
    for i, name in enumerate(NAMES):
        side, _, rest = name.partition("_")
        assert NAMES[synthetic.MIRROR[i]] == (f"{swap[side]}_{rest}" if side in swap else name)


def test_mirrored_scene_gives_the_mirrored_picture(scenes, render):
    scene = pick(scenes, 3)
    image, landmarks, visible = render(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), scene, flip(scene)))
    apart = np.abs(np.asarray(image[0], int) - np.asarray(image[1], int)[:, ::-1])
    assert (apart > 2).mean() < 2e-3
    assert np.asarray(image[0]).std() > 20
    expected = np.asarray(landmarks[0])[list(synthetic.MIRROR)]
    expected[:, 0] = SIZE - 1 - expected[:, 0]
    np.testing.assert_allclose(landmarks[1], expected, atol=1e-3)
    np.testing.assert_array_equal(visible[1], np.asarray(visible[0])[list(synthetic.MIRROR)])


def flip(scene):
    return jax.vmap(synthetic.mirror)(scene)


def march(center, form, xy):
    """First z, coming from the camera, at which rays at xy [n,2] are in any ellipsoid; NaN where in none."""
    found = np.full(len(xy), np.nan)
    for i, (x, y) in enumerate(xy):
        z = np.arange(2.5, -2.5, -1e-3)
        p = np.stack([np.full_like(z, x), np.full_like(z, y), z], -1)[:, None] - center  # [z, P, 3]
        inside = (np.einsum("zpi,pij,zpj->zp", p, form, p) <= 1.0).any(1)
        if inside.any():
            found[i] = z[inside.argmax()]
    return found


def test_depth_equals_ray_marching(scenes, look):
    worlds, *_ = look(pick(scenes, *range(8)))
    world = jax.tree.map(lambda a: a[3], worlds)
    xy = np.random.default_rng(0).uniform([-1.2, -1.4], [1.2, 1.6], (40, 2)).astype(np.float32)
    depth = np.asarray(synthetic.depth(world.solids, jnp.asarray(xy))).max(0)
    expected = march(*(np.asarray(a, np.float64) for a in world.solids), xy)
    assert 10 < np.isfinite(expected).sum() < 40
    np.testing.assert_array_equal(np.isfinite(depth), np.isfinite(expected))
    hit = np.isfinite(expected)
    np.testing.assert_allclose(depth[hit], expected[hit], atol=2e-3)


def test_visibility_equals_ray_marching(scenes, look):
    """A visible landmark is the first surface on its ray; one that lies well behind it is hidden."""
    worlds, points, _, visible = look(posed(pick(scenes, *range(8)), [-80, -60, -40, -20, 10, 35, 55, 75]))
    behind = []
    for i, turn in enumerate(np.asarray(worlds.turn, np.float64)):
        view = np.asarray(points[i], np.float64) @ turn.T
        front = march(np.asarray(worlds.solids.center[i], float), np.asarray(worlds.solids.form[i], float), view[:, :2])
        behind.append(np.where(np.isnan(front), 0.0, front - view[:, 2]))  # a miss: exactly on the outline
    behind, visible = np.array(behind), np.asarray(visible)
    assert (behind > -0.01).all(), "landmarks lie on or in the head, never in front of it"
    assert (behind[visible] < 0.04).all()
    assert 60 < visible.sum() < 140


def test_far_side_is_hidden_in_profile_and_all_is_seen_from_the_front(scenes, look):
    _, _, xy, visible = look(posed(pick(scenes, *range(8)), [80, 80, 80, -80, -80, -80, 0, 0]))
    xy, visible = np.asarray(xy), np.asarray(visible)
    near = at("right_ear", "right_eye_outer", "right_brow_outer", "right_jaw")
    far = at("left_ear", "left_eye_outer", "left_jaw", "left_mouth_corner")
    for turned, order in ((visible[:3], range(20)), (visible[3:6], synthetic.MIRROR)):
        assert turned[:, [order[i] for i in near]].all()
        assert not turned[:, [order[i] for i in far]].any()
    assert visible[6:][:, [i for i in range(20) if i not in at("right_ear", "left_ear")]].all()
    # positive yaw turns the nose to the image's right, beyond the ear that is seen
    tip, ears = at("nose_tip")[0], at("right_ear", "left_ear")
    assert (xy[:3, tip, 0] > xy[:3, ears[0], 0] + 0.2 * SIZE).all()
    assert (xy[3:6, tip, 0] < xy[3:6, ears[1], 0] - 0.2 * SIZE).all()
    # from the front: eyes over nose over mouth over chin, and the person's right on the image's left
    rows = [xy[6:, at(name)[0], 1] for name in ("right_eye_inner", "nose_tip", "upper_lip", "lower_lip", "chin")]
    assert (np.diff(rows, axis=0) > 0).all()
    assert (xy[6:, at("right_eye_inner")[0], 0] < xy[6:, at("left_eye_inner")[0], 0]).all()


def test_landmarks_sit_on_the_features_in_the_picture(scenes, render):
    """Other irises change the picture between the eyes' corners, other lips around the mouth, and nowhere else."""
    names = synthetic.EXPRESSION
    still = jnp.zeros((2, len(names))).at[:, names.index("eye_open")].set(1.0)
    scene = posed(pick(scenes, 5, 5), [0.0, 35.0])._replace(expression=still)
    image, landmarks, _ = render(scene)

    def changed(color):
        """The pixels [n,2] of both views that another colour changes much."""
        other, _, _ = render(scene._replace(colors=scene.colors.at[:, color].set(jnp.array([0.1, 1.0, 0.1]))))
        change = np.abs(np.asarray(other, float) - np.asarray(image, float)).sum(-1) > 40
        return [np.argwhere(one)[:, ::-1] for one in change]

    for xy, irises, lips in zip(np.asarray(landmarks), changed(3), changed(1), strict=True):
        right, left = (xy[at(f"{side}_eye_outer", f"{side}_eye_inner")].mean(0) for side in ("right", "left"))
        apart = np.linalg.norm(irises[:, None] - np.stack([right, left]), axis=-1)
        assert apart.min(1).max() < 2.0  # each pixel lies in an eye,
        assert apart.min(0).max() < 1.5  # and each eye has one
        mouth = xy[at("right_mouth_corner", "left_mouth_corner", "upper_lip", "lower_lip")]
        assert (lips > mouth.min(0) - 1.5).all()
        assert (lips < mouth.max(0) + 1.5).all()
        assert np.ptp(lips[:, 0]) > 0.6 * np.ptp(mouth[:, 0])


def test_landmarks_scale_with_the_image(source):
    keys = synthetic.row_keys(0, "train", np.arange(16, dtype=np.uint32))
    pose = {name: np.float32(value) for name, value in synthetic.POSE.items()}
    *_, large, seen, _ = synthetic._programs(16, SIZE)[0](keys, pose, np.float32(3 * SIZE))
    np.testing.assert_allclose((source.landmarks[:16] + 0.5) * 3 - 0.5, large, atol=1e-3)
    np.testing.assert_array_equal(source.visible[:16], seen)


def test_pose_follows_the_promised_distributions():
    keys = synthetic.row_keys(3, "train", np.arange(2000, dtype=np.uint32))

    @jax.jit
    @jax.vmap
    def pose(key):
        s = synthetic.sample_scene(key)
        return s.yaw, s.pitch, s.roll, s.shift[0], s.shift[1], jnp.log(s.size)

    yaw, *others = (np.asarray(a) for a in pose(keys))
    assert scipy.stats.kstest(yaw, "uniform", (-90, 180)).pvalue > 1e-3
    for values, deviation in zip(others, (9.0, 7.0, 0.04, 0.04, 0.07), strict=True):
        assert abs(values.mean()) < 4 * deviation / 2000**0.5
        np.testing.assert_allclose(values.std(), deviation, rtol=0.07)
        assert np.abs(values).max() <= 2.65 * deviation


def test_pose_options_reach_the_scenes(source):
    still = synthetic.Synthetic("train", rows=4, frame_size=SIZE, yaw=5.0, pitch=0.0)
    assert np.abs(np.array(still.columns["yaw"], float)).max() <= 5.0
    assert not np.array(still.columns["pitch"], float).any()
    assert still.fingerprint != synthetic.Synthetic("train", rows=4, frame_size=SIZE).fingerprint
    assert np.abs(np.array(source.columns["yaw"], float)).max() > 45.0


def test_a_mean_shape_is_no_answer(source):
    """Pose varies so much that the best constant guess errs by more than a tenth of the box around the points."""
    xy = source.landmarks
    box = np.sqrt(np.prod(np.ptp(xy, axis=1), -1))
    error = np.linalg.norm(xy - xy.mean(0), axis=-1).mean(1) / box
    assert 0.10 < error.mean() < 0.40
    assert 0.45 < source.visible.mean() < 0.85
    assert ((xy > -0.5) & (xy < SIZE - 0.5)).all(-1).mean() > 0.995  # the head stays in the picture


def test_background_is_textured(source):
    """The corners hold no flat colour by which the head could be cut out."""
    corners = np.concatenate([source.images()[:, :10, :10], source.images()[:, :10, -10:]], 1).reshape(
        len(source), -1, 3
    )
    assert (corners.std(1).mean(-1) > 6).mean() > 0.9


def test_everything_is_float32_under_x64():
    with jax.enable_x64(True):
        made = jax.make_jaxpr(lambda key: synthetic.render(synthetic.sample_scene(key), 8))(jax.random.key(0))
    assert {v.dtype.name for v in made.out_avals} == {"uint8", "float32", "bool"}
    assert not re.findall(r"f64\[\d", str(made))  # scalars aside, which are the bounds of random numbers


def test_export_is_read_as_a_folder(tmp_path, source):
    synthetic.export(tmp_path, rows={"train": 3, "test": 2}, frame_size=SIZE)
    folder = open_source("folder", "train", data_dir=tmp_path, frame_size=SIZE)
    assert list(folder.names) == source.names[:3]
    np.testing.assert_array_equal(folder.images(), source.images()[:3])
    np.testing.assert_allclose(folder.landmarks, source.landmarks[:3], atol=1e-3)
    np.testing.assert_array_equal(folder.visible, source.visible[:3])
    assert folder.columns["yaw"] == source.columns["yaw"][:3]
    assert (tmp_path / "test" / "000001.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "no split 'valid'; use one of train, test"),
        ({"rows": 0}, "data.rows is 0"),
        ({"frame_size": 0}, "data.frame_size is 0"),
        ({"jaw": 3}, "no option 'jaw'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        synthetic.Synthetic(**arguments)


def test_examples_in_docstrings_run():
    assert doctest.testmod(synthetic).failed == 0
