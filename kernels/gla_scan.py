"""Gated linear attention with resets: a matrix state that decays and takes outer products.

With `S' = select(reset[t], 0, S[t-1])`, per head:
    S[t] = exp(log_decay[t]) S' + k[t] v[t]^T      y[t] = S[t]^T q[t]

One decay for a head: the state-space duality of Mamba-2 (Dao and Gu 2024). One for each row of the state: GLA (Yang et
al. 2024). Step by step a state of K V numbers is read and written for every K + V of input; in chunks most of the
work becomes matrix products, and only the states between chunks are ever made.
"""

import jax
import jax.numpy as jnp
from jax import lax

from kernels import chunks
from kernels.backends import clear, pick_backend, state_dtype

BACKENDS = ("reference", "xla")


def gla_scan(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    reset: jax.Array | None = None,
    h0: jax.Array | None = None,
    *,
    chunk: int | None = None,
    backend: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Scan over a sequence.

    A NaN before a reset can reach the other steps of its chunk, by `0 * NaN` in a product; later chunks are safe, and
    so is all that follows a reset at step 0.

    Args:
        q, k: queries and keys `(T, B, H, K)`, or `(T, B, 1, K)` where all heads share them.
        v: values `(T, B, H, V)`.
        log_decay: at most 0; `(T, B, H)`, or `(T, B, H, K)` for a decay of each row of the state.
        reset: bool `(T, B)`, True where step t opens an episode; None for no reset.
        h0: state before the sequence `(B, H, K, V)`; None for zeros.
        chunk: steps taken together by "xla", a power of 2; None for 16 on a CPU and 64 elsewhere.
        backend: "reference" (plain scan, plain autodiff), "xla" (matrix products within chunks) or "auto".

    Returns:
        `y (T, B, H, V)` in the dtype of `v`, and the last state `(B, H, K, V)` in float32 or wider.

    Raises:
        ValueError: unknown backend, or a chunk that is not a power of 2.
    """
    backend = pick_backend(backend, BACKENDS, default="xla")
    chunk = chunks.pick_chunk(chunk, len(q))
    dtype = state_dtype(q, k, v, log_decay)
    h0 = jnp.zeros((*v.shape[1:3], k.shape[-1], v.shape[-1]), dtype) if h0 is None else h0.astype(dtype)
    sequence = (q.astype(dtype), k.astype(dtype), v.astype(dtype), log_decay.astype(dtype), reset)
    if backend == "xla":
        y, last = chunks.over_time(_chunked, sequence, h0, chunk)
    else:
        y, last = _scan(*sequence, h0)
    return y.astype(v.dtype), last


def gla_scan_step(
    h: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, log_decay: jax.Array, reset: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """One step of `gla_scan`: `h (B, H, K, V)`, `q, k (B, H, K)`, `v (B, H, V)`, `log_decay (B, H)` or `(B, H, K)`,
    `reset (B,)` -> state, output `(B, H, V)`."""
    dtype = state_dtype(q, k, v, log_decay)
    h, y = _tick(h.astype(dtype), q.astype(dtype), k.astype(dtype), v.astype(dtype), log_decay.astype(dtype), reset)
    return h, y.astype(v.dtype)


def _tick(h, q, k, v, log_decay, reset):
    decay = jnp.exp(log_decay)[..., None] if log_decay.ndim == 3 else jnp.exp(log_decay)[..., None, None]
    h = decay * clear(reset, h) + k[..., None] * v[..., None, :]
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
