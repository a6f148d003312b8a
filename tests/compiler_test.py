"""The compiler's flags: programs that were wrong without them."""

import os
import subprocess
import sys

import pytest

from uld_jax import compiler

# Points of ONE bent warp; 40,000 numbers, of which those beyond the first 32,768 were wrong.
BENT = """
import uld_jax
import jax, numpy as np
from uld_jax.ops import warp
one = warp.random_warp(jax.random.key(0), rotation=20.0, bend=0.02)
points = jax.random.uniform(jax.random.key(1), (20_000, 2), minval=-1, maxval=1)
found = np.asarray(jax.jit(warp.view_to_source)(one, points), np.float64)
linear, shift, bend, xy = (np.asarray(x, np.float64) for x in (*one, points))
line = np.linspace(-1, 1, round(len(bend) ** 0.5))
controls = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
square = ((xy[:, None] - controls) ** 2).sum(-1)
want = xy @ linear.T + shift + (square * np.log(square)) @ bend
print(abs(found - want).max())
"""


def test_large_programs_are_right():
    flags = " ".join(word for word in os.environ.get("XLA_FLAGS", "").split() if "ynn" not in word)
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", BENT], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1e-4


@pytest.mark.parametrize(
    ("installed", "given", "set_to"),
    [
        ("0.10.2", "--a=1", "--a=1 --xla_cpu_experimental_ynn_fusion_type="),
        ("0.10.2", "--xla_cpu_experimental_ynn_fusion_type=dot", "--xla_cpu_experimental_ynn_fusion_type=dot"),
        ("0.10.2", None, "--xla_cpu_experimental_ynn_fusion_type="),
        ("0.12.0.1", "--a=1", "--a=1"),
    ],
)
def test_flags_are_for_one_version_and_leave_the_users_own(monkeypatch, installed, given, set_to):
    monkeypatch.setattr(compiler.importlib.metadata, "version", lambda name: installed)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if given is not None:
        monkeypatch.setenv("XLA_FLAGS", given)
    compiler.set_flags()
    assert os.environ["XLA_FLAGS"] == set_to


@pytest.mark.parametrize(
    ("installed", "given", "set_to"),
    [
        (
            "0.0.42.1",
            None,
            "--xla_tpu_run_space_to_batch=false --xla_tpu_run_space_to_batch_on_new_platforms=false",
        ),
        (
            "0.0.42",
            "--xla_tpu_run_space_to_batch_on_new_platforms=true",
            "--xla_tpu_run_space_to_batch_on_new_platforms=true --xla_tpu_run_space_to_batch=false",
        ),
        ("0.0.43", "--a=1", "--a=1"),
        (None, None, None),
    ],
)
def test_flags_of_tpus_are_for_versions_that_know_them(monkeypatch, installed, given, set_to):
    def version(name):
        if name == "libtpu" and installed:
            return installed
        raise compiler.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(compiler.importlib.metadata, "version", version)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", given or "")  # so that it is put back after the test
    if given is None:
        monkeypatch.delenv("LIBTPU_INIT_ARGS")
    compiler.set_flags()
    assert os.environ.get("LIBTPU_INIT_ARGS") == set_to
