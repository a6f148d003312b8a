"""`uld figure`: trains the runs of a paper's figure, and writes its table and plot."""

import os

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import Flags

USAGE = """\
--figure=2a|2b|2c|2d|2e --config=self_training:dataset=synthetic,preset=small --workdir=DIR
[--grid=NAME=A,B] [--landmarks=15] [--run=RUN]"""


def define(flags: Flags) -> None:
    """Add the flags of `uld figure`."""
    flags.workdir()
    meaning = (
        "Figure of Mallis et al., NeurIPS 2020: 2a t-SNE of initial and learned descriptors; 2b detectors of the "
        "initial keypoints; 2c clustering or equivariance; 2d keypoints that are landmarks among random points; 2e "
        "numbers of clusters."
    )
    flags.text("figure", None, meaning)
    flags.text("config", "", "Config file or name of self-training, with :key=value,... after it.")
    flags.path("run", "", "For 2a: a finished run of self-training, in place of training one by --config.")
    many = (
        "NAME=VALUE,VALUE,... in place of a figure's own values; again for another one. 2b: detector; 2c: pairs; "
        "2d, 2e: clusters, true, share; all: seed."
    )
    flags.repeated("grid", many)
    flags.override()
    meaning = "For 2d and 2e: how many annotated landmarks true points are drawn from, or their numbers, 0,3,7."
    flags.text("landmarks", "15", meaning)


def run(args: FlagValues) -> int:
    """Train the unfinished runs, and print the table."""
    from uld_jax.studies import mallis_figure2

    options = dict(grids=args.grid, overrides=args.override, landmarks=args.landmarks, finished=args.run)
    train = lambda: mallis_figure2.run(args.figure, args.config, args.workdir, **options)
    files = f"{os.path.join(args.workdir, 'figure.md')}, figure.json, figure.png"
    return shared.told_table(train, lambda table: files)


COMMAND = shared.Command(USAGE, define, run, overrides=True, stops=True, interrupted=shared.GOES_ON)
