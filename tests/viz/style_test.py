import numpy as np

from uld_jax import viz


def test_one_colour_is_one_landmark_for_any_number_of_landmarks():
    many = viz.palette(120)
    assert many.dtype == np.uint8
    assert len(np.unique(many, axis=0)) == 120
    for k in (1, 7, 30):
        np.testing.assert_array_equal(viz.palette(k), many[:k])
    apart = np.linalg.norm(many[:30, None].astype(float) - many[None, :30], axis=-1) + 1e3 * np.eye(30)
    assert apart.min() > 30
    assert len(viz.palette(600)) == 600
