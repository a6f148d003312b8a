"""Names of topologies, and what is said where a platform cannot be had."""

import doctest
import importlib.util
import os

import jax
import pytest

from uld_jax.errors import UserError
from uld_jax.plan import gpu, packages, topology


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """JAX runs, so that no topology changes it; variables that a topology sets are as before after each test."""
    jax.devices()
    for name in ("XLA_FLAGS", "JAX_PLATFORMS", "TF_CPP_MIN_LOG_LEVEL", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


def test_doctests():
    result = doctest.testmod(packages)
    assert result.attempted >= 1
    assert result.failed == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("h100", "is not understood; write KIND:SHAPE with KIND in v5e"),
        ("gtx:1", "is not understood"),
        ("cpu:0", "needs a number of devices, such as cpu:1"),
        ("cpu:2x2", "needs a number of devices"),
        ("cpu:4096", "JAX runs with"),
        ("h100:0", "needs a number of cards, up to 8"),
        ("h100:12", "needs a number of cards, up to 8 or a multiple of it, such as h100:8"),
        ("v5e:4", "needs 2 sizes, such as v5e:2x2"),
        ("v5p:2x2", "needs 3 sizes, such as v5p:2x2x2"),
    ],
)
def test_a_name_that_is_no_topology(name, said):
    with pytest.raises(UserError, match=f"--topology={name}.*{said}"):
        topology.find(name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5e:2x2", r"programs for TPUs are compiled by .* not installed; run: pip install 'libtpu"),
        ("h100:1", r"programs for NVIDIA GPUs are compiled by .* not installed; run: pip install 'jax-cuda13-plugin"),
    ],
)
def test_a_missing_package_is_named_with_its_command(monkeypatch, name, says):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=says):
        topology.find(name)


def test_this_machine():
    found = topology.find("cpu:1")
    assert found.devices == jax.devices()[:1]
    assert (found.platform, found.kind) == ("cpu", jax.devices()[0].device_kind)
    assert found.memory > 2**28


def test_cards_are_described_whole():
    fields = gpu._TARGET.format(**gpu.CARDS["a100"])
    assert fields.count("{") == fields.count("}") == 4
    assert "major: 8" in fields
    assert 'device_description_str: "NVIDIA A100-SXM4-80GB"' in fields
