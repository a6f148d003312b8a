"""`uld train` as a user meets it: bad files, and annotation that it does not read."""

import csv
import json
import shutil

import numpy as np

from tests import tiny
from uld_jax.engine import loop

SPEC = "--config=zeroshot:dataset=folder,k=4,preset=tiny"


def test_training_goes_on_without_bad_files(photos, tmp_path, uld):
    folder, workdir = tmp_path / "in", tmp_path / "run"
    shutil.copytree(photos / "train", folder)
    for name in ("003.png", "007.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-30])
    (folder / "notes.txt").write_text("of the day")
    args = ["train", SPEC, f"--config.data_dir={folder}", f"--workdir={workdir}", "--config.stages=('zeroshot',)"]
    code, _, err = uld(*args, "--config.data.on_bad_file=skip")
    assert code == 3, err
    assert f"3 files were skipped, see {workdir}/skipped.csv" in err
    assert "2 of 24 images" in err
    with (workdir / "skipped.csv").open() as file:
        assert [r["file"] for r in csv.DictReader(file)] == ["003.png", "007.png", "notes.txt"]
    assert json.loads((workdir / "run.json").read_text())["rows"] == 22


def test_training_never_reads_annotation(run, photos, tmp_path):
    """With noise in place of the landmarks the run ends in the same parameters."""
    noisy = tmp_path / "noisy"
    shutil.copytree(photos, noisy)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        with (noisy / f"{split}.csv").open() as file:
            header, *rows = csv.reader(file)
        rows = [[r[0], r[1], *(f"{v:.1f}" for v in rng.uniform(0, 39, len(r) - 2))] for r in rows]
        with (noisy / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    loop.run(tiny.short(noisy), tmp_path / "run")
    last = [json.loads((w / "metrics.jsonl").read_text().splitlines()[-1]) for w in (run, tmp_path / "run")]
    assert last[0]["params_sha256"] == last[1]["params_sha256"]
    numbers = [
        json.loads((w / "eval/test/metrics.json").read_text())["mean_shape_nme"] for w in (run, tmp_path / "run")
    ]
    assert numbers[0] != numbers[1]
