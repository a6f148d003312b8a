"""Several processes as one program: who they are is JAX's own cluster detection's affair, unless flags say it.

JAX knows TPU pods (by environment, or by the metadata server of their machines), GKE and other Kubernetes jobs, SLURM
and Open MPI, see `jax.distributed.initialize`. It is asked before anything is joined: one process alone needs no
coordinator, and opens no port that another run on the same machine may have opened.
"""

import contextlib
import os
import sys
import warnings
from typing import NamedTuple

import jax

from uld_jax.errors import UserError

_PATIENCE = 300  # seconds for all processes to come, JAX's own default
# Of Kubernetes' own variables JAX looks at this one. Outside an indexed job it could not tell a process's number, and
# a notebook's pod would have to do without.
_KUBERNETES = "KUBERNETES_SERVICE_HOST"
_WORKERS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")  # a list, where a machine knows it without asking


class Cluster(NamedTuple):
    """Where the processes meet, `HOST:PORT`, how many there are, and which is this; None for what nobody said."""

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def start(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the other processes, if there are any. What is not given is read from the environment, or detected.

    Args:
      coordinator: HOST:PORT of process 0; or $JAX_COORDINATOR_ADDRESS.
      num_processes: or $JAX_NUM_PROCESSES. 1, without a coordinator: this process alone, whatever there is around it.
      process_id: or $JAX_PROCESS_ID.

    Raises:
      UserError: some of the three are known and others are not, or the processes do not find each other.
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
    """Whether there is anything to join. Raises UserError if only a part is known."""
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
    """The first process says on stderr which processes and devices there are."""
    if jax.process_index() == 0:
        print(describe(), file=sys.stderr, flush=True)


def describe() -> str:
    """All processes and devices in a line.

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
    """What is given, and the rest as JAX finds it; None from a JAX that does not say without joining."""
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
    """Without this variable of the environment."""
    kept = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ[variable] = kept


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{plural if number != 1 else ''}"
