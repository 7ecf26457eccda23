"""Every registered memory acts as it trains: the contract suite over the registry."""

import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engram.memory import MEMORIES, Memory, make_memory, memory_options
from tests.memory import contract

WIDTH = 8
# Small enough that windows fill, chunks end and blocks repeat within the suite's 14 steps. Others run as they come.
SMALL: dict[str, dict[str, Any]] = {
    "aaren": {"heads": 2},
    "attention": {"window": 5, "heads": 2},
    "deltanet": {"heads": 2, "updates": 2, "negative": True, "decay": True, "chunk": 4},
    "gla": {"heads": 2, "chunk": 4},
    "lru": {"state": 4},
    "mamba": {"state": 3, "expand": 2, "conv": 4},
    "mamba2": {"state": 3, "head": 8, "chunk": 4},
    "s5": {"state": 8, "blocks": 2},
}
# A zero weight times a NaN is NaN: where sequences are matrix products, only a reset that opens a chunk forgets it.
FORGETS_NAN_INSIDE_A_CHUNK = sorted(set(MEMORIES) - {"attention", "deltanet", "gla", "mamba2"})

pytestmark = pytest.mark.usefixtures("quickly_compiled")
EACH = pytest.mark.parametrize("name", sorted(MEMORIES))


def build(name: str, layers: int = 1, **options: Any) -> Memory:
    """A bare layer, or a stack of normalised residual ones."""
    block = layers > 1
    return make_memory(name, WIDTH, layers, norm=block, residual=block, **(SMALL.get(name, {}) | options))


@EACH
@pytest.mark.parametrize(
    "check",
    [
        contract.check_state,
        contract.check_steps_equal_sequence,
        contract.check_cuts_equal_whole,
        contract.check_reset_forgets_state,
        contract.check_reset_equals_separate_episodes,
        contract.check_no_gradient_crosses_reset,
        contract.check_rows_are_independent,
        contract.check_scan_and_vmap,
    ],
)
def test_contract(check, name):
    check(build(name))


@EACH
def test_reset_forgets_the_past(name):
    contract.check_reset_forgets_input(build(name), nan=False)


@pytest.mark.parametrize("name", FORGETS_NAN_INSIDE_A_CHUNK)
def test_reset_forgets_a_nan(name):
    contract.check_reset_forgets_input(build(name), nan=True)


@EACH
def test_float32_close_to_float64(name):
    reference: dict[str, Any] = {"backend": "reference"} if "backend" in memory_options(name) else {}
    contract.check_float64(build(name), build(name, param_dtype=jnp.float64, **reference))


@pytest.mark.parametrize("name", ["attention", "deltanet", "mamba"])
@pytest.mark.parametrize(
    "check",
    [
        contract.check_steps_equal_sequence,
        contract.check_cuts_equal_whole,
        contract.check_no_gradient_crosses_reset,
    ],
)
def test_stack_keeps_the_contract(check, name):
    check(build(name, layers=2))


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


@pytest.mark.parametrize("name", sorted(set(MEMORIES) - {"none"}))
def test_learns_to_remember_the_first_input(name):
    assert accuracy_of_recall(make_memory(name, 16)) >= 0.98


def test_no_memory_cannot_remember():
    assert 0.4 < accuracy_of_recall(make_memory("none", 16), updates=50) < 0.6


def test_importing_linen_is_silent():
    """A deprecation of flax.linen would show here first."""
    run = subprocess.run([sys.executable, "-W", "error", "-c", "import flax.linen"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
