"""All four stages of D-ULD++ through a Stable Diffusion, from a folder of diffusers to landmarks of photos."""

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

STAGES, STEPS = ("bootstrap", "duld", "proxy", "duldpp"), 20


@pytest.mark.slow
def test_four_stages_by_the_command_line_alone(tmp_path, uld_says):
    from tests.models.stable_diffusion import reference  # skips where PyTorch or diffusers is missing

    reference.write(tmp_path / "published")
    said = uld_says(
        "convert", "--kind=stable_diffusion", f"--src={tmp_path}/published", f"--dst={tmp_path}/weights/of/anybody"
    )
    assert f"--config.weights.stable_diffusion={tmp_path}/weights/of/anybody" in said
    run = tmp_path / "run"
    uld_says(
        "train",
        "--config=duld:backbone=stable_diffusion.StableDiffusion,preset=tiny,dataset=synthetic,k=3",
        f"--config.weights.stable_diffusion={tmp_path}/weights/of/anybody",
        "--config.bootstrap.backbone_kwargs.image_size=32",  # all stages'; 512 pixels take gigabytes
        "--config.data.rows=(24,12)",
        f"--workdir={run}",
    )
    numbers = json.loads((run / "eval/test/metrics.json").read_text())
    assert numbers["stage"] == STAGES[-1]
    assert all(math.isfinite(value) for value in numbers.values() if isinstance(value, float))
    assert 0 < numbers["forward_nme"] < 100
    assert 0 < numbers["backward_nme"] < 1000
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for i, stage in enumerate(STAGES):
        losses = {line["step"]: line["loss"] for line in lines if line.get("stage") == stage and "loss" in line}
        assert max(losses) == (i + 1) * STEPS
        assert all(math.isfinite(loss) for loss in losses.values())

    (tmp_path / "photos").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (50, 60, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{i}.png")
    uld_says("predict", f"--workdir={run}", f"--images={tmp_path}/photos", f"--out={tmp_path}/out")
    with (tmp_path / "out/landmarks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["0.png", "1.png"]
    for row in rows:
        found = {name: float(value) for name, value in row.items() if name != "file" and value}
        assert sum(name.startswith("score") for name in found) == 3
        assert all(-1 <= found[f"x{i}"] <= 60 and -1 <= found[f"y{i}"] <= 50 for i in range(3) if found[f"score{i}"])
