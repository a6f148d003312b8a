"""dlib's imglab, XML: `dataset/images/image/box/part`.

Coordinates are whole, 0-based indices of pixels, hence as here (dlib @ 3d40bf5, examples/faces and data_io). dlib reads
pixels as they are stored, without a look at the EXIF tag (dlib issue 1706), so points of a photo with such a tag are
turned here. The order of the points is that of their names as text, over all files; a part may be absent; boxes with
`ignore` are none.
"""

from uld_jax.data.labels.common import ONE_OBJECT, Labelled, Labels, number, put, size_of, word
from uld_jax.errors import UserError

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
        boxes = [box for box in image.findall("box") if box.get("ignore") in (None, "0")]
        if len(boxes) > 1 and any(box.find("part") is not None for box in boxes):
            raise UserError(f"{place} has {len(boxes)} boxes, and {ONE_OBJECT}")
        points = {}
        for part in boxes[0].findall("part") if boxes else ():
            name = word(part.get("name"), "the name of a part", place)
            put(points, name, tuple(number(part.get(axis), f"{place}, part {name}") for axis in "xy"), place)
        size = size_of(image.get("height"), image.get("width"), place)
        images.append(Labelled((file,), place, points, size=size, stored=True))
    return Labels(images)
