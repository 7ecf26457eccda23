"""Every registered memory acts as it trains: the contract suite over the registry."""

import itertools
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engram import testing
from engram.memory import MEMORIES, Memory, make_memory
from tests.memory.small import SMALL, VARIANTS

WIDTH = 8

pytestmark = pytest.mark.usefixtures("quickly_compiled")


MORE_PROGRAMS = (testing.check_empty, testing.check_scan_and_vmap, testing.check_float64)
"""Checks that compile programs of their own, which takes half of the time: fast for a few memories only."""
FEW = ("gru", "mamba2", "s5")


def checks():
    """Every check of every memory."""
    for check, name in itertools.product(testing.CHECKS, sorted(MEMORIES)):
        slow = check in MORE_PROGRAMS and name not in FEW
        yield pytest.param(check, name, id=f"{check.__name__}-{name}", marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("check", "name"), [*checks()])
def test_contract(check, name):
    check(make_memory(name, WIDTH, norm=False, residual=False, **SMALL.get(name, {})))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
@pytest.mark.parametrize(
    "check",
    [
        testing.check_steps_equal_sequence,
        testing.check_reset_equals_separate_episodes,
        testing.check_no_gradient_crosses_reset,
    ],
    ids=lambda check: check.__name__,
)
def test_options_keep_the_contract(check, name, options):
    check(make_memory(name, WIDTH, norm=False, residual=False, **options))


@pytest.mark.parametrize("name", ["attention", "mamba"])
@pytest.mark.parametrize("check", [testing.check_steps_equal_sequence, testing.check_no_gradient_crosses_reset])
def test_stack_keeps_the_contract(check, name):
    """Two normalised residual layers, each with a state of several parts."""
    check(make_memory(name, WIDTH, 2, **SMALL[name]))


def test_mixed_stacks_keep_the_contract():
    options: dict[str, Any] = {"slstm.heads": 2, "mlstm.heads": 2}
    testing.check_steps_equal_sequence(make_memory("slstm,mlstm*2", WIDTH, **options))


@pytest.mark.parametrize("name", sorted(MEMORIES))
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda reset: reset[..., :1], r"reset has shape \((5, )?1,?\), not"),  # else broadcast to all rows
        (lambda reset: reset.astype(np.float32), "reset must be of dtype bool, not float32"),
    ],
    ids=["one row", "float"],
)
def test_a_reset_of_another_kind_is_one_clear_error(name, change, message):
    memory = make_memory(name, WIDTH, **SMALL.get(name, {}))
    x, reset = jnp.ones((5, 3, WIDTH)), np.zeros((5, 3), bool)
    state = memory.initial_state(3)
    parameters = jax.eval_shape(memory.init, jax.random.key(0), state, x, reset)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(memory.apply, parameters, state, x, change(reset))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda *inputs: memory.apply(*inputs, method="step"), parameters, state, x[0], change(reset[0]))


class Recall(nn.Module):
    """One logit from the last output."""

    memory: Memory

    @nn.compact
    def __call__(self, x):
        reset = jnp.zeros(x.shape[:2], bool).at[0].set(True)
        _, y = self.memory(self.memory.initial_state(x.shape[1]), nn.Dense(self.memory.width)(x), reset)
        return nn.Dense(1)(y[-1])[:, 0]


def accuracy_of_recall(memory: Memory, updates: int = 300, steps: int = 10, batch: int = 64) -> float:
    """Train to name the sign shown first, after `steps - 1` random ones; accuracy on unseen sequences."""
    model, optimiser = Recall(memory), optax.adam(1e-2)
    tests = 16 * batch
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (steps, updates * batch + tests)).astype(np.float32)
    opening = np.zeros_like(signs)
    opening[0] = 1
    x, target = np.stack([signs, opening], -1), signs[0]
    batches = np.split(x[:, tests:], updates, 1), np.split(target[tests:], updates)

    def update(carry, batch):
        parameters, optimiser_state = carry
        x, target = batch

        def loss(p):
            return optax.sigmoid_binary_cross_entropy(model.apply(p, x), target > 0).mean()

        updates, optimiser_state = optimiser.update(jax.grad(loss)(parameters), optimiser_state)
        return (optax.apply_updates(parameters, updates), optimiser_state), None

    @jax.jit
    def train(key, batches, x, target):
        parameters: Any = model.init(key, x)
        (parameters, _), _ = jax.lax.scan(update, (parameters, optimiser.init(parameters)), batches)
        logits: Any = model.apply(parameters, x)
        return jnp.mean((logits > 0) == (target > 0))

    key = jax.random.key(0, impl="unsafe_rbg")
    return float(train(key, tuple(map(np.stack, batches)), x[:, :tests], target[:tests]))


LEARNERS = [
    pytest.param(name, marks=() if name == "s5" else pytest.mark.slow) for name in sorted({*MEMORIES} - {"none"})
]


LONG_ENOUGH: dict[str, dict[str, Any]] = {"framestack": {"frames": 10}, "tcn": {"taps": 10}}
"""Options of memories that by default do not see as far back as the first of the ten inputs."""


@pytest.mark.parametrize("name", LEARNERS)
def test_learns_to_remember_the_first_input(name):
    assert accuracy_of_recall(make_memory(name, 16, **LONG_ENOUGH.get(name, {}))) >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["indrnn", "leaky", "alrnn", "reservoir"])
def test_each_kind_of_rnn_learns_to_remember_the_first_input(kind):
    """At twice the width: 16 units of an IndRNN need more than 300 updates."""
    assert accuracy_of_recall(make_memory("rnn", 32, kind=kind)) >= 0.98


def test_no_memory_cannot_remember():
    assert 0.4 < accuracy_of_recall(make_memory("none", 16), updates=50) < 0.6


def test_importing_linen_is_silent():
    """A deprecation of flax.linen would show here first."""
    run = subprocess.run([sys.executable, "-W", "error", "-c", "import flax.linen"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
