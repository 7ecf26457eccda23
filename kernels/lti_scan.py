"""Linear recurrence with dense matrices that do not change: `h[t] = A h' + x[t]`, `h' = select(reset[t], 0, h[t-1])`.

The core of LSSL, S4 and the LMU, for the few tens of numbers that their channels have: diagonalised, the matrices of
HiPPO would need eigenvectors whose condition is 1e8 at 16 numbers already. A CPU takes the steps in turn, one product
each. Elsewhere sums over 1, 2, 4, ... steps are made of each other, for all steps at once, with `A`, `A^2`, `A^4`, ...

The backward pass is the same scan with the transposed matrices, backwards in time; the gradient of `A` is one product
of all steps after it.
"""

import jax
import jax.numpy as jnp
from jax import lax

from engram.kernels.backends import check_flags, check_shapes, on_cpu_or_not, pick_backend, state_dtype
from engram.kernels.rows import clear

BACKENDS = ("reference", "xla")


def lti_scan(
    A: jax.Array,
    x: jax.Array,
    reset: jax.Array | None = None,
    h0: jax.Array | None = None,
    *,
    backend: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Scan the recurrence over a chunk.

    Args:
        A: matrices, `[C, n, n]`, or `[1, n, n]` for one that all channels share.
        x: input `[T, B, C, n]`.
        reset: bool `[T, B]`, True where `x[t]` opens an episode; None for no reset.
        h0: state before the chunk `[B, C, n]`; None for zeros.
        backend: "reference" (plain scan, plain autodiff), "xla" (hand-written backward pass; on anything but a CPU all
            steps at once) or "auto".

    Returns:
        `h[T, B, C, n]` in the dtype of `x`, and the last state `[B, C, n]` in float32 or wider.

    Raises:
        BadRequest: unknown backend.
        ValueError: shapes that do not fit.
    """
    T, B, C, n = x.shape
    check_shapes("lti_scan", A=(A, (1 if len(A) == 1 else C, n, n)), h0=(h0, (B, C, n)))
    check_flags("lti_scan", reset, (T, B))
    backend = pick_backend(backend, BACKENDS, default="xla")
    dtype = state_dtype(A, x)
    h0 = jnp.zeros((B, C, n), dtype) if h0 is None else h0.astype(dtype)
    scan = _scan_xla if backend == "xla" and x.size else _in_turn
    h = scan(A.astype(dtype), x.astype(dtype), reset, h0)
    return h.astype(x.dtype), h[-1] if T else h0


def lti_scan_step(
    h: jax.Array, A: jax.Array, x: jax.Array, reset: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """One step of `lti_scan`: `h[B, C, n]`, `A[C, n, n]` or `[1, n, n]`, `x[B, C, n]`, `reset[B]` -> state, output."""
    _, C, n = x.shape
    check_shapes("lti_scan_step", h=(h, x.shape), A=(A, (1 if len(A) == 1 else C, n, n)))
    dtype = state_dtype(A, x)
    h = _product(A.astype(dtype), clear(reset, h.astype(dtype))) + x.astype(dtype)
    return h, h.astype(x.dtype)


def _product(A, h):
    """`A h` for `h[..., C, n]`."""
    if len(A) == 1:
        return (h.reshape(-1, h.shape[-1]) @ A[0].T).reshape(h.shape)
    rows = h.reshape(-1, *h.shape[-2:])
    return jnp.einsum("cij,rcj->rci", A, rows).reshape(h.shape)


def _in_turn(A, x, reset, h0):
    def tick(h, now):
        x_t, reset_t = now
        h = _product(A, clear(reset_t, h)) + x_t
        return h, h

    return lax.scan(tick, h0, (x, reset))[1]


def _doubling(A, x, reset, h0):
    """The same at once. After a round, `h[t]` holds the last `size` steps of the episode up to t, and `opened[t]` says
    whether it opened within them."""
    first = None if reset is None else reset[0]
    h = x.at[0].add(_product(A, clear(first, h0)))
    opened = jnp.zeros(x.shape[:2], bool) if reset is None else reset
    size = 1
    while size < len(x):
        earlier = clear(opened[size:], h[:-size])
        h = h.at[size:].add(_product(A, earlier))
        opened = opened.at[size:].set(opened[size:] | opened[:-size])
        A, size = A @ A, 2 * size
    return h


def _scan(A, x, reset, h0):
    return on_cpu_or_not(_in_turn, _doubling, A, x, reset, h0)


_scan_xla = jax.custom_vjp(_scan)


def _forward(A, x, reset, h0):
    h = _scan(A, x, reset, h0)
    return h, (A, reset, h0, h)


def _backward(residuals, g):
    A, reset, h0, h = residuals
    # dx[t] = g[t] + select(reset[t+1], 0, A^T dx[t+1])
    later = None if reset is None else jnp.concatenate([reset[1:], jnp.zeros_like(reset[:1])])[::-1]
    A_T = jnp.swapaxes(A, -1, -2)
    dx = _scan(A_T, g[::-1], later, jnp.zeros_like(h0))[::-1]
    previous = clear(reset, jnp.concatenate([h0[None], h[:-1]]))
    if len(A) == 1:
        n = A.shape[-1]
        dA = (dx.reshape(-1, n).T @ previous.reshape(-1, n))[None]
    else:
        dA = jnp.einsum("tbci,tbcj->cij", dx, previous)
    return dA, dx, None, clear(None if reset is None else reset[0], _product(A_T, dx[0]))


_scan_xla.defvjp(_forward, _backward)
