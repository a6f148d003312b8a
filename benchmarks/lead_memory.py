"""Memory of the loss of LEAD's second stage with its gradient, from the compiled programs alone, without computing.

python -m benchmarks.lead_memory                                  ResNet-50 at 96 px, 24 x 24 and 48 x 48, 64 pairs
python -m benchmarks.lead_memory --sides=24 --batch=256 --block=64

A row is a form of the same loss. `naive` makes the hypercolumns of both images and keeps N x N matrices of all pairs;
`dense` (`ops.dense_matching.similarity_alignment`) makes no hypercolumns; `blocks` makes `block` rows of the matrices
at a time. `between GiB` is what a program needs besides arguments and results, `GiB` is its whole peak, and `naive /
this` compares the former. Networks are not part of it.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from uld_jax.ops import dense_matching, hypercolumns

GIB = 2**30


def naive(f, g, teacher_f, teacher_g, *, tau: float = 0.05):
    """The loss as its formula reads: hypercolumns, then all matches of all pairs."""

    def cosines(a, b):
        a, b = (x.reshape(len(x), -1, x.shape[-1]) for x in (a, b))
        a, b = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
        return jnp.einsum("buc,bvc->buv", a, b, precision="highest")

    a, b = (hypercolumns.materialise(maps, f.shape[1]) for maps in (teacher_f, teacher_g))
    p = jax.lax.stop_gradient(jax.nn.softmax(cosines(a, b) / tau))
    return -jnp.mean(jnp.sum(p * jax.nn.log_softmax(cosines(f, g) / tau), -1))


def aligned(f, g, teacher_f, teacher_g, *, block: int = 0):
    """The loss without hypercolumns, all rows of matches at once or by blocks."""
    return dense_matching.similarity_alignment(f, g, teacher_f, teacher_g, block=block).loss


def benchmark(side: int, batch: int, block: int, native, channels, width: int) -> list[dict]:
    """Make a row for each form at one side."""
    array = lambda *shape: jax.ShapeDtypeStruct((batch, *shape), np.float32)
    student, pyramid = array(side, side, width), tuple(array(n, n, c) for n, c in zip(native, channels, strict=True))
    forms = {"naive": naive, "dense": aligned, "blocks": functools.partial(aligned, block=block)}
    rows = []
    for name, form in forms.items():
        program = jax.jit(jax.value_and_grad(form, (0, 1)))
        found = program.lower(student, student, pyramid, pyramid).compile().memory_analysis()
        between = found.temp_size_in_bytes
        rows.append(
            {
                "R": side,
                "pairs": batch,
                "form": name,
                "block": block if name == "blocks" else None,
                "between GiB": between / GIB,
                "GiB": (between + found.argument_size_in_bytes + found.output_size_in_bytes) / GIB,
                "naive / this": rows[0]["between GiB"] * GIB / between if rows else 1.0,
            }
        )
    return rows


def main(argv=None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]
    parser.add_argument("--sides", type=numbers, default="24,48", help="R of the student's map")
    parser.add_argument("--batch", type=int, default=64, help="pairs")
    parser.add_argument("--block", type=int, default=48, help="rows of matches at a time")
    parser.add_argument("--native", type=numbers, default="3,6,12,24", help="sides of the teacher's maps")
    parser.add_argument("--channels", type=numbers, default="2048,1024,512,256", help="their channels")
    parser.add_argument("--width", type=int, default=64, help="channels of the student's map")
    parser.add_argument("--json", default="", help="file to write the rows to")
    args = parser.parse_args(argv)
    rows = []
    for side in args.sides:
        rows += benchmark(side, args.batch, args.block, args.native, args.channels, args.width)
    harness.report(rows, args.json)


if __name__ == "__main__":
    main()
