"""Seconds that a program will run, estimated from what it computes: never from a clock, as the same run must always be
compiled to the same bits."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# What a core of today does when XLA has fused what it can. Measured: PPO with a GRU, S5 and attention, meta-RL and brax
# take 0.75 to 1.9 of the estimate. Where a C++ kernel does most it is too high (Mamba takes 0.3 of it), or a branch is
# seldom taken.
ELEMENTS_PER_SECOND = 5e9
FLOPS_PER_SECOND = 1e11
EQUATIONS_PER_SECOND = 5e7


class Costs(NamedTuple):
    """What a multiplication and addition of a matrix product costs, a number that another equation makes, and an
    equation by itself."""

    product: float
    element: float
    equation: float = 0.0


SECONDS = Costs(2 / FLOPS_PER_SECOND, 1 / ELEMENTS_PER_SECOND, 1 / EQUATIONS_PER_SECOND)
ARITHMETIC = {
    "abs", "add", "cos", "cumsum", "div", "erf", "exp", "expm1", "log", "log1p", "logistic", "max", "min", "mul", "neg",
    "pow", "integer_pow", "reduce_max", "reduce_sum", "rsqrt", "sin", "sqrt", "square", "sub", "tanh",
}  # fmt: skip
"""Equations that compute with real numbers, in place of moving or comparing them."""


def seconds(program: Jaxpr) -> float:
    """Estimated seconds of `program` on a CPU. What is called outside of XLA counts as nothing, and of branches the
    longest."""
    return _cost(program, SECONDS)


def operations(program: Jaxpr) -> float:
    """Floating-point operations of `program`, as it is written: two for each multiplication and addition of a matrix
    product, one for each number that other arithmetic makes (of complex numbers too)."""
    return _cost(program, Costs(2, 1), ARITHMETIC)


def _cost(program: Jaxpr, costs: Costs, counted: set[str] | None = None) -> float:
    """The cost of all equations, or beside products of those `counted`."""
    return sum((_cost_of(equation, costs, counted) for equation in program.eqns), 0.0)


def _cost_of(equation: JaxprEqn, costs: Costs, counted: set[str] | None) -> float:
    name, parameters = equation.primitive.name, equation.params
    inner = [_cost(program, costs, counted) for program in _programs(equation)]
    if inner:
        return max(inner) if name == "cond" else sum(inner) * parameters.get("length", 1)
    # Tokens, which order calls to the host, have no shape.
    shapes = [getattr(x.aval, "shape", (0,)) for x in equation.invars]
    size = sum(math.prod(getattr(x.aval, "shape", (0,))) for x in equation.outvars)
    products = 0.0
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        products = size
        for axis in contracted:
            products *= shapes[0][axis]
    elif name == "conv_general_dilated":
        kernel, out_axis = shapes[1], parameters["dimension_numbers"].rhs_spec[0]
        products = size * math.prod(kernel) / max(kernel[out_axis], 1)
    elif counted is not None and name not in counted:
        size = 0
    return (products * costs.product if products else size * costs.element) + costs.equation


def _programs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The programs that an equation runs: bodies of loops, branches, functions."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part
