"""Pictures against their own mirror image, and what is visible in them."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from tests.data.synthetic.heads import SIZE, at, flip, pick, posed
from uld_jax.data import synthetic


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


def test_everything_is_float32_under_x64():
    with jax.enable_x64(True):
        made = jax.make_jaxpr(lambda key: synthetic.render(synthetic.sample_scene(key), 8))(jax.random.key(0))
    assert {v.dtype.name for v in made.out_avals} == {"uint8", "float32", "bool"}
    assert not re.findall(r"f64\[\d", str(made))  # scalars aside, which are the bounds of random numbers
