"""`uld evaluate`: measures a finished run, or the points that a table holds."""

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import Flags
from uld_jax.errors import UserError

USAGE = """\
--workdir=RUN [--stage=NAME] [--split=test] [--dataset=NAME] [--data_dir=DIR] [--group_by=COLUMN[:edges]]
[--scheme=NAME] [--label_counts=1,10,100,all] [--protocol=NAME] [--fit_images=300 --repeats=5]
[--config.eval.KEY=VALUE] [--config.data.normaliser=NAME]
or --predictions=CSV --data_dir=DIR --out=DIR [--direct] [--frame_size=160] [--fit=pad]"""
_OF_A_RUN = ("workdir", "stage")
_OF_A_TABLE = ("out", "frame_size", "fit", "direct")


def define(flags: Flags) -> None:
    """Add the flags of `uld evaluate`."""
    from uld_jax.evaluation import protocol

    flags.workdir(required=False)
    flags.stage()
    flags.path("predictions", "", "Table of points to measure in place of a run's: file,x0,y0,score0,... in pixels.")
    flags.folder("out", "Folder for the report of --predictions.", required=False)
    flags.switch("direct", "Compares --predictions with the annotated points of their number, without regression.")
    flags.number("frame_size", None, "Side of the square frame in which --predictions are measured: 160.")
    flags.text("fit", "", "How photos fit that frame: pad (the default), crop or stretch.")
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
    """Measure the run, or the table of points, write the report and print its errors."""
    from uld_jax.evaluation import protocol

    _check(args)
    protocol.check_label_counts(args.label_counts, "--label_counts")
    stage, report, folder = _of_table(args) if args.predictions else _of_run(args)
    if shared.first_process():
        _print(stage, report)
        print(f"  written to {folder}")
    return shared.OK


def _check(args: FlagValues) -> None:
    """Raise UserError unless the flags are about a run, or about a table of points."""
    wanted, others = (("data_dir", "out"), _OF_A_RUN) if args.predictions else (("workdir",), _OF_A_TABLE)
    if given := [name for name in others if args[name].value not in ("", None, False)]:
        remedy = "leave it out" if args.predictions else "give --predictions=CSV, or leave it out"
        kind = "a run, and --predictions measures a table" if args.predictions else "--predictions"
        raise UserError(f"--{given[0]} is about {kind}; {remedy}")
    for name in wanted:
        if not args[name].value:
            how = "--predictions needs it" if args.predictions else "or --predictions=CSV for points of any program"
            raise UserError(f"--{name} is missing; add --{name}={'RUN' if name == 'workdir' else 'DIR'}, {how}")


def _options(args: FlagValues) -> dict:
    """The flags that mean the same for a run and for a table."""
    options = {key: args[key].value for key in ("split", "dataset", "data_dir", "group_by", "label_counts", "protocol")}
    settings = {key: args[key].value for key in ("fit_images", "repeats") if args[key].value is not None}
    return options | {"settings": settings, "overrides": args.override}


def _of_run(args: FlagValues) -> tuple:
    """Measure a run: the name of its stage, the numbers and the folder of the report."""
    from uld_jax import sharding
    from uld_jax.engine import runs
    from uld_jax.evaluation.run import evaluate_run

    mesh = sharding.make_mesh()
    finished = runs.load(shared.stage_of(args), mesh)
    reading = {key: args[key].value for key in ("scheme", "normaliser") if args[key].value}
    return finished.stage, *evaluate_run(finished, mesh, reading=reading, **_options(args))


def _of_table(args: FlagValues) -> tuple:
    """Measure a table of points: its name, the numbers and the folder of the report."""
    from uld_jax.evaluation.points import FRAME, Asked, evaluate_points

    more = dict(scheme=args.scheme, normaliser=args.normaliser, fit=args.fit, direct=args.direct)
    frame_size = FRAME if args.frame_size is None else args.frame_size
    asked = Asked(args.predictions, args.out, frame_size=frame_size, **more, **_options(args))
    return args.predictions, *evaluate_points(asked)


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
