"""One way to time functions: separate compilation, warm-up, then the median and the spread of many calls."""

import dataclasses
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from uld_jax import devices as devices_lib
from uld_jax import files


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Attributes:
      median, low, high: seconds of the calls; low and high are the 10th and 90th percentile.
      compile: seconds of tracing and compilation.
      calls: number of timed calls.
      flops: FLOPs of one call by XLA's count, None if unknown.
      peak_bytes: peak of device memory during the call: the device's own count, or the executable's request.
      own_bytes: bytes of results and temporaries by XLA's analysis; None if unknown.
    """

    median: float
    low: float
    high: float
    compile: float
    calls: int
    flops: float | None
    peak_bytes: int | None
    own_bytes: int | None = None


def measure(
    function: Callable, *args, calls: int = 20, warmup: int = 3, donate_first: bool = False, budget: float = 60.0
) -> Timing:
    """Time a jittable function.

    Args:
      function: function to time, jitted or not.
      *args: arguments of the function.
      calls: largest number of timed calls.
      warmup: number of untimed calls before them.
      donate_first: True if the function's first result is the next first argument, and the argument may be destroyed,
        as in a training step.
      budget: seconds after which no further call starts, once five are timed.
    """
    begin = time.perf_counter()
    compiled = (
        jax.jit(function).lower(*args).compile() if not hasattr(function, "lower") else function.lower(*args).compile()
    )
    compile_time = time.perf_counter() - begin
    seconds, first, rest = [], args[0], args[1:]
    begin = time.perf_counter()
    for i in range(warmup + calls):
        start = time.perf_counter()
        out = jax.block_until_ready(compiled(first, *rest))
        if i >= warmup:
            seconds.append(time.perf_counter() - start)
        if donate_first:
            first = out[0]
        if len(seconds) >= 5 and time.perf_counter() - begin > budget:
            break
    tenths = statistics.quantiles(seconds, n=10) if len(seconds) > 1 else [seconds[0]] * 9
    return Timing(
        median=statistics.median(seconds),
        low=tenths[0],
        high=tenths[-1],
        compile=compile_time,
        calls=len(seconds),
        flops=_flops(compiled),
        peak_bytes=_peak_bytes(compiled),
        own_bytes=_own_bytes(compiled),
    )


def utilisation(timing: Timing, dtype: str = "float32", exact: bool = False, devices: int = 0) -> float | None:
    """Share of the devices' peak that the counted FLOPs reach; None if either is unknown.

    `exact` float32 is never rounded to TF32 or bfloat16 (precision "highest"); `devices` is the number of devices, 0
    for all.
    """
    half = dtype in ("bfloat16", "float16")
    sheet = _sheet()
    peak = sheet and (sheet.half if half else sheet.exact if exact else sheet.single)
    devices = devices or jax.device_count()
    return None if not peak or not timing.flops else timing.flops / timing.median / (peak * devices)


def environment() -> dict[str, Any]:
    """The environment on which the numbers depend."""
    device = jax.devices()[0]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "backend": jax.default_backend(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table on stdout."""
    keys = list(dict.fromkeys(k for row in rows for k in row))
    cells = [[_cell(row.get(k)) for k in keys] for row in rows]
    widths = [max(len(k), *(len(c[i]) for c in cells)) for i, k in enumerate(keys)]
    for line in [keys, ["-" * w for w in widths], *cells]:
        print("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip())


def write(path: str, rows: list[dict[str, Any]]) -> None:
    """Write rows with the environment as JSON."""
    files.write(path, json.dumps({"environment": environment(), "rows": rows}, indent=2) + "\n")


def report(rows: list[dict[str, Any]], path: str = "") -> None:
    """Print the environment and rows as a Markdown table on stdout; write both as JSON to a file, if one is named."""
    print(environment())
    print(markdown(rows))
    if path:
        write(path, rows)


def _flops(compiled) -> float | None:
    try:
        analysis = compiled.cost_analysis()
    except (NotImplementedError, RuntimeError):
        return None
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    flops = (analysis or {}).get("flops")
    return flops if flops and flops > 0 else None


def _peak_bytes(compiled) -> int | None:
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    own, memory = _own_bytes(compiled), _memory(compiled)
    return None if own is None else own + memory.argument_size_in_bytes


def _own_bytes(compiled) -> int | None:
    memory = _memory(compiled)
    return memory and memory.temp_size_in_bytes + memory.output_size_in_bytes


def _memory(compiled):
    try:
        return compiled.memory_analysis()
    except (NotImplementedError, RuntimeError):
        return None


def _cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def distance_share(n: int, k: int, dim: int, seconds: float) -> float | None:
    """Share of the roofline that n * k distances of `dim` numbers in `seconds` reach; None if the roofline is unknown.

    The roofline is the larger of two times: reading the n rows once, and the float32 work, 2 n k dim, at the peak of
    the units that compute exact float32.
    """
    sheet = _sheet()
    return sheet and max(2 * n * k * dim / sheet.exact, 4 * n * dim / sheet.bandwidth) / seconds


def _sheet() -> devices_lib.Sheet | None:
    return devices_lib.sheet(jax.devices()[0].device_kind)


class PeakMemory:
    """A context that measures `grown`, the bytes of the process's peak in `with` above its start; None off Linux."""

    def __enter__(self):
        self.grown = None
        try:
            pathlib.Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
            self._before = _status("VmRSS")
        except OSError:
            self._before = None
        return self

    def __exit__(self, *_):
        if self._before is not None:
            self.grown = max(_status("VmHWM") - self._before, 0)


def _status(key: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))


def markdown(rows: list[dict]) -> str:
    """Format rows as a Markdown table."""
    cell = lambda v: "" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(v) for v in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
