"""Every clustering compiled for devices that are absent: seconds of compilation, temporaries, the compiler's estimate.

python -m benchmarks.aot_clusters --topology=v5e:4x4 --rows=1000000          a TPU slice; needs libtpu
python -m benchmarks.aot_clusters --topology=h100:1 --only="knn;kmeans"      NVIDIA GPUs; needs JAX's CUDA plugin

Nothing is computed: the rows, split over all devices, are shapes. `compile CPU s` are the processor's seconds, which
count the same on a busy machine, where `compile s` does not. `temporaries MiB` are those of one device, besides rows
and results.

`estimate ms` adds up the cycles that the TPU compiler notes at its instructions, those in a loop as often as the loop
turns (once where that depends on the data: one iteration of k-means). It notes none at sorts, gathers and collectives,
so a call takes longer; `sorted` and `gathered` count their elements, in millions. Other compilers note no cycles.
"""

import math
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks import absent
from uld_jax import sharding
from uld_jax.clustering import assignment, gcn_clusters, kmeans, knn, quality
from uld_jax.ops import completion
from uld_jax.plan import hlo as hlo_lib

DIM = 256  # numbers of a row


def programs(mesh, rows: int, images: int, dim: int = DIM) -> dict:
    """Name each clustering, with its function and its arguments as shapes on the mesh."""
    rows, images = rows - rows % mesh.size, images - images % mesh.size
    split, whole = sharding.split(mesh), sharding.replicated(mesh)

    def shape(*sizes, dtype=jnp.float32, on=split):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=on)

    x, mask, labels = shape(rows, dim), shape(rows, dtype=bool), shape(rows, dtype=jnp.int32)
    key = jax.ShapeDtypeStruct((), jax.eval_shape(lambda: jax.random.key(0)).dtype, sharding=whole)
    first = shape(100, dim, on=whole)
    keypoints = shape(images, 60, dtype=bool)
    ring = min(16_000, rows)
    return {
        "kmeans": (lambda x, m, key: kmeans.kmeans(x, 100, rng=key, mask=m), (x, mask, key)),
        "kmeans, warm": (lambda x, m, c: kmeans.kmeans(x, 100, init=c, mask=m), (x, mask, first)),
        "assign": (kmeans.assign, (x, first, mask)),
        "knn": (lambda x, m: knn.knn_graph(x, 80, mask=m), (x, mask)),
        "knn, approximate": (lambda x, m: knn.knn_graph(x, 80, mask=m, approximate=True), (x, mask)),
        "density clusters": (
            lambda x, m: gcn_clusters.gcn_clusters(x, k=80, mask=m, confidence="density"),
            (x, mask),
        ),
        "gcn clusters": (lambda x, m: gcn_clusters.gcn_clusters(x, k=80, mask=m), (x, mask)),
        "gcn clusters, ring of CGB": (
            lambda x, m: gcn_clusters.gcn_clusters(x, k=80, mask=m),
            (shape(ring, dim, on=whole), shape(ring, dtype=bool, on=whole)),
        ),
        "silhouette": (lambda x, c, m: quality.silhouette(x, c, m, clusters=100), (x, labels, mask)),
        "calinski-harabasz": (lambda x, c, m: quality.calinski_harabasz(x, c, m, clusters=100), (x, labels, mask)),
        "hungarian": (assignment.one_per_cluster, (shape(images, 60, 100), keypoints)),
        "nearest": (assignment.nearest_exemplar, (shape(images, 60, dim), shape(10, dim, on=whole), keypoints)),
        "completion": (
            completion.complete,
            (shape(1000, 200, on=whole), shape(1000, 200, dtype=bool, on=whole)),
        ),
    }


def benchmark(topology: str, rows: int, images: int, only=(), dim: int = DIM, hlo: str = "") -> Iterator[dict]:
    """Iterate over rows of the table, one for each clustering, as each is compiled.

    Args:
      topology: see `uld_jax.plan.topology`.
      rows, dim: those that are clustered.
      images: of 60 keypoints, for assignments.
      only: names of clusterings; all if empty.
      hlo: a folder for the compiled texts, or nothing.
    """
    for one in absent.compile_each(topology, lambda mesh: programs(mesh, rows, images, dim), only, hlo):
        counts = counted(one.text)
        yield {
            "clustering": one.name,
            "topology": topology,
            "rows": rows,
            "compile s": round(one.seconds, 1),
            "compile CPU s": round(one.processor_seconds, 1),
            "temporaries MiB": one.temporaries,
            "estimate ms": one.milliseconds(counts["cycles"]),
            "sorted": round(counts["sorted"] / 1e6, 1),
            "gathered": round(counts["gathered"] / 1e6, 1),
        }


def counted(text: str) -> dict[str, int]:
    """Count the noted cycles, and the elements that are sorted and gathered, in a compiled program's text.

    A loop to a constant bound counts its instructions as often as it turns, any other loop once.
    """
    module, total = hlo_lib.Module(text), dict.fromkeys(("cycles", "sorted", "gathered"), 0)
    for _, instruction, times in module.executed(module.entry):
        total["cycles"] += times * (instruction.cycles or 0)
        inside = [one for name in module.within(instruction) for one in module.computations.get(name, ())]
        for one in inside if instruction.op == "fusion" else (instruction,):
            if one.op in ("sort", "gather"):
                total["sorted" if one.op == "sort" else "gathered"] += times * math.prod(one.arrays[0].shape)
    return total


def main(argv=None) -> int:
    """Run the command line."""
    parser = absent.parser(__doc__, "v5e:4x4", "clusterings")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows that are clustered")
    parser.add_argument("--images", type=int, default=20_000, help="images of 60 keypoints, for assignments")
    args = parser.parse_args(argv)
    return absent.run(lambda only: benchmark(args.topology, args.rows, args.images, only, hlo=args.hlo), args)


if __name__ == "__main__":
    sys.exit(main())
