"""Does a memory act as it trains? The contract of `engram.memory.base` as checks of any memory, registered or not.

One call:

    from engram.testing import check_memory
    check_memory(Leaky(width=6))

or, with pytest, a test for each fact:

    from engram.testing import MemoryContract
    class TestLeaky(MemoryContract):
        memory = Leaky(width=6)

Take a memory whose windows fill and whose blocks repeat within 14 steps, and a small width. A check raises
AssertionError with the fact that fails. Sequences are cut such that all runs share the lengths 14, 13, 7 and 1: each is
compiled once for all checks, which is most of the time that they take.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from engram.memory import Memory, State

T, B = 14, 3
TOLERANCE = 3e-6
"""Largest error, relative to the largest number of an array."""


def check_memory(memory: Memory) -> None:
    """Runs all checks.

    Args:
        memory: a layer or a stack of layers, in float32.

    Raises:
        AssertionError: the memory breaks the contract. The message says how.
    """
    for check in CHECKS:
        check(memory)


class MemoryContract:
    """All checks as tests of a class that pytest collects: `class TestLeaky(MemoryContract): memory = Leaky(6)`."""

    memory: Memory
    """The memory to test, a layer or a stack of layers, in float32."""


def check_state(memory: Memory) -> None:
    """Leaves of the state are `[batch, ...]`, of the same shapes and dtypes before and after, without parameters."""
    run = _faces(memory)
    _, y = run.sequence(run.fresh, run.x, run.no_reset)
    _fact(y.shape == run.x.shape, f"outputs have the shape {y.shape}, not {run.x.shape}")
    for leaf in jax.tree.leaves(run.fresh):
        _fact(leaf.shape[:1] == (B,), f"a leaf of the state has the shape {leaf.shape}, which must begin with {B} rows")
    before = jax.tree.map(_kind, run.fresh)
    for what, state in (("a sequence", run.warm), ("a step", run.step(run.fresh, run.x[0], run.no_reset[0])[0])):
        after = jax.tree.map(_kind, state)
        _fact(after == before, f"{what} turned a state of shapes and dtypes {before} into {after}")


def check_steps_equal_sequence(memory: Memory) -> None:
    """Steps give what the sequence gives, with and without a reset at the first step."""
    run = _faces(memory)
    for first in (True, False):
        reset = _scattered(first)
        after, y = run.sequence(run.warm, run.x, reset)
        state, outputs = run.warm, []
        for t in range(T):
            state, y_t = run.step(state, run.x[t], reset[t])
            outputs.append(y_t)
        _close(np.stack(outputs), y, f"steps differ from the sequence (first reset: {first})")
        _close(state, after, f"the state after steps differs from that after the sequence (first reset: {first})")


def check_cuts_equal_whole(memory: Memory) -> None:
    """A sequence that is cut anywhere, the state handed on, gives what the whole gives."""
    run = _faces(memory)
    reset = _scattered(False)
    after, y = run.sequence(run.warm, run.x, reset)
    for cut in (1, 7, T - 1):
        middle, head = run.sequence(run.warm, run.x[:cut], reset[:cut])
        end, tail = run.sequence(middle, run.x[cut:], reset[cut:])
        _close(np.concatenate([head, tail]), y, f"a sequence cut at {cut} differs from the whole")
        _close(end, after, f"the state after a cut at {cut} differs from that of the whole")


def check_empty(memory: Memory) -> None:
    """A sequence of no steps leaves the state as it is; a batch of no rows gives results of no rows, in both faces."""
    run = _faces(memory)
    with _no_error("a sequence of no steps"):
        state, y = run.sequence(run.warm, run.x[:0], run.no_reset[:0])
    _fact(y.shape == run.x[:0].shape, f"a sequence of no steps has outputs of the shape {y.shape}")
    _close(state, run.warm, "a sequence of no steps changed the state")
    rows = jax.tree.map(lambda s: s[:0], run.warm)
    x, reset = run.x[:, :0], run.no_reset[:, :0]
    with _no_error("a batch of no rows"):
        none = memory.initial_state(0)
        results = run.sequence(none, x, reset), run.step(none, x[0], reset[0])
    for (state, y), inputs in zip(results, (x, x[0]), strict=True):
        _fact(y.shape == inputs.shape, f"a batch of no rows has outputs of the shape {y.shape}")
        _close(state, rows, "a batch of no rows has a state that is not empty")


def check_reset_forgets_state(memory: Memory) -> None:
    """A reset at the first step drops the state handed in, even NaN, in both faces."""
    run = _faces(memory)
    reset = _scattered(True)
    for state in (run.warm, with_nan(run.warm)):
        sequence, step = run.sequence(state, run.x, reset), run.step(state, run.x[0], reset[0])
        _close(sequence, run.sequence(run.fresh, run.x, reset), "a reset at the first step kept the state handed in")
        _close(step, run.step(run.fresh, run.x[0], reset[0]), "a step with a reset kept the state handed in")


def check_reset_forgets_input(memory: Memory) -> None:
    """A reset inside the sequence drops the inputs before it from outputs, state and gradients."""
    _check_past_is_dropped(memory, 3.0)


def check_reset_forgets_nan(memory: Memory) -> None:
    """The same where these inputs are NaN, of memories that promise it (`Memory.forgets_nan_inside`)."""
    if memory.forgets_nan_inside:
        _check_past_is_dropped(memory, jnp.nan)


def _check_past_is_dropped(memory: Memory, past: float) -> None:
    run = _faces(memory)
    reset = run.no_reset.copy()
    reset[8] = True
    other = run.x.at[:8].set(past)
    state, y = run.sequence(run.warm, run.x, reset)
    other_state, other_y = run.sequence(run.warm, other, reset)
    of = f"inputs of {past} before a reset changed"
    _close(other_y[8:], y[8:], f"{of} the outputs after it")
    _close(other_state, state, f"{of} the state after it")
    d_x, _ = run.gradient(other, run.warm, reset, 8)
    _close(d_x[8:], run.gradient(run.x, run.warm, reset, 8)[0][8:], f"{of} the gradients after it")


def check_reset_equals_separate_episodes(memory: Memory) -> None:
    """Episodes that open at steps 1, 7 and 13 of a sequence equal these episodes run alone from a fresh state."""
    run = _faces(memory)
    starts = (1, 7, T - 1)
    reset = run.no_reset.copy()
    reset[starts, range(B)] = True
    after, y = run.sequence(run.warm, run.x, reset)
    for row, start in enumerate(starts):
        end, alone = run.sequence(run.fresh, run.x[start:], run.no_reset[start:])
        _close(y[start:, row], alone[:, row], f"an episode that opens at {start} differs from the same episode alone")
        ours, truth = (jax.tree.map(lambda s, row=row: s[row], state) for state in (after, end))
        _close(
            ours, truth, f"the state of an episode that opened at {start} differs from that of the same episode alone"
        )


def check_no_gradient_crosses_reset(memory: Memory) -> None:
    """Gradients before a reset are exactly 0; after it, and in rows without one, they are not 0."""
    run = _faces(memory)
    reset = run.no_reset.copy()
    reset[8, 1] = True
    d_x, d_state = run.gradient(run.x, run.warm, reset, 8)
    _fact((np.asarray(d_x[:8, 1]) == 0).all(), "a gradient reached an input before the reset")
    for g in jax.tree.leaves(d_state):
        if g.dtype != jax.dtypes.float0:
            _fact((np.asarray(g[1]) == 0).all(), "a gradient reached the state before the reset")
    _fact((np.abs(d_x[8:]).sum((0, 2)) > 0).all(), "no gradient reached the inputs after the reset")
    if jax.tree.leaves(run.fresh):
        _fact((np.abs(d_x[7, [0, 2]]).sum(-1) > 0).all(), "no gradient reached the past of rows without a reset")


def check_rows_are_independent(memory: Memory) -> None:
    """Permuted rows give permuted results; a NaN in one row reaches no other."""
    run = _faces(memory)
    reset = _scattered(False)
    state, y = run.sequence(run.warm, run.x, reset)
    order = np.array([2, 0, 1])
    swapped = run.sequence(jax.tree.map(lambda s: s[order], run.warm), run.x[:, order], reset[:, order])
    _close(swapped, (jax.tree.map(lambda s: s[order], state), y[:, order]), "rows depend on their order")
    poisoned = run.sequence(run.warm, run.x.at[:, 0].set(jnp.nan), reset)
    kept = jax.tree.map(lambda s: s[1:], poisoned[0]), poisoned[1][:, 1:]
    _close(kept, (jax.tree.map(lambda s: s[1:], state), y[:, 1:]), "a NaN in one row reached another")


def check_scan_and_vmap(memory: Memory) -> None:
    """Under one `jit`: seeds in a `vmap`, `init` included, and steps in a `scan`."""
    run = _faces(memory)
    reset = jnp.asarray(_scattered(True))

    def train(key: jax.Array) -> Any:
        parameters = memory.init(key, run.fresh, run.x, reset)

        def tick(state: State, now: Any) -> Any:
            return memory.apply(parameters, state, *now, method="step")

        _, acted = jax.lax.scan(tick, memory.initial_state(B), (run.x, reset))
        learned: Any = memory.apply(parameters, memory.initial_state(B), run.x, reset)
        return parameters, acted, learned[1]

    parameters, acted, learned = jax.jit(jax.vmap(train))(jax.random.split(_key(), 2))
    _close(acted, learned, "a scan of steps under vmap differs from the sequence")
    _, alone = run.apply(jax.tree.map(lambda p: p[0], parameters), run.fresh, run.x, reset)
    _close(learned[0], alone, "a seed in a vmap differs from the same seed alone", 1e-5)
    _fact(float(np.abs(learned[0] - learned[1]).max()) > 1e-3, "two seeds start alike")


def check_float64(memory: Memory) -> None:
    """float32 is close to float64; float64 parameters, state and input make a float64 computation."""
    run, exact = _faces(memory), in_float64(memory)
    reset = _scattered(False)
    with jax.enable_x64(True):

        def widen(tree: Any) -> Any:
            wide = {jnp.dtype("float32"): jnp.float64, jnp.dtype("complex64"): jnp.complex128}
            return jax.tree.map(lambda s: jnp.asarray(np.asarray(s), wide.get(s.dtype, s.dtype)), tree)

        parameters, warm, x = widen((run.parameters, run.warm, run.x))
        fresh = jax.tree.map(_kind, exact.initial_state(B))
        expected = jax.tree.map(_kind, widen(run.fresh))
        _fact(fresh == expected, f"with param_dtype float64 the state is {fresh}, not {expected}")
        truth = jax.jit(exact.apply)(parameters, warm, x, reset)
        implied = jax.jit(memory.apply)(parameters, warm, x, reset)
        step: Any = jax.jit(lambda *inputs: memory.apply(*inputs, method="step"))(parameters, warm, x[0], reset[0])
        for outputs in (truth[1], implied[1], step[1]):
            _fact(outputs.dtype == jnp.float64, f"float64 parameters, state and input made {outputs.dtype} outputs")
        _close(implied, truth, "float64 parameters, state and input did not make a float64 computation", 1e-12)
        _close(step[1], truth[1][0], "float64 parameters, state and input did not make a float64 step", 1e-12)
    _close(run.sequence(run.warm, run.x, reset), truth, "float32 is far from float64", 2e-5)


CHECKS: tuple[Callable[[Memory], None], ...] = (
    check_state,
    check_steps_equal_sequence,
    check_cuts_equal_whole,
    check_empty,
    check_reset_forgets_state,
    check_reset_forgets_input,
    check_reset_forgets_nan,
    check_reset_equals_separate_episodes,
    check_no_gradient_crosses_reset,
    check_rows_are_independent,
    check_scan_and_vmap,
    check_float64,
)

for _check in CHECKS:
    setattr(MemoryContract, _check.__name__.replace("check", "test", 1), lambda self, check=_check: check(self.memory))


def with_nan(state: State) -> State:
    """`state` with NaN for all of its numbers that can be."""
    return jax.tree.map(lambda s: jnp.full_like(s, jnp.nan) if jnp.issubdtype(s.dtype, jnp.inexact) else s, state)


def in_float64(memory: Memory) -> Memory:
    """The same memory with parameters and states in float64, the layers of a stack included."""

    def wide(value: Any) -> Any:
        if isinstance(value, Memory):
            return in_float64(value)
        return tuple(map(wide, value)) if type(value) is tuple else value

    names = {field.name for field in dataclasses.fields(memory) if field.init} - {"parent", "name", "param_dtype"}
    return type(memory)(**{name: wide(getattr(memory, name)) for name in names}, param_dtype=jnp.float64)


@dataclasses.dataclass(frozen=True)
class _Faces:
    """Compiled faces of a memory, with random parameters (none at a special value)."""

    parameters: Any
    apply: Callable[..., Any]
    """`(parameters, state, x, reset) -> state, y`."""
    step: Callable[..., Any]
    """`(state, x, reset) -> state, y`, as `sequence` with these parameters."""
    gradient: Callable[..., Any]
    """`(x, state, reset, since)` -> gradients of the outputs from step `since` on, in inputs and state."""
    x: jax.Array
    fresh: State
    warm: State
    """The state after a random past."""
    no_reset: np.ndarray

    def sequence(self, state: State, x: jax.Array, reset: Any) -> Any:
        return self.apply(self.parameters, state, x, reset)


def _faces(memory: Memory) -> _Faces:
    return _compiled(cast(Any, memory))


@cache
def _compiled(memory: Memory) -> _Faces:
    fresh = memory.initial_state(B)
    no_reset = np.zeros((T, B), bool)
    rng = np.random.default_rng(0)
    x, past = jnp.asarray(rng.normal(size=(2, T, B, memory.width)), jnp.float32)
    parameters = jax.jit(memory.init)(_key(), fresh, x, no_reset)
    parameters = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(p.dtype), parameters)

    def loss(x: jax.Array, state: State, reset: jax.Array, since: int) -> jax.Array:
        """Of the outputs from step `since` on; those before are left out by select, as a NaN there must be."""
        y: Any = memory.apply(parameters, state, x, reset)[1]
        return jnp.sum(jnp.where(jnp.arange(len(y))[:, None, None] >= since, y, 0) ** 2)

    apply = jax.jit(memory.apply)
    warm, _ = cast(Any, apply(parameters, fresh, past, no_reset))
    return _Faces(
        parameters=parameters,
        apply=apply,
        step=jax.jit(lambda state, x, reset: memory.apply(parameters, state, x, reset, method="step")),
        gradient=jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True)),
        x=x,
        fresh=fresh,
        warm=warm,
        no_reset=no_reset,
    )


def _key() -> jax.Array:
    return jax.random.key(1, impl="unsafe_rbg")  # the default generator takes most of the time to compile


def _scattered(first: bool) -> np.ndarray:
    """Resets at different steps of each row; row 2 has none, or only the first."""
    reset = np.zeros((T, B), bool)
    reset[[3, 4, 9, 8], [0, 0, 0, 1]] = True
    reset[0] = first
    return reset


def _kind(leaf: jax.Array) -> tuple[tuple[int, ...], str]:
    return leaf.shape, str(leaf.dtype)


def _fact(holds: bool | np.bool_, otherwise: str) -> None:
    """An assertion that Python's option -O keeps."""
    if not holds:
        raise AssertionError(otherwise)


@contextmanager
def _no_error(what: str) -> Iterator[None]:
    """Turns whatever a memory raises into the fact that it does."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{what} raises {type(error).__name__}: {error}") from error


def _close(ours: Any, truth: Any, otherwise: str, tolerance: float = TOLERANCE) -> None:
    """Equal to `tolerance` times the largest number in the leaf. NaNs never are."""
    _fact(jax.tree.structure(ours) == jax.tree.structure(truth), f"{otherwise}: they have other leaves")
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(truth), strict=True):
        _fact(a.shape == b.shape, f"{otherwise}: shape {a.shape} is not {b.shape}")
        error = np.max(np.abs(np.asarray(a) - np.asarray(b)), initial=0)
        scale = np.max(np.abs(b), initial=1e-30)
        _fact(error <= tolerance * max(scale, 1e-3), f"{otherwise}: off by {error:.2g} at scale {scale:.2g}")
