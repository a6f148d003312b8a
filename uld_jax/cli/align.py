"""`uld align`: measures how well a finished run carries keypoints from one photo to another."""

import sys

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
    import jax

    from uld_jax import sharding
    from uld_jax.engine import runs
    from uld_jax.evaluation.alignment import run as alignment

    asked = alignment.Asked(args.protocol, args.split, args.data_dir, args.batch)
    alignment.check_words(asked)
    finished = runs.load(shared.stage_of(args), sharding.make_mesh(jax.devices()[:1]))
    report, folder = alignment.align_report(finished, asked, say=lambda text: print(text, file=sys.stderr))
    print("\n".join(alignment.summary(report)))
    print(f"  written to {folder}")
    return shared.OK


COMMAND = shared.Command(USAGE, define, run)
