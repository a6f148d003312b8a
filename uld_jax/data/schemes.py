"""Named landmark schemes: the points of an annotation, their partners in the mirror, and named pairs of points."""

import types
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from uld_jax.errors import UserError


def mirror_permutation(landmarks: int, *pairs: tuple[int, int]) -> tuple[int, ...]:
    """Build the permutation [L] that swaps the points of each pair, for mirrored images.

    >>> mirror_permutation(5, (0, 1), (3, 4))
    (1, 0, 2, 4, 3)
    """
    out = list(range(landmarks))
    for a, b in pairs:
        out[a], out[b] = b, a
    return tuple(out)


def _runs(*spans: tuple[int, int, int]):
    """List the pairs (a, b), (a + 1, b - 1), ... of each span (a, b, count)."""
    return [(a + i, b - i) for a, b, count in spans for i in range(count)]


class Scheme(NamedTuple):
    """The points of an annotation and their order.

    Attributes:
      landmarks: L, the number of points.
      pairs: named pairs of points, {name: (a, b)}, whose distance errors may be divided by; by default that of the
        first.
      mirror: permutation [L] of the points in a mirrored image.
      areas: areas of a face, {name: (first, last point)}.
      fixed: numbers of the points that do not glide over the head as it turns, from which its yaw can be estimated.
      image_sides: groups of pairs that change places if their first pair is in the wrong order (`image_sides`).
    """

    landmarks: int
    pairs: Mapping[str, tuple[int, int]]
    mirror: tuple[int, ...]
    areas: Mapping[str, tuple[int, int]] = types.MappingProxyType({})
    fixed: tuple[int, ...] = ()
    image_sides: tuple[tuple[tuple[int, int], ...], ...] = ()

    @property
    def normaliser(self) -> str:
        """The name of the pair whose distance errors are divided by, unless another one is asked for."""
        return next(iter(self.pairs))


# Joints of Human3.6M that the official evaluation of Mallis et al. 2020 exchanges between left and right: arms and hips
# by the hips, legs by the knees. (The shoulder anchors, 16 and 24, both lie at the neck and are not a pair there.)
_HUMAN36M_SIDES = (
    ((1, 6), (25, 17), (18, 26), (27, 19), (20, 28), (29, 21), (30, 22), (31, 23)),
    ((2, 7), (3, 8), (4, 9), (5, 10)),
)

# The schemes that `data.scheme` names. The number of points does not identify a scheme, so none is guessed.
SCHEMES = {
    # The iBUG order. Contours of eyes run from the outer corner inwards on the left, from the inner corner outwards on
    # the right. Points of the jaw are annotated on its outline in the picture, so they glide over the head as it turns.
    "ibug68": Scheme(
        landmarks=68,
        pairs={"eyes": (36, 45), "mouth": (48, 54)},
        mirror=mirror_permutation(
            68,
            *_runs((0, 16, 8), (17, 26, 5), (31, 35, 2), (36, 45, 4), (48, 54, 3), (55, 59, 2), (60, 64, 2)),
            (40, 47),
            (41, 46),
            (65, 67),
        ),
        areas={"jaw": (0, 16), "brows": (17, 26), "nose": (27, 35), "eyes": (36, 47), "mouth": (48, 67)},
        fixed=tuple(range(17, 68)),
    ),
    # Left eye, right eye, nose, left and right corner of the mouth, as in MAFL.
    "eyes_nose_mouth5": Scheme(
        landmarks=5,
        pairs={"eyes": (0, 1), "mouth": (3, 4)},
        mirror=mirror_permutation(5, (0, 1), (3, 4)),
        fixed=tuple(range(5)),
    ),
    # The order of AFLW's features 1 to 21: three points a brow, three an eye, the left ear, three of the nose, the
    # right ear, three of the mouth, and the chin; left is left in the image.
    "aflw21": Scheme(
        landmarks=21,
        pairs={"eyes": (7, 10), "mouth": (17, 19)},
        mirror=mirror_permutation(21, *_runs((0, 5, 3), (6, 11, 3)), (12, 16), (13, 15), (17, 19)),
        areas={"brows": (0, 5), "eyes": (6, 11), "nose": (13, 15), "mouth": (17, 19)},
        fixed=(*range(12), 13, 14, 15, 17, 18, 19, 20),
    ),
    # Left and right eye, mouth; outer base, tip and inner base of the left ear; inner base, tip and outer base of the
    # right ear; left is left in the image.
    "cat9": Scheme(9, {"eyes": (0, 1)}, mirror_permutation(9, (0, 1), *_runs((3, 8, 3)))),
    # WFLW's order: jaw, brows, nose, eyes (from the outer corner on the left, the inner one on the right), mouth,
    # pupils.
    "wflw98": Scheme(
        landmarks=98,
        pairs={"eyes": (60, 72), "mouth": (76, 82)},
        mirror=mirror_permutation(
            98,
            *_runs((0, 32, 16), (33, 46, 5), (38, 50, 4), (55, 59, 2), (60, 72, 5), (65, 75, 3), (76, 82, 3)),
            *_runs((83, 87, 2), (88, 92, 2)),
            (93, 95),
            (96, 97),
        ),
        areas={"jaw": (0, 32), "brows": (33, 50), "nose": (51, 59), "eyes": (60, 75), "mouth": (76, 95)},
        fixed=tuple(range(33, 98)),
    ),
    # Right and left shoulder, as in the published code of Mallis et al. 2020.
    "human36m_32": Scheme(
        landmarks=32,
        pairs={"shoulders": (25, 17)},
        mirror=mirror_permutation(32, *_HUMAN36M_SIDES[0], *_HUMAN36M_SIDES[1]),
        image_sides=_HUMAN36M_SIDES,
    ),
    # In the order of its annotation: head; right, left wrist; right, left elbow; right, left shoulder. No source gives
    # its normaliser, so the shoulders are taken as for Human3.6M.
    "bbc_pose7": Scheme(7, {"shoulders": (5, 6)}, mirror_permutation(7, (1, 2), (3, 4), (5, 6))),
}
NO_SCHEME = "none"
# Only for finished runs whose config is older than `data.scheme`: they used the scheme with as many points.
BY_NUMBER = "by_number"


def scheme_of(name: str) -> Scheme | None:
    """Look up a scheme by its name; None for `none`. Raises UserError for any other word."""
    if name != NO_SCHEME and name not in SCHEMES:
        raise UserError(f"data.scheme is {name!r}; use {NO_SCHEME} or one of {', '.join(SCHEMES)}")
    return SCHEMES.get(name)


def image_order(points: np.ndarray, groups=_HUMAN36M_SIDES) -> np.ndarray:
    """Find for each point the joint that takes its place by image sides, [...,L] int64; see `image_sides`.

    >>> image_order(np.zeros((32, 2)))[:8].tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    landmarks = points.shape[-2]
    order = np.broadcast_to(np.arange(landmarks), points.shape[:-1])
    for pairs in groups:
        a, b = pairs[0]
        turned = points[..., a, 0] > points[..., b, 0]  # comparison with NaN is False, so unannotated pairs stay
        order = np.where(turned[..., None], np.array(mirror_permutation(landmarks, *pairs))[order], order)
    return order


def image_sides(points: np.ndarray) -> np.ndarray:
    """Order joints of Human3.6M by their side in the image, [...,32,2] -> [...,32,2].

    A method without labels cannot distinguish a person's front from the back, so the official evaluation of Mallis et
    al. 2020 defines left as left in the image: arms and hips change sides if x(1) > x(6), legs if x(2) > x(7).

    >>> points = np.zeros((32, 2)); points[1] = 5, 1; points[6] = 2, 1
    >>> image_sides(points)[[1, 6]].tolist()
    [[2.0, 1.0], [5.0, 1.0]]
    """
    return np.take_along_axis(points, image_order(points)[..., None], -2)
