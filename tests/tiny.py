"""Configs that train in seconds, and programs in processes of their own."""

import contextlib
import fcntl
import os
import pathlib
import subprocess
import sys
import tempfile

from uld_jax import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
TOY = "toy"  # a method outside the library, which must pass whatever all methods must
SHIPPED = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common"))
CONFIGS = [*SHIPPED, TOY]


ARGUMENTS = {"cgb": ",init=scratch"}  # without the stages that configs/zeroshot.py has tested already


def config(name: str = "zeroshot", dataset: str = "synthetic", k: int = 4, more: str | None = None, **overrides):
    """The `tiny` preset of a config, smaller still where that costs nothing; `more` arguments after the colon.

    A name may have arguments itself, `self_training:variant=extended`.
    """
    name, colon, arguments = name.partition(":")
    if more is None:
        more = f",{arguments}" if colon else ARGUMENTS.get(name, "")
    file = ROOT / "tests/toy/config.py" if name == TOY else ROOT / f"configs/{name}.py"
    return config_lib.load(f"{file}:dataset={dataset},k={k},preset=tiny{more}", **overrides)


def short(photos, **more):
    """A run of a few steps on a folder of photos."""
    return config(dataset="folder", data_dir=str(photos), **{"detector.steps": 4, "eval_every": 0} | more)


def stages():
    """(config name, stage name) of every stage of every config."""
    return [(name, stage) for name in CONFIGS for stage in config(name).stages]


def run(*args, devices: int = 1, check: bool = True, env=None, **popen) -> subprocess.CompletedProcess:
    """`python *args` in a process with its own virtual devices; what it printed is in the failure's message."""
    with alone() if devices > 1 else contextlib.nullcontext():
        done = subprocess.run(
            [sys.executable, *map(str, args)],
            capture_output=True,
            text=True,
            env=environment(devices, env),
            cwd=ROOT,
            **popen,
        )
    if check and done.returncode:
        raise AssertionError(f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
    return done


@contextlib.contextmanager
def alone():
    """Waits until no other test has programs of several devices, which can starve each other on few cores."""
    with (pathlib.Path(tempfile.gettempdir()) / "uld_jax_devices.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def environment(devices: int = 1, more=None) -> dict[str, str]:
    """Environment of a process with `devices` virtual CPU devices."""
    # Results are bit-equal for one number of threads only, so the defaults stay unless there are virtual devices.
    # Without fusion emitters the XLA of JAX 0.10 was seen to compile a program of several devices wrongly.
    kept = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "fusion_emitters" not in flag]
    flags = f"{' '.join(kept)} --xla_force_host_platform_device_count={devices}"
    virtual = {"XLA_FLAGS": flags, "NPROC": "16"} if devices > 1 else {}
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | virtual | (more or {})
