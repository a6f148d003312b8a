"""What commands share: the form of a command, exit codes, and how numbers are read and results are told."""

import sys
from collections.abc import Callable
from typing import NamedTuple

from absl.flags import FlagValues

from uld_jax.cli.flags import Flags
from uld_jax.errors import UserError

OK, BAD_INPUT, SKIPPED = 0, 1, 3  # exit codes
GOES_ON = "the same command goes on from its last checkpoint"


class Command(NamedTuple):
    """A command of `uld`.

    Attributes:
      usage: its usual flags, in lines of at most 105 characters.
      define: adds its flags to those that all commands have.
      run: does it with the flags' values, and returns the exit code.
      overrides: --config.KEY=VALUE is kept in its flag --override, for configs that the command itself reads.
      positional: its flag that takes words without a flag, too.
      stops: it saves what it has when it is told to stop, so it hears of Ctrl-C and SIGTERM itself.
      interrupted: what is said of its results after Ctrl-C.
    """

    usage: str
    define: Callable[[Flags], None]
    run: Callable[[FlagValues], int]
    overrides: bool = False
    positional: str = ""
    stops: bool = False
    interrupted: str = ""


def first_process() -> bool:
    """Whether this is the process that prints results. Starts JAX."""
    import jax

    return jax.process_index() == 0


def told(skipped, where) -> int:
    """Say which files were skipped and where that is written; return the exit code."""
    from uld_jax.data import listing

    if skipped and first_process():
        print(listing.told(skipped, where), file=sys.stderr)
    return SKIPPED if skipped else OK


def progress(name: str) -> Callable[[int, int], None]:
    """A function that prints how many of how many are done, in the first process only."""
    first = first_process()
    return lambda done, of: print(f"{name} {done}/{of}", file=sys.stderr) if first else None


def stage_of(args: FlagValues) -> str:
    """`WORKDIR:STAGE`, or `WORKDIR` for the run's last stage."""
    return f"{args.workdir}:{args.stage}" if args.stage else args.workdir


def pair(text: str, flag: str) -> tuple[int, int]:
    """Numbers of `START:STOP`. Raises UserError unless 0 <= START < STOP."""
    first, _, last = text.partition(":")
    first, last = integer(first, flag), integer(last, flag)
    if not 0 <= first < last:
        raise UserError(f"{flag}={text}: give START:STOP with 0 <= START < STOP")
    return first, last


def integer(text: str, flag: str) -> int:
    """A whole number. Raises UserError, which names the flag."""
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{flag}: {text!r} is not a whole number") from error


def percent(value: float | None) -> str:
    """A number in percent as it is printed."""
    return "not measured" if value is None else f"{value:.2f} %"
