"""The percentage of correct keypoints (PCK), and the protocols that define a correct one.

Keypoints of image b are carried to image a, where the same keypoints are annotated. NC-Net's published code has two
definitions of a correct keypoint, which must not be compared:

  pf_pascal_ncnet   both images are rescaled to 224 x 224 pixels, and the distance is at most 0.1 * 224 (SCNet's way, in
                    which NC-Net, Wu et al. and others report)
  pf_pascal_box     in pixels of the file, the distance is at most 0.1 of the longer side of the box around the
                    keypoints on image a (that of PF-Pascal)

A pair counts once: its share of correct keypoints is computed first, and these shares are averaged over pairs.
"""

from typing import Literal, NamedTuple

import numpy as np

from uld_jax.data import pf_pascal
from uld_jax.errors import UserError
from uld_jax.evaluation.missing import known_mean
from uld_jax.ops import coordinates


class AlignmentProtocol(NamedTuple):
    """Definition of a correct keypoint.

    Attributes:
      name: name of the protocol.
      length: what `share` is a share of: `image` for the side of both images rescaled to squares, `box` for the longer
        side of the box around the keypoints on image a.
      share: largest distance of a correct keypoint, which is included.
      side: side of the rescaled images in pixels, for `image`.
      dataset: name of the data set.
    """

    name: str
    length: Literal["image", "box"]
    share: float = 0.1
    side: int = 224
    dataset: str = pf_pascal.NAME

    def id(self, split: str, part: str) -> str:
        """Id under which numbers may be compared.

        >>> PROTOCOLS["pf_pascal_ncnet"].id("test", "leak_free")
        'pf_pascal_ncnet+test+leak_free'
        """
        return "+".join([self.name, split, part])


# Rocco et al., NeurIPS 2018 (NC-Net), published code: `scnet` and `pf` among its procedures.
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (AlignmentProtocol("pf_pascal_ncnet", "image"), AlignmentProtocol("pf_pascal_box", "box"))
}


def protocol_of(name: str) -> AlignmentProtocol:
    """Return a protocol by its name. Raises UserError for an unknown one."""
    if name not in PROTOCOLS:
        raise UserError(f"--protocol={name} is unknown; use one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def correct(protocol: AlignmentProtocol, found, truth, sizes) -> np.ndarray:
    """Tell which keypoints are carried to the right place, [P,K] float64: 1 or 0, NaN in slots without a keypoint.

    A place that is not finite is wrong.

    Args:
      protocol: definition of a correct keypoint.
      found, truth: [P,K,2] carried and annotated keypoints `(x, y)` on image a, in pixels of its file; `truth` is NaN
        in empty slots.
      sizes: [P,2] (height, width) of the files of images a.
    """
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    known = np.isfinite(truth).all(-1)
    if protocol.length == "image":
        away, length = (found - truth) * protocol.side / np.asarray(sizes)[:, None, ::-1], protocol.side
    else:
        there = np.where(known[..., None], truth, np.inf)
        low, high = there.min(1), np.where(known[..., None], truth, -np.inf).max(1)
        away, length = found - truth, (high - low).max(-1)[:, None]
    with np.errstate(invalid="ignore"):
        right = np.linalg.norm(away, axis=-1) <= protocol.share * length
    return np.where(known, right, np.nan)


def pck(right) -> np.ndarray:
    """Average `correct` [P,K] over the keypoints of each pair: [P] in percent."""
    return 100 * known_mean(right, 1)


def same_place(points, sizes_b, sizes_a) -> np.ndarray:
    """Carry points [P,K,2] of files b to the same place of files a, relative to their sizes [P,2] (height, width).

    This identity map is the baseline of every alignment.
    """
    pairs = zip(np.asarray(points), np.asarray(sizes_b), np.asarray(sizes_a), strict=True)
    return np.stack([coordinates.rescale_points(xy, b, a) for xy, b, a in pairs])
