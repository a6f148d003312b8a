"""dlib's imglab, XML: `dataset/images/image/box/part`.

Coordinates are whole, 0-based indices of pixels, hence as here (dlib @ 3d40bf5, examples/faces and data_io). dlib reads
pixels as they are stored, without a look at the EXIF tag (dlib issue 1706), so points of a photo with such a tag are
turned here. The order of the points is that of their names as text, over all files; a part may be absent.

A box is an object, named by its label if it has one; boxes with `ignore` are none. A box begins with the pixel
(left, top) and is `width` pixels wide.
"""

from uld_jax.data.labels.common import Labelled, Labels, Object, box_of, number, objects_of, put, size_of, word

NAME = "dlib imglab"


def fits(content) -> bool:
    """Tell whether a parsed XML has this format."""
    return content.tag == "dataset" and content.find("images") is not None


def read(path, content) -> Labels:
    """Read the images of a file; content is the root of its XML. Raises UserError naming the file and the image."""
    images = []
    for image in content.findall("images/image"):
        file = word(image.get("file"), "the file of an image", path)
        place = f"{path}, image {file}"
        objects = []
        for box in image.findall("box"):
            if box.get("ignore") in (None, "0"):
                objects.append(_object(box, place))
        size = size_of(image.get("height"), image.get("width"), place)
        images += objects_of(Labelled((file,), place, {}, size=size, stored=True), objects)
    return Labels(images)


def _object(box, place: str) -> Object:
    points = {}
    for part in box.findall("part"):
        name = word(part.get("name"), "the name of a part", place)
        xy = tuple(number(part.get(axis), f"{place}, part {name}") for axis in "xy")
        put(points, name, xy, place, "give each a box of its own")
    try:
        left, top, width, height = (float(box.get(name, "")) for name in ("left", "top", "width", "height"))
    except ValueError:
        return Object(box.findtext("label") or "", points)
    return Object(box.findtext("label") or "", points, box=box_of(left, top, left + width, top + height))
