"""Parts that commands share: the form of a command, exit codes, reading of numbers, and printing of results."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from absl.flags import FlagValues

from uld_jax.cli.flags import Flags
from uld_jax.errors import UserError

OK, BAD_INPUT, SKIPPED = 0, 1, 3  # exit codes
GOES_ON = "the same command goes on from its last checkpoint"


class Command(NamedTuple):
    """A command of `uld`.

    Attributes:
      usage: common flags of the command, in lines of at most 105 characters.
      define: function that adds the command's flags to those of all commands.
      run: function that runs the command with the flags' values, and returns the exit code.
      overrides: True collects --config.KEY=VALUE in the flag --override, for configs that the command itself reads.
      positional: name of the flag that also takes words without a flag; empty for none.
      stops: True if the command saves its state when it is stopped, and so handles Ctrl-C and SIGTERM itself.
      interrupted: message about the results after Ctrl-C.
      devices: False for a command that joins no other process and uses no devices of this machine.
    """

    usage: str
    define: Callable[[Flags], None]
    run: Callable[[FlagValues], int]
    overrides: bool = False
    positional: str = ""
    stops: bool = False
    interrupted: str = ""
    devices: bool = True


def first_process() -> bool:
    """Tell whether this is the process that prints results. Starts JAX."""
    import jax

    return jax.process_index() == 0


def told(skipped, where) -> int:
    """Print which files were skipped and the path of their list; return the exit code."""
    from uld_jax.data import listing

    if skipped and first_process():
        print(listing.told(skipped, where), file=sys.stderr)
    return SKIPPED if skipped else OK


def told_table(train: Callable[[], Any], written: Callable[[Any], str]) -> int:
    """Train the runs of a `studies.table.Table` and print it, and what `written` says of it; return the exit code.

    A table whose training was stopped is not printed.
    """
    from uld_jax.engine import stopping

    try:
        table = train()
    except stopping.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return OK
    if first_process():
        print(table.markdown)
        print(f"written to {written(table)}")
    return BAD_INPUT if table.failed else OK


def progress(name: str) -> Callable[[int, int], None]:
    """Make a function that prints the numbers of items done and of all items, in the first process only."""
    first = first_process()
    return lambda done, of: print(f"{name} {done}/{of}", file=sys.stderr) if first else None


def stage_of(args: FlagValues) -> str:
    """Return `WORKDIR:STAGE`, or `WORKDIR` for the run's last stage."""
    return f"{args.workdir}:{args.stage}" if args.stage else args.workdir


def told_report(args: FlagValues, asked: Any, check, measure, summary) -> int:
    """Measure a finished stage on one device, print its report and the folder with its files; return the exit code.

    Args:
      args: the flags, with --workdir and --stage.
      asked: what is measured.
      check: function of `asked` that raises UserError for words that no run could answer.
      measure: function of the stage, `asked` and `say` that returns the report and its folder.
      summary: function that returns the lines that tell a report.
    """
    import jax

    from uld_jax import sharding
    from uld_jax.engine import runs

    check(asked)
    finished = runs.load(stage_of(args), sharding.make_mesh(jax.devices()[:1]))
    report, folder = measure(finished, asked, say=lambda text: print(text, file=sys.stderr))
    print("\n".join(summary(report)))
    print(f"  written to {folder}")
    return OK


def pair(text: str, flag: str) -> tuple[int, int]:
    """Parse the numbers of `START:STOP`. Raises UserError unless 0 <= START < STOP."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise UserError(f"{flag}={text} is no range of steps; give START:STOP, such as {flag}=100:110")
    return int(first), int(last)


def percent(value: float | None) -> str:
    """Format a number in percent."""
    return "not measured" if value is None else f"{value:.2f} %"
