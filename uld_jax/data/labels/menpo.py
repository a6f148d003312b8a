"""menpo's `.ljson`, one JSON an image, of versions 1 to 3.

Coordinates are (y, x), 0-based, and null where a point is missing (menpo 0.11.1). Version 3 has named groups of points;
the exporter names the only one `LJSON`, and where there are several that one is read. The points have numbers as names,
because a label of menpo names a part of many points.
"""

from uld_jax.data.labels.common import Labelled, Labels, items, number
from uld_jax.errors import UserError

NAME = "menpo ljson"


def fits(content) -> bool:
    """Tell whether parsed JSON has this format."""
    return (
        isinstance(content, dict) and content.get("version") in (1, 2, 3) and bool({"groups", "landmarks"} & {*content})
    )


def read(path, content) -> Labels:
    """Read the image of a file; content is its parsed JSON. Raises UserError naming the file."""
    place, note = str(path), ""
    if content["version"] == 1:
        groups = items(content.get("groups"), dict, "groups", place)
        values = [one.get("point") for g in groups for one in items(g.get("landmarks"), dict, "landmarks", place)]
    else:
        group = content.get("landmarks")
        if content["version"] == 3:
            groups = content.get("groups")
            if not isinstance(groups, dict) or not groups:
                raise UserError(f"{place} has no groups of points; export it again")
            if len(groups) > 1 and "LJSON" not in groups:
                raise UserError(f"{place} has the groups {', '.join(groups)}; keep one of them, or name it LJSON")
            note = f"of the groups {', '.join(groups)} LJSON is read" if len(groups) > 1 else ""
            group = groups.get("LJSON", next(iter(groups.values())))
            group = group.get("landmarks") if isinstance(group, dict) else None
        values = items(group.get("points") if isinstance(group, dict) else None, list, "points", place)
    points = {}
    for i, value in enumerate(values):
        if not isinstance(value, list) or len(value) != 2:
            raise UserError(f"{place}: point {i} is not [y, x]; points of images have two numbers")
        if None not in value:
            y, x = (number(v, f"{place}, point {i}") for v in value)
            points[str(i)] = x, y
    return Labels([Labelled((), place, points)], tuple(str(i) for i in range(len(values))), note)
