"""Several processes are one run."""

import json
import socket
import subprocess
import sys

import pytest

from tests import tiny

FLAGS = (
    "--config.detector.steps=4",
    "--config.detector.round_every=2",
    "--config.eval_every=0",
    "--config.log_every=1",
    "--config.save_every=2",
)
SPEC = "--config=zeroshot:dataset=synthetic,k=4,preset=tiny"


def losses(workdir):
    return [
        json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines() if '"loss"' in line
    ]


@pytest.mark.slow
def test_two_processes_with_a_device_each_equal_one_process_with_two(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "uld_jax", "train", SPEC, f"--workdir={tmp_path / 'two'}", *FLAGS]
    several = [f"--coordinator={address}", "--num_processes=2"]
    with tiny.alone():
        processes = [
            subprocess.Popen(
                [*command, *several, f"--process_id={i}"],
                env=tiny.environment(),
                cwd=tiny.ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for i in range(2)
        ]
        outputs = [p.communicate(timeout=300)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(outputs)
    assert "landmarks found" in outputs[0]
    assert "landmarks found" not in outputs[1]
    tiny.run("-m", "uld_jax", "train", SPEC, f"--workdir={tmp_path / 'one'}", *FLAGS, devices=2)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 4
    for a, b in zip(one, two, strict=True):
        assert abs(a - b) < 1e-4 * abs(a)
    numbers = [json.loads((tmp_path / n / "eval/test/metrics.json").read_text()) for n in ("one", "two")]
    assert abs(numbers[0]["forward_nme"] - numbers[1]["forward_nme"]) < 0.05
