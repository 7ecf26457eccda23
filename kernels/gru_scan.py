"""GRU with resets, the input product done outside.

With `h' = select(reset[t], 0, h[t-1])` and `p = h' Wh` (Cho et al. 2014, in the form of cuDNN and flax):
    r = sigmoid(x_r + p_r)      z = sigmoid(x_z + p_z)      n = tanh(x_n + r (p_n + bh))      h[t] = (1 - z) n + z h'

Plain autodiff adds an outer product `h'^T dp` to the gradient of `Wh` at every step. Here the backward scan only
carries `dh`, and the gradient of `Wh` is one matrix product over all steps after it.
"""

import jax
import jax.numpy as jnp
from jax import lax

from kernels.backends import clear, pick_backend, state_dtype

BACKENDS = ("reference", "xla")


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
        xproj: `x Wx + bx`, `(T, B, 3H)`, the gates in the order r, z, n.
        Wh: recurrent weights `(H, 3H)`, same order.
        bh: recurrent bias of the candidate `(H,)`; those of r and z would only add to `bx`.
        reset: bool `(T, B)`, True where `xproj[t]` opens an episode; None for no reset.
        h0: state before the chunk `(B, H)`; None for zeros.
        backend: "reference" (plain scan, plain autodiff), "xla" (hand-written backward scan) or "auto".

    Returns:
        `h (T, B, H)` in the dtype of `xproj`, and the last state `(B, H)` in float32 or wider.

    Raises:
        ValueError: unknown backend.
    """
    backend = pick_backend(backend, BACKENDS, default="xla")
    dtype = state_dtype(xproj, Wh)
    h0 = jnp.zeros((xproj.shape[1], Wh.shape[0]), dtype) if h0 is None else h0.astype(dtype)
    scan = _scan_xla if backend == "xla" else _scan
    h, last = scan(xproj.astype(dtype), Wh.astype(dtype), bh.astype(dtype), reset, h0)
    return h.astype(xproj.dtype), last


def gru_scan_step(
    h: jax.Array, xproj: jax.Array, Wh: jax.Array, bh: jax.Array, reset: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """One step of `gru_scan`: `h (B, H)`, `xproj (B, 3H)`, `reset (B,)` -> state, output."""
    dtype = state_dtype(xproj, Wh)
    h, _ = _tick(h.astype(dtype), xproj.astype(dtype), Wh.astype(dtype), bh.astype(dtype), reset)
    return h, h.astype(xproj.dtype)


def _gates(xproj, p, bh):
    """r, z, n and `p_n + bh`, from the two products."""
    x_r, x_z, x_n = jnp.split(xproj, 3, -1)
    p_r, p_z, p_n = jnp.split(p, 3, -1)
    r, z, q = jax.nn.sigmoid(x_r + p_r), jax.nn.sigmoid(x_z + p_z), p_n + bh
    return r, z, jnp.tanh(x_n + r * q), q


def _tick(h, xproj, Wh, bh, reset):
    h = clear(reset, h)
    p = h @ Wh
    _, z, n, _ = _gates(xproj, p, bh)
    return (1 - z) * n + z * h, p


def _scan(xproj, Wh, bh, reset, h0):
    def tick(h, now):
        h, _ = _tick(h, now[0], Wh, bh, now[1])
        return h, h

    last, h = lax.scan(tick, h0, (xproj, reset))
    return h, last


_scan_xla = jax.custom_vjp(_scan)


def _forward(xproj, Wh, bh, reset, h0):
    def tick(h, now):
        h, p = _tick(h, now[0], Wh, bh, now[1])
        return h, (h, p)

    last, (h, p) = lax.scan(tick, h0, (xproj, reset))
    return (h, last), (xproj, Wh, bh, reset, h0, h, p)


def _backward(residuals, cotangents):
    xproj, Wh, bh, reset, h0, h, p = residuals
    g, g_last = cotangents
    previous = clear(reset, jnp.concatenate([h0[None], h[:-1]]))
    r, z, n, q = _gates(xproj, p, bh)
    # Every gradient of step t is dh[t] times one of these, so the scan carries dh alone.
    to_n = (1 - z) * (1 - n**2)
    to_p = jnp.concatenate([to_n * q * r * (1 - r), (previous - n) * z * (1 - z), to_n * r], -1)
    Wh_T = Wh.T

    def tick(back, now):
        g_t, to_p_t, z_t, reset_t = now
        dh = g_t + back
        return clear(reset_t, dh * z_t + (jnp.tile(dh, 3) * to_p_t) @ Wh_T), dh

    dh0, dh = lax.scan(tick, g_last, (g, to_p, z, reset), reverse=True)
    dp = jnp.tile(dh, 3) * to_p
    dxproj = jnp.concatenate([dp[..., : -h.shape[-1]], dh * to_n], -1)
    dWh = jnp.einsum("tbh,tbk->hk", previous, dp)
    return dxproj, dWh, dp[..., -h.shape[-1] :].sum((0, 1)), None, dh0


_scan_xla.defvjp(_forward, _backward)
