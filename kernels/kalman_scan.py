"""Kalman filters of one number each, with resets (Kalman 1960).

A hidden number follows `s[t] = a s[t-1] + noise of variance Q` and is seen as `y[t] = s[t] + noise of variance R[t]`.
With the belief `m', P' = select(reset[t], (0, 1), (m, P)[t-1])`, mean and variance:
    p = a^2 P' + Q      G = p / (p + R[t])      m[t] = a m' + G (y[t] - a m')      P[t] = (1 - G) p

The variances do not depend on `y`. Given them the means are a `linear_scan`. A CPU computes variances in turn;
elsewhere they come from an associative scan of 2x2 matrices, as `P'` -> `P[t]` is a Moebius map.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from engram.kernels.backends import check_flags, check_shapes, on_cpu_or_not, pick_backend, state_dtype
from engram.kernels.linear_scan import linear_scan
from engram.kernels.rows import clear, select_rows

BACKENDS = ("reference", "xla")
FRESH = 1.0
"""Variance of what is not known yet."""


class Belief(NamedTuple):
    """Means and variances, each `[B, D]`."""

    mean: jax.Array
    variance: jax.Array


def initial_state(batch: int, size: int, dtype: jnp.dtype | type = jnp.float32) -> Belief:
    """The belief before anything was seen."""
    return Belief(jnp.zeros((batch, size), dtype), jnp.full((batch, size), FRESH, dtype))


def kalman_scan(
    y: jax.Array,
    R: jax.Array,
    a: jax.Array,
    Q: jax.Array,
    reset: jax.Array | None = None,
    state0: Belief | None = None,
    *,
    backend: str = "auto",
) -> tuple[jax.Array, Belief]:
    """Scan the filters over a chunk.

    Args:
        y: what is seen `[T, B, D]`.
        R: variances of its noise, positive, `[T, B, D]`.
        a: factor of a step `[D]`.
        Q: variances of the noise of a step, not negative, `[D]`.
        reset: bool `[T, B]`, True where `y[t]` opens an episode; None for no reset.
        state0: belief before the chunk; None for `initial_state`.
        backend: "reference" (plain scan, plain autodiff), "xla" (variances, then `linear_scan`) or "auto".

    Returns:
        means and variances side by side `[T, B, 2 D]` in the dtype of `y`, and the last belief in float32 or wider.

    Raises:
        BadRequest: unknown backend.
        ValueError: shapes that do not fit.
    """
    T, B, D = y.shape
    check_shapes("kalman_scan", R=(R, (T, B, D)), a=(a, (D,)), Q=(Q, (D,)))
    check_flags("kalman_scan", reset, (T, B))
    backend = pick_backend(backend, BACKENDS, default="xla")
    dtype = state_dtype(y, R, a, Q)
    state0 = Belief(*(initial_state(B, D) if state0 is None else state0))
    check_shapes("kalman_scan", mean=(state0.mean, (B, D)), variance=(state0.variance, (B, D)))
    start = Belief(state0.mean.astype(dtype), state0.variance.astype(dtype))
    scan = _scan if backend == "xla" and y.size else _in_turn
    mean, variance = scan(y.astype(dtype), R.astype(dtype), a.astype(dtype), Q.astype(dtype), reset, start)
    last = Belief(mean[-1], variance[-1]) if T else start
    return jnp.concatenate([mean, variance], -1).astype(y.dtype), last


def kalman_scan_step(
    state: Belief, y: jax.Array, R: jax.Array, a: jax.Array, Q: jax.Array, reset: jax.Array | None = None
) -> tuple[Belief, jax.Array]:
    """One step of `kalman_scan`: belief, `y[B, D]`, `R[B, D]`, `a[D]`, `Q[D]`, `reset[B]` -> belief, output."""
    state = Belief(*state)
    check_shapes("kalman_scan_step", mean=(state.mean, y.shape), variance=(state.variance, y.shape))
    dtype = state_dtype(y, R, a, Q)
    before = Belief(state.mean.astype(dtype), state.variance.astype(dtype))
    mean, variance = _tick(before, y.astype(dtype), R.astype(dtype), a.astype(dtype), Q.astype(dtype), reset)
    return Belief(mean, variance), jnp.concatenate([mean, variance], -1).astype(y.dtype)


def _opened(reset, variance):
    """Variances, of a fresh belief where `reset`."""
    return variance if reset is None else select_rows(reset, jnp.full_like(variance, FRESH), variance)


def _predicted(variance, a, Q):
    return a * a * variance + Q


def _updated(variance, R, a, Q):
    """The variance after a step."""
    predicted = _predicted(variance, a, Q)
    return predicted * R / (predicted + R)


def _tick(state, y, R, a, Q, reset):
    mean, variance = clear(reset, state.mean), _opened(reset, state.variance)
    predicted = _predicted(variance, a, Q)
    gain = predicted / (predicted + R)
    return Belief(a * mean + gain * (y - a * mean), predicted * R / (predicted + R))


def _in_turn(y, R, a, Q, reset, state0):
    def tick(state, now):
        y_t, R_t, reset_t = now
        state = _tick(state, y_t, R_t, a, Q, reset_t)
        return state, state

    return lax.scan(tick, state0, (y, R, reset))[1]


def _scan(y, R, a, Q, reset, state0):
    variance = _variances(R, a, Q, reset, state0.variance)
    predicted = _predicted(_before(variance, reset, state0.variance), a, Q)
    kept = R / (predicted + R)
    mean, _ = linear_scan(kept * a, predicted / (predicted + R) * y, reset, state0.mean)
    return mean, variance


def _before(variance, reset, variance0):
    return _opened(reset, jnp.concatenate([variance0[None], variance[:-1]]))


def _variances_in_turn(R, a, Q, reset, variance0):
    def tick(variance, now):
        R_t, reset_t = now
        variance = _updated(_opened(reset_t, variance), R_t, a, Q)
        return variance, variance

    return lax.scan(tick, variance0, (R, reset))[1]


def _variances_associative(R, a, Q, reset, variance0):
    """`P[t] = (w P' + x) / (y P' + z)`, maps that compose as matrices do, up to a factor: here z = 1. A step whose `P'`
    is known, the first one or where an episode opens, is a map to a constant and drops what came before it."""
    first = jnp.zeros(R.shape[:2], bool) if reset is None else reset
    first = first.at[0].set(True)
    start = variance0 if reset is None else _opened(reset[0], variance0)
    known = jnp.full_like(R, FRESH).at[0].set(start)
    constant = _updated(known, R, a, Q)
    total = Q + R
    step = [a * a * R / total, Q * R / total, a * a / total]
    zeros = jnp.zeros_like(R)
    maps = [select_rows(first, new, old) for new, old in zip((zeros, constant, zeros), step, strict=True)]

    def compose(earlier, later):
        (w1, x1, y1, _), (w2, x2, y2, opened) = earlier, later
        below = y2 * x1 + 1
        joined = ((w2 * w1 + x2 * y1) / below, (w2 * x1 + x2) / below, (y2 * w1 + y1) / below)
        parts = (jnp.where(opened, new, old) for new, old in zip((w2, x2, y2), joined, strict=True))
        return *parts, earlier[3] | opened

    return lax.associative_scan(compose, (*maps, first[..., None]))[1]


@jax.custom_vjp
def _variances(R, a, Q, reset, variance0):
    """Variances `[T, B, D]`."""
    return on_cpu_or_not(_variances_in_turn, _variances_associative, R, a, Q, reset, variance0)


def _forward(R, a, Q, reset, variance0):
    variance = _variances(R, a, Q, reset, variance0)
    return variance, (R, a, Q, reset, variance0, variance)


def _backward(residuals, g):
    R, a, Q, reset, variance0, variance = residuals
    before = _before(variance, reset, variance0)
    slope = (a * R / (_predicted(before, a, Q) + R)) ** 2  # of P[t] by P'
    # All that P[t] changes: through P[t+1] too, unless an episode opens there. A recurrence backwards in time.
    later_slope = jnp.concatenate([slope[1:], jnp.zeros_like(slope[:1])])[::-1]
    later_reset = None if reset is None else jnp.concatenate([reset[1:], jnp.zeros_like(reset[:1])])[::-1]
    total = linear_scan(later_slope, g[::-1], later_reset)[0][::-1]
    _, pull = jax.vjp(_updated, before, R, a, Q)
    dbefore, dR, da, dQ = pull(total)
    return dR, da, dQ, None, clear(None if reset is None else reset[0], dbefore[0])


_variances.defvjp(_forward, _backward)
