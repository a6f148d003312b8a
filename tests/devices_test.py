"""The devices that programs are for, and their data sheets."""

import doctest
from types import SimpleNamespace

import jax
import pytest

from uld_jax import devices


def test_doctests():
    result = doctest.testmod(devices)
    assert result.attempted >= 1
    assert result.failed == 0


@pytest.mark.parametrize(
    ("kind", "half", "gib"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 74.506),
        ("NVIDIA A100-SXM4-40GB", 312e12, 37.253),
        ("TPU v5 lite", 197e12, 16),
        ("TPU v5", 459e12, 95),  # so JAX calls v5p
        ("TPU v5p", 459e12, 95),
        ("TPU v6 lite", 918e12, 32),
        ("TPU7x", 1153.5e12, 96),
    ],
)
def test_the_longest_name_that_fits_counts(kind, half, gib):
    found = devices.sheet(kind)
    assert found.half == half
    assert found.memory / 2**30 == pytest.approx(gib, rel=1e-3)
    assert found.exact < found.single <= found.half
    assert devices.sheet("a toaster") is None


def test_programs_are_traced_for_the_devices_of_the_context():
    here = devices.platform(), devices.count(), devices.first()
    assert here == (jax.default_backend(), jax.device_count(), jax.devices()[0])
    chips = [SimpleNamespace(platform="tpu", id=i) for i in range(4)]
    seen = []
    f = jax.jit(lambda x: seen.append(devices.platform()) or x)
    f(1.0)
    with devices.traced_for(chips):
        assert (devices.platform(), devices.count(), devices.first()) == ("tpu", 4, chips[0])
        f.trace(jax.ShapeDtypeStruct((3,), "float32"))
    f(1.0)  # traced anew, as the programs of the other platform are forgotten
    assert seen == ["cpu", "tpu", "cpu"]
    assert (devices.platform(), devices.count(), devices.first()) == here
