"""The commands of `uld`, one file each; `uld_jax.__main__` runs them.

Importing the commands is quick, because a command imports its heavy modules when it runs.
"""

from uld_jax.cli import (
    align,
    clusters,
    compare,
    convert,
    dense,
    evaluate,
    features,
    figure,
    fit,
    gcn,
    plan,
    predict,
    prepare,
    report,
    sweep,
    table,
    train,
)

COMMANDS = {
    "train": train.COMMAND,
    "plan": plan.COMMAND,
    "sweep": sweep.COMMAND,
    "figure": figure.COMMAND,
    "evaluate": evaluate.COMMAND,
    "report": report.COMMAND,
    "compare": compare.COMMAND,
    "table": table.COMMAND,
    "dense": dense.COMMAND,
    "align": align.COMMAND,
    "predict": predict.COMMAND,
    "fit": fit.COMMAND,
    "clusters": clusters.COMMAND,
    "features": features.COMMAND,
    "prepare": prepare.COMMAND,
    "convert": convert.COMMAND,
    "gcn": gcn.COMMAND,
}
OLD_NAMES = {"ablate": "figure"}  # earlier names of commands, which still work


def _lines(name: str) -> str:
    """Format the usage of one command, with its flags in a separate column."""
    start = f"  uld {name:<{max(map(len, COMMANDS))}} "
    return start + COMMANDS[name].usage.replace("\n", "\n" + " " * len(start))


USAGE = f"""uld: unsupervised landmark discovery

{chr(10).join(map(_lines, COMMANDS))}

`uld COMMAND --help` lists the flags of a command. Any key of a config can be set: --config.seed=3.
"""
