"""`uld prepare`: writes a data set as ArrayRecord files."""

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import Flags
from uld_jax.errors import UserError, flag

USAGE = "--dataset=NAME [--src=DIR] [--scheme=NAME] [--on_bad_file=skip] --data_dir=OUT"


def define(flags: Flags) -> None:
    """Add the flags of `uld prepare`."""
    flags.text("dataset", None, "Name of the data set; `synthetic` is rendered, others are read from --src.")
    flags.path(
        "src", "", "Folder of photos, with or without labels (train.csv and test.csv, or files of a labelling tool)."
    )
    flags.text("scheme", "none", "What the annotated points are, as data.scheme.")
    meaning = "What becomes of photos that cannot be read: all are named and nothing is written, or they are left out."
    flags.choice("on_bad_file", ["error", "skip"], meaning)
    flags.number("frame_size", 128, "Side of the synthetic images in pixels.")
    flags.folder("data_dir", "Folder to write ArrayRecord files to.")


def run(args: FlagValues) -> int:
    """Write the files, and print how a config reads them."""
    from uld_jax.data import listing, open_source
    from uld_jax.data.builders import prepared

    if args.dataset in ("folder", "pf_pascal"):
        raise UserError(f"--dataset={args.dataset} is read as it is; give the prepared data set a name of its own")
    name = "synthetic" if args.dataset == "synthetic" else "folder"
    if (name == "synthetic") == bool(args.src):
        what = f"--src={args.src} is not read by" if args.src else "--src is empty; give the folder of photos of"
        raise UserError(f"{what} --dataset={args.dataset}" + (", which is rendered; leave it out" if args.src else ""))
    reading = dict(data_dir=args.src, frame_size=args.frame_size, scheme=args.scheme, on_bad_file=args.on_bad_file)
    first = open_source(name, "train", **reading)
    sources = {"train": first}
    if "test" in first.spec.splits:
        sources["test"] = open_source(name, "test", **reading)
    written = prepared.prepare(args.dataset, sources, args.data_dir)
    print(f"written to {written}; use it with --config=...:dataset=folder {flag('config.data_dir', written)}")
    skipped = tuple(dict.fromkeys(one for source in sources.values() for one in source.skipped))
    listing.write_skipped(written / "skipped.csv", skipped)
    return shared.told(skipped, written / "skipped.csv")


COMMAND = shared.Command(USAGE, define, run)
