"""Selective state space of Mamba-1 with resets (Gu and Dao 2023, algorithm 2).

With `h' = select(reset[t], 0, h[t-1])`, per channel d and state n:
    h[t] = exp(dt[t] A) h' + dt[t] u[t] B[t]      y[t] = sum_n C[t] h[t] + D u[t]

The T states are N times larger than the input, so the backward pass keeps only those at chunk boundaries and
recomputes one chunk at a time. The state is `[B, N, D]`: with channels last it vectorises. On a CPU a C++ kernel
(`cpu/selective_scan.cc`) does the same and never lets a state leave the cache, on a GPU one that keeps it in registers
(`gpu/selective_scan.py`).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from engram.errors import BadRequest
from engram.kernels.backends import check_flags, check_shapes, compiled_backend, pick_backend, state_dtype
from engram.kernels.chunks import divide
from engram.kernels.cpu import ffi
from engram.kernels.gpu import mosaic
from engram.kernels.rows import clear

BACKENDS = ("reference", "xla", "ffi", "mosaic")
CHANNEL_TASKS = 16
"""Smallest number of tasks for the C++ kernel's threads: a batch smaller than this is also divided by channels."""
TILE = 64
"""Number of channels that the C++ kernel takes at a time."""
GPU_STATES = 32
"""Largest N for which a thread of the GPU kernel has enough registers."""
GPU_CHUNK_STATES = 128
"""Number of states of a channel that the GPU kernel keeps in shared memory in its backward pass: 64 KiB for 128
channels, so that with all else two blocks of channels fit on a multiprocessor."""


def selective_scan(
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    reset: jax.Array | None = None,
    h0: jax.Array | None = None,
    *,
    chunk: int = 32,
    backend: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Scan the selective state space over a chunk.

    Args:
        u: input `[T, B, D]`.
        dt: step sizes `[T, B, D]`, positive (after softplus).
        A: `[N, D]`, negative.
        B, C: input and output projections `[T, B, N]`.
        D: skip `[D]`; None for no skip.
        reset: bool `[T, B]`, True where `u[t]` opens an episode; None for no reset.
        h0: state before the chunk `[B, N, D]`; None for zeros.
        chunk: steps recomputed at a time in the backward pass; "mosaic" takes fewer where N leaves no room for them.
        backend: "reference" (plain scan, plain autodiff), "xla" (hand-written chunked backward scan), "ffi" (C++ on a
            CPU in float32, elsewhere as "xla"), "mosaic" (a kernel for Hopper GPUs and newer in float32 with N up to
            32, elsewhere as "xla") or "auto" ("mosaic" on a GPU, "ffi" on a CPU where they can be had, else "xla").

    Returns:
        `y[T, B, D]` in the dtype of `u`, and the last state `[B, N, D]` in float32 or wider.

    Raises:
        BadRequest: unknown backend, or `chunk` < 1.
        ValueError: shapes that do not fit.
    """
    if chunk < 1:
        raise BadRequest(f"selective_scan: chunk must be at least 1, got {chunk}")
    dtype = state_dtype(u, dt, A)
    (T, batch, channels), N = u.shape, len(A)
    weights = (T, batch, N)
    check_shapes("selective_scan", dt=(dt, u.shape), A=(A, (N, channels)), B=(B, weights), C=(C, weights))
    check_shapes("selective_scan", D=(D, (channels,)), h0=(h0, (batch, N, channels)))
    check_flags("selective_scan", reset, (T, batch))
    backend = pick_backend(backend, BACKENDS, default=compiled_backend())
    if not u.size:
        backend = "reference"
    if backend == "ffi":
        backend = ffi.if_loaded("selective_scan", dtype, (jnp.float32,))
    if backend == "mosaic":
        backend = mosaic.if_available("selective", dtype, (jnp.float32,), u, A) if N <= GPU_STATES else "xla"
        chunk = min(chunk, max(1, GPU_CHUNK_STATES // max(N, 1)))
    wide_u, dt, A, B, C = (array.astype(dtype) for array in (u, dt, A, B, C))
    h0 = jnp.zeros((u.shape[1], *A.shape), dtype) if h0 is None else h0.astype(dtype)
    scan = _scan if backend == "reference" else partial(SCANS[backend], min(chunk, u.shape[0]))
    y, last = scan(wide_u, dt, A, B, C, reset, h0)
    return _skip(y, wide_u, D).astype(u.dtype), last


def selective_scan_step(
    h: jax.Array,
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    reset: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One step of `selective_scan`: `h[B, N, D]`, `u[B, D]`, `dt[B, D]`, `B[B, N]`, `C[B, N]`, `reset[B]` -> state,
    output `[B, D]`."""
    check_shapes("selective_scan_step", h=(h, (len(u), *A.shape)))
    dtype = state_dtype(u, dt, A)
    wide_u, dt, A, B, C = (array.astype(dtype) for array in (u, dt, A, B, C))
    h, y = _tick(h.astype(dtype), wide_u, dt, A, B, C, reset)
    return h, _skip(y, wide_u, D).astype(u.dtype)


def _skip(y, u, D):
    return y if D is None else y + D * u


def _tick(h, u, dt, A, B, C, reset):
    h = _advance(h, u, dt, A, B, reset)
    return h, (C[:, :, None] * h).sum(1)


def _advance(h, u, dt, A, B, reset):
    return jnp.exp(dt[:, None] * A) * clear(reset, h) + (dt * u)[:, None] * B[:, :, None]


def _scan(u, dt, A, B, C, reset, h0):
    def tick(h, now):
        u_t, dt_t, B_t, C_t, reset_t = now
        return _tick(h, u_t, dt_t, A, B_t, C_t, reset_t)

    last, y = lax.scan(tick, h0, (u, dt, B, C, reset))
    return y, last


_scan_xla = jax.custom_vjp(lambda chunk, *inputs: _scan(*inputs), nondiff_argnums=(0,))


def _chunks(chunk, inputs):
    """Time in chunks `[T / chunk, chunk, ...]`. Steps filled in have dt = 0, which leaves the state as it is."""
    return jax.tree.map(partial(divide, chunk=chunk), inputs)


def _forward(chunk, u, dt, A, B, C, reset, h0):
    def run(h, now):
        u_c, dt_c, B_c, C_c, reset_c = now
        y, last = _scan(u_c, dt_c, A, B_c, C_c, reset_c, h)
        return last, (y, h)

    last, (y, boundaries) = lax.scan(run, h0, _chunks(chunk, (u, dt, B, C, reset)))
    y = y.reshape(-1, *y.shape[2:])[: u.shape[0]]
    return (y, last), (u, dt, A, B, C, reset, boundaries)


def _backward(chunk, residuals, cotangents):
    u, dt, A, B, C, reset, boundaries = residuals
    g_y, g_last = cotangents

    def recompute(h, now):
        u_t, dt_t, B_t, reset_t = now
        return _advance(h, u_t, dt_t, A, B_t, reset_t), h

    def tick(carry, now):
        back, dA = carry  # d loss / d h[t] through the future; d loss / d A per row of the batch
        (g_t, u_t, dt_t, B_t, C_t, reset_t), previous = now
        previous = clear(reset_t, previous)
        decay = jnp.exp(dt_t[:, None] * A)
        drive = dt_t * u_t
        kept = decay * previous
        h = kept + drive[:, None] * B_t[:, :, None]
        dh = back + g_t[:, None] * C_t[:, :, None]
        dC = (g_t[:, None] * h).sum(-1)
        dB = (dh * drive[:, None]).sum(-1)
        d_exponent = dh * kept
        d_drive = (dh * B_t[:, :, None]).sum(1)
        ddt = (d_exponent * A).sum(1) + d_drive * u_t
        carry = clear(reset_t, dh * decay), dA + d_exponent * dt_t[:, None]
        return carry, (d_drive * dt_t, ddt, dB, dC)

    def run(carry, now):
        boundary, (g_c, u_c, dt_c, B_c, C_c, reset_c) = now
        _, previous = lax.scan(recompute, boundary, (u_c, dt_c, B_c, reset_c))
        return lax.scan(tick, carry, ((g_c, u_c, dt_c, B_c, C_c, reset_c), previous), reverse=True)

    chunks = _chunks(chunk, (g_y, u, dt, B, C, reset))
    start = g_last, jnp.zeros_like(g_last)
    (dh0, dA), gradients = lax.scan(run, start, (boundaries, chunks), reverse=True)
    du, ddt, dB, dC = (g.reshape(-1, *g.shape[2:])[: u.shape[0]] for g in gradients)
    return du, ddt, dA.sum(0), dB, dC, None, dh0


_scan_xla.defvjp(_forward, _backward)


def _compiled(where, forward_kernel, training_kernel, backward_kernel):
    """The scan as kernels on one platform, `where(kernel, otherwise, *inputs)`; plain JAX on others."""

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def scan(chunk, u, dt, A, B, C, reset, h0):
        return where(partial(forward_kernel, chunk), _scan, u, dt, A, B, C, ffi.flags(reset, u), h0)

    def forward(chunk, u, dt, A, B, C, reset, h0):
        def otherwise(*inputs):
            (y, last), (*_, boundaries) = _forward(chunk, *inputs)
            return y, last, boundaries

        inputs = u, dt, A, B, C, ffi.flags(reset, u), h0
        y, last, boundaries = where(partial(training_kernel, chunk), otherwise, *inputs)
        return (y, last), (u, dt, A, B, C, reset, boundaries)

    def backward(chunk, residuals, cotangents):
        u, dt, A, B, C, reset, boundaries = residuals

        def otherwise(*inputs):
            *inputs, g_y, g_last = inputs
            *before_reset, _, dh0 = _backward(chunk, inputs, (g_y, g_last))
            return *before_reset, dh0

        inputs = u, dt, A, B, C, ffi.flags(reset, u), boundaries, *cotangents
        *gradients, dh0 = where(partial(backward_kernel, chunk), otherwise, *inputs)
        return *gradients, None, dh0

    scan.defvjp(forward, backward)
    return scan


def _groups(batch, channels):
    """Into how many parts the C++ kernel divides the channels."""
    return min(-(-channels // TILE), max(1, CHANNEL_TASKS // max(batch, 1)))


def _forward_cpp(chunk, u, *inputs):
    h0 = inputs[-1]
    return ffi.call("selective_scan_forward", ffi.like(u, h0), u, *inputs, groups=_groups(*u.shape[1:]))


def _training_cpp(chunk, u, *inputs):
    h0 = inputs[-1]
    boundaries = jax.ShapeDtypeStruct((-(-len(u) // chunk), *h0.shape), h0.dtype)
    results = *ffi.like(u, h0), boundaries
    groups = _groups(*u.shape[1:])
    return ffi.call("selective_scan_forward_for_training", results, u, *inputs, groups=groups, chunk=chunk)


def _backward_cpp(chunk, u, dt, A, B, C, reset, boundaries, g_y, g_last):
    groups = _groups(*u.shape[1:])
    sums = jax.ShapeDtypeStruct((groups, *B.shape), B.dtype)  # of each group of channels
    results = *ffi.like(u, dt, g_last), sums, sums, *ffi.like(g_last)
    inputs = u, dt, A, B, C, reset, boundaries, g_y, g_last
    du, ddt, dA, dB, dC, dh0 = ffi.call("selective_scan_backward", results, *inputs, groups=groups, chunk=chunk)
    return du, ddt, dA.sum(0), dB.sum(0), dC.sum(0), dh0


def _gpu(name, *options):
    """A function of `gpu/selective_scan.py`, which is imported when it is called."""
    return lambda chunk, *inputs: getattr(mosaic.load("selective"), name)(chunk, *options, *inputs)


SCANS = {
    "xla": _scan_xla,
    "ffi": _compiled(ffi.on_cpu, _forward_cpp, _training_cpp, _backward_cpp),
    "mosaic": _compiled(mosaic.on_cuda, _gpu("forward", False), _gpu("forward", True), _gpu("backward")),
}
