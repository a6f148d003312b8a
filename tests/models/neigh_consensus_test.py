"""Filters over pairs of cells against a 4-D convolution in NumPy, one tap at a time."""

import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.errors import UserError
from uld_jax.models import layers, neigh_consensus
from uld_jax.models.neigh_consensus import NeighConsensus

SIDES = (4, 3, 5, 6)  # rows and columns of a, then of b


def test_examples():
    result = doctest.testmod(neigh_consensus)
    assert result.attempted >= 9
    assert result.failed == 0


def brute(x, kernel):
    """The definition: every output cell is the sum of its neighbours, zeros around, times [p,q,r,s,C,O]."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    taps = kernel.shape[:4]
    padded = np.pad(x, [(0, 0), *((tap // 2, tap // 2) for tap in taps), (0, 0)])
    out = 0
    for tap in np.ndindex(*taps):
        out = out + padded[:, *(slice(t, t + side) for t, side in zip(tap, x.shape[1:5]))] @ kernel[tap]
    return out


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("side", "inputs", "outputs"), [(5, 1, 3), (3, 2, 2), (5, 4, 2)])
def test_filters_equal_the_definition(side, inputs, outputs):
    x, kernel = draw(0, 2, *SIDES, inputs), draw(1, *[side] * 4, inputs, outputs)
    close(jax.jit(neigh_consensus.convolve)(x, kernel), brute(x, kernel))


@pytest.mark.parametrize(("side", "inputs", "middle", "outputs"), [(5, 1, 4, 2), (3, 3, 2, 1)])
def test_a_separable_filter_is_a_kernel_of_some_rank(side, inputs, middle, outputs):
    x = draw(0, 2, *SIDES, inputs)
    over_b, over_a = draw(1, 1, side, side, inputs, middle), draw(2, side, side, 1, middle, outputs)
    found = jax.jit(neigh_consensus.convolve_separable)(x, over_b, over_a)
    # One filter after the other, each as the definition has it.
    close(found, brute(brute(x, over_b[None]), over_a[:, :, :, None]))
    # The same as one filter, whose kernel is a matrix of rank `middle` for each pair of channels.
    kernel = np.einsum("klcm,ijmo->ijklco", over_b[0], over_a[:, :, 0])
    close(found, brute(x, kernel))
    ranks = [np.linalg.matrix_rank(kernel[..., c, o].reshape(side**2, -1)) for c, o in np.ndindex(inputs, outputs)]
    assert ranks == [middle] * inputs * outputs


@functools.cache
def network(form, symmetric=True, **options):
    return NeighConsensus((3, 2, 1), 3, form, symmetric, **options)


@functools.cache
def parameters(form):
    shapes = jax.eval_shape(network(form).init, jax.random.key(0), jnp.zeros((1, *SIDES)))
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) / 3, shapes)


@functools.cache
def filtered(form, symmetric, swapped=False):
    c = draw(6, 2, *SIDES)
    c = c.transpose(0, 3, 4, 1, 2) if swapped else c
    found = jax.jit(network(form, symmetric).apply)(parameters(form), c)
    return np.asarray(found.transpose(0, 3, 4, 1, 2) if swapped else found)


@pytest.mark.parametrize("form", neigh_consensus.FORMS)
def test_layers_follow_one_another(form):
    y = draw(6, 2, *SIDES)[..., None]
    for number in (0, 2, 4):
        layer = parameters(form)["params"][f"conv_{number}"]
        if form == "full":
            y = brute(y, layer["kernel"])
        else:
            y = brute(brute(y, layer["over_b"][None]), layer["over_a"][:, :, :, None])
        y = np.maximum(y + layer["bias"], 0)
    close(filtered(form, False), y[..., 0])
    assert 0.1 < (y > 0).mean() < 0.9  # the last ReLU does something, and not everything


@pytest.mark.parametrize("form", neigh_consensus.FORMS)
def test_the_symmetric_form_does_not_depend_on_the_order_of_the_images(form):
    close(filtered(form, True), filtered(form, False) + filtered(form, False, swapped=True))
    close(filtered(form, True, swapped=True), filtered(form, True))
    assert np.abs(filtered(form, False, swapped=True) - filtered(form, False)).max() > 0.1


def transposed(jaxpr):
    """Shapes of all arrays that a program transposes."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "transpose":
            yield equation.invars[0].aval.shape
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from transposed(inner)


@pytest.mark.parametrize("form", neigh_consensus.FORMS)
def test_no_map_is_transposed(form):
    """Neither the filters over a's cells nor the symmetric half move pairs in memory; full kernels are moved."""
    program = jax.make_jaxpr(network(form).apply)(parameters(form), draw(6, 2, *SIDES))
    shapes = list(transposed(program.jaxpr))
    assert len(shapes) == {"separable": 0, "full": 9}[form]  # of each layer one, and two for the symmetric half
    assert all(shape[:4] == (3, 3, 3, 3) for shape in shapes)
    assert list(transposed(jax.make_jaxpr(jnp.transpose)(np.zeros((2, 3))).jaxpr)) == [(2, 3)]


def test_types():
    c = np.abs(draw(6, 2, *SIDES))
    exact = filtered_in("float32", c)
    low = filtered_in("bfloat16", c)
    assert exact.dtype == low.dtype == np.float32  # the last layer is computed in float32
    assert 0 < np.abs(low - exact).max() < 0.05 * np.abs(exact).max()
    with jax.enable_x64(True):
        shape = jax.eval_shape(
            lambda c: network("full", **layers.precision("float64")).init_with_output(jax.random.key(0), c),
            c.astype(np.float64),
        )
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(shape)} == {"float64"}


def filtered_in(dtype, c):
    net = network("separable", **layers.precision(dtype), precision="highest")
    return np.asarray(jax.jit(net.apply)(parameters("separable"), c))


@pytest.mark.parametrize("form", neigh_consensus.FORMS)
def test_initialisation(form):
    """Kernels of variance 2 / fan_out (He et al. 2015), a bias in the last layer, a gradient for every parameter."""
    c = np.abs(draw(7, 1, 5, 5, 5, 5))
    net = NeighConsensus(form=form)

    def loss(variables):
        return jnp.sum(net.apply(variables, c))

    variables = jax.jit(net.init)(jax.random.key(1), c)
    for number, outputs in ((0, 16), (2, 16), (4, 1)):
        layer = variables["params"][f"conv_{number}"]
        assert layer["bias"].tolist() == [pytest.approx(0.01 if number == 4 else 0)] * outputs
        for kernel in (leaf for name, leaf in layer.items() if name != "bias"):
            fan = np.prod(kernel.shape[:-2]) * kernel.shape[-1]
            np.testing.assert_allclose(kernel.std(), (2 / fan) ** 0.5, rtol=5 / (2 * kernel.size) ** 0.5)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(variables)))


def test_a_separable_network_has_at_most_a_sixth_of_the_work():
    """By XLA's count for 16 x 16 cells of both images, forwards and without compiling a gradient."""
    c = jax.ShapeDtypeStruct((1, 16, 16, 16, 16), jnp.float32)
    flops = {}
    for form in neigh_consensus.FORMS:
        net = NeighConsensus(form=form)
        variables = jax.eval_shape(net.init, jax.random.key(0), c)
        flops[form] = jax.jit(net.apply).lower(variables, c).compile().cost_analysis()["flops"]
    assert flops["separable"] <= flops["full"] / 6
    # k^2 (C M + M O) multiplications and additions for each pair of cells and direction, less those with zeros around.
    whole = 2 * 2 * 25 * (1 * 16 + 16 * 16 + 2 * 16 * 16 + 16 + 1) * 16**4
    assert 0.8 * whole < flops["separable"] < whole


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        (dict(form="4d"), (1, 3, 3, 3, 3), "form is '4d'; use separable or full"),
        (dict(kernel=4), (1, 3, 3, 3, 3), "kernel is 4; use an odd number"),
        (dict(channels=(16, 2)), (1, 3, 3, 3, 3), r"channels is \(16, 2\); the last layer has 1"),
        (dict(), (1, 9, 9, 1), r"correlations of shape \(1, 9, 9, 1\); it takes \[B,h,w,h',w'\]"),
    ],
)
def test_bad_input_is_named(options, shape, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(NeighConsensus(**options).init, jax.random.key(0), jnp.zeros(shape))
