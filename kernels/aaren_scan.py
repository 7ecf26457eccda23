"""Attention as a recurrence, with resets: the softmax average of all values so far.

(Feng et al. 2024, "Attention as an RNN".) With scores s and values v, over the steps r <= t of the episode:
    y[t] = sum_r exp(s[r]) v[r] / sum_r exp(s[r])

The state is `(m, u, w)`: the largest score, and both sums divided by `exp(m)`. A reset selects `(s[t], 1, v[t])`.
On a CPU this is one scan over time, with a backward scan written by hand. Elsewhere the running maximum m comes first;
given m, both sums are a `linear_scan` with the decay `exp(m[t-1] - m[t])`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from engram.kernels.backends import check_flags, check_shapes, pick_backend, state_dtype
from engram.kernels.linear_scan import linear_scan
from engram.kernels.rows import clear

BACKENDS = ("reference", "xla")

LOWEST = -1e30
"""Largest score before any was seen: finite, so that the difference of two such scores is."""

State = tuple[jax.Array, jax.Array, jax.Array]


def initial_state(batch: int, heads: int, size: int, dtype: Any = jnp.float32) -> State:
    """The state `(m, u, w)` before anything was seen: `[B, H]`, `[B, H]`, `[B, H, V]`."""
    none = jnp.zeros((batch, heads), dtype)
    return none + LOWEST, none, jnp.zeros((batch, heads, size), dtype)


def aaren_scan(
    s: jax.Array, v: jax.Array, reset: jax.Array | None = None, h0: State | None = None, *, backend: str = "auto"
) -> tuple[jax.Array, State]:
    """Scan over a sequence.

    Args:
        s: scores `[T, B, H]`, finite.
        v: values `[T, B, H, V]`.
        reset: bool `[T, B]`, True where step t opens an episode; None for no reset.
        h0: state before the sequence `(m[B, H], u[B, H], w[B, H, V])`; None for `initial_state`.
        backend: "reference" (plain scan, plain autodiff), "xla" (as above) or "auto".

    Returns:
        `y[T, B, H, V]` in the dtype of `v`, and the last state in float32 or wider.

    Raises:
        BadRequest: unknown backend.
        ValueError: shapes that do not fit.
    """
    backend = pick_backend(backend, BACKENDS, default="xla")
    dtype = state_dtype(s, v)
    T, batch, heads, size = v.shape
    m, u, w = initial_state(batch, heads, size, dtype) if h0 is None else h0
    check_shapes("aaren_scan", s=(s, (T, batch, heads)), **_state_shapes((m, u, w), v))
    check_flags("aaren_scan", reset, (T, batch))
    h0 = (m.astype(dtype), u.astype(dtype), w.astype(dtype))
    scan = _scan
    if backend == "xla" and v.size:
        scan = _scan_xla if jax.default_backend() == "cpu" else _by_linear_scan
    y, last = scan(s.astype(dtype), v.astype(dtype), reset, h0)
    return y.astype(v.dtype), last


def aaren_scan_step(h: State, s: jax.Array, v: jax.Array, reset: jax.Array | None = None) -> tuple[State, jax.Array]:
    """One step of `aaren_scan`: state `(m, u, w)`, `s[B, H]`, `v[B, H, V]`, `reset[B]` -> state,
    output `[B, H, V]`."""
    check_shapes("aaren_scan_step", **_state_shapes(h, v))
    dtype = state_dtype(s, v)
    m, u, w = (x.astype(dtype) for x in h)
    h, y = _tick((m, u, w), s.astype(dtype), v.astype(dtype), reset)
    return h, y.astype(v.dtype)


def _state_shapes(h, v):
    """The arrays of a state, and the shapes that they have beside values `[..., B, H, V]`."""
    *_, batch, heads, size = v.shape
    m, u, w = h
    return {"m": (m, (batch, heads)), "u": (u, (batch, heads)), "w": (w, (batch, heads, size))}


def _tick(h, s, v, reset):
    old_m, u, w = h
    m = _largest(old_m, s, reset)
    fade, weight = _weights(old_m, m, s, reset)
    u, w = clear(reset, u), clear(reset, w)
    u, w = fade * u + weight, fade[..., None] * w + weight[..., None] * v
    return (m, u, w), w / u[..., None]


def _largest(m, s, reset):
    largest = jnp.maximum(m, s)
    return largest if reset is None else jnp.where(reset[..., None], s, largest)


def _weights(old_m, m, s, reset):
    """Weights of the sums so far and of the new value."""
    change = old_m - m
    # A score lower than those before the reset would make the exponential infinite, and `inf * 0` of a cleared sum NaN.
    change = change if reset is None else jnp.where(reset[..., None], 0, change)
    return jnp.exp(change), jnp.exp(s - m)


def _scan(s, v, reset, h0):
    last, y = lax.scan(lambda h, now: _tick(h, *now), h0, (s, v, reset))
    return y, last


_scan_xla = jax.custom_vjp(_scan)


def _forward(s, v, reset, h0):
    def tick(h, now):
        (m, u, w), y = _tick(h, *now)
        return (m, u, w), (y, m, u)

    last, (y, m, u) = lax.scan(tick, h0, (s, v, reset))
    return (y, last), (s, v, reset, h0, y, m, u)


def _backward(residuals, cotangents):
    s, v, reset, (m0, u0, w0), y, m, u = residuals
    g, (gm_last, gu_last, gw_last) = cotangents
    old_m, old_u = (jnp.concatenate([x0[None], x[:-1]]) for x0, x in ((m0, m), (u0, u)))
    old_w = jnp.concatenate([w0[None], y[:-1] * u[:-1, ..., None]])
    old_u, old_w = clear(reset, old_u), clear(reset, old_w)
    fade, weight = _weights(old_m, m, s, reset)

    # Only what runs from step to step is a scan: the gradients of both sums, then that of m.
    def through_sums(back, now):
        gu_t, gw_t, fade_t, reset_t = now
        gu, gw = back[0] + gu_t, back[1] + gw_t
        return (clear(reset_t, fade_t * gu), clear(reset_t, fade_t[..., None] * gw)), (gu, gw)

    g = g / u[..., None]
    of_sums = -(g * y).sum(-1), g
    (du0, dw0), (gu, gw) = lax.scan(through_sums, (gu_last, gw_last), (*of_sums, fade, reset), reverse=True)
    d_weight = weight * (gu + (gw * v).sum(-1))  # of its exponent, as the next
    d_fade = clear(reset, fade * (gu * old_u + (gw * old_w).sum(-1)))
    from_s = jnp.where(s == old_m, 0.5, s > old_m)  # the maximum's gradient, halved where both are equal
    from_s = from_s if reset is None else jnp.where(reset[..., None], 1, from_s)

    def through_maximum(back, now):
        d_weight_t, d_fade_t, from_s_t = now
        gm = back - d_weight_t - d_fade_t
        return jnp.where(from_s_t < 1, d_fade_t + gm * (1 - from_s_t), d_fade_t), gm * from_s_t

    dm0, by_maximum = lax.scan(through_maximum, gm_last, (d_weight, d_fade, from_s), reverse=True)
    return d_weight + by_maximum, weight[..., None] * gw, None, (dm0, du0, dw0)


_scan_xla.defvjp(_forward, _backward)


def _by_linear_scan(s, v, reset, h0):
    m0, u0, w0 = h0
    m = _running_maxima(s, reset, m0)
    fade, weight = _weights(jnp.concatenate([m0[None], m[:-1]]), m, s, reset)
    rows = (*v.shape[:2], -1)

    def join(u, w):  # both sums are one row of numbers
        return jnp.concatenate([u[..., None], w], -1)

    drive = join(weight, weight[..., None] * v)
    decay = jnp.broadcast_to(fade[..., None], drive.shape).reshape(rows)
    h, last = linear_scan(decay, drive.reshape(rows), reset, join(u0, w0).reshape(len(m0), -1))
    h, last = h.reshape(drive.shape), last.reshape(drive.shape[1:])
    return h[..., 1:] / h[..., :1], (m[-1], last[..., 0], last[..., 1:])


def _running_maxima(s, reset, m0):
    """Running maxima of the scores `[T, B, H]` since the last reset; `m0` is the maximum before them."""

    def combine(first, second):
        (m1, r1), (m2, r2) = first, second
        return jnp.where(r2[..., None], m2, jnp.maximum(m1, m2)), r1 | r2

    opened = jnp.zeros(s.shape[:2], bool) if reset is None else reset
    first = _largest(m0, s[0], None if reset is None else reset[0])[None]
    return lax.associative_scan(combine, (jnp.concatenate([first, s[1:]]), opened))[0]
