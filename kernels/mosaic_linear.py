"""`linear_scan` for Hopper GPUs and newer (Pallas Mosaic GPU).

Numbers are one or two float32 planes: `(..., P, D)` with P = 1 for real ones and P = 2 for `Re, Im`. In a thread a
number is the tuple of its planes, so that one body serves both.
"""

import jax
import jax.numpy as jnp
from jax import lax

from kernels.mosaic_block import BLOCK, clear, launch, load, pad, walk, zeros

TILE = 8
"""Steps read ahead: with a varying complex decay, 6 registers a step and tile in the backward pass."""


def times(a, b, conjugate=False):
    """Product of two numbers, `conj(a) b` if `conjugate`."""
    if len(a) == 1:
        return (a[0] * b[0],)
    (a_re, a_im), (b_re, b_im) = a, b
    if conjugate:
        return a_re * b_re + a_im * b_im, a_re * b_im - a_im * b_re
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


def plus(a, b):
    return tuple(x + y for x, y in zip(a, b, strict=True))


def clear_all(reset, number):
    return tuple(clear(reset, plane) for plane in number)


def tick(h, a, x, reset):
    """One step forward."""
    return plus(times(a, clear_all(reset, h)), x)


def forward(a, x, reset, h0):
    constant = a.ndim == 3
    T, B, P, D = x.shape
    group = B // a.shape[0] if constant else 1

    def body(row, channels, a_ref, x_ref, reset_ref, h0_ref, h_ref, last_ref):
        def number(ref, *index):
            return tuple(load(ref, *index, p, channels) for p in range(P))

        shared = number(a_ref, row // group) if constant else None

        def read(t):
            return None if constant else number(a_ref, t, row), number(x_ref, t, row), reset_ref[t, row]

        def advance(t, h, now):
            a_t, x_t, reset_t = now
            h = tick(h, shared if constant else a_t, x_t, reset_t)
            for p in range(P):
                h_ref[t, row, p, channels] = h[p]
            return h

        h = walk(T, TILE, read, advance, number(h0_ref, row))
        for p in range(P):
            last_ref[row, p, channels] = h[p]

    like = jax.ShapeDtypeStruct(x.shape, jnp.float32), jax.ShapeDtypeStruct(h0.shape, jnp.float32)
    return launch(body, like, B, D, a, x, reset, h0)
