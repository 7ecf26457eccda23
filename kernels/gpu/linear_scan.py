"""`linear_scan` for Hopper GPUs and newer (Pallas Mosaic GPU); lowered, and interpreted on a CPU, in the tests.

Inside, numbers are one or two float32 planes: `[..., P, D]` with P = 1 for real ones and P = 2 for `Re, Im`. In a
thread a number is the tuple of its planes, so that one body serves both.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from engram.kernels.gpu import block

Number = tuple[jax.Array, ...]
"""Planes of a number in each thread."""
TILE = 8
"""Number of steps read ahead. With a complex `a[t]`, a backward step takes 6 registers in each of two tiles."""
KINDS: dict[str, tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]] = {
    "real": (lambda x: x[..., None, :], lambda x: x[..., 0, :]),
    "complex": (lambda x: jnp.stack([x.real, x.imag], -2), lambda x: lax.complex(x[..., 0, :], x[..., 1, :])),
    "planes": (
        lambda x: x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2),
        lambda x: x.reshape(*x.shape[:-2], 2 * x.shape[-1]),
    ),
}
"""Functions that turn arrays of each kind into planes `[..., P, D]`, and back. The kind "planes" is real `[..., 2 D]`:
`Re | Im`."""


def forward(kind: str, a: jax.Array, x: jax.Array, reset: jax.Array, h0: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Linear scan.

    Args:
        kind: a key of `KINDS`, of all arrays that follow; float32 or complex64.
        a: decay, `[D]` or `[T, B, D]`.
        x: input `[T, B, D]`, not empty.
        reset: bool `[T, B]`.
        h0: state before the chunk `[B, D]`.

    Returns:
        `h[T, B, D]` and the last state `[B, D]`.
    """
    enter, leave = _conversions(kind, x)
    decay = enter(a)
    scan = block.over_rows(_forward, inputs=(_rows_axis(decay), 1, 1, 0), results=(1, 0))
    h, last = scan(decay, enter(x), reset.astype(jnp.int32), enter(h0))
    return leave(h), leave(last)


def backward(
    kind: str, a: jax.Array, reset: jax.Array, h0: jax.Array, h: jax.Array, g: jax.Array, g_last: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients, given those of `h` and of the last state: `g[T, B, D]` and `g_last[B, D]`.

    For complex numbers in JAX's convention (no conjugation), for planes the gradients of two real arrays.

    Returns:
        `da` in the shape of `a`, `dx[T, B, D]`, `dh0[B, D]`.
    """
    enter, leave = _conversions(kind, h)
    decay = enter(a)
    axis = _rows_axis(decay)
    kernel = partial(_backward, kind == "planes")
    scan = block.over_rows(kernel, inputs=(axis, 1, 0, 1, 1, 0), results=(axis, 1, 0))
    da, dx, dh0 = scan(decay, reset.astype(jnp.int32), *map(enter, (h0, h, g, g_last)))
    da = leave(da)
    return (da.sum(0) if a.ndim == 1 else da), leave(dx), leave(dh0)


def trial() -> None:
    """Compiles both kernels at a small size; raises what goes wrong."""
    x = jax.ShapeDtypeStruct((TILE + 1, 1, block.BLOCK), jnp.complex64)
    reset = jax.ShapeDtypeStruct(x.shape[:2], bool)
    state = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    jax.jit(partial(forward, "complex")).lower(x, x, reset, state).compile()
    jax.jit(partial(backward, "complex")).lower(x, reset, state, x, x, state).compile()


def _conversions(kind, example):
    """From arrays of a kind to planes with whole blocks of channels, `[D]` to `[1, P, D]`; and the way back."""
    to_planes, from_planes = KINDS[kind]
    channels = to_planes(example).shape[-1]

    def enter(x):
        planes = block.pad(to_planes(x))
        return planes[None] if x.ndim == 1 else planes

    return enter, lambda planes: from_planes(planes[..., :channels])


def _rows_axis(decay):
    """Which axis counts the rows: of a shared decay the first, of one for each step the second."""
    return decay.ndim - 3


def _forward(a, x, reset, h0):
    T, B, P, D = x.shape
    shared = a.ndim == 3
    rows = B // len(a)  # that share a decay

    def body(row, channels, a_ref, x_ref, reset_ref, h0_ref, h_ref, last_ref):
        number, put = _access(P, channels)
        constant = number(a_ref, row // rows) if shared else None

        def read(t):
            return None if shared else number(a_ref, t, row), number(x_ref, t, row), reset_ref[t, row]

        def advance(t, k, h, now):
            a_t, x_t, reset_t = now
            h = step(h, constant or a_t, x_t, reset_t)
            put(h, h_ref, t, row)
            return h

        put(block.walk(T, TILE, read, advance, number(h0_ref, row)), last_ref, row)

    return block.launch(body, (_like(x), _like(h0)), B, D, a, x, reset, h0)


def _backward(conjugate, a, reset, h0, h, g, g_last):
    T, B, P, D = h.shape
    shared = a.ndim == 3
    rows = B // len(a)

    def body(row, channels, a_ref, reset_ref, h0_ref, h_ref, g_ref, g_last_ref, da_ref, dx_ref, dh0_ref):
        number, put = _access(P, channels)
        constant = number(a_ref, row // rows) if shared else None

        def read(t):
            return None if shared else number(a_ref, t, row), reset_ref[t, row], number(g_ref, t, row)

        def advance(t, carry, now, previous):
            back, da_sum = carry
            a_t, reset_t, g_t = now
            back, dx, da = step_back(back, constant or a_t, g_t, reset_t, previous, conjugate)
            put(dx, dx_ref, t, row)
            if shared:
                return back, _plus(da_sum, da)
            put(da, da_ref, t, row)
            return back, None

        # Backwards in time: step i is t = T - 1 - i. The first step of time has h0 before it and comes by itself.
        carry = number(g_last_ref, row), (block.zeros(),) * P if shared else None
        carry = block.walk(
            T - 1,
            TILE,
            lambda i: (read(T - 1 - i), number(h_ref, T - 2 - i, row)),
            lambda i, k, carry, now: advance(T - 1 - i, carry, *now),
            carry,
        )
        back, da_sum = advance(0, carry, read(0), number(h0_ref, row))
        put(back, dh0_ref, row)
        if shared:
            put(da_sum, da_ref, row)  # a sum over rows is left to the caller: rows do not wait for each other

    da = h0 if shared else a
    return block.launch(body, (_like(da), _like(h), _like(h0)), B, D, a, reset, h0, h, g, g_last)


def step(h: Number, a: Number, x: Number, reset: jax.Array) -> Number:
    """One step forward."""
    return _plus(_times(a, _clear(reset, h)), x)


def step_back(
    back: Number, a: Number, g: Number, reset: jax.Array, previous: Number, conjugate: bool
) -> tuple[Number, Number, Number]:
    """One step backward.

    Args:
        back: gradient of `h[t]` through the steps after it.
        a, reset: decay and reset of the step.
        g: gradient of `h[t]` as an output.
        previous: `h[t-1]`.
        conjugate: whether gradients are those of real planes.

    Returns:
        gradients of `h[t-1]`, of `x[t]` and of `a[t]`.
    """
    dx = _plus(g, back)
    da = _times(_clear(reset, previous), dx, conjugate)
    return _clear(reset, _times(a, dx, conjugate)), dx, da


def _access(P, channels):
    """Functions by which a thread reads a number of `P` planes from `ref[*index, :, channels]`, and writes one."""

    def read(ref, *index):
        return tuple(block.load(ref, *index, p, channels) for p in range(P))

    def write(number, ref, *index):
        for p in range(P):
            ref[(*index, p, channels)] = number[p]

    return read, write


def _times(a, b, conjugate=False):
    """Product of two numbers: `a b`, or `conj(a) b`."""
    if len(a) == 1:
        return (a[0] * b[0],)
    (a_re, a_im), (b_re, b_im) = a, b
    if conjugate:
        return a_re * b_re + a_im * b_im, a_re * b_im - a_im * b_re
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


def _plus(a, b):
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _clear(reset, number):
    return tuple(block.clear(reset, plane) for plane in number)


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
