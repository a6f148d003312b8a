"""The CPU of this machine: `--topology=cpu:8` has eight virtual devices of it."""

from uld_jax.compiler import add_flag
from uld_jax.errors import UserError

EXAMPLE = "cpu:1"


def prepare(name: str, shape: str) -> None:
    """Check the number of devices, and ask XLA for so many. Raises UserError for another number."""
    if not shape.isdecimal() or not int(shape):
        raise UserError(f"--topology={name}:{shape} needs a number of devices, such as {name}:1")
    if int(shape) > 1:
        add_flag("XLA_FLAGS", "xla_force_host_platform_device_count", shape)


def devices(name: str, shape: str) -> list:
    """Return so many of this machine's devices. Raises UserError if JAX has fewer."""
    import jax

    found = jax.devices("cpu")
    if len(found) < int(shape):
        raise UserError(
            f"--topology={name}:{shape}: JAX runs with {len(found)} CPU devices here; use {name}:{len(found)}"
        )
    return found[: int(shape)]


def usable(memory: float) -> float:
    """Return the bytes of a device's memory that programs may fill."""
    return memory
