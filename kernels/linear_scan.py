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
        backend = ffi.if_loaded("linear_scan", dtype, (jnp.float32, jnp.complex64))
    h0 = jnp.zeros(x.shape[1:], dtype) if h0 is None else h0.astype(dtype)
    cpp = _scan_complex if jnp.issubdtype(dtype, jnp.complexfloating) else _scan_real
    scan = {"reference": _scan, "xla": _scan_xla, "ffi": cpp}[backend]
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

    Such arrays come out of a product with a real matrix and go into one, so the C++ kernel works on them as they are:
    joining them to complex numbers and splitting them again would move everything through memory twice more.

    Args:
        a: decay, complex `(D,)`.
        x: input, real `(T, B, 2 D)`: `Re | Im`.
        reset, backend: as for `linear_scan`.
        h0: state before the chunk, complex `(B, D)`; None for zeros.

    Returns:
        `h`, real `(T, B, 2 D)`: `Re | Im`, and the last state, complex `(B, D)`.
    """
    backend = pick_backend(backend, BACKENDS, default="ffi")
    dtype = state_dtype(a, x)
    if backend == "ffi":
        backend = ffi.if_loaded("linear_scan", dtype, (jnp.complex64,))
    if backend != "ffi":
        h, last = linear_scan(a, join(x), reset, h0, backend=backend)
        return split(h).astype(x.dtype), last
    h0 = jnp.zeros((x.shape[1], a.shape[0]), dtype) if h0 is None else h0.astype(dtype)
    h, last = _scan_planes(split(a.astype(dtype)), x.astype(jnp.float32), reset, split(h0))
    return h.astype(x.dtype), join(last)


def join(planes: jax.Array) -> jax.Array:
    """Real `(..., 2 D)`, `Re | Im` -> complex `(..., D)`."""
    return lax.complex(*jnp.split(planes.astype(state_dtype(planes)), 2, -1))


def split(numbers: jax.Array) -> jax.Array:
    """Complex `(..., D)` -> real `(..., 2 D)`, `Re | Im`."""
    return jnp.concatenate([numbers.real, numbers.imag], -1)


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


def _cpp(kind, otherwise_forward, otherwise_backward):
    """The scan as a C++ kernel on a CPU, for numbers of `kind`; the given functions on other platforms."""

    @jax.custom_vjp
    def scan(a, x, reset, h0):
        def kernel(*inputs):
            return ffi.call(f"linear_scan_forward_{kind}", ffi.like(x, h0), *inputs)

        return ffi.on_cpu(kernel, otherwise_forward, a, x, ffi.flags(reset, x), h0)

    def forward(a, x, reset, h0):
        h, last = scan(a, x, reset, h0)
        return (h, last), (a, reset, h0, h)

    def backward(residuals, cotangents):
        a, reset, h0, h = residuals
        constant = a.ndim == 1

        def kernel(*inputs):
            results = *ffi.like(h0 if constant else a), *ffi.like(h, h0)  # da of each row where all steps share one `a`
            da, dx, dh0 = ffi.call(f"linear_scan_backward_{kind}", results, *inputs)
            return (da.sum(0) if constant else da), dx, dh0

        da, dx, dh0 = ffi.on_cpu(kernel, otherwise_backward, a, ffi.flags(reset, h), h0, h, *cotangents)
        return da, dx, None, dh0

    scan.defvjp(forward, backward)
    return scan


def _backward_arrays(a, reset, h0, h, *cotangents):
    da, dx, _, dh0 = _backward((a, reset, h0, h), cotangents)
    return da, dx, dh0


def _planes_elsewhere(a, x, reset, h0):
    h, last = _scan(join(a), join(x), reset, join(h0))
    return split(h), split(last)


def _planes_backward_elsewhere(a, reset, h0, h, *cotangents):
    # The gradient in two real planes is the conjugate of JAX's complex cotangent.
    complex_cotangents = (join(g).conj() for g in cotangents)
    gradients = _backward_arrays(join(a), reset, join(h0), join(h), *complex_cotangents)
    return tuple(split(g.conj()) for g in gradients)


_scan_real = _cpp("real", _scan, _backward_arrays)
_scan_complex = _cpp("complex", _scan, _backward_arrays)
_scan_planes = _cpp("planes", _planes_elsewhere, _planes_backward_elsewhere)
