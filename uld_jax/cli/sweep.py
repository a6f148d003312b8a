"""`uld sweep`: trains a config over grids of values, and writes one table."""

import sys

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import CONFIG, Flags

USAGE = "--config=CONFIG --grid=KEY=A,B --grid=seed=0,1,2 --workdir=DIR [--columns=NAME,NAME]"


def define(flags: Flags) -> None:
    """Add the flags of `uld sweep`."""
    flags.workdir()
    flags.text("config", None, CONFIG)
    flags.repeated("grid", "KEY=VALUE,VALUE,... of a config's key or argument; again for another one.")
    flags.override()
    flags.words("columns", "Metrics of the table, in place of the usual ones.")


def run(args: FlagValues) -> int:
    """Train the unfinished runs, and print the table."""
    from uld_jax.engine import stopping
    from uld_jax.studies import sweep

    try:
        table = sweep.run(args.config, args.grid, args.workdir, overrides=args.override, columns=args.columns)
    except stopping.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return shared.OK
    if shared.first_process():
        print(table.markdown)
        print(f"written to {', '.join(table.files)} in {args.workdir}; a folder for each run")
    return shared.BAD_INPUT if table.failed else shared.OK


COMMAND = shared.Command(USAGE, define, run, overrides=True, stops=True, interrupted=shared.GOES_ON)
