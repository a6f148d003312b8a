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
import contextlib
import importlib.util
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from benchmarks import harness
from uld_jax import sharding
from uld_jax.clustering import assignment, gcn_clusters, kmeans, knn, quality
from uld_jax.errors import UserError
from uld_jax.ops import completion

MIB = 2**20
DIM = 256  # numbers of a row
CLOCKS = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}  # Hz, those commonly given
# What libtpu would otherwise ask the metadata server of a cloud machine.
_LIBTPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
# The H100's data sheet, and compute capability 9.0 of the "CUDA C++ Programming Guide".
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3350000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 80000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def absent(name: str) -> list:
    """Return the devices of a topology, `v5e:4x4` or `h100:1`. Raises UserError without the package for it."""
    kind, _, shape = name.partition(":")
    if kind not in ("h100", *CLOCKS) or not shape:
        raise UserError(f"--topology={name} is not understood; write v5e:4x4, v5p:2x2x4, v6e:2x2 or h100:1")
    if kind == "h100":
        _need(("jax_cuda12_plugin", "jax_cuda13_plugin"), name, "jax-cuda12-plugin and jax-cuda12-pjrt")
        if "xla_gpu_autotune_level" not in (flags := os.environ.get("XLA_FLAGS", "")):  # there is no card to try on
            os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()
        options = dict(platform="cuda", topology_name=kind, target_config=_H100, topology=f"1x1x{shape}")
        return topologies.get_topology_desc(**options).devices
    _need(("libtpu",), name, "libtpu")
    os.environ.update(_LIBTPU)
    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def _need(modules, name, packages):
    if not any(map(importlib.util.find_spec, modules)):
        raise UserError(
            f"--topology={name} is compiled for by packages that are not installed: {packages}; install those that go "
            f"with jax {jax.__version__}"
        )


@contextlib.contextmanager
def traced_for(devices) -> Iterator[None]:
    """Trace programs as on these devices; what was traced is forgotten at the end."""
    platform = {"tpu": "tpu"}.get(devices[0].platform, "gpu")
    answers = dict(device_count=lambda: len(devices), default_backend=lambda: platform)
    try:
        with mock.patch.multiple(jax, **answers):
            yield
    finally:
        jax.clear_caches()


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
      topology: see `absent`.
      rows, dim: those that are clustered.
      images: of 60 keypoints, for assignments.
      only: names of clusterings; all if empty.
      hlo: a folder for the compiled texts, or nothing.
    """
    devices = absent(topology)
    mesh = sharding.make_mesh(devices)
    with traced_for(devices), jax.set_mesh(mesh):
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
            found = counted(text)
            clock = CLOCKS.get(topology.partition(":")[0])
            yield {
                "clustering": name,
                "topology": topology,
                "rows": rows,
                "compile s": round(taken[0], 1),
                "compile CPU s": round(taken[1], 1),
                "temporaries MiB": round(compiled.memory_analysis().temp_size_in_bytes / MIB, 1),
                "estimate ms": round(1e3 * found["cycles"] / clock, 2) if clock else None,
                "sorted": round(found["sorted"] / 1e6, 1),
                "gathered": round(found["gathered"] / 1e6, 1),
            }


_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)(?= [\w\-]+\()|\S+) ([\w\-]+)\((.*)$")


def counted(text: str) -> dict[str, int]:
    """Count the noted cycles, and the elements that are sorted and gathered, in a compiled program's text.

    A loop to a constant bound counts its instructions as often as it turns, any other loop once.
    """
    bodies, entry, current = {}, "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _LINE.match(line)):
            current.append(found.groups())
    total = dict.fromkeys(("cycles", "sorted", "gathered"), 0)

    def gathers(name):
        for _, kind, op, rest in bodies.get(name, ()):
            if op == "gather":
                yield _elements(kind)
            elif inner := re.search(r"calls=%?([\w.\-]+)", rest):
                yield from gathers(inner[1])

    def visit(name, times):
        for _, kind, op, rest in bodies.get(name, ()):
            if cycles := re.search(r'"estimated_cycles":"(\d+)"', rest):
                total["cycles"] += times * int(cycles[1])
            if op == "sort":
                total["sorted"] += times * _elements(kind)
            elif op == "gather":
                total["gathered"] += times * _elements(kind)
            elif op == "fusion":
                total["gathered"] += times * sum(gathers(re.search(r"calls=%?([\w.\-]+)", rest)[1]))
            elif op == "while":
                called = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", rest))
                noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', rest)
                turns = int(noted[1]) if noted else _turns(bodies.get(called["condition"], ()))
                visit(called["body"], times * turns)
            elif op in ("call", "conditional"):
                for branches in re.findall(r"(?:to_apply|\w+_computations?)=\{?([^},]*(?:, %[^},]*)*)", rest):
                    for branch in branches.split(", "):
                        visit(branch.lstrip("%"), times)

    visit(entry, 1)
    return total


def _elements(kind: str) -> int:
    """The elements of an array, or of the first one of a tuple."""
    return math.prod(int(size) for size in re.search(r"\[([\d,]*)\]", kind)[1].split(",") if size)


def _turns(condition) -> int:
    """The constant below which a loop's counter, which starts at 0, stays; 1 if the loop ends otherwise."""
    constants = {name: rest for name, _, op, rest in condition if op == "constant"}
    _, _, op, rest = condition[-1]
    bound = re.search(r"%([\w.\-]+)\), direction=LT", rest)
    value = bound and re.match(r"(\d+)\)", constants.get(bound[1], ""))
    return int(value[1]) if op == "compare" and value else 1


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
