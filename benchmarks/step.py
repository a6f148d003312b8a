"""Timings of training steps: images a second, compile time, FLOPs, utilisation and memory of any stage in `configs/`.

python -m benchmarks.step                                             every stage of every method, preset small
python -m benchmarks.step --method=zeroshot --stage=detector --preset=paper --batch_size=64 --dtype=bfloat16
python -m benchmarks.step --method=cgb --preset=paper --peer="python torch_cgb_step.py" --config.cgb.detach_d=False

A peer is any program whose last line is JSON with `images_per_s`. It runs between two timings of ours, which reveals
changes in the machine's load.

The peak memory of a device with its own count (`peak_bytes_in_use`) is the highest since the process began: with
several stages in one process, the number of a later stage is never below that of an earlier one. On CPU it is the
request of the step's program.
"""

import argparse
import json
import shlex
import subprocess
from collections.abc import Callable
from typing import NamedTuple

import jax

from benchmarks import harness
from uld_jax import config as config_lib
from uld_jax import sharding
from uld_jax.data.open import open_data
from uld_jax.engine.rounds import Rounds
from uld_jax.engine.step import FirstState, compile_step

# The start of a detector does not change its step; these starts need no weights, and CGB then needs no earlier stages.
ARGUMENTS = {"cgb": ",init=scratch", "c3": ",init=scratch", "zeroshot": ",backbone=gradient.GradientHistograms"}
CHANGES = {"self_training": ["--config.keypoints.detector=corners"]}


def load(name: str, preset: str, changes=()):
    """Load a config on the synthetic images; `changes` are as on the command line, --config.KEY=VALUE."""
    spec = config_lib.resolve(f"{name}:dataset=synthetic,preset={preset}{ARGUMENTS.get(name, '')}")
    return config_lib.parse_flags(["step", f"--config={spec}", *CHANGES.get(name, ()), *changes])


def stages(only: str = "", preset: str = "tiny") -> list[tuple[str, str]]:
    """(method, stage) of every stage of a preset, with steps or with passes over the data."""
    names = [name for name in config_lib.shipped() if "/" not in name]
    return [(n, s) for n in names if not only or n == only for s in load(n, preset).stages]


class Program(NamedTuple):
    """What a stage runs on a batch.

    Attributes:
      what: `step`, or `observe` for a stage without steps.
      function: the program; compiled by its `lower`, if it has one.
      args: its arguments.
      size: images in a batch.
      donate: True if the first result is the next first argument, and the argument may be destroyed.
    """

    what: str
    function: Callable
    args: tuple
    size: int
    donate: bool


def program(name: str, stage: str, preset: str, batch_size: int = 0, dtype: str = "float32", changes=()) -> Program:
    """Build what a stage runs on a batch, its state that of a run that has just reached the stage.

    Raises ValueError for a stage that the preset does not have.
    """
    config = load(name, preset, changes)
    if stage not in config.stages:
        raise ValueError(f"{name} has no stage {stage!r} in {preset}; its stages are {', '.join(config.stages)}")
    config.dtype = dtype
    size = batch_size or config_lib.batch_of(config, stage)
    config.batch_size = size
    for each in config.stages:
        config[each].batch_size = 0
    config.data.rows = (size, size)  # the number of images does not change a step
    mesh = sharding.make_mesh()
    data, state = open_data(config, mesh), None
    reader = data.train_reader
    for each in config.stages:
        spec = config_lib.stage(config, each)
        frozen = sharding.put_replicated(mesh, spec.method.frozen())
        state = FirstState(spec.method, reader, mesh, frozen, jax.random.key(0)).state(state)
        if each == stage:
            break
        state = Rounds(spec.method, reader, mesh).run(state, frozen, jax.random.key(1), spec.method.round_at(0))
    payload = next(reader.payloads(0, seed=0))
    key = sharding.put_key(mesh, jax.random.key(2))
    if spec.steps:
        advance = compile_step(spec.method, reader, mesh, 1)
        return Program("step", advance, (state, frozen, reader.store, payload, key), size, True)

    def observe(state, frozen, store, payload, key):
        return spec.method.observe(state, frozen, reader.fetch(store, payload), key)

    return Program("observe", observe, (state, frozen, reader.store, payload, key), size, False)


def benchmark(name: str, stage: str, preset: str, batch_size: int, dtype: str, calls: int, changes=()) -> dict:
    """Make one row. A stage of zero steps is timed by its `observe` on a batch."""
    what, function, args, size, donate = program(name, stage, preset, batch_size, dtype, changes)
    timing = harness.measure(function, *args, calls=calls, donate_first=donate)
    return {
        "method": name,
        "stage": stage,
        "what": what,
        "preset": preset,
        "dtype": dtype,
        "batch": size,
        "images/s": size / timing.median,
        "ms": 1e3 * timing.median,
        "ms 10%": 1e3 * timing.low,
        "ms 90%": 1e3 * timing.high,
        "compile s": timing.compile,
        "GFLOP": timing.flops and timing.flops / 1e9,
        "utilisation": harness.utilisation(timing, dtype),
        "peak MiB": timing.peak_bytes and timing.peak_bytes / 2**20,
    }


def peer(command: str) -> float:
    """Images a second of another program; raises RuntimeError if its output has none."""
    done = subprocess.run(shlex.split(command), capture_output=True, text=True)
    try:
        return float(json.loads(done.stdout.strip().splitlines()[-1])["images_per_s"])
    except (IndexError, KeyError, ValueError) as error:
        raise RuntimeError(
            f"{command} did not end in a line of JSON with images_per_s: {done.stderr[-500:]}"
        ) from error


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="", help="name of one config; all by default")
    parser.add_argument("--stage", default="", help="name of one stage; all by default")
    parser.add_argument("--preset", default="small", choices=("paper", "small", "tiny"))
    parser.add_argument("--batch_size", type=int, default=0, help="the config's by default")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--peer", default="", help="a command to compare with, see above; needs --method")
    parser.add_argument("--json", default="", help="file to write the rows to")
    args, changes = parser.parse_known_args()
    if odd := [c for c in changes if not c.startswith("--config.")]:
        parser.error(f"unrecognized argument {odd[0]}")
    chosen = [(n, s) for n, s in stages(args.method, args.preset) if not args.stage or s == args.stage]
    if not chosen:
        parser.error(f"there is no stage {args.stage!r} in method {args.method!r}; there are {stages('', args.preset)}")
    if args.peer and not args.method:
        parser.error("--peer needs --method; its last stage is timed unless --stage names another")
    chosen = chosen[-1:] if args.peer else chosen
    ours = lambda: [benchmark(n, s, args.preset, args.batch_size, args.dtype, args.calls, changes) for n, s in chosen]
    rows = ours()
    if args.peer:
        found = peer(args.peer)
        again = ours()
        rows = [*rows, {"method": args.peer.split("/")[-1], "images/s": found}, *again]
        mean = sum(row["images/s"] for row in (rows[0], again[0])) / 2
        print(f"{mean / found:.2f} times the peer ({mean:.2f} against {found:.2f} images/s)")
    print(harness.environment())
    harness.show(rows)
    if args.json:
        harness.write(args.json, rows)


if __name__ == "__main__":
    main()
