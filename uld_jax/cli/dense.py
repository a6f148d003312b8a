"""`uld dense`: measures the dense features of a finished run."""

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import Flags

USAGE = """\
--workdir=RUN [--stage=NAME] [--protocol=lead2022] [--measure=matching,regression,zoom,parts]
[--labels=10,50,all] [--repeats=5] [--split=test] [--dataset=NAME] [--data_dir=DIR] [--scheme=NAME]"""


def define(flags: Flags) -> None:
    """Add the flags of `uld dense`."""
    flags.workdir()
    flags.stage()
    flags.text("protocol", "lead2022", "Protocol: lead2022, contrast_landmarks2021 or dve2019.")
    flags.words("measure", "Measures; by default matching, regression and parts, as far as there is annotation.")
    flags.text("labels", "all", "Numbers of labelled images of regressors, and `all`, separated by commas.")
    flags.number("repeats", None, "Draws of a few labelled images; by default those of the protocol.")
    flags.number("epochs", None, "Epochs of a regressor of all labelled images, in place of the protocol's.")
    flags.number("few_epochs", None, "Epochs of a regressor of a few labelled images, in place of the protocol's.")
    flags.text("loss", "", "Loss of regressors, smooth_l1 or squared, in place of the protocol's.")
    flags.switch("warped", "Warps the few labelled images of regressors in every step; DVE's protocol does not.")
    flags.number("pairs", None, "Largest number of pairs of images of the matching.")
    flags.number("frame", None, "Side of the frame that photos are fitted into, in pixels, in place of the protocol's.")
    flags.number("side", None, "Side of the frame's central part that the stage sees, in place of the protocol's.")
    flags.number("parts", 10, "Number of clusters of features.")
    flags.text("split", "test", "Split to measure on.")
    flags.text("dataset", "", "Another data set than the run's; regressors are trained on its train split.")
    flags.path("data_dir", "", "Folder of --dataset.")
    flags.text("scheme", "", "What the annotated points are, in place of the run's data.scheme.")
    flags.text("normaliser", "", "What errors are divided by, in place of the run's data.normaliser.")


def run(args: FlagValues) -> int:
    """Measure the features, write the report and print its numbers."""
    from uld_jax.evaluation.dense import run as dense

    asked = dense.Asked(
        protocol=args.protocol,
        measures=args.measure,
        labels=[word.strip() for word in args.labels.split(",") if word.strip()],
        changes={name: args[name].value for name in ("repeats", "epochs", "few_epochs", "pairs", "frame", "side")}
        | {"loss": args.loss or None, "warped": args.warped or None},
        parts=args.parts,
        split=args.split,
        dataset=args.dataset,
        data_dir=args.data_dir,
        reading={key: args[key].value for key in ("scheme", "normaliser") if args[key].value},
    )
    return shared.told_report(args, asked, dense.check_words, dense.dense_report, dense.summary)


COMMAND = shared.Command(USAGE, define, run)
