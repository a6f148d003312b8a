"""`uld evaluate`: measures a finished run."""

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import Flags

USAGE = """\
--workdir=RUN [--stage=NAME] [--split=test] [--dataset=NAME] [--data_dir=DIR] [--group_by=COLUMN[:edges]]
[--scheme=NAME] [--label_counts=1,10,100,all] [--protocol=NAME] [--fit_images=300 --repeats=5]
[--config.eval.KEY=VALUE] [--config.data.normaliser=NAME]"""


def define(flags: Flags) -> None:
    """Add the flags of `uld evaluate`."""
    from uld_jax.evaluation import protocol

    flags.workdir()
    flags.stage()
    flags.text("split", "test", "Split to measure on.")
    flags.text("dataset", "", "Another data set than the run's; the regressors are fitted on its train split.")
    flags.path("data_dir", "", "Folder of --dataset.")
    flags.text("scheme", "", "What the annotated points are, in place of the run's data.scheme.")
    flags.text("normaliser", "", "What errors are divided by, in place of the run's data.normaliser.")
    flags.override("KEY=VALUE, the same as --config.KEY=VALUE: of eval, data.scheme, data.normaliser and data.sides.")
    flags.text("group_by", "", "COLUMN or COLUMN:edge,edge,... of the csv.")
    flags.words("label_counts", "Numbers of labelled images to fit with, and `all`.")
    flags.text(
        "protocol",
        "",
        "Protocol of a paper, in place of the run's own, or an id of docs/evaluation.md: " + ", ".join(protocol.PAPERS),
    )
    flags.number("fit_images", None, "Training images that each fit draws; 0: all.")
    meaning = "Number of fits, each on other --fit_images images; errors are means, with their spread."
    flags.number("repeats", None, meaning)


def run(args: FlagValues) -> int:
    """Measure the run, write the report and print its errors."""
    from uld_jax import sharding
    from uld_jax.engine import runs
    from uld_jax.evaluation import protocol
    from uld_jax.evaluation.run import evaluate_run

    protocol.check_label_counts(args.label_counts, "--label_counts")
    mesh = sharding.make_mesh()
    finished = runs.load(shared.stage_of(args), mesh)
    report, folder = evaluate_run(
        finished,
        mesh,
        split=args.split,
        dataset=args.dataset,
        data_dir=args.data_dir,
        group_by=args.group_by,
        label_counts=args.label_counts,
        protocol=args.protocol,
        settings={key: args[key].value for key in ("fit_images", "repeats") if args[key].value is not None},
        reading={key: args[key].value for key in ("scheme", "normaliser") if args[key].value},
        overrides=args.override,
    )
    if shared.first_process():
        _print(finished.stage, report)
        print(f"  written to {folder}")
    return shared.OK


def _print(stage: str, report) -> None:
    """Print the errors of a stage: over all images, by group, and by the number of labelled images."""
    from uld_jax.evaluation.report import summary

    percent = shared.percent
    print(f"{stage}: {summary(report)}")
    for column, groups in (report["groups"] or {}).items():
        for group in groups:
            print(f"  {column} {group['group']}: {percent(group['forward_nme'])} forward, {group['n']} images")
    for row in report["label_counts"] or ():
        print(f"  {row['n']} labelled images: {percent(row['forward_nme'])} +- {percent(row['forward_nme_std'])}")


COMMAND = shared.Command(USAGE, define, run, overrides=True)
