import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uld_jax.errors import UserError
from uld_jax.models import norms


def test_examples():
    result = doctest.testmod(norms)
    assert result.attempted >= 5
    assert result.failed == 0


def by_hand(x, scale, bias, dy, groups, epsilon):
    """The normalised numbers, their means and variances, and the gradients, one group of one part at a time."""
    y, dx, d_scale, d_bias = np.empty_like(x), np.empty_like(x), np.zeros_like(scale), np.zeros_like(bias)
    mean, var = np.empty((len(x), groups)), np.empty((len(x), groups))
    of = np.arange(x.shape[2]) * groups // x.shape[2]
    for a in range(len(x)):
        for g in range(groups):
            at = of == g
            part, slope = x[a][:, at], dy[a][:, at] * scale[at]
            mean[a, g], var[a, g] = part.mean(), part.var()
            spread = np.sqrt(var[a, g] + epsilon)
            unit = (part - mean[a, g]) / spread
            y[a][:, at] = unit * scale[at] + bias[at]
            # d unit_i / d part_j = (1_ij - 1 / n - unit_i unit_j / n) / spread, a whole matrix.
            n = part.size
            matrix = (np.eye(n) - 1 / n - np.outer(unit, unit) / n) / spread
            dx[a][:, at] = (matrix @ slope.ravel()).reshape(part.shape)
            d_scale[at] += (dy[a][:, at] * unit).sum(0)
            d_bias[at] += dy[a][:, at].sum(0)
    return (y, mean, var), (dx, d_scale, d_bias)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("shape", "groups"), [((1, 40, 5), 5), ((3, 20, 12), 4), ((2, 7, 6), 1), ((4, 1, 6), 2)])
def test_values_and_gradients_equal_numpy(shape, groups, exact):
    rng = np.random.default_rng(sum(shape))
    x, dy = 1 + rng.normal(size=shape), rng.normal(size=shape)
    x[0, :, : shape[2] // groups] = 3.0  # a group without spread
    scale, bias = rng.normal(size=(2, shape[2]))
    kinds = groups, 0.1, exact

    def run(x, scale, bias, dy):
        found, pull = jax.vjp(lambda *a: norms.normalised(*a, *kinds), x, scale, bias)
        return found, pull((dy, jnp.ones_like(found[1]), jnp.ones_like(found[2])))  # the last two have no gradient

    found = jax.jit(run)(*(a.astype(np.float32) for a in (x, scale, bias, dy)))
    want = by_hand(x, scale, bias, dy, *kinds[:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, want)


def test_sums_are_products_on_cpu_alone():
    shape = jax.ShapeDtypeStruct((2, 30, 8), np.float32)
    program = jax.jit(norms._sums).trace(shape)
    for device, product in (("cpu", True), ("tpu", False), ("cuda", False)):
        text = program.lower(lowering_platforms=(device,)).as_text()
        assert ("dot_general" in text) == product
        assert ("stablehlo.reduce" in text) != product


def test_half_precision_is_summed_in_single():
    x = jnp.asarray(5 + np.random.default_rng(0).normal(size=(2, 64, 64, 4)), jnp.bfloat16)
    want = np.asarray(x, np.float64)
    for module, axes in ((norms.GroupNorm(4), (1, 2)), (norms.BatchNorm(epsilon=1e-3), (0, 1, 2))):
        module = module.clone(dtype=jnp.bfloat16)
        variables = module.init(jax.random.key(0), x)
        found = module.apply(variables, x, mutable="batch_stats")[0]
        assert found.dtype == jnp.bfloat16
        spread = np.sqrt(want.var(axes, keepdims=True) + module.epsilon)
        np.testing.assert_allclose(
            np.asarray(found, np.float64), (want - want.mean(axes, keepdims=True)) / spread, atol=0.02
        )


def test_running_statistics_are_used_and_left():
    x = np.random.default_rng(1).normal(size=(6, 5, 3)).astype(np.float32)
    stats = {"mean": jnp.asarray([1.0, 2.0, 3.0]), "var": jnp.asarray([0.5, 1.0, 2.0])}
    params = {"scale": jnp.asarray([2.0, 1.0, -1.0]), "bias": jnp.asarray([0.0, 1.0, 2.0])}
    norm = norms.BatchNorm(use_running_average=True)
    found, updated = norm.apply({"params": params, "batch_stats": stats}, x, mutable="batch_stats")
    want = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(found, want, atol=1e-6)
    assert all((updated["batch_stats"][name] == stats[name]).all() for name in stats)


def test_parts_must_fit():
    with pytest.raises(UserError, match="5 images do not divide into 2 groups"):
        norms.BatchNorm(parts=2).init(jax.random.key(0), jnp.zeros((5, 3)))
