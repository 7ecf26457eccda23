"""The contract suite can fail: memories broken in the ways the field's are, each caught by the check meant for it."""

import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import pytest
from jax import lax

from engram import testing
from engram.kernels.linear_scan import linear_scan
from engram.memory import Memory, Stack, make_memory
from engram.memory.base import where_reset

WIDTH = 6
pytestmark = pytest.mark.usefixtures("quickly_compiled")


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
    """Clears its state by a product, in both faces."""

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


class ShrinkingState(Integrator):
    """Returns a state of another dtype than it takes."""

    def __call__(self, state, x, reset):
        state, y = super().__call__(state, x, reset)
        return state.astype(jnp.bfloat16), y


class ForgetsWithoutInputs(Integrator):
    """Starts again from a sequence of no steps."""

    def __call__(self, state, x, reset):
        after, y = super().__call__(state, x, reset)
        return after if len(x) else jnp.zeros_like(state), y


class NeedsRows(Integrator):
    """Divides by the number of rows, with no need to."""

    def __call__(self, state, x, reset):
        after, y = super().__call__(state, x, reset)
        return after, y * (x.shape[1] // x.shape[1])


BROKEN = [
    (ShrinkingState, testing.check_state, "a sequence turned a state of shapes and dtypes"),
    (StepForgetsToReset, testing.check_steps_equal_sequence, "steps differ from the sequence"),
    (TapsNotInState, testing.check_cuts_equal_whole, "a sequence cut at 1 differs from the whole"),
    (MultipliedReset, testing.check_reset_forgets_state, "a reset at the first step kept the state handed in"),
    (ForgetsWithoutInputs, testing.check_empty, "a sequence of no steps changed the state"),
    (NeedsRows, testing.check_empty, "a batch of no rows raises ZeroDivisionError"),
    (StepForgetsToReset, testing.check_reset_forgets_state, "a step with a reset kept the state handed in"),
    (LateReset, testing.check_reset_forgets_input, "inputs of 3.0 before a reset changed the outputs after it"),
    (MultipliedReset, testing.check_reset_forgets_nan, "inputs of nan before a reset changed the outputs after it"),
    (LateReset, testing.check_reset_equals_separate_episodes, "an episode that opens at 1 differs from the same"),
    (LateReset, testing.check_no_gradient_crosses_reset, "a gradient reached an input before the reset"),
    (LeaksGradient, testing.check_no_gradient_crosses_reset, "a gradient reached the state before the reset"),
    (MixesRows, testing.check_rows_are_independent, "a NaN in one row reached another"),
    (DifferentInBatch, testing.check_scan_and_vmap, "a scan of steps under vmap differs from the sequence"),
    (SingleOnly, testing.check_float64, "float64 parameters, state and input made float32 outputs"),
]


@pytest.mark.parametrize(("broken", "check", "fact"), BROKEN)
def test_a_broken_memory_is_caught(broken, check, fact):
    with pytest.raises(AssertionError, match=re.escape(fact)):
        check(broken(WIDTH))


def test_every_check_can_fail():
    assert {check for _, check, _ in BROKEN} == {*testing.CHECKS}


class TestIntegrator(testing.MemoryContract):
    """The unbroken one passes, a test for each fact."""

    memory = Integrator(WIDTH)


def test_one_call_runs_every_check(monkeypatch):
    assert {name for name in dir(TestIntegrator) if name.startswith("test_")} == {
        check.__name__.replace("check", "test") for check in testing.CHECKS
    }
    seen = []
    monkeypatch.setattr(testing, "CHECKS", [seen.append, seen.append])
    memory = Integrator(WIDTH)
    testing.check_memory(memory)
    assert seen == [memory, memory]
    monkeypatch.undo()
    with pytest.raises(AssertionError, match="kept the state handed in"):
        testing.check_memory(MultipliedReset(WIDTH))


def test_a_memory_says_whether_it_forgets_a_nan_inside_a_sequence():
    """What it does not promise is not asked of it, alone or in a stack."""

    class Honest(MultipliedReset):
        @property
        def forgets_nan_inside(self) -> bool:
            return False

    testing.check_reset_forgets_nan(Honest(WIDTH))
    assert Stack(WIDTH, layers=(Integrator(WIDTH),)).forgets_nan_inside
    assert not Stack(WIDTH, layers=(Integrator(WIDTH), Honest(WIDTH))).forgets_nan_inside


def test_a_stack_in_float64_is_one_in_all_layers():
    memory = testing.in_float64(make_memory("gru", WIDTH, 2))
    assert memory == make_memory("gru", WIDTH, 2, param_dtype=jnp.float64)
