"""300-W `.pts`, one text file an image: `version: 1`, `n_points: L`, and `x y` a line between braces.

Coordinates are 1-based, as menpo and DVE read them, so 1 is subtracted. Copies that have lost header and braces are
read too, if their name ends in .pts. Points have numbers as names.
"""

import re

from uld_jax.data.labels.common import Labelled, Labels, number
from uld_jax.errors import UserError

NAME = "300-W pts"
_HEADER = re.compile(r"version\s*:\s*\d+\s+n_points\s*:\s*(\d+)\s*\{([^{}]*)\}\s*", re.IGNORECASE)
_START = re.compile(rb"(\xef\xbb\xbf)?\s*version\s*:", re.IGNORECASE)


def fits(path, data: bytes) -> bool:
    """Tell whether the bytes of a file, or its first bytes, have this format."""
    if _START.match(data):
        return b"n_points" in data
    return str(path).lower().endswith(".pts") and re.fullmatch(rb"[\s\d.eE+-]+", data) is not None


def read(path, data: bytes) -> Labels:
    """Read the image of a file; data is its content. Raises UserError naming the file."""
    text = data.decode("utf-8-sig", "replace")
    match = _HEADER.fullmatch(text.strip())
    if match is None and "version" in text.lower():
        raise UserError(f"{path} has not the form `version: 1`, `n_points: L`, {{, points, }}; write it again")
    values = [number(token, str(path)) for token in (match[2] if match else text).split()]
    if len(values) % 2 or (match and len(values) != 2 * int(match[1])):
        said = f", and n_points is {match[1]}" if match else ""
        raise UserError(f"{path} holds {len(values)} numbers{said}; give x and y of every point")
    if min(values, default=1) < 0:
        raise UserError(
            f"{path} holds negative numbers, which 300-W does not have; where they mark visibility, as in MERL-RAV, "
            "write the points to train.csv and test.csv"
        )
    points = {str(i): (values[2 * i] - 1, values[2 * i + 1] - 1) for i in range(len(values) // 2)}
    return Labels([Labelled((), str(path), points)], tuple(points))
