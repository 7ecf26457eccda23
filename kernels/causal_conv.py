"""Depthwise causal convolution over time that never looks across a reset, its past inputs in a state.

`y[t] = bias + sum_k weight[k] x[t - (K-1) + k]`, where inputs from before the last reset count as zero, by select.
"""

import jax
import jax.numpy as jnp
from jax import lax

from engram.kernels.rows import clear


def causal_conv(
    x: jax.Array, weight: jax.Array, bias: jax.Array, reset: jax.Array, taps: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Convolve a chunk.

    Args:
        x: input `[T, B, D]`.
        weight: `[K, D]`, the last row for the current input.
        bias: `[D]`.
        reset: bool `[T, B]`, True where `x[t]` opens an episode.
        taps: the `K - 1` inputs before the chunk, oldest first, `[B, K - 1, D]`; zeros before an episode's first.

    Returns:
        `y[T, B, D]` and the taps after the chunk `[B, K - 1, D]`.
    """
    T, lags = x.shape[0], weight.shape[0] - 1
    past = jnp.concatenate([taps.transpose(1, 0, 2).astype(x.dtype), x])  # past[lags + t] is x[t]
    t = jnp.arange(T)[:, None]
    # Steps since the episode opened; where it opened before the chunk, every tap belongs to it.
    opened = lax.cummax(jnp.where(reset, t, -lags), axis=0)
    y = bias
    for lag in range(lags + 1):
        seen = past[lags - lag : lags - lag + T]
        y = y + weight[lags - lag] * jnp.where((t - lag >= opened)[..., None], seen, 0)
    position = jnp.arange(T - lags, T)[:, None]
    taps = jnp.where((position >= opened[-1])[..., None], past[T:], 0)
    return y, taps.transpose(1, 0, 2)


def causal_conv_step(
    taps: jax.Array, x: jax.Array, weight: jax.Array, bias: jax.Array, reset: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One step of `causal_conv`: `taps[B, K - 1, D]`, `x[B, D]`, `reset[B]` -> taps, output `[B, D]`."""
    past = jnp.concatenate([clear(reset, taps).astype(x.dtype), x[:, None]], 1)
    return past[:, 1:], bias + (past * weight).sum(1)
