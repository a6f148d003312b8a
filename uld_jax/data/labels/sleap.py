"""SLEAP `.slp`, HDF5: `frames`, `instances`, `points`, `pred_points`, `videos_json` and `metadata`.

Pixel centres are at integers. In files of a format before 1.1 the first pixel's corner is the origin, so half a pixel
is subtracted. NaN, or `visible` = False, is a missing point. Instances of the type 0 were labelled by a user, those of
type 1 are predictions (SLEAP's tests/data; sleap-io 0.9.5, which refuses formats from 3 on, and writes 1.4).

A file with user instances is read by these alone, any other one by its predictions. Videos must be lists of images.
An instance is an object, named by its track if it has one.
"""

import io
import json
import math

import numpy as np

from uld_jax import files
from uld_jax.data.labels import common
from uld_jax.data.labels.common import Labelled, Labels, Object, Predictions, objects_of
from uld_jax.errors import UserError

NAME = "SLEAP"
ENDING = ".slp"
_FORMAT = 1.2  # SLEAP 1.2 and later read it; newer formats have the same tables of points
_CENTRES = 1.1  # the first format whose pixel centres are at integers
_MOST = 3.0


def fits(file) -> bool:
    """Tell whether an open HDF5 file has this format, or is SLEAP's analysis file, which `read` refuses."""
    return {"frames", "instances", "metadata"} <= set(file) or {"tracks", "node_names"} <= set(file)


def read(path, file) -> Labels:
    """Read an open HDF5 file. Raises UserError naming the file, and the frame if there is one."""
    if "instances" not in file:
        raise UserError(f"{path} is SLEAP's analysis file, which names no images; give the project, a .slp file")
    try:
        return _read(path, file)
    except common.DAMAGED as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is not a SLEAP file as it should be ({' '.join(str(error).split())[:80]}); save it again in SLEAP"
        ) from None


def _read(path, file) -> Labels:
    version = float(file["metadata"].attrs["format_id"])
    if version >= _MOST:
        raise UserError(f"{path} has SLEAP's format {version:g}, and formats below {_MOST:g} are understood")
    skeletons = _skeletons(json.loads(file["metadata"].attrs["json"]))
    videos = [json.loads(text) for text in file["videos_json"][()]]
    frames, instances = file["frames"][()], file["instances"][()]
    of_frame = {}
    for row in instances:
        of_frame.setdefault(int(row["frame_id"]), []).append(row)
    tables = [file["points"][()], file["pred_points"][()]]  # of users, predicted
    kind = 0 if (instances["instance_type"] == 0).any() else 1
    used = {skeletons[int(row["skeleton"])] for row in instances if row["instance_type"] == kind}
    if len(used) > 1:
        raise UserError(f"{path} labels several skeletons; give the images of each their own file")
    names = used.pop() if used else next(iter(skeletons), ())
    shift = 0.5 if version < _CENTRES else 0.0
    tracks = _tracks(file)
    images, left = [], 0
    for frame in frames:
        here = [row for row in of_frame.get(int(frame["frame_id"]), ()) if row["instance_type"] == kind]
        if not here:
            left += 1
            continue
        spelt = _file(videos[int(frame["video"])], int(frame["frame_idx"]), path)
        place = f"{path}, image {spelt}"
        objects = []
        for row in here:
            points = _points(tables[kind], row, names, shift, place)
            track = int(row["track"]) if "track" in instances.dtype.names else -1
            objects += [Object(tracks[track] if 0 <= track < len(tracks) else "", points)] if points else []
        images += objects_of(Labelled((spelt,), place, {}), objects)
    notes = ["it holds predictions and no labels of a user, so predictions are read"] if kind and images else []
    if left:
        notes.append(f"{left} frames without {'predictions' if kind else 'labels of a user'} are not read")
    return Labels(images, names, "; ".join(notes))


def _points(table, row, names, shift: float, place: str) -> dict[str, tuple[float, float]]:
    """Read the points of an instance."""
    rows = table[int(row["point_id_start"]) : int(row["point_id_end"])]
    if len(rows) != len(names):
        raise UserError(f"{place} has {len(rows)} points, and the skeleton {len(names)}; save it again in SLEAP")
    points = {}
    for name, one in zip(names, rows, strict=True):
        x, y = float(one["x"]), float(one["y"])
        if one["visible"] and math.isfinite(x) and math.isfinite(y):
            points[name] = x - shift, y - shift
    return points


def _tracks(file) -> list[str]:
    """Read the names of the tracks, which are pairs of a first frame and a name; none in files without the table."""
    if "tracks_json" not in file:
        return []
    return [str(json.loads(text)[-1]) for text in file["tracks_json"][()]]


def _skeletons(metadata) -> list[tuple[str, ...]]:
    """Read the names of each skeleton's nodes, in its own order."""
    nodes = [node["name"] for node in metadata["nodes"]]
    return [tuple(nodes[node["id"]] for node in one["nodes"]) for one in metadata["skeletons"]]


def _file(video, frame: int, path) -> str:
    """Return the path of the image that is a frame. Raises UserError for frames of a film or inside the file."""
    backend = video.get("backend") or {}
    names = backend.get("filenames") or video.get("filenames") or video.get("filename") or backend.get("filename")
    if isinstance(names, list):
        return names[frame]
    where = "inside the file itself" if names in (None, ".") else f"in the film {names}"
    raise UserError(
        f"{path}: its frames are {where}, and labels are read for image files; save the frames as images, load these "
        "in SLEAP, and label them"
    )


def check_writable(path) -> None:
    """Raise UserError if h5py is not installed."""
    common.hdf5_module(path)


def write(path, found: Predictions) -> None:
    """Write predicted instances on a video that is the list of the images."""
    n, k = len(found.files), len(found.names)
    xy, score = np.asarray(found.xy, np.float64).reshape(n, k, 2), np.asarray(found.score, np.float64).reshape(n, k)
    there = score > 0
    rows = np.arange(n)
    frames = np.zeros(
        n,
        [
            *(("frame_id", "u8"), ("video", "u4"), ("frame_idx", "u8")),
            *(("instance_id_start", "u8"), ("instance_id_end", "u8")),
        ],
    )
    frames["frame_id"] = frames["frame_idx"] = frames["instance_id_start"] = rows
    frames["instance_id_end"] = rows + 1
    instances = np.zeros(
        n,
        [
            *(("instance_id", "i8"), ("instance_type", "u1"), ("frame_id", "u8"), ("skeleton", "u4")),
            *(("track", "i4"), ("from_predicted", "i8"), ("score", "f4")),
            *(("point_id_start", "u8"), ("point_id_end", "u8"), ("tracking_score", "f4")),
        ],
    )
    instances["instance_id"] = instances["frame_id"] = rows
    instances["instance_type"], instances["track"], instances["from_predicted"] = 1, -1, -1
    instances["score"] = np.where(there.any(1), (score * there).sum(1) / np.maximum(there.sum(1), 1), 0)
    instances["point_id_start"], instances["point_id_end"] = rows * k, (rows + 1) * k
    point = [("x", "f8"), ("y", "f8"), ("visible", "?"), ("complete", "?")]
    predicted = np.zeros(n * k, [*point, ("score", "f8")])
    placed = np.where(there[..., None], xy, np.nan).reshape(-1, 2)
    predicted["x"], predicted["y"] = placed.T
    predicted["visible"], predicted["score"] = there.ravel(), score.ravel()
    names = [files.printable(name) for name in found.files]
    video = {"filename": names, "backend": {"type": "ImageVideo", "filename": names[0], "filenames": names}}
    out = io.BytesIO()
    with common.hdf5_module(path).File(out, "w") as file:
        group = file.create_group("metadata")
        group.attrs["format_id"] = _FORMAT
        group.attrs["json"] = np.bytes_(json.dumps(_metadata(found.names)).encode())
        file["frames"], file["instances"], file["pred_points"] = frames, instances, predicted
        file["points"] = np.zeros(0, point)
        texts = {"videos_json": [json.dumps(video)], "tracks_json": [], "suggestions_json": []}
        for name, values in texts.items():
            text = common.hdf5_module(path).special_dtype(vlen=bytes)
            file.create_dataset(name, data=[value.encode() for value in values], dtype=text, maxshape=(None,))
    files.write(path, out.getvalue())


def _metadata(names) -> dict:
    """Return what SLEAP keeps of a project, with one skeleton without edges."""
    graph = {"name": "uld_jax", "num_edges_inserted": 0}
    nodes = [{"id": i} for i in range(len(names))]
    skeleton = {"directed": True, "graph": graph, "links": [], "multigraph": True, "nodes": nodes}
    return {
        "version": "2.0.0",
        "skeletons": [skeleton],
        "nodes": [{"name": name, "weight": 1.0} for name in names],
        "videos": [],
        "tracks": [],
        "suggestions": [],
        "negative_anchors": {},
        "provenance": {"made_by": "uld_jax"},
    }
