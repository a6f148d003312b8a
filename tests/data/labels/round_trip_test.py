"""Labels of every format are read, learned, predicted, written, and read again by the tool's own package.

Every photo has its points at the same places, which a detector whose landmarks never move can learn exactly. What comes
out must hence be what went in, whatever a format counts from, and whichever way a photo is turned.
"""

import csv
import io
import json
import warnings

import numpy as np
import pytest

from tests import fixed
from tests.data.labels import made, sleap_test
from uld_jax import data
from uld_jax.data.annotation import CsvNote
from uld_jax.detector import fit_folder
from uld_jax.predict import predict_folder, table_of

pytestmark = pytest.mark.filterwarnings("ignore::uld_jax.data.annotation.CsvNote")
HEIGHT, WIDTH = 60, 80  # of the upright photos
FILES = ("im/a.png", "im/b.png", "im/turned.jpg")
POINTS = {"nose": (20, 31), "ear": (41, 0), "tail": (5, 58)}  # whole numbers, which dlib needs
EXACT = {"nose": (20.25, 30.5), "ear": (41.125, 0), "tail": (5.75, 58.375)}


def pandas_table(animals=()):
    """A table as DeepLabCut makes it; of several animals, each of which is a pixel further right and below."""
    pandas = pytest.importorskip("pandas")
    names = ["scorer", *["individuals"] * bool(animals), "bodyparts", "coords"]
    levels = [
        ("me", *some, point, axis) for some in ([(a,) for a in animals] or [()]) for point in EXACT for axis in "xy"
    ]
    index = pandas.MultiIndex.from_tuples([("labeled-data", *file.split("/")) for file in FILES])
    columns = pandas.MultiIndex.from_tuples(levels, names=names)
    row = np.concatenate([np.ravel(list(EXACT.values())) + k for k in range(max(len(animals), 1))])
    return pandas.DataFrame([row] * 3, index=index, columns=columns)


def dlc_csv(folder, animals=()):
    pandas_table(animals).to_csv(folder / "CollectedData_me.csv")


def dlc_h5(folder, animals=()):
    pytest.importorskip("tables")
    pandas_table(animals).to_hdf(folder / "CollectedData_me.h5", key="df_with_missing", mode="w")


def dlc_h5_table(folder, animals=()):
    """The layout of old projects, in which a path is one cell."""
    pytest.importorskip("tables")
    table = pandas_table(animals)
    table.index = ["/".join(parts) for parts in table.index]
    table.to_hdf(folder / "CollectedData_me.h5", key="df_with_missing", mode="w", format="table")


def dlc_by_hand(folder):
    head = ["scorer" + ",me" * 6, "bodyparts,nose,nose,ear,ear,tail,tail", "coords" + ",x,y" * 3]
    cells = ",".join(map(str, np.ravel(list(EXACT.values()))))
    (folder / "CollectedData_me.csv").write_text(
        "\n".join([*head, *(f"labeled-data/{file},{cells}" for file in FILES)])
    )


def slp(folder):
    sio = pytest.importorskip("sleap_io")
    skeleton = sio.Skeleton(list(EXACT))
    video = sio.Video.from_filename([str(folder / file) for file in FILES])
    points = np.array(list(EXACT.values()))
    frames = [
        sio.LabeledFrame(video=video, frame_idx=i, instances=[sio.Instance.from_numpy(points, skeleton=skeleton)])
        for i in range(3)
    ]
    sio.Labels(frames).save(str(folder / "labels.slp"), embed=False)


def slp_of_an_old_format(folder):
    """From the corner of the first pixel."""
    pytest.importorskip("h5py")
    rows = [(x + 0.5, y + 0.5, 1, 1) for x, y in EXACT.values()]
    video = {"backend": {"type": "ImageVideo", "filenames": [f"/elsewhere/{file}" for file in FILES]}}
    sleap_test.write(folder / "labels.slp", [(i, 0, rows) for i in range(3)], version=1, video=video)


def coco(folder):
    images = [{"id": i, "file_name": file, "height": HEIGHT, "width": WIDTH} for i, file in enumerate(FILES)]
    points = [value for xy in EXACT.values() for value in (*xy, 2)]
    notes = [{"id": i, "image_id": i, "category_id": 1, "keypoints": points, "num_keypoints": 3} for i in range(3)]
    categories = [{"id": 1, "name": "cat", "keypoints": list(EXACT), "skeleton": []}]
    (folder / "coco.json").write_text(json.dumps({"images": images, "annotations": notes, "categories": categories}))


def cvat(folder):
    points = "".join(f'<points label="{n}" points="{x + 0.5},{y + 0.5}"/>' for n, (x, y) in EXACT.items())
    images = [f'<image name="{file}" width="{WIDTH}" height="{HEIGHT}">{points}</image>' for file in FILES]
    (folder / "annotations.xml").write_text(f"<annotations>{''.join(images)}</annotations>")


def labelstudio(folder):
    def result(name, x, y):
        value = {"x": (x + 0.5) / WIDTH * 100, "y": (y + 0.5) / HEIGHT * 100, "keypointlabels": [name]}
        size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
        return {"type": "keypointlabels", "value": value} | size

    results = [result(name, *xy) for name, xy in EXACT.items()]
    tasks = [{"id": i, "data": {"image": f}, "annotations": [{"result": results}]} for i, f in enumerate(FILES)]
    (folder / "project.json").write_text(json.dumps(tasks))


def labelme(folder):
    shapes = [{"label": n, "shape_type": "point", "points": [[x + 0.5, y + 0.5]]} for n, (x, y) in EXACT.items()]
    for file in FILES:
        image = {"imagePath": file.removeprefix("im/"), "imageWidth": WIDTH, "imageHeight": HEIGHT}
        (folder / file).with_suffix(".json").write_text(json.dumps({"shapes": shapes, **image}))


def imglab(folder):
    """In the pixels as they are stored: a photo that is turned clockwise shows their lowest row at its left."""
    images = []
    for file in FILES:
        stored = {n: (y, WIDTH - 1 - x) if "turned" in file else (x, y) for n, (x, y) in POINTS.items()}
        parts = "".join(f"<part name='{n}' x='{x}' y='{y}'/>" for n, (x, y) in stored.items())
        images.append(f"<image file='{file}'><box top='0' left='0' width='9' height='9'>{parts}</box></image>")
    (folder / "faces.xml").write_text(f"<dataset><images>{''.join(images)}</images></dataset>")


def menpo(folder):
    points = [[y, x] for x, y in EXACT.values()]
    for file in FILES:
        content = {"version": 3, "groups": {"LJSON": {"landmarks": {"points": points}, "labels": []}}}
        (folder / file).with_suffix(".ljson").write_text(json.dumps(content))


def pts(folder):
    lines = "\n".join(f"{x + 1} {y + 1}" for x, y in EXACT.values())
    for file in FILES:
        (folder / file).with_suffix(".pts").write_text(f"version: 1\nn_points: 3\n{{\n{lines}\n}}\n")


# Readers of what is written: {file: {name: (x, y)}}, each by what the tool has for it, else by hand.


def read_csv(path):
    rows = csv.DictReader(io.StringIO(path.read_text()))
    header = rows.fieldnames
    named = {name[:-2]: (name, f"{name[:-1]}y") for name in header if name.endswith("_x")}
    named = named or {f"{k}": (f"x{k}", f"y{k}") for k in range(len(header) // 3)}
    return {row["file"]: {n: (float(row[x]), float(row[y])) for n, (x, y) in named.items()} for row in rows}


def read_dlc(path):
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(path, header=[0, 1, 2], index_col=[0, 1, 2])
    return {
        "/".join(index[1:]): {point: tuple(row["uld_jax", point, axis] for axis in "xy") for point in EXACT}
        for index, row in table.iterrows()
    }


def read_dlc_by_hand(path):
    _, parts, coords, *rows = csv.reader(io.StringIO(path.read_text()))
    assert coords[3:] == ["x", "y"] * 3
    return {
        "/".join(row[1:3]): {parts[j]: (float(row[j]), float(row[j + 1])) for j in range(3, len(row), 2)}
        for row in rows
    }


def read_slp(path):
    sio = pytest.importorskip("sleap_io")
    found = sio.load_slp(str(path))
    video = found.videos[0]
    return {
        video.filename[frame.frame_idx]: dict(
            zip(found.skeletons[0].node_names, frame.instances[0].numpy(), strict=True)
        )
        for frame in found
    }


def read_slp_by_hand(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path) as file:
        assert file["metadata"].attrs["format_id"] >= 1.1  # centres at integers
        names = [node["name"] for node in json.loads(file["metadata"].attrs["json"])["nodes"]]
        rows = file["pred_points"][()]
        images = json.loads(file["videos_json"][0])["backend"]["filenames"]
    xy = np.stack([rows["x"], rows["y"]], -1).reshape(len(images), -1, 2)
    return {image: dict(zip(names, some, strict=True)) for image, some in zip(images, xy, strict=True)}


def read_coco(path):
    tool = pytest.importorskip("pycocotools.coco")
    found = tool.COCO(str(path))
    return _of_coco(found.imgs.values(), found.anns.values(), found.cats.values())


def read_coco_by_hand(path):
    content = json.loads(path.read_text())
    return _of_coco(content["images"], content["annotations"], content["categories"])


def _of_coco(images, notes, categories):
    (category,) = categories
    file = {image["id"]: image["file_name"] for image in images}
    assert all((image["height"], image["width"]) == (HEIGHT, WIDTH) for image in images)
    xy = {file[note["image_id"]]: np.reshape(note["keypoints"], (-1, 3))[:, :2] for note in notes}
    return {name: dict(zip(category["keypoints"], some, strict=True)) for name, some in xy.items()}


def read_labelstudio(path):
    def point(result):
        value = result["value"]
        x, y = (value[a] / 100 * result[f"original_{side}"] - 0.5 for a, side in (("x", "width"), ("y", "height")))
        return value["keypointlabels"][0], (x, y)

    tasks = json.loads(path.read_text())
    address = "/data/local-files/?d="
    return {
        task["data"]["image"].removeprefix(address): dict(map(point, task["predictions"][0]["result"]))
        for task in tasks
    }


def read_labelstudio_by_tool(path):
    """Predictions that the tool's package finds valid, and its own conversion of them to COCO."""
    interface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface
    converter = pytest.importorskip("label_studio_sdk.converter").Converter
    labels = "".join(f'<Label value="{name}" model_index="{i}"/>' for i, name in enumerate(EXACT))
    labels = f'<KeyPointLabels name="keypoints" toName="image">{labels}</KeyPointLabels>'
    config = f'<View><Image name="image" value="$image"/>{labels}</View>'
    tasks = json.loads(path.read_text())
    for task in tasks:
        for prediction in task["predictions"]:
            assert interface(config).validate_prediction(prediction, return_errors=True) == []
    for i, task in enumerate(tasks, 1):  # a user accepts them
        task |= {"id": i, "annotations": [one | {"id": i} for one in task.pop("predictions")]}
    accepted = path.with_name("accepted.json")
    accepted.write_text(json.dumps(tasks))
    out = path.with_name("coco")
    converter(config, None, download_resources=False).convert_to_coco(
        str(accepted), str(out), output_image_dir=str(out / "images"), is_dir=False
    )
    made = json.loads((out / "result.json").read_text())
    assert made["categories"][0]["keypoints"] == list(EXACT)
    for note in made["annotations"]:  # whole numbers from the corner
        np.testing.assert_allclose(
            np.reshape(note["keypoints"], (-1, 3))[:, :2], np.add([*EXACT.values()], 0.5), atol=1
        )
    assert len(made["annotations"]) == len(FILES)
    return read_labelstudio(path)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return fixed.detector(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(
    ("write", "format", "read"),
    [
        (dlc_by_hand, "dlc", read_dlc_by_hand),
        (dlc_csv, "dlc", read_dlc),
        (dlc_h5, "csv", read_csv),
        (dlc_h5_table, "csv", read_csv),
        (slp_of_an_old_format, "slp", read_slp_by_hand),
        (slp, "slp", read_slp),
        (coco, "coco", read_coco_by_hand),
        (coco, "coco", read_coco),
        (labelstudio, "labelstudio", read_labelstudio),
        (labelstudio, "labelstudio", read_labelstudio_by_tool),
        (cvat, "coco", read_coco_by_hand),
        (labelme, "labelstudio", read_labelstudio),
        (imglab, "dlc", read_dlc_by_hand),
        (menpo, "slp", read_slp_by_hand),
        (pts, "csv", read_csv),
    ],
)
def test_what_was_labelled_is_predicted_and_written(detector, tmp_path, write, format, read):
    folder, out = tmp_path / "photos", tmp_path / "out"
    made.photos(folder, dict.fromkeys(FILES[:2], (HEIGHT, WIDTH)))
    made.photos(folder, {FILES[2]: (WIDTH, HEIGHT)}, turn=6)
    write(folder)
    wanted = POINTS if write is imglab else EXACT
    source = data.open_source("folder", "train", data_dir=folder, frame_size=40)
    truth = (source.landmarks - source.frame_maps[:, None, 2:]) / source.frame_maps[:, None, :2]
    names = source.spec.landmark_names or tuple(wanted)  # 300-W and menpo have none
    np.testing.assert_allclose(truth, [[wanted[name] for name in names]] * 3, atol=1e-3)
    assert set(source.names) == set(FILES)
    fit_folder(detector, folder)
    predict_folder(detector, folder, out, points="annotated", format=format)
    found = read(table_of(out, format))
    assert set(found) == set(FILES)
    for points in found.values():
        if source.spec.landmark_names:
            assert set(points) == set(wanted)
        else:
            assert list(points) == [f"landmark{k}" if format != "csv" else str(k) for k in range(3)]
            points = dict(zip(wanted, points.values(), strict=True))
        for name, xy in wanted.items():
            np.testing.assert_allclose(points[name], xy, atol=0.01)


def test_a_table_with_names_is_read_as_labels(detector, tmp_path):
    """The csv of `uld predict --points=annotated` as the train.csv of a folder."""
    folder, out = tmp_path / "photos", tmp_path / "out"
    made.photos(folder, dict.fromkeys(FILES[:2], (HEIGHT, WIDTH)))
    made.photos(folder, {FILES[2]: (WIDTH, HEIGHT)}, turn=6)
    cvat(folder)
    fit_folder(detector, folder)
    assert fixed.detector(detector.workdir).annotated_names == ("ear", "nose", "tail")
    predict_folder(detector, folder, out, points="annotated")
    header = (out / "landmarks.csv").read_text().partition("\n")[0]
    assert header == "file,ear_x,ear_y,ear_score,nose_x,nose_y,nose_score,tail_x,tail_y,tail_score"
    (folder / "annotations.xml").unlink()
    (out / "landmarks.csv").rename(folder / "train.csv")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", CsvNote)
        source = data.open_source("folder", "train", data_dir=folder, frame_size=40)
    assert [str(one.message) for one in said] == [
        f"{folder}/train.csv: 3 points with names (ear, nose, tail), separator ,"
    ]
    assert source.spec.landmark_names == ("ear", "nose", "tail")
    truth = (source.landmarks - source.frame_maps[:, None, 2:]) / source.frame_maps[:, None, :2]
    np.testing.assert_allclose(truth, [[EXACT[name] for name in source.spec.landmark_names]] * 3, atol=0.01)
    assert source.columns["nose_score"] == ["1.0000"] * 3
    predict_folder(detector, folder, out, points="discovered")
    assert (out / "landmarks.csv").read_text().startswith("file,x0,y0,score0,x1")


def test_sleap_io_writes_several_objects(tmp_path):
    sio = pytest.importorskip("sleap_io")
    made.photos(tmp_path, dict.fromkeys(FILES, (HEIGHT, WIDTH)))
    skeleton, tracks = sio.Skeleton(list(EXACT)), [sio.Track("left"), sio.Track("right")]
    video = sio.Video.from_filename([str(tmp_path / file) for file in FILES])
    points = np.array(list(EXACT.values()))
    frame = lambda i, some: sio.LabeledFrame(
        video=video,
        frame_idx=i,
        instances=[sio.Instance.from_numpy(points + k, skeleton=skeleton, track=t) for k, t in enumerate(some)],
    )
    sio.Labels([frame(0, [None, None]), frame(1, tracks)]).save(str(tmp_path / "a.slp"), embed=False)
    found, _ = made.objects(tmp_path)
    wanted = {(FILES[0], "0"): 0, (FILES[0], "1"): 1, (FILES[1], "left"): 0, (FILES[1], "right"): 1}
    assert found == {key: (_shifted(k), None) for key, k in wanted.items()}


@pytest.mark.parametrize("write", [dlc_csv, dlc_h5, dlc_h5_table])
def test_pandas_writes_several_animals(tmp_path, write):
    made.photos(tmp_path, dict.fromkeys(FILES, (HEIGHT + 9, WIDTH + 9)))
    write(tmp_path, ("m1", "m2"))
    found, _ = made.objects(tmp_path)
    assert found == {(file, name): (_shifted(k), None) for file in FILES for k, name in enumerate(("m1", "m2"))}


def _shifted(k):
    return {name: (x + k, y + k) for name, (x, y) in EXACT.items()}
