"""`selective_scan` for Hopper GPUs and newer (Pallas Mosaic GPU); lowered, and interpreted on a CPU, in the tests.

A thread holds the N states of its channel in registers. `B` and `C`, which all channels of a row use, come through
shared memory a chunk at a time. The backward pass recomputes a chunk from the state saved before it and keeps its
states in shared memory; each block of channels sums its part of the gradients of `B` and `C`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from engram.kernels.gpu import block

Vectors = Sequence[jax.Array]
"""N vectors, an element of each in every thread."""
Scalars = Sequence[Any]
"""N scalars."""


def forward(
    chunk: int,
    save: bool,
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    reset: jax.Array,
    h0: jax.Array,
) -> tuple[jax.Array, ...]:
    """Selective scan without its skip.

    Args:
        chunk: steps between saved states; `chunk N` states of 128 channels fit into shared memory.
        save: whether to save states for `backward`.
        u, dt: `[T, B, D]`, float32 as all that follow, not empty.
        A: `[N, D]`, few enough for registers.
        B, C: `[T, B, N]`.
        reset: bool `[T, B]`.
        h0: state before the scan `[B, N, D]`.

    Returns:
        `y[T, B, D]`, the last state `[B, N, D]` and, if `save`, the states before each chunk `[chunks, B, N, D]`.
    """
    D = u.shape[-1]
    kernel = partial(_forward, chunk, save)
    scan = block.over_rows(kernel, inputs=(1, 1, 0, 0, 1, 0), results=(1, 0, 1) if save else (1, 0))
    u, dt, A, h0 = map(block.pad, (u, dt, A, h0))
    results = scan(u, dt, A[None], _by_chunks(chunk, B, C), reset.astype(jnp.int32), h0)
    return tuple(x[..., :D] for x in results)


def backward(
    chunk: int,
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    reset: jax.Array,
    saved: jax.Array,
    g: jax.Array,
    g_last: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Gradients, given those of `y` and of the last state: `g[T, B, D]` and `g_last[B, N, D]`.

    `saved` are the states that `forward` saved, with the same `chunk`; all else as there.

    Returns:
        gradients of `u, dt, A, B, C, h0`.
    """
    T, _, D = u.shape
    N = len(A)
    scan = block.over_rows(partial(_backward, chunk), inputs=(1, 1, 0, 0, 1, 1, 1, 0), results=(1, 1, 0, 1, 0))
    u, dt, A, saved, g, g_last = [block.pad(x) for x in (u, dt, A, saved, g, g_last)]
    du, ddt, dA, sums, dh0 = scan(u, dt, A[None], _by_chunks(chunk, B, C), reset.astype(jnp.int32), saved, g, g_last)
    steps = _steps_summed(chunk, N)
    sums = sums.sum(0)[..., : steps * 2 * N]  # over blocks of channels; [B, groups of steps, ...]
    sums = sums.reshape(sums.shape[0], -1, 2 * N)[:, :T].swapaxes(0, 1)
    return du[..., :D], ddt[..., :D], dA.sum(0)[..., :D], sums[..., :N], sums[..., N:], dh0[..., :D]


def trial() -> None:
    """Compiles the kernels at a small size; raises what goes wrong."""
    T, N, D = 9, 16, block.BLOCK

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    sequence, weights = array(T, 1, D), array(T, 1, N)
    inputs = sequence, sequence, array(N, D), weights, weights, jax.ShapeDtypeStruct((T, 1), bool)
    saved = jax.jit(partial(forward, 8, True)).lower(*inputs, array(1, N, D)).compile().out_info[-1]
    jax.jit(partial(backward, 8)).lower(*inputs, saved, sequence, array(1, N, D)).compile()


def _by_chunks(chunk, B, C):
    """`B[T, B, N]` and `C[T, B, N]` -> `[B, chunks, X]`: `B[t], C[t]` of one step after another, zeros behind."""
    both = jnp.concatenate([B, C], -1).swapaxes(0, 1)
    both = jnp.pad(both, ((0, 0), (0, -both.shape[1] % chunk), (0, 0)))
    return block.pad(both.reshape(len(both), -1, chunk * both.shape[-1]))


def _steps_summed(chunk, N):
    """Number of steps whose gradients of `B` and `C` are summed over channels at once: a divisor of `chunk`."""
    fitting = max(1, block.SUM_ROWS // (2 * N))
    return next(steps for steps in range(min(chunk, fitting), 0, -1) if chunk % steps == 0)


def _forward(chunk, save, u, dt, A, weights, reset, h0):
    T, rows, D = u.shape
    N = A.shape[1]
    group = rows // len(A)

    def body(row, channels, u_ref, dt_ref, A_ref, weights_ref, reset_ref, h0_ref, y_ref, last_ref, *refs):
        *saved_ref, shared = refs
        rates = _states(A_ref, row // group, N, channels)

        def place(i, fetched, h):
            _share(fetched, shared)
            for n in range(N if save else 0):
                saved_ref[0][i, row, n, channels] = h[n]

        def advance(t, k, h, now):
            u_t, dt_t, reset_t = now
            B_t, C_t = _shared_weights(shared, k, N)
            y, h = step(h, u_t, dt_t, reset_t, rates, B_t, C_t)
            y_ref[t, row, channels] = y
            return h

        h = block.walk(
            T,
            chunk,
            lambda t: (block.load(u_ref, t, row, channels), block.load(dt_ref, t, row, channels), reset_ref[t, row]),
            advance,
            _states(h0_ref, row, N, channels),
            fetch=lambda i: _fetch(weights_ref, row, i),
            place=place,
        )
        for n in range(N):
            last_ref[row, n, channels] = h[n]

    saved = jax.ShapeDtypeStruct((-(-T // chunk), *h0.shape), h0.dtype)
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (u, h0)] + [saved] * save
    shared = (jax.ShapeDtypeStruct(weights.shape[-1:], weights.dtype),)
    return tuple(block.launch(body, results, rows, D, u, dt, A, weights, reset, h0, shared=shared))


def _backward(chunk, u, dt, A, weights, reset, saved, g, g_last):
    T, rows, D = u.shape
    N = A.shape[1]
    group = rows // len(A)
    chunks = len(saved)
    summed = _steps_summed(chunk, N)
    sum_rows = -(-summed * 2 * N // block.SUM_ROWS) * block.SUM_ROWS

    def body(row, channels, *refs):
        u_ref, dt_ref, A_ref, weights_ref, reset_ref, saved_ref, g_ref, g_last_ref = refs[:8]
        du_ref, ddt_ref, dA_ref, sums_ref, dh0_ref, shared, states, products = refs[8:]
        rates = _states(A_ref, row // group, N, channels)
        part = lax.axis_index("block")

        def read(t):
            vectors = [block.load(ref, t, row, channels) for ref in (u_ref, dt_ref, g_ref)]
            return *vectors, reset_ref[t, row]

        def run_chunk(i, carry, length):
            h = _states(saved_ref, i, row, N, channels)
            operands = [read(i * chunk + k) for k in range(length)]
            _share(_fetch(weights_ref, row, i), shared)
            for k, (u_t, dt_t, _, reset_t) in enumerate(operands):
                for n in range(N):
                    states[k, n, :] = h[n]  # each thread reads back only what it wrote
                B_t, C_t = _shared_weights(shared, k, N)
                _, h = step(h, u_t, dt_t, reset_t, rates, B_t, C_t)  # nobody needs the last one: the compiler drops it
            back, dA = carry
            for k in reversed(range(length)):
                u_t, dt_t, g_t, reset_t = operands[k]
                h = [block.load(states, k, n, slice(None)) for n in range(N)]
                B_t, C_t = _shared_weights(shared, k, N)
                back, gradients = step_back(back, dA, u_t, dt_t, g_t, reset_t, h, rates, B_t, C_t)
                du, ddt, dA, dB, dC = gradients
                t = i * chunk + k
                du_ref[t, row, channels] = du
                ddt_ref[t, row, channels] = ddt
                for n in range(N):
                    block.put_row(products, k % summed * 2 * N + n, dB[n])
                    block.put_row(products, k % summed * 2 * N + N + n, dC[n])
                if k % summed == 0:
                    block.meet()
                    sums_ref[part, row, i * (chunk // summed) + k // summed] = block.sum_rows(products)
                    block.meet()
            return back, dA

        carry = _states(g_last_ref, row, N, channels), [block.zeros()] * N
        whole, rest = divmod(T, chunk)
        if rest:
            carry = run_chunk(whole, carry, rest)
        if whole:
            carry = lax.fori_loop(0, whole, lambda i, carry: run_chunk(whole - 1 - i, carry, chunk), carry)
        back, dA = carry
        for n in range(N):
            dh0_ref[row, n, channels] = back[n]
            dA_ref[row, n, channels] = dA[n]  # a sum over rows is left to the caller: rows do not wait for each other

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    state = array(rows, N, D)
    sums = array(D // block.BLOCK, rows, chunks * (chunk // summed), sum_rows)
    results = [array(*u.shape), array(*u.shape), state, sums, state]
    shared = array(weights.shape[-1]), array(chunk, N, block.BLOCK), array(sum_rows, block.SUM_WIDTH)
    inputs = u, dt, A, weights, reset, saved, g, g_last
    return tuple(block.launch(body, results, rows, D, *inputs, shared=shared))


def step(
    h: Vectors, u: jax.Array, dt: jax.Array, reset: jax.Array, A: Vectors, B: Scalars, C: Scalars
) -> tuple[jax.Array, list[jax.Array]]:
    """One step of a channel in each thread.

    Args:
        h, A: N vectors.
        u, dt: vectors.
        reset, B, C: one scalar, and N scalars each.

    Returns:
        `y`, a vector, and `h[t]`.
    """
    drive = dt * u
    h = [lax.exp(dt * a) * block.clear(reset, before) + drive * b for before, a, b in zip(h, A, B, strict=True)]
    return sum(c * state for c, state in zip(C[1:], h[1:], strict=True)) + C[0] * h[0], h


def step_back(
    back: Vectors,
    dA: Vectors,
    u: jax.Array,
    dt: jax.Array,
    g: jax.Array,
    reset: jax.Array,
    h: Vectors,
    A: Vectors,
    B: Scalars,
    C: Scalars,
) -> tuple[list[jax.Array], tuple[Any, Any, list[jax.Array], list[jax.Array], list[jax.Array]]]:
    """One step backward; `h` is the state before the step, the rest as for `step`.

    Args:
        back: gradient of `h[t]` through the steps after it, N vectors.
        dA: gradient of `A` through the steps after it, N vectors.
        g: gradient of `y[t]`, a vector.

    Returns:
        gradient of `h[t-1]`; gradients of `u`, `dt`, `A` (with this step), and of `B`, `C` before they are summed over
        channels.
    """
    drive = dt * u
    d_drive = ddt = 0
    before, sums_A, dB, dC = [], [], [], []
    for n in range(len(h)):
        decay = lax.exp(dt * A[n])
        kept = decay * block.clear(reset, h[n])
        dh = back[n] + g * C[n]
        dB.append(dh * drive)
        dC.append(g * (kept + drive * B[n]))
        d_exponent = dh * kept
        d_drive += dh * B[n]
        ddt += d_exponent * A[n]
        sums_A.append(dA[n] + d_exponent * dt)
        before.append(block.clear(reset, dh * decay))
    return before, (d_drive * dt, ddt + d_drive * u, sums_A, dB, dC)


def _states(ref, *index):
    *index, N, channels = index
    return [block.load(ref, *index, n, channels) for n in range(N)]


def _fetch(weights_ref, row, i):
    return [block.load(weights_ref, row, i, piece) for piece in block.pieces(weights_ref.shape[-1])]


def _share(fetched, shared):
    """Puts the weights of a chunk into shared memory, where all threads read them."""
    block.meet()  # no thread still reads those of another chunk
    for values, piece in zip(fetched, block.pieces(shared.shape[0]), strict=True):
        shared[piece] = values
    block.meet()


def _shared_weights(shared, k, N):
    """`B` and `C` of the k-th step of the chunk, N scalars each."""
    at = k * 2 * N
    return [shared[at + n] for n in range(N)], [shared[at + N + n] for n in range(N)]
