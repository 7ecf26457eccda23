"""The largest exponent so far, with resets and a floor of 0: what stabilises gates that are exponentials.

With `m' = select(reset[t], 0, m[t-1])`:    m[t] = max(m' + log_decay[t], x[t], 0)
"""

import jax
import jax.numpy as jnp
from jax import lax

from engram.kernels.backends import check_flags, check_shapes, on_cpu_or_not
from engram.kernels.rows import select_rows


def max_plus_scan(
    log_decay: jax.Array, x: jax.Array, reset: jax.Array, m0: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scan over a sequence. No gradient passes through it.

    Args:
        log_decay: `[T, B, H]`, at most 0.
        x: exponents `[T, B, H]`.
        reset: bool `[T, B]`, True where step t opens an episode.
        m0: value before the sequence `[B, H]`, at least 0.

    Returns:
        `m'[T, B, H]`, what each step finds; `m[T, B, H]`, what it leaves; and the last one `[B, H]`.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_shapes("max_plus_scan", log_decay=(log_decay, x.shape), m0=(m0, x.shape[1:]))
    check_flags("max_plus_scan", reset, x.shape[:2])
    log_decay, x, m0 = (lax.stop_gradient(a) for a in (log_decay, x, m0))
    if not x.size:
        return x, x, m0
    m = on_cpu_or_not(_sequential, _associative, log_decay, x, reset, m0)
    found = select_rows(reset, jnp.zeros_like(m), jnp.concatenate([m0[None], m[:-1]]))
    return found, m, m[-1]


def max_plus_scan_step(
    m: jax.Array, log_decay: jax.Array, x: jax.Array, reset: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One step: `m[B, H]`, `log_decay[B, H]`, `x[B, H]`, `reset[B]` -> m', m. No gradient passes through it."""
    check_shapes("max_plus_scan_step", m=(m, x.shape), log_decay=(log_decay, x.shape))
    m, log_decay, x = (lax.stop_gradient(a) for a in (m, log_decay, x))
    found = select_rows(reset, jnp.zeros_like(m), m)
    return found, jnp.maximum(found + log_decay, jnp.maximum(x, 0.0))


def _sequential(log_decay, x, reset, m0):
    def step(m, now):
        _, m = max_plus_scan_step(m, *now)
        return m, m

    return lax.scan(step, m0, (log_decay, x, reset))[1]


def _associative(log_decay, x, reset, m0):
    """Segments are `m -> max(m + a, b)`, or `b` alone where one of their steps opens an episode."""
    # The state before the sequence is one more step, which opens with it.
    a = jnp.concatenate([jnp.zeros_like(m0)[None], log_decay])
    b = jnp.concatenate([m0[None], jnp.maximum(x, 0.0)])
    opens = jnp.concatenate([jnp.zeros_like(reset[:1]), reset])

    def combine(before, after):
        (a, b, opens), (c, d, opens_after) = before, after
        return a + c, select_rows(opens_after, d, jnp.maximum(b + c, d)), opens | opens_after

    return lax.associative_scan(combine, (a, b, opens))[1][1:]
