"""`uld table`: puts finished runs into the table of a paper, beside the paper's own numbers."""

import sys

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import Flags

USAGE = "--paper=imm|cgb|self_training|zeroshot|duld|c3|lead --runs=DIR [--out=DIR]"


def define(flags: Flags) -> None:
    """Add the flags of `uld table`."""
    flags.text("paper", None, "The paper: imm, cgb, self_training, zeroshot, duld, c3 or lead.")
    flags.folder("runs", "Folder that holds finished runs, at any depth; runs of other papers are left out.")
    flags.folder("out", "Folder for table.md, table.json and figure.png; --runs by default.", required=False)


def run(args: FlagValues) -> int:
    """Write the table and print it, and which runs are not in it."""
    from uld_jax.studies import paper_table

    say = lambda text: print(text, file=sys.stderr)
    record, markdown = paper_table.write(args.paper, args.runs, args.out, say=say)
    print(markdown)
    print(f"written to {args.out or args.runs}: {', '.join(record['files'])}")
    return shared.OK


COMMAND = shared.Command(USAGE, define, run)
