"""CVAT for images 1.1, XML: `image` elements with `points`, or with a `skeleton` of `points`.

Coordinates have their origin at the corner of the first pixel, whose far corner is (width, height) (CVAT issue 9973),
so half a pixel is subtracted. CVAT turns photos by their EXIF tag (CVAT pull request 4529). `outside="1"` and empty
`points` are missing, `occluded="1"` is hidden; both attributes may be absent. A skeleton has one `points` element a
joint (datumaro @ 8970bb7, tests/assets/cvat_dataset). Shapes other than points and skeletons are not read.
"""

from uld_jax.data.labels.common import ONE_OBJECT, Labelled, Labels, number, put, size_of, word
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
        shapes, skeletons = image.findall("points"), image.findall("skeleton")
        if len(skeletons) > 1:
            raise UserError(f"{place} has {len(skeletons)} skeletons, and {ONE_OBJECT}")
        joints = [joint for skeleton in skeletons for joint in skeleton.iter("points")]
        points, hidden = {}, set()
        for shape in [*shapes, *joints]:
            label = word(shape.get("label"), "a label", place)
            xys = [] if shape.get("outside") == "1" else _coordinates(shape.get("points") or "", f"{place}, {label}")
            if not xys:
                continue
            before = counts.setdefault(label, (len(xys), file))
            if before[0] != len(xys):
                raise UserError(
                    f"{place}: the shape {label} has {len(xys)} points, but {before[0]} in {before[1]}, so its points "
                    "have no fixed meaning; label each point by a name of its own"
                )
            for i, xy in enumerate(xys):
                name = label if len(xys) == 1 else f"{label}_{i}"
                put(points, name, xy, place)
                if shape.get("occluded") == "1":
                    hidden.add(name)
        size = size_of(image.get("height"), image.get("width"), place)
        split = (image.get("subset") or "").lower()
        split = split if split in ("train", "test") else ""
        images.append(Labelled((file,), place, points, frozenset(hidden), size, split))
    return Labels(images)


def _coordinates(text: str, place: str) -> list[tuple[float, float]]:
    """Read `x1,y1;x2,y2` as pixels with centres at integers."""
    out = []
    for pair in filter(None, text.strip().split(";")):
        cells = pair.split(",")
        if len(cells) != 2:
            raise UserError(f"{place}: {pair[:40]!r} is not `x,y`; export the labels again")
        out.append(tuple(number(cell, place) - 0.5 for cell in cells))
    return out
