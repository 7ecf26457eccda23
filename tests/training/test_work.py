"""The estimate of how long a program will run: what it counts, and that it depends on the program alone."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import io_callback

from engram.training.work import ELEMENTS_PER_SECOND, EQUATIONS_PER_SECOND, FLOPS_PER_SECOND, operations, seconds

EQUATION = 1 / EQUATIONS_PER_SECOND


def estimate(function, *shapes):
    return seconds(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).jaxpr)


def test_elements_and_products_are_counted():
    assert estimate(jnp.sin, (5, 7)) == pytest.approx(35 / ELEMENTS_PER_SECOND + EQUATION)
    assert estimate(jax.lax.dot, (2, 3), (3, 5)) == pytest.approx(2 * 2 * 3 * 5 / FLOPS_PER_SECOND + EQUATION)

    def batched(x, y):
        return jax.lax.dot_general(x, y, (((1, 3), (2, 1)), ((0,), (0,))))  # [b, i, m, j], [b, j, i] -> [b, m]

    assert estimate(batched, (4, 2, 3, 5), (4, 5, 2)) == pytest.approx(2 * 4 * 3 * 2 * 5 / FLOPS_PER_SECOND + EQUATION)


def test_convolutions_are_counted_by_their_products():
    def convolution(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    # 3 pictures of 9 x 9 become 4 x 4 with 6 channels, each from 3 x 3 x 2 numbers.
    products = 3 * 4 * 4 * 6 * 3 * 3 * 2
    assert estimate(convolution, (3, 9, 9, 2), (3, 3, 2, 6)) == pytest.approx(
        2 * products / FLOPS_PER_SECOND + EQUATION
    )


def test_loops_are_counted_as_often_as_they_run_and_branches_once():
    def loop(x):
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.sin)(x), None), x, None, length=12)[0]

    assert estimate(loop, (10,)) == pytest.approx(12 * estimate(jnp.sin, (10,)))

    def branches(which, x):
        return jax.lax.cond(which.sum() > 0, lambda x: jnp.sin(jnp.cos(x)), jnp.cos, x)

    assert estimate(branches, (1,), (10,)) > 2 * estimate(jnp.sin, (10,))
    assert estimate(branches, (1,), (10,)) < 2.5 * estimate(jnp.sin, (10,)) + 5 * EQUATION


def test_both_passes_of_a_gradient_are_counted():
    def loss(x, w):
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    product = 2 * 512**3 / FLOPS_PER_SECOND
    assert 3 * product < estimate(jax.grad(loss, (0, 1)), (512, 512), (512, 512)) < 3.5 * product


def test_what_is_called_outside_of_xla_is_nothing():
    def called(x):
        io_callback(lambda x: None, None, x, ordered=True)
        return jnp.sin(x)

    assert estimate(called, (1000,)) == pytest.approx(estimate(jnp.sin, (1000,)) + EQUATION)


def test_operations_are_those_of_products_and_arithmetic():
    def program(x, w):
        y = jnp.reshape(x @ w, -1)  # 5 rows: 2 * 5 * 3 * 4; what moves numbers costs nothing
        return jnp.where(y > 0, y + 1, 2.0)  # 20 sums

    assert operations(jax.make_jaxpr(program)(jnp.ones((5, 3)), jnp.ones((3, 4))).jaxpr) == 120 + 20

    def repeated(x):
        return jax.lax.scan(lambda carry, _: (carry * 2, None), x, None, length=7)[0]

    assert operations(jax.make_jaxpr(repeated)(jnp.ones(6)).jaxpr) == 42
