"""One program, compiled: its memory by parts, and what bounds its time."""

import math
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

from uld_jax import devices
from uld_jax.plan import arithmetic, hlo
from uld_jax.plan.programs import Planned
from uld_jax.plan.topology import Topology

# Parts of memory by the names of a program's arguments; any other argument is of `other`.
_PARTS = {
    "state": "state",
    "frozen": "frozen",
    "store": "store",
    "payload": "input",
    "more": "input",
    "bank": "bank",
    "found": "bank",
}
PARTS = ("state", "store", "frozen", "input", "bank", "other", "temporaries", "outputs", "code")
_GROWING = ("input", "temporaries", "outputs")  # with the number of images in a step


def measure(planned: Planned, topology: Topology) -> dict[str, Any]:
    """Compile a program and return the facts about it, which `report.py` names; with `error` if it does not compile."""
    row = dict(stage=planned.stage, program=planned.what, batch=planned.batch, steps=planned.steps, runs=planned.runs)
    if planned.program is None:
        return row | {"fits": None, "error": planned.error}
    try:
        begin = time.perf_counter()
        traced = planned.program.trace()
        work = arithmetic.count(traced.jaxpr.jaxpr)
        row |= {"gflop": work.flops / planned.steps / 1e9, "endless": work.endless}
        compiled = traced.lower().compile()
        row["compile_s"] = round(time.perf_counter() - begin, 1)
    except Exception as error:  # compilers raise any; it is a row of the table, and the other programs go on
        return row | failure(error)
    costs = hlo.Module(compiled.as_text()).costs()
    memory = _memory(planned, compiled, costs, topology)
    total = sum(memory.values())
    row |= {"fits": total <= topology.memory, "bytes_a_device": {**memory, "total": total, "usable": topology.memory}}
    row |= _facts(planned, costs, topology) | bounds(work, costs, topology, planned.steps)
    return row | {"largest_batch_about": about_largest(memory, topology, planned) if planned.what == "step" else None}


def failure(error: Exception) -> dict[str, Any]:
    """Return the facts about a program that does not compile: the reason, and whether it is the lack of memory."""
    text = " ".join(str(error).split())
    needs = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", text)
    full = needs is not None or "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
    found = {"fits": False if full else None, "error": f"{type(error).__name__}: {text[:500]}"}
    if needs:
        total, usable = (float(needs[i]) * 2 ** (10 * ("KMGT".index(needs[i + 1]) + 1)) for i in (1, 3))
        found["bytes_a_device"] = {"total": total, "usable": usable}
    return found


def bounds(work: arithmetic.Work, costs: hlo.Costs, topology: Topology, steps: int) -> dict[str, float | None]:
    """Return the lower bounds of the time of a step in seconds; None for a device without a data sheet.

    `arithmetic_s` is the work at the peak of all devices, `memory_s` the padded bytes at a device's bandwidth,
    `estimate_s` the TPU compiler's estimate of its cycles, and `bound_s` the largest of these.
    """
    sheet = devices.sheet(topology.kind)
    if sheet is None:
        return dict.fromkeys(("arithmetic_s", "memory_s", "estimate_s", "bound_s"))
    found = {
        "arithmetic_s": work.seconds(sheet, len(topology.devices)) / steps,
        "memory_s": costs.padded / sheet.bandwidth / steps,
        "estimate_s": costs.cycles / sheet.clock / steps if costs.cycles is not None and sheet.clock else None,
    }
    return found | {"bound_s": max(value for value in found.values() if value is not None)}


def about_largest(memory: dict[str, float], topology: Topology, planned: Planned) -> int:
    """Guess the largest batch that fits from one program, as if all but the resident parts grew with the batch."""
    growing = sum(memory[part] for part in _GROWING)
    room = topology.memory - sum(size for part, size in memory.items() if part not in _GROWING)
    count = len(topology.devices)
    return max(int(room / max(growing, 1) * planned.batch) // count * count, 0)


def largest(fits: Callable[[int], bool], first: int, multiple: int, most: int, precision: float = 1 / 16) -> int:
    """Find the largest batch that fits by bisection, 0 if none does.

    Args:
      fits: tells whether a batch fits; if one does, smaller ones do.
      first: a guess, where the search begins.
      multiple: batches are multiples of this number.
      most: upper end of the search.
      precision: the search ends when the largest that fits and the least that does not are so near, as a share; the
        result is exact where that share is below one multiple.

    >>> largest(lambda batch: 3 * batch + 10 <= 100, first=8, multiple=2, most=1000)
    30
    """
    low, high, end = 0, None, most // multiple  # in multiples: fits, does not fit
    units = min(max(first // multiple, 1), end)
    while units:
        if fits(units * multiple):
            low = units
        else:
            high = units
        if high is None and low == end:
            break
        if high is not None and high - low <= max(1, int(precision * low)):
            break
        units = min(2 * low, end) if high is None else (low + high) // 2
    return low * multiple


def _memory(planned, compiled, costs: hlo.Costs, topology: Topology) -> dict[str, float]:
    """Bytes on one device, by part, while the program runs."""
    found = dict.fromkeys(PARTS, 0.0)
    for name, size in costs.arguments.items():
        found[_PARTS.get(name, "other")] += size
    for name, tree in planned.resident.items():  # what the program does not take lies in memory all the same
        found[_PARTS[name]] = max(found[_PARTS[name]], sum(map(_bytes_here, jax.tree.leaves(tree))))
    said = compiled.memory_analysis()
    if said is not None:
        found["temporaries"] = said.temp_size_in_bytes
        found["outputs"] = max(said.output_size_in_bytes - said.alias_size_in_bytes, 0)
        found["code"] = said.generated_code_size_in_bytes if topology.platform == "tpu" else 0
    return found


def _bytes_here(shape) -> int:
    """Bytes of an array on one of its devices, without padding."""
    here = shape.sharding.shard_shape(shape.shape) if shape.sharding is not None else shape.shape
    return math.prod(here) * shape.dtype.itemsize


def _facts(planned: Planned, costs: hlo.Costs, topology: Topology) -> dict[str, Any]:
    """What the program does in a step, on one device."""
    steps, moved = planned.steps, Counter()
    for one in costs.collectives:
        moved[one.kind, one.dtype, one.shape] += one.times / steps
    size = {(one.kind, one.dtype, one.shape): one.bytes for one in costs.collectives}
    return {
        "bytes": costs.bytes / steps,
        "bytes_padded": costs.padded / steps,
        "collectives": [
            dict(kind=kind, dtype=dtype, shape=list(shape), times=times, bytes=size[kind, dtype, shape])
            for (kind, dtype, shape), times in moved.items()
        ],
        "copies": [copy._asdict() | {"times": copy.times / steps} for copy in costs.copies],
        "kernels": costs.kernels / steps if topology.platform == "gpu" else None,
        "cycles": None if costs.cycles is None else costs.cycles / steps,
        "unestimated": costs.unestimated if costs.cycles is not None else None,
        "loops_unknown": costs.loops_unknown,
    }
