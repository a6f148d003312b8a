"""`uld train`: trains the stages of a config and measures each."""

import os
import sys

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import Flags
from uld_jax.errors import shell_command

USAGE = "--config=configs/zeroshot.py:dataset=folder,k=10,preset=small --config.data_dir=PHOTOS --workdir=RUN"


def define(flags: Flags) -> None:
    """Add the flags of `uld train`."""
    flags.workdir()
    flags.config()
    flags.text("profile", "", "START:STOP, the steps of a JAX trace written to WORKDIR/profile.")


def run(args: FlagValues) -> int:
    """Train the stages; print the number of landmarks, the errors and the paths of the results."""
    from uld_jax.engine import loop, stopping
    from uld_jax.evaluation.report import summary

    profile = None
    if args.profile:
        profile = shared.pair(args.profile, "--profile")
    try:
        found = loop.run(args.config, args.workdir, profile=profile)
    except stopping.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return shared.OK
    if shared.first_process():
        count = found.report.get("landmarks", args.config.k)  # some methods estimate the number
        print(f"{count} landmarks found; {summary(found.report)}".rstrip("; "))
        print(f"  pictures  {os.path.join(args.workdir, 'contact_sheet.png')}")
        print(f"  numbers   {os.path.join(args.workdir, 'eval')}")
        print(f"  use them  {shell_command('predict', workdir=args.workdir, images='DIR', out='DIR')}")
    return shared.told(found.skipped, os.path.join(args.workdir, "skipped.csv"))


COMMAND = shared.Command(USAGE, define, run, stops=True, interrupted=shared.GOES_ON)
