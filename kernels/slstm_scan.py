"""sLSTM with resets, the scalar memory of xLSTM (Beck et al., NeurIPS 2024), the input product done outside.

With `c', n', h' = select(reset[t], 0, (c, n, h)[t-1])` and `s = xproj[t] + h' Wh`, where `Wh` mixes within a head:
    i = exp(s_i)      f = sigmoid(s_f)      z = tanh(s_z)      o = sigmoid(s_o)
    c[t] = f c' + i z      n[t] = f n' + i      h[t] = o c[t] / n[t]

`c` and `n` are kept divided by exp(m), m = max(m' + log f, s_i), with which `n` is never below 1. `h` does not depend
on `m`, so no gradient passes through it. As in `lstm_scan`, the backward scan carries only gradients of the state and
of the gates; the gradient of `Wh` is one product after it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from engram.kernels.backends import check_flags, check_shapes, pick_backend, state_dtype
from engram.kernels.gru_scan import sigmoid
from engram.kernels.rows import clear, select_rows

BACKENDS = ("reference", "xla")
NOTHING = -1e30
"""Exponent of a state that holds nothing: finite, as differences of infinities are NaN."""

State = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def initial_state(batch: int, heads: int, size: int, dtype: Any = jnp.float32) -> State:
    """`(c, n, m, h)` before anything was seen, each `[batch, heads, size]`."""
    zeros = jnp.zeros((batch, heads, size), dtype)
    return zeros, zeros, jnp.full_like(zeros, NOTHING), zeros


def slstm_scan(
    xproj: jax.Array,
    Wh: jax.Array,
    reset: jax.Array | None = None,
    state0: State | None = None,
    *,
    backend: str = "auto",
) -> tuple[jax.Array, State]:
    """Scan an sLSTM over a chunk.

    Args:
        xproj: `x Wx + b`, `[T, B, heads, 4 D]`, the gates of each head in the order i, f, z, o.
        Wh: recurrent weights `[heads, D, 4 D]`, same order.
        reset: bool `[T, B]`, True where `xproj[t]` opens an episode; None for no reset.
        state0: `(c, n, m, h)` before the chunk, each `[B, heads, D]`; None for `initial_state`. `m` gets no gradient.
        backend: "reference" (plain scan, plain autodiff), "xla" (hand-written backward scan) or "auto".

    Returns:
        `h[T, B, heads, D]` in the dtype of `xproj`, and the last `(c, n, m, h)` in float32 or wider.

    Raises:
        BadRequest: unknown backend.
        ValueError: shapes that do not fit.
    """
    backend = pick_backend(backend, BACKENDS, default="xla")
    dtype = state_dtype(xproj, Wh)
    (T, B), (heads, D, _) = xproj.shape[:2], Wh.shape
    check_shapes("slstm_scan", xproj=(xproj, (T, B, heads, 4 * D)), Wh=(Wh, (heads, D, 4 * D)))
    check_flags("slstm_scan", reset, (T, B))
    state0 = initial_state(B, heads, D, dtype) if state0 is None else state0
    check_shapes("slstm_scan", **{name: (x, (B, heads, D)) for name, x in zip("cnmh", state0, strict=True)})
    scan = _scan_xla if backend == "xla" and xproj.size else _scan
    h, last = scan(xproj.astype(dtype), Wh.astype(dtype), reset, tuple(x.astype(dtype) for x in state0))
    return h.astype(xproj.dtype), last


def slstm_scan_step(
    state: State, xproj: jax.Array, Wh: jax.Array, reset: jax.Array | None = None
) -> tuple[State, jax.Array]:
    """One step of `slstm_scan`: state `(c, n, m, h)`, each `[B, heads, D]`, `xproj[B, heads, 4 D]`, `reset[B]` ->
    state, output."""
    size = len(xproj), *Wh.shape[:2]
    check_shapes("slstm_scan_step", **{name: (x, size) for name, x in zip("cnmh", state, strict=True)})
    dtype = state_dtype(xproj, Wh)
    state, _ = _tick(tuple(x.astype(dtype) for x in state), xproj.astype(dtype), Wh.astype(dtype), reset)
    return state, state[-1].astype(xproj.dtype)


def _product(h, Wh):
    return jnp.einsum("bhd,hde->bhe", h, Wh)


def _tick(state, xproj, Wh, reset):
    """New state, and the gates i, f, z, o (i and f relative to m) with the derivative of f by its logit."""
    c, n, m, h = state
    c, n, h = (clear(reset, x) for x in (c, n, h))
    if reset is not None:
        m = select_rows(reset, jnp.full_like(m, NOTHING), m)
    i, f, z, o = jnp.split(xproj + _product(h, Wh), 4, -1)
    kept = jax.nn.log_sigmoid(f) + lax.stop_gradient(m)
    m = lax.stop_gradient(jnp.maximum(kept, i))
    slope = 1 - sigmoid(f)
    i, f, z, o = jnp.exp(i - m), jnp.exp(kept - m), jnp.tanh(z), sigmoid(o)
    c, n = f * c + i * z, f * n + i
    return (c, n, m, o * c / n), (i, f, z, o, f * slope)


def _scan(xproj, Wh, reset, state0):
    def tick(state, now):
        state, _ = _tick(state, now[0], Wh, now[1])
        return state, state[-1]

    last, h = lax.scan(tick, state0, (xproj, reset))
    return h, last


_scan_xla = jax.custom_vjp(_scan)


def _forward(xproj, Wh, reset, state0):
    def tick(state, now):
        state, gates = _tick(state, now[0], Wh, now[1])
        c, n, _, h = state
        return state, (c, n, h, gates)

    last, (c, n, h, gates) = lax.scan(tick, state0, (xproj, reset))
    return (h, last), (Wh, reset, state0, c, n, h, gates)


def _backward(residuals, cotangents):
    Wh, reset, (c0, n0, m0, h0), c, n, h, gates = residuals
    g_h, (last_c, last_n, _, last_h) = cotangents
    found = [clear(reset, jnp.concatenate([x0[None], x[:-1]])) for x0, x in ((c0, c), (n0, n), (h0, h))]
    Wh_T = Wh.swapaxes(1, 2)

    def tick(back, now):
        back_c, back_n, back_h = back
        g_t, c_found, n_found, c_t, n_t, h_t, (i, f, z, o, f_slope), reset_t = now
        dh = g_t + back_h
        dc = back_c + dh * o / n_t
        dn = back_n - dh * h_t / n_t
        ds = jnp.concatenate(
            [
                (dc * z + dn) * i,
                (dc * c_found + dn * n_found) * f_slope,
                dc * i * (1 - z * z),
                dh * c_t / n_t * o * (1 - o),
            ],
            -1,
        )
        return tuple(clear(reset_t, d) for d in (dc * f, dn * f, _product(ds, Wh_T))), ds

    sequence = (g_h, found[0], found[1], c, n, h, gates, reset)
    (dc0, dn0, dh0), ds = lax.scan(tick, (last_c, last_n, last_h), sequence, reverse=True)
    return ds, jnp.einsum("tbhd,tbhe->hde", found[2], ds), None, (dc0, dn0, jnp.zeros_like(m0), dh0)


_scan_xla.defvjp(_forward, _backward)
