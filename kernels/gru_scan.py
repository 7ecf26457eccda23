"""GRU with resets, the input product done outside.

With `h' = select(reset[t], 0, h[t-1])` and `p = h' Wh` (Cho et al. 2014, in the form of cuDNN and flax):
    r = sigmoid(x_r + p_r)      z = sigmoid(x_z + p_z)      n = tanh(x_n + r (p_n + bh))      h[t] = (1 - z) n + z h'

Plain autodiff adds an outer product `h'^T dp` to the gradient of `Wh` at every step. Here the backward scan only
carries `dh`; the gradient of `Wh` is a matrix product over all steps at once, after it. On a CPU a C++ kernel
(`cpu/recurrent_scan.cc`) keeps the weights in the cache and makes a step's product and gates at once.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from engram.kernels.backends import check_flags, check_shapes, pick_backend, state_dtype
from engram.kernels.cpu import ffi
from engram.kernels.rows import clear, rows_outer

BACKENDS = ("reference", "xla", "ffi")


def sigmoid(x: jax.Array) -> jax.Array:
    """`1 / (1 + exp(-x))` by `tanh`, which XLA vectorises on CPU: up to twice as fast as `jax.nn.sigmoid` in a scan."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def gru_scan(
    xproj: jax.Array,
    Wh: jax.Array,
    bh: jax.Array,
    reset: jax.Array | None = None,
    h0: jax.Array | None = None,
    *,
    backend: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Scan a GRU over a chunk.

    Args:
        xproj: `x Wx + bx`, `[T, B, 3H]`, the gates in the order r, z, n.
        Wh: recurrent weights `[H, 3H]`, same order.
        bh: recurrent bias of the candidate `[H]`; those of r and z would only add to `bx`.
        reset: bool `[T, B]`, True where `xproj[t]` opens an episode; None for no reset.
        h0: state before the chunk `[B, H]`; None for zeros.
        backend: "reference" (plain scan, plain autodiff), "xla" (hand-written backward scan), "ffi" (C++ on a CPU in
            float32, elsewhere as "xla") or "auto" ("ffi" on a CPU where it can be had, else "xla").

    Returns:
        `h[T, B, H]` in the dtype of `xproj`, and the last state `[B, H]` in float32 or wider.

    Raises:
        BadRequest: unknown backend.
        ValueError: shapes that do not fit.
    """
    (T, B, _), H = xproj.shape, len(bh)
    check_shapes("gru_scan", xproj=(xproj, (T, B, 3 * H)), Wh=(Wh, (H, 3 * H)), bh=(bh, (H,)), h0=(h0, (B, H)))
    check_flags("gru_scan", reset, (T, B))
    backend = pick_backend(backend, BACKENDS, default="ffi")
    if not xproj.size:
        backend = "reference"
    dtype = state_dtype(xproj, Wh)
    if backend == "ffi":
        backend = ffi.if_loaded("recurrent_scan", dtype, (jnp.float32,))
    h0 = jnp.zeros((B, H), dtype) if h0 is None else h0.astype(dtype)
    scan = {"reference": _scan, "xla": _scan_xla, "ffi": _scan_ffi}[backend]
    h, last = scan(xproj.astype(dtype), Wh.astype(dtype), bh.astype(dtype), reset, h0)
    return h.astype(xproj.dtype), last


def gru_scan_step(
    h: jax.Array, xproj: jax.Array, Wh: jax.Array, bh: jax.Array, reset: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """One step of `gru_scan`: `h[B, H]`, `xproj[B, 3H]`, `reset[B]` -> state, output."""
    check_shapes("gru_scan_step", h=(h, (len(xproj), len(bh))))
    dtype = state_dtype(xproj, Wh)
    h, _ = _tick(h.astype(dtype), xproj.astype(dtype), Wh.astype(dtype), bh.astype(dtype), reset)
    return h, h.astype(xproj.dtype)


def _tick(h, xproj, Wh, bh, reset):
    """New state, and the gates r, z, n with `q = p_n + bh`."""
    h = clear(reset, h)
    x_r, x_z, x_n = jnp.split(xproj, 3, -1)
    p_r, p_z, p_n = jnp.split(h @ Wh, 3, -1)
    r, z, q = sigmoid(x_r + p_r), sigmoid(x_z + p_z), p_n + bh
    n = jnp.tanh(x_n + r * q)
    return (1 - z) * n + z * h, (r, z, n, q)


def _scan(xproj, Wh, bh, reset, h0):
    def tick(h, now):
        h, _ = _tick(h, now[0], Wh, bh, now[1])
        return h, h

    last, h = lax.scan(tick, h0, (xproj, reset))
    return h, last


_scan_xla = jax.custom_vjp(_scan)


def _forward(xproj, Wh, bh, reset, h0):
    def tick(h, now):
        h, gates = _tick(h, now[0], Wh, bh, now[1])
        return h, (h, gates)

    last, (h, gates) = lax.scan(tick, h0, (xproj, reset))
    return (h, last), (Wh, reset, h0, h, gates)


def _backward(residuals, cotangents):
    Wh, reset, h0, h, gates = residuals
    g, g_last = cotangents
    previous = clear(reset, jnp.concatenate([h0[None], h[:-1]]))
    Wh_T = Wh.T

    def tick(back, now):
        g_t, previous_t, (r, z, n, q), reset_t = now
        dh = g_t + back
        dx_n = dh * (1 - z) * (1 - n * n)
        dq = dx_n * r
        dx_rz = jnp.concatenate([dx_n * q * r * (1 - r), dh * (previous_t - n) * z * (1 - z)], -1)
        back = dh * z + jnp.concatenate([dx_rz, dq], -1) @ Wh_T
        return clear(reset_t, back), (jnp.concatenate([dx_rz, dx_n], -1), dq)

    dh0, (dxproj, dq) = lax.scan(tick, g_last, (g, previous, gates, reset), reverse=True)
    dx_rz = dxproj[..., : -dq.shape[-1]]
    dWh = jnp.concatenate([rows_outer(previous, dp) for dp in (dx_rz, dq)], -1)
    return dxproj, dWh, dq.sum((0, 1)), None, dh0


_scan_xla.defvjp(_forward, _backward)


@jax.custom_vjp
def _scan_ffi(xproj, Wh, bh, reset, h0):
    def kernel(*inputs):
        h, *_ = _call_forward(False, *inputs)
        return h, h[-1]

    return ffi.on_cpu(kernel, _scan, xproj, Wh, bh, ffi.flags(reset, xproj), h0)


def _forward_ffi(xproj, Wh, bh, reset, h0):
    def otherwise(*inputs):
        (h, _), (*_, (r, z, n, q)) = _forward(*inputs)
        return h, jnp.concatenate([r, z, n], -1), q

    h, gates, q = ffi.on_cpu(partial(_call_forward, True), otherwise, xproj, Wh, bh, ffi.flags(reset, xproj), h0)
    return (h, h[-1]), (Wh, reset, h0, h, gates, q)


def _backward_ffi(residuals, cotangents):
    Wh, reset, h0, h, gates, q = residuals

    def kernel(*inputs):
        Wh, _, h0, _, gates, q, *_ = inputs
        results = ffi.like(gates, Wh, q, h0)
        dxproj, dWh, dq, dh0 = ffi.call("gru_scan_backward", results, *inputs, in_place={4: 0, 5: 2})
        return dxproj, dWh, dq.sum((0, 1)), dh0

    def otherwise(Wh, reset, h0, h, gates, q, *cotangents):
        gates = (*jnp.split(gates, 3, -1), q)
        dxproj, dWh, dbh, _, dh0 = _backward((Wh, reset, h0, h, gates), cotangents)
        return dxproj, dWh, dbh, dh0

    inputs = Wh, ffi.flags(reset, h), h0, h, gates, q
    dxproj, dWh, dbh, dh0 = ffi.on_cpu(kernel, otherwise, *inputs, *cotangents)
    return dxproj, dWh, dbh, None, dh0


_scan_ffi.defvjp(_forward_ffi, _backward_ffi)


def _call_forward(keep, xproj, Wh, bh, reset, h0):
    """The states and, with `keep`, of every step the gates r, z, n `[T, B, 3H]` and `q[T, B, H]`."""
    (T, B, _), H = xproj.shape, len(bh)
    kept = T if keep else 0
    results = tuple(jax.ShapeDtypeStruct(s, xproj.dtype) for s in ((T, B, H), (kept, B, 3 * H), (kept, B, H)))
    return ffi.call("gru_scan_forward", results, xproj, Wh, bh, reset, h0)
