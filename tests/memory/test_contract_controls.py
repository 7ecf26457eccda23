"""The contract suite can fail: memories broken in the ways the field's are, each caught by the check meant for it."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import pytest
from jax import lax

from engram.kernels.linear_scan import linear_scan
from engram.memory import Memory
from engram.memory.base import where_reset
from engram.memory.gru import GRU
from tests.memory import contract

WIDTH = 6


class Integrator(Memory):
    """A correct leaky integrator, for the broken ones to break."""

    param_dtype: Any = jnp.float32

    def setup(self):
        self.inp = nn.Dense(self.width, param_dtype=self.param_dtype)
        self.decay = self.param("decay", nn.initializers.constant(0.7), (self.width,), self.param_dtype)

    @nn.nowrap
    def initial_state(self, batch):
        return jnp.zeros((batch, self.width), self.param_dtype)

    def __call__(self, state, x, reset):
        y, state = linear_scan(self.decay, self.inp(x), reset, state)
        return state, y


class LateReset(Integrator):
    """Shifts the resets of a sequence one step late."""

    def __call__(self, state, x, reset):
        return super().__call__(state, x, jnp.concatenate([jnp.zeros_like(reset[:1]), reset[:-1]]))


class TapsNotInState(Integrator):
    """A convolution over the chunk alone, as in the sequence models that keep no taps."""

    def __call__(self, state, x, reset):
        return super().__call__(state, x + 0.5 * jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]]), reset)


class MultipliedReset(Integrator):
    """Clears its state by a product."""

    def __call__(self, state, x, reset):
        def tick(h, now):
            x_t, reset_t = now
            h = self.decay * h * (1 - reset_t[:, None]) + x_t
            return h, h

        return lax.scan(tick, state, (self.inp(x), reset))


class StepForgetsToReset(Integrator):
    def step(self, state, x, reset):
        return super().step(state, x, jnp.zeros_like(reset))


class MixesRows(Integrator):
    def __call__(self, state, x, reset):
        return super().__call__(state, x - x.mean(1, keepdims=True), reset)


class LeaksGradient(Integrator):
    """Right values, but the gradient of the state handed in passes straight through a reset."""

    def __call__(self, state, x, reset):
        after, y = super().__call__(state, x, reset)
        ghost = jnp.where(jnp.isfinite(state), state, 0)
        return after, y + ghost - lax.stop_gradient(ghost)


class SingleOnly(Integrator):
    """Answers in float32 whatever it is given."""

    def __call__(self, state, x, reset):
        after, y = super().__call__(state, x, reset)
        return after, y.astype(jnp.float32)


class DifferentInBatch(Integrator):
    """Its step runs another cell than its sequence."""

    def step(self, state, x, reset):
        state = where_reset(reset, jnp.zeros_like(state), state)
        y = self.decay * state + 1.01 * self.inp(x)
        return y, y


BROKEN = [
    (LateReset, contract.check_reset_equals_separate_episodes),
    (LateReset, contract.check_steps_equal_sequence),
    (LateReset, contract.check_no_gradient_crosses_reset),
    (LateReset, lambda memory: contract.check_reset_forgets_input(memory, nan=False)),
    (TapsNotInState, contract.check_cuts_equal_whole),
    (TapsNotInState, contract.check_steps_equal_sequence),
    (MultipliedReset, contract.check_reset_forgets_state),
    (MultipliedReset, lambda memory: contract.check_reset_forgets_input(memory, nan=True)),
    (StepForgetsToReset, contract.check_steps_equal_sequence),
    (StepForgetsToReset, contract.check_reset_forgets_state),
    (MixesRows, contract.check_rows_are_independent),
    (LeaksGradient, contract.check_no_gradient_crosses_reset),
    (DifferentInBatch, contract.check_scan_and_vmap),
]


@pytest.mark.parametrize(("broken", "check"), BROKEN)
def test_a_broken_memory_is_caught(broken, check):
    with pytest.raises(AssertionError):
        check(broken(WIDTH))


def test_single_precision_is_caught():
    exact = SingleOnly(WIDTH, param_dtype=jnp.float64)
    with pytest.raises(AssertionError):
        contract.check_float64(SingleOnly(WIDTH), exact)


class ShrinkingState(GRU):
    """Returns a state of another dtype than it takes."""

    def __call__(self, state, x, reset):
        state, y = super().__call__(state, x, reset)
        return state.astype(jnp.bfloat16), y


def test_a_state_that_changes_type_is_caught():
    with pytest.raises(AssertionError):
        contract.check_state(ShrinkingState(WIDTH))


def test_the_unbroken_one_passes():
    for check in {check for _, check in BROKEN}:
        check(Integrator(WIDTH))
    contract.check_float64(Integrator(WIDTH), Integrator(WIDTH, param_dtype=jnp.float64))
