"""`uld gcn`: trains the network of the graph clustering, GCN-V, on labelled descriptors."""

import sys

from absl.flags import FlagValues

from uld_jax.cli import shared
from uld_jax.cli.flags import Flags
from uld_jax.errors import UserError, flag

USAGE = "--descriptors=FILE.npz|--synthetic --dst=DIR"


def define(flags: Flags) -> None:
    """Add the flags of `uld gcn`."""
    flags.path("descriptors", "", "File of NumPy arrays: descriptors [N,D], labels [N].")
    flags.switch("synthetic", "Descriptors of the built-in heads' landmarks instead.")
    flags.folder("dst", "Folder to make.")
    flags.path("npz", "", "Also writes the weights to this file, in half precision.")
    flags.number("steps", 400, "Number of updates.")
    flags.number("neighbours", 80, "Neighbours of a row in the graph.")
    flags.number("batch", 2048, "Rows of a graph, drawn at random; 0: all rows of a set.")
    flags.choice("scale", ["paper", "max"], "Scale of the target; `max` is the published code's.")
    flags.choice("optimizer", ["adam", "sgd"], "`sgd` is the published code's choice; use --rate=0.1 with it.")
    flags.real("rate", 2e-5, "The first learning rate.")
    flags.number("seed", 0, "Random seed.")


def run(args: FlagValues) -> int:
    """Train the network; print its quality on held-out descriptors and the key by which a config reads it."""
    from uld_jax.studies import train_gcn

    if bool(args.descriptors) == args.synthetic:
        raise UserError("GCN-V learns from labelled descriptors; give either --descriptors=FILE.npz or --synthetic")
    say = lambda step, loss: print(f"gcn {step}/{args.steps}  loss {loss:.4g}", file=sys.stderr)
    source, measured = train_gcn.main(
        args.dst,
        descriptors=args.descriptors,
        npz=args.npz,
        report=say,
        **dict(steps=args.steps, k=args.neighbours, seed=args.seed),
        **dict(batch=args.batch, scale=args.scale, optimizer=args.optimizer, rate=args.rate),
    )
    for one in measured:
        print(f"held out: correlation with the target {one.gcn:.3f}, of the density {one.density:.3f}")
    print(f"{source['entries']} descriptors, {source['parameters']} parameters")
    print(f"written to {args.dst}; use it with {flag('config.weights.gcn_v', args.dst)}")
    return shared.OK


COMMAND = shared.Command(USAGE, define, run)
