"""`uld prepare`: writes a data set as ArrayRecord files."""

import sys

from absl.flags import FlagValues

from uld_jax import files
from uld_jax.cli import shared
from uld_jax.cli.flags import Flags
from uld_jax.errors import UserError, flag

USAGE = """\
--dataset=NAME [--src=DIR] [--scheme=NAME] [--crop_objects=1.5] [--on_bad_file=skip]
[--allow_partial] --data_dir=OUT"""


def define(flags: Flags) -> None:
    """Add the flags of `uld prepare`."""
    meaning = (
        "Name of the data set: `synthetic` is rendered, an official one (docs/datasets.md) is read from its files "
    )
    flags.text("dataset", None, meaning + "in --src, and any other name is given to the photos in --src.")
    meaning = (
        "Folder of the official files, or of photos, with or without labels (train.csv and test.csv, or files of a "
    )
    flags.path("src", "", meaning + "labelling tool).")
    flags.text("scheme", "none", "What the annotated points of photos are, as data.scheme.")
    meaning = "Cuts a crop around every labelled object: a square whose side is that many times the longer side of the "
    flags.real("crop_objects", 0.0, meaning + "object's box, or of the box around its points; 0 cuts none.")
    flags.words("without_objects", "Names of objects that get no crop, such as single of DeepLabCut.")
    meaning = "What becomes of photos that cannot be read: all are named and nothing is written, or they are left out."
    flags.choice("on_bad_file", ["error", "skip"], meaning)
    flags.switch("allow_partial", "Goes on with a part of an official data set.")
    flags.number("frame_size", 128, "Side of the synthetic images in pixels.")
    flags.folder("data_dir", "Folder to write ArrayRecord files to.")


def run(args: FlagValues) -> int:
    """Write the files, and print how a config reads them."""
    from uld_jax.data import builders, specs
    from uld_jax.data.builders import prepared

    official = builders.find_dataset(args.dataset)
    prepared.check_target(args.dataset, args.data_dir)
    files.check_writable(args.data_dir, "data_dir")
    sources = _folder(args) if official is None else _official(official, args)
    written = prepared.prepare(args.dataset, sources, args.data_dir)
    dataset = "folder" if official is None else args.dataset
    where = written if official is None else args.data_dir
    print(f"written to {written}; use it with --config=...:dataset={dataset} {flag('config.data_dir', where)}")
    return shared.told(specs.skipped(sources.values()), written / "skipped.csv")


def _folder(args: FlagValues):
    """Open the splits of a folder of photos, or of the synthetic heads."""
    from uld_jax.data import folder, open_source

    if args.dataset == "folder":
        raise UserError("--dataset=folder is read as it is; give the prepared data set a name of its own")
    name = "synthetic" if args.dataset == "synthetic" else "folder"
    if (name == "synthetic") == bool(args.src):
        what = f"--src={args.src} is not read by" if args.src else "--src is empty; give the folder of photos of"
        raise UserError(f"{what} --dataset={args.dataset}" + (", which is rendered; leave it out" if args.src else ""))
    if args.allow_partial:
        raise UserError(
            f"--allow_partial is for official data sets (docs/datasets.md), and {args.dataset} is none; leave it out"
        )
    if args.src:
        folder.existing_folder(args.src, "--src", "photos")
    reading = dict(frame_size=args.frame_size, scheme=args.scheme, on_bad_file=args.on_bad_file)
    if args.crop_objects:
        if name == "synthetic":
            raise UserError(
                "--crop_objects is for labelled photos, and synthetic heads fill their images; leave it out"
            )
        from uld_jax.data.builders import object_crops

        without = [name.strip() for name in args.without_objects]
        sources, notes = object_crops.open_all(args.dataset, args.src, args.crop_objects, without=without, **reading)
        _say(notes)
        return sources
    if args.without_objects:
        raise UserError("--without_objects chooses among objects that are cropped; add --crop_objects=1.5")
    reading |= dict(data_dir=args.src)
    sources = {"train": open_source(name, "train", **reading)}
    if "test" in sources["train"].spec.splits:
        sources["test"] = open_source(name, "test", **reading)
    return sources


def _official(dataset, args: FlagValues):
    """Open the splits of an official data set, and say on stderr what is not as in the official files."""
    from uld_jax.data.builders import official

    if not args.src:
        raise UserError(f"--src is empty; give the folder with the official files of {dataset.name}")
    if args.crop_objects:
        raise UserError(
            f"--crop_objects is for folders of photos, and the crop of {dataset.name} is known; leave it out, or give "
            "the data set a name of its own"
        )
    if args.scheme != "none":
        raise UserError(
            f"--scheme={args.scheme} is for folders of photos; the points of {dataset.name} are known, so leave it out"
        )
    sources, notes = official.open_all(
        dataset, args.src, partial=args.allow_partial, frame_size=args.frame_size, on_bad_file=args.on_bad_file
    )
    _say(notes)
    return sources


def _say(notes) -> None:
    """Print notes of a builder on stderr."""
    for note in notes:
        print(files.one_line(note), file=sys.stderr)


COMMAND = shared.Command(USAGE, define, run)
