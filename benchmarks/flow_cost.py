"""Work and memory of neighbourhood consensus in both forms, from the compiled programs alone, without computing.

python -m benchmarks.flow_cost                           one pair, 16 x 16 and 25 x 25 cells in both images
python -m benchmarks.flow_cost --sides=16 --batch=100

A row is a form of `models.neigh_consensus.NeighConsensus` with layers of 16, 16 and 1 channels, kernels of side 5, both
orders of the images: `forward` alone, or NC-Net's score of the pairs `with gradients` for all parameters and for the
correlation. `GFLOP` is XLA's count, in which a product with the zeros around a map is partly left out; `between MiB` is
what a program needs besides arguments and results, and `MiB` is its whole peak. `full / this` compares the work.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from uld_jax.models import neigh_consensus
from uld_jax.ops import correlation

MIB = 2**20


def benchmark(side: int, batch: int, dtype: str = "float32") -> list[dict]:
    """Make a row for each form at one side, forwards and with gradients."""
    pairs, rows, most = jax.ShapeDtypeStruct((batch, side, side, side, side), np.float32), [], {}
    for form in ("full", "separable"):
        network = neigh_consensus.NeighConsensus(form=form, dtype=jnp.dtype(dtype))
        variables = jax.eval_shape(network.init, jax.random.key(0), pairs)

        def score(variables, pairs, network=network):
            return jnp.mean(correlation.weak_score(network.apply(variables, pairs)))

        for what, program in (("forward", network.apply), ("with gradients", jax.value_and_grad(score, (0, 1)))):
            compiled = jax.jit(program).lower(variables, pairs).compile()
            memory, flops = compiled.memory_analysis(), compiled.cost_analysis()["flops"]
            between = memory.temp_size_in_bytes
            most.setdefault(what, flops)
            rows.append(
                {
                    "cells": f"{side} x {side}",
                    "pairs": batch,
                    "form": form,
                    "what": what,
                    "GFLOP": flops / 1e9,
                    "between MiB": between / MIB,
                    "MiB": (between + memory.argument_size_in_bytes + memory.output_size_in_bytes) / MIB,
                    "full / this": most[what] / flops,
                }
            )
    return rows


def main(argv=None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser.add_argument("--sides", type=numbers, default="16,25", help="rows, and columns, of the maps")
    parser.add_argument("--batch", type=int, default=1, help="pairs of images")
    parser.add_argument("--dtype", default="float32", help="type of the computation")
    parser.add_argument("--json", default="", help="file to write the rows to")
    args = parser.parse_args(argv)
    rows = []
    for side in args.sides:
        rows += benchmark(side, args.batch, args.dtype)
    harness.report(rows, args.json)


if __name__ == "__main__":
    main()
