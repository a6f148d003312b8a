"""Label Studio, JSON: tasks with results of the type `keypointlabels`.

Coordinates are percent of `original_width` and `original_height`, which are the sizes of the photo turned by its EXIF
tag; 0 and 100 are the edges of the picture, so half a pixel is subtracted (label-studio-sdk 2.1.2). There is no
visibility. Label Studio's own export to COCO is not as good: it rounds, and
records the sizes of the unturned photos (label-studio issue 6608).

The points of an object have the same region as parent (`parentID`); if this is a rectangle that is not turned, it is
the object's box, and its label the object's name. Other results are not read.
"""

import json
import re
import urllib.parse

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
    points_by_group,
    size_of,
    word,
)
from uld_jax.errors import UserError

NAME = "Label Studio"
ENDING = ".json"
_POINTS = ("keypointlabels", "keypoint")
_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # Label Studio puts this before the names of uploaded files


def fits(content) -> bool:
    """Tell whether parsed JSON has this format, or is Label Studio's JSON-MIN, which `read` refuses."""
    if not isinstance(content, list) or not content or not all(isinstance(task, dict) for task in content):
        return False
    whole = all(isinstance(t.get("data"), dict) and ("annotations" in t or "predictions" in t) for t in content)
    return whole or all("annotation_id" in task for task in content)


def read(path, content) -> Labels:
    """Read the tasks of a file; content is its parsed JSON. Raises UserError naming the file and the task.

    A file without any annotation is read by its predictions.
    """
    if "data" not in content[0]:
        raise UserError(f"{path} is an export of Label Studio as JSON-MIN; export it as JSON")
    made = {key: [_made(task, key, path) for task in content] for key in ("annotations", "predictions")}
    key = "annotations" if any(made["annotations"]) else "predictions"
    images = [one for task, some in zip(content, made[key], strict=True) for one in _image(task, some, path)]
    told = key == "predictions" and any(image.points for image in images)
    return Labels(images, note="it holds predictions and no annotations, so predictions are read" if told else "")


def _made(task, key: str, path) -> list[list[dict]]:
    """List the results of each annotation, or prediction, of a task that holds points and was not cancelled."""
    place = f"{path}, task {task.get('id')}"
    out = []
    for one in items(task.get(key) or [], dict, key, place):
        results = items(one.get("result") or [], dict, "result", place)
        if any(r.get("type") in _POINTS for r in results) and not one.get("was_cancelled"):
            out.append(results)
    return out


def _image(task, made, path) -> list[Labelled]:
    spelt = _files(task, f"{path}, task {task.get('id')}")
    place = f"{path}, task {task.get('id')} ({spelt[0]})"
    if len(made) > 1:
        raise UserError(f"{place} has {len(made)} annotations with points; keep one of them")
    results = made[0] if made else []
    size, found = None, []
    for result in results:
        if result.get("type") in _POINTS:
            name, xy, size = _point(result, place)
            found.append((str(result.get("parentID") or ""), name, xy))
    stray = (
        "has {count} objects, and the point {name} belongs to none; drag it onto its object's region in the outliner"
    )
    points = points_by_group(found, place, "drag the points of each onto its region in the outliner", stray)
    regions = {str(r["id"]): r for r in results if "id" in r}
    objects = [Object(*_region(regions.get(parent), some, size)) for parent, some in points.items() if some]
    return objects_of(Labelled(spelt, place, {}, size=size), objects)


def _point(result, place: str) -> tuple[str, tuple[float, float], tuple[int, int]]:
    """Read the name of a point, its (x, y), and the (height, width) of its image."""
    value = result.get("value")
    names = value.get("keypointlabels") if isinstance(value, dict) else None
    if not isinstance(names, list) or len(names) != 1:
        raise UserError(f"{place} has a point without a label, or with several; give it one")
    name = word(names[0], "a label", place)
    if result.get("image_rotation"):
        raise UserError(f"{place} was turned in Label Studio; turn the image file itself, and label it again")
    if "x" not in value or "y" not in value:
        raise UserError(f"{place}: the point {name} has no x and y; label it again")
    size = size_of(result.get("original_height"), result.get("original_width"), place)
    if size is None:
        raise UserError(f"{place}: the point {name} has no original_width and original_height; export it again")
    return name, tuple(number(value[a], f"{place}, {name}") / 100 * size[a == "x"] - 0.5 for a in "xy"), size


def _region(region, points: dict, size) -> tuple:
    """Return what makes an `Object` of points and the region that is their parent, or None."""
    value = region.get("value") if region else None
    if not isinstance(value, dict):
        return "", points
    labels = value.get("rectanglelabels")
    name = labels[0] if isinstance(labels, list) and labels and isinstance(labels[0], str) else ""
    edges = [value.get(key) for key in ("x", "y", "width", "height")]
    if value.get("rotation") or not all(type(edge) in (int, float) for edge in edges):
        return name, points
    x, y, width, height = (edge / 100 * side for edge, side in zip(edges, size[::-1] * 2, strict=True))
    return name, points, frozenset(), box_of(x, y, x + width, y + height)


def _files(task, place: str) -> tuple[str, ...]:
    """Spell the path of a task's image in the ways that it may have on the disk."""
    data = task["data"]
    texts = [v for v in data.values() if isinstance(v, str)]
    address = data.get("image", texts[0] if len(texts) == 1 else None)
    address = word(address, "`image` of `data`", place)
    parts = urllib.parse.urlsplit(address)
    uploaded = address.startswith("/data/upload/")
    if address.startswith("/data/local-files/"):
        whole = urllib.parse.parse_qs(parts.query).get("d", [""])[0]
    elif uploaded or "://" in address:
        whole = urllib.parse.unquote(parts.path).lstrip("/")
    else:
        return (address,)
    spelt = [whole]
    if uploaded or parts.scheme in ("http", "https"):  # folders of the server
        spelt.append(whole.rpartition("/")[2])
    if match := _UPLOADED.fullmatch(spelt[-1]):
        spelt.append(match[1])
    if not whole:
        raise UserError(f"{place}: `image` of `data` is {address!r}, which names no image; export the labels again")
    return tuple(dict.fromkeys(spelt))


def write(path, found: Predictions) -> None:
    """Write tasks with predictions, to import; the images are addressed as Label Studio's local files."""
    tasks = []
    for i, (file, (height, width)) in enumerate(zip(found.files, found.sizes, strict=True)):
        results = []
        for k, (name, (x, y), score) in enumerate(zip(found.names, found.xy[i], found.score[i], strict=True)):
            if score > 0:
                at = {"x": round((float(x) + 0.5) / width * 100, 6), "y": round((float(y) + 0.5) / height * 100, 6)}
                results.append(
                    {
                        "id": f"{i}_{k}",
                        "from_name": "keypoints",
                        "to_name": "image",
                        "type": "keypointlabels",
                        "original_width": int(width),
                        "original_height": int(height),
                        "image_rotation": 0,
                        "score": round(float(score), 4),
                        "value": {**at, "width": 0.5, "keypointlabels": [name]},
                    }
                )
        address = f"/data/local-files/?d={urllib.parse.quote(files.printable(file))}"
        prediction = {"model_version": "uld_jax", "result": results}
        tasks.append({"data": {"image": address}, "predictions": [prediction]})
    files.write(path, json.dumps(tasks, indent=1, ensure_ascii=False))
