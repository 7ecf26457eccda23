"""The contract of `engram.memory.base` as checks of any memory. Each raises AssertionError with the fact that fails.

Time is 14 steps, so that whole, cut and separate runs share the lengths 14, 13, 7 and 1 and compile once.
"""

from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from engram.memory import Memory

T, B = 14, 3
TOLERANCE = 3e-6


def compiled(memory: Memory) -> SimpleNamespace:
    return _compiled(cast(Any, memory))


@cache
def _compiled(memory: Memory) -> SimpleNamespace:
    """Jitted faces of a memory, with random parameters (none at a special value) and the state after a random past."""
    fresh = memory.initial_state(B)
    no_reset = np.zeros((T, B), bool)
    rng = np.random.default_rng(0)
    x, past = jnp.asarray(rng.normal(size=(2, T, B, memory.width)), jnp.float32)
    key = jax.random.key(1, impl="unsafe_rbg")  # the default generator takes most of the suite's time to compile
    parameters = jax.jit(memory.init)(key, fresh, x, no_reset)
    parameters = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(p.dtype), parameters)

    def loss(x, state, reset, since):
        """Of the outputs from step `since` on; those before are left out by select, as a NaN there must be."""
        y: Any = memory.apply(parameters, state, x, reset)[1]
        return jnp.sum(jnp.where(jnp.arange(len(y))[:, None, None] >= since, y, 0) ** 2)

    apply = jax.jit(memory.apply)
    step = jax.jit(lambda state, x, reset: memory.apply(parameters, state, x, reset, method="step"))
    warm, _ = apply(parameters, fresh, past, no_reset)
    return SimpleNamespace(
        parameters=parameters,
        apply=apply,
        sequence=lambda state, x, reset: apply(parameters, state, x, reset),
        step=step,
        gradient=jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True)),
        x=x,
        fresh=fresh,
        warm=warm,
        no_reset=no_reset,
    )


def scattered(first: bool) -> np.ndarray:
    """Resets at different steps of each row; row 2 has none, or only the first."""
    reset = np.zeros((T, B), bool)
    reset[[3, 4, 9, 8], [0, 0, 0, 1]] = True
    reset[0] = first
    return reset


def with_nan(state):
    return jax.tree.map(lambda s: jnp.full_like(s, jnp.nan) if jnp.issubdtype(s.dtype, jnp.inexact) else s, state)


def assert_close(ours, truth, what: str, tolerance: float = TOLERANCE) -> None:
    """Equal to `tolerance` times the largest number in the leaf. NaNs never are."""
    assert jax.tree.structure(ours) == jax.tree.structure(truth), what
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(truth), strict=True):
        assert a.shape == b.shape, f"{what}: shape {a.shape} is not {b.shape}"
        error = np.max(np.abs(np.asarray(a) - np.asarray(b)), initial=0)
        scale = np.max(np.abs(b), initial=1e-30)
        assert error <= tolerance * max(scale, 1e-3), f"{what}: off by {error:.2g} at scale {scale:.2g}"


def check_state(memory: Memory) -> None:
    """Leaves `(batch, ...)`, of the same shapes and dtypes before and after, needing no parameters."""
    c = compiled(memory)
    _, y = c.sequence(c.fresh, c.x, c.no_reset)
    assert y.shape == c.x.shape
    for after in (c.warm, c.step(c.fresh, c.x[0], c.no_reset[0])[0]):
        assert jax.tree.map(lambda s: (s.shape, s.dtype), after) == jax.tree.map(lambda s: (s.shape, s.dtype), c.fresh)
    assert all(s.shape[0] == B for s in jax.tree.leaves(c.fresh))


def check_steps_equal_sequence(memory: Memory) -> None:
    c = compiled(memory)
    for first in (True, False):
        reset = scattered(first)
        after, y = c.sequence(c.warm, c.x, reset)
        state, outputs = c.warm, []
        for t in range(T):
            state, y_t = c.step(state, c.x[t], reset[t])
            outputs.append(y_t)
        assert_close(np.stack(outputs), y, f"steps differ from the sequence (first reset: {first})")
        assert_close(state, after, f"state after steps differs (first reset: {first})")


def check_cuts_equal_whole(memory: Memory) -> None:
    c = compiled(memory)
    reset = scattered(False)
    after, y = c.sequence(c.warm, c.x, reset)
    for cut in (1, 7, T - 1):
        middle, head = c.sequence(c.warm, c.x[:cut], reset[:cut])
        end, tail = c.sequence(middle, c.x[cut:], reset[cut:])
        assert_close(np.concatenate([head, tail]), y, f"cut at {cut} differs from the whole")
        assert_close(end, after, f"state after a cut at {cut} differs")


def check_reset_forgets_state(memory: Memory) -> None:
    """A reset of the first step drops the state handed in, even NaN, in both faces."""
    c = compiled(memory)
    reset = scattered(True)
    for state in (c.warm, with_nan(c.warm)):
        assert_close(c.sequence(state, c.x, reset), c.sequence(c.fresh, c.x, reset), "a first reset kept the state")
        assert_close(c.step(state, c.x[0], reset[0]), c.step(c.fresh, c.x[0], reset[0]), "a reset step kept the state")


def check_reset_forgets_input(memory: Memory, nan: bool) -> None:
    """After a reset inside the sequence nothing of before is left; with `nan`, not even NaN."""
    c = compiled(memory)
    reset = c.no_reset.copy()
    reset[8] = True
    other = c.x.at[:8].set(jnp.nan if nan else 3.0)
    state, y = c.sequence(c.warm, c.x, reset)
    other_state, other_y = c.sequence(c.warm, other, reset)
    assert_close(other_y[8:], y[8:], "the past changed the outputs after a reset")
    assert_close(other_state, state, "the past changed the state after a reset")
    d_x, _ = c.gradient(other, c.warm, reset, 8)
    assert_close(d_x[8:], c.gradient(c.x, c.warm, reset, 8)[0][8:], "the past changed the gradients after a reset")


def check_reset_equals_separate_episodes(memory: Memory) -> None:
    """Rows whose second episode opens at 1, 7 and 13 equal that episode run on its own from a fresh state."""
    c = compiled(memory)
    reset = c.no_reset.copy()
    for row, start in enumerate((1, 7, T - 1)):
        reset[start, row] = True
    after, y = c.sequence(c.warm, c.x, reset)
    for row, start in enumerate((1, 7, T - 1)):
        end, alone = c.sequence(c.fresh, c.x[start:], c.no_reset[start:])
        assert_close(y[start:, row], alone[:, row], f"episode from {start} differs from the same run alone")
        pair = (jax.tree.map(lambda s: s[row], after), jax.tree.map(lambda s: s[row], end))
        assert_close(*pair, f"state of the episode from {start} differs from the same run alone")


def check_no_gradient_crosses_reset(memory: Memory) -> None:
    c = compiled(memory)
    reset = c.no_reset.copy()
    reset[8, 1] = True
    d_x, d_state = c.gradient(c.x, c.warm, reset, 8)
    assert (np.asarray(d_x[:8, 1]) == 0).all(), "a gradient reached an input before the reset"
    for g in jax.tree.leaves(d_state):
        if g.dtype != jax.dtypes.float0:
            assert (np.asarray(g[1]) == 0).all(), "a gradient reached the state before the reset"
    assert (np.abs(d_x[8:]).sum((0, 2)) > 0).all(), "no gradient after the reset"
    if jax.tree.leaves(c.fresh):
        assert (np.abs(d_x[7, [0, 2]]).sum(-1) > 0).all(), "no gradient to the past of rows without a reset"


def check_rows_are_independent(memory: Memory) -> None:
    c = compiled(memory)
    reset = scattered(False)
    state, y = c.sequence(c.warm, c.x, reset)
    order = np.array([2, 0, 1])
    swapped = c.sequence(jax.tree.map(lambda s: s[order], c.warm), c.x[:, order], reset[:, order])
    assert_close(swapped, (jax.tree.map(lambda s: s[order], state), y[:, order]), "rows depend on their order")
    poisoned = c.sequence(c.warm, c.x.at[:, 0].set(jnp.nan), reset)
    kept = jax.tree.map(lambda s: s[1:], poisoned[0]), poisoned[1][:, 1:]
    assert_close(kept, (jax.tree.map(lambda s: s[1:], state), y[:, 1:]), "a NaN in one row reached another")


def check_scan_and_vmap(memory: Memory) -> None:
    """Under one jit: seeds in a vmap, `init` included, and steps in a scan."""
    c = compiled(memory)
    reset = jnp.asarray(scattered(True))

    def train(key):
        parameters = memory.init(key, c.fresh, c.x, reset)

        def tick(state, now):
            return memory.apply(parameters, state, *now, method="step")

        _, acted = jax.lax.scan(tick, memory.initial_state(B), (c.x, reset))
        _, learned = memory.apply(parameters, memory.initial_state(B), c.x, reset)
        return parameters, acted, learned

    parameters, acted, learned = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(1), 2))
    assert_close(acted, learned, "a scan of steps under vmap differs from the sequence")
    _, alone = c.apply(jax.tree.map(lambda p: p[0], parameters), c.fresh, c.x, reset)
    assert_close(learned[0], alone, "a seed in a vmap differs from the same seed alone", 1e-5)
    assert np.abs(learned[0] - learned[1]).max() > 1e-3, "two seeds start alike"


def check_float64(memory: Memory, exact: Memory) -> None:
    """float32 is close to `exact`, the same memory in float64; float64 parameters make a float64 computation."""
    c = compiled(memory)
    reset = scattered(False)
    with jax.enable_x64(True):

        def widen(tree):
            wide = {jnp.dtype("float32"): jnp.float64, jnp.dtype("complex64"): jnp.complex128}
            return jax.tree.map(lambda s: jnp.asarray(np.asarray(s), wide.get(s.dtype, s.dtype)), tree)

        parameters, x = widen((c.parameters, c.x))
        fresh = exact.initial_state(B)
        assert jax.tree.map(lambda s: s.dtype, fresh) == jax.tree.map(lambda s: s.dtype, widen(c.fresh))
        truth = jax.jit(exact.apply)(parameters, widen(c.warm), x, reset)
        assert truth[1].dtype == jnp.float64
        implied = jax.jit(memory.apply)(parameters, c.warm, x, reset)
        assert implied[1].dtype == jnp.float64
        assert_close(implied, truth, "float64 parameters did not make a float64 computation", 1e-12)
        step = jax.jit(lambda *a: memory.apply(*a, method="step"))(parameters, c.warm, x[0], reset[0])
        assert_close(step[1], truth[1][0], "float64 parameters did not make a float64 step", 1e-12)
    assert_close(c.sequence(c.warm, c.x, reset), truth, "float32 is far from float64", 2e-5)
