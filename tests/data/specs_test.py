"""Protocols, normalisers and the sides of a source's bodies; the threaded loading of a source."""

import doctest

import numpy as np
import pytest

from uld_jax.data import schemes, specs
from uld_jax.errors import UserError


@pytest.mark.parametrize(
    ("scheme", "landmarks", "normaliser", "protocol", "eyes"),
    [
        ("ibug68", 68, "auto", "folder_68_eyes", (36, 45)),
        ("eyes_nose_mouth5", 5, "auto", "folder_5_eyes", (0, 1)),
        ("none", 20, "auto", "folder_20_box", None),
        ("ibug68", 68, "box", "folder_68_box", None),
        ("none", 68, "image", "folder_68_image", None),
        ("ibug68", 68, "36,45", "folder_68_eyes", (36, 45)),
        ("ibug68", 68, "30,45", "folder_68_30-45", (30, 45)),
        ("ibug68", 68, "mouth", "folder_68_mouth", (48, 54)),
        ("ibug68", 68, "48,54", "folder_68_mouth", (48, 54)),
        ("none", 68, "36,45", "folder_68_36-45", (36, 45)),
        ("none", 20, "3,7", "folder_20_3-7", (3, 7)),
        ("none", 20, " 7 - 3", "folder_20_7-3", (7, 3)),
        ("human36m_32", 32, "auto", "folder_32_shoulders", (25, 17)),
        ("human36m_32", 32, "25,17", "folder_32_shoulders", (25, 17)),
        ("human36m_32", 32, "box", "folder_32_box", None),
        ("bbc_pose7", 7, "auto", "folder_7_shoulders", (5, 6)),
        ("bbc_pose7", 7, "image", "folder_7_image", None),
        ("bbc_pose7", None, "auto", None, (5, 6)),
        ("none", None, "auto", None, None),
        # Runs from before there were schemes keep their protocol.
        ("by_number", 68, "auto", "folder_68_eyes", (36, 45)),
        ("by_number", 7, "auto", "folder_7_shoulders", (5, 6)),
        ("by_number", 20, "auto", "folder_20_box", None),
    ],
)
def test_protocol_ids(scheme, landmarks, normaliser, protocol, eyes):
    spec = specs.spec_of("folder", landmarks, scheme=scheme, normaliser=normaliser)
    assert (spec.protocol, spec.eyes) == (protocol, eyes)


@pytest.mark.parametrize("known", schemes.SCHEMES.values(), ids=schemes.SCHEMES)
def test_points_without_a_scheme_keep_their_sides_however_many_they_are(known):
    """An own set that happens to have 5, 7, 32 or 68 points is normalised by the box and keeps its sides."""
    own = Bodies(known.landmarks, "none")
    points = own.landmarks.copy()
    assert (own.spec.normaliser, own.spec.eyes, own.spec.mirror) == ("box", None, None)
    specs.set_sides(own)
    np.testing.assert_array_equal(own.landmarks, points)
    assert own.spec.sides == "object"


def test_schemes_are_checked():
    with pytest.raises(UserError, match=r"data.scheme is 'ibug'; use none or one of ibug68, eyes_nose_mouth5, "):
        specs.spec_of("folder", 68, scheme="ibug")
    with pytest.raises(UserError, match=r"data.scheme=ibug68 has 68 points, and folder has 20 landmarks"):
        specs.spec_of("folder", 20, scheme="ibug68")


@pytest.mark.parametrize("normaliser", ["eye", "20,3", "3,3", "1,2,3", "eyes", "shoulders"])
def test_bad_normalisers_are_named(normaliser):
    with pytest.raises(UserError, match=f"data.normaliser(=| is '?){normaliser}"):
        specs.spec_of("folder", 20, normaliser=normaliser)


def test_bodies_have_no_eyes_and_faces_no_shoulders():
    with pytest.raises(UserError, match=r"set data.scheme \(ibug68 or eyes_nose_mouth5 or .*\), or give the two"):
        specs.spec_of("folder", 32, scheme="human36m_32", normaliser="eyes")
    with pytest.raises(UserError, match=r"which points of folder the shoulders are; set data.scheme \(human36m_32 or"):
        specs.spec_of("folder", 68, scheme="ibug68", normaliser="shoulders")


class Bodies(specs.Source):
    """Joints without images."""

    def __init__(self, landmarks=32, scheme="human36m_32"):
        rng = np.random.default_rng(1)
        self.spec = specs.spec_of("bodies", landmarks, scheme=scheme)
        self.landmarks = rng.normal(size=(9, landmarks, 2)).astype(np.float32)
        self.visible = rng.random((9, landmarks)) < 0.5


def test_sides_of_a_source():
    raw, auto, kept = Bodies(), Bodies(), Bodies()
    specs.set_sides(auto)
    specs.set_sides(kept, "object")
    np.testing.assert_array_equal(auto.landmarks, schemes.image_sides(raw.landmarks))
    np.testing.assert_array_equal(kept.landmarks, raw.landmarks)
    # Visibility goes with its point.
    both = schemes.image_sides(np.concatenate([raw.landmarks, np.stack([raw.visible] * 2, -1)], -1)[..., [0, 2]])
    np.testing.assert_array_equal(auto.visible, both[..., 1] == 1)
    assert auto.landmarks.dtype == np.float32
    assert (auto.spec.protocol, kept.spec.protocol) == ("bodies_32_shoulders_image_sides", "bodies_32_shoulders")
    before = auto.landmarks.copy()
    specs.set_sides(auto, "image")
    np.testing.assert_array_equal(auto.landmarks, before)
    with pytest.raises(UserError, match=r"bodies was written with data.sides=image; write it again"):
        specs.set_sides(auto, "object")


def test_sides_of_other_sources():
    face = Bodies(5, "eyes_nose_mouth5")
    specs.set_sides(face)
    assert face.spec.protocol == "bodies_5_eyes"
    with pytest.raises(UserError, match=r"needs the joints of data.scheme=human36m_32, and .* is eyes_nose"):
        specs.set_sides(face, "image")
    with pytest.raises(UserError, match=r"data.sides is 'left'; use one of auto, object, image"):
        specs.set_sides(face, "left")
    bare = Ramp(2)
    specs.set_sides(bare, "image")
    assert bare.landmarks is None


def test_doctests():
    assert doctest.testmod(specs).failed == 0


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
