"""Attention over a window of steps, with resets: the keys and values of the last steps are the state.

Per head, over the steps r of the episode of t with 0 <= t - r <= W:
    y[t] = sum_r w[r] v[r]      w = softmax_r(q[t] . k[r] + bias[t - r])

The state is a ring: a step overwrites the oldest of W entries, and the others stay where they are. Moving W entries a
step costs more than the attention to them. A sequence is handled in blocks of W steps, each against its own keys and
the W before them, so the cost is linear in time. On a CPU a C++ kernel (`cpu/window_scan.cc`) touches only what a step
sees, and an actor's step writes one entry where the state lies.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from engram.kernels.backends import check_flags, check_shapes, on_cpu_or_not, pick_backend, state_dtype
from engram.kernels.cpu import ffi
from engram.kernels.rows import clear

BACKENDS = ("reference", "xla", "ffi")

State = tuple[jax.Array, jax.Array, jax.Array]
"""Keys and values `[B, W, H, D]`, and int32 `[B]`: `next (W + 1) + length`, where `next` is the entry that is written
next and `length` says how many of the newest are of the current episode. Those before a reset are zeros."""


def initial_state(batch: int, window: int, heads: int, size: int, dtype: Any = jnp.float32) -> State:
    """The state before anything was seen."""
    cache = jnp.zeros((batch, window, heads, size), dtype)
    return cache, cache, jnp.zeros(batch, jnp.int32)


def window_scan(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    reset: jax.Array | None = None,
    h0: State | None = None,
    *,
    backend: str = "auto",
) -> tuple[jax.Array, State]:
    """Scan over a sequence.

    A NaN before a reset can reach the other steps of its block of W, by `0 * NaN` in a product; later blocks are safe,
    and so is all that follows a reset at step 0. "reference" and "ffi" forget it at once.

    Args:
        q, k, v: queries, keys and values `[T, B, H, D]`.
        bias: added to the scores, by head and distance, `[H, W + 1]`. Its size decides the window.
        reset: bool `[T, B]`, True where step t opens an episode; None for no reset.
        h0: state before the sequence; None for the initial one.
        backend: "reference" (plain scan, plain autodiff), "xla" (matrix products within blocks), "ffi" (C++ on a CPU in
            float32, elsewhere as "xla") or "auto" ("ffi" on a CPU where it can be had, else "xla").

    Returns:
        `y[T, B, H, D]` in the dtype of `v`, and the last state in float32 or wider.

    Raises:
        BadRequest: unknown backend.
        ValueError: shapes that do not fit.
    """
    T, B, H, D = v.shape
    W = bias.shape[-1] - 1
    cache = (B, W, H, D)
    check_shapes("window_scan", q=(q, v.shape), k=(k, v.shape), bias=(bias, (H, W + 1)))
    check_flags("window_scan", reset, (T, B))
    dtype = state_dtype(q, k, v, bias)
    h0 = initial_state(B, W, H, D, dtype) if h0 is None else h0
    check_shapes("window_scan", keys=(h0[0], cache), values=(h0[1], cache), place=(h0[2], (B,)))
    backend = pick_backend(backend, BACKENDS, default="ffi")
    if not v.size:
        backend = "reference"
    if backend == "ffi":
        backend = ffi.if_loaded("window_scan", dtype, (jnp.float32,))
    h0 = h0[0].astype(dtype), h0[1].astype(dtype), h0[2]
    reset = jnp.zeros((T, B), bool) if reset is None else reset
    scan = {"reference": _scan, "xla": _scan_xla, "ffi": _scan_ffi}[backend]
    y, last = scan(*(x.astype(dtype) for x in (q, k, v, bias)), reset, h0)
    return y.astype(v.dtype), last


def window_scan_step(
    state: State,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    reset: jax.Array | None = None,
    *,
    backend: str = "auto",
) -> tuple[State, jax.Array]:
    """One step of `window_scan`: `q`, `k`, `v` `[B, H, D]`, `bias[H, W + 1]`, `reset[B]` -> state, output
    `[B, H, D]`."""
    B, H, D = v.shape
    cache = (B, bias.shape[-1] - 1, H, D)
    check_shapes("window_scan_step", keys=(state[0], cache), values=(state[1], cache), place=(state[2], (B,)))
    check_flags("rows to select", reset, (B,), "the mask")
    backend = pick_backend(backend, BACKENDS, default="ffi")
    dtype = state_dtype(q, k, v, bias)
    if backend == "ffi":
        backend = ffi.if_loaded("window_scan", dtype, (jnp.float32,)) if v.size else "xla"
    reset = jnp.zeros(B, bool) if reset is None else reset
    step = _step_ffi if backend == "ffi" else _tick
    state = state[0].astype(dtype), state[1].astype(dtype), state[2]
    state, y = step(state, q.astype(dtype), k.astype(dtype), v.astype(dtype), bias.astype(dtype), reset)
    return state, y.astype(v.dtype)


def parts(place: jax.Array, W: int) -> tuple[jax.Array, jax.Array]:
    """The entry that is written next, and how many of the newest are of the episode."""
    return place // (W + 1) % W, place % (W + 1)


def oldest_first(state: State, reset: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Keys and values of a state as they were written, cleared where `reset[B]`, and the two parts of its place."""
    keys, values, place = state
    next_, length = (jnp.where(reset, 0, part) for part in parts(place, keys.shape[1]))
    return clear(reset, turned(keys, next_)), clear(reset, turned(values, next_)), next_, length


def turned(cache: jax.Array, first: jax.Array) -> jax.Array:
    """`cache[B, W, ...]` turned, row by row, such that entry `first[B]` comes first."""
    W = cache.shape[1]
    entries = (first[:, None] + jnp.arange(W)) % W
    return jnp.take_along_axis(cache, entries.reshape(*entries.shape, *[1] * (cache.ndim - 2)), 1)


def written(state: State, k: jax.Array, v: jax.Array, reset: jax.Array) -> State:
    """The state after a step with key and value `[B, H, D]`."""
    keys, values, place = state
    W = keys.shape[1]
    next_, length = (jnp.where(reset, 0, part) for part in parts(place, W))
    here = jnp.arange(W) == next_[:, None]

    def write(cache, x):
        return jnp.where(here[..., None, None], x[:, None], clear(reset, cache))

    return write(keys, k), write(values, v), (next_ + 1) % W * (W + 1) + jnp.minimum(length + 1, W)


Attend = Callable[..., jax.Array]
"""How queries make of keys and values an output: `attend(q, keys, values, distance, visible)`, see `attend`."""


def weigh(q: jax.Array, keys: jax.Array, added: jax.Array, visible: jax.Array) -> jax.Array:
    """Weights `[..., H, q, k]` with which queries `[..., q, H, D]` see keys `[..., k, H, D]`.

    Args:
        added: to the scores `[..., H, q, k]`.
        visible: bool `[..., q, k]`.
    """
    logits = jnp.einsum("...qhd,...khd->...hqk", q, keys) + added
    return jax.nn.softmax(jnp.where(visible[..., None, :, :], logits, -jnp.inf), -1)


def mix(weights: jax.Array, values: jax.Array) -> jax.Array:
    """Values `[..., k, H, D]` mixed by weights `[..., H, q, k]` -> `[..., q, H, D]`."""
    return jnp.einsum("...hqk,...khd->...qhd", weights, values)


def by_distance(numbers: jax.Array, distance: np.ndarray) -> jax.Array:
    """`numbers[..., W + 1]` of distances -> `[..., q, k]`; anything where no query sees the key."""
    return numbers[..., np.clip(distance, 0, numbers.shape[-1] - 1)]


def attend(
    bias: jax.Array, q: jax.Array, keys: jax.Array, values: jax.Array, distance: np.ndarray, visible: jax.Array
) -> jax.Array:
    """Softmax attention of queries `[..., q, H, D]` to keys and values `[..., k, H, D]`.

    Args:
        bias: by head and distance `[H, W + 1]`.
        distance: from key to query `[q, k]`; any number where no query sees the key.
        visible: bool `[..., q, k]`.
    """
    return mix(weigh(q, keys, by_distance(bias, distance), visible), values)


def step_by(attend: Attend, state: State, q: jax.Array, k: jax.Array, v: jax.Array, reset: jax.Array) -> tuple:
    """One step with any way to attend -> state, output `[B, H, D]`."""
    keys, values, _, length = oldest_first(state, reset)
    keys, values = (jnp.concatenate([old, new[:, None]], 1) for old, new in ((keys, k), (values, v)))
    distance = np.arange(keys.shape[1] - 1, -1, -1)[None]
    visible = distance <= length[:, None, None]
    return written(state, k, v, reset), attend(q[:, None], keys, values, distance, visible)[:, 0]


def scan_by(
    attend: Attend, q: jax.Array, k: jax.Array, v: jax.Array, reset: jax.Array, h0: State
) -> tuple[jax.Array, State]:
    """A sequence with any way to attend, in blocks -> outputs `[T, B, H, D]`, state."""
    T, W = len(q), h0[0].shape[1]
    if not T:
        return v, h0
    # From here on batch-major, as products over keys want it.
    q, k, v = (x.swapaxes(0, 1) for x in (q, k, v))
    block = T if T <= W + 1 else W
    old_keys, old_values, next_, length = oldest_first(h0, reset[0])
    keys = jnp.concatenate([old_keys, k], 1)  # keys[:, W + t] is the key of step t
    values = jnp.concatenate([old_values, v], 1)

    # Keys of the episode of step t start at opened[t]; below 0 is in the state.
    t = jnp.arange(T, dtype=jnp.int32)[:, None]
    opened = lax.cummax(jnp.where(reset, t, -length), axis=0).T

    blocks = -(-T // block)
    pad = blocks * block - T

    def split(array):
        array = jnp.pad(array, ((0, 0), (0, pad)) + ((0, 0),) * (array.ndim - 2))
        return array.reshape(array.shape[0], blocks, block, *array.shape[2:])

    def spans(array):
        """`[B, blocks, block + W, ...]`: what is in reach of each block."""
        if blocks == 1:
            return array[:, None]
        array = jnp.pad(array, ((0, 0), (0, pad), (0, 0), (0, 0)))
        array = array.reshape(array.shape[0], blocks + 1, W, *array.shape[2:])
        return jnp.concatenate([array[:, :-1], array[:, 1:]], 2)

    query = np.arange(block)[:, None]
    key = np.arange(block + W)[None] - W  # positions relative to the block's first step
    distance = query - key
    in_window = (distance >= 0) & (distance <= W)
    position = np.arange(blocks)[:, None, None] * block + key
    visible = in_window & (position >= split(opened)[..., None])  # [B, blocks, block, block + W]
    unseen = jnp.logical_not(visible.any(2))  # by select: 0 * NaN would carry a NaN over the end of its block
    y = attend(split(q), clear(unseen, spans(keys)), clear(unseen, spans(values)), distance, visible)
    y = y.reshape(y.shape[0], blocks * block, *y.shape[3:])[:, :T].swapaxes(0, 1)

    last = opened[:, -1]
    next_ = jnp.where(last >= 0, T - last, next_ + T) % W
    length = jnp.minimum(T - last, W)
    past = jnp.arange(W) < W - length[:, None]  # entries from before the episode, empty as a step leaves them
    keys, values = (turned(clear(past, x[:, T:]), -next_ % W) for x in (keys, values))
    return y, (keys, values, next_ * (W + 1) + length)


def _tick(state, q, k, v, bias, reset):
    return step_by(partial(attend, bias), state, q, k, v, reset)


def _scan(q, k, v, bias, reset, h0):
    last, y = lax.scan(lambda h, now: _tick(h, *now[:3], bias, now[3]), h0, (q, k, v, reset))
    return y, last


def _scan_xla(q, k, v, bias, reset, h0):
    return scan_by(partial(attend, bias), q, k, v, reset, h0)


@jax.custom_vjp
def _scan_ffi(q, k, v, bias, reset, h0):
    def kernel(q, k, v, bias, reset, h0):
        y, *last = ffi.call("window_scan_forward", ffi.like(v, *h0), q, k, v, bias, reset, *h0)
        return y, tuple(last)

    return on_cpu_or_not(kernel, _scan_xla, q, k, v, bias, reset, h0)


def _forward(*inputs):
    return _scan_ffi(*inputs), inputs


def _backward(inputs, cotangents):
    def kernel(inputs, g, g_keys, g_values):
        q, k, v, bias, _, (keys, values, place) = inputs
        of_rows = jax.ShapeDtypeStruct((v.shape[1], *bias.shape), bias.dtype)
        results = *ffi.like(q, k, v), of_rows, *ffi.like(keys, values)
        arrays = *inputs[:5], keys, values, place, g, g_keys, g_values
        dq, dk, dv, d_bias, *d_state = ffi.call("window_scan_backward", results, *arrays)
        return dq, dk, dv, d_bias.sum(0), *d_state

    def otherwise(inputs, g, g_keys, g_values):
        q, k, v, bias, reset, (keys, values, place) = inputs

        def scan(q, k, v, bias, keys, values):
            y, last = _scan_xla(q, k, v, bias, reset, (keys, values, place))
            return y, last[:2]

        return jax.vjp(scan, q, k, v, bias, keys, values)[1]((g, (g_keys, g_values)))

    g, (g_keys, g_values, _) = cotangents
    *gradients, d_keys, d_values = on_cpu_or_not(kernel, otherwise, inputs, g, g_keys, g_values)
    return *gradients, None, (d_keys, d_values, None)


_scan_ffi.defvjp(_forward, _backward)


@jax.custom_vjp
def _step_ffi(state, q, k, v, bias, reset):
    def kernel(state, *inputs):
        results = ffi.like(*state, q)
        *state, y = ffi.call("window_scan_step", results, *state, *inputs, in_place={0: 0, 1: 1, 2: 2})
        return tuple(state), y

    return on_cpu_or_not(kernel, _tick, state, q, k, v, bias, reset)


def _step_forward(*inputs):
    return _step_ffi(*inputs), inputs


def _step_backward(inputs, cotangents):
    (keys, values, place), q, k, v, bias, reset = inputs

    def step(keys, values, q, k, v, bias):
        (keys, values, _), y = _tick((keys, values, place), q, k, v, bias, reset)
        return keys, values, y

    (g_keys, g_values, _), g = cotangents
    d_keys, d_values, *gradients = jax.vjp(step, keys, values, q, k, v, bias)[1]((g_keys, g_values, g))
    return (d_keys, d_values, None), *gradients, None


_step_ffi.defvjp(_step_forward, _step_backward)
