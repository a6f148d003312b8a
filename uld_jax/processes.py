"""Several processes as one program, found by JAX's own cluster detection unless flags name them.

JAX detects TPU pods (by environment, or by the metadata server of their machines), GKE and other Kubernetes jobs, SLURM
and Open MPI, see `jax.distributed.initialize`. Detection comes before joining, because a single process needs no
coordinator and should open no port that another run on the same machine may have opened.
"""

import contextlib
import os
import sys
import warnings
from typing import NamedTuple

import jax

from uld_jax.errors import UserError

_PATIENCE = 300  # seconds to wait for all processes, JAX's own default
# JAX detects Kubernetes by this variable. Outside an indexed job it cannot find the number of a process, so the
# variable is hidden there and, for example, a notebook's pod runs as one process.
_KUBERNETES = "KUBERNETES_SERVICE_HOST"
# Lists of workers, on machines that need no metadata server.
_WORKERS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")


class Cluster(NamedTuple):
    """Address `HOST:PORT` where the processes meet, number of processes, number of this one; None where unknown."""

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def start(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join the other processes, if there are any. Values that are not given come from the environment or detection.

    Args:
      coordinator: HOST:PORT of process 0; default $JAX_COORDINATOR_ADDRESS.
      num_processes: number of processes; default $JAX_NUM_PROCESSES. 1 without a coordinator means this process alone,
        without detection.
      process_id: number of this process; default $JAX_PROCESS_ID.

    Raises:
      UserError: only some of the three are known, or the processes do not find each other.
    """
    if jax.distributed.is_initialized():
        return
    given = Cluster(
        coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS") or None,
        _number("JAX_NUM_PROCESSES") if num_processes is None else num_processes,
        _number("JAX_PROCESS_ID") if process_id is None else process_id,
    )
    if given.num_processes == 1 and given.coordinator is None:
        return
    with contextlib.nullcontext() if "JOB_COMPLETION_INDEX" in os.environ else _hidden(_KUBERNETES):
        found = _detected(given)
        if found is not None and not _several(found, given):
            return
        try:
            jax.distributed.initialize(*(found or given), initialization_timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            if found is None and given == Cluster() and isinstance(error, ValueError):
                return  # JAX knows of no cluster
            known = found or given
            raise UserError(
                f"process {known.process_id} of {known.num_processes} cannot join the others at {known.coordinator}: "
                f"{error}; start all of them, or this one alone with --num_processes=1"
            ) from error


def _several(found: Cluster, given: Cluster) -> bool:
    """Tell whether there are processes to join. Raises UserError if only a part of the values is known."""
    if found == Cluster() or (found.num_processes == 1 and given.coordinator is None):
        return False
    missing = [f"--{name}" for name, value in found._asdict().items() if value is None]
    if missing:
        raise UserError(
            "several processes need --coordinator, --num_processes and --process_id (or JAX_COORDINATOR_ADDRESS, "
            f"JAX_NUM_PROCESSES, JAX_PROCESS_ID), and nothing says {' and '.join(missing)}"
        )
    return True


def announce() -> None:
    """Print on stderr, from the first process, which processes and devices there are."""
    if jax.process_index() == 0:
        print(describe(), file=sys.stderr, flush=True)


def describe() -> str:
    """Describe all processes and devices in one line.

    >>> describe()
    '1 process, 1 device (cpu)'
    """
    devices, processes = jax.devices(), jax.process_count()
    counts = [sum(d.process_index == p for d in devices) for p in range(processes)]
    least, most = min(counts), max(counts)
    each = _count(most, "device") if least == most else f"{least} to {most} devices"
    kinds = ", ".join(sorted({d.device_kind for d in devices}))
    return f"{_count(processes, 'process', 'es')}, {each}{' each' if processes > 1 else ''} ({kinds})"


def _detected(given: Cluster) -> Cluster | None:
    """Complete the given values with those that JAX detects; None from a JAX that cannot detect without joining."""
    if None not in given:
        return given
    try:
        from jax._src.clusters import ClusterEnv

        ask = ClusterEnv.auto_detect_unset_distributed_params
    except (ImportError, AttributeError):
        return None
    try:
        return Cluster(*ask(*given, [], None, _PATIENCE)[:3])
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and not any("," in os.environ.get(name, "") for name in _WORKERS):
            warnings.warn(
                f"the metadata server of this TPU machine does not answer ({error}): one process", stacklevel=2
            )
            return given
        raise UserError(
            f"the other processes of this cluster cannot be found: {error}; give --coordinator, --num_processes and "
            "--process_id, or start alone with --num_processes=1"
        ) from error


def _number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    try:
        return int(text) if text else None
    except ValueError as error:
        raise UserError(f"{variable} is {text!r}; give a whole number") from error


@contextlib.contextmanager
def _hidden(variable: str):
    """Hide this variable of the environment within the context."""
    kept = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ[variable] = kept


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{plural if number != 1 else ''}"
