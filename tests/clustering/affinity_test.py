"""The affinity operator against sparse matrices of SciPy."""

import doctest
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from uld_jax.clustering import affinity

N, K, D = 96, 7, 5


class Graph(NamedTuple):
    indices: np.ndarray
    similarities: np.ndarray


def made(seed, rows=N, slots=K, hub=True):
    """Random neighbours; some slots are unfilled, some similarities are not above 0, and most rows list row 3."""
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((rows, rows)) + 2 * np.eye(rows), 1)[:, :slots].astype(np.int32)
    if hub:
        listed = (order == 3).any(1) | (np.arange(rows) == 3)
        order[~listed, 0] = 3
    symmetric = rng.uniform(-0.2, 1, (rows, rows))
    symmetric = np.maximum(symmetric, symmetric.T)
    similarities = np.take_along_axis(symmetric, order, 1) + 0.01 * rng.random((rows, slots))
    order = np.where(rng.random(order.shape) < 0.1, -1, order)
    mask = rng.random(rows) < 0.85
    x = rng.normal(size=(rows, D)).astype(np.float32)
    return Graph(order, similarities.astype(np.float32)), x, mask


def reference(graph, x, mask):
    """As the published code has it: a sparse A, the larger of A and its transpose, the identity, the row sums."""
    sparse = pytest.importorskip("scipy.sparse")
    rows = len(x)
    entries = [
        (i, j, s)
        for i in range(rows)
        for j, s in zip(graph.indices[i], graph.similarities[i].astype(np.float64), strict=True)
        if j >= 0 and s > 0 and mask[i] and mask[j]
    ]
    i, j, s = zip(*entries, strict=True)
    matrix = sparse.csr_matrix((s, (i, j)), shape=(rows, rows))
    matrix = matrix.maximum(matrix.T) + sparse.eye(rows)
    mean = sparse.diags(1 / np.asarray(matrix.sum(1)).ravel()) @ matrix
    return np.where(mask[:, None], mean @ np.where(mask[:, None], x, 0), 0), np.asarray((matrix > 0).sum(1)).ravel()


@pytest.mark.parametrize(("block", "width"), [(1024, 65536), (32, 65536), (40, 50), (1, 65536), (1024, 64)])
def test_equals_scipy(block, width):
    graph, x, mask = made(1)
    expected, degrees = reference(graph, x, mask)
    assert degrees.max() > 5 * K  # the slots of that row hold a small part of its edges
    found = affinity.aggregate(graph, np.where(mask[:, None], x, np.nan), mask, block=block, width=width)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    everyone = np.ones(N, bool)
    found = affinity.aggregate(graph, x, block=block, width=width)
    np.testing.assert_allclose(found, reference(graph, x, everyone)[0], atol=1e-5)


def test_what_is_no_edge():
    x = np.arange(8.0, dtype=np.float32).reshape(4, 2)
    # A row that lists itself, a slot that is unfilled though similar, cosines of 0 and below, a masked neighbour, NaN.
    graph = Graph(
        np.array([[0, -1], [2, 0], [3, 1], [2, 1]], np.int32),
        np.array([[1.0, 0.9], [0.0, -0.5], [0.5, np.nan], [0.7, 0.2]], np.float32),
    )
    mask = np.array([True, True, True, False])
    np.testing.assert_array_equal(affinity.aggregate(graph, x, mask), np.where(mask[:, None], x, 0))
    # Edges count in both directions; where both rows list each other, once and with the larger similarity.
    matrix = np.eye(4)
    matrix[2, 3] = matrix[3, 2] = 0.7
    matrix[3, 1] = matrix[1, 3] = 0.2
    np.testing.assert_allclose(affinity.aggregate(graph, x), matrix @ x / matrix.sum(1, keepdims=True), rtol=1e-6)


def test_float64_stays_float64():
    graph, x, mask = made(2)
    with jax.enable_x64(True):
        found = affinity.aggregate(graph, jnp.asarray(x, jnp.float64), mask)
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, reference(graph, x, mask)[0], atol=1e-12)


def test_many_rows_need_a_block_of_the_matrix_and_no_more():
    rows, slots, size, block = 16_000, 80, 256, 512
    args = jnp.zeros((rows, slots), jnp.int32), jnp.zeros((rows, slots)), jnp.zeros((rows, size))
    lowered = jax.jit(lambda i, s, x: affinity.aggregate(Graph(i, s), x, block=block)).lower(*args)
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * (4 * block * rows + 4 * rows * size + 8 * rows * slots)


def sharded():
    """Runs in a process of its own with eight devices; prints what it found."""
    from tests import collectives
    from uld_jax import sharding

    mesh = sharding.make_mesh()
    assert mesh.size == 8
    graph, x, mask = made(3)
    whole = affinity.aggregate(graph, x, mask)
    split = jax.device_put((graph, x, mask), sharding.split(mesh))
    call = jax.jit(lambda graph, x, mask: affinity.aggregate(graph, x, mask, mesh=mesh, block=5))
    compiled = call.lower(*split).compile()
    parts = compiled(*split)
    report = dict(
        differ=float(np.abs(np.asarray(whole) - np.asarray(parts)).max()),
        split=parts.sharding.is_equivalent_to(sharding.split(mesh), 2),
        collectives=collectives.list_collectives(compiled),
    )
    fewer = Graph(graph.indices[:90], graph.similarities[:90])  # does not divide by 8
    mask[80:] = False
    whole = affinity.aggregate(fewer, x[:90], mask[:90])
    parts = affinity.aggregate(fewer, x[:90], mask[:90], mesh=mesh)
    report["differ_padded"] = float(np.abs(np.asarray(whole) - np.asarray(parts)).max())
    print(json.dumps(report))


def test_eight_devices_equal_one_and_send_one_block_at_a_time():
    report = json.loads(tiny.run(__file__, devices=8).stdout.splitlines()[-1])
    assert report["differ"] < 1e-6
    assert report["split"]
    assert report["differ_padded"] < 1e-6
    sent = sorted((kind, tuple(shape)) for kind, _, shape in report["collectives"])
    rows = N // 8
    assert {kind for kind, _ in sent} == {"collective-permute"}
    assert {shape for _, shape in sent} == {(rows, D), (rows,), (rows, K)}


def test_examples():
    result = doctest.testmod(affinity)
    assert result.attempted >= 4
    assert result.failed == 0


if __name__ == "__main__":
    sharded()
