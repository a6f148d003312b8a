"""`uld sweep`: trains a config over grids of values, and writes one table."""

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
    from uld_jax.studies import sweep

    train = lambda: sweep.run(args.config, args.grid, args.workdir, overrides=args.override, columns=args.columns)
    return shared.told_table(train, lambda table: f"{', '.join(table.files)} in {args.workdir}; a folder for each run")


COMMAND = shared.Command(USAGE, define, run, overrides=True, stops=True, interrupted=shared.GOES_ON)
