"""labelme, one JSON an image: `shapes` of the type `point`, whose label is the name of the point.

labelme shows the photo turned by its EXIF tag, and stores where the cursor is in the drawn picture, whose first pixel
covers 0 to 1 (labelme/widgets/canvas.py, label_file.py), so half a pixel is subtracted. `imagePath` is relative to the
JSON. Shapes of other types are not read.
"""

from uld_jax.data.labels.common import ONE_OBJECT, Labelled, Labels, items, number, put, size_of, word
from uld_jax.errors import UserError

NAME = "labelme"


def fits(content) -> bool:
    """Tell whether parsed JSON has this format."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read(path, content) -> Labels:
    """Read the image of a file; content is its parsed JSON. Raises UserError naming the file."""
    place, points, groups = str(path), {}, set()
    for shape in items(content["shapes"], dict, "shapes", place):
        if shape.get("shape_type") != "point":
            continue
        name = word(shape.get("label"), "a label", place)
        xy = shape.get("points")
        if not (isinstance(xy, list) and len(xy) == 1 and isinstance(xy[0], list) and len(xy[0]) == 2):
            raise UserError(f"{place}: the point {name} has not one x and one y; label it again")
        put(points, name, tuple(number(v, f"{place}, point {name}") - 0.5 for v in xy[0]), place)
        groups.add(None if shape.get("group_id") is None else str(shape["group_id"]))
    if len(groups - {None}) > 1:
        raise UserError(f"{place} has points of {len(groups - {None})} groups, and {ONE_OBJECT}")
    size = size_of(content.get("imageHeight"), content.get("imageWidth"), place)
    file = content["imagePath"]
    return Labels([Labelled((file,) if isinstance(file, str) and file else (), place, points, size=size)])
