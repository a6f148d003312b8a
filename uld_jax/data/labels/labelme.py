"""labelme, one JSON an image: `shapes` of the type `point`, whose label is the name of the point.

labelme shows the photo turned by its EXIF tag, and stores where the cursor is in the drawn picture, whose first pixel
covers 0 to 1 (labelme/widgets/canvas.py, label_file.py), so half a pixel is subtracted. `imagePath` is relative to the
JSON. The points of an object share their `group_id`, and a `rectangle` of the same group is its box. Shapes of other
types are not read.
"""

from uld_jax.data.labels.common import (
    Labelled,
    Labels,
    Object,
    box_of,
    items,
    number,
    objects_of,
    points_by_group,
    size_of,
    word,
)
from uld_jax.errors import UserError

NAME = "labelme"


def fits(content) -> bool:
    """Tell whether parsed JSON has this format."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read(path, content) -> Labels:
    """Read the image of a file; content is its parsed JSON. Raises UserError naming the file."""
    place, boxes, found = str(path), {}, []
    for shape in items(content["shapes"], dict, "shapes", place):
        group = "" if shape.get("group_id") is None else str(shape["group_id"])
        if shape.get("shape_type") == "rectangle" and group:
            boxes.setdefault(group, _box(shape.get("points")))
        if shape.get("shape_type") != "point":
            continue
        name = word(shape.get("label"), "a label", place)
        xy = shape.get("points")
        if not (isinstance(xy, list) and len(xy) == 1 and isinstance(xy[0], list) and len(xy[0]) == 2):
            raise UserError(f"{place}: the point {name} has not one x and one y; label it again")
        found.append((group, name, tuple(number(v, f"{place}, point {name}") - 0.5 for v in xy[0])))
    stray = "has points of {count} groups, and the point {name} of none; give it a group_id"
    objects = points_by_group(found, place, "give the points of each a group_id of its own", stray)
    size = size_of(content.get("imageHeight"), content.get("imageWidth"), place)
    file = content["imagePath"]
    image = Labelled((file,) if isinstance(file, str) and file else (), place, {}, size=size)
    return Labels(objects_of(image, [Object(g, points, box=boxes.get(g)) for g, points in objects.items() if points]))


def _box(corners):
    """Return the box of a rectangle, which is given by two opposite corners or, in new files, by four."""
    try:
        xs, ys = zip(*corners, strict=True)
        return box_of(min(xs), min(ys), max(xs), max(ys))
    except (TypeError, ValueError):
        return None
