"""The console script `uld COMMAND --flags`: finds the command, joins its processes, prints errors as sentences."""

import difflib
import signal
import sys
import warnings
from collections.abc import Sequence

from absl.flags import FlagValues

from uld_jax import cli, files, interrupts, large_pages
from uld_jax.cli.flags import Flags
from uld_jax.cli.shared import BAD_INPUT, OK
from uld_jax.errors import UserError


def console() -> int:
    """Run the console script in a process with large memory pages; return the exit code as `main` does."""
    large_pages.restart()
    return main()


def main() -> int:
    """Run the command of the command line; return the exit code: 0 done, 1 bad input, 3 done but files were skipped."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in cli.OLD_NAMES:
        print(f"uld {name}: this command is now called `uld {cli.OLD_NAMES[name]}`", file=sys.stderr)
        name = cli.OLD_NAMES[name]
    if name in ("", "-h", "--help", "help"):
        print(cli.USAGE)
        return OK
    if name not in cli.COMMANDS:
        print(files.one_line(f"uld: {_no_command(name)}"), file=sys.stderr)
        return BAD_INPUT
    warnings.showwarning = lambda message, category, *_: print(f"{category.__name__}: {message}", file=sys.stderr)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold bytes that are not text
    return interrupts.leave(_answered(name, sys.argv[2:]))


def _no_command(word: str) -> str:
    """Say that the first word is no command."""
    if word.startswith("-"):
        return f"the command is missing before {word}, as in `uld train {word}`; `uld --help` lists the commands"
    near = difflib.get_close_matches(word.lower(), cli.COMMANDS, 1)
    meant = f"did you mean `uld {near[0]}`? " if near else ""
    return f"there is no command {word!r}; {meant}`uld --help` lists the commands"


def _answered(name: str, words: Sequence[str]) -> int:
    """Run a command and return its exit code; print errors that a user can mend, and Ctrl-C, as one sentence."""
    try:
        return _run(name, words)
    except UserError as error:
        print(files.one_line(f"uld {name}: {error}"), file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        said = f"uld {name}: {error.filename or ''} {error.strerror or error}".replace("  ", " ")
        print(files.one_line(said), file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        left = cli.COMMANDS[name].interrupted
        print("; ".join(filter(None, (f"uld {name}: interrupted", left))), file=sys.stderr)
        return 128 + signal.SIGINT


def _run(name: str, words: Sequence[str]) -> int:
    """Run a command with the words that follow its name, or show its flags; return the exit code."""
    command, flags = cli.COMMANDS[name], Flags()
    command.define(flags)
    if {"--help", "-h"} & set(words):
        print(f"{cli.USAGE}\nflags of uld {name}:{flags.values.get_help(prefix='  ')}")
        return OK
    options = dict(usage=command.usage, overrides=command.overrides, positional=command.positional)
    args = flags.parse([f"uld {name}", *words], **options)
    if command.devices:
        _start_processes(args)
    if command.stops:
        return command.run(args)
    return interrupts.attended(lambda: command.run(args))  # so that Ctrl-C takes effect at once


def _start_processes(args: FlagValues) -> None:
    """Join the other processes and print which devices there are."""
    from uld_jax import processes

    processes.start(args.coordinator, args.num_processes, args.process_id)
    processes.announce()


if __name__ == "__main__":
    sys.exit(console())
