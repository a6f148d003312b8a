"""`uld fit`: learns to predict annotated landmarks from the discovered ones, from a few labelled photos."""

from absl.flags import FlagValues

from uld_jax import files
from uld_jax.cli import shared
from uld_jax.cli.flags import Flags
from uld_jax.errors import shell_command

USAGE = "--workdir=RUN [--stage=NAME] --data_dir=LABELLED_PHOTOS [--scheme=NAME] [--names=FILE]"


def define(flags: Flags) -> None:
    """Add the flags of `uld fit`."""
    flags.workdir()
    flags.stage()
    flags.path("data_dir", None, "Folder of labelled photos: train.csv (file,x0,y0,...), or files of a tool.")
    flags.text("scheme", "none", "What the annotated points are, as data.scheme.")
    flags.path("names", "", "Names of the annotated landmarks, in place of their own, as for `uld predict`.")


def run(args: FlagValues) -> int:
    """Fit the map, store it in the run's folder, and print its error."""
    from uld_jax.detector import Detector, fit_folder
    from uld_jax.landmark_names import read_names

    names = read_names(args.names) if args.names else ()
    detector = Detector.load(shared.stage_of(args))
    fitted, images = fit_folder(detector, args.data_dir, scheme=args.scheme, names=names)
    if shared.first_process():
        print(f"{len(fitted.strength)} annotated landmarks from {images} labelled images")
        if detector.annotated_names:
            print(files.one_line(f"  names  {', '.join(detector.annotated_names)}"))
        print(f"  leave-one-out error  {detector.leave_one_out}")
        options = dict(workdir=args.workdir, stage=args.stage, images="DIR", out="DIR", points="annotated")
        print(f"  use them  {shell_command('predict', **options)}")
    return shared.OK


COMMAND = shared.Command(USAGE, define, run)
