import doctest
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from uld_jax.errors import UserError
from uld_jax.ops import dense_matching, hypercolumns, keypoints

SIDE, WIDTH = 6, 4


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def student(seed, batch=3):
    return keypoints.l2_normalize(jnp.asarray(draw(seed, batch, SIDE, SIDE, WIDTH)))


def teacher(seed, batch=3):
    return tuple(jnp.asarray(np.maximum(draw(seed + n, batch, n, n, c), 0)) for n, c in ((2, 5), (3, 6), (6, 7)))


def naive(f, g, teacher_f, teacher_g, tau, teacher_tau):
    """The formulas of the paper on whole hypercolumns and N x N matrices."""

    def cosines(a, b):
        a, b = (x.reshape(len(x), SIDE * SIDE, -1) for x in (a, b))
        a, b = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
        return jnp.einsum("buc,bvc->buv", a, b, precision="highest")

    a, b = (hypercolumns.materialise(m, SIDE) for m in (teacher_f, teacher_g))
    p = jax.nn.softmax(cosines(a, b) / teacher_tau)
    log_q = jax.nn.log_softmax(cosines(f, g) / tau)
    entropy = -jnp.sum(p * jnp.log(p), -1)
    loss = jnp.mean(-jnp.sum(p * log_q, -1))
    return loss, (loss - jnp.mean(entropy), jnp.mean(jnp.exp(entropy)))


def test_examples():
    found = doctest.testmod(dense_matching)
    assert found.attempted >= 4
    assert found.failed == 0


@functools.cache
def aligned(block):
    def loss(f, g, teachers):
        found = dense_matching.similarity_alignment(f, g, *teachers, tau=0.2, teacher_tau=0.1, block=block)
        return found.loss, (found.divergence, found.perplexity)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(student(0), student(1), (teacher(2), teacher(9)))


@pytest.mark.parametrize("block", [0, 4])
def test_alignment_equals_the_formulas_in_value_and_gradient(block):
    reference = jax.jit(jax.value_and_grad(lambda f, g: naive(f, g, teacher(2), teacher(9), 0.2, 0.1), (0, 1), True))
    (loss, (divergence, perplexity)), slopes = reference(student(0), student(1))
    found, (of_f, of_g, of_teachers) = aligned(block)
    np.testing.assert_allclose(found[0], loss, rtol=1e-6)
    np.testing.assert_allclose(found[1], (divergence, perplexity), rtol=1e-5)
    assert 1 < perplexity < SIDE**2
    # A normalised feature may move along itself in ours, and not in the reference, which normalises it again.
    for got, want, x in zip((of_f, of_g), slopes, (student(0), student(1))):
        across = got - jnp.sum(got * x, -1, keepdims=True) * x
        np.testing.assert_allclose(across, want, atol=1e-6)
    assert all((x == 0).all() for x in jax.tree.leaves(of_teachers))


def test_blocks_and_all_rows_at_once_agree():
    (loss, others), slopes = aligned(0)
    (blocked, also), blocked_slopes = aligned(4)
    np.testing.assert_allclose(blocked, loss, rtol=1e-6)
    np.testing.assert_allclose(also, others, rtol=1e-5)
    for got, want in zip(blocked_slopes[:2], slopes[:2]):
        np.testing.assert_allclose(got, want, atol=1e-6)
        assert np.abs(want).max() > 1e-3  # or the test shows nothing


def test_gradient_is_the_difference_of_matches():
    """dL/ds_uv = (q_uv - p_uv) / N: the gradient with respect to f is that times g over tau."""
    p = jax.nn.softmax(hypercolumns.cosine(teacher(2), teacher(9), SIDE) / 0.1)
    f, g = (student(seed).reshape(3, SIDE**2, WIDTH) for seed in (0, 1))
    q = jax.nn.softmax(jnp.einsum("buc,bvc->buv", f, g, precision="highest") / 0.2)
    want = jnp.einsum("buv,bvc->buc", q - p, g, precision="highest") / 0.2 / (3 * SIDE**2)
    np.testing.assert_allclose(aligned(4)[1][0].reshape(want.shape), want, atol=1e-6)


def test_low_precision_maps_have_float32_matches():
    low = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
    align = jax.jit(functools.partial(dense_matching.similarity_alignment, block=6))
    given = low((student(0), student(1), teacher(2), teacher(9)))
    found, exact = align(*given), align(*jax.tree.map(lambda x: x.astype(jnp.float32), given))
    assert {x.dtype for x in found} == {jnp.dtype("float32")}
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_blocks_never_hold_all_matches():
    """No array of the compiled program has N x N numbers for an image, forwards or backwards."""
    cells = SIDE**2

    def shapes(block):
        loss = lambda f, g: dense_matching.similarity_alignment(f, g, teacher(2), teacher(9), block=block).loss
        text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(student(0), student(1)))
        return f"f32[3,{cells},{cells}]" in text, f"f32[3,4,{cells}]" in text

    assert shapes(0) == (True, False)
    assert shapes(4) == (False, True)


def equivariance_reference(f, g, truth, valid, stride, exponent, scale, exchange):
    """In float64, one image and one cell at a time."""
    f, g, truth = (np.asarray(x, np.float64) for x in (f, g, truth))
    if scale:
        f, g = (scale * x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (f, g))
    batch, height, width, _ = f.shape
    softmax = lambda x: np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    total = []
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                if not valid[b, i, j]:
                    continue
                x = f[b, i, j]
                if exchange:
                    x = np.einsum("hw,hwc->c", softmax(f[(b + 1) % batch] @ x), f[(b + 1) % batch])
                q = softmax(g[b] @ x)
                away = [
                    [
                        (stride * np.hypot(m - truth[b, i, j, 0], n - truth[b, i, j, 1])) ** exponent
                        for m in range(width)
                    ]
                    for n in range(height)
                ]
                total.append((q * away).sum())
    return np.mean(total)


@pytest.mark.parametrize(
    "options",
    [
        dict(stride=2.0, scale=2.0, exponent=0.5, exchange=False),
        dict(stride=1.0, scale=None, exponent=1.0, exchange=False),
        dict(stride=4.0, scale=2.0, exponent=0.5, exchange=True),
    ],
)
def test_equivariance_equals_brute_force_and_by_blocks(options):
    f, g = (jnp.asarray(draw(seed, 3, 4, 5, 3)) for seed in (20, 21))
    truth = jnp.asarray(np.random.default_rng(22).uniform(-1, 5, (3, 4, 5, 2)), jnp.float32)
    valid = np.random.default_rng(23).uniform(size=(3, 4, 5)) < 0.7
    value = {}
    for block in (0, 5):
        loss = lambda f, g, truth, block=block: dense_matching.equivariance(f, g, truth, valid, **options, block=block)
        value[block] = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(f, g, truth)
    np.testing.assert_allclose(value[0][0], equivariance_reference(f, g, truth, valid, **options), rtol=1e-5)
    np.testing.assert_allclose(value[5][0], value[0][0], rtol=1e-6)
    for got, want in zip(value[5][1], value[0][1]):
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.abs(value[0][1][0]).max() > 1e-4
    assert (np.asarray(value[0][1][2]) == 0).all()  # the truth is no parameter


def test_a_perfect_match_has_no_equivariance_loss_nor_nan():
    f = 1 + jnp.eye(12).reshape(1, 3, 4, 12)
    truth = jnp.asarray(np.stack(np.meshgrid(np.arange(4.0), np.arange(3.0)), -1)[None], jnp.float32)

    @jax.jit
    def both(f, truth, valid):
        loss = lambda f, truth: dense_matching.equivariance(f, f, truth, valid, scale=200.0)
        return jax.value_and_grad(loss, (0, 1))(f, truth)

    every = jnp.ones((1, 3, 4), bool)
    value, slopes = both(f, truth, every)
    assert value < 1e-6
    assert all(np.isfinite(x).all() for x in slopes)
    assert both(f, truth + jnp.array([1.0, 0.0]), every)[0] == pytest.approx(1.0, abs=1e-5)
    value, slopes = both(f, truth, ~every)
    assert value == 0
    assert all((x == 0).all() for x in slopes)


def test_exchange_reads_the_other_image():
    f, other = (jnp.asarray(draw(seed, 2, 3, 3, 4)) for seed in (30, 31))
    other = other[:, :2]
    flat, rest = f.reshape(2, 9, 4), other.reshape(2, 6, 4)
    want = jax.nn.softmax(jnp.einsum("buc,bvc->buv", flat, rest, precision="highest")) @ rest
    np.testing.assert_allclose(dense_matching.exchanged(f, other).reshape(2, 9, 4), want, atol=1e-5)


def test_what_does_not_fit_is_refused():
    f, g = student(0), student(1)
    with pytest.raises(UserError, match="does not divide 36 cells"):
        dense_matching.similarity_alignment(f, g, teacher(2), teacher(9), block=5)
    with pytest.raises(UserError, match=r"\[B,R,R,C\]"):
        dense_matching.similarity_alignment(f, g[:, :5], teacher(2), teacher(9))
    with pytest.raises(UserError, match=r"\[B,h,w,2\]"):
        dense_matching.equivariance(f, g, jnp.zeros((3, SIDE, SIDE)))


def sharded():
    """Runs in a process of its own with eight devices; prints what it found."""
    from tests import collectives
    from uld_jax import sharding

    mesh = sharding.make_mesh()
    given = student(0, 8), student(1, 8), teacher(2, 8), teacher(9, 8)
    loss = lambda f, g, *teachers: dense_matching.similarity_alignment(f, g, *teachers, block=6).loss
    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    split = jax.device_put(given, sharding.split(mesh))
    compiled = step.lower(*split).compile()
    differ = jax.tree.map(
        lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), step(*given), compiled(*split)
    )
    sent = collectives.list_collectives(compiled)
    print(json.dumps(dict(devices=mesh.size, differ=jax.tree.leaves(differ), sent=sent)))


@pytest.mark.slow
def test_eight_devices_equal_one_and_send_one_number():
    report = json.loads(tiny.run(__file__, devices=8).stdout.splitlines()[-1])
    assert report["devices"] == 8
    assert max(report["differ"]) < 1e-6
    assert [(kind, shape) for kind, _, shape in report["sent"]] == [("all-reduce", [])]


if __name__ == "__main__":
    sharded()
