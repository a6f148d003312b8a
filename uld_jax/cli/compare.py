"""`uld compare`: sets finished runs side by side on the same test images."""

import os
import sys

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import Flags

USAGE = """\
--runs=RUN,RUN:STAGE --out=DIR [--split=test] [--data_dir=DIR] [--order_by=COLUMN|yaw] [--images=8]
[--protocol=NAME]"""


def define(flags: Flags) -> None:
    """Add the flags of `uld compare`."""
    from uld_jax.evaluation import protocol

    meaning = "Two or more finished runs, each RUN for its last stage or RUN:STAGE, separated by commas."
    flags.words("runs", meaning, required=True)
    flags.folder("out", "Folder for the tables and pictures: a new one, or that of an earlier comparison.")
    flags.text("split", "test", "Split to measure on.")
    flags.path("data_dir", "", "Folder of the data, in place of each run's own.")
    flags.text("order_by", "", "Column of the csv, or yaw, by which the images of the sheets are ordered.")
    flags.number("images", 8, "Images of the sheets, spread evenly over the split.")
    papers = ", ".join(protocol.PAPERS)
    flags.text("protocol", "", f"Protocol of a paper for all runs, or an id of docs/evaluation.md: {papers}.")


def run(args: FlagValues) -> int:
    """Measure the runs, write tables and pictures, and print the table."""
    from uld_jax.studies import compare

    asked = compare.Asked(
        tuple(os.path.expanduser(where) for where in args.runs),
        args.out,
        split=args.split,
        data_dir=args.data_dir,
        order_by=args.order_by,
        images=args.images,
        protocol=args.protocol,
    )
    record, markdown = compare.compare(asked, say=lambda text: print(text, file=sys.stderr))
    print(markdown)
    print(f"written to {args.out}: comparison.md, comparison.json, {', '.join(record['files'])}")
    return shared.OK


COMMAND = shared.Command(USAGE, define, run)
