"""`uld convert`: converts a published checkpoint to weights that configs read."""

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import Flags
from uld_jax.errors import flag

USAGE = "--kind=KIND --src=FILE --dst=DIR [--core=FILE]"


def define(flags: Flags) -> None:
    """Add the flags of `uld convert`."""
    flags.text("kind", None, "What the weights are of; it names the key config.weights.KIND.")
    flags.path("src", None, "The published checkpoint: a PyTorch, safetensors or HDF5 file.")
    flags.folder("dst", "Folder to make.")
    flags.path("core", "", "The core network's file, for SAIC's incremental FAN checkpoints.")


def run(args: FlagValues) -> int:
    """Convert the checkpoint, and print the key by which a config reads the weights."""
    from uld_jax import convert

    source = convert.convert(args.kind, args.src, args.dst, args.core)
    if "taken_for" in source:
        mean, std = (", ".join(map(str, source["normalization"][name])) for name in ("mean", "std"))
        print(f"taken for {source['taken_for']}; its images have mean ({mean}), standard deviation ({std})")
    print(f"{source['entries']} entries, {source['parameters']} parameters; licence: {source['licence']}")
    print(f"written to {args.dst}; use it with {flag(f'config.weights.{args.kind}', args.dst)}")
    return shared.OK


COMMAND = shared.Command(USAGE, define, run)
