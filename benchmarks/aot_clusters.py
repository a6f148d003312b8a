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

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks import harness
from uld_jax import devices, sharding
from uld_jax.clustering import assignment, gcn_clusters, kmeans, knn, quality
from uld_jax.errors import UserError
from uld_jax.ops import completion
from uld_jax.plan import hlo as hlo_lib
from uld_jax.plan import topology as topologies

MIB = 2**20
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
    found = topologies.find(topology)
    mesh, sheet = sharding.make_mesh(found.devices), devices.sheet(found.kind)
    with devices.traced_for(found.devices), jax.set_mesh(mesh):
        for name, (function, arguments) in programs(mesh, rows, images, dim).items():
            if only and name not in only:
                continue
            begin, spent = time.perf_counter(), time.process_time()
            compiled = jax.jit(function).lower(*arguments).compile()
            taken = time.perf_counter() - begin, time.process_time() - spent
            text = compiled.as_text()
            if hlo:
                os.makedirs(hlo, exist_ok=True)
                with open(os.path.join(hlo, f"{name}.txt"), "w") as file:
                    file.write(text)
            counts, clock = counted(text), sheet and sheet.clock
            yield {
                "clustering": name,
                "topology": topology,
                "rows": rows,
                "compile s": round(taken[0], 1),
                "compile CPU s": round(taken[1], 1),
                "temporaries MiB": round(compiled.memory_analysis().temp_size_in_bytes / MIB, 1),
                "estimate ms": round(1e3 * counts["cycles"] / clock, 2) if clock else None,
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:4x4", help="absent devices, such as v5e:4x4 or h100:1")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows that are clustered")
    parser.add_argument("--images", type=int, default=20_000, help="images of 60 keypoints, for assignments")
    parser.add_argument("--only", default="", help="names of clusterings, separated by semicolons")
    parser.add_argument("--hlo", default="", help="folder for the compiled texts")
    parser.add_argument("--json", default="", help="file to write the rows to")
    args = parser.parse_args(argv)
    rows = []
    try:
        only = [name for name in args.only.split(";") if name]
        for row in benchmark(args.topology, args.rows, args.images, only, hlo=args.hlo):
            print(row, flush=True)
            rows.append(row)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    harness.report(rows, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
