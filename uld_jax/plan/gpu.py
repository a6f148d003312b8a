"""NVIDIA GPUs, compiled for by JAX's CUDA plugin on a machine without a GPU.

`--topology=h100:8` has eight H100 of one machine; above eight there are several machines of eight. The compiler gets a
description of the card in place of the card. Without a card it cannot try algorithms (autotuning), so it takes the
defaults; kernels of cuDNN and cuBLAS are named in the program and not compiled, as they would be on the card.
"""

import os

from uld_jax.compiler import add_flag
from uld_jax.errors import UserError
from uld_jax.plan import packages

EXAMPLE = "h100:1, h100:8"
PER_MACHINE = 8
_SHARE = 0.75  # of a GPU's memory, which JAX reserves by default (XLA_PYTHON_CLIENT_MEM_FRACTION)

# By data sheets and the table of compute capabilities in the "CUDA C++ Programming Guide"; sizes in bytes.
CARDS = {
    "h200": dict(
        device="NVIDIA H200", major=9, cores=132, fpus=128, core_shared=233472, block_shared=232448, l2=52428800,
        bandwidth=4800000000000, memory=141000000000, ghz=1.98,
    ),
    "h100": dict(
        device="NVIDIA H100 80GB HBM3", major=9, cores=132, fpus=128, core_shared=233472, block_shared=232448,
        l2=52428800, bandwidth=3350000000000, memory=80000000000, ghz=1.98,
    ),
    "a100": dict(
        device="NVIDIA A100-SXM4-80GB", major=8, cores=108, fpus=64, core_shared=167936, block_shared=166912,
        l2=41943040, bandwidth=2039000000000, memory=80000000000, ghz=1.41,
    ),
}  # fmt: skip
_TARGET = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} }}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {ghz}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {block_shared} shared_memory_per_core: {core_shared}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  l2_cache_size: {l2} memory_bandwidth: {bandwidth} device_memory_size: {memory}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{device}"
"""


def prepare(name: str, shape: str) -> None:
    """Check the number of cards and the package, and set what the compiler reads when it is loaded.

    Raises UserError for another number, or without the package.
    """
    count = int(shape) if shape.isdecimal() else 0
    if not count or (count > PER_MACHINE and count % PER_MACHINE):
        raise UserError(
            f"--topology={name}:{shape} needs a number of cards, up to {PER_MACHINE} or a multiple of it, such as "
            f"{name}:8"
        )
    packages.need_any(("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"), "cuda13-local", "NVIDIA GPUs")
    add_flag("XLA_FLAGS", "xla_gpu_autotune_level", "0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # else it says several times that there is no driver


def devices(name: str, shape: str) -> list:
    """Return the devices of so many cards of a kind."""
    from jax.experimental import topologies

    machines, each = max(int(shape) // PER_MACHINE, 1), min(int(shape), PER_MACHINE)
    options = dict(target_config=_TARGET.format(**CARDS[name]), topology=f"1x{machines}x{each}")
    return topologies.get_topology_desc(platform="cuda", topology_name=name, **options).devices


def usable(memory: float) -> float:
    """Return the bytes of a device's memory that programs may fill."""
    return _SHARE * memory
