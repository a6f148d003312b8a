"""CVAT for images 1.1, XML: `image` elements with `points`, or with a `skeleton` of `points`.

Coordinates have their origin at the corner of the first pixel, whose far corner is (width, height) (CVAT issue 9973),
so half a pixel is subtracted. CVAT turns photos by their EXIF tag (CVAT pull request 4529). `outside="1"` and empty
`points` are missing, `occluded="1"` is hidden; both attributes may be absent. A skeleton has one `points` element a
joint (datumaro @ 8970bb7, tests/assets/cvat_dataset).

Each skeleton is an object. Points belong to the object of their `group_id`, and a `box` of that group is its box. Of
shapes of several points with the same label, each is an object. Other shapes are not read.
"""

from uld_jax.data.labels.common import Labelled, Labels, Object, box_of, number, objects_of, put, size_of, word
from uld_jax.errors import UserError

NAME = "CVAT for images"


def fits(content) -> bool:
    """Tell whether a parsed XML has this format."""
    return content.tag == "annotations" and any(child.tag in ("image", "track") for child in content)


def read(path, content) -> Labels:
    """Read the images of a file; content is the root of its XML. Raises UserError naming the file and the image."""
    if content.find("track") is not None:
        raise UserError(f"{path} holds tracks of a video; export the task as `CVAT for images 1.1`, with its images")
    images, counts = [], {}
    for image in content.findall("image"):
        file = word(image.get("name"), "the name of an image", path)
        place = f"{path}, image {file}"
        size = size_of(image.get("height"), image.get("width"), place)
        split = (image.get("subset") or "").lower()
        split = split if split in ("train", "test") else ""
        objects = _objects(image, counts, place, file)
        images += objects_of(Labelled((file,), place, {}, size=size, split=split), objects)
    return Labels(images)


def _objects(image, counts: dict, place: str, file: str) -> list[Object]:
    """Read the objects of an image. `counts` has the number of points of each label, and the image that showed it."""
    shapes = [_shape(shape, counts, place, file) for shape in image.findall("points")]
    skeletons = image.findall("skeleton")
    every = [[_shape(joint, counts, place, file) for joint in skeleton.iter("points")] for skeleton in skeletons]
    names = [skeleton.get("label") or "" for skeleton in skeletons]
    groups = [_group(skeleton) for skeleton in skeletons]
    for label in {label for label, xys, _, group in shapes if len(xys) > 1 and not group}:
        alike = [shape for shape in shapes if shape[0] == label and not shape[3]]
        if len(alike) > 1:
            every += [[shape] for shape in alike]
            names, groups = [*names, *[label] * len(alike)], [*groups, *[""] * len(alike)]
            shapes = [shape for shape in shapes if shape not in alike]
    for group in dict.fromkeys(group for *_, group in shapes if group):
        if groups.count(group) != 1:
            every.append([])
            names, groups = [*names, group], [*groups, group]
        every[groups.index(group)] += [shape for shape in shapes if shape[3] == group]
    loose = [shape for shape in shapes if not shape[3]]
    if loose and len(every) > 1:
        raise UserError(
            f"{place} has {len(every)} objects, and the point {loose[0][0]} belongs to none; group it with its object"
        )
    if loose:
        every, names, groups = [[*loose, *(shape for some in every for shape in some)]], names or [""], groups or [""]
    edges = ("xtl", "ytl", "xbr", "ybr")
    boxes = {g: box_of(*map(box.get, edges)) for box in image.findall("box") if (g := _group(box))}
    made = [_object(n, some, boxes.get(g), place) for n, g, some in zip(names, groups, every, strict=True)]
    return [one for one in made if one.points]


def _object(name: str, shapes, box, place: str) -> Object:
    points, hidden = {}, set()
    for label, xys, occluded, _ in shapes:
        for i, xy in enumerate(xys):
            point = label if len(xys) == 1 else f"{label}_{i}"
            put(points, point, xy, place, "group the points of each, or use skeletons")
            if occluded:
                hidden.add(point)
    return Object(name, points, frozenset(hidden), box)


def _group(shape) -> str:
    """Return the group of a shape, empty if it has none, for which CVAT writes 0 or nothing."""
    group = (shape.get("group_id") or "").strip()
    return "" if group == "0" else group


def _shape(shape, counts: dict, place: str, file: str) -> tuple[str, list, bool, str]:
    """Read label, coordinates, whether it is occluded, and group of a shape. Raises UserError for another count."""
    label = word(shape.get("label"), "a label", place)
    xys = [] if shape.get("outside") == "1" else _coordinates(shape.get("points") or "", f"{place}, {label}")
    before = counts.setdefault(label, (len(xys), file)) if xys else None
    if before and before[0] != len(xys):
        raise UserError(
            f"{place}: the shape {label} has {len(xys)} points, but {before[0]} in {before[1]}, so its points have no "
            "fixed meaning; label each point by a name of its own"
        )
    return label, xys, shape.get("occluded") == "1", _group(shape)


def _coordinates(text: str, place: str) -> list[tuple[float, float]]:
    """Read `x1,y1;x2,y2` as pixels with centres at integers."""
    out = []
    for pair in filter(None, text.strip().split(";")):
        cells = pair.split(",")
        if len(cells) != 2:
            raise UserError(f"{place}: {pair[:40]!r} is not `x,y`; export the labels again")
        out.append(tuple(number(cell, place) - 0.5 for cell in cells))
    return out
