"""Attention to marked steps, with resets: the keys and values of the last steps that were marked are the state.

Per head, over step t itself and the last W marked steps r before it in its episode:
    y[t] = sum_r w[r] v[r]      w = softmax_r(q[t] . k[r] + bias[age] + score[r])
Step t itself has the age 0, the last marked step before it the age 1, the one before that 2. Whether t is marked
matters to later steps alone. If all steps are marked this is `window_scan`. With `best`, a step sees of the marked
steps only those with the largest scores.

The state moves on only at marked steps, by select. A sequence is handled in blocks of W steps, each against its own
keys and the W in the state, so the cost is linear in time.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from engram.kernels.backends import check_flags, check_shapes, pick_backend, state_dtype
from engram.kernels.rows import clear, select_rows
from engram.kernels.window_scan import mix, weigh

BACKENDS = ("reference", "xla")


class State(NamedTuple):
    """The last marked steps of the episode, the newest last; entries before them are zeros."""

    keys: jax.Array
    """`[B, W, H, D]`."""
    values: jax.Array
    """`[B, W, H, D]`."""
    scores: jax.Array | None
    """`[B, W]`; None without scores."""
    length: jax.Array
    """Number of entries, int32 `[B]`."""


def initial_state(
    batch: int, window: int, heads: int, size: int, scored: bool = False, dtype: Any = jnp.float32
) -> State:
    """The state before anything was seen."""
    cache = jnp.zeros((batch, window, heads, size), dtype)
    return State(cache, cache, cache[..., 0, 0] if scored else None, jnp.zeros(batch, jnp.int32))


def marked_scan(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    mark: jax.Array,
    reset: jax.Array | None = None,
    h0: State | None = None,
    *,
    score: jax.Array | None = None,
    best: int = 0,
    backend: str = "auto",
) -> tuple[jax.Array, State]:
    """Scan over a sequence.

    A NaN before a reset can reach the other steps of its block of W, by `0 * NaN` in a product; later blocks are safe,
    and so is all that follows a reset at step 0. "reference" forgets it at once.

    Args:
        q, k, v: queries, keys and values `[T, B, H, D]`.
        bias: added to the scores, by head and age, `[H, W + 1]`. Its size decides the window.
        mark: bool `[T, B]`, True where later steps see step t.
        reset: bool `[T, B]`, True where step t opens an episode; None for no reset.
        h0: state before the sequence; None for the initial one.
        score: added to what all heads of later steps make of step t, and of its own, `[T, B]`; None for 0.
        best: number of marked steps that a step sees, those with the largest scores, and all that equal the last of
            them; 0 for all.
        backend: "reference" (plain scan), "xla" (matrix products within blocks, computed again in the backward pass) or
            "auto" ("xla").

    Returns:
        `y[T, B, H, D]` in the dtype of `v`, and the last state in float32 or wider.

    Raises:
        BadRequest: unknown backend.
        ValueError: shapes that do not fit, or `best` without scores.
    """
    T, B, H, D = v.shape
    check_shapes("marked_scan", q=(q, v.shape), k=(k, v.shape), bias=(bias, (H, bias.shape[-1])), score=(score, (T, B)))
    check_flags("marked_scan", mark, (T, B), "mark")
    check_flags("marked_scan", reset, (T, B))
    dtype = state_dtype(q, k, v, bias)
    if h0 is None:
        h0 = initial_state(B, bias.shape[-1] - 1, H, D, score is not None, dtype)
    _check_state("marked_scan", h0, bias, score, best, v.shape[1:])
    backend = pick_backend(backend, BACKENDS, default="xla")
    wide: Any = partial(jax.tree.map, lambda x: x.astype(dtype))
    h0 = wide(h0)._replace(length=h0.length)
    reset = jnp.zeros((T, B), bool) if reset is None else reset
    scan = _scan if backend == "reference" or not v.size else _scan_xla
    last, y = scan(wide(bias), best, h0, (*wide((q, k, v, score)), mark, reset))
    return y.astype(v.dtype), last


def marked_scan_step(
    state: State,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    mark: jax.Array,
    reset: jax.Array | None = None,
    *,
    score: jax.Array | None = None,
    best: int = 0,
) -> tuple[State, jax.Array]:
    """One step of `marked_scan`: its arguments without the axis of time -> state, output `[B, H, D]`."""
    _check_state("marked_scan_step", state, bias, score, best, v.shape)
    check_flags("marked_scan_step", mark, v.shape[:1], "mark")
    dtype = state_dtype(q, k, v, bias)
    wide: Any = partial(jax.tree.map, lambda x: x.astype(dtype))
    state = wide(state)._replace(length=state.length)
    reset = jnp.zeros(v.shape[:1], bool) if reset is None else reset
    state, y = _tick(wide(bias), best, state, (*wide((q, k, v, score)), mark, reset))
    return state, y.astype(v.dtype)


def _check_state(name, state, bias, score, best, of_step):
    B, H, D = of_step
    cache = (B, bias.shape[-1] - 1, H, D)
    check_shapes(name, keys=(state.keys, cache), values=(state.values, cache), length=(state.length, (B,)))
    if (score is None) != (state.scores is None):
        raise ValueError(f"{name}: the state has scores where there are none, or lacks them")
    check_shapes(name, scores=(state.scores, cache[:2]))
    if best < 0 or (best and score is None):
        raise ValueError(f"{name}: best must be at least 0, and needs scores, got {best}")


def _best(scores, visible, best):
    """`visible[..., n]` less all but the `best` largest of `scores[..., n]`; equal ones stay together."""
    if not best:
        return visible
    ranked = jnp.where(visible, lax.stop_gradient(scores), -jnp.inf)
    return visible & (ranked >= lax.top_k(ranked, min(best, ranked.shape[-1]))[0][..., -1:])


def _with_scores(added, scores):
    """Scores `[B, n]` added to `added[..., H, q, n]`."""
    return added if scores is None else added + scores[:, None, None]


def _tick(bias, best, state, now):
    q, k, v, score, mark, reset = now
    state = jax.tree.map(partial(clear, reset), state)
    new = k, v, score
    keys, values, scores = jax.tree.map(lambda old, x: jnp.concatenate([old, x[:, None]], 1), state[:-1], new)
    W = keys.shape[1] - 1
    visible = np.arange(W) >= W - state.length[:, None]
    if best:
        visible = _best(scores[:, :-1], visible, best)
    visible = jnp.pad(visible, ((0, 0), (0, 1)), constant_values=True)
    added = _with_scores(bias[None, :, None, ::-1], scores)
    y = mix(weigh(q[:, None], keys, added, visible[:, None]), values)[:, 0]
    kept = jax.tree.map(lambda x: x[:, 1:], (keys, values, scores))
    moved = State(*kept, length=jnp.minimum(state.length + 1, W))
    return select_rows(mark, moved, state), y


def _scan(bias, best, h0, sequence):
    return lax.scan(partial(_tick, bias, best), h0, sequence)


def _scan_xla(bias, best, h0, sequence):
    T, W = len(sequence[0]), h0.keys.shape[1]
    if T <= W + 1:
        return _block(bias, best, h0, sequence)
    blocks = -(-T // W)

    def split(x):
        """Steps that are neither marked nor open an episode fill up the last block, and leave the state as it is."""
        x = jnp.pad(x, ((0, blocks * W - T),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(blocks, W, *x.shape[1:])

    run = jax.checkpoint(partial(_block, bias, best))
    last, y = lax.scan(run, h0, jax.tree.map(split, sequence))
    return last, y.reshape(blocks * W, *y.shape[2:])[:T]


def _block(bias, best, state, now):
    """Steps `[L, B, ...]`, each against the state and the steps of the block before it."""
    q, k, v, score, mark, reset = jax.tree.map(lambda x: x.swapaxes(0, 1), now)
    L, W = q.shape[1], state.keys.shape[1]
    keys, values, scores = jax.tree.map(lambda old, x: jnp.concatenate([old, x], 1), state[:-1], (k, v, score))

    # Entries are those of the state, then those of the block: entry W + t is step t.
    entry, step = np.arange(W + L), W + np.arange(L)
    held = jnp.concatenate([entry[:W] >= W - state.length[:, None], mark], 1)
    opened = lax.cummax(jnp.where(reset, step, 0), axis=1)  # [B, L]: the first entry of the episode of each step
    number = jnp.cumsum(held, 1, dtype=jnp.int32)
    age = number[:, W - 1 : -1, None] - number[:, None] + 1  # [B, L, W + L]
    visible = held[:, None] & (entry >= opened[..., None]) & (entry < step[:, None]) & (age <= W)
    if best:
        visible = _best(scores[:, None], visible, best)
    own = entry == step[:, None]
    visible, age = visible | own, jnp.where(own, 0, age)

    unseen = jnp.logical_not(visible.any(1))  # by select: 0 * NaN would carry a NaN over the end of its block
    added = jnp.moveaxis(bias[:, jnp.clip(age, 0, W)], 0, 1)
    weights = weigh(q, clear(unseen, keys), _with_scores(added, scores), visible)
    y = mix(weights, clear(unseen, values)).swapaxes(0, 1)

    left = jnp.where(held & (entry >= opened[:, -1:]), entry, -1)
    left = jnp.sort(left, 1)[:, -W:]  # the newest last, and -1 before them

    def take(x):
        where = jnp.maximum(left, 0).reshape(*left.shape, *[1] * (x.ndim - 2))
        return clear(left < 0, jnp.take_along_axis(x, where, 1))

    return State(*jax.tree.map(take, (keys, values, scores)), length=jnp.sum(left >= 0, 1, dtype=jnp.int32)), y
