"""LSTM with resets, the input product done outside.

With `c', h' = select(reset[t], 0, (c, h)[t-1])` and `s = xproj[t] + h' Wh` (Hochreiter and Schmidhuber 1997, with the
forget gate of Gers et al. 2000):
    i, f, o = sigmoid(s_i, s_f, s_o)      g = tanh(s_g)      c[t] = f c' + i g      h[t] = o tanh(c[t])

As in `gru_scan`, the backward scan carries only gradients of the state and of the gates; the gradient of `Wh` is one
matrix product after it. On a CPU a C++ kernel (`cpu/recurrent_scan.cc`) keeps the weights in the cache and makes a
step's product and gates at once.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from engram.kernels.backends import check_flags, check_shapes, pick_backend, state_dtype
from engram.kernels.cpu import ffi
from engram.kernels.gru_scan import sigmoid
from engram.kernels.rows import clear, rows_outer

BACKENDS = ("reference", "xla", "ffi")


def lstm_scan(
    xproj: jax.Array,
    Wh: jax.Array,
    reset: jax.Array | None = None,
    state0: tuple[jax.Array, jax.Array] | None = None,
    *,
    backend: str = "auto",
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Scan an LSTM over a chunk.

    Args:
        xproj: `x Wx + b`, `[T, B, 4H]`, the gates in the order i, f, g, o.
        Wh: recurrent weights `[H, 4H]`, same order.
        reset: bool `[T, B]`, True where `xproj[t]` opens an episode; None for no reset.
        state0: `(c, h)` before the chunk, each `[B, H]`; None for zeros.
        backend: "reference" (plain scan, plain autodiff), "xla" (hand-written backward scan), "ffi" (C++ on a CPU in
            float32, elsewhere as "xla") or "auto" ("ffi" on a CPU where it can be had, else "xla").

    Returns:
        `h[T, B, H]` in the dtype of `xproj`, and the last `(c, h)`, each `[B, H]` in float32 or wider.

    Raises:
        BadRequest: unknown backend.
        ValueError: shapes that do not fit.
    """
    (T, B, _), H = xproj.shape, len(Wh)
    c0, h0 = (None, None) if state0 is None else state0
    check_shapes("lstm_scan", xproj=(xproj, (T, B, 4 * H)), Wh=(Wh, (H, 4 * H)), c0=(c0, (B, H)), h0=(h0, (B, H)))
    check_flags("lstm_scan", reset, (T, B))
    backend = pick_backend(backend, BACKENDS, default="ffi")
    if not xproj.size:
        backend = "reference"
    dtype = state_dtype(xproj, Wh)
    if backend == "ffi":
        backend = ffi.if_loaded("recurrent_scan", dtype, (jnp.float32,))
    c0, h0 = (jnp.zeros((B, H), dtype) if x is None else x.astype(dtype) for x in (c0, h0))
    scan = {"reference": _scan, "xla": _scan_xla, "ffi": _scan_ffi}[backend]
    h, last = scan(xproj.astype(dtype), Wh.astype(dtype), reset, c0, h0)
    return h.astype(xproj.dtype), last


def lstm_scan_step(
    state: tuple[jax.Array, jax.Array], xproj: jax.Array, Wh: jax.Array, reset: jax.Array | None = None
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """One step of `lstm_scan`: state `(c, h)`, each `[B, H]`, `xproj[B, 4H]`, `reset[B]` -> state, output."""
    size = len(xproj), len(Wh)
    check_shapes("lstm_scan_step", c=(state[0], size), h=(state[1], size))
    dtype = state_dtype(xproj, Wh)
    c, h, _ = _tick(state[0].astype(dtype), state[1].astype(dtype), xproj.astype(dtype), Wh.astype(dtype), reset)
    return (c, h), h.astype(xproj.dtype)


def _tick(c, h, xproj, Wh, reset):
    """New `c` and `h`, and the gates i, f, g, o with `tanh(c)`."""
    i, f, g, o = jnp.split(xproj + clear(reset, h) @ Wh, 4, -1)
    i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
    c = f * clear(reset, c) + i * g
    squashed = jnp.tanh(c)
    return c, o * squashed, (i, f, g, o, squashed)


def _scan(xproj, Wh, reset, c0, h0):
    def tick(state, now):
        c, h, _ = _tick(state[0], state[1], now[0], Wh, now[1])
        return (c, h), h

    last, h = lax.scan(tick, (c0, h0), (xproj, reset))
    return h, last


_scan_xla = jax.custom_vjp(_scan)


def _forward(xproj, Wh, reset, c0, h0):
    def tick(state, now):
        c, h, gates = _tick(state[0], state[1], now[0], Wh, now[1])
        return (c, h), (c, h, gates)

    last, (c, h, gates) = lax.scan(tick, (c0, h0), (xproj, reset))
    return (h, last), (Wh, reset, c0, h0, c, h, gates)


def _backward(residuals, cotangents):
    Wh, reset, c0, h0, c, h, gates = residuals
    g_h, last = cotangents
    previous_c = clear(reset, jnp.concatenate([c0[None], c[:-1]]))
    previous_h = clear(reset, jnp.concatenate([h0[None], h[:-1]]))
    Wh_T = Wh.T

    def tick(back, now):
        back_c, back_h = back
        g_t, previous_c_t, (i, f, g, o, squashed), reset_t = now
        dh = g_t + back_h
        dc = back_c + dh * o * (1 - squashed * squashed)
        ds = jnp.concatenate(
            [
                dc * g * i * (1 - i),
                dc * previous_c_t * f * (1 - f),
                dc * i * (1 - g * g),
                dh * squashed * o * (1 - o),
            ],
            -1,
        )
        return (clear(reset_t, dc * f), clear(reset_t, ds @ Wh_T)), ds

    (dc0, dh0), ds = lax.scan(tick, last, (g_h, previous_c, gates, reset), reverse=True)
    return ds, rows_outer(previous_h, ds), None, dc0, dh0


_scan_xla.defvjp(_forward, _backward)


@jax.custom_vjp
def _scan_ffi(xproj, Wh, reset, c0, h0):
    def kernel(*inputs):
        h, c, *_ = _call_forward(False, *inputs)
        return h, (c, h[-1])

    return ffi.on_cpu(kernel, _scan, xproj, Wh, ffi.flags(reset, xproj), c0, h0)


def _forward_ffi(xproj, Wh, reset, c0, h0):
    def otherwise(*inputs):
        (h, last), (*_, c, _, (i, f, g, o, _)) = _forward(*inputs)
        return h, last[0], jnp.concatenate([i, f, g, o], -1), c

    inputs = xproj, Wh, ffi.flags(reset, xproj), c0, h0
    h, last, gates, c = ffi.on_cpu(partial(_call_forward, True), otherwise, *inputs)
    return (h, (last, h[-1])), (Wh, reset, c0, h0, h, gates, c)


def _backward_ffi(residuals, cotangents):
    Wh, reset, c0, h0, h, gates, c = residuals
    g, last = cotangents

    def kernel(*inputs):
        Wh, _, c0, h0, _, gates, *_ = inputs
        return ffi.call("lstm_scan_backward", ffi.like(gates, Wh, c0, h0), *inputs, in_place={5: 0})

    def otherwise(Wh, reset, c0, h0, h, gates, c, g, *last):
        gates = (*jnp.split(gates, 4, -1), jnp.tanh(c))
        dxproj, dWh, _, dc0, dh0 = _backward((Wh, reset, c0, h0, c, h, gates), (g, last))
        return dxproj, dWh, dc0, dh0

    inputs = Wh, ffi.flags(reset, h), c0, h0, h, gates, c
    dxproj, dWh, dc0, dh0 = ffi.on_cpu(kernel, otherwise, *inputs, g, *last)
    return dxproj, dWh, None, dc0, dh0


_scan_ffi.defvjp(_forward_ffi, _backward_ffi)


def _call_forward(keep, xproj, Wh, reset, c0, h0):
    """The states h, the last c and, with `keep`, of every step the gates i, f, g, o `[T, B, 4H]` and `c[T, B, H]`."""
    (T, B, _), H = xproj.shape, len(Wh)
    kept = T if keep else 0
    shapes = (T, B, H), (B, H), (kept, B, 4 * H), (kept, B, H)
    results = tuple(jax.ShapeDtypeStruct(shape, xproj.dtype) for shape in shapes)
    return ffi.call("lstm_scan_forward", results, xproj, Wh, reset, c0, h0)
