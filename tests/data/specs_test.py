"""Protocols, normalisers and mirror permutations; the threaded loading of a source."""

import numpy as np
import pytest

from uld_jax.data import specs
from uld_jax.errors import UserError


@pytest.mark.parametrize(
    ("landmarks", "normaliser", "protocol", "eyes"),
    [
        (68, "auto", "folder_68_eyes", (36, 45)),
        (5, "auto", "folder_5_eyes", (0, 1)),
        (20, "auto", "folder_20_box", None),
        (68, "box", "folder_68_box", None),
        (68, "image", "folder_68_image", None),
        (68, "36,45", "folder_68_eyes", (36, 45)),
        (20, "3,7", "folder_20_3-7", (3, 7)),
        (20, " 7 - 3", "folder_20_7-3", (7, 3)),
        (None, "auto", None, None),
    ],
)
def test_protocol_ids(landmarks, normaliser, protocol, eyes):
    spec = specs.spec_of("folder", landmarks, normaliser=normaliser)
    assert (spec.protocol, spec.eyes) == (protocol, eyes)


@pytest.mark.parametrize("normaliser", ["eye", "20,3", "3,3", "1,2,3", "eyes"])
def test_bad_normalisers_are_named(normaliser):
    with pytest.raises(UserError, match=f"data.normaliser(=| is '?){normaliser}"):
        specs.spec_of("folder", 20, normaliser=normaliser)


@pytest.mark.parametrize("landmarks", specs.MIRRORS)
def test_mirroring_twice_is_the_identity(landmarks):
    mirror = np.array(specs.MIRRORS[landmarks])
    np.testing.assert_array_equal(mirror[mirror], np.arange(landmarks))
    a, b = specs.EYES[landmarks]
    assert mirror[a] == b


def test_mirror_of_68_points_follows_the_parts_of_the_face():
    mirror = np.array(specs.MIRRORS[68])
    assert np.flatnonzero(mirror == np.arange(68)).tolist() == [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]
    parts = [range(17), range(17, 27), range(27, 36), range(36, 48), range(48, 60), range(60, 68)]
    for part in parts:
        assert {int(mirror[i]) for i in part} == set(part)
    # Neighbours on a closed contour (an eye, the mouth) stay neighbours.
    for left, right in (((36, 6), (42, 6)), ((48, 12), (48, 12)), ((60, 8), (60, 8))):
        for i in range(left[1]):
            a, b = mirror[left[0] + i], mirror[left[0] + (i + 1) % left[1]]
            assert (a - b) % right[1] in (1, right[1] - 1)


class Ramp(specs.Source):
    """Row i is an image of value i; row 7 fails if asked to."""

    def __init__(self, rows, fail=False):
        self.names, self.frame_size, self._fail = [str(i) for i in range(rows)], 4, fail
        self.spec, self.calls = specs.spec_of("ramp", None), 0

    def image(self, row):
        self.calls += 1
        if self._fail and row == 7:
            raise UserError("row 7 is damaged")
        return np.full((4, 4, 3), row, np.uint8)


def test_images_come_in_the_order_asked_for():
    np.testing.assert_array_equal(Ramp(90).images()[:, 0, 0, 0], np.arange(90))
    np.testing.assert_array_equal(Ramp(90).images([5, 3, 3])[:, 3, 3, 2], [5, 3, 3])
    assert Ramp(3).images([]).shape == (0, 4, 4, 3)


def test_a_damaged_image_stops_the_loading_early():
    source = Ramp(20000, fail=True)
    with pytest.raises(UserError, match=r"row 7 is damaged"):
        source.images()
    assert source.calls < 20000


def test_annotated_needs_landmarks():
    source = Ramp(2)
    with pytest.raises(UserError, match=r"ramp has no landmarks"):
        specs.annotated(source)
    source.landmarks = np.array([[[0, 1], [np.nan, np.nan]], [[2, 2], [3, 3]]], np.float32)
    np.testing.assert_array_equal(specs.annotated(source), [[True, False], [True, True]])
