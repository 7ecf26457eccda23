"""Recurrent networks without gates, with resets, the input product done outside.

With `h' = select(reset[t], 0, h[t-1])` and `r`, which is the identity but for a relu on the last `rectified` units:
    f = phi(x[t] + r(h') U)      h[t] = keep h' + gain f

`U` is a matrix (every unit sees every unit) or a vector (a unit sees itself), `phi` tanh, relu or the identity. As in
`engram.kernels.gru_scan`, the backward scan only carries `dh`; gradients of weights are sums over all steps at once.
"""

import jax
import jax.numpy as jnp
from jax import lax

from engram.errors import BadRequest
from engram.kernels.backends import check_flags, check_shapes, pick_backend, state_dtype
from engram.kernels.rows import clear, rows_outer

BACKENDS = ("reference", "xla")
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "identity": lambda z: z}
# Derivatives of the activations, by their value.
_SLOPES = {
    "tanh": lambda f: 1 - f * f,
    "relu": lambda f: (f > 0).astype(f.dtype),
    "identity": lambda f: jnp.ones_like(f),
}


def rnn_scan(
    x: jax.Array,
    U: jax.Array,
    keep: jax.Array,
    gain: jax.Array,
    reset: jax.Array | None = None,
    h0: jax.Array | None = None,
    *,
    activation: str = "tanh",
    rectified: int = 0,
    backend: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Scan over a chunk.

    Args:
        x: input after its product and bias `[T, B, H]`.
        U: recurrent weights, `[H, H]` or `[H]`.
        keep: what a unit keeps of its state `[H]`.
        gain: what a unit takes of the new value `[H]`.
        reset: bool `[T, B]`, True where `x[t]` opens an episode; None for no reset.
        h0: state before the chunk `[B, H]`; None for zeros.
        activation: "tanh", "relu" or "identity".
        rectified: number of units, the last ones, that the others see through a relu.
        backend: "reference" (plain scan, plain autodiff), "xla" (hand-written backward scan) or "auto".

    Returns:
        `h[T, B, H]` in the dtype of `x`, and the last state `[B, H]` in float32 or wider.

    Raises:
        BadRequest: unknown backend or activation.
        ValueError: shapes that do not fit.
    """
    backend = pick_backend(backend, BACKENDS, default="xla")
    if activation not in ACTIVATIONS:
        raise BadRequest(f"unknown activation {activation!r}: choose from {', '.join(ACTIVATIONS)}")
    units = x.shape[2:]
    check_shapes(
        "rnn_scan",
        U=(U, units * U.ndim),
        keep=(keep, units),
        gain=(gain, units),
        h0=(h0, x.shape[1:]),
    )
    check_flags("rnn_scan", reset, x.shape[:2])
    dtype = state_dtype(x, U)
    h0 = jnp.zeros(x.shape[1:], dtype) if h0 is None else h0.astype(dtype)
    scan = _scan_xla if backend == "xla" else _scan
    weights = U.astype(dtype), keep.astype(dtype), gain.astype(dtype)
    h, last = scan(activation, rectified, x.astype(dtype), weights, reset, h0)
    return h.astype(x.dtype), last


def rnn_scan_step(
    h: jax.Array,
    x: jax.Array,
    U: jax.Array,
    keep: jax.Array,
    gain: jax.Array,
    reset: jax.Array | None = None,
    *,
    activation: str = "tanh",
    rectified: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """One step of `rnn_scan`: `h[B, H]`, `x[B, H]`, `reset[B]` -> state, output."""
    check_shapes("rnn_scan_step", h=(h, x.shape))
    dtype = state_dtype(x, U)
    weights = U.astype(dtype), keep.astype(dtype), gain.astype(dtype)
    h, _ = _tick(activation, rectified, h.astype(dtype), x.astype(dtype), weights, reset)
    return h, h.astype(x.dtype)


def _seen(rectified, h):
    """What units see of `h[..., H]`."""
    if not rectified:
        return h
    plain = h.shape[-1] - rectified
    return jnp.concatenate([h[..., :plain], jax.nn.relu(h[..., plain:])], -1)


def _product(h, U):
    return h @ U if U.ndim == 2 else h * U


def _tick(activation, rectified, h, x, weights, reset):
    """New state, and `f`."""
    U, keep, gain = weights
    h = clear(reset, h)
    seen = _seen(rectified, h)
    f = ACTIVATIONS[activation](x + _product(seen, U))
    return keep * h + gain * f, f


def _scan(activation, rectified, x, weights, reset, h0):
    def tick(h, now):
        h, _ = _tick(activation, rectified, h, now[0], weights, now[1])
        return h, h

    last, h = lax.scan(tick, h0, (x, reset))
    return h, last


_scan_xla = jax.custom_vjp(_scan, nondiff_argnums=(0, 1))


def _forward(activation, rectified, x, weights, reset, h0):
    def tick(h, now):
        h, f = _tick(activation, rectified, h, now[0], weights, now[1])
        return h, (h, f)

    last, (h, f) = lax.scan(tick, h0, (x, reset))
    return (h, last), (weights, reset, h0, h, f)


def _backward(activation, rectified, residuals, cotangents):
    (U, keep, gain), reset, h0, h, f = residuals
    g, g_last = cotangents
    previous = clear(reset, jnp.concatenate([h0[None], h])[:-1])
    slope = gain * _SLOPES[activation](f)
    U_T = U.T
    linear = jnp.arange(h.shape[-1]) < h.shape[-1] - rectified

    def tick(back, now):
        g_t, slope_t, previous_t, reset_t = now
        dh = g_t + back
        dseen = _product(dh * slope_t, U_T)
        if rectified:
            dseen = jnp.where(linear | (previous_t > 0), dseen, 0)
        return clear(reset_t, keep * dh + dseen), dh

    dh0, dh = lax.scan(tick, g_last, (g, slope, previous, reset), reverse=True)
    dx = dh * slope
    seen = _seen(rectified, previous)
    dU = rows_outer(seen, dx) if U.ndim == 2 else (seen * dx).sum((0, 1))
    return dx, (dU, (previous * dh).sum((0, 1)), (f * dh).sum((0, 1))), None, dh0


_scan_xla.defvjp(_forward, _backward)
