"""`uld fit` as a user meets it: annotated points of a stage, and their error."""

import csv
import json
import shlex
import shutil

import numpy as np

from tests import tiny
from uld_jax.data.open import open_split


def test_fit_places_annotated_points(run, photos, tmp_path, uld):
    workdir = tmp_path / "my run"
    shutil.copytree(run, workdir)
    args = (
        "predict",
        f"--workdir={workdir}",
        f"--images={photos / 'train'}",
        f"--out={tmp_path}",
        "--points=annotated",
    )
    code, _, err = uld(*args)
    assert code == 1
    assert "run `uld fit" in err
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    with (photos / "train.csv").open() as file, (unlabelled / "train.csv").open("w", newline="") as copy:
        for row in (reader := csv.reader(file)):
            where = [""] * 2 if reader.line_num > 1 else row[6:8]
            csv.writer(copy).writerow([row[0], row[1], *row[2:6], *where, *row[8:]])
    (unlabelled / "train").symlink_to(photos / "train")
    code, _, err = uld("fit", f"--workdir={workdir}", f"--data_dir={unlabelled}")
    assert code == 1
    assert "landmark 2 is annotated on none of the 24 images" in err
    assert not list(workdir.glob("annotated_*"))
    code, out, err = uld("fit", f"--workdir={workdir}", f"--data_dir={photos}")
    assert code == 0, err
    assert "20 annotated landmarks from 24" in out
    saved = json.loads((workdir / "annotated_detector.json").read_text())["leave_one_out"]
    assert f"leave-one-out error  {saved['error']:.2f} % (normaliser: box)" in out
    assert uld(*args)[0] == 0
    with (tmp_path / "landmarks.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = np.array([[[float(r[f"{c}{k}"]) for c in "xy"] for k in range(20)] for r in rows])
    source = open_split(tiny.short(photos), "train")
    error = np.linalg.norm(found - source.landmarks, axis=-1).mean()
    mean_shape = np.linalg.norm(source.landmarks.mean(0) - source.landmarks, axis=-1).mean()
    assert error < mean_shape
    # The annotated points of another stage are its own.
    code, _, err = uld(*args, "--stage=zeroshot")
    assert code == 1
    fit = f"uld fit --workdir='{workdir}' --stage=zeroshot --data_dir=LABELLED_PHOTOS"
    assert f"run `{fit}` first" in err
    code, out, err = uld("fit", f"--workdir={workdir}", "--stage=zeroshot", f"--data_dir={photos}")
    assert code == 0, err
    use = shlex.split(out.partition("use them  ")[2])
    assert use[:4] == ["uld", "predict", f"--workdir={workdir}", "--stage=zeroshot"]
    assert uld(*args, "--stage=zeroshot")[0] == 0
    with (tmp_path / "landmarks.csv").open() as file:
        other = list(csv.DictReader(file))
    assert other != rows


def test_names_of_points_go_from_labels_to_what_is_predicted(run, photos, tmp_path, uld, uld_says):
    """COCO labels of 24 photos, by `uld fit` and `uld predict` as a user types them."""
    workdir, folder, out = tmp_path / "run", tmp_path / "photos", tmp_path / "out"
    shutil.copytree(run, workdir)
    (folder / "train").parent.mkdir()
    (folder / "train").symlink_to(photos / "train")
    names = ["nose", "left ear", "tail"]
    with (photos / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    points = [[v for k in range(3) for v in (float(r[f"x{k}"]), float(r[f"y{k}"]), 2)] for r in rows]
    content = {
        "images": [{"id": i, "file_name": row["file"]} for i, row in enumerate(rows)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "keypoints": p} for i, p in enumerate(points)],
        "categories": [{"id": 1, "name": "cat", "keypoints": names}],
    }
    (folder / "labels.json").write_text(json.dumps(content))
    said = uld_says("fit", f"--workdir={workdir}", f"--data_dir={folder}")
    assert "3 annotated landmarks from 24 labelled images\n  names  nose, left ear, tail\n" in said
    assert json.loads((workdir / "annotated_detector.json").read_text())["names"] == names
    args = ("predict", f"--workdir={workdir}", f"--images={photos / 'test'}", f"--out={out}", "--points=annotated")
    uld_says(*args)
    with (out / "landmarks.csv").open() as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["file", *(f"{name}_{c}" for name in names for c in ("x", "y", "score"))]
    uld_says(*args, "--format=coco")
    written = json.loads((out / "landmarks.json").read_text())
    assert written["categories"][0]["keypoints"] == names
    for row, note in zip(found, written["annotations"], strict=True):
        xy = [[float(row[f"{name}_{c}"]) for c in "xy"] for name in names]
        np.testing.assert_allclose(np.reshape(note["keypoints"], (3, 3))[:, :2], xy, atol=2e-3)
    content["annotations"] = [{**one, "keypoints": [*one["keypoints"][:6], 0, 0, 0]} for one in content["annotations"]]
    (folder / "labels.json").write_text(json.dumps(content))
    code, _, err = uld("fit", f"--workdir={workdir}", f"--data_dir={folder}")
    assert (code, "landmark tail is annotated on none of the 24 images" in err) == (1, True)
