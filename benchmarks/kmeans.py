"""Timings of k-means: seconds a Lloyd iteration and peak memory, beside scikit-learn, faiss and PyTorch in one run.

python -m benchmarks.kmeans                                            10,000, 100,000 and a million rows of 256
python -m benchmarks.kmeans --n=10000,100000 --k=80 --dim=256 --iterations=20 --repeats=3

All programs get the same rows, first centroids and number of iterations; none stops before its labels stay. A time is
that of the whole call, including a last assignment if there is one, over the iterations. The programs take turns and
the median of their turns counts, so that changes in the machine's load do not favour one. PyTorch (a blocked Lloyd in a
few lines) and faiss are left out if they are not installed. Peers run on the CPU.

Peak memory is the rows and the call's memory beyond that of the process before; on an accelerator it is the device's
own count. The roofline is the larger of two times: reading the rows once, and the float32 work of the distances
(2 N k D) at the peak of the units that compute exact float32.
"""

import argparse
import dataclasses
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks import harness
from uld_jax.clustering.kmeans import kmeans

_BLOCK = 8192  # rows of PyTorch's block


@dataclasses.dataclass(frozen=True)
class Problem:
    """Rows [N,D], first centroids [k,D], and the number of updates to make."""

    x: np.ndarray
    init: np.ndarray
    iterations: int


def problem(n: int, k: int, dim: int, iterations: int) -> Problem:
    """Make overlapping groups, which take many iterations to settle; equal sizes give equal groups."""
    rng = np.random.default_rng(0)
    middle = rng.standard_normal((2 * k, dim), np.float32)
    x = rng.standard_normal((n, dim), np.float32)
    for start in range(0, n, _BLOCK):  # no second array of this size
        part = x[start : start + _BLOCK]
        part += 0.3 * middle[rng.integers(0, len(middle), len(part))]
    return Problem(x, x[rng.choice(n, k, replace=False)], iterations)


# Each function takes a Problem to a call, which returns (iterations made, inertia or None).


def ours(p: Problem) -> Callable:
    """uld_jax; compiled before it is timed."""
    x, init = jax.device_put((p.x, p.init))
    run = jax.jit(lambda x, init: kmeans(x, len(init), init=init, iterations=p.iterations, tol=-1)[3:])
    compiled = run.lower(x, init).compile()

    def call():
        inertia, made = jax.device_get(compiled(x, init))
        return int(made), float(inertia)

    return call


def scikit_learn(p: Problem) -> Callable:
    """sklearn.cluster.KMeans."""
    from sklearn.cluster import KMeans

    def call():
        found = KMeans(len(p.init), init=p.init, n_init=1, algorithm="lloyd", tol=0, max_iter=p.iterations).fit(p.x)
        return found.n_iter_, found.inertia_

    return call


def faiss(p: Problem) -> Callable:
    """faiss.Kmeans; it makes no last assignment, so its inertia is that before the last update."""
    import faiss

    def call():
        found = faiss.Kmeans(
            p.x.shape[1], len(p.init), niter=p.iterations, min_points_per_centroid=1, max_points_per_centroid=len(p.x)
        )
        found.train(p.x, init_centroids=p.init)
        return p.iterations, float(found.obj[-1])

    return call


def pytorch(p: Problem) -> Callable:
    """Lloyd's iteration in PyTorch, in blocks of rows."""
    import torch

    @torch.no_grad()
    def call():
        x, centroids = torch.from_numpy(p.x), torch.from_numpy(p.init)

        def nearest(block):
            return torch.addmm((centroids * centroids).sum(1), block, centroids.T, alpha=-2).min(1)

        for _ in range(p.iterations):
            sums, sizes = torch.zeros_like(centroids), torch.zeros(len(centroids))
            for block in x.split(_BLOCK):
                labels = nearest(block).indices
                sums.index_add_(0, labels, block)
                sizes += torch.bincount(labels, minlength=len(sizes))
            centroids = torch.where(sizes[:, None] > 0, sums / sizes[:, None], centroids)
        inertia = sum(float(nearest(block).values.sum() + (block * block).sum()) for block in x.split(_BLOCK))
        return p.iterations, inertia

    return call


PROGRAMS = {"uld_jax": (ours, "jax"), "scikit-learn": (scikit_learn, "sklearn"), "faiss": (faiss, "faiss"),
            "PyTorch": (pytorch, "torch")}  # fmt: skip


def benchmark(n: int, k: int, dim: int, iterations: int, repeats: int) -> list[dict]:
    """Make a row for each program that is installed."""
    p = problem(n, k, dim, iterations)
    calls, seconds, peaks, results = {}, {}, {}, {}
    for name, (build, module) in PROGRAMS.items():
        if importlib.util.find_spec(module):
            calls[name], seconds[name] = build(p), []
            gc.collect()
            with harness.PeakMemory() as peak:  # which also warms up
                results[name] = calls[name]()
            peaks[name] = peak.grown and peak.grown + p.x.nbytes
    for _ in range(repeats):
        for name, call in calls.items():
            begin = time.perf_counter()
            made, _ = call()
            seconds[name].append((time.perf_counter() - begin) / made)
    middle = {name: statistics.median(s) for name, s in seconds.items()}
    fastest = min((s for name, s in middle.items() if name != "uld_jax"), default=None)
    if stats := jax.devices()[0].memory_stats():
        peaks["uld_jax"] = stats.get("peak_bytes_in_use")
    return [
        {
            "N": n,
            "program": name,
            "s/iteration": middle[name],
            "ours / fastest peer": middle[name] / fastest if fastest and name == "uld_jax" else None,
            "iterations": results[name][0],
            "inertia": results[name][1],
            "peak MiB": peaks[name] and peaks[name] / 2**20,
            "roofline": harness.distance_share(n, k, dim, middle[name]) if name == "uld_jax" else None,
        }
        for name in calls
    ]


def main(argv=None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", default="10000,100000,1000000", help="numbers of rows")
    parser.add_argument("--k", type=int, default=80)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", default="", help="file to write the rows to")
    args = parser.parse_args(argv)
    rows = []
    for n in map(int, args.n.split(",")):
        rows += benchmark(n, args.k, args.dim, args.iterations, args.repeats)
    harness.report(rows, args.json)


if __name__ == "__main__":
    main()
