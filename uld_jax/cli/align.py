"""`uld align`: measures how well a finished run carries keypoints from one photo to another."""

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import Flags

USAGE = "--workdir=RUN [--stage=NAME] [--data_dir=DIR] [--split=test] [--protocol=pf_pascal_ncnet]"


def define(flags: Flags) -> None:
    """Add the flags of `uld align`."""
    flags.workdir()
    flags.stage()
    flags.path("data_dir", "", "Folder of PF-Pascal; by default that of the run.")
    flags.text("split", "test", "Split to measure on.")
    flags.text("protocol", "pf_pascal_ncnet", "Protocol: pf_pascal_ncnet or pf_pascal_box.")
    flags.number("batch", 8, "Pairs of photos at a time.")


def run(args: FlagValues) -> int:
    """Measure the alignment, write the report and print its numbers."""
    from uld_jax.evaluation.alignment import run as alignment

    asked = alignment.Asked(args.protocol, args.split, args.data_dir, args.batch)
    return shared.told_report(args, asked, alignment.check_words, alignment.align_report, alignment.summary)


COMMAND = shared.Command(USAGE, define, run)
