"""LaProp against its formulas, written out in float64, against a chain of optax's parts, and in closed form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engram.agents.drama.laprop import laprop

STEPS = 50
GRADIENTS = np.random.default_rng(0).normal(size=(STEPS, 4)) * np.array([1e-6, 1e-2, 1.0, 1e3])


def run(optimiser, gradients):
    """Parameters after each step, from ones."""
    params: Any = {"w": jnp.ones(gradients.shape[1:])}

    def one_step(carry, gradient):
        params, state = carry
        step, state = optimiser.update({"w": gradient}, state, params)
        params: Any = optax.apply_updates(params, step)
        return (params, state), params["w"]

    carry = (params, optimiser.init(params))
    return np.asarray(jax.jit(lambda: jax.lax.scan(one_step, carry, jnp.asarray(gradients)))()[1])


@pytest.mark.parametrize("warmup", [20, 0])
def test_equals_the_formulas(warmup):
    lr, b1, b2, eps = 0.01, 0.9, 0.999, 1e-20
    p, v, m, e1, e2 = np.ones(4), np.zeros(4), np.zeros(4), 0.0, 0.0
    expected = []
    for t, g in enumerate(GRADIENTS, start=1):
        rate = lr * min(1.0, t / warmup) if warmup else lr
        v = b2 * v + (1 - b2) * g**2
        e1, e2 = b1 * e1 + (1 - b1) * rate, b2 * e2 + (1 - b2)
        m = b1 * m + (1 - b1) * rate * g / (np.sqrt(v / e2) + eps)
        p = p - m / (e1 / rate)
        expected.append(p)
    np.testing.assert_allclose(run(laprop(lr, warmup=warmup), GRADIENTS), expected, rtol=1e-4, atol=1e-5)
    with jax.enable_x64(True):
        # The counts of steps and their shares stay in float32.
        np.testing.assert_allclose(run(laprop(lr, warmup=warmup), GRADIENTS), expected, rtol=2e-6)


def test_without_warmup_equals_debiased_momentum_of_debiased_rms():
    chain = optax.chain(optax.scale_by_adam(b1=0.0, b2=0.999, eps=1e-20), optax.ema(0.9), optax.scale(-0.01))
    np.testing.assert_allclose(run(laprop(0.01), GRADIENTS), run(chain, GRADIENTS), rtol=1e-4)


def test_a_constant_gradient_moves_by_the_step_size_from_the_first_step_on():
    moved = np.diff(run(laprop(0.01, warmup=10), np.full((30, 2), [3e-4, -7.0])), axis=0)
    rates = 0.01 * np.minimum(1.0, np.arange(2, 31) / 10)
    np.testing.assert_allclose(moved, np.stack([-rates, rates], 1), atol=1e-6)


def test_a_gradient_of_zero_moves_nothing_once_the_momentum_has_died():
    still = run(laprop(0.01), np.zeros((3, 2)))
    np.testing.assert_array_equal(still, np.ones((3, 2)))
