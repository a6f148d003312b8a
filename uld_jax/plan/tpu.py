"""TPU topologies, compiled for by libtpu on a machine without a TPU.

`--topology=v5e:2x2` has four chips of v5e. The shape has the axes of the generation's torus: two for v5e and v6e, three
for v5p and TPU7x. A single chip is `1x1` or `1x1x1`. JAX counts each chip of TPU7x as two devices.
"""

import math
import os
import re

from uld_jax.errors import UserError
from uld_jax.plan import packages

AXES = {"v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
EXAMPLE = "v5e:2x2, v5p:2x2x4"
# libtpu otherwise asks the metadata server of a cloud machine what it runs on, and locks the chips of a real one.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def prepare(name: str, shape: str) -> None:
    """Check the shape and the package, and set what libtpu reads when it is loaded.

    Raises UserError for another shape, or without the package.
    """
    axes = AXES[name]
    if not re.fullmatch("x".join([r"[1-9]\d*"] * axes), shape):
        example = "x".join(["2"] * axes)
        raise UserError(f"--topology={name}:{shape} needs {axes} sizes, such as {name}:{example}")
    packages.need("libtpu", "tpu", "TPUs")
    os.environ.update(_ENVIRONMENT)


def devices(name: str, shape: str) -> list:
    """Return the devices of a topology. Raises UserError for a topology that libtpu does not know."""
    from jax.experimental import topologies

    single = {"chips_per_host_bounds": (1, 1, 1)} if math.prod(map(int, shape.split("x"))) == 1 else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:{shape}", **single).devices
    except Exception as error:  # of jaxlib, whose types differ between versions
        said = str(error).splitlines()[0].rpartition(": ")[2]
        raise UserError(f"--topology={name}:{shape} is no topology of libtpu ({said}); try {EXAMPLE}") from error


def usable(memory: float) -> float:
    """Return the bytes of a device's memory that programs may fill."""
    return memory
