"""`uld features`: computes a frozen backbone's features of all images once and stores them on disk."""

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import Flags
from uld_jax.errors import flag

USAGE = "--config=CONFIG --out=DIR [--stage=NAME] [--split=train] [--what=maps] [--dtype=float16]"


def define(flags: Flags) -> None:
    """Add the flags of `uld features`."""
    flags.config()
    flags.folder("out", "Folder to make; one that a killed writer left is finished.")
    flags.text("stage", "", "Stage whose backbone is looked through; by default the first that has one.")
    flags.text("split", "train", "Split whose images are described; runs read those of `train`.")
    meaning = "The maps, or the latents of Stable Diffusion, which are small and leave the UNet to be computed."
    flags.choice("what", ["maps", "latents"], meaning)
    flags.choice("dtype", ["float16", "bfloat16", "float32"], "Type of the features on disk.")
    flags.number("batch_size", 0, "Images at a time; 0: config.eval.batch_size.")


def run(args: FlagValues) -> int:
    """Write the features, and print the key by which a config reads them."""
    from uld_jax import sharding
    from uld_jax.studies import features

    options = dict(stage=args.stage, split=args.split, what=args.what, dtype=args.dtype, batch_size=args.batch_size)
    say = shared.progress("features")
    found, stage = features.main(args.config, args.out, sharding.make_mesh(), report=say, **options)
    if shared.first_process():
        for name, shape in found.taps:
            print(f"{name}  {found.rows} x {' x '.join(map(str, shape))}")
        size = found.rows * found.image_bytes / 1e6
        print(f"written to {args.out}, {size:.1f} MB; use it with {flag(f'config.{stage}.cache', args.out)}")
    return shared.OK


COMMAND = shared.Command(USAGE, define, run)
