"""COCO keypoints, JSON: `images`, `annotations` and `categories` whose `keypoints` names the points.

Coordinates are 0-based indices of pixels, by COCO's format page, and hence as here. In labels v = 0 is a missing point,
whatever its coordinates are (the official sample of results has v = 0 with coordinates), v = 1 a hidden and v = 2 a
visible one. A file that holds no v = 2 marks all its labels with 1, as conversions of WFLW, 300-W and AFLW do; they are
taken as visible. Annotations with `iscrowd`, or without any point, are none for COCO's evaluation, nor here.

An annotation is an object, named by its id. A `bbox` is measured from the corner of the first pixel, by the format
page; one without area is none.
"""

import json

from uld_jax import files
from uld_jax.data.labels.common import (
    Labelled,
    Labels,
    Object,
    Predictions,
    box_of,
    items,
    number,
    objects_of,
    size_of,
    word,
)
from uld_jax.errors import UserError

NAME = "COCO keypoints"
ENDING = ".json"


def fits(content) -> bool:
    """Tell whether parsed JSON has this format."""
    return (
        isinstance(content, dict)
        and all(isinstance(content.get(key), list) for key in ("images", "annotations", "categories"))
        and any(isinstance(c, dict) and c.get("keypoints") for c in content["categories"])
    )


def read(path, content) -> Labels:
    """Read the images of a file; content is its parsed JSON. Raises UserError naming the file and the image."""
    of_category = {}
    for category in items(content["categories"], dict, "categories", path):
        if category.get("keypoints"):
            names = tuple(word(n, "a keypoint", path) for n in items(category["keypoints"], str, "keypoints", path))
            if len(set(names)) < len(names):
                raise UserError(f"{path}: the category {category.get('name')} has two points of one name; rename one")
            of_category[_id(category, "id", path)] = names
    objects = {}
    for one in items(content["annotations"], dict, "annotations", path):
        if _id(one, "category_id", path) in of_category and not one.get("iscrowd") and one.get("num_keypoints") != 0:
            place = f"{path}, annotation {one.get('id')}"
            found = _points(one.get("keypoints"), of_category[one["category_id"]], place)
            if found:
                objects.setdefault(_id(one, "image_id", path), []).append((one, found))
    used = {of_category[one["category_id"]] for some in objects.values() for one, _ in some}
    if len(used) > 1:
        raise UserError(f"{path} labels points of several categories; give the images of each category their own file")
    names = used.pop() if used else next(iter(of_category.values()))
    seen = {v for some in objects.values() for _, found in some for _, v in found.values()}
    unmarked, images, known = seen == {1}, [], set()
    for image in items(content["images"], dict, "images", path):
        file = word(image.get("file_name"), "file_name", f"{path}, image {image.get('id')}")
        place = f"{path}, image {file}"
        if (key := _id(image, "id", path)) in known:
            raise UserError(f"{place} has the id {key} of another image; give each image its own")
        known.add(key)
        size = size_of(image.get("height"), image.get("width"), place)
        here = [_object(one, found, unmarked) for one, found in objects.get(key, ())]
        images += objects_of(Labelled((file,), place, {}, size=size), here)
    if lost := set(objects) - known:
        raise UserError(f"{path} has annotations of the image {sorted(map(str, lost))[0]}, which it does not list")
    note = "no point has v = 2, so points with v = 1 are taken as visible" if unmarked else ""
    return Labels(images, names, note)


def _id(one: dict, field: str, path) -> int | str:
    """Return an id. Raises UserError if it is absent or no id."""
    value = one.get(field)
    if not isinstance(value, int | str):
        raise UserError(f"{path}: {field} of an entry is {str(value)[:40]!r}, and no id; correct it")
    return value


def _object(one: dict, found, unmarked: bool) -> Object:
    hidden = frozenset() if unmarked else frozenset(n for n, (_, v) in found.items() if v == 1)
    box = one.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box):
        x, y, width, height = box
        box = box_of(x, y, x + width, y + height)
    else:
        box = None
    name = "" if one.get("id") is None else str(one["id"])
    return Object(name, {n: xy for n, (xy, _) in found.items()}, hidden, box)


def _points(values, names, place: str) -> dict[str, tuple[tuple[float, float], int]]:
    """Read {name: ((x, y), v)} of the points with v of 1 or 2."""
    if not isinstance(values, list) or len(values) != 3 * len(names):
        raise UserError(f"{place}: keypoints is not {len(names)} times x, y, v, as its category says; correct it")
    out = {}
    for i, name in enumerate(names):
        v = values[3 * i + 2]
        if v not in (0, 1, 2):
            raise UserError(f"{place}: the point {name} has v = {v}; use 0 (missing), 1 (hidden) or 2 (visible)")
        if v:
            x, y = (number(values[3 * i + j], f"{place}, point {name}") for j in range(2))
            out[name] = (x, y), int(v)
    return out


def write(path, found: Predictions) -> None:
    """Write predictions as labels, with v = 2 for landmarks that were found, and their mean score."""
    images, annotations = [], []
    for i, (file, (height, width)) in enumerate(zip(found.files, found.sizes, strict=True), 1):
        images.append({"id": i, "file_name": file, "width": int(width), "height": int(height)})
        there = [k for k, score in enumerate(found.score[i - 1]) if score > 0]
        if not there:
            continue
        xy = [[round(float(v), 3) for v in point] for point in found.xy[i - 1]]
        points = [n for k, (x, y) in enumerate(xy) for n in ((x, y, 2) if k in there else (0, 0, 0))]
        low, high = ([choose(xy[k][axis] for k in there) for axis in range(2)] for choose in (min, max))
        w, h = (round(b - a, 3) for a, b in zip(low, high, strict=True))
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": i,
                "category_id": 1,
                "keypoints": points,
                "num_keypoints": len(there),
                "bbox": [*low, w, h],
                "area": round(w * h, 3),
                "iscrowd": 0,
                "score": round(sum(float(found.score[i - 1][k]) for k in there) / len(there), 4),
            }
        )
    category = {"id": 1, "name": "object", "keypoints": list(found.names), "skeleton": []}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    files.write(path, json.dumps(content, indent=1, ensure_ascii=False))
