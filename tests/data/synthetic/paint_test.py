"""What is painted lies where it belongs."""

import jax.numpy as jnp
import numpy as np

from tests.data.synthetic.heads import at, pick, posed
from uld_jax.data.synthetic.scene import EXPRESSION


def test_landmarks_sit_on_the_features_in_the_picture(scenes, render):
    """Other irises change the picture between the eyes' corners, other lips around the mouth, and nowhere else."""
    names = EXPRESSION
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


def test_background_is_textured(source):
    """The corners hold no flat colour by which the head could be cut out."""
    corners = np.concatenate([source.images()[:, :10, :10], source.images()[:, :10, -10:]], 1).reshape(
        len(source), -1, 3
    )
    assert (corners.std(1).mean(-1) > 6).mean() > 0.9
