"""The built-in data set: a rendered head that turns by up to 90 degrees, with exact landmarks.

Nothing is downloaded. A seed gives a `Scene` (identity, expression, hair, light, background, pose), and `render`
ray-traces the scene. The head is a union of about thirty ellipsoids under parallel projection. The intersection of a
ray and an ellipsoid has a closed form, and the surface is the nearest hit:

    z(x, y) = max over ellipsoids of  linear(x, y) + sqrt(quadratic(x, y)).

Joints between ellipsoids are smoothed only in the normals: near a joint, the normals of all ellipsoids nearby are
averaged. Eyes, brows, lips, nostrils and hairline are painted on the surface in the head's own coordinates.

Head coordinates: x to the image's right when the head looks at the camera, y down, z towards the camera; the crown is
at y = -1 and the chin at y = 1. Angles are in degrees: positive yaw turns the nose to the image's right, positive pitch
lifts it, positive roll turns the image clockwise. `left` and `right` are the person's own: the right eye is on the
image's left.

Use `Synthetic` for the data set, and `sample_scene` with `render` for other pictures:

    image, landmarks, visible = jax.jit(render, static_argnames="size")(sample_scene(jax.random.key(0)), size=128)
"""

from uld_jax.data.synthetic.dataset import SPLITS, Synthetic, export
from uld_jax.data.synthetic.head import LANDMARKS, MIRROR
from uld_jax.data.synthetic.renderer import render
from uld_jax.data.synthetic.scene import POSE, Scene, mirror, sample_scene

__all__ = ["LANDMARKS", "MIRROR", "POSE", "SPLITS", "Scene", "Synthetic", "export", "mirror", "render", "sample_scene"]
