"""The work of a traced program's products and convolutions, by the rate at which a device computes them."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from uld_jax.devices import Sheet

_ONE_PASS = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))


class Work(NamedTuple):
    """FLOPs of all devices together; a multiplication and an addition are two.

    Attributes:
      half: of products of bfloat16 or float16.
      single: of float32 at the default precision.
      exact: of float32 or float64 at a higher precision.
      endless: number of loops whose number of turns is found only when they run; they count as one turn.
    """

    half: float = 0.0
    single: float = 0.0
    exact: float = 0.0
    endless: int = 0

    def plus(self, other: "Work", times: int = 1) -> "Work":
        """Add other work, done so many times."""
        *flops, endless = other
        return Work(*(a + times * b for a, b in zip(self[:3], flops)), self.endless + endless)

    @property
    def flops(self) -> float:
        """All of it."""
        return self.half + self.single + self.exact

    def seconds(self, sheet: Sheet, devices: int) -> float:
        """Return the least time of the work, spread evenly over so many devices at their peak."""
        return (self.half / sheet.half + self.single / sheet.single + self.exact / sheet.exact) / devices


def count(jaxpr: Any) -> Work:
    """Count the work of a jaxpr (`jax.stages.Traced.jaxpr.jaxpr`). Of the branches of a condition the largest counts.

    >>> x = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    >>> count(jax.make_jaxpr(lambda x: x @ x.T)(x).jaxpr)
    Work(half=0.0, single=256.0, exact=0.0, endless=0)
    """
    total = Work()
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            flops = _product(equation) if name == "dot_general" else _convolution(equation)
            total = total.plus(Work(**{_rate(equation): flops}))
            continue
        inner = [count(part) for part in _inner(params)]
        if name == "cond":
            total = total.plus(max(inner, key=lambda work: work.flops, default=Work()))
            continue
        times = params.get("length", 1) if name == "scan" else 1
        for work in inner:
            total = total.plus(work, times)
        total = total._replace(endless=total.endless + (name == "while"))
    return total


def _inner(params):
    """The jaxprs in an equation's parameters."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one


def _product(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation) -> float:
    params, kernel = equation.params, equation.invars[1].aval.shape
    numbers = params["dimension_numbers"].rhs_spec  # output features, input features, sides
    depth = kernel[numbers[1]] * math.prod(kernel[axis] for axis in numbers[2:])
    # Zeros between the inputs, as in a gradient of a strided convolution, and other groups need no work.
    zeros = math.prod(params["lhs_dilation"]) * params["batch_group_count"]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth / zeros


def _rate(equation) -> str:
    dtype = jnp.result_type(*(variable.aval.dtype for variable in equation.invars[:2]))
    if dtype in _ONE_PASS:
        return "half"
    precision = equation.params.get("precision")
    precision = precision if isinstance(precision, tuple) else (precision,)
    higher = any(one in (jax.lax.Precision.HIGH, jax.lax.Precision.HIGHEST) for one in precision)
    return "exact" if higher or dtype == jnp.dtype("float64") else "single"
