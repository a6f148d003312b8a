"""SLEAP files: user and predicted instances, old origin, what they may not hold."""

import builtins
import json

import numpy as np
import pytest

from tests.data.labels import made
from uld_jax.data import labels
from uld_jax.errors import UserError

h5py = pytest.importorskip("h5py")
IMAGES = {"backend": {"type": "ImageVideo", "filenames": ["/home/x/im/a.png", "/home/x/im/b.png", "/home/x/im/c.png"]}}
POINT = [("x", "f8"), ("y", "f8"), ("visible", "?"), ("complete", "?")]
# frame of each instance, its type, its points
INSTANCES = (
    (0, 0, [(1.5, 2, 1, 0), (9, 9, 0, 0), (np.nan, np.nan, 1, 0)]),
    (0, 1, [(7, 7, 1, 0)] * 3),
    (1, 1, [(8, 8, 1, 0)] * 3),
    (2, 0, [(3, 4, 1, 1), (5, 6, 1, 1), (7.25, 8, 1, 1)]),
)


def write(path, instances=INSTANCES, version=1.2, video=IMAGES, tracks=None):
    rows = np.zeros(
        len(instances),
        [
            *(("instance_id", "i8"), ("instance_type", "u1"), ("frame_id", "u8"), ("skeleton", "u4"), ("track", "i4")),
            *(("from_predicted", "i8"), ("score", "f4"), ("point_id_start", "u8"), ("point_id_end", "u8")),
        ],
    )
    tables = [[], []]
    rows["track"] = -1 if tracks is None else np.arange(len(rows)) % (len(tracks) + 1) - 1
    for row, (frame, kind, points) in zip(rows, instances, strict=True):
        row["frame_id"], row["instance_type"], row["point_id_start"] = frame, kind, len(tables[kind])
        tables[kind] += points if kind == 0 else [(*p, 0.5) for p in points]
        row["point_id_end"] = len(tables[kind])
    frames = np.zeros(3, [("frame_id", "u8"), ("video", "u4"), ("frame_idx", "u8")])
    frames["frame_id"] = frames["frame_idx"] = range(3)
    # The skeleton's own order is another one than that of all nodes.
    known = {
        "nodes": [{"name": n} for n in ("tail", "nose", "ear")],
        "skeletons": [{"nodes": [{"id": i} for i in (1, 2, 0)]}],
    }
    with h5py.File(path, "w") as file:
        file.create_group("metadata").attrs["format_id"] = version
        file["metadata"].attrs["json"] = np.bytes_(json.dumps(known))
        file["frames"], file["instances"] = frames, rows
        file["points"] = np.array(tables[0], POINT)
        file["pred_points"] = np.array(tables[1], [*POINT, ("score", "f8")])
        file.create_dataset("videos_json", data=[json.dumps(video)], dtype=h5py.string_dtype())
        if tracks is not None:
            texts = [json.dumps([0, name]) for name in tracks]
            file.create_dataset("tracks_json", data=texts, dtype=h5py.string_dtype())


def folder(path):
    return made.photos(path, {f"im/{n}.png": (30, 40) for n in "abc"})


@pytest.mark.parametrize("version", [1, 1.0, 1.1, 1.2, 2.8])
def test_labels_of_a_user(tmp_path, version):
    write(folder(tmp_path) / "labels.slp", version=version)
    found, said = made.read(tmp_path)
    off = 0.5 if version < 1.1 else 0
    assert made.points(found) == {
        "im/a.png": {"nose": (1.5 - off, 2 - off)},
        "im/c.png": {"nose": (3 - off, 4 - off), "ear": (5 - off, 6 - off), "tail": (7.25 - off, 8 - off)},
    }
    assert found.landmark_names == ("nose", "ear", "tail")
    assert any("1 frames without labels of a user are not read" in one for one in said)


def test_instances_are_objects(tmp_path):
    none = [(np.nan, np.nan, 1, 0)] * 3
    some = [(0, 0, [(i, 2, 1, 0), (9, 9, 0, 0), (3, i, 1, 0)]) for i in (1, 4, 6)] + [(0, 0, none), (2, 0, none)]
    write(folder(tmp_path) / "labels.slp", some, tracks=["left", "right"])
    with pytest.raises(UserError, match=r"has 3 objects \(0, left, right\)"):
        made.read(tmp_path)
    wanted = {
        ("im/a.png", n): ({"nose": (i, 2), "tail": (3, i)}, None) for n, i in (("0", 1), ("left", 4), ("right", 6))
    }
    assert made.objects(tmp_path)[0] == wanted | {("im/c.png", ""): ({}, None)}
    write(tmp_path / "labels.slp", some[:2])  # without the table of tracks
    assert list(made.objects(tmp_path)[0]) == [("im/a.png", "0"), ("im/a.png", "1")]


def test_predictions_alone_are_read(tmp_path):
    write(folder(tmp_path) / "labels.h5", [one for one in INSTANCES if one[1] == 1])
    found, said = made.read(tmp_path)
    assert {name: set(p.values()) for name, p in made.points(found).items()} == {
        "im/a.png": {(7, 7)},
        "im/b.png": {(8, 8)},
    }
    assert any("predictions are read" in one for one in said)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            dict(instances=[INSTANCES[0], INSTANCES[0]]),
            rf"image /home/x/im/a.png has 2 objects \(0, 1\), and {made.COMMAND}",
        ),
        (dict(video={"backend": {"filename": "film.mp4"}}), "its frames are in the film film.mp4"),
        (dict(video={"backend": {"filename": ".", "dataset": "video0/video"}}), "its frames are inside the file"),
        (dict(version=3.0), "has SLEAP's format 3"),
        (dict(instances=[(0, 0, INSTANCES[0][2][:2])]), "has 2 points, and the skeleton 3"),
        (dict(video={"backend": {"filenames": ["a.png"]}}), "is not a SLEAP file as it should be"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, changed, message):
    write(folder(tmp_path) / "labels.slp", **changed)
    with pytest.raises(UserError, match=message) as error:
        made.read(tmp_path)
    assert "labels.slp" in str(error.value)


def test_other_hdf5_files(tmp_path, monkeypatch):
    path = folder(tmp_path) / "a.h5"
    with h5py.File(path, "w") as file:
        file["tracks"], file["node_names"] = np.zeros((1, 2, 3, 4)), [b"a"]
    with pytest.raises(UserError, match=r"a.h5 is SLEAP's analysis file"):
        made.read(tmp_path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n and pred_points")
    with pytest.raises(UserError, match=r"a.h5 cannot be read as HDF5"):
        made.read(tmp_path)
    with h5py.File(path, "w") as file:
        file["other"] = np.zeros(3)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "h5py":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert made.read(tmp_path)[0] is None  # no need of h5py for files that are no labels
    monkeypatch.undo()
    write(path)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"a.h5 is an HDF5 file, .* run `pip install 'uld_jax\[labels\]'`"):
        made.read(tmp_path)
    with pytest.raises(UserError, match="pip install"):
        labels.FORMATS["slp"].check_writable("landmarks.slp")


def test_sleap_io_reads_what_is_written(tmp_path):
    sleap_io = pytest.importorskip("sleap_io")
    found = made.predictions(2)
    labels.FORMATS["slp"].write(tmp_path / "landmarks.slp", found)
    read = sleap_io.load_slp(str(tmp_path / "landmarks.slp"))
    want = np.where(found.score[..., None] > 0, found.xy, np.nan)
    np.testing.assert_allclose([frame.instances[0].numpy() for frame in read], want)
