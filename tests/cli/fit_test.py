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
