"""`uld report`: writes a run as one page of HTML, to look at landmarks, name them and correct them."""

import sys

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import Flags

USAGE = """\
--workdir=RUN [--stage=NAME] [--compare=RUN2] [--photos=300] [--link] [--out=FILE.html]
[--split=test] [--dataset=NAME] [--data_dir=DIR] [--names=FILE]"""


def define(flags: Flags) -> None:
    """Add the flags of `uld report`."""
    flags.workdir()
    flags.stage()
    flags.path("compare", "", "Another run whose landmarks are shown on the same photos, RUN or RUN:STAGE.")
    flags.path("out", "", "The page; report.html in the run's folder by default.")
    flags.switch("link", "Puts the photos into a folder beside the page, which loads those that are looked at.")
    flags.number("photos", 300, "Photos on the page, spread evenly over the split; 0 for all.")
    flags.text("split", "test", "Split to show.")
    flags.text("dataset", "", "Another data set than the run's own, such as folder.")
    flags.path("data_dir", "", "Folder of the data, in place of the run's own.")
    flags.path("names", "", "Names of the landmarks: names.json that an earlier page saved.")


def run(args: FlagValues) -> int:
    """Measure the run, write its page, and print where it is."""
    from uld_jax.landmark_names import read_names
    from uld_jax.studies.page import gather, write

    out = args.out or write.default_out(args.workdir)
    write.check_out(out)
    names = read_names(args.names) if args.names else ()
    where = dict(split=args.split, dataset=args.dataset, data_dir=args.data_dir)
    asked = gather.Asked(shared.stage_of(args), args.compare, photos=args.photos, names=names, **where)
    gathered = gather.gather(asked, say=lambda text: print(text, file=sys.stderr))
    written = write.write(gathered, out, link=args.link, names=names)
    size = sum(path.stat().length for path in written)
    print(f"{len(gathered.rows)} of {len(gathered.source)} photos: {out} ({size / 1e6:.1f} MB); open it in a browser")
    return shared.OK


COMMAND = shared.Command(USAGE, define, run)
