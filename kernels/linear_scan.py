"""Diagonal linear recurrence with resets: `h[t] = a[t] * select(reset[t], 0, h[t-1]) + x[t]`.

The core of S5 and LRU (time-invariant complex `a`) and of minGRU, RG-LRU and HGRN (real `a[t]`). On a CPU two
sequential scans, the second one written by hand, are several times faster than `associative_scan` and compile in a
fraction of the time. In C++ (`cpu/linear_scan.cc`) they move their arrays through memory once and on all cores. A GPU
does the same in one kernel (`gpu/linear_scan.py`) or, in plain JAX, by `associative_scan`, as a loop over time would
launch a program at each step.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from engram.kernels.backends import (
    check_flags,
    check_shapes,
    compiled_backend,
    on_cpu_or_not,
    pick_backend,
    state_dtype,
)
from engram.kernels.cpu import ffi
from engram.kernels.gpu import mosaic
from engram.kernels.rows import clear

BACKENDS = ("reference", "xla", "ffi", "mosaic")


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
        a: decay, `[D]` for a time-invariant one or `[T, B, D]`; real or complex.
        x: input `[T, B, D]`, real or complex; complex if `a` is.
        reset: bool `[T, B]`, True where `x[t]` opens an episode; None for no reset.
        h0: state before the chunk `[B, D]`; None for zeros.
        backend: "reference" (plain scan, plain autodiff), "xla" (hand-written backward scan; associative scans on
            anything but a CPU), "ffi" (C++ on a CPU in float32 and complex64, elsewhere as "xla"), "mosaic" (a kernel
            for Hopper GPUs and newer in float32 and complex64, elsewhere as "xla") or "auto" ("mosaic" on a GPU, "ffi"
            on a CPU where they can be had, else "xla").

    Returns:
        `h[T, B, D]` in the dtype of `x`, and the last state `[B, D]` in float32 / complex64 or wider.

    Raises:
        BadRequest: unknown backend.
        ValueError: shapes that do not fit, or complex `a` with real `x`.
    """
    dtype = _dtype(a, x)
    decays = x.shape if a.ndim == 3 else x.shape[2:]
    check_shapes("linear_scan", a=(a, decays), h0=(h0, x.shape[1:]))
    check_flags("linear_scan", reset, x.shape[:2])
    backend = _backend(backend, dtype, (jnp.float32, jnp.complex64), x)
    h0 = jnp.zeros(x.shape[1:], dtype) if h0 is None else h0.astype(dtype)
    kind = "complex" if jnp.issubdtype(dtype, jnp.complexfloating) else "real"
    scan = {"reference": _scan, "xla": _scan_xla}.get(backend) or COMPILED[backend][kind]
    h, last = scan(a.astype(dtype), x.astype(dtype), reset, h0)
    return h.astype(x.dtype), last


def linear_scan_planes(
    a: jax.Array,
    x: jax.Array,
    reset: jax.Array | None = None,
    h0: jax.Array | None = None,
    *,
    backend: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """`linear_scan` with a complex, time-invariant decay over real arrays: real and imaginary parts side by side.

    Such arrays come out of a product with a real matrix and go into one, so the kernels work on them as they are:
    joining them to complex numbers and splitting them again would move everything through memory twice more.

    Args:
        a: decay, complex `[D]`.
        x: input, real `[T, B, 2 D]`: `Re | Im`.
        reset, backend: as for `linear_scan`.
        h0: state before the chunk, complex `[B, D]`; None for zeros.

    Returns:
        `h`, real `[T, B, 2 D]`: `Re | Im`, and the last state, complex `[B, D]`.
    """
    dtype = state_dtype(a, x)
    T, B, D = x.shape
    check_shapes("linear_scan_planes", a=(a, (D // 2,)), x=(x, (T, B, D // 2 * 2)), h0=(h0, (B, D // 2)))
    check_flags("linear_scan_planes", reset, (T, B))
    backend = _backend(backend, dtype, (jnp.complex64,), x)
    if backend in ("reference", "xla"):
        h, last = linear_scan(a, join(x), reset, h0, backend=backend)
        return split(h).astype(x.dtype), last
    h0 = jnp.zeros((x.shape[1], a.shape[0]), dtype) if h0 is None else h0.astype(dtype)
    h, last = COMPILED[backend]["planes"](split(a.astype(dtype)), x.astype(jnp.float32), reset, split(h0))
    return h.astype(x.dtype), join(last)


def join(planes: jax.Array) -> jax.Array:
    """Real `[..., 2 D]`, `Re | Im` -> complex `[..., D]`."""
    return lax.complex(*jnp.split(planes.astype(state_dtype(planes)), 2, -1))


def split(numbers: jax.Array) -> jax.Array:
    """Complex `[..., D]` -> real `[..., 2 D]`, `Re | Im`."""
    return jnp.concatenate([numbers.real, numbers.imag], -1)


def linear_scan_step(
    h: jax.Array, a: jax.Array, x: jax.Array, reset: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """One step of `linear_scan`: `h[B, D]`, `a[D]` or `[B, D]`, `x[B, D]`, `reset[B]` -> state, output."""
    check_shapes("linear_scan_step", h=(h, x.shape), a=(a, x.shape if a.ndim == 2 else x.shape[1:]))
    dtype = _dtype(a, x)
    h = _tick(h.astype(dtype), a.astype(dtype), x.astype(dtype), reset)
    return h, h.astype(x.dtype)


def _backend(backend, dtype, dtypes, x):
    backend = pick_backend(backend, BACKENDS, default=compiled_backend())
    if not x.size:
        return "reference"
    if backend == "ffi":
        return ffi.if_loaded("linear_scan", dtype, dtypes)
    if backend == "mosaic":
        return mosaic.if_available("linear", dtype, dtypes, x)
    return backend


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


def _scan_associative(a, x, reset, h0):
    """`_scan` in about 2 log2 T steps over whole arrays; rounds differently."""

    def join_segments(first, second):
        a, x, reset = first
        a_after, x_after, reset_after = second
        # A select: what came before a reset cannot leak, not even as NaN.
        return a_after * a, jnp.where(reset_after, x_after, a_after * x + x_after), reset | reset_after

    a = a[None, None] if a.ndim == 1 else a
    reset = jnp.zeros((*x.shape[:2], 1), bool) if reset is None else reset[..., None]
    x = x.at[0].add(a[0] * jnp.where(reset[0], 0, h0))
    _, h, _ = lax.associative_scan(join_segments, (jnp.broadcast_to(a, (len(x), *a.shape[1:])), x, reset))
    return h, h[-1]


def _scan_plain(a, x, reset, h0):
    return on_cpu_or_not(_scan, _scan_associative if len(x) else _scan, a, x, reset, h0)


_scan_xla = jax.custom_vjp(_scan_plain)


def _forward(a, x, reset, h0):
    h, last = _scan_plain(a, x, reset, h0)
    return (h, last), (a, reset, h0, h)


def _backward_sequential(a, reset, h0, h, g, g_last):
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
    return (da_sum.sum(0) if constant else da), dx, dh0


def _backward_associative(a, reset, h0, h, g, g_last):
    # dx[t] = g[t] + select(reset[t+1], 0, a[t+1] dx[t+1]) is the same scan, backwards in time, on shifted decays.
    constant = a.ndim == 1
    later_a = a if constant else jnp.concatenate([a[1:], jnp.ones_like(a[:1])])[::-1]
    later_reset = None if reset is None else jnp.concatenate([reset[1:], jnp.zeros_like(reset[:1])])[::-1]
    dx, _ = _scan_associative(later_a, g.at[-1].add(g_last)[::-1], later_reset, jnp.zeros_like(h0))
    dx = dx[::-1]
    previous = jnp.concatenate([h0[None], h[:-1]])
    da = dx * clear(reset, previous)
    dh0 = clear(None if reset is None else reset[0], (a if constant else a[0]) * dx[0])
    return (da.sum((0, 1)) if constant else da), dx, dh0


def _backward_plain(a, reset, h0, h, g, g_last):
    elsewhere = _backward_associative if len(h) else _backward_sequential
    return on_cpu_or_not(_backward_sequential, elsewhere, a, reset, h0, h, g, g_last)


def _backward(residuals, cotangents):
    da, dx, dh0 = _backward_plain(*residuals, *cotangents)
    return da, dx, None, dh0


_scan_xla.defvjp(_forward, _backward)


def _compiled(where, forward_kernel, backward_kernel, otherwise_forward, otherwise_backward):
    """The scan as a pair of kernels on one platform, `where(kernel, otherwise, *inputs)`; plain JAX on others."""

    @jax.custom_vjp
    def scan(a, x, reset, h0):
        return where(forward_kernel, otherwise_forward, a, x, ffi.flags(reset, x), h0)

    def forward(a, x, reset, h0):
        h, last = scan(a, x, reset, h0)
        return (h, last), (a, reset, h0, h)

    def backward(residuals, cotangents):
        a, reset, h0, h = residuals
        inputs = a, ffi.flags(reset, h), h0, h, *cotangents
        da, dx, dh0 = where(backward_kernel, otherwise_backward, *inputs)
        return da, dx, None, dh0

    scan.defvjp(forward, backward)
    return scan


def _forward_cpp(kind, a, x, reset, h0):
    return ffi.call(f"linear_scan_forward_{kind}", ffi.like(x, h0), a, x, reset, h0)


def _backward_cpp(kind, a, reset, h0, h, g, g_last):
    constant = a.ndim == 1
    results = *ffi.like(h0 if constant else a), *ffi.like(h, h0)  # da of each row where all steps share one `a`
    da, dx, dh0 = ffi.call(f"linear_scan_backward_{kind}", results, a, reset, h0, h, g, g_last)
    return (da.sum(0) if constant else da), dx, dh0


def _forward_gpu(kind, *inputs):
    return mosaic.load("linear").forward(kind, *inputs)


def _backward_gpu(kind, *inputs):
    return mosaic.load("linear").backward(kind, *inputs)


def _planes_elsewhere(scan, a, x, reset, h0):
    h, last = scan(join(a), join(x), reset, join(h0))
    return split(h), split(last)


def _planes_backward_elsewhere(backward, a, reset, h0, h, *cotangents):
    # The gradient in two real planes is the conjugate of JAX's complex cotangent.
    complex_cotangents = (join(g).conj() for g in cotangents)
    gradients = backward(join(a), reset, join(h0), join(h), *complex_cotangents)
    return tuple(split(g.conj()) for g in gradients)


def _each_kind(where, forward_kernel, backward_kernel, forward, backward):
    """The scan of each kind of numbers; `forward` and `backward` are plain JAX."""
    planes = partial(_planes_elsewhere, forward), partial(_planes_backward_elsewhere, backward)
    otherwise = {"real": (forward, backward), "complex": (forward, backward), "planes": planes}
    return {
        kind: _compiled(where, partial(forward_kernel, kind), partial(backward_kernel, kind), *plain)
        for kind, plain in otherwise.items()
    }


COMPILED = {
    "ffi": _each_kind(ffi.on_cpu, _forward_cpp, _backward_cpp, _scan_plain, _backward_plain),
    # What such a process compiles for anything but its GPUs is for its CPU.
    "mosaic": _each_kind(mosaic.on_cuda, _forward_gpu, _backward_gpu, _scan, _backward_sequential),
}
