"""Counted work, beside XLA's own count and products worked out by hand."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax import devices
from uld_jax.plan import arithmetic
from uld_jax.plan.arithmetic import Work


def work(f, *shapes, dtype=jnp.float32):
    return arithmetic.count(jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct(s, dtype) for s in shapes)).jaxpr)


def test_doctests():
    result = doctest.testmod(arithmetic)
    assert result.attempted >= 2
    assert result.failed == 0


NUMBERS = ("NHWC", "HWIO", "NHWC")


def convolution(x, k, **options):
    return jax.lax.conv_general_dilated(
        x, k, dimension_numbers=NUMBERS, **{"window_strides": (1, 1), "padding": "VALID"} | options
    )


@pytest.mark.parametrize(
    ("f", "shapes"),
    [
        (lambda x, y: jnp.einsum("bij,bjk->bik", x, y), [(3, 5, 7), (3, 7, 11)]),
        (convolution, [(2, 9, 8, 6), (3, 2, 6, 10)]),
        (lambda x, k: convolution(x, k, window_strides=(2, 2)), [(2, 9, 9, 6), (3, 3, 6, 10)]),
        (lambda x, k: convolution(x, k, feature_group_count=3), [(2, 9, 8, 6), (3, 3, 2, 12)]),
    ],
)
def test_work_is_that_of_xla(f, shapes):
    compiled = jax.jit(f).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()
    assert work(f, *shapes).flops == pytest.approx(compiled.cost_analysis()["flops"])


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_have_the_work_of_the_value(stride):
    shapes = [(2, 9, 9, 6), (3, 3, 6, 10)]
    forward = lambda x, k: jnp.sum(convolution(x, k, window_strides=(stride, stride)) ** 2)
    value = work(forward, *shapes).flops
    of_kernel = work(jax.grad(forward, 1), *shapes).flops
    assert of_kernel == pytest.approx(2 * value)
    of_images = work(jax.grad(forward, 0), *shapes).flops  # more: the border is padded with zeros that count
    assert 2 * value <= of_images < 4 * value


def test_loops_branches_and_rates():
    product = lambda x: x @ x
    assert work(lambda x: jax.lax.scan(lambda c, _: (product(c), None), x, None, length=5)[0], (4, 4)).flops == 5 * 128
    branch = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: product(product(x)), product, x)
    assert work(branch, (4, 4)).flops == 2 * 128
    endless = work(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 1, product, x), (4, 4))
    assert endless == Work(single=128.0, endless=1)
    assert work(product, (4, 4), dtype=jnp.bfloat16) == Work(half=128.0)
    assert work(lambda x: jnp.matmul(x, x, precision="highest"), (4, 4)) == Work(exact=128.0)
    inside = work(jax.jit(jax.checkpoint(lambda x: jnp.sum(product(x)))), (4, 4))
    assert inside.flops == 128


def test_seconds_are_work_over_the_peak_of_all_devices():
    sheet = devices.sheet("TPU v5 lite")
    done = Work(half=197e12, single=197e12, exact=197e12 / 6)
    np.testing.assert_allclose(done.seconds(sheet, 4), 3 / 4)
