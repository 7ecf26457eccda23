"""Sums of angles, with resets, that stay as exact as their terms: `n[t] = wrap(select(reset[t], 0, n[t-1]) + x[t])`.

Angles are in turns, of which only the part in [-1/2, 1/2] matters. A plain sum over a long episode grows and leaves
few digits for that part.
"""

import jax
import jax.numpy as jnp
from jax import lax

from engram.kernels.backends import check_flags, check_shapes, on_cpu_or_not
from engram.kernels.rows import clear, select_rows


def angle_scan(x: jax.Array, reset: jax.Array, n0: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scan over a sequence.

    Args:
        x: what is added, in turns `[T, B, ...]`.
        reset: bool `[T, B]`, True where step t opens an episode.
        n0: angles before the sequence `[B, ...]`.

    Returns:
        Angles `[T, B, ...]` in [-1/2, 1/2], and the last ones.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_shapes("angle_scan", n0=(n0, x.shape[1:]))
    check_flags("angle_scan", reset, x.shape[:2])
    if not x.size:
        return x, n0
    n = on_cpu_or_not(_sequential, _associative, x, reset, n0)
    return n, n[-1]


def angle_scan_step(n: jax.Array, x: jax.Array, reset: jax.Array) -> jax.Array:
    """One step: `n[B, ...]`, `x[B, ...]`, `reset[B]` -> angles in [-1/2, 1/2]."""
    check_shapes("angle_scan_step", n=(n, x.shape))
    return _wrap(clear(reset, n) + x)


def _wrap(turns):
    return turns - lax.stop_gradient(jnp.round(turns))


def _sequential(x, reset, n0):
    def step(n, now):
        n = angle_scan_step(n, *now)
        return n, n

    return lax.scan(step, n0, (x, reset))[1]


def _associative(x, reset, n0):
    def combine(before, after):
        (n, opens), (x, opens_after) = before, after
        return select_rows(opens_after, x, _wrap(n + x)), opens | opens_after

    x = jnp.concatenate([(clear(reset[0], n0) + x[0])[None], x[1:]])
    return lax.associative_scan(combine, (_wrap(x), reset))[0]
