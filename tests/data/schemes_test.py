"""Named schemes: mirror permutations, sides of bodies, and that none is recognised by its number of points."""

import doctest

import numpy as np
import pytest
from PIL import Image

from uld_jax.data import open_source, schemes, specs


def test_doctests():
    result = doctest.testmod(schemes)
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize("known", schemes.SCHEMES.values(), ids=schemes.SCHEMES)
def test_the_number_of_points_tells_nothing(tmp_path, known):
    """A folder that happens to have 5, 7, 32 or 68 points is normalised by the box and keeps its sides."""
    points = np.random.default_rng(0).uniform(0, 15, (3, known.landmarks, 2)).astype(np.float32)
    lines = ["file," + ",".join(f"x{i},y{i}" for i in range(known.landmarks))]
    for i, row in enumerate(points):
        Image.fromarray(np.full((16, 16, 3), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png," + ",".join(f"{x:.6f}" for x in row.ravel()))
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    own = open_source("folder", "train", data_dir=tmp_path, frame_size=16)
    spec = specs.spec_of("folder", known.landmarks)
    assert own.spec == spec._replace(splits=own.spec.splits)
    assert (spec.scheme, spec.normaliser, spec.eyes, spec.mirror) == ("none", "box", None, None)
    assert own.spec.sides == "object"
    np.testing.assert_allclose(own.landmarks, points, atol=1e-4)


@pytest.mark.parametrize("scheme", schemes.SCHEMES.values(), ids=schemes.SCHEMES)
def test_mirroring_twice_is_the_identity(scheme):
    mirror = np.array(scheme.mirror)
    np.testing.assert_array_equal(mirror[mirror], np.arange(scheme.landmarks))
    assert all(mirror[a] == b for a, b in scheme.pairs.values())
    assert all(mirror[i] in scheme.fixed for i in scheme.fixed)


def test_mirror_of_68_points_follows_the_parts_of_the_face():
    mirror = np.array(schemes.SCHEMES["ibug68"].mirror)
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
    np.testing.assert_array_equal(schemes.SCHEMES["human36m_32"].mirror, expected)


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
    found = schemes.image_sides(points)
    expected = np.array([swapped(p) for p in points.reshape(-1, 32, 2)]).reshape(points.shape)
    np.testing.assert_array_equal(found, expected)
    assert (found != points).any((-1, -2)).mean() > 0.5
    np.testing.assert_array_equal(schemes.image_sides(found), found)
