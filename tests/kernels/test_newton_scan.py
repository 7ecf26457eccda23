"""Newton's method over a sequence finds the states of the steps in turn, or leaves them to these steps."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engram.errors import BadRequest
from engram.kernels.newton_scan import CELLS, newton_scan
from engram.memory.para import Para

B, D = 4, 8
pytestmark = pytest.mark.usefixtures("quickly_compiled")
EACH = pytest.mark.parametrize("cell", CELLS)


def inputs(cell, T, scale=0.3, dtype: Any = np.float32, seed=0) -> Any:
    """Weights of size `scale`, inputs, resets at 5 % of the steps and a first state."""
    rng = np.random.default_rng(seed)
    A, x = scale * rng.normal(size=(CELLS[cell].rows, D)), rng.normal(size=(T, B, 3 * D))
    state = tuple(rng.normal(size=(B, D)).astype(dtype) for _ in range(CELLS[cell].parts))
    return A.astype(dtype), x.astype(dtype), rng.random((T, B)) < 0.05, state[0] if len(state) == 1 else state


def run(cell, backend):
    return jax.jit(partial(newton_scan, cell=cell, backend=backend))


def both(cell, A, x, reset, state):
    """Outputs and last states of Newton's method and of the plain scan, and the number of iterations."""
    *newton, count = run(cell, "newton")(x, A, reset, state)
    *plain, none = run(cell, "reference")(x, A, reset, state)
    assert none == 0
    return newton, plain, int(count)


def assert_close(newton, plain, tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=tolerance), newton, plain)


@EACH
@pytest.mark.parametrize("T", [1, 2, 300])
def test_newton_finds_the_states_in_few_iterations(cell, T):
    newton, plain, count = both(cell, *inputs(cell, T))
    assert_close(newton, plain, 1e-6)
    assert 1 <= count <= 6
    with jax.enable_x64(True):
        newton, plain, count = both(cell, *inputs(cell, T, dtype=np.float64))
        assert_close(newton, plain, 1e-12)
        assert 1 <= count <= 6


@EACH
def test_where_newton_fails_the_steps_are_taken_in_turn(cell):
    newton, plain, count = both(cell, *inputs(cell, 100, scale=8.0))
    assert count == 13
    assert_close(newton, plain, 0)


@EACH
def test_of_several_batches_one_may_fail(cell):
    """Under vmap the way out stays a branch, of which one side runs."""
    draws = [inputs(cell, 100, scale, seed=i) for i, scale in enumerate((0.3, 8.0, 0.5))]
    A, x, reset, state = jax.tree.map(lambda *parts: np.stack(parts), *draws)
    scan = jax.vmap(partial(newton_scan, cell=cell, backend="newton"))
    y, _, count = jax.jit(scan)(x, A, reset, state)
    assert list(count) == [13, 13, 13]
    for i, (A_i, x_i, reset_i, state_i) in enumerate(draws):
        np.testing.assert_allclose(y[i], run(cell, "reference")(x_i, A_i, reset_i, state_i)[0], atol=1e-6)
    _, _, count = jax.jit(scan)(*jax.tree.map(lambda part: part[::2], (x, A, reset, state)))
    assert 1 <= count[0] == count[1] <= 6
    assert "cond[" in str(jax.make_jaxpr(scan)(x, A, reset, state))


@EACH
def test_a_nan_does_not_keep_the_others_waiting(cell):
    A, x, reset, state = inputs(cell, 60)
    x[20, 1] = np.nan
    reset[20:50, 1], reset[50, 1] = False, True
    newton, plain, count = both(cell, A, x, reset, state)
    assert count <= 6
    assert np.isnan(newton[0][20:50, 1]).all()
    assert not np.isnan(newton[0][50:]).any()
    assert_close(newton, plain, 1e-6)


@EACH
def test_a_nan_of_the_iterations_own_does_not_stay(cell):
    """An infinite state: its correction is infinity minus infinity, while the gates make something of it."""
    A, x, reset, state = inputs(cell, 6)
    A, reset = np.abs(A), np.zeros_like(reset)
    state = jax.tree.map(lambda s: np.full_like(s, np.inf), state)
    newton, plain, _ = both(cell, A, x, reset, state)
    assert_close(newton, plain, 0)


def test_a_unit_counts_where_its_weight_is_above_one():
    """Parity: kept by a closed gate, turned by an open one. With a weight of size 1 every turn loses a part."""
    bits = np.random.default_rng(0).integers(0, 2, 200)
    bits[0] = 1
    x = np.zeros((200, 1, 3), np.float32)
    x[:, 0, 0], x[:, 0, 1], x[0, 0, 2] = 40 * (2 * bits - 1), 40, 40  # z, r; the candidate of the first step is 1
    h, weak = (
        run("gru", b)(x, np.array([[0], [0], [w]], np.float32))[0][:, 0, 0]
        for w, b in [(-4, "newton"), (-1, "reference")]
    )
    np.testing.assert_allclose(h, (-1.0) ** (np.cumsum(bits) - 1), atol=1e-2)
    assert abs(weak[-1]) < 0.2


def test_bad_requests_are_one_clear_error():
    A, x, *_ = inputs("gru", 3)
    with pytest.raises(BadRequest, match="unknown cell 'rnn': choose from gru, lstm"):
        newton_scan(x, A, cell="rnn")
    with pytest.raises(BadRequest, match="max_iterations must be at least 1, got 0"):
        newton_scan(x, A, max_iterations=0)


@pytest.mark.slow
@EACH
def test_trained_weights_converge(cell):
    """A layer that learned parity: its weights went from 0.25 to the limit. Whole sequences, and in episodes."""
    memory: Any = Para(16, cell=cell)

    @jax.jit
    def apply(parameters, bits, reset):
        dense, layer, read = parameters
        x = (2.0 * bits[..., None] - 1) * dense
        _, y = memory.apply(layer, memory.initial_state(bits.shape[1]), x, reset)
        return x, y @ read

    def words(key, T, rate):
        keys = jax.random.split(key)
        bits, reset = (jax.random.bernoulli(k, p, (T, 64)) for k, p in zip(keys, (0.5, rate), strict=True))

        def flip(odd, now):
            odd = jnp.where(now[1], False, odd) ^ now[0]
            return odd, odd

        _, parity = jax.lax.scan(flip, jnp.zeros(64, bool), (bits, reset))
        return bits, reset, parity

    optimiser = optax.adam(1e-2)

    def update(carry, key):
        bits, reset, parity = words(key, 20, 0.03)

        def loss(parameters):
            return optax.sigmoid_binary_cross_entropy(apply(parameters, bits, reset)[1], parity).mean()

        value, gradient = jax.value_and_grad(loss)(carry[0])
        updates, state = optimiser.update(gradient, carry[1])
        return (optax.apply_updates(carry[0], updates), state), value

    keys = jax.random.split(jax.random.key(0), 3)
    dense = jax.random.normal(keys[0], (16,))
    layer = memory.init(keys[1], memory.initial_state(1), jnp.zeros((1, 1, 16)), jnp.zeros((1, 1), bool))
    parameters = dense, layer, jax.random.normal(keys[2], (16,)) / 4
    (parameters, _), losses = jax.jit(lambda *carry: jax.lax.scan(update, carry, jax.random.split(keys[0], 500)))(
        parameters, optimiser.init(parameters)
    )
    assert losses[-1] < 0.1
    p = parameters[1]["params"]
    assert np.abs(np.tanh(p["A"])).max() > 0.9
    for rate in (0.0, 0.03):
        bits, reset, _ = words(keys[1], 512, rate)
        x = apply(parameters, bits, reset)[0] @ p["inp"]["kernel"] + p["inp"]["bias"]
        newton, plain, count = both(cell, np.tanh(p["A"]), x, reset, None)
        assert_close(newton, plain, 1e-5)
        assert count <= 12
