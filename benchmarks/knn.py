"""Timings of exact kNN by cosine: seconds and peak memory, beside scikit-learn, faiss and PyTorch in one run.

python -m benchmarks.knn                                               10,000 and 30,000 rows of 256, k = 80
python -m benchmarks.knn --n=100000,1000000 --k=80 --dim=256 --repeats=3 --peers=                for a GPU

All programs get the same rows and return their neighbours without the rows themselves; scaling the rows to length 1 and
building an index are part of the time. The programs take turns and the median of their turns counts, so that changes in
the machine's load do not favour one. PyTorch (blocks of rows, a product and a topk) and faiss (IndexFlatIP) are left
out if they are not installed. Peers run on the CPU. Recall is against scikit-learn, or against the first peer present.

Peak memory is the rows and the memory of one call beyond that of a process that has just started and loaded its
libraries, one process for each program; on an accelerator it is the device's own count. The roofline is the work of the
products (2 N^2 D) at the peak of the units that compute exact float32.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks import harness
from uld_jax.clustering.knn import knn_graph, recall

_BLOCK = 512  # rows of PyTorch's block

# Each function takes rows [N,D] and k to a call, which returns the neighbours [N,k].


def ours(x: np.ndarray, k: int) -> Callable:
    """uld_jax; compiled before it is timed."""
    x = jax.device_put(x)
    compiled = jax.jit(lambda x: knn_graph(x, k)).lower(x).compile()
    return lambda: np.asarray(jax.block_until_ready(compiled(x)).indices)


def scikit_learn(x: np.ndarray, k: int) -> Callable:
    """sklearn.neighbors.NearestNeighbors, brute force."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine")
    return lambda: search.fit(x).kneighbors()[1]


def faiss(x: np.ndarray, k: int) -> Callable:
    """faiss.IndexFlatIP on rows of length 1."""
    import faiss

    def call():
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        index = faiss.IndexFlatIP(x.shape[1])
        index.add(unit)
        return _others(index.search(unit, k + 1)[1])

    return call


def pytorch(x: np.ndarray, k: int) -> Callable:
    """PyTorch, in blocks of rows against all rows."""
    import torch

    @torch.no_grad()
    def call():
        unit = torch.nn.functional.normalize(torch.from_numpy(x))
        return _others(torch.cat([(rows @ unit.T).topk(k + 1).indices for rows in unit.split(_BLOCK)]).numpy())

    return call


def _others(indices: np.ndarray) -> np.ndarray:
    """Drop the row itself from neighbours [N,k+1], or the last neighbour if the row is not among them."""
    keep = indices != np.arange(len(indices))[:, None]
    keep[keep.all(1), -1] = False
    return indices[keep].reshape(len(indices), -1)


PROGRAMS = {"uld_jax": (ours, "jax"), "scikit-learn": (scikit_learn, "sklearn"), "faiss": (faiss, "faiss"),
            "PyTorch": (pytorch, "torch")}  # fmt: skip
PEERS = [name for name in PROGRAMS if name != "uld_jax"]


def rows(n: int, dim: int) -> np.ndarray:
    """Make rows in overlapping groups of different lengths; equal sizes give equal rows."""
    rng = np.random.default_rng(0)
    middle, x = rng.standard_normal((100, dim), np.float32), rng.standard_normal((n, dim), np.float32)
    for part in np.array_split(x, -(-n // 8192)):  # views; no second array of this size
        part += middle[rng.integers(0, len(middle), len(part))]
    return x


def peak_memory(name: str, n: int, k: int, dim: int) -> int | None:
    """Bytes at the peak of one call in this process, the rows included; None if the system does not tell."""
    x = rows(n, dim)
    PROGRAMS[name][0](x[: 2 * k], k)()  # loads libraries and starts threads
    call = PROGRAMS[name][0](x, k)
    with harness.PeakMemory() as peak:
        call()
    return None if peak.grown is None else peak.grown + x.nbytes


def _peak_memory_alone(*args) -> int | None:
    """`peak_memory` in a new process on the CPU, because memory freed by earlier calls would be used again."""
    code = f"from benchmarks import knn; print(knn.peak_memory{args})"
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    printed = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
    return None if printed.strip() == "None" else int(printed)


def benchmark(n: int, k: int, dim: int, repeats: int, peers=PEERS, memory: bool = True) -> list[dict]:
    """Make a row for each program that is installed; without `memory` in less time."""
    x = rows(n, dim)
    calls, seconds, peaks, found = {}, {}, {}, {}
    for name, (build, module) in PROGRAMS.items():
        if name == "uld_jax" or (name in peers and importlib.util.find_spec(module)):
            calls[name], seconds[name] = build(x, k), []
            found[name] = calls[name]()  # which also warms up
    for _ in range(repeats):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    middle = {name: statistics.median(s) for name, s in seconds.items()}
    fastest = min((s for name, s in middle.items() if name != "uld_jax"), default=None)
    reference = next((name for name in PEERS if name in found), None)
    if stats := jax.devices()[0].memory_stats():
        peaks["uld_jax"] = stats.get("peak_bytes_in_use")
    if memory:
        peaks = {name: _peak_memory_alone(name, n, k, dim) for name in calls if name not in peaks} | peaks
    return [
        {
            "N": n,
            "program": name,
            "seconds": middle[name],
            "ours / fastest peer": middle[name] / fastest if fastest and name == "uld_jax" else None,
            "recall": float(recall(found[name], found[reference])) if reference else None,
            "peak MiB": peaks.get(name) and peaks[name] / 2**20,
            "roofline": harness.distance_share(n, n, dim, middle[name]) if name == "uld_jax" else None,
        }
        for name in calls
    ]


def main(argv=None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", default="10000,30000", help="numbers of rows")
    parser.add_argument("--k", type=int, default=80)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers", default=",".join(PEERS), help="whom to compare with")
    parser.add_argument("--memory", default="True", choices=("True", "False"), help="peaks too, a turn more")
    parser.add_argument("--json", default="", help="file to write the rows to")
    args = parser.parse_args(argv)
    if odd := set(filter(None, args.peers.split(","))) - set(PEERS):
        parser.error(f"there is no peer {sorted(odd)[0]!r}; there are {', '.join(PEERS)}")
    table = []
    for n in map(int, args.n.split(",")):
        table += benchmark(n, args.k, args.dim, args.repeats, args.peers.split(","), args.memory == "True")
    harness.report(table, args.json)


if __name__ == "__main__":
    main()
