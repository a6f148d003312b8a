"""The devices of a topology by its name: `v5e:2x2`, `h100:8`, `cpu:1`."""

import os
from typing import Any, NamedTuple

from uld_jax.errors import UserError
from uld_jax.plan import cpu, gpu, tpu

PLATFORMS = {**dict.fromkeys(tpu.AXES, tpu), **dict.fromkeys(gpu.CARDS, gpu), "cpu": cpu}


class Topology(NamedTuple):
    """Devices to compile for.

    Attributes:
      name: name as the user wrote it.
      platform: `cpu`, `gpu` or `tpu`.
      kind: `device_kind` of the devices.
      devices: the devices, present or not.
      memory: bytes of a device that programs may fill.
    """

    name: str
    platform: str
    kind: str
    devices: list[Any]
    memory: float


def prepare(text: str) -> tuple[str, str]:
    """Check a name and set the environment for it, before JAX starts; return the kind of device and the shape.

    Raises UserError for a name that is not understood, or a missing package.
    """
    name, _, shape = text.partition(":")
    if name not in PLATFORMS or not shape:
        examples = ", ".join(module.EXAMPLE for module in (tpu, gpu, cpu))
        raise UserError(
            f"--topology={text} is not understood; write KIND:SHAPE with KIND in {', '.join(PLATFORMS)}, such as "
            f"{examples}"
        )
    PLATFORMS[name].prepare(name, shape)
    os.environ["JAX_PLATFORMS"] = "cpu"  # real devices of this machine stay free
    return name, shape


def find(text: str) -> Topology:
    """Find the devices of a topology, after `prepare`. Raises UserError for a topology that there is not."""
    import jax

    from uld_jax import devices
    from uld_jax.data.resident import host_memory

    name, shape = prepare(text)
    jax.config.update("jax_platforms", "cpu")  # JAX read the variable when it was imported
    module = PLATFORMS[name]
    found = list(module.devices(name, shape))
    if found[0].platform != "cpu":  # a compiled program cannot be read from the cache without its device
        jax.config.update("jax_enable_compilation_cache", False)
    sheet = devices.sheet(found[0].device_kind)
    memory = sheet.memory if sheet else host_memory() / len(found)
    return Topology(text, found[0].platform, found[0].device_kind, found, module.usable(memory))
