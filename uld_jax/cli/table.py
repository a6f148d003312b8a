"""`uld table`: puts finished runs into the table of a paper, beside the paper's own numbers."""

import sys

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import Flags
from uld_jax.errors import UserError

USAGE = """--paper=imm|cgb|self_training|zeroshot|duld|c3|lead --runs=DIR [--table=NAME|list] [--out=DIR]"""


def define(flags: Flags) -> None:
    """Add the flags of `uld table`."""
    flags.text("paper", None, "The paper: imm, cgb, self_training, zeroshot, duld, c3 or lead.")
    flags.text(
        "table", "", "Table of the paper, its errors by default; list tells which there are, and how to fill them."
    )
    meaning = "Folder that holds finished runs, at any depth; runs of other papers are left out."
    flags.folder("runs", meaning, required=False)
    flags.folder("out", "Folder for table.md, table.json and figure.png; --runs by default.", required=False)


def run(args: FlagValues) -> int:
    """Write the table and print it, and which runs are not in it; or list the tables of the paper."""
    from uld_jax.studies import paper_rows, paper_table

    if args.table == paper_rows.LIST:
        print("\n".join(paper_rows.told(args.paper)))
        return shared.OK
    if not args.runs:
        paper_rows.chosen(args.paper, args.table)
        raise UserError(f"--runs is missing; add --runs=DIR, or --table={paper_rows.LIST} for the paper's tables")
    say = lambda text: print(text, file=sys.stderr)
    record, markdown = paper_table.write(args.paper, args.runs, args.out, args.table, say=say)
    print(markdown)
    print(f"written to {args.out or args.runs}: {', '.join(record['files'])}")
    return shared.OK


COMMAND = shared.Command(USAGE, define, run)
