"""Protocols, normalisers, mirror permutations and the sides of bodies; the threaded loading of a source."""

import doctest

import numpy as np
import pytest

from uld_jax.data import specs
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


@pytest.mark.parametrize("known", specs.SCHEMES.values(), ids=specs.SCHEMES)
def test_the_number_of_points_tells_nothing(known):
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
    with pytest.raises(UserError, match=r"set data.scheme \(ibug68 or eyes_nose_mouth5\), or give the two points"):
        specs.spec_of("folder", 32, scheme="human36m_32", normaliser="eyes")
    with pytest.raises(UserError, match=r"which points of folder the shoulders are; set data.scheme \(human36m_32 or"):
        specs.spec_of("folder", 68, scheme="ibug68", normaliser="shoulders")


@pytest.mark.parametrize("scheme", specs.SCHEMES.values(), ids=specs.SCHEMES)
def test_mirroring_twice_is_the_identity(scheme):
    mirror = np.array(scheme.mirror)
    np.testing.assert_array_equal(mirror[mirror], np.arange(scheme.landmarks))
    a, b = scheme.eyes
    assert mirror[a] == b
    assert all(mirror[i] in scheme.fixed for i in scheme.fixed)


def test_mirror_of_68_points_follows_the_parts_of_the_face():
    mirror = np.array(specs.SCHEMES["ibug68"].mirror)
    assert np.flatnonzero(mirror == np.arange(68)).tolist() == [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]
    parts = [range(17), range(17, 27), range(27, 36), range(36, 48), range(48, 60), range(60, 68)]
    for part in parts:
        assert {int(mirror[i]) for i in part} == set(part)
    # Neighbours on a closed contour (an eye, the mouth) stay neighbours.
    for left, right in (((36, 6), (42, 6)), ((48, 12), (48, 12)), ((60, 8), (60, 8))):
        for i in range(left[1]):
            a, b = mirror[left[0] + i], mirror[left[0] + (i + 1) % left[1]]
            assert (a - b) % right[1] in (1, right[1] - 1)


def test_every_joint_of_human36m_has_its_partner():
    # The joints that have a left and a right, by name; both sides in the same order.
    right = {"hip": 1, "knee": 2, "foot": 3, "toe": 4, "toe end": 5}
    left = {"hip": 6, "knee": 7, "foot": 8, "toe": 9, "toe end": 10}
    right |= {"shoulder": 25, "elbow": 26, "wrist": 27, "thumb": 28, "thumb end": 29, "hand": 30, "hand end": 31}
    left |= {"shoulder": 17, "elbow": 18, "wrist": 19, "thumb": 20, "thumb end": 21, "hand": 22, "hand end": 23}
    expected = np.arange(32)
    for name in right:
        expected[right[name]], expected[left[name]] = left[name], right[name]
    np.testing.assert_array_equal(specs.SCHEMES["human36m_32"].mirror, expected)


def swapped(points):
    """The official rule, joint by joint, on one image [32,2]."""
    out = points.copy()
    if points[1, 0] > points[6, 0]:
        for a, b in ((1, 6), (25, 17), (18, 26), (27, 19), (20, 28), (29, 21), (30, 22), (31, 23)):
            out[a], out[b] = points[b], points[a]
    if points[2, 0] > points[7, 0]:
        for a, b in ((2, 7), (3, 8), (4, 9), (5, 10)):
            out[a], out[b] = points[b], points[a]
    return out


def test_image_sides():
    points = np.random.default_rng(0).normal(size=(3, 40, 32, 2))
    points[0, :4, 1], points[0, 4:8, 7] = np.nan, np.nan  # hips that are not annotated decide nothing
    found = specs.image_sides(points)
    expected = np.array([swapped(p) for p in points.reshape(-1, 32, 2)]).reshape(points.shape)
    np.testing.assert_array_equal(found, expected)
    assert (found != points).any((-1, -2)).mean() > 0.5
    np.testing.assert_array_equal(specs.image_sides(found), found)


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
    np.testing.assert_array_equal(auto.landmarks, specs.image_sides(raw.landmarks))
    np.testing.assert_array_equal(kept.landmarks, raw.landmarks)
    # Visibility goes with its point.
    both = specs.image_sides(np.concatenate([raw.landmarks, np.stack([raw.visible] * 2, -1)], -1)[..., [0, 2]])
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
