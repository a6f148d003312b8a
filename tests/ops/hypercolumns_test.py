import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.errors import UserError
from uld_jax.ops import hypercolumns

SIDE = 8
SIZES = (2, 4, 8), (5, 6, 7)  # heights and channels of the levels; the last is native

materialise, at_cells, squared_norms, cosine, cosine_rows = (
    jax.jit(function, static_argnames="side")
    for function in (
        hypercolumns.materialise,
        hypercolumns.at_cells,
        hypercolumns.squared_norms,
        hypercolumns.cosine,
        hypercolumns.cosine_rows,
    )
)


def pyramid(seed, positive=True, wide=0):
    rng = np.random.default_rng(seed)
    maps = [rng.normal(size=(2, n, n + wide, c)).astype(np.float32) for n, c in zip(*SIZES)]
    return tuple(jnp.asarray(np.maximum(x, 0) if positive else x) for x in maps)


def reference(maps, side):
    """Hypercolumns in float64, one cell and one neighbour at a time."""
    out = []
    for x in (np.asarray(x.astype(jnp.float32), np.float64) for x in maps):
        batch, height, width, channels = x.shape
        level = np.zeros((batch, side, side, channels))
        for i in range(side):
            for j in range(side):
                y = min(max((i + 0.5) * height / side - 0.5, 0), height - 1)
                z = min(max((j + 0.5) * width / side - 0.5, 0), width - 1)
                for k in {int(y), min(int(y) + 1, height - 1)}:
                    for m in {int(z), min(int(z) + 1, width - 1)}:
                        level[:, i, j] += (1 - abs(y - k)) * (1 - abs(z - m)) * x[:, k, m]
        out.append(level)
    return np.concatenate(out, -1)


def reference_cosine(a, b, side):
    a, b = (reference(x, side).reshape(2, side * side, -1) for x in (a, b))
    unit = [x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (a, b)]
    return np.einsum("buc,bvc->buv", *unit)


def test_examples():
    found = doctest.testmod(hypercolumns)
    assert found.attempted >= 3
    assert found.failed == 0


@pytest.mark.parametrize(("n_in", "n_out"), [(3, 24), (24, 24), (7, 5), (1, 4)])
def test_resize_matrix_equals_torch_and_jax(n_in, n_out):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(n_in, 3)).astype(np.float32)
    found = hypercolumns.resize_matrix(n_in, n_out) @ x
    column = torch.tensor(x.T[None, :, :, None].copy())
    expected = torch.nn.functional.interpolate(column, size=(n_out, 1), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(found, expected[0, :, :, 0].numpy().T, atol=1e-6)
    resized = jax.image.resize(jnp.asarray(x), (n_out, 3), "bilinear", antialias=False)
    np.testing.assert_allclose(found, resized, atol=1e-6)


@pytest.mark.parametrize("side", [8, 9, 5])  # native, enlarged, and reduced at the finest level
def test_hypercolumns_equal_brute_force_in_full_and_at_cells(side):
    maps = pyramid(0, wide=1)
    expected = reference(maps, side)
    np.testing.assert_allclose(materialise(maps, side), expected, atol=1e-5)
    index = np.random.default_rng(1).integers(0, side * side, (2, 11))
    found = at_cells(maps, side, jnp.asarray(index))
    chosen = np.take_along_axis(expected.reshape(2, side * side, -1), index[..., None], 1)
    np.testing.assert_allclose(found, chosen, atol=1e-5)
    shared = at_cells(maps, side, jnp.asarray(index[0]))
    np.testing.assert_allclose(shared[1], expected.reshape(2, side * side, -1)[1, index[0]], atol=1e-5)


@pytest.mark.parametrize(("side", "positive"), [(8, True), (9, False), (5, False)])
def test_norms_from_neighbours_equal_those_of_hypercolumns(side, positive):
    maps = (*pyramid(2, positive, wide=1), jnp.asarray(np.random.default_rng(3).normal(size=(2, 1, 1, 4)), jnp.float32))
    found = squared_norms(maps, side)
    np.testing.assert_allclose(found, (reference(maps, side) ** 2).sum(-1), rtol=1e-5)


@pytest.mark.parametrize("side", [8, 9])
def test_cosine_equals_brute_force_whole_and_by_rows(side):
    a, b = pyramid(4), pyramid(5)
    expected = reference_cosine(a, b, side)
    np.testing.assert_allclose(cosine(a, b, side), expected, atol=2e-6)
    rng = np.random.default_rng(6)
    for rows in (rng.permutation(side * side)[:20], rng.integers(0, side * side, (2, 3))):
        found = cosine_rows(a, b, side, jnp.asarray(rows))
        each = np.broadcast_to(rows, (2, rows.shape[-1]))
        np.testing.assert_allclose(found, np.take_along_axis(expected, each[..., None], 1), atol=2e-6)


def test_few_rows_never_make_a_gram_matrix_and_many_do():
    a, b = pyramid(4), pyramid(5)
    few, many = (jax.jit(lambda a, b, n=n: hypercolumns.similarity(a, b, SIDE, n))(a, b) for n in (1, None))
    assert [x.shape for x in few.maps] == [x.shape for x in a]
    # The finest level has as many cells as there are rows: its products are made row by row.
    assert [x.shape for x in many.maps] == [(2, 2, 2, 4), (2, 4, 4, 16), a[2].shape]
    read = jax.jit(hypercolumns.rows_of)
    for prepared in (few, many):
        found = read(prepared, jnp.array([9, 0]))
        np.testing.assert_allclose(found, reference_cosine(a, b, SIDE)[:, [9, 0]], atol=2e-6)


def test_a_hypercolumn_of_zeros_has_cosine_zero_and_finite_gradients():
    a, b = pyramid(7), pyramid(8)
    empty = tuple(jnp.zeros_like(x) for x in a)
    total = lambda a, b: jnp.sum(cosine(a, b, SIDE))
    value, slopes = jax.jit(jax.value_and_grad(total, (0, 1)))(empty, b)
    assert value == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


def test_gradients_are_those_of_hypercolumns():
    a, b = pyramid(9), pyramid(10)
    target = jnp.asarray(np.random.default_rng(11).normal(size=(2, 64, 64)), jnp.float32)

    def naive(a, b):
        x, y = (materialise(m, SIDE).reshape(2, 64, -1) for m in (a, b))
        x, y = (m / jnp.linalg.norm(m, axis=-1, keepdims=True) for m in (x, y))
        return jnp.sum(jnp.einsum("buc,bvc->buv", x, y, precision="highest") * target)

    own = lambda a, b: jnp.sum(cosine(a, b, SIDE) * target)
    rows = jnp.arange(64)
    by_rows = lambda a, b: jnp.sum(cosine_rows(a, b, SIDE, rows) * target)
    want = jax.tree.leaves(jax.jit(jax.grad(naive, (0, 1)))(a, b))
    for function in (own, by_rows):
        for found, expected in zip(jax.tree.leaves(jax.jit(jax.grad(function, (0, 1)))(a, b)), want, strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_convolution_of_hypercolumns_is_a_sum_of_those_of_levels():
    maps = pyramid(12, positive=False)
    kernel = np.random.default_rng(13).normal(size=(sum(SIZES[1]), 4)).astype(np.float32)
    parts = jnp.split(jnp.asarray(kernel), np.cumsum(SIZES[1])[:-1])
    np.testing.assert_allclose(hypercolumns.linear(maps, parts, 9), reference(maps, 9) @ kernel, atol=1e-4)
    with pytest.raises(UserError, match=r"take \[7, 6, 5\] input channels"):
        hypercolumns.linear(maps, parts[::-1], 9)


def test_low_precision_maps_are_summed_in_float32():
    a, b = (tuple(x.astype(jnp.bfloat16) for x in pyramid(seed)) for seed in (14, 15))
    found = cosine(a, b, SIDE)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, reference_cosine(a, b, SIDE), atol=2e-6)
    rows = cosine_rows(a, b, SIDE, jnp.arange(5))
    np.testing.assert_allclose(rows, reference_cosine(a, b, SIDE)[:, :5], atol=2e-6)


def test_pyramids_that_do_not_fit_are_refused():
    a = pyramid(0)
    with pytest.raises(UserError, match="the same levels"):
        hypercolumns.cosine(a, a[::-1], SIDE)
    with pytest.raises(UserError, match=r"\[B,h,w,C\]"):
        hypercolumns.materialise((a[0][0],), SIDE)
    with pytest.raises(UserError, match="one or more"):
        hypercolumns.squared_norms((), SIDE)
