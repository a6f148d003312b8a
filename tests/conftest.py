"""Shared by all tests: one compilation cache, real data where it is at hand."""

import contextlib
import csv
import fcntl
import gc
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest
from PIL import Image

# Compiled programs keep millions of objects alive, which Python's usual thresholds would visit again and again.
gc.set_threshold(100_000, 50, 100)

# Before JAX starts. Programs that tests start inherit it, so a step is compiled once and shared.
_CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiles in a quarter of the time; what these leave out matters to speed alone.
_FLAGS = {
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": "true",
    "xla_cpu_use_fusion_emitters": "false",
    "xla_cpu_parallel_codegen_split_count": "1",
}


def _known(flags: dict[str, str]) -> list[str]:
    """Those that this jaxlib knows. One that it does not know would end the process at its first computation.

    Only a process that may end so can tell; its answer is kept beside the compiled programs, for this version.
    """
    kept = _CACHE.parent / f"xla_flags_{importlib.metadata.version('jaxlib')}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(kept.read_text())
    known = [f"--{name}={value}" for name, value in flags.items()]
    while known:
        tried = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"],
            env=os.environ | {"XLA_FLAGS": " ".join(known), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        refused = [flag for flag in known if flag.partition("=")[0] in tried.stderr]
        if not refused:
            break
        known = [flag for flag in known if flag not in refused]
    kept.parent.mkdir(parents=True, exist_ok=True)
    new = kept.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(known))
    new.replace(kept)
    return known


os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_known(_FLAGS)])


def _shared(variable: str, default: str) -> pathlib.Path:
    path = pathlib.Path(os.environ.get(variable, pathlib.Path(__file__).parent.parent.parent / "shared" / default))
    if not path.exists():
        pytest.skip(f"{variable} is not set and {default} is not beside the checkout")
    return path


@pytest.fixture(autouse=True)
def _unannounced(monkeypatch):
    """What commands say first, of processes and devices, is `processes_test`'s affair, and the machine's."""
    monkeypatch.setattr("uld_jax.processes.announce", lambda: None)


@pytest.fixture
def uld(capsys, monkeypatch):
    """Exit code, stdout and stderr of a command, run in this process."""
    from uld_jax import __main__ as cli

    def run(*args):
        monkeypatch.setattr("sys.argv", ["uld", *map(str, args)])
        code, out = cli.main(), capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture
def uld_says(uld):
    """Stdout of a command that is expected to succeed."""

    def run(*args):
        code, out, err = uld(*args)
        assert code == 0, err
        return out

    return run


def _once(tmp_path_factory, name: str, make) -> pathlib.Path:
    """A folder that `make(folder)` fills once for all processes of a test run; nobody may change it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / name
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            new = pathlib.Path(tempfile.mkdtemp(dir=root))
            make(new)
            new.rename(folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A labelled folder: synthetic heads as PNG with train.csv and test.csv."""
    from tests import tiny
    from uld_jax.data.open import open_split

    def make(folder):
        config = tiny.config(**{"data.rows": (24, 8)})
        for split in ("train", "test"):
            source = open_split(config, split)
            rows = []
            for i, image in enumerate(source.images()):
                name = f"{split}/{i:03d}.png"
                (folder / split).mkdir(exist_ok=True)
                Image.fromarray(image).save(folder / name)
                xy = source.landmarks[i].reshape(-1)
                rows.append([name, source.columns["yaw"][i], *(f"{v:.2f}" for v in xy)])
            header = ["file", "yaw", *(f"{c}{j}" for j in range(20) for c in "xy")]
            with (folder / f"{split}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([header, *rows])

    return _once(tmp_path_factory, "photos", make)


@pytest.fixture(scope="session")
def run(photos, tmp_path_factory):
    """A finished run on these photos, for this process alone."""
    from tests import tiny
    from uld_jax.engine import loop

    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(photos.parent)
            loop.run(tiny.short(photos.name), folder)  # a path that says nothing in the tests' own folder

    trained = _once(tmp_path_factory, "run_on_photos", make)
    return shutil.copytree(trained, tmp_path_factory.mktemp("runs") / "photos")


@pytest.fixture(scope="session")
def faces() -> pathlib.Path:
    """Folder of real annotated faces: $ULD_DATA/ytf_faces."""
    path = _shared("ULD_DATA", "data") / "ytf_faces"
    if not path.exists():
        pytest.skip(f"there is no {path}")
    return path


@pytest.fixture(scope="session")
def weights_folder() -> pathlib.Path:
    """Folder of published checkpoints: $ULD_WEIGHTS."""
    return _shared("ULD_WEIGHTS", "weights")
