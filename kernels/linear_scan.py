"""Diagonal linear recurrence with resets: `h[t] = a[t] * select(reset[t], 0, h[t-1]) + x[t]`.

The core of S5 and LRU (time-invariant complex `a`) and of minGRU, RG-LRU and HGRN (real `a[t]`). On a CPU two
sequential scans, the second one written by hand, beat `associative_scan` several times over and compile in a
fraction of the time; in C++ (`linear_scan.cc`) they move their arrays through memory once and on all cores.
"""

import jax
import jax.numpy as jnp
from jax import lax

from kernels import ffi
from kernels.backends import clear, pick_backend, state_dtype

BACKENDS = ("reference", "xla", "ffi")


def linear_scan(
    a: jax.Array,
    x: jax.Array,
    reset: jax.Array | None = None,
    h0: jax.Array | None = None,
    *,
    backend: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Scan the recurrence over a chunk.

    Gradients follow JAX's convention for complex numbers (no conjugation). A parameter shared by all steps, such as a
    time-invariant `a`, collects every step: its gradient is NaN if any state in the chunk was, reset or not.

    Args:
        a: decay, `(D,)` for a time-invariant one or `(T, B, D)`; real or complex.
        x: input `(T, B, D)`, real or complex; complex if `a` is.
        reset: bool `(T, B)`, True where `x[t]` opens an episode; None for no reset.
        h0: state before the chunk `(B, D)`; None for zeros.
        backend: "reference" (plain scan, plain autodiff), "xla" (hand-written backward scan), "ffi" (C++ on a CPU in
            float32 and complex64, elsewhere as "xla") or "auto" ("ffi" where it can be had, else "xla").

    Returns:
        `h (T, B, D)` in the dtype of `x`, and the last state `(B, D)` in float32 / complex64 or wider.

    Raises:
        ValueError: unknown backend, or complex `a` with real `x`.
    """
    backend = pick_backend(backend, BACKENDS, default="ffi")
    dtype = _dtype(a, x)
    if backend == "ffi":
        backend = ffi.if_loaded("linear_scan", dtype)
    h0 = jnp.zeros(x.shape[1:], dtype) if h0 is None else h0.astype(dtype)
    scan = {"reference": _scan, "xla": _scan_xla, "ffi": _scan_ffi}[backend]
    h, last = scan(a.astype(dtype), x.astype(dtype), reset, h0)
    return h.astype(x.dtype), last


def linear_scan_step(
    h: jax.Array, a: jax.Array, x: jax.Array, reset: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """One step of `linear_scan`: `h (B, D)`, `a (D,)` or `(B, D)`, `x (B, D)`, `reset (B,)` -> state, output."""
    dtype = _dtype(a, x)
    h = _tick(h.astype(dtype), a.astype(dtype), x.astype(dtype), reset)
    return h, h.astype(x.dtype)


def _dtype(a, x):
    if jnp.iscomplexobj(a) and not jnp.iscomplexobj(x):
        raise ValueError("linear_scan: a complex decay needs a complex input")
    return state_dtype(a, x)


def _tick(h, a, x, reset):
    return a * clear(reset, h) + x


def _scan(a, x, reset, h0):
    constant = a.ndim == 1

    def tick(h, now):
        a_t, x_t, reset_t = now
        h = _tick(h, a if constant else a_t, x_t, reset_t)
        return h, h

    last, h = lax.scan(tick, h0, (None if constant else a, x, reset))
    return h, last


_scan_xla = jax.custom_vjp(_scan)


def _forward(a, x, reset, h0):
    h, last = _scan(a, x, reset, h0)
    return (h, last), (a, reset, h0, h)


def _backward(residuals, cotangents):
    a, reset, h0, h = residuals
    g, g_last = cotangents
    constant = a.ndim == 1
    steps = jnp.arange(h.shape[0])

    def tick(carry, now):
        back, da_sum = carry  # d loss / d h[t] through the future; running sum of da when `a` is constant
        a_t, g_t, reset_t, t = now
        a_t = a if constant else a_t
        dx = g_t + back
        # Read h[t-1] in place: shifting h would copy the whole array.
        previous = jnp.where(t > 0, lax.dynamic_index_in_dim(h, jnp.maximum(t - 1, 0), keepdims=False), h0)
        da = dx * clear(reset_t, previous)
        back = clear(reset_t, a_t * dx)
        if constant:
            return (back, da_sum + da), (dx, None)
        return (back, da_sum), (dx, da)

    start = (g_last, jnp.zeros_like(h0) if constant else jnp.zeros(0))
    (dh0, da_sum), (dx, da) = lax.scan(tick, start, (None if constant else a, g, reset, steps), reverse=True)
    return (da_sum.sum(0) if constant else da), dx, None, dh0


_scan_xla.defvjp(_forward, _backward)


@jax.custom_vjp
def _scan_ffi(a, x, reset, h0):
    def kernel(*inputs):
        return ffi.call(f"linear_scan_forward_{_kind(x)}", ffi.like(x, h0), *inputs)

    return ffi.on_cpu(kernel, _scan, a, x, ffi.flags(reset, x), h0)


def _forward_ffi(a, x, reset, h0):
    h, last = _scan_ffi(a, x, reset, h0)
    return (h, last), (a, reset, h0, h)


def _backward_ffi(residuals, cotangents):
    a, reset, h0, h = residuals
    constant = a.ndim == 1

    def kernel(*inputs):
        results = *ffi.like(h0 if constant else a), *ffi.like(h, h0)  # da of each row, where all steps share one `a`
        da, dx, dh0 = ffi.call(f"linear_scan_backward_{_kind(h)}", results, *inputs)
        return (da.sum(0) if constant else da), dx, dh0

    def otherwise(a, reset, h0, h, *cotangents):
        da, dx, _, dh0 = _backward((a, reset, h0, h), cotangents)
        return da, dx, dh0

    da, dx, dh0 = ffi.on_cpu(kernel, otherwise, a, ffi.flags(reset, h), h0, h, *cotangents)
    return da, dx, None, dh0


def _kind(x):
    return "complex" if jnp.iscomplexobj(x) else "real"


_scan_ffi.defvjp(_forward_ffi, _backward_ffi)
