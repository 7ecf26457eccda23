"""The delta rule with resets: a matrix state that replaces what it holds under a key.

With `S' = exp(log_decay[t]) select(reset[t], 0, S[t-1])`, per head:
    S[t] = S' + k[t] (beta[t] (v[t] - S'^T k[t]))^T      y[t] = S[t]^T q[t]

What is held may also be read under another key than it is written, `read` in place of the second k: the transition
`I - beta k read^T` (RWKV-7, Peng et al. 2025).

With keys of length 1, `beta` in (0, 1) writes a share of the new value in place of the old one (DeltaNet: Schlag et al.
2021; in parallel, Yang et al., NeurIPS 2024; with a decay, Gated DeltaNet: Yang et al., ICLR 2025). The transition
`I - beta k k^T` has the eigenvalue `1 - beta` along the key: `beta` up to 2 makes it negative, and the state can count
parity (Grazzi et al. 2025). Several such updates per step compose to permutations and rotations (DeltaProduct, Siems et
al. 2025).

In chunks (the WY form of Yang et al., NeurIPS 2024, decays and resets included): the updates of a chunk,
`u[t] = beta[t] (v[t] - S'^T k[t])`, solve `(I + M) U = beta (V - K S_0)` with M strictly lower triangular, the products
of keys with earlier keys; given U the rest is `gla_scan` with U in place of V. On a CPU a C++ kernel
(`cpu/delta_scan.cc`) goes step by step and keeps the state in the cache.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from engram.kernels import chunks
from engram.kernels.backends import check_flags, check_shapes, pick_backend, state_dtype
from engram.kernels.cpu import ffi
from engram.kernels.rows import clear

BACKENDS = ("reference", "xla", "ffi")
STRETCH = 16
"""Updates that the C++ kernel makes again together in the backward pass."""


def delta_scan(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array | None = None,
    reset: jax.Array | None = None,
    h0: jax.Array | None = None,
    *,
    read: jax.Array | None = None,
    n_householder: int = 1,
    chunk: int | None = None,
    backend: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Scan over a sequence.

    In "xla" a NaN before a reset can reach the other steps of its chunk, by `0 * NaN` in a product. A NaN in a key or
    in `beta` can also reach the state after the chunk of the reset. What follows a reset at step 0 is safe.

    Args:
        q: queries `[T, B, H, K]`.
        k: keys `[T, B, H, K]`, of length 1 for a stable state; `[T, B, n, H, K]` with `n_householder = n > 1`.
        v: values `[T, B, H, V]`, or `[T, B, n, H, V]`.
        beta: `[T, B, H]`, or `[T, B, n, H]`; in (0, 2) for a stable state.
        log_decay: at most 0; `[T, B, H]`, or `[T, B, H, K]` for a decay of each row of the state; None for no decay.
            Applied once per step, before the first update.
        reset: bool `[T, B]`, True where step t opens an episode; None for no reset.
        h0: state before the sequence `[B, H, K, V]`; None for zeros.
        read: keys under which what is held is read, as `k`; None for `k` itself.
        n_householder: updates per step.
        chunk: updates taken together by "xla", a power of 2; None for 16 on a CPU and 64 elsewhere.
        backend: "reference" (plain scan, plain autodiff), "xla" (matrix products within chunks), "ffi" (C++ on a CPU in
            float32, elsewhere as "xla") or "auto" ("ffi" on a CPU where it can be had, else "xla").

    Returns:
        `y[T, B, H, V]` in the dtype of `v`, and the last state `[B, H, K, V]` in float32 or wider.

    Raises:
        BadRequest: unknown backend, or a chunk that is not a power of 2.
        ValueError: shapes that do not fit each other or `n_householder`.
    """
    (T, B, H, K), V = q.shape, v.shape[-1]
    decays = (T, B, H) if log_decay is None or log_decay.ndim == 3 else (T, B, H, K)
    several = (T, B, H) if n_householder == 1 else (T, B, n_householder, H)
    check_shapes("delta_scan", k=(k, (*several, K)), v=(v, (*several, V)), beta=(beta, several), read=(read, k.shape))
    check_shapes("delta_scan", log_decay=(log_decay, decays), h0=(h0, (B, H, K, V)))
    check_flags("delta_scan", reset, (T, B))
    backend = pick_backend(backend, BACKENDS, default="ffi")
    if not q.size or not V:
        backend = "reference"
    chunk = chunks.pick_chunk(chunk, T * n_householder)
    dtype = state_dtype(q, k, v, beta)
    if backend == "ffi":
        backend = ffi.if_loaded("delta_scan", dtype, (jnp.float32,))
    h0 = jnp.zeros((B, H, K, V), dtype) if h0 is None else h0.astype(dtype)
    wide: Any = (None if x is None else x.astype(dtype) for x in (q, k, v, beta, log_decay, read))
    scan = {"reference": _scan, "xla": partial(_scan_xla, chunk), "ffi": partial(_scan_ffi, chunk)}[backend]
    y, last = scan(*wide, reset, h0)
    return y.astype(v.dtype), last


def delta_scan_step(
    h: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array | None = None,
    reset: jax.Array | None = None,
    *,
    read: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One step of `delta_scan`: `h[B, H, K, V]`, `q[B, H, K]`, then `k`, `v`, `beta` and `read` of `[B, H, ...]` or of
    `[B, n, H, ...]`, `log_decay[B, H]` or `[B, H, K]`, `reset[B]` -> state, output `[B, H, V]`."""
    check_shapes("delta_scan_step", h=(h, (*q.shape, v.shape[-1])), read=(read, k.shape))
    dtype = state_dtype(q, k, v, beta)
    wide = [None if x is None else x.astype(dtype) for x in (q, k, v, beta, log_decay, read)]
    h, y = _tick(h.astype(dtype), *wide, reset=reset)
    return h, y.astype(v.dtype)


def _tick(h, q, k, v, beta, log_decay, read, reset):
    h = clear(reset, h) if log_decay is None else chunks.fade(h, log_decay, reset)
    read = k if read is None else read
    if k.ndim == 3:
        k, v, beta, read = k[:, None], v[:, None], beta[:, None], read[:, None]
    for i in range(k.shape[1]):
        held = (read[:, i, :, :, None] * h).sum(-2)
        h = h + k[:, i, :, :, None] * (beta[:, i, :, None] * (v[:, i] - held))[..., None, :]
    return h, (q[..., None] * h).sum(-2)


def _scan(q, k, v, beta, log_decay, read, reset, h0):
    last, y = lax.scan(lambda h, now: _tick(h, *now), h0, (q, k, v, beta, log_decay, read, reset))
    return y, last


def _scan_xla(chunk, q, k, v, beta, log_decay, read, reset, h0):
    n = 1 if k.ndim == 4 else k.shape[2]
    log_decay = jnp.zeros(q.shape[:3], q.dtype) if log_decay is None else log_decay
    read = k if read is None else read
    y, last = chunks.over_time(_chunked, _updates(n, q, k, v, beta, log_decay, read, reset), h0, chunk)
    return y[n - 1 :: n], last


def _updates(n, q, k, v, beta, log_decay, read, reset):
    """A step of n updates as n steps of one: the first with the step's decay and reset, the last with its query."""
    if k.ndim == 4:
        return q, k, v, beta, log_decay, read, reset

    def flat(x):  # [T, B, n, ...] -> [T n, B, ...]
        return jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], *x.shape[3:])

    def place(x, at):  # [T, B, ...] -> [T n, B, ...]
        return jnp.zeros((len(x), n, *x.shape[1:]), x.dtype).at[:, at].set(x).reshape(-1, *x.shape[1:])

    reset = None if reset is None else place(reset, 0)
    return place(q, n - 1), flat(k), flat(v), flat(beta), place(log_decay, 0), flat(read), reset


def _chunked(q, k, v, beta, log_decay, read, reset, h0, chunk):
    steps = len(q)
    c = chunks.describe(log_decay, reset, chunk)
    q, k, v, beta, read = (chunks.split(x, chunk) for x in (q, k, v, beta[..., None], read))
    solve = _inverse(jnp.tril(beta * chunks.decayed_products(read, k, c), -1))
    of_values = solve @ (beta * v)
    writes = solve @ jnp.where(c.ends, beta * v, 0)  # of the episode that reaches the chunk's end alone
    of_state = solve @ jnp.where(c.begun, beta * read * c.from_start, 0)
    # Selects on both sides: `0 * NaN` would carry a NaN over the end of the chunk.
    keys = jnp.swapaxes(jnp.where(c.ends, k * c.to_end, 0), -1, -2)

    def advance(h, now):
        of_values, writes, of_state, keys, ends, whole, passes, begun = now
        seen = jnp.where(begun[..., :1, :], h, 0)
        from_state = jnp.where(begun, of_state @ seen, 0)
        last = jnp.where(passes, whole * seen, 0) + keys @ jnp.where(ends, writes - from_state, 0)
        return last, (seen, of_values - from_state)

    sequence = of_values, writes, of_state, keys, c.ends, c.whole, c.passes, c.begun
    last, (seen, u) = lax.scan(advance, h0, sequence)
    y = chunks.decayed_products(q, k, c) @ u + jnp.where(c.begun, (q * c.from_start) @ seen, 0)
    return chunks.merge(y, steps), last


@jax.custom_jvp
def _inverse(M):
    """`(I + M)^-1` of strictly lower triangular `M[..., C, C]`, C a power of 2.

    By halves: `[[A, 0], [R, B]]^-1 = [[A^-1, 0], [-B^-1 R A^-1, B^-1]]`. Every intermediate result is a block of the
    inverse itself. Those of the product of all `I + M^(2^i)` are not: with equal keys and `beta` near 2 the powers of M
    reach 1e6 at C = 16 where the inverse stays below 2, and little is left of float32.
    """
    return _inverse_by_halves(M)


def _inverse_by_halves(M):
    size = M.shape[-1] // 2
    if size == 0:
        return jnp.ones_like(M)
    inverse = _inverse_by_halves(jnp.stack([M[..., :size, :size], M[..., size:, size:]], -3))
    first, second = inverse[..., 0, :, :], inverse[..., 1, :, :]
    corner = -second @ (M[..., size:, :size] @ first)
    top = jnp.concatenate([first, jnp.zeros_like(first)], -1)
    return jnp.concatenate([top, jnp.concatenate([corner, second], -1)], -2)


@_inverse.defjvp
def _(primals, tangents):
    inverse = _inverse(*primals)
    return inverse, -inverse @ (jnp.tril(tangents[0], -1) @ inverse)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan_ffi(chunk, q, k, v, beta, log_decay, read, reset, h0):
    def kernel(*inputs):
        y, last, _ = _call_forward(False, *inputs)
        return y, last

    return ffi.on_cpu(kernel, partial(_scan_xla, chunk), q, k, v, beta, log_decay, read, ffi.flags(reset, q), h0)


def _forward(chunk, q, k, v, beta, log_decay, read, reset, h0):
    inputs = q, k, v, beta, log_decay, read, reset, h0

    def otherwise(*inputs):  # its backward pass needs no states
        starts = _starts(True, inputs[1], inputs[-1])
        return *_scan_xla(chunk, *inputs), jnp.zeros(starts.shape, starts.dtype)

    y, last, starts = ffi.on_cpu(partial(_call_forward, True), otherwise, *inputs[:-2], ffi.flags(reset, q), h0)
    return (y, last), (inputs, starts)


def _backward(chunk, residuals, cotangents):
    (q, k, v, beta, log_decay, read, reset, h0), starts = residuals

    def otherwise(q, k, v, beta, log_decay, read, reset, h0, starts, *cotangents):
        def scan(q, k, v, beta, log_decay, read, h0):
            return _scan_xla(chunk, q, k, v, beta, log_decay, read, reset, h0)

        return jax.vjp(scan, q, k, v, beta, log_decay, read, h0)[1](cotangents)

    inputs = q, k, v, beta, log_decay, read, ffi.flags(reset, q), h0, starts
    *gradients, dh0 = ffi.on_cpu(_call_backward, otherwise, *inputs, *cotangents)
    return *gradients, None, dh0


_scan_ffi.defvjp(_forward, _backward)


def _call_forward(keep, q, k, v, beta, log_decay, read, reset, h0):
    """`y`, the last state and, with `keep`, the states before stretches of `_stretch` steps."""
    operands = _operands(q, k, v, beta, log_decay, read)
    y = jax.ShapeDtypeStruct((*q.shape[:-1], v.shape[-1]), q.dtype)
    results = y, *ffi.like(h0), _starts(keep, k, h0)
    return ffi.call("delta_scan_forward", results, *operands, reset, h0, stretch=_stretch(k))


def _call_backward(q, k, v, beta, log_decay, read, reset, h0, starts, g, g_last):
    operands = _operands(q, k, v, beta, log_decay, read)
    inputs = *operands, reset, h0, starts, g, g_last
    *gradients, dh0 = ffi.call("delta_scan_backward", ffi.like(*operands, h0), *inputs, stretch=_stretch(k))
    given = zip((q, k, v, beta, log_decay, read), gradients, strict=True)
    return *(None if x is None else gradient.reshape(x.shape) for x, gradient in given), dh0


def _operands(q, k, v, beta, log_decay, read):
    """What the C++ kernel takes: `[T, B, n, H, ...]`, and arrays without numbers for what is not there."""
    if k.ndim == 4:
        k, v, beta, read = k[:, :, None], v[:, :, None], beta[:, :, None], None if read is None else read[:, :, None]
    log_decay = jnp.zeros((*q.shape[:-1], 0), q.dtype) if log_decay is None else log_decay.reshape(*q.shape[:-1], -1)
    return q, k, v, beta, log_decay, jnp.zeros((*k.shape[:-1], 0), k.dtype) if read is None else read


def _stretch(k):
    """Steps that are made again together in the backward pass."""
    return STRETCH if k.ndim == 4 else max(1, STRETCH // k.shape[2])


def _starts(keep, k, h0):
    """States before each stretch `[stretches, B, H, K, V]`."""
    return jax.ShapeDtypeStruct((-(-len(k) // _stretch(k)) if keep else 0, *h0.shape), h0.dtype)
