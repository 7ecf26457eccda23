"""Time in chunks, for the scans of matrix states (`gla_scan`, `delta_scan`): resets and decays within a chunk; and in
segments that the backward pass computes again.

Within a chunk of C steps both need the products `sum_k q[t, k] D(t, s)[k] k[s, k]` for all `s <= t` of one episode,
where `D(t, s) = exp(log_decay[s+1] + ... + log_decay[t])`. The usual form multiplies `q` by `exp(G[t])` and `k` by
`exp(-G[s])`, G being the sum from the chunk's start: the second overflows where decays are strong, and differences of
large sums lose the small decays between them. Here the lower triangle is halved again and again: between the two
halves of a block both factors are measured from the middle, so both are at most 1, and every sum runs over just the
steps between its two ends.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from engram.errors import BadRequest
from engram.kernels.rows import clear


def pick_chunk(chunk: int | None, steps: int) -> int:
    """`chunk`, or where None 16 on a CPU and 64 elsewhere, no longer than `steps` needs.

    Raises:
        BadRequest: not a power of 2.
    """
    if chunk is None:
        chunk = 16 if jax.default_backend() == "cpu" else 64
    if chunk < 1 or chunk & (chunk - 1):
        raise BadRequest(f"chunk must be a power of 2, got {chunk}")
    return min(chunk, 1 << max(steps - 1, 0).bit_length())


def divide(x: jax.Array, chunk: int) -> jax.Array:
    """`[T, ...]` -> `[N, C, ...]`, the last chunk filled up with zeros."""
    pad = -len(x) % chunk
    x = jnp.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1)) if pad else x
    return x.reshape(-1, chunk, *x.shape[1:])


def fade(h: jax.Array, log_decay: jax.Array, reset: jax.Array | None) -> jax.Array:
    """A state `[B, H, K, V]` cleared where `reset[B]`, then decayed by `log_decay[B, H]` or `[B, H, K]`."""
    decay = jnp.exp(log_decay)
    return decay.reshape(*decay.shape, *(1,) * (h.ndim - decay.ndim)) * clear(reset, h)


def over_time(scan: Callable, sequence: Any, h0: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """`scan(*sequence, h0, chunk) -> y, last` over a sequence whose leaves are `[T, ...]`.

    On a CPU chunk by chunk, so that intermediate results stay in the cache. The backward pass computes them again,
    which is twice as fast as keeping them. Elsewhere all chunks side by side. The last chunk is filled up with zeros,
    which must leave the state as it is.
    """
    steps = len(jax.tree.leaves(sequence)[0])
    if jax.default_backend() != "cpu" or steps <= chunk:
        return scan(*sequence, h0, chunk)

    @jax.checkpoint
    def one(h, now):
        y, h = scan(*now, h, chunk)
        return h, y

    last, y = lax.scan(one, h0, jax.tree.map(partial(divide, chunk=chunk), sequence))
    return y.reshape(-1, *y.shape[2:])[:steps], last


def in_segments(scan: Callable, state: Any, sequence: Any, length: int) -> tuple[Any, Any]:
    """`scan(state, sequence) -> state, y` over a sequence whose leaves are `[T, ...]`, so many steps at a time.

    The backward pass computes a segment again: for scans whose intermediate results are much larger than what goes in
    and out. A sequence of one segment is run as it is.
    """
    steps = len(jax.tree.leaves(sequence)[0])
    if steps <= length:
        return scan(state, sequence)

    whole, run = steps - steps % length, jax.checkpoint(scan)
    segments = jax.tree.map(lambda x: x[:whole].reshape(-1, length, *x.shape[1:]), sequence)
    state, y = lax.scan(run, state, segments)
    y = jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), y)
    if whole < steps:
        state, rest = run(state, jax.tree.map(lambda x: x[whole:], sequence))
        y = jax.tree.map(lambda *parts: jnp.concatenate(parts), y, rest)
    return state, y


class Chunks(NamedTuple):
    """Resets and decays by chunk; N chunks of C steps. `dk` is K, or 1 where a whole head shares one decay."""

    same: jax.Array
    """Whether t (rows) and s belong to one episode, bool `[N, B, 1, C, C]`."""
    begun: jax.Array
    """Whether the chunk's opening state counts at t, as there was no reset since its start, bool `[N, B, 1, C, 1]`."""
    ends: jax.Array
    """Whether t counts for the state that the chunk leaves, as no reset follows t in it, bool `[N, B, 1, C, 1]`."""
    from_start: jax.Array
    """Decay from the opening state to t, `[N, B, H, C, dk]`."""
    to_end: jax.Array
    """Decay from t to the chunk's end, `[N, B, H, C, dk]`."""
    log_decay: jax.Array
    """Logarithm of the decay at t, `[N, B, H, C, dk]`."""

    @property
    def passes(self) -> jax.Array:
        """Whether the opening state reaches the chunk's end, bool `[N, B, 1, 1, 1]`."""
        return self.begun[..., -1:, :]

    @property
    def whole(self) -> jax.Array:
        """Decay over the whole chunk, `[N, B, H, dk, 1]`."""
        return self.from_start[..., -1, :, None]


def split(x: jax.Array, chunk: int) -> jax.Array:
    """`[T, B, H, ...]` -> `[N, B, H, C, ...]`, the last chunk filled up with zeros."""
    return jnp.moveaxis(divide(x, chunk), 1, 3)


def merge(x: jax.Array, steps: int) -> jax.Array:
    """The inverse of `split`, without the filling."""
    x = jnp.moveaxis(x, 3, 1)
    return x.reshape(-1, *x.shape[2:])[:steps]


def describe(log_decay: jax.Array, reset: jax.Array | None, chunk: int) -> Chunks:
    """Chunks of `chunk` (a power of 2) steps. `log_decay[T, B, H]` or `[T, B, H, K]`, `reset[T, B]`."""
    g = split(log_decay if log_decay.ndim == 4 else log_decay[..., None], chunk)
    opened = jnp.zeros(log_decay.shape[:2], bool) if reset is None else reset
    episode, _ = _sums(split(opened[:, :, None, None], chunk).astype(jnp.int32))
    same = episode == jnp.swapaxes(episode, -1, -2)
    from_start, to_end = map(jnp.exp, _sums(g))
    return Chunks(same, episode == 0, episode == episode[..., -1:, :], from_start, to_end, g)


def _sums(x):
    """Sums over time of `x[..., C, k]` from the chunk's start to and including t, and from after t to its end."""
    prefix, suffix = x, jnp.zeros_like(x)
    size = 1
    while size < x.shape[-2]:
        prefix, suffix = _doubled_sums(_halves(prefix, size), _halves(suffix, size), x.shape)
        size *= 2
    return prefix, suffix


def _halves(x, size):
    """`[..., C, k]` -> first and second halves `[..., C / (2 size), size, k]` of its blocks of `2 size` steps."""
    x = x.reshape(*x.shape[:-2], -1, 2, size, x.shape[-1])
    return x[..., 0, :, :], x[..., 1, :, :]


def _doubled_sums(prefix, suffix, shape):
    """Sums within blocks -> within blocks of twice the size: `prefix` from the start of the block to and including t,
    `suffix` from after t to its end."""
    (p1, p2), (s1, s2) = prefix, suffix
    prefix = jnp.stack([p1, p2 + p1[..., -1:, :]], -3).reshape(shape)
    suffix = jnp.stack([s1 + p2[..., -1:, :], s2], -3).reshape(shape)
    return prefix, suffix


def decayed_products(q: jax.Array, k: jax.Array, chunks: Chunks) -> jax.Array:
    """`sum_k q[t, k] D(t, s)[k] k[s, k]` for `s <= t` of one episode, 0 elsewhere: `q` and `k`,
    both `[N, B, H, C, K]`, -> `[N, B, H, C, C]`, rows t."""
    g = chunks.log_decay
    chunk = g.shape[-2]
    shared = g.shape[-1] == 1
    diagonal = jnp.zeros_like(g[..., 0]) if shared else (q * k).sum(-1)
    # Blocks of the lower triangle, `[..., C / size, size, size]`: logarithms where a head shares one decay.
    blocks = diagonal[..., None, None]
    prefix, suffix = g, jnp.zeros_like(g)
    size = 1
    while size < chunk:
        p, s = _halves(prefix, size), _halves(suffix, size)
        to_t, from_s = p[1], s[0]
        if shared:
            corner = to_t + jnp.swapaxes(from_s, -1, -2)
        else:
            q2, k1 = _halves(q, size)[1] * jnp.exp(to_t), _halves(k, size)[0] * jnp.exp(from_s)
            corner = jnp.einsum("...tk,...sk->...ts", q2, k1)
        b = blocks.reshape(*blocks.shape[:-3], -1, 2, size, size)
        top = jnp.concatenate([b[..., 0, :, :], jnp.zeros_like(corner)], -1)
        blocks = jnp.concatenate([top, jnp.concatenate([corner, b[..., 1, :, :]], -1)], -2)
        prefix, suffix = _doubled_sums(p, s, g.shape)
        size *= 2
    products = blocks[..., 0, :, :]
    if shared:
        products = jnp.exp(products) * jnp.einsum("...tk,...sk->...ts", q, k)
    return jnp.where(chunks.same & jnp.tri(chunk, dtype=bool), products, 0)
