"""A plan: all programs of a config, the file with all facts, and the tables that print them."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from uld_jax import config as config_lib
from uld_jax import devices, files, sharding
from uld_jax.config import Config
from uld_jax.errors import UserError
from uld_jax.plan import measure as measure_lib
from uld_jax.plan import programs
from uld_jax.plan.topology import Topology

MIB, GIB = 2**20, 2**30

# The facts of a program in the file; all but those of memory are of one step, or of one run of a part of a round.
FACTS = {
    "stage": "name of the stage",
    "program": "step, or the part of a round: write, refresh, form, locate, settle",
    "batch": "images in a step, over all devices",
    "steps": "steps in one run of the program",
    "runs": "runs of the program in the whole stage",
    "fits": "whether the program fits into a device's usable memory; null if it does not compile for another reason",
    "error": "reason why there are no numbers",
    "bytes_a_device": "bytes of memory of a device, by part; `total`, and `usable` for programs",
    "gflop": "10^9 FLOPs of products and convolutions, of all devices together",
    "endless": "loops of unknown length, counted as one turn, in the count of FLOPs",
    "compile_s": "seconds of tracing and compilation",
    "bytes": "bytes that a device reads and writes in its main memory, without the padding of layouts",
    "bytes_padded": "the same with padding",
    "collectives": "arrays that devices exchange: kind, dtype, shape on a device, times, bytes each",
    "copies": "instructions that only move data, from 1 % of the program on: name, type, share, label, times",
    "kernels": "kernels started on a GPU",
    "cycles": "the TPU compiler's estimate, the sum over instructions that have one",
    "unestimated": "instructions with work and without an estimate, such as collectives",
    "loops_unknown": "loops of unknown length, counted as one turn, in bytes, kernels and cycles",
    "arithmetic_s": "seconds of the FLOPs at the peak of all devices",
    "memory_s": "seconds of the padded bytes at the bandwidth of a device",
    "estimate_s": "seconds of the cycles",
    "bound_s": "the largest of the three: the time is at least this",
    "largest_batch_about": "guess of the largest batch that fits: all but the resident memory grows with the batch",
    "largest_batch": "largest batch that was compiled and fits, by bisection; null if not asked for",
}


def plan(
    config: Config,
    topology: Topology,
    *,
    images: int = 0,
    stages: Sequence[str] = (),
    largest: bool = False,
    out: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Compile a config's programs for the devices of a topology and return the content of the file.

    Args:
      config: the config, as for training.
      topology: the devices, see `topology.find`.
      images: number of training images; 0 for that of the config's data set.
      stages: names of the stages; all by default.
      largest: True finds the largest batch of each step by compiling it for several.
      out: path of the file, which is written after every program; "" for none.
      say: function called with lines about the progress.

    Raises:
      UserError: a bad config, before anything is compiled.
    """
    mesh = sharding.make_mesh(topology.devices)
    config = config.copy_and_resolve_references()
    for name in config.stages:
        config_lib.stage(config, name)  # raises for a bad config
    known = programs.Images(images or programs.count_images(config), topology.memory)
    programs.fit_batches(config, mesh, say)
    found = _head(config, topology, known)
    with devices.traced_for(topology.devices):
        for planned in programs.gather(config, mesh, known, stages):
            row = measure_lib.measure(planned, topology)
            if largest and planned.what == "step" and row.get("fits") is not None:
                row["largest_batch"] = _largest(config, topology, known, row, say)
            say(line(row))
            found["rows"].append(row)
            found["hours"] = hours(found["rows"])
            if out:
                files.write(out, json.dumps(found, indent=1) + "\n")
    if not found["rows"]:
        raise UserError("the stages of this config have neither steps nor rounds; there is nothing to compile")
    return found


def _head(config, topology: Topology, images: programs.Images) -> dict[str, Any]:
    sheet = devices.sheet(topology.kind)
    return {
        "config": config.to_dict(),
        "topology": topology.name,
        "devices": len(topology.devices),
        "device_kind": topology.kind,
        "sheet": sheet and sheet._asdict(),
        "images": images.count,
        "jax": jax.__version__,
        "rows": [],
        "hours": None,
    }


def _largest(config, topology, images, row, say) -> int:
    """The largest batch of a step that fits, in batches that divide over the devices."""
    mesh, stage = sharding.make_mesh(topology.devices), row["stage"]
    pieces = config_lib.stage(config, stage).method
    multiple = mesh.size * max(getattr(pieces, "accumulate_steps", 1), 1)

    def fits(batch):
        if batch == row["batch"]:
            return bool(row["fits"])
        tried = config.copy_and_resolve_references()
        with tried.unlocked():
            tried[stage].batch_size = batch
        step = next(p for p in programs.gather(tried, mesh, images, (stage,)) if p.what == "step")
        found = measure_lib.measure(step, topology)
        say(f"{stage}: a batch of {batch} {'fits' if found.get('fits') else 'does not fit'}")
        return bool(found.get("fits"))

    guess = row.get("largest_batch_about") or row["batch"] // 2
    return measure_lib.largest(fits, guess, multiple, most=images.count)


def hours(rows: Sequence[dict[str, Any]]) -> float | None:
    """Return a lower bound of the hours of all programs that compiled; None if none has a bound."""
    known = [row["bound_s"] * row["steps"] * row["runs"] for row in rows if row.get("bound_s") is not None]
    return sum(known) / 3600 if known else None


def failed(found: dict[str, Any]) -> bool:
    """Tell whether a program does not compile or does not fit."""
    return any("error" in row or not row["fits"] for row in found["rows"])


def line(row: dict[str, Any]) -> str:
    """Tell a program in a line, for the progress."""
    what = f"{row['stage']} {row['program']}"
    if "error" in row:
        return f"{what}: {row['error']}"
    used = row["bytes_a_device"]
    fits = "fits" if row["fits"] else "does not fit"
    return f"{what}: compiled in {row['compile_s']:.0f} s, {used['total'] / GIB:.2f} GiB a device, {fits}"


def tables(found: dict[str, Any]) -> Iterator[str]:
    """Iterate over the lines that print a plan."""
    rows = found["rows"]
    yield f"{found['topology']}: {found['devices']} x {found['device_kind']}, {found['images']} images"
    yield ""
    yield "memory of a device, MiB"
    yield from _columns([_memory(row) for row in rows])
    yield ""
    yield "a step, or one run of a part of a round"
    yield from _columns([_time(row) for row in rows])
    for row in rows:
        yield from _details(row)
    yield ""
    if found["hours"] is None:
        yield f"there is no data sheet of {found['device_kind']}, so no time is bounded"
    else:
        yield f"the whole config takes at least {found['hours']:.3g} hours: {_MEANING}"


_MEANING = (
    "for every program the largest of its arithmetic at the peak, its bytes at the bandwidth and the compiler's "
    "estimate, times its runs; exchange between devices, input, evaluation and loops of unknown length come on top"
)


def _memory(row) -> dict[str, str]:
    used = row.get("bytes_a_device", {})
    cells = {"stage": row["stage"], "program": row["program"], "batch": str(row["batch"])}
    cells["fits"] = {True: "yes", False: "NO", None: "?"}[row["fits"]]
    cells |= {name: _number(used.get(name), MIB) for name in ("total", "usable", *measure_lib.PARTS)}
    return cells


def _time(row) -> dict[str, str]:
    exchanged = row.get("collectives")
    sent = None if exchanged is None else sum(one["times"] * one["bytes"] for one in exchanged)
    return {
        "stage": row["stage"],
        "program": row["program"],
        "runs": str(row["runs"]),
        "steps": str(row["steps"]),
        "GFLOP": _number(row.get("gflop")),
        "GB": _number(row.get("bytes"), 1e9),
        "padded": _number(row.get("bytes_padded"), 1e9),
        "exchanges": "-" if exchanged is None else f"{sum(one['times'] for one in exchanged):g}",
        "MB": _number(sent, 1e6),
        "copies %": "-" if "copies" not in row else _number(100 * sum(copy["share"] for copy in row["copies"])),
        "kernels": _number(row.get("kernels")),
        "arithmetic ms": _number(row.get("arithmetic_s"), 1e-3),
        "memory ms": _number(row.get("memory_s"), 1e-3),
        "estimate ms": _number(row.get("estimate_s"), 1e-3),
        "largest batch": str(row["largest_batch"]) if row.get("largest_batch") is not None else _about(row),
        "hours": _number(hours([row])),
    }


def _about(row) -> str:
    guess = row.get("largest_batch_about")
    return "-" if guess is None else f"about {guess}"


def _details(row) -> Iterator[str]:
    name = f"{row['stage']} {row['program']}"
    if "error" in row:
        yield ""
        yield f"{name}: {row['error']}"
        return
    if row["collectives"]:
        yield ""
        yield f"{name} exchanges"
        largest = sorted(row["collectives"], key=lambda one: -one["times"] * one["bytes"])
        for one in largest[:_SHOWN]:
            shape = ",".join(map(str, one["shape"]))
            size = _number(one["bytes"], 1e6)
            yield f"  {one['times']:g} x {one['kind']} {one['dtype']}[{shape}], {size} MB each"
        if len(largest) > _SHOWN:
            yield f"  and {len(largest) - _SHOWN} other shapes (in the file)"
    if row["copies"]:
        yield ""
        yield f"{name} copies"
        for copy in row["copies"][:_SHOWN]:
            yield f"  {100 * copy['share']:.1f} %  {copy['times']:g} x {copy['name']} {copy['type']} {copy['label']}"
        if len(row["copies"]) > _SHOWN:
            yield f"  and {len(row['copies']) - _SHOWN} others (in the file)"


_SHOWN = 5  # exchanges and copies of a program in the tables


def _number(value, unit: float = 1.0) -> str:
    """Format a number with four digits; a dash for none."""
    if value is None:
        return "-"
    value /= unit
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _columns(rows: list[dict[str, str]]) -> Iterator[str]:
    """Align rows of cells under their names."""
    names = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in names]
    for cells in [names, *([row[name] for name in names] for row in rows)]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
