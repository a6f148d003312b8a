"""The step of a stage by two checkouts in turns: the ratio of their times, on a machine that also does other work.

python -m benchmarks.beside --other=../before --method=zeroshot --stage=detector
python -m benchmarks.beside --method=cgb --stage=cgb --other_flags=--xla_cpu_experimental_ynn_fusion_type=dot

Each checkout has a process of its own, which compiles the step once and then does `--steps` steps in each of `--turns`
turns; a turn of one precedes a turn of the other, so that both meet the same load. `wall` is the time of a step, `cpu`
the time that the processor spent on it, which other programs disturb less. A ratio is the median of the turns' ratios,
the other checkout over this one: above 1 this one is the faster. Both run the programs of this file's checkout, on the
library of their own; with `--other_flags` the other has these XLA_FLAGS besides.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parents[1]
_TURN = "step in turns: "  # starts a line that a process answers with; other lines are its own messages


class Side:
    """A process with the step of one checkout."""

    def __init__(self, root: pathlib.Path, args: list[str], flags: str = ""):
        start = (
            f"import sys; sys.path.insert(0, {str(root)!r}); import uld_jax; sys.path.insert(0, {str(HERE)!r}); "
            "from benchmarks import beside; beside.serve(sys.argv[1:])"
        )
        known = os.environ.get("XLA_FLAGS", "")
        environment = os.environ | ({"XLA_FLAGS": f"{known} {flags}".strip()} if flags else {})
        environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", start, *args],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.about = self._answer()

    def turn(self, steps: int) -> dict[str, float]:
        """Do `steps` steps: seconds a step, `wall` and `cpu`, and the last `loss` that the step reports."""
        print(steps, file=self._process.stdin)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()

    def _answer(self):
        for line in self._process.stdout:
            if line.startswith(_TURN):
                return json.loads(line.removeprefix(_TURN))
        raise RuntimeError(f"a process ended with {self._process.wait()}; its message is above")


def serve(args: list[str]) -> None:
    """Be the process of one side: compile, then do as many steps as each line of stdin says."""
    import jax  # after XLA_FLAGS, and not in the process that only compares

    import uld_jax
    from benchmarks import step

    given, changes = _parser().parse_known_args(args)
    program = step.program(given.method, given.stage, given.preset, given.batch_size, given.dtype, changes)
    jitted = program.function if hasattr(program.function, "lower") else jax.jit(program.function)
    compiled = jitted.lower(*program.args).compile()
    first, rest = program.args[0], program.args[1:]

    def steps(count: int):
        nonlocal first
        start, used = time.perf_counter(), _processor()
        for _ in range(count):
            out = jax.block_until_ready(compiled(first, *rest))
            first = out[0] if program.donate else first
        times = {"wall": (time.perf_counter() - start) / count, "cpu": (_processor() - used) / count}
        return times | ({"loss": float(out[1]["loss"])} if program.donate and "loss" in out[1] else {})

    steps(1)
    _answer({"library": uld_jax.__path__[0], "device": jax.devices()[0].device_kind, "jax": jax.__version__})
    for line in sys.stdin:
        _answer(steps(int(line)))


def compare(sides: list[Side], turns: int, steps: int) -> dict:
    """Take `turns` turns of each side: medians of both sides' times, and of the turns' ratios of side 1 to side 0."""
    found = [[side.turn(steps) for side in sides] for _ in range(turns)]
    row = {"turns": turns, "steps": steps}
    for kind in ("wall", "cpu"):
        ours, other = ([1e3 * pair[side][kind] for pair in found] for side in (0, 1))
        row[f"{kind} ms"], row[f"{kind} ms, other"] = statistics.median(ours), statistics.median(other)
        ratios = [b / a for a, b in zip(ours, other, strict=True)]
        row[f"{kind} ratio"], row[f"{kind} ratio, least"] = statistics.median(ratios), min(ratios)
        row[f"{kind} ratio, most"] = max(ratios)
    if "loss" in found[-1][0]:
        row["loss"], row["loss, other"] = (one["loss"] for one in found[-1])
    return row


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _answer(value) -> None:
    print(_TURN + json.dumps(value), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", required=True, help="name of a config")
    parser.add_argument("--stage", required=True, help="name of one of its stages")
    parser.add_argument("--other", default=str(HERE), help="folder of another checkout; this one by default")
    parser.add_argument("--other_flags", default="", help="XLA_FLAGS of the other's process")
    parser.add_argument("--preset", default="small", choices=("paper", "small", "tiny"))
    parser.add_argument("--batch_size", type=int, default=0, help="the config's by default")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", default="", help="file to write the row to")
    return parser


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    args = sys.argv[1:] if args is None else args
    given, changes = _parser().parse_known_args(args)
    if odd := [c for c in changes if not c.startswith("--config.")]:
        _parser().error(f"unrecognized argument {odd[0]}")
    other = pathlib.Path(given.other).resolve()
    if not (other / "uld_jax" / "__init__.py").exists():
        _parser().error(f"--other={given.other} is no checkout of this project: it has no folder uld_jax")
    sides = [Side(HERE, args), Side(other, args, given.other_flags)]
    try:
        row = {"method": given.method, "stage": given.stage, "preset": given.preset, "dtype": given.dtype}
        row |= compare(sides, given.turns, given.steps)
        print(f"this checkout {sides[0].about}\nother {sides[1].about} {given.other_flags}".rstrip())
    finally:
        for side in sides:
            side.close()
    for key, value in row.items():
        print(f"{key:20} {value:.4g}" if isinstance(value, float) else f"{key:20} {value}")
    if given.json:
        from benchmarks import harness

        harness.write(given.json, [row])


if __name__ == "__main__":
    main()
