"""Seconds that a program will run, estimated from what it computes: never from a clock, as the same run must always be
compiled to the same bits."""

import math
from collections.abc import Iterator

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# What a core of today does when XLA has fused what it can. Measured: PPO with a GRU, S5 and attention, meta-RL and brax
# take 0.75 to 1.9 of the estimate. Where a C++ kernel does most it is too high (Mamba takes 0.3 of it), or a branch is
# seldom taken.
ELEMENTS_PER_SECOND = 5e9
FLOPS_PER_SECOND = 1e11
EQUATIONS_PER_SECOND = 5e7


def seconds(program: Jaxpr) -> float:
    """Estimated seconds of `program` on a CPU. What is called outside of XLA counts as nothing, and of branches the
    longest."""
    return sum(map(_seconds, program.eqns), 0.0)


def _seconds(equation: JaxprEqn) -> float:
    name, parameters = equation.primitive.name, equation.params
    inner = [seconds(program) for program in _programs(equation)]
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
    spent = 2 * products / FLOPS_PER_SECOND if products else size / ELEMENTS_PER_SECOND
    return spent + 1 / EQUATIONS_PER_SECOND


def _programs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The programs that an equation runs: bodies of loops, branches, functions."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part
