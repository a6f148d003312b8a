"""`uld predict`: predicts the landmarks of photos, as a table and as pictures."""

import os
import sys

from absl.flags import FlagValues

from uld_jax import files
from uld_jax.cli import shared
from uld_jax.cli.flags import Flags

USAGE = """\
--workdir=RUN [--stage=NAME] --images=PHOTOS --out=OUT [--points=annotated] [--outside=clip]
[--format=coco] [--names=FILE]"""
_NAMED = 5  # number of files that a line of output names


def define(flags: Flags) -> None:
    """Add the flags of `uld predict`."""
    flags.workdir()
    flags.stage()
    meaning = "Folder of images, nested or not; or an image, or a pattern; again for another one."
    flags.repeated("images", meaning, required=True)
    flags.folder("out", "Folder for the table of landmarks, overlays and the contact sheet.")
    flags.choice("points", ["discovered", "annotated"], "Which landmarks to write.")
    meaning = "What becomes of landmarks beyond their photo: missing, or moved to its edge."
    flags.choice("outside", ["missing", "clip"], meaning)
    meaning = "Layout of the table: landmarks.csv, or that of COCO, DeepLabCut, SLEAP or Label Studio."
    flags.choice("format", ["csv", "coco", "dlc", "slp", "labelstudio"], meaning)
    flags.path("names", "", "Names of the discovered landmarks: names.json that `uld report` saved, or a name a line.")


def run(args: FlagValues) -> int:
    """Write the landmarks, and print which files and landmarks were left out."""
    from uld_jax.detector import Detector
    from uld_jax.landmark_names import read_names
    from uld_jax.predict import predict_folder, table_of

    names = read_names(args.names) if args.names else ()
    options = dict(points=args.points, outside=args.outside, format=args.format, names=names)
    options["report"] = shared.progress("predict")
    done = predict_folder(Detector.load(shared.stage_of(args)), args.images, args.out, **options)
    if shared.first_process():
        table, sheet = table_of(args.out, args.format), os.path.join(args.out, "contact_sheet.png")
        print(f"{done.images} images: {table}, {sheet}")
        if done.beyond:
            now = "missing" if args.outside == "missing" else "given at its edge"
            print(f"{done.beyond} landmarks lay outside their photo, and each is {now}", file=sys.stderr)
        if done.empty:
            some = ", ".join(done.empty[:_NAMED]) + (", ..." if len(done.empty) > _NAMED else "")
            what = f"{len(done.empty)} of {done.images} images show nothing (all of one colour), and have no landmarks"
            print(files.one_line(f"warning: {what}: {some}"), file=sys.stderr)
    return shared.told(done.skipped, os.path.join(args.out, "skipped.csv"))


COMMAND = shared.Command(
    USAGE,
    define,
    run,
    positional="images",  # a shell expands `--images *.jpg` to words without a flag
    interrupted="the rows so far are in landmarks.partial.csv",
)
