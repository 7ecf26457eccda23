"""Gated linear attention with resets: a matrix state that decays and takes outer products.

With `S' = select(reset[t], 0, S[t-1])`, per head:
    S[t] = exp(log_decay[t]) S' + k[t] v[t]^T      y[t] = S[t]^T q[t]

and `-exp(log_decay[t])` in place of `exp(log_decay[t])` where `negative[t]`.

One decay for a head: the state-space duality of Mamba-2 (Dao and Gu 2024). One for each row of the state: GLA (Yang et
al., ICML 2024). Step by step a state of K V numbers is read and written for every K + V of input; in chunks most of the
work becomes matrix products, and only the states between chunks are ever made. On a CPU a C++ kernel
(`cpu/gla_scan.cc`) goes step by step and keeps the state in the cache: that is faster still, and few states are stored.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from engram.kernels import chunks
from engram.kernels.backends import check_flags, check_shapes, pick_backend, state_dtype
from engram.kernels.cpu import ffi

BACKENDS = ("reference", "xla", "ffi")
SMALLEST = 1e-6
"""Size of a signed decay at least: the logarithm of 0 has no gradient."""


def gla_scan(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    reset: jax.Array | None = None,
    h0: jax.Array | None = None,
    *,
    negative: jax.Array | None = None,
    chunk: int | None = None,
    backend: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Scan over a sequence.

    A NaN before a reset can reach the other steps of its chunk, by `0 * NaN` in a product; later chunks are safe, and
    so is all that follows a reset at step 0.

    Args:
        q, k: queries and keys `[T, B, H, K]`, or `[T, B, 1, K]` where all heads share them.
        v: values `[T, B, H, V]`.
        log_decay: at most 0; `[T, B, H]`, or `[T, B, H, K]` for a decay of each row of the state.
        reset: bool `[T, B]`, True where step t opens an episode; None for no reset.
        h0: state before the sequence `[B, H, K, V]`; None for zeros.
        negative: bool, of the shape of `log_decay`, True where the decay has a minus sign; None for nowhere.
        chunk: steps taken together by "xla", a power of 2; None for 16 on a CPU and 64 elsewhere.
        backend: "reference" (plain scan, plain autodiff), "xla" (matrix products within chunks), "ffi" (C++ on a CPU in
            float32, elsewhere as "xla") or "auto" ("ffi" on a CPU where it can be had, else "xla").

    Returns:
        `y[T, B, H, V]` in the dtype of `v`, and the last state `[B, H, K, V]` in float32 or wider.

    Raises:
        BadRequest: unknown backend, or a chunk that is not a power of 2.
        ValueError: shapes that do not fit.
    """
    T, B, H, V = v.shape
    heads, K = max(q.shape[2], k.shape[2]), k.shape[-1]  # one head of either, or both, may stand for all
    q, k = (jnp.broadcast_to(x, (T, B, heads, K)) if x.shape[2] == 1 else x for x in (q, k))
    heads = heads if heads == 1 else H
    decays = (T, B, H) if log_decay.ndim == 3 else (T, B, H, K)
    check_shapes("gla_scan", q=(q, (T, B, heads, K)), k=(k, (T, B, heads, K)), log_decay=(log_decay, decays))
    check_shapes("gla_scan", h0=(h0, (B, H, K, V)))
    check_flags("gla_scan", reset, (T, B))
    if negative is not None:
        check_flags("gla_scan", negative, decays, "negative")
        # Decays without signs, of a state times the product of all signs so far: it needs no reset, as a state of 0 has
        # no sign. That it counts from h0 on leaves h0 as it is, and the last state is handed on with its sign.
        of_key, of_state = (_signs(flips, q.dtype) for flips in (jnp.cumsum(negative, 0), negative.sum(0)))
        of_key = of_key if of_key.ndim == 4 else of_key[..., None]
        y, last = gla_scan(q * of_key, k * of_key, v, log_decay, reset, h0, chunk=chunk, backend=backend)
        return y, last * _over_state(of_state)
    backend = pick_backend(backend, BACKENDS, default="ffi")
    if not v.size:
        backend = "reference"
    chunk = chunks.pick_chunk(chunk, T)
    dtype = state_dtype(q, k, v, log_decay)
    if backend == "ffi":
        backend = ffi.if_loaded("gla_scan", dtype, (jnp.float32,))
    h0 = jnp.zeros((B, H, K, V), dtype) if h0 is None else h0.astype(dtype)
    scan = {"reference": _scan, "xla": partial(_scan_xla, chunk), "ffi": partial(_scan_ffi, chunk)}[backend]
    y, last = scan(*(x.astype(dtype) for x in (q, k, v, log_decay)), reset, h0)
    return y.astype(v.dtype), last


def gla_scan_step(
    h: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    reset: jax.Array | None = None,
    negative: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One step of `gla_scan`: `h[B, H, K, V]`, `q[B, H, K]`, `k[B, H, K]`, `v[B, H, V]`, `log_decay` and `negative`
    `[B, H]` or `[B, H, K]`, `reset[B]` -> state, output `[B, H, V]`."""
    check_shapes("gla_scan_step", h=(h, (*v.shape[:2], k.shape[-1], v.shape[-1])))
    if negative is not None:
        check_flags("gla_scan_step", negative, log_decay.shape, "negative")
        h = h * _over_state(_signs(negative, h.dtype))
    dtype = state_dtype(q, k, v, log_decay)
    h, y = _tick(h.astype(dtype), q.astype(dtype), k.astype(dtype), v.astype(dtype), log_decay.astype(dtype), reset)
    return h, y.astype(v.dtype)


def signed_decay(log_p: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The decay `2 p - 1`, in (-1, 1), that takes the place of a decay p in (0, 1) where signs are wanted (Grazzi et
    al., ICLR 2025): `log p` -> `log_decay` and `negative` of `gla_scan`. Sizes below `SMALLEST` count as that."""
    negative = log_p < -math.log(2)
    less = jnp.where(negative, -2 * jnp.exp(log_p), 2 * jnp.expm1(log_p))  # size less 1, exact where that is small
    return jnp.log1p(jnp.maximum(less, SMALLEST - 1)), negative


def _signs(flips, dtype):
    """-1 where the number of flips is odd, else 1."""
    return (1 - 2 * (flips % 2).astype(jnp.int32)).astype(dtype)


def _over_state(signs):
    """`[B, H]` or `[B, H, K]` -> as many axes as a state."""
    return signs.reshape(*signs.shape, *(1,) * (4 - signs.ndim))


def _tick(h, q, k, v, log_decay, reset):
    h = chunks.fade(h, log_decay, reset) + k[..., None] * v[..., None, :]
    return h, (q[..., None] * h).sum(-2)


def _scan(q, k, v, log_decay, reset, h0):
    last, y = lax.scan(lambda h, now: _tick(h, *now), h0, (q, k, v, log_decay, reset))
    return y, last


def _chunked(q, k, v, log_decay, reset, h0, chunk):
    steps = len(q)
    c = chunks.describe(log_decay, reset, chunk)
    q, k, v = (chunks.split(x, chunk) for x in (q, k, v))
    within = chunks.decayed_products(q, k, c) @ v
    # Selects on both sides: `0 * NaN` would carry a NaN over the end of the chunk.
    writes = jnp.swapaxes(jnp.where(c.ends, k * c.to_end, 0), -1, -2) @ jnp.where(c.ends, v, 0)

    def advance(h, now):
        writes, whole, passes, begun = now
        seen = jnp.where(begun[..., :1, :], h, 0)
        return jnp.where(passes, whole * seen, 0) + writes, seen

    last, seen = lax.scan(advance, h0, (writes, c.whole, c.passes, c.begun))
    y = within + jnp.where(c.begun, (q * c.from_start) @ seen, 0)
    return chunks.merge(y, steps), last


def _scan_xla(chunk, q, k, v, log_decay, reset, h0):
    return chunks.over_time(_chunked, (q, k, v, log_decay, reset), h0, chunk)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan_ffi(chunk, q, k, v, log_decay, reset, h0):
    def kernel(q, k, v, log_decay, reset, h0):
        log_decay = log_decay.reshape(*v.shape[:-1], -1)
        return ffi.call("gla_scan_forward", ffi.like(v, h0), q, k, v, log_decay, reset, h0)

    return ffi.on_cpu(kernel, partial(_scan_xla, chunk), q, k, v, log_decay, ffi.flags(reset, v), h0)


def _forward(chunk, *inputs):
    return _scan_ffi(chunk, *inputs), inputs


def _backward(chunk, inputs, cotangents):
    q, k, v, log_decay, reset, h0 = inputs

    def kernel(q, k, v, log_decay, reset, h0, g, g_last):
        decays = log_decay.reshape(*v.shape[:-1], -1)
        of_head = jax.ShapeDtypeStruct((*v.shape[:-1], q.shape[-1]), q.dtype)
        results = of_head, of_head, *ffi.like(v, decays, h0)
        dq, dk, dv, d_decays, dh0 = ffi.call("gla_scan_backward", results, q, k, v, decays, reset, h0, g, g_last)
        if q.shape != of_head.shape:  # one query and key for all heads
            dq, dk = dq.sum(-2, keepdims=True), dk.sum(-2, keepdims=True)
        return dq, dk, dv, d_decays.reshape(log_decay.shape), dh0

    def otherwise(q, k, v, log_decay, reset, h0, *cotangents):
        def scan(q, k, v, log_decay, h0):
            return _scan_xla(chunk, q, k, v, log_decay, reset, h0)

        return jax.vjp(scan, q, k, v, log_decay, h0)[1](cotangents)

    *gradients, dh0 = ffi.on_cpu(kernel, otherwise, q, k, v, log_decay, ffi.flags(reset, v), h0, *cotangents)
    return *gradients, None, dh0


_scan_ffi.defvjp(_forward, _backward)
