"""`uld plan`: compiles a config's programs for devices that are absent, and tells memory and time."""

import sys

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import Flags
from uld_jax.errors import UserError

USAGE = "--config=CONFIG --topology=v5e:2x2|h100:8 [--stages=NAME,...] [--images=N] [--out=plan.json]"


def define(flags: Flags) -> None:
    """Add the flags of `uld plan`."""
    flags.config()
    meaning = "The devices: v5e:2x2, v6e:4x4, v5p:2x2x4, tpu7x:2x2x1; h100:8, h200:1, a100:4; cpu:1."
    flags.text("topology", None, meaning)
    flags.words("stages", "Stages to compile; all by default.")
    flags.number("images", 0, "Number of training images; 0: those of the config's data set.")
    flags.switch("largest_batch", "Also compiles each step with other batches, to find the largest that fits.")
    flags.path("out", "plan.json", "File to write, after every program.")


def run(args: FlagValues) -> int:
    """Compile the programs; print the tables and the path of the file.

    The exit code is 1 if a program does not compile or does not fit.
    """
    from uld_jax.plan import report, topology

    if args.images < 0:
        raise UserError(f"--images={args.images}; use 1 or more, or 0 for the config's data set")
    say = lambda text: print(text, file=sys.stderr, flush=True)
    options = dict(images=args.images, stages=args.stages, largest=args.largest_batch, out=args.out, say=say)
    found = report.plan(args.config, topology.find(args.topology), **options)
    print("\n".join(report.tables(found)))
    print(f"written to {args.out}")
    return shared.BAD_INPUT if report.failed(found) else shared.OK


COMMAND = shared.Command(USAGE, define, run, interrupted="the programs so far are in --out", devices=False)
