"""The devices that programs are for: which these are while a program is traced, and their data sheets.

Some programs depend on the device: on CPU, a loop over convolutions is written out, and sums are taken in another
order. They ask this file, and not JAX, for the platform and the number of devices, so that a program can also be traced
for devices that are absent (`uld_jax.plan`).
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

_targets: list[Sequence[Any]] = []  # devices of `traced_for`, the innermost last


@contextlib.contextmanager
def traced_for(devices: Sequence[Any]) -> Iterator[None]:
    """Answer for these devices, present or absent, within the context, in all threads of this process.

    Programs that were traced within the context for another platform are forgotten at its end.
    """
    _targets.append(list(devices))
    try:
        yield
    finally:
        _targets.pop()
        if devices[0].platform != jax.default_backend():
            jax.clear_caches()


def platform() -> str:
    """Return the platform that programs are for: `cpu`, `gpu` or `tpu`."""
    return _targets[-1][0].platform if _targets else jax.default_backend()


def first():
    """Return the first of the devices that programs are for."""
    return _targets[-1][0] if _targets else jax.devices()[0]


def count() -> int:
    """Return the number of devices that programs are for, over all processes."""
    return len(_targets[-1]) if _targets else jax.device_count()


class Sheet(NamedTuple):
    """Figures of one device, as JAX counts devices; from vendors' data sheets.

    Attributes:
      half: dense peak in FLOP/s of products in bfloat16 or, on V100 and T4, float16.
      single: that of products of float32 as XLA computes them by default: TF32 on NVIDIA from A100 on, one pass of
        bfloat16 on a TPU.
      exact: that of products of float32 with the precision `highest`: without tensor cores, or six passes of bfloat16.
      bandwidth: bytes/s of the device's memory.
      memory: its bytes.
      clock: Hz of a TPU, in whose cycles its compiler estimates; None where unknown.
    """

    half: float
    single: float
    exact: float
    bandwidth: float
    memory: float
    clock: float | None = None


def _tpu(half: float, bandwidth: float, memory: float, clock: float | None = None) -> Sheet:
    return Sheet(half, half, half / 6, bandwidth, memory, clock)


# By the start of `device_kind`; of several that fit, the longest counts. NVIDIA: "H200 Tensor Core GPU", "H100 Tensor
# Core GPU" (SXM), "A100 Tensor Core GPU", "L4 Tensor Core GPU", "V100" (SXM2), "T4"; from A100 on these list twice the
# FLOP/s, with sparsity. TPU: Cloud TPU's pages of system architecture. The clocks are those commonly given (of v4,
# Jouppi et al., ISCA 2023). A device of TPU7x is one of the two on a chip.
SHEETS = {
    "NVIDIA H200": Sheet(989e12, 494e12, 67e12, 4.8e12, 141e9),
    "NVIDIA H100": Sheet(989e12, 494e12, 67e12, 3.35e12, 80e9),
    "NVIDIA A100": Sheet(312e12, 156e12, 19.5e12, 2.0e12, 80e9),
    "NVIDIA A100-SXM4-40GB": Sheet(312e12, 156e12, 19.5e12, 1.555e12, 40e9),
    "NVIDIA A100-PCIE-40GB": Sheet(312e12, 156e12, 19.5e12, 1.555e12, 40e9),
    "NVIDIA L4": Sheet(121e12, 60e12, 30.3e12, 0.3e12, 24e9),
    "Tesla V100": Sheet(125e12, 15.7e12, 15.7e12, 0.9e12, 16e9),
    "Tesla T4": Sheet(65e12, 8.1e12, 8.1e12, 0.32e12, 16e9),
    "TPU v4": _tpu(275e12, 1.228e12, 32 * 2**30, 1.05e9),
    "TPU v5 lite": _tpu(197e12, 0.819e12, 16 * 2**30, 1.5e9),
    "TPU v5": _tpu(459e12, 2.765e12, 95 * 2**30, 1.75e9),  # v5p
    "TPU v5p": _tpu(459e12, 2.765e12, 95 * 2**30, 1.75e9),
    "TPU v6 lite": _tpu(918e12, 1.64e12, 32 * 2**30, 1.75e9),
    "TPU7x": _tpu(2307e12 / 2, 7.38e12 / 2, 96 * 2**30),
}


def sheet(kind: str) -> Sheet | None:
    """Return the figures of a device by its `device_kind`; None for a device that is not listed.

    >>> sheet("TPU v5").memory > sheet("TPU v5 lite").memory, sheet("cpu")
    (True, None)
    """
    found = max((start for start in SHEETS if kind.startswith(start)), key=len, default=None)
    return None if found is None else SHEETS[found]
