import doctest
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from uld_jax.clustering import knn as module
from uld_jax.clustering.knn import knn_graph, recall
from uld_jax.errors import UserError


def test_examples():
    result = doctest.testmod(module)
    assert result.attempted >= 5
    assert result.failed == 0


def rows(seed, count=300, size=16, centres=0, spread=0.3):
    """Random or clustered rows of different lengths; the last 20 repeat earlier ones."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, size))
    if centres:
        x = rng.normal(size=(centres, size))[rng.integers(0, centres, count)] + spread * x
    x[-20:] = x[5:25]
    return (x * rng.uniform(0.01, 100, (count, 1))).astype(np.float32)


def axes(seed, count=300, size=4):
    """Rows along an axis, forth or back: cosines are exactly 1, 0 or -1, so that ties are exact and many."""
    rng = np.random.default_rng(seed)
    return (np.eye(size)[rng.integers(0, size, count)] * rng.choice([-4, 0.5, 1], (count, 1))).astype(np.float32)


def brute_force(x, k, mask):
    """Neighbours by a stable sort of all cosines, in float64 NumPy; and the cosines [N,N], -inf where none may be."""
    x = np.where(mask[:, None], x, 0).astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    x = x / np.where(length > 0, length, 1)
    cosines = np.where(mask[:, None] & mask & ~np.eye(len(x), dtype=bool), x @ x.T, -np.inf)
    indices = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    indices = np.where(np.take_along_axis(cosines, indices, 1) > -np.inf, indices, -1)
    return np.pad(indices, ((0, 0), (0, k - indices.shape[1])), constant_values=-1), cosines


def gaps(cosines, k):
    """From each of the best k cosines of a row to its next best, [N,k]."""
    best = np.sort(np.where(np.isfinite(cosines), cosines, -2), 1)[:, ::-1][:, : k + 1]
    best = np.pad(best, ((0, 0), (0, k + 1 - best.shape[1])), constant_values=-2)
    return best[:, :-1] - best[:, 1:]


def check(graph, x, k, mask):
    """The graph is exact up to ties: the cosines are those of the best k, and belong to the rows that are named."""
    indices, similarities = map(np.asarray, graph)
    true, cosines = brute_force(x, k, mask)
    assert indices.shape == similarities.shape == (len(x), k)
    assert indices.dtype == np.int32
    there = true >= 0
    np.testing.assert_array_equal(indices >= 0, there)
    assert (similarities[~there] == 0).all()
    of = lambda who: np.where(there, np.take_along_axis(cosines, np.maximum(who, 0), 1), 0)
    np.testing.assert_allclose(similarities, of(true), atol=1e-6)
    np.testing.assert_allclose(similarities, of(indices), atol=1e-6)
    for row, mine in enumerate(indices):
        mine = mine[mine >= 0]
        assert len(set(mine.tolist()) - {row}) == len(mine)
    # Where no cosine is within rounding of another, the order is the same too.
    after = gaps(cosines, k)
    before = np.pad(after[:, :-1], ((0, 0), (1, 0)), constant_values=1)
    clear = there & (np.minimum(before, after) > 1e-6)
    np.testing.assert_array_equal(indices[clear], true[clear])
    return clear.mean()


@pytest.fixture(params=[False, True], ids=["top_k", "sorts"])
def choice(request, monkeypatch):
    """Both ways to choose the best: that of this device, and that of a TPU."""
    monkeypatch.setattr(module, "_sorts", lambda: request.param)


@pytest.mark.usefixtures("choice")
@pytest.mark.parametrize("centres", [0, 5])
@pytest.mark.parametrize(
    ("k", "sizes"),
    [
        (20, {}),
        (3, {}),  # the choice in two steps
        (20, dict(block=64, width=100)),  # 3 blocks of keys, of 2 blocks of rows each
        (20, dict(block=7, width=10)),  # fewer keys than neighbours
    ],
)
def test_equals_brute_force(centres, k, sizes):
    x, mask = rows(1, centres=centres), np.random.default_rng(2).random(300) < 0.8
    x[~mask] = np.nan
    x[[3, 50]] = [[np.inf], [np.nan]]
    mask[[3, 50]] = True  # treated as masked
    graph = knn_graph(jnp.asarray(x), k, mask=jnp.asarray(mask), **sizes)
    mask[[3, 50]] = False
    assert check(graph, x, k, mask) > 0.4  # most are no ties, or the test shows little


@pytest.mark.parametrize("centres", [0, 5])
def test_recall_against_scikit_learn_is_1(centres):
    neighbors = pytest.importorskip("sklearn.neighbors")
    x = rows(3, centres=centres)[:-20]  # without ties
    theirs = neighbors.NearestNeighbors(n_neighbors=20, algorithm="brute", metric="cosine").fit(x.astype(np.float64))
    distances, indices = theirs.kneighbors()  # without the row itself
    graph = knn_graph(jnp.asarray(x), 20)
    assert recall(graph.indices, indices) == 1
    np.testing.assert_allclose(graph.similarities, 1 - distances, atol=1e-6)


@pytest.mark.usefixtures("choice")
@pytest.mark.parametrize(("k", "sizes"), [(20, {}), (3, {}), (20, dict(block=64, width=100)), (299, {})])
def test_equal_rows_are_neighbours_in_the_order_of_their_numbers(k, sizes):
    x, mask = axes(4), np.random.default_rng(5).random(300) < 0.9
    graph = knn_graph(jnp.asarray(x), k, mask=jnp.asarray(mask), **sizes)
    np.testing.assert_array_equal(graph.indices, brute_force(x, k, mask)[0])


def test_the_choice_in_two_steps_is_that_of_a_stable_sort():
    values = np.random.default_rng(6).integers(0, 200, (20, 2048)).astype(np.float32)
    values[:, 1000:] -= np.float32(np.inf)
    for k in (4, 30):
        assert values.shape[1] >= 2 * module._GROUP * k
        found, place = module._top(jnp.asarray(values), k, None)
        expected = np.argsort(-values, 1, kind="stable")[:, :k]
        np.testing.assert_array_equal(place, expected)
        np.testing.assert_array_equal(found, np.take_along_axis(values, expected, 1))


def test_nearly_collinear_rows_keep_their_digits():
    rng = np.random.default_rng(7)
    x = (30 + rng.normal(size=(300, 16))).astype(np.float32)
    cosines = brute_force(x, 20, np.ones(300, bool))[1]
    assert np.min(np.where(np.isfinite(cosines), cosines, 1)) > 0.99
    graph = knn_graph(jnp.asarray(x), 20)
    assert check(graph, x, 20, np.ones(300, bool)) > 0.5


def test_length_does_not_matter():
    x = rows(8)
    x /= np.max(np.abs(x), 1, keepdims=True)
    expected = knn_graph(jnp.asarray(x), 20)
    scaled = x * np.float32(2.0) ** np.random.default_rng(9).choice([-100, 0, 120], (300, 1))  # squares overflow
    for ours, theirs in zip(knn_graph(jnp.asarray(scaled), 20), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_fewer_rows_than_neighbours():
    x = rows(10, count=40)[:5]
    graph = knn_graph(jnp.asarray(x), 8)
    check(graph, x, 8, np.ones(5, bool))
    np.testing.assert_array_equal(graph.indices[:, 4:], -1)
    one = knn_graph(jnp.asarray(x[:1]), 2)
    assert (one.indices.tolist(), one.similarities.tolist()) == ([[-1, -1]], [[0, 0]])
    none = knn_graph(jnp.zeros((0, 16)), 2)
    assert none.indices.shape == none.similarities.shape == (0, 2)


@pytest.mark.usefixtures("choice")
def test_all_rows_masked_and_rows_of_zeros():
    x = jnp.full((300, 16), jnp.nan)
    for graph in (knn_graph(x, 20), knn_graph(x, 20, mask=jnp.zeros(300, bool))):
        assert (np.asarray(graph.indices) == -1).all()
        assert (np.asarray(graph.similarities) == 0).all()
    x = rows(11)
    x[::3] = 0
    graph = knn_graph(jnp.asarray(x), 20)
    check(graph, x, 20, np.ones(300, bool))
    np.testing.assert_array_equal(graph.indices[0], np.arange(1, 21))


def test_masked_rows_count_nowhere_and_the_program_is_the_same_under_jit():
    x, mask = rows(12), np.random.default_rng(13).random(300) < 0.5
    graph = jax.jit(lambda x, mask: knn_graph(x, 20, mask=mask))(x, mask)
    other = np.where(mask[:, None], x, np.float32(7))
    for ours, theirs in zip(knn_graph(jnp.asarray(other), 20, mask=mask), graph, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_approximate_choice():
    x = jnp.asarray(rows(14, centres=5)[:-20])
    exact, found = knn_graph(x, 20), knn_graph(x, 20, approximate=True, recall_target=0.9)
    assert recall(found.indices, exact.indices) >= 0.9
    text = jax.jit(lambda x: knn_graph(x, 20, approximate=True)).lower(x).as_text()
    assert "ApproxTopK" in text
    assert "ApproxTopK" not in jax.jit(lambda x: knn_graph(x, 20)).lower(x).as_text()


def test_recall_counts_true_neighbours():
    rng = np.random.default_rng(15)
    true = np.stack([rng.permutation(30)[:8] for _ in range(10)])
    found = np.stack([rng.permutation(30)[:12] for _ in range(10)])
    true[3, 4:], found[5, 6:], found[0], true[7] = -1, -1, -1, -1
    shares = [len(set(a.tolist()) & set(b[b >= 0].tolist())) for a, b in zip(found, true, strict=True)]
    np.testing.assert_allclose(recall(jnp.asarray(found), jnp.asarray(true)), sum(shares) / (true >= 0).sum())
    assert recall(jnp.asarray(true), jnp.asarray(true)) == 1
    assert recall(jnp.asarray(true), jnp.full((10, 2), -1)) == 1


def test_float64_stays_float64():
    with jax.enable_x64(True):
        graph = knn_graph(jnp.asarray(rows(16, count=40), jnp.float64), 3)
        assert graph.similarities.dtype == jnp.float64
        assert graph.indices.dtype == jnp.int32
    assert knn_graph(jnp.ones((5, 2), jnp.bfloat16), 2).similarities.dtype == jnp.float32


def test_bad_input_is_named():
    x = jnp.zeros((4, 2))
    with pytest.raises(UserError, match="k=0"):
        knn_graph(x, 0)
    with pytest.raises(UserError, match="mask"):
        knn_graph(x, 2, mask=jnp.ones(3, bool))
    with pytest.raises(UserError, match="rows"):
        knn_graph(x[0], 2)


def sharded():
    """Runs in a process of its own with eight devices; prints what it found."""
    from tests import collectives
    from uld_jax import sharding

    mesh = sharding.make_mesh()
    assert mesh.size == 8
    mask = np.random.default_rng(17).random(1024) < 0.8
    split = lambda tree: jax.device_put(tree, sharding.split(mesh))
    report = {}

    def compare(name, x, mask, parts, k):
        whole = knn_graph(jnp.asarray(x), k, mask=jnp.asarray(mask))
        true, cosines = brute_force(x, k, mask)
        clear = check(parts, x, k, mask)
        there = true >= 0
        untied = np.all((gaps(cosines, k) > 1e-6) | ~there, 1)
        report[name] = dict(
            clear=clear,
            untied=float(untied.mean()),
            differ=int((np.asarray(whole.indices) != np.asarray(parts.indices))[untied].sum()),
            apart=float(np.abs(np.asarray(whole.similarities) - np.asarray(parts.similarities)).max()),
            stable=bool((np.asarray(parts.indices) == true).all()),
        )

    x = rows(18, count=1024, centres=12)
    x[~mask] = np.nan
    find = jax.jit(lambda x, mask: knn_graph(x, 6, mask=mask, mesh=mesh, block=64))
    compiled = find.lower(*split((x, mask))).compile()
    parts = compiled(*split((x, mask)))
    compare("jit", x, mask, parts, 6)
    report["split"] = all(field.sharding.is_equivalent_to(sharding.split(mesh), 2) for field in parts)
    report["collectives"] = collectives.list_collectives(compiled)
    report["square"] = any(f"{n},1024]" in compiled.as_text() for n in (1024, 128, 64))
    report["replicated"] = "f32[1024,16]" in compiled.as_text()
    # Equal rows: the same order on 8 devices as on one. The mesh is that of x.
    x = axes(19, count=1024)
    parts = knn_graph(split(x), 40, mask=split(mask))
    compare("ties", x, mask, parts, 40)
    report["followed"] = len(parts.indices.sharding.device_set)
    # A number of rows that does not divide, over a mesh of two axes.
    grid = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = rows(20, count=301)
    compare("odd", x, mask[:301], knn_graph(jnp.asarray(x), 9, mask=jnp.asarray(mask[:301]), mesh=grid), 9)
    few = knn_graph(jnp.asarray(x[:5]), 6, mesh=mesh)
    compare("few", x[:5], np.ones(5, bool), few, 6)
    with mock.patch.object(module, "_sorts", return_value=True):
        x = axes(19, count=1024)
        compare("sorts", x, mask, knn_graph(split(x), 3, mask=split(mask)), 3)
    print(json.dumps(report))


def test_eight_devices_equal_one_and_pass_one_block_of_keys_on():
    done = tiny.run(__file__, devices=8)
    report = json.loads(done.stdout.splitlines()[-1])
    for name in ("jit", "odd", "few"):
        assert report[name]["untied"] > 0.3, name
        assert report[name]["differ"] == 0, name
        assert report[name]["apart"] < 1e-6, name
    assert report["ties"]["stable"]
    assert report["sorts"]["stable"]
    assert report["split"]
    assert report["followed"] == 8
    # The keys of one device and their mask, to the next one. No gathering, and no N x N anywhere.
    assert report["collectives"] == [["collective-permute", "f32", [128, 16]], ["collective-permute", "pred", [128]]]
    assert not report["square"]
    assert not report["replicated"]


if __name__ == "__main__":
    sharded()
