"""Windows over time that never look across a reset, the past inputs in a state: taps, and a depthwise convolution.

`y[t] = bias + sum_k weight[k] x[t - (K-1) + k]`, where inputs from before the last reset count as zero, by select.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from engram.kernels.backends import check_flags, check_shapes
from engram.kernels.rows import clear


def causal_taps(
    x: jax.Array, lags: Sequence[int], reset: jax.Array, past: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """What each step of a chunk sees of the steps before it.

    Args:
        x: input `[T, B, D]`.
        lags: how many steps back each tap looks, 0 to `reach`.
        reset: bool `[T, B]`, True where `x[t]` opens an episode.
        past: the `reach` inputs before the chunk, oldest first, `[B, reach, D]`; zeros before an episode's first.

    Returns:
        For each lag the inputs that lie so far back `[T, B, D]`, zeros before the episode's first; and the past after
        the chunk `[B, reach, D]`, in the dtype of the past before it.

    Raises:
        ValueError: shapes that do not fit.
    """
    (T, B, D), reach = x.shape, past.shape[1]
    check_shapes("causal_taps", past=(past, (B, reach, D)))
    check_flags("causal_taps", reset, (T, B))
    if not T:
        return [x for _ in lags], past
    seen = jnp.concatenate([past.transpose(1, 0, 2).astype(x.dtype), x])  # seen[reach + t] is x[t]
    t = jnp.arange(T)[:, None]
    # Step at which the episode opened; where it opened before the chunk, all of the past belongs to it.
    opened = lax.cummax(jnp.where(reset, t, -reach), axis=0)
    taps = [
        jnp.where((t - lag >= opened)[..., None], seen[reach - lag : reach - lag + T], 0) if lag else x for lag in lags
    ]
    position = jnp.arange(T - reach, T)[:, None]
    after = jnp.where((position >= opened[-1])[..., None], seen[T:], 0)
    return taps, after.transpose(1, 0, 2).astype(past.dtype)


def causal_taps_step(
    past: jax.Array, x: jax.Array, lags: Sequence[int], reset: jax.Array
) -> tuple[jax.Array, list[jax.Array]]:
    """One step of `causal_taps`: `past[B, reach, D]`, `x[B, D]`, `reset[B]` -> past, for each lag `[B, D]`."""
    check_shapes("causal_taps_step", past=(past, (len(x), past.shape[1], x.shape[-1])))
    seen = jnp.concatenate([clear(reset, past).astype(x.dtype), x[:, None]], 1)
    return seen[:, 1:].astype(past.dtype), [seen[:, -1 - lag] for lag in lags]


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

    Raises:
        ValueError: shapes that do not fit.
    """
    lags = range(len(weight))
    check_shapes(
        "causal_conv", weight=(weight, (len(lags), x.shape[-1])), taps=(taps, (x.shape[1], len(lags) - 1, x.shape[-1]))
    )
    seen, taps = causal_taps(x, lags, reset, taps)
    y = bias
    for lag in lags:
        y = y + weight[-1 - lag] * seen[lag]
    return y, taps


def causal_conv_step(
    taps: jax.Array, x: jax.Array, weight: jax.Array, bias: jax.Array, reset: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One step of `causal_conv`: `taps[B, K - 1, D]`, `x[B, D]`, `reset[B]` -> taps, output `[B, D]`."""
    check_shapes("causal_conv_step", taps=(taps, (len(x), len(weight) - 1, x.shape[-1])))
    seen = jnp.concatenate([clear(reset, taps).astype(x.dtype), x[:, None]], 1)
    return seen[:, 1:].astype(taps.dtype), bias + (seen * weight).sum(1)
