"""GRU and LSTM whose units see only themselves, solved in parallel over time (ParaRNN, Danieli et al. 2025).

All products with the state `h'` (and, in the LSTM, `c'`), which is 0 where `reset[t]`, are elementwise:
    GRU     z = sigmoid(a_z h' + x_z)   r = sigmoid(a_r h' + x_r)   n = tanh(a_n r h' + x_n)   h = (1 - z) h' + z n
    LSTM    f = sigmoid(a_f h' + p_f c' + x_f)    g = tanh(a_g h' + x_g)    c = f c' + (1 - f) g
            o = sigmoid(a_o h' + p_o c + x_o)     h = o tanh(c)

A sequence is the root of `s[t] - f(s[t-1], x[t])` for all t. Newton's method finds it: each iteration evaluates the
cell and its Jacobian at all steps at once, and solves a linear recurrence for the correction. A reset enters twice,
both times by select: in `s[t-1]` and in the recurrence. It needs few iterations where a state does not depend on its
past in a chaotic manner; where `max_iterations` were not enough, the steps are taken one after the other.

The gradient is that of the root, by the implicit function theorem: one linear recurrence backwards in time, whoever
found the root; a CPU takes its steps in turn. No iteration is differentiated.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from engram.errors import BadRequest
from engram.kernels.backends import check_flags, check_shapes, on_cpu_or_not, pick_backend, state_dtype
from engram.kernels.gru_scan import sigmoid
from engram.kernels.linear_scan import linear_scan
from engram.kernels.rows import clear

BACKENDS = ("reference", "xla", "newton")
States = tuple[jax.Array, ...]
"""The parts of a state: `(h,)` or `(c, h)`."""


def _gru(A: jax.Array, state: States, x: jax.Array) -> States:
    (h,), (x_z, x_r, x_n) = state, jnp.split(x, 3, -1)
    z, r = sigmoid(A[0] * h + x_z), sigmoid(A[1] * h + x_r)
    n = jnp.tanh(A[2] * (r * h) + x_n)
    return ((1 - z) * h + z * n,)


def _lstm(A: jax.Array, state: States, x: jax.Array) -> States:
    (c, h), (x_f, x_g, x_o) = state, jnp.split(x, 3, -1)
    f, g = sigmoid(A[0] * h + A[3] * c + x_f), jnp.tanh(A[1] * h + x_g)
    c = f * c + (1 - f) * g
    return c, sigmoid(A[2] * h + A[4] * c + x_o) * jnp.tanh(c)


class Cell(NamedTuple):
    """A cell of units that see only themselves."""

    f: Callable[[jax.Array, States, jax.Array], States]
    """`f(A, state, x)`, the next state."""
    rows: int
    """Rows of `A`."""
    parts: int
    """Parts of a state."""


CELLS = {"gru": Cell(_gru, rows=3, parts=1), "lstm": Cell(_lstm, rows=5, parts=2)}


def newton_scan(
    x: jax.Array,
    A: jax.Array,
    reset: jax.Array | None = None,
    state0: Any = None,
    *,
    cell: str = "gru",
    max_iterations: int = 12,
    backend: str = "auto",
) -> tuple[jax.Array, Any, jax.Array]:
    """Scan over a chunk.

    Args:
        x: input after its product and bias `[T, B, 3 D]`, in the order z, r, n or f, g, o.
        A: what a unit sees of itself, `[3, D]` (a_z, a_r, a_n) or `[5, D]` (a_f, a_g, a_o, p_f, p_o).
        reset: bool `[T, B]`, True where `x[t]` opens an episode; None for no reset.
        state0: state before the chunk, `h[B, D]` or for the LSTM `(c, h)`; None for zeros.
        cell: "gru" or "lstm".
        max_iterations: iterations of Newton's method, at least 1, after which the steps are taken one by one.
        backend: "reference" (plain scan, plain autodiff), "xla" (plain scan, gradients by one linear recurrence),
            "newton" (likewise, and the states by Newton's method) or "auto" ("xla" on a CPU, elsewhere "newton").

    Returns:
        `h[T, B, D]` in the dtype of `x`, the last state in float32 or wider, and the number of iterations, int32: 0
        without Newton's method, `max_iterations + 1` where it was given up. Where it runs for several batches at once
        (`vmap`), it is one number for all.

    Raises:
        BadRequest: unknown cell or backend, no iterations.
        ValueError: shapes that do not fit.
    """
    backend = pick_backend(backend, BACKENDS, default="xla" if jax.default_backend() == "cpu" else "newton")
    kind = _find(cell)
    if max_iterations < 1:
        raise BadRequest(f"max_iterations must be at least 1, got {max_iterations}")
    T, B, D = len(x), x.shape[1], A.shape[-1]
    check_shapes("newton_scan", x=(x, (T, B, 3 * D)), A=(A, (kind.rows, D)))
    check_flags("newton_scan", reset, (T, B))
    dtype = state_dtype(x, A)
    start = (jnp.zeros((B, D), dtype),) * kind.parts if state0 is None else _split(state0)
    check_shapes("newton_scan", **{f"state0_{i}": (part, (B, D)) for i, part in enumerate(start)})
    start = tuple(part.astype(dtype) for part in start)
    if not x.size:
        backend = "reference"
    inputs = A.astype(dtype), x.astype(dtype), reset, start
    if backend == "reference":
        states, count = _in_turn(cell, *inputs), jnp.zeros((), jnp.int32)
    else:
        states, count = _root(cell, max_iterations if backend == "newton" else 0, *inputs)
    last = tuple(part[-1] for part in states) if T else start
    return states[-1].astype(x.dtype), _joined(last), count


def newton_scan_step(
    state: Any, x: jax.Array, A: jax.Array, reset: jax.Array | None = None, *, cell: str = "gru"
) -> tuple[Any, jax.Array]:
    """One step of `newton_scan`: state `h[B, D]` or `(c, h)`, `x[B, 3 D]`, `reset[B]` -> state, output."""
    f = _find(cell).f
    parts, size = _split(state), (len(x), A.shape[-1])
    check_shapes("newton_scan_step", **{f"state_{i}": (part, size) for i, part in enumerate(parts)})
    dtype = state_dtype(x, A)
    opened = tuple(clear(reset, part.astype(dtype)) for part in parts)
    after = f(A.astype(dtype), opened, x.astype(dtype))
    return _joined(after), after[-1].astype(x.dtype)


def _find(cell: str) -> Cell:
    if cell not in CELLS:
        raise BadRequest(f"unknown cell {cell!r}: choose from {', '.join(CELLS)}")
    return CELLS[cell]


def _split(state: Any) -> States:
    return tuple(state) if isinstance(state, tuple | list) else (state,)


def _joined(parts: States) -> Any:
    return parts[0] if len(parts) == 1 else parts


def _in_turn(cell: str, A: jax.Array, x: jax.Array, reset: jax.Array | None, state0: States) -> States:
    """States `[T, B, D]`, step by step."""
    f = CELLS[cell].f

    def tick(state, now):
        x_t, reset_t = now
        state = f(A, tuple(clear(reset_t, part) for part in state), x_t)
        return state, state

    return lax.scan(tick, state0, (x, reset))[1]


def _before(states: States, reset: jax.Array | None, state0: States) -> States:
    """What each step starts from, `[T, B, D]`."""
    shifted = (jnp.concatenate([h0[None], h[:-1]]) for h0, h in zip(state0, states, strict=True))
    return tuple(clear(reset, h) for h in shifted)


def _linearised(f: Callable[[States], States], state: States) -> tuple[States, list[list[jax.Array]]]:
    """`f(state)`, and `J[i][j]`, the derivative of part i by part j of the same unit. Units do not mix, so a derivative
    along ones has those of all units."""
    basis = [
        tuple(jnp.ones_like(h) if i == j else jnp.zeros_like(h) for i, h in enumerate(state)) for j in range(len(state))
    ]
    values, columns = zip(*(jax.jvp(f, (state,), (along,)) for along in basis), strict=True)
    return values[0], [list(row) for row in zip(*columns, strict=True)]


def _solve(J: list[list[jax.Array]], r: States, reset: jax.Array) -> States:
    """`d[t] = J[t] select(reset[t], 0, d[t-1]) + r[t]`, from `d[-1] = 0`."""
    if len(r) == 1:
        return (linear_scan(J[0][0], r[0], reset)[0],)
    return on_cpu_or_not(_solve_in_turn, _solve_associative, J, r, reset)


def _product(J, d):
    """A matrix of each unit times a vector of it."""
    return tuple(sum(a * b for a, b in zip(row, d, strict=True)) for row in J)


def _solve_in_turn(J, r, reset):
    def tick(d, now):
        J_t, r_t, reset_t = now
        moved = _product(J_t, tuple(clear(reset_t, part) for part in d))
        d = tuple(a + b for a, b in zip(moved, r_t, strict=True))
        return d, d

    return lax.scan(tick, tuple(jnp.zeros_like(part[0]) for part in r), (J, r, reset))[1]


def _solve_associative(J, r, reset):
    def join_segments(first, second):
        (J_i, r_i, reset_i), (J_j, r_j, reset_j) = first, second
        columns = [_product(J_j, column) for column in zip(*J_i, strict=True)]
        moved = tuple(jnp.where(reset_j, b, a + b) for a, b in zip(_product(J_j, r_i), r_j, strict=True))
        return [list(row) for row in zip(*columns, strict=True)], moved, reset_i | reset_j

    return lax.associative_scan(join_segments, (J, r, reset[..., None]))[1]


@jax.custom_batching.custom_vmap
def _anywhere(flag: jax.Array) -> jax.Array:
    """`flag[]`, under `vmap` whether any is set. So it is one number for all, a loop on it needs no selects, and of a
    branch on it one side runs."""
    return flag


@_anywhere.def_vmap
def _(_, batched, flag):
    return _anywhere(jnp.any(flag, 0) if batched[0] else flag), False


def _newton(
    cell: str, max_iterations: int, A: jax.Array, x: jax.Array, reset: jax.Array | None, state0: States
) -> tuple[States, jax.Array]:
    """States `[T, B, D]` and the number of iterations."""
    f = CELLS[cell].f
    first = jnp.zeros(x.shape[:2], bool) if reset is None else reset
    first = first.at[0].set(True)  # of the linear recurrence: the state before step 0 is known
    opening = tuple(clear(None if reset is None else reset[0], h) for h in state0)
    guess = f(A, tuple(jnp.zeros((*x.shape[:2], A.shape[-1]), x.dtype) for _ in state0), x)
    # Both cells make averages of what is at most 1 and of the state before.
    bounds = [jnp.fmax(1, jnp.abs(h)) for h in opening]
    # An iteration squares the error: behind a correction of this size only rounding is left.
    tolerance = 0.1 * jnp.finfo(x.dtype).eps ** 0.5

    def iterate(carry):
        states, count, _ = carry
        value, J = _linearised(lambda state: f(A, state, x), _before(states, reset, state0))
        d = _solve(J, tuple(a - b for a, b in zip(value, states, strict=True)), first)
        moved = tuple(jnp.clip(h + e, -bound, bound) for h, e, bound in zip(states, d, bounds, strict=True))
        # A NaN of the input stays whatever is done, and must not keep the others waiting.
        largest = jnp.stack([jnp.where(jnp.isnan(e), 0, jnp.abs(e)).max() for e in d]).max()
        return moved, count + 1, _anywhere(largest > tolerance)

    def unfinished(carry):
        return carry[2] & (carry[1] < max_iterations)

    states, count, moving = lax.while_loop(unfinished, iterate, (guess, jnp.zeros((), jnp.int32), jnp.array(True)))
    # A NaN that neither the input nor the step before has is the iteration's own.
    lost = _any_nan(states) & ~_any_nan(_before(states, reset, state0)) & ~_any_nan(guess)
    failed = _anywhere(moving | lost.any())
    states = lax.cond(failed, lambda: _in_turn(cell, A, x, reset, state0), lambda: states)
    return states, jnp.where(failed, max_iterations + 1, count)


def _any_nan(states: States) -> jax.Array:
    return jnp.stack([jnp.isnan(h) for h in states]).any(0)


def _states(cell, max_iterations, A, x, reset, state0):
    """States and the number of iterations; without Newton's method where none is allowed."""
    if not max_iterations:
        return _in_turn(cell, A, x, reset, state0), jnp.zeros((), jnp.int32)
    return _newton(cell, max_iterations, A, x, reset, state0)


_root = jax.custom_vjp(_states, nondiff_argnums=(0, 1))


def _forward(cell, max_iterations, A, x, reset, state0):
    states, count = _root(cell, max_iterations, A, x, reset, state0)
    return (states, count), (A, x, reset, state0, states)


def _backward(cell, max_iterations, residuals, cotangents):
    A, x, reset, state0, states = residuals
    inputs = A, x, reset, _before(states, reset, state0), cotangents[0]
    dA, dx, dstate0 = on_cpu_or_not(partial(_backward_in_turn, cell), partial(_backward_at_once, cell), *inputs)
    return dA, dx, None, dstate0


def _backward_in_turn(cell, A, x, reset, before, g):
    def tick(carry, now):
        later, dA = carry  # through the steps after this one
        g_t, before_t, x_t, reset_t = now
        _, pull = jax.vjp(CELLS[cell].f, A, before_t, x_t)
        dA_t, dbefore, dx_t = pull(tuple(a + b for a, b in zip(g_t, later, strict=True)))
        return (tuple(clear(reset_t, part) for part in dbefore), dA + dA_t), dx_t

    start = tuple(jnp.zeros_like(part[0]) for part in g), jnp.zeros_like(A)
    (dstate0, dA), dx = lax.scan(tick, start, (g, before, x, reset), reverse=True)
    return dA, dx, dstate0


def _backward_at_once(cell, A, x, reset, before, g):
    """g[t] = dy[t] + select(reset[t+1], 0, J[t+1]^T g[t+1]), as a recurrence that runs forward."""
    f = CELLS[cell].f
    _, J = _linearised(lambda state: f(A, state, x), before)
    later_J = [[_later(J[j][i]) for j in range(len(J))] for i in range(len(J))]
    opened = jnp.zeros(x.shape[:2], bool) if reset is None else reset
    total = _solve(later_J, tuple(dy[::-1] for dy in g), _later(opened))
    _, pull = jax.vjp(f, A, before, x)
    dA, dbefore, dx = pull(tuple(part[::-1] for part in total))
    return dA, dx, tuple(clear(None if reset is None else reset[0], part[0]) for part in dbefore)


def _later(x: jax.Array) -> jax.Array:
    """The next step's value at each step, backwards in time; zeros for the step after the last."""
    return jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])[::-1]


_root.defvjp(_forward, _backward)
