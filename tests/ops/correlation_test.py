"""Correlations of two maps, their matches, warps and losses, against NumPy one cell at a time and by hand."""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.errors import UserError
from uld_jax.ops import coordinates, correlation

A, B = (2, 3, 4), (2, 4, 5)  # batch, rows and columns of the two maps


# Jitted, because a program is compiled faster than its operations are one by one.
correlate, swap, carry_points = map(jax.jit, (correlation.correlate, correlation.swap, correlation.carry_points))
matches, expected_matches = map(jax.jit, (correlation.matches, correlation.expected_matches))
warp_maps = jax.jit(correlation.warp_maps, static_argnames="mode")
weak_score, weak_loss = map(jax.jit, (correlation.weak_score, correlation.weak_loss))
grid_cross_entropy = jax.jit(correlation.grid_cross_entropy)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


@functools.cache
def pair(seed=0):
    """A correlation whose largest entries stand out, and maps of b."""
    return 3 * draw(seed, *A, *B[1:]), draw(seed + 1, *B, 6)


def each(correlation):
    """Yield (image, row, column, the correlations [h',w'] of that cell of a) in float64."""
    for b, i, j in np.ndindex(correlation.shape[:3]):
        yield b, i, j, np.asarray(correlation[b, i, j], np.float64)


def swapped(c):
    return np.asarray(c).transpose(0, 3, 4, 1, 2)


def test_examples():
    found = doctest.testmod(correlation)
    assert found.attempted >= 13
    assert found.failed == 0


def test_cosines_and_their_types():
    a, b = draw(1, *A, 7), draw(2, *B, 7)
    a[0, 0, 0] = 0  # a feature of zeros
    found = correlate(a, b)
    lengths = [np.sqrt((x.astype(np.float64) ** 2).sum(-1) + 1e-6) for x in (a, b)]
    for p, i, j, k, m in np.ndindex(found.shape):
        want = a[p, i, j].astype(np.float64) @ b[p, k, m] / lengths[0][p, i, j] / lengths[1][p, k, m]
        assert abs(found[p, i, j, k, m] - want) < 1e-6
    low = correlate(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))
    assert low.dtype == np.float32
    np.testing.assert_allclose(low, found, atol=0.01)
    slope = jax.jit(jax.grad(lambda a: jnp.sum(correlate(a, b) ** 2)))(a)
    assert np.isfinite(slope).all()


def test_a_map_with_itself_matches_every_cell_to_itself():
    a = draw(3, 1, 4, 5, 8)
    c = correlate(a, a)
    np.testing.assert_allclose(np.einsum("bijij->bij", c), 1, atol=1e-6)
    grid = coordinates.pixel_grid(4, 5)[None]
    np.testing.assert_array_equal(matches(c), grid)
    np.testing.assert_array_equal(matches(swap(c)), grid)
    # With matches to itself, a map equals its warp: C3's L_equiv is 0.
    maps = draw(4, 1, 4, 5, 3)
    np.testing.assert_array_equal(warp_maps(c, maps), maps)


def test_mutual_matching_equals_the_formula_and_knows_no_order():
    c = np.abs(pair()[0])
    found = jax.jit(correlation.mutual_matching)(c)
    for b, i, j, row in each(c):
        of_a = row / (row.max() + 1e-5)
        of_b = row / (c[b].max((0, 1)) + 1e-5)
        np.testing.assert_allclose(found[b, i, j], row * of_a * of_b, rtol=1e-5)
    # The largest of all stays, but for the eps.
    np.testing.assert_allclose(np.max(found, (1, 2, 3, 4)), c.max((1, 2, 3, 4)), rtol=1e-4)
    np.testing.assert_array_equal(jax.jit(correlation.mutual_matching)(swapped(c)), swapped(found))


def test_scores_of_both_directions():
    c, _ = pair()
    found = jax.jit(correlation.scores)(c)
    for b, i, j, row in each(c):
        np.testing.assert_allclose(found.in_b[b, i, j], softmax(row), rtol=1e-5)
    for b, k, m, row in each(swapped(c)):
        np.testing.assert_allclose(found.in_a[b, :, :, k, m], softmax(row), rtol=1e-5)


def test_matches_are_x_then_y():
    c, _ = pair()
    best, mean = jax.jit(lambda c: (matches(c), expected_matches(c)))(c)
    assert best.dtype == mean.dtype == np.float32
    for b, i, j, row in each(c):
        k, m = np.unravel_index(row.argmax(), row.shape)
        assert best[b, i, j].tolist() == [m, k]
        p = softmax(row)
        x, y = (p.sum(0) * np.arange(5)).sum(), (p.sum(1) * np.arange(4)).sum()
        np.testing.assert_allclose(mean[b, i, j], [x, y], atol=1e-5)
    assert (jax.grad(lambda c: jnp.sum(matches(c)))(c) == 0).all()


def bilinear(image, x, y):
    """One reading of [H,W,K] between its cells."""
    left, top = min(int(x), image.shape[1] - 2), min(int(y), image.shape[0] - 2)
    right, down = x - left, y - top
    upper = image[top, left] * (1 - right) + image[top, left + 1] * right
    return upper * (1 - down) + (image[top + 1, left] * (1 - right) + image[top + 1, left + 1] * right) * down


@functools.cache
def warped(mode):
    """Values of a warp, and the gradients of a weighted sum of them."""
    c, maps = pair()
    weight = draw(9, *A, 6)

    def total(c, maps):
        found = warp_maps(c, maps, mode)
        return jnp.sum(weight * found), found

    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(c, maps)


def test_warps_read_the_other_map_at_the_match():
    c, maps = pair()
    hard, soft, between, straight = (warped(mode)[0][1] for mode in correlation.MODES)
    assert hard.dtype == np.float32
    for b, i, j, row in each(c):
        p, image = softmax(row), maps[b].astype(np.float64)
        k, m = np.unravel_index(row.argmax(), row.shape)
        np.testing.assert_array_equal(hard[b, i, j], maps[b, k, m])
        np.testing.assert_allclose(soft[b, i, j], np.einsum("km,kmc->c", p, image), atol=1e-5)
        x, y = (p.sum(0) * np.arange(5)).sum(), (p.sum(1) * np.arange(4)).sum()
        np.testing.assert_allclose(between[b, i, j], bilinear(image, x, y), atol=1e-5)
    np.testing.assert_array_equal(straight, hard)


def test_gradients_of_the_modes():
    slopes = {mode: warped(mode)[1] for mode in correlation.MODES}
    assert (slopes["hard"][0] == 0).all()
    assert np.abs(slopes["hard"][1]).max() > 0.1
    for found, want in zip(slopes["st"], slopes["soft"], strict=True):
        np.testing.assert_array_equal(found, want)
        assert np.abs(want).max() > 0.01
    assert np.abs(slopes["softargmax"][0]).max() > 0.01
    # By hand: of sum_u w_u sum_v p_uv m_v, the slope of c_uv is p_uv w_u (m_v - sum p_uv m_v).
    (c, maps), weight = pair(), draw(9, *A, 6)
    for b, i, j, row in each(c):
        p, value = softmax(row), maps[b].astype(np.float64) @ weight[b, i, j]
        np.testing.assert_allclose(slopes["soft"][0][b, i, j], p * (value - (p * value).sum()), atol=1e-5)


@pytest.mark.parametrize("mode", correlation.MODES)
def test_the_direction_of_a_warp(mode):
    """Worked by hand. b is a moved by (+1, 0): what a has at column x, b has at x + 1.

        a: 1 2 3    maps of a at columns 0, 1, 2; column 2 leaves the picture
        b: 9 1 2    maps of b; column 0 shows something new

    T(x) = x + 1 takes a's columns 0 and 1 to b's 1 and 2, so that b's maps become 1 and 2 there. Back, b's columns 1
    and 2 have their matches at a's 0 and 1. Cells without a true match are left out.
    """
    strong = jnp.zeros((1, 1, 3, 1, 3)).at[0, 0, [0, 1], 0, [1, 2]].set(50.0)
    row = lambda *values: jnp.array(values).reshape(1, 1, 3, 1)
    at_a = warp_maps(strong, row(9.0, 1.0, 2.0), mode)
    np.testing.assert_allclose(at_a.ravel()[:2], [1, 2], atol=1e-5)
    at_b = warp_maps(swap(strong), row(1.0, 2.0, 3.0), mode)
    np.testing.assert_allclose(at_b.ravel()[1:], [1, 2], atol=1e-5)
    # Points go forwards along the same T, and back along that of the other direction.
    point = jnp.array([[[0.5, 0.0]]])
    there = carry_points(matches(strong), point)
    assert there.tolist() == [[[1.5, 0.0]]]
    back = carry_points(matches(swap(strong)), there)
    assert back.tolist() == [[[0.5, 0.0]]]


@pytest.mark.parametrize("mode", correlation.MODES)
def test_a_known_translation_is_found(mode):
    """b shows the scene 2 cells farther right and 1 farther down in a: T(x, y) = (x - 2, y - 1)."""
    scene = draw(5, 1, 9, 10, 32)
    a, b = scene[:, :7, :7], scene[:, 1:8, 2:9]
    c = 50 * np.asarray(correlate(a, b))
    inner = (slice(None), slice(1, 7), slice(2, 7))  # cells of a that b shows too
    want = coordinates.pixel_grid(7, 7)[None][inner] - [2, 1]
    np.testing.assert_array_equal(matches(c)[inner], want)
    np.testing.assert_allclose(expected_matches(c)[inner], want, atol=1e-4)
    maps = draw(6, 1, 9, 10, 3)
    found = warp_maps(c, maps[:, 1:8, 2:9], mode)
    np.testing.assert_allclose(found[inner], maps[:, :7, :7][inner], atol=1e-3)


def test_points_go_as_on_ncnets_grid():
    """NC-Net's way in NumPy: points and matches on a grid of -1..1, weights of areas, pixels at the end."""
    rows, columns, size_b, size_a = 6, 5, (300, 400), (250, 333)
    c = draw(7, 1, 4, 7, rows, columns)
    pixels = np.random.default_rng(8).uniform(0, 1, (40, 2)) * [399, 299]
    pixels[:4] = [[0, 0], [399, 299], [0, 299], [399, 0]]
    to_unit = lambda x, length: (x - (length - 1) / 2) * 2 / (length - 1)
    from_unit = lambda x, length: x * (length - 1) / 2 + (length - 1) / 2
    lines = np.linspace(-1, 1, columns), np.linspace(-1, 1, rows)
    match = c[0].reshape(28, rows, columns).argmax(0)
    q = np.stack([np.linspace(-1, 1, 7)[match % 7], np.linspace(-1, 1, 4)[match // 7]], -1)
    want = []
    for pixel in pixels:
        point = [to_unit(v, length) for v, length in zip(pixel, size_b[::-1], strict=True)]
        j, i = (max((line < v).sum() - 1, 0) for line, v in zip(lines, point, strict=True))
        total, whole = 0, 0
        for di, dj in np.ndindex(2, 2):
            # A corner's weight is the area between the point and the corner across.
            area = abs(point[0] - lines[0][j + 1 - dj]) * abs(point[1] - lines[1][i + 1 - di])
            total, whole = total + area * q[i + di, j + dj], whole + area
        want.append([from_unit(v, length) for v, length in zip(total / whole, size_a[::-1], strict=True)])
    field = matches(swap(c))
    cells = coordinates.rescale_corners(pixels.astype(np.float32), size_b, (rows, columns))
    found = coordinates.rescale_corners(carry_points(field, cells[None])[0], (4, 7), size_a)
    np.testing.assert_allclose(found, want, atol=1e-3)


def score_reference(c):
    """[B], one cell at a time."""
    found = []
    for both in zip(c, swapped(c), strict=True):
        sides = [np.mean([softmax(row).max() for _, _, _, row in each(side[None])]) for side in both]
        found.append(np.mean(sides))
    return np.array(found)


def test_weak_score_and_loss():
    c, other = pair(0)[0], pair(20)[0]
    np.testing.assert_allclose(weak_score(c), score_reference(c), rtol=1e-5)
    np.testing.assert_allclose(weak_score(swapped(c)), weak_score(c), rtol=1e-6)
    np.testing.assert_allclose(weak_score(np.zeros_like(c)), (1 / 12 + 1 / 20) / 2, rtol=1e-6)
    np.testing.assert_allclose(weak_score(100 * np.einsum("ik,jm->ijkm", np.eye(4), np.eye(4))[None]), 1, rtol=1e-6)
    positive, negative = score_reference(c), score_reference(other)
    both = weak_score(c), weak_score(other)
    np.testing.assert_allclose(weak_loss(*both), negative.mean() - positive.mean(), rtol=1e-4)
    one = weak_loss(*both, jnp.array([False, True]))
    np.testing.assert_allclose(one, negative[1] - positive.mean(), rtol=1e-4)
    np.testing.assert_allclose(weak_loss(*both, jnp.zeros(2, bool)), -positive.mean(), rtol=1e-5)


def test_the_gradient_of_the_weak_loss_sharpens_pairs():
    c, other = pair(0)[0], pair(20)[0]

    def loss(c, other, counts):
        return weak_loss(weak_score(c), weak_score(other), counts)

    slopes = jax.jit(jax.grad(loss, (0, 1)))(c, other, jnp.array([True, False]))
    assert (slopes[1][1] == 0).all()  # the pair that does not count
    assert np.abs(slopes[1][0]).max() > 1e-4
    assert loss(c - 10 * slopes[0], other, None) < loss(c, other, None)


def cross_entropy_reference(c, places):
    """One direction."""
    total = []
    for b, i, j, row in each(c):
        x, y = places[b, i, j]
        k, m = np.floor(y + 0.5), np.floor(x + 0.5)
        if 0 <= k < row.shape[0] and 0 <= m < row.shape[1]:
            total.append(-np.log(softmax(row)[int(k), int(m)]))
    return np.mean(total) if total else 0.0


def test_grid_cross_entropy():
    c, _ = pair()
    rng = np.random.default_rng(11)
    in_b = rng.uniform(-2, 6, (*A, 2)).astype(np.float32)
    in_a = rng.uniform(-2, 5, (*B, 2)).astype(np.float32)
    in_b[0, 0, 0], in_b[0, 0, 1], in_b[0, 0, 2] = (-0.5, 3.4), (4.49, -0.5), (4.5, 1.0)  # the borders of b, and beyond
    in_a[1, 0, 0] = np.nan
    want = cross_entropy_reference(c, in_b), cross_entropy_reference(swapped(c), in_a)
    assert min(want) > 1
    np.testing.assert_allclose(grid_cross_entropy(c, in_b, in_a), np.mean(want), rtol=1e-5)
    np.testing.assert_allclose(grid_cross_entropy(swapped(c), in_a, in_b), np.mean(want), rtol=1e-5)
    slope = jax.jit(jax.grad(lambda c: grid_cross_entropy(c, in_b * np.nan, in_a * np.nan)))(c)
    assert (slope == 0).all()  # no cell counts, and nothing is NaN
    # Descent finds the places.
    step = jax.jit(jax.grad(grid_cross_entropy))
    far = np.full_like(in_a, -9)
    for _ in range(30):
        c = c - 100 * step(c, in_b, far)
    inside = ((in_b >= -0.5) & (in_b < [4.5, 3.5])).all(-1)
    np.testing.assert_array_equal(matches(c)[inside], np.floor(in_b + 0.5)[inside])


def test_what_does_not_fit_is_refused():
    c, maps = pair()
    with pytest.raises(UserError, match=r"correlate got maps \(2, 3, 4, 7\) and \(2, 4, 5, 6\)"):
        correlation.correlate(np.zeros((*A, 7)), np.zeros((*B, 6)))
    with pytest.raises(UserError, match="mode is 'nearest'; use one of hard, soft, softargmax, st"):
        correlation.warp_maps(c, maps, "nearest")
    with pytest.raises(UserError, match=r"give \[B,h,w,h',w'\] and \[B,h',w',K\]"):
        correlation.warp_maps(c, maps[:, :3])
    with pytest.raises(UserError, match=r"places \(2, 4, 5, 2\) and \(2, 3, 4, 2\)"):
        correlation.grid_cross_entropy(c, np.zeros((*B, 2)), np.zeros((*A, 2)))
