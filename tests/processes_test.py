"""Several processes find each other, and are one run."""

import json
import os
import socket
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from jax._src import clusters
from jax._src.clusters import cloud_tpu_cluster

from tests import tiny
from uld_jax import processes
from uld_jax.errors import UserError

FLAGS = (
    "--config.detector.steps=4",
    "--config.detector.round_every=2",
    "--config.eval_every=0",
    "--config.log_every=1",
    "--config.save_every=2",
)
SPEC = "--config=zeroshot:dataset=synthetic,k=4,preset=tiny"


CLUSTERS = (
    "SLURM_",
    "TPU_",
    "MEGASCALE_",
    "KUBERNETES_",
    "OMPI_",
    "JOB_COMPLETION",
    "JAX_COORD",
    "JAX_NUM",
    "JAX_PROC",
)


@pytest.fixture
def joined(monkeypatch):
    """Arguments of every `jax.distributed.initialize`, on a machine that knows of no cluster and has no network."""
    for name in list(os.environ):
        if name.startswith(CLUSTERS):
            monkeypatch.delenv(name)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: calls.append(args))
    monkeypatch.setattr("socket.socket", lambda *_, **__: pytest.fail("the network was asked"))
    return calls


def cluster(monkeypatch, count=4, number=2, address="host0:1234"):
    """The only cluster that JAX can detect."""
    monkeypatch.setattr(clusters.ClusterEnv, "_cluster_types", [])

    class Found(clusters.ClusterEnv):
        is_env_present = classmethod(lambda cls: True)
        get_coordinator_address = classmethod(lambda cls, **_: address)
        get_process_count = classmethod(lambda cls: count)
        get_process_id = classmethod(lambda cls: number)

    return Found


def tpu_machine(monkeypatch, metadata):
    """A TPU's machine whose metadata server has these values; None: it does not answer."""

    def get_metadata(key):
        if metadata is None:
            raise ConnectionError("no route to host")
        return metadata.get(key, "404"), 200 if key in metadata else 404

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", get_metadata)


def test_a_machine_without_a_cluster_starts_alone_and_asks_no_network(joined):
    processes.start()
    assert joined == []


def test_what_jax_detects_is_joined(joined, monkeypatch):
    cluster(monkeypatch)
    processes.start()
    processes.start(process_id=3)
    processes.start("host9:1", 2, 1)
    processes.start(num_processes=1)  # alone, whatever there is
    assert joined == [("host0:1234", 4, 2), ("host0:1234", 4, 3), ("host9:1", 2, 1)]
    for name, value in {"COORDINATOR_ADDRESS": "host8:1", "NUM_PROCESSES": "5", "PROCESS_ID": "4"}.items():
        monkeypatch.setenv(f"JAX_{name}", value)
    processes.start()
    assert joined.pop() == ("host8:1", 5, 4)


def test_one_process_opens_no_port(joined, monkeypatch):
    cluster(monkeypatch, count=1, number=0)
    processes.start()
    assert joined == []
    processes.start("host0:1", 1, 0)  # unless it is asked to
    assert joined == [("host0:1", 1, 0)]


def test_the_metadata_server_of_a_tpu_machine_is_asked(joined, monkeypatch):
    workers = "a:b:10.0.0.7,c:d:10.0.0.8"
    known = {"agent-worker-number": "1", "worker-network-endpoints": workers, "tpu-env": "ACCELERATOR_TYPE: 'v4-16'"}
    tpu_machine(monkeypatch, known)
    processes.start()
    assert joined == [("10.0.0.7:8482", 2, 1)]
    tpu_machine(monkeypatch, known | {"agent-worker-number": "0", "worker-network-endpoints": "10.0.0.7"})
    processes.start()
    assert len(joined) == 1  # a single machine


def test_a_metadata_server_that_does_not_answer(joined, monkeypatch):
    tpu_machine(monkeypatch, None)
    with pytest.warns(UserWarning, match="metadata server .* does not answer .*: one process"):
        processes.start()
    assert joined == []
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "t0,t1")
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    with pytest.raises(UserError, match="cannot be found: no route to host; give --coordinator"):
        processes.start()


def slurm(monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_slurm(joined, monkeypatch):
    slurm(monkeypatch, JOB_ID="7", NTASKS="4", PROCID="0", LOCALID="0")
    processes.start()  # a batch script that runs us without srun
    assert joined == []
    slurm(monkeypatch, STEP_NODELIST="node[003-006]", PROCID="2")
    processes.start()
    assert joined == [("node003:61447", 4, 2)]


def test_a_kubernetes_pod_that_is_no_indexed_job_starts_alone(joined, monkeypatch, recwarn):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    processes.start()
    assert joined == []
    assert not recwarn.list
    assert os.environ["KUBERNETES_SERVICE_HOST"] == "10.0.0.1"


def test_half_a_cluster_is_an_error(joined, monkeypatch):
    for given in ({"coordinator": "host:1"}, {"num_processes": 2}, {"process_id": 0}):
        with pytest.raises(UserError, match=r"several processes need .* nothing says --"):
            processes.start(**given)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES is 'two'; give a whole number"):
        processes.start()
    monkeypatch.delenv("JAX_NUM_PROCESSES")
    found = cluster(monkeypatch)

    def broken(cls):
        raise RuntimeError("jobs must be indexed")

    found.get_process_id = classmethod(broken)
    with pytest.raises(UserError, match="jobs must be indexed; give --coordinator"):
        processes.start()


def test_others_that_do_not_come_are_an_error(joined, monkeypatch):
    def late(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setattr(jax.distributed, "initialize", late)
    with pytest.raises(
        UserError, match=r"process 1 of 2 cannot join the others at host:1: DEADLINE_EXCEEDED; start all"
    ):
        processes.start("host:1", 2, 1)


def test_a_newer_jax_that_tells_only_by_joining(joined, monkeypatch):
    monkeypatch.delattr(clusters.ClusterEnv, "auto_detect_unset_distributed_params")
    processes.start()
    processes.start("host:1", 2, 1)
    assert joined == [(None, None, None), ("host:1", 2, 1)]

    def unknown(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", unknown)
    processes.start()


@pytest.mark.parametrize(
    ("owners", "kind", "line"),
    [
        ([0], "cpu", "1 process, 1 device (cpu)"),
        ([0] * 8, "TPU v5 lite", "1 process, 8 devices (TPU v5 lite)"),
        ([0, 0, 1, 1], "TPU v4", "2 processes, 2 devices each (TPU v4)"),
        ([0, 1, 1], "NVIDIA A100", "2 processes, 1 to 2 devices each (NVIDIA A100)"),
    ],
)
def test_the_line_of_every_start(owners, kind, line, monkeypatch):
    devices = [types.SimpleNamespace(process_index=p, device_kind=kind) for p in owners]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: len(set(owners)))
    assert processes.describe() == line


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def together(*commands, env=({}, {}), devices=1, code=0):
    """What Python processes that run at once print on stdout and stderr; they all end with this exit code."""
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, args)],
            env=tiny.environment(devices, more),
            cwd=tiny.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for args, more in zip(commands, env, strict=True)
    ]
    said = [p.communicate(timeout=1800) for p in started]
    assert [p.returncode for p in started] == [code] * len(started), "\n".join(map("\n".join, said))
    return said


def test_two_processes_find_each_other_as_slurm_announces_them():
    task = {"JOB_ID": "7", "STEP_NODELIST": "localhost", "NTASKS": "2", "LOCALID": "0"}
    env = [{f"SLURM_{k}": v for k, v in (task | {"PROCID": str(i)}).items()} for i in range(2)]
    port = {"JAX_COORDINATOR_PORT": str(free_port())}
    command = ["-m", "uld_jax", "gcn", "--dst=unused"]  # which ends with what it says of its flags
    said = together(command, command, env=[one | port for one in env], code=1)
    assert [out for out, _ in said] == ["", ""]
    first, second = ([line for line in err.splitlines() if line.startswith(("uld", "2 p"))] for _, err in said)
    assert first[0] == "2 processes, 1 device each (cpu)"
    assert first[1:] == second
    assert len(second) == 1


def losses(workdir):
    return [
        json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines() if '"loss"' in line
    ]


@pytest.mark.slow
def test_two_processes_with_a_device_each_equal_one_process_with_two(tmp_path):
    several = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    command = ["-m", "uld_jax", "train", SPEC, f"--workdir={tmp_path / 'two'}", *FLAGS, *several]
    with tiny.alone():
        (first, _), (second, _) = together(*([*command, f"--process_id={i}"] for i in range(2)))
    assert "landmarks found" in first
    assert "landmarks found" not in second
    tiny.run("-m", "uld_jax", "train", SPEC, f"--workdir={tmp_path / 'one'}", *FLAGS, devices=2)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 4
    for a, b in zip(one, two, strict=True):
        assert abs(a - b) < 1e-4 * abs(a)
    numbers = [json.loads((tmp_path / n / "eval/test/metrics.json").read_text()) for n in ("one", "two")]
    assert abs(numbers[0]["forward_nme"] - numbers[1]["forward_nme"]) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_two_processes_whose_devices_take_turns_equal_one_process_of_four(name, tmp_path):
    """Losses, banks, states and evaluation; see `tests/interleaved.py`."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    tiny.run("-m", "tests.interleaved", one, name, devices=4)
    command = ["-m", "tests.interleaved", two, name, f"localhost:{free_port()}"]
    with tiny.alone():
        together([*command, 0], [*command, 1], devices=2)
    expected, found, again = (dict(np.load(f)) for f in (one / "0.npz", two / "0.npz", two / "1.npz"))
    assert list(found) == list(expected)
    assert any("loss" in key for key in found)
    for key, value in expected.items():
        np.testing.assert_array_equal(again[key], found[key], key)
        # Sums over devices round in another order; 1e-6 of a pixel, of a loss, of a descriptor of length 1.
        np.testing.assert_allclose(found[key], value, rtol=1e-6, atol=1e-6, err_msg=key)
